//! That the API server is answered: by an operator that was told to stop, and whatever becomes of its certificate.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::until;
use crate::failed::{Failed, ensure};
use crate::injection::{AGENT, is, pod};
use crate::operator::{NAMESPACE, Operator};
use crate::tests::Stage;

/// For how long pods are made after an operator was told to stop: nodes of a real cluster go on asking it for a second or two.
/// It goes on answering for 15 s, and the API server of these tests asks that one and no other.
const MEANWHILE: Duration = Duration::from_secs(5);

/// An operator that was told to stop serves agents no more, and answers the API server until that has heard of it.
pub fn leaving(stage: &Stage) -> Result<String, Failed> {
    stage.restricted("leaving")?;
    let mut operators = stage.operators.borrow_mut();
    let first = operators.first_mut().ok_or_else(|| Failed::new("there is no operator"))?;
    first.tell_to_stop()?;
    let begun = Instant::now();
    let (mut made, mut without) = (0, 0);
    while begun.elapsed() < MEANWHILE {
        let (pod, _) = stage.create(&pod(&format!("pod-{made}"), "leaving", &json!({})))?;
        made += 1;
        without += usize::from(pod["spec"]["initContainers"][0]["name"] != AGENT);
    }
    let served = first.serves_agents();
    let ended = first.until_ended()?;
    *first = Operator::start(&stage.cluster, &stage.programs.operator, 0)?;
    ensure(!served, || "agents can still connect to it".into())?;
    ensure(without == 0, || format!("{without} of {made} pods were let in without an agent"))?;
    ensure(ended.success(), || format!("it ended with {ended}"))?;
    Ok(format!("{made} pods made after it was told have their agents; then it ended by itself"))
}

/// Somebody deletes the Secret with the webhooks' certificate, or writes something else into it.
pub fn lost_certificate(stage: &Stage) -> Result<String, Failed> {
    stage.restricted("lost")?;
    let ca = || -> Result<Value, Failed> {
        let secret = stage.cluster.get(&format!("secret peerage-webhook -n {NAMESPACE}"))?.unwrap_or_default();
        Ok(secret["data"]["ca.crt"].clone())
    };
    let before = ca()?;
    ensure(before.is_string(), || "there is no certificate to lose".into())?;
    let damage = json!({"data": {"ca.crt": data_encoding::BASE64.encode(b"this is no certificate")}}).to_string();
    let mut made = 0;
    for lose in [vec!["delete"], vec!["patch", "--type=merge", "-p", &damage]] {
        let secret = ["secret", "peerage-webhook", "-n", NAMESPACE];
        stage.cluster.run("kubectl", &[&lose[..1], &secret[..], &lose[1..]].concat(), "")?;
        let back = until(|| {
            let (pod, _) = stage.create(&pod(&format!("pod-{made}"), "lost", &json!({})))?;
            is(&pod["spec"]["initContainers"][0]["name"], &AGENT.into(), "the first init container meanwhile")?;
            made += 1;
            Ok(ca()? == before)
        })?;
        ensure(back, || format!("nobody writes the same CA again after kubectl {}", lose[0]))?;
    }
    Ok(format!("gone or damaged, whoever knows it writes it again; {made} pods made meanwhile have their agents"))
}
