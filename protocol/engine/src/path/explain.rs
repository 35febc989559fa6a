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
    SymmetricAndPortRestricted(Guessing),
    /// One end's ports were predicted, and none of the predictions held.
    PredictionFailed,
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

/// How it stands with guessing ports (a birthday round) where nothing else can work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guessing {
    /// Our owner did not allow it.
    NotAllowedHere,
    /// The peer's owner did not.
    NotAllowedByPeer,
    /// A round waits or runs.
    Trying,
    /// So many rounds found nothing; another follows later.
    Failed {
        /// How many.
        rounds: u32,
    },
}

impl fmt::Display for Guessing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowedHere => f.write_str("guessing ports (birthday) would help, and is not allowed here"),
            Self::NotAllowedByPeer => {
                f.write_str("guessing ports (birthday) would help, and the peer does not allow it")
            }
            Self::Trying => f.write_str("guessing ports (birthday)"),
            Self::Failed { rounds } => write!(f, "{rounds} rounds of guessing ports (birthday) found none yet"),
        }
    }
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
            Self::BothSymmetric => f.write_str(
                "both NATs are symmetric; a port mapping (UPnP, NAT-PMP, PCP) or a fixed endpoint on one side would help",
            ),
            Self::SymmetricAndPortRestricted(guessing) => {
                write!(f, "one NAT is symmetric, the other port-restricted; {guessing}")
            }
            Self::PredictionFailed => f.write_str(
                "one NAT is symmetric and its ports were not the predicted ones; a port mapping (UPnP, NAT-PMP, PCP) would help",
            ),
            Self::UdpBlocked => f.write_str("UDP is blocked on one side; letting outbound UDP through would help"),
            Self::NoAnswer { candidates } => write!(f, "no answer to checks from {candidates} candidates"),
            Self::HeldAfterSilence => f.write_str("the tunnel fell silent on the direct path; tried again later"),
            Self::SlowerThanRelay { direct, relay } => {
                write!(f, "direct path takes {direct:?}, the relay {relay:?}")
            }
        }
    }
}

/// What the two NAT types say about a direct path that was not found, if anything. `predicted`: one side's ports were.
/// A cone whose filter was not measured and that did not answer is port-restricted: the others would have.
pub(super) fn by_nat_types(
    (local, remote): (Option<NatType>, Option<NatType>),
    predicted: bool,
    guessing: Guessing,
) -> Option<WhyNotBetter> {
    match (local?, remote?) {
        (NatType::Blocked, _) | (_, NatType::Blocked) => Some(WhyNotBetter::UdpBlocked),
        (NatType::Symmetric, NatType::Symmetric) => Some(WhyNotBetter::BothSymmetric),
        (NatType::Symmetric, NatType::PortRestrictedCone | NatType::Cone)
        | (NatType::PortRestrictedCone | NatType::Cone, NatType::Symmetric) => Some(match predicted {
            true => WhyNotBetter::PredictionFailed,
            false => WhyNotBetter::SymmetricAndPortRestricted(guessing),
        }),
        (_, _) => None,
    }
}
