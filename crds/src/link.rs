//! `AgentLink`: another authority, and who in this cluster may deal with it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::AllowedNamespaces;
use crate::condition::Condition;
use crate::shape;

/// The Secret with the tickets of all links: besides its own, the only one that the operator may read. RBAC knows names, not
/// labels, so a Secret for each link would need the right to read all of its namespace.
pub const TICKETS: &str = "peerage-tickets";

/// Another authority: a cluster or a machine with agents of its own. A link carries requests, revocations and status.
/// It is no consent: each pair of agents still needs both sides' AgentTrusts.
///
/// The authority is pinned: `authority` cannot be changed or removed once it is set, and where it is left out, what the
/// status names holds. Link anew to trust another one.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "peerage.dev", version = "v1alpha1", kind = "AgentLink", plural = "agentlinks",
    shortname = "al", category = "peerage", status = "AgentLinkStatus", derive = "PartialEq",
    doc = "Another authority whose agents some namespaces of this cluster may deal with.",
    annotation("helm.sh/resource-policy", "keep"),
    validation = Rule::new("size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name becomes part of host names: a DNS label of at most 63 characters, without dots"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Whether trusts can use it"),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "Why"),
    printcolumn(name = "Connected", type_ = "string", json_path = r#".status.conditions[?(@.type=="Connected")].status"#, description = "Whether the two operators talk"),
    printcolumn(name = "Authority", type_ = "string", json_path = ".status.authority", description = "The other authority's fingerprint"),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.pendingRequests", description = "Requests from there that nobody has answered"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = "1", description = "Why, and what to do"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.authority) || has(self.bootstrap)")
    .message("a link needs the other side's authority, or a bootstrap ticket that names it").reason(Reason::FieldValueRequired))]
#[x_kube(validation = Rule::new("!has(self.authorityRecord) || has(self.authority)")
    .message("a record counts for the authority that the link pins: set authority as well").reason(Reason::FieldValueRequired))]
#[x_kube(validation = Rule::new("!has(oldSelf.authority) || (has(self.authority) && self.authority == oldSelf.authority)")
    .message("authority is immutable: delete the link and make another one to trust another authority"))]
pub struct AgentLinkSpec {
    /// The other authority's fingerprint. With a bootstrap ticket it may be left out: it is the ticket's then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = shape::FINGERPRINT_LEN), regex(pattern = shape::FINGERPRINT))]
    pub authority: Option<String>,
    /// The other authority's record: the keys that its root signed, in base64url, as `kubectl peerage keys` prints it.
    /// With it a link needs no ticket, so that both sides can be written down and committed. A record with newer keys that
    /// the other operator tells is kept in the status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::RECORD_MAX), regex(pattern = shape::RECORD))]
    pub authority_record: Option<String>,
    /// Relays where the other authority's agents are found, as `KEY@HOST:PORT`; those that the other operator tells, or
    /// those of the ticket, if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::RELAYS_MAX), inner(length(max = shape::RELAY_MAX), regex(pattern = shape::RELAY)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub relays: Option<Vec<String>>,
    /// Whose AgentTrusts may use the link.
    pub allowed_namespaces: AllowedNamespaces,
    /// How the two operators meet for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
}

/// How two operators meet for the first time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bootstrap {
    /// Where the ticket of `kubectl peerage invite` is: a value of the Secret `peerage-tickets` in the operator's namespace.
    pub token_secret_ref: SecretKeyRef,
}

/// One value of a Secret in the operator's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.name == 'peerage-tickets'")
    .message("tickets are in the Secret peerage-tickets of the operator's namespace, the only one of yours that it may read"))]
pub struct SecretKeyRef {
    /// The Secret's name: `peerage-tickets`.
    #[serde(default = "tickets")]
    #[schemars(length(min = 1, max = shape::SUBDOMAIN_MAX), regex(pattern = shape::SUBDOMAIN))]
    pub name: String,
    /// The key in it; `kubectl peerage link` takes the link's name.
    #[serde(default = "ticket")]
    #[schemars(length(min = 1, max = shape::SUBDOMAIN_MAX), regex(pattern = shape::SECRET_KEY))]
    pub key: String,
}

fn tickets() -> String {
    TICKETS.to_owned()
}

fn ticket() -> String {
    "ticket".to_owned()
}

/// What the operator found.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentLinkStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Accepted, Connected, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = shape::CONDITIONS_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The authority that was pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = shape::FINGERPRINT_LEN), regex(pattern = shape::FINGERPRINT))]
    pub authority: Option<String>,
    /// Records of the other authority that count, the newest first: two while its keys rotate. Public.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = shape::RECORDS_MAX), inner(length(min = 1, max = shape::RECORD_MAX), regex(pattern = shape::RECORD)))]
    pub authority_records: Vec<String>,
    /// Whether a machine on its own is there, which has no operator: its ticket said so, or it came with ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<bool>,
    /// Whether the link's ticket was shown and taken. It is good for one time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket_taken: Option<bool>,
    /// Relays that the other operator told. While its list changes these are the old ones and the new ones, for ten minutes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = shape::RELAYS_MAX), inner(length(max = shape::RELAY_MAX), regex(pattern = shape::RELAY)))]
    pub relays: Vec<String>,
    /// AgentTrustRequests that came over this link and wait for an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub pending_requests: Option<i32>,
}
