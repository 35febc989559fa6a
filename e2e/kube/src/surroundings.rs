//! Injection where others have a say about pods, too: quotas, QoS classes, other mutators; on a real API server, because
//! what it refuses or changes behind us is the question.

use serde_json::{Value, json};

use crate::cluster::until;
use crate::failed::{Failed, ensure};
use crate::injection::{AGENT, env, is, pod};
use crate::tests::Stage;

/// The application's container, as PodSecurity `restricted` admits it, with these resources.
fn asking(resources: &Value) -> Value {
    json!([{
        "name": "app", "image": "none", "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    }])
}

/// A namespace with a ResourceQuota, whose pods must say what their containers get at the most.
pub fn quota(stage: &Stage) -> Result<String, Failed> {
    stage.restricted("quota")?;
    let hard = json!({"limits.cpu": "1", "limits.memory": "1Gi"});
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "all", "namespace": "quota"}, "spec": {"hard": hard}});
    stage.cluster.apply(&quota)?;
    let counted = until(|| {
        let found = stage.cluster.get("resourcequota all -n quota")?.unwrap_or_default();
        Ok(found["status"]["hard"].is_object())
    })?;
    ensure(counted, || "nobody counts what the quota is about".into())?;
    let amounts = json!({"cpu": "100m", "memory": "64Mi"});
    let containers = asking(&json!({"limits": amounts, "requests": {"cpu": "10m"}}));
    let mut asking = pod("asking", "quota", &json!({"containers": containers}));
    match stage.stored(&asking) {
        Err(refused) if refused.to_string().contains("must specify limits.cpu for: peerage-agent") => {}
        other => return Err(Failed::new(format!("an agent without a limit is no question of the quota: {other:?}"))),
    }
    asking["metadata"]["annotations"] = json!({"peerage.dev/agent-limits": "cpu=200m"});
    let agent = stage.stored(&asking)?["spec"]["initContainers"][0].take();
    is(&agent["resources"]["limits"], &json!({"cpu": "200m", "memory": "128Mi"}), "the agent's limits")?;
    asking["metadata"]["name"] = "beyond".into();
    asking["metadata"]["annotations"] = json!({"peerage.dev/agent-limits": "memory=8Mi"});
    let (_, warnings) = stage.create(&asking)?;
    ensure(warnings.contains("24Mi is above its limit 8Mi"), || format!("it is not told why: {warnings}"))?;
    Ok("an annotation gives the agent the limit that a quota asks for; an impossible one leaves the pod alone".into())
}

/// Pods that Kubernetes has promised something keep that.
pub fn promises(stage: &Stage) -> Result<String, Failed> {
    stage.restricted("promises")?;
    let amounts = json!({"cpu": "100m", "memory": "64Mi"});
    let guaranteed = json!({"containers": asking(&json!({"limits": amounts}))});
    let stored = stage.stored(&pod("guaranteed", "promises", &guaranteed))?;
    is(&stored["spec"]["initContainers"][0]["name"], &AGENT.into(), "the first init container")?;
    is(&stored["status"]["qosClass"], &"Guaranteed".into(), "its QoS class")?;
    let mut whole = json!({"containers": asking(&json!({"requests": amounts}))});
    whole["resources"] = json!({"requests": amounts, "limits": amounts});
    let stored = stage.stored(&pod("whole", "promises", &whole))?;
    is(&stored["spec"]["initContainers"][0]["name"], &AGENT.into(), "the first init container")?;
    is(&stored["spec"]["resources"]["requests"], &amounts, "what the pod has as a whole")?;
    Ok("a Guaranteed pod stays one, and resources of a pod as a whole are shared with its agent".into())
}

/// A mutator that comes after the webhook: a policy that puts an init container first, and a nameserver beside ours, into each
/// pod that has an agent.
fn second_mutator(namespace: &str) -> [Value; 2] {
    let group = "admissionregistration.k8s.io/v1beta1";
    let own = "Object.spec.initContainers{name: 'second', image: 'none'}";
    let first = format!("JSONPatch{{op: 'add', path: '/spec/initContainers/0', value: {own}}}");
    let server = "JSONPatch{op: 'add', path: '/spec/dnsConfig/nameservers/0', value: '169.254.20.10'}";
    let has = |name: &str| format!("object.spec.initContainers.exists(c, c.name == '{name}')");
    let condition = format!("has(object.spec.initContainers) && {} && !{}", has(AGENT), has("second"));
    // Not a matchCondition: a policy that did not match the first time is not asked again.
    let changes = format!("{condition} ? [{first}, {server}] : []");
    let policy = json!({
        "apiVersion": group, "kind": "MutatingAdmissionPolicy", "metadata": {"name": "second"},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            },
            "failurePolicy": "Fail", "reinvocationPolicy": "IfNeeded",
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": changes}}],
        },
    });
    let binding = json!({"apiVersion": group, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": "second"}, "spec": {"policyName": "second"}});
    [policy, binding]
}

/// What another mutator does behind the webhook does not undo it.
pub fn reinvoked(stage: &Stage) -> Result<String, Failed> {
    stage.namespace("reinvoked")?;
    stage.cluster.kubectl("label namespace reinvoked peerage.dev/injection=enabled")?;
    stage.is_asked()?;
    let mutator = second_mutator("reinvoked");
    for object in &mutator {
        stage.cluster.apply(object)?;
    }
    let probe = pod("probe", "reinvoked", &json!({}));
    let mut made = Value::Null;
    let acted = until(|| {
        made = stage.tried(&probe)?;
        Ok(made["spec"]["initContainers"].as_array().is_some_and(|all| all.len() == 2))
    });
    stage.cluster.kubectl("delete mutatingadmissionpolicy,mutatingadmissionpolicybinding second")?;
    ensure(acted?, || format!("the other mutator has no effect: {made}"))?;
    let agent = &made["spec"]["initContainers"][0];
    is(&agent["name"], &AGENT.into(), "the first init container")?;
    is(&made["spec"]["dnsConfig"]["nameservers"], &json!(["127.64.0.1"]), "the pod's nameservers")?;
    ensure(env(agent, "PEERAGE_DNS") == "169.254.20.10,10.96.0.10", || {
        format!("the agent asks {}", env(agent, "PEERAGE_DNS"))
    })?;
    Ok("the agent is first and the only nameserver again, and asks the one that was put beside it".into())
}
