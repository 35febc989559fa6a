//! Keys of peers' authorities, while they rotate.

use peerage_model::{AgentId, AuthorityRecord, UnixTime};

use crate::state::document::Document;

impl Document {
    /// What a peer's credential says of its authority's keys. True when it is news.
    pub fn learn(&mut self, peer: &AgentId, record: &AuthorityRecord) -> bool {
        let trust = self.trusts.iter_mut().find(|trust| trust.peer == *peer);
        let Some(trust) = trust.filter(|_| record.fingerprint() == peer.authority) else { return false };
        // An older one may come from a passport that a replica still shows.
        let oldest = trust.records.iter().map(AuthorityRecord::sequence).min();
        let known = trust.records.iter().any(|known| known.sequence() == record.sequence());
        if known || oldest.is_some_and(|oldest| record.sequence() < oldest) {
            return false;
        }
        learn_record(&mut trust.records, record);
        true
    }
}

/// Keeps the two newest records of an authority, newest first: two overlap during a rotation.
pub(super) fn learn_record(records: &mut Vec<AuthorityRecord>, record: &AuthorityRecord) {
    records.retain(|known| known.sequence() != record.sequence());
    records.push(record.clone());
    records.sort_by_key(|known| std::cmp::Reverse(known.sequence()));
    records.truncate(2);
}

/// Removes records that a newer one has ended.
pub(super) fn drop_ended(records: &mut Vec<AuthorityRecord>, now: UnixTime) {
    if let Some(newest) = records.iter().max_by_key(|record| record.sequence()).cloned() {
        records.retain(|record| !record.is_ended_by(&newest, now));
    }
}

/// When [`drop_ended`] has something to do.
pub(super) fn former_end(records: &[AuthorityRecord]) -> Option<UnixTime> {
    let newest = records.iter().max_by_key(|record| record.sequence())?;
    newest.former_until().filter(|until| records.iter().any(|record| record.is_ended_by(newest, *until)))
}
