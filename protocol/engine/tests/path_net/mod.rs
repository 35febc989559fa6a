//! Two path agents, a relay that carries their tunnel, and NATs between them, in simulated time.
//!
//! The tunnel is a ping every 20 ms in each direction that the other end acknowledges; that is all the agents need to
//! know of QUIC.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use peerage_engine::path::{
    CheckTransmit, DirectPath, Hop, Link, PathAgent, PathConfig, PathEvent, PathKind, PathMode,
};
use peerage_engine::stun::{CheckKeys, Role};
use peerage_model::control::{Candidate, CandidateKind};

pub const A: usize = 0;
pub const B: usize = 1;
/// How long Linux keeps an entry for packets that nobody answered.
const TRAP_LIFETIME: Duration = Duration::from_secs(30);

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("a test address")
}

pub fn candidate(kind: CandidateKind, address: SocketAddr) -> Candidate {
    Candidate { kind, address }
}

/// What a mapping or a filter looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Nothing,
    Address,
    AddressAndPort,
}

/// A gateway: one inside socket, one outside address.
#[derive(Clone, Debug)]
pub struct Nat {
    pub outside: IpAddr,
    mapping: By,
    filtering: By,
    /// Whether the gateway takes strange packets for itself, and so loses the port to them.
    trap: bool,
    preserving: bool,
    ports: BTreeMap<(Option<IpAddr>, Option<u16>), u16>,
    contacted: Vec<(u16, SocketAddr)>,
    trapped: BTreeMap<(SocketAddr, u16), Instant>,
    next_port: u16,
}

impl Nat {
    pub fn new(outside: &str, mapping: By, filtering: By) -> Self {
        Self {
            outside: outside.parse().expect("a test address"),
            mapping,
            filtering,
            trap: false,
            preserving: mapping == By::Nothing,
            ports: BTreeMap::new(),
            contacted: Vec::new(),
            trapped: BTreeMap::new(),
            next_port: 20_000,
        }
    }

    /// Linux masquerade with the gateway's INPUT open: keeps ports, unless a strange packet took one.
    pub fn linux_with_open_input(outside: &str) -> Self {
        Self { trap: true, preserving: true, ..Self::new(outside, By::AddressAndPort, By::AddressAndPort) }
    }

    pub fn outbound(&mut self, now: Instant, inside: SocketAddr, to: SocketAddr) -> SocketAddr {
        let key = match self.mapping {
            By::Nothing => (None, None),
            By::Address => (Some(to.ip()), None),
            By::AddressAndPort => (Some(to.ip()), Some(to.port())),
        };
        let taken = self
            .trapped
            .get(&(to, inside.port()))
            .is_some_and(|seen| now.saturating_duration_since(*seen) < TRAP_LIFETIME);
        // conntrack decides anew while nothing was answered; a port that is free again is used again.
        let reopen = self.trap && !taken;
        if !self.ports.contains_key(&key) || reopen {
            let port = if self.preserving && !taken { inside.port() } else { self.fresh_port() };
            self.ports.insert(key, port);
        }
        let port = self.ports[&key];
        self.contacted.push((port, to));
        SocketAddr::new(self.outside, port)
    }

    fn fresh_port(&mut self) -> u16 {
        self.next_port += 7;
        self.next_port
    }

    fn inbound(&mut self, now: Instant, from: SocketAddr, to: SocketAddr) -> bool {
        let known = self.ports.values().any(|port| *port == to.port());
        let allowed = self.contacted.iter().any(|(port, peer)| {
            *port == to.port()
                && match self.filtering {
                    By::Nothing => true,
                    By::Address => peer.ip() == from.ip(),
                    By::AddressAndPort => *peer == from,
                }
        });
        let passes = known && allowed;
        if !passes && self.trap {
            self.trapped.insert((from, to.port()), now);
        }
        passes
    }
}

#[derive(Clone)]
struct Packet {
    at: Instant,
    to: usize,
    hop: Hop,
    /// For a direct packet: the outside address it was sent to, where the receiver's NAT judges it.
    sent_to: Option<SocketAddr>,
    body: Body,
}

/// How far a packet gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    OwnGateway,
    Peer,
}

#[derive(Clone)]
enum Body {
    Check(Vec<u8>),
    Tunnel { ack_eliciting: bool },
    Candidates(u64, Vec<Candidate>),
    Opened(u64),
}

pub struct End {
    pub agent: PathAgent,
    pub inside: SocketAddr,
    pub nat: Option<Nat>,
    pub events: Vec<(Duration, PathEvent)>,
    /// Checks that left, with when and where to.
    pub checks: Vec<(Duration, CheckTransmit)>,
}

/// What the network does to packets; the same seed does the same.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Lost, in percent.
    pub loss: u64,
    /// Delivered twice, in percent.
    pub duplicates: u64,
    /// Up to this much later than they should be, in milliseconds.
    pub jitter: u64,
    pub seed: u64,
}

impl Weather {
    /// A number below `limit`, from splitmix64.
    fn roll(&mut self, limit: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }
}

pub struct Net {
    pub start: Instant,
    pub now: Instant,
    pub ends: [End; 2],
    /// One way.
    pub direct_delay: Duration,
    pub relay_delay: Duration,
    /// Which one-way legs drop tunnel packets (but not STUN), per sender.
    pub tunnel_blocked: [bool; 2],
    pub direct_down: bool,
    pub relay_down: bool,
    pub chatter: bool,
    pub weather: Weather,
    next_ping: Instant,
    packets: Vec<Packet>,
    /// Whose process gets no time, and what waits in its socket.
    stalled: [Option<Vec<Packet>>; 2],
    /// Lists that tests gave in a peer's name.
    told: u64,
}

pub fn keys(role: Role) -> CheckKeys {
    CheckKeys::from_exporter(role, &mut [7; 64])
}

pub fn config(role: Role) -> PathConfig {
    PathConfig { role, mode: PathMode::Auto, share_private: false, keepalive: Duration::from_secs(15), birthday: false }
}

impl Net {
    /// 20 ms round trip direct, 40 ms by relay.
    pub fn new(nat_a: Option<Nat>, nat_b: Option<Nat>) -> Self {
        Self::with(nat_a, nat_b, config)
    }

    pub fn with(nat_a: Option<Nat>, nat_b: Option<Nat>, config: impl Fn(Role) -> PathConfig) -> Self {
        let start = Instant::now();
        let end = |role, inside, seed: u8, nat: Option<Nat>| End {
            agent: PathAgent::new(start, config(role), keys(role), &[seed; 32]),
            inside: address(inside),
            nat,
            events: Vec::new(),
            checks: Vec::new(),
        };
        let inside = |nat: &Option<Nat>, private: &'static str, public: &'static str| {
            if nat.is_some() { private } else { public }
        };
        let inside_a = inside(&nat_a, "10.1.0.2:4000", "198.18.1.1:4000");
        let inside_b = inside(&nat_b, "10.2.0.2:5000", "198.18.2.1:5000");
        Self {
            start,
            now: start,
            ends: [end(Role::Initiator, inside_a, 1, nat_a), end(Role::Responder, inside_b, 2, nat_b)],
            direct_delay: ms(10),
            relay_delay: ms(20),
            tunnel_blocked: [false; 2],
            direct_down: false,
            relay_down: false,
            chatter: true,
            weather: Weather::default(),
            next_ping: start,
            packets: Vec::new(),
            stalled: [None, None],
            told: 0,
        }
    }

    /// The handshake is over: both know the round trip; the responder's side is ready one way later.
    pub fn establish(&mut self) {
        for who in [A, B] {
            let agent = &mut self.ends[who].agent;
            agent.on_tunnel_heard(self.now, Hop::Relayed, Some(self.relay_delay * 2));
        }
        self.offer(A);
        self.run_for(self.relay_delay);
        self.offer(B);
    }

    /// Tells an agent its host and reflexive address.
    pub fn offer(&mut self, who: usize) {
        let list = self.own_candidates(who);
        let now = self.now;
        self.ends[who].agent.local_candidates_changed(now, list);
        self.drain(who);
    }

    /// Gives an agent a list as if its peer had sent it.
    pub fn tell(&mut self, who: usize, list: impl IntoIterator<Item = Candidate>) {
        let now = self.now;
        self.told += 1;
        self.ends[who].agent.remote_candidates(now, self.told, list);
        self.drain(who);
    }

    pub fn own_candidates(&mut self, who: usize) -> Vec<Candidate> {
        let (now, inside) = (self.now, self.ends[who].inside);
        let mut list = vec![candidate(CandidateKind::Host, inside)];
        if let Some(nat) = &mut self.ends[who].nat {
            let mapped = nat.outbound(now, inside, address("198.18.250.1:3478"));
            list.push(candidate(CandidateKind::ServerReflexive, mapped));
        }
        list
    }

    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now += ms(1);
            self.step();
        }
    }

    pub fn kind(&self, who: usize) -> PathKind {
        self.ends[who].agent.kind()
    }

    /// Hands an agent a datagram as if it came from `from`, and returns what it sends because of it.
    pub fn inject(&mut self, who: usize, from: SocketAddr, bytes: &[u8]) -> Vec<CheckTransmit> {
        let now = self.now;
        let agent = &mut self.ends[who].agent;
        let _ = agent.handle_check(now, Link::Main, from, bytes);
        std::iter::from_fn(|| agent.poll_transmit()).collect()
    }

    fn step(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) = self.packets.drain(..).partition(|packet| packet.at <= now);
        self.packets = later;
        for packet in due {
            self.deliver(packet);
        }
        if self.chatter && now >= self.next_ping {
            self.next_ping = now + ms(20);
            for who in [A, B].into_iter().filter(|who| self.stalled[*who].is_none()).collect::<Vec<_>>() {
                self.send_tunnel(who, true);
            }
        }
        for who in [A, B] {
            if self.stalled[who].is_some() {
                continue;
            }
            let agent = &mut self.ends[who].agent;
            if agent.poll_timeout().is_some_and(|at| at <= now) {
                agent.handle_timeout(now);
            }
            self.drain(who);
        }
    }

    fn deliver(&mut self, packet: Packet) {
        let now = self.now;
        if let (Some(nat), Some(to), Hop::Direct(from)) = (&mut self.ends[packet.to].nat, packet.sent_to, packet.hop)
            && !nat.inbound(now, from.remote, to)
        {
            return;
        }
        match &mut self.stalled[packet.to] {
            Some(waiting) => waiting.push(packet),
            None => self.hand_over(packet),
        }
    }

    fn hand_over(&mut self, packet: Packet) {
        let now = self.now;
        let rtt = match packet.hop {
            Hop::Relayed => self.relay_delay * 2,
            Hop::Direct(_) => self.direct_delay * 2,
        };
        let agent = &mut self.ends[packet.to].agent;
        match (packet.body, packet.hop) {
            (Body::Check(bytes), Hop::Direct(from)) => {
                let _ = agent.handle_check(now, from.link, from.remote, &bytes);
            }
            (Body::Check(_), Hop::Relayed) => panic!("checks never go through a relay"),
            (Body::Tunnel { ack_eliciting }, hop) => {
                agent.on_tunnel_heard(now, hop, Some(rtt));
                if ack_eliciting {
                    self.send_tunnel(packet.to, false);
                }
            }
            (Body::Candidates(generation, list), _) => {
                agent.remote_candidates(now, generation, list);
            }
            (Body::Opened(generation), _) => agent.on_opened(now, generation),
        }
        self.drain(packet.to);
    }

    fn send_tunnel(&mut self, who: usize, ack_eliciting: bool) {
        let route = self.ends[who].agent.route(self.now);
        for hop in std::iter::once(route.primary).chain(route.duplicate) {
            let now = self.now;
            self.ends[who].agent.on_tunnel_sent(now, hop, ack_eliciting);
            match hop {
                Hop::Relayed => self.by_relay(who, Body::Tunnel { ack_eliciting }),
                Hop::Direct(_) if self.tunnel_blocked[who] => {}
                Hop::Direct(path) => self.by_air(who, path.remote, Reach::Peer, Body::Tunnel { ack_eliciting }),
            }
        }
    }

    fn drain(&mut self, who: usize) {
        let at = self.now - self.start;
        while let Some(check) = self.ends[who].agent.poll_transmit() {
            let reach = if check.hop_limit.is_some() { Reach::OwnGateway } else { Reach::Peer };
            self.by_air(who, check.to, reach, Body::Check(check.bytes.clone()));
            self.ends[who].checks.push((at, check));
        }
        while let Some(event) = self.ends[who].agent.poll_event() {
            match &event {
                PathEvent::LocalCandidates { generation, list } => {
                    self.by_relay(who, Body::Candidates(*generation, list.clone()));
                }
                PathEvent::Opened { generation } => self.by_relay(who, Body::Opened(*generation)),
                _ => {}
            }
            self.ends[who].events.push((at, event));
        }
    }

    fn by_relay(&mut self, who: usize, body: Body) {
        if !self.relay_down {
            let at = self.now + self.relay_delay;
            self.put(Packet { at, to: 1 - who, hop: Hop::Relayed, sent_to: None, body });
        }
    }

    fn by_air(&mut self, who: usize, to: SocketAddr, reach: Reach, body: Body) {
        let now = self.now;
        let inside = self.ends[who].inside;
        let from = match &mut self.ends[who].nat {
            Some(nat) => nat.outbound(now, inside, to),
            None => inside,
        };
        let other = &self.ends[1 - who];
        let reaches = match &other.nat {
            Some(nat) => to.ip() == nat.outside,
            None => to == other.inside,
        };
        if reaches && reach == Reach::Peer && !self.direct_down {
            let at = now + self.direct_delay;
            self.put(Packet { at, to: 1 - who, hop: Hop::Direct(DirectPath::main(from)), sent_to: Some(to), body });
        }
    }

    /// On its way, as the weather has it. The control stream is reliable and in order: QUIC sees to that.
    fn put(&mut self, packet: Packet) {
        if matches!(packet.body, Body::Candidates(..) | Body::Opened(_)) {
            self.packets.push(packet);
            return;
        }
        let lost = self.weather.roll(100) < self.weather.loss;
        let twice = self.weather.roll(100) < self.weather.duplicates;
        let copies = if lost { 0 } else { 1 + usize::from(twice) };
        for _ in 0..copies {
            let late = ms(self.weather.roll(self.weather.jitter + 1));
            self.packets.push(Packet { at: packet.at + late, ..packet.clone() });
        }
    }
}

impl Net {
    /// The process of an agent gets no time; its socket and its gateway go on.
    pub fn stall(&mut self, who: usize) {
        self.stalled[who].get_or_insert_default();
    }

    /// It goes on, with what has come meanwhile.
    pub fn go_on(&mut self, who: usize) {
        for packet in self.stalled[who].take().unwrap_or_default() {
            self.hand_over(packet);
        }
    }

    /// The reflexive address of an agent.
    pub fn outside(&mut self, who: usize) -> SocketAddr {
        self.own_candidates(who).last().expect("at least a host address").address
    }

    /// A packet that the gateway of `who` did not ask for.
    pub fn strange_packet(&mut self, who: usize, from: SocketAddr, to: SocketAddr) {
        let now = self.now;
        if let Some(nat) = &mut self.ends[who].nat {
            assert!(!nat.inbound(now, from, to), "it is strange");
        }
    }
}
