//! What a simulated agent knows: the rules of docs/spec/control-plane.md section 7, written a second time and as short as
//! can be, with a diary of which trust counted when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use peerage_model::operator::{Ack, Passport, Revision, Update};
use peerage_model::snapshot::DeniedInstance;
use peerage_model::{AgentId, TrustId};

/// The AgentTrusts that each peer's entry rests on.
pub type Entries = BTreeMap<AgentId, Vec<TrustId>>;

/// Everything that one agent has heard and done.
#[derive(Debug, Default)]
pub struct Known {
    /// Its passport, once it has one.
    pub passport: Option<Passport>,
    /// The highest sequence of the authority's record that was seen.
    pub record: u64,
    /// Whether there is a stream, and everything was told on it.
    pub is_connected: bool,
    /// How many streams there have been.
    pub streams: u64,
    /// Why there is none, or why the last one ended.
    pub ended: String,
    /// Bytes of updates, and how many there were, since the beginning.
    pub bytes: u64,
    /// Whole updates since the beginning.
    pub updates: u64,
    /// Whom it may talk to.
    pub applied: Entries,
    /// How new what it acts on may be.
    pub reached: Option<Revision>,
    /// What the replica of this connection must have seen before it may add anything.
    bar: Option<Revision>,
    /// Which trusts came into force (true) and which ended, in order.
    pub diary: Vec<(Instant, TrustId, bool)>,
    /// Instances that it was told are denied.
    pub denied: Vec<DeniedInstance>,
    told: Told,
    gone: BTreeSet<TrustId>,
}

/// What this connection's replica told.
#[derive(Debug, Default)]
struct Told {
    sequence: u64,
    revision: Revision,
    entries: Entries,
}

impl Known {
    /// A connection begins.
    pub fn begin(&mut self) {
        self.told = Told::default();
        self.bar.clone_from(&self.reached);
    }

    /// There is no connection.
    pub fn end(&mut self, why: String) {
        (self.is_connected, self.ended) = (false, why);
    }

    /// Takes a part of an update of this size; what to answer after the last one.
    pub fn take(&mut self, update: Update, size: usize, now: Instant) -> Option<Ack> {
        let before = self.trusts();
        self.bytes += size as u64;
        if update.full {
            self.told.entries.clear();
        }
        (self.told.sequence, self.told.revision) = (update.sequence, update.revision);
        self.reached.get_or_insert_default().raise(&update.shown);
        for peer in &update.withdrawn {
            self.told.entries.remove(peer);
            self.applied.remove(peer);
        }
        self.gone.extend(update.gone);
        self.denied.extend(update.denied);
        self.told.entries.extend(update.entries.into_iter().map(|entry| (entry.peer.id, entry.consents)));
        if update.more {
            return None;
        }
        if self.bar.as_ref().is_none_or(|bar| self.told.revision.covers(bar)) {
            self.applied.clone_from(&self.told.entries);
        }
        let gone = &self.gone;
        self.applied.retain(|_, consents| consents.iter().all(|consent| !gone.contains(consent)));
        self.note(&before, now);
        self.updates += 1;
        if !self.is_connected {
            (self.is_connected, self.streams) = (true, self.streams + 1);
        }
        let refused = self.told.entries.len().saturating_sub(self.applied.len());
        Some(Ack { sequence: self.told.sequence, refused: refused as u64 })
    }

    /// The trusts that count.
    #[must_use]
    pub fn trusts(&self) -> BTreeSet<TrustId> {
        self.applied.values().flatten().copied().collect()
    }

    /// When a trust stopped to count, the last time that it did.
    #[must_use]
    pub fn lost(&self, trust: TrustId) -> Option<Instant> {
        let last = self.diary.iter().rev().find(|(_, about, _)| *about == trust);
        last.and_then(|(at, _, counts)| (!counts).then_some(*at))
    }

    /// Whether a trust counted again after it was deleted at `deleted`, and had stopped to count since then.
    #[must_use]
    pub fn took_back(&self, trust: TrustId, deleted: Instant) -> bool {
        let since = self.diary.iter().filter(|(at, about, _)| *about == trust && *at >= deleted);
        since.skip_while(|(.., counts)| *counts).any(|(.., counts)| *counts)
    }

    fn note(&mut self, before: &BTreeSet<TrustId>, now: Instant) {
        let after = self.trusts();
        self.diary.extend(before.difference(&after).map(|trust| (now, *trust, false)));
        self.diary.extend(after.difference(before).map(|trust| (now, *trust, true)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::operator::Entry;
    use peerage_model::snapshot::{BirthdayMode, PathMode, Peer};
    use peerage_model::{Fingerprint, PairSecret};

    const TRUST: TrustId = TrustId([7; 16]);

    fn update(sequence: u64, version: u64, trusts: &[TrustId]) -> Update {
        let entry = |trust: &TrustId| Entry {
            peer: Peer {
                trust: *trust,
                id: AgentId { authority: Fingerprint([1; 32]), name: "db.tools".parse().expect("a name") },
                secrets: vec![PairSecret::from_bytes([1; 32])],
                alias: "db".parse().expect("a label"),
                inbound: Vec::new(),
                ports: Vec::new(),
                relays: Vec::new(),
                expires: None,
                path: PathMode::Auto,
                birthday: BirthdayMode::Disabled,
            },
            consents: vec![*trust],
            link: None,
            local_ports: Vec::new(),
        };
        let revision = Revision { epoch: 1, versions: vec![version] };
        let entries = trusts.iter().map(entry).collect();
        Update { sequence, full: sequence == 1, shown: revision.clone(), revision, entries, ..Update::default() }
    }

    #[test]
    fn a_replica_that_lags_brings_nothing_back() {
        let mut known = Known::default();
        let now = Instant::now();
        known.take(update(1, 5, &[TRUST]), 1, now);
        known.take(Update { gone: vec![TRUST], ..update(2, 6, &[]) }, 1, now);
        assert!(known.trusts().is_empty());
        known.begin();
        known.take(update(1, 5, &[TRUST]), 1, now);
        assert!(known.trusts().is_empty() && !known.took_back(TRUST, now));
        known.begin();
        known.take(update(1, 7, &[TRUST]), 1, now);
        assert!(known.trusts().is_empty(), "it was deleted, whatever anybody says later");
    }

    #[test]
    fn what_counts_again_after_its_deletion_is_seen() {
        let mut known = Known::default();
        let now = Instant::now();
        known.diary = vec![(now, TRUST, true), (now, TRUST, false)];
        assert!(!known.took_back(TRUST, now));
        assert_eq!(known.lost(TRUST), Some(now));
        known.diary.push((now, TRUST, true));
        assert!(known.took_back(TRUST, now));
        assert_eq!(known.lost(TRUST), None);
    }
}
