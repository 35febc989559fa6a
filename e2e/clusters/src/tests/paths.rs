//! How connections travel between the two clusters, whatever their NATs are.

use peerage_e2e_pods::cluster::until;
use peerage_e2e_pods::stage::SYSTEM;
use peerage_netlab::kernel::Network;
use peerage_suite::failed::{Failed, Trying as _, ensure};
use serde_json::Value;

use super::REPORTER;
use crate::stage::Stage;

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
    cluster.condition("agentlink hub", "Connected", "True", None)?;
    change(Network::SymmetricRandom)?;
    let back = stage.branch.load(REPORTER, "db:80", 300, 5, 1)?;
    ensure(back["failed"] == 0, || format!("with UDP again {back}"))?;
    Ok(format!("running pods {running}; pods and operators that started without UDP {started}; with UDP again {back}"))
}
