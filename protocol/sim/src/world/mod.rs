//! The world: agents, relays, NATs, strangers, and the time that passes for all of them.
//!
//! One thing happens at a time, at the moment at which it is due: something arrives, or timers run. `transit` is a packet's way
//! between agents and relays; `driver` is what each agent's driver does after an input, when its node is drained.

mod clock;
mod driver;
mod flow;
mod guard;
mod net;
mod owner;
mod packet;
mod pour;
mod scene;
mod script;
mod stream;
mod transit;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use peerage_engine::node::{Algorithm, Event, Node, Now};
use peerage_engine::path::{ExtraSocket, Link};
use peerage_model::TrustId;
use peerage_relay_proto::stun::{Corner, Corners};
use peerage_relay_proto::{Relay, StreamId as TlsStream};

pub use flow::{Outcome, StreamId};
pub use packet::{Origin, Packet, Tape};
pub use scene::Character;

use self::clock::Clock;
use self::flow::Flows;
use self::guard::Guard;
use self::net::{Addresses, Line, Queue, Site};
use self::owner::Owner;
use self::packet::Tamper;
use self::stream::Streams;
use crate::nat::Nat;
use crate::rng::SplitMix64;

/// The most inputs one moment may bring before we call it a loop that never ends.
const MAX_AT_ONCE: u32 = 20_000;

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

    /// What an agent's clocks say.
    fn time_of(&self, agent: usize) -> Now {
        self.clock.for_agent(self.agents[agent].skew)
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
            let moment = self.time_of(agent);
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
