//! Packets on the simulated Internet, and who may do something to them there.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::net::is_relay;

/// Who really made a packet, whatever its source address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This agent, by its number.
    Agent(usize),
    /// A relay speaking for itself.
    Relay,
    /// A relay that passes on what this agent sent.
    Forwarded(usize),
    /// Anybody else.
    Stranger,
}

/// A UDP packet between public endpoints.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    /// When it crossed the core, since the start of the world.
    pub at: Duration,
    /// Source, as seen in public.
    pub from: SocketAddr,
    /// Destination, as seen in public.
    pub to: SocketAddr,
    /// The payload.
    pub bytes: Vec<u8>,
    /// Who made it.
    pub origin: Origin,
}

impl Packet {
    /// The same bytes, from and to somewhere else: what an observer can do.
    #[must_use]
    pub fn replayed(&self, from: SocketAddr, to: SocketAddr) -> Self {
        Self { from, to, origin: Origin::Stranger, ..self.clone() }
    }

    /// Whether this frame carries a packet of the tunnel through a relay: TO_ROUTE, TO_ENDPOINT or FROM.
    #[must_use]
    pub fn is_relayed_data(&self) -> bool {
        self.bytes.first() == Some(&4) && matches!(self.bytes.get(1), Some(12..=14))
    }

    /// Whether this is first contact through a relay: TO_ROUTE, which holds a knock.
    #[must_use]
    pub fn is_first_contact(&self) -> bool {
        self.bytes.starts_with(&[4, 12])
    }

    /// Whether it goes between two agents without a relay.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        let is_frame = matches!(self.bytes.first(), Some(4..=15));
        !is_frame && !is_relay(self.from.ip()) && !is_relay(self.to.ip())
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {} -> {} {} bytes, first {:02x?}, by {:?}",
            self.at,
            self.from,
            self.to,
            self.bytes.len(),
            &self.bytes[..self.bytes.len().min(2)],
            self.origin
        )
    }
}

/// Somebody in the middle: gets each packet at the core and says what goes on, and how much later.
pub(super) type Tamper = Box<dyn FnMut(Packet) -> Vec<(Duration, Packet)>>;

/// What an observer recorded. Clones share the tape.
#[derive(Clone, Debug, Default)]
pub struct Tape(Rc<RefCell<Vec<Packet>>>);

impl Tape {
    pub(super) fn record(&self, packet: &Packet) {
        self.0.borrow_mut().push(packet.clone());
    }

    /// Everything seen so far, in order.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        self.0.borrow().clone()
    }

    /// The packets for which `wanted` holds.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&Packet) -> bool) -> Vec<Packet> {
        self.0.borrow().iter().filter(|p| wanted(p)).cloned().collect()
    }
}
