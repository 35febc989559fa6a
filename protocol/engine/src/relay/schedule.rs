//! When a question to a relay is asked again.

use std::time::{Duration, Instant};

/// First pause; it doubles (docs/spec/relay.md section 8).
const FIRST: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(8);

/// Exponential pauses, each up to a quarter shorter by chance, so that agents do not ask in step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    next: Instant,
    sends: u32,
}

impl Schedule {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, sends: 0 }
    }

    pub(super) fn due(&self, now: Instant) -> bool {
        self.next <= now
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// How often it was asked.
    pub(super) fn sends(&self) -> u32 {
        self.sends
    }

    /// It was asked once more.
    pub(super) fn sent(&mut self, now: Instant, random: [u8; 1]) {
        let pause = FIRST.saturating_mul(1 << self.sends.min(5)).min(LONGEST);
        let earlier = pause * u32::from(random[0]) / (4 * 256);
        self.sends += 1;
        self.next = now + pause - earlier;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_a_quarter_second_to_eight() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(now);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            schedule.sent(now, [0]);
            pauses.push((schedule.next() - now).as_millis());
            now = schedule.next();
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 8000]);
    }

    #[test]
    fn chance_shortens_a_pause_by_less_than_a_quarter() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.sent(now, [255]);
        assert!(schedule.next() - now > Duration::from_millis(187));
    }
}
