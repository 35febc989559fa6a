//! That the API server is answered: by an operator that was told to stop, and whatever becomes of its certificate.

use serde_json::{Value, json};

use crate::api::Todo;
use crate::cluster::until;
use crate::failed::{Failed, ensure};
use crate::injection::{AGENT, is, pod};
use crate::operator::{NAMESPACE, Operator};
use crate::tests::Stage;

/// Pods that are made once an operator has left. It goes on answering for 15 s; the API server of these tests asks that one and
/// no other.
const PODS: usize = 10;

/// An operator that was told to stop leads and serves agents no more, and answers the API server until that has heard of it.
pub fn leaving(stage: &Stage) -> Result<String, Failed> {
    stage.restricted("leaving")?;
    let mut operators = stage.operators.borrow_mut();
    let first = operators.first_mut().ok_or_else(|| Failed::new("there is no operator"))?;
    first.tell_to_stop()?;
    // By then it has done everything else that there is to do at the end.
    let left = until(|| {
        let lease = stage.cluster.get(&format!("lease peerage-operator -n {NAMESPACE}"))?.unwrap_or_default();
        Ok(lease["spec"]["holderIdentity"] != "operator-0" && !first.serves_agents())
    })?;
    let path = "/api/v1/namespaces/leaving/pods";
    let pods = (0..PODS).map(|number| Todo::create(path, pod(&format!("pod-{number}"), "leaving", &json!({}))));
    let made = stage.runtime.block_on(stage.api.all(pods.collect()))?;
    let without = made.iter().filter(|made| made["spec"]["initContainers"][0]["name"] != AGENT).count();
    let ended = first.until_ended()?;
    *first = Operator::start(&stage.cluster, &stage.programs.operator, 0)?;
    ensure(left, || "it leads, or serves agents, until the end".into())?;
    ensure(without == 0, || format!("{without} of {PODS} pods were let in without an agent"))?;
    ensure(ended.success(), || format!("it ended with {ended}"))?;
    Ok(format!("{PODS} pods that were made after it had left have their agents; then it ended by itself"))
}

/// Somebody deletes the Secret with the webhooks' certificate.
pub fn lost_certificate(stage: &Stage) -> Result<String, Failed> {
    stage.restricted("lost")?;
    let ca = || -> Result<Value, Failed> {
        let secret = stage.cluster.get(&format!("secret peerage-webhook -n {NAMESPACE}"))?.unwrap_or_default();
        Ok(secret["data"]["ca.crt"].clone())
    };
    let before = ca()?;
    ensure(before.is_string(), || "there is no certificate to lose".into())?;
    stage.cluster.kubectl(&format!("delete secret peerage-webhook -n {NAMESPACE}"))?;
    let mut after = Value::Null;
    let mut made = 0;
    let back = until(|| {
        let (pod, _) = stage.create(&pod(&format!("pod-{made}"), "lost", &json!({})))?;
        is(&pod["spec"]["initContainers"][0]["name"], &AGENT.into(), "the first init container meanwhile")?;
        made += 1;
        after = ca()?;
        Ok(after.is_string())
    })?;
    ensure(back, || "nobody writes it again".into())?;
    is(&after, &before, "the CA")?;
    Ok(format!("whoever knows it writes it again; {made} pods made meanwhile have their agents"))
}
