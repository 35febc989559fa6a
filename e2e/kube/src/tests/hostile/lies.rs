//! Messages that are well formed, and not so.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use peerage_agent::tunnel::{Opened, TunnelStream};
use peerage_model::linking::{
    Denied, Hello, MAX_PURPOSE, MAX_RELAYS, OPERATOR, PORT, RecordBytes, Tell, Told, Wish, Withdrawn,
};
use peerage_model::relay::RelayInfo;
use peerage_model::stream::StreamKind;
use peerage_model::{AgentName, AgreementKey, AgreementSecret, InstanceId, TrustId};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::judge::{DENIED, denials};
use super::{ASKED, FRIEND, MOLE, Siege, TURN, plugin, plugin_lines, requests, requests_of};
use crate::cluster::until;
use crate::failed::{Failed, Trying, ensure};
use crate::operator::NAMESPACE;
use crate::stranger::{Stranger, now};
use crate::tests::links::REQUESTS;

/// What is asked for.
const TRUSTS: u32 = 10_000;
/// Hellos, of which one in ten seconds counts.
const HELLOS: usize = 1000;
/// Denials, of which so many hold that one link may tell.
const DENIALS: u32 = 2000;
/// Instances of one operator at a time, and what each of them opens.
const CROWD: usize = 32;
/// See [`CROWD`].
const STREAMS: usize = 64;
/// How often one comes and goes.
const VISITS: usize = 300;

/// A wish of ours: which of our words it is part of, and which of them.
fn id(part: u8, number: u32) -> TrustId {
    let mut bytes = [part; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    TrustId(bytes)
}

fn wish(id: TrustId, from: &str, to: &str, purpose: &str) -> Result<Tell, Failed> {
    let name = |text: &str| text.parse().trying("read a name");
    let purpose = (!purpose.is_empty()).then(|| purpose.to_owned());
    Ok(Tell::Wish(Wish { id, from: name(from)?, to: name(to)?, purpose }))
}

/// All that was told before is over: a stream that tells nothing.
fn forget_all(siege: &Siege<'_>) -> Result<(), Failed> {
    siege.stage.runtime.block_on(async {
        let mut channel = siege.operator.open().await?;
        channel.tell(&[Tell::Told(Told {})]).await
    })?;
    let gone = until(|| {
        let left = [ASKED, "tools"].map(|namespace| requests_of(siege, &siege.authority, namespace));
        let left = left.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
        Ok(left.iter().all(|one| one["metadata"]["annotations"]["peerage.dev/rejected"].is_string()))
    })?;
    ensure(gone, || "requests stay whose wishes are not told any more".into())
}

/// An old stream said again word by word brings nothing back: neither what its own words took back, nor what an owner rejected.
/// Nor does it touch what another cluster said, whose words it repeats.
pub fn says_again(siege: &Siege<'_>) -> Result<(), Failed> {
    let (stage, friend) = (siege.stage, &siege.friend);
    let theirs = wish(id(1, 1), "reader.far", "target.asked", "figures")?;
    // Held until the end: who goes away keeps nothing.
    let mut friends = stage.runtime.block_on(friend.1.open())?;
    stage.runtime.block_on(friends.tell(&[theirs.clone(), Tell::Told(Told {})]))?;
    let there = until(|| Ok(requests_of(siege, &friend.0, ASKED)?.len() == 1))?;
    ensure(there, || "the honest cluster's wish did not become a request".into())?;
    let theirs_is = |request: &Value| (request["metadata"]["uid"].clone(), request["spec"].clone());
    let request: Vec<_> = requests_of(siege, &friend.0, ASKED)?.iter().map(theirs_is).collect();

    let script = [
        theirs,
        wish(id(1, 2), "unwanted.lair", "target.asked", "")?,
        Tell::Withdrawn(Withdrawn { id: id(1, 1) }),
        wish(id(1, 3), "fickle.lair", "target.asked", "")?,
        Tell::Withdrawn(Withdrawn { id: id(1, 3) }),
        Tell::Told(Told {}),
    ];
    let say = || stage.runtime.block_on(async { siege.operator.open().await?.tell(&script).await });
    say()?;
    let mut name = String::new();
    let asked = until(|| {
        let requests = plugin_lines(stage, &stage.cluster, &["requests", "-n", ASKED])?;
        let of_ours =
            requests.iter().find(|one| one["from"].as_str().is_some_and(|from| from.starts_with("unwanted.lair")));
        name = of_ours.and_then(|one| one["name"].as_str()).unwrap_or_default().to_owned();
        Ok(!name.is_empty())
    })?;
    ensure(asked, || "a wish of the hostile cluster did not become a request".into())?;
    plugin(stage, &stage.cluster, &["reject", &name, "-n", ASKED], "")?;
    stage.cluster.condition(&format!("agenttrustrequest {name} -n {ASKED}"), "Answered", "True", "Rejected")?;
    for _ in 0..3 {
        say()?;
    }
    forget_all(siege)?;
    say()?;
    // Whatever would come of it has come when something else has that was said later.
    let last = wish(id(1, 4), "later.lair", "target.asked", "")?;
    let mut channel = stage.runtime.block_on(siege.operator.open())?;
    stage.runtime.block_on(channel.tell(&[&script[..5], &[last, Tell::Told(Told {})]].concat()))?;
    let from = |one: &Value| one["spec"]["from"]["name"].as_str().unwrap_or_default().to_owned();
    let mut askers = Vec::new();
    let come = until(|| {
        askers = requests_of(siege, &siege.authority, ASKED)?.iter().map(from).collect();
        askers.sort();
        Ok(askers == ["later.lair", "unwanted.lair"])
    })?;
    ensure(come, || format!("old words were said again, and {askers:?} ask"))?;
    let still: Vec<_> = requests_of(siege, &friend.0, ASKED)?.iter().map(theirs_is).collect();
    ensure(still == request, || format!("the honest cluster's request was {request:?}, and is {still:?}"))?;
    let rejected = stage.cluster.get(&format!("agenttrustrequest {name} -n {ASKED}"))?.unwrap_or(Value::Null);
    ensure(rejected["metadata"]["annotations"]["peerage.dev/rejected"].is_string(), || format!("it is {rejected}"))?;
    forget_all(siege)
}

/// Ten thousand wishes: of agents that are there and that are not, that may be asked and that may not, in the names of others.
pub fn asks_for_ten_thousand(siege: &Siege<'_>) -> Result<(), Failed> {
    let purpose: String = "\u{1b}[2Jplease\u{202e}\u{0}".chars().cycle().take(MAX_PURPOSE / 4).collect();
    let one = |number: u32| {
        let to = ["target.asked", "target.unasked", "nobody.asked", "db.tools"][number as usize % 4];
        let long = format!("{}.{}", "x".repeat(63), "y".repeat(63));
        let from = match number {
            0..4 => OPERATOR.to_owned(),
            4..8 => "laptop".to_owned(),
            8..12 => "a.b.c".to_owned(),
            12..16 => long,
            16..20 => "db.tools".to_owned(),
            _ => format!("asker-{number}.lair"),
        };
        wish(id(2, number), &from, to, &purpose)
    };
    let wishes = (0..TRUSTS).map(one).collect::<Result<Vec<_>, _>>()?;
    let mut channel = siege.stage.runtime.block_on(siege.operator.open())?;
    siege.stage.runtime.block_on(channel.tell(&wishes))?;
    let authority = siege.authority.fingerprint().to_string();
    let come = until(|| Ok(requests_of(siege, &siege.authority, ASKED)?.len() >= REQUESTS))?;
    ensure(come, || "a flood of wishes did not even become what it may".into())?;
    for namespace in [ASKED, "tools"] {
        let all = requests_of(siege, &siege.authority, namespace)?;
        ensure(all.len() <= REQUESTS, || format!("{} requests in {namespace}", all.len()))?;
        for request in requests(siege, namespace)? {
            let from = &request["spec"]["from"];
            let name = from["name"].as_str().unwrap_or_default();
            let is_honest = from["linkRef"]["name"] == FRIEND;
            let is_its_own = from["authority"] == authority.as_str() && name.matches('.').count() == 1;
            ensure(is_honest || is_its_own, || format!("a request says that it is of {from}"))?;
        }
    }
    let link = siege.stage.cluster.get("agentlink hostile")?.unwrap_or(Value::Null);
    let pending = link["status"]["pendingRequests"].as_u64().unwrap_or(0);
    ensure(pending <= 2 * REQUESTS as u64, || format!("{pending} requests are said to wait"))?;
    forget_all(siege)
}

/// A wish, and not; for a while, by turns.
pub fn asks_and_takes_back(siege: &Siege<'_>) -> Result<(), Failed> {
    let (mut channel, begun) = (siege.stage.runtime.block_on(siege.operator.open())?, Instant::now());
    siege.stage.runtime.block_on(async {
        for number in 0.. {
            let asks = wish(id(3, number), &format!("fickle-{number}.lair"), "target.asked", "")?;
            channel.tell(&[asks, Tell::Withdrawn(Withdrawn { id: id(3, number) })]).await?;
            if begun.elapsed() > TURN {
                break;
            }
        }
        Ok::<_, Failed>(())
    })?;
    forget_all(siege)
}

/// Hello after Hello, with keys of others, keys that nobody signed, and relays that are others' or nobody's.
pub fn claims_keys_and_relays(siege: &Siege<'_>) -> Result<(), Failed> {
    let ours = &siege.operator.hello;
    let others = [siege.ticket.record.as_bytes(), siege.friend.0.record().as_bytes()].map(<[u8]>::to_vec);
    let mut forged = siege.authority.record().as_bytes().to_vec();
    if let Some(last) = forged.last_mut() {
        *last ^= 1;
    }
    let [victims, friends] = others;
    let keys = [
        vec![victims.clone()],
        vec![friends],
        vec![forged.clone()],
        vec![siege.authority.record().as_bytes().to_vec(), victims],
        vec![vec![0; 512]],
    ];
    let lies = (0..HELLOS).map(|number| {
        let records = keys[number % keys.len()].iter().cloned().map(RecordBytes).collect();
        Tell::Hello(Hello { records, relays: relays(ours, number), ..ours.clone() })
    });
    let mut channel = siege.stage.runtime.block_on(siege.operator.open())?;
    siege.stage.runtime.block_on(channel.tell(&lies.collect::<Vec<_>>()))?;
    // Its own keys, and with them any relays, also some that db will try.
    let own = (0..HELLOS).map(|number| Tell::Hello(Hello { relays: relays(ours, number), ..ours.clone() }));
    siege.stage.runtime.block_on(channel.tell(&own.collect::<Vec<_>>()))?;
    let told = until(|| Ok(told_relays(siege)?.iter().any(|relay| relay.contains("nowhere"))))?;
    ensure(told, || "the relays of a Hello that counts are not known".into())?;
    let count = told_relays(siege)?.len();
    ensure(count <= MAX_RELAYS, || format!("{count} relays of one link"))?;
    let friends = siege.stage.cluster.get("agentlink friend")?.unwrap_or(Value::Null);
    ensure(!friends["status"].to_string().contains("nowhere"), || format!("another link has them: {friends}"))
}

fn told_relays(siege: &Siege<'_>) -> Result<Vec<String>, Failed> {
    let link = siege.stage.cluster.get("agentlink hostile")?.unwrap_or(Value::Null);
    let relays = link["status"]["relays"].as_array().into_iter().flatten();
    Ok(relays.filter_map(|relay| relay.as_str().map(str::to_owned)).collect())
}

/// As many as may be told: our own relay by another key, and its key elsewhere; this machine; nowhere.
fn relays(ours: &Hello, number: usize) -> Vec<RelayInfo> {
    let Some(own) = ours.relays.first() else { return Vec::new() };
    let at = |host: &str| RelayInfo { host: host.parse().unwrap_or_else(|_| own.host.clone()), ..own.clone() };
    let other = RelayInfo { key: key_of_nobody(number), ..own.clone() };
    let places = ["127.0.0.1", "::1", "169.254.169.254", "10.96.0.1", "198.18.201.10"].map(at);
    let nowhere = (0..MAX_RELAYS - 1 - places.len()).map(|n| at(&format!("nowhere-{number}-{n}.invalid")));
    [other].into_iter().chain(places).chain(nowhere).collect()
}

/// Another one for each of 251 numbers.
fn key_of_nobody(number: usize) -> AgreementKey {
    AgreementSecret::from_bytes([u8::try_from(number % 251).unwrap_or(0); 32]).public()
}

/// Instances that are not its own: those that are enrolled here, and any; of agents of its own, and of others.
pub fn denies_others(siege: &Siege<'_>) -> Result<(), Failed> {
    let instances = enrolled_here(siege)?;
    let name = |text: &str| text.parse::<AgentName>().trying("read a name");
    let agents = [name(MOLE)?, name("db.tools")?, name("reporter.reports")?];
    let ours = instances.iter().flat_map(|instance| agents.iter().map(|agent| (agent.clone(), *instance)));
    let any = (0..DENIALS).map(|number| (agents[number as usize % agents.len()].clone(), some_instance(number)));
    let end = |number: usize| now().plus(Duration::from_secs([60, 3600, u32::MAX.into()][number % 3]));
    let tell = |(number, (agent, instance))| Tell::Denied(Denied { agent, instance, until: end(number) });
    let tells: Vec<_> = ours.chain(any).enumerate().map(tell).collect();
    let mut channel = siege.stage.runtime.block_on(siege.operator.open())?;
    siege.stage.runtime.block_on(channel.tell(&tells))?;
    let authority = siege.authority.fingerprint().to_string();
    let mut all = BTreeMap::new();
    let hold = until(|| {
        all = denials(siege.stage)?;
        Ok(all.keys().any(|key| key.ends_with(&authority)))
    })?;
    ensure(hold, || "what it says of its own agent's instances does not hold".into())?;
    let theirs: Vec<_> = all.iter().filter(|(key, _)| key.ends_with(&authority)).collect();
    let others: Vec<_> = theirs.iter().filter(|(_, value)| !value.ends_with(&format!(" {MOLE}@{authority}"))).collect();
    ensure(others.is_empty(), || format!("instances are denied of agents that nobody here names: {others:?}"))?;
    ensure(theirs.len() <= DENIED, || format!("{} denials of one link are written down", theirs.len()))?;
    let stolen: Vec<_> = instances.iter().filter(|instance| all.contains_key(&instance.to_string())).collect();
    ensure(stolen.is_empty(), || format!("another cluster's word denies instances of this one: {stolen:?}"))
}

/// Who is: the honest agents, whose instance a peer of theirs learns.
fn enrolled_here(siege: &Siege<'_>) -> Result<Vec<InstanceId>, Failed> {
    let maps = siege.stage.cluster.get(&format!("configmaps -n {NAMESPACE} -l peerage.dev/enrolled-instances"))?;
    let maps = maps.unwrap_or(Value::Null);
    let data = maps["items"].as_array().into_iter().flatten().filter_map(|map| map["data"].as_object());
    let instances: Vec<_> = data.flat_map(|data| data.keys()).filter_map(|key| key.parse().ok()).collect();
    ensure(!instances.is_empty(), || "nobody is enrolled here".into())?;
    Ok(instances)
}

/// Of a number, another one for each, in all of the ConfigMaps that denials are spread over.
fn some_instance(number: u32) -> InstanceId {
    let mut bytes = [0xee; 8];
    // Multiplied by an odd number, so that none comes twice.
    bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
    InstanceId(bytes)
}

/// It says that it has heard more than was said, on each stream that our operator opens.
pub fn answers_badly(siege: &Siege<'_>) -> Result<(), Failed> {
    siege.operator.too_many.store(1000, Ordering::Relaxed);
    // A link that does not answer says so, and which it is; that is the condition's business.
    siege.stage.cluster.condition("agentlink hostile", "Connected", "False", "PeerOperatorUnreachable")?;
    siege.operator.too_many.store(0, Ordering::Relaxed);
    siege.stage.cluster.condition("agentlink hostile", "Connected", "True", "AsDeclared")
}

/// Many instances of one operator at a time, of which each opens streams at ports that there are and that there are not, says
/// nothing on them, and keeps them. Then one after the other comes and goes at once.
pub fn comes_in_crowds(siege: &Siege<'_>) -> Result<(), Failed> {
    siege.stage.runtime.block_on(async {
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            crowd.push(Stranger::start(&siege.authority, OPERATOR, &siege.ticket).await?);
        }
        let mut held = Vec::new();
        for stranger in &crowd {
            for number in 0..STREAMS {
                let port = [PORT, PORT + 1, 80, 8443][number % 4];
                let kind = [StreamKind::Tcp, StreamKind::Udp][number / 4 % 2];
                held.push((port, kind, stranger.dial(kind, port).await?));
            }
        }
        for (port, kind, opened) in &mut held {
            if (*port, *kind) == (PORT, StreamKind::Tcp) {
                continue;
            }
            if let Opened::Stream(stream) = opened {
                refused(stream, *port).await?;
            }
        }
        drop(held);
        for _ in 0..VISITS {
            let visitor = Stranger::start(&siege.authority, OPERATOR, &siege.ticket).await?;
            if let Opened::Stream(mut stream) = visitor.dial(StreamKind::Tcp, PORT + 1).await? {
                refused(&mut stream, PORT + 1).await?;
            }
            visitor.leave().await;
        }
        // Who was there before is heard all the same.
        siege.operator.open().await?.tell(&[Tell::Told(Told {})]).await
    })
}

async fn refused(stream: &mut TunnelStream, port: u16) -> Result<(), Failed> {
    let read = tokio::time::timeout(TURN * 4, stream.read(&mut [0])).await;
    let refused = matches!(&read, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused);
    ensure(refused, || format!("port {port} of an operator is not refused: {read:?}"))
}
