//! A machine on its own, behind a NAT of its own: its ticket in a cluster, and a cluster's ticket on it.

use peerage_e2e::Agent;
use peerage_e2e::kernel::Place;
use peerage_e2e_pods::cluster::until;
use peerage_netlab::kernel::{Network, SiteConfig};
use peerage_suite::failed::{Failed, Trying as _, ensure};

use super::REPORTER;
use crate::stage::Stage;

/// What a machine's server says to whoever asks.
const HELLO: &str = "hello";

/// Pods of the branch reach a program on the laptop by the laptop's own invitation, and the laptop reaches a pod of the hub by
/// the cluster's; each owner takes it back.
pub fn both_ways(stage: &Stage) -> Result<String, Failed> {
    let (_place, agent) = laptop(stage)?;
    let mut said = vec![invites(stage, &agent)?];
    said.push(is_invited(stage, &agent)?);
    Ok(said.join("; "))
}

fn laptop(stage: &Stage) -> Result<(Place, Agent), Failed> {
    let mut world = stage.world.borrow_mut();
    let place = world.server("laptop", &SiteConfig::new(Network::PortRestricted)).trying("make a laptop")?;
    let agent = world.start_bound(&place).trying("start the laptop's agent")?;
    Ok((place, agent))
}

/// `peerage invite` on the laptop, an AgentLink in the branch, and the laptop's owner says yes.
fn invites(stage: &Stage, agent: &Agent) -> Result<String, Failed> {
    let before = agent.mark();
    let invited = agent.ask(&["invite"]).trying("invite")?;
    let ticket = invited["ticket"].as_str().ok_or_else(|| Failed::new("no ticket in the answer"))?;
    let link = "kubectl peerage --context branch link laptop --ticket - --namespaces reports --wait";
    stage.shell(&format!("{link} <<<{ticket}"))?;
    let trust = "kubectl peerage --context branch trust reporter laptop --link laptop -n reports --purpose drafts";
    stage.shell(trust)?;
    let (_, asked) = agent.wait_for(before, "request", |_| true).trying("hear of a request")?;
    ensure(asked["name"] == "reporter.reports" && asked["reason"] == "drafts", || {
        format!("the laptop is asked {asked}")
    })?;
    agent.ask(&["approve", "reporter.reports"]).trying("approve")?;
    let mut body = String::new();
    let answered = until(|| {
        let got = stage.branch.cluster().exec(REPORTER, &["app", "get", "laptop:80"]);
        body = got.unwrap_or_else(|failed| failed.to_string());
        Ok(body == HELLO)
    })?;
    ensure(answered, || format!("a pod asks the laptop, and gets {body}"))?;
    let told = stage.branch.trust("reporter-laptop-laptop -n reports", |trust| !trust["status"]["path"].is_null())?;
    let path = told["status"]["path"].as_str().unwrap_or_default().to_owned();
    agent.ask(&["revoke", "reporter.reports", "--wait"]).trying("revoke")?;
    let refused = until(|| Ok(stage.branch.cluster().exec(REPORTER, &["app", "get", "laptop:80"]).is_err()))?;
    ensure(refused, || "the laptop answers after its owner revoked".into())?;
    Ok(format!("a pod of the branch is answered by the laptop ({path}), and not after the laptop's owner revoked"))
}

/// `kubectl peerage invite` in the hub, `peerage handshake` on the laptop, and the hub's owner consents.
fn is_invited(stage: &Stage, agent: &Agent) -> Result<String, Failed> {
    let ticket = stage.shell("kubectl peerage --context hub invite laptop --namespaces tools")?;
    let said = agent.attempt(&["handshake", &ticket, "to read figures"]).trying("shake hands")?;
    ensure(!said.status.success() && said.said().contains("--to"), || {
        format!("whom the laptop wants: {}", said.said())
    })?;
    agent.ask(&["handshake", &ticket, "to read figures", "--to", "db.tools", "--as", "db"]).trying("shake hands")?;
    stage.hub.cluster().condition("agentlink laptop", "Connected", "True", None)?;
    stage.shell("kubectl peerage --context hub trust db laptop --link laptop -n tools --open mcp")?;
    let mut body = String::new();
    let answered = until(|| {
        let got = agent.curl(&["http://db/"]).trying("run curl")?;
        body = got.said();
        Ok(got.status.success() && got.stdout.starts_with("db-"))
    })?;
    ensure(answered, || format!("the laptop asks a pod, and gets {body}"))?;
    stage.hub.cluster().kubectl("delete agenttrust db-laptop-laptop -n tools")?;
    let refused = until(|| Ok(!agent.curl(&["http://db/"]).trying("run curl")?.status.success()))?;
    ensure(refused, || "the hub's pod answers the laptop after its owner deleted the trust".into())?;
    Ok("the laptop is answered by a pod of the hub, and not after the hub's owner deleted its AgentTrust".into())
}
