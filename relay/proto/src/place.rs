//! Where a client is: how it is heard and answered.

use std::net::SocketAddr;

/// One stream (TLS on TCP), numbered by whoever owns the sockets; no number is used twice in a relay's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Where a frame came from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A UDP address.
    Udp(SocketAddr),
    /// The stream, and the address at its other end.
    Stream(StreamId, SocketAddr),
}

impl Place {
    /// The address there: whose quota it is, and what the client is told.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Udp(address) | Self::Stream(_, address) => *address,
        }
    }

    /// What a cookie is made for. A stream's is worth nothing elsewhere: behind a carrier's NAT the same address and port
    /// may be another client's on UDP.
    pub(crate) fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Udp(_) => None,
            Self::Stream(id, _) => Some(*id),
        }
    }
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self::Udp(address)
    }
}
