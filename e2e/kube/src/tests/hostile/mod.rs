//! A linked cluster that is hostile: it asks for ten thousand trusts, says malformed everything, claims what is others', says old
//! things again. What it costs this cluster has an end, which is stated (docs/spec/linking.md section 5), and agents that trust
//! each other, one of which trusts an agent of the hostile cluster, notice nothing.
//!
//! It is here and not with the two clusters that have nodes, because what is judged is an operator, its API server and two
//! agents, all of which are real here; operators are processes whose memory and log can be looked at; and etcd can be asked.

mod judge;
mod lies;
mod malformed;

use std::time::{Duration, Instant};

use peerage_model::linking::OPERATOR;
use peerage_model::relay::RelayInfo;
use peerage_model::stream::StreamStatus;
use peerage_model::{Authority, Ticket, UnixTime};
use serde_json::{Value, json};

use self::judge::Holdings;
use super::links::{plugin, plugin_lines};
use super::{Stage, object, peer};
use crate::cluster::until;
use crate::failed::{Failed, Trying, ensure};
use crate::load::Load;
use crate::pair::Stream;
use crate::stranger::{self, Stranger};

/// A namespace that may be asked over the hostile link, with an agent `target`; and one that may not, with one of its own.
const ASKED: &str = "asked";
/// See [`ASKED`].
const UNASKED: &str = "unasked";
/// What the hostile cluster is called here, and one that is not.
const HOSTILE: &str = "hostile";
/// See [`HOSTILE`].
const FRIEND: &str = "friend";
/// The agent of the hostile cluster that the owner of `db` trusts.
const MOLE: &str = "mole.lair";
/// For as long as this, what is asked for seldom gets a turn.
const TURN: Duration = Duration::from_secs(15);
/// Longest reason of a request, docs/spec/session.md; one more is one too many.
const REASON: usize = 500;

/// The hostile cluster, and what it is held against.
struct Siege<'a> {
    stage: &'a Stage,
    authority: Authority,
    operator: Stranger,
    ticket: Ticket,
    /// An honest cluster that is linked as well, with a wish.
    friend: (Authority, Stranger),
}

/// What it does, and what this is called.
type Attack = (&'static str, fn(&Siege<'_>) -> Result<(), Failed>);

const ATTACKS: [Attack; 8] = [
    ("malformed", malformed::everything),
    ("replays", lies::says_again),
    ("requests", lies::asks_for_ten_thousand),
    ("taken back", lies::asks_and_takes_back),
    ("keys and relays", lies::claims_keys_and_relays),
    ("denials", lies::denies_others),
    ("answers", lies::answers_badly),
    ("crowds", lies::comes_in_crowds),
];

pub(super) fn hostile(stage: &Stage) -> Result<String, Failed> {
    let pair = stage.trusting_pair()?;
    let siege = lay(stage)?;
    let stream = pair.open_stream("db")?;
    let before = Holdings::look(stage, &pair)?;
    let (load, begun) = (Load::begin(&pair.reporter.site, "db"), Instant::now());
    let mut took = Vec::new();
    let attacked = ATTACKS.iter().try_for_each(|(what, attack)| {
        let at = Instant::now();
        attack(&siege)
            .and_then(|()| unmoved(&siege, &stream))
            .map_err(|failed| Failed::new(format!("{what}: {failed}")))?;
        took.push(format!("{what} {} s", at.elapsed().as_secs()));
        Ok(())
    });
    let came = load.end()?;
    attacked?;
    ensure(came.failed.is_empty(), || {
        format!("{} of {} honest requests failed: {:?}", came.failed.len(), came.count, came.failed)
    })?;
    let cost = Holdings::look(stage, &pair)?.judged_since(&before, begun.elapsed())?;
    pair.until_answered("db")?;
    ended(&siege)?;
    Ok(format!("{}; {cost}; {} honest requests, none failed", took.join(", "), came.count))
}

/// Two clusters come with tickets, and one of them is hostile.
fn lay(stage: &Stage) -> Result<Siege<'_>, Failed> {
    for namespace in [ASKED, UNASKED] {
        stage.namespace(namespace)?;
        stage.cluster.apply(&peer("target", namespace))?;
    }
    let (authority, honest) = (stranger::authority()?, stranger::authority()?);
    let ticket = invite(stage, HOSTILE, &format!("{ASKED},tools"))?;
    let operator = stage.runtime.block_on(comes(&authority, &ticket))?;
    let link = stage.cluster.get("agentlink hostile")?.unwrap_or(Value::Null);
    let fingerprint = authority.fingerprint().to_string();
    ensure(link["spec"]["authority"] == fingerprint.as_str(), || format!("the link is not of who came: {link}"))?;
    stage.cluster.condition("agentlink hostile", "Connected", "True", "AsDeclared")?;

    let invitation = invite(stage, FRIEND, ASKED)?;
    let friend = stage.runtime.block_on(async {
        let friend = Stranger::start(&honest, OPERATOR, &invitation).await?;
        friend.show(&invitation, "", &invitation.relays).await.trying("come with a ticket")?;
        Ok::<_, Failed>(friend)
    })?;
    let peer = json!({"name": "mole", "namespace": "lair", "linkRef": {"name": HOSTILE}, "authority": fingerprint});
    let spec = json!({"agentRef": {"name": "db"}, "peer": peer, "inbound": [{"portName": "mcp"}]});
    stage.cluster.apply(&object("AgentTrust", "trusts-mole", Some("tools"), &spec))?;
    stage.cluster.condition("agenttrust trusts-mole -n tools", "Programmed", "True", "AsDeclared")?;
    Ok(Siege { stage, authority, operator, ticket, friend: (honest, friend) })
}

fn invite(stage: &Stage, link: &str, namespaces: &str) -> Result<Ticket, Failed> {
    let said = plugin(stage, &stage.cluster, &["invite", link, "--namespaces", namespaces], "")?;
    Ticket::parse(said["ticket"].as_str().unwrap_or_default(), UnixTime(0)).trying("read a ticket")
}

/// Who holds a ticket comes under names that are not its own, and with requests that are none; then as who it is.
async fn comes(authority: &Authority, ticket: &Ticket) -> Result<Stranger, Failed> {
    let as_agent = Stranger::start(authority, "db.tools", ticket).await?;
    let denied = as_agent.show(ticket, "", &[]).await;
    let is_denied = denied.as_ref().is_err_and(|error| error.to_string().contains(&StreamStatus::Denied.to_string()));
    ensure(is_denied, || format!("an agent of a cluster comes in its operator's place: {denied:?}"))?;
    let operator = Stranger::start(authority, OPERATOR, ticket).await?;
    refused(&operator, ticket, &"x".repeat(REASON + 1), &[]).await?;
    let relays: Vec<_> = ticket.relays.iter().cycle().take(5).cloned().collect();
    refused(&operator, ticket, "", &relays).await?;
    operator.show(ticket, "", &ticket.relays).await.trying("come with a ticket")?;
    Ok(operator)
}

async fn refused(who: &Stranger, ticket: &Ticket, reason: &str, relays: &[RelayInfo]) -> Result<(), Failed> {
    let taken = who.show(ticket, reason, relays).await;
    ensure(taken.is_err(), || format!("a request is taken with {} relays, its reason `{reason}`", relays.len()))
}

/// What no attack may change: an open stream, both links and whom they pin, the other cluster's request.
fn unmoved(siege: &Siege<'_>, stream: &Stream) -> Result<(), Failed> {
    stream.flows()?;
    let cluster = &siege.stage.cluster;
    for (name, authority) in [(HOSTILE, &siege.authority), (FRIEND, &siege.friend.0)] {
        let link = cluster.get(&format!("agentlink {name}"))?.unwrap_or(Value::Null);
        let pinned = json!(authority.fingerprint().to_string());
        let records = json!([authority.record().to_text()]);
        let is_same = link["spec"]["authority"] == pinned
            && link["status"]["authority"] == pinned
            && link["status"]["authorityRecords"] == records;
        ensure(is_same, || format!("link {name} leads elsewhere: {link}"))?;
        cluster.condition(&format!("agentlink {name}"), "Connected", "True", "AsDeclared")?;
    }
    let asked = requests(siege, UNASKED)?;
    ensure(asked.is_empty(), || format!("a namespace is asked that may not be: {asked:?}"))
}

/// The requests in a namespace.
fn requests(siege: &Siege<'_>, namespace: &str) -> Result<Vec<Value>, Failed> {
    let found = siege.stage.cluster.get(&format!("agenttrustrequests -n {namespace}"))?.unwrap_or(Value::Null);
    Ok(found["items"].as_array().cloned().unwrap_or_default())
}

/// Those of them that came over the link of this authority.
fn requests_of(siege: &Siege<'_>, authority: &Authority, namespace: &str) -> Result<Vec<Value>, Failed> {
    let fingerprint = authority.fingerprint().to_string();
    let all = requests(siege, namespace)?.into_iter();
    Ok(all.filter(|one| one["spec"]["from"]["authority"] == fingerprint.as_str()).collect())
}

/// The owner has enough: with the link everything that came over it ends, and a used ticket brings nobody back.
fn ended(siege: &Siege<'_>) -> Result<(), Failed> {
    let stage = siege.stage;
    stage.cluster.kubectl("delete agentlink hostile")?;
    let gone = until(|| Ok(requests_of(siege, &siege.authority, ASKED)?.is_empty()))?;
    ensure(gone, || "requests of a link that was deleted stay".into())?;
    let thief = stranger::authority()?;
    let came = stage.runtime.block_on(async {
        let thief = Stranger::start(&thief, OPERATOR, &siege.ticket).await?;
        Ok::<_, Failed>(thief.show(&siege.ticket, "", &siege.ticket.relays).await)
    })?;
    ensure(came.is_err(), || "a ticket was taken twice".into())?;
    let left = stage.cluster.get("agentlink hostile")?;
    ensure(left.is_none(), || format!("a link came back: {left:?}"))?;
    stage.cluster.kubectl("delete agenttrust trusts-mole -n tools")?;
    stage.cluster.kubectl("delete agentlink friend").map(drop)
}
