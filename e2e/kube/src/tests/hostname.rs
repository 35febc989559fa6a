//! What it is all for: a program reaches another one by name, if and only if both owners have consented.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::Stage;
use crate::api::{Todo, ours};
use crate::cluster::until;
use crate::failed::{Failed, ensure};
use crate::pair::{Pair, dbs_consent, reporters_consent};

/// A reset that took longer than this was none of the deletion's.
const RESET: Duration = Duration::from_secs(10);
/// How often a container is restarted.
const RESTARTS: usize = 3;

pub(super) fn hostname(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    let pair = stage.pair()?;
    cluster.kubectl("wait agentrelay/main --for=condition=Ready --timeout=60s")?;
    for agent in ["db -n tools", "reporter -n reports"] {
        cluster.kubectl(&format!("wait agentpeer {agent} --for=condition=Enrolled --timeout=60s"))?;
    }
    unreachable_by_name(&pair, "before anybody consented")?;
    cluster.apply(&reporters_consent())?;
    cluster.condition("agenttrust uses-db -n reports", "Ready", "False", "WaitingForPeer")?;
    unreachable_by_name(&pair, "with one consent only")?;
    cluster.apply(&dbs_consent())?;
    cluster.kubectl("wait -n reports agenttrust/uses-db --for=condition=Ready --timeout=60s")?;
    cluster.kubectl("wait -n tools agenttrust/serves-reporter --for=condition=Ready --timeout=60s")?;
    let first = pair.until_answered("db")?;
    pair.until_answered("db.tools.peer.internal")?;
    path_is(stage, "Direct")?;

    let mut resets = Vec::new();
    for (path, consent) in [
        (ours("tools", "agenttrusts/serves-reporter"), dbs_consent()),
        (ours("reports", "agenttrusts/uses-db"), reporters_consent()),
    ] {
        let stream = pair.open_stream("db")?;
        resets.push(revoke(stage, &stream, path)?);
        unreachable_by_name(&pair, "after one side took it back")?;
        cluster.apply(&consent)?;
        pair.until_answered("db")?;
    }
    let resets: Vec<String> = resets.iter().map(|took| format!("{} ms", took.as_millis())).collect();
    Ok(format!(
        "by name after both consents ({} ms), not before; direct; either side's deletion resets a stream ({} after the write)",
        first.as_millis(),
        resets.join(", ")
    ))
}

/// Deletes what is at `path`; from the request to the reset of the stream.
pub(super) fn revoke(stage: &Stage, stream: &crate::pair::Stream, path: String) -> Result<Duration, Failed> {
    revoke_at(stage, stream, Todo::delete(path), RESET)
}

/// Does `todo`; from the request to the reset of the stream, which must come within `patience`.
pub(super) fn revoke_at(
    stage: &Stage,
    stream: &crate::pair::Stream,
    todo: Todo,
    patience: Duration,
) -> Result<Duration, Failed> {
    stream.flows()?;
    let asked = stage.runtime.block_on(async {
        let mut api = stage.api.connect().await?;
        let asked = Instant::now();
        api.send(&todo).await?;
        Ok::<_, Failed>(asked)
    })?;
    Ok(stream.ended(patience)?.duration_since(asked))
}

fn unreachable_by_name(pair: &Pair, when: &str) -> Result<(), Failed> {
    match pair.fetch("db") {
        Ok(body) => Err(Failed::new(format!("{when}, http://db/ says `{body}`"))),
        // Who is not trusted is not named.
        Err(failed) => {
            ensure(failed.to_string().contains("Could not resolve host"), || format!("{when}, curl says {failed}"))
        }
    }
}

fn path_is(stage: &Stage, wanted: &str) -> Result<(), Failed> {
    let mut last = Value::Null;
    let found = until(|| {
        let trust = stage.cluster.get("agenttrust uses-db -n reports")?;
        last = trust.map_or(Value::Null, |mut trust| trust["status"]["path"].take());
        Ok(last == wanted)
    })?;
    ensure(found, || format!("the path is {last}, expected {wanted}"))
}

/// The sidecar's container dies; what it knew is on the memory volume. Nothing is asked of an operator that is not there.
pub(super) fn container(stage: &Stage) -> Result<String, Failed> {
    let mut pair = stage.trusting_pair()?;
    let longest = stage.without_operators(|| {
        let mut longest = Duration::ZERO;
        for _ in 0..RESTARTS {
            pair.restart_reporter(stage)?;
            longest = longest.max(pair.until_answered("db")?);
        }
        let log = pair.reporter.agent.log();
        let resumed = log.matches("going on with the passport that was here").count();
        ensure(resumed == RESTARTS, || {
            format!("{resumed} of {RESTARTS} containers went on with their passport: {log}")
        })?;
        pair.db.agent.says("no operator has confirmed this agent's peers for longer than maxStaleness")?;
        pair.until_answered("db")?; // an alarm is no end
        Ok(longest)
    })?;
    pair.db.agent.says("an operator has confirmed this agent's peers again")?;
    Ok(format!(
        "{RESTARTS} restarts with every operator away: the same passport, and an answer after at most {} ms; an alarm when nobody had \
         confirmed the peers for too long, and its end",
        longest.as_millis()
    ))
}
