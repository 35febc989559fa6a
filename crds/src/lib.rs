//! The words that users write in Kubernetes: group `peerage.dev`, version `v1alpha1`.
//!
//! Types and their schemas only. What the API server can refuse by itself, it refuses: every string has a pattern or a
//! length, every list an end, and rules in CEL say what goes together and what may not change. What needs to see
//! other objects is the operator's to judge, and it says so in conditions.
//!
//! Two things that only the real server tells: a rule whose reason is `FieldValueDuplicate` loses its message, so none
//! has it; and a field whose name is a reserved word of CEL is spelt `__namespace__` in rules.
//!
//! Nothing here talks to a cluster: no client, no runtime. `crdgen` writes the manifests and the reference page
//! ([`generate`]); a test fails when they are not what this code says.

#![expect(clippy::duplicated_attributes, reason = "each printer column has a name, a type and a path of its own")]

pub mod common;
pub mod condition;
pub mod generate;
pub mod invitation;
pub mod link;
pub mod peer;
pub mod relay;
pub mod request;
pub mod shape;
pub mod trust;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

pub use common::{AgentRef, AllowedNamespaces, LinkRef, NamespacesFrom, PathSummary, Protocol, Selector};
pub use condition::{Condition, ConditionStatus, ConditionType, Reason, set_condition};
pub use link::{AgentLink, AgentLinkSpec, AgentLinkStatus};
pub use peer::{AgentPeer, AgentPeerSpec, AgentPeerStatus};
pub use relay::{AgentRelay, AgentRelaySpec, AgentRelayStatus};
pub use request::{AgentTrustRequest, AgentTrustRequestSpec, AgentTrustRequestStatus};
pub use trust::{AgentTrust, AgentTrustSpec, AgentTrustStatus};

/// The API group of everything here.
pub const GROUP: &str = "peerage.dev";

/// All kinds, in the order in which a reader meets them.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![AgentPeer::crd(), AgentTrust::crd(), AgentTrustRequest::crd(), AgentLink::crd(), AgentRelay::crd()]
}
