//! How much it takes: many AgentPeers and AgentTrusts on the real API server, and agents by the thousand at one operator.
//! Not part of the tests; figures are in docs/benchmarks. Each line is one figure, with `--json` an object.
//!
//! Objects are made while no operator runs, so that the API server's time is not taken for the operator's. What an operator
//! then takes is from its start to the last status that it writes: every one of them, as after an upgrade that says something
//! else about each object.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::api::{Todo, ours};
use crate::cluster::until_within;
use crate::failed::{Failed, ensure};
use crate::fleet::{self, Fleet, Identity, Known};
use crate::operator::Operator;
use crate::process;
use crate::tests::{QUIET, Stage, object, trust_id};

/// Agents in one namespace; each trusts [`PEERS`] of them, and is trusted by the same.
const IN_NAMESPACE: usize = 1000;
/// Trusts of each agent: of its neighbours on a ring, of those beyond, and of the one opposite.
const PEERS: usize = 5;
/// Changes that are measured.
const CHANGES: usize = 100;
/// Between two of them.
const EVERY: Duration = Duration::from_millis(100);
/// For how long an operator is watched while nothing changes: streams show signs of life every 15 s.
const STILL: Duration = Duration::from_secs(15);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Memory that one operator may use with 1,000 streams, in MB.
const MEMORY: f64 = 300.0;

/// How much is tried.
#[derive(Clone, Debug)]
pub struct Size {
    /// AgentPeers; there are five AgentTrusts for each.
    pub agents: usize,
    /// How many of them are connected, one number after the other.
    pub streams: Vec<usize>,
    /// Whether figures are JSON objects.
    pub json: bool,
}

/// Measures, and tells.
///
/// # Errors
/// Something does not work, or takes more than it may.
pub fn run(stage: &Stage, size: &Size) -> Result<(), Failed> {
    let tell = |what: &str, value: f64, unit: &str| match size.json {
        true => println!("{}", json!({"what": what, "value": (value * 1000.0).round() / 1000.0, "unit": unit})),
        false => println!("{what:<70} {value:>12.3} {unit}"),
    };
    let identities = declare(stage, size, &tell)?;
    converge(stage, size, &tell)?;
    let mut fleets = Vec::new();
    let mut connected = 0;
    for streams in &size.streams {
        let more = identities.get(connected..*streams).ok_or_else(|| Failed::new("more streams than agents"))?;
        fleets.push(connect(stage, more, *streams, &tell)?);
        connected = *streams;
        change(stage, &fleets, connected, IN_NAMESPACE.min(size.agents), &tell)?;
    }
    Ok(())
}

type Tell<'a> = &'a dyn Fn(&str, f64, &str);

fn namespace(number: usize) -> String {
    format!("scale-{}", number / IN_NAMESPACE)
}

/// Makes everything; who the agents are.
fn declare(stage: &Stage, size: &Size, tell: Tell<'_>) -> Result<Vec<Identity>, Failed> {
    stage.operators.borrow_mut().iter_mut().try_for_each(Operator::kill)?;
    let (begun, audience) = (Instant::now(), stage.audience()?);
    let mut identities = Vec::new();
    for number in (0..size.agents).step_by(IN_NAMESPACE) {
        let (name, count) = (namespace(number), IN_NAMESPACE.min(size.agents - number));
        stage.namespace(&name)?;
        identities.extend(stage.runtime.block_on(fleet::populate(&stage.api, &name, "a", count, &audience))?);
        let trusts = (0..count).flat_map(|own| peers(own, count).into_iter().map(move |peer| (own, peer)));
        let trusts = trusts.map(|(own, peer)| consent(&name, own, peer)).collect();
        stage.runtime.block_on(stage.api.all(trusts))?;
    }
    let what =
        format!("to create {} AgentPeers, pods and tokens, and {} AgentTrusts", size.agents, size.agents * PEERS);
    tell(&what, begun.elapsed().as_secs_f64(), "s");
    Ok(identities)
}

/// The peers of one agent of `count`: the relation is mutual.
fn peers(own: usize, count: usize) -> [usize; PEERS] {
    [1, count - 1, 2, count - 2, count / 2].map(|distance| (own + distance) % count)
}

fn consent(namespace: &str, own: usize, peer: usize) -> Todo {
    let spec = json!({"agentRef": {"name": format!("a-{own}")}, "peer": {"name": format!("a-{peer}")}});
    let made = object("AgentTrust", &format!("a-{own}-{peer}"), Some(namespace), &spec);
    Todo::create(ours(namespace, "agenttrusts"), made)
}

/// An operator that starts, finds all of it there, and has said nothing about any of it.
fn converge(stage: &Stage, size: &Size, tell: Tell<'_>) -> Result<(), Failed> {
    let begun = Instant::now();
    for operator in stage.operators.borrow_mut().iter_mut() {
        operator.kill_and_restart()?;
        operator.until_ready()?;
    }
    tell("an operator from its start to ready", begun.elapsed().as_secs_f64(), "s");
    usage(stage, "that is ready", tell)?;
    let objects = (size.agents * (1 + PEERS)) as f64;
    let all = until_within(PATIENCE, || Ok(stage.sum_of_writes() >= objects))?;
    ensure(all, || format!("{} of {objects} statuses were written", stage.sum_of_writes()))?;
    stage.until_written(PATIENCE)?;
    tell("  from its start until every status was written", (begun.elapsed() - QUIET).as_secs_f64(), "s");
    tell("  statuses that it wrote for each object", stage.sum_of_writes() / objects, "");
    usage(stage, "with the objects, no stream", tell)?;
    judged(stage)
}

/// Both sides of each AgentTrust have consented, and no agent runs yet.
fn judged(stage: &Stage) -> Result<(), Failed> {
    stage.cluster.condition("agenttrust a-0-1 -n scale-0", "Ready", "False", "WaitingForAgents")
}

fn connect(stage: &Stage, identities: &[Identity], total: usize, tell: Tell<'_>) -> Result<Fleet, Failed> {
    let (begun, (_, before)) = (Instant::now(), usage_now(stage)?);
    let bytes = stage.sum("peerage_operator_update_bytes_total");
    let fleet = Fleet::start(&stage.runtime, identities.to_vec(), stage.shared_addresses(), &stage.authority()?)?;
    fleet.all("connected with their peers", PATIENCE, |known: &Known| {
        known.is_connected && known.applied.len() == PEERS
    })?;
    let (_, after) = usage_now(stage)?;
    let count = identities.len() as f64;
    tell(&format!("to enrol up to {total} agents"), begun.elapsed().as_secs_f64(), "s");
    tell("  processor time of the operator for each", (after - before).as_secs_f64() * 1000.0 / count, "ms");
    tell("  bytes of updates for each", (stage.sum("peerage_operator_update_bytes_total") - bytes) / count, "B");
    stage.until_written(PATIENCE)?;
    let memory = usage(stage, &format!("with {total} streams"), tell)?;
    ensure(total > 1000 || memory <= MEMORY, || format!("{memory:.0} MB with {total} streams; at most {MEMORY}"))?;
    Ok(fleet)
}

/// Deletes some trusts of the first ring of `ring` agents and makes them anew: what each costs, and whom it touches.
fn change(stage: &Stage, fleets: &[Fleet], total: usize, ring: usize, tell: Tell<'_>) -> Result<(), Failed> {
    let names = ["peerage_operator_update_bytes_total", "peerage_operator_change_streams_sum"];
    let before = names.map(|name| stage.sum(name));
    let updates =
        || fleets.iter().flat_map(|fleet| &fleet.agents).map(|agent| agent.known().updates).collect::<Vec<_>>();
    let still = usage_now(stage)?.1;
    std::thread::sleep(STILL);
    let (had, (_, cpu), begun) = (updates(), usage_now(stage)?, Instant::now());
    let mut took = Vec::new();
    for number in 0..CHANGES {
        took.extend(toggle(stage, &fleets[0], ring, number)?);
        std::thread::sleep(EVERY);
    }
    let ((_, after), lasted) = (usage_now(stage)?, begun.elapsed());
    took.sort();
    let made = (2 * CHANGES) as f64;
    let disturbed = updates().iter().zip(&had).filter(|(now, before)| now != before).count();
    tell(
        &format!("a deletion with {total} streams, from the request to both agents, p50"),
        ms(took[took.len() / 2]),
        "ms",
    );
    tell("  p99", ms(took[took.len() * 99 / 100]), "ms");
    tell("  bytes of updates for each change", (stage.sum(names[0]) - before[0]) / made, "B");
    tell("  streams that each change woke", (stage.sum(names[1]) - before[1]) / made, "");
    tell("  processor time of the operator for each change, all included", ms(after - cpu) / made, "ms");
    let still = (cpu - still).div_duration_f64(STILL) * ms(lasted) / made;
    tell("  of which it would have used while nothing changes", still, "ms");
    tell("  agents that got an update in all", disturbed as f64, &format!("of {total}"));
    ensure(disturbed <= 2 * CHANGES, || format!("{CHANGES} trusts disturbed {disturbed} agents"))
}

/// One consent away and back; how long each of the two agents took to lose it.
fn toggle(stage: &Stage, fleet: &Fleet, ring: usize, number: usize) -> Result<Vec<Duration>, Failed> {
    // Both are connected, and neighbours in time share no agent.
    let own = number * 7 % (fleet.agents.len() - 1);
    let (name, [peer, ..]) = (namespace(0), peers(own, ring));
    let path = format!("{}/a-{own}-{peer}", ours(&name, "agenttrusts"));
    let (asked, trust) = stage.runtime.block_on(async {
        let mut api = stage.api.connect().await?;
        let asked = Instant::now();
        Ok::<_, Failed>((asked, trust_id(&api.send(&Todo::delete(path)).await?)?))
    })?;
    let agents: Vec<_> = [own, peer].iter().filter_map(|number| fleet.agents.get(*number)).collect();
    let lost = until_within(PATIENCE, || Ok(agents.iter().all(|agent| agent.known().lost(trust).is_some())))?;
    ensure(lost, || format!("trust {trust} still counts"))?;
    let took = agents.iter().filter_map(|agent| Some(agent.known().lost(trust)?.duration_since(asked))).collect();
    stage.runtime.block_on(stage.api.all(vec![consent(&name, own, peer)]))?;
    let back = || Ok(agents.iter().all(|agent| agent.known().applied.len() == PEERS));
    ensure(until_within(PATIENCE, back)?, || "a trust that was made anew does not count".into())?;
    Ok(took)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn usage_now(stage: &Stage) -> Result<(f64, Duration), Failed> {
    let operators = stage.operators.borrow();
    process::usage(operators.first().ok_or_else(|| Failed::new("there is no operator"))?.pid())
}

fn usage(stage: &Stage, when: &str, tell: Tell<'_>) -> Result<f64, Failed> {
    let (memory, cpu) = usage_now(stage)?;
    tell(&format!("memory of an operator {when}"), memory, "MB");
    tell("  processor time since its start", cpu.as_secs_f64(), "s");
    Ok(memory)
}
