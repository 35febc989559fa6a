//! AgentTrusts: consents.

use std::sync::Arc;

use kube::ResourceExt;
use peerage_crds::trust::{PeerPort, TrustedPeer};
use peerage_crds::{AgentTrust, AgentTrustStatus};
use peerage_model::snapshot::Protocol;
use peerage_model::{AgentName, Fingerprint, Label, TrustId, UnixTime};

use super::peer::protocol;
use super::{Unreadable, created, key_of};
use crate::index::Labels;
use crate::key::{ObjectKey, uid_bytes};

/// What an AgentTrust declares.
#[derive(Clone, Debug, PartialEq)]
pub struct TrustFacts {
    /// The object's UID.
    pub uid: TrustId,
    /// When it was made, in seconds of Unix time: of two that contradict each other the elder one holds.
    pub created: i64,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// Our agent.
    pub agent: ObjectKey,
    /// Whom it trusts.
    pub target: Target,
    /// What it calls the peer.
    pub alias: Option<Label>,
    /// What the peer may open.
    pub inbound: Vec<Label>,
    /// What is known ahead of the peer's ports.
    pub ports: Option<Vec<KnownPort>>,
    /// When it ends.
    pub expires: Option<UnixTime>,
    /// What it is for, in the owner's words.
    pub purpose: Option<String>,
    /// What its status says.
    pub status: AgentTrustStatus,
}

/// A port of the peer, stated ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPort {
    /// The number the peer offers it under.
    pub number: u16,
    /// The number it has for our programs.
    pub local: u16,
    /// Its transport.
    pub protocol: Protocol,
}

/// Whom an AgentTrust is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// One agent of this cluster.
    Here(ObjectKey),
    /// Every agent of one other namespace that has these labels.
    Fleet {
        /// That namespace.
        namespace: Arc<str>,
        /// Those labels.
        selector: Labels,
    },
    /// An agent of another authority.
    Away {
        /// The AgentLink that leads there.
        link: String,
        /// The authority that the owner pinned.
        authority: Fingerprint,
        /// The agent's whole name there.
        name: AgentName,
    },
}

impl TrustFacts {
    /// Reads an AgentTrust.
    ///
    /// # Errors
    /// [`Unreadable`] for what our schema would not let in.
    pub fn read(object: &AgentTrust) -> Result<Self, Unreadable> {
        let spec = &object.spec;
        let key = key_of(object);
        let label = |text: &String| text.parse::<Label>();
        let expires = spec.expires_at.as_ref().map(|time| UnixTime(u64::try_from(time.0.as_second()).unwrap_or(0)));
        Ok(Self {
            uid: uid_bytes(&object.uid().unwrap_or_default()),
            created: created(object),
            generation: object.metadata.generation,
            agent: ObjectKey::new(key.namespace.clone(), spec.agent_ref.name.clone()),
            target: target(&spec.peer, &key.namespace)?,
            alias: spec.alias.as_ref().map(label).transpose().map_err(Unreadable::at("spec.alias"))?,
            inbound: spec
                .inbound
                .iter()
                .map(|port| label(&port.port_name))
                .collect::<Result<_, _>>()
                .map_err(Unreadable::at("spec.inbound"))?,
            ports: spec.peer.ports.as_ref().map(|ports| ports.iter().map(known).collect()),
            expires,
            purpose: spec.purpose.clone(),
            status: object.status.clone().unwrap_or_default(),
        })
    }

    /// What our programs call the peer; a fleet's members go by their own names.
    #[must_use]
    pub fn alias(&self) -> Option<Label> {
        match (&self.alias, &self.target) {
            (Some(alias), Target::Here(_) | Target::Fleet { .. } | Target::Away { .. }) => Some(alias.clone()),
            (None, Target::Here(peer)) => peer.name.parse().ok(),
            (None, Target::Away { name, .. }) => Some(name.first_label()),
            (None, Target::Fleet { .. }) => None,
        }
    }

    /// Whether two versions of an object differ in what anything but the status is made from. Another generation is a
    /// difference: streams remember which one they have told.
    #[must_use]
    pub fn same_declaration(&self, other: &Self) -> bool {
        let declared = |facts: &Self| Self { status: AgentTrustStatus::default(), ..facts.clone() };
        declared(self) == declared(other)
    }

    /// Whether it has ended at `now`.
    #[must_use]
    pub fn ended(&self, now: UnixTime) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

fn target(peer: &TrustedPeer, own_namespace: &str) -> Result<Target, Unreadable> {
    let namespace = || peer.namespace.as_deref().unwrap_or(own_namespace).into();
    match (&peer.link_ref, &peer.name, &peer.selector) {
        (Some(link), Some(name), None) => {
            let whole = match &peer.namespace {
                Some(namespace) => format!("{name}.{namespace}"),
                None => name.clone(),
            };
            let authority = peer.authority.clone().unwrap_or_default();
            Ok(Target::Away {
                link: link.name.clone(),
                authority: authority.parse().map_err(Unreadable::at("spec.peer.authority"))?,
                name: whole.parse().map_err(Unreadable::at("spec.peer.name"))?,
            })
        }
        (None, Some(name), None) => Ok(Target::Here(ObjectKey::new(namespace(), name.clone()))),
        (None, None, Some(selector)) => {
            Ok(Target::Fleet { namespace: namespace(), selector: (&selector.match_labels).into() })
        }
        (Some(_) | None, _, _) => {
            Err(Unreadable { field: "spec.peer", cause: "neither one name nor one selector".into() })
        }
    }
}

fn known(port: &PeerPort) -> KnownPort {
    KnownPort { number: port.port, local: port.local_port.unwrap_or(port.port), protocol: protocol(port.protocol) }
}
