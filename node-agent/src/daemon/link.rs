//! What the daemon needs of the tunnel beyond dialling.
//!
//! The driver implements it over the engine; tests implement it over nothing. Kept narrow on purpose: no key comes back
//! out of it.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::control::TrustRequest;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::mailbox::{MailId, SEALED};
use peerage_model::snapshot::Port;
use peerage_model::stream::StreamStatus;
use peerage_model::{
    AgentId, AgentName, AgreementSecret, AuthorityRecord, Credential, InstanceId, RoutingId, Snapshot, Ticket, TrustId,
    UnixTime,
};
use tokio::sync::mpsc;

use crate::control::Failure;
use crate::control::view;
use crate::driver::{ProxySettings, TunnelMemory};
use crate::portmap;
use crate::tunnel::{Dial, Incoming};

/// What the tunnel starts with.
#[derive(Debug)]
pub struct LinkConfig {
    /// Who we are.
    pub agent: AgentId,
    /// The key of this run.
    pub instance: AgreementSecret,
    /// The passport for it, with its authority's record.
    pub credential: Vec<u8>,
    /// Where to bind.
    pub bind: Vec<SocketAddr>,
    /// Addresses at which we are reachable, as our owner says.
    pub fixed_endpoints: Vec<SocketAddr>,
    /// Whether the router is asked for a port.
    pub port_mapping: portmap::Mode,
    /// How TCP ports of relays are reached where UDP is blocked.
    pub relay_proxy: ProxySettings,
    /// What streams may hold.
    pub memory: TunnelMemory,
    /// Whom we trust at first.
    pub snapshot: Snapshot,
    /// Whether we have a mailbox at our relays.
    pub public: bool,
    /// Earlier runs of ours, newest first, which have ended: the lock on the state says so.
    pub predecessors: Vec<InstanceId>,
}

/// A running tunnel: to act on, to hear from, and streams that peers open.
pub type Started = (Arc<dyn Link>, mpsc::Receiver<LinkEvent>, mpsc::Receiver<Incoming>);

/// Starts a tunnel.
pub type Starter = Box<dyn FnOnce(LinkConfig) -> io::Result<Started> + Send>;

/// A future in a box.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A relay, and the authorities that have an agent of some name there, as it says.
pub type Found = (RelayInfo, Vec<AuthorityRecord>);

/// The tunnel as the daemon sees it.
pub trait Link: Dial + 'static {
    /// Acts on a new snapshot; what it leaves out is reset.
    fn apply(&self, snapshot: Snapshot);
    /// Shows a fresh passport from now on, also in live sessions.
    fn renew(&self, credential: Vec<u8>);
    /// Asks a ticket's inviter for trust. Resolves when it has the request.
    fn ask<'a>(&'a self, ticket: &'a Ticket, request: TrustRequest) -> Boxed<'a, Result<(), Failure>>;
    /// Answers [`LinkEvent::TrustRequested`]: open when the request is written down, busy where it could not be and the ticket stays
    /// good, denied otherwise.
    fn answer_request(&self, invite: TrustId, status: StreamStatus);
    /// What these relays say whose agents have this name; those that did not answer are not among them.
    fn look_up<'a>(&'a self, name: &'a AgentName, relays: &'a [RelayInfo]) -> Boxed<'a, Vec<Found>>;
    /// Leaves a sealed request in a mailbox at these relays; gives those that say that they have it.
    fn post<'a>(
        &'a self,
        to: RoutingId,
        sealed: &'a [u8; SEALED],
        relays: &'a [RelayInfo],
    ) -> Boxed<'a, Vec<RelayInfo>>;
    /// [`LinkEvent::Mail`] is dealt with.
    fn mail_done(&self, relay: &RelayInfo, id: MailId);
    /// Everything as it is.
    fn status(&self) -> Boxed<'_, LinkStatus>;
    /// Ends all sessions, telling the peers.
    fn shutdown(&self) -> Boxed<'_, ()>;
}

/// Something that happened in the tunnel.
#[derive(Debug)]
pub enum LinkEvent {
    /// A relay took us in, or was lost.
    Relay {
        /// Which.
        relay: RelayInfo,
        /// Whether we are bound there.
        up: bool,
        /// How it sees us.
        observed: Option<SocketAddr>,
    },
    /// A relay does not take us.
    RelayRefused {
        /// Which.
        relay: RelayInfo,
        /// Why, in its words.
        reason: String,
    },
    /// The NAT became known.
    Nat(view::Nat),
    /// A session with a peer came up.
    SessionUp {
        /// Whose.
        peer: AgentId,
        /// With which instance.
        instance: InstanceId,
        /// Over which path.
        path: String,
    },
    /// A session ended.
    SessionDown {
        /// Whose.
        peer: AgentId,
        /// Why.
        reason: String,
    },
    /// A path changed under its streams.
    PathChanged {
        /// Whose.
        peer: AgentId,
        /// Before.
        from: String,
        /// After.
        to: String,
        /// Why.
        why: String,
        /// Round trip of the new one.
        rtt: Option<Duration>,
    },
    /// A session showed which keys a peer's authority uses.
    PeerRecord {
        /// Whose.
        peer: AgentId,
        /// Its record, verified.
        record: Box<AuthorityRecord>,
    },
    /// A peer said which of its ports we may open.
    PeerPorts {
        /// Whose.
        peer: AgentId,
        /// Which.
        ports: Vec<Port>,
    },
    /// Somebody asked over one of our invitations.
    TrustRequested {
        /// Which.
        invite: TrustId,
        /// Who, verified.
        asker: Box<Credential>,
        /// What.
        request: TrustRequest,
    },
    /// Something was in our mailbox.
    Mail {
        /// At which relay.
        relay: RelayInfo,
        /// Its id there.
        id: MailId,
        /// What it is, for our authority to open.
        sealed: Box<[u8; SEALED]>,
    },
    /// Streams with a peer were reset.
    StreamsReset {
        /// Whose.
        peer: AgentId,
        /// How many.
        count: u64,
        /// Why.
        why: String,
    },
}

/// The tunnel as it is.
#[derive(Clone, Debug, Default)]
pub struct LinkStatus {
    /// Our relays.
    pub relays: Vec<view::Relay>,
    /// Our NAT.
    pub nat: view::Nat,
    /// The port that our router forwards to us.
    pub mapping: portmap::Mapping,
    /// Sessions that are up.
    pub sessions: Vec<LinkSession>,
}

/// Sessions with all instances of a peer, taken together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) instances: BTreeSet<InstanceId>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) streams: u64,
}

impl LinkStatus {
    /// Sessions with a peer; it may have several replicas.
    pub fn sessions_with(&self, peer: &AgentId) -> impl Iterator<Item = &LinkSession> {
        self.sessions.iter().filter(move |session| session.peer == *peer)
    }

    /// Of these the one with the best path, which speaks for all.
    pub fn best_session_with(&self, peer: &AgentId) -> Option<&LinkSession> {
        self.sessions_with(peer).min_by_key(|session| (session.path == "relayed", session.rtt))
    }

    /// What all sessions with a peer come to.
    pub(crate) fn totals(&self, peer: &AgentId) -> Totals {
        let mut totals = Totals::default();
        for session in self.sessions_with(peer) {
            totals.instances.insert(session.instance);
            totals.bytes_in += session.bytes_in;
            totals.bytes_out += session.bytes_out;
            totals.streams += session.streams;
        }
        totals
    }
}

/// A session that is up.
#[derive(Clone, Debug)]
pub struct LinkSession {
    /// With whom.
    pub peer: AgentId,
    /// With which running instance.
    pub instance: InstanceId,
    /// Over which path.
    pub path: String,
    /// Its round trip.
    pub rtt: Option<Duration>,
    /// Since when.
    pub since: UnixTime,
    /// Why no better path.
    pub why_not_better: Option<String>,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Open streams.
    pub streams: u64,
    /// Largest packet in use, in bytes.
    pub mtu: Option<u16>,
    /// How many seconds the peer's clock is ahead of ours, as it said.
    pub clock_ahead: Option<i64>,
}
