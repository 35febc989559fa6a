//! When a question to a relay is asked again.

use std::time::{Duration, Instant};

use crate::noise::SeededRandom;

/// First pause; it doubles (docs/spec/relay.md section 8).
const FIRST: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(8);
/// Longest ordinary pause where there is no hurry, since another way to the relay works.
const LONGEST_UNHURRIED: Duration = Duration::from_secs(60);
/// Every other one after that. A gateway that changed its address, or the line that it uses, may go on giving our flow the former one
/// for as long as something comes; Linux forgets a flow that was answered after 120 s, formerly 180 s, and the next question makes it anew.
const UNTIL_FORGOTTEN: Duration = Duration::from_secs(200);
/// Asked this often, about a minute, pauses begin to grow where there is no hurry.
const HURRIED_SENDS: u32 = 12;

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

    /// Of what is asked for the first time now, where there is a hurry.
    pub(super) fn begun(random: &mut SeededRandom, now: Instant) -> Self {
        let mut schedule = Self::new(now);
        schedule.sent(now, true, random.bytes());
        schedule
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

    /// There is a hurry again: what waits longer than those do that never lost it is due now.
    pub(super) fn hurry(&mut self, now: Instant) {
        if self.sends > HURRIED_SENDS {
            (self.next, self.sends) = (self.next.min(now), HURRIED_SENDS);
        }
    }

    /// It was asked once more.
    pub(super) fn sent(&mut self, now: Instant, hurried: bool, random: [u8; 1]) {
        let grown = self.sends.saturating_sub(HURRIED_SENDS);
        let pause = match hurried || grown == 0 {
            true => FIRST.saturating_mul(1 << self.sends.min(5)).min(LONGEST),
            false if grown >= 4 && grown.is_multiple_of(2) => UNTIL_FORGOTTEN,
            false => LONGEST.saturating_mul(1 << grown.min(4)).min(LONGEST_UNHURRIED),
        };
        let earlier = pause.min(LONGEST_UNHURRIED) * u32::from(random[0]) / (4 * 256);
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
            schedule.sent(now, true, [0]);
            pauses.push((schedule.next() - now).as_millis());
            now = schedule.next();
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 8000]);
    }

    #[test]
    fn without_hurry_pauses_grow_past_the_memory_of_gateways_and_a_hurry_ends_them() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(now);
        let mut pauses = Vec::new();
        for _ in 0..18 {
            schedule.sent(now, false, [0]);
            pauses.push((schedule.next() - now).as_secs());
            now = schedule.next();
        }
        assert_eq!(pauses[5..], [8, 8, 8, 8, 8, 8, 8, 8, 16, 32, 60, 200, 60]);
        schedule.sent(now, false, [0]);
        schedule.hurry(now);
        assert!(schedule.due(now));
        schedule.sent(now, true, [0]);
        assert_eq!((schedule.next() - now).as_secs(), 8);
    }

    #[test]
    fn chance_shortens_a_pause_by_less_than_a_quarter() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        schedule.sent(now, true, [255]);
        assert!(schedule.next() - now > Duration::from_millis(187));
    }
}
