//! How long each of many things took, in little memory: counts of ranges that are never wider than 1/64 of what they hold.

use std::time::Duration;

/// A power of two is cut into so many ranges.
const STEPS: u64 = 64;
/// Up to this many nanoseconds each has a range of its own.
const EXACT: u64 = 2 * STEPS;
const EXACT_BITS: u32 = EXACT.trailing_zeros();

/// Times, of which only the range is kept.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    counts: Vec<u64>,
    total: u64,
}

impl Latencies {
    /// One more.
    pub fn note(&mut self, time: Duration) {
        let range = range_of(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        if self.counts.len() <= range {
            self.counts.resize(range + 1, 0);
        }
        self.counts[range] += 1;
        self.total += 1;
    }

    /// All that somebody else has noted.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (own, more) in self.counts.iter_mut().zip(&other.counts) {
            *own += more;
        }
        self.total += other.total;
    }

    /// How many there are.
    pub const fn count(&self) -> u64 {
        self.total
    }

    /// The least time that this share of all did not exceed (0.99: the 99th percentile), up to the width of its range.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let wanted = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let range = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        range.map(|range| Duration::from_nanos(middle_of(range)))
    }
}

/// The range that a number of nanoseconds is in.
fn range_of(nanoseconds: u64) -> usize {
    if nanoseconds < EXACT {
        return nanoseconds as usize;
    }
    let power = u64::BITS - 1 - nanoseconds.leading_zeros();
    let within = (nanoseconds >> (power - EXACT_BITS + 1)) - STEPS;
    (EXACT + u64::from(power - EXACT_BITS) * STEPS + within) as usize
}

/// The middle of a range.
const fn middle_of(range: usize) -> u64 {
    let range = range as u64;
    if range < EXACT {
        return range;
    }
    let (power, within) = ((range - EXACT) / STEPS, (range - EXACT) % STEPS);
    let width = 2 << power;
    (STEPS + within) * width + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_told_to_within_one_in_sixty_four() {
        for exponent in 0..60 {
            for time in [1_u64 << exponent, (1 << exponent) + (1 << exponent) / 3, (2 << exponent) - 1] {
                let told = middle_of(range_of(time));
                assert!(told.abs_diff(time) * STEPS <= time, "{time} was told as {told}");
            }
        }
    }

    #[test]
    fn longer_times_are_in_later_ranges() {
        let ranges: Vec<usize> = (0..100_000).map(range_of).collect();
        assert!(ranges.is_sorted());
    }

    #[test]
    fn quantiles_are_of_all_that_was_noted() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        (1..=99).for_each(|n| one.note(Duration::from_nanos(n)));
        other.note(Duration::from_millis(5));
        one.merge(&other);
        assert_eq!(one.count(), 100);
        assert_eq!(one.quantile(0.5), Some(Duration::from_nanos(50)));
        assert_eq!(one.quantile(0.99), Some(Duration::from_nanos(99)));
        assert!(one.quantile(1.0).is_some_and(|most| most.as_micros().abs_diff(5_000) < 100));
        assert_eq!(Latencies::default().quantile(0.5), None);
    }
}
