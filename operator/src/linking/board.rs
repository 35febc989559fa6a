//! What the leader's operator has found out about links and relays, for whoever writes their status.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::Refusal;
use peerage_model::{AuthorityRecord, TrustId};
use tokio::sync::Notify;

use crate::index::LinkLive;

/// What is known of one link beyond its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The link's UID: one that was made anew under the same name is another one.
    pub uid: TrustId,
    /// Whether the operators talk.
    pub live: LinkLive,
    /// Records that the other operator told.
    pub records: Vec<AuthorityRecord>,
    /// Relays that it told.
    pub relays: Vec<RelayInfo>,
    /// Requests that wait for an answer.
    pub pending: usize,
    /// Whether its ticket was taken.
    pub is_taken: bool,
}

impl Row {
    /// Of a link that was not looked at before.
    #[must_use]
    pub fn new(uid: TrustId, live: LinkLive, is_taken: bool) -> Self {
        Self { uid, live, records: Vec::new(), relays: Vec::new(), pending: 0, is_taken }
    }
}

/// A row for each link, by the link's name, and relays that refuse us. Empty while another replica leads.
#[derive(Debug, Default)]
pub struct Board {
    written: Mutex<Written>,
    changed: Notify,
}

#[derive(Debug, Default, PartialEq)]
struct Written {
    rows: BTreeMap<String, Row>,
    refusals: BTreeMap<RelayInfo, Refusal>,
}

impl Board {
    /// All rows.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<String, Row> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).rows.clone()
    }

    /// Of this cluster's relays, those that do not let the operator's own agent in, and so none of its agents.
    #[must_use]
    pub fn refusals(&self) -> BTreeMap<RelayInfo, Refusal> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).refusals.clone()
    }

    /// Waits until there is something else to read. One reader; may be dropped at any await.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes it say this.
    pub(super) fn set(&self, rows: BTreeMap<String, Row>, refusals: BTreeMap<RelayInfo, Refusal>) {
        let new = Written { rows, refusals };
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written != new {
            *written = new;
            self.changed.notify_one();
        }
    }
}
