//! Status as people see it: what was decided, beside what the tunnel says.

use peerage_model::UnixTime;

use super::agent::{Agent, milliseconds};
use super::link::LinkStatus;
use crate::control::view::{self, PeerState};
use crate::state::change::REQUEST_LIFETIME;
use crate::state::document::{Document, Invitation, Trust};
use crate::state::time;

/// Everything at a glance.
pub(super) async fn status(agent: &Agent) -> view::Status {
    let link = agent.link.status().await;
    let document = agent.document();
    let now = time::now();
    let peers = document.trusts.iter().map(|trust| peer(agent, &document, trust, &link, now)).collect();
    let (state, keys, former_keys_until) = {
        let store = agent.store();
        let former = store.former().map(|former| former.until);
        (store.place().directory().display().to_string(), store.authority().record().sequence(), former)
    };
    view::Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        since: agent.since,
        state,
        agent: agent.us.clone(),
        instance: agent.instance.to_string(),
        keys,
        former_keys_until,
        passport_until: agent.passport_until(),
        relays: link.relays,
        nat: link.nat,
        mapping: link.mapping,
        peers,
        requests: document.requests.len(),
        services: document.services,
        dns: agent.edge.dns(),
        problems: agent.problems().into_iter().map(|problem| problem.text).collect(),
        operator: None,
    }
}

/// Tickets that can be used.
pub(super) fn tickets(open: &[Invitation]) -> Vec<view::OpenTicket> {
    open.iter().map(|invite| view::OpenTicket { id: invite.id.to_string(), expires: invite.expires }).collect()
}

/// Who asks for our trust.
pub(super) fn requests(document: &Document) -> Vec<view::Pending> {
    let pending = document.requests.iter().map(|request| view::Pending {
        name: request.asker.name.to_string(),
        id: request.asker.clone(),
        reason: request.reason.clone(),
        received: request.received,
        expires: request.received.plus(REQUEST_LIFETIME),
    });
    pending.collect()
}

fn peer(agent: &Agent, document: &Document, trust: &Trust, link: &LinkStatus, now: UnixTime) -> view::Peer {
    let session = link.best_session_with(&trust.peer);
    let state = match session {
        Some(_) => PeerState::Connected,
        None if trust.expires.is_some_and(|end| end <= now) => PeerState::Unusable,
        None if document.sent.iter().any(|sent| sent.peer == trust.peer) => PeerState::WaitingForApproval,
        None => PeerState::NotConnected,
    };
    let totals = link.totals(&trust.peer);
    let ports = agent.edge.ports_of(&trust.peer);
    let ports = ports.iter().map(|port| view::port_text(port.name.as_str(), port.number, port.protocol));
    view::Peer {
        name: trust.alias.to_string(),
        id: trust.peer.clone(),
        state,
        instances: totals.instances.iter().map(ToString::to_string).collect(),
        path: session.map(|session| session.path.clone()),
        rtt_ms: session.and_then(|session| session.rtt).map(milliseconds),
        why: session.map_or_else(|| why_not_connected(agent, trust, state), |session| session.why_not_better.clone()),
        ports: ports.collect(),
        inbound: trust.inbound.to_string(),
        address: agent.edge.directory().get(&trust.peer).map(|entry| entry.address.into()),
        purpose: trust.purpose.clone(),
        since: session.map_or(trust.since, |session| session.since),
        expires: trust.expires,
        bytes_in: totals.bytes_in,
        bytes_out: totals.bytes_out,
        streams: totals.streams,
    }
}

/// The path of the session with a peer, for beside a measurement.
pub(super) fn path_of(link: &LinkStatus, peer: &peerage_model::AgentId) -> Option<String> {
    link.best_session_with(peer).map(|session| session.path.clone())
}

fn why_not_connected(agent: &Agent, trust: &Trust, state: PeerState) -> Option<String> {
    match state {
        PeerState::Connected => None,
        PeerState::WaitingForApproval => {
            Some(format!("its owner has not approved yet: `peerage approve {}` over there", agent.us.name))
        }
        PeerState::Unusable => Some("the trust has ended; ask for a new ticket".into()),
        PeerState::NotConnected => {
            let failure = agent.edge.outbound.failures.all().remove(&trust.peer).map(|failure| failure.text);
            // Why it ended says more than that it could not be reached after that.
            let why = agent.last_end(&trust.peer).or(failure);
            Some(why.unwrap_or_else(|| "idle; it connects when a program asks for it".into()))
        }
    }
}
