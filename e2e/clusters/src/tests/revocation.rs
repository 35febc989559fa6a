//! How long an open stream outlives the consent to it, on either side of the world.

use std::time::{Duration, SystemTime};

use peerage_e2e_pods::cluster::{Running, until};
use peerage_e2e_pods::stage::{agent, deployment, restricted};
use peerage_suite::failed::{Failed, Trying as _, ensure};
use serde_json::Value;

use super::REPORTER;
use crate::side::Side;
use crate::stage::Stage;

/// From the start of `kubectl delete` to the reset that the application sees, on the side where that takes longer.
const LIMIT: Duration = Duration::from_secs(2);
const OF_HUB: &str = "clock-reporter -n tools";
const OF_BRANCH: &str = "reporter-clock -n reports";

/// Either side's owner deletes its consent, in turns; a stream that is open ends on both sides.
pub fn across(stage: &Stage) -> Result<String, Failed> {
    begin(stage)?;
    let mut all = Vec::new();
    for run in 0..stage.runs {
        let (side, trust) = if run % 2 == 0 { (&stage.hub, OF_HUB) } else { (&stage.branch, OF_BRANCH) };
        let word = format!("run-{run}");
        let open = open(stage, "clock:80", &word)?;
        if run == 0 {
            stage.branch.trust(OF_BRANCH, |trust| trust["status"]["path"] == "Relayed")?;
        }
        all.push(revoke(stage, side, trust, &word, open)?);
        consent(stage, side)?;
    }
    all.sort();
    let (median, longest) = (all[all.len() / 2], all[all.len() - 1]);
    ensure(longest < LIMIT, || format!("a stream lived {} ms; all: {all:?}", longest.as_millis()))?;
    Ok(format!(
        "{} times, relayed, from `kubectl delete` on one side to the later of both resets: median {} ms, at most {} ms",
        all.len(),
        median.as_millis(),
        longest.as_millis()
    ))
}

/// A server in the hub whose streams stay open, and consent on both sides.
fn begin(stage: &Stage) -> Result<(), Failed> {
    let serve = stage.hub.pods.container(&["app", "echo", "0.0.0.0:8080"], &[8080]);
    let server = [agent("clock", "tools", &[("time", 80, 8080)]), deployment("clock", "tools", &restricted(&serve))];
    stage.hub.cluster().apply(&server)?;
    consent(stage, &stage.hub)?;
    consent(stage, &stage.branch)?;
    stage.hub.cluster().kubectl("rollout status -n tools deployment/clock --timeout=120s").map(drop)
}

fn consent(stage: &Stage, side: &Side) -> Result<(), Failed> {
    let across = stage.across(side);
    let (namespace, ours, theirs, inbound) = match side.context {
        "hub" => ("tools", "clock", "reporter.reports", &["time"][..]),
        _ => ("reports", "reporter", "clock.tools", &[][..]),
    };
    side.cluster().apply(&[side.trust_across(across, namespace, ours, theirs, inbound)?])
}

/// A stream from the reporter to a server that answers what begins with `word`, once it is open.
///
/// # Errors
/// None opens.
pub fn open(stage: &Stage, target: &str, word: &str) -> Result<Running, Failed> {
    let mut found = None;
    let mut why = String::new();
    until(|| {
        match stage.branch.cluster().begin(REPORTER, &["app", "hold", target, word]) {
            Ok(running) => found = Some(running),
            Err(failed) => why = failed.to_string(),
        }
        Ok(found.is_some())
    })?;
    found.ok_or_else(|| Failed::new(format!("no stream opens: {why}")))
}

/// A stream that is to outlive something.
#[derive(Debug)]
pub struct Held {
    word: String,
    _running: Running,
}

/// Opens one; agents and consents for it are made if they are not there.
///
/// # Errors
/// It does not open.
pub fn stay(stage: &Stage, word: &str) -> Result<Held, Failed> {
    begin(stage)?;
    Ok(Held { word: word.to_owned(), _running: open(stage, "clock:80", word)? })
}

impl Held {
    /// Whether it is open, by the server's word; the client says something on it each second.
    ///
    /// # Errors
    /// It has ended.
    pub fn goes_on(&self, stage: &Stage) -> Result<(), Failed> {
        let end = server_end(stage, &self.word)?;
        ensure(end.is_null(), || format!("the stream ended: {end}"))
    }
}

/// How the server's end of a stream ended; null while it is open.
fn server_end(stage: &Stage, word: &str) -> Result<Value, Failed> {
    let said = stage.hub.cluster().kubectl("logs -n tools deployment/clock -c app --tail=50")?;
    let mut lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(lines.find(|line| line["word"] == word).unwrap_or_default())
}

fn revoke(stage: &Stage, side: &Side, trust: &str, word: &str, open: Running) -> Result<Duration, Failed> {
    let begun = since_epoch(SystemTime::now())?;
    side.cluster().kubectl(&format!("delete agenttrust {trust} --wait=false"))?;
    let client: Value = serde_json::from_str(&open.end()?).trying("read how a stream ended")?;
    let mut server = Value::Null;
    let ended = until(|| {
        server = server_end(stage, word)?;
        Ok(!server.is_null())
    })?;
    ensure(ended, || format!("the stream {word} did not end at the server"))?;
    let mut last = Duration::ZERO;
    for end in [&client, &server] {
        ensure(end["how"] == "ConnectionReset", || format!("a stream ended otherwise: {client} {server}"))?;
        let at = Duration::from_millis(end["at_ms"].as_u64().unwrap_or(u64::MAX));
        last = last.max(at.saturating_sub(begun));
    }
    Ok(last)
}

fn since_epoch(time: SystemTime) -> Result<Duration, Failed> {
    time.duration_since(SystemTime::UNIX_EPOCH).trying("read the clock")
}
