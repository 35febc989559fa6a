//! Why a session does not have a better path, for status, command line and metrics.

use std::fmt;
use std::time::Duration;

use peerage_model::control::{Candidate, CandidateKind};

use super::agent::is_usable;
use super::checklist::{Remote, Source};
use super::{PathAgent, PathMode};
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
    /// Both are seen at one address, so behind one NAT, and it does not turn packets between them round.
    NoHairpin,
    /// UDP does not leave one of the networks.
    UdpBlocked(Side),
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

/// Where the obstacle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// On our side.
    Here,
    /// On the peer's.
    Peer,
    /// On both.
    Both,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Here => "here",
            Self::Peer => "at the peer",
            Self::Both => "on both sides",
        })
    }
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
            Self::PolicyRelayOnly => f.write_str("the path policy here is RelayOnly; Auto would look for a direct path"),
            Self::PeerSentNoCandidates => {
                f.write_str("the peer offers no address: its path policy is RelayOnly, or it has found none")
            }
            Self::CandidatesRefused(count) => write!(
                f,
                "none of the {count} addresses that the peer offers may be used (private ones of another network, or not unicast)"
            ),
            Self::NoLocalCandidates => f.write_str("this host has no address to offer; a network interface that is up would help"),
            Self::NoCommonAddressFamily => {
                f.write_str("one side has only IPv4, the other only IPv6; the missing one on either side would help")
            }
            Self::StillChecking { candidates } => write!(f, "still checking {candidates} addresses of the peer"),
            Self::BothSymmetric => f.write_str(
                "both NATs are symmetric; a port mapping (UPnP, NAT-PMP, PCP) or a fixed endpoint on one side would help",
            ),
            Self::SymmetricAndPortRestricted(guessing) => {
                write!(
                    f,
                    "one NAT is symmetric, and the other side lets in only ports that it knows; {guessing}; \
                     a port mapping (UPnP, NAT-PMP, PCP) or a fixed endpoint would, too"
                )
            }
            Self::PredictionFailed => f.write_str(
                "one NAT is symmetric and its ports were not the predicted ones; a port mapping (UPnP, NAT-PMP, PCP) would help",
            ),
            Self::NoHairpin => f.write_str(
                "both are behind one NAT that does not turn packets between them round (no hairpinning); \
                 IPv6, or one network for both, would help",
            ),
            Self::UdpBlocked(side) => write!(f, "UDP is blocked {side}; letting outbound UDP through would help"),
            Self::NoAnswer { candidates } => write!(
                f,
                "none of the {candidates} addresses of the peer answers: a firewall or NAT on the way drops UDP between the two; \
                 a port mapping (UPnP, NAT-PMP, PCP) or a fixed endpoint on one side would help"
            ),
            Self::HeldAfterSilence => {
                f.write_str("packets got lost on the direct path, so it rests; it is tried again by itself")
            }
            Self::SlowerThanRelay { direct, relay } => write!(
                f,
                "the direct path takes {} ms, more than twice the relay's {} ms",
                direct.as_millis(),
                relay.as_millis()
            ),
        }
    }
}

impl PathAgent {
    /// Why traffic is relayed; `None` if it is not.
    pub fn why_not_better(&self) -> Option<WhyNotBetter> {
        if !self.in_use.is_relayed() {
            return None;
        }
        let usable = self.checklist.remotes().iter().filter(|remote| is_usable(&self.locals, remote.path)).count();
        let why = self.why_nothing_is_checked(usable).or_else(|| self.why_nothing_found_is_used());
        Some(why.unwrap_or_else(|| self.why_nothing_is_found(usable)))
    }

    fn why_nothing_is_checked(&self, usable: usize) -> Option<WhyNotBetter> {
        if self.config.mode == PathMode::RelayOnly {
            return Some(WhyNotBetter::PolicyRelayOnly);
        }
        if self.checklist.remotes().is_empty() {
            return Some(match self.refused {
                0 => WhyNotBetter::PeerSentNoCandidates,
                refused => WhyNotBetter::CandidatesRefused(refused),
            });
        }
        if self.locals.is_empty() {
            return Some(WhyNotBetter::NoLocalCandidates);
        }
        (usable == 0).then_some(WhyNotBetter::NoCommonAddressFamily)
    }

    fn why_nothing_found_is_used(&self) -> Option<WhyNotBetter> {
        if self.checklist.remotes().iter().any(Remote::is_held) {
            return Some(WhyNotBetter::HeldAfterSilence);
        }
        let (_, best) = self.best()?;
        Some(WhyNotBetter::SlowerThanRelay { direct: best.rtt()?, relay: self.in_use.relay_rtt()? })
    }

    fn why_nothing_is_found(&self, usable: usize) -> WhyNotBetter {
        if self.checklist.is_in_first_round() {
            return WhyNotBetter::StillChecking { candidates: usable };
        }
        if self.is_seen_where_the_peer_is() {
            return WhyNotBetter::NoHairpin;
        }
        let kind = CandidateKind::Predicted;
        let predicted = self.locals_of(kind).next().is_some() || self.remotes_of(kind).next().is_some();
        let by_nat_types = by_nat_types(self.nat_types, predicted, self.birthday.guessing());
        by_nat_types.unwrap_or(WhyNotBetter::NoAnswer { candidates: usable })
    }

    /// Whether relays see both ends at one address.
    fn is_seen_where_the_peer_is(&self) -> bool {
        let kind = CandidateKind::ServerReflexive;
        self.locals_of(kind)
            .any(|local| self.remotes_of(kind).any(|remote| remote.path.remote.ip() == local.address.ip()))
    }

    fn locals_of(&self, kind: CandidateKind) -> impl Iterator<Item = &Candidate> {
        self.locals.iter().filter(move |local| local.kind == kind)
    }

    fn remotes_of(&self, kind: CandidateKind) -> impl Iterator<Item = &Remote> {
        self.checklist.remotes().iter().filter(move |remote| remote.source == Source::Signalled(kind))
    }
}

/// What the two NAT types say about a direct path that was not found, if anything. `predicted`: one side's ports were.
/// A filter that was not measured and let no answer in looks at ports: the others would have.
fn by_nat_types(
    (local, remote): (Option<NatType>, Option<NatType>),
    predicted: bool,
    guessing: Guessing,
) -> Option<WhyNotBetter> {
    match (local?, remote?) {
        (NatType::Blocked, NatType::Blocked) => Some(WhyNotBetter::UdpBlocked(Side::Both)),
        (NatType::Blocked, _) => Some(WhyNotBetter::UdpBlocked(Side::Here)),
        (_, NatType::Blocked) => Some(WhyNotBetter::UdpBlocked(Side::Peer)),
        (NatType::Symmetric, NatType::Symmetric) => Some(WhyNotBetter::BothSymmetric),
        (NatType::Symmetric, NatType::PortRestrictedCone | NatType::Cone | NatType::Firewalled | NatType::NoNat)
        | (NatType::PortRestrictedCone | NatType::Cone | NatType::Firewalled | NatType::NoNat, NatType::Symmetric) => {
            Some(match predicted {
                true => WhyNotBetter::PredictionFailed,
                false => WhyNotBetter::SymmetricAndPortRestricted(guessing),
            })
        }
        (_, _) => None,
    }
}
