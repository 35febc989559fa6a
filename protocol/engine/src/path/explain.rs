//! Why a session does not have a better path, for status, command line and metrics.

use std::fmt;
use std::time::Duration;

use crate::nat::NatType;

/// Why traffic goes through the relay; its `Display` is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNotBetter {
    /// The owner asked for it.
    PolicyRelayOnly,
    /// Nothing came from the peer, or an empty list.
    PeerSentNoCandidates,
    /// The peer's candidates were all refused.
    CandidatesRefused(Refusals),
    /// We have no address to offer.
    NoLocalCandidates,
    /// Only IPv4 on one side, only IPv6 on the other.
    NoCommonAddressFamily,
    /// The first round is still running.
    StillChecking {
        /// How many addresses are being checked.
        candidates: usize,
    },
    /// Outside addresses of both ends differ per destination, so neither knows the other's.
    BothSymmetric,
    /// One end's outside address is unknown to the other, whose filter refuses what it does not know.
    SymmetricAndPortRestricted,
    /// UDP does not leave one of the networks.
    UdpBlocked,
    /// Checks went out and nothing verified came back.
    NoAnswer {
        /// How many addresses were checked.
        candidates: usize,
    },
    /// A direct path was found, but the tunnel fell silent on it; it is tried again later.
    HeldAfterSilence,
    /// The direct path is more than twice as slow.
    SlowerThanRelay {
        /// Round trip of the best direct path.
        direct: Duration,
        /// Round trip through the relay.
        relay: Duration,
    },
}

/// How many candidates of the peer were refused.
pub type Refusals = usize;

impl fmt::Display for WhyNotBetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PolicyRelayOnly => f.write_str("policy is RelayOnly"),
            Self::PeerSentNoCandidates => f.write_str("peer sent no candidates"),
            Self::CandidatesRefused(count) => write!(f, "all {count} candidates of the peer were refused"),
            Self::NoLocalCandidates => f.write_str("no local address to offer"),
            Self::NoCommonAddressFamily => f.write_str("no common address family (IPv4, IPv6)"),
            Self::StillChecking { candidates } => write!(f, "still checking {candidates} candidates"),
            Self::BothSymmetric => f.write_str("both NATs are symmetric"),
            Self::SymmetricAndPortRestricted => f.write_str("one NAT is symmetric, the other port-restricted"),
            Self::UdpBlocked => f.write_str("UDP is blocked on one side"),
            Self::NoAnswer { candidates } => write!(f, "no answer to checks from {candidates} candidates"),
            Self::HeldAfterSilence => f.write_str("the tunnel fell silent on the direct path; tried again later"),
            Self::SlowerThanRelay { direct, relay } => {
                write!(f, "direct path takes {direct:?}, the relay {relay:?}")
            }
        }
    }
}

/// What the two NAT types say about a direct path that was not found, if anything.
pub(super) fn by_nat_types(local: Option<NatType>, remote: Option<NatType>) -> Option<WhyNotBetter> {
    match (local?, remote?) {
        (NatType::Blocked, _) | (_, NatType::Blocked) => Some(WhyNotBetter::UdpBlocked),
        (NatType::Symmetric, NatType::Symmetric) => Some(WhyNotBetter::BothSymmetric),
        (NatType::Symmetric, NatType::PortRestrictedCone) | (NatType::PortRestrictedCone, NatType::Symmetric) => {
            Some(WhyNotBetter::SymmetricAndPortRestricted)
        }
        (_, _) => None,
    }
}
