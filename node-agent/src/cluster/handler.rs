//! Answers what people ask over the control socket, in a pod: what can be looked at. What outside of clusters is decided
//! here is decided by resources there, and the answer says by which.

use std::sync::Arc;

use peerage_model::UnixTime;
use peerage_model::operator::{Entry, Settings};
use serde_json::Value;

use super::node::{Node, service};
use crate::control::server::{Handler, Handling, Reply};
use crate::control::view::{self, PeerState};
use crate::control::{Code, Failure, Request};
use crate::daemon::agent::milliseconds;
use crate::daemon::handler::{events, json, names};
use crate::daemon::link::LinkStatus;
use crate::state::time;

impl Handler for Node {
    fn handle(self: Arc<Self>, request: Request) -> Handling {
        Box::pin(async move {
            match request {
                Request::Status => Ok(Reply::Value(json(&status(&self).await?))),
                Request::Peers => Ok(Reply::Value(json(&status(&self).await?.peers))),
                Request::Names => Ok(Reply::Stream(names(self, |node| &node.edge))),
                Request::Events => Ok(Reply::Stream(events(self.events.subscribe()))),
                Request::Down => {
                    self.stop.send_replace(true);
                    Ok(Reply::Value(Value::Null))
                }
                Request::Handshake { .. } | Request::HandshakeByName { .. } | Request::Approve { .. } => {
                    Err(by_resource("trust is given by an AgentTrust", "kubectl explain agenttrust.spec"))
                }
                Request::Revoke { .. } => {
                    Err(by_resource("trust is taken back by deleting the AgentTrust", "kubectl get agenttrusts"))
                }
                Request::Requests | Request::Reject { .. } => {
                    Err(by_resource("who asks for trust is an AgentTrustRequest", "kubectl get agenttrustrequests"))
                }
                Request::Expose { .. } | Request::Unexpose { .. } => {
                    Err(by_resource("ports are offered by the AgentPeer", "kubectl explain agentpeer.spec.ports"))
                }
                Request::Invite { .. } | Request::Tickets | Request::Withdraw { .. } => {
                    Err(by_resource("clusters are linked by an AgentLink", "kubectl explain agentlink.spec"))
                }
                Request::Deny { .. } => {
                    Err(by_resource("an instance is denied by deleting its pod", "kubectl get pods"))
                }
                Request::Rotate { .. } => Err(by_resource(
                    "the authority's keys are the operator's",
                    "kubectl -n peerage-system annotate secret peerage-authority peerage.dev/rotate=now",
                )),
                Request::Ping { .. }
                | Request::Bench { .. }
                | Request::Connect { .. }
                | Request::Outcome { .. }
                | Request::Doctor => Err(Failure::new(
                    Code::InCluster,
                    "an agent in a cluster does not answer this",
                    "use the peer's name from the application's own container; `peerage status` says how it stands",
                )),
            }
        })
    }
}

fn by_resource(what: &str, hint: &str) -> Failure {
    let message = format!("this agent belongs to a cluster, where {what}");
    Failure::new(Code::InCluster, message, format!("look at `{hint}`"))
}

/// Everything at a glance.
async fn status(node: &Node) -> Result<view::Status, Failure> {
    let operator = node.operator();
    let (instance, passport_until) = node.run();
    let (Some(agent), Some(passport_until)) = (node.us(), passport_until) else {
        let why = operator.problem.unwrap_or_else(|| "it has not been reached yet".into());
        let hint = "the reason is the operator's; `kubectl describe agentpeer` and its log say more";
        return Err(Failure::new(Code::NotEnrolled, format!("no operator has given a passport: {why}"), hint));
    };
    let link = match node.tunnel.get() {
        Some(link) => link.status().await,
        None => LinkStatus::default(),
    };
    let now = time::now();
    let (entries, settings): (Vec<Entry>, Settings) =
        node.follow(|follow| (follow.entries().cloned().collect(), follow.settings().clone()));
    let edge = node.edge.problems().into_iter().map(|problem| problem.text);
    let away = operator.problem.clone().map(|why| format!("no stream from an operator: {why}"));
    Ok(view::Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        since: node.since,
        state: node.directory(),
        agent,
        instance: instance.to_string(),
        keys: 0,
        former_keys_until: None,
        passport_until,
        relays: link.relays.clone(),
        nat: link.nat.clone(),
        mapping: link.mapping.clone(),
        peers: entries.iter().map(|entry| peer(node, entry, &link, now)).collect(),
        requests: 0,
        services: settings.ports.iter().map(service).collect(),
        dns: node.edge.dns(),
        problems: away.into_iter().chain(node.staleness(now)).chain(edge).collect(),
        operator: Some(operator),
    })
}

fn peer(node: &Node, entry: &Entry, link: &LinkStatus, now: UnixTime) -> view::Peer {
    let peer = &entry.peer;
    let (session, totals) = (link.best_session_with(&peer.id), link.totals(&peer.id));
    let state = match session {
        Some(_) => PeerState::Connected,
        None if peer.expires.is_some_and(|end| end <= now) => PeerState::Unusable,
        None => PeerState::NotConnected,
    };
    let why = || {
        let failure = node.edge.outbound.failures.all().remove(&peer.id).map(|failure| failure.text);
        node.last_end(&peer.id).or(failure)
    };
    let ports = node.edge.ports_of(&peer.id);
    let ports = ports.iter().map(|port| view::port_text(port.name.as_str(), port.number, port.protocol));
    let inbound: Vec<&str> = peer.inbound.iter().map(peerage_model::Label::as_str).collect();
    view::Peer {
        name: peer.alias.to_string(),
        id: peer.id.clone(),
        state,
        instances: totals.instances.iter().map(ToString::to_string).collect(),
        path: session.map(|session| session.path.clone()),
        rtt_ms: session.and_then(|session| session.rtt).map(milliseconds),
        why: session.map_or_else(why, |session| session.why_not_better.clone()),
        ports: ports.collect(),
        inbound: if inbound.is_empty() { "nothing".into() } else { inbound.join(", ") },
        address: node.edge.directory().get(&peer.id).map(|entry| entry.address.into()),
        purpose: String::new(),
        since: session.map_or(node.since, |session| session.since),
        expires: peer.expires,
        bytes_in: totals.bytes_in,
        bytes_out: totals.bytes_out,
        streams: totals.streams,
    }
}
