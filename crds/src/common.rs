//! Words that several kinds share.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::shape;

/// An AgentPeer of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentRef {
    /// Its `metadata.name`.
    #[schemars(length(min = 1, max = shape::LABEL_MAX), regex(pattern = shape::LABEL))]
    pub name: String,
}

/// An AgentLink.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LinkRef {
    /// Its `metadata.name`.
    #[schemars(length(min = 1, max = shape::LABEL_MAX), regex(pattern = shape::LABEL))]
    pub name: String,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
}

/// Selects by labels. Empty selects nothing, so it is refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels that must all be there with these values.
    #[schemars(schema_with = "labels_schema")]
    #[x_kube(validation = Rule::new("self.all(key, size(key) > 0 && size(key) <= 317)")
        .message("a label's key has 1 to 317 characters"))]
    pub match_labels: BTreeMap<String, String>,
}

/// Which namespaces may use a cluster-scoped object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.from != 'Selected' || has(self.names) || has(self.selector)")
    .message("from: Selected needs names or a selector; an empty list permits nobody").reason(Reason::FieldValueRequired))]
#[x_kube(validation = Rule::new("self.from == 'Selected' || (!has(self.names) && !has(self.selector))")
    .message("names and selector go with from: Selected only").reason(Reason::FieldValueForbidden))]
pub struct AllowedNamespaces {
    /// `All`, or `Selected`: those in `names` and those that `selector` matches.
    pub from: NamespacesFrom,
    /// Namespaces by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = shape::NAMESPACES_MAX), inner(length(min = 1, max = shape::LABEL_MAX), regex(pattern = shape::LABEL)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub names: Option<Vec<String>>,
    /// Namespaces by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}

/// Whether every namespace is meant, or some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum NamespacesFrom {
    /// Every namespace, also those made later.
    All,
    /// Those that are named or selected.
    Selected,
}

/// By which way data travels at the moment, said coarsely: one word for an object with many connections, and no
/// history, so that it does not write to etcd with every change of the weather.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum PathSummary {
    /// Every connection goes directly.
    Direct,
    /// Every connection goes by a relay.
    Relayed,
    /// Some directly, some by a relay.
    Mixed,
    /// There is no connection.
    Idle,
}

/// A point in time, RFC 3339.
pub(crate) fn time_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time", "maxLength": 64})
}

/// The same, where there may be none.
pub(crate) fn optional_time_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = time_schema(generator);
    schema.insert("nullable".to_owned(), true.into());
    schema
}

fn labels_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": shape::SELECTOR_MAX,
        "additionalProperties": {"type": "string", "maxLength": shape::LABEL_MAX, "pattern": shape::LABEL_VALUE},
    })
}
