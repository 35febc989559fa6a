//! When a status that could not be written is tried again: each object by itself, ever less often.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::AGAIN;
use crate::index::Dirty;
use crate::key::Object;

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Written,
    /// The API server does not take such a status (422): the same one would be refused again.
    Refused,
    /// It may work another time.
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    until: Instant,
    next: Duration,
    /// Whether it is looked at again when the wait is over, or only when something changes.
    again: bool,
}

/// Objects whose last write failed.
#[derive(Debug, Default)]
pub(super) struct Retries(BTreeMap<Object, Wait>);

impl Retries {
    /// Whether an object may be written at `now`.
    pub(super) fn may(&self, object: &Object, now: Instant) -> bool {
        self.0.get(object).is_none_or(|wait| wait.until <= now)
    }

    /// What came of a write.
    pub(super) fn note(&mut self, object: Object, outcome: Outcome, now: Instant) {
        if outcome == Outcome::Written {
            self.0.remove(&object);
            return;
        }
        let wait = self.0.get(&object).map_or(AGAIN, |wait| wait.next);
        let next = (wait * 2).min(LONGEST);
        self.0.insert(object, Wait { until: now + wait, next, again: outcome == Outcome::Failed });
    }

    /// Adds what has waited long enough.
    pub(super) fn due(&self, now: Instant, pending: &mut Dirty) {
        for (object, _) in self.0.iter().filter(|(_, wait)| wait.again && wait.until <= now) {
            match object {
                Object::Peer(key) => drop(pending.judged.insert(key.clone())),
                Object::Trust(key) => drop(pending.trusts.insert(key.clone())),
                // They are looked at in each turn anyway.
                Object::Link(_) | Object::Relay(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ObjectKey;

    #[test]
    fn what_fails_each_time_is_tried_ever_less_often_and_holds_up_no_other() {
        let (mut retries, mut now) = (Retries::default(), Instant::now());
        let trust = |name: &str| Object::Trust(ObjectKey::new("n", name));
        let mut tries = 0;
        for _ in 0..600 {
            if retries.may(&trust("a"), now) {
                tries += 1;
                retries.note(trust("a"), Outcome::Failed, now);
            }
            assert!(retries.may(&trust("b"), now));
            now += Duration::from_secs(1);
        }
        assert!((10..=16).contains(&tries), "{tries} tries in ten minutes");
        retries.note(trust("a"), Outcome::Written, now);
        assert!(retries.may(&trust("a"), now));
    }

    #[test]
    fn what_is_refused_is_not_tried_again_before_something_changes() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        let (refused, failed) = (ObjectKey::new("n", "refused"), ObjectKey::new("n", "failed"));
        retries.note(Object::Trust(refused), Outcome::Refused, now);
        retries.note(Object::Trust(failed.clone()), Outcome::Failed, now);
        let mut pending = Dirty::default();
        retries.due(now + LONGEST, &mut pending);
        assert_eq!(pending, Dirty { trusts: [failed].into(), ..Dirty::default() });
    }
}
