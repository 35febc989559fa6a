//! A wire that takes time, loses, reorders and has a rate: the kernels these tests run on have no netem.
//!
//! It is spliced into a link as two veth pairs, whose near ends a thread for each direction reads and writes through
//! packet sockets, by the link model of `peerage_sim`. Whatever travels over IP passes, TCP and IPv6 too. Both ends of
//! every link have one hardware address (see [`super::MAC`]), so that frames pass as they are.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use peerage_sim::link::{Link, LinkConfig};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::packet::HEADROOM;
use crate::sys::{BATCH, Ring, send_batch};
use crate::world::Access;

/// Frames under way in one direction may take this much memory; beyond it they are dropped.
const UNDER_WAY_BYTES: usize = 64 << 20;

/// A running wire; dropping it stops it.
#[derive(Debug)]
pub(crate) struct Wire {
    /// From the site, and towards it.
    links: [Arc<Mutex<Link>>; 2],
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

/// One end of the wire: the packet socket of a veth and its receive ring.
pub(crate) type End = (OwnedFd, Ring);

#[derive(Debug)]
struct Stop {
    stopping: AtomicBool,
    /// Readable from then on; nobody reads it, so that every poll sees it.
    bell: OwnedFd,
}

impl Wire {
    /// Joins the site's end to the internet's.
    pub(crate) fn start(site: End, internet: End, access: &Access, seed: u64) -> io::Result<Self> {
        let stop = Arc::new(Stop { stopping: AtomicBool::new(false), bell: eventfd(0, EventfdFlags::CLOEXEC)? });
        let link = |config: &LinkConfig, seed| Arc::new(Mutex::new(Link::new(config.clone(), seed)));
        let links = [link(&access.up, seed), link(&access.down, seed.wrapping_add(1))];
        let mut wire = Self { links, stop, threads: Vec::new() };
        let ((site, from_site), (internet, from_internet)) = (site, internet);
        let (site, internet) = (Arc::new(site), Arc::new(internet));
        let ways = [(&site, from_site, &internet), (&internet, from_internet, &site)];
        for ((from, ring, to), link) in ways.into_iter().zip(&wire.links) {
            let way = Way {
                from: Arc::clone(from),
                ring,
                to: Arc::clone(to),
                link: Arc::clone(link),
                stop: Arc::clone(&wire.stop),
                under_way: BTreeMap::new(),
                bytes: 0,
                sequence: 0,
            };
            wire.threads.push(std::thread::Builder::new().name("wire".into()).spawn(move || way.run())?);
        }
        Ok(wire)
    }

    /// Changes both directions, for frames sent from here on.
    pub(crate) fn set(&self, access: Access) {
        lock(&self.links[0]).set_config(access.up);
        lock(&self.links[1]).set_config(access.down);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.stopping.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&self.stop.bell, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "a wire cannot be woken");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a wire panicked");
            }
        }
    }
}

/// One direction.
struct Way {
    from: Arc<OwnedFd>,
    ring: Ring,
    to: Arc<OwnedFd>,
    link: Arc<Mutex<Link>>,
    stop: Arc<Stop>,
    /// By arrival, then by order of sending.
    under_way: BTreeMap<(Instant, u64), Vec<u8>>,
    bytes: usize,
    sequence: u64,
}

impl Way {
    fn run(mut self) {
        // The kernel may round a sleep up by 50 us otherwise.
        if let Err(error) = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1)) {
            tracing::debug!(%error, "timer slack stays coarse");
        }
        while !self.stop.stopping.load(Ordering::Acquire) {
            let taken = self.take();
            self.deliver();
            if taken == 0 {
                self.wait();
            }
        }
    }

    /// Takes what has come in, and decides when it arrives.
    fn take(&mut self) -> usize {
        let now = Instant::now();
        let frames = self.ring.ready(BATCH);
        let count = frames.len();
        let mut link = lock(&self.link);
        for frame in frames {
            for arrival in link.send(now, frame.len().saturating_sub(HEADROOM)) {
                if self.bytes + frame.len() <= UNDER_WAY_BYTES {
                    self.bytes += frame.len();
                    self.sequence += 1;
                    self.under_way.insert((arrival, self.sequence), frame.to_vec());
                }
            }
        }
        drop(link);
        self.ring.release(count);
        count
    }

    /// Sends on what has arrived. A frame that the other end's queue refuses is lost, as on any network.
    fn deliver(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        while let Some(first) = self.under_way.first_entry()
            && first.key().0 <= now
        {
            let frame = first.remove();
            self.bytes -= frame.len();
            due.push(frame);
        }
        for frames in due.chunks(BATCH) {
            let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let mut left = &frames[..];
            while !left.is_empty() {
                left = &left[send_batch(&self.to, left).unwrap_or(1)..];
            }
        }
    }

    /// Until something comes in, something arrives, or the wire is to stop.
    fn wait(&self) {
        let due = self.under_way.first_key_value().map(|((due, _), _)| due.saturating_duration_since(Instant::now()));
        if due == Some(Duration::ZERO) {
            return;
        }
        let timeout = due.and_then(|due| Timespec::try_from(due).ok());
        let mut waiting = [PollFd::new(&self.from, PollFlags::IN), PollFd::new(&self.stop.bell, PollFlags::IN)];
        // An interrupted wait is followed by another look.
        if let Err(error) = poll(&mut waiting, timeout.as_ref()) {
            tracing::trace!(%error, "poll");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
