//! The world: agents, relays, NATs, strangers, and the time that passes for all of them.
//!
//! A packet leaves its agent, is translated by the NAT of its site, takes its access line to the *core*, where an observer
//! may record it and a liar may change it, and from there the line and NAT of its destination. After every input a node
//! is drained, as its driver must.

mod clock;
mod flow;
mod guard;
mod net;
mod owner;
mod packet;
mod pour;
mod scene;
mod script;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use peerage_engine::node::{Algorithm, Event, Node, StreamKey, Transmit};
use peerage_engine::path::{ExtraSocket, Link};
use peerage_model::TrustId;
use peerage_model::id::sha256;
use peerage_model::relay::RelayInfo;
use peerage_model::stream::{StreamKind, StreamStatus};
use peerage_relay_proto::stun::{Corner, Corners};
use peerage_relay_proto::{Decision, Ingress, Place, Relay, StreamId as TlsStream};

pub use flow::{Outcome, StreamId};
pub use packet::{Origin, Packet, Tape};
pub use scene::Character;

use self::clock::Clock;
use self::flow::{Flows, Half, Moment, NAME_LEN, Unnamed};
use self::guard::Guard;
use self::net::{Addresses, Line, Queue, SITE_DELAY, Site, relay_name};
use self::owner::Owner;
use self::packet::Tamper;
use self::stream::Streams;
use crate::nat::{Nat, NatKind};
use crate::rng::SplitMix64;

/// The most inputs one moment may bring before we call it a loop that never ends.
const MAX_AT_ONCE: u32 = 20_000;

/// Packets that a stopped process finds in its socket; later ones were dropped by its kernel. Some 200 kB of full ones.
const SOCKET_BUFFER: usize = 150;

/// A simulated world.
pub struct Sim {
    seed: u64,
    rng: SplitMix64,
    clock: Clock,
    agents: Vec<Agent>,
    relays: Vec<RelayHost>,
    sites: Vec<Site>,
    carriers: Vec<Nat>,
    owners: BTreeMap<String, Owner>,
    strangers: BTreeMap<SocketAddr, Vec<Packet>>,
    streams: Streams,
    queue: Queue<Arrival>,
    flows: Flows,
    guard: Guard,
    tamper: Option<Tamper>,
    tape: Option<Tape>,
    direct_blocked: bool,
    /// What agents that start may hold for streams.
    memory: u64,
    /// What controls their congestion.
    congestion: Algorithm,
    /// Whether allowlists name relays by name, so that they are reached over either address family.
    names_relays: bool,
    trace: Vec<String>,
    /// A running hash of every packet at the core.
    digest: [u8; 32],
    bytes_relayed: u64,
    packets: u64,
}

/// One instance of an agent.
struct Agent {
    /// What the test calls it: `b`, or `b#2` for a second replica.
    label: String,
    /// The agent's name.
    name: String,
    /// `None` once it was ended.
    node: Option<Node>,
    site: usize,
    addresses: Addresses,
    /// Local addresses of sockets beside the main one.
    extras: BTreeMap<ExtraSocket, SocketAddr>,
    /// The port of the next of them.
    next_port: u16,
    line: Line,
    /// Seconds that its wall clock is off.
    skew: i64,
    events: Vec<(Duration, Event)>,
    cut_off: bool,
    /// Whether its programs take part in their streams.
    reads: bool,
    /// Whether its driver has not come to sending.
    held_back: bool,
    /// While its process is stopped: what waits in its socket.
    stopped: Option<Vec<(SocketAddr, Packet)>>,
    /// Whether trust requests can be kept; a full disk cannot.
    writes_down: bool,
    /// Whether it leaves requests for trust undecided.
    hesitates: bool,
    undecided: Vec<TrustId>,
    /// Whether its application takes connections.
    serves: bool,
}

impl Agent {
    /// Whether its timers run.
    fn runs(&self) -> bool {
        self.stopped.is_none() && !self.held_back
    }

    /// The socket that is bound to this address.
    fn link_of(&self, address: SocketAddr) -> Option<Link> {
        if self.addresses.all().any(|own| own == address) {
            return Some(Link::Main);
        }
        self.extras.iter().find(|(_, bound)| **bound == address).map(|(socket, _)| Link::Extra(*socket))
    }
}

struct RelayHost {
    label: String,
    address: SocketAddr,
    address_v6: SocketAddr,
    /// Its four places for STUN, where it has two addresses.
    corners: Option<Corners>,
    secret: [u8; 32],
    relay: Option<Relay>,
    line: Line,
    boots: u64,
}

/// What arrives, and where.
#[derive(Debug)]
enum Arrival {
    Core(Packet),
    AtAgent(usize, SocketAddr, Packet),
    AtRelay(usize, Packet),
    Late(Packet),
    StreamOpened(TlsStream),
    FrameAtRelay(TlsStream, Vec<u8>),
    FrameAtAgent(TlsStream, Vec<u8>),
}

impl RelayHost {
    fn is_at(&self, ip: IpAddr) -> bool {
        self.address.ip() == ip
            || self.address_v6.ip() == ip
            || self.corners.is_some_and(|corners| corners.second.ip() == ip)
    }

    /// Which of its places this is.
    fn corner(&self, to: SocketAddr) -> Corner {
        let second = self.corners.map(|corners| corners.second);
        Corner {
            other_ip: second.is_some_and(|second| second.ip() == to.ip()),
            other_port: second.is_some_and(|second| second.port() == to.port()),
        }
    }

    /// From where it sends to `to`.
    fn place(&self, corner: Corner, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(_) => self.corners.map_or(self.address, |corners| corners.address(corner)),
            SocketAddr::V6(_) => self.address_v6,
        }
    }
}

impl Sim {
    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.clock.now() + time;
        self.run(end, |_| false);
    }

    /// Lets time pass until `done`, at most `limit`. Returns how long it took, if it happened.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.clock.now();
        self.run(start + limit, &done);
        done(self).then(|| self.clock.now() - start)
    }

    fn run(&mut self, end: Instant, done: impl Fn(&Self) -> bool) {
        (0..self.agents.len()).for_each(|agent| self.drain(agent));
        let mut at_once = 0;
        while !done(self) {
            let Some(next) = self.next_moment().filter(|next| *next <= end) else {
                self.clock.advance_to(end);
                return;
            };
            at_once = if next > self.clock.now() { 0 } else { at_once + 1 };
            assert!(at_once < MAX_AT_ONCE, "the world stands still at {:?}", self.elapsed());
            self.clock.advance_to(next);
            self.step();
        }
    }

    fn next_moment(&self) -> Option<Instant> {
        let running = self.agents.iter().filter(|a| a.runs());
        let nodes = running.filter_map(|a| a.node.as_ref()?.poll_timeout());
        let relays = self.relays.iter().filter_map(|r| r.relay.as_ref()?.poll_timeout());
        nodes.chain(relays).chain(self.queue.next()).min()
    }

    /// Everything that is due: one arrival, or else the timers.
    fn step(&mut self) {
        let now = self.clock.now();
        if let Some(arrival) = self.queue.pop_due(now) {
            self.arrive(arrival);
            return;
        }
        for agent in 0..self.agents.len() {
            let moment = self.clock.for_agent(self.agents[agent].skew);
            let host = &mut self.agents[agent];
            let runs = host.runs();
            let node = host.node.as_mut().filter(|_| runs);
            if let Some(node) = node.filter(|node| node.poll_timeout().is_some_and(|at| at <= now)) {
                node.handle_timeout(moment);
                self.drain(agent);
            }
        }
        let wall = self.clock.wall(0);
        for host in &mut self.relays {
            if let Some(relay) = host.relay.as_mut().filter(|r| r.poll_timeout().is_some_and(|at| at <= now)) {
                relay.handle_timeout(now, wall);
            }
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Core(packet) => self.cross_core(packet),
            Arrival::Late(packet) => self.route(packet),
            Arrival::AtAgent(agent, inside, packet) => self.deliver(agent, inside, packet),
            Arrival::AtRelay(relay, packet) => self.deliver_to_relay(relay, packet),
            Arrival::StreamOpened(stream) => self.stream_opened(stream),
            Arrival::FrameAtRelay(stream, bytes) => self.frame_at_relay(stream, bytes),
            Arrival::FrameAtAgent(stream, bytes) => self.frame_at_agent(stream, bytes),
        }
    }

    /// Sends everything a node has to send and acts on everything it has to say.
    fn drain(&mut self, agent: usize) {
        if self.agents[agent].held_back {
            return;
        }
        let mut buffer = Vec::new();
        loop {
            let moment = self.clock.for_agent(self.agents[agent].skew);
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
        let moment = self.clock.for_agent(self.agents[agent].skew);
        let found = self.relays.iter().find(|host| relay_name(&host.label) == relay.host.as_str());
        let addresses = found.map(|host| [host.address, host.address_v6]).into_iter().flatten().collect::<Vec<_>>();
        if let Some(node) = self.agents[agent].node.as_mut() {
            node.relay_resolved(moment, relay, &addresses);
        }
    }

    fn open_sockets(&mut self, agent: usize, sockets: Vec<ExtraSocket>) {
        let moment = self.clock.for_agent(self.agents[agent].skew);
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

    fn on_incoming(&mut self, agent: usize, key: StreamKey, peer: peerage_model::AgentId, kind: StreamKind) {
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

    fn pump(&mut self, agent: usize, key: StreamKey) {
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

    /// A packet leaves an agent.
    fn send(&mut self, agent: usize, transmit: &Transmit, bytes: Vec<u8>) {
        let (link, to) = (transmit.link, transmit.destination);
        let now = self.clock.now();
        let host = &self.agents[agent];
        let site = host.site;
        let bound = match link {
            Link::Main => host.addresses.towards(to),
            Link::Extra(socket) => host.extras.get(&socket).copied().filter(|bound| bound.is_ipv4() == to.is_ipv4()),
            Link::RelayStream(stream) => {
                self.send_frame(agent, stream, bytes);
                return;
            }
        };
        let Some(address) = bound else { return };
        let mut packet = Packet { at: self.clock.elapsed(), from: address, to, bytes, origin: Origin::Agent(agent) };
        if self.sites[site].contains(to.ip()) {
            self.guard.check(&packet, now);
            self.send_inside(packet, site);
            return;
        }
        if self.sites[site].blocks_udp {
            return;
        }
        let Some(public) = self.leave(site, address, to) else { return };
        self.guard.uses(agent, public);
        packet.from = public;
        if transmit.hop_limit.is_some() {
            // It dies between the gateways. Where one of them is missing it may get as far as the other.
            if self.sites[site].nat.kind() == NatKind::None {
                self.admitted(now, &packet);
            }
            return;
        }
        for at in self.agents[agent].line.up.send(now, packet.bytes.len()) {
            self.queue.push(at, Arrival::Core(packet.clone()));
        }
    }

    /// What a packet that leaves a site comes from, seen from outside.
    fn leave(&mut self, site: usize, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let now = self.clock.now();
        let site = &mut self.sites[site];
        if to.is_ipv6() {
            site.firewall.outbound(now, from, to);
            return Some(from);
        }
        let outside = site.nat.outbound(now, from, to)?;
        match site.carrier {
            None => Some(outside),
            Some(carrier) => self.carriers[carrier].outbound(now, outside, to),
        }
    }

    fn send_inside(&mut self, packet: Packet, site: usize) {
        let to = packet.to;
        if let Some(agent) = self.agent_at(site, to) {
            let at = self.clock.now() + SITE_DELAY;
            self.queue.push(at, Arrival::AtAgent(agent, to, packet));
        }
    }

    fn agent_at(&self, site: usize, address: SocketAddr) -> Option<usize> {
        let here = |a: &Agent| a.site == site && a.link_of(address).is_some() && a.node.is_some();
        self.agents.iter().position(here)
    }

    /// A packet is in public: observers see it, liars change it.
    fn cross_core(&mut self, mut packet: Packet) {
        packet.at = self.clock.elapsed();
        self.packets += 1;
        let about = format!("{packet:?}");
        self.digest = sha256(&[&self.digest, about.as_bytes(), &packet.bytes]);
        self.guard.check(&packet, self.clock.now());
        if let Some(tape) = &self.tape {
            tape.record(&packet);
        }
        match self.tamper.as_mut() {
            None => self.route(packet),
            Some(tamper) => {
                for (later, packet) in tamper(packet) {
                    self.queue.push(self.clock.now() + later, Arrival::Late(packet));
                }
            }
        }
    }

    /// From the core to where it is addressed.
    fn route(&mut self, packet: Packet) {
        let now = self.clock.now();
        if let Some(relay) = self.relays.iter().position(|r| r.is_at(packet.to.ip())) {
            for at in self.relays[relay].line.down.send(now, packet.bytes.len()) {
                self.queue.push(at, Arrival::AtRelay(relay, packet.clone()));
            }
            return;
        }
        let from_relay = self.relays.iter().any(|r| r.is_at(packet.from.ip()));
        if self.direct_blocked && !from_relay {
            return;
        }
        if let Some(inbox) = self.strangers.get_mut(&packet.to) {
            inbox.push(packet);
            return;
        }
        let Some((site, inside)) = self.admitted(now, &packet) else { return };
        let Some(agent) = self.agent_at(site, inside) else {
            return;
        };
        for at in self.agents[agent].line.down.send(now, packet.bytes.len()) {
            self.queue.push(at, Arrival::AtAgent(agent, inside, packet.clone()));
        }
    }

    /// The site and the endpoint in it that a packet is let through to.
    fn admitted(&mut self, now: Instant, packet: &Packet) -> Option<(usize, SocketAddr)> {
        if packet.to.is_ipv6() {
            let site = self.sites.iter().position(|site| site.owns(packet.to.ip()))?;
            return self.sites[site].firewall.admits(now, packet.from, packet.to).then_some((site, packet.to));
        }
        let carrier = self.carriers.iter().position(|nat| nat.public_address() == packet.to.ip());
        let to = match carrier {
            None => packet.to,
            Some(carrier) => self.carriers[carrier].inbound(now, packet.from, packet.to)?,
        };
        let site = self.sites.iter().position(|site| site.carrier == carrier && site.owns(to.ip()))?;
        Some((site, self.sites[site].nat.inbound(now, packet.from, to)?))
    }

    fn deliver(&mut self, agent: usize, inside: SocketAddr, packet: Packet) {
        let moment = self.clock.for_agent(self.agents[agent].skew);
        let link = self.agents[agent].link_of(inside);
        let Agent { node, cut_off, stopped, .. } = &mut self.agents[agent];
        let Some(node) = node.as_mut() else { return };
        if let Some(waiting) = stopped {
            if waiting.len() < SOCKET_BUFFER {
                waiting.push((inside, packet));
            }
            return;
        }
        let (Some(link), false) = (link, *cut_off) else { return };
        let length = packet.bytes.len();
        node.handle_datagrams(moment, link, packet.from, None, [BytesMut::from(&packet.bytes[..])], length);
        self.drain(agent);
    }

    fn deliver_to_relay(&mut self, number: usize, mut packet: Packet) {
        let (now, wall) = (self.clock.now(), self.clock.wall(0));
        let host = &mut self.relays[number];
        let at = host.corner(packet.to);
        let Some(relay) = host.relay.as_mut() else { return };
        let ingress = Ingress { now, wall, from: packet.from.into(), local: None };
        let length = packet.bytes.len();
        let decision = match at == Corner::default() {
            true => relay.handle(&ingress, &mut packet.bytes, length).decision,
            false => relay.handle_stun_at(now, packet.from, &packet.bytes, at).map_or(Decision::Drop, Decision::Reply),
        };
        let mut from = Corner::default();
        let (to, bytes, origin) = match decision {
            Decision::Drop => return,
            Decision::Reply(reply) => {
                from = reply.from;
                (reply.destination(packet.from), reply.as_bytes().to_vec(), Origin::Relay)
            }
            Decision::Forward(forward) => {
                let origin = match packet.origin {
                    Origin::Agent(agent) => Origin::Forwarded(agent),
                    other => other,
                };
                self.bytes_relayed += forward.range.len() as u64;
                if let Place::Stream(stream, _) = forward.to {
                    let frame = packet.bytes[forward.range].to_vec();
                    return self.frame_to_agent(stream, frame);
                }
                (forward.to.address(), packet.bytes[forward.range].to_vec(), origin)
            }
        };
        let answer = Packet { at: self.clock.elapsed(), from: host.place(from, to), to, bytes, origin };
        for at in host.line.up.send(now, answer.bytes.len()) {
            self.queue.push(at, Arrival::Core(answer.clone()));
        }
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim")
            .field("seed", &self.seed)
            .field("elapsed", &self.clock.elapsed())
            .field("packets", &self.packets)
            .finish_non_exhaustive()
    }
}
