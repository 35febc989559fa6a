//! What the first bytes of a tunnel stream say (docs/spec/session.md).
//!
//! The opener writes a header of 4 bytes and may send data right behind it; the receiver answers with one byte
//! before any data. Nobody waits a round trip to start.

use core::fmt;

/// The header's version byte.
pub const VERSION: u8 = 1;
/// Bytes of a stream header.
pub const HEADER_LEN: usize = 4;

/// What a stream carries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum StreamKind {
    /// A TCP connection: bytes both ways, each half closed by itself.
    Tcp = 1,
    /// The life of a UDP flow; its packets travel as QUIC datagrams marked with the stream's index.
    Udp = 2,
    /// Whatever arrives is sent back; `peerage ping` measures with it.
    Echo = 3,
    /// One trust request and its receipt; the only kind a request-only session may open.
    Request = 4,
    /// Bytes are read and thrown away, then counted in the answer; `peerage bench` measures with it.
    Discard = 5,
}

/// The first bytes of a stream, from its opener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamHeader {
    /// What it carries.
    pub kind: StreamKind,
    /// The port asked for; zero where the kind has none.
    pub port: u16,
}

/// The one byte with which the receiver answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum StreamStatus {
    /// Go on.
    Open = 0,
    /// The receiver's policy lets this peer not open that port.
    Denied = 1,
    /// Allowed, but nothing listens there.
    Refused = 2,
    /// Allowed, but the service did not answer in time, or the receiver wants a direct path and there is none.
    Unreachable = 3,
    /// Too many streams from this peer at the moment.
    Busy = 4,
    /// This session cannot carry that kind.
    Unsupported = 5,
}

/// A header no version of ours writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a stream header of version {VERSION}")]
pub struct BadHeader;

impl StreamHeader {
    /// The bytes on the wire: version, kind, port (big-endian).
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let port = self.port.to_be_bytes();
        [VERSION, self.kind as u8, port[0], port[1]]
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`BadHeader`] for another version or an unknown kind.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, BadHeader> {
        let [VERSION, kind, high, low] = bytes else {
            return Err(BadHeader);
        };
        let kind = match kind {
            1 => StreamKind::Tcp,
            2 => StreamKind::Udp,
            3 => StreamKind::Echo,
            4 => StreamKind::Request,
            5 => StreamKind::Discard,
            _ => return Err(BadHeader),
        };
        Ok(Self { kind, port: u16::from_be_bytes([high, low]) })
    }
}

impl StreamStatus {
    /// Reads a status; an unknown one is a refusal we have no word for.
    #[must_use]
    pub fn decode(byte: u8) -> Self {
        match byte {
            0 => Self::Open,
            1 => Self::Denied,
            3 => Self::Unreachable,
            4 => Self::Busy,
            5 => Self::Unsupported,
            _ => Self::Refused,
        }
    }
}

impl fmt::Display for StreamStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Denied => "the peer does not let us open this port",
            Self::Refused => "nothing listens on this port at the peer",
            Self::Unreachable => {
                "the peer's service did not answer, or there is no direct path and its owner forbids relays"
            }
            Self::Busy => "the peer has too many streams from us open",
            Self::Unsupported => "the peer cannot carry this kind of stream",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_four_bytes_and_reads_back() {
        let header = StreamHeader { kind: StreamKind::Tcp, port: 8080 };
        assert_eq!(header.encode(), [1, 1, 0x1f, 0x90]);
        assert_eq!(StreamHeader::decode(header.encode()), Ok(header));
    }

    #[test]
    fn another_version_or_kind_is_refused() {
        for bytes in [[0, 1, 0, 80], [2, 1, 0, 80], [1, 0, 0, 80], [1, 6, 0, 80]] {
            assert_eq!(StreamHeader::decode(bytes), Err(BadHeader));
        }
    }
}
