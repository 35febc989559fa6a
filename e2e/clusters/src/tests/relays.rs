//! A relay that one cluster runs itself.

use peerage_e2e_pods::cluster::until;
use peerage_e2e_pods::stage::SYSTEM;
use peerage_suite::failed::{Failed, Trying as _, ensure};
use serde_json::{Value, json};

use super::REPORTER;
use crate::stage::Stage;

/// What the operator makes for the relay is labelled so.
const OF_EDGE: &str = "peerage.dev/relay=edge";
/// The node's port, which the gateway passes on.
const PORT: u16 = 30_478;

/// The hub runs a relay behind one open port of its gateway. When the relay on the internet is gone, both clusters go on by
/// this one, which nobody told the branch's people of. Afterwards it is gone, and both go on by the other again.
pub fn managed(stage: &Stage) -> Result<String, Failed> {
    let done = by_own_relay(stage);
    let left = clean(stage);
    let said = done?;
    left?;
    Ok(said)
}

fn by_own_relay(stage: &Stage) -> Result<String, Failed> {
    let hub = stage.hub.cluster();
    let public = {
        let lab = &stage.world.borrow().lab;
        lab.open_port(&stage.hub.site, PORT).trying("open a port")?;
        lab.public(&stage.hub.site)
    };
    let values = ["--reuse-values", "--wait", "--timeout", "120s", "--set", "managedRelays.enabled=true"];
    hub.run("helm", &[&["upgrade", "peerage", "charts/peerage", "-n", SYSTEM][..], &values].concat(), "")?;
    let service = json!({"type": "NodePort", "nodePort": PORT, "host": public.to_string()});
    let spec = json!({"managed": {"service": service}, "allowedNamespaces": {"from": "All"}});
    hub.apply(&[json!({
        "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentRelay", "metadata": {"name": "edge"}, "spec": spec,
    })])?;
    hub.condition("agentrelay edge", "Ready", "True", None)?;
    let address = hub.get("agentrelay edge")?["status"]["address"].as_str().unwrap_or_default().to_owned();
    told(stage, &address)?;
    let change = |kill: bool| {
        let mut world = stage.world.borrow_mut();
        if kill { world.kill_relay(0) } else { world.restart_relay(0) }.trying("kill or restart a relay")
    };
    change(true)?;
    let found = goes_on(stage);
    change(false)?;
    let (counts, anew) = found?;
    Ok(format!("by the hub's own relay alone, running pods: {counts}; pods that started: {anew}"))
}

/// Takes the relay away, with all that the operator had made for it, and its right to make any.
fn clean(stage: &Stage) -> Result<(), Failed> {
    let hub = stage.hub.cluster();
    hub.kubectl("delete agentrelay edge --ignore-not-found")?;
    let mut left = String::new();
    let gone = until(|| {
        left = hub.kubectl(&format!("get deployments,pods,services -n {SYSTEM} -l {OF_EDGE} -o name"))?;
        Ok(left.is_empty())
    })?;
    ensure(gone, || format!("of a relay that was deleted there is {left}"))?;
    let values = ["--reuse-values", "--wait", "--timeout", "120s", "--set", "managedRelays.enabled=false"];
    hub.run("helm", &[&["upgrade", "peerage", "charts/peerage", "-n", SYSTEM][..], &values].concat(), "")?;
    stage.world.borrow().lab.close_port(&stage.hub.site, PORT).trying("close a port")?;
    // The other one has only just begun anew, and who was not bound there yet has to notice first.
    let mut back = Value::Null;
    let again = until(|| {
        back = stage.branch.load(REPORTER, "db:80", 1, 0, 0)?;
        Ok(back["failed"] == 0)
    })?;
    ensure(again, || format!("with the hub's own relay gone {back}"))?;
    back = stage.branch.load(REPORTER, "db:80", 100, 5, 0)?;
    ensure(back["failed"] == 0, || format!("with the hub's own relay gone {back}"))
}

/// The branch has heard of the relay over the link.
fn told(stage: &Stage, address: &str) -> Result<(), Failed> {
    let mut relays = Value::Null;
    let heard = until(|| {
        relays = stage.branch.cluster().get("agentlink hub")?["status"]["relays"].take();
        Ok(relays.as_array().is_some_and(|relays| relays.iter().any(|relay| relay == address)))
    })?;
    ensure(heard, || format!("the branch was told of {relays}, and not of {address}"))
}

fn goes_on(stage: &Stage) -> Result<(Value, Value), Failed> {
    let mut first = Value::Null;
    let again = until(|| {
        first = stage.branch.load(REPORTER, "db:80", 1, 0, 0)?;
        Ok(first["failed"] == 0)
    })?;
    ensure(again, || format!("without the relay on the internet {first}"))?;
    let running = stage.branch.load(REPORTER, "db:80", 300, 5, 0)?;
    ensure(running["failed"] == 0, || format!("without the relay on the internet {running}"))?;
    let cluster = stage.branch.cluster();
    cluster.kubectl("rollout restart deployment/reporter -n reports")?;
    cluster.kubectl("rollout status deployment/reporter -n reports --timeout=120s")?;
    let anew = stage.branch.load(REPORTER, "db:80", 300, 5, 1)?;
    ensure(anew["failed"] == 0, || format!("a pod that started without the relay on the internet {anew}"))?;
    Ok((running, anew))
}
