//! Operators that are killed at any moment: what is true in the end is what would have been true anyway, and nobody who
//! was told to stop begins again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use peerage_model::TrustId;
use serde_json::{Value, json};

use super::{Stage, object, trust_id};
use crate::api::{Todo, ours};
use crate::cluster::{PATIENCE, until};
use crate::failed::{Failed, ensure};
use crate::fleet::{self, Fleet, Known};

/// Agents; each of the ordered pairs of them has a consent or has none.
const AGENTS: usize = 6;
/// Consents that are declared or deleted.
const CHANGES: usize = 200;
/// One change in so many is followed by a kill.
const KILL_EVERY: u64 = 8;
/// Longest wait between two changes, so that kills fall into all that follows one.
const LONGEST: u64 = 200;
/// How often the stream of the real pair is looked at.
const LOOK_EVERY: usize = 20;

pub(super) fn kills(stage: &Stage) -> Result<String, Failed> {
    let calm = Run::new(stage, "calm")?;
    let (calm, _) = calm.change(stage, 0x9e37_79b9, false)?;
    let expected = calm.conditions(stage)?;

    let stream = stage.trusting_pair()?.open_stream("db")?;
    let stormy = Run::new(stage, "storm")?;
    let (stormy, kills) = stormy.change_beside(stage, 0x9e37_79b9, true, || stream.flows())?;
    let mut found = Conditions::new();
    let same = until(|| {
        found = stormy.conditions(stage)?;
        Ok(found == expected)
    })?;
    ensure(same, || differences(&expected, &found))?;
    ensure(calm.peers() == stormy.peers(), || format!("{:?} is not {:?}", calm.peers(), stormy.peers()))?;
    stormy.took_nothing_back()?;
    stream.flows()?;
    stage.pair()?.until_answered("db")?;
    let declared = stormy.declared.len();
    Ok(format!(
        "{CHANGES} changes and {kills} kills of two replicas: {declared} consents, agents and conditions as without kills; none of {} \
         deleted trusts came back; an open stream went on",
        stormy.deleted.len()
    ))
}

/// One run of changes in a namespace of its own.
struct Run {
    namespace: &'static str,
    fleet: Fleet,
    /// Consents that there are, from whom to whom.
    declared: BTreeMap<(usize, usize), TrustId>,
    /// Those that were deleted, and when.
    deleted: Vec<(TrustId, Instant)>,
}

/// Of each AgentTrust, its conditions' types, statuses and reasons.
type Conditions = BTreeMap<String, Vec<[String; 3]>>;

impl Run {
    fn new(stage: &Stage, namespace: &'static str) -> Result<Self, Failed> {
        stage.namespace(namespace)?;
        let audience = stage.audience()?;
        let identities = stage.runtime.block_on(fleet::populate(&stage.api, namespace, "a", AGENTS, &audience))?;
        let fleet = Fleet::start(&stage.runtime, identities, stage.shared_addresses(), &stage.authority()?)?;
        fleet.all("connected", PATIENCE, |known| known.is_connected)?;
        Ok(Self { namespace, fleet, declared: BTreeMap::new(), deleted: Vec::new() })
    }

    fn change(self, stage: &Stage, seed: u64, kill: bool) -> Result<(Self, usize), Failed> {
        self.change_beside(stage, seed, kill, || Ok(()))
    }

    /// Makes the changes of this seed, and waits until everybody knows what they add up to.
    fn change_beside(
        mut self,
        stage: &Stage,
        seed: u64,
        kill: bool,
        look: impl Fn() -> Result<(), Failed>,
    ) -> Result<(Self, usize), Failed> {
        let mut dice = Dice(seed);
        let mut kills = 0;
        for number in 0..CHANGES {
            self.toggle(stage, &mut dice)?;
            let (dies, who) = (dice.below(KILL_EVERY) == 0, dice.below(64));
            let wait = Duration::from_millis(dice.below(LONGEST));
            if kill {
                std::thread::sleep(wait);
                if dies {
                    let mut operators = stage.operators.borrow_mut();
                    let who = usize::try_from(who).unwrap_or(0) % operators.len();
                    operators[who].kill_and_restart()?;
                    kills += 1;
                }
            }
            if number % LOOK_EVERY == 0 {
                look()?;
            }
        }
        stage.operators.borrow_mut().iter_mut().try_for_each(crate::operator::Operator::until_ready)?;
        let expected = self.expected();
        let settled = || expected == self.peers();
        let found = until(|| Ok(settled()))?;
        ensure(found, || format!("{}: agents may talk to {:?}, expected {expected:?}", self.namespace, self.peers()))?;
        self.until_judged(stage)?;
        Ok((self, kills))
    }

    /// Declares a consent that is not there, or deletes one that is.
    fn toggle(&mut self, stage: &Stage, dice: &mut Dice) -> Result<(), Failed> {
        let agents = AGENTS as u64;
        let from = usize::try_from(dice.below(agents)).unwrap_or(0);
        let to = (from + 1 + usize::try_from(dice.below(agents - 1)).unwrap_or(0)) % AGENTS;
        let name = format!("a-{from}-{to}");
        let trusts = ours(self.namespace, "agenttrusts");
        let todo = match self.declared.remove(&(from, to)) {
            Some(trust) => {
                self.deleted.push((trust, Instant::now()));
                Todo::delete(format!("{trusts}/{name}"))
            }
            None => {
                let spec = json!({"agentRef": {"name": format!("a-{from}")}, "peer": {"name": format!("a-{to}")}});
                Todo::create(trusts, object("AgentTrust", &name, Some(self.namespace), &spec))
            }
        };
        let answer = stage.runtime.block_on(async { stage.api.connect().await?.send(&todo).await })?;
        if answer["kind"] == "AgentTrust" && answer["metadata"]["name"] == name && !self.was_deleted(&answer) {
            self.declared.insert((from, to), trust_id(&answer)?);
        }
        Ok(())
    }

    fn was_deleted(&self, answer: &Value) -> bool {
        trust_id(answer).is_ok_and(|trust| self.deleted.iter().any(|(gone, _)| *gone == trust))
    }

    /// Whom each agent may talk to, by what is declared.
    fn expected(&self) -> Vec<BTreeSet<String>> {
        let mutual =
            |from: usize, to: usize| self.declared.contains_key(&(from, to)) && self.declared.contains_key(&(to, from));
        let peers = |from| (0..AGENTS).filter(|to| mutual(from, *to)).map(|to| format!("a-{to}")).collect();
        (0..AGENTS).map(peers).collect()
    }

    /// Whom each agent talks to.
    fn peers(&self) -> Vec<BTreeSet<String>> {
        let names = |known: &Known| known.applied.keys().map(|peer| peer.name.first_label().to_string()).collect();
        self.fleet.agents.iter().map(|agent| names(&agent.known())).collect()
    }

    /// Waits until each AgentTrust is Ready if, and only if, it is answered.
    fn until_judged(&self, stage: &Stage) -> Result<(), Failed> {
        let wanted: BTreeMap<String, &str> = self
            .declared
            .keys()
            .map(|(from, to)| {
                let mutual = self.declared.contains_key(&(*to, *from));
                (format!("a-{from}-{to}"), if mutual { "True" } else { "False" })
            })
            .collect();
        let mut found = Conditions::new();
        let judged = until(|| {
            found = self.conditions(stage)?;
            let is = |name: &String, status: &str| {
                let ready = found.get(name).into_iter().flatten().find(|condition| condition[0] == "Ready");
                ready.is_some_and(|ready| ready[1] == status)
            };
            Ok(wanted.iter().all(|(name, status)| is(name, status)))
        })?;
        ensure(judged, || format!("expected {wanted:?}, found {found:?}"))
    }

    fn conditions(&self, stage: &Stage) -> Result<Conditions, Failed> {
        let list = stage.cluster.get(&format!("agenttrusts -n {}", self.namespace))?.unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let of = |trust: &Value| {
            let conditions = trust["status"]["conditions"].as_array().into_iter().flatten();
            conditions.map(|one| [text(&one["type"]), text(&one["status"]), text(&one["reason"])]).collect()
        };
        let all = list["items"].as_array().into_iter().flatten();
        Ok(all.map(|trust| (text(&trust["metadata"]["name"]), of(trust))).collect())
    }

    fn took_nothing_back(&self) -> Result<(), Failed> {
        for (trust, at) in &self.deleted {
            let back = self.fleet.agents.iter().find(|agent| agent.known().took_back(*trust, *at));
            ensure(back.is_none(), || {
                format!("{trust} counts again for {:?}", back.map(|agent| agent.identity.name.clone()))
            })?;
        }
        Ok(())
    }
}

fn differences(expected: &Conditions, found: &Conditions) -> String {
    let other = expected.iter().filter(|(name, conditions)| found.get(*name) != Some(conditions));
    let other: Vec<_> = other.map(|(name, conditions)| (name, conditions, found.get(name))).collect();
    format!("{} expected, {} found; not the same: {other:?}", expected.len(), found.len())
}

/// xorshift64 (Marsaglia 2003): the same changes in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
