//! The chart's whole life: changed, changed back, removed, installed again. What runs goes on, what was written stays.

use std::process::Stdio;

use peerage_e2e_pods::cluster::{Cluster, until};
use peerage_e2e_pods::failed::{Failed, Trying, ensure};
use peerage_e2e_pods::stage::{REPORTER, SIDECAR, SYSTEM, Stage, pod, restricted};
use serde_json::{Value, json};

use crate::tests::lives::{counts, load};

/// From the chart before its last change to this one and back, while requests go on over the tunnels that are there.
pub fn upgrade(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let before = identities(cluster)?;
    let previous = previous_chart(stage)?;
    let values = cluster.helm(&format!("get values peerage -n {SYSTEM} -o json"))?;
    let upgrade = |chart: &str| {
        let words =
            ["upgrade", "peerage", chart, "-n", SYSTEM, "--reset-values", "-f", "-", "--wait", "--timeout", "120s"];
        cluster.run("helm", &words, &values).map(|_| ())
    };
    let running = cluster.begin(REPORTER, &["app", "load", "db:80", "4000", "10", "0"])?;
    let pods = sidecars(cluster)?;
    upgrade(&previous)?;
    upgrade("charts/peerage")?;
    cluster.helm(&format!("rollback peerage -n {SYSTEM} --wait --timeout 120s"))?;
    upgrade("charts/peerage")?;
    let counts = counts(&running.end()?)?;
    ensure(counts["failed"] == 0, || format!("requests were lost: {counts}"))?;
    ensure(sidecars(cluster)? == pods, || "a pod with an agent was restarted".into())?;
    ensure(identities(cluster)? == before, || "an object is another one, or gone".into())?;
    std::fs::remove_dir_all(previous).trying("remove the previous chart")?;
    Ok(format!(
        "{} objects are the same, no agent was restarted, and of the requests meanwhile none failed: {counts}",
        before.lines().count()
    ))
}

/// Every command that the chart's notes print, `helm test` among them, with a namespace of ours in it.
pub fn notes(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let notes = cluster.helm(&format!("get notes peerage -n {SYSTEM}"))?;
    let commands: Vec<&str> = notes.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    for command in &commands {
        let said = stage.step(&command.replace("YOUR-NAMESPACE", "tools"))?;
        let tested = !command.contains(" test ") || said.contains("Succeeded");
        ensure(tested, || format!("`{command}` says {said}"))?;
    }
    ensure(commands.iter().any(|command| command.contains(" test ")), || format!("no test is named: {notes}"))?;
    let left = cluster.kubectl(&format!("get pods -n {SYSTEM} -l app.kubernetes.io/component=test -o name"))?;
    ensure(left.is_empty(), || format!("helm test left {left}"))?;
    Ok(format!(
        "{} commands, and helm test: the operator answers through its Service, the sidecar's image starts",
        commands.len()
    ))
}

/// Operators are replaced, and one is deleted as by a drain; each pod that is made meanwhile gets its agent.
pub fn rollout(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let mut told = Vec::new();
    for what in ["a rollout", "a drain"] {
        let before = operators(cluster)?;
        let (one, _) = before.first().ok_or_else(|| Failed::new("there is no operator"))?;
        cluster.kubectl(&match what {
            "a rollout" => format!("rollout restart deployment/peerage-operator -n {SYSTEM}"),
            _ => format!("delete -n {SYSTEM} --wait=false {one}"),
        })?;
        let (mut made, mut without) = (0, 0);
        let over = until(|| {
            let pods = tried(stage)?;
            made += pods.len();
            without += pods.iter().filter(|pod| pod["spec"]["initContainers"][0]["name"] != SIDECAR).count();
            // Over is what begins when the last of those that go has gone.
            let now = operators(cluster)?;
            let others = before.iter().any(|operator| !now.contains(operator));
            Ok(others && now.len() == before.len() && now.iter().all(|(_, state)| *state == "ready"))
        })?;
        ensure(over, || format!("{what} did not end"))?;
        ensure(without == 0, || format!("{without} of {made} pods made during {what} have no agent"))?;
        told.push(format!("{made} during {what}"));
    }
    Ok(format!("every pod has its agent: {}", told.join(", ")))
}

/// The operators' pods, and whether each is ready, not yet, or on its way out.
fn operators(cluster: &Cluster) -> Result<Vec<(String, &'static str)>, Failed> {
    let pods = cluster.get(&format!("pods -n {SYSTEM} -l app.kubernetes.io/component=operator"))?;
    let state = |pod: &Value| match &pod["metadata"]["deletionTimestamp"] {
        Value::Null if pod["status"]["containerStatuses"][0]["ready"] == true => "ready",
        Value::Null => "starts",
        _ => "goes",
    };
    let name = |pod: &Value| format!("pod/{}", pod["metadata"]["name"].as_str().unwrap_or_default());
    Ok(pods["items"].as_array().into_iter().flatten().map(|pod| (name(pod), state(pod))).collect())
}

/// What the API server would make of some pods that ask for an agent.
fn tried(stage: &Stage) -> Result<Vec<Value>, Failed> {
    let spec = restricted(&stage.container(&["app", "sleep"], &[]));
    let pods: Vec<Value> = (0..40).map(|number| pod(&format!("tried-{number}"), "tools", "tried", &spec)).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    let words = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    let said = stage.cluster.run("kubectl", &words, &list.to_string())?.out;
    // One document behind the other.
    let made = serde_json::Deserializer::from_str(&said).into_iter::<Value>();
    made.collect::<Result<_, _>>().trying("read what kubectl says")
}

/// The chart as it was before the last commit that changed what is installed.
fn previous_chart(stage: &Stage) -> Result<String, Failed> {
    let folder = std::env::temp_dir().join(format!("peerage-chart-{}", std::process::id()));
    let folder = folder.to_str().ok_or_else(|| Failed::new("the folder for files of a moment is no text"))?.to_owned();
    let script = format!(
        "mkdir -p {folder}
        changed=$(git log -1 --format=%H -- charts/peerage)
        git archive $changed~1 charts/peerage | tar -x --strip-components 2 -C {folder}
        if diff -rq {folder} charts/peerage >/dev/null; then echo the last change of the chart changed nothing >&2; exit 1; fi"
    );
    let said = stage.cluster.command("bash").args(["-euo", "pipefail", "-c", &script]).stdin(Stdio::null()).output();
    let said = said.trying("run git")?;
    ensure(said.status.success(), || format!("no previous chart: {}", String::from_utf8_lossy(&said.stderr)))?;
    Ok(folder)
}

/// Removed, everything that runs goes on without it; installed again, everybody is who they were.
pub fn reinstall(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let before = identities(cluster)?;
    let servers = cluster.get("agentpeer db-tool-server -n tools")?["status"]["pods"]["enrolled"].as_i64();
    let servers = servers.ok_or_else(|| Failed::new("the servers' agent has no pods"))?;
    let values = cluster.helm(&format!("get values peerage -n {SYSTEM} -o json"))?;
    cluster.helm(&format!("uninstall peerage -n {SYSTEM} --wait"))?;
    let hooks = cluster.kubectl("get mutatingwebhookconfigurations,validatingwebhookconfigurations -o name")?;
    ensure(!hooks.contains("peerage"), || format!("a webhook is left: {hooks}"))?;
    let asked = cluster.exec(REPORTER, &["/bin/client-musl", "resolve", "kubernetes.default.svc"])?;
    ensure(asked == "10.96.0.1", || format!("without the chart the API server is at {asked}"))?;
    let without = load(stage, 100, 5, 0)?;
    ensure(without["failed"] == 0, || format!("without the chart {without}"))?;
    let words = ["install", "peerage", "charts/peerage", "-n", SYSTEM, "-f", "-", "--wait", "--timeout", "120s"];
    cluster.run("helm", &words, &values)?;
    ensure(identities(cluster)? == before, || "an object or the authority is another one".into())?;
    stage.enrolled("tools", "db-tool-server", servers)?;
    cluster.kubectl("rollout restart deployment/reporter -n reports")?;
    cluster.kubectl("rollout status deployment/reporter -n reports --timeout=120s")?;
    let with = load(stage, 100, 5, 0)?;
    ensure(with["failed"] == 0, || format!("with the new chart {with}"))?;
    Ok("DNS and tunnels without the chart, the same authority and objects afterwards, and a new pod that enrols".into())
}

/// Everything that somebody declared, and the authority.
fn identities(cluster: &Cluster) -> Result<String, Failed> {
    let columns = "custom-columns=KIND:.kind,NAME:.metadata.name,UID:.metadata.uid";
    let objects = cluster.kubectl(&format!("get peerage -A --no-headers -o {columns}"))?;
    let authority =
        cluster.kubectl(&format!("get configmap peerage-authority -n {SYSTEM} -o jsonpath={{.data.fingerprint}}"))?;
    ensure(!authority.is_empty(), || "there is no authority".into())?;
    Ok(format!("{objects}\n{authority}"))
}

/// The agents' pods and how often their agents were restarted.
fn sidecars(cluster: &Cluster) -> Result<String, Failed> {
    let mut all = Vec::new();
    for namespace in ["tools", "reports"] {
        let pods = cluster.get(&format!("pods -n {namespace} --field-selector=status.phase=Running"))?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let inits = pod["status"]["initContainerStatuses"].as_array().cloned().unwrap_or_default();
            let count: Vec<&Value> = inits.iter().map(|one| &one["restartCount"]).collect();
            all.push(format!("{name} {count:?}"));
        }
    }
    all.sort();
    Ok(all.join("\n"))
}
