//! How much may be under way at a time, over a path that may be exchanged underneath.
//!
//! What decides is an [`Algorithm`], a fresh one for each path: RFC 9000 section 9.4 wants the estimate of one path never used
//! for another. What was under way when the path changed is the point of this module. quinn-proto goes on to count it against the
//! window of the new path, which begins small; a sender with a full window is then silent until its probe timeout
//! (RFC 9002 section 6.2) fires, doubled for each that fired before. It sends no acknowledgement either, so the peer takes it
//! for dead. None of those packets travels on the new path, hence they do not count there: neither against its
//! window, nor, when they turn out to be lost, as signs of its congestion.
//!
//! quinn-proto paces by window and round trip alone. An algorithm that knows the rate of its path says so, and a
//! [`Pacer`] holds data back in its name.

mod bbr;
mod pacer;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};

use self::bbr::Bbr;
use self::pacer::Gate;
pub(crate) use self::pacer::{Pace, Pacer};

/// What says how much may be under way (docs/decisions/0042-bbr.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Takes each loss for a sign that it sends too much (RFC 9438).
    Cubic,
    /// Measures what the path delivers and how long it takes (draft-ietf-ccwg-bbr).
    #[default]
    Bbr,
}

/// Makes the controllers of one connection, path after path. Connections must not share it.
#[derive(Debug, Default)]
pub(crate) struct OfOneConnection {
    algorithm: Algorithm,
    under_way: Arc<AtomicU64>,
    gate: Gate,
}

impl OfOneConnection {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, ..Self::default() }
    }

    /// What the connection's packets go through.
    pub(crate) fn pacer(&self, now: Instant) -> Pacer {
        Pacer::new(self.gate.clone(), now)
    }
}

impl ControllerFactory for OfOneConnection {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let left_behind = self.under_way.load(Ordering::Relaxed);
        let path: Box<dyn Controller> = match self.algorithm {
            Algorithm::Cubic => Arc::new(CubicConfig::default()).build(now, current_mtu),
            Algorithm::Bbr => Box::new(Bbr::new(now, current_mtu)),
        };
        let (under_way, gate) = (Arc::clone(&self.under_way), self.gate.clone());
        Box::new(OnOnePath { path, since: now, left_behind, under_way, gate })
    }
}

/// The controller of one path.
struct OnOnePath {
    /// The algorithm, which sees this path's packets only.
    path: Box<dyn Controller>,
    since: Instant,
    /// Bytes sent before `since` whose fate is not known: at least those, at most the window of that time.
    left_behind: u64,
    /// Bytes of the connection whose fate is not known. An estimate between acknowledgements: packets that hold
    /// nothing but acknowledgements are in it, and cannot be told from others here.
    under_way: Arc<AtomicU64>,
    /// Closed where nothing may leave for want of time.
    gate: Gate,
}

impl OnOnePath {
    fn was_sent_here(&self, sent: Instant) -> bool {
        sent >= self.since
    }

    fn set_under_way(&self, bytes: u64) {
        // What is not acknowledged is no more than the window was; see the field for what would make it more.
        self.under_way.store(bytes.min(self.all()), Ordering::Relaxed);
    }

    /// The window of this path, and what is not on it.
    fn all(&self) -> u64 {
        self.path.window().saturating_add(self.left_behind)
    }

    fn forget(&mut self, bytes: u64) {
        self.left_behind = self.left_behind.saturating_sub(bytes);
    }
}

impl Controller for OnOnePath {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.set_under_way(self.under_way.load(Ordering::Relaxed) + bytes);
        self.path.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        match self.was_sent_here(sent) {
            true => self.path.on_ack(now, sent, bytes, app_limited, rtt),
            false => self.forget(bytes),
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.left_behind = self.left_behind.min(in_flight);
        self.set_under_way(in_flight);
        self.path.on_end_acks(now, in_flight - self.left_behind, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.set_under_way(self.under_way.load(Ordering::Relaxed).saturating_sub(lost_bytes));
        if self.was_sent_here(sent) {
            // `sent` is that of the newest packet lost, and whatever is older than a lost packet is lost or arrived.
            self.left_behind = 0;
            self.path.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        } else {
            self.forget(lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.path.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.gate.is_closed() { 0 } else { self.all() }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.path.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let (under_way, gate) = (Arc::clone(&self.under_way), self.gate.clone());
        Box::new(Self { path: self.path.clone_box(), under_way, gate, ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.path.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self.path.into_any()
    }
}
