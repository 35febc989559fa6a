//! The memory of used knocks: bounded, and fair in what it forgets.
//!
//! Only a dial whose message 1 verified is remembered, so only somebody who holds a pair's secret adds to it. When it is
//! full, the pair with the most entries loses its oldest: a peer that dials without end can make the agent forget its own
//! knocks and nobody else's. Forgetting is safe, because a replayed first packet is answered under fresh keys and leads
//! nowhere (docs/spec/handshake.md, section 2).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Epoch, Knock};

/// How many used knocks are remembered. One takes about 80 bytes, so about 5 MB at the worst.
pub(crate) const CAPACITY: usize = 65_536;

pub(crate) struct UsedKnocks<K> {
    capacity: usize,
    total: usize,
    pairs: BTreeMap<K, Share>,
}

#[derive(Default)]
struct Share {
    oldest_first: VecDeque<(Epoch, Knock)>,
    known: BTreeSet<Knock>,
}

impl Share {
    fn forget_oldest(&mut self) -> bool {
        let Some((_, knock)) = self.oldest_first.pop_front() else {
            return false;
        };
        self.known.remove(&knock);
        true
    }
}

impl<K: Clone + Ord> UsedKnocks<K> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, total: 0, pairs: BTreeMap::new() }
    }

    pub(crate) fn contains(&self, pair: &K, knock: &Knock) -> bool {
        self.pairs.get(pair).is_some_and(|share| share.known.contains(knock))
    }

    pub(crate) fn insert(&mut self, pair: &K, epoch: Epoch, knock: Knock) {
        if self.contains(pair, &knock) {
            return;
        }
        if self.total >= self.capacity {
            self.forget_one();
        }
        let share = self.pairs.entry(pair.clone()).or_default();
        share.known.insert(knock);
        share.oldest_first.push_back((epoch, knock));
        self.total += 1;
    }

    /// Forgets knocks of epochs before `first`, which are refused for their age.
    pub(crate) fn expire_before(&mut self, first: Epoch) {
        self.pairs.retain(|_, share| {
            share.oldest_first.retain(|(epoch, _)| *epoch >= first);
            share.known = share.oldest_first.iter().map(|(_, knock)| *knock).collect();
            !share.oldest_first.is_empty()
        });
        self.total = self.pairs.values().map(|share| share.oldest_first.len()).sum();
    }

    fn forget_one(&mut self) {
        let largest = self.pairs.values_mut().max_by_key(|share| share.oldest_first.len());
        if largest.is_some_and(Share::forget_oldest) {
            self.total -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knock(number: u8) -> Knock {
        Knock([number; 20])
    }

    #[test]
    fn a_pair_that_dials_without_end_makes_the_agent_forget_only_its_own_knocks() {
        let mut used = UsedKnocks::new(4);
        used.insert(&"quiet", Epoch(1), knock(0));
        for number in 1..100 {
            used.insert(&"loud", Epoch(1), knock(number));
        }
        assert!(used.contains(&"quiet", &knock(0)));
        assert!(!used.contains(&"loud", &knock(1)));
        assert!(used.contains(&"loud", &knock(99)));
        assert_eq!(used.total, 4);
    }

    #[test]
    fn knocks_of_epochs_that_are_refused_anyway_take_no_space() {
        let mut used = UsedKnocks::new(4);
        used.insert(&"a", Epoch(1), knock(1));
        used.insert(&"a", Epoch(2), knock(2));
        used.expire_before(Epoch(2));
        assert!(!used.contains(&"a", &knock(1)));
        assert!(used.contains(&"a", &knock(2)));
        assert_eq!(used.total, 1);
    }
}
