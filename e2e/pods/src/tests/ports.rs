//! Two agents whose applications listen where the peer would be found.

use peerage_e2e_pods::cluster::until;
use peerage_e2e_pods::failed::{Failed, ensure};
use peerage_e2e_pods::stage::{Stage, agent, deployment, restricted, trust};
use serde_json::json;

const LEFT: &str = "-n clash deploy/left -c app";

/// Both listen on every address at 80 and 8080, and both offer 80: neither fails to start, and the remedy works.
pub fn conflict(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("clash")?;
    let serve = stage.container(&["app", "serve", "0.0.0.0:8080", "0.0.0.0:80"], &[8080, 80]);
    let mut spec = restricted(&serve);
    // What the application needs for port 80, with or without an agent.
    spec["securityContext"]["sysctls"] = json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]);
    let mut towards = trust("clash", "left", "right", &["web"]);
    cluster.apply(&[
        agent("left", "clash", &[("web", 80, 8080)]),
        agent("right", "clash", &[("web", 80, 8080)]),
        towards.clone(),
        trust("clash", "right", "left", &["web"]),
        deployment("left", "clash", &spec),
        deployment("right", "clash", &spec),
    ])?;
    for name in ["left", "right"] {
        cluster.kubectl(&format!("rollout status -n clash deployment/{name} --timeout=120s"))?;
    }
    let told = cluster.condition("agenttrust left-right -n clash", "Ready", "False", Some("PortConflict"))?;
    let message = told["message"].as_str().unwrap_or_default().to_owned();
    ensure(message.contains("localPort"), || format!("it does not say what to do: {message}"))?;
    towards["spec"]["peer"]["ports"] = json!([{"port": 80, "localPort": 8081}]);
    cluster.apply(&[towards])?;
    cluster.condition("agenttrust left-right -n clash", "Ready", "True", None)?;
    let ask = || cluster.exec(LEFT, &["/bin/client-glibc", "get", "right", "8081", "/"]);
    let mut said = String::new();
    let answered = until(|| {
        said = ask().unwrap_or_else(|failed| failed.to_string());
        Ok(said.starts_with("right-"))
    })?;
    ensure(answered, || format!("with localPort right says {said}"))?;
    let restarts =
        cluster.kubectl("get pods -n clash -o jsonpath={.items[*].status.containerStatuses[*].restartCount}")?;
    ensure(restarts.split_whitespace().all(|count| count == "0"), || format!("applications failed: {restarts}"))?;
    Ok(format!("both applications run; `{message}`; with localPort it answers"))
}
