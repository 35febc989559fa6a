//! From peers to local services.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::AgentId;
use peerage_model::snapshot::Protocol;
use peerage_model::stream::{StreamKind, StreamStatus};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::buffer::Buffer;
use super::copy::{Moved, reset, splice};
use super::services::Services;
use super::stats::Stats;
use super::udp::serve_flow;
use crate::address::Directory;
use crate::tunnel::{Incoming, Opened, TunnelStream};

/// How much peers may have open here.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Streams and flows of one peer.
    pub per_peer: usize,
    /// Streams and flows of all peers together.
    pub total: usize,
    /// How long a service may take to accept a connection. Local ones take microseconds, or have a full queue.
    pub connect: Duration,
}

impl Default for Limits {
    /// 256 per peer, 1024 in all, 5 s to connect. Each needs a file: where there are few, the daemon gives less.
    fn default() -> Self {
        Self { per_peer: 256, total: 1024, connect: Duration::from_secs(5) }
    }
}

/// Serves what peers open. The policy has already allowed it.
#[derive(Debug)]
pub struct Inbound {
    services: watch::Receiver<Arc<Services>>,
    directory: watch::Receiver<Arc<Directory>>,
    limits: Limits,
    total: Arc<Semaphore>,
    per_peer: BTreeMap<AgentId, Arc<Semaphore>>,
    stats: Arc<Stats>,
}

impl Inbound {
    /// Serves `services`; `directory` says from which address each peer is seen to come.
    #[must_use]
    pub fn new(
        services: watch::Receiver<Arc<Services>>,
        directory: watch::Receiver<Arc<Directory>>,
        limits: Limits,
        stats: Arc<Stats>,
    ) -> Self {
        let total = Arc::new(Semaphore::new(limits.total));
        Self { services, directory, limits, total, per_peer: BTreeMap::new(), stats }
    }

    /// Serves until the tunnel hands out no more.
    pub async fn run(mut self, mut incoming: mpsc::Receiver<Incoming>) {
        while let Some(asked) = incoming.recv().await {
            self.handle(asked);
        }
    }

    /// Starts serving one stream or flow, in a task of its own.
    pub fn handle(&mut self, asked: Incoming) {
        let Some(permits) = self.admit(&asked.peer) else {
            return self.refuse(asked, StreamStatus::Busy);
        };
        match asked.header.kind {
            StreamKind::Tcp | StreamKind::Udp => self.serve_port(asked, permits),
            StreamKind::Echo => self.serve_builtin(asked, permits, echo),
            StreamKind::Discard => self.serve_builtin(asked, permits, discard),
            StreamKind::Request => self.refuse(asked, StreamStatus::Unsupported),
        }
    }

    fn serve_port(&self, asked: Incoming, permits: Permits) {
        let protocol = if asked.header.kind == StreamKind::Udp { Protocol::Udp } else { Protocol::Tcp };
        // A peer that the directory does not know (any more) has no address to come from, so nothing here would know
        // whom it talks to.
        let Some(source) = self.directory.borrow().get(&asked.peer).map(|entry| entry.address) else {
            return self.refuse(asked, StreamStatus::Denied);
        };
        let Some(target) = self.services.borrow().target(protocol, asked.header.port) else {
            return self.refuse(asked, StreamStatus::Refused);
        };
        let (stats, patience) = (self.stats.clone(), self.limits.connect);
        tokio::spawn(async move {
            match protocol {
                Protocol::Tcp => serve_tcp(asked, source, target, patience, &stats).await,
                Protocol::Udp => serve_udp(asked, source, target, &stats).await,
            }
            drop(permits);
        });
    }

    fn serve_builtin<F>(&self, asked: Incoming, permits: Permits, serve: fn(TunnelStream) -> F)
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        self.stats.inbound.add(1);
        let stats = self.stats.clone();
        tokio::spawn(async move {
            let _open = stats.open.hold();
            if let Opened::Stream(stream) = asked.accept() {
                drop(serve(stream).await);
            }
            drop(permits);
        });
    }

    fn refuse(&self, asked: Incoming, status: StreamStatus) {
        refuse(asked, status, &self.stats);
    }

    /// Room for one more of this peer's, if there is any.
    fn admit(&mut self, peer: &AgentId) -> Option<Permits> {
        let total = self.total.clone().try_acquire_owned().ok()?;
        let full = self.limits.per_peer;
        if !self.per_peer.contains_key(peer) {
            self.per_peer.retain(|_, room| room.available_permits() < full);
        }
        let room = self.per_peer.entry(peer.clone()).or_insert_with(|| Arc::new(Semaphore::new(full)));
        let own = room.clone().try_acquire_owned().ok()?;
        Some(Permits { _own: own, _total: total })
    }
}

/// Held as long as the stream lives.
struct Permits {
    _own: OwnedSemaphorePermit,
    _total: OwnedSemaphorePermit,
}

fn refuse(asked: Incoming, status: StreamStatus, stats: &Stats) {
    stats.refused.add(1);
    tracing::debug!(peer = %asked.peer, port = asked.header.port, ?status, "refused a peer's stream");
    asked.refuse(status);
}

async fn serve_tcp(asked: Incoming, source: Ipv4Addr, target: SocketAddr, patience: Duration, stats: &Stats) {
    let local = match timeout(patience, connect(source, target)).await {
        Ok(Ok(local)) => local,
        Ok(Err(error)) => return refuse(asked, status_of(&error), stats),
        Err(_) => return refuse(asked, StreamStatus::Unreachable, stats),
    };
    stats.inbound.add(1);
    let _open = stats.open.hold();
    let (peer, port) = (asked.peer.clone(), asked.header.port);
    let Opened::Stream(tunnel) = asked.accept() else {
        return reset(local);
    };
    let mut moved = Moved::default();
    if let Err(error) = splice(local, tunnel, &mut moved).await {
        tracing::debug!(%peer, port, %error, "a peer's stream ended early");
    }
    stats.bytes_sent.add(moved.sent);
    stats.bytes_received.add(moved.received);
}

/// The service sees the peer's own address; only a target outside 127.0.0.0/8 cannot be reached from there.
async fn connect(source: Ipv4Addr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = match target.ip() {
        IpAddr::V4(address) if address.is_loopback() => from_source(source)?,
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.connect(target).await
}

/// A socket that will connect from `source`. Its port is chosen when it connects: chosen here, each connection that has ended
/// would keep one of 28,000 ports of that address for a minute, and a peer that opens 500 a second would be refused.
fn from_source(source: Ipv4Addr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    bind_address_without_port(&socket)?;
    socket.bind((source, 0).into())?;
    Ok(socket)
}

/// Neither rustix nor socket2 knows this option.
fn bind_address_without_port(socket: &TcpSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).expect("an int is small");
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and `on` is a whole int of the size that is told.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

async fn serve_udp(asked: Incoming, source: Ipv4Addr, target: SocketAddr, stats: &Stats) {
    let socket = match connect_udp(source, target).await {
        Ok(socket) => socket,
        Err(error) => return refuse(asked, status_of(&error), stats),
    };
    stats.inbound.add(1);
    let _open = stats.open.hold();
    if let Opened::Flow(flow) = asked.accept() {
        serve_flow(flow, socket, stats).await;
    }
}

async fn connect_udp(source: Ipv4Addr, target: SocketAddr) -> io::Result<UdpSocket> {
    let from: IpAddr = match target.ip() {
        IpAddr::V4(address) if address.is_loopback() => source.into(),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((from, 0)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

/// What the peer is told about a failed connect. What is our own shortage (descriptors, ports, memory) is `Busy`: it
/// passes, and the peer may try again.
fn status_of(error: &io::Error) -> StreamStatus {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused | Kind::ConnectionReset => StreamStatus::Refused,
        Kind::TimedOut | Kind::HostUnreachable | Kind::NetworkUnreachable => StreamStatus::Unreachable,
        _ => StreamStatus::Busy,
    }
}

/// Sends everything back, and the end after it.
async fn echo(mut stream: TunnelStream) -> io::Result<()> {
    loop {
        let (buffer, length) = read_some(&mut stream).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..length]).await?;
        stream.flush().await?;
    }
}

/// Reads to the end, then answers with the number of bytes, in eight bytes, big-endian.
async fn discard(mut stream: TunnelStream) -> io::Result<()> {
    let mut count: u64 = 0;
    loop {
        let (_, length) = read_some(&mut stream).await?;
        if length == 0 {
            stream.write_u64(count).await?;
            return stream.shutdown().await;
        }
        count += length as u64;
    }
}

/// Like `read`, but an idle stream holds no buffer.
async fn read_some(stream: &mut TunnelStream) -> io::Result<(Buffer, usize)> {
    std::future::poll_fn(|cx| {
        let mut buffer = Buffer::take();
        let mut space = tokio::io::ReadBuf::new(&mut buffer);
        let read = std::task::ready!(tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut *stream), cx, &mut space));
        let length = space.filled().len();
        std::task::Poll::Ready(read.map(|()| (buffer, length)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_peers_address_gives_no_port_away_before_it_connects() {
        let source = Ipv4Addr::new(127, 64, 9, 9);
        let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let socket = from_source(source).expect("any loopback address is ours");
        assert_eq!(socket.local_addr().expect("bound").port(), 0);
        let stream = socket.connect(service.local_addr().expect("bound")).await.expect("it listens");
        assert_eq!(stream.local_addr().expect("connected").ip(), source);
    }
}
