//! What all sessions together may hold for streams: data that programs here have not read, and data that peers have not
//! acknowledged.
//!
//! QUIC bounds one session. A node with many sessions needs a bound of its own, or peers whose words nobody reads here fill its
//! memory, trusted as they are. Credit that was granted cannot be taken back, so each session gets its share when it
//! begins: a quarter of what is free, up to as much as one session has use for, and of a peer that runs several times as many
//! times less, or one peer would take it all. The first ones get all of that, and however many follow, what they have
//! together does not reach the bound. Only the [`FLOOR`], without which a session is of no use, is granted beyond it. A share
//! is free again when its session has ended.

use std::collections::BTreeMap;

use quinn_proto::VarInt;

use super::event::SessionKey;
use super::pair::PairKey;

/// As much as a session has use for: 64 MiB to receive and 32 to send.
const FULL: u64 = 96 << 20;
/// What every session gets: a stream's window of it carries 10 Mb/s at 100 ms.
const FLOOR: u64 = 1 << 20;
/// So much of what is free goes to the next session.
const PART: u64 = 4;
/// One stream's receive window: 12 MB carries 1 Gb/s at 100 ms, or half of that with a queue as long as the path. quinn's default
/// of 1.25 MB carries 100 Mb/s.
const STREAM: u64 = 12 << 20;
/// What is not acknowledged is no more than so many congestion windows, however much memory there is: one is under way, or has arrived
/// behind a packet that was lost, and one is there to leave next. Linux gives a TCP connection the same (tcp_sndbuf_expand).
const CONGESTION_WINDOWS: u64 = 2;
/// At least this, while the congestion window is still small. With 1 MiB five megabytes over a clean path of 30 ms took 0.57 s in the
/// simulation, with this 0.55, as with all that a session may have.
const WORTH_HOLDING: u64 = 4 << 20;
/// An asker's, in each direction: a request whole, and nothing else.
const REQUEST: u64 = 4 << 10;

/// The bound, and what was granted.
#[derive(Debug)]
pub(super) struct Memory {
    bound: u64,
    shares: BTreeMap<SessionKey, Share>,
}

/// What one session may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Share {
    /// With a trusted peer: this much, both ways together.
    OfPeer(u64),
    /// With somebody who asks, or is asked, for trust.
    OfRequest,
}

impl Memory {
    pub(super) fn new(bound: u64) -> Self {
        Self { bound, shares: BTreeMap::new() }
    }

    /// What a session of this pair may have that begins at this moment, where sessions are up with so many of the peer's
    /// instances. With one it may replace that one's session, and gets as much.
    pub(super) fn offer(&self, pair: &PairKey, instances: usize) -> Share {
        let sharing = u64::try_from(instances).unwrap_or(u64::MAX).max(1);
        let free = self.bound.saturating_sub(self.granted());
        match pair {
            PairKey::Peer(_) => Share::OfPeer((free / PART / sharing).clamp(FLOOR, FULL)),
            PairKey::Invite(_) | PairKey::Ask(_) => Share::OfRequest,
        }
    }

    fn granted(&self) -> u64 {
        self.shares.values().map(|share| share.bytes()).sum()
    }

    /// A session has begun with this share.
    pub(super) fn grant(&mut self, key: SessionKey, share: Share) {
        self.shares.insert(key, share);
    }

    /// What a session may hold.
    pub(super) fn share(&self, key: SessionKey) -> Option<Share> {
        self.shares.get(&key).copied()
    }

    /// A session is over, and all that it held.
    pub(super) fn give_back(&mut self, key: SessionKey) {
        self.shares.remove(&key);
    }
}

impl Share {
    fn bytes(self) -> u64 {
        match self {
            Self::OfPeer(bytes) => bytes,
            Self::OfRequest => 2 * REQUEST,
        }
    }

    /// Unread data of all streams together.
    pub(super) fn receive_window(self) -> VarInt {
        var(self.receive())
    }

    /// Unread data of one stream: five that nobody reads leave the others their way, and so do two whose data wait to be
    /// acknowledged by a peer with the same share.
    pub(super) fn stream_receive_window(self) -> VarInt {
        match self {
            Self::OfPeer(bytes) => var((bytes / 8).min(STREAM)),
            Self::OfRequest => var(REQUEST),
        }
    }

    /// Unacknowledged data, on a path with such a congestion window. More would be of no use, and each byte of it would have left the
    /// processor's caches before its packet is made.
    pub(super) fn send_window(self, congestion_window: u64) -> u64 {
        let useful = congestion_window.saturating_mul(CONGESTION_WINDOWS).max(WORTH_HOLDING);
        useful.min(self.bytes() - self.receive())
    }

    fn receive(self) -> u64 {
        match self {
            Self::OfPeer(bytes) => bytes / 3 * 2,
            Self::OfRequest => REQUEST,
        }
    }
}

fn var(bytes: u64) -> VarInt {
    VarInt::from_u64(bytes).unwrap_or(VarInt::MAX)
}

#[cfg(test)]
mod tests {
    use peerage_model::{AgentId, Fingerprint};

    use super::*;
    use crate::node::DEFAULT_MEMORY;

    const MIB: u64 = 1 << 20;

    fn a_peer() -> PairKey {
        PairKey::Peer(AgentId { authority: Fingerprint([7; 32]), name: "db".parse().expect("a name") })
    }

    /// Shares of so many sessions that begin one after the other.
    fn shares(memory: &mut Memory, sessions: u64) -> Vec<Share> {
        let begin = |n| {
            let share = memory.offer(&a_peer(), 0);
            memory.grant(SessionKey(n), share);
            share
        };
        (0..sessions).map(begin).collect()
    }

    #[test]
    fn the_first_session_has_the_windows_of_one_that_is_alone() {
        let [share] = shares(&mut Memory::new(DEFAULT_MEMORY), 1)[..] else { panic!("one session") };
        let windows = [share.receive_window().into_inner(), share.stream_receive_window().into_inner()];
        assert_eq!((windows, share.send_window(u64::MAX)), ([64 * MIB, 12 * MIB], 32 * MIB));
    }

    #[test]
    fn no_more_is_held_to_be_sent_than_the_path_has_use_for() {
        let share = Share::OfPeer(FULL);
        assert_eq!([0, MIB, 4 * MIB].map(|window| share.send_window(window)), [4 * MIB, 4 * MIB, 8 * MIB]);
        assert_eq!(Share::OfRequest.send_window(MIB), REQUEST);
    }

    #[test]
    fn sessions_without_number_stay_below_the_bound_but_for_the_floor() {
        let mut memory = Memory::new(DEFAULT_MEMORY);
        let many = shares(&mut memory, 1000);
        let held: u64 =
            many.iter().map(|share| share.receive_window().into_inner() + share.send_window(u64::MAX)).sum();
        assert!(held <= DEFAULT_MEMORY + 1000 * FLOOR, "{held}");
        assert_eq!(many[999], Share::OfPeer(FLOOR));
    }

    #[test]
    fn what_ended_sessions_held_is_there_for_the_next() {
        let mut memory = Memory::new(DEFAULT_MEMORY);
        let first = memory.offer(&a_peer(), 0);
        shares(&mut memory, 20);
        assert_ne!(memory.offer(&a_peer(), 0), first);
        (0..20).for_each(|n| memory.give_back(SessionKey(n)));
        assert_eq!(memory.offer(&a_peer(), 0), first);
    }

    #[test]
    fn a_peer_with_eight_instances_leaves_another_peer_a_third_of_the_memory() {
        let mut memory = Memory::new(DEFAULT_MEMORY);
        for (instances, key) in (0..8).zip((0..).map(SessionKey)) {
            let share = memory.offer(&a_peer(), instances);
            memory.grant(key, share);
        }
        let left = DEFAULT_MEMORY - memory.granted();
        assert!(left >= DEFAULT_MEMORY / 3, "{} MiB are left", left / MIB);
    }
}
