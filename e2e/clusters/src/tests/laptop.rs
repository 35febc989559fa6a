//! A machine on its own, behind a NAT of its own: its ticket in a cluster, and a cluster's ticket on it.

use std::io::{BufRead as _, BufReader};
use std::process::ChildStdout;
use std::time::{Duration, Instant};

use peerage_e2e::kernel::Place;
use peerage_e2e::{Agent, Running};
use peerage_e2e_pods::cluster::until;
use peerage_netlab::kernel::{Network, SiteConfig};
use peerage_suite::failed::{Failed, Trying as _, ensure};
use serde_json::Value;

use super::{REPORTER, lives, revocation};
use crate::stage::Stage;

/// What a machine's server says to whoever asks.
const HELLO: &str = "hello";
/// A request that is answered without end; `hold` puts a line's end behind it.
const DRIP: &str = "GET /drip HTTP/1.0\r\n\r";
/// The branch's consent to the laptop.
const OF_BRANCH: &str = "reporter-laptop-laptop -n reports";
/// A stream that ends later than this was not ended by who took its trust back.
const RESET: Duration = Duration::from_secs(10);
/// What a machine says of who took its trust back.
const REVOKED: &str = "the peer revoked its trust";
/// curl's word for a connection that was reset while it read: CURLE_RECV_ERROR.
const RECEIVED_A_RESET: i32 = 56;

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
    answers(stage)?;
    rotates(stage, agent)?;
    let told = stage.branch.trust(OF_BRANCH, |trust| !trust["status"]["path"].is_null())?;
    let path = told["status"]["path"].as_str().unwrap_or_default().to_owned();
    let open = revocation::open(stage, "laptop:80", DRIP)?;
    let begun = Instant::now();
    let revoked = agent.ask(&["revoke", "reporter.reports", "--wait"]).trying("revoke")?;
    let end: Value = serde_json::from_str(&open.end()?).trying("read how a stream ended")?;
    let took = begun.elapsed();
    ensure(end["how"] == "ConnectionReset" && took < RESET, || format!("a pod's stream ended otherwise: {end}"))?;
    ensure(revoked["streams_reset"].as_u64() > Some(0), || format!("the laptop reset nothing: {revoked}"))?;
    stage.branch.cluster().condition(&format!("agenttrust {OF_BRANCH}"), "Ready", "False", Some("WaitingForPeer"))?;
    let later = stage.branch.cluster().exec(REPORTER, &["app", "get", "laptop:80"]);
    ensure(later.is_err(), || format!("the laptop answers after its owner revoked: {later:?}"))?;
    Ok(format!(
        "a pod of the branch is answered by the laptop ({path}), also by the laptop's next keys; its open stream is reset {} ms after the laptop's owner revoked, and \
         Ready says WaitingForPeer",
        took.as_millis()
    ))
}

/// A pod of the branch is answered by the laptop.
fn answers(stage: &Stage) -> Result<(), Failed> {
    let mut body = String::new();
    let answered = until(|| {
        let got = stage.branch.cluster().exec(REPORTER, &["app", "get", "laptop:80"]);
        body = got.unwrap_or_else(|failed| failed.to_string());
        Ok(body == HELLO)
    })?;
    ensure(answered, || format!("a pod asks the laptop, and gets {body}"))
}

/// The laptop's former keys end at once. The branch hears of the next ones from the pod that is connected, so that an agent that
/// starts again is answered by them.
fn rotates(stage: &Stage, agent: &Agent) -> Result<(), Failed> {
    let newest = || {
        let link = stage.branch.cluster().get("agentlink laptop")?;
        Ok(link["status"]["authorityRecords"][0].clone())
    };
    let before = newest()?;
    let rotated = agent.ask(&["rotate", "--at-once"]).trying("rotate")?;
    let heard = until(|| Ok(newest()? != before))?;
    ensure(heard, || format!("the branch has not heard of the laptop's next keys, and the laptop says {rotated}"))?;
    lives::kill_agent(&stage.branch, "reports", "reporter")?;
    answers(stage)
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
    let (mut curl, lines) = drip(agent)?;
    let begun = Instant::now();
    stage.hub.cluster().kubectl("delete agenttrust db-laptop-laptop -n tools")?;
    // What comes is read until nothing comes any more: the end of curl's output is the end of curl.
    let rest = lines.lines().map_while(Result::ok).count();
    let status = curl.wait()?;
    let took = begun.elapsed();
    let was_reset = status.code() == Some(RECEIVED_A_RESET) && took < RESET;
    ensure(was_reset, || {
        format!("curl on the laptop ended otherwise, {rest} lines later: {status}; {}", agent.log("curl"))
    })?;
    let db = |status: &Value| status["peers"].as_array()?.iter().find(|peer| peer["name"] == "db").cloned();
    let is_out = |status: &Value| db(status).is_some_and(|db| db["why"] == REVOKED);
    let ended = db(&agent.until_status("db is not connected any more, and why", is_out)?).unwrap_or_default();
    let later = agent.curl(&["--max-time", "3", "http://db/"]).trying("run curl")?;
    ensure(!later.status.success(), || "the hub's pod answers the laptop after its owner deleted the trust".into())?;
    Ok(format!(
        "the laptop is answered by a pod of the hub; its open stream is reset {} ms after the start of `kubectl delete` there, and the laptop \
         says of it: {}, {}",
        took.as_millis(),
        ended["state"],
        ended["why"]
    ))
}

/// An answer without end, which a program on the laptop has begun to read.
fn drip(agent: &Agent) -> Result<(Running, BufReader<ChildStdout>), Failed> {
    let words = ["run", "--", "curl", "-sS", "--no-buffer", "http://db/drip"];
    let mut curl = agent.start(agent.peerage(&words), "curl").trying("start curl")?;
    let mut lines = BufReader::new(curl.stdout());
    let mut first = String::new();
    lines.read_line(&mut first).trying("read from curl")?;
    ensure(first == "drip\n", || format!("curl says `{first}`: {}", agent.log("curl")))?;
    Ok((curl, lines))
}
