//! What happens in the tunnel: what a node does of it, and what it tells those who listen.

use std::sync::Arc;

use peerage_model::stream::StreamStatus;
use peerage_model::{AgentId, AuthorityRecord};

use super::node::Node;
use crate::control::view::{self, Event};
use crate::daemon::agent::milliseconds;
use crate::daemon::link::LinkEvent;

impl Node {
    /// Acts on what happened in the tunnel, and passes it on.
    pub(super) fn hear(self: &Arc<Self>, event: LinkEvent) {
        let event = match event {
            LinkEvent::Relay { relay, up, observed } => {
                self.metrics.relay_changed(&relay.to_string(), up);
                Event::Relay { relay: relay.to_string(), up, observed }
            }
            LinkEvent::RelayRefused { relay, reason } => {
                self.metrics.relay_changed(&relay.to_string(), false);
                Event::RelayRefused { relay: relay.to_string(), reason }
            }
            LinkEvent::Nat(nat) => Event::Nat { nat },
            LinkEvent::SessionUp { peer, path, instance: _ } => {
                self.metrics.sessions_opened.inc();
                self.held().contacts.up(&peer);
                Event::Connected { peer: self.alias(&peer), id: peer.to_string(), path, approved: false }
            }
            LinkEvent::SessionDown { peer, reason } => {
                self.held().contacts.down(&peer, &reason);
                Event::Disconnected { peer: self.alias(&peer), id: peer.to_string(), reason }
            }
            LinkEvent::PathChanged { peer, from, to, why, rtt } => {
                tracing::info!(target: "events::path_changed", peer = %peer.routing_id(), from, to, ?rtt);
                Event::PathChanged { peer: self.alias(&peer), from, to, why, rtt_ms: rtt.map(milliseconds) }
            }
            LinkEvent::PeerPorts { peer, ports } => {
                let texts = ports.iter().map(|port| view::port_text(port.name.as_str(), port.number, port.protocol));
                let event = Event::Ports { peer: self.alias(&peer), ports: texts.collect() };
                self.edge.learn_ports(&peer, ports);
                event
            }
            LinkEvent::StreamsReset { peer, count, why } => {
                self.metrics.streams_reset.inc_by(count);
                Event::StreamsReset { peer: self.alias(&peer), count, why }
            }
            // The operator says which keys count, and hears of new ones from us where nobody else tells it.
            LinkEvent::PeerRecord { record, .. } => {
                self.learn_record(*record);
                return;
            }
            // An agent in a cluster invites nobody and has no mailbox: trust is declared by resources.
            LinkEvent::TrustRequested { invite, .. } => {
                if let Some(link) = self.tunnel.get() {
                    link.answer_request(invite, StreamStatus::Denied);
                }
                return;
            }
            LinkEvent::Mail { relay, id, .. } => {
                if let Some(link) = self.tunnel.get() {
                    link.mail_done(&relay, id);
                }
                return;
            }
        };
        self.say(event);
        self.news.send_modify(|news| *news += 1);
    }

    /// What a peer is called here.
    fn alias(&self, peer: &AgentId) -> String {
        let held = self.held();
        let entry = held.follow.entries().find(|entry| entry.peer.id == *peer);
        entry.map_or_else(|| peer.to_string(), |entry| entry.peer.alias.to_string())
    }

    /// Keeps the keys that a peer showed, until the operator has heard of them.
    fn learn_record(&self, record: AuthorityRecord) {
        let (of, mut held) = (record.fingerprint(), self.held());
        let is_news = held.records.get(&of).is_none_or(|known| known.sequence() < record.sequence());
        if of != self.options.authority && is_news {
            held.records.insert(of, record);
        }
    }
}
