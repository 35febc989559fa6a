//! When somebody who only listens speaks.
//!
//! An end that receives acknowledges, and has nothing to say once nothing comes. Where that is because its NAT forgot it or
//! has another address, what the peer sends goes nowhere, and only a packet of its own can change that: relays and peers
//! follow whoever speaks. So when data stop while streams are open, the peer is asked, soon at first and then ever more
//! rarely. A stream that was quiet for a while stands still for no longer than that while again, and a second.

use std::time::{Duration, Instant};

use super::config::PING_INTERVAL;

/// From the last data to the first question. Programs that speak more often than this cost nothing; it doubles.
const FIRST: Duration = Duration::from_secs(1);

/// When a session last carried data, and how often the peer was asked since.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listening {
    /// How many frames with data of programs there were, in both directions.
    frames: u64,
    last: Option<Instant>,
    asked: u32,
}

impl Listening {
    /// So many frames with data there were until `now`. Questions and answers to them are none, or two ends would keep each
    /// other asking.
    pub(super) fn observe(&mut self, frames: u64, now: Instant) {
        if frames != self.frames {
            *self = Self { frames, last: Some(now), asked: 0 };
        }
    }

    /// When to ask next: 1, 3, 7 and 15 s after the last data. Later the session's own pings ask, which are for its life.
    pub(super) fn due(&self) -> Option<Instant> {
        let pause = FIRST.saturating_mul((2_u32 << self.asked.min(16)) - 1);
        self.last.filter(|_| pause < PING_INTERVAL).map(|last| last + pause)
    }

    /// The peer is asked.
    pub(super) fn asks(&mut self) {
        self.asked += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_follow_the_last_data_at_doubling_distances_and_end_where_pings_begin() {
        let start = Instant::now();
        let mut listening = Listening::default();
        assert_eq!(listening.due(), None, "there were no data to miss");
        listening.observe(3, start);
        let mut asked = Vec::new();
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            listening.observe(3, now);
            if listening.due().is_some_and(|at| at <= now) {
                listening.asks();
                asked.push(second);
            }
        }
        assert_eq!(asked, [1, 3, 7, 15]);
        let again = start + Duration::from_secs(60);
        listening.observe(4, again);
        assert_eq!(listening.due(), Some(again + FIRST));
    }
}
