//! Reasons not to be ready, as guards.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ready while nothing is pending.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Reasons>>);

#[derive(Debug, Default)]
struct Reasons {
    next: u64,
    pending: BTreeMap<u64, &'static str>,
}

/// A reason not to be ready; dropping it takes the reason away, whatever way its holder ends.
#[derive(Debug)]
pub struct Pending {
    readiness: Readiness,
    key: u64,
}

impl Readiness {
    /// Not ready until the guard is dropped.
    #[must_use]
    pub fn wait_for(&self, what: &'static str) -> Pending {
        let mut reasons = self.reasons();
        let key = reasons.next;
        reasons.next += 1;
        reasons.pending.insert(key, what);
        Pending { readiness: self.clone(), key }
    }

    /// What is waited for; empty when ready.
    #[must_use]
    pub fn pending(&self) -> Vec<&'static str> {
        self.reasons().pending.values().copied().collect()
    }

    fn reasons(&self) -> MutexGuard<'_, Reasons> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.readiness.reasons().pending.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_the_last_reason_is_gone() {
        let readiness = Readiness::default();
        let relay = readiness.wait_for("relay");
        let dns = readiness.wait_for("dns");
        assert_eq!(readiness.pending(), ["relay", "dns"]);
        drop(relay);
        assert_eq!(readiness.pending(), ["dns"]);
        drop(dns);
        assert!(readiness.pending().is_empty());
    }
}
