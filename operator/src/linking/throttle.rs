//! What another cluster can make happen a hundred times a second is done, or said, once in a while.

use std::time::Duration;

use tokio::time::Instant;

/// Between two lines of the log about one link.
pub(super) const LINES: Duration = Duration::from_secs(60);

/// Something that happens at most once in some time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Throttle {
    every: Duration,
    last: Option<Instant>,
}

impl Throttle {
    /// It has not happened yet.
    pub(super) fn every(every: Duration) -> Self {
        Self { every, last: None }
    }

    /// Whether it may happen; if so, it counts as having happened.
    pub(super) fn may(&mut self, now: Instant) -> bool {
        let may = self.last.is_none_or(|last| now.duration_since(last) >= self.every);
        if may {
            self.last = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_hundred_times_a_second_for_ten_minutes_ten_are_left() {
        let (mut throttle, begun) = (Throttle::every(LINES), Instant::now());
        let times = (0..60_000).filter(|number| throttle.may(begun + Duration::from_millis(10) * *number));
        assert_eq!(times.count(), 10);
    }
}
