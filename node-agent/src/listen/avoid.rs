//! Ports that programs here need themselves.

use std::fmt;
use std::str::FromStr;

use peerage_model::snapshot::Protocol;

/// A port of a program here, written `PORT`, `PORT/tcp` or `PORT/udp`. A listener of ours at it, though only on a peer's address,
/// would keep a program from starting that listens on all addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Avoid {
    /// By which transport.
    pub protocol: Protocol,
    /// Its number, never 0.
    pub port: u16,
}

impl FromStr for Avoid {
    type Err = InvalidAvoid;

    fn from_str(text: &str) -> Result<Self, InvalidAvoid> {
        let (number, protocol) = match text.trim().split_once('/') {
            None => (text.trim(), Protocol::Tcp),
            Some((number, "tcp")) => (number, Protocol::Tcp),
            Some((number, "udp")) => (number, Protocol::Udp),
            Some(_) => return Err(InvalidAvoid),
        };
        let port = number.parse().ok().filter(|port| *port != 0).ok_or(InvalidAvoid)?;
        Ok(Self { protocol, port })
    }
}

impl fmt::Display for Avoid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "{}", self.port),
            Protocol::Udp => write!(f, "{}/udp", self.port),
        }
    }
}

/// Text that is no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a port is a number from 1 to 65535, with /udp behind it where it is not TCP's")]
pub struct InvalidAvoid;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_read_as_it_is_written() {
        for text in ["80", "53/udp"] {
            assert_eq!(text.parse::<Avoid>().map(|avoid| avoid.to_string()).as_deref(), Ok(text));
        }
        assert_eq!("443/tcp".parse::<Avoid>().map(|avoid| avoid.port), Ok(443));
        for wrong in ["", "0", "65536", "80/sctp", "http"] {
            assert_eq!(wrong.parse::<Avoid>(), Err(InvalidAvoid), "{wrong}");
        }
    }
}
