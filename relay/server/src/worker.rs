//! The loop around one socket: receive a batch of batches, ask the relay, send.
//!
//! All workers share one [`Relay`] behind a lock. It is held for the look-ups only, never over a system call: at 5 Gb/s
//! that is a few per cent of a core, and sharding the tables would make every answer a question of which shard.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use peerage_model::UnixTime;
use peerage_relay_proto::{Decision, Forward, Ingress, Relay, Reply};
use quinn_udp::{BATCH_SIZE, RecvMeta};

use crate::socket::{BatchSocket, Envelope};

/// The most that GRO joins.
const BUFFER: usize = 65_536;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    relay: Mutex<Relay>,
    /// Batches that the kernel did not take.
    pub(crate) send_errors: AtomicU64,
}

impl Shared {
    pub(crate) fn new(relay: Relay) -> Self {
        Self { relay: Mutex::new(relay), send_errors: AtomicU64::new(0) }
    }

    /// A panic while the lock was held leaves tables that are still whole, since every change to them is one call.
    pub(crate) fn relay(&self) -> MutexGuard<'_, Relay> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_send(&self, sent: io::Result<()>) {
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
enum Outgoing {
    Reply(Envelope, Reply),
    /// Bytes of the buffer with this number.
    Forward(Envelope, usize, Range<usize>),
}

/// Runs until the socket fails.
pub(crate) async fn serve(socket: &BatchSocket, shared: &Shared) -> io::Result<()> {
    let mut memory = vec![0_u8; BATCH_SIZE * BUFFER];
    let mut meta = [RecvMeta::default(); BATCH_SIZE];
    let mut outgoing = Vec::with_capacity(2 * BATCH_SIZE);
    loop {
        let received = {
            let mut slices = memory.chunks_exact_mut(BUFFER);
            let mut slices: [_; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(slices.next().expect("memory has a buffer for each")));
            socket.recv(&mut slices, &mut meta).await?
        };
        decide(shared, &mut memory, &meta[..received], &mut outgoing);
        for what in outgoing.drain(..) {
            let sent = match what {
                Outgoing::Reply(envelope, reply) => socket.send(envelope, reply.as_bytes()).await,
                Outgoing::Forward(envelope, number, range) => {
                    let start = number * BUFFER;
                    socket.send(envelope, &memory[start + range.start..start + range.end]).await
                }
            };
            shared.count_send(sent);
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
            from: SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port()),
            local: meta.dst_ip,
        };
        let mut at = 0;
        while at < meta.len {
            let handled = relay.handle(&ingress, &mut buffer[at..meta.len], meta.stride);
            match handled.decision {
                Decision::Drop => {}
                Decision::Reply(reply) => outgoing.push(Outgoing::Reply(envelope_back(&ingress, &reply), reply)),
                Decision::Forward(forward) => {
                    let range = at + forward.range.start..at + forward.range.end;
                    outgoing.push(Outgoing::Forward(envelope_on(&forward, meta), number, range));
                }
            }
            at += handled.consumed;
        }
    }
}

fn envelope_back(ingress: &Ingress, reply: &Reply) -> Envelope {
    Envelope { to: ingress.from, local: ingress.local, ecn: None, segment: reply.as_bytes().len() }
}

/// The congestion marks of the first leg are the packet's own, and go with it.
fn envelope_on(forward: &Forward, meta: &RecvMeta) -> Envelope {
    Envelope { to: forward.to, local: forward.local, ecn: meta.ecn, segment: forward.segment }
}

/// Tells every binding that the relay is going away.
pub(crate) async fn announce_drain(socket: &BatchSocket, shared: &Shared, grace: Duration) {
    shared.relay().drain(Instant::now(), grace);
    loop {
        let next = shared.relay().poll_transmit(Instant::now());
        let Some(notice) = next else {
            return;
        };
        let bytes = notice.frame.as_bytes();
        let envelope = Envelope { to: notice.to, local: notice.local, ecn: None, segment: bytes.len() };
        shared.count_send(socket.send(envelope, bytes).await);
    }
}
