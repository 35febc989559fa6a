//! The kinds of NAT, in the words of RFC 4787, with a preset for each RFC 3489 name.

use std::time::Duration;

/// What a mapping, or the filter in front of it, depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// On the inside endpoint alone.
    EndpointIndependent,
    /// Also on the remote address.
    AddressDependent,
    /// Also on the remote address and port.
    AddressAndPortDependent,
}

/// How a new mapping gets its public port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortAllocation {
    /// The inside port if it is free towards that remote, else a random one.
    Preserving,
    /// The next free one after the last.
    Sequential,
    /// Any free one.
    Random,
}

/// How a translating NAT behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// When two packets share a public port.
    pub mapping: Dependence,
    /// Who may send to it.
    pub filtering: Dependence,
    /// Which port it is.
    pub allocation: PortAllocation,
    /// A mapping, or a filter's permission, ends this long after the last outbound packet that used it. (Inbound
    /// packets do not prolong it: RFC 4787 section 4.3 makes that optional, so nobody may count on it.)
    pub expiry: Duration,
    /// Two inside hosts can meet by their public endpoints.
    pub hairpinning: bool,
    /// A packet that belongs to no mapping takes its port away, as on Linux gateways that accept INPUT.
    pub gateway_input_steals_port: bool,
}

/// What stands between a host and the public network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatKind {
    /// Nothing: the host's own address is public and everybody may send to it.
    None,
    /// A device that translates addresses.
    Translating(Translation),
}

/// RFC 4787 REQ-5 recommends five minutes; two is its minimum and what most devices keep.
const EXPIRY: Duration = Duration::from_secs(120);

/// Linux keeps an unanswered UDP flow for 30 s (`nf_conntrack_udp_timeout`), and cheap routers any flow.
const SHORT_EXPIRY: Duration = Duration::from_secs(30);

impl NatKind {
    /// Whoever knows the public endpoint may send to it.
    #[must_use]
    pub const fn full_cone() -> Self {
        Self::cone(Dependence::EndpointIndependent)
    }

    /// Whoever was sent to may answer, from any of his ports.
    #[must_use]
    pub const fn restricted_cone() -> Self {
        Self::cone(Dependence::AddressDependent)
    }

    /// Only the very endpoint that was sent to may answer.
    #[must_use]
    pub const fn port_restricted_cone() -> Self {
        Self::cone(Dependence::AddressAndPortDependent)
    }

    /// A random public port for each destination: AWS and Azure NAT gateways, kube-proxy's masquerade.
    #[must_use]
    pub const fn symmetric_random() -> Self {
        Self::symmetric(PortAllocation::Random)
    }

    /// The next public port for each destination.
    #[must_use]
    pub const fn symmetric_sequential() -> Self {
        Self::symmetric(PortAllocation::Sequential)
    }

    /// The inside port towards each destination as long as it is free there: Linux `masquerade` whose gateway drops
    /// INPUT.
    #[must_use]
    pub const fn symmetric_preserving() -> Self {
        Self::symmetric(PortAllocation::Preserving)
    }

    /// Linux `masquerade` whose gateway accepts INPUT: a punch that arrives too early spoils the port.
    #[must_use]
    pub const fn symmetric_port_stealing() -> Self {
        Self::Translating(Translation { gateway_input_steals_port: true, ..SYMMETRIC_PRESERVING })
    }

    /// A common home router: port-restricted, forgetful, and able to hairpin.
    #[must_use]
    pub const fn home_router() -> Self {
        Self::Translating(Translation {
            mapping: Dependence::EndpointIndependent,
            filtering: Dependence::AddressAndPortDependent,
            allocation: PortAllocation::Preserving,
            expiry: SHORT_EXPIRY,
            hairpinning: true,
            gateway_input_steals_port: false,
        })
    }

    /// A home router that forgets a mapping after 20 s without a packet from inside.
    #[must_use]
    pub const fn forgetful() -> Self {
        Self::Translating(Translation {
            expiry: Duration::from_secs(20),
            mapping: Dependence::EndpointIndependent,
            filtering: Dependence::AddressAndPortDependent,
            allocation: PortAllocation::Preserving,
            hairpinning: false,
            gateway_input_steals_port: false,
        })
    }

    /// A provider's NAT (RFC 6888): one drawn port for each inside endpoint, and answers only from whom it was sent to.
    #[must_use]
    pub const fn carrier(hairpinning: bool) -> Self {
        Self::Translating(Translation {
            mapping: Dependence::EndpointIndependent,
            filtering: Dependence::AddressAndPortDependent,
            allocation: PortAllocation::Random,
            expiry: EXPIRY,
            hairpinning,
            gateway_input_steals_port: false,
        })
    }

    /// No NAT at all.
    #[must_use]
    pub const fn none() -> Self {
        Self::None
    }

    /// Every preset with its name, for tests over all pairs.
    #[must_use]
    pub const fn presets() -> [(&'static str, Self); 9] {
        [
            ("none", Self::none()),
            ("full cone", Self::full_cone()),
            ("restricted cone", Self::restricted_cone()),
            ("port-restricted cone", Self::port_restricted_cone()),
            ("home router", Self::home_router()),
            ("symmetric preserving", Self::symmetric_preserving()),
            ("symmetric port-stealing", Self::symmetric_port_stealing()),
            ("symmetric sequential", Self::symmetric_sequential()),
            ("symmetric random", Self::symmetric_random()),
        ]
    }

    const fn cone(filtering: Dependence) -> Self {
        Self::Translating(Translation {
            mapping: Dependence::EndpointIndependent,
            filtering,
            allocation: PortAllocation::Preserving,
            expiry: EXPIRY,
            hairpinning: false,
            gateway_input_steals_port: false,
        })
    }

    const fn symmetric(allocation: PortAllocation) -> Self {
        Self::Translating(Translation { allocation, ..SYMMETRIC_PRESERVING })
    }
}

const SYMMETRIC_PRESERVING: Translation = Translation {
    mapping: Dependence::AddressAndPortDependent,
    filtering: Dependence::AddressAndPortDependent,
    allocation: PortAllocation::Preserving,
    expiry: SHORT_EXPIRY,
    hairpinning: false,
    gateway_input_steals_port: false,
};
