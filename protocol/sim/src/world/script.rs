//! What tests do to the world, and what they ask of it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use peerage_engine::node::{Algorithm, AskKey, Event, Node, NodeStatus, SessionStatus, StreamKey};
use peerage_engine::path::PathKind;
use peerage_model::control::TrustRequest;
use peerage_model::relay::RelayInfo;
use peerage_model::stream::{StreamHeader, StreamKind, StreamStatus};
use peerage_model::{AgentId, Ticket, UnixTime};

use super::flow::{Flow, Half, NAME_LEN, Outcome, Stream, StreamId};
use super::owner::{DNS, WEB};
use super::packet::{Origin, Packet, Tape};
use super::{Arrival, Sim};
use crate::link::LinkConfig;
use crate::nat::NatKind;

/// Streams and flows.
impl Sim {
    /// Opens a TCP stream to the port that every agent offers. The far side will send back what it reads.
    pub fn open(&mut self, from: &str, to: &str) -> StreamId {
        self.open_port(from, to, WEB)
    }

    /// Opens a TCP stream to any port.
    pub fn open_port(&mut self, from: &str, to: &str, port: u16) -> StreamId {
        let id = self.flows.next_id();
        let kind = StreamKind::Tcp;
        let (agent, key) = self.open_key(from, to, StreamHeader { kind, port });
        let mut near = Half::new(agent, key);
        near.write(&id.0.to_be_bytes());
        let stream = Stream { opened_at: self.clock.elapsed(), near, to: to.to_owned(), far: None };
        self.flows.streams.insert(id, stream);
        self.flows.keys.insert((agent, key), id);
        self.pump_near(id);
        id
    }

    /// Writes to a stream, as fast as it takes it.
    pub fn write(&mut self, id: StreamId, bytes: &[u8]) {
        self.stream_mut(id).near.write(bytes);
        self.pump_near(id);
    }

    /// Says that nothing more will be written.
    pub fn finish(&mut self, id: StreamId) {
        self.stream_mut(id).near.finish();
        self.pump_near(id);
    }

    /// Opens a stream, writes this and says that it is all.
    pub fn request(&mut self, from: &str, to: &str, bytes: &[u8]) -> StreamId {
        let id = self.open(from, to);
        self.write(id, bytes);
        self.finish(id);
        id
    }

    /// What arrived at the far side.
    #[must_use]
    pub fn delivered(&self, id: StreamId) -> &[u8] {
        let read = self.flows.streams[&id].far.as_ref().map(|far| &far.read[..]);
        read.and_then(|read| read.get(NAME_LEN..)).unwrap_or_default()
    }

    /// What came back.
    #[must_use]
    pub fn returned(&self, id: StreamId) -> &[u8] {
        self.flows.streams[&id].near.read.get(NAME_LEN..).unwrap_or_default()
    }

    /// How the stream stands for who opened it.
    #[must_use]
    pub fn outcome(&self, id: StreamId) -> &Outcome {
        &self.flows.streams[&id].near.outcome
    }

    /// How the stream stands for who was asked; `None` before it arrived.
    #[must_use]
    pub fn far_outcome(&self, id: StreamId) -> Option<&Outcome> {
        self.flows.streams[&id].far.as_ref().map(|far| &far.outcome)
    }

    /// How long the first byte took to the far side.
    #[must_use]
    pub fn time_to_server(&self, id: StreamId) -> Option<Duration> {
        let stream = &self.flows.streams[&id];
        Some(stream.far.as_ref()?.first_byte_at? - stream.opened_at)
    }

    /// How long the first byte took to come back.
    #[must_use]
    pub fn time_to_answer(&self, id: StreamId) -> Option<Duration> {
        let stream = &self.flows.streams[&id];
        Some(stream.near.first_byte_at? - stream.opened_at)
    }

    /// Opens a UDP flow; the far side sends packets back.
    pub fn open_flow(&mut self, from: &str, to: &str) -> StreamId {
        let id = self.flows.next_id();
        let kind = StreamKind::Udp;
        let (agent, key) = self.open_key(from, to, StreamHeader { kind, port: DNS });
        let flow = Flow { agent, key, arrived: Vec::new(), returned: Vec::new() };
        self.flows.flows.insert(id, flow);
        self.drain(agent);
        id
    }

    /// Sends a packet of a flow.
    pub fn send_packet(&mut self, id: StreamId, payload: &[u8]) {
        let Flow { agent, key, .. } = self.flows.flows[&id];
        let mut packet = id.0.to_be_bytes().to_vec();
        packet.extend_from_slice(payload);
        let node = self.agents[agent].node.as_mut().expect("the agent lives");
        let sent = node.send_packet(key, &packet);
        assert!(sent.is_ok(), "a flow that is open takes a small packet: {sent:?}");
        self.drain(agent);
    }

    /// Packets of a flow that arrived, and that came back, without the name in front.
    #[must_use]
    pub fn packets(&self, id: StreamId) -> (Vec<Bytes>, Vec<Bytes>) {
        let bare = |list: &[Bytes]| list.iter().map(|p| p.slice(NAME_LEN..)).collect();
        let flow = &self.flows.flows[&id];
        (bare(&flow.arrived), bare(&flow.returned))
    }

    fn open_key(&mut self, from: &str, to: &str, header: StreamHeader) -> (usize, StreamKey) {
        let agent = self.number(from);
        let peer = self.owners[to].id.clone();
        let moment = self.time_of(agent);
        let node = self.agents[agent].node.as_mut().expect("the agent lives");
        let key = node.open(moment, &peer, header).expect("a stream to a trusted peer");
        (agent, key)
    }

    /// A stream whose name is not written.
    pub(super) fn open_unnamed(&mut self, from: &str, to: &str) -> (StreamId, (usize, StreamKey)) {
        let id = self.flows.next_id();
        (id, self.open_key(from, to, StreamHeader { kind: StreamKind::Tcp, port: WEB }))
    }

    fn stream_mut(&mut self, id: StreamId) -> &mut Stream {
        self.flows.streams.get_mut(&id).expect("a stream of this world")
    }

    fn pump_near(&mut self, id: StreamId) {
        let Half { agent, key, .. } = self.flows.streams[&id].near;
        self.pump(agent, key);
        self.drain(agent);
    }
}

/// Bending the network.
impl Sim {
    /// What an agent's access line does, both ways, from now on.
    pub fn set_line(&mut self, label: &str, config: &LinkConfig) {
        let number = self.number(label);
        self.agents[number].line.set_config(config);
    }

    /// How long what waits before an agent's line takes to get through, towards the agent.
    #[must_use]
    pub fn queue_before(&self, label: &str) -> Duration {
        self.agents[self.number(label)].line.down.waiting(self.clock.now())
    }

    /// An agent's NAT forgets all its mappings.
    pub fn flush_nat(&mut self, label: &str) {
        let site = self.agents[self.number(label)].site;
        self.sites[site].nat.flush();
        self.sites[site].firewall.flush();
    }

    /// An agent wakes up in another network.
    pub fn move_to(&mut self, label: &str, nat: NatKind) {
        let site = self.add_site(nat);
        let number = self.number(label);
        let addresses = self.sites[site].new_host(self.agents[number].addresses.first().port());
        let moment = self.time_of(number);
        let agent = &mut self.agents[number];
        (agent.site, agent.addresses) = (site, addresses);
        agent.extras.values_mut().for_each(|bound| bound.set_ip(addresses.first().ip()));
        addresses.all().for_each(|address| self.guard.lives_at(&agent.name, address.ip()));
        if let Some(node) = agent.node.as_mut() {
            node.set_local_addresses(moment, addresses.all());
        }
        self.drain(number);
    }

    /// Whether packets between agents that take no relay are lost.
    pub fn block_direct(&mut self, blocked: bool) {
        self.direct_blocked = blocked;
    }

    /// Whether nothing reaches an agent.
    pub fn cut_off(&mut self, label: &str, cut_off: bool) {
        let number = self.number(label);
        self.agents[number].cut_off = cut_off;
    }

    /// What the streams of agents that start from now on may hold, in bytes.
    pub fn limit_memory(&mut self, bytes: u64) {
        self.memory = bytes;
    }

    /// What controls the congestion of agents that start from now on.
    pub fn use_congestion(&mut self, algorithm: Algorithm) {
        self.congestion = algorithm;
    }

    /// An agent's programs neither read nor write any more.
    pub fn programs_hang(&mut self, label: &str) {
        let number = self.number(label);
        self.agents[number].reads = false;
    }

    /// Whether an agent's driver is busy elsewhere: what it has to send and to tell waits until it is not.
    pub fn hold_back(&mut self, label: &str, held_back: bool) {
        let number = self.number(label);
        self.agents[number].held_back = held_back;
        self.drain(number);
    }

    /// An agent's process is stopped: no timer of its runs, and packets wait in its socket.
    pub fn stop(&mut self, label: &str) {
        let number = self.number(label);
        self.agents[number].stopped.get_or_insert_default();
    }

    /// It goes on, not knowing that it was stopped.
    pub fn go_on(&mut self, label: &str) {
        let number = self.number(label);
        let waiting = self.agents[number].stopped.take().unwrap_or_default();
        for (inside, packet) in waiting {
            self.deliver(number, inside, packet);
        }
    }

    /// An agent's wall clock jumps, to so many seconds ahead of everybody's.
    pub fn set_clock(&mut self, label: &str, ahead: i64) {
        let number = self.number(label);
        self.agents[number].skew = ahead;
    }

    /// Somebody sits in the core and does this to every packet; each result goes on after its delay.
    pub fn tamper(&mut self, with: impl FnMut(Packet) -> Vec<(Duration, Packet)> + 'static) {
        self.tamper = Some(Box::new(with));
    }

    /// Nobody does that any more.
    pub fn stop_tampering(&mut self) {
        self.tamper = None;
    }

    /// Somebody records every packet in the core.
    pub fn record(&mut self) -> Tape {
        self.tape.get_or_insert_default().clone()
    }

    /// Puts a packet into the core, from any address.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let packet = Packet { at: self.clock.elapsed(), from, to, bytes: bytes.to_vec(), origin: Origin::Stranger };
        self.queue.push(self.clock.now(), Arrival::Core(packet));
    }

    /// Puts a recorded packet into the core once more.
    pub fn replay(&mut self, packet: &Packet, from: SocketAddr, to: SocketAddr) {
        self.queue.push(self.clock.now(), Arrival::Core(packet.replayed(from, to)));
    }
}

/// Asking.
impl Sim {
    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Time as the engine takes it.
    #[must_use]
    pub fn instant(&self) -> Instant {
        self.clock.now()
    }

    /// The wall clock of who is punctual.
    #[must_use]
    pub fn wall(&self) -> UnixTime {
        self.clock.wall(0)
    }

    /// An agent's id.
    #[must_use]
    pub fn id(&self, name: &str) -> AgentId {
        self.owners[name].id.clone()
    }

    /// A live agent's node.
    #[must_use]
    pub fn node(&self, label: &str) -> &Node {
        let node = self.agents[self.number(label)].node.as_ref();
        node.expect("the agent lives")
    }

    /// A live agent's status.
    #[must_use]
    pub fn status(&self, label: &str) -> NodeStatus {
        self.node(label).status()
    }

    /// The sessions of an agent with another, oldest first.
    #[must_use]
    pub fn sessions(&self, label: &str, peer: &str) -> Vec<SessionStatus> {
        let peer = &self.owners[peer].id;
        let mut sessions = self.status(label).sessions;
        sessions.retain(|s| s.peer == *peer);
        sessions
    }

    /// The session with most streams, and of equals the newest.
    fn main_session(&self, label: &str, peer: &str) -> Option<SessionStatus> {
        self.sessions(label, peer).into_iter().max_by_key(|s| s.streams)
    }

    /// How an agent's packets to another travel; `None` without a session.
    #[must_use]
    pub fn path(&self, label: &str, peer: &str) -> Option<PathKind> {
        self.main_session(label, peer).map(|s| s.path)
    }

    /// Whether both have a session with each other.
    #[must_use]
    pub fn both_up(&self, one: &str, other: &str) -> bool {
        self.path(one, other).is_some() && self.path(other, one).is_some()
    }

    /// Whether both send to each other without a relay.
    #[must_use]
    pub fn both_direct(&self, one: &str, other: &str) -> bool {
        let direct = |a, b| self.path(a, b).is_some_and(|path| path != PathKind::Relayed);
        direct(one, other) && direct(other, one)
    }

    /// What an agent says about why its path is not better.
    #[must_use]
    pub fn why_not_better(&self, label: &str, peer: &str) -> Option<String> {
        self.main_session(label, peer)?.why_not_better
    }

    /// What happened at an agent, with the time since the start; streams are not in it.
    #[must_use]
    pub fn events(&self, label: &str) -> &[(Duration, Event)] {
        &self.agents[self.number(label)].events
    }

    /// Whether something like this happened at an agent.
    #[must_use]
    pub fn saw(&self, label: &str, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events(label).iter().any(|(_, event)| wanted(event))
    }

    /// An agent's own address, behind its NAT.
    #[must_use]
    pub fn address(&self, label: &str) -> SocketAddr {
        self.agents[self.number(label)].addresses.first()
    }

    /// Where relays see an agent.
    #[must_use]
    pub fn public_address(&self, label: &str) -> SocketAddr {
        let relays = self.status(label).relays;
        let seen = relays.iter().find_map(|r| r.observed);
        seen.expect("a relay that sees the agent")
    }

    /// How many sockets an agent has open beside its main one.
    #[must_use]
    pub fn extra_sockets(&self, label: &str) -> usize {
        self.agents[self.number(label)].extras.len()
    }

    /// A relay's address.
    #[must_use]
    pub fn relay_address(&self, label: &str) -> SocketAddr {
        let found = self.relays.iter().find(|r| r.label == label);
        found.expect("a relay of this world").address
    }

    /// All relays' addresses.
    #[must_use]
    pub fn relay_addresses(&self) -> Vec<SocketAddr> {
        self.relays.iter().map(|r| r.address).collect()
    }

    /// What reached a stranger.
    #[must_use]
    pub fn received_by(&self, stranger: SocketAddr) -> &[Packet] {
        &self.strangers[&stranger]
    }

    /// Bytes that relays passed on so far, headers included.
    #[must_use]
    pub fn bytes_relayed(&self) -> u64 {
        self.bytes_relayed
    }

    /// Everything that happened, in order, and a hash over every packet: equal for equal runs.
    #[must_use]
    pub fn trace(&self) -> (&[String], [u8; 32]) {
        (&self.trace, self.digest)
    }

    /// Whether an agent's application takes connections; its agent refuses them in its place where it does not.
    pub fn serves(&mut self, label: &str, serves: bool) {
        let number = self.number(label);
        self.agents[number].serves = serves;
    }

    /// Which instance took a stream.
    #[must_use]
    pub fn taken_by(&self, id: StreamId) -> Option<&str> {
        let far = self.flows.streams[&id].far.as_ref()?;
        Some(&self.agents[far.agent].label)
    }

    /// Asks the holder of a ticket for trust.
    pub fn ask(&mut self, label: &str, ticket: &Ticket, reason: &str) -> AskKey {
        let request = TrustRequest { reason: reason.to_owned(), relays: self.relay_list() };
        let number = self.number(label);
        let moment = self.time_of(number);
        let node = self.agents[number].node.as_mut().expect("the agent lives");
        let ask = node.ask(moment, ticket, request).expect("a ticket makes a pair");
        self.drain(number);
        ask
    }

    /// Whether an agent's owner can keep trust requests from now on; with a full disk it cannot.
    pub fn can_write_down(&mut self, label: &str, can: bool) {
        let number = self.number(label);
        self.agents[number].writes_down = can;
    }

    /// Whether an agent's owner takes its time with trust requests, until [`Self::decide`].
    pub fn hesitates(&mut self, label: &str, hesitates: bool) {
        let number = self.number(label);
        self.agents[number].hesitates = hesitates;
    }

    /// Says of all requests that were left undecided whether they could be kept.
    pub fn decide(&mut self, label: &str, status: StreamStatus) {
        let number = self.number(label);
        let host = &mut self.agents[number];
        let node = host.node.as_mut().expect("the agent lives");
        host.undecided.drain(..).for_each(|invite| node.answer_request(invite, status));
        self.drain(number);
    }

    /// Opens a TCP stream to a port and lets go of it before anything was sent.
    pub fn open_and_drop(&mut self, from: &str, to: &str, port: u16) {
        let (number, peer) = (self.number(from), self.id(to));
        let moment = self.time_of(number);
        let node = self.agents[number].node.as_mut().expect("the agent lives");
        let header = StreamHeader { kind: StreamKind::Tcp, port };
        let stream = node.open(moment, &peer, header).expect("the peer is trusted");
        node.release(stream);
        self.drain(number);
    }

    /// The relays that an agent uses from now on.
    pub fn set_relays(&mut self, name: &str, list: Vec<RelayInfo>) {
        self.owner(name).relays = list;
        self.apply(name);
    }

    /// The relays at which one believes that another is to be found.
    pub fn set_relays_of_peer(&mut self, who: &str, whom: &str, list: Vec<RelayInfo>) {
        self.owner(who).trusts.get_mut(whom).expect("a trust that was declared").relays = list;
        self.apply(who);
    }

    /// Ends an agent's sessions properly, as a driver does before it exits.
    pub fn shut_down(&mut self, label: &str) {
        let number = self.number(label);
        let moment = self.time_of(number);
        if let Some(node) = self.agents[number].node.as_mut() {
            node.shutdown(moment);
        }
        self.drain(number);
    }
}
