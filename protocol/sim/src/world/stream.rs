//! Streams to relays, for agents whose network lets no UDP out: in order, without loss, and slower to begin than a packet.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::BytesMut;
use peerage_engine::path::RelayStream;
use peerage_model::relay::RelayInfo;
use peerage_relay_proto::{Decision, Ingress, Place, StreamId};

use super::net::{AGENT_DELAY, RELAY_DELAY};
use super::packet::{Origin, Packet};
use super::{Arrival, Sim};

/// TCP, TLS, and the proof of the relay's key: three round trips.
const OPENING: Duration = Duration::from_millis(90);

/// The streams of a world.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: BTreeMap<StreamId, Stream>,
    opened: u64,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    agent: usize,
    name: RelayStream,
    relay: usize,
}

impl Sim {
    /// An agent asks for a stream to a relay.
    pub(super) fn open_stream(&mut self, agent: usize, name: RelayStream, relay: &RelayInfo) {
        let key = |secret: [u8; 32]| peerage_model::AgreementSecret::from_bytes(secret).public();
        let Some(relay) = self.relays.iter().position(|host| key(host.secret) == relay.key) else { return };
        self.streams.opened += 1;
        let id = StreamId(self.streams.opened);
        self.streams.open.insert(id, Stream { agent, name, relay });
        self.queue.push(self.clock.now() + OPENING, Arrival::StreamOpened(id));
    }

    pub(super) fn close_stream(&mut self, agent: usize, name: RelayStream) {
        self.streams.open.retain(|_, stream| (stream.agent, stream.name) != (agent, name));
    }

    pub(super) fn stream_opened(&mut self, id: StreamId) {
        let Some(Stream { agent, name, relay }) = self.streams.open.get(&id).copied() else { return };
        let moment = self.time_of(agent);
        let answers = self.relays[relay].relay.is_some();
        let Some(node) = self.agents[agent].node.as_mut() else { return };
        match answers {
            true => node.relay_stream_opened(moment, name),
            false => {
                self.streams.open.remove(&id);
                node.relay_stream_closed(moment, name, "nobody answers there".to_owned());
            }
        }
        self.drain(agent);
    }

    /// A relay is gone, and its streams with it.
    pub(super) fn break_streams_of(&mut self, relay: usize) {
        let broken: Vec<_> = self.streams.open.extract_if(.., |_, stream| stream.relay == relay).collect();
        for (_, Stream { agent, name, .. }) in broken {
            let moment = self.time_of(agent);
            if let Some(node) = self.agents[agent].node.as_mut() {
                node.relay_stream_closed(moment, name, "the relay is gone".to_owned());
                self.drain(agent);
            }
        }
    }

    /// An agent says a frame on a stream.
    pub(super) fn send_frame(&mut self, agent: usize, name: RelayStream, bytes: Vec<u8>) {
        let mut open = self.streams.open.iter();
        let Some((id, _)) = open.find(|(_, stream)| (stream.agent, stream.name) == (agent, name)) else { return };
        self.queue.push(self.clock.now() + AGENT_DELAY + RELAY_DELAY, Arrival::FrameAtRelay(*id, bytes));
    }

    pub(super) fn frame_at_relay(&mut self, id: StreamId, mut bytes: Vec<u8>) {
        let Some(Stream { agent, relay: number, .. }) = self.streams.open.get(&id).copied() else { return };
        let (now, wall) = (self.clock.now(), self.clock.wall(0));
        let from = Place::Stream(id, self.agents[agent].addresses.first());
        let Some(relay) = self.relays[number].relay.as_mut() else { return };
        let length = bytes.len();
        match relay.handle(&Ingress { now, wall, from, local: None }, &mut bytes, length).decision {
            Decision::Drop => {}
            Decision::Reply(reply) => self.frame_to_agent(id, reply.as_bytes().to_vec()),
            Decision::Forward(forward) => {
                let frame = bytes[forward.range].to_vec();
                self.bytes_relayed += frame.len() as u64;
                match forward.to {
                    Place::Stream(to, _) => self.frame_to_agent(to, frame),
                    Place::Udp(to) => {
                        let host = &mut self.relays[number];
                        let from = host.place(Default::default(), to);
                        let at = self.clock.elapsed();
                        let packet = Packet { at, from, to, bytes: frame, origin: Origin::Forwarded(agent) };
                        for at in host.line.up.send(now, packet.bytes.len()) {
                            self.queue.push(at, Arrival::Core(packet.clone()));
                        }
                    }
                }
            }
        }
    }

    /// A relay says a frame on a stream.
    pub(super) fn frame_to_agent(&mut self, id: StreamId, bytes: Vec<u8>) {
        self.queue.push(self.clock.now() + RELAY_DELAY + AGENT_DELAY, Arrival::FrameAtAgent(id, bytes));
    }

    pub(super) fn frame_at_agent(&mut self, id: StreamId, bytes: Vec<u8>) {
        let Some(Stream { agent, name, .. }) = self.streams.open.get(&id).copied() else { return };
        if self.agents[agent].stopped.is_some() {
            // It waits in the kernel until the process goes on.
            self.queue.push(self.clock.now() + AGENT_DELAY, Arrival::FrameAtAgent(id, bytes));
            return;
        }
        let moment = self.time_of(agent);
        if let Some(node) = self.agents[agent].node.as_mut() {
            node.handle_relay_frames(moment, name, [BytesMut::from(&bytes[..])]);
            self.drain(agent);
        }
    }
}
