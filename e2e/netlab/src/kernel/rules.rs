//! What gateways do, as rules for `nft -f`: each kind of NAT out of what Linux has.
//!
//! Linux keeps a mapping for each destination and the inside port where it can; that alone is a NAT of its own kind. A
//! cone, whose public port is the same for all, is a `snat` out and a `dnat` of everything that comes in, so that also
//! what no conntrack entry knows finds the one host inside; a set of contacted endpoints is the filter. The next port
//! after the last is a counter (`numgen inc`) over a map of ports.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::network::Network;

/// What a set of contacted endpoints forgets after: RFC 4787 REQ-5's least.
const CONTACT: Duration = Duration::from_secs(120);
/// Ports of a sequential NAT: enough that the first is forgotten when the last is given out.
const SEQUENCE: std::ops::Range<u16> = 20_000..24_000;

/// The ports that a carrier leaves to one subscriber (deterministic, as in RFC 7422), by the subscriber's number.
pub(crate) fn subscriber_ports(number: u8) -> std::ops::RangeInclusive<u16> {
    let first = 20_000 + 1_000 * u16::from(number % 40);
    first..=first + 999
}

/// A gateway with one host inside, to which it lets everybody at these ports of its own address.
pub(crate) fn gateway(network: Network, public: Ipv4Addr, host: Ipv4Addr, open: &[u16]) -> String {
    let mut rules = String::from("flush ruleset\ntable ip gateway {\n");
    for part in [sets(network), input(network), forward(network), nat(network, public, host, open)] {
        rules.push_str(&part);
    }
    rules.push_str("}\n");
    if network.has_ipv6() {
        rules.push_str(FIREWALL_V6);
    }
    rules
}

/// RFC 6092, simple security: out is allowed, in only what belongs to something that went out.
const FIREWALL_V6: &str = "table ip6 firewall {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname \"lan\" accept
  }
}
";

fn sets(network: Network) -> String {
    let kind = match network {
        Network::RestrictedCone => "ipv4_addr",
        Network::PortRestricted => "ipv4_addr . inet_service",
        _ => return String::new(),
    };
    let seconds = CONTACT.as_secs();
    format!("  set contacted {{ type {kind}; size 65535; flags dynamic,timeout; timeout {seconds}s; }}\n")
}

/// What is addressed to the gateway itself. Where strangers are accepted, conntrack remembers them.
fn input(network: Network) -> String {
    let strangers = if network == Network::PortRestrictedOpenInput { "accept" } else { "drop" };
    format!(
        "  chain input {{
    type filter hook input priority filter; policy {strangers};
    ct state established,related accept
    iifname \"lan\" accept
    iifname \"lo\" accept
  }}\n"
    )
}

fn forward(network: Network) -> String {
    let rules = match network {
        Network::RestrictedCone => {
            "iifname \"lan\" meta l4proto udp update @contacted { ip daddr }
    iifname \"wan\" meta l4proto udp ip saddr != @contacted drop"
        }
        Network::PortRestricted => {
            "iifname \"lan\" meta l4proto udp update @contacted { ip daddr . udp dport }
    iifname \"wan\" meta l4proto udp ip saddr . udp sport != @contacted drop"
        }
        Network::UdpBlocked => "meta l4proto udp drop",
        Network::HttpProxy => "drop",
        _ => "",
    };
    format!("  chain forward {{\n    type filter hook forward priority filter; policy accept;\n    {rules}\n  }}\n")
}

fn nat(network: Network, public: Ipv4Addr, host: Ipv4Addr, open: &[u16]) -> String {
    let (inward, outward) = match network {
        Network::FullCone | Network::RestrictedCone | Network::PortRestricted => {
            (format!("iifname \"wan\" meta l4proto udp dnat to {host}"), format!("snat to {public}"))
        }
        Network::SymmetricSequential => (String::new(), format!("meta l4proto udp {}", sequential(public))),
        Network::SymmetricRandom | Network::DualStack => (String::new(), "masquerade fully-random".to_owned()),
        _ => (String::new(), "masquerade".to_owned()),
    };
    let open = open_ports(public, host, open);
    format!(
        "  chain prerouting {{ type nat hook prerouting priority dstnat; {open}
    {inward}
  }}
  chain postrouting {{ type nat hook postrouting priority srcnat; oifname \"wan\" {outward}
    oifname \"wan\" masquerade
    iifname \"lan\" oifname \"lan\" masquerade
  }}\n"
    )
}

/// Also for who is inside itself: what it sends to its own public address comes back.
fn open_ports(public: Ipv4Addr, host: Ipv4Addr, ports: &[u16]) -> String {
    let line = |port: &u16| format!("ip daddr {public} meta l4proto {{ tcp, udp }} th dport {port} dnat to {host}");
    ports.iter().map(line).collect::<Vec<_>>().join("\n    ")
}

/// `numgen` counts in the machine's byte order and a port is in the network's, so that the step between them is a map.
fn sequential(public: Ipv4Addr) -> String {
    let mut ports = String::new();
    for (index, port) in SEQUENCE.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(ports, "{comma}{index}:{port}").expect("a String takes everything");
    }
    format!("snat to {public} : numgen inc mod {} map {{ {ports} }}", SEQUENCE.len())
}

/// A carrier's gateway: a block of ports for each subscriber, from which everybody may be reached.
pub(crate) fn carrier(public: Ipv4Addr, hairpin: bool, subscribers: &[(u8, Ipv4Addr)]) -> String {
    let mut inward = String::new();
    for (number, address) in subscribers {
        let ports = subscriber_ports(*number);
        let from = if hairpin { "" } else { "iifname \"wan\" " };
        let (first, last) = (ports.start(), ports.end());
        writeln!(inward, "    {from}ip daddr {public} udp dport {first}-{last} dnat to {address}")
            .expect("a String takes everything");
    }
    format!(
        "flush ruleset
table ip carrier {{
  chain input {{ type filter hook input priority filter; policy drop; ct state established,related accept
  }}
  chain prerouting {{ type nat hook prerouting priority dstnat;
{inward}  }}
  chain postrouting {{ type nat hook postrouting priority srcnat;
    oifname \"wan\" snat to {public}
    oifname != \"wan\" ct status dnat iifname != \"wan\" snat to {public}
  }}
}}
{COUNTERS}"
    )
}

/// The internet itself: it only counts, and may be told to keep two sites apart.
pub(crate) fn internet() -> String {
    format!("flush ruleset\n{COUNTERS}{BLOCKS}")
}

/// Bytes by source and destination, read by [`super::KernelLab::bytes`].
const COUNTERS: &str = "table inet count {
  set flows4 { type ipv4_addr . ipv4_addr; size 65535; flags dynamic; counter; }
  set flows6 { type ipv6_addr . ipv6_addr; size 65535; flags dynamic; counter; }
  chain flows {
    type filter hook forward priority 10; policy accept;
    update @flows4 { ip saddr . ip daddr counter }
    update @flows6 { ip6 saddr . ip6 daddr counter }
  }
}
";

const BLOCKS: &str = "table ip block {
  set pairs { type ipv4_addr . ipv4_addr; }
  chain apart {
    type filter hook forward priority filter; policy accept;
    ip saddr . ip daddr @pairs drop
  }
}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscribers_have_ports_of_their_own() {
        for number in 0..39 {
            assert!(subscriber_ports(number).end() < subscriber_ports(number + 1).start());
        }
    }

    #[test]
    fn a_sequential_gateway_counts_up() {
        let rules = gateway(Network::SymmetricSequential, [198, 18, 1, 1].into(), [10, 0, 1, 2].into(), &[]);
        assert!(rules.contains("0:20000,1:20001,2:20002"), "{rules}");
        assert!(rules.contains("numgen inc mod 4000"), "{rules}");
    }
}
