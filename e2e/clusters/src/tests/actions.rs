//! From two empty clusters to the first answered request, with what the README says and nothing else; and what it took.

use std::time::Instant;

use peerage_suite::failed::{Failed, ensure};

use crate::stage::Stage;

const PAGE: &str = "README.md";
const HEADING: &str = "Two clusters, four actions";
/// What the page writes where somebody's own relay belongs.
const RELAY: &str = "KEY@relay.example.com:3478";

/// Every command of the page, as printed but for the relay. The last one is the request.
pub fn four(stage: &Stage) -> Result<String, Failed> {
    let (relay, begun) = (stage.relay()?, Instant::now());
    let (mut took, mut answer) = (Vec::new(), String::new());
    let steps = stage.hub.pods.steps(PAGE, HEADING)?;
    for step in &steps {
        let at = Instant::now();
        answer = stage.shell(&step.replace(RELAY, &relay))?;
        took.push(format!("{:.1} s {}", at.elapsed().as_secs_f64(), words(step)));
    }
    let total = begun.elapsed().as_secs_f64();
    ensure(answer.contains("answers 127."), || format!("the last step says `{answer}`"))?;
    Ok(format!("{} commands, {total:.1} s from helm install to `{answer}`: {}", steps.len(), took.join(", ")))
}

/// What a command does, for a line that somebody reads.
fn words(step: &str) -> String {
    let last = step.rsplit(" | ").next().unwrap_or(step);
    last.split_whitespace().filter(|word| !word.starts_with("--")).take(4).collect::<Vec<_>>().join(" ")
}
