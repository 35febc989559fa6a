//! What kind of NAT one socket sits behind, told from what relays saw.
//!
//! Mapping comes from two or more relay endpoints, filtering from a relay with a second address (RFC 5780). The
//! verdict speaks twice: in the behaviour words of RFC 4787, which say what works, and in those of RFC 3489, which
//! people know. With too little seen the verdict is `unknown` and names what would help, never a guess.
//! Rules: `docs/spec/paths.md` section 6.

mod filter;
mod lifetime;
mod scout;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

pub use filter::{FilterProbe, Filtered};
pub use lifetime::{LIFETIME_SOCKETS, LifetimeProbe, MappingLifetime, Progress};
pub use scout::{Allocation, PATIENCE as SCOUT_PATIENCE, SCOUTS, Scout};

use crate::stun::canonical;

/// Most relay endpoints that count; a relay list is short, and a lying one must not make us grow.
const MAX_OBSERVATIONS: usize = 16;

/// How the NAT picks the outside address of a socket (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mapping {
    /// Too little was seen.
    #[default]
    Unknown,
    /// The outside address is the socket's own: no translation.
    None,
    /// One outside address for all destinations.
    EndpointIndependent,
    /// One per destination address.
    AddressDependent,
    /// One per destination address and port.
    AddressAndPortDependent,
    /// One per destination, whether port counts was not measured.
    DestinationDependent,
}

impl Mapping {
    /// Whether another destination sees another outside address.
    pub fn is_symmetric(self) -> bool {
        match self {
            Self::Unknown | Self::None | Self::EndpointIndependent => false,
            Self::AddressDependent | Self::AddressAndPortDependent | Self::DestinationDependent => true,
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown mapping",
            Self::None => "no mapping",
            Self::EndpointIndependent => "endpoint-independent mapping",
            Self::AddressDependent => "address-dependent mapping",
            Self::AddressAndPortDependent => "address-and-port-dependent mapping",
            Self::DestinationDependent => "destination-dependent mapping",
        })
    }
}

/// From whom the NAT lets packets in (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filtering {
    /// Not measured.
    #[default]
    Unknown,
    /// From anybody.
    EndpointIndependent,
    /// From addresses the socket has sent to.
    AddressDependent,
    /// From address-port pairs the socket has sent to.
    AddressAndPortDependent,
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "filtering not measured",
            Self::EndpointIndependent => "endpoint-independent filtering",
            Self::AddressDependent => "address-dependent filtering",
            Self::AddressAndPortDependent => "address-and-port-dependent filtering",
        })
    }
}

/// Mapping and filtering: all that the other end needs to know about a NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NatBehaviour {
    /// How outside addresses are picked.
    pub mapping: Mapping,
    /// Who may send in.
    pub filtering: Filtering,
}

/// The verdict in the words of RFC 3489.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatType {
    /// No translation and no filter.
    OpenInternet,
    /// No translation; whether anything filters was not measured.
    NoNat,
    /// No translation, but packets come in only after some went out.
    Firewalled,
    /// One mapping, open to all.
    FullCone,
    /// One mapping, open to addresses sent to.
    RestrictedCone,
    /// One mapping, open to address-port pairs sent to.
    PortRestrictedCone,
    /// One mapping; who may send in was not measured.
    Cone,
    /// Another mapping for another destination.
    Symmetric,
    /// No relay answered over UDP.
    Blocked,
    /// Too little was seen.
    Unknown,
}

impl NatType {
    /// The word that travels beside the candidates: a DNS label. `FromStr` reads it.
    pub fn token(self) -> &'static str {
        match self {
            Self::OpenInternet => "open-internet",
            Self::NoNat => "no-nat",
            Self::Firewalled => "firewalled",
            Self::FullCone => "full-cone",
            Self::RestrictedCone => "restricted-cone",
            Self::PortRestrictedCone => "port-restricted-cone",
            Self::Cone => "cone",
            Self::Symmetric => "symmetric",
            Self::Blocked => "blocked",
            Self::Unknown => "unknown",
        }
    }

    const ALL: [Self; 10] = [
        Self::OpenInternet,
        Self::NoNat,
        Self::Firewalled,
        Self::FullCone,
        Self::RestrictedCone,
        Self::PortRestrictedCone,
        Self::Cone,
        Self::Symmetric,
        Self::Blocked,
        Self::Unknown,
    ];
}

/// A word that names no NAT type of ours; a newer peer may have said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a NAT type")]
pub struct UnknownNatType;

impl FromStr for NatType {
    type Err = UnknownNatType;

    fn from_str(token: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|nat_type| nat_type.token() == token).ok_or(UnknownNatType)
    }
}

impl fmt::Display for NatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenInternet => "open internet",
            Self::NoNat => "no NAT",
            Self::Firewalled => "firewalled",
            Self::FullCone => "full cone",
            Self::RestrictedCone => "restricted cone",
            Self::PortRestrictedCone => "port-restricted cone",
            Self::Cone => "cone",
            Self::Symmetric => "symmetric",
            Self::Blocked => "blocked",
            Self::Unknown => "unknown",
        })
    }
}

/// What would make the verdict sharper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No relay endpoint has answered yet.
    AnyAnswer,
    /// One endpoint answered; mapping needs two.
    SecondEndpoint,
    /// All endpoints share one address; endpoint-independence needs another address.
    SecondAddress,
    /// Filtering needs a relay with a second address (RFC 5780).
    RelayWithTwoAddresses,
    /// Filtering is being measured with one.
    Moment,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AnyAnswer => "a relay that answers over UDP",
            Self::SecondEndpoint => "a second relay endpoint to compare with",
            Self::SecondAddress => "a relay at another address to compare with",
            Self::RelayWithTwoAddresses => "a relay with a second address, to measure filtering",
            Self::Moment => "some seconds more, to measure filtering",
        })
    }
}

/// Everything said about one socket's NAT; its `Display` is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatReport {
    /// RFC 3489's word.
    pub nat_type: NatType,
    /// RFC 4787's words.
    pub behaviour: NatBehaviour,
    /// Whether all outside ports equal the socket's; `None` without an observation.
    pub port_preserving: Option<bool>,
    /// What would make the verdict sharper, if anything.
    pub missing: Option<Missing>,
}

impl fmt::Display for NatReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nat_type == NatType::Blocked {
            return write!(f, "{} (no relay answers over UDP)", self.nat_type);
        }
        write!(f, "{} ({}, {}", self.nat_type, self.behaviour.mapping, self.behaviour.filtering)?;
        match self.port_preserving {
            Some(true) => f.write_str(", port-preserving")?,
            Some(false) => f.write_str(", not port-preserving")?,
            None => {}
        }
        f.write_str(")")?;
        match self.missing {
            Some(missing) => write!(f, "; needs {missing}"),
            None => Ok(()),
        }
    }
}

/// One of RFC 5780's two filtering tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterTest {
    /// The relay answers from its other address and port (test II).
    OtherAddressAndPort,
    /// The relay answers from its other port (test III).
    OtherPort,
}

/// How a filtering test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterOutcome {
    /// The answer came through.
    Answered,
    /// None came, after retries, while the same relay answered plain requests.
    Silent,
}

/// Collects observations of one socket (one address family) and judges them.
#[derive(Clone, Debug)]
pub struct NatClassifier {
    local_port: u16,
    local_addresses: BTreeSet<IpAddr>,
    /// Relay endpoint to our address as it saw it.
    mapped: BTreeMap<SocketAddr, SocketAddr>,
    other_address: Option<FilterOutcome>,
    other_port: Option<FilterOutcome>,
    /// A relay with two addresses is being asked.
    filtering_runs: bool,
    gave_up: bool,
}

impl NatClassifier {
    /// For a socket bound to `local_port` on a machine with these addresses.
    pub fn new(local_port: u16, local_addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            local_port,
            local_addresses: local_addresses.into_iter().map(|address| address.to_canonical()).collect(),
            mapped: BTreeMap::new(),
            other_address: None,
            other_port: None,
            filtering_runs: false,
            gave_up: false,
        }
    }

    /// Where relay endpoints see us, as (endpoint, our address there): all that counts, the most trusted first. Replaces
    /// what was said before.
    pub fn set_mappings(&mut self, seen: impl IntoIterator<Item = (SocketAddr, SocketAddr)>) {
        self.mapped.clear();
        for (endpoint, mapped) in seen {
            if self.mapped.len() < MAX_OBSERVATIONS {
                self.mapped.entry(canonical(endpoint)).or_insert(canonical(mapped));
            }
        }
        self.gave_up &= self.mapped.is_empty();
    }

    /// A filtering test against a relay with two addresses ended.
    pub fn observe_filtering(&mut self, test: FilterTest, outcome: FilterOutcome) {
        match test {
            FilterTest::OtherAddressAndPort => self.other_address = Some(outcome),
            FilterTest::OtherPort => self.other_port = Some(outcome),
        }
    }

    /// Whether filtering is being measured.
    pub fn filtering_runs(&mut self, runs: bool) {
        self.filtering_runs = runs;
    }

    /// The network is another one: what was let in before says nothing, nor what is under way.
    pub fn forget_filtering(&mut self) {
        (self.other_address, self.other_port, self.filtering_runs) = (None, None, false);
    }

    /// No relay answered any request over UDP.
    pub fn observe_silence(&mut self) {
        self.gave_up = self.mapped.is_empty();
    }

    /// The verdict.
    pub fn report(&self) -> NatReport {
        let mapping = self.mapping();
        let filtering = self.filtering();
        let nat_type = if self.gave_up { NatType::Blocked } else { nat_type(mapping, filtering) };
        NatReport {
            nat_type,
            behaviour: NatBehaviour { mapping, filtering },
            port_preserving: (!self.mapped.is_empty())
                .then(|| self.mapped.values().all(|mapped| mapped.port() == self.local_port)),
            missing: self.missing(mapping, filtering),
        }
    }

    fn mapping(&self) -> Mapping {
        let distinct: BTreeSet<SocketAddr> = self.mapped.values().copied().collect();
        if !distinct.is_empty() && distinct.iter().all(|mapped| self.is_own(mapped)) {
            // One is enough: no NAT gives a packet the source that it has.
            return Mapping::None;
        }
        if self.mapped.len() < 2 {
            return Mapping::Unknown;
        }
        // Per relay address: which of our outside addresses its ports saw.
        let mut by_address: BTreeMap<IpAddr, (usize, BTreeSet<SocketAddr>)> = BTreeMap::new();
        for (endpoint, mapped) in &self.mapped {
            let (ports, seen) = by_address.entry(endpoint.ip()).or_default();
            *ports += 1;
            seen.insert(*mapped);
        }
        if by_address.values().any(|(_, seen)| seen.len() > 1) {
            return Mapping::AddressAndPortDependent;
        }
        let ports_were_compared = by_address.values().any(|(ports, _)| *ports > 1);
        match (by_address.len() > 1, distinct.len() > 1, ports_were_compared) {
            (false, _, _) => Mapping::Unknown,
            (true, false, _) => Mapping::EndpointIndependent,
            (true, true, true) => Mapping::AddressDependent,
            (true, true, false) => Mapping::DestinationDependent,
        }
    }

    fn filtering(&self) -> Filtering {
        match (self.other_address, self.other_port) {
            (Some(FilterOutcome::Answered), _) => Filtering::EndpointIndependent,
            (Some(FilterOutcome::Silent), Some(FilterOutcome::Answered)) => Filtering::AddressDependent,
            (Some(FilterOutcome::Silent), Some(FilterOutcome::Silent)) => Filtering::AddressAndPortDependent,
            (Some(FilterOutcome::Silent), None) | (None, _) => Filtering::Unknown,
        }
    }

    fn missing(&self, mapping: Mapping, filtering: Filtering) -> Option<Missing> {
        match (self.mapped.len(), mapping, filtering) {
            (0, _, _) => Some(Missing::AnyAnswer),
            (1, Mapping::Unknown, _) => Some(Missing::SecondEndpoint),
            (_, Mapping::Unknown, _) => Some(Missing::SecondAddress),
            (_, Mapping::None | Mapping::EndpointIndependent, Filtering::Unknown) => match self.filtering_runs {
                true => Some(Missing::Moment),
                // Of IPv6 it is not measured, whatever relays have.
                false => self.mapped.keys().any(SocketAddr::is_ipv4).then_some(Missing::RelayWithTwoAddresses),
            },
            (_, _, _) => None,
        }
    }

    fn is_own(&self, mapped: &SocketAddr) -> bool {
        mapped.port() == self.local_port && self.local_addresses.contains(&mapped.ip())
    }
}

fn nat_type(mapping: Mapping, filtering: Filtering) -> NatType {
    match (mapping, filtering) {
        (Mapping::Unknown, _) => NatType::Unknown,
        (Mapping::None, Filtering::EndpointIndependent) => NatType::OpenInternet,
        (Mapping::None, Filtering::Unknown) => NatType::NoNat,
        (Mapping::None, Filtering::AddressDependent | Filtering::AddressAndPortDependent) => NatType::Firewalled,
        (Mapping::EndpointIndependent, Filtering::Unknown) => NatType::Cone,
        (Mapping::EndpointIndependent, Filtering::EndpointIndependent) => NatType::FullCone,
        (Mapping::EndpointIndependent, Filtering::AddressDependent) => NatType::RestrictedCone,
        (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent) => NatType::PortRestrictedCone,
        (Mapping::AddressDependent | Mapping::AddressAndPortDependent | Mapping::DestinationDependent, _) => {
            NatType::Symmetric
        }
    }
}

#[cfg(test)]
mod tests;
