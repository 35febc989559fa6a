//! What a person wants to know about a node.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::relay::RelayInfo;
use peerage_model::{AgentId, InstanceId, UnixTime};
use quinn_proto::PathStats;

use super::Node;
use super::event::SessionKey;
use super::pair::{Dial, Pair};
use super::session::Session;
use crate::nat::{MappingLifetime, NatReport};
use crate::path::PathKind;

/// What every QUIC path begins with (RFC 9000 section 14.1).
const INITIAL_MTU: u16 = 1200;

/// A node at one moment.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Our relays.
    pub relays: Vec<RelayStatus>,
    /// Our NAT, as far as it was measured.
    pub nat: NatReport,
    /// For how long our NAT keeps what is not used, once that was measured.
    pub mapping_lifetime: Option<MappingLifetime>,
    /// Sessions with trusted peers that are up.
    pub sessions: Vec<SessionStatus>,
    /// How dialling of trusted peers without a session goes.
    pub dials: Vec<PeerDial>,
}

/// A relay at one moment.
#[derive(Clone, Debug)]
pub struct RelayStatus {
    /// Which.
    pub relay: RelayInfo,
    /// Whether we are bound there, or only use it to reach peers.
    pub own: bool,
    /// Where it sees us by UDP, while it does.
    pub observed: Option<SocketAddr>,
    /// How long its latest answer took, while it is reached.
    pub rtt: Option<Duration>,
    /// Whether it keeps a mailbox for us.
    pub mailbox: bool,
    /// How it is reached.
    pub way: RelayWay,
    /// What is wrong with UDP, and with the way around it; in words for a person.
    pub note: Option<String>,
}

/// How a relay is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayWay {
    /// It is not.
    None,
    /// By UDP.
    Udp,
    /// By TLS on TCP, since UDP is not answered.
    Tls,
}

/// A session at one moment.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    /// The session.
    pub session: SessionKey,
    /// With whom.
    pub peer: AgentId,
    /// With which running instance.
    pub instance: InstanceId,
    /// Whether we dialled.
    pub initiator: bool,
    /// Whether the peer has shown that it takes us. One that does not is silent, and its half never comes up.
    pub confirmed: bool,
    /// By which path.
    pub path: PathKind,
    /// Since when by that path.
    pub path_since: Instant,
    /// Since when it is up.
    pub since: UnixTime,
    /// The path's round trip, when measured.
    pub rtt: Option<Duration>,
    /// Why the path is not a direct one, in words; `None` when it is.
    pub why_not_better: Option<String>,
    /// Streams open.
    pub streams: usize,
    /// UDP payload bytes sent and received.
    pub bytes: (u64, u64),
    /// Packets sent, and of those believed lost.
    pub packets: (u64, u64),
    /// Largest UDP payload in use; `None` while larger ones are being tried for the first time.
    pub mtu: Option<u16>,
    /// How many seconds the peer's clock is ahead of ours, as it said; it may say anything.
    pub clock_ahead: Option<i64>,
}

/// How dialling a peer goes.
#[derive(Clone, Debug)]
pub struct PeerDial {
    /// Whom.
    pub peer: AgentId,
    /// How many attempts went without an answer.
    pub attempts: u32,
}

impl Node {
    /// The node as it is.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        NodeStatus {
            relays: self.relays.status(),
            nat: self.relays.nat_report(),
            mapping_lifetime: self.extras.lifetime.known(),
            sessions: self.sessions.iter().filter_map(|(key, s)| self.session_status(*key, s)).collect(),
            dials: self.pairs.values().filter_map(dial_status).collect(),
        }
    }

    fn session_status(&self, key: SessionKey, session: &Session) -> Option<SessionStatus> {
        let up = session.up()?;
        let peer = self.pairs.get(&session.pair)?.peer()?;
        let stats = session.connection.stats();
        Some(SessionStatus {
            session: key,
            peer: peer.id.clone(),
            instance: up.credential.instance(),
            initiator: session.initiator,
            confirmed: up.confirmed,
            path: up.path.kind(),
            path_since: up.path.since(),
            since: up.since.wall,
            rtt: up.path.rtt(),
            why_not_better: up.path.why_not_better().map(|why| why.to_string()),
            streams: up.streams.len(),
            bytes: (stats.udp_tx.bytes, stats.udp_rx.bytes),
            packets: (stats.path.sent_packets, stats.path.lost_packets),
            mtu: known_mtu(&stats.path, session.before_path()),
            clock_ahead: up.clock_ahead,
        })
    }
}

/// Every path begins with the smallest, which says nothing until a larger one was given up: as a probe, which quinn-proto sends
/// three times, or after it had got through at first. `before` is what was counted on other paths.
fn known_mtu(path: &PathStats, before: &PathStats) -> Option<u16> {
    let refused = path.lost_plpmtud_probes.saturating_sub(before.lost_plpmtud_probes) >= 3;
    let swallowed = path.black_holes_detected > before.black_holes_detected;
    (path.current_mtu > INITIAL_MTU || refused || swallowed).then_some(path.current_mtu)
}

fn dial_status(pair: &Pair) -> Option<PeerDial> {
    let peer = pair.peer()?;
    match pair.dial {
        Dial::Rest => None,
        Dial::Pause { attempts, .. } | Dial::Attempt { attempts, .. } => {
            Some(PeerDial { peer: peer.id.clone(), attempts })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(current_mtu: u16, lost_probes: u64, black_holes: u64) -> PathStats {
        let mut path = PathStats::default();
        (path.current_mtu, path.lost_plpmtud_probes, path.black_holes_detected) =
            (current_mtu, lost_probes, black_holes);
        path
    }

    #[test]
    fn the_smallest_packets_are_a_finding_once_larger_ones_were_refused_or_swallowed() {
        let new = PathStats::default();
        assert_eq!(known_mtu(&path(1200, 2, 0), &new), None, "the third probe may get through");
        assert_eq!(known_mtu(&path(1200, 3, 0), &new), Some(1200));
        assert_eq!(known_mtu(&path(1200, 0, 1), &new), Some(1200), "larger ones got through at first");
        assert_eq!(known_mtu(&path(1452, 0, 0), &new), Some(1452));
    }

    #[test]
    fn what_another_path_did_to_packets_says_nothing_of_this_one() {
        let before = path(1200, 3, 1);
        assert_eq!(known_mtu(&path(1200, 5, 1), &before), None);
        assert_eq!(known_mtu(&path(1200, 6, 1), &before), Some(1200));
        assert_eq!(known_mtu(&path(1200, 3, 2), &before), Some(1200));
    }
}
