//! When somebody who only listens speaks.
//!
//! An end that receives acknowledges, and has nothing to say once nothing comes. Where that is because its NAT forgot it or
//! has another address, what the peer sends goes nowhere, and only a packet of its own can change that: relays and peers
//! follow whoever speaks. So when data stop while streams are open, the peer is asked, soon at first and then ever more
//! rarely. A stream that was quiet for a while stands still for no longer than that while again, and a second. One question is
//! enough for both ends: whoever is asked answers, so the end that was dialled waits a little for the other's.

use std::time::{Duration, Instant};

use super::config::PING_INTERVAL;

/// From the last data to the first question. Programs that speak more often than this cost nothing; it doubles.
const FIRST: Duration = Duration::from_secs(1);

/// How much later than the other the end that was dialled asks. On a path with a longer round trip their questions cross, and
/// both are answered.
const LATER: Duration = Duration::from_millis(200);

/// When a session last carried data, and how often the peer was asked since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listening {
    /// How much later than the other end this one asks.
    later: Duration,
    /// How many frames with data of programs there were, in both directions.
    frames: u64,
    /// How many questions of the peer's came.
    heard: u64,
    last: Option<Instant>,
    asked: u32,
}

impl Listening {
    /// For the end that dialled, or for the other.
    pub(super) fn new(initiator: bool) -> Self {
        let later = if initiator { Duration::ZERO } else { LATER };
        Self { later, frames: 0, heard: 0, last: None, asked: 0 }
    }

    /// So many frames with data there were until `now`, and so many questions came. Questions and answers to them are no
    /// data, or two ends would keep each other asking. One that comes when ours is near stands for it: the answer leaves at once.
    pub(super) fn observe(&mut self, frames: u64, heard: u64, now: Instant) {
        let is_asked = std::mem::replace(&mut self.heard, heard) != heard;
        if frames != self.frames {
            *self = Self { frames, last: Some(now), asked: 0, ..*self };
        } else if is_asked && self.due().is_some_and(|due| now + self.pause() / 2 >= due) {
            self.asked += 1;
        }
    }

    /// From the question before, or the last data, to the next question.
    fn pause(&self) -> Duration {
        FIRST.saturating_mul(1 << self.asked.min(16))
    }

    /// When to ask next: 1, 3, 7 and 15 s after the last data. Later the session's own pings ask, which are for its life.
    pub(super) fn due(&self) -> Option<Instant> {
        let since_data = FIRST.saturating_mul((2_u32 << self.asked.min(16)) - 1);
        self.last.filter(|_| since_data < PING_INTERVAL).map(|last| last + since_data + self.later)
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
        let mut listening = Listening::new(true);
        assert_eq!(listening.due(), None, "there were no data to miss");
        listening.observe(3, 0, start);
        let mut asked = Vec::new();
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            listening.observe(3, 0, now);
            if listening.due().is_some_and(|at| at <= now) {
                listening.asks();
                asked.push(second);
            }
        }
        assert_eq!(asked, [1, 3, 7, 15]);
        let again = start + Duration::from_secs(60);
        listening.observe(4, 0, again);
        assert_eq!(listening.due(), Some(again + FIRST));
    }

    /// When an end that was dialled asks next, whom one question has reached so long after the last data.
    fn next_after_a_question(at: Duration) -> Duration {
        let start = Instant::now();
        let mut listening = Listening::new(false);
        listening.observe(1, 0, start);
        listening.observe(1, 1, start + at);
        listening.due().expect("data were carried").saturating_duration_since(start)
    }

    #[test]
    fn a_question_that_comes_when_ours_is_near_stands_for_it() {
        assert_eq!(next_after_a_question(Duration::from_millis(1050)), 3 * FIRST + LATER);
    }

    #[test]
    fn a_question_that_comes_long_before_ours_does_not() {
        assert_eq!(next_after_a_question(Duration::from_millis(300)), FIRST + LATER);
    }

    #[test]
    fn of_two_ends_on_a_short_path_one_asks() {
        let (start, one_way) = (Instant::now(), Duration::from_millis(20));
        let mut ends = [true, false].map(Listening::new);
        let (mut heard, mut asked, mut under_way) = ([0, 0], [0, 0], Vec::new());
        for tick in 0..6000 {
            let now = start + Duration::from_millis(10) * tick;
            let (come, later): (Vec<_>, Vec<_>) = under_way.into_iter().partition(|(at, _)| *at <= now);
            under_way = later;
            for (_, to) in come {
                heard[to] += 1;
            }
            for end in [0, 1] {
                ends[end].observe(1, heard[end], now);
                if ends[end].due().is_some_and(|at| at <= now) {
                    ends[end].asks();
                    asked[end] += 1;
                    under_way.push((now + one_way, 1 - end));
                }
            }
        }
        assert_eq!(asked, [4, 0]);
    }
}
