//! From nothing to the first answered request, with what the documentation says and nothing else; and what it took.

use std::time::Instant;

use peerage_e2e_pods::failed::{Failed, ensure};
use peerage_e2e_pods::stage::{SIDECAR, SYSTEM, Stage};
use serde_json::Value;

const PAGE: &str = "docs/kubernetes.md";
const HEADING: &str = "From nothing to the first answered request";

/// Every command of the page, as printed. The last one is the request.
pub fn request(stage: &Stage) -> Result<String, Failed> {
    let begun = Instant::now();
    let mut took = Vec::new();
    let mut answer = String::new();
    for step in stage.steps(PAGE, HEADING)? {
        let at = Instant::now();
        answer = stage.step(&step)?;
        took.push(format!("{:.1} s {}", at.elapsed().as_secs_f64(), words(&step)));
    }
    ensure(answer.contains("answers 127."), || format!("the last step says `{answer}`"))?;
    let total = begun.elapsed().as_secs_f64();
    Ok(format!("{total:.1} s from helm install to `{answer}`: {}", took.join(", ")))
}

/// The first words of a command, for a line that somebody reads.
fn words(step: &str) -> String {
    step.split_whitespace().take_while(|word| !word.starts_with("--")).take(4).collect::<Vec<_>>().join(" ")
}

/// PodSecurity "restricted" everywhere, and an injected pod that has no more than it had.
pub fn restricted(stage: &Stage) -> Result<String, Failed> {
    for namespace in [SYSTEM, "tools", "reports"] {
        let labels = stage.cluster.get(&format!("namespace {namespace}"))?["metadata"]["labels"].take();
        let enforced = labels["pod-security.kubernetes.io/enforce"] == "restricted";
        ensure(enforced, || format!("{namespace} does not enforce it: {labels}"))?;
    }
    let pods = stage.cluster.get("pods -n tools -l app=db-tool")?;
    let pod = &pods["items"][0]["spec"];
    let template = stage.cluster.get("deployment db-tool -n tools")?["spec"]["template"]["spec"].take();
    ensure(pod["containers"] == template["containers"], || format!("the application changed: {}", pod["containers"]))?;
    let sidecar = pod["initContainers"].as_array().and_then(|all| all.iter().find(|one| one["name"] == SIDECAR));
    let sidecar = sidecar.ok_or_else(|| Failed::new("there is no sidecar"))?;
    let context = &sidecar["securityContext"];
    ensure(context["capabilities"]["drop"][0] == "ALL" && context["capabilities"]["add"].is_null(), || {
        format!("the sidecar has capabilities: {context}")
    })?;
    ensure(context["readOnlyRootFilesystem"] == true && context["runAsNonRoot"] == true, || context.to_string())?;
    tokens(pod)?;
    Ok("three namespaces enforce it, no command was warned, the application's containers are as declared, and the pod has no token of the API server".into())
}

/// The one token of the pod is for us: the API server would not take it.
fn tokens(pod: &Value) -> Result<(), Failed> {
    let volumes = pod["volumes"].as_array().into_iter().flatten();
    for source in volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten()) {
        let audience = source["serviceAccountToken"]["audience"].as_str().unwrap_or_default();
        ensure(audience.starts_with("peerage.dev/"), || format!("the pod got {source}"))?;
    }
    ensure(pod["automountServiceAccountToken"] == false, || "the pod mounts a token of the API server".into())
}
