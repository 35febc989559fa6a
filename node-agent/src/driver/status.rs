//! The driver's state in words and numbers, for `peerage status` and metrics.

use peerage_engine::node::{NodeStatus, RelayStatus, RelayWay, SessionStatus};
use serde::Serialize;

use crate::portmap::Mapping;

/// How things are.
#[derive(Clone, Debug, Serialize)]
pub struct DriverStatus {
    /// Relays in use.
    pub relays: Vec<RelayState>,
    /// RFC 3489's word for our NAT.
    pub nat_type: String,
    /// Our NAT in RFC 4787's words, and what would make the verdict sharper.
    pub nat: String,
    /// The port that our router forwards to us.
    pub mapping: Mapping,
    /// Sessions that are up.
    pub sessions: Vec<SessionState>,
    /// Peers that are being dialled, with the number of attempts so far.
    pub dialling: Vec<(String, u32)>,
}

/// A relay.
#[derive(Clone, Debug, Serialize)]
pub struct RelayState {
    /// As `KEY@HOST:PORT`.
    pub relay: String,
    /// Whether peers find us there.
    pub own: bool,
    /// Whether it knows us at the moment.
    pub up: bool,
    /// Where it sees us by UDP.
    pub observed: Option<String>,
    /// How long its latest answer took.
    pub rtt_ms: Option<f64>,
    /// Whether it keeps a mailbox for us.
    pub mailbox: bool,
    /// Whether it is reached by TLS on TCP, since UDP is not answered.
    pub tls: bool,
    /// What is wrong with UDP, and with the way around it.
    pub note: Option<String>,
}

/// A session.
#[derive(Clone, Debug, Serialize)]
pub struct SessionState {
    /// The peer's agent id.
    pub peer: String,
    /// Its running instance.
    pub instance: String,
    /// Whether we dialled.
    pub initiator: bool,
    /// `local`, `direct`, `punched` or `relayed`.
    pub path: String,
    /// Round trip in milliseconds, when measured.
    pub rtt_ms: Option<f64>,
    /// When it came up, in seconds since 1970.
    pub since: u64,
    /// Why the path is not a direct one.
    pub why_not_better: Option<String>,
    /// Open streams.
    pub streams: usize,
    /// UDP payload bytes sent.
    pub bytes_sent: u64,
    /// UDP payload bytes received.
    pub bytes_received: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Of those, believed lost.
    pub packets_lost: u64,
    /// Largest UDP payload in use, in bytes, once it is known.
    pub mtu: Option<u16>,
    /// How many seconds the peer's clock is ahead of ours, as it said.
    pub clock_ahead: Option<i64>,
}

pub(super) fn describe(node: &NodeStatus, mapping: Mapping) -> DriverStatus {
    DriverStatus {
        relays: node.relays.iter().map(relay).collect(),
        nat_type: node.nat.nat_type.to_string(),
        nat: match node.mapping_lifetime {
            Some(lifetime) => format!("{}; {lifetime}", node.nat),
            None => node.nat.to_string(),
        },
        mapping,
        sessions: node.sessions.iter().filter(|session| session.confirmed).map(session).collect(),
        dialling: node.dials.iter().map(|dial| (dial.peer.to_string(), dial.attempts)).collect(),
    }
}

fn relay(relay: &RelayStatus) -> RelayState {
    RelayState {
        relay: relay.relay.to_string(),
        own: relay.own,
        up: relay.way != RelayWay::None,
        observed: relay.observed.map(|address| address.to_string()),
        rtt_ms: relay.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
        mailbox: relay.mailbox,
        tls: relay.way == RelayWay::Tls,
        note: relay.note.clone(),
    }
}

fn session(session: &SessionStatus) -> SessionState {
    SessionState {
        peer: session.peer.to_string(),
        instance: session.instance.to_string(),
        initiator: session.initiator,
        path: session.path.to_string(),
        rtt_ms: session.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        since: session.since.0,
        why_not_better: session.why_not_better.clone(),
        streams: session.streams,
        bytes_sent: session.bytes.0,
        bytes_received: session.bytes.1,
        packets_sent: session.packets.0,
        packets_lost: session.packets.1,
        mtu: session.mtu,
        clock_ahead: session.clock_ahead,
    }
}
