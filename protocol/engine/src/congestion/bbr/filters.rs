//! Extremes over a while: what a path can do is seen only at its best moments, and those pass.

use std::time::{Duration, Instant};

/// The highest of the last two spans of time. The owner says when one begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Highest {
    before: f64,
    now: f64,
}

impl Highest {
    pub(super) fn get(self) -> f64 {
        self.before.max(self.now)
    }

    pub(super) fn add(&mut self, value: f64) {
        self.now = self.now.max(value);
    }

    /// A new span begins, and the one before the last is forgotten.
    pub(super) fn advance(&mut self) {
        *self = Self { before: self.now, now: 0.0 };
    }
}

/// The shortest round trip of a while, and since when it was not seen again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shortest {
    value: Option<Duration>,
    since: Instant,
}

impl Shortest {
    pub(super) fn new(now: Instant) -> Self {
        Self::of(None, now)
    }

    pub(super) fn of(value: Option<Duration>, since: Instant) -> Self {
        Self { value, since }
    }

    pub(super) fn get(self) -> Option<Duration> {
        self.value
    }

    pub(super) fn since(self) -> Instant {
        self.since
    }

    pub(super) fn is_older_than(self, age: Duration, now: Instant) -> bool {
        now > self.since + age
    }

    /// A value of `at`: it is taken if it is the shortest, or in any case.
    pub(super) fn take(&mut self, value: Duration, at: Instant, in_any_case: bool) {
        if in_any_case || self.value.is_none_or(|shortest| value < shortest) {
            *self = Self { value: Some(value), since: at };
        }
    }

    /// It is as good as seen at this moment.
    pub(super) fn renew(&mut self, now: Instant) {
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_is_forgotten_when_its_span_and_the_next_are_over() {
        let mut highest = Highest::default();
        highest.add(5.0);
        highest.advance();
        highest.add(3.0);
        assert_eq!(highest.get(), 5.0);
        highest.advance();
        assert_eq!(highest.get(), 3.0);
    }

    #[test]
    fn the_shortest_gives_way_to_a_longer_one_only_in_any_case() {
        let now = Instant::now();
        let mut shortest = Shortest::new(now);
        let [short, long] = [10, 20].map(Duration::from_millis);
        shortest.take(short, now, false);
        shortest.take(long, now, false);
        assert_eq!(shortest.get(), Some(short));
        shortest.take(long, now, true);
        assert_eq!(shortest.get(), Some(long));
    }
}
