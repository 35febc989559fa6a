//! What must be so on a real API server. Each test uses a namespace of its own, so that none depends on another, and
//! waits for conditions as a user would.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::agent::{self, Agent};
use crate::audit;
use crate::cluster::{Cluster, until};
use crate::failed::{Failed, Trying, ensure};
use crate::injection;
use crate::operator::{NAMESPACE, Operator};

/// The world that the tests share.
#[derive(Debug)]
pub struct Stage {
    /// The control plane.
    pub cluster: Cluster,
    /// `peerage-operator`.
    pub program: PathBuf,
    /// `peerage-agent`.
    pub agent: PathBuf,
    /// The running replicas.
    pub operators: RefCell<Vec<Operator>>,
}

/// A test's name and what it does; it tells what it saw.
pub type Test = (&'static str, fn(&Stage) -> Result<String, Failed>);

/// All tests, in the order in which they run; `rights` looks back at the others, so it is the last.
pub const ALL: [Test; 16] = [
    ("agent-peer", agent_peer),
    ("agent-trust", agent_trust),
    ("agent-link", agent_link),
    ("agent-relay", agent_relay),
    ("malformed", malformed),
    ("injection", injection::injection),
    ("left-alone", injection::left_alone),
    ("who-asks", injection::who_asks),
    ("host-aliases", injection::host_aliases),
    ("policy", injection::policy),
    ("outdated", injection::outdated),
    ("validation", injection::validation),
    ("enrolment", enrolment),
    ("rotation", rotation),
    ("lost-secret", lost_secret),
    ("rights", rights),
];

pub(crate) fn object(kind: &str, name: &str, namespace: Option<&str>, spec: &Value) -> Value {
    let metadata = json!({"name": name, "namespace": namespace});
    json!({"apiVersion": "peerage.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

pub(crate) fn peer(name: &str, namespace: &str) -> Value {
    object("AgentPeer", name, Some(namespace), &json!({"selector": {"matchLabels": {"app": name}}}))
}

pub(crate) fn trust(name: &str, namespace: &str, agent: &str, peer: &str) -> Value {
    object("AgentTrust", name, Some(namespace), &json!({"agentRef": {"name": agent}, "peer": {"name": peer}}))
}

impl Stage {
    /// A namespace in which pods can be made.
    pub(crate) fn namespace(&self, name: &str) -> Result<(), Failed> {
        self.cluster.kubectl(&format!("create namespace {name}"))?;
        // The API server refuses pods until the controller has made it.
        let there = until(|| Ok(self.cluster.get(&format!("serviceaccount default -n {name}"))?.is_some()))?;
        ensure(there, || format!("namespace {name} has no ServiceAccount"))
    }

    fn pod(&self, name: &str, namespace: &str, app: &str) -> Result<(), Failed> {
        self.pod_as(name, namespace, app, "default")
    }

    fn pod_as(&self, name: &str, namespace: &str, app: &str, account: &str) -> Result<(), Failed> {
        let container = json!({"name": "app", "image": "none"});
        self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
            "spec": {"containers": [container], "serviceAccountName": account},
        }))
    }

    pub(crate) fn authority(&self) -> Result<String, Failed> {
        self.cluster
            .kubectl(&format!("get configmap peerage-authority -n {NAMESPACE} -o jsonpath={{.data.fingerprint}}"))
    }

    /// All replicas end and begin anew, with what the chart says by then.
    pub(crate) fn restart_operators(&self) -> Result<(), Failed> {
        let replicas = self.operators.borrow().len();
        self.operators.borrow_mut().clear();
        for number in 0..replicas {
            let number = u8::try_from(number).trying("count operators")?;
            self.operators.borrow_mut().push(Operator::start(&self.cluster, &self.program, number)?);
        }
        Ok(())
    }

    /// An agent in `pod`, whose token is for this audience.
    fn agent_in(&self, pod: &str, namespace: &str, audience: &str) -> Result<Agent, Failed> {
        let token = agent::token(&self.cluster, namespace, pod, audience)?;
        let operators: Vec<SocketAddr> = self.operators.borrow().iter().map(|operator| operator.agents).collect();
        Agent::start(&self.agent, &operators, &self.authority()?, &token)
    }
}

fn agent_peer(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("peers")?;
    cluster.apply(&peer("db", "peers"))?;
    cluster.condition("agentpeer db -n peers", "Ready", "True", "NoPods")?;
    stage.pod("db-0", "peers", "db")?;
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
    cluster.kubectl("delete agentpeer rival -n peers")?;
    cluster.condition("agentpeer db -n peers", "Accepted", "True", "AsDeclared")?;
    cluster.kubectl("delete agentpeer db -n peers")?;
    Ok("no pods, a pod without a sidecar, a changed selector, two that select one pod, deletion".into())
}

fn agent_trust(stage: &Stage) -> Result<String, Failed> {
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
    let mut expired = trust("b-a", "trusts", "b", "a");
    expired["spec"]["expiresAt"] = "2020-01-01T00:00:00Z".into();
    cluster.apply(&expired)?;
    cluster.condition("agenttrust b-a -n trusts", "Ready", "False", "Expired")?;
    cluster.condition("agenttrust a-b -n trusts", "Ready", "False", "WaitingForPeer")?;
    Ok("one side waits, with the same words for unknown and unwilling; both are Ready; deletion and expiry end it"
        .into())
}

fn message(cluster: &Cluster, object: &str) -> Result<String, Failed> {
    let found = cluster.get(object)?.unwrap_or_default();
    let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|one| one["type"] == "Ready");
    Ok(ready.and_then(|one| one["message"].as_str()).unwrap_or_default().to_owned())
}

fn agent_link(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let spec = json!({"bootstrap": {"tokenSecretRef": {"name": "far-ticket"}}, "allowedNamespaces": {"from": "All"}});
    cluster.apply(&object("AgentLink", "far", None, &spec))?;
    cluster.condition("agentlink far", "Ready", "False", "SecretNotFound")?;
    cluster.kubectl(&format!("create secret generic far-ticket -n {NAMESPACE} --from-literal=ticket=nonsense"))?;
    cluster.condition("agentlink far", "Ready", "False", "SecretInvalid")?;
    cluster.kubectl("delete agentlink far")?;
    Ok("a Secret that is not there, and one that is no ticket".into())
}

fn agent_relay(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    // Port 9 (discard) of loopback: nothing answers there.
    let address = format!("{}q@127.0.0.1:9", "a".repeat(51));
    let spec = json!({"address": address, "allowedNamespaces": {"from": "All"}});
    cluster.apply(&object("AgentRelay", "silent", None, &spec))?;
    cluster.condition("agentrelay silent", "Ready", "False", "RelayUnreachable")?;
    cluster.kubectl("delete agentrelay silent")?;
    Ok("a relay that does not answer".into())
}

/// Objects that today's schema refuses, as an older one may have let them in.
fn malformed(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("malformed")?;
    let crd = cluster.kubectl("get crd agenttrusts.peerage.dev -o json")?;
    let crd: Value = serde_json::from_str(&crd).trying("read a definition")?;
    let schema = |schema: &Value| {
        let patch = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": schema}]);
        cluster.run(
            "kubectl",
            &["patch", "crd", "agenttrusts.peerage.dev", "--type=json", "-p", &patch.to_string()],
            "",
        )
    };
    schema(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))?;
    let broken = object("AgentTrust", "broken", Some("malformed"), &json!({"agentRef": 5, "peer": ["no", "peer"]}));
    // The API server takes a moment to go by the new schema.
    let taken = until(|| Ok(cluster.apply(&broken).is_ok()));
    schema(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])?;
    ensure(taken?, || "the object that should be malformed was refused".into())?;
    cluster.apply(&peer("a", "malformed"))?;
    cluster.apply(&trust("good", "malformed", "a", "b"))?;
    cluster.condition("agenttrust good -n malformed", "Ready", "False", "WaitingForPeer")?;
    restart(stage)?;
    cluster.apply(&trust("later", "malformed", "a", "c"))?;
    cluster.condition("agenttrust later -n malformed", "Ready", "False", "WaitingForPeer")?;
    Ok("an AgentTrust that nobody can read keeps no other from being judged, also for operators that start with it"
        .into())
}

fn restart(stage: &Stage) -> Result<(), Failed> {
    let mut operators = stage.operators.borrow_mut();
    let replicas = u8::try_from(operators.len()).trying("count operators")?;
    operators.clear();
    for number in 0..replicas {
        operators.push(Operator::start(&stage.cluster, &stage.program, number)?);
    }
    Ok(())
}

fn enrolment(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("enrol")?;
    cluster.kubectl("create serviceaccount db -n enrol")?;
    let spec = json!({"selector": {"matchLabels": {"app": "db"}}, "serviceAccountName": "db"});
    cluster.apply(&object("AgentPeer", "db", Some("enrol"), &spec))?;
    stage.pod_as("db-0", "enrol", "db", "db")?;
    let audience = format!("peerage.dev/{}", stage.authority()?);
    let enrolled = |wanted: i64| {
        let mut found = Value::Null;
        let so = until(|| {
            found = cluster.get("agentpeer db -n enrol")?.map_or(Value::Null, |mut db| db["status"]["pods"].take());
            Ok(found["enrolled"] == wanted)
        })?;
        ensure(so, || format!("expected {wanted} enrolled, found {found}"))
    };
    // Its labels say that it is the agent, and its token that it is not.
    stage.pod_as("thief", "enrol", "db", "default")?;
    stage.agent_in("thief", "enrol", &audience)?.says("the operator says")?;
    stage.agent_in("db-0", "enrol", "somebody.else")?.says("the operator says")?;
    enrolled(0)?;
    let mut agent = stage.agent_in("db-0", "enrol", &audience)?;
    enrolled(1)?;
    cluster.kubectl("delete pod db-0 -n enrol --now")?;
    enrolled(0)?;
    agent.says("the operator says")?;
    let denied = until(|| {
        let maps =
            cluster.get(&format!("configmap -n {NAMESPACE} -l peerage.dev/denied-instances"))?.unwrap_or_default();
        Ok(maps["items"].as_array().is_some_and(|maps| maps.iter().any(|map| map["data"].is_object())))
    })?;
    ensure(denied, || "the deleted pod's instance is on no list of denied ones".into())?;
    Ok("a pod with its ServiceAccount enrols; not by labels, nor with a token for others; deletion denies it".into())
}

fn rotation(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let keys = || cluster.kubectl(&format!("get secret peerage-authority -n {NAMESPACE} -o jsonpath={{.data}}"));
    let (old, authority) = (keys()?, stage.authority()?);
    cluster.kubectl(&format!("annotate secret peerage-authority -n {NAMESPACE} peerage.dev/rotate=now"))?;
    let rotated = until(|| Ok(keys()? != old))?;
    ensure(rotated, || "the keys are the old ones".into())?;
    ensure(stage.authority()? == authority, || "the authority's fingerprint changed with its keys".into())?;
    Ok("new keys beside the old ones, and the same fingerprint".into())
}

fn lost_secret(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let secret = cluster.get(&format!("secret peerage-authority -n {NAMESPACE}"))?;
    let mut secret = secret.ok_or_else(|| Failed::new("the operator made no Secret"))?;
    cluster.kubectl(&format!("delete secret peerage-authority -n {NAMESPACE}"))?;
    let replicas = stage.operators.borrow().len();
    stage.operators.borrow_mut().clear();
    let orphan = Operator::launch(cluster, &stage.program, 0)?;
    let told = until(|| Ok(orphan.end_of_log().contains("Restore the Secret")))?;
    ensure(told, || format!("it does not say that the Secret is gone: {}", orphan.end_of_log()))?;
    ensure(!orphan.is_ready(), || "it is ready without keys".into())?;
    let minted = cluster.get(&format!("secret peerage-authority -n {NAMESPACE}"))?;
    ensure(minted.is_none(), || "it made new keys where agents remember old ones".into())?;
    let repeated = until(|| {
        let events = cluster.get(&format!("events.events.k8s.io -n {NAMESPACE}"))?.unwrap_or_default();
        let mut events = events["items"].as_array().into_iter().flatten();
        Ok(events.any(|event| event["reason"] == "AuthorityLost" && event["series"]["count"].as_i64() >= Some(2)))
    })?;
    ensure(repeated, || "no Event says so, again and again".into())?;
    drop(orphan);
    for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        secret["metadata"].as_object_mut().map(|metadata| metadata.remove(field));
    }
    cluster.run("kubectl", &["create", "-f", "-"], &secret.to_string())?;
    for number in 0..replicas {
        let number = u8::try_from(number).trying("count operators")?;
        stage.operators.borrow_mut().push(Operator::start(cluster, &stage.program, number)?);
    }
    Ok("no keys are made anew, the log says what to do, and the restored Secret is used".into())
}

fn rights(stage: &Stage) -> Result<String, Failed> {
    audit::compare(&stage.cluster)
}
