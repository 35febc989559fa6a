//! From options to a running relay, and to its orderly end.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peerage_model::relay::{DEFAULT_PORT, RelayInfo};
use peerage_model::{AgreementKey, AgreementSecret};
use peerage_relay_proto::{Config, Counters, Occupancy, Relay};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::discovery::{self, Discovery};
use crate::http::{self, Pages};
use crate::keyfile::{self, KeyFile, KeyFileError};
use crate::options::{Options, StunAddress};
use crate::provers::Provers;
use crate::socket::{self, BatchSocket};
use crate::tls::{self, Tls};
use crate::worker::{self, Shared};
use crate::{Advertise, EndpointError, metrics};

/// How often the relay is asked whether something has ended; it sweeps every 10 s.
const TICK: Duration = Duration::from_secs(1);

/// How often a draining relay looks whether anybody is left.
const LOOK: Duration = Duration::from_millis(50);

/// Why a relay does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No key.
    #[error("the relay has no key")]
    Key(#[source] KeyFileError),
    /// The UDP port cannot be had.
    #[error("cannot listen for UDP on {address}; is another relay running there?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The TCP port for TLS cannot be had.
    #[error("cannot listen for TLS on TCP {address}; give another --tls-listen, or --no-tls to serve UDP only")]
    ListenTls {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No TLS endpoint.
    #[error("cannot serve TLS")]
    Tls(#[source] EndpointError),
    /// The address for metrics cannot be had.
    #[error("cannot serve metrics on {address}")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The second address for STUN cannot be used.
    #[error(
        "cannot answer STUN from {address} beside {first}; give --listen one address, or that address before a comma, and another of this machine's"
    )]
    Stun {
        /// The second.
        address: SocketAddr,
        /// Where the relay is.
        first: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// There are no threads to be had.
    #[error("cannot start the threads that look at BINDs; does the service allow threads (TasksMax=, pids limit)?")]
    Threads(#[source] io::Error),
    /// The sockets failed while running.
    #[error("the relay's socket failed")]
    Socket(#[source] io::Error),
}

/// Runs a relay until `shutdown`, after handing `announce` the `KEY@HOST:PORT` that agents are told.
///
/// # Errors
/// [`RunError`] when it cannot start, or its socket fails.
pub async fn run(
    options: Options,
    announce: impl FnOnce(&RelayInfo),
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    let bound = Bound::new(&options).await?;
    announce(bound.info());
    bound.serve(shutdown).await
}

/// A relay that has its key and its sockets, and has not answered anybody yet.
#[derive(Debug)]
pub struct Bound {
    sockets: Vec<BatchSocket>,
    address: SocketAddr,
    info: RelayInfo,
    shared: Arc<Shared>,
    tls: Option<TlsPort>,
    metrics: Option<TcpListener>,
    grace: Duration,
    /// Our key is used by nobody else until we have ended.
    _key_lock: File,
}

/// The TCP port, before anybody is answered there.
struct TlsPort {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    key: AgreementSecret,
    streams: u32,
}

impl fmt::Debug for TlsPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsPort({})", self.address)
    }
}

impl Bound {
    /// Opens key file and sockets. Within a runtime.
    ///
    /// # Errors
    /// [`RunError`], all but `Socket` and `Threads`.
    pub async fn new(options: &Options) -> Result<Self, RunError> {
        let path = options.key_file.clone().map_or_else(keyfile::default_path, Ok).map_err(RunError::Key)?;
        let KeyFile { key, lock } = keyfile::open(&path).map_err(RunError::Key)?;
        let seed = keyfile::random().map_err(RunError::Key)?;
        let listen = |cause| RunError::Listen { address: options.listen, cause };
        let beside_others = options.stun_address.is_some() && options.listen.ip().is_unspecified();
        let sockets = socket::open(options.listen, options.workers, beside_others).map_err(listen)?;
        let address = sockets[0].local_addr().map_err(listen)?;
        let sockets: io::Result<Vec<_>> = sockets.into_iter().map(BatchSocket::new).collect();
        let metrics = match options.metrics {
            Some(address) => Some(open_metrics(address).await?),
            None => None,
        };
        let tls = match options.no_tls {
            true => None,
            false => Some(TlsPort::open(options, address, &key)?),
        };
        let discovery = match options.stun_address {
            Some(second) => Some(Arc::new(open_discovery(address, second)?)),
            None => None,
        };
        let info = info(key.public(), options.advertise.as_ref(), address, tls.as_ref().map(|tls| tls.address.port()));
        let config = Config { key, access: options.access(), limits: options.limits(), seed };
        let corners = discovery.as_deref().map(Discovery::corners);
        let relay = Relay::new(config, Instant::now()).with_corners(corners);
        Ok(Self {
            sockets: sockets.map_err(listen)?,
            address,
            info,
            shared: Arc::new(Shared::new(relay, discovery)),
            tls,
            metrics,
            grace: Duration::from_secs(u64::from(options.grace)),
            _key_lock: lock,
        })
    }

    /// The UDP address listened on; with the port the kernel chose, if it was asked to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The TCP address for TLS, if served.
    #[must_use]
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls.as_ref().map(|tls| tls.address)
    }

    /// The address of `/metrics`, if served.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// What agents are told: key, host and port.
    #[must_use]
    pub fn info(&self) -> &RelayInfo {
        &self.info
    }

    /// Reads the relay's counters, also while it runs.
    pub fn counters(&self) -> impl Fn() -> (Counters, Occupancy) + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            let relay = shared.relay();
            (relay.counters(), relay.occupancy())
        }
    }

    /// Relays until `shutdown`; then takes no newcomers, tells every binding, forwards for the grace period, and ends.
    ///
    /// # Errors
    /// [`RunError::Socket`], [`RunError::Threads`].
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
        let pages =
            Arc::new(Pages { registry: metrics::registry(Arc::clone(&self.shared)), ready: AtomicBool::new(true) });
        let mut tasks = JoinSet::new();
        if let Some(listener) = self.metrics {
            let pages = Arc::clone(&pages);
            tasks.spawn(async move {
                http::serve(listener, pages).await;
                Ok(())
            });
        }
        let sockets: Vec<_> = self.sockets.into_iter().map(Arc::new).collect();
        for socket in &sockets {
            let (socket, shared) = (Arc::clone(socket), Arc::clone(&self.shared));
            tasks.spawn(async move { worker::serve(&socket, &shared).await });
        }
        let _provers = Provers::start(&sockets, &self.shared).map_err(RunError::Threads)?;
        if let Some(TlsPort { listener, acceptor, key, streams, .. }) = self.tls {
            let tls = Tls::new(acceptor, key, streams, Arc::clone(&self.shared), sockets.clone());
            tasks.spawn(Arc::new(tls).serve(listener));
        }
        if let Some(discovery) = &self.shared.discovery {
            for number in 0..discovery::PLACES {
                let (main, shared) = (Arc::clone(&sockets[0]), Arc::clone(&self.shared));
                tasks.spawn(Arc::clone(discovery).serve(number, main, shared));
            }
        }
        let shared = Arc::clone(&self.shared);
        tasks.spawn(async move { sweep(&shared).await });
        tracing::info!(target: "events::relay_started", workers = sockets.len(), "relay started");

        let ending = async {
            shutdown.await;
            pages.ready.store(false, Ordering::Relaxed);
            drain(&sockets[0], &self.shared, self.grace).await;
        };
        tokio::select! {
            () = ending => Ok(()),
            ended = tasks.join_next() => Err(RunError::Socket(cause_of(ended))),
        }
    }
}

/// Tells every binding that the relay goes away, and forwards until all of them have left, for the grace period at most.
async fn drain(socket: &BatchSocket, shared: &Shared, grace: Duration) {
    tracing::info!(target: "events::relay_draining", ?grace, "relay draining");
    worker::announce_drain(socket, shared, grace).await;
    // Visitors reach bound agents only, so with the last of those everything to forward is gone.
    let everybody_left = async {
        let mut looks = tokio::time::interval(LOOK);
        while shared.relay().occupancy().bound > 0 {
            looks.tick().await;
        }
    };
    // Whoever is still here after the grace period had its warning.
    let _ = tokio::time::timeout(grace, everybody_left).await;
}

fn cause_of(ended: Option<Result<io::Result<()>, tokio::task::JoinError>>) -> io::Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(panicked)) => io::Error::other(panicked),
        Some(Ok(Ok(()))) | None => io::Error::other("a task of the relay ended"),
    }
}

async fn sweep(shared: &Shared) -> io::Result<()> {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        shared.relay().handle_timeout(Instant::now(), worker::wall_time());
    }
}

/// The second port is the one after the first, as RFC 5780's 3479 is, unless it is said or the kernel chose the first.
fn open_discovery(listened: SocketAddr, second: StunAddress) -> Result<Discovery, RunError> {
    let first = SocketAddr::new(second.first.unwrap_or(listened.ip()), listened.port());
    let port = second.port.unwrap_or_else(|| if first.port() == DEFAULT_PORT { DEFAULT_PORT + 1 } else { 0 });
    let failed = |cause| RunError::Stun { address: SocketAddr::new(second.ip, port), first, cause };
    // Behind "every address" nobody knows which of them agents ask.
    let elsewhere = !listened.ip().is_unspecified() && first.ip() != listened.ip();
    if elsewhere || first.ip().is_unspecified() || first.ip() == second.ip || first.is_ipv4() != second.ip.is_ipv4() {
        return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    Discovery::open(first, second.ip, port).map_err(failed)
}

async fn open_metrics(address: SocketAddr) -> Result<TcpListener, RunError> {
    let opened = TcpListener::bind(address).await;
    opened.map_err(|cause| RunError::Metrics { address, cause })
}

impl TlsPort {
    fn open(options: &Options, udp: SocketAddr, key: &AgreementSecret) -> Result<Self, RunError> {
        let address = options.tls_listen.unwrap_or(udp);
        let opened = tls::listen(address).or_else(|error| {
            // Where the kernel chose the UDP port, its TCP twin may be somebody else's; then it chooses again.
            let free_choice = options.tls_listen.is_none() && options.listen.port() == 0;
            match free_choice && error.kind() == io::ErrorKind::AddrInUse {
                true => tls::listen(SocketAddr::new(udp.ip(), 0)),
                false => Err(error),
            }
        });
        let listening = opened.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = listening.map_err(|cause| RunError::ListenTls { address, cause })?;
        let acceptor = tls::acceptor().map_err(RunError::Tls)?;
        allow_files(u64::from(options.tls_streams) + OTHER_FILES);
        Ok(Self { listener, address, acceptor, key: key.clone(), streams: options.tls_streams })
    }
}

/// Files beside TLS streams: sockets, metrics, logs.
const OTHER_FILES: u64 = 256;

/// A stream takes a file descriptor, and many shells and services give 1024. As far as the hard limit lets us.
fn allow_files(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let current = Some(limit.maximum.map_or(wanted, |most| most.min(wanted)));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current, ..limit }) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// What agents are told. Whoever advertises a UDP port of another number (behind a load balancer, say) is believed to
/// give TCP the same number, unless TLS listens on a port of its own.
fn info(key: AgreementKey, advertise: Option<&Advertise>, udp: SocketAddr, tls: Option<u16>) -> RelayInfo {
    let port = advertise.and_then(|place| place.port).unwrap_or(udp.port());
    let listened = tls.filter(|tls| *tls != udp.port());
    let tls = advertise.and_then(|place| place.tls).or(listened).filter(|tls| *tls != port);
    let host = match advertise {
        Some(place) => place.host.clone(),
        None => own_ip(udp).to_string().parse().expect("an address is a host"),
    };
    RelayInfo { key, host, port, tls }
}

/// The address listened on, or, where that is every address, the one this machine would use to reach the Internet.
/// Connecting a UDP socket sends nothing; 203.0.113.1 is documentation's (RFC 5737).
fn own_ip(address: SocketAddr) -> IpAddr {
    if !address.ip().is_unspecified() {
        return address.ip();
    }
    let routed = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("203.0.113.1:9")?;
        socket.local_addr()
    });
    routed.map_or(IpAddr::from([127, 0, 0, 1]), |local| local.ip())
}
