//! Which knocks mean something now: hint → pair, for every direction that ends here.

use core::fmt;
use std::collections::BTreeMap;

use peerage_model::UnixTime;

use super::replay::{CAPACITY, UsedKnocks};
use super::{Epoch, Hint, Knock, KnockKeys};
use crate::noise::{DirectionSecret, Pairing};

/// What a valid, unused knock stands for.
#[derive(Debug, Clone)]
pub struct Match<K> {
    /// The pair, as its owner named it in [`KnockTable::insert`].
    pub pair: K,
    /// Which candidate pair secret the dialer used; configure the session with the same one.
    pub secret: usize,
    /// That candidate's direction secret.
    pub direction: DirectionSecret,
    epoch: Epoch,
    knock: Knock,
}

struct Entry<K> {
    pair: K,
    secret: usize,
    epoch: Epoch,
    keys: KnockKeys,
}

/// Recognises knocks of the pairs it was given, and refuses used ones.
///
/// `K` names a pair; the table only hands it back. Its owner gives it the *incoming* direction of each pair, so our own
/// knocks, reflected by whoever saw them, match nothing.
pub struct KnockTable<K> {
    pairs: BTreeMap<K, Pairing>,
    now: Epoch,
    /// Two pairs may share a hint by chance, or by the effort of a peer who chose its key for that: the tag decides.
    hints: BTreeMap<Hint, Vec<Entry<K>>>,
    used: UsedKnocks<K>,
}

impl<K: Clone + Ord> KnockTable<K> {
    /// An empty table, which recognises nothing.
    #[must_use]
    pub fn new(now: UnixTime) -> Self {
        Self { pairs: BTreeMap::new(), now: Epoch::at(now), hints: BTreeMap::new(), used: UsedKnocks::new(CAPACITY) }
    }

    /// Listens for `incoming`'s initiator, who must be the other agent of the pair (or nobody, for an invite). Replaces
    /// what was known of `pair`, but not the memory of its used knocks.
    pub fn insert(&mut self, pair: K, incoming: Pairing) {
        self.remove(&pair);
        for epoch in self.now.accepted() {
            add(&mut self.hints, &pair, &incoming, epoch);
        }
        self.pairs.insert(pair, incoming);
    }

    /// Stops listening for a pair.
    pub fn remove(&mut self, pair: &K) {
        if self.pairs.remove(pair).is_some() {
            self.hints.retain(|_, entries| {
                entries.retain(|entry| entry.pair != *pair);
                !entries.is_empty()
            });
        }
    }

    /// Moves the table to the epoch of `now`; cheap when that has not changed.
    pub fn advance(&mut self, now: UnixTime) {
        let epoch = Epoch::at(now);
        if epoch == self.now {
            return;
        }
        let before = std::mem::replace(&mut self.now, epoch);
        self.hints.retain(|_, entries| {
            entries.retain(|entry| epoch.accepts(entry.epoch));
            !entries.is_empty()
        });
        for new in epoch.accepted().filter(|new| !before.accepts(*new)) {
            for (pair, incoming) in &self.pairs {
                add(&mut self.hints, pair, incoming, new);
            }
        }
        self.used.expire_before(Epoch(epoch.0.saturating_sub(1)));
    }

    /// What `first_id`, a first destination connection id, stands for at `now`: `None` for garbage, for a stranger's
    /// knock, one of another time, and one that was used.
    pub fn check(&mut self, first_id: &[u8], now: UnixTime) -> Option<Match<K>> {
        self.advance(now);
        self.lookup(first_id)
    }

    /// [`check`](Self::check) at the time that the table was last told.
    #[must_use]
    pub fn lookup(&self, first_id: &[u8]) -> Option<Match<K>> {
        let knock = Knock::from_bytes(first_id)?;
        let entry = self.hints.get(&knock.hint())?.iter().find(|entry| entry.keys.verify(&knock))?;
        if self.used.contains(&entry.pair, &knock) {
            return None;
        }
        let direction = self.pairs.get(&entry.pair)?.directions().get(entry.secret)?.clone();
        Some(Match { pair: entry.pair.clone(), secret: entry.secret, direction, epoch: entry.epoch, knock })
    }

    /// Remembers that the handshake's message 1 verified under this knock, so that it opens nothing more. Called only
    /// then: whoever merely saw a knock must not be able to use it up.
    pub fn mark_used(&mut self, known: &Match<K>) {
        self.used.insert(&known.pair, known.epoch, known.knock);
    }
}

fn add<K: Clone>(hints: &mut BTreeMap<Hint, Vec<Entry<K>>>, pair: &K, incoming: &Pairing, epoch: Epoch) {
    for (secret, direction) in incoming.directions().iter().enumerate() {
        let keys = KnockKeys::new(direction, epoch);
        // Two that share a hint are rare, and a vector that grows begins with room for four.
        let entries = hints.entry(keys.hint()).or_insert_with(|| Vec::with_capacity(1));
        entries.push(Entry { pair: pair.clone(), secret, epoch, keys });
    }
}

impl<K> fmt::Debug for KnockTable<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnockTable").field("pairs", &self.pairs.len()).field("now", &self.now).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::SeededRandom;
    use peerage_model::PairSecret;
    use proptest::prelude::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn pairing(initiator: &[u8], responder: &[u8]) -> Pairing {
        Pairing::new(&[PairSecret::from_bytes([5; 32])], initiator, responder).expect("short ids")
    }

    fn knock_from(initiator: &[u8], responder: &[u8], at: UnixTime, seed: u8) -> Knock {
        Knock::new(&pairing(initiator, responder).directions()[0], at, &mut SeededRandom::from_seed([seed; 32]))
    }

    fn listening_for_alice() -> KnockTable<&'static str> {
        let mut table = KnockTable::new(NOW);
        table.insert("alice", pairing(b"alice", b"bob"));
        table
    }

    #[test]
    fn a_fresh_knock_finds_its_pair_and_its_candidate_secret() {
        let secrets = [PairSecret::from_bytes([1; 32]), PairSecret::from_bytes([2; 32])];
        let both = Pairing::new(&secrets, b"alice", b"bob").expect("short ids");
        let mut table = KnockTable::new(NOW);
        table.insert("alice", both.clone());
        for (index, direction) in both.directions().iter().enumerate() {
            let knock = Knock::new(direction, NOW, &mut SeededRandom::from_seed([3; 32]));
            let found = table.check(knock.as_bytes(), NOW).expect("a fresh knock");
            assert_eq!((found.pair, found.secret), ("alice", index));
        }
    }

    #[test]
    fn our_own_knock_reflected_to_us_matches_nothing() {
        let reflected = knock_from(b"bob", b"alice", NOW, 1);
        assert!(listening_for_alice().check(reflected.as_bytes(), NOW).is_none());
    }

    #[test]
    fn clocks_may_differ_by_one_epoch_and_no_more() {
        let mut table = listening_for_alice();
        for (offset, welcome) in [(-1201_i64, false), (-600, true), (0, true), (600, true), (1200, false)] {
            let at = UnixTime(NOW.0.checked_add_signed(offset).expect("in range"));
            let knock = knock_from(b"alice", b"bob", at, 1);
            assert_eq!(table.check(knock.as_bytes(), NOW).is_some(), welcome, "offset {offset}");
        }
    }

    #[test]
    fn a_pair_is_recognised_through_any_number_of_epochs_and_jumps_of_the_clock() {
        let mut table = listening_for_alice();
        for seconds in [600, 1200, 5000, 90_000, 90_600, 600, 0] {
            let now = UnixTime(NOW.0 + seconds);
            let knock = knock_from(b"alice", b"bob", now, 1);
            assert!(table.check(knock.as_bytes(), now).is_some(), "{seconds} s later");
            assert_eq!(table.hints.len(), 3, "three epochs are kept");
        }
    }

    #[test]
    fn a_used_knock_is_refused_for_as_long_as_its_epoch_is_accepted() {
        let mut table = listening_for_alice();
        let ahead = UnixTime(NOW.0 + EPOCH);
        let knock = knock_from(b"alice", b"bob", ahead, 1);
        let found = table.check(knock.as_bytes(), NOW).expect("a fresh knock");
        table.mark_used(&found);
        for step in 0..=3 {
            assert!(table.check(knock.as_bytes(), UnixTime(NOW.0 + step * EPOCH)).is_none(), "{step} epochs later");
        }
    }

    #[test]
    fn a_knock_that_was_only_looked_at_is_not_used_up() {
        let mut table = listening_for_alice();
        let knock = knock_from(b"alice", b"bob", NOW, 1);
        assert!(table.check(knock.as_bytes(), NOW).is_some());
        assert!(table.check(knock.as_bytes(), NOW).is_some());
    }

    #[test]
    fn a_removed_pair_is_a_stranger() {
        let mut table = listening_for_alice();
        table.remove(&"alice");
        assert!(table.check(knock_from(b"alice", b"bob", NOW, 1).as_bytes(), NOW).is_none());
    }

    #[test]
    fn every_changed_bit_makes_a_knock_worthless() {
        let mut table = listening_for_alice();
        let knock = knock_from(b"alice", b"bob", NOW, 1);
        for bit in 0..160 {
            let mut forged = *knock.as_bytes();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(table.check(&forged, NOW).is_none(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_never_match(bytes: Vec<u8>) {
            prop_assert!(listening_for_alice().check(&bytes, NOW).is_none());
        }
    }

    const EPOCH: u64 = super::super::EPOCH_SECONDS;
}
