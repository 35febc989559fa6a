//! The agent in a cluster: who it is and whom it may talk to come from an operator (docs/spec/control-plane.md).
//!
//! `connect` makes frames out of an address, `session` decides what may come when, `follow` whom we may talk to after all
//! that replicas said, `memory` keeps it in the pod's memory volume, `stream` runs all this for as long as the process
//! lives. `node` puts it beside the tunnel, the names and the listeners, which are those of any other agent.
//!
//! Names begin first and need nothing else. The tunnel begins with the first passport, or with the one that an earlier
//! container left behind, whether or not an operator can be reached.

mod connect;
mod contacts;
mod follow;
mod handler;
mod hear;
mod memory;
mod node;
mod report;
mod session;
mod stream;
mod tunnel;
mod word;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::snapshot::Protocol;
use peerage_model::{AgentId, Fingerprint};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::connect::{InvalidOperator, Operator};
use self::memory::Memory;
use self::node::{Node, Parts};
use crate::control::ControlSocket;
use crate::control::Failure;
use crate::control::view::Event;
use crate::daemon::addresses;
pub use crate::daemon::edge::{Dns, InvalidDns};
use crate::daemon::edge::{Edge, EdgeConfig};
use crate::daemon::footprint::Footprint;
use crate::daemon::link::{LinkEvent, Starter};
use crate::daemon::{DRAIN, SWEEP, Stopper, no_socket, serve_health, ticks, told};
use crate::dns;
use crate::driver::{ProxySettings, TunnelMemory};
use crate::health::{Metrics, Readiness};
use crate::listen::Whose;
use crate::state::Place;

/// How long readiness waits for an operator: a pod must start without one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events of tunnels that are not heard yet.
const EVENTS: usize = 64;
/// Streams of peers that are not taken yet.
const INCOMING: usize = 64;

/// What an agent in a cluster is told when it starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where operators are.
    pub operators: Vec<Operator>,
    /// Whom they must speak for.
    pub authority: Fingerprint,
    /// The projected ServiceAccount token.
    pub token_file: PathBuf,
    /// Where the tunnel is bound; any address and port unless said.
    pub bind: Vec<SocketAddr>,
    /// Where we are reachable, as our owner says.
    pub endpoints: Vec<SocketAddr>,
    /// The HTTP proxy, if any, to TCP ports of relays.
    pub relay_proxy: ProxySettings,
    /// What streams may hold.
    pub memory: TunnelMemory,
    /// Where the HTTP and SOCKS proxy listens; nowhere unless said.
    pub proxy: Option<SocketAddr>,
    /// Whether programs find peers by name and address.
    pub names: bool,
    /// Who answers for names, and whom it asks about others.
    pub dns: Dns,
    /// What the process before this one has left of that.
    pub handed_on: Option<Arc<dns::HandedOn>>,
    /// Where `/healthz`, `/readyz` and `/metrics` answer; nowhere unless said.
    pub health: Option<SocketAddr>,
    /// Ports that the pod's containers declare.
    pub reserved: Vec<(Protocol, u16)>,
    /// Addresses of peers that the pod's hosts file has.
    pub addresses: Vec<(AgentId, Ipv4Addr)>,
}

/// Makes tunnels, one after the other.
pub type Starters = Box<dyn Fn() -> Starter + Send + Sync>;

/// A running agent.
pub struct Cluster {
    node: Arc<Node>,
    link_events: mpsc::Receiver<LinkEvent>,
    /// Where health answers.
    pub health: Option<SocketAddr>,
    readiness: Readiness,
    serving: JoinSet<()>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("agent", &self.agent()).finish_non_exhaustive()
    }
}

/// Starts with what the memory volume at `place` holds. Needs no operator.
///
/// # Errors
/// [`Failure`] when the volume, the control socket or an address cannot be had.
pub async fn start(place: Place, options: Options, starters: Starters) -> Result<Cluster, Failure> {
    let memory = Memory::take(place)?;
    let socket = ControlSocket::bind(&memory.place().socket()).map_err(|error| no_socket(memory.place(), &error))?;
    let (incoming, opened) = mpsc::channel(INCOMING);
    let (events, link_events) = mpsc::channel(EVENTS);
    let tunnel = Arc::new(tunnel::Tunnel::default());
    let edge_config = EdgeConfig {
        proxy: options.proxy,
        names: options.names,
        dns: options.dns.clone(),
        handed_on: options.handed_on.clone(),
        whose: Whose::Pod,
        addresses: options.addresses.clone(),
        kept: Some(memory.place().file(addresses::FILE)),
    };
    let edge = Edge::start(edge_config, Arc::clone(&tunnel) as Arc<dyn crate::tunnel::Dial>, opened).await;
    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    let mut serving = JoinSet::new();
    let health = match options.health {
        Some(address) => Some(serve_health(address, &metrics, &readiness, &edge, &mut serving).await?),
        None => None,
    };
    let node = Node::new(Parts { memory, options, tunnel, edge, metrics, starters, events, incoming });
    watch_readiness(&node, &readiness, &mut serving);
    node.begin();
    node.edge.answer();
    serving.spawn(socket.serve(Arc::clone(&node)));
    serving.spawn(stream::run(Arc::clone(&node)));
    Ok(Cluster { node, link_events, health, readiness, serving })
}

/// Ready is: DNS answers, and we know whom we may talk to or have waited for it long enough. Never "a relay is reachable":
/// a pod must not hang on that.
fn watch_readiness(node: &Arc<Node>, readiness: &Readiness, serving: &mut JoinSet<()>) {
    // The pod's resolv.conf names nobody else, and resolvers ask at port 53 only.
    let nobody_else = matches!(node.options.dns, Dns::Servers(_));
    let answers = move |place: &dns::Place| place.as_ref().is_ok_and(|at| !nobody_else || at.port() == 53);
    if let Some(mut place) = node.edge.watch_dns() {
        let dns = readiness.wait_for("DNS on 127.64.0.1");
        serving.spawn(async move {
            // An error means that the agent stops.
            let _ = place.wait_for(answers).await;
            drop(dns);
        });
    }
    let first = readiness.wait_for("the first word of an operator");
    let mut loaded = node.loaded.subscribe();
    serving.spawn(async move {
        // Passing time and hearing have the same effect; an error means that the agent stops.
        let _ = tokio::time::timeout(PATIENCE, loaded.wait_for(|loaded| *loaded)).await;
        drop(first);
    });
}

impl Cluster {
    /// Who it is, once an operator has said so.
    #[must_use]
    pub fn agent(&self) -> Option<AgentId> {
        self.node.us()
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.node.events.subscribe()
    }

    /// Where its DNS and its proxy answer.
    #[must_use]
    pub fn edges(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        (self.node.edge.dns(), self.node.edge.proxy)
    }

    /// For stopping it from elsewhere.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper::new(self.node.stop.clone())
    }

    /// Runs until told to stop, then tells the peers and ends.
    pub async fn run(mut self) {
        let mut stop = self.node.stop.subscribe();
        let mut sweep = ticks(SWEEP);
        let mut footprint = Footprint::new();
        loop {
            tokio::select! {
                () = told(&mut stop) => break,
                Some(event) = self.link_events.recv() => self.node.hear(event),
                _ = sweep.tick() => {
                    self.node.sweep();
                    footprint.look(self.node.edge.stats.open.get(), Instant::now());
                }
            }
        }
        let _draining = self.readiness.wait_for("the end: this agent is stopping");
        self.node.say(Event::Stopping);
        // Taken away first, so that a program that connects in the last moment is refused instead of left waiting.
        if let Some(link) = self.node.tunnel.replace(None) {
            // A tunnel that hangs must not keep the process; peers then notice by silence.
            let _ = tokio::time::timeout(DRAIN, link.shutdown()).await;
        }
        self.serving.shutdown().await;
        tracing::info!("stopped");
    }
}
