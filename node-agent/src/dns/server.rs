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
}

impl Config {
    /// 127.64.0.1:53; two seconds per upstream, so that two fit into the five that programs wait; 256 questions waiting.
    #[must_use]
    pub fn new(upstreams: Upstreams) -> Self {
        Self { address: DNS_ADDRESS, port: 53, upstreams, patience: Duration::from_secs(2), max_waiting: 256 }
    }
}

/// A DNS server that has its sockets.
#[derive(Debug)]
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: watch::Receiver<Arc<Directory>>,
    config: Config,
    local: SocketAddr,
    waiting: Arc<Semaphore>,
}

impl Server {
    /// Takes the port asked for, UDP and TCP, or a free one where that is taken or reserved to root; compare
    /// [`Server::local_addr`].
    ///
    /// # Errors
    /// When the address does not exist here, or no port can be had.
    pub async fn bind(config: Config, directory: watch::Receiver<Arc<Directory>>) -> io::Result<Self> {
        let (udp, tcp) = bind_both(config.address, config.port).await?;
        let local = udp.local_addr()?;
        let waiting = Arc::new(Semaphore::new(config.max_waiting));
        Ok(Self { udp, tcp, shared: Arc::new(Shared { directory, config, local, waiting }) })
    }

    /// Where it listens, UDP and TCP.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local
    }

    /// Serves until dropped.
    pub async fn run(self) {
        tokio::join!(serve_udp(Arc::new(self.udp), self.shared.clone()), serve_tcp(self.tcp, self.shared));
    }
}

async fn bind_both(address: Ipv4Addr, port: u16) -> io::Result<(UdpSocket, TcpListener)> {
    let mut wanted = port;
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..PORT_TRIES {
        let attempt = async {
            let udp = UdpSocket::bind((address, wanted)).await?;
            let tcp = TcpListener::bind(udp.local_addr()?).await?;
            io::Result::Ok((udp, tcp))
        };
        match attempt.await {
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

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    let mut buffer = vec![0; MAX_UDP_REQUEST];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                backoff.failed("receiving a DNS request", &error).await;
                continue;
            }
        };
        backoff.succeeded();
        let request = &buffer[..length];
        match shared.decide(request) {
            Decision::Drop => {}
            // A full send buffer drops the answer, as UDP does; the program asks again.
            Decision::Answer(answer) => drop(socket.try_send_to(&answer, client)),
            Decision::Forward(question) => {
                let Ok(permit) = shared.waiting.clone().try_acquire_owned() else {
                    drop(socket.try_send_to(&failure(&question, ResponseCode::ServFail), client));
                    continue;
                };
                let (socket, shared, request) = (socket.clone(), shared.clone(), request.to_vec());
                tokio::spawn(async move {
                    let answer = shared.forward(Transport::Udp, &request, &question).await;
                    drop(socket.send_to(&answer, client).await);
                    drop(permit);
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    let clients = Arc::new(Semaphore::new(MAX_TCP_CLIENTS));
    loop {
        let permit = clients.clone().acquire_owned().await.expect("this semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                backoff.succeeded();
                let shared = shared.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve_tcp_client(stream, &shared).await {
                        tracing::debug!(%error, "a DNS client over TCP ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => backoff.failed("accepting a DNS client", &error).await,
        }
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
