//! Source networks: what one party on the Internet can easily have many addresses of.

use std::net::{IpAddr, SocketAddr};

use crate::place::Place;

/// Of one IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// An IPv4 /24.
    V4([u8; 3]),
    /// An IPv6 /48.
    V6([u8; 6]),
}

impl Network {
    pub(crate) fn of(place: Place) -> Self {
        Self::of_address(place.address())
    }

    /// The network of an address; an IPv4-mapped one counts as IPv4.
    #[must_use]
    pub fn of_address(address: SocketAddr) -> Self {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }

    /// For hashing into tables of fixed size.
    pub(crate) fn bytes(self) -> [u8; 7] {
        match self {
            Self::V4([a, b, c]) => [4, a, b, c, 0, 0, 0],
            Self::V6([a, b, c, d, e, f]) => [6, a, b, c, d, e, f],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        Network::of_address(text.parse().expect("an address"))
    }

    #[test]
    fn neighbours_share_a_network_and_strangers_do_not() {
        assert_eq!(network("192.0.2.1:1"), network("192.0.2.254:9"));
        assert_ne!(network("192.0.2.1:1"), network("192.0.3.1:1"));
        assert_eq!(network("[2001:db8:0:1::1]:1"), network("[2001:db8:0:ffff::2]:1"));
        assert_ne!(network("[2001:db8:0::1]:1"), network("[2001:db8:1::1]:1"));
    }

    #[test]
    fn an_ipv4_address_is_one_network_however_it_is_written() {
        assert_eq!(network("[::ffff:192.0.2.1]:1"), network("192.0.2.9:1"));
    }
}
