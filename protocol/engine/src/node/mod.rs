//! A whole agent's tunnel side as one value: sessions with peers, their paths and streams, and the relays under them.
//!
//! The driver feeds it datagrams, time, allowlist snapshots and stream calls; it drains [`Node::poll_transmit`] and
//! [`Node::poll_event`] after every input and wakes it at [`Node::poll_timeout`]. Nothing here opens a socket, reads a
//! clock or draws randomness that does not come from the seed, so `protocol/sim` runs the same code in virtual time.
//!
//! Where things are: [`trust`](self) turns snapshots into pairs; `dial`, `life` and `ending` bring sessions up and down; `rivals`
//! chooses between several with one instance of a peer, `replicas` between its instances; `again` moves streams on that a gone
//! process did not take, and `waiting` keeps those that have none; `input` and `output` are the packet paths, in which every session gets its turn (`ready`); `io` and
//! `incoming` are streams; `paths` carries out what each session's path
//! agent decides; `relays` keeps the relay clients, and `failover` finds another
//! when one is gone.

mod again;
mod config;
mod control;
mod dial;
mod ending;
mod event;
mod failover;
mod incoming;
mod input;
mod io;
mod judge;
mod life;
mod lifetime;
mod listening;
mod mailbox;
mod memory;
mod messages;
mod output;
mod outside;
mod owed;
mod pair;
mod paths;
mod ready;
mod relays;
mod replicas;
mod rivals;
mod session;
mod siblings;
mod sockets;
mod status;
mod stream;
mod timers;
mod trust;
mod turns;
mod waiting;

use core::fmt;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use peerage_model::control::{MAX_PREDECESSORS, RunId};
use peerage_model::snapshot::Port;
use peerage_model::{AgentId, AgreementSecret, InstanceId, TrustId};
use quinn_proto::{Endpoint, StreamId};

pub use crate::congestion::Algorithm;
pub use config::DEFAULT_MEMORY;
pub use event::{AskError, AskKey, DownReason, Event, Now, OpenError, SessionKey, StreamError, StreamKey};
pub use mailbox::ErrandKey;
pub use output::Transmit;
pub use status::{NodeStatus, PeerDial, RelayStatus, RelayWay, SessionStatus};

use self::judge::Judge;
use self::mailbox::Errand;
use self::memory::Memory;
use self::output::Batch;
use self::outside::Outside;
use self::pair::{Pair, PairKey};
use self::paths::CheckBudget;
use self::ready::Ready;
use self::relays::Relays;
use self::session::Session;
use self::siblings::Siblings;
use self::sockets::Extras;
use self::stream::Stream;
use self::timers::Timers;
use crate::knock::{ConnectionIdKey, KNOCK_LEN, KnockTable};
use crate::noise::{ConfigError, LocalIdentity, SeededRandom, SharedKnocks, endpoint_config, listener_config};
use crate::path::CheckTransmit;

/// What QUIC believes to be the remote address of every connection. Where packets really go is the path agent's
/// business, and no migration of QUIC's may get in its way. From the discard prefix (RFC 6666), so that a bug which let
/// it out would reach nobody.
const VIRTUAL_REMOTE: SocketAddr =
    SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1), 1, 0, 0));

/// What a node is made of.
pub struct NodeConfig {
    /// Who we are.
    pub agent: AgentId,
    /// This run's key, born in memory.
    pub instance: AgreementSecret,
    /// What vouches for it: the bytes of a [`peerage_model::Credential`].
    pub credential: Vec<u8>,
    /// Addresses that our owner says can be reached from outside.
    pub fixed: Vec<SocketAddr>,
    /// Bytes that the streams of all sessions may hold together: what was not read here, and what peers have not acknowledged. The
    /// smallest windows of a session are granted beyond it.
    pub memory: u64,
    /// What says how much may be under way.
    pub congestion: Algorithm,
    /// 32 bytes from the operating system, used for nothing else, never twice. Tests fix them.
    pub seed: [u8; 32],
}

/// The tunnel side of one agent.
pub struct Node {
    agent: AgentId,
    instance: InstanceId,
    secret: AgreementSecret,
    identity: Arc<LocalIdentity>,
    random: SeededRandom,
    endpoint: Endpoint,
    knock_table: SharedKnocks<PairKey>,
    judge: Judge,

    /// Which process of our instance this is.
    run: RunId,
    ports: Vec<Port>,
    predecessors: Vec<InstanceId>,
    siblings: Siblings,
    revoked: BTreeSet<TrustId>,
    spent_invites: BTreeSet<TrustId>,
    /// Requests whose receipt waits until the driver has them safe, and where it goes; none while their asker is away.
    unanswered: BTreeMap<TrustId, Option<(SessionKey, StreamId)>>,
    pairs: BTreeMap<PairKey, Pair>,
    sessions: BTreeMap<SessionKey, Session>,
    by_handle: BTreeMap<usize, SessionKey>,
    next_session: u64,
    memory: Memory,
    congestion: Algorithm,
    first_ids: BTreeMap<[u8; KNOCK_LEN], SessionKey>,
    streams: BTreeMap<StreamKey, Stream>,
    next_stream: u64,
    next_ask: u64,
    errands: BTreeMap<ErrandKey, Errand>,
    next_errand: u64,

    relays: Relays,
    hosts: BTreeSet<SocketAddr>,
    fixed: BTreeSet<SocketAddr>,
    mapped: Option<SocketAddr>,
    check_budget: CheckBudget,
    extras: Extras,
    outside: Outside,

    /// The times of the latest input.
    last: Now,
    timers: Timers<Timer>,
    /// Sessions that may have something to send.
    ready: Ready<SessionKey>,
    out: VecDeque<CheckTransmit>,
    batches: VecDeque<Batch>,
    scratch: Vec<u8>,
    events: VecDeque<Event>,
}

/// Whose deadline.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Timer {
    Session(SessionKey),
    Pair(PairKey),
    Errand(ErrandKey),
    /// Peers are told of other instances of ours.
    Siblings,
}

impl Node {
    /// An agent that trusts nobody yet.
    ///
    /// # Errors
    /// When the credential is longer than any credential is.
    pub fn new(config: NodeConfig, now: Now) -> Result<Self, ConfigError> {
        let mut random = SeededRandom::from_seed(config.seed);
        let ids = ConnectionIdKey::new(&mut random);
        let knock_table: SharedKnocks<PairKey> = Arc::new(Mutex::new(KnockTable::new(now.wall)));
        let listener = Arc::new(listener_config(&knock_table, &mut random));
        let endpoint = Endpoint::new(Arc::new(endpoint_config(&ids, &mut random)), Some(listener), true, None);
        let relays = Relays::new(config.instance.clone(), config.credential.clone(), random.fork());
        let run = RunId(random.bytes());
        Ok(Self {
            agent: config.agent,
            instance: InstanceId::of_key(&config.instance.public()),
            identity: Arc::new(LocalIdentity::new(&config.instance, config.credential)?),
            secret: config.instance,
            random,
            endpoint,
            knock_table,
            judge: Judge::new(now.wall),
            run,
            ports: Vec::new(),
            predecessors: Vec::new(),
            siblings: Siblings::default(),
            revoked: BTreeSet::new(),
            spent_invites: BTreeSet::new(),
            unanswered: BTreeMap::new(),
            pairs: BTreeMap::new(),
            sessions: BTreeMap::new(),
            by_handle: BTreeMap::new(),
            next_session: 0,
            memory: Memory::new(config.memory),
            congestion: config.congestion,
            first_ids: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_stream: 0,
            next_ask: 0,
            errands: BTreeMap::new(),
            next_errand: 0,
            relays,
            hosts: BTreeSet::new(),
            fixed: config.fixed.into_iter().collect(),
            mapped: None,
            check_budget: CheckBudget::new(),
            extras: Extras::new(),
            outside: Outside::default(),
            last: now,
            timers: Timers::new(),
            ready: Ready::new(),
            out: VecDeque::new(),
            batches: VecDeque::new(),
            scratch: Vec::new(),
            events: VecDeque::new(),
        })
    }

    /// The addresses of our socket on this host's interfaces. Call again when they change.
    pub fn set_local_addresses(&mut self, now: Now, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.tick(now);
        let addresses: BTreeSet<_> = addresses.into_iter().collect();
        if addresses == self.hosts {
            return;
        }
        let first = self.hosts.is_empty();
        self.hosts = addresses;
        self.relays.set_hosts(&self.hosts, now.mono);
        if !first {
            self.relays.local_address_changed(now.mono);
            self.extras.network_changed();
            self.outside_changed();
        }
        self.candidates_changed(now);
        // What extra sockets met, they met from the address before.
        self.sweep_sockets();
    }

    /// The address that our router forwards to us, as it says, while it does.
    pub fn set_mapped(&mut self, now: Now, address: Option<SocketAddr>) {
        self.tick(now);
        if self.mapped != address {
            self.mapped = address;
            self.candidates_changed(now);
        }
    }

    /// The machine slept, was stopped, or is in another network that gave it the same addresses: relays are asked anew how
    /// they see us, because a NAT on the way has forgotten or changed what it had for us.
    pub fn network_changed(&mut self, now: Now) {
        self.tick(now);
        self.relays.local_address_changed(now.mono);
        self.settle_relays(now);
    }

    /// Instances of this agent that have ended for certain, newest first: peers are told, so that nothing waits for them.
    /// Whoever calls must know, for instance by a lock that their process held.
    pub fn set_predecessors(&mut self, mut ended: Vec<InstanceId>) {
        ended.retain(|instance| *instance != self.instance);
        ended.truncate(MAX_PREDECESSORS);
        self.predecessors = ended;
    }

    /// Where a relay's host name leads, as the driver looked it up after [`Event::Resolve`]; nowhere, if it could not.
    pub fn relay_resolved(&mut self, now: Now, relay: &peerage_model::relay::RelayInfo, addresses: &[SocketAddr]) {
        self.tick(now);
        self.relays.looked_up(relay, addresses, now.mono);
        self.settle_relays(now);
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether [`Self::poll_event`] has something.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Ends every session and tells the peers, then the relays. Drain [`Self::poll_transmit`] once more afterwards.
    pub fn shutdown(&mut self, now: Now) {
        for key in self.up_sessions() {
            self.close(key, event::CloseCode::Shutdown, DownReason::Shutdown, now.mono);
        }
        self.relays.leave();
    }

    /// Our id.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }

    /// This run of it.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    fn knocks(&self) -> MutexGuard<'_, KnockTable<PairKey>> {
        self.knock_table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to `millis` milliseconds, drawn.
    fn random_below(&mut self, millis: u64) -> Duration {
        Duration::from_millis(u64::from_be_bytes(self.random.bytes()) % millis.max(1))
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("agent", &self.agent)
            .field("pairs", &self.pairs.len())
            .field("sessions", &self.sessions.len())
            .field("streams", &self.streams.len())
            .field("owed", &self.sessions.values().map(|session| session.owed.len()).sum::<usize>())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig").field("agent", &self.agent).finish_non_exhaustive()
    }
}
