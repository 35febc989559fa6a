//! The cluster as this replica knows it, and the one place where a change becomes news.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use peerage_model::operator::Revision;
use peerage_model::{AuthorityRecord, InstanceId, UnixTime};
use tokio::sync::{mpsc, watch};

use crate::brought::Brought;
use crate::hub::Hub;
use crate::index::{Dirty, Index};
use crate::key::ObjectKey;
use crate::metrics::Metrics;
use crate::roll::{Admission, Denial, Holder, PodUid, Roll};
use crate::watch::Health;

/// What changes together.
#[derive(Debug)]
pub struct State {
    /// Objects, and what follows from them.
    pub index: Index,
    /// Passports, and who is denied.
    pub roll: Roll,
}

/// What others of this process, or other replicas, should hear of.
#[derive(Clone, Debug)]
pub enum News {
    /// Conditions may have changed.
    Judge(Dirty),
    /// An instance was denied here.
    Denied(Denial),
    /// A passport was given here.
    Admitted(PodUid, Holder),
}

/// Why somebody is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The instance was denied, or its pod has a younger one.
    Denied,
    /// The pod is not that agent.
    Changed,
    /// The pod changes its key too often.
    TooSoon {
        /// For how long it has to keep the one it has.
        wait: Duration,
    },
}

/// The cluster. Shared by everything that serves.
#[derive(Debug)]
pub struct Cluster {
    state: RwLock<State>,
    /// Who is connected.
    pub hub: Arc<Hub>,
    /// Keys of other authorities that their agents showed.
    pub brought: Brought,
    /// How the watches are.
    pub watches: Vec<Arc<Health>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    epoch: u64,
    changes: watch::Sender<u64>,
    news: mpsc::UnboundedSender<News>,
}

impl Cluster {
    /// An empty one. What others should hear goes to `news`.
    #[must_use]
    pub fn new(
        index: Index,
        epoch: u64,
        watches: Vec<Arc<Health>>,
        metrics: Arc<Metrics>,
        news: mpsc::UnboundedSender<News>,
    ) -> Self {
        let state = RwLock::new(State { index, roll: Roll::default() });
        let (hub, brought, changes) = (Arc::default(), Brought::default(), watch::Sender::new(0));
        Self { state, hub, brought, watches, metrics, epoch, changes, news }
    }

    /// For reading. Never held across an await.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change and tells everybody whom it touches.
    pub fn change(&self, make: impl FnOnce(&mut Index) -> Dirty) {
        self.change_told(Instant::now(), make);
    }

    /// The same for what we were told at `told`, from which its effects are timed.
    pub fn change_told(&self, told: Instant, make: impl FnOnce(&mut Index) -> Dirty) {
        let (dirty, denials) = {
            let mut state = self.write();
            let dirty = make(&mut state.index);
            let State { index, roll } = &mut *state;
            let denials = match dirty.pods.is_empty() && dirty.replaced.is_empty() {
                true => Vec::new(),
                false => roll.recheck(index, &dirty.pods, &dirty.replaced),
            };
            (dirty, denials)
        };
        for denial in denials {
            self.spread(denial);
        }
        if !dirty.is_empty() {
            let woken = self.hub.spread(&dirty, told);
            self.metrics.woken.observe(woken as f64);
            self.tell(News::Judge(dirty));
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// Time passed.
    pub fn advance(&self, now: UnixTime) {
        if self.read().index.next_ending().is_some_and(|at| at <= now) {
            self.change(|index| index.advance(now));
        }
        self.write().roll.forget_ended(now);
    }

    /// Somebody shows or gets a passport, here (`ours`) or at another replica.
    ///
    /// # Errors
    /// [`Refused`]. What another replica has admitted is never too early.
    pub fn admit(&self, uid: PodUid, holder: Holder, ours: bool) -> Result<(), Refused> {
        let admission = {
            let mut state = self.write();
            let State { index, roll } = &mut *state;
            // Under the lock: what changed since somebody looked must not be overlooked, since a change that comes later ends
            // whoever is listed.
            if ours && !index.is_still(&uid, &holder) {
                return Err(Refused::Changed);
            }
            if let Some(wait) = roll.wait_for_key(&uid, &holder, crate::clock::now()).filter(|_| ours) {
                return Err(Refused::TooSoon { wait });
            }
            let admission = roll.admit(uid, holder.clone());
            if matches!(admission, Admission::Holds(_)) && (ours || index.is_still(&uid, &holder)) {
                roll.verify(uid);
            }
            admission
        };
        let mut dirty = Dirty::default();
        dirty.judged.insert(holder.peer.clone());
        match admission {
            Admission::Denied => Err(Refused::Denied),
            Admission::Holds(denial) => {
                if let Some(denial) = denial {
                    self.spread(denial);
                }
                if ours {
                    self.tell(News::Admitted(uid, holder));
                }
                self.tell(News::Judge(dirty));
                Ok(())
            }
        }
    }

    /// Denies an instance on this replica's own findings, and tells the others.
    pub fn withdraw(&self, denial: Denial) {
        let denied = &denial.denied;
        // A statement of its own: the lock must be free again when it is spread.
        let is_news = self.write().roll.set_denied(&denial.agent, denied.instance, denied.until);
        if is_news {
            self.spread(denial);
        }
    }

    /// Who enrolled before this process began, now that its watches have told what there is: whoever has lost its pod or
    /// its agent since then is denied.
    pub fn recall(&self, enrolled: Vec<(PodUid, Holder)>) {
        // An AgentPeer that cannot be read is not one that was deleted.
        let unreadable = self.watches.iter().any(|health| health.unreadable() > 0);
        let mut denials = Vec::new();
        {
            let mut state = self.write();
            let State { index, roll } = &mut *state;
            for (uid, holder) in enrolled {
                let is_judged = !unreadable || index.peer(&holder.peer).is_some();
                let is_void = !index.is_there(&uid, &holder) || (is_judged && !index.is_still(&uid, &holder));
                let Admission::Holds(denial) = roll.admit(uid, holder) else { continue };
                denials.extend(denial);
                match is_void {
                    true => denials.extend(roll.withdraw(uid)),
                    false => roll.verify(uid),
                }
            }
        }
        for denial in denials {
            self.spread(denial);
        }
    }

    /// Another replica denied an instance.
    pub fn deny(&self, denial: Denial) {
        let denied = &denial.denied;
        if self.write().roll.set_denied(&denial.agent, denied.instance, denied.until) {
            self.inform(&denial);
        }
    }

    /// Whether an instance was denied.
    #[must_use]
    pub fn is_denied(&self, agent: &peerage_model::AgentId, instance: &InstanceId) -> bool {
        self.read().roll.is_denied(agent, instance)
    }

    fn spread(&self, denial: Denial) {
        tracing::info!(target: "events::instance_denied", agent = %denial.agent.name, instance = %denial.denied.instance);
        self.metrics.denied.inc();
        self.inform(&denial);
        self.tell(News::Denied(denial));
    }

    fn inform(&self, denial: &Denial) {
        let Some(agent) = ObjectKey::of_agent(&denial.agent.name) else { return };
        let (is_ours, peers) = {
            let state = self.read();
            let ours = state.index.authority();
            if denial.agent.authority == ours {
                let candidates = state.index.candidates(&agent).into_iter().filter(|peer| peer.authority == ours);
                (true, candidates.filter_map(|peer| ObjectKey::of_agent(&peer.name)).collect::<Vec<_>>())
            } else {
                (false, state.index.trusting(&denial.agent))
            }
        };
        self.hub.deny(&denial.denied, is_ours.then_some(&agent), &peers);
        if is_ours {
            let mut dirty = Dirty::default();
            dirty.judged.insert(agent);
            self.tell(News::Judge(dirty));
        }
        // Other clusters are told as well, by who waits for changes.
        self.changes.send_modify(|count| *count += 1);
    }

    /// An agent handed on which keys its peer's authority uses.
    pub fn bring(&self, record: AuthorityRecord) {
        self.brought.take(record, &self.read().index, Instant::now());
    }

    /// Something that only conditions depend on changed.
    pub fn judge(&self, dirty: Dirty) {
        self.tell(News::Judge(dirty));
    }

    fn tell(&self, news: News) {
        // Nobody listens while the process ends.
        let _ = self.news.send(news);
    }

    /// Counts changes, for whoever waits for one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Which watch is not to be relied upon, if one is not.
    #[must_use]
    pub fn stale(&self) -> Option<&'static str> {
        self.watches.iter().find(|health| !health.is_fresh()).map(|health| health.kind())
    }

    /// How far this replica has seen: everything up to there. To be asked before the state is read.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision { epoch: self.epoch, versions: self.watches.iter().map(|health| health.version()).collect() }
    }

    /// How new what it has seen may be. To be asked while the state is read, or after that.
    #[must_use]
    pub fn shown(&self) -> Revision {
        Revision { epoch: self.epoch, versions: self.watches.iter().map(|health| health.shown()).collect() }
    }

    /// The newest version that any watch has told of.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.revision().newest()
    }

    /// Whether every watch of objects has listed what there is.
    #[must_use]
    pub fn watched(&self) -> bool {
        let [objects @ .., _tickets] = &self.watches[..] else { return false };
        objects.iter().all(|health| health.version() > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::facts::{PeerFacts, PodFacts};
    use crate::key::uid_bytes;
    use peerage_model::Fingerprint;
    use serde_json::json;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const UID: &str = "00000000-0000-0000-0000-000000000007";
    const OURS: Fingerprint = Fingerprint([1; 32]);

    fn cluster() -> Cluster {
        let mut index = Index::new(OURS, NOW);
        let peer = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentPeer", "metadata": {"name": "db", "namespace": "tools"},
            "spec": {"selector": {"matchLabels": {"app": "db"}}},
        });
        let peer = serde_json::from_value(peer).expect("an AgentPeer");
        index.set_peer(&ObjectKey::new("tools", "db"), Some(PeerFacts::read(&peer).expect("it is read")));
        for (pod, app) in [("db-1", "db"), ("relabelled-1", "other")] {
            let labels = (&BTreeMap::from([("app".to_owned(), app.to_owned())])).into();
            let facts = PodFacts {
                uid: UID.into(),
                labels,
                terminating: false,
                injected: None,
                left_alone: None,
                opted_out: false,
            };
            index.set_pod(&ObjectKey::new("tools", pod), Some(facts));
        }
        let (news, _) = mpsc::unbounded_channel();
        Cluster::new(index, 1, Vec::new(), Arc::default(), news)
    }

    fn holder(instance: u8, pod: &str) -> Holder {
        let peer = ObjectKey::new("tools", "db");
        Holder {
            agent: peer.agent(OURS).expect("a name"),
            peer,
            instance: InstanceId([instance; 8]),
            pod: ObjectKey::new("tools", pod),
            service_account: "db".into(),
            issued: NOW,
            until: UnixTime(NOW.0 + 60),
        }
    }

    #[test]
    fn who_lost_its_pod_or_its_agent_while_no_operator_ran_is_denied_by_the_next_one() {
        for (pod, uid, denied) in [
            ("db-1", UID, false),
            ("db-1", "00000000-0000-0000-0000-000000000008", true), // made anew under the same name
            ("deleted-1", UID, true),
            ("relabelled-1", UID, true),
        ] {
            let (cluster, holder) = (cluster(), holder(1, pod));
            cluster.recall(vec![(uid_bytes(uid).0, holder.clone())]);
            assert_eq!(cluster.is_denied(&holder.agent, &holder.instance), denied, "{pod} {uid}");
        }
    }
}
