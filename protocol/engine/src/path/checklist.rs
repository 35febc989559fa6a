//! The peer's addresses, what each has proven, and when to check which.
//!
//! Bounds live here, because a peer names the addresses: rounds with few transmissions, a pace between any two, and a
//! token for each check to an address that has not answered the one before (`docs/spec/paths.md` section 3).

mod remote;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::control::{Candidate, MAX_CANDIDATES};

use super::budget::Budget;
use super::{DirectPath, Link};
use crate::stun::TransactionId;

pub(super) use self::remote::{Proof, Remote, Source};

/// From one round's start to the next; the last repeats.
const GAPS: [Duration; 4] = [ms(40_000), ms(80_000), ms(160_000), ms(300_000)];
/// How long the peer's word that its gateways are open holds: less than the 20 s for which the most forgetful gateways keep an
/// unanswered packet.
const WORD_HOLDS: Duration = ms(10_000);
/// A peer that begins a round makes us begin ours, if our last began this long ago.
const CALLED_AFTER: Duration = ms(20_000);
/// Between any two checks of a session: at most 100 a second.
const PACE: Duration = ms(10);
/// Checks at once to addresses that did not answer: a full first round of 16 addresses is 112.
const UNANSWERED_BURST: u32 = 128;
/// One more such check each.
const UNANSWERED_INTERVAL: Duration = ms(500);
/// Peer-reflexive addresses kept.
const MAX_LEARNED: usize = 16;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What is to be sent now.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    /// A check.
    Check(DirectPath),
    /// A check that dies on its way: all that it does is open our own gateway.
    Opener(DirectPath),
}

#[derive(Clone, Copy, Debug)]
struct NextRound {
    at: Instant,
    number: usize,
}

/// What is left to be said of a round.
#[derive(Clone, Copy, Debug, Default)]
struct Unsaid {
    /// To the peer: that our gateways are open.
    opened: bool,
    /// To our owner: that a first round went without an answer.
    failed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Checklist {
    remotes: Vec<Remote>,
    next_round: Option<NextRound>,
    /// When the last round began.
    began: Option<Instant>,
    /// When the peer said that its gateways are open towards our newest list.
    peer_opened: Option<Instant>,
    unsaid: Unsaid,
    /// Before this no check goes out.
    pace: Instant,
    unanswered: Budget,
}

impl Checklist {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            remotes: Vec::new(),
            next_round: None,
            began: None,
            peer_opened: None,
            unsaid: Unsaid::default(),
            pace: now,
            unanswered: Budget::full(now, UNANSWERED_BURST, UNANSWERED_INTERVAL),
        }
    }

    pub(super) fn remotes(&self) -> &[Remote] {
        &self.remotes
    }

    pub(super) fn get(&self, path: DirectPath) -> Option<&Remote> {
        self.remotes.iter().find(|remote| remote.path == path)
    }

    pub(super) fn get_mut(&mut self, path: DirectPath) -> Option<&mut Remote> {
        self.remotes.iter_mut().find(|remote| remote.path == path)
    }

    /// Replaces what the peer said before. Learned addresses stay, named ones that are gone go.
    pub(super) fn set_signalled(&mut self, list: &[Candidate]) {
        self.remotes.retain(|remote| {
            remote.source == Source::PeerReflexive
                || list.iter().any(|named| DirectPath::main(named.address) == remote.path)
        });
        for candidate in list.iter().take(MAX_CANDIDATES) {
            let source = Source::Signalled(candidate.kind);
            let path = DirectPath::main(candidate.address);
            match self.get_mut(path) {
                Some(known) => known.source = source,
                None => self.remotes.push(Remote::new(path, source)),
            }
        }
    }

    /// A verified request came from here. An unknown address is learned; to make room the oldest unproven learned one
    /// goes. `false` if there is no room.
    pub(super) fn learn(&mut self, now: Instant, path: DirectPath) -> bool {
        if self.get(path).is_none() {
            let learned = self.remotes.iter().filter(|remote| remote.source == Source::PeerReflexive).count();
            if learned >= MAX_LEARNED {
                let spare = |remote: &Remote| remote.source == Source::PeerReflexive && !remote.is_proven();
                let Some(oldest) = self.remotes.iter().position(spare) else {
                    return false;
                };
                self.remotes.remove(oldest);
            }
            self.remotes.push(Remote::new(path, Source::PeerReflexive));
        }
        if let Some(remote) = self.get_mut(path) {
            remote.trigger(now);
        }
        true
    }

    /// Lets go of addresses.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Remote) -> bool) {
        self.remotes.retain(keep);
    }

    /// A new first round: one of the two lists is another.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next_round = (!self.remotes.is_empty()).then_some(NextRound { at: now, number: 0 });
        self.peer_opened = None;
    }

    /// The peer's gateways are open towards our newest list. Without a round of ours this is a call for one.
    pub(super) fn peer_opened(&mut self, now: Instant) {
        self.peer_opened = Some(now);
        self.remotes.iter_mut().for_each(|remote| remote.open_gate(now));
        let rested = self.began.is_some_and(|began| now.saturating_duration_since(began) >= CALLED_AFTER);
        if let Some(round) = self.next_round.as_mut().filter(|_| rested) {
            round.at = now.min(round.at);
        }
    }

    /// No round, no proof, nothing in flight: our own addresses changed, or policy forbids checks.
    pub(super) fn forget_proofs(&mut self) {
        self.next_round = None;
        self.unsaid = Unsaid::default();
        // What extra sockets met, they met from the address before.
        self.remotes.retain(|remote| remote.path.link == Link::Main);
        self.remotes.iter_mut().for_each(Remote::forget);
    }

    /// Starts the round that is due. `translated` says whether a gateway of ours gives our packets their ports, which has to be
    /// opened; `usable` tells which addresses we can send to; `in_use` has its keepalive.
    pub(super) fn start_round(
        &mut self,
        now: Instant,
        translated: bool,
        in_use: Option<DirectPath>,
        usable: impl Fn(DirectPath) -> bool,
    ) {
        self.remotes.iter_mut().for_each(|remote| remote.pass_gate(now));
        let Some(round) = self.next_round.filter(|round| round.at <= now) else { return };
        let is_open = self.peer_opened.is_some_and(|said| now.saturating_duration_since(said) < WORD_HOLDS);
        for remote in &mut self.remotes {
            let settled = round.number == 0 && remote.is_proven();
            if Some(remote.path) != in_use && !settled && usable(remote.path) {
                remote.begin_round(now, translated, is_open);
            }
        }
        let opens = self.remotes.iter().any(Remote::has_opener);
        self.unsaid = Unsaid { opened: opens || round.number == 0, failed: round.number == 0 };
        self.began = Some(now);
        let gap = GAPS[round.number.min(GAPS.len() - 1)];
        self.next_round = Some(NextRound { at: now + gap, number: round.number + 1 });
    }

    /// Whether a packet of ours has gone to every address of this round, which is said once.
    pub(super) fn take_opened(&mut self, now: Instant) -> bool {
        let done = self.unsaid.opened && !self.remotes.iter().any(|remote| remote.is_untouched(now));
        self.unsaid.opened &= !done;
        done
    }

    /// Whether a first round is over and nobody has answered, which is said once.
    pub(super) fn take_failed(&mut self) -> bool {
        let unanswered = |remote: &Remote| !remote.is_in_round() && !remote.is_proven();
        let done = self.unsaid.failed && !self.remotes.is_empty() && self.remotes.iter().all(unanswered);
        self.unsaid.failed &= !done;
        done
    }

    /// What to send now, if something is due and pace and budget allow.
    pub(super) fn due(&mut self, now: Instant, in_use: Option<DirectPath>) -> Option<Due> {
        while now >= self.pace {
            let index = self.next_due(now)?;
            let is_fastest = self.fastest() == Some(index);
            let remote = &mut self.remotes[index];
            let Some(due) = remote.advance(now, in_use, is_fastest) else { continue };
            if !remote.owes_answer() || self.unanswered.take(now) {
                return Some(due);
            }
        }
        None
    }

    /// Which of those that answer has the shortest round trip.
    fn fastest(&self) -> Option<usize> {
        let answering = self.remotes.iter().enumerate().filter(|(_, remote)| !remote.is_held());
        let timed = answering.filter_map(|(index, remote)| Some((remote.rtt()?, index)));
        timed.min().map(|(_, index)| index)
    }

    fn next_due(&self, now: Instant) -> Option<usize> {
        let due = self.remotes.iter().enumerate().filter(|(_, remote)| remote.is_due(now));
        due.min_by_key(|(_, remote)| remote.turn()).map(|(index, _)| index)
    }

    /// An opener went out.
    pub(super) fn on_opened(&mut self, now: Instant) {
        self.pace = now + PACE;
    }

    /// A check with this id went over `path`.
    pub(super) fn on_sent(&mut self, now: Instant, path: DirectPath, id: TransactionId) {
        self.pace = now + PACE;
        if let Some(remote) = self.get_mut(path) {
            remote.on_sent(now, id);
        }
    }

    /// A verified response. It counts for the address its request went to, once. `false`: for none in flight there.
    pub(super) fn on_answered(
        &mut self,
        now: Instant,
        from: DirectPath,
        id: TransactionId,
        mapped: SocketAddr,
    ) -> bool {
        self.get_mut(from).is_some_and(|remote| remote.on_answered(now, id, mapped))
    }

    /// When something is due next. Past instants mean "now".
    pub(super) fn timeout(&self) -> Option<Instant> {
        let remotes = self.remotes.iter().filter_map(|remote| remote.timeout(self.pace));
        remotes.chain(self.next_round.map(|round| round.at)).min()
    }

    /// Ends the holds that are over.
    pub(super) fn release(&mut self, now: Instant) {
        self.remotes.iter_mut().for_each(|remote| remote.release(now));
    }

    /// Whether a first round is waiting or running.
    pub(super) fn is_in_first_round(&self) -> bool {
        let running = self.remotes.iter().any(Remote::is_in_round);
        self.next_round.is_some_and(|round| round.number == 0 || (round.number == 1 && running))
    }
}
