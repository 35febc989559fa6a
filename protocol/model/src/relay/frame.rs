//! Relay frames as bytes (`docs/spec/relay.md`).
//!
//! Reading borrows from the datagram and copies nothing but ids; writing goes into arrays on the stack. Nothing here
//! decides: whether a tag, cookie or MAC is right is the business of who holds the state. The key schedule of binding,
//! which both sides must agree on to the byte, is in [`keys`].

use core::fmt;
use core::net::SocketAddr;

use data_encoding::HEXLOWER;

use crate::id::{InstanceId, RoutingId};
use crate::keys::AgreementKey;
use crate::passport::MAX_CREDENTIAL;

pub mod keys;
pub mod mailbox;
mod read;
#[cfg(test)]
mod tests;
mod write;

use self::mailbox::{MailId, NameKey, Records, SEALED};
use self::write::header;
pub use self::write::{
    address_bytes, alive, bind_head, bound, cookie, drain, from_header, hello, keepalive, moved, others, refused,
    unbind, visit, visiting, who_else,
};

/// First byte of every frame of version 1: 3 + version, within the range 4–15 that relay frames own on the socket.
pub const VERSION_1: u8 = 4;
/// Bytes of version, type and tag.
pub const HEADER: usize = 8;
/// Bytes before the packet in TO_ENDPOINT and FROM. Equal, so that a relay rewrites in place.
pub const ENDPOINT_HEADER: usize = 16;
/// Bytes before the packet in TO_ROUTE.
pub const ROUTE_HEADER: usize = 24;
/// Longest packet inside a frame: with its header it fits an Ethernet jumbo frame.
pub const MAX_PACKET: usize = 8976;
/// Bytes of HELLO.
pub const HELLO: usize = 40;
/// Bytes of COOKIE, and so the least that a challenged datagram must have.
pub const COOKIE: usize = 32;
/// Bytes of BOUND.
pub const BOUND: usize = 50;
/// Bytes of REFUSED.
pub const REFUSED: usize = 25;
/// Bytes of VISIT.
pub const VISIT: usize = 48;
/// Bytes of VISITING.
pub const VISITING: usize = 42;
/// Bytes of MOVE.
pub const MOVE: usize = 56;
/// Bytes of KEEPALIVE.
pub const KEEPALIVE: usize = 32;
/// Bytes of ALIVE.
pub const ALIVE: usize = 19;
/// Bytes of DRAIN.
pub const DRAIN: usize = 26;
/// Bytes of UNBIND.
pub const UNBIND: usize = 32;
/// Bytes of WHO_ELSE: more than the longest answer.
pub const WHO_ELSE: usize = 88;
/// Most ids in OTHERS.
pub const MAX_OTHERS: usize = 8;
/// Bytes of a truncated HMAC-SHA256.
pub const MAC: usize = 16;
/// Bytes of the AEAD tag behind a sealed credential.
pub const SEAL_TAG: usize = 16;
/// Bytes of BIND before the sealed credential.
pub const BIND_HEAD: usize = HEADER + 16 + 32;
/// Longest BIND.
pub const MAX_BIND: usize = BIND_HEAD + MAX_CREDENTIAL + SEAL_TAG + MAC;

/// What a first byte says about a datagram on the shared socket.
#[must_use]
pub fn is_relay_frame(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(4..=15))
}

/// "I am not guessing": repeated by an answer, or given by the relay for all later frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tag(pub [u8; 6]);

/// A relay's stateless proof that an address can receive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cookie(pub [u8; 16]);

/// One run of a relay: another value means that it forgot everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boot(pub [u8; 8]);

/// Who is at the other end of a relay: a bound instance's [`InstanceId`], or the id a relay gave a visitor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub [u8; 8]);

impl From<InstanceId> for EndpointId {
    fn from(id: InstanceId) -> Self {
        Self(id.0)
    }
}

macro_rules! hex_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }
    )*};
}
hex_debug!(Boot, EndpointId);

// Tags and cookies speak for their holder, so logs never show them.
macro_rules! hidden_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    )*};
}
hidden_debug!(Tag, Cookie);

/// Frame types: the second byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Type {
    /// Asks for a cookie.
    Hello = 1,
    /// Gives one.
    Cookie = 2,
    /// Claims a routing id.
    Bind = 3,
    /// Grants it.
    Bound = 4,
    /// Does not.
    Refused = 5,
    /// Asks for an endpoint id without an account.
    Visit = 6,
    /// Gives one.
    Visiting = 7,
    /// A bound client at another address.
    Move = 8,
    /// Keeps a NAT's mapping and a binding alive.
    Keepalive = 9,
    /// Answers a keepalive.
    Alive = 10,
    /// The relay goes away soon.
    Drain = 11,
    /// First contact, by routing id.
    ToRoute = 12,
    /// To one endpoint.
    ToEndpoint = 13,
    /// From one endpoint.
    From = 14,
    /// A bound client goes away.
    Unbind = 15,
    /// Asks whose agents have a name.
    Lookup = 16,
    /// Answers it.
    Records = 17,
    /// Leaves a request in a mailbox.
    Post = 18,
    /// Answers it, whether or not there is such a mailbox.
    Posted = 19,
    /// A bound client looks into its mailbox.
    Check = 20,
    /// What is in it.
    Mail = 21,
    /// A bound client asks who else is bound under its routing id.
    WhoElse = 22,
    /// Answers it.
    Others = 23,
}

impl Type {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Hello,
            2 => Self::Cookie,
            3 => Self::Bind,
            4 => Self::Bound,
            5 => Self::Refused,
            6 => Self::Visit,
            7 => Self::Visiting,
            8 => Self::Move,
            9 => Self::Keepalive,
            10 => Self::Alive,
            11 => Self::Drain,
            12 => Self::ToRoute,
            13 => Self::ToEndpoint,
            14 => Self::From,
            15 => Self::Unbind,
            16 => Self::Lookup,
            17 => Self::Records,
            18 => Self::Post,
            19 => Self::Posted,
            20 => Self::Check,
            21 => Self::Mail,
            22 => Self::WhoElse,
            23 => Self::Others,
            _ => return None,
        })
    }
}

/// Why a relay refuses a BIND.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The credential does not verify now: expired, not valid yet, or malformed. Often a clock.
    Credential,
    /// The authority is not among those this relay serves.
    Authority,
    /// A quota or the relay's memory is used up.
    Full,
    /// The relay is going away.
    Draining,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Credential => {
                "it does not accept this agent's passport, mostly because the clock here or there is wrong: check `date`"
            }
            Self::Authority => {
                "it serves only authorities that its owner allows: give it this agent's (`peerage status`) for --allow-authority"
            }
            Self::Full => "it has no room at the moment; this agent asks again",
            Self::Draining => "it is going away",
        })
    }
}

impl Refusal {
    const fn code(self) -> u8 {
        match self {
            Self::Credential => 1,
            Self::Authority => 2,
            Self::Full => 3,
            Self::Draining => 4,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Credential,
            2 => Self::Authority,
            4 => Self::Draining,
            _ => Self::Full, // of a later version: "not now"
        }
    }
}

/// Where a packet shall go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// Any instance of an agent; for first contact.
    Route(RoutingId),
    /// This endpoint.
    Endpoint(EndpointId),
}

impl Destination {
    /// Bytes that go before a packet to here.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        match self {
            Self::Route(_) => ROUTE_HEADER,
            Self::Endpoint(_) => ENDPOINT_HEADER,
        }
    }

    /// Writes that header.
    ///
    /// # Panics
    /// If `out` is shorter than [`Self::header_len`].
    pub fn write_header(&self, tag: Tag, out: &mut [u8]) {
        match self {
            Self::Route(id) => {
                header(out, Type::ToRoute, tag);
                out[HEADER..ROUTE_HEADER].copy_from_slice(&id.0);
            }
            Self::Endpoint(id) => {
                header(out, Type::ToEndpoint, tag);
                out[HEADER..ENDPOINT_HEADER].copy_from_slice(&id.0);
            }
        }
    }
}

/// What BOUND and VISITING grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// For all later frames.
    pub tag: Tag,
    /// Seconds without a frame after which it ends.
    pub lifetime: u16,
    /// The client's address as the relay saw it.
    pub observed: SocketAddr,
}

/// What a relay says beside "I am here".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AliveFlags {
    /// The relay goes away soon.
    pub draining: bool,
    /// There is something in our mailbox.
    pub mail: bool,
    /// Others are bound under our routing id.
    pub others: bool,
}

impl AliveFlags {
    const fn byte(self) -> u8 {
        self.draining as u8 | (self.mail as u8) << 1 | (self.others as u8) << 2
    }

    const fn from_byte(byte: u8) -> Self {
        Self { draining: byte & 1 != 0, mail: byte & 2 != 0, others: byte & 4 != 0 }
    }
}

/// A frame, borrowed from its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Asks for a cookie.
    Hello,
    /// Gives one.
    Cookie {
        /// The proof to repeat.
        cookie: Cookie,
        /// The relay's run.
        boot: Boot,
    },
    /// Claims a routing id.
    Bind {
        /// From COOKIE.
        cookie: Cookie,
        /// The client's fresh key.
        e: AgreementKey,
        /// The credential, sealed, with its AEAD tag.
        sealed: &'a [u8],
        /// Over everything before it.
        mac: &'a [u8; MAC],
    },
    /// Grants it.
    Bound {
        /// What.
        grant: Grant,
        /// Over everything before it.
        mac: &'a [u8; MAC],
    },
    /// Does not.
    Refused {
        /// Why.
        reason: Refusal,
        /// Over everything before it.
        mac: &'a [u8; MAC],
    },
    /// Asks for an endpoint id.
    Visit {
        /// From COOKIE.
        cookie: Cookie,
        /// Id and tag of before a change of address.
        earlier: Option<(EndpointId, Tag)>,
    },
    /// Gives one.
    Visiting {
        /// What.
        grant: Grant,
        /// The visitor's id.
        id: EndpointId,
    },
    /// A bound client at another address.
    Move {
        /// From COOKIE.
        cookie: Cookie,
        /// Who.
        id: EndpointId,
        /// Grows.
        counter: u64,
        /// Over everything before it.
        mac: &'a [u8; MAC],
    },
    /// Keeps alive.
    Keepalive {
        /// Repeated by the answer.
        nonce: [u8; 8],
    },
    /// Answers it.
    Alive {
        /// From the keepalive.
        nonce: [u8; 8],
        /// Seconds without a frame after which the binding ends.
        lifetime: u16,
        /// What else there is to know.
        flags: AliveFlags,
    },
    /// The relay goes away.
    Drain {
        /// Seconds for which it still forwards.
        grace: u16,
        /// Over everything before it.
        mac: &'a [u8; MAC],
    },
    /// A packet to somewhere.
    To {
        /// Where to.
        destination: Destination,
        /// The sealed packet.
        packet: &'a [u8],
    },
    /// A packet from somebody.
    From {
        /// Who.
        source: EndpointId,
        /// The sealed packet.
        packet: &'a [u8],
    },
    /// Asks whose agents have a name.
    Lookup {
        /// Repeated by the answer.
        nonce: [u8; 8],
        /// The name.
        name: NameKey,
        /// Whom the answer is for.
        e: AgreementKey,
    },
    /// Answers it.
    Records {
        /// From LOOKUP.
        nonce: [u8; 8],
        /// Of authorities.
        records: Records<'a>,
        /// Over the frame before it, by [`mailbox::answer_key`].
        mac: &'a [u8; MAC],
    },
    /// Leaves a request in a mailbox.
    Post {
        /// Repeated by the answer.
        nonce: [u8; 8],
        /// Whose mailbox.
        to: RoutingId,
        /// The request.
        sealed: &'a [u8; SEALED],
    },
    /// Answers it.
    Posted {
        /// From POST.
        nonce: [u8; 8],
    },
    /// A bound client looks into its mailbox.
    Check {
        /// Repeated by the answer.
        nonce: [u8; 8],
        /// Which mail the relay may forget.
        done: MailId,
        /// Over everything before it.
        mac: &'a [u8; MAC],
    },
    /// What is in it.
    Mail {
        /// From CHECK.
        nonce: [u8; 8],
        /// For [`Frame::Check`].
        id: MailId,
        /// The oldest mail, if there is one.
        sealed: Option<&'a [u8; SEALED]>,
        /// Over everything before it.
        mac: &'a [u8; MAC],
    },
    /// A bound client goes away.
    Unbind {
        /// Who.
        id: EndpointId,
        /// Over everything before it.
        mac: &'a [u8; MAC],
    },
    /// A bound client asks who else is bound under its routing id.
    WhoElse {
        /// Repeated by the answer.
        nonce: [u8; 8],
    },
    /// Answers it.
    Others {
        /// From WHO_ELSE.
        nonce: [u8; 8],
        /// Some of them, each 8 bytes.
        ids: &'a [[u8; 8]],
    },
}

/// Not a frame of version 1. Dropped in silence whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a relay frame of version 1")]
pub struct NotAFrame;
