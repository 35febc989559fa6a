//! `AgentPeer`: "this workload is an agent". Its name is the agent's name, and nobody is trusted by it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{PathSummary, Protocol, Selector};
use crate::condition::Condition;
use crate::shape;

/// Declares that a workload is an agent: which pods are it, as whom they run, and what it offers to those it trusts.
/// Peers call it `<name>.<namespace>`. It lets nobody in by itself: that takes an AgentTrust on both sides.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "peerage.dev", version = "v1alpha1", kind = "AgentPeer", plural = "agentpeers", namespaced,
    shortname = "ap", category = "peerage", status = "AgentPeerStatus", derive = "PartialEq",
    doc = "A workload that is an agent: others it trusts reach it by its name, wherever they run.",
    annotation("helm.sh/resource-policy", "keep"),
    validation = Rule::new("size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name is the agent's host name: a DNS label of at most 63 characters, without dots"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Whether every pod of the agent is enrolled and reachable"),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "Why"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.pods.matched", description = "Pods that match the selector"),
    printcolumn(name = "Enrolled", type_ = "integer", json_path = ".status.pods.enrolled", description = "Pods whose sidecar has a valid passport"),
    printcolumn(name = "Path", type_ = "string", json_path = ".status.path", description = "How its connections travel"),
    printcolumn(name = "NAT", type_ = "string", json_path = ".status.nat", priority = "1", description = "The kind of NAT its pods are behind"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = "1", description = "Why, and what to do"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentPeerSpec {
    /// The pods that are this agent, in this namespace. No two AgentPeers may select one pod.
    pub selector: Selector,
    /// Only pods that run as this ServiceAccount are the agent. It is proven by the pod's token and not by its labels,
    /// so who may only label pods cannot become the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::SUBDOMAIN_MAX), regex(pattern = shape::SUBDOMAIN))]
    pub service_account_name: Option<String>,
    /// What the agent offers. Which peer may open which of these is said by each AgentTrust's `inbound`.
    #[serde(default)]
    #[schemars(length(max = shape::PORTS_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b.port == a.port && b.protocol == a.protocol))")
        .message("two ports have the same number and protocol"))]
    pub ports: Vec<AgentPort>,
    /// How the agent's connections may travel.
    #[serde(default)]
    pub path: PathPolicy,
}

/// A port that an agent offers to its peers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPort {
    /// What the port is called; an AgentTrust's `inbound` refers to it.
    #[schemars(length(min = 1, max = shape::LABEL_MAX), regex(pattern = shape::LABEL))]
    pub name: String,
    /// The number that peers connect to.
    #[serde(default = "http")]
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,
    /// The port in the pod, where the program listens; the same as `port` if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub target_port: Option<u16>,
    /// `TCP` or `UDP`.
    #[serde(default)]
    pub protocol: Protocol,
}

// `curl http://db-tool-server/` is the first thing people try.
fn http() -> u16 {
    80
}

/// How connections may travel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode != 'RelayOnly' || self.birthday == 'Disabled'")
    .message("birthday probes look for a direct path, and mode RelayOnly forbids one").reason(Reason::FieldValueForbidden))]
pub struct PathPolicy {
    /// `Auto`: by relay at once, directly as soon as possible. `RelayOnly`: peers never learn our addresses.
    /// `DirectOnly`: no relay sees the traffic, and there is no connection where no direct path exists.
    #[serde(default)]
    pub mode: PathMode,
    /// Whether up to 1024 probes a side may be spent on a direct path between two NATs that choose ports at random.
    #[serde(default)]
    pub birthday: Birthday,
}

/// Which ways are allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathMode {
    /// By relay at once, directly as soon as possible.
    #[default]
    Auto,
    /// Never directly.
    RelayOnly,
    /// Never by a relay.
    DirectOnly,
}

/// Whether the birthday round may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Birthday {
    /// It may not; the default, because some networks take the probes for a scan.
    #[default]
    Disabled,
    /// It may.
    Enabled,
}

/// What the operator found.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPeerStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Accepted, Injected, Enrolled, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = shape::CONDITIONS_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The fingerprint of the authority that vouches for the agent; the other side's AgentTrust pins it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = shape::FINGERPRINT_LEN), regex(pattern = shape::FINGERPRINT))]
    pub authority: Option<String>,
    /// How many pods there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodCounts>,
    /// How the agent's connections travel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathSummary>,
    /// The kind of NAT its pods are behind, in the words of RFC 3489 and RFC 4787; the worst one, if they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub nat: Option<String>,
}

/// Numbers of pods; never a list of them, which would not fit an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// That match the selector.
    #[schemars(range(min = 0))]
    pub matched: i32,
    /// Of those, with a sidecar.
    #[schemars(range(min = 0))]
    pub injected: i32,
    /// Of those, with a passport that is valid.
    #[schemars(range(min = 0))]
    pub enrolled: i32,
    /// Of those with a sidecar, the ones whose sidecar is of another version than new pods get.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub outdated: i32,
}
