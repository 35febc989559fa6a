//! A UDP socket that takes and gives batches.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};

use quinn_udp::{EcnCodepoint, RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::sendmmsg::{self, Message};

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
    /// A batch was refused, and each of its datagrams taken.
    is_gso_refused: AtomicBool,
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
        if let Err(error) = sendmmsg::without_timestamps(&socket) {
            tracing::debug!(%error, "timestamps");
        }
        let is_v6 = socket.local_addr()?.is_ipv6();
        Ok(Self { socket: UdpSocket::from_std(socket)?, state, is_v6, is_gso_refused: AtomicBool::new(false) })
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
        let (parts, mut outcome) = ([IoSlice::new(bytes)], Ok(()));
        self.send_many(&mut [Message { envelope, parts: &parts }], |failed| outcome = Err(failed)).await;
        outcome
    }

    /// Sends one datagram if the kernel has room for it at once.
    pub(crate) fn send_now(&self, envelope: Envelope, bytes: &[u8]) -> io::Result<()> {
        let envelope = Envelope { to: self.for_socket(envelope.to), ..envelope };
        let message = Message { envelope, parts: &[IoSlice::new(bytes)] };
        sendmmsg::send(&self.socket, &[message]).map(drop)
    }

    /// The most datagrams that leave in one GSO batch; one where there is no GSO.
    pub(crate) fn most_joined(&self) -> usize {
        if self.is_gso_refused.load(Ordering::Relaxed) { 1 } else { self.state.max_gso_segments() }
    }

    /// Sends all of these in their order, with as few system calls as it takes; waits while the kernel's queue is full. One that the
    /// kernel refuses does not hold up the others; `failed` hears why.
    pub(crate) async fn send_many(&self, messages: &mut [Message<'_>], mut failed: impl FnMut(io::Error)) {
        for message in &mut *messages {
            message.envelope.to = self.for_socket(message.envelope.to);
        }
        let mut rest = &*messages;
        while let Some((first, others)) = rest.split_first() {
            let sent = self.socket.async_io(Interest::WRITABLE, || sendmmsg::send(&self.socket, rest)).await;
            match sent {
                Ok(taken) => rest = &rest[taken..],
                Err(error) => {
                    rest = others;
                    let may_be_gso = matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL));
                    if !may_be_gso || !first.is_batch() || !self.send_apart(first).await {
                        failed(error);
                    }
                }
            }
        }
    }

    /// Sends a batch datagram by datagram. Some network adapters have no GSO, which the kernel says with the same errors as that an
    /// address of ours is gone; what does arrive by itself tells which it was. Nobody else shall be able to turn GSO off.
    async fn send_apart(&self, Message { envelope, parts }: &Message<'_>) -> bool {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        for datagram in bytes.chunks(envelope.segment) {
            let message = Message { envelope: *envelope, parts: &[IoSlice::new(datagram)] };
            let send = || sendmmsg::send(&self.socket, slice::from_ref(&message));
            if self.socket.async_io(Interest::WRITABLE, send).await.is_err() {
                return false;
            }
            if !self.is_gso_refused.swap(true, Ordering::Relaxed) {
                tracing::info!("the kernel refuses GSO here: packets leave one by one");
            }
        }
        true
    }

    fn for_socket(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.is_v6 => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()),
            IpAddr::V4(_) | IpAddr::V6(_) => address,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    fn bound() -> io::Result<(BatchSocket, SocketAddr)> {
        let socket = open(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 1, false)?.remove(0);
        let address = socket.local_addr()?;
        Ok((BatchSocket::new(socket)?, address))
    }

    fn receiver() -> io::Result<(std::net::UdpSocket, SocketAddr)> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let address = socket.local_addr()?;
        Ok((socket, address))
    }

    fn envelope(to: SocketAddr, segment: usize) -> Envelope {
        Envelope { to, local: Some(Ipv4Addr::LOCALHOST.into()), ecn: Some(EcnCodepoint::Ect0), segment }
    }

    /// The first byte and the length of each datagram that is there, in order.
    fn received(socket: &std::net::UdpSocket, count: usize) -> io::Result<Vec<(u8, usize)>> {
        let mut bytes = [0; 2048];
        let mut one = || socket.recv(&mut bytes).map(|len| (bytes[0], len));
        (0..count).map(|_| one()).collect()
    }

    #[tokio::test]
    async fn more_messages_than_one_call_takes_arrive_in_their_order_each_where_it_goes() -> io::Result<()> {
        let ((socket, _), receivers) = (bound()?, [receiver()?, receiver()?]);
        let bytes: Vec<[u8; 100]> = (0..200).map(|n| [n; 100]).collect();
        let parts: Vec<_> = bytes.iter().map(|bytes| IoSlice::new(bytes)).collect();
        let each = parts.iter().zip(receivers.iter().cycle());
        let mut messages: Vec<_> = each
            .map(|(part, (_, to))| Message { envelope: envelope(*to, 100), parts: slice::from_ref(part) })
            .collect();
        socket.send_many(&mut messages, |error| panic!("{error}")).await;
        for (number, (receiver, _)) in receivers.iter().enumerate() {
            let expected: Vec<_> = (0..200).skip(number).step_by(2).map(|n| (n, 100)).collect();
            assert_eq!(received(receiver, 100)?, expected);
        }
        Ok(())
    }

    #[tokio::test]
    async fn the_parts_of_a_batch_arrive_as_datagrams_and_the_last_may_be_shorter() -> io::Result<()> {
        let ((socket, _), (receiver, to)) = (bound()?, receiver()?);
        let parts = [IoSlice::new(&[1; 100]), IoSlice::new(&[2; 200]), IoSlice::new(&[3; 40])];
        socket
            .send_many(&mut [Message { envelope: envelope(to, 100), parts: &parts }], |error| panic!("{error}"))
            .await;
        assert_eq!(received(&receiver, 4)?, [(1, 100), (2, 100), (2, 100), (3, 40)]);
        Ok(())
    }

    /// Nobody can be sent anything at port 0, and the kernel says so with the error that it also has for adapters without GSO.
    #[tokio::test]
    async fn what_the_kernel_refuses_is_told_and_neither_stops_the_others_nor_gso() -> io::Result<()> {
        let ((socket, _), (receiver, to)) = (bound()?, receiver()?);
        let nowhere = SocketAddr::new(to.ip(), 0);
        let parts = [[1; 100], [2; 100], [3; 100]];
        let parts = parts.each_ref().map(|part| IoSlice::new(part));
        let mut messages = [
            Message { envelope: envelope(nowhere, 100), parts: &parts[..1] },
            Message { envelope: envelope(to, 100), parts: &parts[..1] },
            Message { envelope: envelope(nowhere, 100), parts: &parts },
            Message { envelope: envelope(to, 100), parts: &parts[1..2] },
            Message { envelope: envelope(nowhere, 100), parts: &parts[..1] },
        ];
        let (mut refused, most) = (0, socket.most_joined());
        socket.send_many(&mut messages, |_| refused += 1).await;
        assert_eq!(received(&receiver, 2)?, [(1, 100), (2, 100)]);
        assert_eq!((refused, socket.most_joined()), (3, most), "who comes from port 0 turns GSO off for nobody");
        Ok(())
    }

    #[tokio::test]
    async fn a_batch_that_the_kernel_refuses_as_one_arrives_datagram_by_datagram() -> io::Result<()> {
        let ((socket, _), (receiver, to)) = (bound()?, receiver()?);
        // More datagrams than GSO takes, which is refused as by an adapter that has none.
        let bytes: Vec<u8> = (0..200).flat_map(|n| [n; 100]).collect();
        let sent = socket.send(envelope(to, 100), &bytes).await;
        assert_eq!(received(&receiver, 200)?, (0..200).map(|n| (n, 100)).collect::<Vec<_>>());
        assert_eq!((sent.is_ok(), socket.most_joined()), (true, 1));
        Ok(())
    }
}
