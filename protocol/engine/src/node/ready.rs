//! Who may have something to send, in turns.
//!
//! A session with much to send is ready again after each batch. The others must not wait until its congestion window is
//! full: each gets one batch, and then the next has its turn.

use std::collections::BTreeSet;
use std::ops::Bound;

/// A set that is gone through in rounds.
#[derive(Debug)]
pub(super) struct Ready<K> {
    waiting: BTreeSet<K>,
    /// Whose turn it was last.
    served: Option<K>,
}

impl<K: Ord + Copy> Ready<K> {
    pub(super) fn new() -> Self {
        Self { waiting: BTreeSet::new(), served: None }
    }

    /// `key` may have something to send.
    pub(super) fn insert(&mut self, key: K) {
        self.waiting.insert(key);
    }

    /// `key` has nothing left to send.
    pub(super) fn remove(&mut self, key: &K) {
        self.waiting.remove(key);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whose turn it is: the next one after the last.
    pub(super) fn next(&mut self) -> Option<K> {
        let behind = self.served.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.waiting.range((behind, Bound::Unbounded)).next().or_else(|| self.waiting.first());
        self.served = next.copied();
        self.served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_always_has_more_waits_for_all_others() {
        let mut ready = Ready::new();
        ready.insert(1);
        assert_eq!([ready.next(), ready.next()], [Some(1), Some(1)], "alone, it is served at once");
        ready.insert(2);
        ready.insert(3);
        assert_eq!([ready.next(), ready.next(), ready.next(), ready.next()], [Some(2), Some(3), Some(1), Some(2)]);
        ready.remove(&2);
        ready.remove(&3);
        assert_eq!(ready.next(), Some(1));
        ready.remove(&1);
        assert!(ready.is_empty());
        assert_eq!(ready.next(), None);
    }
}
