//! What becomes of pods and of our objects on their way through a real API server: the webhooks answer it, and what it
//! stored is looked at. No kubelet is needed for that; PodSecurity `restricted` is enforced all the same.

use serde_json::{Value, json};

use crate::cluster::until;
use crate::failed::{Failed, ensure};
use crate::operator::{NAMESPACE, upgrade};
use crate::tests::{Stage, object, peer, trust};

/// What the sidecar is called.
pub const AGENT: &str = "peerage-agent";

/// A pod that PodSecurity `restricted` admits, with `spec` in place of what is there.
#[must_use]
pub fn pod(name: &str, namespace: &str, spec: &Value) -> Value {
    let container = json!({
        "name": "app", "image": "none", "ports": [{"containerPort": 8080}],
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    });
    let mut whole = json!({
        "containers": [container],
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        whole[field] = value.clone();
    }
    let metadata = json!({"name": name, "namespace": namespace, "labels": {"app": name}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": whole})
}

impl Stage {
    /// A namespace that asks for injection and enforces PodSecurity `restricted`.
    pub(crate) fn restricted(&self, name: &str) -> Result<(), Failed> {
        self.namespace(name)?;
        let labels = ["enforce", "warn", "audit"].map(|mode| format!("pod-security.kubernetes.io/{mode}=restricted"));
        self.cluster.kubectl(&format!("label namespace {name} peerage.dev/injection=enabled {}", labels.join(" ")))?;
        self.is_asked()
    }

    /// Until the leader has told the API server our CA, and the API server asks.
    pub(crate) fn is_asked(&self) -> Result<(), Failed> {
        let name = format!("{NAMESPACE}-peerage-operator");
        let told = |kind: &str| -> Result<bool, Failed> {
            let found = self.cluster.get(&format!("{kind} {name}"))?.unwrap_or_default();
            let hooks = found["webhooks"].as_array().cloned().unwrap_or_default();
            Ok(!hooks.is_empty() && hooks.iter().all(|hook| hook["clientConfig"]["caBundle"].is_string()))
        };
        let all = until(|| Ok(told("mutatingwebhookconfiguration")? && told("validatingwebhookconfiguration")?))?;
        ensure(all, || "the webhook configurations were told no CA".into())?;
        // The API server reads its configurations by watching them, so a moment passes: a pod that is only tried tells.
        let mut probe = pod("probe", "default", &json!({}));
        probe["metadata"]["labels"] = json!({"peerage.dev/agent": "probe"});
        let asked = until(|| Ok(self.tried(&probe)?["spec"]["initContainers"][0]["name"] == AGENT))?;
        ensure(asked, || "the API server does not ask the webhook".into())
    }

    /// What the API server would store.
    pub(crate) fn tried(&self, pod: &Value) -> Result<Value, Failed> {
        let create = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        let said = self.cluster.run("kubectl", &create, &pod.to_string())?;
        serde_json::from_str(&said).map_err(|error| Failed::new(format!("kubectl said no JSON: {error}")))
    }

    /// Creates an object; what the API server stored, and what it warned of.
    pub(crate) fn create(&self, object: &Value) -> Result<(Value, String), Failed> {
        let (stored, warnings) =
            self.cluster.run_saying("kubectl", &["create", "-o", "json", "-f", "-"], &object.to_string())?;
        let stored =
            serde_json::from_str(&stored).map_err(|error| Failed::new(format!("kubectl said no JSON: {error}")))?;
        Ok((stored, warnings))
    }

    /// The same for a pod that nobody is warned of.
    pub(crate) fn stored(&self, pod: &Value) -> Result<Value, Failed> {
        let (stored, warnings) = self.create(pod)?;
        ensure(warnings.is_empty(), || format!("it warns: {warnings}"))?;
        Ok(stored)
    }
}

/// What a container is told.
pub fn env<'a>(container: &'a Value, name: &str) -> &'a str {
    let mut all = container["env"].as_array().into_iter().flatten();
    all.find(|one| one["name"] == name).and_then(|one| one["value"].as_str()).unwrap_or_default()
}

/// Compares, and says what differs.
///
/// # Errors
/// They differ.
pub fn is(found: &Value, expected: &Value, what: &str) -> Result<(), Failed> {
    ensure(found == expected, || format!("{what}: expected {expected}, found {found}"))
}

/// A pod of a restricted namespace, as it was stored.
pub fn injection(stage: &Stage) -> Result<String, Failed> {
    stage.restricted("injected")?;
    let before = pod(
        "db",
        "injected",
        &json!({"initContainers": [{
            "name": "own", "image": "none",
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
        }]}),
    );
    let after = stage.stored(&before)?;
    let agent = &after["spec"]["initContainers"][0];
    is(&agent["name"], &AGENT.into(), "the first init container")?;
    is(&agent["restartPolicy"], &"Always".into(), "and it goes on running")?;
    let mounts = agent["volumeMounts"].as_array().cloned().unwrap_or_default();
    let kube =
        mounts.iter().any(|mount| mount["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access")));
    ensure(!kube, || format!("the agent got a token for the API server: {mounts:?}"))?;
    let app = &after["spec"]["containers"][0];
    ensure(app["env"].is_null(), || format!("the application's container was changed: {app}"))?;
    is(&after["spec"]["dnsPolicy"], &"None".into(), "dnsPolicy")?;
    is(&after["spec"]["dnsConfig"]["searches"][0], &"peer.internal".into(), "the first search")?;
    is(&after["spec"]["dnsConfig"]["searches"][1], &"injected.svc.cluster.local".into(), "the second")?;
    let authority = stage.authority()?;
    ensure(env(agent, "PEERAGE_AUTHORITY") == authority, || "the agent would believe somebody else".into())?;
    ensure(env(agent, "PEERAGE_DNS") == "10.96.0.10", || "the agent asks nobody about other names".into())?;
    ensure(env(agent, "PEERAGE_RESERVED_PORTS") == "8080", || {
        "the agent does not keep off the application's port".into()
    })?;
    stage.cluster.apply(&peer("db", "injected"))?;
    stage.cluster.condition("agentpeer db -n injected", "Injected", "True", "AsDeclared")?;
    Ok("restricted admits the pod without a warning; the agent is first, without a token for the API server".into())
}

/// Pods in whose way something stands.
pub fn left_alone(stage: &Stage) -> Result<String, Failed> {
    stage.namespace("obstacles")?;
    stage.cluster.kubectl("label namespace obstacles peerage.dev/injection=enabled")?;
    stage.is_asked()?;
    let sysctl = json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "1024"}]);
    for (name, spec, words) in [
        ("host", json!({"hostNetwork": true}), "hostNetwork"),
        ("sysctl", json!({"securityContext": {"sysctls": sysctl}}), "ip_unprivileged_port_start to 1024"),
        ("node-dns", json!({"dnsPolicy": "Default"}), "dnsPolicy Default"),
    ] {
        let (stored, warnings) = stage.create(&pod(name, "obstacles", &spec))?;
        ensure(stored["spec"]["initContainers"].is_null(), || format!("{name} was injected"))?;
        ensure(warnings.contains(words), || format!("{name}: whoever made it is told `{warnings}`"))?;
        let told = until(|| {
            let events = format!("events.events.k8s.io -n obstacles --field-selector regarding.name={name}");
            let events = stage.cluster.get(&events)?.unwrap_or_default();
            let mut events = events["items"].as_array().into_iter().flatten();
            Ok(events.any(|event| {
                event["reason"] == "NotInjected" && event["note"].as_str().is_some_and(|note| note.contains(words))
            }))
        })?;
        ensure(told, || format!("no Event of {name} says why"))?;
    }
    stage.cluster.apply(&peer("host", "obstacles"))?;
    stage.cluster.condition("agentpeer host -n obstacles", "Injected", "False", "NotInjected")?;
    let found = stage.cluster.get("agentpeer host -n obstacles")?.unwrap_or_default();
    let said = found["status"]["conditions"].to_string();
    ensure(said.contains("1 of 1 pods were left alone"), || format!("the condition does not say why: {said}"))?;
    let selector = json!({"selector": {"matchLabels": {"app": "both"}}});
    for name in ["one", "other"] {
        stage.cluster.apply(&object("AgentPeer", name, Some("obstacles"), &selector))?;
    }
    for name in ["one", "other"] {
        let object = format!("agentpeer {name} -n obstacles");
        stage.cluster.condition(&object, "Accepted", "False", "ConflictingSelector")?;
    }
    let (_, warnings) = stage.create(&pod("both", "obstacles", &json!({})))?;
    ensure(warnings.contains("AgentPeers one, other"), || format!("two select it, and it says `{warnings}`"))?;
    Ok("a warning, an Event and a condition say why; the pods are as they were made".into())
}

/// Which pods are asked about at all.
pub fn who_asks(stage: &Stage) -> Result<String, Failed> {
    stage.namespace("quiet")?;
    stage.is_asked()?;
    let is_injected =
        |pod: &Value| -> Result<bool, Failed> { Ok(stage.stored(pod)?["spec"]["initContainers"][0]["name"] == AGENT) };
    let ensured =
        |found: bool, expected: bool, what: &str| ensure(found == expected, || format!("{what}: injected is {found}"));
    ensured(is_injected(&pod("nobody", "quiet", &json!({})))?, false, "no label")?;
    let mut asking = pod("asking", "quiet", &json!({}));
    asking["metadata"]["labels"]["peerage.dev/agent"] = "asking".into();
    ensured(is_injected(&asking)?, true, "the pod's own label")?;
    stage.cluster.apply(&peer("nobody", "quiet"))?;
    stage.cluster.condition("agentpeer nobody -n quiet", "Injected", "False", "NotInjected")?;
    let found = stage.cluster.get("agentpeer nobody -n quiet")?.unwrap_or_default()["status"]["conditions"].to_string();
    ensure(found.contains("1 of 1 pods need a restart"), || format!("it does not say what to do: {found}"))?;
    stage.cluster.kubectl("label namespace quiet peerage.dev/injection=enabled")?;
    let mut out = pod("out", "quiet", &json!({}));
    out["metadata"]["annotations"] = json!({"peerage.dev/inject": "false"});
    let later = pod("later", "quiet", &json!({}));
    let seen = until(|| Ok(stage.tried(&later)?["spec"]["initContainers"][0]["name"] == AGENT))?;
    ensure(seen, || "the namespace's label has no effect".into())?;
    ensured(is_injected(&out)?, false, "opted out")?;
    let mut ours = pod("ours", NAMESPACE, &json!({}));
    ours["metadata"]["labels"]["peerage.dev/agent"] = "ours".into();
    ensured(is_injected(&ours)?, false, "the operator's own namespace")?;
    stage.cluster.kubectl(&format!("delete pod ours -n {NAMESPACE} --grace-period=0 --force"))?;
    Ok("a label of the namespace or of the pod asks, an annotation declines, the operator's namespace is left alone"
        .into())
}

/// A pod whose DNS stays as it was.
pub fn host_aliases(stage: &Stage) -> Result<String, Failed> {
    stage.restricted("aliases")?;
    stage.cluster.apply(&peer("caller", "aliases"))?;
    stage.cluster.apply(&trust("caller-planner", "aliases", "caller", "planner"))?;
    stage.cluster.condition("agenttrust caller-planner -n aliases", "Ready", "False", "WaitingForPeer")?;
    let mut caller = pod("caller", "aliases", &json!({}));
    caller["metadata"]["annotations"] = json!({"peerage.dev/dns": "HostAliases"});
    let after = stage.stored(&caller)?;
    is(&after["spec"]["dnsPolicy"], &"ClusterFirst".into(), "dnsPolicy")?;
    let alias = &after["spec"]["hostAliases"][0];
    let names = json!(["planner", "planner.peer.internal", "planner.aliases.peer.internal"]);
    is(&alias["hostnames"], &names, "the names of the peer")?;
    let address = alias["ip"].as_str().unwrap_or_default();
    ensure(address.starts_with("127."), || format!("the address of the peer is {address}"))?;
    Ok(format!("DNS is the cluster's, and the peer is at {address}"))
}

/// A MutatingAdmissionPolicy in the webhook's place makes the same pod.
pub fn policy(stage: &Stage) -> Result<String, Failed> {
    stage.namespace("by-policy")?;
    stage.is_asked()?;
    let mut asking = pod("asking", "by-policy", &json!({}));
    asking["metadata"]["labels"]["peerage.dev/agent"] = "asking".into();
    let by_webhook = stage.tried(&asking)?;
    // Another image tells whose answer it is; the webhook's own is known by its operator since it started.
    upgrade(&stage.cluster, &["webhook.policy=true", "agent.image.tag=by-policy"])?;
    let mut by_policy = Value::Null;
    let told = until(|| {
        by_policy = stage.tried(&asking)?;
        Ok(by_policy["spec"]["initContainers"][0]["image"] == "peerage-agent:by-policy")
    })?;
    let (mut named, mut with_init) = (asking.clone(), asking.clone());
    named["spec"]["volumes"] = json!([{"name": "peerage-state", "emptyDir": {}}]);
    with_init["spec"]["initContainers"] = json!([{"name": "own", "image": "none", "ports": [{"containerPort": 8200}]}]);
    let [refused, with_init] = [&named, &with_init].map(|pod| stage.tried(pod));
    let restored = upgrade(&stage.cluster, &["webhook.policy=false", "agent.image.tag="]);
    ensure(told, || format!("the policy has no effect: {by_policy}"))?;
    let named = refused?;
    ensure(named["spec"]["initContainers"].is_null(), || format!("a name of ours was taken twice: {named}"))?;
    let agent = &with_init?["spec"]["initContainers"][0];
    ensure(env(agent, "PEERAGE_RESERVED_PORTS").contains("8200"), || {
        format!("the port of an init container: {agent}")
    })?;
    by_policy["spec"]["initContainers"][0]["image"] = by_webhook["spec"]["initContainers"][0]["image"].clone();
    for made in [&by_webhook, &by_policy] {
        ensure(made["spec"]["initContainers"].as_array().map(Vec::len) == Some(1), || {
            format!("not one agent: {made}")
        })?;
    }
    for field in ["initContainers", "dnsPolicy", "dnsConfig", "securityContext"] {
        let [webhook, policy] = [&by_webhook, &by_policy].map(|made| in_order(&made["spec"][field]));
        is(&policy, &webhook, field)?;
    }
    let ours = |made: &Value| {
        let all = made["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        let mut ours: Vec<_> = all
            .into_iter()
            .filter(|one| one["name"].as_str().is_some_and(|name| name.starts_with("peerage-")))
            .collect();
        ours.sort_by_key(|volume| volume["name"].to_string());
        Value::from(ours)
    };
    is(&ours(&by_policy), &ours(&by_webhook), "volumes")?;
    restored?;
    Ok("the policy makes the pod that the webhook makes".into())
}

/// Pods go on with the sidecar that they were made with, and are counted until they restart.
pub fn outdated(stage: &Stage) -> Result<String, Failed> {
    let (cluster, old) = (&stage.cluster, pod("db", "skew", &json!({})));
    stage.restricted("skew")?;
    stage.stored(&old)?;
    cluster.apply(&peer("db", "skew"))?;
    cluster.condition("agentpeer db -n skew", "Injected", "True", "AsDeclared")?;
    upgrade(cluster, &["agent.image.tag=next"])?;
    stage.restart_operators()?;
    cluster.condition("agentpeer db -n skew", "Injected", "True", "OutdatedSidecars")?;
    let found = cluster.get("agentpeer db -n skew")?.unwrap_or_default();
    is(&found["status"]["pods"]["outdated"], &1.into(), "outdated pods")?;
    cluster.kubectl("delete pod db -n skew --grace-period=0 --force")?;
    stage.stored(&old)?;
    cluster.condition("agentpeer db -n skew", "Injected", "True", "AsDeclared")?;
    upgrade(cluster, &["agent.image.tag="])?;
    stage.restart_operators()?;
    Ok("a pod with the former image is counted as outdated until it is made anew".into())
}

/// The same with each list of named things in order of their names.
fn in_order(value: &Value) -> Value {
    match value {
        Value::Array(list) => {
            let mut list: Vec<_> = list.iter().map(in_order).collect();
            list.sort_by_key(|one| one["name"].to_string());
            Value::from(list)
        }
        Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), in_order(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// What the API server says of our own objects.
pub fn validation(stage: &Stage) -> Result<String, Failed> {
    stage.namespace("validated")?;
    stage.is_asked()?;
    let (_, warnings) = stage.create(&trust("early", "validated", "a", "b"))?;
    ensure(warnings.contains("there is no AgentPeer `a`"), || format!("an early AgentTrust: `{warnings}`"))?;
    stage.cluster.apply(&peer("a", "validated"))?;
    stage.cluster.condition("agenttrust early -n validated", "Ready", "False", "WaitingForPeer")?;
    let rival = object("AgentPeer", "rival", Some("validated"), &json!({"selector": {"matchLabels": {"app": "a"}}}));
    let (_, warnings) = stage.create(&rival)?;
    ensure(warnings.contains("AgentPeer `a` selects the same pods"), || format!("a rival: `{warnings}`"))?;
    let mut own = trust("own", "validated", "a", "a");
    own["spec"]["peer"]["namespace"] = "validated".into();
    match stage.create(&own) {
        Ok(_) => Err(Failed::new("an AgentTrust in oneself was taken")),
        Err(refused) if refused.to_string().contains("an agent needs no trust in itself") => {
            Ok("warnings for what may still come, a refusal for what can never be right".into())
        }
        Err(other) => Err(other),
    }
}
