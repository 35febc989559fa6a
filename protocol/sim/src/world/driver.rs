//! What each agent's driver does: sends what its node has to send, and acts on what it has to say.

use std::net::SocketAddr;

use peerage_engine::node::{Event, StreamKey};
use peerage_engine::path::ExtraSocket;
use peerage_model::AgentId;
use peerage_model::relay::RelayInfo;
use peerage_model::stream::{StreamKind, StreamStatus};

use super::flow::{Half, Moment, NAME_LEN, StreamId, Unnamed};
use super::net::relay_name;
use super::{Agent, Sim};

impl Sim {
    /// Sends everything a node has to send and acts on everything it has to say.
    pub(super) fn drain(&mut self, agent: usize) {
        if self.agents[agent].held_back {
            return;
        }
        let mut buffer = Vec::new();
        loop {
            let moment = self.time_of(agent);
            let Some(node) = self.agents[agent].node.as_mut() else {
                return;
            };
            if let Some(transmit) = node.poll_transmit(moment, 10, &mut buffer) {
                let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
                for datagram in buffer.chunks(segment) {
                    self.send(agent, &transmit, datagram.to_vec());
                }
            } else if let Some(event) = node.poll_event() {
                self.on_event(agent, event);
            } else {
                return;
            }
        }
    }

    fn on_event(&mut self, agent: usize, event: Event) {
        let stream_event = match &event {
            Event::Readable(key) | Event::Writable(key) => Some(*key),
            Event::Incoming { .. } | Event::PacketReadable(_) => None,
            _ => {
                let line = format!("{:?} {} {event:?}", self.elapsed(), self.agents[agent].label);
                self.trace.push(line);
                None
            }
        };
        match event {
            Event::Incoming { stream, peer, header } => self.on_incoming(agent, stream, peer, header.kind),
            Event::PacketReadable(stream) => self.on_packet(agent, stream),
            Event::Readable(_) | Event::Writable(_) => {}
            Event::OpenSockets { sockets } => self.open_sockets(agent, sockets),
            // Where UDP gets out, agents have to do without.
            Event::OpenRelayStream { stream, relay } if self.sites[self.agents[agent].site].blocks_udp => {
                self.open_stream(agent, stream, &relay);
            }
            Event::CloseRelayStream { stream } => self.close_stream(agent, stream),
            Event::Resolve { relay } => self.look_up(agent, &relay),
            Event::CloseSockets { sockets } => self.agents[agent].extras.retain(|open, _| !sockets.contains(open)),
            other => {
                let host = &mut self.agents[agent];
                let kept = if host.writes_down { StreamStatus::Open } else { StreamStatus::Busy };
                match (&other, &mut host.node) {
                    (Event::TrustRequested { invite, .. }, _) if host.hesitates => host.undecided.push(*invite),
                    (Event::TrustRequested { invite, .. }, Some(node)) => node.answer_request(*invite, kept),
                    (_, _) => {}
                }
                let at = self.elapsed();
                self.agents[agent].events.push((at, other));
            }
        }
        if let Some(key) = stream_event {
            self.pump(agent, key);
        }
    }

    fn look_up(&mut self, agent: usize, relay: &RelayInfo) {
        let moment = self.time_of(agent);
        let found = self.relays.iter().find(|host| relay_name(&host.label) == relay.host.as_str());
        let addresses = found.map(|host| [host.address, host.address_v6]).into_iter().flatten().collect::<Vec<_>>();
        if let Some(node) = self.agents[agent].node.as_mut() {
            node.relay_resolved(moment, relay, &addresses);
        }
    }

    fn open_sockets(&mut self, agent: usize, sockets: Vec<ExtraSocket>) {
        let moment = self.time_of(agent);
        let host = &mut self.agents[agent];
        let mut opened = Vec::new();
        for socket in sockets {
            host.next_port = if host.next_port >= 39_000 { 20_000 } else { host.next_port + 1 };
            host.extras.insert(socket, SocketAddr::new(host.addresses.first().ip(), host.next_port));
            opened.push((socket, host.next_port));
        }
        if let Some(node) = host.node.as_mut() {
            node.sockets_opened(moment, &opened);
        }
    }

    fn on_incoming(&mut self, agent: usize, key: StreamKey, peer: AgentId, kind: StreamKind) {
        let Agent { node: Some(node), serves, .. } = &mut self.agents[agent] else { return };
        if !*serves {
            // Over before we looked is as good.
            let _ = node.answer(key, StreamStatus::Refused);
            return;
        }
        // It may be over before we looked.
        if node.answer(key, StreamStatus::Open).is_ok() && kind == StreamKind::Tcp {
            let half = Half::new(agent, key);
            self.flows.unnamed.insert((agent, key), Unnamed { half, peer });
            self.pump(agent, key);
        }
    }

    /// Sends packets of a flow back, or takes them where they came back.
    fn on_packet(&mut self, agent: usize, key: StreamKey) {
        let Some(node) = self.agents[agent].node.as_mut() else {
            return;
        };
        while let Ok(packet) = node.recv_packet(key) {
            let mut name = [0; NAME_LEN];
            name.copy_from_slice(&packet[..NAME_LEN]);
            let id = StreamId(u64::from_be_bytes(name));
            let flow = self.flows.flows.get_mut(&id).expect("a flow that somebody opened");
            if flow.agent == agent {
                flow.returned.push(packet);
            } else {
                let back = node.send_packet(key, &packet);
                assert!(back.is_ok(), "a packet that arrived goes back: {back:?}");
                flow.arrived.push(packet);
            }
        }
    }

    pub(super) fn pump(&mut self, agent: usize, key: StreamKey) {
        if !self.agents[agent].reads {
            return;
        }
        let elapsed = self.clock.elapsed();
        let ids: Vec<_> = self.agents.iter().map(|a| self.owners[&a.name].id.clone()).collect();
        let Agent { node, name, .. } = &mut self.agents[agent];
        let Some(node) = node.as_mut() else { return };
        match self.flows.keys.get(&(agent, key)) {
            Some(id) => self.flows.pump(*id, agent, node, elapsed),
            None => {
                let moment = Moment { elapsed, agent_of: &|n: usize| ids[n].clone() };
                self.flows.pump_unnamed((agent, key), name, node, moment);
            }
        }
    }
}
