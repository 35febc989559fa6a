//! The agent's UDP sockets: one for each address family, batches in both directions.
//!
//! The kernel is asked to tell when something came, and not when something may be sent: it would say so for each batch that has left
//! the host, and wake us for nothing. A socket that was full is registered a second time, until it has room.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use peerage_engine::path::{ExtraSocket, Link};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::unconstrained;
use tracing::{debug, error};

/// What the kernel may queue for us in each direction: 20 ms at 1 Gb/s. Linux gives less where net.core.rmem_max says so.
const SOCKET_BUFFER: usize = 2 << 20;
/// Messages taken in one system call. Each may hold a whole GRO batch, so few are enough, and idle memory stays small.
const MESSAGES: usize = 4;
/// Largest GRO batch: the largest UDP payload there is.
const MESSAGE: usize = 65_535;

/// Datagrams of a batch that share an allocation. One that waits, for a gap before it or for a program that does not read, keeps
/// its neighbours in memory, and QUIC counts its own bytes only: a batch as a whole would make 64 KiB of each.
const NEIGHBOURS: usize = 4;

/// Most bytes in one send: an IPv4 packet's, without its and UDP's header.
const LARGEST_SEND: usize = 65_507;
/// Largest datagram that we send: what MTU discovery looks for on Ethernet, behind a relay's header.
const LARGEST_DATAGRAM: usize = 1_484;

/// A received batch: one or more datagrams of one sender.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) link: Link,
    pub(super) from: SocketAddr,
    pub(super) ecn: Option<quinn_udp::EcnCodepoint>,
    /// Its bytes, in pieces of at most [`NEIGHBOURS`] datagrams.
    pub(super) pieces: Vec<BytesMut>,
    pub(super) stride: usize,
}

/// The sockets, by family.
#[derive(Debug)]
pub(super) struct Sockets {
    v4: Option<Bound>,
    v6: Option<Bound>,
    /// What the engine asked for beside them.
    extra: BTreeMap<ExtraSocket, Bound>,
    /// Receive buffers, [`MESSAGES`] of [`MESSAGE`] bytes. Untouched pages cost nothing.
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Bound {
    /// Tells when it can be read.
    socket: AsyncFd<UdpSocket>,
    /// Tells when it can be written; there while it had no room.
    full: Option<AsyncFd<UdpSocket>>,
    state: UdpSocketState,
}

impl Sockets {
    /// Binds where asked; where nothing is asked, on every address at any port, IPv6 too where the host has it.
    ///
    /// # Errors
    /// When an address that was asked for cannot be bound, or none can.
    pub(super) fn bind(addresses: &[SocketAddr]) -> io::Result<Self> {
        let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let any_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let (v4, v6) = match addresses {
            [] => (Bound::new(any_v4).ok(), Bound::new(any_v6).ok()),
            some => {
                let first = |v4: bool| some.iter().find(|a| a.is_ipv4() == v4).map(|a| Bound::new(*a)).transpose();
                (first(true)?, first(false)?)
            }
        };
        if v4.is_none() && v6.is_none() {
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no UDP socket can be bound on this host"));
        }
        Ok(Self { v4, v6, extra: BTreeMap::new(), buffer: vec![0; MESSAGES * MESSAGE] })
    }

    /// Our port on IPv4.
    pub(super) fn port_v4(&self) -> Option<NonZeroU16> {
        NonZeroU16::new(self.v4.as_ref()?.local_addr().ok()?.port())
    }

    /// Opens sockets beside the main ones, for IPv4 where we have it, and says which and at which port. What the host has
    /// no room for is left out.
    pub(super) fn open_extra(&mut self, wanted: &[ExtraSocket]) -> Vec<(ExtraSocket, u16)> {
        let Some(main) = self.v4.as_ref().or(self.v6.as_ref()) else { return Vec::new() };
        let Ok(ip) = main.local_addr().map(|local| local.ip()) else { return Vec::new() };
        let mut opened = Vec::with_capacity(wanted.len());
        for socket in wanted {
            let bound = Bound::new(SocketAddr::new(ip, 0)).and_then(|bound| Ok((bound.local_addr()?.port(), bound)));
            match bound {
                Ok((port, bound)) => {
                    self.extra.insert(*socket, bound);
                    opened.push((*socket, port));
                }
                Err(error) => {
                    debug!(%error, opened = opened.len(), wanted = wanted.len(), "no more sockets");
                    break;
                }
            }
        }
        opened
    }

    /// Closes sockets that were opened by [`Self::open_extra`].
    pub(super) fn close_extra(&mut self, sockets: &[ExtraSocket]) {
        sockets.iter().for_each(|socket| drop(self.extra.remove(socket)));
    }

    /// Our port for peers that reach `ip`.
    pub(super) fn port_for(&self, ip: &IpAddr) -> Option<u16> {
        let bound = if ip.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }?;
        let local = bound.local_addr().ok()?;
        (local.ip().is_unspecified() || local.ip() == *ip).then_some(local.port())
    }

    /// Datagrams that may go out in one call. The kernel refuses sends above its largest packet, however they are cut.
    pub(super) fn max_datagrams(&self) -> usize {
        let of = |bound: &Option<Bound>| bound.as_ref().map(|b| b.state.max_gso_segments());
        of(&self.v4).into_iter().chain(of(&self.v6)).min().unwrap_or(1).min(LARGEST_SEND / LARGEST_DATAGRAM)
    }

    /// Sends one batch. `WouldBlock` means: again after [`Self::poll_writable`].
    pub(super) fn try_send(&mut self, link: Link, transmit: &Transmit<'_>) -> io::Result<()> {
        // There is none for a peer's candidate of a family that we do not have, and for a socket that was closed.
        self.sender(link, &transmit.destination).map_or(Ok(()), |bound| bound.try_send(transmit))
    }

    /// Sends one datagram that passes at most `hops` routers, by IPv4. Where the kernel does not let us say so, nothing is
    /// sent. `WouldBlock` as above.
    pub(super) fn try_send_near(&mut self, link: Link, transmit: &Transmit<'_>, hops: u8) -> io::Result<()> {
        let Some(bound) = self.sender(link, &transmit.destination).filter(|_| transmit.destination.is_ipv4()) else {
            return Ok(());
        };
        let socket = SockRef::from(bound.socket.get_ref());
        let Ok(usual) = socket.ttl_v4() else { return Ok(()) };
        if let Err(error) = socket.set_ttl_v4(hops.into()) {
            debug!(%error, "no hop limit can be set");
            return Ok(());
        }
        let sent = bound.try_send(transmit);
        if let Err(error) = socket.set_ttl_v4(usual) {
            // What was just possible; if ever it were not, nothing would get far from here on.
            error!(%error, "the usual hop limit cannot be set again");
        }
        sent
    }

    fn sender(&mut self, link: Link, destination: &SocketAddr) -> Option<&mut Bound> {
        match link {
            Link::Main if destination.is_ipv4() => self.v4.as_mut(),
            Link::Main => self.v6.as_mut(),
            Link::Extra(socket) => self.extra.get_mut(&socket),
            // Streams have queues of their own; no datagram leaves by them.
            Link::RelayStream(_) => None,
        }
    }

    /// Waits until `destination` can be sent to again by `link`.
    pub(super) fn poll_writable(&mut self, cx: &mut Context<'_>, link: Link, destination: &SocketAddr) -> Poll<()> {
        let bound = self.sender(link, destination);
        bound.map_or(Poll::Ready(()), |bound| bound.poll_writable(cx))
    }

    /// Takes what has arrived, at most one system call's worth, from each socket.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>, received: &mut Vec<Received>) -> Poll<()> {
        let Self { v4, v6, extra, buffer } = self;
        let mut any = false;
        for bound in [v4, v6].into_iter().flatten() {
            any |= bound.poll_receive(cx, Link::Main, buffer, received).is_ready();
        }
        if !extra.is_empty() {
            // Hundreds of sockets would use up the task's cooperative budget in one look, and the rest would seem silent.
            let look = poll_fn(|cx| {
                for (socket, bound) in &*extra {
                    any |= bound.poll_receive(cx, Link::Extra(*socket), buffer, received).is_ready();
                }
                Poll::Ready(())
            });
            let _ = pin!(unconstrained(look)).poll(cx);
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Bound {
    fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        // Best effort: the kernel's own limits win.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        socket.bind(&address.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self { socket: register(socket.into(), Interest::READABLE)?, full: None, state })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.get_ref().local_addr()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.state.try_send(UdpSockRef::from(self.socket.get_ref()), transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) => {
                // Unreachable networks, oversized probes: QUIC's loss recovery knows better than we do what to do.
                debug!(%error, "a datagram was not sent");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.full.is_none() {
            let twin = self.socket.get_ref().try_clone().and_then(|twin| register(twin, Interest::WRITABLE));
            match twin {
                Ok(twin) => self.full = Some(twin),
                // No descriptor is left. Whoever has some to close has its turn, and then this is tried again.
                Err(error) => {
                    debug!(%error, "cannot be told when there is room to send");
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        if let Some(full) = &self.full {
            // Fails only while the runtime shuts down.
            let _ = ready!(full.poll_write_ready(cx));
        }
        self.full = None;
        Poll::Ready(())
    }

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        link: Link,
        buffer: &mut [u8],
        received: &mut Vec<Received>,
    ) -> Poll<()> {
        loop {
            let Ok(mut readable) = ready!(self.socket.poll_read_ready(cx)) else { return Poll::Ready(()) };
            let mut metas = [RecvMeta::default(); MESSAGES];
            let mut chunks = buffer.chunks_mut(MESSAGE);
            let mut slices: [IoSliceMut<'_>; MESSAGES] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            match self.state.recv(UdpSockRef::from(self.socket.get_ref()), &mut slices, &mut metas) {
                Ok(count) => {
                    if count < MESSAGES {
                        // recvmmsg(2) stopped because there was no more, so asking again tells nothing new.
                        readable.clear_ready();
                    }
                    for (meta, slice) in metas.iter().zip(&slices).take(count) {
                        received.push(Received {
                            link,
                            from: meta.addr,
                            ecn: meta.ecn,
                            pieces: pieces(&slice[..meta.len], meta.stride),
                            stride: meta.stride,
                        });
                    }
                    return Poll::Ready(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => readable.clear_ready(),
                Err(error) => {
                    debug!(%error, "receiving failed");
                    return Poll::Ready(());
                }
            }
        }
    }
}

fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: a `UdpSocket` is the same open file for as long as it lives, and `AsyncFd` keeps it until it has deregistered it.
    unsafe { AsyncFd::register_with_interest(socket, interest) }.map_err(io::Error::from)
}

fn pieces(batch: &[u8], stride: usize) -> Vec<BytesMut> {
    batch.chunks(stride.max(1) * NEIGHBOURS).map(BytesMut::from).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_hop_limit_is_for_one_datagram_only() {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut sender = Sockets::bind(&[local]).expect("loopback can be bound");
        let receiver = tokio::net::UdpSocket::bind(local).await.expect("loopback can be bound");
        let destination = receiver.local_addr().expect("it is bound");
        let limit = |sockets: &Sockets| {
            let bound = sockets.v4.as_ref().expect("it was asked for");
            SockRef::from(bound.socket.get_ref()).ttl_v4().expect("IPv4 sockets have one")
        };
        let usual = limit(&sender);
        let transmit = Transmit { destination, ecn: None, contents: b"hello", segment_size: None, src_ip: None };
        poll_fn(|cx| sender.poll_writable(cx, Link::Main, &destination)).await;
        sender.try_send_near(Link::Main, &transmit, 3).expect("an empty socket takes it");
        let mut buffer = [0; 8];
        let arrived = tokio::time::timeout(Duration::from_secs(30), receiver.recv(&mut buffer)).await;
        assert_eq!(arrived.expect("the next host is no hop away").expect("it arrives"), 5);
        assert_eq!(limit(&sender), usual);
    }

    #[tokio::test]
    async fn hundreds_of_extra_sockets_are_all_heard_and_closed_ones_are_not() {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut sender = Sockets::bind(&[local]).expect("loopback can be bound");
        let mut receiver = Sockets::bind(&[local]).expect("loopback can be bound");
        let wanted: Vec<_> = (0..256).map(ExtraSocket).collect();
        let opened = receiver.open_extra(&wanted);
        assert_eq!(opened.len(), wanted.len(), "this host allows that many sockets");
        receiver.close_extra(&wanted[..1]);
        for (_, port) in &opened {
            let destination = SocketAddr::new(local.ip(), *port);
            let transmit = Transmit { destination, ecn: None, contents: b"hello", segment_size: None, src_ip: None };
            poll_fn(|cx| sender.poll_writable(cx, Link::Main, &destination)).await;
            sender.try_send(Link::Main, &transmit).expect("an empty socket takes it");
        }
        let mut received = Vec::new();
        let all = async {
            while received.len() < wanted.len() - 1 {
                poll_fn(|cx| receiver.poll_receive(cx, &mut received)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("every open socket hears its datagram");
        let heard: std::collections::BTreeSet<_> = received.iter().map(|r: &Received| r.link).collect();
        assert_eq!(heard, wanted[1..].iter().map(|socket| Link::Extra(*socket)).collect());
    }

    #[tokio::test]
    async fn the_largest_batch_of_the_largest_datagrams_goes_out_whole() {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut sender = Sockets::bind(&[local]).expect("loopback can be bound");
        let mut receiver = Sockets::bind(&[local]).expect("loopback can be bound");
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let destination = SocketAddr::new(ip, receiver.port_for(&ip).expect("it is bound there"));
        let batch = vec![7; sender.max_datagrams() * LARGEST_DATAGRAM];
        let segment_size = Some(LARGEST_DATAGRAM);
        let transmit = Transmit { destination, ecn: None, contents: &batch, segment_size, src_ip: None };
        poll_fn(|cx| sender.poll_writable(cx, Link::Main, &destination)).await;
        sender.try_send(Link::Main, &transmit).expect("an empty socket takes it");
        let mut received = Vec::new();
        let all = async {
            while received.iter().flat_map(|r: &Received| &r.pieces).map(|piece| piece.len()).sum::<usize>()
                < batch.len()
            {
                poll_fn(|cx| receiver.poll_receive(cx, &mut received)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("every datagram arrives");
        assert!(received.iter().all(|r| r.stride == LARGEST_DATAGRAM), "{received:?}");
        let largest = received.iter().flat_map(|r| &r.pieces).map(|piece| piece.capacity()).max();
        assert_eq!(largest, Some(NEIGHBOURS * LARGEST_DATAGRAM), "what one datagram keeps in memory");
    }

    /// Two sockets, and where the second is.
    fn pair() -> (Sockets, Sockets, SocketAddr) {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let [sender, receiver] = [0, 1].map(|_| Sockets::bind(&[local]).expect("loopback can be bound"));
        let port = receiver.port_v4().expect("it is bound").get();
        (sender, receiver, SocketAddr::new(local.ip(), port))
    }

    #[tokio::test]
    async fn a_socket_that_was_read_empty_tells_of_what_comes_later() {
        let (mut sender, mut receiver, destination) = pair();
        for _ in 0..3 {
            let transmit = Transmit { destination, ecn: None, contents: b"hello", segment_size: None, src_ip: None };
            sender.try_send(Link::Main, &transmit).expect("an empty socket takes it");
            let mut received = Vec::new();
            let heard = poll_fn(|cx| receiver.poll_receive(cx, &mut received));
            tokio::time::timeout(Duration::from_secs(30), heard).await.expect("it arrives");
            assert_eq!(received.len(), 1);
            let again = poll_fn(|cx| Poll::Ready(receiver.poll_receive(cx, &mut received))).await;
            assert!(again.is_pending(), "there is no more");
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_room_is_told_of_it_each_time_and_only_then() {
        let (mut sender, _receiver, destination) = pair();
        for _ in 0..3 {
            let room = poll_fn(|cx| sender.poll_writable(cx, Link::Main, &destination));
            tokio::time::timeout(Duration::from_secs(30), room).await.expect("there is room");
            assert!(sender.v4.as_ref().is_some_and(|bound| bound.full.is_none()), "nobody waits any more");
        }
    }
}
