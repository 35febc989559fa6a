//! What goes out: checks, relay frames, and tunnel packets by the path of their session.

use std::net::SocketAddr;
use std::time::Instant;

use quinn_proto::EcnCodepoint;

use super::Node;
use super::event::{Now, SessionKey};
use super::relays::RelayKey;
use super::session::{Held, Phase, RelayRoute};
use crate::path::{CheckTransmit, DirectPath, Hop, Link, Route};
use crate::relay::Destination;

/// One send: one datagram, or several of equal length to one destination (GSO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// The socket that it leaves by.
    pub link: Link,
    /// Where to.
    pub destination: SocketAddr,
    /// Bytes in the buffer.
    pub size: usize,
    /// Length of each datagram but the last; `None` for a single one.
    pub segment_size: Option<usize>,
    /// The mark to put on them.
    pub ecn: Option<EcnCodepoint>,
    /// How many routers it may pass (IPv4's TTL), if fewer than usual; always a single datagram. If that cannot be had it
    /// must not be sent.
    pub hop_limit: Option<u8>,
}

impl Node {
    /// The next thing to send, written into `buffer` (which is cleared). Call until `None` after every input.
    /// `max_datagrams` bounds one batch.
    pub fn poll_transmit(&mut self, now: Now, max_datagrams: usize, buffer: &mut Vec<u8>) -> Option<Transmit> {
        buffer.clear();
        if let Some(CheckTransmit { link, to, hop_limit, bytes }) = self.out.pop_front() {
            buffer.extend_from_slice(&bytes);
            let single = Shape { segment_size: None, ecn: None };
            let transmit = single.transmit(DirectPath { link, remote: to }, buffer.len());
            return Some(Transmit { hop_limit, ..transmit });
        }
        if let Some((path, bytes)) = self.relays.poll_transmit() {
            buffer.extend_from_slice(&bytes);
            return Some(Shape { segment_size: None, ecn: None }.transmit(path, buffer.len()));
        }
        if let Some(batch) = self.batches.pop_front() {
            buffer.extend_from_slice(&batch.bytes);
            return Some(batch.transmit);
        }
        while let Some(key) = self.ready.next() {
            if let Some(transmit) = self.transmit_session(key, now, max_datagrams, buffer) {
                return Some(transmit);
            }
            self.ready.remove(&key);
            self.arm_session(key);
        }
        // Last, because the closes before it go through the same bindings.
        let (path, bytes) = self.relays.poll_farewell()?;
        buffer.extend_from_slice(&bytes);
        Some(Shape { segment_size: None, ecn: None }.transmit(path, buffer.len()))
    }

    fn transmit_session(
        &mut self,
        key: SessionKey,
        now: Now,
        max_datagrams: usize,
        buffer: &mut Vec<u8>,
    ) -> Option<Transmit> {
        loop {
            let session = self.sessions.get_mut(&key)?;
            self.scratch.clear();
            let (packets, asked) = session.poll_transmit(now.mono, max_datagrams, &mut self.scratch)?;
            let route = match &mut session.phase {
                Phase::Up(up) => {
                    let route = up.path.route(now.mono);
                    up.path.on_tunnel_sent(now.mono, route.primary, asked);
                    if let Some(duplicate) = route.duplicate {
                        up.path.on_tunnel_sent(now.mono, duplicate, asked);
                    }
                    route
                }
                Phase::Handshaking | Phase::Closing => Route { primary: self.last_hop(key), duplicate: None },
            };
            let shape = Shape { segment_size: packets.segment_size, ecn: packets.ecn };
            if let Some(duplicate) = route.duplicate {
                self.queue_copy(key, duplicate, shape, now.mono);
            }
            if let Some(transmit) = self.send_over(key, route.primary, shape, now.mono, buffer) {
                return Some(transmit);
            }
            // No way over that hop now (a relay that is not up): QUIC will send again what matters.
        }
    }

    /// Packets of a session that is not up go by relay; the close of one that was goes where it last went.
    fn last_hop(&self, key: SessionKey) -> Hop {
        self.sessions.get(&key).and_then(|s| s.last_hop).unwrap_or(Hop::Relayed)
    }

    fn queue_copy(&mut self, key: SessionKey, hop: Hop, shape: Shape, now: Instant) {
        let (packets, mut bytes) = (self.scratch.clone(), Vec::new());
        if let Some(transmit) = self.send_over(key, hop, shape, now, &mut bytes) {
            self.batches.push_back(Batch { transmit, bytes });
        }
        self.scratch = packets;
    }

    /// Puts the packets in `scratch` on a hop; what `scratch` holds afterwards is of no use.
    fn send_over(
        &mut self,
        key: SessionKey,
        hop: Hop,
        shape: Shape,
        now: Instant,
        buffer: &mut Vec<u8>,
    ) -> Option<Transmit> {
        let session = self.sessions.get_mut(&key)?;
        session.last_hop = Some(hop);
        match hop {
            Hop::Direct(path) => {
                std::mem::swap(buffer, &mut self.scratch);
                Some(shape.transmit(path, buffer.len()))
            }
            Hop::Relayed => self.send_relayed(key, shape, now, buffer),
        }
    }

    fn send_relayed(&mut self, key: SessionKey, shape: Shape, now: Instant, buffer: &mut Vec<u8>) -> Option<Transmit> {
        let session = self.sessions.get_mut(&key)?;
        match session.relayed.clone() {
            RelayRoute::Known { relay, peer } => {
                self.send_beside(key, shape, now);
                let to = Destination::Endpoint(peer);
                let sent = self.relays.wrap(now, relay, to, &self.scratch, shape.segment_size, buffer);
                if let Some((path, segment_size)) = sent {
                    return Some(Shape { segment_size, ..shape }.transmit(path, buffer.len()));
                }
                // That relay is away; the others may have taken it.
                let batch = self.batches.pop_front()?;
                buffer.extend_from_slice(&batch.bytes);
                Some(batch.transmit)
            }
            RelayRoute::Racing { relays, destination } => {
                let packets = Held { bytes: self.scratch.clone(), segment_size: shape.segment_size };
                for relay in &relays {
                    self.send_first_flight(*relay, destination, &packets, now);
                }
                match self.batches.pop_front() {
                    Some(batch) => {
                        buffer.extend_from_slice(&batch.bytes);
                        Some(batch.transmit)
                    }
                    None => {
                        self.sessions.get_mut(&key)?.held = Some(packets);
                        None
                    }
                }
            }
        }
    }

    /// Queues copies of the packets in `scratch` through the other relays where the peer may be, while the session races.
    fn send_beside(&mut self, key: SessionKey, shape: Shape, now: Instant) {
        let Some(session) = self.sessions.get(&key).filter(|session| !session.beside.is_empty()) else { return };
        let Some(up) = session.up() else { return };
        // A bound agent's id is the same at every relay.
        let to = Destination::Endpoint(up.credential.instance().into());
        for relay in session.beside.clone() {
            let mut bytes = Vec::new();
            let wrapped = self.relays.wrap(now, relay, to, &self.scratch, shape.segment_size, &mut bytes);
            if let Some((path, segment_size)) = wrapped {
                let transmit = Shape { segment_size, ..shape }.transmit(path, bytes.len());
                self.batches.push_back(Batch { transmit, bytes });
            }
        }
    }

    /// Queues packets for whoever is bound under a name at a relay. Returns whether the relay could take them.
    fn send_first_flight(&mut self, relay: RelayKey, to: Destination, packets: &Held, now: Instant) -> bool {
        let mut bytes = Vec::new();
        let wrapped = self.relays.wrap(now, relay, to, &packets.bytes, packets.segment_size, &mut bytes);
        let Some((path, segment_size)) = wrapped else {
            return false;
        };
        let transmit = Shape { segment_size, ecn: None }.transmit(path, bytes.len());
        self.batches.push_back(Batch { transmit, bytes });
        true
    }

    /// Sends a first flight that no relay could take, now that this one can.
    pub(super) fn release_held(&mut self, key: SessionKey, relay: RelayKey, now: Instant) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let RelayRoute::Racing { destination, .. } = session.relayed else {
            return;
        };
        if let Some(packets) = session.held.take() {
            self.send_first_flight(relay, destination, &packets, now);
        }
    }

    /// When to call [`Self::handle_timeout`] next. Ask after [`Self::poll_transmit`] gave `None`.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let of_parts = [self.relays.poll_timeout(), self.extras.poll_timeout(), self.outside.poll_timeout()];
        of_parts.into_iter().chain([self.timers.next()]).flatten().min()
    }
}

/// How a batch of packets is cut and marked.
#[derive(Clone, Copy, Debug)]
struct Shape {
    segment_size: Option<usize>,
    ecn: Option<EcnCodepoint>,
}

impl Shape {
    fn transmit(self, path: DirectPath, size: usize) -> Transmit {
        let DirectPath { link, remote: destination } = path;
        Transmit { link, destination, size, segment_size: self.segment_size, ecn: self.ecn, hop_limit: None }
    }
}

/// A batch that waits for its turn: the copy over a second path.
#[derive(Debug)]
pub(super) struct Batch {
    transmit: Transmit,
    bytes: Vec<u8>,
}
