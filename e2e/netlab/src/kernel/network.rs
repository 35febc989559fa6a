//! What stands between a host and the internet, and what theory says about each pair.

use std::fmt;
use std::str::FromStr;

use peerage_sim::nat::{self, NatKind, Possibility, can_be_direct};

/// A kind of access network. The order is that of the matrix: from open to closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// A public address, nothing in between.
    None,
    /// Whoever knows the public endpoint may send to it.
    FullCone,
    /// Whoever was sent to may answer, from any port.
    RestrictedCone,
    /// Only the very endpoint that was sent to may answer; one public port for all destinations.
    PortRestricted,
    /// Plain `masquerade` on a gateway that takes strangers' packets for itself: one that comes too early takes the
    /// port away.
    PortRestrictedOpenInput,
    /// Plain `masquerade` on a gateway that drops what is meant for nobody: the inside port for each destination.
    SymmetricPreserving,
    /// The next public port for each destination.
    SymmetricSequential,
    /// `masquerade fully-random`: any public port for each destination.
    SymmetricRandom,
    /// A home router behind a carrier's NAT that turns packets round for its own subscribers (RFC 6888 REQ-1, RFC 4787
    /// REQ-9).
    CarrierHairpin,
    /// The same, but two subscribers cannot meet by their public endpoints.
    Carrier,
    /// Plain `masquerade` that forgets a mapping after twenty seconds: less than any home router that was measured
    /// (Hätönen and others, IMC 2010: 30 s).
    ShortLived,
    /// No IPv4; a firewall lets answers in (RFC 6092).
    Ipv6Only,
    /// IPv6 as above, and IPv4 behind the worst NAT.
    DualStack,
    /// TCP goes out, UDP does not.
    UdpBlocked,
    /// Nothing goes out but through an HTTP proxy that allows CONNECT to port 443.
    HttpProxy,
}

impl Network {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::None,
        Self::FullCone,
        Self::RestrictedCone,
        Self::PortRestricted,
        Self::PortRestrictedOpenInput,
        Self::SymmetricPreserving,
        Self::SymmetricSequential,
        Self::SymmetricRandom,
        Self::CarrierHairpin,
        Self::Carrier,
        Self::ShortLived,
        Self::Ipv6Only,
        Self::DualStack,
        Self::UdpBlocked,
        Self::HttpProxy,
    ];

    /// As it is typed and printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full-cone",
            Self::RestrictedCone => "restricted-cone",
            Self::PortRestricted => "port-restricted",
            Self::PortRestrictedOpenInput => "open-input",
            Self::SymmetricPreserving => "preserving",
            Self::SymmetricSequential => "sequential",
            Self::SymmetricRandom => "random",
            Self::CarrierHairpin => "cgnat-hairpin",
            Self::Carrier => "cgnat",
            Self::ShortLived => "short-lived",
            Self::Ipv6Only => "ipv6-only",
            Self::DualStack => "dual-stack",
            Self::UdpBlocked => "udp-blocked",
            Self::HttpProxy => "http-proxy",
        }
    }

    /// The same IPv4 translation in the simulation; nothing where UDP over IPv4 does not get out.
    #[must_use]
    pub const fn nat(self) -> Option<NatKind> {
        match self {
            Self::None => Some(NatKind::none()),
            Self::FullCone => Some(NatKind::full_cone()),
            Self::RestrictedCone => Some(NatKind::restricted_cone()),
            // The home router decides: the carrier's filter is the more liberal one.
            Self::PortRestricted | Self::CarrierHairpin | Self::Carrier => Some(NatKind::port_restricted_cone()),
            Self::PortRestrictedOpenInput => Some(NatKind::symmetric_port_stealing()),
            Self::SymmetricPreserving | Self::ShortLived => Some(NatKind::symmetric_preserving()),
            Self::SymmetricSequential => Some(NatKind::symmetric_sequential()),
            Self::SymmetricRandom | Self::DualStack => Some(NatKind::symmetric_random()),
            Self::Ipv6Only | Self::UdpBlocked | Self::HttpProxy => None,
        }
    }

    /// What an agent in it has to call its NAT, in the words of RFC 3489, with a relay that has two addresses of IPv4.
    #[must_use]
    pub const fn nat_type(self) -> &'static str {
        match self {
            Self::None => "open internet",
            Self::FullCone => "full cone",
            Self::RestrictedCone => "restricted cone",
            // Where the inside port is kept for every destination, nobody can tell that from one mapping for all.
            Self::PortRestricted
            | Self::PortRestrictedOpenInput
            | Self::SymmetricPreserving
            | Self::CarrierHairpin
            | Self::Carrier
            | Self::ShortLived => "port-restricted cone",
            Self::SymmetricSequential | Self::SymmetricRandom | Self::DualStack => "symmetric",
            // The relay's second address is one of IPv4.
            Self::Ipv6Only => "no NAT",
            Self::UdpBlocked | Self::HttpProxy => "blocked",
        }
    }

    /// The same network in the simulation. To agents a proxy is one more network without UDP.
    #[must_use]
    pub fn simulated(self) -> nat::Network {
        match self {
            Self::Ipv6Only => nat::Network::ipv6_only(),
            Self::DualStack => nat::Network::dual_stack(),
            Self::CarrierHairpin | Self::Carrier => nat::Network {
                carrier: Some(NatKind::carrier(self == Self::CarrierHairpin)),
                ..NatKind::home_router().into()
            },
            network => network.nat().map_or(nat::Network::udp_blocked(), nat::Network::from),
        }
    }

    /// Whether a host there has IPv6.
    #[must_use]
    pub const fn has_ipv6(self) -> bool {
        matches!(self, Self::Ipv6Only | Self::DualStack)
    }

    /// Whether a host there has IPv4.
    #[must_use]
    pub const fn has_ipv4(self) -> bool {
        !matches!(self, Self::Ipv6Only)
    }

    /// Whether UDP gets out.
    #[must_use]
    pub const fn has_udp(self) -> bool {
        !matches!(self, Self::UdpBlocked | Self::HttpProxy)
    }

    /// Whether the client's and the server's carrier is one.
    pub(crate) const fn carrier(self) -> Option<u8> {
        match self {
            Self::CarrierHairpin => Some(1),
            Self::Carrier => Some(2),
            _ => None,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Text that names no network of the lab.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not one of the lab's networks: {}", Network::ALL.map(Network::name).join(", "))]
pub struct UnknownNetwork {
    text: String,
}

impl FromStr for Network {
    type Err = UnknownNetwork;

    fn from_str(text: &str) -> Result<Self, UnknownNetwork> {
        Self::ALL
            .into_iter()
            .find(|network| network.name() == text)
            .ok_or_else(|| UnknownNetwork { text: text.to_owned() })
    }
}

/// The least effort by which a host in `a` and one in `b` can exchange packets without a relay. What `peerage_sim`'s
/// oracle says of the two NATs, and where it knows no better: IPv6 beside them, one carrier before both, no UDP at all.
#[must_use]
pub fn possibility(a: Network, b: Network) -> Possibility {
    if !a.has_udp() || !b.has_udp() {
        return Possibility::Impossible;
    }
    if a == Network::Carrier && b == Network::Carrier {
        // Their public endpoints are the only ones they know, and those lead nowhere from inside.
        return Possibility::Impossible;
    }
    let ipv4 = match (a.nat(), b.nat()) {
        (Some(a), Some(b)) => can_be_direct(&a, &b),
        _ => Possibility::Impossible,
    };
    // Two firewalls that let answers in: both must send.
    let ipv6 = if a.has_ipv6() && b.has_ipv6() { Possibility::Punched } else { Possibility::Impossible };
    ipv4.min(ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_is_known_by_its_name() {
        for network in Network::ALL {
            assert_eq!(network.name().parse(), Ok(network));
        }
        assert!("cone".parse::<Network>().is_err());
    }

    #[test]
    fn who_reaches_whom_does_not_depend_on_who_asks() {
        for a in Network::ALL {
            for b in Network::ALL {
                assert_eq!(possibility(a, b), possibility(b, a), "{a} {b}");
            }
        }
    }

    #[test]
    fn the_simulation_says_the_same_of_every_pair() {
        use nat::{Verdict, verdict, verdict_within_carrier};
        let simulated = || Network::ALL.into_iter().map(|network| (network, network.simulated()));
        for (a, of_a) in simulated() {
            for (b, of_b) in simulated() {
                let verdict = match a.carrier().is_some() && a.carrier() == b.carrier() {
                    true => verdict_within_carrier(&of_a, &of_b),
                    false => verdict(&of_a, &of_b),
                };
                let here = match possibility(a, b) {
                    Possibility::Direct | Possibility::Punched | Possibility::NeedsPrediction => Verdict::Direct,
                    Possibility::NeedsBirthday => Verdict::DirectIfGuessed,
                    Possibility::Impossible => Verdict::Relayed,
                };
                assert_eq!(here, verdict, "{a} to {b}");
            }
        }
    }

    #[test]
    fn ipv6_helps_where_ipv4_cannot() {
        assert_eq!(possibility(Network::DualStack, Network::DualStack), Possibility::Punched);
        assert_eq!(possibility(Network::DualStack, Network::SymmetricRandom), Possibility::Impossible);
        assert_eq!(possibility(Network::Ipv6Only, Network::None), Possibility::Impossible);
    }

    #[test]
    fn a_carrier_that_does_not_turn_packets_round_keeps_its_subscribers_apart() {
        assert_eq!(possibility(Network::Carrier, Network::Carrier), Possibility::Impossible);
        assert_eq!(possibility(Network::CarrierHairpin, Network::CarrierHairpin), Possibility::Punched);
        assert_eq!(possibility(Network::Carrier, Network::PortRestricted), Possibility::Punched);
    }
}
