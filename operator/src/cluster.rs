//! The cluster as this replica knows it, and the one place where a change becomes news.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use peerage_model::operator::Revision;
use peerage_model::{InstanceId, UnixTime};
use tokio::sync::{mpsc, watch};

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

/// The cluster. Shared by everything that serves.
#[derive(Debug)]
pub struct Cluster {
    state: RwLock<State>,
    /// Who is connected.
    pub hub: Arc<Hub>,
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
        Self { state, hub: Arc::default(), watches, metrics, epoch, changes: watch::Sender::new(0), news }
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
            let woken = self.hub.spread(&dirty);
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
    pub fn admit(&self, uid: PodUid, holder: Holder, ours: bool) -> bool {
        let admission = {
            let mut state = self.write();
            let State { index, roll } = &mut *state;
            let admission = roll.admit(uid, holder.clone());
            if matches!(admission, Admission::Holds(_)) && (ours || index.is_still(&uid, &holder)) {
                roll.verify(uid);
            }
            admission
        };
        let mut dirty = Dirty::default();
        dirty.judged.insert(holder.peer.clone());
        match admission {
            Admission::Denied => false,
            Admission::Holds(denial) => {
                if let Some(denial) = denial {
                    self.spread(denial);
                }
                if ours {
                    self.tell(News::Admitted(uid, holder));
                }
                self.tell(News::Judge(dirty));
                true
            }
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
        let peers = {
            let state = self.read();
            let ours = state.index.authority();
            let candidates = state.index.candidates(&agent).into_iter().filter(|peer| peer.authority == ours);
            candidates.filter_map(|peer| ObjectKey::of_agent(&peer.name)).collect::<Vec<_>>()
        };
        self.hub.deny(&denial.denied, &agent, &peers);
        let mut dirty = Dirty::default();
        dirty.judged.insert(agent);
        self.tell(News::Judge(dirty));
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

    /// How far this replica has seen: as far as its slowest watch.
    #[must_use]
    pub fn revision(&self) -> Revision {
        let version = self.watches.iter().map(|health| health.version()).min().unwrap_or(0);
        Revision { epoch: self.epoch, version }
    }
}
