//! What the driver tells the daemon.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_engine::nat::NatReport;
use peerage_engine::node::{DownReason, Event, SessionKey};
use peerage_engine::path::PathKind;
use peerage_model::control::TrustRequest;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::Refusal;
use peerage_model::relay::frame::mailbox::{MailId, SEALED};
use peerage_model::snapshot::Port;
use peerage_model::{AgentId, AuthorityRecord, Credential, InstanceId, TrustId};

/// Something people or the daemon may want to know.
#[derive(Clone, Debug)]
pub enum DriverEvent {
    /// A relay of ours came up, or went away.
    Relay {
        /// Which.
        relay: RelayInfo,
        /// Where it sees us, while it is up.
        observed: Option<SocketAddr>,
    },
    /// A relay does not take us.
    RelayRefused {
        /// Which.
        relay: RelayInfo,
        /// Why.
        reason: Refusal,
    },
    /// What is known of our NAT changed.
    Nat(NatReport),
    /// A session came up.
    SessionUp {
        /// Which.
        session: SessionKey,
        /// With whom.
        peer: AgentId,
        /// With which running instance.
        instance: InstanceId,
        /// By which path it started.
        path: PathKind,
    },
    /// A session ended.
    SessionDown {
        /// Which.
        session: SessionKey,
        /// With whom.
        peer: AgentId,
        /// Why.
        reason: DownReason,
        /// How many streams that reset.
        streams: usize,
    },
    /// Packets take another path.
    PathChanged {
        /// With whom.
        peer: AgentId,
        /// The old path.
        from: PathKind,
        /// The new path.
        to: PathKind,
        /// Why.
        why: String,
        /// Its round trip, when measured.
        rtt: Option<Duration>,
    },
    /// A session showed which keys a peer's authority uses.
    PeerRecord {
        /// Who.
        peer: AgentId,
        /// Its record, verified.
        record: Box<AuthorityRecord>,
    },
    /// A peer told which ports it opens to us.
    PeerPorts {
        /// Who.
        peer: AgentId,
        /// Which.
        ports: Vec<Port>,
    },
    /// A holder of one of our tickets asks for trust. Answer with [`super::DriverHandle::answer_request`].
    TrustRequested {
        /// The invitation it used.
        invite: TrustId,
        /// Who asks, proven.
        asker: Box<Credential>,
        /// Its words.
        request: TrustRequest,
    },
    /// Something was in our mailbox. Answer with [`super::DriverHandle::mail_done`].
    Mail {
        /// At which relay.
        relay: RelayInfo,
        /// Its id there.
        id: MailId,
        /// What it is.
        sealed: Box<[u8; SEALED]>,
    },
}

impl DriverEvent {
    /// The engine's event as the daemon sees it; `None` for those that the driver deals with itself.
    pub(super) fn from_engine(event: Event) -> Option<Self> {
        match event {
            Event::RelayUp { relay, observed } => Some(Self::Relay { relay, observed: Some(observed) }),
            Event::RelayDown { relay } => Some(Self::Relay { relay, observed: None }),
            Event::RelayRefused { relay, reason } => Some(Self::RelayRefused { relay, reason }),
            Event::Nat(report) => Some(Self::Nat(report)),
            Event::SessionUp { session, peer, instance, path, .. } => {
                Some(Self::SessionUp { session, peer, instance, path })
            }
            Event::SessionDown { session, peer, reason, streams } => {
                Some(Self::SessionDown { session, peer, reason, streams })
            }
            Event::PathChanged { peer, from, to, why, rtt, .. } => Some(Self::PathChanged { peer, from, to, why, rtt }),
            Event::PeerRecord { peer, record } => Some(Self::PeerRecord { peer, record }),
            Event::PeerPorts { peer, ports } => Some(Self::PeerPorts { peer, ports }),
            Event::TrustRequested { invite, asker, request } => Some(Self::TrustRequested { invite, asker, request }),
            Event::Mail { relay, id, sealed } => Some(Self::Mail { relay, id, sealed }),
            Event::LookedUp { .. }
            | Event::MailPosted { .. }
            | Event::Resolve { .. }
            | Event::OpenRelayStream { .. }
            | Event::CloseRelayStream { .. }
            | Event::OpenSockets { .. }
            | Event::CloseSockets { .. }
            | Event::Incoming { .. }
            | Event::Readable(_)
            | Event::Writable(_)
            | Event::PacketReadable(_)
            | Event::Asked { .. } => None,
        }
    }
}
