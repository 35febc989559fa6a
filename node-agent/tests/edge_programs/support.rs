//! Two agents' edges joined by a tunnel of memory: programs of `reporter` on one side, the service of `db` on the other.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use peerage_agent::address::{AddressBook, Directory, Listed};
use peerage_agent::forward::{Inbound, Limits, Outbound, Services, Stats};
use peerage_agent::listen::{self, Listening};
use peerage_agent::tunnel::{Dial, DialError, Duplex, Incoming, Opened, PacketFlow};
use peerage_model::snapshot::{Port, Protocol};
use peerage_model::stream::{StreamHeader, StreamKind, StreamStatus};
use peerage_model::{AgentId, Fingerprint};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{mpsc, watch};

/// What a pipe of the tunnel holds per direction, like a stream window.
pub const WINDOW: usize = 64 * 1024;

pub fn agent(name: &str) -> AgentId {
    AgentId { authority: Fingerprint([9; 32]), name: name.parse().expect("a valid name") }
}

pub fn listed(name: &str, ports: &[(Protocol, u16)]) -> Listed {
    let port = |(protocol, number): &(Protocol, u16)| Port {
        name: "p".parse().expect("a label"),
        number: *number,
        protocol: *protocol,
    };
    Listed::new(agent(name), agent(name).name.first_label(), ports.iter().map(port).collect())
}

/// Both edges. Each test gives its own `tag`, and so has loopback addresses of its own.
pub struct World {
    book: AddressBook,
    /// The peer's entry as programs here see it.
    pub db: Listed,
    /// The address of `db`.
    pub address: Ipv4Addr,
    /// The address from which `db`'s service sees us come.
    pub reporter: Ipv4Addr,
    pub directory: watch::Sender<Arc<Directory>>,
    /// Kept, because the services end with their sender.
    _services: watch::Sender<Arc<Services>>,
    pub listening: watch::Receiver<Arc<Listening>>,
    pub outbound: Outbound,
}

impl World {
    /// `ports` are known here, `services` are served there.
    pub async fn start(tag: &str, ports: &[(Protocol, u16)], services: Services) -> Self {
        Self::start_with(tag, ports, services, listen::Config::default(), Limits::default()).await
    }

    pub async fn start_with(
        tag: &str,
        ports: &[(Protocol, u16)],
        services: Services,
        config: listen::Config,
        limits: Limits,
    ) -> Self {
        let (db, reporter) = (listed(&format!("db-{tag}"), ports), listed(&format!("reporter-{tag}"), &[]));
        let mut book = AddressBook::new();
        let (address, reporter_address) = (book.address_of(&db.id), book.address_of(&reporter.id));
        let there = AddressBook::new().directory([reporter.clone()]);
        let (asked, incoming) = mpsc::channel(1024);
        let services = watch::Sender::new(Arc::new(services));
        let inbound = Inbound::new(services.subscribe(), fixed(there), limits, Arc::default());
        tokio::spawn(inbound.run(incoming));
        let dial = MemoryTunnel { caller: reporter.id, asked };
        let outbound = Outbound::new(Arc::new(dial), Arc::<Stats>::default());
        let directory = watch::Sender::new(Arc::new(book.directory([db.clone()])));
        let (report, listening) = watch::channel(Arc::default());
        tokio::spawn(listen::run(directory.subscribe(), outbound.clone(), config, report));
        let mut world =
            Self { book, db, address, reporter: reporter_address, directory, _services: services, listening, outbound };
        let expected = ports.len();
        world
            .wait_listening(|l| l.bound.len() + l.conflicts.iter().filter(|c| c.actual.is_none()).count() == expected)
            .await;
        world
    }

    /// Waits until the report says so.
    pub async fn wait_listening(&mut self, ready: impl FnMut(&Listening) -> bool) {
        let mut ready = ready;
        self.listening.wait_for(|listening| ready(listening)).await.expect("listeners run");
    }

    /// Trusts these instead.
    pub fn trust(&mut self, peers: impl IntoIterator<Item = Listed>) {
        self.directory.send_replace(Arc::new(self.book.directory(peers)));
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }
}

/// A receiver whose value does not change.
pub fn fixed<T>(value: T) -> watch::Receiver<Arc<T>> {
    watch::channel(Arc::new(value)).1
}

/// Hands each dial to the other edge at once.
struct MemoryTunnel {
    caller: AgentId,
    asked: mpsc::Sender<Incoming>,
}

impl Dial for MemoryTunnel {
    fn dial<'a>(
        &'a self,
        peer: &'a AgentId,
        header: StreamHeader,
    ) -> Pin<Box<dyn Future<Output = Result<Opened, DialError>> + Send + 'a>> {
        Box::pin(async move {
            let refusal: Refusal = Arc::default();
            let (ours, theirs) = match header.kind {
                StreamKind::Udp => flow_pair(),
                StreamKind::Tcp | StreamKind::Echo | StreamKind::Request | StreamKind::Discard => pipe_pair(&refusal),
            };
            let (told, to) = (refusal, peer.clone());
            let answer = move |status| {
                if status != StreamStatus::Open {
                    let error = DialError::Refused { peer: to, port: header.port, status };
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                theirs
            };
            let incoming = Incoming::new(self.caller.clone(), header, answer);
            drop(self.asked.send(incoming).await);
            Ok(ours)
        })
    }
}

type Refusal = Arc<Mutex<Option<DialError>>>;

/// A stream as the tunnel promises it: ends only by shutdown, else reads as a reset.
pub struct Pipe {
    inner: DuplexStream,
    /// Carries nothing, and ends with the other end.
    life: DuplexStream,
    finished: Arc<AtomicBool>,
    peer_finished: Arc<AtomicBool>,
    refusal: Refusal,
}

pub fn pipes(refusal: &Refusal) -> (Pipe, Pipe) {
    let ((a, b), (la, lb)) = (tokio::io::duplex(WINDOW), tokio::io::duplex(1));
    let (fa, fb) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let ours = Pipe { inner: a, life: la, finished: fa.clone(), peer_finished: fb.clone(), refusal: refusal.clone() };
    let theirs = Pipe { inner: b, life: lb, finished: fb, peer_finished: fa, refusal: Arc::default() };
    (ours, theirs)
}

fn pipe_pair(refusal: &Refusal) -> (Opened, Opened) {
    let (ours, theirs) = pipes(refusal);
    (Opened::Stream(Box::new(ours)), Opened::Stream(Box::new(theirs)))
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if matches!(polled, Poll::Ready(Ok(()))) && buf.filled().len() == before {
            if let Some(error) = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionRefused, error)));
            }
            if !self.peer_finished.load(Ordering::Acquire) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        polled
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished.store(true, Ordering::Release);
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl Duplex for Pipe {
    /// Memory has no session that could end; an end that is dropped unfinished is as good as one.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.poll_unwanted(cx));
        match self.peer_finished.load(Ordering::Acquire) {
            true => Poll::Pending,
            false => Poll::Ready(io::ErrorKind::ConnectionReset.into()),
        }
    }

    fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.life).poll_read(cx, &mut ReadBuf::new(&mut [0])).map(drop)
    }
}

struct Flow {
    out: mpsc::Sender<Bytes>,
    back: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
}

fn flow_pair() -> (Opened, Opened) {
    let ((a_out, b_in), (b_out, a_in)) = (mpsc::channel(64), mpsc::channel(64));
    let a = Flow { out: a_out, back: tokio::sync::Mutex::new(a_in) };
    let b = Flow { out: b_out, back: tokio::sync::Mutex::new(b_in) };
    (Opened::Flow(Box::new(a)), Opened::Flow(Box::new(b)))
}

impl PacketFlow for Flow {
    fn send(&self, packet: Bytes) -> io::Result<()> {
        match self.out.try_send(packet) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    fn recv(&self) -> Pin<Box<dyn Future<Output = Option<Bytes>> + Send + '_>> {
        Box::pin(async { self.back.lock().await.recv().await })
    }
}

/// Bytes that differ from one place to the next, and from one seed to the next.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

/// Runs curl; (exit status, what it printed).
pub async fn curl(args: &[&str]) -> (Option<i32>, String) {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let output = tokio::task::spawn_blocking(move || {
        std::process::Command::new("curl").args(["-sS", "--max-time", "20"]).args(args).output()
    });
    let output = output.await.expect("curl's thread ends").expect("curl is installed");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}
