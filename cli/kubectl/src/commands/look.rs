//! What there is, and what stands in its way.

use std::process::ExitCode;

use kube::ResourceExt;
use peerage_crds::{AgentLink, AgentPeer, AgentRelay, AgentTrust, AgentTrustRequest, Condition, ConditionStatus};
use peerage_output::{Output, Table};
use serde::Serialize;
use serde_json::json;

use crate::cluster::{Cluster, condition, list};
use crate::failure::{Code, Failure};

/// Links, trusts and requests.
pub async fn status(cluster: &Cluster, all: bool, output: Output) -> Result<(), Failure> {
    // Links are the whole cluster's; who owns a namespace need not be allowed to read them.
    let (links, may_list) = match list(&cluster.all::<AgentLink>(), "list AgentLinks").await {
        Ok(links) => (links, true),
        Err(failure) if failure.code == Code::NotPermitted => (Vec::new(), false),
        Err(failure) => return Err(failure),
    };
    let trusts = if all { cluster.all::<AgentTrust>() } else { cluster.here() };
    let trusts = list(&trusts, "list AgentTrusts").await?;
    let requests = if all { cluster.all::<AgentTrustRequest>() } else { cluster.here() };
    let requests = list(&requests, "list AgentTrustRequests").await?;
    let said = json!({
        "links": may_list.then(|| links.iter().map(link_view).collect::<Vec<_>>()),
        "trusts": trusts.iter().map(trust_view).collect::<Vec<_>>(),
        "requests": requests.len(),
    });
    output.answer(&said, |_| {
        let link = |one: &AgentLink| {
            let status = one.status.clone().unwrap_or_default();
            let connected = one_line(condition(&status.conditions, "Connected"));
            vec![one.name_any(), status.authority.unwrap_or_default().chars().take(12).collect(), connected]
        };
        let trust = |one: &AgentTrust| {
            let status = one.status.clone().unwrap_or_default();
            let peer = one.spec.peer.name.clone().unwrap_or_else(|| "(fleet)".into());
            let link = one.spec.peer.link_ref.as_ref().map_or(String::new(), |link| link.name.clone());
            let path = status.path.map_or(String::new(), |path| format!("{path:?}"));
            let namespace = one.namespace().unwrap_or_default();
            let ready = one_line(condition(&status.conditions, "Ready"));
            vec![one.name_any(), namespace, one.spec.agent_ref.name.clone(), peer, link, path, ready]
        };
        let none = if may_list { "no links" } else { "links: you may not read AgentLinks" };
        let links = Table::of(&["LINK", "AUTHORITY", "CONNECTED"], links.iter().map(link)).render_or(none);
        let head = ["TRUST", "NAMESPACE", "AGENT", "PEER", "LINK", "PATH", "READY"];
        let trusts = Table::of(&head, trusts.iter().map(trust)).render_or("no trusts");
        format!("{links}\n\n{trusts}\n\n{} requests wait (kubectl peerage requests)", requests.len())
    });
    Ok(())
}

fn link_view(link: &AgentLink) -> serde_json::Value {
    let status = link.status.clone().unwrap_or_default();
    let connected = condition(&status.conditions, "Connected");
    json!({
        "name": link.name_any(), "authority": status.authority,
        "connected": connected.map(|one| one.status), "reason": connected.map(|one| &one.reason),
        "message": connected.map(|one| &one.message), "pendingRequests": status.pending_requests,
    })
}

fn trust_view(trust: &AgentTrust) -> serde_json::Value {
    let status = trust.status.clone().unwrap_or_default();
    let ready = condition(&status.conditions, "Ready");
    json!({
        "name": trust.name_any(), "namespace": trust.namespace(), "agent": trust.spec.agent_ref.name,
        "peer": trust.spec.peer, "hostname": status.hostname, "path": status.path,
        "ready": ready.map(|one| one.status), "reason": ready.map(|one| &one.reason), "message": ready.map(|one| &one.message),
    })
}

fn one_line(condition: Option<&Condition>) -> String {
    match condition {
        Some(one) if one.status == ConditionStatus::True => "yes".into(),
        Some(one) if one.message.is_empty() => one.reason.clone(),
        Some(one) => format!("{}: {}", one.reason, one.message),
        None => "no operator has looked at it".into(),
    }
}

/// Something that stands in the way.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    /// The condition's reason, or a word of ours: it never changes.
    code: String,
    /// What it is about, as kubectl names it.
    about: String,
    /// What is the matter, with what to do.
    message: String,
}

/// Looks at everything that should be so. Ends with failure where something is not.
pub async fn doctor(cluster: &Cluster, output: Output) -> Result<ExitCode, Failure> {
    let mut findings = Vec::new();
    if let Err(failure) = cluster.record().await {
        findings.push(Finding {
            code: "not_installed".into(),
            about: format!("configmap/peerage-authority -n {}", cluster.operator),
            message: format!("{}; {}", failure.message, failure.hint),
        });
    }
    let relays = list(&cluster.all::<AgentRelay>(), "list AgentRelays").await?;
    if relays.is_empty() {
        findings.push(Finding {
            code: "no_relay".into(),
            about: "agentrelays".into(),
            message: "agents find each other at relays, and there is none; make an AgentRelay".into(),
        });
    }
    for relay in &relays {
        let conditions = relay.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        findings.extend(finding(format!("agentrelay/{}", relay.name_any()), conditions, "Ready"));
    }
    for link in list(&cluster.all::<AgentLink>(), "list AgentLinks").await? {
        let conditions = link.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        findings.extend(finding(format!("agentlink/{}", link.name_any()), conditions, "Connected"));
    }
    let of = |kind: &str, name: String, namespace: Option<String>| {
        format!("{kind}/{name} -n {}", namespace.unwrap_or_default())
    };
    for peer in list(&cluster.all::<AgentPeer>(), "list AgentPeers").await? {
        let conditions = peer.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        findings.extend(finding(of("agentpeer", peer.name_any(), peer.namespace()), conditions, "Ready"));
    }
    for trust in list(&cluster.all::<AgentTrust>(), "list AgentTrusts").await? {
        let conditions = trust.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        findings.extend(finding(of("agenttrust", trust.name_any(), trust.namespace()), conditions, "Ready"));
    }
    let said = findings.clone();
    output.list(&said, |findings| {
        let text = |one: &Finding| format!("{}: {}\n    {}", one.about, one.code, one.message);
        match findings.is_empty() {
            true => "nothing stands in the way".into(),
            false => findings.iter().map(text).collect::<Vec<_>>().join("\n"),
        }
    });
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn finding(about: String, conditions: &[Condition], aspect: &str) -> Option<Finding> {
    let Some(found) = condition(conditions, aspect) else {
        let message =
            "no operator has looked at it: is one running, and does it lead? See the Lease peerage-operator".into();
        return Some(Finding { code: "not_judged".into(), about, message });
    };
    (found.status != ConditionStatus::True).then(|| Finding {
        code: found.reason.clone(),
        about,
        message: found.message.clone(),
    })
}
