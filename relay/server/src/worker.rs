//! The loop around one socket: receive a batch of batches, ask the relay, send.
//!
//! All workers share one [`Relay`] behind a lock. It is held for the look-ups only, never over a system call: at 5 Gb/s
//! that is a few per cent of a core, and sharding the tables would make every answer a question of which shard. The proof
//! in a BIND costs as much as a hundred packets: threads of their own look at those ([`crate::provers`]).
//!
//! While nobody has to wait, what comes is dealt with as it comes, all that is there at once: the more leaves together, the less each
//! packet costs ([`crate::departures`]). A worker that is behind lets sources take turns ([`crate::turns`]).

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use peerage_model::UnixTime;
use peerage_model::relay::stream::{NoFrame, PREFIX, frame_len};
use peerage_relay_proto::{Decision, Forward, Handled, Ingress, Notice, Place, Relay, Reply};
use quinn_udp::{BATCH_SIZE, EcnCodepoint};

use crate::departures::{self, Outgoing};
use crate::discovery::Discovery;
use crate::inbox::{BUFFER, Inbox, STRIDE};
use crate::socket::{BatchSocket, Envelope};
use crate::tls::{StreamCounters, Streams};
use crate::turns::{self, Turns};

/// The most notices that leave with one batch of batches.
const NOTICES: usize = 16;

/// What a worker sends before it looks again what has come: a millisecond's work.
const SENDS: usize = 512;
/// The same in bytes: what one look can bring.
const BYTES: usize = BATCH_SIZE * BUFFER;
/// As many bytes are read ahead: as single packets all that there is room for. What came joined gains nothing by it, and would only leave
/// the processor's caches.
const AHEAD: usize = 1 << 20;
/// Behind for this long, it has more to do than time: a burst that fits into the kernel's buffer is dealt with in less (8 MiB are 3,600
/// single packets, 2 to 5 µs each), and is best left there.
const BURST: Duration = Duration::from_millis(50);
/// How often it looks from then on before it goes on. Looking costs a fraction of sending, and what it sees it can be fair about.
const LOOKS: usize = 4;
/// The same where it sees little: all that there is room for.
const MOST_LOOKS: usize = 16;

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

/// Runs until the socket fails.
pub(crate) async fn serve(socket: &BatchSocket, shared: &Shared) -> io::Result<()> {
    let (mut inbox, mut turns) = (Inbox::new(), Turns::default());
    let (mut arrived, mut outgoing, mut dealt) = (Vec::new(), Vec::with_capacity(SENDS), Vec::new());
    let mut behind: Option<Instant> = None;
    loop {
        if turns.is_empty() {
            inbox.wait(socket, &mut arrived).await?;
        } else if inbox.has_room() {
            inbox.look(socket, &mut arrived)?;
        }
        // With less than a full look the kernel has nothing left.
        let more = arrived.len() >= BATCH_SIZE;
        behind = if more || !turns.is_empty() { behind.or_else(|| Some(Instant::now())) } else { None };
        let is_late = behind.is_some_and(|since| since.elapsed() >= BURST);
        if turns.is_empty() && !is_late {
            read_ahead(socket, &mut inbox, &mut arrived)?;
            deal_in_order(shared, &mut inbox, &mut arrived, &mut outgoing, &mut dealt);
            // What makes more work than there is time for at once waits for its turn.
            arrived.drain(..).for_each(|slot| turns.push(inbox.meta(slot).addr, slot));
        } else {
            arrived.drain(..).for_each(|slot| turns.push(inbox.meta(slot).addr, slot));
            if is_late {
                read_on(socket, shared, &mut inbox, &mut turns, &mut arrived)?;
            }
            deal_in_turns(shared, &mut inbox, &mut turns, &mut outgoing, &mut dealt);
            // Nothing here waits, so others of this thread would.
            tokio::task::yield_now().await;
        }
        departures::send_all(socket, shared, &inbox.memory, &outgoing).await;
        outgoing.clear();
        dealt.drain(..).for_each(|slot| inbox.release(slot));
    }
}

/// Reads what else is there, as far as there is room: the more of it leaves together, the more of it goes to one client.
fn read_ahead(socket: &BatchSocket, inbox: &mut Inbox, arrived: &mut Vec<usize>) -> io::Result<()> {
    let (mut last, mut bytes) = (0, 0);
    while arrived.len() >= last + BATCH_SIZE && inbox.has_room() {
        bytes += arrived[last..].iter().map(|slot| inbox.meta(*slot).len).sum::<usize>();
        if bytes >= AHEAD {
            break;
        }
        last = arrived.len();
        inbox.look(socket, arrived)?;
    }
    Ok(())
}

/// Reads on while several want something, so that who sends little is not lost behind who sends much.
fn read_on(
    socket: &BatchSocket,
    shared: &Shared,
    inbox: &mut Inbox,
    turns: &mut Turns,
    arrived: &mut Vec<usize>,
) -> io::Result<()> {
    let (mut looks, mut bytes) = (0, 0);
    while turns.is_contested() && (looks < LOOKS || looks < MOST_LOOKS && bytes < AHEAD) {
        while !inbox.has_room()
            && let Some(slot) = turns.shed()
        {
            let meta = inbox.meta(slot);
            let datagrams = meta.len.div_ceil(meta.stride.max(1)) as u64;
            shared.shed.fetch_add(datagrams, Ordering::Relaxed);
            inbox.release(slot);
        }
        inbox.look(socket, arrived)?;
        looks += 1;
        bytes += arrived.iter().map(|slot| inbox.meta(*slot).len).sum::<usize>();
        let all = arrived.len() < BATCH_SIZE;
        arrived.drain(..).for_each(|slot| turns.push(inbox.meta(slot).addr, slot));
        if all {
            break;
        }
    }
    Ok(())
}

/// As it came, until there is enough to send; what is left over stays in `arrived`.
fn deal_in_order(
    shared: &Shared,
    inbox: &mut Inbox,
    arrived: &mut Vec<usize>,
    outgoing: &mut Vec<Outgoing>,
    dealt: &mut Vec<usize>,
) {
    let (mut slots, bytes) = (arrived.iter().copied(), Cell::new(0));
    let next = |sends| {
        let slot = if sends < SENDS && bytes.get() < BYTES { slots.next() } else { None }?;
        dealt.push(slot);
        Some(slot)
    };
    decide(shared, inbox, outgoing, next, |_, _, more| bytes.update(|bytes| bytes + more));
    arrived.drain(..dealt.len());
}

fn deal_in_turns(
    shared: &Shared,
    inbox: &mut Inbox,
    turns: &mut Turns,
    outgoing: &mut Vec<Outgoing>,
    dealt: &mut Vec<usize>,
) {
    let (turns, bytes) = (RefCell::new(turns), Cell::new(0));
    let next = |sends| {
        let (_, slot) = if sends < SENDS && bytes.get() < BYTES { turns.borrow_mut().pop() } else { None }?;
        dealt.push(slot);
        Some(slot)
    };
    decide(shared, inbox, outgoing, next, |from, sends, more| {
        bytes.update(|bytes| bytes + more);
        turns.borrow_mut().charge(from, turns::work(sends, more));
    });
}

/// Asks the relay about one place after the other: `next` names them, told how much there is to send by then; `made` hears
/// how much each made to send, and how many bytes it was.
fn decide(
    shared: &Shared,
    inbox: &mut Inbox,
    outgoing: &mut Vec<Outgoing>,
    mut next: impl FnMut(usize) -> Option<usize>,
    mut made: impl FnMut(SocketAddr, usize, usize),
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
            note(decision, &ingress, meta.ecn, slot * STRIDE + at, outgoing);
            at += consumed;
        }
        made(meta.addr, outgoing.len() - before, bytes.len());
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
        departures::send_all(socket, shared, &[], &[answer(to, local, frame)]).await;
    }
}
