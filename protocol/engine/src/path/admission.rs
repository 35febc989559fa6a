//! Which addresses may be candidates at all.
//!
//! A peer is trusted to talk to us, not to choose whom we send packets to: its list is bounded, and addresses that
//! would reach our own host, our link (cloud metadata lives there) or many hosts at once are refused. Documentation
//! ranges are let through: nothing routes them, so they harm as little as any dead address, and laboratories use them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use peerage_model::control::{Candidate, CandidateKind, MAX_CANDIDATES};

use crate::stun::canonical;

/// Why an address is no candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody listens at port 0.
    #[error("port 0")]
    PortZero,
    /// Our own host.
    #[error("loopback address")]
    Loopback,
    /// 0.0.0.0/8 or `::`.
    #[error("unspecified address")]
    Unspecified,
    /// 169.254.0.0/16 or fe80::/10.
    #[error("link-local address")]
    LinkLocal,
    /// Many hosts at once: multicast or broadcast.
    #[error("multicast or broadcast address")]
    Multicast,
    /// 240.0.0.0/4.
    #[error("reserved address")]
    Reserved,
    /// A private address while policy says that both ends share no network.
    #[error("private address, and both ends share no network")]
    Private,
    /// The list is full.
    #[error("more than {MAX_CANDIDATES} candidates")]
    TooMany,
}

/// Admits, unwraps and orders a list: no duplicates, at most [`MAX_CANDIDATES`], an address named twice keeps the kind
/// that says more (host before fixed before reflexive before predicted). Second: why the others were refused.
pub(super) fn admit(
    candidates: impl IntoIterator<Item = Candidate>,
    share_private: bool,
) -> (Vec<Candidate>, Vec<Refused>) {
    let mut admitted: Vec<Candidate> = Vec::new();
    let mut refused = Vec::new();
    // Twice the limit is read so that duplicates and refused ones do not crowd out good ones; the rest is not looked at.
    for candidate in candidates.into_iter().take(2 * MAX_CANDIDATES) {
        let candidate = Candidate { address: canonical(candidate.address), ..candidate };
        if let Err(reason) = check(candidate.address).and_then(|()| check_private(&candidate, share_private)) {
            refused.push(reason);
        } else if let Some(known) = admitted.iter_mut().find(|known| known.address == candidate.address) {
            known.kind = known.kind.min(candidate.kind);
        } else if admitted.len() < MAX_CANDIDATES {
            admitted.push(candidate);
        } else {
            refused.push(Refused::TooMany);
        }
    }
    // Predictions keep their order: the sender's NAT hands them out in it.
    admitted.sort_by_key(|candidate| match candidate.kind {
        CandidateKind::Predicted => (candidate.kind, None),
        CandidateKind::Host | CandidateKind::Fixed | CandidateKind::ServerReflexive => {
            (candidate.kind, Some(candidate.address))
        }
    });
    (admitted, refused)
}

/// What holds for every address we might send to, whoever names it.
pub(super) fn check(address: SocketAddr) -> Result<(), Refused> {
    if address.port() == 0 {
        return Err(Refused::PortZero);
    }
    match address.ip() {
        IpAddr::V4(ip) => check_v4(ip),
        IpAddr::V6(ip) => check_v6(ip),
    }
}

fn check_v4(ip: Ipv4Addr) -> Result<(), Refused> {
    let reasons = [
        (ip.octets()[0] == 0, Refused::Unspecified),
        (ip.is_loopback(), Refused::Loopback),
        (ip.is_link_local(), Refused::LinkLocal),
        (ip.is_multicast() || ip.is_broadcast(), Refused::Multicast),
        (ip.octets()[0] >= 240, Refused::Reserved),
    ];
    first(&reasons)
}

fn check_v6(ip: Ipv6Addr) -> Result<(), Refused> {
    let reasons = [
        (ip.is_unspecified(), Refused::Unspecified),
        (ip.is_loopback(), Refused::Loopback),
        (ip.is_unicast_link_local(), Refused::LinkLocal),
        (ip.is_multicast(), Refused::Multicast),
    ];
    first(&reasons)
}

fn first(reasons: &[(bool, Refused)]) -> Result<(), Refused> {
    match reasons.iter().find(|(holds, _)| *holds) {
        Some((_, reason)) => Err(*reason),
        None => Ok(()),
    }
}

fn check_private(candidate: &Candidate, share_private: bool) -> Result<(), Refused> {
    match candidate.kind {
        CandidateKind::Host if !share_private && is_private(candidate.address.ip()) => Err(Refused::Private),
        // A fixed address is the owner's word, a reflexive one was seen from outside (behind carrier NAT: a shared one).
        CandidateKind::Host | CandidateKind::Fixed | CandidateKind::ServerReflexive | CandidateKind::Predicted => {
            Ok(())
        }
    }
}

/// Whether an address means something only inside a network: RFC 1918, RFC 6598 (100.64.0.0/10) and RFC 4193.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || (ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// Whether a peer's address lies on our host or network: private, or under the prefix that a network commonly has
/// (24 bits of IPv4, 64 of IPv6).
pub(super) fn same_network(remote: IpAddr, locals: &[Candidate]) -> bool {
    let shares_prefix = |local: &Candidate| match (local.address.ip(), remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => local.octets()[..3] == remote.octets()[..3],
        (IpAddr::V6(local), IpAddr::V6(remote)) => local.octets()[..8] == remote.octets()[..8],
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    };
    is_private(remote) || locals.iter().any(|local| local.kind == CandidateKind::Host && shares_prefix(local))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_reach_ourselves_our_link_or_many_are_refused() {
        for (address, reason) in [
            ("198.18.0.1:0", Refused::PortZero),
            ("127.0.0.1:9", Refused::Loopback),
            ("[::1]:9", Refused::Loopback),
            ("[::ffff:127.0.0.1]:9", Refused::Loopback),
            ("0.0.0.0:9", Refused::Unspecified),
            ("0.1.2.3:9", Refused::Unspecified),
            ("[::]:9", Refused::Unspecified),
            ("169.254.169.254:80", Refused::LinkLocal),
            ("[fe80::1]:9", Refused::LinkLocal),
            ("224.0.0.1:9", Refused::Multicast),
            ("255.255.255.255:9", Refused::Multicast),
            ("[ff02::1]:9", Refused::Multicast),
            ("240.0.0.1:9", Refused::Reserved),
            ("10.0.0.1:9", Refused::Private),
            ("100.64.0.1:9", Refused::Private),
            ("[fd00:ec2::254]:80", Refused::Private),
        ] {
            let (admitted, refused) = admit([host(address)], false);
            assert_eq!((admitted, refused), (vec![], vec![reason]), "{address}");
        }
    }

    #[test]
    fn private_hosts_count_where_both_ends_may_share_a_network() {
        assert_eq!(admit([host("10.0.0.1:9")], true).0, [host("10.0.0.1:9")]);
    }

    #[test]
    fn a_list_keeps_sixteen_and_no_address_twice() {
        let many = (1..=100).map(|port| host(&format!("198.18.0.1:{port}")));
        assert_eq!(admit(many, true).0.len(), MAX_CANDIDATES);
        let reflexive = Candidate { kind: CandidateKind::ServerReflexive, ..host("198.18.0.1:9") };
        assert_eq!(admit([reflexive, host("[::ffff:198.18.0.1]:9")], true).0, [host("198.18.0.1:9")]);
    }

    fn host(address: &str) -> Candidate {
        Candidate { kind: CandidateKind::Host, address: address.parse().expect("a test address") }
    }
}
