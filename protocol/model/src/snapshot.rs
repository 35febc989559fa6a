//! The allowlist: everything one agent needs to know about whom it trusts.
//!
//! In Kubernetes the operator compiles it; elsewhere the agent makes it from its own store. The engine takes a whole
//! snapshot at a time and acts on the difference.

use core::fmt;

use minicbor::{Decode, Encode};

use crate::id::{AgentId, Fingerprint, InstanceId, TrustId};
use crate::name::Label;
use crate::pair::PairSecret;
use crate::relay::RelayInfo;
use crate::time::UnixTime;

/// Which transport a port speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum Protocol {
    /// TCP.
    #[n(0)]
    Tcp,
    /// UDP.
    #[n(1)]
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port an agent offers, as its peers see it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Port {
    /// What the port is called (`mcp`).
    #[n(0)]
    pub name: Label,
    /// The number peers connect to.
    #[n(1)]
    pub number: u16,
    /// Its transport.
    #[n(2)]
    pub protocol: Protocol,
}

/// How a session may travel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum PathMode {
    /// By relay first, directly as soon as possible.
    #[default]
    #[n(0)]
    Auto,
    /// Never directly: the peer does not learn our addresses.
    #[n(1)]
    RelayOnly,
    /// Data never by relay; only the meeting is.
    #[n(2)]
    DirectOnly,
}

/// Whether a session may look for a direct path by trying hundreds of ports (docs/spec/paths.md section 9).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum BirthdayMode {
    /// Never. Random symmetric NATs stay relayed.
    #[default]
    #[n(0)]
    Disabled,
    /// When nothing else worked and the peer's owner allows it, too.
    #[n(1)]
    Enabled,
}

/// One trusted peer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Peer {
    /// The trust declaration this entry comes from.
    #[n(0)]
    pub trust: TrustId,
    /// Who it is.
    #[n(1)]
    pub id: AgentId,
    /// What we share with it; the first is used for dialling, all are accepted (two during a rotation).
    #[n(2)]
    pub secrets: Vec<PairSecret>,
    /// What our programs call it.
    #[n(3)]
    pub alias: Label,
    /// Which of our ports it may open. Empty means none.
    #[n(4)]
    pub inbound: Vec<Label>,
    /// Which of its ports we know ahead of being told.
    #[n(5)]
    pub ports: Vec<Port>,
    /// Where it can be found.
    #[n(6)]
    pub relays: Vec<RelayInfo>,
    /// When the trust ends by itself.
    #[n(7)]
    pub expires: Option<UnixTime>,
    /// How sessions with it may travel.
    #[n(8)]
    pub path: PathMode,
    /// Whether ports may be guessed to get a direct path.
    #[cbor(n(9), default)]
    pub birthday: BirthdayMode,
}

/// An instance whose passport no longer counts, until that passport would have ended anyway.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Encode, Decode)]
#[cbor(map)]
pub struct DeniedInstance {
    /// Whose.
    #[n(0)]
    pub authority: Fingerprint,
    /// Which.
    #[n(1)]
    pub instance: InstanceId,
    /// When this entry may be forgotten.
    #[n(2)]
    pub until: UnixTime,
}

/// An open invitation: a request-only session made with its secret is answered.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Invite {
    /// Which invitation, for taking it back and for marking it used.
    #[n(0)]
    pub id: TrustId,
    /// Derived from the ticket's secret ([`PairSecret::of_invite`]).
    #[n(1)]
    pub secret: PairSecret,
    /// When it ends.
    #[n(2)]
    pub expires: UnixTime,
}

/// Everything an agent acts on. Emptiness never means "all": an empty snapshot talks to nobody.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Snapshot {
    /// Whom we trust.
    #[n(0)]
    pub peers: Vec<Peer>,
    /// What we offer; a peer's `inbound` names entries of this list.
    #[n(1)]
    pub ports: Vec<Port>,
    /// Relays we use.
    #[n(2)]
    pub relays: Vec<RelayInfo>,
    /// Instances that are denied.
    #[n(3)]
    pub denied: Vec<DeniedInstance>,
    /// Invitations that are open.
    #[n(4)]
    pub invites: Vec<Invite>,
}
