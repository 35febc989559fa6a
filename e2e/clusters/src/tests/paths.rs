//! How connections travel between the two clusters, whatever their NATs are.

use peerage_e2e_pods::cluster::until;
use peerage_e2e_pods::stage::{SYSTEM, agent};
use peerage_netlab::kernel::Network;
use peerage_suite::failed::{Failed, Trying as _, ensure};
use serde_json::Value;

use super::REPORTER;
use crate::stage::Stage;

/// The agent beside that client.
const AGENT: &str = "-n reports deploy/reporter -c peerage-agent";

/// Two NATs that give every destination another random port: no direct path can exist, and nobody notices.
pub fn both_symmetric(stage: &Stage) -> Result<String, Failed> {
    let direct = |stage: &Stage| {
        let lab = &stage.world.borrow().lab;
        lab.bytes(&stage.branch.site, &stage.hub.site).trying("count packets")
    };
    let before = direct(stage)?;
    let counts = stage.branch.load(REPORTER, "db:80", 500, 2, 0)?;
    ensure(counts["failed"] == 0, || format!("requests were lost: {counts}"))?;
    let told = stage.branch.trust("reporter-uses-db -n reports", |trust| trust["status"]["path"] == "Relayed")?;
    stage.hub.trust("db-serves-reporter -n tools", |trust| trust["status"]["path"] == "Relayed")?;
    // Tries to find a way are counted here, too; 500 requests with their answers are more than 100 kB.
    let past = direct(stage)? - before;
    ensure(past < 50_000, || format!("{past} bytes went past the relay, and {told} says Relayed"))?;
    Ok(format!("both sides say Relayed, and {past} bytes went from gateway to gateway meanwhile: {counts}"))
}

/// One cluster's network lets no UDP out. What runs goes on by TLS on TCP 443, what starts starts by it, and when UDP is
/// back nobody notices.
pub fn udp_blocked(stage: &Stage) -> Result<String, Failed> {
    let change = |network| stage.world.borrow().lab.change_network(&stage.branch.site, network).trying("change a NAT");
    let cluster = stage.branch.cluster();
    change(Network::UdpBlocked)?;
    let mut first = Value::Null;
    let again = until(|| {
        first = stage.branch.load(REPORTER, "db:80", 1, 0, 0)?;
        Ok(first["failed"] == 0)
    })?;
    ensure(again, || format!("without UDP {first}"))?;
    let running = stage.branch.load(REPORTER, "db:80", 300, 5, 0)?;
    ensure(running["failed"] == 0, || format!("without UDP {running}"))?;
    for what in ["deployment/reporter -n reports", &format!("deployment/peerage-operator -n {SYSTEM}")] {
        cluster.kubectl(&format!("rollout restart {what}"))?;
        cluster.kubectl(&format!("rollout status {what} --timeout=180s"))?;
    }
    let started = stage.branch.load(REPORTER, "db:80", 300, 5, 1)?;
    ensure(started["failed"] == 0, || format!("a pod that started without UDP {started}"))?;
    let relays = by_tls(stage)?;
    operators_talk(stage)?;
    change(Network::SymmetricRandom)?;
    let back = stage.branch.load(REPORTER, "db:80", 300, 5, 1)?;
    ensure(back["failed"] == 0, || format!("with UDP again {back}"))?;
    Ok(format!(
        "running pods {running}; pods and operators that started without UDP {started}, with the relays by TLS: {relays}; an operator that \
         started without UDP told the other of a wish; with UDP again {back}"
    ))
}

/// The agent of the reporter's pod has its relays by TLS, and none by UDP.
fn by_tls(stage: &Stage) -> Result<Value, Failed> {
    let mut relays = Value::Null;
    let so = until(|| {
        let said = stage.branch.cluster().exec(AGENT, &["/peerage-agent", "ask", "status"])?;
        let mut status: Value = serde_json::from_str(&said).trying("read an agent's status")?;
        relays = status["relays"].take();
        let all = relays.as_array().filter(|all| !all.is_empty());
        Ok(all.is_some_and(|all| all.iter().all(|relay| relay["up"] == true && relay["tls"] == true)))
    })?;
    ensure(so, || format!("without UDP an agent has the relays {relays}"))?;
    stage.branch.trust("reporter-uses-db -n reports", |trust| trust["status"]["path"] == "Relayed")?;
    Ok(relays.as_array().into_iter().flatten().map(|relay| relay["relay"].clone()).collect())
}

/// Conditions may still say what was so before. A wish that is made at this moment reaches the other cluster only if operators talk,
/// and so does that it was taken back.
fn operators_talk(stage: &Stage) -> Result<(), Failed> {
    let asker = agent("asker", "reports", &[]);
    let wish = stage.branch.trust_across(&stage.hub, "reports", "asker", "db.tools", &[])?;
    stage.branch.cluster().apply(&[asker, wish])?;
    asked(stage, true)?;
    stage.branch.cluster().kubectl("delete agentpeer/asker agenttrust/asker-db -n reports")?;
    asked(stage, false)
}

/// Whether the hub has a request of the branch's `asker`.
fn asked(stage: &Stage, wanted: bool) -> Result<(), Failed> {
    let mut requests = Value::Null;
    let so = until(|| {
        requests = stage.hub.cluster().get("agenttrustrequests -n tools")?["items"].take();
        let mut all = requests.as_array().into_iter().flatten();
        Ok(all.any(|one| one["spec"]["from"]["name"] == "asker.reports") == wanted)
    })?;
    ensure(so, || format!("the operators do not talk: the hub has the requests {requests}"))
}
