//! The loop around one socket: receive a batch of batches, ask the relay, send.
//!
//! All workers share one [`Relay`] behind a lock. It is held for the look-ups only, never over a system call: at 5 Gb/s
//! that is a few per cent of a core, and sharding the tables would make every answer a question of which shard. The proof
//! in a BIND costs as much as a hundred packets: threads of their own look at those ([`crate::provers`]).
//!
//! While nobody has to wait, what comes is dealt with as it comes. A worker that is behind lets sources take turns ([`crate::turns`]).

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use peerage_model::UnixTime;
use peerage_model::relay::stream::{NoFrame, PREFIX, frame_len};
use peerage_relay_proto::{Decision, Forward, Handled, Ingress, Notice, Place, Relay, Reply, StreamId};
use quinn_udp::{BATCH_SIZE, EcnCodepoint};

use crate::discovery::Discovery;
use crate::inbox::{BUFFER, Inbox};
use crate::socket::{BatchSocket, Envelope};
use crate::tls::{StreamCounters, Streams};
use crate::turns::{self, Turns};

/// The most that GSO takes: an IPv4 packet with its headers has 65 535 bytes.
const MAX_JOINED: usize = 65_000;
/// What came in joined to more than this leaves as it is: the copy would cost more than the system call.
const JOINED_PART: usize = 16_384;

/// The most notices that leave with one batch of batches.
const NOTICES: usize = 16;

/// What a worker that is behind sends before it looks again what has come: some milliseconds' work.
const SENDS: usize = 256;
/// Behind for this long, it has more to do than time: a burst that fits into the kernel's buffer is dealt with in less (8 MiB are 3,600
/// single packets, 5 µs each), and is best left there.
const BURST: Duration = Duration::from_millis(50);
/// How often it looks from then on before it goes on. Looking costs a fraction of sending, and what it sees it can be fair about.
const LOOKS: usize = 4;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    relay: Mutex<Relay>,
    /// There is a BIND to look at.
    pub(crate) binds: Condvar,
    /// The second address and port, where there are any.
    pub(crate) discovery: Option<Arc<Discovery>>,
    /// Batches that the kernel did not take.
    pub(crate) send_errors: AtomicU64,
    /// Datagrams of who sent more than its share while there was not time for all.
    pub(crate) shed: AtomicU64,
    /// Streams that can be sent to.
    pub(crate) streams: Arc<Streams>,
    pub(crate) stream_counters: StreamCounters,
}

impl Shared {
    pub(crate) fn new(relay: Relay, discovery: Option<Arc<Discovery>>) -> Self {
        Self {
            relay: Mutex::new(relay),
            binds: Condvar::new(),
            discovery,
            send_errors: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            streams: Arc::default(),
            stream_counters: StreamCounters::default(),
        }
    }

    /// A panic while the lock was held leaves tables that are still whole, since every change to them is one call.
    pub(crate) fn relay(&self) -> MutexGuard<'_, Relay> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_provers(&self, relay: &Relay) {
        if relay.has_proof() {
            self.binds.notify_one();
        }
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
    let (mut inbox, mut turns, mut joined) = (Inbox::new(), Turns::default(), Vec::with_capacity(BUFFER));
    let (mut arrived, mut outgoing, mut dealt) = (Vec::new(), Vec::with_capacity(2 * BATCH_SIZE), Vec::new());
    let mut behind: Option<Instant> = None;
    loop {
        if turns.is_empty() {
            inbox.wait(socket, &mut arrived).await?;
        } else if inbox.has_room() {
            inbox.look(socket, &mut arrived)?;
        }
        // With less than a full look the kernel has nothing left.
        if turns.is_empty() && arrived.len() < BATCH_SIZE {
            behind = None;
            dealt.append(&mut arrived);
            let mut next = dealt.iter().copied();
            decide(shared, &mut inbox, &mut outgoing, |_| next.next(), |_, _| {});
        } else {
            arrived.drain(..).for_each(|slot| turns.push(inbox.meta(slot).addr, slot));
            if behind.get_or_insert_with(Instant::now).elapsed() >= BURST {
                read_on(socket, shared, &mut inbox, &mut turns, &mut arrived)?;
            }
            deal_in_turns(shared, &mut inbox, &mut turns, &mut outgoing, &mut dealt);
            // Nothing here waits, so others of this thread would.
            tokio::task::yield_now().await;
        }
        send_all(socket, shared, &inbox.memory, &outgoing, &mut joined).await;
        outgoing.clear();
        dealt.drain(..).for_each(|slot| inbox.release(slot));
    }
}

/// Reads on while several want something, so that who sends little is not lost behind who sends much.
fn read_on(
    socket: &BatchSocket,
    shared: &Shared,
    inbox: &mut Inbox,
    turns: &mut Turns,
    arrived: &mut Vec<usize>,
) -> io::Result<()> {
    for _ in 0..LOOKS {
        if !turns.is_contested() {
            break;
        }
        while !inbox.has_room()
            && let Some(slot) = turns.shed()
        {
            let meta = inbox.meta(slot);
            let datagrams = meta.len.div_ceil(meta.stride.max(1)) as u64;
            shared.shed.fetch_add(datagrams, Ordering::Relaxed);
            inbox.release(slot);
        }
        inbox.look(socket, arrived)?;
        let all = arrived.len() < BATCH_SIZE;
        arrived.drain(..).for_each(|slot| turns.push(inbox.meta(slot).addr, slot));
        if all {
            break;
        }
    }
    Ok(())
}

fn deal_in_turns(
    shared: &Shared,
    inbox: &mut Inbox,
    turns: &mut Turns,
    outgoing: &mut Vec<Outgoing>,
    dealt: &mut Vec<usize>,
) {
    let turns = RefCell::new(turns);
    let next = |sends| {
        let more = sends < SENDS && dealt.len() < BATCH_SIZE;
        let (_, slot) = if more { turns.borrow_mut().pop() } else { None }?;
        dealt.push(slot);
        Some(slot)
    };
    decide(shared, inbox, outgoing, next, |from, work| turns.borrow_mut().charge(from, work));
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

/// Asks the relay about one place after the other: `next` names them, told how much there is to send by then; `made` hears what work each was.
fn decide(
    shared: &Shared,
    inbox: &mut Inbox,
    outgoing: &mut Vec<Outgoing>,
    mut next: impl FnMut(usize) -> Option<usize>,
    mut made: impl FnMut(SocketAddr, i64),
) {
    let (now, wall) = (Instant::now(), wall_time());
    let mut relay = shared.relay();
    while let Some(slot) = next(outgoing.len()) {
        let before = outgoing.len();
        let (bytes, meta) = inbox.get(slot);
        let ingress = Ingress {
            now,
            wall,
            from: SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port()).into(),
            local: meta.dst_ip,
        };
        let mut at = 0;
        while at < bytes.len() {
            let Handled { consumed, decision } = relay.receive(&ingress, &mut bytes[at..], meta.stride);
            note(decision, &ingress, meta.ecn, slot * BUFFER + at, outgoing);
            at += consumed;
        }
        made(meta.addr, turns::work(outgoing.len() - before, bytes.len()));
    }
    tell_owners(&mut relay, now, outgoing);
    shared.tell_provers(&relay);
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
        note(relay.receive(&ingress, frame, len).decision, &ingress, None, at, outgoing);
        used = at + len;
    }
    tell_owners(&mut relay, ingress.now, outgoing);
    shared.tell_provers(&relay);
    Ok(used)
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

pub(crate) fn answer(to: Place, local: Option<IpAddr>, reply: Reply) -> Outgoing {
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
