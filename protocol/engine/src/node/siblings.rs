//! Other instances of our own agent, as our relays say, and how often peers are told of them.
//!
//! A relay may say something else with each packet, and over UDP so may whoever can write on the way to it. Peers take a few
//! messages a second from us and end the session of who sends more, so what relays say must not set the pace of our words.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use peerage_model::InstanceId;
use peerage_model::control::MAX_SIBLINGS;

use super::{Node, Timer};

/// Peers are told of changes at most this often. A replica that came is of use to them for hours.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// Who they are, and when peers may be told next.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    known: Vec<InstanceId>,
    /// `None` while nobody was told of any.
    not_before: Option<Instant>,
}

impl Siblings {
    /// Those that a hello names.
    pub(super) fn known(&self) -> &[InstanceId] {
        &self.known
    }

    /// Takes what relays say. Gives when peers are to be told, where it is not what they said before.
    fn hear(&mut self, siblings: impl Iterator<Item = InstanceId>, now: Instant) -> Option<Instant> {
        let known: Vec<InstanceId> = siblings.take(MAX_SIBLINGS).collect();
        if known == self.known {
            return None;
        }
        self.known = known;
        Some(self.not_before.map_or(now, |at| at.max(now)))
    }

    fn are_told(&mut self, now: Instant) {
        self.not_before = Some(now + TELL_INTERVAL);
    }
}

impl Node {
    /// Relays know of other instances of ours than before: peers are told when it is time.
    pub(super) fn siblings_changed(&mut self) {
        let mut others: BTreeSet<InstanceId> = self.relays.others();
        others.remove(&self.instance);
        if let Some(at) = self.siblings.hear(others.into_iter(), self.last.mono) {
            self.timers.set(&Timer::Siblings, Some(at));
        }
    }

    /// It is time: every peer that was told something else is told.
    pub(super) fn tell_of_siblings(&mut self, now: Instant) {
        self.siblings.are_told(now);
        for key in self.up_sessions() {
            self.say_hello(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_says_something_else_all_the_time_does_not_make_us_talk_more_often() {
        let (mut siblings, start) = (Siblings::default(), Instant::now());
        let (mut timer, mut told) = (None, 0);
        for second in 0..60_u8 {
            let now = start + Duration::from_secs(second.into());
            for invented in [second, 100 + second] {
                timer = siblings.hear([InstanceId([invented; 8])].into_iter(), now).or(timer);
            }
            if timer.take_if(|at| *at <= now).is_some() {
                siblings.are_told(now);
                told += 1;
            }
        }
        assert_eq!(told, 6);
    }

    #[test]
    fn the_first_that_is_heard_of_is_told_at_once_and_what_is_known_already_never() {
        let (mut siblings, now) = (Siblings::default(), Instant::now());
        let one = || [InstanceId([1; 8])].into_iter();
        assert_eq!(siblings.hear(one(), now), Some(now));
        siblings.are_told(now);
        assert_eq!(siblings.hear(one(), now + 2 * TELL_INTERVAL), None);
    }
}
