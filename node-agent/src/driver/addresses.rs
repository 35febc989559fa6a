//! Where our sockets can be reached on this host's networks.

use std::net::{IpAddr, SocketAddr};

use super::socket::Sockets;

/// Every address of this host that a peer on the same network might use, with our port. The path agent decides which
/// of them to offer.
pub(super) fn local(sockets: &Sockets) -> Vec<SocketAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    };
    interfaces
        .into_iter()
        .map(|interface| interface.ip())
        .filter(usable)
        .filter_map(|ip| Some(SocketAddr::new(ip, sockets.port_for(&ip)?)))
        .collect()
}
