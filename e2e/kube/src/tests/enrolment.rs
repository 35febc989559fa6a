//! Who gets a passport, and who does not.

use std::process::{Command, Stdio};

use data_encoding::BASE64URL_NOPAD;
use peerage_model::operator::GoAwayCode;
use serde_json::{Value, json};

use super::{Stage, object};
use crate::agent;
use crate::api::Todo;
use crate::cluster::{Cluster, PATIENCE, until};
use crate::failed::{Failed, Trying, ensure};
use crate::fleet::{self, Fleet, Knock};
use crate::operator::NAMESPACE;

pub(super) fn enrolment(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("enrol")?;
    cluster.kubectl("create serviceaccount db -n enrol")?;
    let spec = json!({"selector": {"matchLabels": {"app": "db"}}, "serviceAccountName": "db"});
    cluster.apply(&object("AgentPeer", "db", Some("enrol"), &spec))?;
    stage.pod_as("db-0", "enrol", "db", "db")?;
    let audience = stage.audience()?;
    let enrolled = |wanted: i64| {
        let mut found = Value::Null;
        let so = until(|| {
            found = cluster.get("agentpeer db -n enrol")?.map_or(Value::Null, |mut db| db["status"]["pods"].take());
            Ok(found["enrolled"] == wanted)
        })?;
        ensure(so, || format!("expected {wanted} enrolled, found {found}"))
    };
    // Its labels say that it is the agent, and its token that it is not.
    stage.pod_as("thief", "enrol", "db", "default")?;
    stage.agent_in("thief", "enrol", &audience)?.says("the operator says")?;
    stage.agent_in("db-0", "enrol", "somebody.else")?.says("the operator says")?;
    enrolled(0)?;
    let mut agent = stage.agent_in("db-0", "enrol", &audience)?;
    enrolled(1)?;
    cluster.kubectl("delete pod db-0 -n enrol --now")?;
    enrolled(0)?;
    agent.says("the operator says")?;
    let denied = until(|| Ok(in_ledger(cluster, "denied", ".enrol")?.len() == 1))?;
    ensure(denied, || "the deleted pod's instance is on no list of denied ones".into())?;
    Ok("a pod with its ServiceAccount enrols; not by labels, nor with a token for others; deletion denies it".into())
}

/// Tokens that the API server signed, or would have: what they say is wrong.
pub(super) fn tokens(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("tokens")?;
    cluster.apply(&super::peer("db", "tokens"))?;
    stage.pod_as("db-0", "tokens", "db", "default")?;
    stage.pod_as("other-0", "tokens", "other", "default")?;
    let audience = stage.audience()?;
    let good = agent::token(cluster, "tokens", "db-0", &audience)?;
    let other = agent::token(cluster, "tokens", "other-0", &audience)?;
    let uid = |token: &str| Ok::<_, Failed>(claims(token)?["kubernetes.io"]["pod"]["uid"].clone());
    let (ours, theirs) = (uid(&good)?, uid(&other)?);
    let mut ended = claims(&good)?;
    (ended["iat"], ended["nbf"], ended["exp"]) = (json!(1_600_000_000), json!(1_600_000_000), json!(1_600_003_600));
    let mut forged = claims(&other)?;
    forged["kubernetes.io"]["pod"]["uid"] = ours;
    let mut borrowed = claims(&good)?;
    borrowed["kubernetes.io"]["pod"]["uid"] = theirs;
    let unbound = cluster.kubectl(&format!("create token default -n tokens --audience={audience}"))?;
    let elsewhere = agent::token(cluster, "tokens", "db-0", "https://kubernetes.default.svc.cluster.local")?;
    let cases = [
        ("one that has ended", sign(cluster, &good, &ended)?),
        ("one whose pod has another UID", sign(cluster, &good, &borrowed)?),
        ("one that gives another pod our UID", sign(cluster, &good, &forged)?),
        ("one of no pod", unbound),
        ("one for the API server", elsewhere),
        ("one with somebody else's claims under its signature", spliced(&good, &other)),
        ("nonsense", "nonsense".to_owned()),
    ];
    for (what, token) in &cases {
        let refused = refusal(stage, token)?;
        ensure(refused == GoAwayCode::BadToken, || format!("{what}: {refused:?}"))?;
    }
    // The same hand signs one that is right, so what was refused above was refused for what it says.
    let mut right = stage.agent_with(sign(cluster, &good, &claims(&good)?)?)?;
    right.says("the tunnel is up")?;
    Ok(format!("refused: {}", cases.map(|(what, _)| what).join(", ")))
}

/// What an operator answers to a token.
fn refusal(stage: &Stage, token: &str) -> Result<GoAwayCode, Failed> {
    let (place, authority) = (first(stage)?, stage.authority()?);
    stage.runtime.block_on(async {
        let mut knock = Knock::at(place, &authority).await?;
        knock.enrol(token).await?;
        Ok(knock.goodbye(PATIENCE).await?.code)
    })
}

fn first(stage: &Stage) -> Result<std::net::SocketAddr, Failed> {
    stage.addresses().first().copied().ok_or_else(|| Failed::new("there is no operator"))
}

fn part(token: &str, number: usize) -> &str {
    token.split('.').nth(number).unwrap_or_default()
}

fn claims(token: &str) -> Result<Value, Failed> {
    let bytes = BASE64URL_NOPAD.decode(part(token, 1).as_bytes()).trying("read a token")?;
    serde_json::from_slice(&bytes).trying("read a token")
}

/// The token with other claims, signed with the API server's own key.
fn sign(cluster: &Cluster, token: &str, claims: &Value) -> Result<String, Failed> {
    let signed = format!("{}.{}", part(token, 0), BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
    let folder = tempfile::tempdir().trying("make a folder")?;
    let file = folder.path().join("signed");
    std::fs::write(&file, &signed).trying("write what is signed")?;
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-binary", "-sign"]).arg(cluster.signing_key()).arg(&file).stdin(Stdio::null());
    let said = openssl.output().trying("run openssl")?;
    ensure(said.status.success(), || format!("openssl: {}", String::from_utf8_lossy(&said.stderr)))?;
    let signature = raw_signature(&said.stdout).ok_or_else(|| Failed::new("openssl gave no ECDSA signature"))?;
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
}

/// The two numbers of an ECDSA signature in DER as ES256 wants them (RFC 7518 section 3.4): 32 bytes each.
fn raw_signature(der: &[u8]) -> Option<[u8; 64]> {
    let mut raw = [0; 64];
    let mut rest = der.get(2..)?; // a sequence of less than 128 bytes
    for half in raw.chunks_exact_mut(32) {
        let [2, length, tail @ ..] = rest else { return None };
        let (number, tail) = tail.split_at_checked(usize::from(*length))?;
        let number = number.strip_prefix(&[0]).unwrap_or(number); // a sign
        half.get_mut(32_usize.checked_sub(number.len())?..)?.copy_from_slice(number);
        rest = tail;
    }
    Some(raw)
}

fn spliced(token: &str, claims: &str) -> String {
    format!("{}.{}.{}", part(token, 0), part(claims, 1), part(token, 2))
}

/// Pods that are deleted while they enrol: before they show their token, and while the operator looks at it.
pub(super) fn mid_enrolment(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("mid-enrolment")?;
    cluster.apply(&super::peer("db", "mid-enrolment"))?;
    let (place, authority, audience) = (first(stage)?, stage.authority()?, stage.audience()?);
    let mut codes = Vec::new();
    for (name, asks_first) in [("db-0", false), ("db-1", true)] {
        stage.pod_as(name, "mid-enrolment", "db", "default")?;
        let token = agent::token(cluster, "mid-enrolment", name, &audience)?;
        let delete = Todo::delete(format!("/api/v1/namespaces/mid-enrolment/pods/{name}"));
        let goodbye = stage.runtime.block_on(async {
            let mut knock = Knock::at(place, &authority).await?;
            let mut api = stage.api.connect().await?;
            if asks_first {
                let (asked, deleted) = tokio::join!(knock.enrol(&token), api.send(&delete));
                asked?;
                deleted?;
            } else {
                api.send(&delete).await?;
                knock.enrol(&token).await?;
            }
            knock.goodbye(PATIENCE).await
        })?;
        let expected = [GoAwayCode::BadToken, GoAwayCode::PodGone, GoAwayCode::Denied];
        ensure(expected.contains(&goodbye.code), || format!("{name} is told {goodbye:?}"))?;
        codes.push(format!("{:?}", goodbye.code));
    }
    cluster.condition("agentpeer db -n mid-enrolment", "Ready", "True", "NoPods")?;
    // The same name again is another pod, and an agent like any other.
    stage.pod_as("db-0", "mid-enrolment", "db", "default")?;
    stage.agent_in("db-0", "mid-enrolment", &audience)?.says("the tunnel is up")?;
    Ok(format!("told {}; nobody stays enrolled, and the next pod enrols", codes.join(" and ")))
}

/// Labels choose among the agents of a namespace, and prove nothing.
pub(super) fn other_namespace(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    for namespace in ["greedy", "bystander"] {
        stage.namespace(namespace)?;
    }
    let audience = stage.audience()?;
    cluster.apply(&super::peer("db", "greedy"))?;
    stage.pod_as("db-0", "bystander", "db", "default")?;
    let refused = refusal(stage, &agent::token(cluster, "bystander", "db-0", &audience)?)?;
    ensure(refused == GoAwayCode::NoAgent, || format!("a pod of another namespace: {refused:?}"))?;
    cluster.condition("agentpeer db -n greedy", "Ready", "True", "NoPods")?;

    // A pod that is an agent of its own takes the label of a better one.
    for name in ["db", "web"] {
        cluster.kubectl(&format!("create serviceaccount {name} -n bystander"))?;
        let spec = json!({"selector": {"matchLabels": {"app": name}}, "serviceAccountName": name});
        cluster.apply(&object("AgentPeer", name, Some("bystander"), &spec))?;
    }
    stage.pod_as("web-0", "bystander", "web", "web")?;
    let token = agent::token(cluster, "bystander", "web-0", &audience)?;
    let mut agent = stage.agent_with(token.clone())?;
    agent.says("the tunnel is up")?;
    cluster.kubectl("label pod web-0 -n bystander app=db --overwrite")?;
    agent.says("this instance was withdrawn")?;
    agent.says("takes only pods that run as ServiceAccount `db`")?;
    let refused = refusal(stage, &token)?;
    ensure(refused == GoAwayCode::NoAgent, || format!("a pod with another's label: {refused:?}"))?;
    Ok("an AgentPeer selects no pod of another namespace; a label that was moved takes the old identity and gives none"
        .into())
}

/// What happens to pods while every operator is away.
pub(super) fn away(stage: &Stage) -> Result<String, Failed> {
    let cluster = &stage.cluster;
    stage.namespace("away")?;
    let audience = stage.audience()?;
    let identities = stage.runtime.block_on(fleet::populate(&stage.api, "away", "a", 3, &audience))?;
    let fleet = Fleet::start(&stage.runtime, identities, stage.shared_addresses(), &stage.authority()?)?;
    fleet.all("connected", PATIENCE, |known| known.is_connected)?;
    let written = until(|| Ok(in_ledger(cluster, "enrolled", ".away")?.len() == 3))?;
    ensure(written, || "who enrolled is not written down".into())?;
    stage.without_operators(|| {
        cluster.kubectl("delete pod a-0 -n away --now")?;
        cluster.kubectl("label pod a-1 -n away app=nothing --overwrite")
    })?;
    let denied = until(|| Ok(in_ledger(cluster, "denied", ".away")?.len() == 2))?;
    ensure(denied, || format!("denied: {:?}", in_ledger(cluster, "denied", ".away")))?;
    for (agent, fate) in fleet.agents.iter().zip([Some("Denied"), Some("Denied"), None]) {
        let name = &agent.identity.name;
        let so = until(|| {
            let known = agent.known();
            Ok(fate.map_or(known.is_connected, |fate| known.ended.contains(fate) || known.passport.is_none()))
        })?;
        ensure(so, || format!("{name} was expected to be told {fate:?}, but: {}", agent.known().ended))?;
    }
    Ok("a pod that was deleted and one that lost its label are denied by the next operator; the third one goes on"
        .into())
}

/// Instances of agents of `.NAMESPACE` that are written down as this.
fn in_ledger(cluster: &Cluster, what: &str, namespace: &str) -> Result<Vec<String>, Failed> {
    let maps = cluster.get(&format!("configmap -n {NAMESPACE} -l peerage.dev/{what}-instances"))?.unwrap_or_default();
    let maps = maps["items"].as_array().cloned().unwrap_or_default();
    let data = maps.iter().filter_map(|map| map["data"].as_object()).flatten();
    let wanted = data.filter(|(_, value)| value.as_str().is_some_and(|value| value.contains(namespace)));
    Ok(wanted.map(|(key, _)| key.clone()).collect())
}
