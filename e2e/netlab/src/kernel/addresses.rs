//! Who has which address. Site N: 198.18.N.1 and up in public (RFC 2544: set apart for laboratories), 10.0.N.2 behind a
//! gateway, 2001:db8:N::/48 (RFC 3849); carrier K: 198.19.K.1, its subscribers 100.64.K.N (RFC 6598).

use std::net::Ipv4Addr;

use super::{Network, Public, SiteConfig, rules};

/// Where a home's gateway is in its carrier's network (RFC 6598).
pub(super) fn subscriber(network: Network, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, network.carrier().unwrap_or_default(), number)
}

/// What the gateway itself calls its public address.
pub(super) fn own_public(network: Network, number: u8, public: Ipv4Addr) -> Ipv4Addr {
    if network.carrier().is_some() { subscriber(network, number) } else { public }
}

pub(super) fn range(number: u8) -> String {
    let ports = rules::subscriber_ports(number);
    format!("{} {}", ports.start(), ports.end())
}

/// The host's side of its own network.
pub(super) fn inner_addresses(number: u8, network: Network, inside: Ipv4Addr, link: &str) -> Vec<String> {
    let mut lines = Vec::new();
    if network.has_ipv4() {
        lines.push(format!("addr add {inside}/24 dev {link}"));
        // A node has had another way out.
        lines.push(format!("route replace default dev {link}"));
    }
    if network.has_ipv6() {
        lines.push(format!("addr add 2001:db8:{number:x}::2/64 dev {link} nodad"));
        lines.push(format!("route replace ::/0 dev {link}"));
    }
    lines
}

/// The gateway's.
pub(super) fn lan_addresses(number: u8, network: Network) -> Vec<String> {
    let mut lines = vec![format!("addr add 10.0.{number}.1/24 dev lan")];
    if network.has_ipv6() {
        lines.push(format!("addr add 2001:db8:{number:x}::1/64 dev lan nodad"));
    }
    lines
}

/// Whoever faces the internet.
pub(super) fn network_addresses(number: u8, config: &SiteConfig) -> Vec<String> {
    let public = config.public.unwrap_or(Public { addresses: 1, ipv6: false });
    let mut lines: Vec<String> =
        (1..=public.addresses).map(|last| format!("addr add 198.18.{number}.{last}/32 dev wan")).collect();
    lines.push("route add default dev wan".into());
    if public.ipv6 {
        lines.push(format!("addr add 2001:db8:{number:x}::2/128 dev wan nodad"));
    }
    if public.ipv6 || config.network.has_ipv6() {
        lines.push("route add ::/0 dev wan".into());
    }
    lines
}
