//! Why dials failed lately, kept for people: `peerage status` and `peerage doctor` show it.
//!
//! A program whose connection is reset learns nothing more; this and the log are where the reason is.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use peerage_model::AgentId;

use crate::tunnel::DialError;

/// Peers remembered; beyond that, one whose failure is oldest is forgotten.
const MAX_PEERS: usize = 256;
/// The same failure of the same peer is logged again after this; a program that retries in a loop fills no disk.
const LOG_AGAIN: Duration = Duration::from_secs(10);

/// The last failure of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The port asked for.
    pub port: u16,
    /// What went wrong and what to do, in a sentence.
    pub text: String,
    /// When.
    pub at: SystemTime,
    /// How many in a row, with the same text.
    pub times: u64,
}

/// The last failure of each peer.
#[derive(Debug, Default)]
pub struct Failures(Mutex<BTreeMap<AgentId, Failure>>);

impl Failures {
    /// Notes a failure, and logs it unless it was logged just before.
    pub fn note(&self, peer: &AgentId, port: u16, error: &DialError) {
        let failure = Failure { port, text: error.to_string(), at: SystemTime::now(), times: 1 };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get_mut(peer).filter(|known| (known.port, &known.text) == (port, &failure.text)) {
            known.times += 1;
            if failure.at.duration_since(known.at).is_ok_and(|age| age < LOG_AGAIN) {
                return;
            }
            known.at = failure.at;
        } else {
            if all.len() >= MAX_PEERS {
                let oldest = all.iter().min_by_key(|(_, failure)| failure.at).map(|(peer, _)| peer.clone());
                oldest.map(|peer| all.remove(&peer));
            }
            all.insert(peer.clone(), failure);
        }
        // The text of the failure names the peer.
        tracing::warn!(peer = %peer.routing_id(), port, "dial failed");
        tracing::debug!(%peer, port, %error, "dial failed");
    }

    /// A dial of this peer went well: its failure is over.
    pub fn clear(&self, peer: &AgentId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(peer);
    }

    /// The last failure of each peer whose last dial failed.
    #[must_use]
    pub fn all(&self) -> BTreeMap<AgentId, Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
