//! What the daemon shows, as types: the daemon fills them in, `--json` prints them, tables are made of them.

use std::net::{IpAddr, SocketAddr};

use peerage_model::{AgentId, UnixTime};
use serde::{Deserialize, Serialize};

use super::message::Listener;
use crate::portmap::Mapping;
use crate::state::document::{Service, Transport};
use crate::state::encoding::{optional_time, text, time};

/// Everything at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Since when it runs.
    #[serde(with = "time")]
    pub since: UnixTime,
    /// Where its state is.
    pub state: String,
    /// Who it is.
    #[serde(with = "text")]
    pub agent: AgentId,
    /// This run of it.
    pub instance: String,
    /// Which keys of its authority are in use: the first have number 1.
    #[serde(default)]
    pub keys: u64,
    /// Until when those before them count, too, after a rotation.
    #[serde(default, with = "optional_time")]
    pub former_keys_until: Option<UnixTime>,
    /// When its passport ends unless renewed.
    #[serde(with = "time")]
    pub passport_until: UnixTime,
    /// Its relays.
    pub relays: Vec<Relay>,
    /// What is known of its NAT.
    pub nat: Nat,
    /// The port that its router forwards to it.
    #[serde(default)]
    pub mapping: Mapping,
    /// What it offers.
    pub services: Vec<Service>,
    /// Whom it trusts.
    pub peers: Vec<Peer>,
    /// How many ask for its trust.
    pub requests: usize,
    /// Where its DNS answers.
    pub dns: Option<SocketAddr>,
    /// What stands in the way of something that was asked for.
    pub problems: Vec<String>,
    /// How it stands with the operator that it gets all this from; `None` outside of clusters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<Operator>,
}

/// The operator as the agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    /// Whether there is a stream from it that is not behind.
    pub connected: bool,
    /// Which replica, or the last one that was tried.
    pub place: Option<SocketAddr>,
    /// Why there is no stream.
    pub problem: Option<String>,
    /// How new what it acts on may be: epoch, and the newest version of an object that it was told of.
    pub revision: Option<(u64, u64)>,
    /// When it was last heard that this is how things are.
    #[serde(with = "optional_time")]
    pub heard: Option<UnixTime>,
}

/// A relay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    /// As it was configured.
    pub relay: String,
    /// Whether we are bound there.
    pub up: bool,
    /// How it sees us.
    pub observed: Option<SocketAddr>,
    /// How long its latest answer took, in milliseconds.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// Whether it keeps a mailbox for us, in which strangers who know our name can leave a request.
    #[serde(default)]
    pub mailbox: bool,
    /// Whether it is reached by TLS on TCP, since UDP is not answered.
    #[serde(default)]
    pub tls: bool,
    /// What is wrong with UDP to it, and with the way around it.
    #[serde(default)]
    pub note: Option<String>,
}

/// What kind of NAT we are behind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Nat {
    /// In the words of RFC 3489: `open`, `full cone`, `symmetric`, …, or `unknown`.
    pub kind: String,
    /// In those of RFC 4787, where they say more.
    pub detail: String,
}

/// Where a trust stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// There is a session.
    Connected,
    /// We asked; it has not answered.
    WaitingForApproval,
    /// No session at the moment. From here, "down" and "has taken its trust back" look the same.
    NotConnected,
    /// Our own trust cannot be acted on.
    Unusable,
}

/// Somebody we trust.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// What it is called here.
    pub name: String,
    /// Who it is.
    #[serde(with = "text")]
    pub id: AgentId,
    /// Where it stands.
    pub state: PeerState,
    /// Its running instances that we have a session with.
    pub instances: Vec<String>,
    /// `local`, `direct`, `punched` or `relayed`.
    pub path: Option<String>,
    /// Round trip over that path, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why no better path, and what to do.
    pub why: Option<String>,
    /// What it opens to us: `name port/protocol`.
    pub ports: Vec<String>,
    /// What it may open here.
    pub inbound: String,
    /// The address that stands for it on this machine.
    pub address: Option<IpAddr>,
    /// Why we trust it.
    pub purpose: String,
    /// Since when.
    #[serde(with = "time")]
    pub since: UnixTime,
    /// Until when.
    #[serde(with = "optional_time")]
    pub expires: Option<UnixTime>,
    /// Bytes from it, in the sessions that are up.
    pub bytes_in: u64,
    /// Bytes to it, in the sessions that are up.
    pub bytes_out: u64,
    /// Open streams.
    pub streams: u64,
}

/// A ticket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invited {
    /// What to give to the other person.
    pub ticket: String,
    /// What it is called here, for taking it back. It does not open anything.
    #[serde(default)]
    pub id: String,
    /// When it ends.
    #[serde(with = "time")]
    pub expires: UnixTime,
    /// Something to know before sending it.
    pub warning: Option<String>,
}

/// A ticket that nobody has used yet. Its secret is not kept, so it cannot be shown again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenTicket {
    /// What it is called here.
    pub id: String,
    /// When it ends.
    #[serde(with = "time")]
    pub expires: UnixTime,
}

/// A request that was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Whom.
    #[serde(with = "text")]
    pub peer: AgentId,
    /// What it will be called here.
    pub name: String,
    /// What it may open here.
    pub inbound: String,
    /// The relays that named it and have the request, when it was asked by name.
    #[serde(default)]
    pub mailboxes: Vec<String>,
}

/// A request that waits for us.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pending {
    /// What it calls itself.
    pub name: String,
    /// Who it is.
    #[serde(with = "text")]
    pub id: AgentId,
    /// Why it asks.
    pub reason: String,
    /// Since when.
    #[serde(with = "time")]
    pub received: UnixTime,
    /// When we forget it.
    #[serde(with = "time")]
    pub expires: UnixTime,
}

/// A trust that was given or changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Approved {
    /// To whom.
    #[serde(with = "text")]
    pub peer: AgentId,
    /// What it is called here.
    pub name: String,
    /// What it may open here.
    pub inbound: String,
    /// The ports that are meant at the moment: `name port/protocol`.
    pub ports: Vec<String>,
    /// Until when.
    #[serde(with = "optional_time")]
    pub expires: Option<UnixTime>,
}

/// A request that was turned down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejected {
    /// Whose.
    #[serde(with = "text")]
    pub peer: AgentId,
}

/// A trust that was taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revoked {
    /// From whom.
    #[serde(with = "text")]
    pub peer: AgentId,
    /// How many open streams were reset, when that was waited for and there was a session.
    pub streams_reset: Option<u64>,
    /// Milliseconds from the write to the reset.
    pub reset_ms: Option<f64>,
}

/// What became of the keys of this agent's authority.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rotated {
    /// Which keys are in use: the first have number 1.
    pub sequence: u64,
    /// Until when the former ones count, too; `None` when they do not.
    #[serde(with = "optional_time")]
    pub until: Option<UnixTime>,
    /// Peers that are connected, and learn the new keys at once.
    pub told: Vec<String>,
    /// Peers that learn them in their next session. One that has none before the former keys end needs a new ticket.
    pub waiting: Vec<String>,
}

/// What this agent offers after a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exposed {
    /// The ports.
    pub services: Vec<Service>,
    /// Who may open the port in question.
    pub open_to: Vec<String>,
}

/// One echo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pong {
    /// From one up.
    pub seq: u32,
    /// How long it took, in milliseconds; `None` when it did not come back in time.
    pub rtt_ms: Option<f64>,
    /// Over which path.
    pub path: Option<String>,
}

/// Names of peers and where their ports listen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Names {
    /// Names and the addresses they lead to.
    pub hosts: Vec<(String, IpAddr)>,
    /// Ports that listen elsewhere than where programs connect to.
    pub redirects: Vec<Listener>,
    /// Where our DNS answers.
    pub dns: Option<SocketAddr>,
}

/// How much went through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Bytes that the peer has counted (at the end) or that we have sent (before).
    pub bytes: u64,
    /// In how many seconds.
    pub seconds: f64,
    /// In Gbit/s.
    pub gbit_per_s: f64,
    /// Over which path.
    pub path: Option<String>,
    /// Whether this is the result.
    pub done: bool,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Good,
    /// Works, less well than it could.
    Note,
    /// Does not work.
    Problem,
}

/// Something the doctor looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, a stable word.
    pub check: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do; empty where there is nothing to do.
    pub remedy: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A relay took us in, or was lost.
    Relay {
        /// Which.
        relay: String,
        /// Whether we are bound there.
        up: bool,
        /// How it sees us.
        observed: Option<SocketAddr>,
    },
    /// A relay does not take us.
    RelayRefused {
        /// Which.
        relay: String,
        /// Why, in its words.
        reason: String,
    },
    /// The NAT became known.
    Nat {
        /// What it is.
        #[serde(flatten)]
        nat: Nat,
    },
    /// A session with a peer came up.
    Connected {
        /// What the peer is called here.
        peer: String,
        /// Its id.
        id: String,
        /// Its path.
        path: String,
        /// Whether this is its first sign of consent to a request of ours.
        approved: bool,
    },
    /// A session ended.
    Disconnected {
        /// What the peer is called here.
        peer: String,
        /// Its id.
        id: String,
        /// Why.
        reason: String,
    },
    /// A session's path changed under its streams.
    PathChanged {
        /// What the peer is called here.
        peer: String,
        /// Before.
        from: String,
        /// After.
        to: String,
        /// Why.
        why: String,
        /// Round trip of the new one.
        rtt_ms: Option<f64>,
    },
    /// A peer said which of its ports we may open.
    Ports {
        /// What the peer is called here.
        peer: String,
        /// Its ports: `name port/protocol`.
        ports: Vec<String>,
    },
    /// Somebody asks for our trust.
    Request {
        /// What it calls itself.
        name: String,
        /// Its id.
        id: String,
        /// Why.
        reason: String,
    },
    /// We gave our trust.
    Approved {
        /// What the peer is called here.
        peer: String,
        /// Its id.
        id: String,
    },
    /// We took our trust back; the engine has reset the peer's streams.
    Revoked {
        /// What the peer was called here.
        peer: String,
        /// Its id.
        id: String,
        /// Milliseconds from the write to the reset; `None` where there was no session.
        reset_ms: Option<f64>,
        /// How many streams.
        streams: u64,
    },
    /// Open streams with a peer were reset.
    StreamsReset {
        /// What the peer is called here.
        peer: String,
        /// How many.
        count: u64,
        /// Why.
        why: String,
    },
    /// A trust came to its end.
    Expired {
        /// What the peer was called here.
        peer: String,
        /// Its id.
        id: String,
    },
    /// The caller was too slow to be told this many events.
    Missed {
        /// How many.
        count: u64,
    },
    /// The daemon stops.
    Stopping,
}

/// `mcp 80/tcp`.
#[must_use]
pub fn port_text(name: &str, number: u16, protocol: impl std::fmt::Display) -> String {
    format!("{name} {number}/{protocol}")
}

/// [`Transport`] for a transport of the model.
#[must_use]
pub fn transport(protocol: peerage_model::snapshot::Protocol) -> Transport {
    match protocol {
        peerage_model::snapshot::Protocol::Tcp => Transport::Tcp,
        peerage_model::snapshot::Protocol::Udp => Transport::Udp,
    }
}
