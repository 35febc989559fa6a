//! The relay over TLS, for clients whose network lets no UDP out (`docs/spec/relay.md` section 10).
//!
//! Each stream has a task of its own, which asks the same [`Relay`](peerage_relay_proto::Relay) as the UDP workers do.
//! What is for another stream is put into that stream's [`queue`], what is for UDP is sent at once. Anybody can open
//! streams, so everything about one that has not proven to be of use is limited: how long it may take, how many there
//! are, and how many one network may have.

mod connection;
mod endpoint;
mod queue;
mod seats;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peerage_model::AgreementSecret;
use peerage_relay_proto::{Place, StreamId};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub use self::endpoint::EndpointError;
pub(crate) use self::endpoint::acceptor;
pub(crate) use self::queue::Streams;
use self::seats::Seats;
use crate::socket::BatchSocket;
use crate::worker::Shared;

/// Accepted connections that the kernel keeps for us.
const BACKLOG: i32 = 1024;
/// When accepting fails, most likely for want of file descriptors: let some be closed first.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// What the kernel takes of one stream before it is sent. More would only be delay that dropping the oldest cannot cure.
const UNSENT: u32 = 64 << 10;
/// Data that a vanished client does not acknowledge ends its stream after this.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// What all streams share.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    key: AgreementSecret,
    seats: Arc<Seats>,
    shared: Arc<Shared>,
    sockets: Vec<Arc<BatchSocket>>,
}

/// What happened to streams, since start.
#[derive(Debug, Default)]
pub(crate) struct StreamCounters {
    /// Taken in.
    pub(crate) accepted: AtomicU64,
    /// Turned away by a limit, before TLS.
    pub(crate) turned_away: AtomicU64,
    /// Ended before they had shown that they speak this protocol.
    pub(crate) failed: AtomicU64,
}

impl Tls {
    /// `most` streams in all.
    pub(crate) fn new(
        acceptor: TlsAcceptor,
        key: AgreementSecret,
        most: u32,
        shared: Arc<Shared>,
        sockets: Vec<Arc<BatchSocket>>,
    ) -> Self {
        let per_network = shared.relay().streams_per_network();
        Self { acceptor, key, seats: Arc::new(Seats::new(most, per_network)), shared, sockets }
    }

    /// Takes streams until dropped.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let mut number = 0;
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    number += 1;
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    self.take_in(stream, Place::Stream(StreamId(number), from));
                }
                Err(error) => {
                    tracing::debug!(%error, "accept");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    /// A seat is free and the network has not begun too many: only then is TLS spoken.
    fn take_in(self: &Arc<Self>, stream: TcpStream, place: Place) {
        let counters = &self.shared.stream_counters;
        let seat = self.seats.take(place.address());
        let admitted = seat.filter(|_| self.shared.relay().admit_stream(place.address(), Instant::now()));
        let Some(seat) = admitted else {
            counters.turned_away.fetch_add(1, Ordering::Relaxed);
            return;
        };
        counters.accepted.fetch_add(1, Ordering::Relaxed);
        let tls = Arc::clone(self);
        tokio::spawn(async move {
            connection::run(&tls, stream, place, seat).await;
            tls.shared.relay().stream_ended(place, Instant::now());
        });
    }
}

/// Opens the TCP port.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Best effort: a kernel that does not know one of these works, with more delay or later notice.
fn tune(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    for set in [
        socket.set_tcp_nodelay(true),
        socket.set_tcp_notsent_lowat(UNSENT),
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)),
        socket.set_tcp_keepalive(&keepalive),
    ] {
        if let Err(error) = set {
            tracing::debug!(%error, "socket option");
        }
    }
}
