//! A token bucket: how many packets may go where nobody has answered.

use std::time::{Duration, Instant};

/// `capacity` at once, one more each `interval`.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    capacity: u32,
    interval: Duration,
    tokens: u32,
    /// Up to when refills are counted.
    counted: Instant,
}

impl Budget {
    pub(crate) fn full(now: Instant, capacity: u32, interval: Duration) -> Self {
        Self { capacity, interval, tokens: capacity, counted: now }
    }

    /// Whether there is none to take.
    pub(crate) fn is_empty(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.tokens == 0
    }

    /// Takes one token, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted).as_nanos() / self.interval.as_nanos();
        let missing = self.capacity - self.tokens;
        match u32::try_from(passed) {
            Ok(passed) if passed < missing => {
                self.tokens += passed;
                self.counted += self.interval * passed;
            }
            Ok(_) | Err(_) => {
                self.tokens = self.capacity;
                self.counted = self.counted.max(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_gives_more_than_capacity_and_refill() {
        let start = Instant::now();
        let mut budget = Budget::full(start, 10, Duration::from_millis(500));
        let mut taken = 0;
        for millis in 0..10_000 {
            taken += u32::from(budget.take(start + Duration::from_millis(millis)));
        }
        assert_eq!(taken, 10 + 19);
    }
}
