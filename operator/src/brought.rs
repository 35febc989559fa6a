//! Which keys other authorities use, as our agents' peers showed them.
//!
//! The operator of another cluster tells that itself, over its link. A machine on its own has none, but each of its sessions with
//! one of our agents begins with its authority's record, and the agent hands that on. The root that the link pins has signed
//! it, so it does not matter who brings it, and who brings a former one changes nothing.
//!
//! What is taken ends in a link's status. An authority that rotates all the time must not keep the API server busy: of each
//! one record a minute counts, and the newest last.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peerage_model::{AuthorityRecord, Fingerprint};

use crate::index::Index;

/// Between two records of one authority that count.
const EVERY: Duration = Duration::from_secs(60);

/// See the module. It has no more than one authority for each link.
#[derive(Debug, Default)]
pub struct Brought(Mutex<BTreeMap<Fingerprint, Newest>>);

#[derive(Debug)]
struct Newest {
    /// What counts, and since when.
    counts: AuthorityRecord,
    since: Instant,
    /// What came soon after it.
    next: Option<AuthorityRecord>,
}

impl Brought {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Fingerprint, Newest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record, if a link leads to its authority and knows none as new.
    pub fn take(&self, record: AuthorityRecord, index: &Index, now: Instant) {
        if !index.links_want(&record) {
            return;
        }
        let mut all = self.lock();
        all.retain(|authority, _| index.leads_to(authority));
        let Some(newest) = all.get_mut(&record.fingerprint()) else {
            let of = record.fingerprint();
            tracing::info!(target: "events::peer_rotated", authority = %of, sequence = record.sequence());
            all.insert(of, Newest { counts: record, since: now, next: None });
            return;
        };
        let latest = newest.next.as_ref().unwrap_or(&newest.counts);
        if record.sequence() > latest.sequence() {
            newest.next = Some(record);
        }
    }

    /// The record of an authority that counts at this moment.
    #[must_use]
    pub fn of(&self, authority: &Fingerprint, now: Instant) -> Option<AuthorityRecord> {
        let mut all = self.lock();
        let newest = all.get_mut(authority)?;
        if now.duration_since(newest.since) >= EVERY
            && let Some(next) = newest.next.take()
        {
            (newest.counts, newest.since) = (next, now);
        }
        Some(newest.counts.clone())
    }

    /// The latest of each authority, for another replica.
    #[must_use]
    pub fn latest(&self) -> Vec<AuthorityRecord> {
        self.lock().values().map(|newest| newest.next.as_ref().unwrap_or(&newest.counts).clone()).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use peerage_crds::AgentLink;
    use peerage_model::{Authority, UnixTime};
    use serde_json::json;
    use zeroize::Zeroizing;

    use super::*;
    use crate::facts::LinkFacts;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    /// An authority, and what follows on it, one after the other.
    pub(crate) fn rotating(seed: u8) -> Vec<Authority> {
        let first = Authority::new(&Zeroizing::new([seed; 96]), NOW);
        let following = |before: &Authority| Some(before.rotate(&Zeroizing::new([seed + 1; 64]), NOW));
        std::iter::successors(Some(first), following).take(4).collect()
    }

    /// A cluster with a link that knows these keys.
    pub(crate) fn linked_with(authority: &Authority) -> Index {
        let spec = json!({
            "allowedNamespaces": {"from": "All"},
            "authority": authority.fingerprint().to_string(), "authorityRecord": authority.record().to_text(),
        });
        let link = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentLink", "metadata": {"name": "laptop"}, "spec": spec,
        });
        let link: AgentLink = serde_json::from_value(link).expect("an AgentLink");
        let mut index = Index::new(Fingerprint([1; 32]), NOW);
        index.set_link("laptop", LinkFacts::read(&link).ok());
        index
    }

    fn sequence(brought: &Brought, of: &Authority, at: Instant) -> Option<u64> {
        brought.of(&of.fingerprint(), at).map(|record| record.sequence())
    }

    #[test]
    fn keys_that_a_link_knows_or_nobody_is_linked_with_are_not_kept() {
        let (theirs, others) = (rotating(2), rotating(7));
        let (brought, index, now) = (Brought::default(), linked_with(&theirs[1]), Instant::now());
        for record in [theirs[0].record(), theirs[1].record(), others[1].record()] {
            brought.take(record.clone(), &index, now);
        }
        assert!(brought.latest().is_empty());
        brought.take(theirs[2].record().clone(), &index, now);
        assert_eq!(sequence(&brought, &theirs[0], now), Some(3));
    }

    #[test]
    fn of_an_authority_that_rotates_all_the_time_one_record_a_minute_counts_and_the_newest_last() {
        let theirs = rotating(2);
        let (brought, index, now) = (Brought::default(), linked_with(&theirs[0]), Instant::now());
        for number in [1, 3, 2] {
            brought.take(theirs[number].record().clone(), &index, now);
        }
        assert_eq!(sequence(&brought, &theirs[0], now + EVERY - Duration::from_secs(1)), Some(2));
        assert_eq!(sequence(&brought, &theirs[0], now + EVERY), Some(4));
        assert_eq!(sequence(&brought, &theirs[0], now + EVERY * 3), Some(4), "what came before it has gone by");
    }

    #[test]
    fn with_the_link_goes_what_was_shown_of_its_authority() {
        let (theirs, others) = (rotating(2), rotating(7));
        let (brought, now) = (Brought::default(), Instant::now());
        brought.take(theirs[1].record().clone(), &linked_with(&theirs[0]), now);
        brought.take(others[1].record().clone(), &linked_with(&others[0]), now);
        let left: Vec<_> = brought.latest().iter().map(AuthorityRecord::fingerprint).collect();
        assert_eq!(left, [others[0].fingerprint()]);
    }
}
