//! Relays that somebody runs, and relays that the operator runs.

use std::net::Ipv4Addr;

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{Stage, object};
use crate::cluster::{Cluster, until};
use crate::failed::{Failed, Trying, ensure};
use crate::fleet::{self, Fleet};
use crate::operator::NAMESPACE;
use crate::relay::Relay;

/// Where the relays of these tests are.
pub const RELAYS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 201, 2), Ipv4Addr::new(198, 18, 201, 3)];
/// Port 9 (discard) of loopback: nothing answers there.
const NOWHERE: &str = "127.0.0.1:9";
/// The Secret with keys of managed relays.
const KEYS: &str = "peerage-relays";

pub(super) fn agent_relay(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let relay = |spec: Value| object("AgentRelay", "given", None, &spec);
    let everybody = json!({"from": "All"});
    let silent = format!("{}q@{NOWHERE}", "a".repeat(51));
    cluster.apply(&relay(json!({"address": silent, "allowedNamespaces": everybody})))?;
    cluster.condition("agentrelay given", "Ready", "False", "RelayUnreachable")?;
    let closed = Relay::only_for(&stage.programs.relay, RELAYS[0], &"0".repeat(64))?;
    cluster.apply(&relay(json!({"address": closed.address, "allowedNamespaces": everybody})))?;
    cluster.condition("agentrelay given", "Ready", "False", "RelayRefused")?;
    drop(closed);
    let running = Relay::start(&stage.programs.relay, RELAYS[0])?;
    cluster.apply(&relay(json!({"address": running.address, "allowedNamespaces": everybody})))?;
    cluster.kubectl("wait agentrelay/given --for=condition=Ready --timeout=90s")?;
    let said = status(cluster, "agentrelay given")?["address"].clone();
    ensure(said == *running.address, || format!("agents are told {said}, and it is {}", running.address))?;

    // An agent with a pod is ready as long as it has a relay.
    stage.namespace("relayed")?;
    let identities = stage.runtime.block_on(fleet::populate(&stage.api, "relayed", "a", 1, &stage.audience()?))?;
    let fleet = Fleet::start(&stage.runtime, identities, stage.shared_addresses(), &stage.authority()?)?;
    cluster.kubectl("wait agentpeer/a-0 -n relayed --for=condition=Ready --timeout=90s")?;
    let others = json!({"from": "Selected", "names": ["somebody-else"]});
    cluster.apply(&relay(json!({"address": running.address, "allowedNamespaces": others})))?;
    cluster.condition("agentpeer a-0 -n relayed", "Ready", "False", "NotPermittedByRelay")?;
    cluster.kubectl("delete agentrelay given")?;
    cluster.condition("agentpeer a-0 -n relayed", "Ready", "False", "RelayUnreachable")?;
    drop(fleet);
    Ok("silent, then one that refuses us, then answering at another address; what it permits and its deletion show at agents".into())
}

pub(super) fn managed_relay(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    cluster
        .kubectl(&format!("label namespace {NAMESPACE} pod-security.kubernetes.io/enforce=restricted --overwrite"))?;
    let edge = |replicas: u16| {
        let managed = json!({"service": {"type": "LoadBalancer"}, "replicas": replicas});
        object("AgentRelay", "edge", None, &json!({"managed": managed, "allowedNamespaces": {"from": "All"}}))
    };
    cluster.apply(&edge(1))?;
    cluster.condition("agentrelay edge", "Available", "False", "WaitingForAddress")?;
    // The controllers of the control plane make its pod, which nobody runs here.
    let pod = until(|| Ok(!items(cluster, "pods", "edge")?.is_empty()))?;
    ensure(pod, || format!("no pod is admitted: {:?}", cluster.kubectl(&format!("get events -n {NAMESPACE}"))))?;

    let running = serve(stage, "edge", 0, RELAYS[1])?;
    cluster.kubectl("wait agentrelay/edge --for=condition=Ready --timeout=90s")?;
    let address = status(cluster, "agentrelay edge")?["address"].clone();
    ensure(address == *running.address, || format!("agents are told {address}, and it is {}", running.address))?;

    // Whatever happens to operators and objects, the key stays.
    stage.restart_operators()?;
    cluster.kubectl(&format!("delete deployment relay-edge-0 -n {NAMESPACE}"))?;
    let back = until(|| Ok(cluster.get(&format!("deployment relay-edge-0 -n {NAMESPACE}"))?.is_some()))?;
    ensure(back, || "a Deployment that was deleted did not come back".into())?;
    replicas_come_and_go(stage, &edge)?;
    lost_key(cluster)?;
    cluster.kubectl("wait agentrelay/edge --for=condition=Ready --timeout=90s")?;
    let after = status(cluster, "agentrelay edge")?["address"].clone();
    ensure(after == address, || format!("{address} became {after}"))?;

    cluster.kubectl("delete agentrelay edge")?;
    let gone = until(|| {
        let left = ["deployments", "services"].map(|kind| items(cluster, kind, "edge"));
        let [deployments, services] = left;
        Ok(deployments?.is_empty() && services?.is_empty() && key(cluster, "edge.0")?.is_none())
    })?;
    ensure(gone, || "something of a deleted relay is left".into())?;
    Ok("waits for an address, is Ready with one, keeps its key over restarts, loses none to a lost Secret, and leaves nothing behind"
        .into())
}

/// A relay with the key of a replica, where its Service then says that it is.
fn serve(stage: &Stage, name: &str, replica: u16, at: Ipv4Addr) -> Result<Relay, Failed> {
    let key = key(&stage.cluster, &format!("{name}.{replica}"))?.ok_or_else(|| Failed::new("it has no key"))?;
    let running = Relay::with_key(&stage.programs.relay, at, &key)?;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": at.to_string()}]}}}).to_string();
    let service = format!("relay-{name}-{replica}");
    let patch = ["patch", "service", &service, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", &status];
    stage.cluster.run("kubectl", &patch, "")?;
    Ok(running)
}

/// A second one is a relay of its own, and goes when it is wanted no more.
fn replicas_come_and_go(stage: &Stage, edge: &impl Fn(u16) -> Value) -> Result<(), Failed> {
    let cluster = &stage.cluster;
    cluster.apply(&edge(2))?;
    let second = until(|| Ok(items(cluster, "deployments", "edge")?.len() == 2 && key(cluster, "edge.1")?.is_some()))?;
    ensure(second, || "there is no second replica".into())?;
    ensure(key(cluster, "edge.0")? != key(cluster, "edge.1")?, || "two relays have one key".into())?;
    cluster.condition("agentrelay edge", "Available", "False", "WaitingForAddress")?;
    cluster.apply(&edge(1))?;
    let first = until(|| {
        Ok(["deployments", "services"]
            .map(|kind| items(cluster, kind, "edge").map(|all| all.len()))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?
            == [1, 1])
    })?;
    ensure(first, || "the second replica did not go".into())
}

/// Without its key it says so and makes no other; with the backup it goes on.
fn lost_key(cluster: &Cluster) -> Result<(), Failed> {
    let backup = cluster.get(&format!("secret {KEYS} -n {NAMESPACE}"))?.unwrap_or_default();
    cluster.kubectl(&format!("delete secret {KEYS} -n {NAMESPACE}"))?;
    cluster.condition("agentrelay edge", "Ready", "False", "SecretNotFound")?;
    ensure(key(cluster, "edge.0")?.is_none(), || "a key was made in the place of a lost one".into())?;
    let restored = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": KEYS, "namespace": NAMESPACE},
        "type": backup["type"], "data": backup["data"],
    });
    cluster.run("kubectl", &["create", "-f", "-"], &restored.to_string()).map(drop)
}

/// What the key file of a replica would hold.
fn key(cluster: &Cluster, entry: &str) -> Result<Option<Vec<u8>>, Failed> {
    let secret = cluster.get(&format!("secret {KEYS} -n {NAMESPACE}"))?.unwrap_or_default();
    let text = secret["data"][entry].as_str();
    text.map(|text| BASE64.decode(text.as_bytes()).trying("read a Secret")).transpose()
}

fn items(cluster: &Cluster, kind: &str, relay: &str) -> Result<Vec<Value>, Failed> {
    let found = cluster.get(&format!("{kind} -n {NAMESPACE} -l peerage.dev/relay={relay}"))?.unwrap_or_default();
    Ok(found["items"].as_array().cloned().unwrap_or_default())
}

fn status(cluster: &Cluster, object: &str) -> Result<Value, Failed> {
    Ok(cluster.get(object)?.map_or(Value::Null, |mut object| object["status"].take()))
}
