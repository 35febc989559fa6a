//! Links and relays, and which namespaces may use them.

use kube::ResourceExt;
use peerage_crds::link::Bootstrap;
use peerage_crds::relay::ManagedRelay;
use peerage_crds::{AgentLink, AgentRelay, AllowedNamespaces, NamespacesFrom};
use peerage_model::relay::RelayInfo;
use peerage_model::{AgentName, AuthorityRecord, Fingerprint, TrustId, UnixTime};

use super::Unreadable;
use crate::index::Labels;
use crate::key::uid_bytes;

/// Which namespaces may use a link or a relay. Emptiness permits nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permitted {
    /// Every one.
    All,
    /// Those that are named, and those that have all of the labels, if there are any.
    Selected {
        /// By name.
        names: Vec<String>,
        /// By labels.
        labels: Labels,
    },
}

impl Permitted {
    fn read(spec: &AllowedNamespaces) -> Self {
        match spec.from {
            NamespacesFrom::All => Self::All,
            NamespacesFrom::Selected => Self::Selected {
                names: spec.names.clone().unwrap_or_default(),
                labels: spec.selector.as_ref().map(|selector| Labels::from(&selector.match_labels)).unwrap_or_default(),
            },
        }
    }

    /// Whether `namespace`, with these labels, is among them.
    #[must_use]
    pub fn permits(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        match self {
            Self::All => true,
            Self::Selected { names, labels: wanted } => {
                let by_label = !wanted.is_empty() && labels.is_some_and(|labels| labels.cover(wanted));
                by_label || names.iter().any(|name| name == namespace)
            }
        }
    }
}

/// What an AgentLink declares.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkFacts {
    /// The object's UID: which link this is, whatever it is called.
    pub uid: TrustId,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// The authority that is pinned: in the spec, or else by the status, where the first ticket left it.
    pub authority: Option<Fingerprint>,
    /// The record that the spec declares, or what is wrong with it.
    pub declared: Option<Result<AuthorityRecord, String>>,
    /// Records that the other operator told, as the status keeps them.
    pub learned: Vec<AuthorityRecord>,
    /// Relays that the other operator told, as the status keeps them.
    pub told: Vec<RelayInfo>,
    /// Where its agents are found; none: where the other operator or the ticket says.
    pub relays: Option<Vec<RelayInfo>>,
    /// Who may use it.
    pub allowed: Permitted,
    /// The key of its ticket in the Secret [`TICKETS`](peerage_crds::link::TICKETS).
    pub ticket: Option<String>,
    /// What its status says.
    pub status: peerage_crds::AgentLinkStatus,
}

/// What the Secret says that a link refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkRecord {
    /// Its record, and where the ticket says that its agents are.
    Known {
        /// The record.
        record: AuthorityRecord,
        /// Whose ticket it is: an operator's, or an agent's of a machine on its own.
        name: AgentName,
        /// Relays of the ticket.
        relays: Vec<RelayInfo>,
    },
    /// It is not there.
    Missing,
    /// Something else than a ticket is there.
    Invalid {
        /// What is wrong.
        cause: String,
    },
}

impl LinkFacts {
    /// Reads an AgentLink.
    ///
    /// # Errors
    /// [`Unreadable`] for what our schema would not let in.
    pub fn read(object: &AgentLink) -> Result<Self, Unreadable> {
        let spec = &object.spec;
        let relays = |list: &Vec<String>| list.iter().map(|text| text.parse()).collect::<Result<Vec<RelayInfo>, _>>();
        // That it is in the one Secret that we may read is the schema's business; no other is asked for.
        let key = |bootstrap: &Bootstrap| bootstrap.token_secret_ref.key.clone();
        let status = object.status.clone().unwrap_or_default();
        let declared = spec.authority.as_ref().map(|text| text.parse()).transpose();
        let authority: Option<Fingerprint> = declared.map_err(Unreadable::at("spec.authority"))?;
        // Of what we wrote ourselves, what cannot be read is nothing. Whether a record has ended is looked at in its use.
        let record = |text: &String| AuthorityRecord::from_text(text, UnixTime(0));
        Ok(Self {
            uid: uid_bytes(&object.uid().unwrap_or_default()),
            generation: object.metadata.generation,
            authority: authority.or_else(|| status.authority.as_ref()?.parse().ok()),
            declared: spec.authority_record.as_ref().map(|text| record(text).map_err(|error| error.to_string())),
            learned: status.authority_records.iter().filter_map(|text| record(text).ok()).collect(),
            told: status.relays.iter().filter_map(|text| text.parse().ok()).collect(),
            relays: spec.relays.as_ref().map(relays).transpose().map_err(Unreadable::at("spec.relays"))?,
            allowed: Permitted::read(&spec.allowed_namespaces),
            ticket: spec.bootstrap.as_ref().map(key),
            status,
        })
    }
}

/// How the operator runs a relay.
#[derive(Clone, Debug, PartialEq)]
pub struct ManagedFacts {
    /// The AgentRelay's UID: what is run belongs to this one and to no other of its name.
    pub uid: String,
    /// What is asked for.
    pub spec: ManagedRelay,
    /// Whether agents were told an address, and with it a key.
    pub has_address: bool,
}

/// What an AgentRelay declares.
#[derive(Clone, Debug, PartialEq)]
pub struct RelayFacts {
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// Where it is; of a managed one, where its replicas are that have an address, as the status says.
    pub relays: Vec<RelayInfo>,
    /// How the operator runs it, if it does.
    pub managed: Option<ManagedFacts>,
    /// Who may use it.
    pub allowed: Permitted,
    /// What its status says.
    pub status: peerage_crds::AgentRelayStatus,
}

impl RelayFacts {
    /// Reads an AgentRelay.
    ///
    /// # Errors
    /// [`Unreadable`] for what our schema would not let in.
    pub fn read(object: &AgentRelay) -> Result<Self, Unreadable> {
        let status = object.status.clone().unwrap_or_default();
        let relays = match &object.spec.address {
            Some(address) => vec![address.parse().map_err(Unreadable::at("spec.address"))?],
            None => {
                let relays = status.addresses.iter().map(|text| text.parse());
                relays.collect::<Result<_, _>>().map_err(Unreadable::at("status.addresses"))?
            }
        };
        let managed = object.spec.managed.clone().map(|spec| ManagedFacts {
            uid: object.metadata.uid.clone().unwrap_or_default(),
            spec,
            has_address: !relays.is_empty(),
        });
        Ok(Self {
            generation: object.metadata.generation,
            relays,
            managed,
            allowed: Permitted::read(&object.spec.allowed_namespaces),
            status,
        })
    }
}
