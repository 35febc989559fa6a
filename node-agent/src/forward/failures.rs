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
/// Ports of peers whose failures may be logged within [`LOG_AGAIN`].
const MAX_LOGGED: usize = 256;
/// A failure of the same port is logged again after this; a program that retries in a loop fills no disk.
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
pub struct Failures {
    last: Mutex<BTreeMap<AgentId, Failure>>,
    /// When the failure of each port of each peer was last logged. A program that tries one port after the other must not fill
    /// the disk either.
    logged: Mutex<BTreeMap<(AgentId, u16), SystemTime>>,
}

impl Failures {
    /// Notes a failure, and logs it unless it was logged just before.
    pub fn note(&self, peer: &AgentId, port: u16, error: &DialError) {
        let failure = Failure { port, text: error.to_string(), at: SystemTime::now(), times: 1 };
        let at = failure.at;
        self.remember(peer, failure);
        if !self.may_log(peer, port, at) {
            return;
        }
        // The text of the failure names the peer.
        tracing::warn!(peer = %peer.routing_id(), port, "dial failed");
        tracing::debug!(%peer, port, %error, "dial failed");
    }

    fn remember(&self, peer: &AgentId, failure: Failure) {
        let mut all = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &&mut Failure| (known.port, &known.text) == (failure.port, &failure.text);
        if let Some(known) = all.get_mut(peer).filter(same) {
            known.times += 1;
            known.at = failure.at;
            return;
        }
        if all.len() >= MAX_PEERS {
            let oldest = all.iter().min_by_key(|(_, failure)| failure.at).map(|(peer, _)| peer.clone());
            oldest.map(|peer| all.remove(&peer));
        }
        all.insert(peer.clone(), failure);
    }

    /// Whether nothing was logged of this port of this peer just before.
    fn may_log(&self, peer: &AgentId, port: u16, now: SystemTime) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age < LOG_AGAIN);
        let key = (peer.clone(), port);
        if logged.get(&key).is_some_and(recent) {
            return false;
        }
        if logged.len() >= MAX_LOGGED {
            logged.retain(|_, at| recent(at));
        }
        // So many ports at once are no news any more, one by one.
        if logged.len() >= MAX_LOGGED {
            return false;
        }
        logged.insert(key, now);
        true
    }

    /// A dial of this peer went well: its failure is over.
    pub fn clear(&self, peer: &AgentId) {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(peer);
    }

    /// The last failure of each peer whose last dial failed.
    #[must_use]
    pub fn all(&self) -> BTreeMap<AgentId, Failure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::Fingerprint;

    fn db() -> AgentId {
        AgentId { authority: Fingerprint([7; 32]), name: "db".parse().expect("a name") }
    }

    #[test]
    fn two_ports_that_fail_in_turns_are_logged_once_each() {
        let failures = Failures::default();
        let now = SystemTime::now();
        let logged: Vec<bool> = [80, 81, 80, 81, 80].map(|port| failures.may_log(&db(), port, now)).into();
        assert_eq!(logged, [true, true, false, false, false]);
        assert!(failures.may_log(&db(), 80, now + LOG_AGAIN), "and again after a while");
    }

    #[test]
    fn a_program_that_tries_all_ports_fills_no_log() {
        let (failures, now) = (Failures::default(), SystemTime::now());
        let logged = (1..=u16::MAX).filter(|port| failures.may_log(&db(), *port, now)).count();
        assert_eq!(logged, MAX_LOGGED);
        assert!(failures.may_log(&db(), 1, now + LOG_AGAIN), "room is found again");
    }

    #[test]
    fn the_same_failure_again_is_counted() {
        let failures = Failures::default();
        let error = DialError::NotTrusted { peer: db() };
        failures.note(&db(), 80, &error);
        failures.note(&db(), 80, &error);
        assert_eq!(failures.all()[&db()].times, 2);
    }
}
