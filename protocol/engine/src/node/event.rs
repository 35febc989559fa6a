//! What the node tells its driver, and the words for it.

use core::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::control::TrustRequest;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::Refusal;
use peerage_model::snapshot::Port;
use peerage_model::stream::{StreamHeader, StreamStatus};
use peerage_model::{AgentId, AuthorityRecord, Credential, InstanceId, TrustId, UnixTime};

use crate::nat::NatReport;
use crate::path::{ExtraSocket, PathKind, RelayStream};

/// The two times every input comes with: one that only moves forward, and the wall clock for passports and knocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For timers.
    pub mono: Instant,
    /// For passports, trusts and knock epochs.
    pub wall: UnixTime,
}

/// A stream or flow of this node, for as long as the node lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamKey(pub(crate) u64);

/// A session of this node, by a number that no other one has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionKey(pub u64);

/// A trust request that we sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AskKey(pub(crate) u64);

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A relay bound us: peers can find us there, and it saw us at `observed`.
    RelayUp {
        /// Which.
        relay: RelayInfo,
        /// Where it sees us.
        observed: SocketAddr,
    },
    /// A relay stopped answering.
    RelayDown {
        /// Which.
        relay: RelayInfo,
    },
    /// A relay does not take us.
    RelayRefused {
        /// Which.
        relay: RelayInfo,
        /// Why.
        reason: Refusal,
    },
    /// A relay's host name must be looked up; answer once with [`super::Node::relay_resolved`], also if it cannot be.
    Resolve {
        /// Which.
        relay: RelayInfo,
    },
    /// A relay does not answer by UDP: open a stream to its TLS port. Answer with [`super::Node::relay_stream_opened`] or
    /// [`super::Node::relay_stream_closed`].
    OpenRelayStream {
        /// What the stream is called from now on.
        stream: RelayStream,
        /// Whereto.
        relay: RelayInfo,
    },
    /// A stream is of no use any more.
    CloseRelayStream {
        /// Which.
        stream: RelayStream,
    },
    /// Open these UDP sockets beside the main one, for IPv4 where the main one has it, and say how it went with
    /// [`super::Node::sockets_opened`]. From then on they are used like the main one.
    OpenSockets {
        /// What the node calls them.
        sockets: Vec<ExtraSocket>,
    },
    /// Nobody needs these sockets any more.
    CloseSockets {
        /// Which.
        sockets: Vec<ExtraSocket>,
    },
    /// What we know of our NAT changed.
    Nat(NatReport),
    /// A session with a trusted peer came up.
    SessionUp {
        /// The session.
        session: SessionKey,
        /// With whom.
        peer: AgentId,
        /// With which running instance.
        instance: InstanceId,
        /// Whether we dialled.
        initiator: bool,
        /// By which path it started.
        path: PathKind,
    },
    /// A session that was up ended; its streams are reset.
    SessionDown {
        /// The session.
        session: SessionKey,
        /// With whom.
        peer: AgentId,
        /// Why.
        reason: DownReason,
        /// How many streams that reset.
        streams: usize,
    },
    /// A session's packets take another path from now on. Its streams do not notice.
    PathChanged {
        /// The session.
        session: SessionKey,
        /// With whom.
        peer: AgentId,
        /// The old path.
        from: PathKind,
        /// The new path.
        to: PathKind,
        /// Why, in words for a person.
        why: String,
        /// The new path's round trip, when measured.
        rtt: Option<Duration>,
    },
    /// The keys that a peer's authority uses, as the credential says that came with a session or renewed it.
    PeerRecord {
        /// Who.
        peer: AgentId,
        /// Its authority's record, verified and of the authority that the peer has for life.
        record: Box<AuthorityRecord>,
    },
    /// A peer told us which ports it opens to us.
    PeerPorts {
        /// Who.
        peer: AgentId,
        /// Which.
        ports: Vec<Port>,
    },
    /// A peer opened a stream that our policy allows. Answer with [`super::Node::answer`].
    Incoming {
        /// The stream.
        stream: StreamKey,
        /// Who opened it.
        peer: AgentId,
        /// What for.
        header: StreamHeader,
    },
    /// Reading may go on (or fail).
    Readable(StreamKey),
    /// Writing may go on (or fail).
    Writable(StreamKey),
    /// A packet of a UDP flow came.
    PacketReadable(StreamKey),
    /// Somebody who holds one of our tickets asks for trust. Answer with [`super::Node::answer_request`].
    TrustRequested {
        /// The invitation it used.
        invite: TrustId,
        /// Who asks, proven.
        asker: Box<Credential>,
        /// Its words.
        request: TrustRequest,
    },
    /// What relays say to a look-up: records of authorities, verified, by relay. One that did not answer is not among them.
    LookedUp {
        /// Which look-up.
        errand: super::ErrandKey,
        /// What they say.
        found: Vec<(RelayInfo, Vec<AuthorityRecord>)>,
    },
    /// These relays have taken a post, or say so.
    MailPosted {
        /// Which post.
        errand: super::ErrandKey,
        /// Which relays.
        at: Vec<RelayInfo>,
    },
    /// Something was in our mailbox at a relay. Call [`super::Node::mail_done`] when it is dealt with.
    Mail {
        /// Where.
        relay: RelayInfo,
        /// Its id there.
        id: peerage_model::relay::frame::mailbox::MailId,
        /// What it is; to be opened with the authority's agreement key.
        sealed: Box<[u8; peerage_model::relay::frame::mailbox::SEALED]>,
    },
    /// A trust request of ours was delivered, or was not.
    Asked {
        /// Which.
        ask: AskKey,
        /// How it ended.
        result: Result<(), AskError>,
    },
}

/// Why a trust request was not delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answered: the inviter or its relay is not up, or the ticket was used or withdrawn.
    #[error("nobody answered for this ticket; it may be used, withdrawn or its agent may be down")]
    NoAnswer,
    /// The inviter answered with a refusal.
    #[error("the inviter did not take the request: {0}")]
    Refused(StreamStatus),
    /// We have no relay of the inviter to ask through.
    #[error("none of the ticket's relays can be reached")]
    NoRelay,
}

/// Why a session ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DownReason {
    /// We withdrew our trust.
    RevokedHere,
    /// The peer withdrew its trust.
    RevokedByPeer,
    /// The trust or a passport ended by itself.
    Expired,
    /// The peer's instance is on the denied list.
    Denied,
    /// Nothing was heard for too long.
    TimedOut,
    /// A newer session with the same instance took its place.
    Replaced,
    /// Not used, or one of two.
    Drained,
    /// The peer is shutting down.
    PeerLeft,
    /// We are shutting down.
    Shutdown,
    /// A protocol error.
    Failed(String),
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RevokedHere => "trust was revoked here",
            Self::RevokedByPeer => "the peer revoked its trust",
            Self::Expired => "the trust or a passport ended",
            Self::Denied => "the peer's instance is denied",
            Self::TimedOut => "nothing was heard from the peer",
            Self::Replaced => "a newer session took its place",
            Self::Drained => "not in use",
            Self::PeerLeft => "the peer shut down",
            Self::Shutdown => "this agent shut down",
            Self::Failed(why) => why,
        })
    }
}

/// The codes a session is closed with (docs/spec/session.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum CloseCode {
    Drained = 0,
    Shutdown = 1,
    Revoked = 2,
    Expired = 3,
    Denied = 4,
    Replaced = 5,
    Protocol = 6,
}

impl CloseCode {
    /// What a peer's close code means to us.
    pub(crate) fn received(code: u64) -> DownReason {
        match code {
            0 => DownReason::Drained,
            1 => DownReason::PeerLeft,
            2 => DownReason::RevokedByPeer,
            3 => DownReason::Expired,
            4 => DownReason::Denied,
            5 => DownReason::Replaced,
            other => DownReason::Failed(format!("the peer closed with code {other}")),
        }
    }
}

/// Why an operation on a stream did not go through.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StreamError {
    /// Not now; an event says when.
    #[error("not ready")]
    Blocked,
    /// The peer refused the stream.
    #[error("{0}")]
    Refused(StreamStatus),
    /// The peer reset or stopped the stream.
    #[error("the peer reset the stream")]
    Reset,
    /// The session under it ended.
    #[error("{0}")]
    SessionEnded(DownReason),
    /// No session came up in time.
    #[error("the peer did not answer: {0}")]
    Unreachable(&'static str),
    /// Finished, released or never there.
    #[error("no such stream")]
    Closed,
    /// A packet larger than the session carries at the moment.
    #[error("the packet is larger than the tunnel carries")]
    TooLarge,
}

/// Why a stream could not even be asked for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Not in the allowlist.
    #[error("not a trusted peer of this agent")]
    NotTrusted,
}
