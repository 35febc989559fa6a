//! Many deadlines, one next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// At most one deadline for each key; finding the next and moving one cost the logarithm of their number.
#[derive(Debug)]
pub(super) struct Timers<K> {
    queue: BTreeSet<(Instant, K)>,
    armed: BTreeMap<K, Instant>,
}

impl<K: Ord + Clone> Timers<K> {
    pub(super) fn new() -> Self {
        Self { queue: BTreeSet::new(), armed: BTreeMap::new() }
    }

    /// Sets, moves or clears the deadline of `key`.
    pub(super) fn set(&mut self, key: &K, at: Option<Instant>) {
        if self.armed.get(key).copied() == at {
            return;
        }
        if let Some(old) = self.armed.remove(key) {
            self.queue.remove(&(old, key.clone()));
        }
        if let Some(at) = at {
            self.armed.insert(key.clone(), at);
            self.queue.insert((at, key.clone()));
        }
    }

    /// The next deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes one key whose deadline has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<K> {
        let (at, _) = self.queue.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.queue.pop_first()?;
        self.armed.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn keys_come_out_in_the_order_of_their_last_deadline() {
        let start = Instant::now();
        let at = |s| Some(start + Duration::from_secs(s));
        let mut timers = Timers::new();
        timers.set(&'a', at(1));
        timers.set(&'b', at(2));
        timers.set(&'a', at(3));
        timers.set(&'c', at(1));
        timers.set(&'c', None);
        assert_eq!(timers.next(), at(2));
        let later = start + Duration::from_secs(9);
        assert_eq!([timers.pop_due(later), timers.pop_due(later), timers.pop_due(later)], [Some('b'), Some('a'), None]);
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let start = Instant::now();
        let mut timers = Timers::new();
        timers.set(&1, Some(start + Duration::from_millis(1)));
        assert_eq!(timers.pop_due(start), None);
    }
}
