//! The two ends of a direct path: one of our sockets, and an address of the peer.

use std::net::SocketAddr;

/// A socket beside the main one. The engine names it; the driver opens and closes it when told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtraSocket(pub u32);

/// A stream to a relay, for where UDP is blocked. The engine names it; the driver opens and closes it when told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayStream(pub u32);

/// By what a datagram leaves this agent, or came to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// The UDP socket that relays and candidates know; of its two, the one of the other end's address family.
    Main,
    /// One of the UDP sockets of a birthday round, or what is left of it: the one that met the peer.
    Extra(ExtraSocket),
    /// A stream to a relay. What goes there are relay frames; no direct path has it.
    RelayStream(RelayStream),
}

/// A direct path: what the peer sees of us hangs on the socket, so a path is a pair of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirectPath {
    /// Our end.
    pub link: Link,
    /// The peer's end.
    pub remote: SocketAddr,
}

impl DirectPath {
    /// Into a stream; there is no address to say.
    pub(crate) fn stream(stream: RelayStream) -> Self {
        Self { link: Link::RelayStream(stream), remote: SocketAddr::from(([0, 0, 0, 0], 0)) }
    }

    /// From the main socket to `remote`.
    #[must_use]
    pub const fn main(remote: SocketAddr) -> Self {
        Self { link: Link::Main, remote }
    }
}
