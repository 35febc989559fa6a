//! Clusters that chose the same: the same nickname for each other, agents of the same name. Declared on both sides, as files
//! that are committed would, without a ticket.

use peerage_e2e_pods::stage::{agent, deployment, restricted};
use peerage_suite::failed::{Failed, ensure};
use serde_json::{Value, json};

use crate::stage::Stage;

const TWIN: &str = "-n same deploy/twin -c app";

/// `twin.same` of a cluster calls `twin.same` of the other, which each side calls `other`, and reaches no namesake but that.
pub fn same(stage: &Stage) -> Result<String, Failed> {
    let mut said = Vec::new();
    for side in [&stage.hub, &stage.branch] {
        let across = stage.across(side);
        side.pods.namespace("same")?;
        let keys = stage.shell(&format!("kubectl peerage --context {} keys --json", across.context))?;
        let mut spec: Value = serde_json::from_str(&keys).map_err(|error| Failed::new(format!("keys: {error}")))?;
        spec["allowedNamespaces"] = json!({"from": "Selected", "names": ["same"]});
        let link = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentLink", "metadata": {"name": "other"}, "spec": spec,
        });
        let serve = side.pods.container(&["app", "serve", "0.0.0.0:8080"], &[8080]);
        let mut trust = side.trust_across(across, "same", "twin", "twin.same", &["web"])?;
        trust["spec"]["peer"]["linkRef"]["name"] = json!("other");
        trust["spec"]["alias"] = json!("brother");
        let twin = agent("twin", "same", &[("web", 80, 8080)]);
        side.cluster().apply(&[link, twin, trust, deployment("twin", "same", &restricted(&serve))])?;
    }
    for side in [&stage.hub, &stage.branch] {
        side.cluster().kubectl("rollout status deployment/twin -n same --timeout=120s")?;
    }
    for side in [&stage.hub, &stage.branch] {
        side.trust("twin-twin -n same", |trust| {
            let conditions = trust["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
        })?;
        let theirs = stage
            .across(side)
            .cluster()
            .kubectl("get pods -n same -l app=twin -o jsonpath={.items[0].metadata.name}")?;
        for name in ["brother", "twin.same.other.peer.internal"] {
            let body = side.cluster().exec(TWIN, &["app", "get", &format!("{name}:80")])?;
            ensure(body.starts_with(&theirs), || {
                format!("{}: {name} says {body}, and {theirs} is meant", side.context)
            })?;
        }
        said.push(format!("{} is answered by {theirs}", side.context));
    }
    Ok(format!(
        "declared on both sides without a ticket, both called `other`, both agents `twin.same`: {}",
        said.join(", ")
    ))
}
