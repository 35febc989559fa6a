//! Where our sockets can be reached on this host's networks.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::socket::Sockets;

/// Every address of this host that a peer on the same network might use, with our port. The path agent decides which
/// of them to offer.
///
/// # Errors
/// The kernel did not say; that is not the same as "none".
pub(super) fn local(sockets: &Sockets) -> io::Result<Vec<SocketAddr>> {
    let interfaces = if_addrs::get_if_addrs()?;
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    };
    let usable = interfaces.into_iter().map(|interface| interface.ip()).filter(usable);
    Ok(usable.filter_map(|ip| Some(SocketAddr::new(ip, sockets.port_for(&ip)?))).collect())
}
