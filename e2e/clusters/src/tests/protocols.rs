//! What agents speak: MCP and A2A with their official Python SDKs across the clusters, and a pipeline whose steps know only
//! their next by name. Nothing of the SDKs is changed.

use std::process::Command;

use peerage_e2e::kernel::Place;
use peerage_e2e::{Agent, Running};
use peerage_e2e_pods::cluster::until;
use peerage_e2e_pods::stage::{agent, deployment, restricted};
use peerage_netlab::kernel::{Network, SiteConfig};
use peerage_suite::failed::{Failed, Trying as _, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

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

/// scraper → analyzer → writer by A2A, in the branch, in the hub and on a laptop: each hands on by name, and nobody orchestrates.
pub fn pipeline(stage: &Stage) -> Result<String, Failed> {
    step(&stage.hub, "tools", "analyzer", &["writer"])?;
    step(&stage.branch, "web", "scraper", &["analyzer"])?;
    agree(stage, &stage.branch, ("web", "scraper"), ("tools", "analyzer"))?;
    let writer = Writer::start(stage)?;
    writer.agrees(stage)?;
    // Whoever starts it is in the scraper's own cluster, and trusts nobody else.
    let starter = ("reports", "reporter");
    stage.branch.cluster().apply(&[
        peerage_e2e_pods::stage::trust("reports", "reporter", "scraper.web", &[]),
        peerage_e2e_pods::stage::trust("web", "scraper", "reporter.reports", &["step"]),
    ])?;
    let client = stage.branch.pods.with_image("a2a", &["python3", "/app/client.py", "scraper", "page"], &[]);
    let said = once(&stage.branch, starter, "pipeline", &client)?;
    ensure(said.lines().last() == Some("page > scraper > analyzer > writer"), || format!("the pipeline says {said}"))?;
    stage.hub.cluster().kubectl("delete agentlink writer")?;
    Ok(format!("through an agent in each cluster and one on a laptop, by names alone: {said}"))
}

/// The last step, on a machine of somebody's: its program as it is in the pods', and an agent beside it.
#[derive(Debug)]
struct Writer {
    agent: Agent,
    _program: Running,
    _place: Place,
    _app: TempDir,
}

impl Writer {
    fn start(stage: &Stage) -> Result<Self, Failed> {
        let app = stage.unpacked("a2a")?;
        let place = stage.world.borrow_mut().client("writer", &SiteConfig::new(Network::PortRestricted));
        let place = place.trying("make a laptop")?;
        let mut python = Command::new("/usr/bin/python3");
        let folder = app.path().join("app");
        python
            .arg(folder.join("server.py"))
            .arg("writer")
            .env("PYTHONPATH", folder)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let program = place.machine.start(python, "a2a").trying("start a program on a laptop")?;
        let answers = until(|| {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--max-time", "5", "http://127.0.0.1:8000/.well-known/agent-card.json"]);
            Ok(place.machine.finish(curl, "card").trying("run curl")?.status.success())
        })?;
        ensure(answers, || format!("a program on a laptop does not answer: {}", place.machine.log("a2a")))?;
        let relay = stage.relay()?;
        let words = ["--hostname", "writer", "--relay", &relay, "--expose", "step=80:8000"];
        let agent = Agent::start(&place.machine, &words).trying("start a laptop's agent")?;
        agent.wait_for(Agent::beginning(), "relay", |event| event["up"] == true).trying("find a relay")?;
        Ok(Self { agent, _program: program, _place: place, _app: app })
    }

    /// Its owner invites, the hub's links and consents for the analyzer, and its owner says yes.
    fn agrees(&self, stage: &Stage) -> Result<(), Failed> {
        let before = self.agent.mark();
        let invited = self.agent.ask(&["invite"]).trying("invite")?;
        let ticket = invited["ticket"].as_str().ok_or_else(|| Failed::new("no ticket in the answer"))?;
        let hub = "kubectl peerage --context hub";
        stage.shell(&format!("{hub} link writer --ticket - --namespaces tools --wait <<<{ticket}"))?;
        stage.shell(&format!("{hub} trust analyzer writer --link writer -n tools --purpose drafts --open-nothing"))?;
        self.agent
            .wait_for(before, "request", |asked| asked["name"] == "analyzer.tools")
            .trying("hear of a request")?;
        self.agent.ask(&["approve", "analyzer.tools"]).trying("approve")?;
        stage.hub.cluster().condition("agenttrust analyzer-writer-writer -n tools", "Ready", "True", None).map(drop)
    }
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
