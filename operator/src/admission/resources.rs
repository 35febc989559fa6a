//! What the agent's container asks for, in pods that have an opinion about it.
//!
//! Most get what the chart says. A pod of QoS class Guaranteed stays one: its agent's requests are its limits. A pod with
//! resources as a whole (`spec.resources`) shares them with its agent, which then has none of its own, because a pod whose
//! containers ask for all of them has no room for more and would be refused. What one pod or namespace needs besides, for a
//! ResourceQuota or a LimitRange, annotations say: the operator reads neither of the two.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use serde::{Deserialize, Serialize};

use super::inject::Reason;
use super::quantity::{NoQuantity, Quantity};
use super::settings::AgentFile;

/// Annotation of a pod with its agent's requests, `cpu=50m,memory=32Mi`, in place of the chart's of the same names.
pub const REQUESTS: &str = "peerage.dev/agent-requests";
/// The same for its limits.
pub const LIMITS: &str = "peerage.dev/agent-limits";

/// Amounts by what they are of: `cpu`, `memory`.
pub type Amounts = BTreeMap<String, Quantity>;

/// `resources` of a container.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub struct Resources {
    /// What it is given at the least.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: Amounts,
    /// What it is given at the most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: Amounts,
}

/// A request above its limit, which the API server refuses together with the whole pod.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the agent's request of {of} {request} is above its limit {limit}")]
pub struct Above {
    of: String,
    request: String,
    limit: String,
}

impl Resources {
    /// Whether the API server takes them.
    ///
    /// # Errors
    /// [`Above`].
    pub fn check(&self) -> Result<(), Above> {
        let above = self.requests.iter().find_map(|(of, request)| {
            let limit = self.limits.get(of).filter(|limit| request > *limit)?;
            Some(Above { of: of.clone(), request: request.to_string(), limit: limit.to_string() })
        });
        above.map_or(Ok(()), Err)
    }
}

/// What the agent of this pod asks for.
pub(super) fn of_agent(
    annotations: &BTreeMap<String, String>,
    spec: &PodSpec,
    agent: &AgentFile,
) -> Result<Resources, Reason> {
    let mut wanted = match () {
        () if spec.resources.is_some() => Resources::default(),
        () if is_guaranteed(spec) => Resources { requests: agent.guaranteed.clone(), limits: agent.guaranteed.clone() },
        () => agent.resources.clone(),
    };
    for (name, amounts) in [(REQUESTS, &mut wanted.requests), (LIMITS, &mut wanted.limits)] {
        let Some(text) = annotations.get(name) else { continue };
        amounts.extend(read(text).map_err(|why| Reason::Resources(format!("annotation {name}: {why}")))?);
    }
    wanted.check().map_err(|above| Reason::Resources(above.to_string()))?;
    Ok(wanted)
}

/// `cpu=50m,memory=32Mi`.
fn read(text: &str) -> Result<Amounts, String> {
    let one = |pair: &str| {
        let (of, amount) = pair.split_once('=').ok_or("it is written cpu=50m,memory=32Mi")?;
        match of.trim() {
            of @ ("cpu" | "memory" | "ephemeral-storage") => {
                let amount: Quantity = amount.trim().parse().map_err(|error: NoQuantity| error.to_string())?;
                Ok((of.to_owned(), amount))
            }
            of => Err(format!("`{of}` is not cpu, memory or ephemeral-storage")),
        }
    };
    text.split(',').map(one).collect()
}

/// Whether the kubelet would call the pod Guaranteed: all that its containers ask for is what they get at the most.
fn is_guaranteed(spec: &PodSpec) -> bool {
    let inits = spec.init_containers.iter().flatten();
    !spec.containers.is_empty() && inits.chain(&spec.containers).all(asks_for_its_limits)
}

fn asks_for_its_limits(container: &Container) -> bool {
    let Some(resources) = &container.resources else { return false };
    let amount = |list: &Option<BTreeMap<String, Written>>, of: &str| -> Option<Quantity> {
        list.as_ref()?.get(of)?.0.parse().ok()
    };
    ["cpu", "memory"].iter().all(|of| {
        let (request, limit) = (amount(&resources.requests, of), amount(&resources.limits, of));
        // A request that is left out is the limit.
        limit.is_some_and(|limit| !limit.is_zero() && request.is_none_or(|request| request == limit))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::settings::tests::settings;
    use super::*;

    fn agents(annotations: &[(&str, &str)], spec: Value) -> Result<Value, Reason> {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let spec = serde_json::from_value(spec).expect("a PodSpec");
        of_agent(&annotations, &spec, &settings().agent).map(|resources| json!(resources))
    }

    fn asking(resources: &[Value]) -> Value {
        let containers = resources.iter().map(|resources| json!({"name": "app", "resources": resources}));
        json!({"containers": containers.collect::<Vec<_>>()})
    }

    #[test]
    fn an_agent_asks_for_what_the_chart_says() {
        assert_eq!(agents(&[], asking(&[json!({})])), Ok(json!({"requests": {"memory": "16Mi"}})));
    }

    #[test]
    fn a_pod_that_kubernetes_promises_its_resources_keeps_that_promise() {
        let equal = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1024Mi"}});
        let only_limits = json!({"limits": {"cpu": 2, "memory": "1Gi"}});
        let amounts = json!({"cpu": "250m", "memory": "128Mi"});
        assert_eq!(
            agents(&[], asking(&[equal.clone(), only_limits])),
            Ok(json!({"requests": amounts, "limits": amounts}))
        );
        let burstable = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}});
        assert_eq!(agents(&[], asking(&[equal, burstable])), agents(&[], asking(&[])));
    }

    #[test]
    fn an_agent_shares_what_a_pod_has_as_a_whole() {
        let mut whole = asking(&[json!({"requests": {"cpu": "1"}})]);
        whole["resources"] = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "1", "memory": "1Gi"}});
        assert_eq!(agents(&[], whole), Ok(json!({})));
    }

    #[test]
    fn an_annotation_says_what_a_quota_wants_and_leaves_the_rest() {
        let said = agents(&[(LIMITS, "cpu=200m, memory=64Mi"), (REQUESTS, "cpu=20m")], asking(&[json!({})]));
        let expected =
            json!({"requests": {"cpu": "20m", "memory": "16Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}});
        assert_eq!(said, Ok(expected));
    }

    #[test]
    fn an_annotation_that_the_api_server_would_refuse_the_pod_for_leaves_it_alone() {
        for (text, words) in [
            ("memory=8Mi", "memory 16Mi is above its limit 8Mi"),
            ("memory=64Mib", "`64Mib` is no quantity"),
            ("memory", "it is written"),
            ("mem=64Mi", "`mem` is not"),
            ("", "it is written"),
        ] {
            let reason = agents(&[(LIMITS, text)], asking(&[json!({})])).expect_err(text).to_string();
            assert!(reason.contains(words), "{text}: {reason}");
        }
    }
}
