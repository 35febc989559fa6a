//! Virtual time: an instant that only the simulator moves, and a wall clock that may jump.

use std::time::{Duration, Instant};

use peerage_engine::node::Now;
use peerage_model::UnixTime;

/// The wall time at which every world starts: 2027-01-15T08:00:00Z.
const FIRST_DAY: u64 = 1_800_000_000;

/// The time of a world. Its instants mean nothing but their distance from the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
    now: Instant,
}

impl Clock {
    pub(super) fn new() -> Self {
        // The one look at a real clock: there is no other way to make an `Instant`.
        let start = Instant::now();
        Self { start, now: start }
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub(super) fn advance_to(&mut self, at: Instant) {
        self.now = self.now.max(at);
    }

    /// The wall clock of somebody whose clock is `skew` seconds off.
    pub(super) fn wall(&self, skew: i64) -> UnixTime {
        UnixTime((FIRST_DAY + self.elapsed().as_secs()).saturating_add_signed(skew))
    }

    pub(super) fn for_agent(&self, skew: i64) -> Now {
        Now { mono: self.now, wall: self.wall(skew) }
    }
}
