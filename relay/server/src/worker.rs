//! The loop around one socket: receive a batch of batches, ask the relay, send.
//!
//! All workers share one [`Relay`] behind a lock. It is held for the look-ups only, never over a system call: at 5 Gb/s
//! that is a few per cent of a core, and sharding the tables would make every answer a question of which shard. The proof
//! in a BIND costs as much as a thousand packets, so it is looked at without the lock, by one task ([`prove`]) for all.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use peerage_model::UnixTime;
use peerage_model::relay::stream::{NoFrame, PREFIX, frame_len};
use peerage_relay_proto::{Decision, Forward, Ingress, Notice, Place, Proof, Received, Relay, Reply, Step, StreamId};
use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta};
use tokio::sync::mpsc;

use crate::discovery::Discovery;
use crate::socket::{BatchSocket, Envelope};
use crate::tls::{StreamCounters, Streams};

/// The most that GRO joins.
const BUFFER: usize = 65_536;

/// The most that GSO takes: an IPv4 packet with its headers has 65 535 bytes.
const MAX_JOINED: usize = 65_000;
/// What came in joined to more than this leaves as it is: the copy would cost more than the system call.
const JOINED_PART: usize = 16_384;

/// The most notices that leave with one batch of batches.
const NOTICES: usize = 16;

/// BINDs that wait for their turn: a tenth of a second's work. Whoever is turned away asks again.
const PROOFS: usize = 256;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    relay: Mutex<Relay>,
    proofs: mpsc::Sender<Proof>,
    /// The second address and port, where there are any.
    pub(crate) discovery: Option<Arc<Discovery>>,
    /// Batches that the kernel did not take.
    pub(crate) send_errors: AtomicU64,
    /// Streams that can be sent to.
    pub(crate) streams: Arc<Streams>,
    pub(crate) stream_counters: StreamCounters,
}

impl Shared {
    /// With the proofs that [`prove`] is to look at.
    pub(crate) fn new(relay: Relay, discovery: Option<Arc<Discovery>>) -> (Self, mpsc::Receiver<Proof>) {
        let (proofs, waiting) = mpsc::channel(PROOFS);
        let shared = Self {
            relay: Mutex::new(relay),
            proofs,
            discovery,
            send_errors: AtomicU64::new(0),
            streams: Arc::default(),
            stream_counters: StreamCounters::default(),
        };
        (shared, waiting)
    }

    /// Puts a proof in line, if the line is short.
    fn line_up(&self, relay: &mut Relay, proof: Proof) {
        if let Err(mpsc::error::TrySendError::Full(proof) | mpsc::error::TrySendError::Closed(proof)) =
            self.proofs.try_send(proof)
        {
            relay.turn_away(proof);
        }
    }

    /// A panic while the lock was held leaves tables that are still whole, since every change to them is one call.
    pub(crate) fn relay(&self) -> MutexGuard<'_, Relay> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count_send(&self, sent: io::Result<()>) {
        if let Err(error) = sent {
            tracing::debug!(%error, "send");
            self.send_errors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn wall_time() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixTime(since.unwrap_or(Duration::ZERO).as_secs())
}

/// Something to send, decided while the lock was held.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Reply(Envelope, Reply),
    /// Bytes of the memory that was received into.
    Forward(Envelope, Range<usize>),
    ReplyToStream(StreamId, Reply),
    /// The same, in segments of this size.
    ForwardToStream(StreamId, Range<usize>, usize),
}

/// Runs until the socket fails.
pub(crate) async fn serve(socket: &BatchSocket, shared: &Shared) -> io::Result<()> {
    let mut memory = vec![0_u8; BATCH_SIZE * BUFFER];
    let mut meta = [RecvMeta::default(); BATCH_SIZE];
    let mut outgoing = Vec::with_capacity(2 * BATCH_SIZE);
    let mut joined = Vec::with_capacity(BUFFER);
    loop {
        let received = {
            let mut slices = memory.chunks_exact_mut(BUFFER);
            let mut slices: [_; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(slices.next().expect("memory has a buffer for each")));
            socket.recv(&mut slices, &mut meta).await?
        };
        decide(shared, &mut memory, &meta[..received], &mut outgoing);
        send_all(socket, shared, &memory, &outgoing, &mut joined).await;
        outgoing.clear();
    }
}

/// Sends what was decided. Waits for the kernel where UDP goes out, never for a stream.
pub(crate) async fn send_all(
    socket: &BatchSocket,
    shared: &Shared,
    memory: &[u8],
    outgoing: &[Outgoing],
    joined: &mut Vec<u8>,
) {
    let mut rest = outgoing;
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        let sent = match first {
            Outgoing::Reply(envelope, reply) => answer_from(socket, shared, *envelope, reply).await,
            Outgoing::Forward(envelope, range) => {
                let followers = joinable(*envelope, range, more);
                if followers == 0 {
                    socket.send(*envelope, &memory[range.clone()]).await
                } else {
                    let all = &outgoing[outgoing.len() - more.len() - 1..][..=followers];
                    rest = &more[followers..];
                    join(memory, all, joined);
                    socket.send(*envelope, joined).await
                }
            }
            Outgoing::ReplyToStream(id, reply) => {
                shared.streams.push(*id, reply.as_bytes(), reply.as_bytes().len());
                Ok(())
            }
            Outgoing::ForwardToStream(id, range, segment) => {
                shared.streams.push(*id, &memory[range.clone()], *segment);
                Ok(())
            }
        };
        shared.count_send(sent);
    }
}

/// Sends an answer from where it says; from anywhere but this socket only what a STUN request asked for.
async fn answer_from(socket: &BatchSocket, shared: &Shared, envelope: Envelope, reply: &Reply) -> io::Result<()> {
    if let Some(discovery) = &shared.discovery
        && let Some(sent) = discovery.send(envelope.to, reply).await
    {
        return sent;
    }
    socket.send(envelope, reply.as_bytes()).await
}

/// How many of what follows can leave in one GSO batch with a packet to `envelope`. Where the kernel did not join what
/// came in, joining what goes out costs a copy of each packet (0.1 µs) and saves a system call (some µs).
fn joinable(envelope: Envelope, first: &Range<usize>, more: &[Outgoing]) -> usize {
    let mut last = first.len();
    let mut bytes = last;
    let follows = |what: &&Outgoing| match *what {
        Outgoing::Forward(next, range) => {
            // Only the last packet of a batch may be shorter.
            let whole = last.is_multiple_of(envelope.segment);
            last = range.len();
            bytes += last;
            let single = range.len() <= next.segment && range.len() <= envelope.segment;
            let fits = bytes <= MAX_JOINED && range.len() <= JOINED_PART;
            whole && fits && next.is_to_the_same(&envelope) && (single || next.segment == envelope.segment)
        }
        Outgoing::Reply(..) | Outgoing::ReplyToStream(..) | Outgoing::ForwardToStream(..) => false,
    };
    if first.len() > JOINED_PART { 0 } else { more.iter().take_while(follows).count() }
}

fn join(memory: &[u8], parts: &[Outgoing], joined: &mut Vec<u8>) {
    joined.clear();
    for part in parts {
        if let Outgoing::Forward(_, range) = part {
            joined.extend_from_slice(&memory[range.clone()]);
        }
    }
}

fn decide(shared: &Shared, memory: &mut [u8], meta: &[RecvMeta], outgoing: &mut Vec<Outgoing>) {
    let (now, wall) = (Instant::now(), wall_time());
    let mut relay = shared.relay();
    for (number, (buffer, meta)) in memory.chunks_exact_mut(BUFFER).zip(meta).enumerate() {
        let ingress = Ingress {
            now,
            wall,
            from: SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port()).into(),
            local: meta.dst_ip,
        };
        let mut at = 0;
        while at < meta.len {
            let Received { consumed, step } = relay.receive(&ingress, &mut buffer[at..meta.len], meta.stride);
            match step {
                Step::Done(decision) => note(decision, &ingress, meta.ecn, number * BUFFER + at, outgoing),
                Step::Prove(proof) => shared.line_up(&mut relay, proof),
            }
            at += consumed;
        }
    }
    tell_owners(&mut relay, now, outgoing);
}

/// What mail made the relay say to its owners. A drain tells thousands, and does that by itself.
fn tell_owners(relay: &mut Relay, now: Instant, outgoing: &mut Vec<Outgoing>) {
    let notices = std::iter::from_fn(|| relay.poll_transmit(now)).take(NOTICES);
    outgoing.extend(notices.map(|notice| answer(notice.to, notice.local, notice.frame)));
}

/// Hands all whole frames at the start of what a stream gave to the relay. Says how many bytes those were.
pub(crate) fn decide_frames(
    shared: &Shared,
    from: Place,
    received: &mut [u8],
    outgoing: &mut Vec<Outgoing>,
) -> Result<usize, NoFrame> {
    let ingress = Ingress { now: Instant::now(), wall: wall_time(), from, local: None };
    let mut relay = shared.relay();
    let mut used = 0;
    while let Some(len) = frame_len(&received[used..])? {
        let at = used + PREFIX;
        let Some(frame) = received.get_mut(at..at + len) else {
            break;
        };
        match relay.receive(&ingress, frame, len).step {
            Step::Done(decision) => note(decision, &ingress, None, at, outgoing),
            Step::Prove(proof) => shared.line_up(&mut relay, proof),
        }
        used = at + len;
    }
    tell_owners(&mut relay, ingress.now, outgoing);
    Ok(used)
}

/// Looks at proofs, one after the other, and answers them. Between two of them packets have their turn.
pub(crate) async fn prove(mut waiting: mpsc::Receiver<Proof>, socket: &BatchSocket, shared: &Shared) {
    while let Some(proof) = waiting.recv().await {
        let (from, local) = (proof.from(), proof.local());
        let proven = proof.check();
        let decision = shared.relay().conclude(proven);
        if let Decision::Reply(reply) = decision {
            send_all(socket, shared, &[], &[answer(from, local, reply)], &mut Vec::new()).await;
        }
        tokio::task::yield_now().await;
    }
}

/// Writes down what the relay decided about a part of the memory that begins at `at`.
///
/// The congestion marks of the first leg are the packet's own, and go with it.
fn note(decision: Decision, ingress: &Ingress, ecn: Option<EcnCodepoint>, at: usize, outgoing: &mut Vec<Outgoing>) {
    match decision {
        Decision::Drop => {}
        Decision::Reply(reply) => outgoing.push(answer(ingress.from, ingress.local, reply)),
        Decision::Forward(Forward { to, local, range, segment }) => {
            let range = at + range.start..at + range.end;
            outgoing.push(match to {
                Place::Udp(to) => Outgoing::Forward(Envelope { to, local, ecn, segment }, range),
                Place::Stream(id, _) => Outgoing::ForwardToStream(id, range, segment),
            });
        }
    }
}

fn answer(to: Place, local: Option<IpAddr>, reply: Reply) -> Outgoing {
    match to {
        Place::Udp(to) => {
            let (to, segment) = (reply.destination(to), reply.as_bytes().len());
            Outgoing::Reply(Envelope { to, local, ecn: None, segment }, reply)
        }
        Place::Stream(id, _) => Outgoing::ReplyToStream(id, reply),
    }
}

/// Tells every binding that the relay is going away.
pub(crate) async fn announce_drain(socket: &BatchSocket, shared: &Shared, grace: Duration) {
    shared.relay().drain(Instant::now(), grace);
    loop {
        let next = shared.relay().poll_transmit(Instant::now());
        let Some(Notice { to, local, frame }) = next else {
            return;
        };
        send_all(socket, shared, &[], &[answer(to, local, frame)], &mut Vec::new()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(to: u16, segment: usize) -> Envelope {
        Envelope { to: SocketAddr::from(([192, 0, 2, 1], to)), local: None, ecn: None, segment }
    }

    fn part(to: u16, segment: usize, len: usize) -> Outgoing {
        Outgoing::Forward(envelope(to, segment), 0..len)
    }

    fn joined_with_a_packet_of_100(more: &[Outgoing]) -> usize {
        joinable(envelope(1, 100), &(0..100), more)
    }

    #[test]
    fn equal_packets_to_one_address_leave_together_and_the_last_may_be_shorter() {
        assert_eq!(joined_with_a_packet_of_100(&[part(1, 100, 100), part(1, 100, 300), part(1, 40, 40)]), 3);
        assert_eq!(joined_with_a_packet_of_100(&[part(1, 40, 40), part(1, 100, 100)]), 1);
    }

    #[test]
    fn what_goes_elsewhere_is_longer_or_is_cut_otherwise_leaves_by_itself() {
        assert_eq!(joined_with_a_packet_of_100(&[part(2, 100, 100)]), 0);
        assert_eq!(joined_with_a_packet_of_100(&[part(1, 120, 120)]), 0);
        assert_eq!(joined_with_a_packet_of_100(&[part(1, 50, 100)]), 0);
    }

    #[test]
    fn no_batch_is_longer_than_gso_takes() {
        let more: Vec<_> = (0..700).map(|_| part(1, 100, 100)).collect();
        assert_eq!(joined_with_a_packet_of_100(&more), MAX_JOINED / 100 - 1);
    }
}
