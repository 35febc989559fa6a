//! Names, as the resolvers of two libcs see them in pods with an agent.

use std::time::Instant;

use peerage_e2e_pods::cluster::until;
use peerage_e2e_pods::failed::{Failed, Trying, ensure};
use peerage_e2e_pods::processes;
use peerage_e2e_pods::stage::{REPORTER, SIDECAR, Stage, pod, restricted};
use serde_json::json;

const CLIENTS: [&str; 2] = ["/bin/client-glibc", "/bin/client-musl"];
/// Where `scripts/kube` has it.
const CLUSTER_DNS: &str = "10.96.0.10";
/// In milliseconds: within this DNS has to go on after the agent was killed.
const SECOND: u64 = 1000;

/// Peers by name, and everything else as before: Services, headless names, names outside, names that do not exist.
pub fn in_the_same_pods(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let figures = figures(stage)?;
    for client in CLIENTS {
        let ask = |name: &str| cluster.exec(REPORTER, &[client, "resolve", name]);
        for name in ["db", "db-tool-server.tools.peer.internal"] {
            let found = ask(name)?;
            ensure(found.starts_with("127."), || format!("{client}: {name} is {found}"))?;
            let body = cluster.exec(REPORTER, &[client, "get", name, "80", "/"])?;
            ensure(body.starts_with("db-tool-"), || format!("{client}: {name} says {body}"))?;
        }
        let service = cluster.kubectl("get service figures -n reports -o jsonpath={.spec.clusterIP}")?;
        let expected = [
            ("kubernetes.default.svc", "10.96.0.1"),
            ("kube-dns.kube-system.svc.cluster.local", CLUSTER_DNS),
            ("figures", service.as_str()),
            ("figures.reports", service.as_str()),
            ("figures-pods", figures.as_str()),
            ("www.example.com", "203.0.113.10"),
            ("www.example.com.", "203.0.113.10"),
        ];
        for (name, address) in expected {
            let found = ask(name)?;
            ensure(found == address, || format!("{client}: {name} is {found} instead of {address}"))?;
        }
        for name in ["nobody.example.org", "stranger", "stranger.tools.peer.internal"] {
            ensure(ask(name).is_err(), || format!("{client}: {name} resolves"))?;
        }
        let body = cluster.exec(REPORTER, &[client, "get", "figures", "8080", "/"])?;
        ensure(body.starts_with("figures answers 10."), || format!("{client}: the Service says {body}"))?;
    }
    let body = cluster.exec(REPORTER, &["wget", "-q", "-O", "-", "http://db/"])?;
    ensure(body.starts_with("db-tool-"), || format!("busybox: {body}"))?;
    Ok("two names of a peer, a Service, a headless one, the API server, cluster DNS, a name outside and three that are none; with glibc, musl and busybox".into())
}

/// A server that is no agent, behind a Service and a headless one; its address.
fn figures(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let mut figures =
        pod("figures", "reports", "figures", &restricted(&stage.container(&["app", "serve", "0.0.0.0:8080"], &[8080])));
    figures["metadata"]["annotations"] = json!({"peerage.dev/inject": "false"});
    let service = |name: &str, ip: Option<&str>| {
        let spec = json!({"clusterIP": ip, "selector": {"app": "figures"}, "ports": [{"port": 8080}]});
        let metadata = json!({"name": name, "namespace": "reports"});
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    };
    cluster.apply(&[figures, service("figures", None), service("figures-pods", Some("None"))])?;
    cluster.kubectl("wait -n reports pod/figures --for=condition=Ready --timeout=60s")?;
    let address = cluster.kubectl("get pod figures -n reports -o jsonpath={.status.podIP}")?;
    // kube-proxy and cluster DNS follow the pod's readiness by themselves.
    let served = || Ok(cluster.exec(REPORTER, &[CLIENTS[0], "get", "figures", "8080", "/"]).is_ok());
    ensure(until(served)?, || "the Service figures does not answer".into())?;
    let listed = || Ok(cluster.exec(REPORTER, &[CLIENTS[0], "resolve", "figures-pods"]).is_ok());
    ensure(until(listed)?, || "the headless Service has no address".into())?;
    Ok(address)
}

/// The agent is killed, as the kernel does it to who takes too much memory: no look-up fails, and none takes a second.
pub fn while_the_agent_is_dead(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let uid = cluster.kubectl("get pods -n reports -l app=reporter -o jsonpath={.items[0].metadata.uid}")?;
    let mut running = Vec::new();
    for client in CLIENTS {
        for name in ["db", "kubernetes.default.svc"] {
            running.push((client, name, cluster.begin(REPORTER, &[client, "steadily", name, "10"])?));
        }
    }
    let killed = processes::find(&uid, SIDECAR)?;
    processes::kill(&killed)?;
    let mut told = Vec::new();
    for (client, name, running) in running {
        let said = running.end()?;
        let counts: Vec<u64> = said.split(' ').map(str::parse).collect::<Result<_, _>>().trying("read counts")?;
        let &[count, failed, slowest] = counts.as_slice() else {
            return Err(Failed::new(format!("{client} says {said}")));
        };
        ensure(count > 0 && failed == 0 && slowest <= SECOND, || {
            format!("{client}: of {count} look-ups of {name} {failed} failed, and the slowest took {slowest} ms")
        })?;
        told.push(format!("{slowest} ms of {count} {name} {}", short(client)));
    }
    ensure(processes::find(&uid, SIDECAR)? != killed, || "the agent is the one that was killed".into())?;
    let body = cluster.exec(REPORTER, &[CLIENTS[0], "get", "db", "80", "/"])?;
    ensure(body.starts_with("db-tool-"), || format!("afterwards db says {body}"))?;
    Ok(format!("no look-up failed, the slowest took {}, and the restarted agent reaches its peer", told.join(", ")))
}

/// A question that the agent has passed on when it is killed: the next agent asks again, long before the program would.
/// The upstream answers nobody who asks once.
pub fn look_up_in_flight(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let mut server = restricted(&stage.container(&["app", "forgetful-dns", "0.0.0.0:53"], &[]));
    server["securityContext"]["sysctls"] = json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]);
    let mut server = pod("forgetful", "reports", "forgetful", &server);
    server["metadata"]["annotations"] = json!({"peerage.dev/inject": "false"});
    cluster.apply(&[server])?;
    cluster.kubectl("wait -n reports pod/forgetful --for=condition=Ready --timeout=60s")?;
    let address = cluster.kubectl("get pod forgetful -n reports -o jsonpath={.status.podIP}")?;
    let mut asked = cluster.watch(&["logs", "-n", "reports", "forgetful", "--follow"])?;
    asked.line()?; // that it answers

    let mut patient = restricted(&stage.container(&["app", "sleep"], &[]));
    patient["dnsPolicy"] = json!("None");
    // The second is asked what the first one refuses, such as where operators are.
    patient["dnsConfig"] = json!({"nameservers": [address, CLUSTER_DNS], "searches": ["cluster.local"]});
    cluster.apply(&[pod("patient", "reports", "reporter", &patient)])?;
    cluster.kubectl("wait -n reports pod/patient --for=condition=Ready --timeout=60s")?;
    let uid = cluster.kubectl("get pod patient -n reports -o jsonpath={.metadata.uid}")?;
    let mut told = Vec::new();
    for client in CLIENTS {
        let agent = processes::find(&uid, SIDECAR)?;
        let name = format!("{}.test.", short(client));
        let asking = cluster.begin("-n reports patient -c app", &[client, "once", &name])?;
        asked.line()?;
        asked.line()?; // for both families
        let begun = Instant::now();
        processes::kill(&agent)?;
        asking.end()?;
        let took = begun.elapsed().as_millis();
        ensure(took <= SECOND.into(), || format!("{client} was answered {took} ms after the agent was killed"))?;
        told.push(format!("{took} ms {}", short(client)));
    }
    cluster.kubectl("delete pods -n reports patient forgetful --wait=false")?;
    Ok(format!("answered {} after the agent was killed that had passed the question on", told.join(", ")))
}

/// A pod that serves DNS itself, so that the agent cannot: its hosts file has the peers, its DNS is the cluster's.
pub fn by_hosts_file(stage: &Stage) -> Result<String, Failed> {
    const POD: &str = "-n reports nameserver -c app";
    let cluster = &stage.cluster;
    let serve = stage.container(&["app", "serve", "0.0.0.0:53"], &[53]);
    let mut own = pod("nameserver", "reports", "reporter", &restricted(&serve));
    own["metadata"]["annotations"] = json!({"peerage.dev/dns": "HostAliases"});
    cluster.apply(&[own])?;
    cluster.kubectl("wait -n reports pod/nameserver --for=condition=Ready --timeout=60s")?;
    let servers = cluster.exec(POD, &["grep", "nameserver", "/etc/resolv.conf"])?;
    ensure(servers == format!("nameserver {CLUSTER_DNS}"), || format!("its DNS is {servers}"))?;
    let address = cluster.exec(REPORTER, &[CLIENTS[0], "resolve", "db"])?;
    for client in CLIENTS {
        let ask = |name: &str| cluster.exec(POD, &[client, "resolve", name]);
        for name in ["db", "db.peer.internal", "db-tool-server.tools.peer.internal"] {
            let found = ask(name)?;
            ensure(found == address, || format!("{client}: {name} is {found}, and {address} in a pod with our DNS"))?;
            let body = cluster.exec(POD, &[client, "get", name, "80", "/"])?;
            ensure(body.starts_with("db-tool-"), || format!("{client}: {name} says {body}"))?;
        }
        let found = ask("kubernetes.default.svc")?;
        ensure(found == "10.96.0.1", || format!("{client}: the API server is at {found}"))?;
        ensure(ask("stranger").is_err(), || format!("{client}: a stranger resolves"))?;
    }
    let body = cluster.exec(POD, &["wget", "-q", "-O", "-", "http://db/"])?;
    ensure(body.starts_with("db-tool-"), || format!("busybox: {body}"))?;
    cluster.kubectl("delete pod nameserver -n reports --wait=false")?;
    Ok(format!(
        "three names of the peer at {address}, as in a pod with our DNS, cluster DNS, and the pod's own port 53"
    ))
}

fn short(client: &str) -> &str {
    client.trim_start_matches("/bin/client-")
}
