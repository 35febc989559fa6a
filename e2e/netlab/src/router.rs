//! The threads that move frames: one reader per host, and one clock for what is under way.
//!
//! A reader takes the frames that its host's link holds, asks the [`World`] about each under one lock, and writes what
//! can go at once straight to its destination, from the same memory. Only a frame that must wait is copied, and only
//! such a frame meets a timer.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use peerage_sim::link::Arrivals;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::netlink::Mac;
use crate::packet::Datagram;
use crate::sys::{BATCH, Ring, send_batch};
use crate::world::{HostId, Next, Stage, World};

/// Frames under way may take this much memory (2 s at 1 Gb/s); beyond it the lab drops them.
const UNDER_WAY_BYTES: usize = 256 << 20;

/// The router's end of one host's link.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) socket: OwnedFd,
}

/// The hardware address of a host's end of its link.
pub(crate) const fn host_mac(host: HostId) -> Mac {
    mac(1, host)
}

/// The hardware address of the router's end of that link.
pub(crate) const fn router_mac(host: HostId) -> Mac {
    mac(0, host)
}

/// Locally administered, as 0x02 says.
const fn mac(end: u8, host: HostId) -> Mac {
    [0x02, 0, 0, end, (host.0 >> 8) as u8, host.0 as u8]
}

/// What the router's threads share.
#[derive(Debug)]
pub(crate) struct Router {
    world: Mutex<World>,
    ports: RwLock<Vec<Arc<Port>>>,
    clock: Mutex<Clock>,
    clock_changed: Condvar,
    stopping: AtomicBool,
    /// Readable once the router stops; nobody reads it, so every poll sees it.
    stop: OwnedFd,
}

#[derive(Debug, Default)]
struct Clock {
    /// By time, then by the order of scheduling.
    under_way: BTreeMap<(Instant, u64), Waiting>,
    bytes: usize,
    sequence: u64,
}

/// A frame that waits for its next stage.
#[derive(Debug)]
struct Waiting {
    from: HostId,
    stage: Stage,
    frame: Vec<u8>,
}

/// Frames on their way out, in the order in which they were decided.
#[derive(Default)]
struct Outbox<'a> {
    frames: Vec<(HostId, Frame<'a>)>,
    later: Vec<(Instant, Waiting)>,
}

/// A frame in its reader's ring, or one that has left it.
enum Frame<'a> {
    Read(&'a mut [u8]),
    Owned(Vec<u8>),
}

impl Router {
    pub(crate) fn new(world: World) -> io::Result<Self> {
        Ok(Self {
            world: Mutex::new(world),
            ports: RwLock::default(),
            clock: Mutex::default(),
            clock_changed: Condvar::new(),
            stopping: AtomicBool::new(false),
            stop: eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// Adds the port of the host that was added to the world last.
    pub(crate) fn add_port(&self, port: Arc<Port>) {
        self.ports.write().unwrap_or_else(PoisonError::into_inner).push(port);
    }

    /// Makes every thread of the router end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&self.stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "readers cannot be woken");
        }
        // Under the lock, or the clock could miss it between its check and its wait.
        let _clock = lock(&self.clock);
        self.clock_changed.notify_all();
    }

    /// Forwards what `host` sends until the router stops.
    pub(crate) fn read_from(&self, host: HostId, port: &Port, ring: &mut Ring) {
        while !self.stopping.load(Ordering::Acquire) {
            let frames = ring.ready(BATCH);
            let count = frames.len();
            if count == 0 {
                self.wait_readable(port);
                continue;
            }
            self.forward(host, frames);
            ring.release(count);
        }
    }

    fn wait_readable(&self, port: &Port) {
        let mut waiting = [PollFd::new(&port.socket, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
        // An interrupted wait is followed by another read, which finds nothing and waits again.
        if let Err(error) = poll(&mut waiting, None) {
            tracing::trace!(%error, "poll");
        }
    }

    fn forward(&self, from: HostId, frames: Vec<&mut [u8]>) {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        {
            let mut world = self.world();
            for frame in frames {
                outbox.accept(&mut world, now, from, frame);
            }
        }
        self.dispatch(outbox);
    }

    /// Handles what is due until the router stops.
    pub(crate) fn run_clock(&self) {
        // The kernel may round a sleep up by 50 us otherwise.
        if let Err(error) = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)) {
            tracing::debug!(%error, "timer slack stays coarse");
        }
        while let Some(due) = self.next_due() {
            let now = Instant::now();
            let mut outbox = Outbox::default();
            {
                let mut world = self.world();
                for Waiting { from, stage, frame } in due {
                    outbox.decide(&mut world, now, from, stage, Frame::Owned(frame));
                }
            }
            self.dispatch(outbox);
        }
    }

    /// Waits for frames that are due; nothing once the router stops.
    fn next_due(&self) -> Option<Vec<Waiting>> {
        let mut clock = lock(&self.clock);
        loop {
            if self.stopping.load(Ordering::Acquire) {
                return None;
            }
            let now = Instant::now();
            let due = clock.take_due(now);
            if !due.is_empty() {
                return Some(due);
            }
            clock = match clock.first_due().map(|first| first.saturating_duration_since(now)) {
                Some(wait) => self.clock_changed.wait_timeout(clock, wait).unwrap_or_else(PoisonError::into_inner).0,
                None => self.clock_changed.wait(clock).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn dispatch(&self, outbox: Outbox<'_>) {
        self.send(&outbox.frames);
        if outbox.later.is_empty() {
            return;
        }
        let mut clock = lock(&self.clock);
        let first = clock.first_due();
        for (due, waiting) in outbox.later {
            clock.schedule(due, waiting);
        }
        // The clock sleeps until what was first; it need not wake for what comes after that.
        if first.is_none_or(|first| clock.first_due().is_some_and(|new| new < first)) {
            self.clock_changed.notify_all();
        }
    }

    fn send(&self, frames: &[(HostId, Frame<'_>)]) {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Vec::with_capacity(BATCH);
        for group in frames.chunk_by(|(a, _), (b, _)| a == b) {
            let Some(port) = group.first().and_then(|(to, _)| ports.get(to.0)) else {
                continue;
            };
            for frames in group.chunks(BATCH) {
                batch.clear();
                batch.extend(frames.iter().map(|(_, frame)| frame.bytes()));
                send_all(port, &batch);
            }
        }
    }
}

/// A frame that the receiving host's queue refuses is lost, as on any network.
fn send_all(port: &Port, mut frames: &[&[u8]]) {
    while !frames.is_empty() {
        let handled = send_batch(&port.socket, frames).unwrap_or_else(|error| {
            tracing::trace!(%error, "a host's queue refused a frame");
            1
        });
        frames = &frames[handled..];
    }
}

impl<'a> Outbox<'a> {
    /// Takes a frame from its host, cut into packets where a link on its way treats packets one by one.
    fn accept(&mut self, world: &mut World, now: Instant, from: HostId, frame: &'a mut [u8]) {
        let Some(datagram) = Datagram::parse(frame) else {
            return world.count_unsupported(from);
        };
        if datagram.is_batch() && !world.keeps_batches(from, &datagram) {
            for single in datagram.split() {
                self.decide(world, now, from, Stage::Depart, Frame::Owned(single));
            }
        } else {
            self.decide(world, now, from, Stage::Depart, Frame::Read(frame));
        }
    }

    /// Follows a frame as far as it gets at `now`.
    fn decide(&mut self, world: &mut World, now: Instant, from: HostId, mut stage: Stage, mut frame: Frame<'a>) {
        let Some(mut datagram) = Datagram::parse(frame.bytes_mut()) else {
            return;
        };
        loop {
            match world.advance(now, from, stage, &mut datagram) {
                Next::Later(arrivals, next) if arrivals.first <= Some(now) && arrivals.second.is_none() => stage = next,
                Next::Later(Arrivals { first, second }, stage) => {
                    if let Some(due) = second {
                        self.later.push((due, Waiting { from, stage, frame: frame.bytes().to_vec() }));
                    }
                    if let Some(due) = first {
                        self.later.push((due, Waiting { from, stage, frame: frame.into_owned() }));
                    }
                    return;
                }
                Next::Deliver(to) => {
                    datagram.set_macs(host_mac(to), router_mac(to));
                    self.frames.push((to, frame));
                    return;
                }
                Next::Drop => return,
            }
        }
    }
}

impl Frame<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    fn into_owned(self) -> Vec<u8> {
        match self {
            Self::Read(bytes) => bytes.to_vec(),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Clock {
    fn schedule(&mut self, due: Instant, waiting: Waiting) {
        if self.bytes + waiting.frame.len() > UNDER_WAY_BYTES {
            tracing::debug!("too much is under way: a frame is dropped");
            return;
        }
        self.bytes += waiting.frame.len();
        self.sequence += 1;
        self.under_way.insert((due, self.sequence), waiting);
    }

    fn first_due(&self) -> Option<Instant> {
        self.under_way.first_key_value().map(|((due, _), _)| *due)
    }

    /// A bounded number, so that the world is not locked for long.
    fn take_due(&mut self, now: Instant) -> Vec<Waiting> {
        let mut due = Vec::new();
        while due.len() < 4 * BATCH
            && let Some(first) = self.under_way.first_entry()
            && first.key().0 <= now
        {
            let waiting = first.remove();
            self.bytes -= waiting.frame.len();
            due.push(waiting);
        }
        due
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
