//! By which path an agent's pods reach its peers.

use peerage_output::{Output, Table};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::agents::{Answer, ask};
use crate::args::PathTo;
use crate::cluster::Cluster;
use crate::failure::{Code, Failure};

/// A peer as an agent sees it: what of its view (`peerage peers --json`) matters here.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct Peer {
    /// What it is called there.
    name: String,
    /// `connected`, `not_connected`, `waiting_for_approval`, `unusable`.
    state: String,
    /// `local`, `direct`, `punched` or `relayed`.
    path: Option<String>,
    /// Round trip over that path, in milliseconds.
    rtt_ms: Option<f64>,
    /// Why no better path, and what to do.
    why: Option<String>,
}

/// Prints, for each pod of an agent, the path to each of its peers.
///
/// # Errors
/// No pod could be asked, or none knows such a peer.
pub async fn path(cluster: &Cluster, to: &PathTo, output: Output) -> Result<(), Failure> {
    let answers: Vec<Answer<Vec<Peer>>> = ask(cluster, &to.agent, "peers").await?;
    if answers.is_empty() {
        let message = format!("AgentPeer `{}` has no running pod with an agent", to.agent);
        let hint = format!("see why: kubectl describe agentpeer {} -n {}", to.agent, cluster.namespace);
        return Err(Failure::new(Code::NotFound, message, hint));
    }
    let asked = answers.len();
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for answer in answers {
        match answer.said {
            Ok(peers) => rows.extend(peers.into_iter().map(|peer| (answer.pod.clone(), peer))),
            Err(failure) => failed.push((answer.pod, failure)),
        }
    }
    if let (true, Some((_, failure))) = (failed.len() == asked, failed.first()) {
        return Err(failure.clone());
    }
    if let Some(peer) = &to.peer {
        rows.retain(|(_, found)| found.name == *peer);
        if rows.is_empty() {
            let message = format!("no pod of `{}` has a peer that it calls `{peer}`", to.agent);
            let hint = format!("see whom it trusts: kubectl peerage path {} -n {}", to.agent, cluster.namespace);
            return Err(Failure::new(Code::NotFound, message, hint));
        }
    }
    for (pod, failure) in &failed {
        output.note(&format!("pod/{pod}: {}", failure.message));
    }
    let said: Vec<_> = rows.iter().map(|(pod, peer)| json!({"pod": pod, "peer": peer})).collect();
    let unheard = failed.iter().map(|(pod, failure)| json!({"pod": pod, "error": failure}));
    let said: Vec<_> = said.into_iter().chain(unheard).collect();
    output.list(&said, |_| {
        let head = ["POD", "PEER", "STATE", "PATH", "RTT", "WHY"];
        Table::of(&head, rows.iter().map(|(pod, peer)| row(pod, peer))).render_or("it trusts nobody yet")
    });
    Ok(())
}

fn row(pod: &str, peer: &Peer) -> Vec<String> {
    vec![
        pod.to_owned(),
        peer.name.clone(),
        peer.state.replace('_', " "),
        peer.path.clone().unwrap_or_else(|| "-".into()),
        peer.rtt_ms.map_or_else(|| "-".into(), |rtt| format!("{rtt:.1} ms")),
        peer.why.clone().unwrap_or_default(),
    ]
}
