//! Which names of relays the driver looks up.
//!
//! Peers name relays, and a name that nobody can look up must not cost more with time: each name is asked for once at a
//! time, some at once in all, and again only while a relay still needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use peerage_model::relay::RelayInfo;

/// Names that are looked up at a time: each may hold a thread of the driver's for as long as a resolver is patient.
const AT_ONCE: usize = 8;
/// From an answer that was of no use to the next question.
const AGAIN: Duration = Duration::from_secs(5);

/// Names to look up, and those that are being looked up.
#[derive(Debug, Default)]
pub(super) struct Names {
    asked: BTreeSet<RelayInfo>,
    /// When it is their time.
    wanted: BTreeMap<RelayInfo, Instant>,
}

impl Names {
    /// Somebody needs this name now.
    pub(super) fn want(&mut self, relay: &RelayInfo, now: Instant) {
        if !self.asked.contains(relay) {
            self.wanted.entry(relay.clone()).or_insert(now);
        }
    }

    /// The driver has looked; whether that was of use decides if it looks again.
    pub(super) fn answered(&mut self, relay: &RelayInfo, useful: bool, now: Instant) {
        if self.asked.remove(relay) && !useful {
            self.wanted.insert(relay.clone(), now + AGAIN);
        }
    }

    /// Nobody needs it any more.
    pub(super) fn forget(&mut self, relay: &RelayInfo) {
        self.wanted.remove(relay);
    }

    /// The next name for the driver.
    pub(super) fn next(&mut self, now: Instant) -> Option<RelayInfo> {
        if self.asked.len() >= AT_ONCE {
            return None;
        }
        let (relay, _) = self.wanted.iter().filter(|(_, at)| **at <= now).min_by_key(|(_, at)| **at)?;
        let relay = relay.clone();
        self.wanted.remove(&relay);
        self.asked.insert(relay.clone());
        Some(relay)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.asked.len() >= AT_ONCE { None } else { self.wanted.values().min().copied() }
    }
}

#[cfg(test)]
mod tests {
    use peerage_model::AgreementSecret;

    use super::*;

    fn relay(n: usize) -> RelayInfo {
        let key = AgreementSecret::from_bytes([8; 32]).public();
        RelayInfo { key, host: format!("relay-{n}.example").parse().expect("a host"), port: 3478, tls: None }
    }

    #[test]
    fn a_name_is_looked_up_once_at_a_time_and_again_five_seconds_after_it_failed() {
        let (mut names, now) = (Names::default(), Instant::now());
        for _ in 0..100 {
            names.want(&relay(1), now);
        }
        assert_eq!((names.next(now), names.next(now)), (Some(relay(1)), None));
        names.want(&relay(1), now);
        assert_eq!(names.next(now), None, "it is being looked up");
        names.answered(&relay(1), false, now);
        assert_eq!((names.next(now), names.poll_timeout()), (None, Some(now + AGAIN)));
        assert_eq!(names.next(now + AGAIN), Some(relay(1)));
        names.answered(&relay(1), true, now);
        assert_eq!(names.poll_timeout(), None);
    }

    #[test]
    fn of_a_thousand_names_eight_are_looked_up_at_a_time_and_forgotten_ones_never() {
        let (mut names, now) = (Names::default(), Instant::now());
        (0..1_000).for_each(|n| names.want(&relay(n), now));
        let first: Vec<_> = std::iter::from_fn(|| names.next(now)).collect();
        assert_eq!((first.len(), names.poll_timeout()), (AT_ONCE, None));
        (0..1_000).for_each(|n| names.forget(&relay(n)));
        names.answered(&first[0], true, now);
        assert_eq!(names.next(now), None);
    }
}
