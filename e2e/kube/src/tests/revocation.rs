//! How long a consent outlives its deletion, with many agents connected.

use std::time::{Duration, Instant};

use peerage_model::TrustId;
use serde_json::json;

use super::{Stage, hostname, object, trust_id};
use crate::api::{Todo, ours};
use crate::cluster::until_within;
use crate::failed::{Failed, ensure};
use crate::fleet::{self, Fleet, Known};
use crate::pair::dbs_consent;

/// How many agents are connected; in pairs that trust each other.
const AGENTS: usize = 1000;
/// How many of the pairs' trusts are deleted.
const DELETIONS: usize = 200;
/// Between two deletions: a busy day, and a queue of none.
const EVERY: Duration = Duration::from_millis(50);
/// How often a stream of the real pair is reset meanwhile.
const STREAMS: usize = 10;
/// The promise, held against the operator's own histogram.
const WITHIN: Duration = Duration::from_secs(1);
/// From outside the API server's own time and that of 1,000 agents on this machine are in it, and it may have others to
/// serve; docs/benchmarks has figures.
const ON_A_BUSY_MACHINE: Duration = Duration::from_secs(5);
/// How long 1,000 agents may take to enrol on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);
const NAMESPACE: &str = "fleet";
/// The operator's histogram: from the deletion as the watch delivered it to one agent's acknowledgement.
const METRIC: &str = "peerage_operator_revocation_seconds";

pub(super) fn revocation(stage: &Stage) -> Result<String, Failed> {
    let (fleet, trusts) = muster(stage)?;
    stage.until_written(PATIENCE)?;
    let before = buckets(stage);
    let mut asked = delete(stage, &trusts[..DELETIONS])?;
    let mut streams = reset_streams(stage)?;
    let mut took = Vec::new();
    for (trust, at) in &mut asked {
        took.extend(lost(&fleet, *trust, *at)?);
    }
    ensure(took.len() == 2 * DELETIONS, || format!("{} losses of {}", took.len(), 2 * DELETIONS))?;
    took.sort();
    streams.sort();
    let counted = difference(&buckets(stage), &before);
    let by_metric = quantile(&counted, 0.99)?;
    let p99 = took[took.len() * 99 / 100];
    let slowest_stream = streams.last().copied().unwrap_or(Duration::MAX);
    let found = format!(
        "{AGENTS} agents: from the request to an agent that acted p50 {} ms, p99 {} ms, most {} ms ({} cases); an open stream \
         was reset after {} to {} ms ({STREAMS} cases); the operator's histogram has its p99 at most {by_metric} s",
        took[took.len() / 2].as_millis(),
        p99.as_millis(),
        took.last().map_or(0, Duration::as_millis),
        took.len(),
        streams.first().map_or(0, Duration::as_millis),
        slowest_stream.as_millis(),
    );
    ensure(by_metric <= WITHIN.as_secs_f64() && p99.max(slowest_stream) < ON_A_BUSY_MACHINE, || found.clone())?;
    Ok(found)
}

/// Agents that are connected and have each one peer, and the trust that the first of each pair declared.
fn muster(stage: &Stage) -> Result<(Fleet, Vec<(String, TrustId)>), Failed> {
    stage.namespace(NAMESPACE)?;
    let audience = stage.audience()?;
    let identities = stage.runtime.block_on(fleet::populate(&stage.api, NAMESPACE, "a", AGENTS, &audience))?;
    let made = stage.runtime.block_on(stage.api.all((0..AGENTS).map(consent).collect()))?;
    let first = made.iter().step_by(2).map(|made| {
        let name = made["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Ok((name, trust_id(made)?))
    });
    let trusts = first.collect::<Result<_, Failed>>()?;
    let fleet = Fleet::start(&stage.runtime, identities, stage.shared_addresses(), &stage.authority()?)?;
    let settled = |known: &Known| known.is_connected && known.applied.len() == 1;
    fleet.all("connected with one peer", PATIENCE, settled)?;
    Ok((fleet, trusts))
}

fn consent(number: usize) -> Todo {
    let (own, other) = (format!("a-{number}"), format!("a-{}", number ^ 1));
    let spec = json!({"agentRef": {"name": own}, "peer": {"name": other}});
    Todo::create(ours(NAMESPACE, "agenttrusts"), object("AgentTrust", &own, Some(NAMESPACE), &spec))
}

/// Deletes one after the other; when each was asked for.
fn delete(stage: &Stage, trusts: &[(String, TrustId)]) -> Result<Vec<(TrustId, Instant)>, Failed> {
    stage.runtime.block_on(async {
        let mut api = stage.api.connect().await?;
        let mut turn = tokio::time::interval(EVERY);
        let mut asked = Vec::new();
        for (name, trust) in trusts {
            turn.tick().await;
            asked.push((*trust, Instant::now()));
            api.send(&Todo::delete(ours(NAMESPACE, &format!("agenttrusts/{name}")))).await?;
        }
        Ok(asked)
    })
}

/// For each agent that knew the trust: how long after `asked` it stopped to count.
fn lost(fleet: &Fleet, trust: TrustId, asked: Instant) -> Result<Vec<Duration>, Failed> {
    let knew = |known: &Known| known.diary.iter().any(|(_, about, _)| *about == trust);
    let agents: Vec<_> = fleet.agents.iter().filter(|agent| knew(&agent.known())).collect();
    let gone = until_within(PATIENCE, || Ok(agents.iter().all(|agent| agent.known().lost(trust).is_some())))?;
    ensure(gone, || format!("trust {trust} still counts for somebody"))?;
    let back = agents.iter().find(|agent| agent.known().took_back(trust, asked));
    ensure(back.is_none(), || format!("trust {trust} came back"))?;
    Ok(agents.iter().filter_map(|agent| Some(agent.known().lost(trust)?.duration_since(asked))).collect())
}

/// Streams of the real pair, reset by the deletion of the server's consent while everybody is connected.
fn reset_streams(stage: &Stage) -> Result<Vec<Duration>, Failed> {
    let pair = stage.trusting_pair()?;
    let mut took = Vec::new();
    for _ in 0..STREAMS {
        pair.until_answered("db")?;
        let stream = pair.open_stream("db")?;
        took.push(hostname::revoke(stage, &stream, ours("tools", "agenttrusts/serves-reporter"))?);
        stage.cluster.apply(&dbs_consent())?;
    }
    pair.until_answered("db")?;
    Ok(took)
}

type Buckets = Vec<(f64, f64)>;

/// The buckets of all replicas together.
fn buckets(stage: &Stage) -> Buckets {
    let mut sum = Buckets::new();
    for operator in stage.operators.borrow().iter() {
        let found = operator.buckets(METRIC);
        if sum.is_empty() {
            sum = found;
        } else {
            sum.iter_mut().zip(found).for_each(|(sum, found)| sum.1 += found.1);
        }
    }
    sum
}

fn difference(after: &Buckets, before: &Buckets) -> Buckets {
    after.iter().zip(before).map(|(after, before)| (after.0, after.1 - before.1)).collect()
}

/// The upper bound of the bucket that this share of all is in.
fn quantile(buckets: &Buckets, share: f64) -> Result<f64, Failed> {
    let all = buckets.last().map_or(0.0, |last| last.1);
    ensure(all > 0.0, || format!("{METRIC} counted nothing"))?;
    let bucket = buckets.iter().find(|bucket| bucket.1 >= all * share);
    Ok(bucket.map_or(f64::INFINITY, |bucket| bucket.0))
}
