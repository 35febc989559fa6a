//! Decides whether a peer may open a port, and says why.
//!
//! Pure: the same allowlist, peer, port and time give the same verdict. Deny is the default, and a verdict names what
//! it rests on, so that a refusal can be explained to whoever meets it.

use core::fmt;

use peerage_model::snapshot::{Peer, Port, Protocol};
use peerage_model::{Label, TrustId, UnixTime};

/// What came of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Let it through.
    Allow(Allowed),
    /// Do not.
    Deny(DenyReason),
}

/// What an allowance rests on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// The trust declaration.
    pub trust: TrustId,
    /// Which of our ports was asked for.
    pub port: Label,
}

/// Why a stream was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DenyReason {
    /// The trust ended by itself.
    Expired {
        /// When.
        at: UnixTime,
    },
    /// We offer no such port to anybody.
    NotOffered,
    /// We offer it, but not to this peer.
    NotAllowed {
        /// What the port is called.
        port: Label,
    },
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { at } => write!(f, "the trust ended at {at:?}"),
            Self::NotOffered => f.write_str("no such port is offered here"),
            Self::NotAllowed { port } => write!(f, "port `{port}` is not open to this peer"),
        }
    }
}

/// May `peer` open port `number` here, at `now`?
#[must_use]
pub fn check_inbound(peer: &Peer, offered: &[Port], number: u16, protocol: Protocol, now: UnixTime) -> Verdict {
    if let Some(at) = ended(peer, now) {
        return Verdict::Deny(DenyReason::Expired { at });
    }
    let asked = offered.iter().find(|port| port.number == number && port.protocol == protocol);
    let Some(port) = asked else {
        return Verdict::Deny(DenyReason::NotOffered);
    };
    match peer.inbound.contains(&port.name) {
        true => Verdict::Allow(Allowed { trust: peer.trust, port: port.name.clone() }),
        false => Verdict::Deny(DenyReason::NotAllowed { port: port.name.clone() }),
    }
}

/// The ports of ours that `peer` may open, for telling it.
#[must_use]
pub fn open_to(peer: &Peer, offered: &[Port]) -> Vec<Port> {
    offered.iter().filter(|port| peer.inbound.contains(&port.name)).cloned().collect()
}

/// When the trust ended, if it has.
#[must_use]
pub fn ended(peer: &Peer, now: UnixTime) -> Option<UnixTime> {
    peer.expires.filter(|at| *at <= now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::snapshot::PathMode;
    use peerage_model::{AgentId, Fingerprint};

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn label(text: &str) -> Label {
        text.parse().expect("a label")
    }

    fn peer(inbound: &[&str]) -> Peer {
        Peer {
            trust: TrustId([1; 16]),
            id: AgentId { authority: Fingerprint([2; 32]), name: "planner".parse().expect("a name") },
            secrets: Vec::new(),
            alias: label("planner"),
            inbound: inbound.iter().map(|p| label(p)).collect(),
            ports: Vec::new(),
            relays: Vec::new(),
            expires: None,
            path: PathMode::Auto,
            birthday: Default::default(),
        }
    }

    fn offered() -> Vec<Port> {
        vec![
            Port { name: label("mcp"), number: 80, protocol: Protocol::Tcp },
            Port { name: label("admin"), number: 9000, protocol: Protocol::Tcp },
        ]
    }

    #[test]
    fn a_port_named_in_the_trust_is_open_and_the_verdict_names_the_trust() {
        let verdict = check_inbound(&peer(&["mcp"]), &offered(), 80, Protocol::Tcp, NOW);
        assert_eq!(verdict, Verdict::Allow(Allowed { trust: TrustId([1; 16]), port: label("mcp") }));
    }

    #[test]
    fn an_empty_inbound_list_opens_nothing() {
        let verdict = check_inbound(&peer(&[]), &offered(), 80, Protocol::Tcp, NOW);
        assert_eq!(verdict, Verdict::Deny(DenyReason::NotAllowed { port: label("mcp") }));
    }

    #[test]
    fn a_port_nobody_offers_and_the_same_number_over_udp_are_refused() {
        for (number, protocol) in [(81, Protocol::Tcp), (80, Protocol::Udp)] {
            let verdict = check_inbound(&peer(&["mcp", "admin"]), &offered(), number, protocol, NOW);
            assert_eq!(verdict, Verdict::Deny(DenyReason::NotOffered));
        }
    }

    #[test]
    fn a_trust_past_its_end_opens_nothing() {
        let mut peer = peer(&["mcp"]);
        peer.expires = Some(NOW);
        let verdict = check_inbound(&peer, &offered(), 80, Protocol::Tcp, NOW);
        assert_eq!(verdict, Verdict::Deny(DenyReason::Expired { at: NOW }));
    }
}
