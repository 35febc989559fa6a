//! What agents speak: MCP and A2A with their official Python SDKs across the clusters, and a pipeline whose steps know only
//! their next by name. Nothing of the SDKs is changed.

use peerage_e2e_pods::cluster::until;
use peerage_e2e_pods::stage::{agent, deployment, restricted};
use peerage_suite::failed::{Failed, ensure};
use serde_json::{Value, json};

use crate::side::Side;
use crate::stage::Stage;

/// A tool of the hub, called from a Job of the branch.
pub fn mcp(stage: &Stage) -> Result<String, Failed> {
    let server = stage.hub.pods.python(&["python3", "/app/server.py", "calculator"], &[8000]);
    serve(&stage.hub, "tools", "calculator", &server)?;
    let reporter = ("reports", "reporter");
    agree(stage, &stage.branch, reporter, ("tools", "calculator"))?;
    let client = stage.branch.pods.python(&["python3", "/app/client.py", "http://calculator/mcp"], &[]);
    let said = once(&stage.branch, reporter, "calculate", &client)?;
    ensure(said.lines().last() == Some("2 + 3 = 5"), || format!("the client says {said}"))?;
    Ok("initialized, listed the tools, called one in the other cluster: 2 + 3 = 5".into())
}

/// An agent of the hub: its card is read and a message sent from a Job of the branch.
pub fn a2a(stage: &Stage) -> Result<String, Failed> {
    step(&stage.hub, "tools", "signer", &[])?;
    let reporter = ("reports", "reporter");
    agree(stage, &stage.branch, reporter, ("tools", "signer"))?;
    let client = stage.branch.pods.with_image("a2a", &["python3", "/app/client.py", "signer", "draft"], &[]);
    let said = once(&stage.branch, reporter, "sign", &client)?;
    ensure(said.lines().last() == Some("draft > signer"), || format!("the client says {said}"))?;
    Ok(format!("card read and a message answered in the other cluster: {said}"))
}

/// scraper → analyzer → reporter by A2A, in the branch, the hub and the branch again: each hands on by name, and nobody
/// orchestrates.
pub fn pipeline(stage: &Stage) -> Result<String, Failed> {
    step(&stage.branch, "desk", "writer", &[])?;
    step(&stage.hub, "tools", "analyzer", &["writer"])?;
    step(&stage.branch, "web", "scraper", &["analyzer"])?;
    agree(stage, &stage.hub, ("tools", "analyzer"), ("desk", "writer"))?;
    agree(stage, &stage.branch, ("web", "scraper"), ("tools", "analyzer"))?;
    // Whoever starts it is in the scraper's own cluster, and trusts nobody else.
    let starter = ("reports", "reporter");
    stage.branch.cluster().apply(&[
        peerage_e2e_pods::stage::trust("reports", "reporter", "scraper.web", &[]),
        peerage_e2e_pods::stage::trust("web", "scraper", "reporter.reports", &["step"]),
    ])?;
    let client = stage.branch.pods.with_image("a2a", &["python3", "/app/client.py", "scraper", "page"], &[]);
    let said = once(&stage.branch, starter, "pipeline", &client)?;
    ensure(said.lines().last() == Some("page > scraper > analyzer > writer"), || format!("the pipeline says {said}"))?;
    Ok(format!("through three agents in two clusters, by names alone: {said}"))
}

/// An agent of the Agent2Agent protocol, which hands on to the next.
fn step(side: &Side, namespace: &str, name: &str, next: &[&str]) -> Result<(), Failed> {
    let command: Vec<&str> = ["python3", "/app/server.py", name].iter().chain(next).copied().collect();
    serve(side, namespace, name, &side.pods.with_image("a2a", &command, &[8000]))
}

/// An agent with one port, 80, called `step`, which its program serves at 8000 on loopback.
fn serve(side: &Side, namespace: &str, name: &str, container: &Value) -> Result<(), Failed> {
    if side.cluster().get(&format!("namespace {namespace}"))?.is_null() {
        side.pods.namespace(namespace)?;
    }
    let objects = [agent(name, namespace, &[("step", 80, 8000)]), deployment(name, namespace, &restricted(container))];
    side.cluster().apply(&objects)?;
    side.cluster().kubectl(&format!("rollout status -n {namespace} deployment/{name} --timeout=120s"))?;
    side.pods.enrolled(namespace, name, 1)
}

/// Both owners consent: an agent of `side` may call one of the other cluster.
fn agree(stage: &Stage, side: &Side, caller: (&str, &str), called: (&str, &str)) -> Result<(), Failed> {
    let across = stage.across(side);
    for (link, of, namespace) in [(across.context, side, caller.0), (side.context, across, called.0)] {
        permit(of, link, namespace)?;
    }
    let calls = side.trust_across(across, caller.0, caller.1, &format!("{}.{}", called.1, called.0), &[])?;
    let serves = across.trust_across(side, called.0, called.1, &format!("{}.{}", caller.1, caller.0), &["step"])?;
    side.cluster().apply(&[calls])?;
    across.cluster().apply(&[serves])?;
    let trust = format!("{}-{} -n {}", caller.1, called.1, caller.0);
    side.cluster().condition(&format!("agenttrust {trust}"), "Ready", "True", None).map(drop)
}

/// Lets a namespace use a link.
fn permit(side: &Side, link: &str, namespace: &str) -> Result<(), Failed> {
    let found = side.cluster().get(&format!("agentlink {link}"))?;
    let mut names = found["spec"]["allowedNamespaces"]["names"].as_array().cloned().unwrap_or_default();
    if names.iter().any(|name| name == namespace) {
        return Ok(());
    }
    names.push(json!(namespace));
    let patch = json!({"spec": {"allowedNamespaces": {"names": names}}}).to_string();
    side.cluster().run("kubectl", &["patch", "agentlink", link, "--type=merge", "--patch", &patch], "").map(drop)
}

/// Runs a program to its end in a pod that is the agent `who`; what it printed.
fn once(side: &Side, who: (&str, &str), name: &str, container: &Value) -> Result<String, Failed> {
    let (namespace, app) = who;
    let mut spec = restricted(container);
    spec["restartPolicy"] = json!("Never");
    let template = json!({"metadata": {"labels": {"app": app}}, "spec": spec});
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace},
        "spec": {"backoffLimit": 0, "template": template},
    });
    side.cluster().apply(&[job])?;
    let mut ended = Value::Null;
    let over = until(|| {
        ended = side.cluster().get(&format!("job {name} -n {namespace}"))?["status"].take();
        Ok(ended["succeeded"] == 1 || ended["failed"] == 1)
    })?;
    let said = side.cluster().kubectl(&format!("logs -n {namespace} job/{name} -c app"))?;
    ensure(over && ended["succeeded"] == 1, || format!("{name} did not end well: {said}"))?;
    Ok(said)
}
