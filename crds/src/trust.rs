//! `AgentTrust`: its owner's consent to one peer. Always and only: nothing flows until the other side consents too.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{AgentRef, LinkRef, PathSummary, Protocol, Selector, optional_time_schema};
use crate::condition::Condition;
use crate::shape;

/// Consent of one agent's owner to one peer, or to a fleet of one other namespace. It takes effect when the peer's
/// owner has consented as well, and deleting it resets open connections.
///
/// Which two it is about cannot be changed: agents remember this object's UID as revoked and never take it back.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "peerage.dev",
    version = "v1alpha1",
    kind = "AgentTrust",
    plural = "agenttrusts",
    namespaced,
    shortname = "at",
    category = "peerage",
    status = "AgentTrustStatus",
    derive = "PartialEq",
    doc = "Its owner's consent that an agent and a peer may talk; nothing flows until the other side consents too.",
    annotation("helm.sh/resource-policy", "keep"),
    printcolumn(name = "Agent", type_ = "string", json_path = ".spec.agentRef.name", description = "Our agent"),
    printcolumn(name = "Peer", type_ = "string", json_path = ".spec.peer.name", description = "The agent it trusts"),
    printcolumn(
        name = "Link",
        type_ = "string",
        json_path = ".spec.peer.linkRef.name",
        description = "The other cluster; empty for this one"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the two can talk"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why"
    ),
    printcolumn(
        name = "Path",
        type_ = "string",
        json_path = ".status.path",
        description = "How their connections travel"
    ),
    printcolumn(
        name = "Host",
        type_ = "string",
        json_path = ".status.hostname",
        priority = "1",
        description = "What our agent calls the peer"
    ),
    printcolumn(
        name = "Expires",
        type_ = "string",
        json_path = ".spec.expiresAt",
        priority = "1",
        description = "When the consent ends"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = "1",
        description = "Why, and what to do"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.alias) || has(self.peer.name)")
    .message("an alias names one peer, so it goes with peer.name and not with peer.selector").field_path(".alias").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("has(self.alias) || !has(self.peer.name) || self.peer.name != 'localhost'")
    .message("localhost is what a program calls itself: a peer of that name needs an alias").field_path(".alias").reason(Reason::FieldValueRequired))]
pub struct AgentTrustSpec {
    /// Our agent: an AgentPeer of this namespace.
    #[x_kube(validation = Rule::new("self == oldSelf").message("agentRef is immutable: make another AgentTrust"))]
    pub agent_ref: AgentRef,
    /// The other agent.
    pub peer: TrustedPeer,
    /// The name our agent calls the peer by; `peer.name` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::LABEL_MAX), regex(pattern = shape::LABEL))]
    #[x_kube(validation = Rule::new("self != 'localhost'").message("localhost is what a program calls itself"))]
    pub alias: Option<String>,
    /// What the peer may open here: ports of our AgentPeer, by name. Empty means nothing, and our agent can still
    /// open what the peer permits.
    #[serde(default)]
    #[schemars(length(max = shape::PORTS_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["portName".into()]))]
    pub inbound: Vec<InboundPort>,
    /// What the two have to do with each other; for people, and shown to the peer's owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = shape::PROSE_MAX))]
    pub purpose: Option<String>,
    /// When the consent ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_time_schema")]
    pub expires_at: Option<Time>,
}

/// The agent on the other side, or a fleet of agents in another namespace of this cluster.
// `namespace` is a reserved word of CEL, so the rules below spell it `__namespace__`, as the API server does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) != has(self.selector)")
    .message("exactly one of name and selector says who the peer is").reason(Reason::FieldValueRequired))]
#[x_kube(validation = Rule::new("!has(self.selector) || (has(self.__namespace__) && !has(self.linkRef))")
    .message("a selector chooses within one named namespace of this cluster: it needs namespace, and no linkRef"))]
#[x_kube(validation = Rule::new("has(self.linkRef) == has(self.authority)")
    .message("linkRef and authority go together: trust across clusters pins the other authority's fingerprint").reason(Reason::FieldValueRequired))]
#[x_kube(validation = Rule::new("!has(self.selector) || !has(self.ports)")
    .message("a fleet's ports are learned from each agent: ports goes with name only").field_path(".ports").reason(Reason::FieldValueForbidden))]
#[x_kube(validation = Rule::new("has(self.name) == has(oldSelf.name) && (!has(self.name) || self.name == oldSelf.name)")
    .message("peer.name is immutable: make another AgentTrust"))]
#[x_kube(validation = Rule::new("has(self.selector) == has(oldSelf.selector) && (!has(self.selector) || self.selector == oldSelf.selector)")
    .message("peer.selector is immutable: make another AgentTrust"))]
#[x_kube(validation = Rule::new("has(self.__namespace__) == has(oldSelf.__namespace__) && (!has(self.__namespace__) || self.__namespace__ == oldSelf.__namespace__)")
    .message("peer.namespace is immutable: make another AgentTrust"))]
#[x_kube(validation = Rule::new("has(self.linkRef) == has(oldSelf.linkRef) && (!has(self.linkRef) || self.linkRef == oldSelf.linkRef)")
    .message("peer.linkRef is immutable: make another AgentTrust"))]
#[x_kube(validation = Rule::new("has(self.authority) == has(oldSelf.authority) && (!has(self.authority) || self.authority == oldSelf.authority)")
    .message("peer.authority is immutable: make another AgentTrust"))]
pub struct TrustedPeer {
    /// The peer's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::LABEL_MAX), regex(pattern = shape::LABEL))]
    pub name: Option<String>,
    /// The namespace it lives in. Left out: this object's own namespace, or, with a linkRef, an agent of an authority
    /// that knows no namespaces, such as a laptop's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::LABEL_MAX), regex(pattern = shape::LABEL))]
    pub namespace: Option<String>,
    /// Every AgentPeer with these labels in `namespace`, now and later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// The link to the other authority; left out for agents of this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_ref: Option<LinkRef>,
    /// The other authority's fingerprint. If the link leads to another one, the traffic stops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = shape::FINGERPRINT_LEN), regex(pattern = shape::FINGERPRINT))]
    pub authority: Option<String>,
    /// The peer's ports, if they should be there before the peer has been heard, or under another number here.
    /// Otherwise they are learned from the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::PORTS_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["port".into(), "protocol".into()]))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b.protocol == a.protocol && (has(b.localPort) ? b.localPort : b.port) == (has(a.localPort) ? a.localPort : a.port)))")
        .message("two of the peer's ports would have the same number and protocol here"))]
    pub ports: Option<Vec<PeerPort>>,
}

/// One port of our agent that the peer may open.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InboundPort {
    /// The name of a port of our AgentPeer.
    #[schemars(length(min = 1, max = shape::LABEL_MAX), regex(pattern = shape::LABEL))]
    pub port_name: String,
}

/// One port of the peer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PeerPort {
    /// The number the peer offers it under.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
    /// The number our programs connect to; the same if it is left out. The remedy where a pod's own container listens
    /// on `port` at all addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub local_port: Option<u16>,
    /// `TCP` or `UDP`.
    #[serde(default)]
    pub protocol: Protocol,
}

/// What the operator found.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentTrustStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Accepted, Programmed, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = shape::CONDITIONS_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The name our agent's programs connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = shape::HOST_MAX), regex(pattern = shape::SUBDOMAIN))]
    pub hostname: Option<String>,
    /// How connections between the two travel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathSummary>,
    /// How many of our sidecars know of this consent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<AgentCounts>,
}

/// Numbers of sidecars with a live stream to the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentCounts {
    /// That should know.
    #[schemars(range(min = 0))]
    pub expected: i32,
    /// That said they do.
    #[schemars(range(min = 0))]
    pub acknowledged: i32,
}
