//! The kinds of network that an agent may be in: the rows and columns of the matrix of all ordered pairs.
//!
//! The same names head the rows of the laboratory on the real kernel, so that a cell there can be held against the
//! verdict of [`verdict`] here.

use super::kind::{Dependence, NatKind, PortAllocation, Translation};
use super::oracle::{Possibility, can_be_direct};

/// A network: the NAT at its edge, and one more where the provider has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// What people call it.
    pub name: &'static str,
    /// The NAT at its edge.
    pub nat: NatKind,
    /// The provider's, in front of that (carrier-grade NAT, RFC 6888).
    pub carrier: Option<NatKind>,
    /// Which address families there are.
    pub families: Families,
    /// Whether UDP does not get out; TCP does.
    pub blocks_udp: bool,
}

/// Which address families a network has. IPv6 is behind a firewall that lets answers in (RFC 6092).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4, behind the NATs.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both.
    Both,
}

impl Families {
    /// Whether hosts have IPv4 addresses.
    #[must_use]
    pub const fn has_ipv4(self) -> bool {
        matches!(self, Self::Ipv4 | Self::Both)
    }

    /// Whether hosts have IPv6 addresses.
    #[must_use]
    pub const fn has_ipv6(self) -> bool {
        matches!(self, Self::Ipv6 | Self::Both)
    }
}

/// What must happen between two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Direct, always.
    Direct,
    /// Direct if both owners allow ports to be guessed, then in 98 of 100 rounds; relayed otherwise.
    DirectIfGuessed,
    /// Relayed, whatever is tried.
    Relayed,
}

impl From<NatKind> for Network {
    fn from(nat: NatKind) -> Self {
        Self::plain("unnamed", nat)
    }
}

impl Network {
    const fn plain(name: &'static str, nat: NatKind) -> Self {
        Self { name, nat, carrier: None, families: Families::Ipv4, blocks_udp: false }
    }

    const fn behind_carrier(name: &'static str, carrier: NatKind) -> Self {
        Self { carrier: Some(carrier), ..Self::plain(name, NatKind::home_router()) }
    }

    /// Nothing but IPv6.
    #[must_use]
    pub const fn ipv6_only() -> Self {
        Self { families: Families::Ipv6, ..Self::plain("IPv6 only", NatKind::none()) }
    }

    /// TCP goes out, UDP does not.
    #[must_use]
    pub const fn udp_blocked() -> Self {
        Self { blocks_udp: true, ..Self::plain("UDP blocked", NatKind::home_router()) }
    }

    /// IPv6 beside IPv4 behind the worst NAT.
    #[must_use]
    pub const fn dual_stack() -> Self {
        Self { families: Families::Both, ..Self::plain("dual stack", NatKind::symmetric_random()) }
    }

    /// Every kind of the matrix.
    #[must_use]
    pub const fn all() -> [Self; 16] {
        [
            Self::plain("none", NatKind::none()),
            Self::plain("full cone", NatKind::full_cone()),
            Self::plain("restricted cone", NatKind::restricted_cone()),
            Self::plain("port-restricted cone", NatKind::port_restricted_cone()),
            // Linux `masquerade` keeps the port, so to everybody it looks like a cone; see the story of `nat`.
            Self::plain("port-restricted cone, INPUT open", NatKind::symmetric_port_stealing()),
            Self::plain("home router", NatKind::home_router()),
            Self::plain("short timeouts", NatKind::forgetful()),
            Self::plain("symmetric preserving", NatKind::symmetric_preserving()),
            Self::plain("symmetric sequential", NatKind::symmetric_sequential()),
            Self::plain("symmetric random", NatKind::symmetric_random()),
            Self::behind_carrier("carrier-grade, hairpin", NatKind::carrier(true)),
            Self::behind_carrier("carrier-grade, no hairpin", NatKind::carrier(false)),
            Self::behind_carrier("carrier-grade, symmetric random", NatKind::symmetric_random()),
            Self::ipv6_only(),
            Self::dual_stack(),
            Self::udp_blocked(),
        ]
    }

    /// What both NATs do together, as one.
    #[must_use]
    pub const fn effective(&self) -> NatKind {
        match (self.nat, self.carrier) {
            (nat, None) => nat,
            (NatKind::None, Some(carrier)) => carrier,
            (nat, Some(NatKind::None)) => nat,
            (NatKind::Translating(inner), Some(NatKind::Translating(outer))) => {
                NatKind::Translating(compose(inner, outer))
            }
        }
    }
}

/// What must happen between two networks that share nothing. The order does not matter to the answer.
#[must_use]
pub const fn verdict(a: &Network, b: &Network) -> Verdict {
    if a.blocks_udp || b.blocks_udp {
        return Verdict::Relayed;
    }
    if a.families.has_ipv6() && b.families.has_ipv6() {
        // Two firewalls that let answers in: both send.
        return Verdict::Direct;
    }
    if !(a.families.has_ipv4() && b.families.has_ipv4()) {
        return Verdict::Relayed;
    }
    match can_be_direct(&a.effective(), &b.effective()) {
        Possibility::Direct | Possibility::Punched | Possibility::NeedsPrediction => Verdict::Direct,
        Possibility::NeedsBirthday => Verdict::DirectIfGuessed,
        Possibility::Impossible => Verdict::Relayed,
    }
}

/// What must happen between two networks behind one carrier: their packets to each other's public address must turn
/// round in it.
#[must_use]
pub const fn verdict_within_carrier(a: &Network, b: &Network) -> Verdict {
    match a.carrier {
        Some(NatKind::Translating(Translation { hairpinning: false, .. })) => Verdict::Relayed,
        Some(_) | None => verdict(a, b),
    }
}

/// Two in a row depend on whatever one of them depends on. Ports are the outer one's, unless it keeps what it gets.
const fn compose(inner: Translation, outer: Translation) -> Translation {
    let allocation = match outer.allocation {
        PortAllocation::Preserving => inner.allocation,
        PortAllocation::Sequential | PortAllocation::Random => outer.allocation,
    };
    Translation {
        mapping: stricter(inner.mapping, outer.mapping),
        filtering: stricter(inner.filtering, outer.filtering),
        allocation,
        expiry: inner.expiry,
        hairpinning: outer.hairpinning,
        gateway_input_steals_port: inner.gateway_input_steals_port || outer.gateway_input_steals_port,
    }
}

const fn stricter(a: Dependence, b: Dependence) -> Dependence {
    match (a, b) {
        (Dependence::AddressAndPortDependent, _) | (_, Dependence::AddressAndPortDependent) => {
            Dependence::AddressAndPortDependent
        }
        (Dependence::AddressDependent, _) | (_, Dependence::AddressDependent) => Dependence::AddressDependent,
        (Dependence::EndpointIndependent, Dependence::EndpointIndependent) => Dependence::EndpointIndependent,
    }
}
