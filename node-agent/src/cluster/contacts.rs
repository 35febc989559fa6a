//! Sessions with each peer, and why the last one ended.

use std::collections::{BTreeMap, BTreeSet};

use peerage_model::AgentId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Contacts(BTreeMap<AgentId, Contact>);

#[derive(Debug, Default)]
struct Contact {
    sessions: usize,
    last_end: Option<String>,
}

impl Contacts {
    /// A session with a peer is up.
    pub(super) fn up(&mut self, peer: &AgentId) {
        let contact = self.0.entry(peer.clone()).or_default();
        contact.sessions += 1;
        contact.last_end = None;
    }

    /// A session with a peer has ended.
    pub(super) fn down(&mut self, peer: &AgentId, reason: &str) {
        let contact = self.0.entry(peer.clone()).or_default();
        contact.sessions = contact.sessions.saturating_sub(1);
        contact.last_end = Some(reason.to_owned());
    }

    /// Why the last session with a peer ended, where there is none.
    pub(super) fn last_end(&self, peer: &AgentId) -> Option<&str> {
        self.0.get(peer)?.last_end.as_deref()
    }

    /// Forgets whoever is none of these and has no session.
    pub(super) fn keep(&mut self, peers: &BTreeSet<AgentId>) {
        self.0.retain(|peer, contact| contact.sessions > 0 || peers.contains(peer));
    }
}
