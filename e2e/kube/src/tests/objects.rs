//! Objects of each kind, applied, changed and deleted, and the conditions that a user would wait for.

use std::time::{Duration, SystemTime};

use peerage_model::ticket::InviteSecret;
use peerage_model::{Authority, Ticket, UnixTime};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Stage, message, object, peer, trust};
use crate::cluster::{Cluster, until};
use crate::failed::{Failed, Trying, ensure};
use crate::operator::{NAMESPACE, TICKETS};

pub(super) fn agent_peer(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("peers")?;
    cluster.apply(&peer("db", "peers"))?;
    cluster.condition("agentpeer db -n peers", "Ready", "True", "NoPods")?;
    stage.pod_as("db-0", "peers", "db", "default")?;
    cluster.condition("agentpeer db -n peers", "Injected", "False", "NotInjected")?;
    cluster.apply(&object(
        "AgentPeer",
        "db",
        Some("peers"),
        &json!({"selector": {"matchLabels": {"app": "other"}}}),
    ))?;
    cluster.condition("agentpeer db -n peers", "Ready", "True", "NoPods")?;
    let db = cluster.get("agentpeer db -n peers")?.unwrap_or_default();
    let seen = &db["status"]["observedGeneration"];
    ensure(*seen == db["metadata"]["generation"] && seen == 2, || format!("generation 2 was judged as {seen}"))?;
    cluster.apply(&object(
        "AgentPeer",
        "rival",
        Some("peers"),
        &json!({"selector": {"matchLabels": {"app": "db"}}}),
    ))?;
    cluster.apply(&peer("db", "peers"))?;
    cluster.condition("agentpeer rival -n peers", "Accepted", "False", "ConflictingSelector")?;
    cluster.condition("agentpeer db -n peers", "Accepted", "False", "ConflictingSelector")?;
    cluster.event("peers", "AgentPeer/rival", "ConflictingSelector")?;
    cluster.kubectl("delete agentpeer rival -n peers")?;
    cluster.condition("agentpeer db -n peers", "Accepted", "True", "AsDeclared")?;
    cluster.kubectl("delete agentpeer db -n peers")?;
    Ok("no pods, a pod without a sidecar, a changed selector, two that select one pod and an Event about it, deletion"
        .into())
}

pub(super) fn agent_trust(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("trusts")?;
    cluster.apply(&trust("a-b", "trusts", "a", "b"))?;
    cluster.condition("agenttrust a-b -n trusts", "Ready", "False", "AgentNotFound")?;
    cluster.apply(&peer("a", "trusts"))?;
    cluster.condition("agenttrust a-b -n trusts", "Ready", "False", "WaitingForPeer")?;
    let unknown = message(cluster, "agenttrust a-b -n trusts")?;
    cluster.apply(&peer("b", "trusts"))?;
    cluster.apply(&trust("other", "trusts", "b", "c"))?;
    cluster.condition("agenttrust other -n trusts", "Ready", "False", "WaitingForPeer")?;
    let unwilling = message(cluster, "agenttrust a-b -n trusts")?;
    ensure(unknown == unwilling, || format!("it tells who exists: `{unknown}`, and then `{unwilling}`"))?;
    cluster.apply(&trust("b-a", "trusts", "b", "a"))?;
    cluster.kubectl("wait -n trusts agenttrust a-b b-a --for=condition=Ready --timeout=60s")?;
    cluster.kubectl("delete agenttrust b-a -n trusts")?;
    cluster.condition("agenttrust a-b -n trusts", "Ready", "False", "WaitingForPeer")?;
    cluster.event("trusts", "AgentPeer/b", "TrustDeleted")?;
    let mut expired = trust("b-a", "trusts", "b", "a");
    expired["spec"]["expiresAt"] = "2020-01-01T00:00:00Z".into();
    cluster.apply(&expired)?;
    cluster.condition("agenttrust b-a -n trusts", "Ready", "False", "Expired")?;
    cluster.condition("agenttrust a-b -n trusts", "Ready", "False", "WaitingForPeer")?;
    Ok("one side waits, with the same words for unknown and unwilling; both are Ready; deletion, of which an Event tells, and expiry end it"
        .into())
}

pub(super) fn agent_link(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let bootstrap = json!({"tokenSecretRef": {"key": "far"}});
    let spec = json!({"bootstrap": bootstrap, "allowedNamespaces": {"from": "All"}});
    cluster.apply(&object("AgentLink", "far", None, &spec))?;
    cluster.condition("agentlink far", "Ready", "False", "SecretNotFound")?;
    cluster.kubectl(&format!("create secret generic {TICKETS} -n {NAMESPACE} --from-literal=far=nonsense"))?;
    cluster.condition("agentlink far", "Ready", "False", "SecretInvalid")?;
    let ((of_operator, authority), (of_laptop, _)) = (ticket(9, "operator")?, ticket(8, "laptop")?);
    cluster.kubectl(&format!("delete secret {TICKETS} -n {NAMESPACE}"))?;
    cluster.kubectl(&format!(
        "create secret generic {TICKETS} -n {NAMESPACE} --from-literal=far={of_operator} --from-literal=laptop={of_laptop}"
    ))?;
    cluster.kubectl("wait agentlink/far --for=condition=Ready --timeout=60s")?;

    // Who may use it, and to whom it leads, decides what becomes of trusts.
    stage.namespace("linked")?;
    cluster.apply(&peer("a", "linked"))?;
    let over = |authority: &str| {
        let peer = json!({"name": "b", "namespace": "there", "linkRef": {"name": "far"}, "authority": authority});
        object("AgentTrust", "a-b", Some("linked"), &json!({"agentRef": {"name": "a"}, "peer": peer}))
    };
    cluster.apply(&over(&authority))?;
    cluster.condition("agenttrust a-b -n linked", "Accepted", "True", "AsDeclared")?;
    cluster.condition("agenttrust a-b -n linked", "Ready", "False", "WaitingForPeer")?;
    let others = json!({"from": "Selected", "names": ["somebody-else"]});
    let narrowed = json!({"bootstrap": bootstrap, "allowedNamespaces": others});
    cluster.apply(&object("AgentLink", "far", None, &narrowed))?;
    cluster.condition("agenttrust a-b -n linked", "Ready", "False", "NotPermittedByLink")?;
    cluster.apply(&object("AgentLink", "far", None, &spec))?;
    cluster.condition("agenttrust a-b -n linked", "Ready", "False", "WaitingForPeer")?;
    cluster.kubectl("delete agenttrust a-b -n linked")?;
    cluster.apply(&over(&"ab".repeat(32)))?;
    cluster.condition("agenttrust a-b -n linked", "Ready", "False", "AuthorityChanged")?;
    operator_or_machine(stage, &authority)?;
    cluster.kubectl("delete agentlink far laptop")?;
    cluster.condition("agenttrust a-b -n linked", "Ready", "False", "LinkNotFound")?;
    Ok("a Secret that is not there, one that is no ticket, and a good one; trusts over it when it narrows, leads elsewhere, goes; \
        whether a machine is there its ticket says, also when it is gone, and no trust does"
        .into())
}

/// The link `far` has an operator's ticket, and a trust that names an agent as machines have them, which whoever owns a
/// namespace may write; the link `laptop` has a machine's. What a leader makes of them that has seen no ticket.
fn operator_or_machine(stage: &Stage, authority: &str) -> Result<(), Failed> {
    let cluster = &stage.cluster;
    let spec = json!({"bootstrap": {"tokenSecretRef": {"key": "laptop"}}, "allowedNamespaces": {"from": "All"}});
    cluster.apply(&object("AgentLink", "laptop", None, &spec))?;
    cluster.condition("agentlink laptop", "Connected", "True", "AsDeclared")?;
    let peer = json!({"name": "b", "linkRef": {"name": "far"}, "authority": authority});
    let odd = json!({"agentRef": {"name": "a"}, "peer": peer, "alias": "odd"});
    cluster.apply(&object("AgentTrust", "odd", Some("linked"), &odd))?;
    cluster.condition("agenttrust odd -n linked", "Accepted", "True", "AsDeclared")?;
    cluster.kubectl(&format!("delete secret {TICKETS} -n {NAMESPACE}"))?;
    stage.restart_operators()?;
    // What is said of another generation the leader of before did not write.
    for (link, expected) in [("far", false), ("laptop", true)] {
        let silent = json!({"spec": {"relays": [format!("{}q@127.0.0.1:9", "a".repeat(51))]}});
        cluster.kubectl(&format!("patch agentlink {link} --type=merge -p {silent}"))?;
        let mut found = Value::Null;
        let said = until(|| {
            found = cluster.get(&format!("agentlink {link}"))?.unwrap_or_default();
            let conditions = found["status"]["conditions"].as_array().into_iter().flatten();
            let mut connected = conditions.filter(|one| one["type"] == "Connected");
            Ok(connected.any(|one| {
                one["observedGeneration"] == found["metadata"]["generation"] && (one["status"] == "True") == expected
            }))
        })?;
        let is_machine = found["status"]["machine"] == true;
        ensure(said && is_machine == expected, || format!("a machine is there: {expected}; the link says {found}"))?;
    }
    cluster.kubectl("delete agenttrust odd -n linked").map(drop)
}

/// What another authority's agent of this name would send, and its fingerprint.
fn ticket(seed: u8, name: &str) -> Result<(String, String), Failed> {
    let now = UnixTime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).trying("read the clock")?.as_secs());
    let authority = Authority::new(&Zeroizing::new([seed; 96]), now);
    let ticket = Ticket {
        record: authority.record().clone(),
        name: name.parse().trying("name an agent")?,
        relays: Vec::new(),
        secret: InviteSecret::from_bytes([1; 32]),
        expires: now.plus(Duration::from_secs(3600)),
    };
    Ok((ticket.to_string(), authority.fingerprint().to_string()))
}

/// Objects that today's schema refuses, as an older one may have let them in: one of each kind, and none stalls the others.
pub(super) fn malformed(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("malformed")?;
    let here = Some("malformed");
    let broken = [
        ("AgentPeer", here, json!({"selector": "everything"})),
        ("AgentTrust", here, json!({"agentRef": 5, "peer": ["no", "peer"]})),
        ("AgentLink", None, json!({"authority": "ab".repeat(32), "allowedNamespaces": {"from": "All", "names": 7}})),
        ("AgentRelay", None, json!({"address": ["a", "b"], "allowedNamespaces": {"from": "All"}})),
    ];
    // As long as the API server has definitions of another version, too; by ours it would take no status of such an object.
    let opened =
        broken.iter().map(|(kind, namespace, spec)| smuggle(cluster, &object(kind, "broken", *namespace, spec)));
    let opened = opened.collect::<Result<Vec<_>, _>>();
    let said = broken.iter().try_for_each(|(kind, namespace, _)| {
        let place = namespace.map_or_else(String::new, |namespace| format!(" -n {namespace}"));
        cluster.condition(&format!("{kind} broken{place}"), "Ready", "False", "NotUnderstood")
    });
    for (crd, schema) in opened? {
        set_schema(cluster, &crd, &schema)?;
    }
    said?;
    cluster.apply(&peer("a", "malformed"))?;
    cluster.apply(&trust("good", "malformed", "a", "b"))?;
    cluster.condition("agenttrust good -n malformed", "Ready", "False", "WaitingForPeer")?;
    stage.restart_operators()?;
    cluster.apply(&trust("later", "malformed", "a", "c"))?;
    cluster.condition("agenttrust later -n malformed", "Ready", "False", "WaitingForPeer")?;
    cluster.kubectl("delete agentlink,agentrelay broken")?;
    cluster.kubectl("delete agentpeer,agenttrust broken -n malformed")?;
    Ok("one of each kind that nobody can read says so, and keeps no other from being judged, also for operators that start with it"
        .into())
}

/// Takes the schema of an object's kind away, makes the object, and returns what to give back.
fn smuggle(cluster: &Cluster, object: &Value) -> Result<(String, Value), Failed> {
    let crd = format!("{}s.peerage.dev", object["kind"].as_str().unwrap_or_default().to_lowercase());
    let made = cluster.kubectl(&format!("get crd {crd} -o json"))?;
    let mut made: Value = serde_json::from_str(&made).trying("read a definition")?;
    set_schema(cluster, &crd, &json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))?;
    // The API server takes a moment to go by the new schema.
    let taken = until(|| Ok(cluster.apply(object).is_ok()))?;
    ensure(taken, || format!("the object that should be malformed was refused: {object}"))?;
    Ok((crd, made["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()))
}

fn set_schema(cluster: &Cluster, crd: &str, schema: &Value) -> Result<(), Failed> {
    let patch = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": schema}]);
    cluster.run("kubectl", &["patch", "crd", crd, "--type=json", "-p", &patch.to_string()], "").map(drop)
}
