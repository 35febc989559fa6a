//! What people run: a server and a client of the Model Context Protocol, with its official Python SDK.

use peerage_e2e_pods::failed::{Failed, ensure};
use peerage_e2e_pods::stage::{Stage, agent, deployment, restricted, trust};
use serde_json::json;

/// Streamable HTTP from pod to pod by name; nothing of the SDK is changed, and the server knows its name as documented.
pub fn mcp(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let server = stage.python(&["python3", "/app/server.py", "calculator"], &[8000]);
    let mut client = restricted(&stage.python(&["python3", "/app/client.py", "http://calculator/mcp"], &[]));
    client["restartPolicy"] = json!("Never");
    let template = json!({"metadata": {"labels": {"app": "reporter"}}, "spec": client});
    let metadata = json!({"name": "calculate", "namespace": "reports"});
    cluster.apply(&[
        agent("calculator", "tools", &[("mcp", 80, 8000)]),
        trust("tools", "calculator", "reporter.reports", &["mcp"]),
        trust("reports", "reporter", "calculator.tools", &[]),
        deployment("calculator", "tools", &restricted(&server)),
    ])?;
    cluster.kubectl("rollout status -n tools deployment/calculator --timeout=120s")?;
    stage.enrolled("tools", "calculator", 1)?;
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"backoffLimit": 0, "template": template}});
    cluster.apply(&[job])?;
    let done = cluster.kubectl("wait -n reports job/calculate --for=condition=Complete --timeout=90s");
    let said = cluster.kubectl("logs -n reports job/calculate -c app")?;
    done.map_err(|_| Failed::new(format!("the client did not end well: {said}")))?;
    ensure(said.lines().last() == Some("2 + 3 = 5"), || format!("the client says {said}"))?;
    Ok("initialized, listed the tools, called one: 2 + 3 = 5".into())
}
