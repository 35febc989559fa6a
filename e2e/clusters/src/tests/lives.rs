//! What a life of two clusters brings: everything is replaced, and operators go away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use peerage_e2e_pods::cluster::{Cluster, Running};
use peerage_e2e_pods::processes;
use peerage_e2e_pods::stage::{SIDECAR, SYSTEM, agent, deployment, restricted};
use peerage_suite::failed::{Failed, Trying as _, ensure};
use serde_json::{Value, json};

use super::REPORTER;
use crate::side::{Side, counts};
use crate::stage::Stage;

/// Requests of one round of a steady load, and the milliseconds between two.
const ROUND: u32 = 200;
const PAUSE: u32 = 10;

/// Operators, relays and agents are replaced one after the other, while a program sends requests that it tries twice.
pub fn rolling_restart(stage: &Stage) -> Result<String, Failed> {
    let hub = stage.hub.cluster();
    second_relay(stage)?;
    hub.kubectl("scale deployment db -n tools --replicas=3")?;
    rolled(hub, "deployment/db -n tools")?;
    stage.hub.pods.enrolled("tools", "db", 3)?;
    let mut said = Vec::new();
    let mut count = |what: &str, counts: Total| {
        said.push(format!("{what}: {counts}"));
        ensure(counts.failed == 0, || format!("{what}: {counts}"))
    };
    for side in [&stage.hub, &stage.branch] {
        let what = format!("deployment/peerage-operator -n {SYSTEM}");
        count(
            &format!("operators of {}", side.context),
            under_load(&stage.branch, || restart(side.cluster(), &what))?,
        )?;
    }
    for number in [0, 1] {
        let counts = under_load(&stage.branch, || {
            let mut world = stage.world.borrow_mut();
            world.kill_relay(number).and_then(|()| world.restart_relay(number)).trying("restart a relay")?;
            drop(world);
            // As long as a Deployment with minReadySeconds gives who uses a pod to find the new one.
            stage.branch.load(REPORTER, "db:80", 1000, 2 * PAUSE, 1).map(drop)
        })?;
        count(&format!("relay {}", number + 1), counts)?;
    }
    count("all pods of the server", under_load(&stage.branch, || restart(hub, "deployment/db -n tools"))?)?;
    count("all pods of a client", of_clients(stage)?)?;
    Ok(said.join("; "))
}

/// What came of the requests of a client's pod that is replaced, and of the next one's: their program is the load, so it ends with
/// them, and their agents after it.
fn of_clients(stage: &Stage) -> Result<Total, Failed> {
    let side = &stage.branch;
    let cluster = side.cluster();
    let calls = side.trust_across(&stage.hub, "reports", "caller", "db.tools", &[])?;
    stage.hub.cluster().apply(&[stage.hub.trust_across(side, "tools", "db", "caller.reports", &["mcp"])?])?;
    stage.hub.cluster().condition("agenttrust db-caller -n tools", "Programmed", "True", None)?;
    let (all, pause) = (u32::MAX.to_string(), PAUSE.to_string());
    let load = side.pods.container(&["app", "load", "db:80", &all, &pause, "1"], &[]);
    cluster.apply(&[agent("caller", "reports", &[]), calls, deployment("caller", "reports", &restricted(&load))])?;
    let what = "deployment/caller -n reports";
    rolled(cluster, what)?;
    let former = follow_caller(cluster)?;
    side.load(REPORTER, "db:80", ROUND, PAUSE, 1)?; // for as long as this takes, it sends
    restart(cluster, what)?;
    let mut total = Total::default();
    total.add(&counts(&former.end()?)?);
    let next = follow_caller(cluster)?;
    side.load(REPORTER, "db:80", ROUND, PAUSE, 1)?;
    cluster.kubectl(&format!("delete {what}"))?;
    total.add(&counts(&next.end()?)?);
    Ok(total)
}

/// The log of the one pod of `caller` that is not on its way out, from its first line on.
fn follow_caller(cluster: &Cluster) -> Result<Running, Failed> {
    let pods = cluster.get("pods -n reports -l app=caller")?;
    let mut stays = pods["items"].as_array().into_iter().flatten();
    let pod = stays.find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let name = pod.and_then(|pod| pod["metadata"]["name"].as_str());
    let name = name.ok_or_else(|| Failed::new(format!("no pod of the client stays: {pods}")))?;
    let mut running = cluster.watch(&["logs", "--follow", "-n", "reports", "-c", "app", name])?;
    let first = running.line()?;
    ensure(first == "loading", || format!("the load says {first}"))?;
    Ok(running)
}

/// A second relay, so that one may go.
fn second_relay(stage: &Stage) -> Result<(), Failed> {
    let world = stage.world.borrow();
    let address = world.relay_info(1).ok_or_else(|| Failed::new("there is no second relay"))?;
    let relay = json!({
        "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentRelay", "metadata": {"name": "second"},
        "spec": {"address": address, "allowedNamespaces": {"from": "All"}},
    });
    for side in [&stage.hub, &stage.branch] {
        side.cluster().apply(std::slice::from_ref(&relay))?;
    }
    for side in [&stage.hub, &stage.branch] {
        side.cluster().condition("agentrelay second", "Ready", "True", None)?;
    }
    Ok(())
}

fn restart(cluster: &Cluster, what: &str) -> Result<(), Failed> {
    cluster.kubectl(&format!("rollout restart {what}"))?;
    rolled(cluster, what)
}

fn rolled(cluster: &Cluster, what: &str) -> Result<(), Failed> {
    cluster.kubectl(&format!("rollout status {what} --timeout=180s")).map(drop)
}

/// Kills the agent in the pod of a workload, as the kernel does it to who takes too much memory.
pub(super) fn kill_agent(side: &Side, namespace: &str, app: &str) -> Result<(), Failed> {
    let pods =
        side.cluster().get(&format!("pods -n {namespace} -l app={app} --field-selector=status.phase=Running"))?;
    let uid = pods["items"][0]["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    processes::kill(&processes::find(&uid, SIDECAR)?)
}

/// What came of a load.
#[derive(Debug, Default)]
struct Total {
    answered: u64,
    retried: u64,
    failed: u64,
    slowest: u64,
    errors: Vec<String>,
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} requests answered, {} of them at the second try, {} failed, the slowest took {} ms {}",
            self.answered,
            self.retried,
            self.failed,
            self.slowest,
            self.errors.join(" ")
        )
    }
}

impl Total {
    fn add(&mut self, counts: &Value) {
        let number = |name: &str| counts[name].as_u64().unwrap_or(0);
        self.answered +=
            counts["answered"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum::<u64>();
        self.retried += number("retried");
        self.failed += number("failed");
        self.slowest = self.slowest.max(number("slowest_ms"));
        if counts["errors"].as_object().is_some_and(|errors| !errors.is_empty()) {
            self.errors.push(counts["errors"].to_string());
        }
    }
}

/// Sends requests from before `act` until after it. Its rounds follow each other at once.
fn under_load(side: &Side, act: impl FnOnce() -> Result<(), Failed>) -> Result<Total, Failed> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut total = Total::default();
            loop {
                let last = over.load(Ordering::Acquire);
                total.add(&side.load(REPORTER, "db:80", ROUND, PAUSE, 1)?);
                if last {
                    return Ok(total);
                }
            }
        });
        let done = act();
        over.store(true, Ordering::Release);
        let total = load.join().map_err(|_| Failed::new("the load panicked"))?;
        done.and(total)
    })
}

/// Both clusters are without any operator for as long as was asked for.
pub fn operators_away(stage: &Stage) -> Result<String, Failed> {
    let sides = [&stage.hub, &stage.branch];
    let scale = |replicas: u8| {
        let to = format!("scale deployment peerage-operator -n {SYSTEM} --replicas={replicas}");
        sides.iter().try_for_each(|side| side.cluster().kubectl(&to).map(drop))
    };
    let open = super::revocation::stay(stage, "away")?;
    scale(0)?;
    for side in sides {
        let gone = "wait pod -l app.kubernetes.io/component=operator --for=delete --timeout=120s";
        side.cluster().kubectl(&format!("{gone} -n {SYSTEM}"))?;
    }
    let begun = Instant::now();
    let (mut total, mut killed) = (Total::default(), false);
    while begun.elapsed() < stage.away || !killed {
        total.add(&stage.branch.load(REPORTER, "db:80", ROUND, PAUSE, 1)?);
        // Halfway, a container starts again: it comes back with the key that it had, and who asks it dials anew.
        if !killed && begun.elapsed() >= stage.away / 2 {
            kill_agent(&stage.hub, "tools", "db")?;
            killed = true;
        }
    }
    total.add(&stage.branch.load(REPORTER, "db:80", ROUND, PAUSE, 1)?);
    ensure(total.failed == 0, || total.to_string())?;
    let waited = begun.elapsed();
    scale(2)?;
    for side in sides {
        rolled(side.cluster(), &format!("deployment/peerage-operator -n {SYSTEM}"))?;
    }
    open.goes_on(stage)?;
    Ok(format!(
        "{} s without an operator on either side: an open stream lives, an agent was killed and came back, and of the requests \
         meanwhile: {total}",
        waited.as_secs()
    ))
}
