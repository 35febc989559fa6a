//! The authority's keys: renewed, damaged, and lost.

use serde_json::json;

use super::Stage;
use crate::cluster::until_within;
use crate::cluster::{Cluster, PATIENCE, until};
use crate::failed::{Failed, Trying, ensure};
use crate::fleet::Knock;
use crate::operator::{NAMESPACE, Operator};

/// The number of a replica that is started beside the others.
const ANOTHER: u8 = 6;

pub(super) fn rotation_begins(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let stream = stage.trusting_pair()?.open_stream("db")?;
    let keys = || cluster.kubectl(&format!("get secret peerage-authority -n {NAMESPACE} -o jsonpath={{.data}}"));
    let (old, authority) = (keys()?, stage.authority()?);
    cluster.kubectl(&format!("annotate secret peerage-authority -n {NAMESPACE} peerage.dev/rotate=now"))?;
    let rotated = until(|| Ok(keys()? != old))?;
    ensure(rotated, || "the keys are the old ones".into())?;
    ensure(stage.authority()? == authority, || "the authority's fingerprint changed with its keys".into())?;
    stream.flows()?;
    stage.keep_stream(stream);
    Ok("new keys beside the old ones, and the same fingerprint".into())
}

/// Two minutes later the new keys sign. The stream that was opened under the old ones has not noticed.
pub(super) fn rotation_ends(stage: &Stage) -> Result<String, Failed> {
    let authority = stage.authority()?;
    for place in stage.addresses() {
        let sequence = || stage.runtime.block_on(Knock::at(place, &authority)).map(|knock| knock.record);
        let promoted = until_within(PATIENCE * 2, || Ok(sequence()? == 2))?;
        ensure(promoted, || format!("the operator at {place} signs with the old keys"))?;
    }
    let stream = stage.kept_stream().ok_or_else(|| Failed::new("`rotation-begins` has opened no stream"))?;
    stream.flows()?;
    let pair = stage.pair()?;
    pair.until_answered("db")?;
    pair.open_stream("db")?.flows()?;
    Ok("every replica signs with the new keys, a stream from before goes on, and new ones open".into())
}

/// Whoever has the keys in memory goes on; whoever has not must not make others.
pub(super) fn damaged_secret(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let path = format!("secret peerage-authority -n {NAMESPACE}");
    let current = cluster.kubectl(&format!("get {path} -o jsonpath={{.data.current}}"))?;
    let write = |value: &str| {
        let patch = json!({"data": {"current": value}}).to_string();
        cluster.run(
            "kubectl",
            &["patch", "secret", "peerage-authority", "-n", NAMESPACE, "--type=merge", "-p", &patch],
            "",
        )
    };
    write(&data_encoding::BASE64.encode(b"these are no keys"))?;
    let say = |value| {
        let usable = |one: &Operator| one.metric("peerage_operator_authority_usable") == Some(value);
        until(|| Ok(stage.operators.borrow().iter().all(usable)))
    };
    ensure(say(0.0)?, || "no metric says that the keys are damaged".into())?;
    ensure(stage.operators.borrow().iter().all(Operator::is_ready), || "who has the keys stopped to serve".into())?;
    let mut newcomer = Operator::launch(cluster, &stage.programs.operator, ANOTHER)?;
    let told = until(|| Ok(newcomer.log().contains("does not hold an authority's keys")))?;
    ensure(told && !newcomer.is_ready(), || format!("the newcomer says: {}", newcomer.end_of_log()))?;
    event(cluster, "AuthorityDamaged")?;
    write(&current)?;
    newcomer.until_ready()?;
    ensure(say(1.0)?, || "the metric still says that the keys are damaged".into())?;
    Ok("replicas that have the keys serve on and say so, a new one waits and makes none, and all go on with the backup"
        .into())
}

pub(super) fn lost_secret(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let secret = cluster.get(&format!("secret peerage-authority -n {NAMESPACE}"))?;
    let mut secret = secret.ok_or_else(|| Failed::new("the operator made no Secret"))?;
    cluster.kubectl(&format!("delete secret peerage-authority -n {NAMESPACE}"))?;
    let replicas = stage.operators.borrow().len();
    stage.operators.borrow_mut().clear();
    let orphan = Operator::launch(cluster, &stage.programs.operator, 0)?;
    let told = until(|| Ok(orphan.log().contains("Restore the Secret")))?;
    ensure(told, || format!("it does not say that the Secret is gone: {}", orphan.end_of_log()))?;
    ensure(!orphan.is_ready(), || "it is ready without keys".into())?;
    let minted = cluster.get(&format!("secret peerage-authority -n {NAMESPACE}"))?;
    ensure(minted.is_none(), || "it made new keys where agents remember old ones".into())?;
    event(cluster, "AuthorityLost")?;
    drop(orphan);
    for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        secret["metadata"].as_object_mut().map(|metadata| metadata.remove(field));
    }
    cluster.run("kubectl", &["create", "-f", "-"], &secret.to_string())?;
    for number in 0..replicas {
        let number = u8::try_from(number).trying("count operators")?;
        stage.operators.borrow_mut().push(Operator::start(cluster, &stage.programs.operator, number)?);
    }
    Ok("no keys are made anew, the log says what to do, and the restored Secret is used".into())
}

/// Waits for an Event of the operator's that was repeated: it is counted, not written again.
fn event(cluster: &Cluster, reason: &str) -> Result<(), Failed> {
    let repeated = until(|| {
        let events = cluster.get(&format!("events.events.k8s.io -n {NAMESPACE}"))?.unwrap_or_default();
        let mut events = events["items"].as_array().into_iter().flatten();
        Ok(events.any(|event| event["reason"] == reason && event["series"]["count"].as_i64() >= Some(2)))
    })?;
    ensure(repeated, || format!("no Event says {reason}, again and again"))
}
