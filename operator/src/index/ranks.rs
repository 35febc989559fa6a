//! AgentTrusts that claim the same thing, the one that holds first.
//!
//! Nearly always there is one. A set of the standard library has room for eleven in its first node, and with 50,000 AgentTrusts,
//! each in two of them, that room was a third of the operator's memory.

use peerage_model::TrustId;

use crate::key::ObjectKey;

/// Which of two contradicting AgentTrusts holds: the elder, and of two from one second the one with the lower UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) created: i64,
    pub(super) uid: TrustId,
    pub(super) trust: ObjectKey,
}

/// A set of them, in order.
#[derive(Debug, Default)]
pub(super) struct Ranks(Vec<Rank>);

impl Ranks {
    /// The one that holds.
    pub(super) fn first(&self) -> Option<&Rank> {
        self.0.first()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert(&mut self, rank: Rank) {
        if let Err(place) = self.0.binary_search(&rank) {
            self.0.reserve_exact(1);
            self.0.insert(place, rank);
        }
    }

    pub(super) fn remove(&mut self, rank: &Rank) {
        if let Ok(place) = self.0.binary_search(rank) {
            self.0.remove(place);
        }
    }
}

impl<'a> IntoIterator for &'a Ranks {
    type Item = &'a Rank;
    type IntoIter = std::slice::Iter<'a, Rank>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(created: i64, uid: u8) -> Rank {
        Rank { created, uid: TrustId([uid; 16]), trust: ObjectKey::new("n", format!("t-{uid}")) }
    }

    #[test]
    fn the_elder_holds_in_whatever_order_they_come_until_it_goes() {
        let mut ranks = Ranks::default();
        for one in [rank(7, 2), rank(5, 9), rank(7, 1), rank(5, 9)] {
            ranks.insert(one);
        }
        assert_eq!(ranks.into_iter().map(|rank| rank.uid.0[0]).collect::<Vec<_>>(), [9, 1, 2]);
        ranks.remove(&rank(5, 9));
        ranks.remove(&rank(5, 9));
        assert_eq!(ranks.first(), Some(&rank(7, 1)));
    }
}
