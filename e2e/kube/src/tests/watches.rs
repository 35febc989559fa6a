//! Connections to the API server that die without a word: a replica that hears nothing must know it, and must not serve
//! what may be long over.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Stage, peer, trust, trust_id};
use crate::api::{Todo, ours};
use crate::cluster::{PATIENCE, until_within};
use crate::failed::{Failed, ensure};
use crate::fleet::{self, Fleet, Identity, Knock, Known};
use crate::gate::Gate;
use crate::operator::Operator;

/// The promise.
const WITHIN: Duration = Duration::from_secs(60);
/// How long an alarm may take to be seen from outside: readiness is compared twice a second.
const SLACK: Duration = Duration::from_secs(2);
const NAMESPACE: &str = "watches";

/// A replica whose way to the API server goes through a gate, and an agent that knows of no other replica.
struct Watched {
    gate: Gate,
    operator: Operator,
    fleet: Fleet,
}

pub(super) fn dead_watch(stage: &Stage) -> Result<String, Failed> {
    stage.namespace(NAMESPACE)?;
    let audience = stage.audience()?;
    let populate = fleet::populate(&stage.api, NAMESPACE, "a", 2, &audience);
    let mut identities = stage.runtime.block_on(populate)?.into_iter();
    stage.cluster.apply(&peer("b", NAMESPACE))?;
    let mut consents = Vec::new();
    for agent in ["a-0", "a-1"] {
        for (own, other) in [(agent, "b"), ("b", agent)] {
            let made = trust(&format!("{own}-{other}"), NAMESPACE, own, other);
            let create = Todo::create(ours(NAMESPACE, "agenttrusts"), made);
            consents.push(stage.runtime.block_on(async { stage.api.connect().await?.send(&create).await })?);
        }
    }
    let mut next = || identities.next().ok_or_else(|| Failed::new("there are two agents"));
    let first = 4; // above the replicas that are there
    let one = Watched::start(stage, first, next()?)?;
    let other = Watched::start(stage, first + 1, next()?)?;

    // Of the first replica, the connections that are open die; of the second one, all that will be opened, too.
    one.gate.kill_open();
    other.gate.kill_all();
    let died = Instant::now();
    for agent in ["a-0", "a-1"] {
        let delete = Todo::delete(ours(NAMESPACE, &format!("agenttrusts/b-{agent}")));
        stage.runtime.block_on(async { stage.api.connect().await?.send(&delete).await })?;
    }
    let alarm = other.alarms(stage, died)?;
    let found = one.finds_the_deletion(&consents, 1, died)?;

    // A way to the API server is there again.
    other.gate.kill_open();
    let mut operator = other.operator;
    operator.until_ready()?;
    other
        .fleet
        .all("connected again, without the peer", PATIENCE, |known| known.is_connected && known.applied.is_empty())?;
    Ok(format!(
        "watches that died alone were replaced and their news came after {:.0} s; a replica without any said so after {:.0} s: not ready, \
         its streams ended and new ones refused; it recovered by itself",
        found.as_secs_f64(),
        alarm.as_secs_f64()
    ))
}

impl Watched {
    fn start(stage: &Stage, number: u8, identity: Identity) -> Result<Self, Failed> {
        let gate = Gate::open(&stage.runtime, stage.api.address())?;
        let program = &stage.programs.operator;
        let mut operator = Operator::launch_through(&stage.cluster, program, number, Some(gate.address))?;
        operator.until_ready()?;
        let only = std::sync::Arc::new(std::sync::Mutex::new(vec![operator.agents]));
        let fleet = Fleet::start(&stage.runtime, vec![identity], only, &stage.authority()?)?;
        fleet.all("connected with a peer", PATIENCE, |known| known.is_connected && known.applied.len() == 1)?;
        Ok(Self { gate, operator, fleet })
    }

    /// The agent hears of the deletion of the consent with this number, though the watch had died before.
    fn finds_the_deletion(&self, consents: &[Value], number: usize, died: Instant) -> Result<Duration, Failed> {
        let trust = trust_id(&consents[number])?;
        let lost = |known: &Known| known.lost(trust);
        self.fleet.all("told of the deletion", WITHIN + SLACK, |known| lost(known).is_some())?;
        let known = self.fleet.agents[0].known();
        let took = lost(&known).map_or(Duration::MAX, |at| at.duration_since(died));
        ensure(took < WITHIN, || format!("a deletion behind a dead watch was heard after {took:?}"))?;
        ensure(self.operator.is_ready(), || format!("the replica is not ready: {}", self.operator.end_of_log()))?;
        Ok(took)
    }

    /// It says that it cannot be relied upon, in each of the ways.
    fn alarms(&self, stage: &Stage, died: Instant) -> Result<Duration, Failed> {
        let alarmed = until_within(WITHIN + SLACK, || Ok(!self.operator.is_ready()))?;
        ensure(alarmed, || "a replica that hears nothing is ready".into())?;
        let took = died.elapsed();
        ensure(took < WITHIN + SLACK, || format!("it took {took:?}"))?;
        let age = self.operator.metric("peerage_operator_watch_age_seconds{kind=\"agenttrusts\"}");
        ensure(age.is_some_and(|age| age > 30.0), || format!("the metric says that the watch is {age:?} s old"))?;
        self.fleet.all("told to go elsewhere", PATIENCE, |known| !known.is_connected)?;
        let authority = stage.authority()?;
        let knock = stage.runtime.block_on(Knock::at(self.operator.agents, &authority));
        let refused = knock.err().map(|failed| failed.to_string()).unwrap_or_default();
        ensure(refused.contains("503"), || format!("a new stream is not refused, but: {refused}"))?;
        Ok(took)
    }
}
