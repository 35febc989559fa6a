//! A UDP socket that takes and gives batches.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Room for what arrives while a worker is busy: 8 MiB are 13 ms at 5 Gb/s. The kernel may give less (rmem_max).
const BUFFER: usize = 8 << 20;

/// What one datagram (or one GSO batch) needs beside its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    pub(crate) to: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    pub(crate) ecn: Option<EcnCodepoint>,
    /// Bytes of each datagram in a batch.
    pub(crate) segment: usize,
}

impl Envelope {
    /// Whether one system call can send both.
    pub(crate) fn is_to_the_same(&self, other: &Self) -> bool {
        self.to == other.to && self.local == other.local && self.ecn == other.ecn
    }
}

#[derive(Debug)]
pub(crate) struct BatchSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    is_v6: bool,
}

/// Opens `count` sockets on one address. More than one share the port, and the kernel spreads sources over them. `shared`
/// says that others of ours are to have that port at an address of their own: what comes there goes to the more exact one.
pub(crate) fn open(address: SocketAddr, count: u16, shared: bool) -> io::Result<Vec<std::net::UdpSocket>> {
    let share = shared || count > 1;
    let first = open_one(address, share).or_else(|error| {
        // A machine without IPv6 can still serve "every address".
        let any_v6 = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        match any_v6 && error.raw_os_error() == Some(EAFNOSUPPORT) {
            true => open_one(SocketAddr::from(([0, 0, 0, 0], address.port())), share),
            false => Err(error),
        }
    })?;
    let bound = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(open_one(bound, true)?);
    }
    Ok(sockets)
}

/// "Address family not supported", Linux.
const EAFNOSUPPORT: i32 = 97;

fn open_one(address: SocketAddr, share: bool) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if share {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    // Refused where the machine's limits are lower: the relay works, and drops earlier under bursts.
    for set in [socket.set_recv_buffer_size(BUFFER), socket.set_send_buffer_size(BUFFER)] {
        if let Err(error) = set {
            tracing::debug!(%error, "socket buffer");
        }
    }
    Ok(socket.into())
}

impl BatchSocket {
    /// Within a runtime.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let is_v6 = socket.local_addr()?.is_ipv6();
        Ok(Self { socket: UdpSocket::from_std(socket)?, state, is_v6 })
    }

    /// Waits for datagrams; fills `buffers` and `meta` from the start and says how many of each.
    pub(crate) async fn recv(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        let receive = || self.state.recv(UdpSockRef::from(&self.socket), buffers, meta);
        self.socket.async_io(Interest::READABLE, receive).await
    }

    /// The same for what is there already, which may be nothing.
    pub(crate) fn recv_now(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        let receive = || self.state.recv(UdpSockRef::from(&self.socket), buffers, meta);
        match self.socket.try_io(Interest::READABLE, receive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            received => received,
        }
    }

    /// Sends one datagram, or a batch of equal ones by GSO; waits while the kernel's queue is full.
    pub(crate) async fn send(&self, envelope: Envelope, bytes: &[u8]) -> io::Result<()> {
        let most = envelope.segment * self.state.max_gso_segments();
        for contents in bytes.chunks(most.max(1)) {
            let transmit = Transmit {
                destination: self.for_socket(envelope.to),
                ecn: envelope.ecn,
                contents,
                segment_size: Some(envelope.segment),
                src_ip: envelope.local,
            };
            let send = || self.state.try_send(UdpSockRef::from(&self.socket), &transmit);
            self.socket.async_io(Interest::WRITABLE, send).await?;
        }
        Ok(())
    }

    /// Sends one datagram if the kernel has room for it at once.
    pub(crate) fn send_now(&self, envelope: Envelope, bytes: &[u8]) -> io::Result<()> {
        let destination = self.for_socket(envelope.to);
        let transmit =
            Transmit { destination, ecn: envelope.ecn, contents: bytes, segment_size: None, src_ip: envelope.local };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }

    fn for_socket(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.is_v6 => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()),
            IpAddr::V4(_) | IpAddr::V6(_) => address,
        }
    }
}
