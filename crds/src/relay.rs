//! `AgentRelay`: a relay that agents of this cluster use, or one that the operator runs.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::AllowedNamespaces;
use crate::condition::Condition;
use crate::shape;

/// A relay: where agents meet, and what carries their sealed packets until, or unless, there is a direct path. Either
/// one that somebody runs (`address`), or one that the operator runs in its own namespace (`managed`).
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "peerage.dev", version = "v1alpha1", kind = "AgentRelay", plural = "agentrelays",
    shortname = "ar", category = "peerage", status = "AgentRelayStatus", derive = "PartialEq",
    doc = "A relay that agents of some namespaces of this cluster use, run by somebody or by the operator.",
    annotation("helm.sh/resource-policy", "keep"),
    validation = Rule::new("size(self.metadata.name) <= 52 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name becomes the name of a Deployment's pods: a DNS label of at most 52 characters, without dots"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Whether it answers"),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "Why"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.managed.service.type", description = "How the operator exposes it; empty if somebody else runs it"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.address", priority = "1", description = "What agents are told"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = "1", description = "Why, and what to do"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.address) != has(self.managed)")
    .message("exactly one of address and managed says what relay this is").reason(Reason::FieldValueRequired))]
#[x_kube(validation = Rule::new("has(self.managed) == has(oldSelf.managed)")
    .message("a relay of somebody else cannot become a managed one, nor the other way round: make another AgentRelay"))]
pub struct AgentRelaySpec {
    /// A relay that somebody runs, as it prints itself: `KEY@HOST:PORT`, or `KEY@HOST:PORT/TCPPORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::RELAY_MAX), regex(pattern = shape::RELAY))]
    pub address: Option<String>,
    /// A relay that the operator runs in its own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedRelay>,
    /// Whose agents may use it.
    pub allowed_namespaces: AllowedNamespaces,
}

/// How the operator runs a relay.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.replicas) || self.replicas == 1 || self.service.type == 'NodePort' || !has(self.service.host)")
    .message("host names one load balancer, and each replica has its own: leave host away, or run one replica").field_path(".service.host").reason(Reason::FieldValueForbidden))]
pub struct ManagedRelay {
    /// How it is reached from outside.
    pub service: RelayService,
    /// How many are run. Each is a relay of its own in the agents' lists.
    #[serde(default = "one")]
    #[schemars(with = "i32", range(min = 1, max = 16))]
    pub replicas: u16,
    /// AgentLinks whose clusters' agents may bind here, too, as if it were a relay of their own. Whoever is trusted by an agent of
    /// ours reaches it over this relay in any case; this is for a linked cluster that has no relay. A link that does not
    /// exist, or has not met the other operator yet, lets nobody in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = shape::LABEL_MAX), regex(pattern = shape::LABEL)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allowed_links: Vec<String>,
}

fn one() -> u16 {
    1
}

/// How a managed relay is reached from outside.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type != 'NodePort' || has(self.host)")
    .message("type NodePort needs host: a name or address of a node that agents elsewhere can reach").reason(Reason::FieldValueRequired))]
#[x_kube(validation = Rule::new("self.type == 'NodePort' || !has(self.nodePort)")
    .message("nodePort goes with type NodePort only").field_path(".nodePort").reason(Reason::FieldValueForbidden))]
pub struct RelayService {
    /// `LoadBalancer` or `NodePort`.
    #[serde(rename = "type")]
    pub type_: ServiceType,
    /// The UDP and TCP port of a LoadBalancer.
    #[serde(default = "default_port")]
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
    /// The node's port; of several replicas the first one's, and those after it have the next. The cluster chooses if it is
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub node_port: Option<u16>,
    /// The name or address agents are told; the load balancer's own if it is left out. Of type NodePort the relay's pod must
    /// run on the node that it names, since only there the relay sees who calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::HOST_MAX), regex(pattern = shape::HOST))]
    pub host: Option<String>,
}

// The port of STUN, RFC 8489: what firewalls that let anything out let out. Also a relay's own default.
fn default_port() -> u16 {
    3478
}

/// The type of Service in front of a managed relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ServiceType {
    /// A load balancer of the cloud.
    LoadBalancer,
    /// A port of every node.
    NodePort,
}

/// What the operator found.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentRelayStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Accepted, Available, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = shape::CONDITIONS_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// What agents are told, `KEY@HOST:PORT`; of several replicas the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = shape::RELAY_MAX), regex(pattern = shape::RELAY))]
    pub address: Option<String>,
    /// The same of all replicas that have an address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = shape::RELAYS_MAX), inner(length(max = shape::RELAY_MAX), regex(pattern = shape::RELAY)))]
    pub addresses: Vec<String>,
}
