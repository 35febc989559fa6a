//! Names, as the resolvers of two libcs see them in pods with an agent.

use peerage_e2e_pods::cluster::until;
use peerage_e2e_pods::failed::{Failed, Trying, ensure};
use peerage_e2e_pods::processes;
use peerage_e2e_pods::stage::{REPORTER, SIDECAR, Stage, pod, restricted};

const CLIENTS: [&str; 2] = ["/bin/client-glibc", "/bin/client-musl"];

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
            ("kube-dns.kube-system.svc.cluster.local", "10.96.0.10"),
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
    figures["metadata"]["annotations"] = serde_json::json!({"peerage.dev/inject": "false"});
    let service = |name: &str, ip: Option<&str>| {
        let spec = serde_json::json!({"clusterIP": ip, "selector": {"app": "figures"}, "ports": [{"port": 8080}]});
        let metadata = serde_json::json!({"name": name, "namespace": "reports"});
        serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
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

/// The agent is killed, as the kernel does it to who takes too much memory.
pub fn while_the_agent_is_dead(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let pods = cluster.get("pods -n reports -l app=reporter")?;
    let uid = pods["items"][0]["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let mut running = Vec::new();
    for client in CLIENTS {
        for name in ["db", "kubernetes.default.svc"] {
            running.push((client, name, cluster.begin(REPORTER, &[client, "gap", name, "10"])?));
        }
    }
    let killed = processes::find(&uid, SIDECAR)?;
    processes::kill(&killed)?;
    let mut gaps = Vec::new();
    for (client, name, running) in running {
        let gap: u32 = running.end()?.parse().trying("read a time")?;
        gaps.push((client.trim_start_matches("/bin/client-"), name, gap));
    }
    ensure(processes::find(&uid, SIDECAR)? != killed, || "the agent is the one that was killed".into())?;
    let said: Vec<String> = gaps.iter().map(|(client, name, gap)| format!("{gap} ms {client} {name}")).collect();
    ensure(gaps.iter().all(|(_, _, gap)| *gap <= 1000), || format!("no answer for {}", said.join(", ")))?;
    let body = cluster.exec(REPORTER, &[CLIENTS[0], "get", "db", "80", "/"])?;
    ensure(body.starts_with("db-tool-"), || format!("afterwards db says {body}"))?;
    Ok(format!("no answer for {}, and the restarted agent reaches its peer", said.join(", ")))
}
