//! What the leader's operator has found out about links, for whoever writes their status.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use peerage_model::relay::RelayInfo;
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
}

impl Row {
    /// Of a link whose operator is called for the first time.
    #[must_use]
    pub fn new(uid: TrustId) -> Self {
        Self { uid, live: LinkLive::Connecting, records: Vec::new(), relays: Vec::new(), pending: 0 }
    }
}

/// A row for each link, by the link's name. Empty while another replica leads.
#[derive(Debug, Default)]
pub struct Board {
    rows: Mutex<BTreeMap<String, Row>>,
    changed: Notify,
}

impl Board {
    /// All rows.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<String, Row> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until there is something else to read. One reader; may be dropped at any await.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes the rows be these.
    pub(super) fn set(&self, new: BTreeMap<String, Row>) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if *rows != new {
            *rows = new;
            self.changed.notify_one();
        }
    }
}
