//! AgentPeers, and the pods that they select.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use peerage_crds::peer::{AgentPort, Birthday, PathMode as PathModeSpec};
use peerage_crds::{AgentPeer, AgentPeerStatus, Protocol as ProtocolSpec};
use peerage_model::operator::Offer;
use peerage_model::snapshot::{BirthdayMode, PathMode, Protocol};

use super::Unreadable;
use crate::index::Labels;

/// What an AgentPeer declares.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerFacts {
    /// The object's UID; an AgentPeer that was deleted and made anew has another one.
    pub uid: String,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// The object's own labels, which fleets select by.
    pub labels: Labels,
    /// Labels of the pods that are this agent.
    pub selector: Labels,
    /// As whom those pods must run.
    pub service_account: Option<String>,
    /// What it offers.
    pub ports: Vec<Offer>,
    /// How its sessions may travel.
    pub path: PathMode,
    /// Whether a direct path may be guessed.
    pub birthday: BirthdayMode,
    /// What its status says.
    pub status: AgentPeerStatus,
}

impl PeerFacts {
    /// Reads an AgentPeer.
    ///
    /// # Errors
    /// [`Unreadable`] for what our schema would not let in.
    pub fn read(object: &AgentPeer) -> Result<Self, Unreadable> {
        let spec = &object.spec;
        Ok(Self {
            uid: object.uid().unwrap_or_default(),
            generation: object.metadata.generation,
            labels: object.labels().into(),
            selector: (&spec.selector.match_labels).into(),
            service_account: spec.service_account_name.clone(),
            ports: spec.ports.iter().map(offer).collect::<Result<_, _>>()?,
            path: path(spec.path.mode),
            birthday: match spec.path.birthday {
                Birthday::Disabled => BirthdayMode::Disabled,
                Birthday::Enabled => BirthdayMode::Enabled,
            },
            status: object.status.clone().unwrap_or_default(),
        })
    }

    /// Whether two versions of an object differ in what anything but the status is made from.
    #[must_use]
    pub fn same_declaration(&self, other: &Self) -> bool {
        let declared = |facts: &Self| Self { status: AgentPeerStatus::default(), generation: None, ..facts.clone() };
        declared(self) == declared(other)
    }
}

fn offer(port: &AgentPort) -> Result<Offer, Unreadable> {
    let name = port.name.parse().map_err(Unreadable::at("spec.ports.name"))?;
    let target = port.target_port.unwrap_or(port.port);
    Ok(Offer { name, port: port.port, protocol: protocol(port.protocol), target })
}

fn path(mode: PathModeSpec) -> PathMode {
    match mode {
        PathModeSpec::Auto => PathMode::Auto,
        PathModeSpec::RelayOnly => PathMode::RelayOnly,
        PathModeSpec::DirectOnly => PathMode::DirectOnly,
    }
}

pub(super) fn protocol(protocol: ProtocolSpec) -> Protocol {
    match protocol {
        ProtocolSpec::Tcp => Protocol::Tcp,
        ProtocolSpec::Udp => Protocol::Udp,
    }
}

/// What we know of a pod, from its metadata alone: more would be memory, and a right to read what is in its spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its UID, which a pod of the same name made later does not have.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// Whether it is on its way out.
    pub terminating: bool,
    /// The image of the sidecar that was injected, if one was.
    pub injected: Option<String>,
    /// Why injection left it alone, if it did.
    pub left_alone: Option<String>,
    /// Whether it wants none.
    pub opted_out: bool,
}

/// Which pods are looked at: one that has finished holds no agent any more, though its object stays.
pub const RUNNING: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// The annotation that injection leaves on a pod, with the image of the sidecar.
pub const INJECTED: &str = "peerage.dev/injected";
/// The annotation of a pod that wants no sidecar, with the value `false`.
pub const OPT_OUT: &str = "peerage.dev/inject";
/// The annotation that says why injection left a pod alone.
pub const LEFT_ALONE: &str = "peerage.dev/not-injected";

impl PodFacts {
    /// Reads a pod's metadata.
    #[must_use]
    pub fn read(pod: &PartialObjectMeta<Pod>) -> Self {
        let annotations: &BTreeMap<String, String> = pod.annotations();
        Self {
            uid: pod.uid().unwrap_or_default(),
            labels: pod.labels().into(),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            injected: annotations.get(INJECTED).cloned(),
            left_alone: annotations.get(LEFT_ALONE).cloned(),
            opted_out: annotations.get(OPT_OUT).is_some_and(|value| value == "false"),
        }
    }
}
