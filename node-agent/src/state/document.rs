//! What `state.json` holds: everything about an agent that is not secret.
//!
//! The types here are the file's format ([`VERSION`]); what may be done to them is in `change`.

use std::fmt;

use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{PathMode, Port, Protocol};
use peerage_model::{AgentId, AgentName, AuthorityRecord, Fingerprint, InstanceId, Label, TrustId, UnixTime};
use serde::{Deserialize, Serialize};

use crate::listen::Avoid;

use super::encoding::{optional_text, optional_time, records, text, texts, time};

/// The format this version writes.
pub const VERSION: u64 = 1;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The format; [`VERSION`].
    pub version: u64,
    /// What this agent is called.
    #[serde(with = "optional_text")]
    pub hostname: Option<AgentName>,
    /// The relays it binds at.
    #[serde(with = "texts")]
    pub relays: Vec<RelayInfo>,
    /// Whether strangers may ask it for trust by its name alone.
    #[serde(default)]
    pub public: bool,
    /// What it offers.
    pub services: Vec<Service>,
    /// Ports that programs here need on all addresses.
    #[serde(default, with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<Avoid>,
    /// Whom it trusts.
    pub trusts: Vec<Trust>,
    /// Who asks for its trust.
    pub requests: Vec<Received>,
    /// Whom it asked, and who has not answered yet.
    pub sent: Vec<Sent>,
    /// Its open invitations.
    pub invites: Vec<Invitation>,
    /// Instances it no longer accepts.
    pub denied: Vec<Denied>,
    /// Trusts that were taken back, for ever.
    pub revoked: Vec<Revoked>,
    /// Requests by mail that were answered; who repeats one is not shown again.
    #[serde(default)]
    pub answered: Vec<Answered>,
}

impl Default for Document {
    fn default() -> Self {
        Self {
            version: VERSION,
            hostname: None,
            relays: Vec::new(),
            public: false,
            services: Vec::new(),
            avoid: Vec::new(),
            trusts: Vec::new(),
            requests: Vec::new(),
            sent: Vec::new(),
            invites: Vec::new(),
            denied: Vec::new(),
            revoked: Vec::new(),
            answered: Vec::new(),
        }
    }
}

/// A port this agent offers, and where connections to it go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// What trusts call it.
    #[serde(with = "text")]
    pub name: Label,
    /// The port that peers connect to.
    pub port: u16,
    /// Its transport.
    pub protocol: Transport,
    /// Where it is on this machine.
    pub target: std::net::SocketAddr,
}

impl Service {
    /// As peers see it.
    #[must_use]
    pub fn as_port(&self) -> Port {
        Port { name: self.name.clone(), number: self.port, protocol: self.protocol.into() }
    }
}

/// [`Protocol`] as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Protocol::from(*self).fmt(f)
    }
}

/// What a peer may open here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inbound {
    /// Everything this agent exposes, also what it exposes later. Only ever written because somebody said so.
    Everything,
    /// Only these, by name. An empty list is nothing.
    #[serde(with = "texts")]
    Only(Vec<Label>),
}

impl Inbound {
    /// The peer may open nothing here.
    pub const NOTHING: Self = Self::Only(Vec::new());
}

impl fmt::Display for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything exposed"),
            Self::Only(names) if names.is_empty() => f.write_str("nothing"),
            Self::Only(names) => {
                let names: Vec<&str> = names.iter().map(Label::as_str).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

/// [`PathMode`] as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// Relay first, then direct.
    #[default]
    Auto,
    /// The peer never learns our addresses.
    RelayOnly,
    /// Data never by relay.
    DirectOnly,
}

impl From<Path> for PathMode {
    fn from(path: Path) -> Self {
        match path {
            Path::Auto => Self::Auto,
            Path::RelayOnly => Self::RelayOnly,
            Path::DirectOnly => Self::DirectOnly,
        }
    }
}

/// Our consent to one peer. Traffic flows while the peer has one for us, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// Which declaration this is.
    #[serde(with = "text")]
    pub id: TrustId,
    /// Whom we trust.
    #[serde(with = "text")]
    pub peer: AgentId,
    /// What its authority's keys are; two while it rotates them, the newest first.
    #[serde(with = "records")]
    pub records: Vec<AuthorityRecord>,
    /// What programs here call it.
    #[serde(with = "text")]
    pub alias: Label,
    /// What it may open here.
    pub inbound: Inbound,
    /// Where it can be found.
    #[serde(with = "texts")]
    pub relays: Vec<RelayInfo>,
    /// How data may travel.
    pub path: Path,
    /// Whether ports may be guessed to get a direct path.
    #[serde(default)]
    pub birthday: bool,
    /// Why we trust it, in its owner's words or ours.
    pub purpose: String,
    /// Since when.
    #[serde(with = "time")]
    pub since: UnixTime,
    /// Until when.
    #[serde(with = "optional_time")]
    pub expires: Option<UnixTime>,
}

/// A wish to be trusted that came in over one of our invitations, or by mail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Received {
    /// Who asks.
    #[serde(with = "text")]
    pub asker: AgentId,
    /// Its authority's keys, as shown in the session.
    #[serde(with = "records")]
    pub records: Vec<AuthorityRecord>,
    /// Where it can be found.
    #[serde(with = "texts")]
    pub relays: Vec<RelayInfo>,
    /// Why, in its words; made safe for terminals.
    pub reason: String,
    /// Over which invitation; none for mail.
    #[serde(with = "optional_text")]
    pub invite: Option<TrustId>,
    /// When it was asked, if by mail.
    #[serde(default, with = "optional_time")]
    pub asked: Option<UnixTime>,
    /// When.
    #[serde(with = "time")]
    pub received: UnixTime,
}

/// A wish of ours that is waiting for its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// Whom we asked.
    #[serde(with = "text")]
    pub peer: AgentId,
    /// Why.
    pub reason: String,
    /// When.
    #[serde(with = "time")]
    pub sent: UnixTime,
    /// The relays at which it lies in a mailbox; none for a ticket's, which was handed over.
    #[serde(default, with = "texts")]
    pub mailboxes: Vec<RelayInfo>,
}

/// A request by mail that was approved or rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// Who asked.
    #[serde(with = "text")]
    pub asker: AgentId,
    /// When, as it says; what it asked before that is old, too.
    #[serde(with = "time")]
    pub asked: UnixTime,
}

/// A ticket we gave out. What it opens is in `invites.key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// Which.
    #[serde(with = "text")]
    pub id: TrustId,
    /// When we stop listening for it.
    #[serde(with = "time")]
    pub expires: UnixTime,
}

/// A running instance that we no longer accept, whoever vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// Whose.
    #[serde(with = "text")]
    pub authority: Fingerprint,
    /// Which.
    #[serde(with = "text")]
    pub instance: InstanceId,
    /// When its last passport has ended and this line may go.
    #[serde(with = "time")]
    pub until: UnixTime,
}

/// A trust we took back. Its id never counts again, also not from a restored backup of the trust itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// Which declaration.
    #[serde(with = "text")]
    pub id: TrustId,
    /// Whom it was for.
    #[serde(with = "text")]
    pub peer: AgentId,
    /// When.
    #[serde(with = "time")]
    pub at: UnixTime,
}
