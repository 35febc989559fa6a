//! Pods that end, begin, multiply and are replaced.

use std::time::{Duration, Instant};

use peerage_e2e_pods::failed::{Failed, Trying, ensure};
use peerage_e2e_pods::stage::{REPORTER, Stage, pod, restricted};
use serde_json::{Value, json};

/// How long an ended replica may be felt.
const FELT: Duration = Duration::from_secs(2);

/// The application ends, and so does the pod: a native sidecar keeps no Job from completing.
pub fn job(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let mut spec = restricted(&stage.container(&["app", "get", "db:80"], &[]));
    spec["restartPolicy"] = json!("Never");
    let template = json!({"metadata": {"labels": {"app": "reporter"}}, "spec": spec});
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "report", "namespace": "reports"},
        "spec": {"backoffLimit": 0, "template": template},
    });
    let begun = Instant::now();
    cluster.apply(&[job])?;
    cluster.kubectl("wait -n reports job/report --for=condition=Complete --timeout=60s")?;
    let said = cluster.kubectl("logs -n reports job/report -c app")?;
    ensure(said.starts_with("db-tool-"), || format!("the Job was told `{said}`"))?;
    Ok(format!("complete {:.1} s after it was applied, told `{said}`", begun.elapsed().as_secs_f64()))
}

/// The application's own init container calls a peer, before the application begins.
pub fn init_container(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let mut spec = restricted(&stage.container(&["app", "sleep"], &[]));
    let mut first = stage.container(&["app", "get", "db:80"], &[]);
    first["name"] = json!("first");
    spec["initContainers"] = json!([first]);
    cluster.apply(&[pod("early", "reports", "reporter", &spec)])?;
    cluster.kubectl("wait -n reports pod/early --for=condition=Ready --timeout=60s")?;
    let said = cluster.kubectl("logs -n reports early -c first")?;
    ensure(said.starts_with("db-tool-"), || format!("it was told `{said}`"))?;
    let restarts = cluster.get("pod early -n reports")?["status"]["initContainerStatuses"].take();
    let first = restarts.as_array().and_then(|all| all.iter().find(|one| one["name"] == "first").cloned());
    ensure(first.is_some_and(|first| first["restartCount"] == 0), || format!("it took more than one try: {restarts}"))?;
    cluster.kubectl("delete pod early -n reports --wait=false")?;
    Ok(format!("told `{said}` at its first try"))
}

/// Three pods behind one name are balanced, and one that is killed fails nothing after two seconds.
pub fn replicas(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    cluster.kubectl("scale deployment db-tool -n tools --replicas=3")?;
    cluster.kubectl("rollout status deployment/db-tool -n tools --timeout=120s")?;
    stage.enrolled("tools", "db-tool-server", 3)?;
    let balanced = load(stage, 300, 10, 0)?;
    let even = balanced["answered"]
        .as_object()
        .is_some_and(|who| who.len() == 3 && who.values().all(|n| n.as_i64() >= Some(50)));
    ensure(even && balanced["failed"] == 0, || format!("300 requests went {balanced}"))?;
    let running = cluster.begin(REPORTER, &["app", "load", "db:80", "600", "10", "0"])?;
    let begun = Instant::now();
    let victim = cluster.kubectl("get pods -n tools -l app=db-tool -o jsonpath={.items[0].metadata.name}")?;
    cluster.kubectl(&format!("delete pod -n tools {victim} --force --grace-period=0"))?;
    let killed = begun.elapsed();
    let after = counts(&running.end()?)?;
    let last = after["last_error_ms"].as_u64().map(Duration::from_millis);
    let limit = killed + FELT;
    ensure(last.is_none_or(|last| last < limit), || format!("killed by {killed:?}, and then {after}"))?;
    cluster.kubectl("rollout status deployment/db-tool -n tools --timeout=120s")?;
    stage.enrolled("tools", "db-tool-server", 3)?;
    Ok(format!(
        "300 requests: {}; one of three killed within {} ms of the start: {after}",
        balanced["answered"],
        killed.as_millis()
    ))
}

/// All three are replaced under a steady load of a client that tries twice.
pub fn rolling_restart(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let running = cluster.begin(REPORTER, &["app", "load", "db:80", "1500", "10", "1"])?;
    cluster.kubectl("rollout restart deployment/db-tool -n tools")?;
    cluster.kubectl("rollout status deployment/db-tool -n tools --timeout=180s")?;
    let counts = counts(&running.end()?)?;
    ensure(counts["failed"] == 0, || counts.to_string())?;
    ensure(counts["answered"].as_object().is_some_and(|who| who.len() > 3), || {
        format!("nothing was replaced: {counts}")
    })?;
    Ok(counts.to_string())
}

/// A load from the first client: what came of it.
pub fn load(stage: &Stage, count: u32, pause: u32, retries: u32) -> Result<Value, Failed> {
    let words = ["app", "load", "db:80", &count.to_string(), &pause.to_string(), &retries.to_string()];
    counts(&stage.cluster.begin(REPORTER, &words)?.end()?)
}

/// What a load printed.
pub fn counts(said: &str) -> Result<Value, Failed> {
    serde_json::from_str(said).trying("read what a load counted")
}
