//! What there is, and how each of it fares.

use kube::ResourceExt;
use peerage_crds::{AgentLink, AgentTrust, AgentTrustRequest, Condition, ConditionStatus};
use peerage_output::{Output, Table};
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
