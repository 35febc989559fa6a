//! Requests and trusts: everything that two owners decide.

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use peerage_crds::trust::{InboundPort, TrustedPeer};
use peerage_crds::{
    AgentLink, AgentPeer, AgentRef, AgentTrust, AgentTrustRequest, AgentTrustSpec, ConditionStatus, LinkRef,
};
use peerage_output::{Output, Table};
use serde_json::json;

use crate::args::{Approve, Open, Revoke, Trust};
use crate::cluster::{Cluster, condition, create, get, list, until};
use crate::failure::{Code, Failure};

/// Annotation of a request that its owner does not want; the operator reads it.
const REJECTED: &str = "peerage.dev/rejected";

/// Who asks.
pub async fn requests(cluster: &Cluster, all: bool, output: Output) -> Result<(), Failure> {
    let api = if all { cluster.all::<AgentTrustRequest>() } else { cluster.here() };
    let found = list(&api, "list AgentTrustRequests").await?;
    let said: Vec<_> = found
        .iter()
        .map(|one| {
            let from = &one.spec.from;
            json!({
                "name": one.name_any(), "namespace": one.namespace(), "agent": one.spec.agent_ref.name,
                "from": from.name, "link": from.link_ref.as_ref().map(|link| &link.name), "authority": from.authority,
                "reason": one.spec.reason, "rejected": one.annotations().contains_key(REJECTED),
                "expires": one.spec.expires_at,
            })
        })
        .collect();
    output.list(&said, |_| {
        let row = |one: &AgentTrustRequest| {
            let from = &one.spec.from;
            let link = from.link_ref.as_ref().map_or("", |link| &link.name).to_owned();
            let rejected = if one.annotations().contains_key(REJECTED) { "rejected" } else { "pending" };
            let why = printable(one.spec.reason.as_deref().unwrap_or_default());
            let namespace = one.namespace().unwrap_or_default();
            vec![
                one.name_any(),
                namespace,
                one.spec.agent_ref.name.clone(),
                from.name.clone(),
                link,
                rejected.into(),
                why,
            ]
        };
        let head = ["NAME", "NAMESPACE", "AGENT", "FROM", "LINK", "ANSWERED", "WHY (their words)"];
        Table::of(&head, found.iter().map(row)).render_or("nobody asks")
    });
    Ok(())
}

/// A stranger's words on our terminal: no control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Agrees to a request.
pub async fn approve(cluster: &Cluster, how: &Approve, output: Output) -> Result<(), Failure> {
    let request = get(&cluster.here::<AgentTrustRequest>(), &how.name, "read the request").await?;
    let (from, agent) = (&request.spec.from, &request.spec.agent_ref.name);
    let (name, namespace) = parted(&from.name);
    let peer = TrustedPeer {
        name: Some(name.to_owned()),
        namespace: namespace.map(ToOwned::to_owned),
        link_ref: from.link_ref.clone(),
        authority: from.link_ref.as_ref().map(|_| from.authority.clone()),
        ..TrustedPeer::default()
    };
    let alias = match &how.alias {
        Some(alias) => Some(alias.clone()),
        None => {
            let service = cluster.here::<Service>().get_opt(name).await;
            may_be_called(name, service.map(|service| service.is_some()).as_ref())?;
            None
        }
    };
    let terms = Terms { open: &how.open, alias, purpose: None, expires: how.expires };
    let made = consent(cluster, agent, peer, terms).await?;
    output
        .answer(&json!({"agenttrust": made, "namespace": cluster.namespace}), |_| format!("agenttrust/{made} created"));
    Ok(())
}

/// Whether our agent's programs may call who asks by the name that it has given itself: it must not take the place of a
/// Service which they call by the same name.
fn may_be_called(name: &str, is_service: Result<&bool, &kube::Error>) -> Result<(), Failure> {
    let hint = format!("say what our agent calls it, such as --as their-{name}");
    match is_service {
        Ok(false) => Ok(()),
        Ok(true) => {
            let message = format!("who asks is called `{name}`, and so is a Service of this namespace");
            Err(Failure::new(Code::AliasNotSaid, message, hint))
        }
        Err(error) => {
            let failure = Failure::of_kube("see whether a Service has the name of who asks", error);
            Err(Failure { hint, ..failure })
        }
    }
}

/// Says no. The request stays until its end, so that the same one does not come again.
pub async fn reject(cluster: &Cluster, name: &str, output: Output) -> Result<(), Failure> {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {REJECTED: "true"}}}));
    let said = cluster.here::<AgentTrustRequest>().patch(name, &PatchParams::default(), &patch).await;
    said.map_err(|error| Failure::of_kube("reject the request", &error))?;
    output.answer(&json!({"rejected": name, "namespace": cluster.namespace}), |_| {
        format!("agenttrustrequest/{name} rejected")
    });
    Ok(())
}

/// Consents to a peer that did not ask.
pub async fn trust(cluster: &Cluster, how: &Trust, output: Output) -> Result<(), Failure> {
    let (name, namespace) = parted(&how.peer);
    let authority = match (&how.authority, &how.link) {
        (Some(authority), _) => Some(authority.to_string()),
        (None, Some(link)) => Some(authority_of(cluster, link).await?),
        (None, None) => None,
    };
    let peer = TrustedPeer {
        name: Some(name.to_owned()),
        namespace: namespace.map(ToOwned::to_owned),
        link_ref: how.link.clone().map(|name| LinkRef { name }),
        authority,
        ..TrustedPeer::default()
    };
    let terms = Terms { open: &how.open, alias: how.alias.clone(), purpose: how.purpose.clone(), expires: how.expires };
    let made = consent(cluster, &how.agent, peer, terms).await?;
    output
        .answer(&json!({"agenttrust": made, "namespace": cluster.namespace}), |_| format!("agenttrust/{made} created"));
    Ok(())
}

async fn authority_of(cluster: &Cluster, name: &str) -> Result<String, Failure> {
    let link = get(&cluster.all::<AgentLink>(), name, "read the AgentLink").await;
    let link = link.map_err(|failure| match failure.code {
        Code::NotPermitted => {
            let hint = "ask who administers the cluster for the other's fingerprint (status.authority), and say it with --authority";
            Failure { hint: hint.into(), ..failure }
        }
        _ => failure,
    })?;
    let authority = link.spec.authority.or_else(|| link.status?.authority);
    authority.ok_or_else(|| {
        let message = format!("AgentLink `{name}` does not lead to any authority yet");
        Failure::new(Code::Invalid, message, format!("see why: kubectl describe agentlink {name}"))
    })
}

/// What is agreed beside who with whom.
struct Terms<'a> {
    open: &'a Open,
    alias: Option<String>,
    purpose: Option<String>,
    expires: Option<Duration>,
}

/// Makes an AgentTrust; its name.
async fn consent(cluster: &Cluster, agent: &str, peer: TrustedPeer, terms: Terms<'_>) -> Result<String, Failure> {
    let Terms { open, alias, purpose, expires } = terms;
    let inbound = inbound(cluster, agent, open).await?;
    let parts = [Some(agent), peer.name.as_deref(), peer.namespace.as_deref()];
    let link = peer.link_ref.as_ref().map(|link| link.name.as_str());
    let name = parts.into_iter().chain([link]).flatten().collect::<Vec<_>>().join("-");
    if let Some(called) = alias.as_deref().or(peer.name.as_deref()) {
        let trusts = list(&cluster.here(), "see what our agent calls its other peers").await?;
        calls_nobody_else(agent, called, &name, &trusts)?;
    }
    let spec = AgentTrustSpec {
        agent_ref: AgentRef { name: agent.to_owned() },
        peer,
        alias,
        inbound,
        purpose,
        expires_at: expires.map(time_after),
    };
    let trust = AgentTrust::new(&name, spec);
    create(&cluster.here(), &trust, "make the AgentTrust").await.map(|made| made.name_any())
}

/// The time so long from now, in whole seconds as Kubernetes keeps times.
fn time_after(after: Duration) -> Time {
    let seconds = Timestamp::now().as_second().saturating_add_unsigned(after.as_secs());
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}

/// Whether this would be the first peer that `agent` calls so; the operator takes no AgentTrust that is younger than another
/// with its alias. One called `name` is what is about to be made, and is there already.
fn calls_nobody_else(agent: &str, called: &str, name: &str, trusts: &[AgentTrust]) -> Result<(), Failure> {
    let holder = trusts.iter().find(|trust| {
        let spec = &trust.spec;
        let alias = spec.alias.as_deref().or(spec.peer.name.as_deref());
        spec.agent_ref.name == agent && alias == Some(called) && trust.name_any() != name
    });
    let Some(holder) = holder else { return Ok(()) };
    let message = format!("`{agent}` calls another peer `{called}` already, by AgentTrust `{}`", holder.name_any());
    Err(Failure::new(Code::AliasTaken, message, format!("say what it calls this one, such as --as other-{called}")))
}

/// What the other may open. An agent that offers something needs a word about that: silence is no consent.
async fn inbound(cluster: &Cluster, agent: &str, open: &Open) -> Result<Vec<InboundPort>, Failure> {
    let ports = get(&cluster.here::<AgentPeer>(), agent, "read the AgentPeer").await?.spec.ports;
    let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
    let offers = if names.is_empty() { "it offers none".to_owned() } else { format!("it offers {}", names.join(", ")) };
    if let Some(unknown) = open.open.iter().find(|name| !names.contains(&name.as_str())) {
        let message = format!("AgentPeer `{agent}` has no port called `{unknown}`");
        return Err(Failure::new(Code::NotFound, message, offers));
    }
    if open.open.is_empty() && !open.open_nothing && !names.is_empty() {
        let message = format!("which ports of `{agent}` may the other open?");
        let hint = format!("--open NAMES ({offers}), or --open-nothing if only `{agent}` calls the other");
        return Err(Failure::new(Code::PortsNotSaid, message, hint));
    }
    Ok(open.open.iter().map(|name| InboundPort { port_name: name.clone() }).collect())
}

/// An agent's name, and its namespace if it has one.
fn parted(whole: &str) -> (&str, Option<&str>) {
    match whole.split_once('.') {
        Some((name, namespace)) => (name, Some(namespace)),
        None => (whole, None),
    }
}

/// Takes a consent back: by deletion or, to see when it took effect, by ending it first.
pub async fn revoke(cluster: &Cluster, how: &Revoke, output: Output) -> Result<(), Failure> {
    let trusts = cluster.here::<AgentTrust>();
    let begun = std::time::Instant::now();
    if let Some(patience) = how.wait {
        end(cluster, &how.name, patience).await?;
    }
    let took = begun.elapsed();
    let deleted = trusts.delete(&how.name, &DeleteParams::default()).await;
    deleted.map_err(|error| Failure::of_kube("delete the AgentTrust", &error))?;
    let milliseconds = how.wait.map(|_| took.as_millis());
    output.answer(&json!({"revoked": how.name, "namespace": cluster.namespace, "ended_ms": milliseconds}), |_| {
        match milliseconds {
            Some(took) => {
                format!("agenttrust/{} revoked; every connected agent had ended it after {took} ms", how.name)
            }
            None => format!("agenttrust/{} deleted", how.name),
        }
    });
    Ok(())
}

/// Ends a consent without deleting it, and waits until every agent with a live stream says that it acts on that.
async fn end(cluster: &Cluster, name: &str, patience: Duration) -> Result<(), Failure> {
    let trusts = cluster.here::<AgentTrust>();
    let patch = Patch::Merge(json!({"spec": {"expiresAt": time_after(Duration::ZERO)}}));
    let ended = trusts.patch(name, &PatchParams::default(), &patch).await;
    let generation = ended.map_err(|error| Failure::of_kube("end the AgentTrust", &error))?.metadata.generation;
    until(patience, || async {
        let trust = get(&trusts, name, "look at the AgentTrust").await?;
        let status = trust.status.unwrap_or_default();
        let accepted = condition(&status.conditions, "Accepted");
        let is_judged =
            accepted.is_some_and(|one| one.observed_generation >= generation && one.status == ConditionStatus::False);
        let agents = status.agents.unwrap_or_default();
        Ok(match is_judged && agents.acknowledged >= agents.expected {
            true => Ok(()),
            false => Err(format!(
                "agenttrust/{name} has ended, and {} of {} connected agents have confirmed it; it was not deleted",
                agents.acknowledged, agents.expected
            )),
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trusts(agent: &str, peer: &str, alias: Option<&str>) -> Vec<AgentTrust> {
        let agent_ref = AgentRef { name: agent.into() };
        let peer = TrustedPeer { name: Some(peer.into()), ..TrustedPeer::default() };
        let alias = alias.map(Into::into);
        let spec = AgentTrustSpec { agent_ref, peer, alias, inbound: Vec::new(), purpose: None, expires_at: None };
        vec![AgentTrust::new("elder", spec)]
    }

    #[test]
    fn an_agent_does_not_call_two_peers_the_same() {
        let taken = calls_nobody_else("db", "reporter", "younger", &trusts("db", "reporter", None));
        let taken = taken.expect_err("one is called so");
        assert_eq!(taken.code, Code::AliasTaken);
        assert!(taken.message.contains("elder") && taken.hint.contains("--as other-reporter"), "{taken:?}");
        let by_alias = calls_nobody_else("db", "reporter", "younger", &trusts("db", "planner", Some("reporter")));
        assert!(by_alias.is_err());
        assert_eq!(calls_nobody_else("db", "reporter", "younger", &trusts("db", "reporter", Some("planner"))), Ok(()));
        assert_eq!(calls_nobody_else("db", "reporter", "younger", &trusts("shop", "reporter", None)), Ok(()));
    }

    #[test]
    fn a_consent_that_is_there_already_is_not_taken_for_another_peer() {
        assert_eq!(calls_nobody_else("db", "reporter", "elder", &trusts("db", "reporter", None)), Ok(()));
    }

    #[test]
    fn a_stranger_does_not_take_the_name_of_a_service() {
        assert_eq!(may_be_called("reporter", Ok(&false)), Ok(()));
        let taken = may_be_called("postgres", Ok(&true)).expect_err("there is such a Service");
        assert_eq!(taken.code, Code::AliasNotSaid);
        assert!(taken.hint.contains("--as their-postgres"), "{}", taken.hint);
    }
}
