//! Feeds the engine: sockets, clocks and randomness on one side, streams and events on the other.
//!
//! One task owns the sockets. It hands every batch of datagrams to the [`Node`], sends what the node wants sent, wakes
//! whoever waits for a stream, and sleeps until the node's next deadline. Streams call the node themselves, under its
//! lock, and nudge the task; so a byte takes no detour through a channel.

mod addresses;
mod event;
mod memory;
mod network;
mod relay_stream;
mod shared;
mod socket;
mod status;
mod stream;
mod task;
mod untold;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use peerage_engine::node::{Algorithm, AskError, Node, NodeConfig};
use peerage_model::control::TrustRequest;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::mailbox::{MailId, SEALED};
use peerage_model::stream::{StreamHeader, StreamStatus};
use peerage_model::{
    AgentId, AgentName, AgreementSecret, AuthorityRecord, InstanceId, RoutingId, Snapshot, Ticket, TrustId,
};
use tokio::sync::{mpsc, oneshot, watch};

pub use event::DriverEvent;
pub use memory::{NoAmount, TunnelMemory};
pub use relay_stream::ProxySettings;
pub use status::{DriverStatus, RelayState, SessionState};

use self::relay_stream::RelayStreams;
use self::shared::{Shared, now};
use self::socket::Sockets;
use self::task::Task;
use crate::portmap::{self, Mapping, PortMapper};
use crate::tunnel::{Dial, DialError, Incoming, Opened};

/// Streams that peers opened and nobody has taken yet; what is above is told [`peerage_model::stream::StreamStatus::Busy`].
const INCOMING_QUEUE: usize = 256;

/// Events on their way to whoever hears them; what does not fit waits, and is merged.
const EVENT_QUEUE: usize = 64;

/// What a driver is started with.
#[derive(Debug)]
pub struct DriverConfig {
    /// Who we are.
    pub agent: AgentId,
    /// This run's key.
    pub instance: AgreementSecret,
    /// What vouches for it.
    pub credential: Vec<u8>,
    /// Where to bind, one address for each family; empty means any port on every address.
    pub bind: Vec<SocketAddr>,
    /// Addresses that our owner says can be reached from outside.
    pub fixed_endpoints: Vec<SocketAddr>,
    /// Whether the router is asked for a port.
    pub port_mapping: portmap::Mode,
    /// Whom we trust, to begin with.
    pub snapshot: Snapshot,
    /// How TCP ports of relays are reached where UDP is blocked.
    pub proxy: ProxySettings,
    /// What streams may hold.
    pub memory: TunnelMemory,
    /// 32 bytes from the operating system, used for nothing else.
    pub seed: [u8; 32],
}

/// Why a trust request was not delivered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// It was not taken.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The driver has stopped.
    #[error("the agent is shutting down")]
    Stopped,
}

/// Starts the driver's task on the current runtime.
///
/// # Errors
/// When no socket can be bound, or the credential is not one.
pub fn start(
    config: DriverConfig,
) -> io::Result<(DriverHandle, mpsc::Receiver<DriverEvent>, mpsc::Receiver<Incoming>)> {
    let sockets = Sockets::bind(&config.bind)?;
    let streams = RelayStreams::new(config.proxy)?;
    let node = NodeConfig {
        agent: config.agent,
        instance: config.instance,
        credential: config.credential,
        fixed: config.fixed_endpoints,
        memory: config.memory.bytes(),
        congestion: Algorithm::default(),
        seed: config.seed,
    };
    let start = now();
    let mut node = Node::new(node, start).map_err(io::Error::other)?;
    match addresses::local(&sockets) {
        Ok(addresses) => node.set_local_addresses(start, addresses),
        // The task looks again.
        Err(error) => tracing::debug!(%error, "the host's addresses are not known yet"),
    }
    node.apply_snapshot(start, config.snapshot);
    let shared = Arc::new(Shared::new(node));
    let (events, event_receiver) = mpsc::channel(EVENT_QUEUE);
    let (incoming, incoming_receiver) = mpsc::channel(INCOMING_QUEUE);
    let (stop, stopping) = watch::channel(false);
    let mapper = match config.port_mapping {
        portmap::Mode::Auto => sockets.port_v4().map(|port| PortMapper::start(port, mapped(shared.clone()))),
        portmap::Mode::Off => None,
    };
    let mapping = mapper.as_ref().map(PortMapper::mapping);
    let task = Task::new(shared.clone(), sockets, streams, events, incoming, stopping, mapper);
    let done = tokio::spawn(task.run());
    let handle = DriverHandle { shared, stop, mapping, done: Arc::new(tokio::sync::Mutex::new(Some(done))) };
    Ok((handle, event_receiver, incoming_receiver))
}

/// Hands what the router forwards to us to the node.
fn mapped(shared: Arc<Shared>) -> impl Fn(Option<SocketAddr>) + Send + 'static {
    move |address| shared.with_node(|node| node.set_mapped(now(), address))
}

/// The running driver; clones are the same driver. It ends with the last of them, as [`Self::shutdown`] does.
#[derive(Clone, Debug)]
pub struct DriverHandle {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    mapping: Option<watch::Receiver<Mapping>>,
    done: Arc<tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl DriverHandle {
    /// Makes the allowlist be `snapshot`; see [`Node::apply_snapshot`].
    pub fn apply_snapshot(&self, snapshot: Snapshot) {
        self.shared.with_node(|node| node.apply_snapshot(now(), snapshot));
    }

    /// Instances of this agent that have ended for certain; see [`Node::set_predecessors`].
    pub fn set_predecessors(&self, ended: Vec<InstanceId>) {
        self.shared.with_node(|node| node.set_predecessors(ended));
    }

    /// Our passport was renewed.
    ///
    /// # Errors
    /// When the credential is too long to be one.
    pub fn renew(&self, credential: Vec<u8>) -> io::Result<()> {
        self.shared.with_node(|node| node.renew(now(), credential)).map_err(io::Error::other)
    }

    /// Asks the holder of a ticket for trust, and waits for the receipt.
    ///
    /// # Errors
    /// [`RequestError`]; nobody answering takes about 20 s.
    pub async fn request_trust(&self, ticket: &Ticket, request: TrustRequest) -> Result<(), RequestError> {
        let (sender, receiver) = oneshot::channel();
        self.shared.ask(ticket, request, sender)?;
        receiver.await.map_err(|_| RequestError::Stopped)?.map_err(RequestError::Ask)
    }

    /// Whether we have a mailbox at our relays; see [`Node::set_public`].
    pub fn set_public(&self, public: bool) {
        self.shared.with_node(|node| node.set_public(now(), public));
    }

    /// What these relays say whose agents have this name; within 6 s, and without those that did not answer.
    pub async fn look_up(&self, name: &AgentName, relays: &[RelayInfo]) -> Vec<(RelayInfo, Vec<AuthorityRecord>)> {
        let found = self.shared.errand(|inner, sender| {
            let errand = inner.node.look_up(now(), name, relays);
            inner.looking.insert(errand, sender);
        });
        found.await.unwrap_or_default()
    }

    /// Leaves a sealed request in a mailbox at these relays; gives those that say that they have it, within 6 s.
    pub async fn post(&self, to: RoutingId, sealed: &[u8; SEALED], relays: &[RelayInfo]) -> Vec<RelayInfo> {
        let posted = self.shared.errand(|inner, sender| {
            let errand = inner.node.post(now(), to, sealed, relays);
            inner.posting.insert(errand, sender);
        });
        posted.await.unwrap_or_default()
    }

    /// [`DriverEvent::Mail`] is dealt with.
    pub fn mail_done(&self, relay: &RelayInfo, id: MailId) {
        self.shared.with_node(|node| node.mail_done(now(), relay, id));
    }

    /// Answers [`DriverEvent::TrustRequested`] once the request is written down (`Open`) or was not (`Busy`).
    pub fn answer_request(&self, invite: TrustId, status: StreamStatus) {
        self.shared.with_node(|node| node.answer_request(invite, status));
    }

    /// How things are.
    #[must_use]
    pub fn status(&self) -> DriverStatus {
        let mapping = self.mapping.as_ref().map(|mapping| mapping.borrow().clone());
        status::describe(&self.shared.lock().node.status(), mapping.unwrap_or_default())
    }

    /// Ends all sessions, tells the peers, and waits until that is sent.
    pub async fn shutdown(&self) {
        // Without a receiver the task has ended already.
        let _ = self.stop.send(true);
        if let Some(done) = self.done.lock().await.take() {
            let _ = done.await;
        }
    }
}

impl Dial for DriverHandle {
    fn dial<'a>(
        &'a self,
        peer: &'a AgentId,
        header: StreamHeader,
    ) -> Pin<Box<dyn Future<Output = Result<Opened, DialError>> + Send + 'a>> {
        let opened = self.shared.with_node(|node| node.open(now(), peer, header));
        let result = opened
            .map(|key| stream::opened(&self.shared, key, peer.clone(), header))
            .map_err(|_| DialError::NotTrusted { peer: peer.clone() });
        Box::pin(std::future::ready(result))
    }
}

/// Trust requests that wait for their receipt.
type Asking = BTreeMap<peerage_engine::node::AskKey, oneshot::Sender<Result<(), AskError>>>;
