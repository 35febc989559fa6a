//! What replicas tell each other: numbers and other authorities' keys for the leader's status, and who enrolled.
//!
//! Followers call the leader, whose address is in the Lease. Each end proves that it holds the authority's agreement key,
//! over the TLS session's exporter, so that the certificate needs to vouch for nothing. None of this goes through
//! etcd, and nothing here decides about trust: a replica that lies to the leader spoils numbers.

mod channel;
mod message;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peerage_crds::PathSummary;
use peerage_model::TrustId;
use tokio::sync::broadcast;

pub use channel::{Follower, HTTP_PATH, UPGRADE, lead};
pub use message::{Admitted, Counts, Message, PeerRow, TrustRow};

use crate::hub::{AgentTold, Hub, TrustCount};
use crate::key::ObjectKey;

/// Enrolments that a slow replica may be behind before it is told all anew.
const BACKLOG: usize = 1024;

/// What one other replica reported.
#[derive(Debug, Default)]
struct Report {
    trusts: BTreeMap<TrustId, (Option<i64>, TrustCount)>,
    peers: BTreeMap<ObjectKey, AgentTold>,
}

/// What the other replicas reported.
#[derive(Debug)]
pub struct Others {
    reports: Mutex<BTreeMap<u64, Report>>,
    serial: AtomicU64,
    admitted: broadcast::Sender<Arc<(u64, Admitted)>>,
}

impl Default for Others {
    fn default() -> Self {
        Self { reports: Mutex::default(), serial: AtomicU64::new(1), admitted: broadcast::Sender::new(BACKLOG) }
    }
}

/// Who tells: this process.
const OURSELVES: u64 = 0;

impl Others {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Report>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An enrolment of this replica, for those that follow it.
    pub fn announce(&self, admitted: Admitted) {
        // Nobody follows at the moment: who begins to is told everything.
        let _ = self.admitted.send(Arc::new((OURSELVES, admitted)));
    }

    /// The numbers of an AgentTrust, as it is in this generation, over all replicas. Streams of a replica that reports of
    /// another generation are expected to acknowledge this one and have not.
    #[must_use]
    pub fn count(&self, agent: &ObjectKey, trust: &TrustId, generation: Option<i64>, hub: &Hub) -> TrustCount {
        let mut sum = hub.count(agent, trust, generation);
        for (of, count) in self.lock().values().filter_map(|report| report.trusts.get(trust)) {
            sum.expected += count.expected;
            sum.acknowledged += if *of == generation { count.acknowledged } else { 0 };
            sum.path = both(sum.path, count.path);
            sum.failing |= count.failing;
            sum.conflict = sum.conflict.or_else(|| count.conflict.clone());
        }
        sum
    }

    /// What the streams of an agent told of it, over all replicas.
    #[must_use]
    pub fn told(&self, agent: &ObjectKey, hub: &Hub) -> AgentTold {
        let AgentTold { mut path, mut nat, mut conflict } = hub.told(agent);
        for other in self.lock().values().filter_map(|report| report.peers.get(agent)) {
            path = both(path, other.path);
            nat = nat.or_else(|| other.nat.clone());
            conflict = conflict.or_else(|| other.conflict.clone());
        }
        AgentTold { path, nat, conflict }
    }
}

/// One word for two.
fn both(a: Option<PathSummary>, b: Option<PathSummary>) -> Option<PathSummary> {
    let (Some(first), Some(second)) = (a, b) else { return a.or(b) };
    Some(match (first, second) {
        (PathSummary::Idle, other) | (other, PathSummary::Idle) => other,
        (PathSummary::Direct, PathSummary::Direct) => PathSummary::Direct,
        (PathSummary::Relayed, PathSummary::Relayed) => PathSummary::Relayed,
        (PathSummary::Direct | PathSummary::Relayed | PathSummary::Mixed, _) => PathSummary::Mixed,
    })
}

/// A follower's place in the leader's numbers, given up when dropped.
struct Desk {
    others: Arc<Others>,
    serial: u64,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.others.lock().remove(&self.serial);
    }
}

impl Others {
    fn open_desk(self: &Arc<Self>) -> Desk {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(serial, Report::default());
        Desk { others: Arc::clone(self), serial }
    }
}

impl Desk {
    fn file(&self, trusts: Vec<TrustRow>, peers: Vec<PeerRow>, gone: &[[u8; 16]]) {
        let mut reports = self.others.lock();
        let Some(report) = reports.get_mut(&self.serial) else { return };
        for row in trusts {
            match row.expected {
                0 => report.trusts.remove(&TrustId(row.uid)),
                _ => report.trusts.insert(TrustId(row.uid), (row.generation, row.count())),
            };
        }
        for uid in gone {
            report.trusts.remove(&TrustId(*uid));
        }
        for row in peers {
            match row.streams {
                0 => report.peers.remove(&row.key.clone().into()),
                _ => report.peers.insert(row.key.clone().into(), row.told()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Owed;
    use peerage_model::InstanceId;

    /// Of two streams, one of which acknowledged.
    fn row(key: &ObjectKey, trust: TrustId, generation: Option<i64>) -> TrustRow {
        let path = Some(PathSummary::Direct);
        let (key, uid) = (key.clone().into(), trust.0);
        TrustRow { key, uid, generation, expected: 2, acknowledged: 1, path, failing: false, conflict: None }
    }

    #[test]
    fn counts_of_all_replicas_are_added_until_one_leaves() {
        let (others, hub) = (Arc::new(Others::default()), Arc::new(Hub::default()));
        let (key, agent, trust) = (ObjectKey::new("n", "t"), ObjectKey::new("n", "a"), TrustId([1; 16]));
        let seat = hub.join(agent.clone(), InstanceId([1; 8]), ObjectKey::new("n", "p"));
        seat.stream.progress().owed.insert(trust, Owed { generation: Some(2), update: 0 });
        let desk = others.open_desk();
        let count = || others.count(&agent, &trust, Some(2), &hub);
        for (generation, acknowledged) in [(2, 2), (1, 1)] {
            desk.file(vec![row(&key, trust, Some(generation))], Vec::new(), &[]);
            let sum = count();
            let path = Some(PathSummary::Direct);
            assert_eq!((sum.expected, sum.acknowledged, sum.path), (3, acknowledged, path), "{generation}");
        }
        desk.file(Vec::new(), Vec::new(), &[trust.0]);
        assert_eq!(count().expected, 1, "its AgentTrust was deleted");
        desk.file(vec![row(&key, trust, None)], Vec::new(), &[]);
        assert_eq!(count().expected, 3);
        drop(desk);
        assert_eq!(count().expected, 1);
    }
}
