//! The relay's three other places, for RFC 5780: its second address and its second port.
//!
//! They answer STUN and nothing else. A client that asks the relay to answer from one of them learns what its NAT lets in
//! from addresses and ports that it has not sent to.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use peerage_relay_proto::Reply;
use peerage_relay_proto::stun::{Corner, Corners};
use quinn_udp::{BATCH_SIZE, RecvMeta};

use crate::socket::{self, BatchSocket, Envelope};
use crate::worker::Shared;

/// More than any request that is looked at.
const BUFFER: usize = 2048;
/// Second ports that are tried where the kernel chose the first.
const TRIES: usize = 16;

/// How many there are.
pub(crate) const PLACES: usize = 3;

/// The three sockets.
#[derive(Debug)]
pub(crate) struct Discovery {
    corners: Corners,
    sockets: [(Corner, BatchSocket); PLACES],
}

impl Discovery {
    /// Opens them. `first` is where the relay is; `second_port` is 0 where any will do.
    pub(crate) fn open(first: SocketAddr, second: IpAddr, second_port: u16) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..TRIES {
            match Self::try_open(first, second, second_port) {
                // A port that is free at one address may be taken at the other.
                Err(error) if second_port == 0 && error.kind() == io::ErrorKind::AddrInUse => last = error,
                done => return done,
            }
        }
        Err(last)
    }

    fn try_open(first: SocketAddr, second: IpAddr, second_port: u16) -> io::Result<Self> {
        let bind = |address| -> io::Result<(SocketAddr, BatchSocket)> {
            // Where the relay listens at every address, one of these ports is its own.
            let socket = socket::open(address, 1, true)?.remove(0);
            Ok((socket.local_addr()?, BatchSocket::new(socket)?))
        };
        let (own, other_port) = bind(SocketAddr::new(first.ip(), second_port))?;
        let corners = Corners { first, second: SocketAddr::new(second, own.port()) };
        let at = |other_ip, other_port| Corner { other_ip, other_port };
        let (_, other_ip) = bind(corners.address(at(true, false)))?;
        let (_, across) = bind(corners.second)?;
        Ok(Self {
            corners,
            sockets: [(at(false, true), other_port), (at(true, false), other_ip), (at(true, true), across)],
        })
    }

    /// The four places.
    pub(crate) fn corners(&self) -> Corners {
        self.corners
    }

    /// Sends an answer from where it says; `false` where that is the relay's own place.
    pub(crate) async fn send(&self, to: SocketAddr, reply: &Reply) -> Option<io::Result<()>> {
        let (_, socket) = self.sockets.iter().find(|(corner, _)| *corner == reply.from)?;
        let bytes = reply.as_bytes();
        Some(socket.send(Envelope { to, local: None, ecn: None, segment: bytes.len() }, bytes).await)
    }

    /// Answers what comes to one of them, until its socket fails.
    pub(crate) async fn serve(
        self: Arc<Self>,
        number: usize,
        main: Arc<BatchSocket>,
        shared: Arc<Shared>,
    ) -> io::Result<()> {
        let (at, socket) = &self.sockets[number];
        let mut memory = vec![0_u8; BATCH_SIZE * BUFFER];
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        loop {
            let received = {
                let mut slices = memory.chunks_exact_mut(BUFFER);
                let mut slices: [_; BATCH_SIZE] =
                    std::array::from_fn(|_| IoSliceMut::new(slices.next().expect("memory has a buffer for each")));
                socket.recv(&mut slices, &mut meta).await?
            };
            for (buffer, meta) in memory.chunks_exact(BUFFER).zip(&meta[..received]) {
                let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
                for request in buffer[..meta.len].chunks(meta.stride.max(1)) {
                    let reply = shared.relay().handle_stun_at(Instant::now(), from, request, *at);
                    let Some(reply) = reply else { continue };
                    let to = reply.destination(from);
                    let sent = match self.send(to, &reply).await {
                        Some(sent) => sent,
                        None => {
                            let bytes = reply.as_bytes();
                            main.send(Envelope { to, local: None, ecn: None, segment: bytes.len() }, bytes).await
                        }
                    };
                    shared.count_send(sent);
                }
            }
        }
    }
}
