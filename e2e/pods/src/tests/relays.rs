//! Relays that the operator runs, with real pods and a node's port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use peerage_e2e_pods::cluster::{Cluster, until};
use peerage_e2e_pods::failed::{Failed, Trying, ensure};
use peerage_e2e_pods::stage::{REPORTER, SYSTEM, Stage};
use serde_json::json;

use crate::tests::lives::load;

/// How long one question by UDP waits; it is asked again.
const ANSWER: Duration = Duration::from_millis(500);
/// RFC 8489 section 5.
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// With the steps of the page, in the place of the chart's relay, which ends: agents are bound at it, traffic that must not go
/// directly goes over it, the node's port shows it who calls, and it outlives its pod under the same key.
pub fn managed(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let given = cluster.get("agentrelay here")?;
    for step in stage.steps("docs/kubernetes.md", "Relays that the operator runs")? {
        stage.step(&step)?;
    }
    cluster.kubectl("delete agentrelay here")?;
    // Agents would go on with it for ten minutes.
    cluster.kubectl(&format!("scale deployment/peerage-relay -n {SYSTEM} --replicas=0"))?;
    cluster
        .kubectl(&format!("wait --for=delete pod -n {SYSTEM} -l app.kubernetes.io/component=relay --timeout=60s"))?;
    let address = address(cluster)?;
    let seen = mapped(&address)?;
    ensure(seen.0 == seen.1, || format!("it sees {} where {} asked", seen.1, seen.0))?;
    bound(cluster, 2)?;
    relayed(stage)?;

    cluster.kubectl(&format!("delete pod -n {SYSTEM} -l peerage.dev/relay=edge --wait=true"))?;
    cluster.kubectl(&format!("rollout status deployment/relay-edge-0 -n {SYSTEM} --timeout=120s"))?;
    bound(cluster, 2)?;
    let after = self::address(cluster)?;
    ensure(after == address, || format!("{address} became {after}"))?;
    let answered = load(stage, 50, 5, 1)?;
    ensure(answered["failed"] == 0, || format!("over the relay's second pod {answered}"))?;

    cluster.kubectl(&format!("scale deployment/peerage-relay -n {SYSTEM} --replicas=1"))?;
    let metadata = json!({"name": "here"});
    cluster.apply(&[
        json!({"apiVersion": given["apiVersion"], "kind": "AgentRelay", "metadata": metadata, "spec": given["spec"]}),
    ])?;
    cluster.kubectl("wait agentrelay/here --for=condition=Ready --timeout=120s")?;
    cluster.kubectl("delete agentrelay edge")?;
    let gone = until(|| {
        let left =
            cluster.kubectl(&format!("get deployments,services,pods -n {SYSTEM} -l peerage.dev/relay=edge -o name"))?;
        Ok(left.is_empty())
    })?;
    ensure(gone, || "something of the deleted relay is left".into())?;
    mode(cluster, "Auto")?;
    Ok(format!(
        "at {address} it sees {} call, two agents are bound at it and reach each other over it, also after its pod was deleted",
        seen.0
    ))
}

/// What agents are told: `KEY@HOST:PORT`.
fn address(cluster: &Cluster) -> Result<String, Failed> {
    let relay = cluster.get("agentrelay edge")?;
    let address = relay["status"]["address"].as_str().map(str::to_owned);
    address.ok_or_else(|| Failed::new(format!("it has no address: {}", relay["status"])))
}

/// Waits until this many agents are bound at it, as it counts them itself.
fn bound(cluster: &Cluster, count: u64) -> Result<(), Failed> {
    let mut last = 0;
    let so = until(|| {
        last = counted(cluster, "peerage_relay_bound_instances").unwrap_or_default(); // its pod may be on its way
        Ok(last >= count)
    })?;
    ensure(so, || format!("expected {count} agents at the relay, found {last}"))
}

fn counted(cluster: &Cluster, metric: &str) -> Result<u64, Failed> {
    let pod = cluster
        .kubectl(&format!("get pods -n {SYSTEM} -l peerage.dev/relay=edge -o jsonpath={{.items[0].status.podIP}}"))?;
    let metrics = cluster.exec(REPORTER, &["wget", "-q", "-O", "-", &format!("http://{pod}:8080/metrics")])?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    value.ok_or_else(|| Failed::new(format!("it counts no {metric}")))?.parse().trying("read a metric")
}

/// Requests between agents that must not know each other's addresses: all of them travel over it.
fn relayed(stage: &Stage) -> Result<(), Failed> {
    let cluster = &stage.cluster;
    mode(cluster, "RelayOnly")?;
    let path = || Ok(cluster.get("agenttrust reporter-uses-db -n reports")?["status"]["path"] == "Relayed");
    ensure(until(path)?, || "the path does not become a relayed one".into())?;
    let before = counted(cluster, "peerage_relay_forwarded_packets_total")?;
    let answered = load(stage, 50, 5, 0)?;
    ensure(answered["failed"] == 0, || format!("over the relay {answered}"))?;
    let packets = counted(cluster, "peerage_relay_forwarded_packets_total")? - before;
    ensure(packets >= 100, || format!("50 requests and answers were {packets} packets at the relay"))
}

fn mode(cluster: &Cluster, mode: &str) -> Result<(), Failed> {
    let patch = json!({"spec": {"path": {"mode": mode}}}).to_string();
    let words = ["patch", "agentpeer", "db-tool-server", "-n", "tools", "--type=merge", "-p", &patch];
    cluster.run("kubectl", &words, "").map(drop)
}

/// Asks the relay by STUN from outside the cluster: who asked, and who it says that was.
fn mapped(address: &str) -> Result<(SocketAddr, SocketAddr), Failed> {
    let (_, place) = address.split_once('@').ok_or_else(|| Failed::new(format!("{address} is no address")))?;
    // The TCP port follows where it is another one.
    let place: SocketAddr = place.split('/').next().unwrap_or_default().parse().trying("read the relay's address")?;
    let socket = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect(place).map(|()| socket));
    let socket = socket.trying("ask the relay")?;
    socket.set_read_timeout(Some(ANSWER)).trying("ask the relay")?;
    let mut request = vec![0, 1, 0, 0];
    request.extend(COOKIE);
    request.extend(b"twelve bytes");
    let mut answer = [0; 512];
    let mut length = 0;
    let answered = until(|| {
        socket.send(&request).trying("ask the relay")?;
        length = socket.recv(&mut answer).unwrap_or_default();
        Ok(length > 0)
    })?;
    ensure(answered, || format!("nobody answers at {place}"))?;
    let seen = xor_mapped(&answer[..length]).ok_or_else(|| Failed::new("the answer names no address"))?;
    Ok((socket.local_addr().trying("ask the relay")?, seen))
}

/// The XOR-MAPPED-ADDRESS of an answer (RFC 8489 section 14.2), if it is one of IPv4.
fn xor_mapped(answer: &[u8]) -> Option<SocketAddr> {
    let mut rest = answer.get(20..)?;
    loop {
        let (head, value) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if head[..2] == [0, 0x20] {
            let &[_, 1, high, low, a, b, c, d] = value.get(..8)? else { return None };
            let port = u16::from_be_bytes([high ^ COOKIE[0], low ^ COOKIE[1]]);
            let ip = Ipv4Addr::from([a ^ COOKIE[0], b ^ COOKIE[1], c ^ COOKIE[2], d ^ COOKIE[3]]);
            return Some(SocketAddr::new(IpAddr::V4(ip), port));
        }
        rest = value.get(length.next_multiple_of(4)..)?;
    }
}
