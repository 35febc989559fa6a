//! What the parts of an agent in a cluster share: who it is, whom it follows, its tunnel and its names, kept in step.
//!
//! All that changes is in [`Held`], behind one lock. Whoever decides (a frame from `stream`, the tick of `mod`, an event of the
//! tunnel) holds it for as long as the decision takes and no longer, with one exception: `apply` keeps it until tunnel and names
//! have been told, so that two decisions reach them in the order in which they were made. Nothing awaits under it, and nothing
//! that is called under it (edge, link, memory) calls back into the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peerage_model::operator::{Ack, Entry, Passport, Update};
use peerage_model::stream::{StreamHeader, StreamKind};
use peerage_model::{AgentId, AuthorityRecord, Credential, Fingerprint, InstanceId, UnixTime};
use tokio::io::AsyncWriteExt;
use tokio::sync::{broadcast, mpsc, watch};

use super::contacts::Contacts;
use super::follow::{BadUpdate, Follow, Taken};
use super::memory::{Followed, Instance, Memory};
use super::tunnel::Tunnel;
use super::word::{Aged, Word};
use super::{Options, Starters};
use crate::address::Listed;
use crate::control::view::{self, Event};
use crate::daemon::agent::is_renewal_due;
use crate::daemon::edge::Edge;
use crate::daemon::link::{LinkConfig, LinkEvent};
use crate::health::Metrics;
use crate::portmap;
use crate::state::document::Service;
use crate::state::{random, time};
use crate::tunnel::{Dial, Incoming, Opened};

/// Events kept for a slow listener.
const EVENTS: usize = 256;
/// Between two first calls to peers that were just learned of, so that a new agent is no burst for its relays.
const BETWEEN_CALLS: Duration = Duration::from_millis(100);
/// Longest wait before a first call.
const LONGEST_CALL: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Node {
    pub(super) options: Options,
    pub(super) since: UnixTime,
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) edge: Edge,
    pub(super) metrics: Metrics,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) stop: watch::Sender<bool>,
    /// Whether we know whom we may talk to, from an operator or from an earlier container.
    pub(super) loaded: watch::Sender<bool>,
    /// Grows when there may be something to report.
    pub(super) news: watch::Sender<u64>,
    memory: Memory,
    starters: Starters,
    link_events: mpsc::Sender<LinkEvent>,
    incoming: mpsc::Sender<Incoming>,
    held: Mutex<Held>,
}

/// What changes.
pub(super) struct Held {
    instance: Instance,
    /// Of the passport that is in use.
    us: Option<AgentId>,
    passport_until: Option<UnixTime>,
    pub(super) follow: Follow,
    word: Word,
    /// When the next trust ends by itself.
    next_end: Option<UnixTime>,
    operator: view::Operator,
    pub(super) contacts: Contacts,
    called: BTreeSet<AgentId>,
    /// The newest record of each other authority that a peer showed.
    pub(super) records: BTreeMap<Fingerprint, AuthorityRecord>,
}

pub(super) struct Parts {
    pub(super) memory: Memory,
    pub(super) options: Options,
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) edge: Edge,
    pub(super) metrics: Metrics,
    pub(super) starters: Starters,
    pub(super) events: mpsc::Sender<LinkEvent>,
    pub(super) incoming: mpsc::Sender<Incoming>,
}

impl Node {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let instance = parts.memory.instance(parts.options.authority);
        let Followed { kept, heard } = parts.memory.followed();
        let follow = Follow::restore(kept);
        let loaded = follow.reached().is_some();
        let held = Held {
            instance,
            us: None,
            passport_until: None,
            follow,
            word: Word::heard_at(heard),
            next_end: None,
            operator: view::Operator::default(),
            contacts: Contacts::default(),
            called: BTreeSet::new(),
            records: BTreeMap::new(),
        };
        Arc::new(Self {
            options: parts.options,
            since: time::now(),
            tunnel: parts.tunnel,
            edge: parts.edge,
            metrics: parts.metrics,
            events: broadcast::Sender::new(EVENTS),
            stop: watch::Sender::new(false),
            loaded: watch::Sender::new(loaded),
            news: watch::Sender::new(0),
            memory: parts.memory,
            starters: parts.starters,
            link_events: parts.events,
            incoming: parts.incoming,
            held: Mutex::new(held),
        })
    }

    /// Goes on where an earlier container of this pod stopped.
    pub(super) fn begin(self: &Arc<Self>) {
        let now = time::now();
        let known = self.held().instance.credential(now);
        if let Some(credential) = known {
            tracing::info!(agent = %credential.agent().routing_id(), "going on with the passport that was here");
            self.enrolled(&credential);
        }
        self.sweep();
        self.apply();
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the memory volume is.
    pub(super) fn directory(&self) -> String {
        self.memory.place().directory().display().to_string()
    }

    /// Who we are, if an operator has said so.
    pub(super) fn us(&self) -> Option<AgentId> {
        self.held().us.clone()
    }

    /// The instance as it is.
    pub(super) fn instance(&self) -> Instance {
        self.held().instance.clone()
    }

    /// The running instance's id and when its passport ends.
    pub(super) fn run(&self) -> (InstanceId, Option<UnixTime>) {
        let held = self.held();
        (InstanceId::of_key(&held.instance.key.public()), held.passport_until)
    }

    /// Looks at what is followed.
    pub(super) fn follow<T>(&self, look: impl FnOnce(&mut Follow) -> T) -> T {
        look(&mut self.held().follow)
    }

    /// A record of this sequence is in use: older ones are refused from here on.
    pub(super) fn record_seen(&self, sequence: u64) {
        let mut held = self.held();
        if sequence > held.instance.record_seen {
            held.instance.record_seen = sequence;
            self.keep_instance(&held.instance);
        }
    }

    /// A passport came. Kept, then shown from here on; with the first one the tunnel begins.
    pub(super) fn passport(self: &Arc<Self>, credential: &Credential, passport: Passport) {
        {
            let mut held = self.held();
            held.instance.passport = Some(passport);
            self.keep_instance(&held.instance);
        }
        self.enrolled(credential);
    }

    fn enrolled(self: &Arc<Self>, credential: &Credential) {
        let key = {
            let mut held = self.held();
            held.us = Some(credential.agent().clone());
            held.passport_until = Some(credential.not_after());
            held.instance.key.clone()
        };
        if let Some(link) = self.tunnel.get() {
            link.renew(credential.as_bytes().to_vec());
            return;
        }
        let snapshot = self.held().follow.snapshot(time::now(), false);
        let config = LinkConfig {
            agent: credential.agent().clone(),
            instance: key,
            credential: credential.as_bytes().to_vec(),
            bind: self.options.bind.clone(),
            fixed_endpoints: self.options.endpoints.clone(),
            // A pod's gateway is nobody's home router.
            port_mapping: portmap::Mode::Off,
            relay_proxy: self.options.relay_proxy.clone(),
            memory: self.options.memory,
            snapshot,
            public: false,
            predecessors: Vec::new(),
        };
        match (self.starters)()(config) {
            Ok((link, events, incoming)) => {
                self.tunnel.replace(Some(link));
                tokio::spawn(pass_on(events, self.link_events.clone()));
                tokio::spawn(pass_on(incoming, self.incoming.clone()));
                tracing::info!(agent = %credential.agent().routing_id(), "the tunnel is up");
                self.apply();
            }
            Err(error) => {
                tracing::error!(%error, "the tunnel cannot start; it is tried again with the next passport");
                self.held().operator.problem = Some(format!("the tunnel cannot start: {error}"));
            }
        }
    }

    /// Whether it is time for a fresh passport.
    pub(super) fn is_renewal_due(&self, now: UnixTime) -> bool {
        self.held().passport_until.is_some_and(|until| is_renewal_due(until, now))
    }

    /// Takes an update and acts on it. It is written down before that, so that a restart does not forget what was taken back.
    pub(super) async fn update(self: &Arc<Self>, update: Update) -> Result<Option<Ack>, BadUpdate> {
        let begun = Instant::now();
        let Some(us) = self.us() else { return Ok(None) };
        let ack = match self.follow(|follow| follow.take(update, &us))? {
            Taken::Part => return Ok(None),
            Taken::Whole(ack) => ack,
        };
        self.heard_operator(time::now());
        if self.follow(|follow| follow.is_behind()) {
            let why = "the operator's replica has not seen yet what this agent was told before; additions wait for it";
            self.held().operator.problem = Some(why.into());
        }
        let node = Arc::clone(self);
        let acted = tokio::task::spawn_blocking(move || {
            node.keep_followed();
            node.apply()
        });
        match acted.await {
            Ok(true) => self.metrics.revocation.observe(begun.elapsed().as_secs_f64()),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "an update was not acted on to its end"),
        }
        self.loaded.send_replace(true);
        Ok(Some(ack))
    }

    /// A frame came. It shows that what we act on is how things are, if its sender is not behind.
    pub(super) fn heard_operator(self: &Arc<Self>, now: UnixTime) {
        let reopened = {
            let mut held = self.held();
            if !held.follow.is_current() {
                return;
            }
            let reopens = held.word.hear(now);
            self.keep_heard(&mut held, now);
            held.operator.connected = true;
            held.operator.problem = None;
            reopens
        };
        if reopened {
            tracing::info!("an operator is back: talking to peers again");
            self.apply();
        }
    }

    /// A connection begins.
    pub(super) fn connecting(&self, place: SocketAddr) {
        let mut held = self.held();
        held.follow.begin();
        held.operator.place = Some(place);
    }

    /// There is no stream.
    pub(super) fn disconnected(&self, why: String) {
        let mut held = self.held();
        held.follow.begin();
        held.operator.connected = false;
        held.operator.problem = Some(why);
    }

    /// This pod is no agent: nobody may be talked to.
    pub(super) fn no_agent(self: &Arc<Self>) {
        self.follow(Follow::clear);
        self.keep_followed();
        self.apply();
    }

    /// This instance was withdrawn. Its key and passport are forgotten, its sessions reset; another key is made.
    pub(super) async fn denied(self: &Arc<Self>) {
        {
            let mut held = self.held();
            held.instance = Instance::new(self.options.authority, held.instance.record_seen);
            (held.us, held.passport_until) = (None, None);
            held.follow.clear();
            held.contacts = Contacts::default();
            self.keep_instance(&held.instance);
        }
        self.keep_followed();
        self.apply();
        if let Some(link) = self.tunnel.replace(None) {
            // A tunnel that hangs is dropped all the same.
            let _ = tokio::time::timeout(crate::daemon::DRAIN, link.shutdown()).await;
        }
    }

    fn keep_instance(&self, instance: &Instance) {
        if let Err(error) = self.memory.keep_instance(instance) {
            tracing::error!(%error, "the passport cannot be kept; a container that restarts must enrol again");
        }
    }

    /// Writes down that an operator confirmed what we follow, where that has an age that counts: a container that restarts while
    /// none can be reached must not take it for as old as its last change, and close.
    fn keep_heard(&self, held: &mut Held, now: UnixTime) {
        let limit = held.follow.settings().max_staleness.map(Duration::from_secs);
        if !limit.is_some_and(|limit| held.word.is_worth_keeping(now, limit)) {
            return;
        }
        match self.memory.keep_heard(now) {
            Ok(()) => held.word.on_kept(now),
            Err(error) => tracing::error!(%error, "when an operator was heard cannot be kept"),
        }
    }

    fn keep_followed(&self) {
        let followed = {
            let held = self.held();
            Followed { kept: held.follow.keep(time::now()), heard: held.word.heard() }
        };
        if let Err(error) = self.memory.keep_followed(&followed) {
            tracing::error!(%error, "what the operator said cannot be kept; a container that restarts needs an operator");
        }
    }

    /// Makes tunnel, names and listeners be what is followed. Whether that took somebody's trust away.
    fn apply(self: &Arc<Self>) -> bool {
        // Under the lock, so that two changes reach the engine in the order in which they were decided.
        let mut held = self.held();
        let now = time::now();
        let closed = held.word.is_closed();
        let snapshot = held.follow.snapshot(now, closed);
        held.next_end = held.follow.next_end(now);
        let peers: BTreeSet<AgentId> = snapshot.peers.iter().map(|peer| peer.id.clone()).collect();
        let listed = held.follow.entries().filter(|entry| peers.contains(&entry.peer.id)).map(listed).collect();
        let settings = held.follow.settings();
        let services: Vec<Service> = settings.ports.iter().map(service).collect();
        let told = settings.reserved.iter().map(|reserved| (reserved.protocol, reserved.port));
        // Where our own programs listen, we must not.
        let targets = settings.ports.iter().map(|offer| (offer.protocol, offer.target));
        let reserved = told.chain(targets).chain(self.options.reserved.iter().copied()).collect();
        self.edge.apply_listed(listed, &services, reserved);
        self.metrics.peers.set(i64::try_from(peers.len()).unwrap_or(i64::MAX));
        held.contacts.keep(&peers);
        held.records.retain(|authority, _| peers.iter().any(|peer| peer.authority == *authority));
        let new: Vec<AgentId> = peers.difference(&held.called).cloned().collect();
        let mut has_lost = false;
        if let Some(link) = self.tunnel.get() {
            link.apply(snapshot);
            has_lost = !held.called.is_subset(&peers);
            held.called = peers;
            drop(held);
            self.call(new);
        }
        self.news.send_modify(|news| *news += 1);
        has_lost
    }

    /// Calls peers once when they become known, spread out: they say which of their ports are open, so that programs find
    /// listeners there before they have ever connected.
    fn call(self: &Arc<Self>, peers: Vec<AgentId>) {
        for (number, peer) in peers.into_iter().enumerate() {
            let tunnel = Arc::clone(&self.tunnel);
            let wait = (BETWEEN_CALLS * u32::try_from(number).unwrap_or(u32::MAX)).min(LONGEST_CALL);
            tokio::spawn(async move {
                tokio::time::sleep(wait + jitter(BETWEEN_CALLS)).await;
                let header = StreamHeader { kind: StreamKind::Echo, port: 0 };
                if let Ok(Opened::Stream(mut stream)) = tunnel.dial(&peer, header).await {
                    // Whether it is there now does not matter: it may call us, and programs will.
                    let _ = stream.shutdown().await;
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                }
            });
        }
    }

    /// What time alone changes: trusts that end, denials that are over, the age of what we act on.
    pub(super) fn sweep(self: &Arc<Self>) {
        let now = time::now();
        let act = {
            let mut held = self.held();
            held.follow.sweep(now);
            let settings = held.follow.settings();
            let (limit, fail_closed) = (settings.max_staleness.map(Duration::from_secs), settings.fail_closed);
            let aged = held.word.age(now, limit, fail_closed);
            self.say_of_age(&aged, limit);
            aged.closes || held.next_end.is_some_and(|end| end <= now)
        };
        if act {
            self.apply();
        }
    }

    /// For who watches: what time alone made of the operator's word.
    fn say_of_age(&self, aged: &Aged, limit: Option<Duration>) {
        if let Some(stale) = aged.turns {
            self.metrics.stale.set(i64::from(stale));
            match (stale, limit) {
                (true, Some(limit)) => tracing::error!(
                    seconds = limit.as_secs(),
                    "no operator has confirmed this agent's peers for longer than maxStaleness"
                ),
                (_, _) => tracing::info!("an operator has confirmed this agent's peers again"),
            }
        }
        if aged.closes {
            tracing::error!("no operator for longer than maxStaleness: talking to nobody until one is back");
        }
    }

    /// How it stands with the operator.
    pub(super) fn operator(&self) -> view::Operator {
        let held = self.held();
        let revision = held.follow.reached().map(|revision| (revision.epoch, revision.newest()));
        view::Operator { heard: held.word.heard(), revision, ..held.operator.clone() }
    }

    /// What is wrong with the age of what we act on.
    pub(super) fn staleness(&self, now: UnixTime) -> Option<String> {
        let held = self.held();
        let limit = Duration::from_secs(held.follow.settings().max_staleness?);
        let age = held.word.heard()?.until(now);
        let what =
            if held.word.is_closed() { "; by maxStaleness it talks to nobody until an operator is back" } else { "" };
        (age > limit).then(|| format!("no operator has confirmed this agent's peers for {} s{what}", age.as_secs()))
    }

    /// Tells whoever listens.
    pub(super) fn say(&self, event: Event) {
        // Nobody listening is the usual case.
        let _ = self.events.send(event);
    }

    /// Why the last session with a peer ended, where there is none.
    pub(super) fn last_end(&self, peer: &AgentId) -> Option<String> {
        self.held().contacts.last_end(peer).map(str::to_owned)
    }

    /// The newest record of each other authority that a peer showed.
    pub(super) fn records(&self) -> BTreeMap<Fingerprint, AuthorityRecord> {
        self.held().records.clone()
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("us", &self.us()).finish_non_exhaustive()
    }
}

async fn pass_on<T>(mut from: mpsc::Receiver<T>, to: mpsc::Sender<T>) {
    while let Some(item) = from.recv().await {
        if to.send(item).await.is_err() {
            return;
        }
    }
}

fn listed(entry: &Entry) -> Listed {
    let here = entry.local_ports.iter().map(|local| ((local.protocol, local.port), local.here));
    Listed {
        id: entry.peer.id.clone(),
        alias: entry.peer.alias.clone(),
        ports: entry.peer.ports.clone(),
        link: entry.link.clone(),
        here: here.collect(),
    }
}

pub(super) fn service(offer: &peerage_model::operator::Offer) -> Service {
    let target = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), offer.target);
    Service { name: offer.name.clone(), port: offer.port, protocol: view::transport(offer.protocol), target }
}

/// Between nothing and `most`.
pub(super) fn jitter(most: Duration) -> Duration {
    most.mul_f64(f64::from(u32::from_be_bytes(*random::<4>())) / f64::from(u32::MAX))
}
