//! The daemon: state, tunnel, edge, control socket and health, put together.
//!
//! [`start`] builds everything in the order in which the parts need each other and returns when the socket answers;
//! [`Daemon::run`] then hears events until it is told to stop, and [`Daemon`] drains on its way out. `peerage up` and
//! `peerage-agent` are both this.

pub(crate) mod addresses;
pub(crate) mod agent;
mod doctor;
pub mod driver;
pub mod edge;
pub(crate) mod footprint;
pub(crate) mod handler;
pub mod link;
mod mailbox;
mod measure;
mod outcomes;
mod report;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::linking::OPERATOR;
use peerage_model::relay::RelayInfo;
use peerage_model::{AgentId, AgentName, AgreementSecret, InstanceId};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use self::agent::{Agent, Parts, issue};
use self::edge::{Edge, EdgeConfig};
use self::footprint::Footprint;
use self::link::{LinkConfig, LinkEvent, Starter};
use crate::control::view::Event;
use crate::control::{Code, ControlSocket, Failure};
use crate::driver::{ProxySettings, TunnelMemory};
use crate::health::{HealthServer, Metrics, Pending, Readiness};
use crate::listen::Avoid;
use crate::state::document::Service;
use crate::state::{Place, Store, UpdateError, random, time};
use crate::{portmap, trust};

/// How often endings are looked for. They are announced to the second elsewhere (the engine itself ends what expires);
/// this is for the files.
pub(crate) const SWEEP: Duration = Duration::from_secs(1);
/// How long peers get to hear that we leave.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);

/// What an agent without one says when it starts; `status` and `doctor` say it with their relays.
pub const NO_RELAY: &str =
    "no relay is configured, so peers cannot find this agent: peerage down, then peerage up --relay KEY@HOST:PORT";

/// What a person said when starting; what is not said stays as the state has it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What this agent is called.
    pub hostname: Option<AgentName>,
    /// Its relays; none said means those it had.
    pub relays: Vec<RelayInfo>,
    /// Whether strangers may ask it for trust by its name alone; as it was unless said.
    pub public: Option<bool>,
    /// What it offers, besides what it offered.
    pub expose: Vec<Service>,
    /// Where it is reachable, as its owner says.
    pub endpoints: Vec<SocketAddr>,
    /// Ports that programs here need on all addresses; those of before unless said.
    pub avoid: Vec<Avoid>,
    /// Where it sends from; any address and port unless said.
    pub bind: Vec<SocketAddr>,
    /// Whether the router is asked for a port.
    pub port_mapping: portmap::Mode,
    /// The HTTP proxy, if any, through which TCP ports of relays are reached where UDP is blocked.
    pub relay_proxy: ProxySettings,
    /// What streams may hold.
    pub memory: TunnelMemory,
    /// Where the proxy listens; nowhere unless said.
    pub proxy: Option<SocketAddr>,
    /// Whether programs here find peers by name and address.
    pub names: bool,
    /// Where `/healthz`, `/readyz` and `/metrics` answer; nowhere unless said.
    pub health: Option<SocketAddr>,
}

/// A running daemon.
pub struct Daemon {
    agent: Arc<Agent>,
    link_events: mpsc::Receiver<LinkEvent>,
    waiting: Option<Pending>,
    readiness: Readiness,
    /// Where health answers.
    pub health: Option<SocketAddr>,
    serving: JoinSet<()>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("agent", &self.agent.us).finish_non_exhaustive()
    }
}

/// Tells a daemon to stop, from a signal handler or a test.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    pub(crate) fn new(stop: watch::Sender<bool>) -> Self {
        Self(stop)
    }

    /// The daemon begins to drain.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// Starts a daemon on the state at `place`, with the tunnel that `starter` makes.
///
/// # Errors
/// [`Failure`], before anything has been promised to anybody.
pub async fn start(place: Place, options: Options, starter: Starter) -> Result<Daemon, Failure> {
    let now = time::now();
    let mut store = Store::open(place.take()?, now)?;
    let us = settle(&mut store, &options)?;
    let instance_key = AgreementSecret::from_bytes(*random::<32>());
    let (credential, passport_until) = issue(&store, &us, &instance_key, now);
    let predecessors = store.begin_run(InstanceId::of_key(&instance_key.public()))?;
    let snapshot = trust::compile(&store.authorities(), &us, store.document(), store.invites(), now).snapshot;
    let socket = ControlSocket::bind(&store.place().socket()).map_err(|error| no_socket(store.place(), &error))?;
    let (link, link_events, incoming) = starter(LinkConfig {
        agent: us.clone(),
        instance: instance_key.clone(),
        credential,
        bind: options.bind,
        fixed_endpoints: options.endpoints,
        port_mapping: options.port_mapping,
        relay_proxy: options.relay_proxy,
        memory: options.memory,
        snapshot,
        public: store.document().public,
        predecessors,
    })
    .map_err(|error| no_tunnel(&error))?;
    let edge_config = EdgeConfig {
        proxy: options.proxy,
        names: options.names,
        kept: Some(store.place().file(addresses::FILE)),
        ..EdgeConfig::default()
    };
    let edge = Edge::start(edge_config, Arc::clone(&link) as Arc<dyn crate::tunnel::Dial>, incoming).await;
    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    let mut serving = JoinSet::new();
    let health = match options.health {
        Some(address) => Some(serve_health(address, &metrics, &readiness, &edge, &mut serving).await?),
        None => None,
    };
    let waiting = (!store.document().relays.is_empty()).then(|| readiness.wait_for("the first relay"));
    let agent = Agent::new(Parts { us, instance_key, passport_until, store, link, edge, metrics }, now);
    agent.edge.answer();
    serving.spawn(socket.serve(Arc::clone(&agent)));
    Ok(Daemon { agent, link_events, waiting, readiness, health, serving })
}

/// Answers about this agent's health at `address`, or at the port that it was given instead of 0.
pub(crate) async fn serve_health(
    address: SocketAddr,
    metrics: &Metrics,
    readiness: &Readiness,
    edge: &Edge,
    serving: &mut JoinSet<()>,
) -> Result<SocketAddr, Failure> {
    let bound = async {
        let registry = metrics.registry(Arc::clone(&edge.stats));
        let server = HealthServer::bind(address, readiness.clone(), registry).await?;
        let local = server.local_addr()?;
        serving.spawn(server.run());
        io::Result::Ok(local)
    };
    bound.await.map_err(|error| address_in_use("health", address, &error))
}

/// Takes over what was said at the start, and finds out who we are.
fn settle(store: &mut Store, options: &Options) -> Result<AgentId, Failure> {
    let known = store.document().hostname.clone();
    let wanted = match (&options.hostname, &known) {
        (Some(wanted), Some(known)) if wanted != known && in_use(store) => {
            return Err(Failure::new(
                Code::HostnameFixed,
                format!("this agent is `{known}`, and others know it by that name"),
                format!("start it as `{known}`, or give `{wanted}` its own state with --state"),
            ));
        }
        (Some(wanted), _) => wanted.clone(),
        (None, Some(known)) => known.clone(),
        (None, None) => system_hostname()?,
    };
    if wanted.as_str() == OPERATOR {
        let message =
            format!("`{wanted}` is what a cluster's operator is called: others would take this agent for one");
        return Err(Failure::new(Code::BadRequest, message, "say another name: `peerage up --hostname NAME`"));
    }
    if wanted.as_str().contains('.') && known.as_ref() != Some(&wanted) {
        let message =
            format!("`{wanted}` has a dot, as only names of agents in clusters do: clusters would refuse this agent");
        let hint = format!("say a name without: `peerage up --hostname {}`", wanted.first_label());
        return Err(Failure::new(Code::BadRequest, message, hint));
    }
    let options = options.clone();
    store.change(|document| {
        document.hostname = Some(wanted.clone());
        if !options.relays.is_empty() {
            document.relays = options.relays;
        }
        document.public = options.public.unwrap_or(document.public);
        if !options.avoid.is_empty() {
            document.avoid = options.avoid;
        }
        options.expose.iter().try_for_each(|service| document.expose(service))?;
        document.sweep(time::now());
        Ok::<(), UpdateError>(())
    })?;
    Ok(store.authority().agent(wanted))
}

fn in_use(store: &Store) -> bool {
    let document = store.document();
    !document.trusts.is_empty() || !document.invites.is_empty() || !document.requests.is_empty()
}

fn system_hostname() -> Result<AgentName, Failure> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase();
    let first = name.split('.').next().unwrap_or_default();
    first.parse().map_err(|_| {
        Failure::new(
            Code::NoHostname,
            "this agent has no name yet, and the machine's own cannot be used as one",
            "say what it is called: `peerage up --hostname NAME`",
        )
    })
}

impl Daemon {
    /// Who it is.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.agent.us
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.agent.events.subscribe()
    }

    /// What stands in the way of something that was asked for.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let no_relay = self.agent.store().document().relays.is_empty().then(|| NO_RELAY.to_owned());
        no_relay.into_iter().chain(self.agent.problems().into_iter().map(|problem| problem.text)).collect()
    }

    /// Where its DNS and its proxy answer.
    #[must_use]
    pub fn edges(&self) -> (Option<SocketAddr>, Option<SocketAddr>) {
        (self.agent.edge.dns(), self.agent.edge.proxy)
    }

    /// For stopping it from elsewhere.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper::new(self.agent.stop.clone())
    }

    /// Runs until told to stop, then tells the peers and ends.
    ///
    /// # Errors
    /// [`Failure`] when it ended without having been told to.
    pub async fn run(mut self) -> Result<(), Failure> {
        let mut stop = self.agent.stop.subscribe();
        let mut sweep = ticks(SWEEP);
        let mut footprint = Footprint::new();
        let mut post = ticks(mailbox::AGAIN);
        let ended = loop {
            tokio::select! {
                () = told(&mut stop) => break Ok(()),
                event = self.link_events.recv() => match event {
                    Some(event) => self.hear(event).await,
                    // The tunnel is gone; without it we are nothing.
                    None => break Err(tunnel_is_gone()),
                },
                _ = sweep.tick() => {
                    self.agent.renew_passport_if_due(time::now());
                    self.agent.sweep().await;
                    footprint.look(self.agent.edge.stats.open.get(), Instant::now());
                }
                _ = post.tick() => self.agent.post_again(),
            }
        };
        self.drain().await;
        ended
    }

    async fn hear(&mut self, event: LinkEvent) {
        if matches!(event, LinkEvent::Relay { up: true, .. }) {
            self.waiting = None;
        }
        self.agent.hear(event).await;
    }

    async fn drain(mut self) {
        let _draining = self.readiness.wait_for("the end: this agent is stopping");
        self.agent.say(Event::Stopping);
        // A tunnel that hangs must not keep the process; peers then notice by silence.
        let _ = timeout(DRAIN, self.agent.link.shutdown()).await;
        self.serving.shutdown().await;
        tracing::info!("stopped");
    }
}

/// Resolves when the daemon shall stop.
pub(crate) async fn told(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could tell; then there is no reason to run either.
    let _ = stop.wait_for(|stop| *stop).await;
}

pub(crate) fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

pub(crate) fn no_socket(place: &Place, error: &io::Error) -> Failure {
    Failure::new(
        Code::StateUnusable,
        format!("cannot open the control socket `{}`: {error}", place.socket().display()),
        "choose a directory with a shorter path, on a local disk, with --state",
    )
}

pub(crate) fn no_tunnel(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => Failure::new(
            Code::AddressInUse,
            format!("cannot bind the tunnel's socket: {error}"),
            "choose another with --bind",
        ),
        _ => Failure::new(
            Code::Internal,
            format!("the tunnel cannot start: {error}"),
            "check that this process may open UDP sockets",
        ),
    }
}

fn tunnel_is_gone() -> Failure {
    Failure::new(
        Code::Internal,
        "the tunnel ended by itself",
        "start the agent again; its log says what happened before",
    )
}

fn address_in_use(what: &str, address: SocketAddr, error: &io::Error) -> Failure {
    Failure::new(
        Code::AddressInUse,
        format!("cannot listen on {address} for {what}: {error}"),
        "choose another address",
    )
}

#[cfg(test)]
mod tests;
