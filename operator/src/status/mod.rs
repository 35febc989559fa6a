//! Writes what was found into the objects' status: the leader only, what changed only, several at a time.

pub mod desired;
mod retry;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt};
use peerage_crds::{AgentLink, AgentPeer, AgentRelay, AgentTrust, Reason};
use peerage_model::UnixTime;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::Refusal as RelayRefusal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::cluster::Cluster;
use crate::facts::RelayFacts;
use crate::heap::Heap;
use crate::index::{Dirty, Heard, Index};
use crate::key::{Object, ObjectKey};
use crate::leader::Leadership;
use crate::linking::Board;
use crate::managed::Running;
use crate::metrics::{Kind, Word};
use crate::notices::{Refusal, Told};
use crate::replicas::Others;
use desired::Live;
use retry::{Outcome, Retries};

/// The one field manager of all that this operator applies.
pub const FIELD_MANAGER: &str = "peerage-operator";
/// For how long changes are gathered, so that ten that touch one object are one write.
const GATHER: Duration = Duration::from_millis(150);
/// Writes at a time.
const AT_ONCE: usize = 16;
/// When a write that failed is tried again, and when counts that have not settled are looked at again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long an acknowledgement may be owed before an AgentTrust that was programmed is not.
const OVERDUE: Duration = Duration::from_secs(5);
/// After it took over, the leader holds against nobody that it has not connected yet.
const SETTLING: Duration = Duration::from_secs(15);

/// How often everything is compared, whether or not something happened.
const ROUND: Duration = Duration::from_secs(300);

/// The writer.
pub struct Writer {
    cluster: Arc<Cluster>,
    others: Arc<Others>,
    client: kube::Client,
    leadership: watch::Receiver<Leadership>,
    unsettled: BTreeMap<ObjectKey, Instant>,
    retries: Retries,
    leads_since: Option<Instant>,
    /// When everything is looked at again.
    round: Instant,
    pending: Dirty,
    probes: BTreeMap<String, bool>,
    running: BTreeMap<String, Running>,
    /// What was written of objects that cannot be read: their status cannot be read either.
    said: BTreeMap<Object, String>,
    links: Arc<Board>,
    /// What objects are refused for, for whoever writes Events.
    events: mpsc::Sender<Told>,
}

impl Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("leads_since", &self.leads_since).finish_non_exhaustive()
    }
}

/// What the leader found out of a relay, which no object tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// Whether it answers.
    Answers(String, bool),
    /// What became of one that the operator runs.
    Runs(String, Running),
}

/// One status that should be written.
enum Write {
    Peer(ObjectKey, Box<peerage_crds::AgentPeerStatus>),
    Trust(ObjectKey, Box<peerage_crds::AgentTrustStatus>),
    Link(String, Box<peerage_crds::AgentLinkStatus>),
    Relay(String, Box<peerage_crds::AgentRelayStatus>),
    /// That it cannot be read, and why.
    Unreadable(Object, String),
}

impl Write {
    fn object(&self) -> Object {
        match self {
            Self::Peer(key, _) => Object::Peer(key.clone()),
            Self::Trust(key, _) => Object::Trust(key.clone()),
            Self::Link(name, _) => Object::Link(name.clone()),
            Self::Relay(name, _) => Object::Relay(name.clone()),
            Self::Unreadable(object, _) => object.clone(),
        }
    }
}

impl Writer {
    /// A writer that has written nothing.
    #[must_use]
    pub fn new(
        cluster: Arc<Cluster>,
        others: Arc<Others>,
        client: kube::Client,
        leadership: watch::Receiver<Leadership>,
        links: Arc<Board>,
        events: mpsc::Sender<Told>,
    ) -> Self {
        Self {
            cluster,
            others,
            client,
            leadership,
            unsettled: BTreeMap::new(),
            retries: Retries::default(),
            leads_since: None,
            round: Instant::now(),
            pending: Dirty::default(),
            probes: BTreeMap::new(),
            running: BTreeMap::new(),
            said: BTreeMap::new(),
            links,
            events,
        }
    }

    /// Runs until nobody can lead. `judged` is what changed, `findings` tell of relays.
    pub async fn run(mut self, judged: Arc<Heap>, mut findings: mpsc::Receiver<Finding>) {
        let mut tick = tokio::time::interval(AGAIN);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let links = Arc::clone(&self.links);
        loop {
            tokio::select! {
                () = judged.grown() => {}
                () = links.changed() => {}
                Some(finding) = findings.recv() => self.note(finding),
                _ = tick.tick() => {
                    self.pending.trusts.extend(self.unsettled.keys().cloned());
                    self.retries.due(Instant::now(), &mut self.pending);
                }
                changed = self.leadership.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(GATHER).await;
            self.pending.extend(judged.take());
            self.turn().await;
        }
    }

    fn note(&mut self, finding: Finding) {
        match finding {
            Finding::Answers(relay, answers) => {
                if self.probes.insert(relay, answers) != Some(answers) {
                    self.pending.all = true;
                }
            }
            Finding::Runs(relay, running) => drop(self.running.insert(relay, running)),
        }
    }

    /// What a relay said last.
    fn heard(&self, name: &str, facts: &RelayFacts, refusals: &BTreeMap<RelayInfo, RelayRefusal>) -> Option<Heard> {
        let refusal = || facts.relays.iter().find_map(|relay| refusals.get(relay));
        Some(match (*self.probes.get(name)?, refusal()) {
            (false, _) => Heard::Nothing,
            (true, Some(why)) => Heard::Refusal(*why),
            (true, None) => Heard::Answer,
        })
    }

    /// Writes what is due, if this replica leads.
    async fn turn(&mut self) {
        let leads = *self.leadership.borrow() == Leadership::Ours;
        self.cluster.metrics.leader.set(i64::from(leads));
        if !leads {
            // Whoever takes over looks at everything.
            (self.leads_since, self.pending) = (None, Dirty::default());
            self.unsettled.clear();
            self.retries = Retries::default();
            self.said.clear();
            self.running.clear();
            return;
        }
        if self.leads_since.is_none() {
            self.leads_since = Some(Instant::now());
            self.round = Instant::now() + SETTLING;
            self.pending.all = true;
        }
        if self.round <= Instant::now() {
            // Who had not connected by then is missing; and passports end without anybody saying so.
            self.round = Instant::now() + ROUND;
            self.pending.all = true;
        }
        if self.cluster.stale().is_some() {
            return; // what was not seen must not be written; it stays pending
        }
        let pending = std::mem::take(&mut self.pending);
        let now = Instant::now();
        let mut writes = self.due(&pending);
        writes.retain(|(write, _)| self.retries.may(&write.object(), now));
        let outcomes: Vec<_> = futures::stream::iter(writes)
            .map(|(write, why)| self.write(write, why))
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (object, said, outcome) in outcomes {
            if let (Some(why), Outcome::Written) = (said, outcome) {
                self.said.insert(object.clone(), why);
            }
            let label = Kind { kind: Word(object.kind()) };
            self.cluster.metrics.status_writes.get_or_create(&label).inc();
            if !matches!(outcome, Outcome::Written) {
                self.cluster.metrics.status_failures.get_or_create(&label).inc();
            }
            self.retries.note(object, outcome, Instant::now());
        }
    }

    /// Compares what the objects say with what they should say; and what an object is refused for, where that is news.
    fn due(&mut self, pending: &Dirty) -> Vec<(Write, Option<Refusal>)> {
        let cluster = Arc::clone(&self.cluster);
        let state = cluster.read();
        let index = &state.index;
        let now = crate::clock::now();
        let settling = self.leads_since.is_none_or(|since| since.elapsed() < SETTLING);
        let live = Live { hub: &cluster.hub, others: &self.others, roll: &state.roll, now, settling };
        let mut writes = Vec::new();
        for key in peers_to_compare(index, pending) {
            let status = desired::peer(index, &key, &live);
            writes.extend(status.map(|status| Write::Peer(key, Box::new(status))));
        }
        for key in trusts_to_compare(index, pending) {
            let since = self.unsettled.get(&key).copied();
            let overdue = since.is_some_and(|since| since.elapsed() > OVERDUE);
            let (status, settled) = desired::trust(index, &key, &live, overdue);
            match settled {
                true => drop(self.unsettled.remove(&key)),
                false => drop(self.unsettled.entry(key.clone()).or_insert_with(Instant::now)),
            }
            writes.extend(status.map(|status| Write::Trust(key, Box::new(status))));
        }
        // Few, so they are looked at each time.
        writes.extend(self.due_of_links(index, now));
        writes.extend(self.due_of_relays(index, now));
        self.said.retain(|object, why| index.unreadable().get(object) == Some(why));
        let unsaid = index.unreadable().iter().filter(|(object, _)| !self.said.contains_key(object));
        writes.extend(unsaid.map(|(object, why)| Write::Unreadable(object.clone(), why.clone())));
        let with_refusal = |write| {
            let why = refusal(index, &write);
            (write, why)
        };
        writes.into_iter().map(with_refusal).collect()
    }

    fn due_of_links(&self, index: &Index, now: UnixTime) -> Vec<Write> {
        let rows = self.links.rows();
        let due = index.links().filter_map(|(name, facts)| {
            let authority = index.leads(name, facts).ok().map(|leads| leads.authority);
            let brought = authority.and_then(|authority| self.cluster.brought.of(&authority, Instant::now()));
            let status = desired::link(index, name, facts, rows.get(name), brought.as_ref(), now)?;
            Some(Write::Link(name.clone(), Box::new(status)))
        });
        due.collect()
    }

    fn due_of_relays(&self, index: &Index, now: UnixTime) -> Vec<Write> {
        let refusals = self.links.refusals();
        let due = index.relays().filter_map(|(name, facts)| {
            let (heard, running) = (self.heard(name, facts, &refusals), self.running.get(name));
            let status = desired::relay(index, facts, heard, running, now)?;
            Some(Write::Relay(name.clone(), Box::new(status)))
        });
        due.collect()
    }

    /// Writes one status, and has an Event say what the object is `refused` for; the second is what was said of one that cannot
    /// be read.
    async fn write(&self, write: Write, refused: Option<Refusal>) -> (Object, Option<String>, Outcome) {
        let (object, client) = (write.object(), self.client.clone());
        let mut said = None;
        let (outcome, written) = match write {
            Write::Peer(key, status) => apply(&peers(client, &key), &key.name, &*status).await,
            Write::Trust(key, status) => apply(&trusts(client, &key), &key.name, &*status).await,
            Write::Link(name, status) => apply(&links(client), &name, &*status).await,
            Write::Relay(name, status) => apply(&relays(client), &name, &*status).await,
            Write::Unreadable(object, why) => {
                let status = desired::unreadable(&why, crate::clock::now());
                said = Some(why);
                match object {
                    Object::Peer(key) => merge(&peers(client, &key), &key.name, &status).await,
                    Object::Trust(key) => merge(&trusts(client, &key), &key.name, &status).await,
                    Object::Link(name) => merge(&links(client), &name, &status).await,
                    Object::Relay(name) => merge(&relays(client), &name, &status).await,
                }
            }
        };
        if let (Some(refused), Some(written)) = (refused, written) {
            // Of many at once some are left out: each has its condition.
            let _ = self.events.try_send((written, refused));
        }
        (object, said, outcome)
    }
}

fn peers_to_compare(index: &Index, pending: &Dirty) -> BTreeSet<ObjectKey> {
    match pending.all {
        true => index.peer_keys().cloned().collect(),
        false => pending.judged.union(&pending.agents).cloned().collect(),
    }
}

fn trusts_to_compare(index: &Index, pending: &Dirty) -> BTreeSet<ObjectKey> {
    match pending.all {
        true => index.trust_keys().cloned().collect(),
        false => {
            // A pod that comes or goes changes what its agent's trusts say, too.
            let of_peers = pending.judged.iter().flat_map(|peer| index.trusts_of(peer));
            pending.trusts.iter().cloned().chain(of_peers).collect()
        }
    }
}

/// What the object is refused for, if its status does not say so yet.
fn refusal(index: &Index, write: &Write) -> Option<Refusal> {
    match write {
        Write::Peer(key, new) => Refusal::between(&index.peer(key)?.status.conditions, &new.conditions),
        Write::Trust(key, new) => Refusal::between(&index.trust(key)?.status.conditions, &new.conditions),
        Write::Link(name, new) => Refusal::between(&index.link(name)?.status.conditions, &new.conditions),
        Write::Relay(name, new) => Refusal::between(&index.relay(name)?.status.conditions, &new.conditions),
        Write::Unreadable(_, why) => {
            Some(Refusal { reason: Reason::NotUnderstood.as_str().to_owned(), message: why.clone() })
        }
    }
}

/// What came of a write, and the object if it was written.
type Written = (Outcome, Option<ObjectReference>);

// What comes back may be an object that cannot be read, and was written all the same.
fn peers(client: kube::Client, key: &ObjectKey) -> Api<DeserializeGuard<AgentPeer>> {
    Api::namespaced(client, &key.namespace)
}

fn trusts(client: kube::Client, key: &ObjectKey) -> Api<DeserializeGuard<AgentTrust>> {
    Api::namespaced(client, &key.namespace)
}

fn links(client: kube::Client) -> Api<DeserializeGuard<AgentLink>> {
    Api::all(client)
}

fn relays(client: kube::Client) -> Api<DeserializeGuard<AgentRelay>> {
    Api::all(client)
}

async fn apply<K>(api: &Api<K>, name: &str, status: &impl Serialize) -> Written
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let object = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "status": status,
    });
    write(api, name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await
}

/// Writes these fields of a status and leaves the others: an object that is not of its schema cannot be applied.
async fn merge<K>(api: &Api<K>, name: &str, status: &impl Serialize) -> Written
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    write(api, name, &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await
}

async fn write<K>(api: &Api<K>, name: &str, how: &PatchParams, patch: &Patch<serde_json::Value>) -> Written
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    match api.patch_status(name, how, patch).await {
        Ok(written) => {
            tracing::debug!(kind = %K::kind(&()), name, version = written.resource_version(), "status written");
            (Outcome::Written, Some(written.object_ref(&())))
        }
        Err(kube::Error::Api(status)) if status.code == 404 => (Outcome::Written, None), // it was deleted meanwhile
        Err(error) => {
            tracing::warn!(kind = %K::kind(&()), name, %error, "a status could not be written");
            let outcome = match error {
                kube::Error::Api(status) if status.code == 422 => Outcome::Refused,
                _ => Outcome::Failed,
            };
            (outcome, None)
        }
    }
}
