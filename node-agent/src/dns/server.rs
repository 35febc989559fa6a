//! The sockets of the DNS server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::handed_on::{HandedOn, Notes, Waiting};
use super::local::{Decision, decide, failure};
use super::question::Question;
use super::resolv::Upstreams;
use super::upstream::{self, Transport, frame};
use crate::address::{DNS_ADDRESS, Directory};
use crate::listen::Backoff;

/// Largest request over UDP; a longer one is cut and so malformed. Real ones stay below 512.
const MAX_UDP_REQUEST: usize = 4096;
/// A TCP client may be silent this long between requests (RFC 7766 section 6.2.3 asks for "a few seconds").
const TCP_IDLE: Duration = Duration::from_secs(10);
/// TCP clients at a time; more wait in the kernel's queue.
const MAX_TCP_CLIENTS: usize = 64;
/// How often a port is tried that must be free for UDP and TCP alike.
const PORT_TRIES: usize = 16;

/// How the server is set up.
#[derive(Debug)]
pub struct Config {
    /// The address to listen on.
    pub address: Ipv4Addr,
    /// The port to ask for; where it is not to be had, a free one is taken.
    pub port: u16,
    /// Whom to ask about names that are not ours.
    pub upstreams: Upstreams,
    /// How long one upstream server may take.
    pub patience: Duration,
    /// Questions that may wait for an upstream at a time; more are answered with SERVFAIL at once. Each holds a socket.
    pub max_waiting: usize,
    /// How often the port asked for is tried while another has to do.
    pub again: Duration,
    /// What the process before this one has left, for the port asked for.
    pub handed_on: Option<Arc<HandedOn>>,
}

impl Config {
    /// 127.64.0.1:53; two seconds per upstream, so that two fit into the five that programs wait; 256 questions waiting.
    #[must_use]
    pub fn new(upstreams: Upstreams) -> Self {
        Self {
            address: DNS_ADDRESS,
            port: 53,
            upstreams,
            patience: Duration::from_secs(2),
            max_waiting: 256,
            again: Duration::from_secs(30),
            handed_on: None,
        }
    }
}

/// Where a server answers, or why it does not.
pub type Place = Result<SocketAddr, String>;

/// A DNS server, with the sockets that it could have so far.
#[derive(Debug)]
pub struct Server {
    sockets: Option<Sockets>,
    place: watch::Sender<Place>,
    config: Arc<Config>,
    directory: watch::Receiver<Arc<Directory>>,
    waiting: Arc<Semaphore>,
}

#[derive(Debug)]
struct Sockets {
    udp: Arc<UdpSocket>,
    /// None while somebody else has the port, and questions come by UDP all the same.
    tcp: Option<TcpListener>,
    local: SocketAddr,
    /// For the process after this one.
    notes: Option<Arc<Notes>>,
    /// From the process before this one.
    left: Vec<Waiting>,
}

#[derive(Debug)]
struct Shared {
    directory: watch::Receiver<Arc<Directory>>,
    config: Arc<Config>,
    local: SocketAddr,
    waiting: Arc<Semaphore>,
    notes: Option<Arc<Notes>>,
}

impl Server {
    /// Takes the port asked for, UDP and TCP, or a free one where that is taken or reserved to root. [`Self::run`] moves to
    /// the one asked for as soon as it can be had: programs look at port 53 only.
    pub async fn bind(config: Config, directory: watch::Receiver<Arc<Directory>>) -> Self {
        let sockets = bind_both(&config).await;
        let place = watch::Sender::new(match &sockets {
            Ok(sockets) => Ok(sockets.local),
            Err(error) => Err(error.to_string()),
        });
        let waiting = Arc::new(Semaphore::new(config.max_waiting));
        Self { sockets: sockets.ok(), place, config: Arc::new(config), directory, waiting }
    }

    /// Where it listens, UDP and TCP; this may change.
    #[must_use]
    pub fn place(&self) -> watch::Receiver<Place> {
        self.place.subscribe()
    }

    /// Serves until dropped.
    pub async fn run(mut self) {
        loop {
            let there = self.sockets.as_ref().map(|sockets| sockets.local);
            let left = self.sockets.as_mut().map(|sockets| std::mem::take(&mut sockets.left)).unwrap_or_default();
            let wanted = asked_for(&self.config, there);
            let sockets = match &self.sockets {
                None => wanted.await,
                Some(sockets) => {
                    let shared = Arc::new(self.shared(sockets));
                    let udp = serve_udp(sockets.udp.clone(), shared.clone(), left);
                    let serving = async { tokio::join!(udp, serve_tcp(sockets.tcp.as_ref(), shared)) };
                    tokio::select! {
                        _ = serving => return,
                        sockets = wanted => sockets,
                    }
                }
            };
            tracing::info!(at = %sockets.local, "DNS answers here");
            drop(self.place.send_replace(Ok(sockets.local)));
            self.sockets = Some(sockets);
        }
    }

    fn shared(&self, sockets: &Sockets) -> Shared {
        let (directory, config, waiting) = (self.directory.clone(), self.config.clone(), self.waiting.clone());
        Shared { directory, config, local: sockets.local, waiting, notes: sockets.notes.clone() }
    }
}

/// Resolves once the port asked for can be had, where the server is not there already.
async fn asked_for(config: &Config, there: Option<SocketAddr>) -> Sockets {
    if there.is_some_and(|there| config.port == 0 || there.port() == config.port) {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(config.again).await;
        match bind_at(config, config.port).await {
            Ok(sockets) => return sockets,
            Err(error) => tracing::trace!(port = config.port, %error, "the port is still not to be had"),
        }
    }
}

async fn bind_both(config: &Config) -> io::Result<Sockets> {
    let mut wanted = config.port;
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        match bind_at(config, wanted).await {
            Ok(both) => return Ok(both),
            Err(error) if [io::ErrorKind::PermissionDenied, io::ErrorKind::AddrInUse].contains(&error.kind()) => {
                tracing::debug!(port = wanted, %error, "DNS takes another port");
                last = error;
            }
            Err(error) => return Err(error),
        }
        wanted = 0;
    }
    Err(last)
}

async fn bind_at(config: &Config, port: u16) -> io::Result<Sockets> {
    // TCP first: where that cannot be had, no question shall wait in a socket that was handed on. In one that is there already
    // they wait, and nobody else can read them.
    let wanted = SocketAddr::from((config.address, port));
    let (tcp, local) = match TcpListener::bind(wanted).await {
        Ok(tcp) => {
            let local = tcp.local_addr()?;
            (Some(tcp), local)
        }
        Err(error) if config.handed_on.as_ref().is_some_and(|handed_on| handed_on.is_bound_to(wanted)) => {
            tracing::warn!(at = %wanted, %error, "DNS is answered by UDP only until TCP can be had, too");
            (None, wanted)
        }
        Err(error) => return Err(error),
    };
    match &config.handed_on {
        Some(handed_on) if local.port() == config.port => {
            let udp = Arc::new(UdpSocket::from_std(handed_on.bound(local)?)?);
            let (notes, left) = handed_on.notes(config.max_waiting)?;
            Ok(Sockets { udp, tcp, local, notes: Some(notes), left })
        }
        _ => {
            let udp = Arc::new(UdpSocket::bind(local).await?);
            Ok(Sockets { udp, tcp, local, notes: None, left: Vec::new() })
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>, left: Vec<Waiting>) {
    for Waiting { client, question } in left {
        take(&socket, &shared, &question, client, None);
    }
    let mut backoff = Backoff::default();
    let mut buffer = vec![0; MAX_UDP_REQUEST];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => {
                backoff.succeeded();
                take(&socket, &shared, &buffer[..length], client, shared.notes.as_ref());
            }
            Err(error) => backoff.failed("receiving a DNS request", &error).await,
        }
    }
}

/// Answers a question by UDP, at once or when an upstream has. Until then it is in the notes.
fn take(socket: &Arc<UdpSocket>, shared: &Arc<Shared>, request: &[u8], client: SocketAddr, notes: Option<&Arc<Notes>>) {
    match shared.decide(request) {
        Decision::Drop => {}
        // A full send buffer drops the answer, as UDP does; the program asks again.
        Decision::Answer(answer) => drop(socket.try_send_to(&answer, client)),
        Decision::Forward(question) => {
            let Ok(permit) = shared.waiting.clone().try_acquire_owned() else {
                drop(socket.try_send_to(&failure(&question, ResponseCode::ServFail), client));
                return;
            };
            let noted = notes.and_then(|notes| notes.note(client, request));
            let (socket, shared, request) = (socket.clone(), shared.clone(), request.to_vec());
            tokio::spawn(async move {
                let answer = shared.forward(Transport::Udp, &request, &question).await;
                drop(socket.send_to(&answer, client).await);
                drop((permit, noted));
            });
        }
    }
}

async fn serve_tcp(listener: Option<&TcpListener>, shared: Arc<Shared>) {
    match listener {
        Some(listener) => accept(listener, shared).await,
        None => accept(&tcp_once_free(&shared).await, shared).await,
    }
}

async fn tcp_once_free(shared: &Shared) -> TcpListener {
    loop {
        tokio::time::sleep(shared.config.again).await;
        match TcpListener::bind(shared.local).await {
            Ok(listener) => return listener,
            Err(error) => tracing::trace!(at = %shared.local, %error, "TCP is still not to be had"),
        }
    }
}

async fn accept(listener: &TcpListener, shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    let clients = Arc::new(Semaphore::new(MAX_TCP_CLIENTS));
    loop {
        let permit = clients.clone().acquire_owned().await.expect("this semaphore is never closed");
        let stream = backoff.accept("accepting a DNS client", listener).await;
        let shared = shared.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_tcp_client(stream, &shared).await {
                tracing::debug!(%error, "a DNS client over TCP ended");
            }
            drop(permit);
        });
    }
}

/// One request after the other until the client is silent, leaves, or sends something that cannot be answered.
async fn serve_tcp_client(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let request = timeout(TCP_IDLE, async {
            let length = stream.read_u16().await?;
            let mut request = Vec::new();
            // Grows with what arrives, so a client that only announces 64 KiB does not get them.
            (&mut stream).take(u64::from(length)).read_to_end(&mut request).await?;
            if request.len() < usize::from(length) {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            Ok(request)
        })
        .await??;
        let answer = match shared.decide(&request) {
            Decision::Drop => return Ok(()),
            Decision::Answer(answer) => answer,
            Decision::Forward(question) => match shared.waiting.try_acquire() {
                Ok(_permit) => shared.forward(Transport::Tcp, &request, &question).await,
                Err(_) => failure(&question, ResponseCode::ServFail),
            },
        };
        timeout(TCP_IDLE, stream.write_all(&frame(&answer)?)).await??;
    }
}

impl Shared {
    fn decide(&self, request: &[u8]) -> Decision {
        let directory = self.directory.borrow().clone();
        decide(&directory, request)
    }

    async fn forward(&self, transport: Transport, request: &[u8], question: &Question) -> Vec<u8> {
        let servers = self.config.upstreams.current(self.local);
        let answer = upstream::ask(&servers, transport, request, question, self.config.patience).await;
        answer.unwrap_or_else(|| failure(question, ResponseCode::ServFail))
    }
}
