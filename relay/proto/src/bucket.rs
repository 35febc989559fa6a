//! Token buckets, as the moment at which one would be full again (the "virtual scheduling" form of GCRA, ITU-T I.371).
//!
//! One instant per bucket, no timers, no fractions to lose between updates.

use std::time::{Duration, Instant};

const NANOS: u128 = 1_000_000_000;

/// A sustained rate and how much may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second; at least 1.
    per_second: u64,
    /// Tokens that a full bucket holds; at least 1.
    burst: u64,
}

impl Rate {
    /// Zeros are read as ones: a rate that lets nothing through for ever is a switch, and this is none.
    #[must_use]
    pub const fn new(per_second: u64, burst: u64) -> Self {
        Self { per_second: if per_second == 0 { 1 } else { per_second }, burst: if burst == 0 { 1 } else { burst } }
    }

    fn nanos(self, tokens: u64) -> u128 {
        u128::from(tokens) * NANOS / u128::from(self.per_second)
    }
}

/// How full a bucket of some [`Rate`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    full_at: Instant,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn full(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Tokens that could be taken now.
    #[must_use]
    pub fn holds(&self, rate: Rate, now: Instant) -> u64 {
        let missing = self.full_at.saturating_duration_since(now).as_nanos();
        let free = rate.nanos(rate.burst).saturating_sub(missing);
        u64::try_from(free * u128::from(rate.per_second) / NANOS).unwrap_or(u64::MAX)
    }

    /// Takes tokens, whether or not it holds them; the debt is paid before anything is taken again.
    pub fn take(&mut self, rate: Rate, now: Instant, tokens: u64) {
        let cost = u64::try_from(rate.nanos(tokens)).unwrap_or(u64::MAX);
        let from = self.full_at.max(now);
        self.full_at = from.checked_add(Duration::from_nanos(cost)).unwrap_or(from);
    }

    /// Takes one token if there is one.
    #[must_use]
    pub fn admit(&mut self, rate: Rate, now: Instant) -> bool {
        let admitted = self.holds(rate, now) >= 1;
        if admitted {
            self.take(rate, now, 1);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop_assert, proptest};

    const TEN: Rate = Rate::new(10, 10);

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        let at_once = (0..100).filter(|_| bucket.admit(TEN, start)).count();
        assert_eq!(at_once, 10);
        let later = |ms| start + Duration::from_millis(ms);
        assert!(!bucket.admit(TEN, later(99)));
        assert!(bucket.admit(TEN, later(100)));
        assert!(!bucket.admit(TEN, later(101)));
    }

    #[test]
    fn a_rate_of_zero_neither_divides_by_it_nor_stops_time() {
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        assert!(bucket.admit(Rate::new(0, 0), start));
        assert!(!bucket.admit(Rate::new(0, 0), start));
        bucket.take(Rate::new(1, 1), start, u64::MAX);
        assert_eq!(bucket.holds(Rate::new(1, 1), start), 0);
    }

    proptest! {
        #[test]
        fn no_pattern_gets_more_than_burst_plus_rate(steps in proptest::collection::vec((0_u64..50, 0_u64..20), 1..200)) {
            let start = Instant::now();
            let (mut bucket, mut at, mut got) = (Bucket::full(start), Duration::ZERO, 0);
            for (wait_ms, tries) in steps {
                at += Duration::from_millis(wait_ms);
                got += (0..tries).filter(|_| bucket.admit(TEN, start + at)).count();
            }
            let most = 10 + at.as_millis() / 100;
            prop_assert!(got as u128 <= most, "{got} of at most {most}");
        }
    }
}
