//! Socket addresses as they stand in a program's memory.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// `sizeof(struct sockaddr_storage)`: a longer address is refused by the kernel itself.
pub(crate) const LONGEST: usize = 128;

/// What the bytes of a `struct sockaddr` say, as far as we care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// As the socket sees it: an IPv6 socket's `::ffff:127.64.3.7` is kept as IPv6.
    Ip(SocketAddr),
    /// The name service cache daemon, which would answer from its own view of /etc/hosts.
    NameCache,
    Other,
}

impl Target {
    pub(crate) fn from_memory(bytes: &[u8]) -> Self {
        let Some((family, rest)) = bytes.split_first_chunk::<2>() else {
            return Self::Other;
        };
        match i32::from(u16::from_ne_bytes(*family)) {
            libc::AF_INET => ipv4(rest).map_or(Self::Other, Self::Ip),
            libc::AF_INET6 => ipv6(rest).map_or(Self::Other, Self::Ip),
            libc::AF_UNIX if is_name_cache(rest) => Self::NameCache,
            _ => Self::Other,
        }
    }
}

fn ipv4(rest: &[u8]) -> Option<SocketAddr> {
    // The eight bytes of padding belong to the length the kernel demands.
    let bytes = rest.first_chunk::<14>()?;
    let port = u16::from_be_bytes([bytes[0], bytes[1]]);
    Some(SocketAddrV4::new(Ipv4Addr::new(bytes[2], bytes[3], bytes[4], bytes[5]), port).into())
}

fn ipv6(rest: &[u8]) -> Option<SocketAddr> {
    let bytes = rest.first_chunk::<26>()?;
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let ip: [u8; 16] = bytes[6..22].try_into().ok()?;
    let port = u16::from_be_bytes([bytes[0], bytes[1]]);
    Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, word(2), word(22)).into())
}

fn is_name_cache(path: &[u8]) -> bool {
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    path == b"/var/run/nscd/socket" || path == b"/run/nscd/socket"
}

/// The address a person would write: IPv4 also where an IPv6 socket names it.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `to` in the family of the socket that `asked` came from; `None` where that family cannot say it.
pub(crate) fn in_family_of(asked: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
    match (asked, to) {
        (SocketAddr::V4(_), SocketAddr::V6(_)) => None,
        (SocketAddr::V6(asked), SocketAddr::V4(to)) => {
            let mapped = to.ip().to_ipv6_mapped();
            Some(SocketAddrV6::new(mapped, to.port(), asked.flowinfo(), asked.scope_id()).into())
        }
        (SocketAddr::V4(_), SocketAddr::V4(_)) | (SocketAddr::V6(_), SocketAddr::V6(_)) => Some(to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_read() {
        let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        bytes.extend([0, 80, 127, 64, 3, 7]);
        bytes.extend([0; 8]);
        assert_eq!(Target::from_memory(&bytes), Target::Ip(SocketAddr::from(([127, 64, 3, 7], 80))));
    }

    #[test]
    fn a_mapped_address_is_canonical_ipv4_and_goes_back_as_mapped() {
        let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        bytes.extend([0, 80, 0, 0, 0, 0]);
        bytes.extend(Ipv4Addr::new(127, 64, 3, 7).to_ipv6_mapped().octets());
        bytes.extend([0; 4]);
        let Target::Ip(asked) = Target::from_memory(&bytes) else { panic!("an address") };
        assert_eq!(canonical(asked), SocketAddr::from(([127, 64, 3, 7], 80)));
        let to = in_family_of(asked, SocketAddr::from(([127, 0, 0, 1], 8080))).expect("mapped");
        assert_eq!(to.to_string(), "[::ffff:127.0.0.1]:8080");
    }

    #[test]
    fn an_ipv4_socket_cannot_go_to_ipv6() {
        let asked = SocketAddr::from(([127, 64, 3, 7], 80));
        assert_eq!(in_family_of(asked, SocketAddr::from((Ipv6Addr::LOCALHOST, 80))), None);
    }

    #[test]
    fn only_the_name_cache_among_unix_sockets_matters() {
        let unix = |path: &[u8]| Target::from_memory(&[&(libc::AF_UNIX as u16).to_ne_bytes()[..], path].concat());
        assert_eq!(unix(b"/var/run/nscd/socket\0\0\0"), Target::NameCache);
        assert_eq!(unix(b"/run/dbus/system_bus_socket\0"), Target::Other);
    }

    #[test]
    fn truncated_addresses_are_left_alone() {
        let whole = [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &[0; 26]].concat();
        for len in 0..whole.len() {
            assert_eq!(Target::from_memory(&whole[..len]), Target::Other, "{len} bytes");
        }
    }
}
