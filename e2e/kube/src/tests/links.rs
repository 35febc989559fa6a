//! Two clusters that have never heard of each other: an invitation, a link, a request, an approval; then a program of one
//! reaches a program of the other by name, until an owner has enough. Everything that people do goes through `kubectl
//! peerage`, as they would type it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Stage, object, peer};
use crate::api::{Api, Todo, ours};
use crate::audit;
use crate::cluster::{Cluster, PATIENCE, until};
use crate::failed::{Failed, Trying, ensure};
use crate::fleet::{self, Fleet, Known};
use crate::linked::Second;
use crate::operator::{NAMESPACE, TICKETS};
use crate::pair::Stream;

/// Wishes that a cluster has at once: many times what it may ask of one namespace.
const WISHES: usize = 300;
/// Requests of one link that may wait in one namespace.
pub(super) const REQUESTS: usize = 20;
/// A reset that took longer than this was none of the deletion's.
const RESET: Duration = Duration::from_secs(10);

pub(super) fn links(stage: &Stage) -> Result<String, Failed> {
    let (first, pair) = (&stage.cluster, stage.pair()?);
    // Its agents find each other at the relay that this one uses, whichever test made it.
    first.kubectl("wait agentrelay/main --for=condition=Ready --timeout=60s")?;
    let mut second = Second::start(stage)?;
    let begun = Instant::now();
    let ticket = invite(stage, first)?;
    link(stage, first, &second, &ticket)?;
    let linked = begun.elapsed();
    asked_in_vain(stage, &second)?;

    plugin(
        stage,
        &second.cluster,
        &["trust", "reporter", "db.tools", "--link", "hub", "-n", "reports", "--purpose", "figures"],
        "",
    )?;
    let request = request(first)?;
    second.cluster.condition("agenttrust reporter-db-tools-hub -n reports", "Ready", "False", "WaitingForPeer")?;
    plugin(stage, first, &["approve", &request, "-n", "tools", "--open", "mcp", "--as", "branch-reporter"], "")?;
    let answered = until(|| Ok(second.reporter.fetch("db").is_ok_and(|body| body == "hello")))?;
    ensure(answered, || {
        format!("http://db/ is not answered across clusters: {}\n{}", second.reporter.agent.log(), pair.db.agent.log())
    })?;
    let whole = begun.elapsed();
    second.cluster.kubectl("wait -n reports agenttrust/reporter-db-tools-hub --for=condition=Ready --timeout=60s")?;
    no_request(first)?;

    rejected(stage, &second)?;
    followed(first, &second)?;
    relays_overlap(first, &second)?;
    let asked = flooded(stage, &second)?;
    let reset = revoked(stage, &second)?;
    revoked_and_waited(stage, &second)?;
    let denied = denied(stage, &mut second)?;
    let unlinked = unlinked(stage, &second)?;
    audit::none_refused(&second.cluster)?;
    Ok(format!(
        "linked {} ms after the invitation, answered by name after {} ms; a deleted trust resets a stream after {} ms, a deleted link after {} ms; a deleted \
         pod's instance is refused over there after {} ms; of {WISHES} wishes at once {asked} became requests; no ticket stays, and an agent that is not there is asked like one that does not answer",
        linked.as_millis(),
        whole.as_millis(),
        reset.as_millis(),
        unlinked.as_millis(),
        denied.as_millis(),
    ))
}

/// The ticket of the first cluster; nothing that could stand in for it is in any object but the Secret.
fn invite(stage: &Stage, first: &Cluster) -> Result<String, Failed> {
    let said = plugin(stage, first, &["invite", "branch", "--namespaces", "tools"], "")?;
    let ticket = said["ticket"].as_str().unwrap_or_default().to_owned();
    ensure(ticket.starts_with("peerage1-"), || format!("the invitation says {said}"))?;
    let secrets = first.kubectl(&format!("get secrets,configmaps -n {NAMESPACE} -o json"))?;
    let encoded = data_encoding::BASE64.encode(ticket.as_bytes());
    ensure(!secrets.contains(&ticket) && !secrets.contains(&encoded), || "the ticket itself is stored".into())?;
    Ok(ticket)
}

fn link(stage: &Stage, first: &Cluster, second: &Second, ticket: &str) -> Result<(), Failed> {
    let arguments = ["link", "hub", "--ticket", "-", "--namespaces", "reports", "--wait=60s"];
    plugin(stage, &second.cluster, &arguments, ticket)
        .map_err(|failed| Failed::new(format!("{failed}\n{}", second.log())))?;
    first.condition("agentlink branch", "Connected", "True", "AsDeclared")?;
    let made = first.get("agentlink branch")?.unwrap_or(Value::Null);
    let namespaces = json!({"from": "Selected", "names": ["tools"]});
    ensure(made["spec"]["allowedNamespaces"] == namespaces, || format!("the invitation's link is {made}"))?;
    ensure(made["spec"]["authority"] == second.authority()?.as_str(), || {
        format!("the link is not of who came: {made}")
    })?;
    let open = first.get(&format!("secret peerage-invitations -n {NAMESPACE}"))?.unwrap_or(Value::Null);
    let is_used = open["data"].as_object().is_none_or(serde_json::Map::is_empty);
    ensure(is_used, || "the invitation is open after it was used".into())?;
    // What was learned is written down: the ticket is needed for nothing any more.
    second.cluster.kubectl(&format!("delete secret {TICKETS} -n {NAMESPACE}"))?;
    Ok(())
}

/// Who asks for what is not there, or not permitted, sees what it sees when somebody does not answer. That no request came of
/// it shows once a later one has.
fn asked_in_vain(stage: &Stage, second: &Second) -> Result<(), Failed> {
    // The reporter of the first cluster is there, in a namespace that the invitation did not name.
    for (wanted, alias) in [("nobody.tools", "nobody"), ("reporter.reports", "namesake")] {
        let name = format!("reporter-{}-hub", wanted.replace('.', "-"));
        plugin(
            stage,
            &second.cluster,
            &["trust", "reporter", wanted, "--link", "hub", "-n", "reports", "--as", alias],
            "",
        )?;
        second.cluster.condition(&format!("agenttrust {name} -n reports"), "Ready", "False", "WaitingForPeer")?;
    }
    Ok(())
}

/// The one request of all namespaces, once it is there; its name.
fn request(first: &Cluster) -> Result<String, Failed> {
    let mut found = Value::Null;
    let there = until(|| {
        found = first.get("agenttrustrequests -A")?.unwrap_or(Value::Null);
        Ok(found["items"].as_array().is_some_and(|items| items.len() == 1))
    })?;
    ensure(there, || format!("expected one request, found {found}"))?;
    let spec = &found["items"][0]["spec"];
    let is_right = spec["agentRef"]["name"] == "db"
        && spec["from"]["name"] == "reporter.reports"
        && spec["from"]["linkRef"]["name"] == "branch"
        && spec["reason"] == "figures";
    ensure(is_right, || format!("the request says {spec}"))?;
    let name = found["items"][0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    first.condition(&format!("agenttrustrequest {name} -n tools"), "Answered", "False", "Pending")?;
    Ok(name)
}

/// Whoever was agreed to does not ask any more.
fn no_request(first: &Cluster) -> Result<(), Failed> {
    let mut found = Value::Null;
    let gone = until(|| {
        found = first.get("agenttrustrequests -A")?.unwrap_or(Value::Null);
        Ok(found["items"].as_array().is_none_or(Vec::is_empty))
    })?;
    ensure(gone, || format!("a request stays after it was approved: {found}"))
}

/// An owner says no, and is not asked again while the other side still wishes for it.
fn rejected(stage: &Stage, second: &Second) -> Result<(), Failed> {
    second.cluster.apply(&peer("planner", "reports"))?;
    plugin(stage, &second.cluster, &["trust", "planner", "db.tools", "--link", "hub", "-n", "reports"], "")?;
    let mut name = String::new();
    let asked = until(|| {
        let requests = plugin_lines(stage, &stage.cluster, &["requests", "-n", "tools"])?;
        name = requests.first().and_then(|one| one["name"].as_str()).unwrap_or_default().to_owned();
        Ok(!name.is_empty())
    })?;
    ensure(asked, || "planner's wish did not become a request".into())?;
    plugin(stage, &stage.cluster, &["reject", &name, "-n", "tools"], "")?;
    stage.cluster.condition(&format!("agenttrustrequest {name} -n tools"), "Answered", "True", "Rejected")?;
    // Another leader knows it as well, since it is written down.
    stage.restart_operators()?;
    stage.cluster.condition("agentlink branch", "Connected", "True", "AsDeclared")?;
    let requests = plugin_lines(stage, &stage.cluster, &["requests", "-A"])?;
    let is_one = requests.len() == 1 && requests[0]["rejected"] == true;
    ensure(is_one, || format!("after the operator began anew there are the requests {requests:?}"))?;
    second.cluster.kubectl("delete agenttrust planner-db-tools-hub -n reports")?;
    // It stays for its week although nobody wishes for it, or who took the wish back could ask again.
    stage.cluster.kubectl(&format!("delete agenttrustrequest {name} -n tools"))?;
    no_request(&stage.cluster)
}

/// New keys of the other authority arrive by themselves, and nothing that flows notices.
fn followed(first: &Cluster, second: &Second) -> Result<(), Failed> {
    let stream = second.reporter.open_stream("db")?;
    second.cluster.kubectl(&format!("annotate secret peerage-authority -n {NAMESPACE} peerage.dev/rotate=now"))?;
    let mut records = Value::Null;
    let there = until(|| {
        records =
            first.get("agentlink branch")?.map_or(Value::Null, |mut link| link["status"]["authorityRecords"].take());
        Ok(records.as_array().is_some_and(|records| records.len() == 2))
    })?;
    ensure(there, || format!("the link knows the records {records} after a rotation"))?;
    stream.flows()
}

/// Relays of the other cluster that come and go: those from before count for a while beside those that there are.
fn relays_overlap(first: &Cluster, second: &Second) -> Result<(), Failed> {
    let told = |name: &str| {
        let link = first.get("agentlink branch")?.unwrap_or(Value::Null);
        let relays = link["status"]["relays"].as_array().cloned().unwrap_or_default();
        Ok(relays.iter().any(|relay| relay.as_str().is_some_and(|relay| relay.contains(name))))
    };
    let add = |name: &str, digit: &str| {
        let address = format!("{}q@{name}.example:3478", digit.repeat(51));
        let spec = json!({"address": address, "allowedNamespaces": {"from": "All"}});
        second.cluster.apply(&object("AgentRelay", name, None, &spec))?;
        ensure(until(|| told(name))?, || format!("relay {name} of the other cluster was not told"))
    };
    add("former", "a")?;
    second.cluster.kubectl("delete agentrelay former")?;
    add("later", "b")?;
    // Of the same word that told of the later one, the former was not part.
    ensure(told("former")?, || "a relay that went counts no more at once".into())?;
    second.cluster.kubectl("delete agentrelay later")?;
    let answered = until(|| Ok(second.reporter.fetch("db").is_ok_and(|body| body == "hello")))?;
    ensure(answered, || "http://db/ is not answered while relays come and go".into())
}

/// A cluster that wishes for more than its due: what becomes of it here has an end, which somebody who looks finds.
fn flooded(stage: &Stage, second: &Second) -> Result<usize, Failed> {
    const MADE: &str = "peerage.dev/agenttrustrequests create";
    let first = &stage.cluster;
    let before = audit::times(first, MADE)?;
    let authority = stage.authority()?;
    // What its own owner has not declared an operator does not tell.
    let asker = |number: usize| Todo::create(ours("flood", "agentpeers"), peer(&format!("asker-{number}"), "flood"));
    let wish = |number: usize| {
        let peer = json!({"name": "db", "namespace": "tools", "linkRef": {"name": "hub"}, "authority": authority});
        let spec = json!({"agentRef": {"name": format!("asker-{number}")}, "peer": peer});
        Todo::create(
            ours("flood", "agenttrusts"),
            object("AgentTrust", &format!("wish-{number}"), Some("flood"), &spec),
        )
    };
    second.cluster.kubectl("create namespace flood")?;
    // Its own owner lets everybody ask; here only what this side permits counts.
    let all = json!({"spec": {"allowedNamespaces": {"from": "All", "names": null}}}).to_string();
    second.cluster.run("kubectl", &["patch", "agentlink", "hub", "--type=merge", "-p", &all], "")?;
    let api = Api::new(&second.cluster)?;
    stage.runtime.block_on(api.all((0..WISHES).map(asker).chain((0..WISHES).map(wish)).collect()))?;
    let pending = || {
        let requests = first.get("agenttrustrequests -n tools")?.unwrap_or(Value::Null);
        Ok::<_, Failed>(requests["items"].as_array().map_or(0, Vec::len))
    };
    ensure(until(|| Ok(pending()? >= REQUESTS))?, || format!("{} requests, not {REQUESTS}", pending().unwrap_or(0)))?;
    // Whoever is heard after all of them has had its turn: the last wish is withdrawn, and the link goes on.
    second.cluster.kubectl("delete agenttrusts --all -n flood --wait=false")?;
    ensure(until(|| Ok(pending()? == 0))?, || format!("{} requests of nobody's wishes stay", pending().unwrap_or(0)))?;
    let made = audit::times(first, MADE)? - before;
    // Those that waited, and some that took the places of what was taken back: 40 at once, and one in ten seconds.
    ensure(made <= 3 * REQUESTS, || format!("{WISHES} wishes were {made} writes"))?;
    second.cluster.condition("agentlink hub", "Connected", "True", "AsDeclared")?;
    Ok(REQUESTS)
}

/// A pod of the other cluster is deleted: agents here that trust its agent are told that its instance is denied, and the next
/// pod is the agent again.
fn denied(stage: &Stage, second: &mut Second) -> Result<Duration, Failed> {
    let (authority, audience) = (second.authority()?, stage.audience()?);
    let populate = fleet::populate(&stage.api, "tools", "listener", 1, &audience);
    let identities = stage.runtime.block_on(populate)?;
    let peer =
        json!({"name": "reporter", "namespace": "reports", "linkRef": {"name": "branch"}, "authority": authority});
    let spec = json!({"agentRef": {"name": "listener-0"}, "peer": peer});
    stage.cluster.apply(&object("AgentTrust", "listener-reporter", Some("tools"), &spec))?;
    let fleet = Fleet::start(&stage.runtime, identities, stage.shared_addresses(), &stage.authority()?)?;
    fleet.all("connected", PATIENCE, |known| known.is_connected)?;
    let mut took = Duration::MAX;
    second.replace_reporter(stage, || {
        let begun = Instant::now();
        let is_told = |known: &Known| known.denied.iter().any(|one| one.authority.to_string() == authority);
        fleet.all("told of an instance that is denied over there", PATIENCE, is_told)?;
        took = begun.elapsed();
        Ok(())
    })?;
    let back = until(|| Ok(second.reporter.fetch("db").is_ok_and(|body| body == "hello")))?;
    ensure(back, || format!("the next pod is no agent: {}", second.reporter.agent.log()))?;
    stage.cluster.kubectl("delete agenttrust listener-reporter -n tools")?;
    Ok(took)
}

/// The second cluster's owner takes its own consent back and waits until that has happened.
fn revoked_and_waited(stage: &Stage, second: &Second) -> Result<(), Failed> {
    let stream = second.reporter.open_stream("db")?;
    let said = plugin(stage, &second.cluster, &["revoke", "reporter-db-tools-hub", "-n", "reports", "--wait"], "")?;
    ensure(said["ended_ms"].is_u64(), || format!("`revoke --wait` says {said}"))?;
    stream.ended(RESET)?;
    let left = second.cluster.get("agenttrust reporter-db-tools-hub -n reports")?;
    ensure(left.is_none(), || "a revoked AgentTrust is still there".into())?;
    plugin(stage, &second.cluster, &["trust", "reporter", "db.tools", "--link", "hub", "-n", "reports"], "")?;
    let back = until(|| Ok(second.reporter.fetch("db").is_ok_and(|body| body == "hello")))?;
    ensure(back, || "consent that was given again does not count".into())
}

/// The first cluster's owner deletes the consent: a stream of the second's program is reset.
fn revoked(stage: &Stage, second: &Second) -> Result<Duration, Failed> {
    let consent = "db-reporter-reports-branch";
    let kept = stage.cluster.get(&format!("agenttrust {consent} -n tools"))?.unwrap_or(Value::Null);
    let stream = second.reporter.open_stream("db")?;
    let took = delete(stage, &stream, ours("tools", &format!("agenttrusts/{consent}")))?;
    stage.cluster.apply(&json!({
        "apiVersion": kept["apiVersion"], "kind": kept["kind"], "spec": kept["spec"],
        "metadata": {"name": consent, "namespace": "tools"},
    }))?;
    let back = until(|| Ok(second.reporter.fetch("db").is_ok_and(|body| body == "hello")))?;
    ensure(back, || "consent that was given again does not count".into())?;
    Ok(took)
}

/// The first cluster's owner deletes the link: everything that went over it ends.
fn unlinked(stage: &Stage, second: &Second) -> Result<Duration, Failed> {
    let stream = second.reporter.open_stream("db")?;
    let took = delete(stage, &stream, "/apis/peerage.dev/v1alpha1/agentlinks/branch".to_owned())?;
    stage.cluster.condition("agenttrust db-reporter-reports-branch -n tools", "Ready", "False", "LinkNotFound")?;
    second.cluster.condition("agentlink hub", "Connected", "False", "PeerOperatorUnreachable")?;
    Ok(took)
}

/// What `kubectl peerage` lists.
pub(super) fn plugin_lines(stage: &Stage, cluster: &Cluster, arguments: &[&str]) -> Result<Vec<Value>, Failed> {
    let said = run_plugin(stage, cluster, arguments, "")?;
    said.lines().map(|line| serde_json::from_str(line).trying("read what kubectl peerage says")).collect()
}

fn delete(stage: &Stage, stream: &Stream, path: String) -> Result<Duration, Failed> {
    super::hostname::revoke_at(stage, stream, Todo::delete(path), RESET)
}

/// What `kubectl peerage` says, as the administrator of a cluster.
pub(super) fn plugin(stage: &Stage, cluster: &Cluster, arguments: &[&str], input: &str) -> Result<Value, Failed> {
    let said = run_plugin(stage, cluster, arguments, input)?;
    serde_json::from_str(&said).trying("read what kubectl peerage says")
}

fn run_plugin(stage: &Stage, cluster: &Cluster, arguments: &[&str], input: &str) -> Result<String, Failed> {
    let program = stage.programs.plugin.to_str().ok_or_else(|| Failed::new("a path is not text"))?;
    cluster.run(program, &[&["--json"], arguments].concat(), input)
}
