//! Setting the scene: who is there, behind what, and who trusts whom.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_engine::node::{Algorithm, DEFAULT_MEMORY, Node, NodeConfig};
use peerage_model::id::sha256;
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{BirthdayMode, DeniedInstance, PathMode, Snapshot};
use peerage_model::{AgentId, AgreementSecret, InstanceId, Ticket};
use peerage_relay_proto::stun::Corners;
use peerage_relay_proto::{Access, Limits, Place, Relay};
use zeroize::Zeroizing;

use super::clock::Clock;
use super::flow::Flows;
use super::guard::Guard;
use super::net::{
    AGENT_DELAY, Line, Queue, RELAY_DELAY, Site, carrier_ip, relay_address, relay_address_v6, relay_corners,
    relay_name, stranger_address,
};
use super::owner::Owner;
use super::packet::{Origin, Packet};
use super::{Agent, Arrival, RelayHost, Sim};
use crate::link::LinkConfig;
use crate::nat::{Nat, NatKind, Network};
use crate::rng::SplitMix64;

/// Everything a node is made of, for tests that make a bad one.
#[derive(Clone, Debug)]
pub struct Character {
    /// Who it says it is.
    pub agent: AgentId,
    /// Its key.
    pub instance: AgreementSecret,
    /// What it shows.
    pub credential: Vec<u8>,
    /// What it believes.
    pub snapshot: Snapshot,
}

impl Sim {
    /// An empty world. The same seed and the same calls give the same run.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: SplitMix64::new(seed),
            clock: Clock::new(),
            agents: Vec::new(),
            relays: Vec::new(),
            sites: Vec::new(),
            carriers: Vec::new(),
            owners: Default::default(),
            strangers: Default::default(),
            streams: Default::default(),
            queue: Queue::new(),
            flows: Flows::default(),
            guard: Guard::default(),
            tamper: None,
            tape: None,
            direct_blocked: false,
            memory: DEFAULT_MEMORY,
            congestion: Algorithm::default(),
            names_relays: false,
            trace: Vec::new(),
            digest: [0; 32],
            bytes_relayed: 0,
            packets: 0,
        }
    }

    /// Two relays, and agents `a` and `b` behind these NATs that trust each other.
    #[must_use]
    pub fn pair(a: impl Into<Network>, b: impl Into<Network>) -> Self {
        Self::seeded_pair(1, a, b)
    }

    /// As [`Self::pair`], from a seed.
    #[must_use]
    pub fn seeded_pair(seed: u64, a: impl Into<Network>, b: impl Into<Network>) -> Self {
        let mut sim = Self::strangers(seed, a, b);
        sim.trust("a", "b");
        sim
    }

    /// Two relays, and agents `a` and `b` that know nothing of each other.
    #[must_use]
    pub fn strangers(seed: u64, a: impl Into<Network>, b: impl Into<Network>) -> Self {
        let (a, b) = (a.into(), b.into());
        let mut sim = Self::new(seed);
        sim.names_relays = a.families.has_ipv6() || b.families.has_ipv6();
        sim.add_relay("r1");
        sim.add_relay("r2");
        sim.add_agent("a", a);
        sim.add_agent("b", b);
        sim
    }

    /// A relay that serves everybody, with two addresses. Agents added later use it.
    pub fn add_relay(&mut self, label: &str) {
        let corners = relay_corners(self.relays.len() + 1);
        self.place_relay(label, Some(corners));
    }

    /// A relay that has one address only, so that it cannot tell what a NAT lets in.
    pub fn add_plain_relay(&mut self, label: &str) {
        self.place_relay(label, None);
    }

    fn place_relay(&mut self, label: &str, corners: Option<Corners>) {
        let secret = sha256(&[b"relay", &self.seed.to_be_bytes(), label.as_bytes()]);
        let address = relay_address(self.relays.len() + 1);
        let address_v6 = relay_address_v6(self.relays.len() + 1);
        self.guard.add_relay(address.ip());
        self.guard.add_relay(address_v6.ip());
        if let Some(corners) = corners {
            self.guard.add_relay(corners.second.ip());
        }
        let line = Line::new(&LinkConfig::with_delay(RELAY_DELAY), self.rng.next());
        let label = label.to_owned();
        let host =
            RelayHost { label: label.clone(), address, address_v6, corners, secret, relay: None, line, boots: 0 };
        self.relays.push(host);
        self.start_relay(&label);
    }

    /// Starts a relay that was stopped, or starts it anew. It remembers nothing but its key.
    pub fn start_relay(&mut self, label: &str) {
        let now = self.clock.now();
        let seed = self.seed;
        let host = self.relay_host(label);
        host.boots += 1;
        let boot = sha256(&[b"boot", &seed.to_be_bytes(), &host.secret, &host.boots.to_be_bytes()]);
        let config = peerage_relay_proto::Config {
            key: AgreementSecret::from_bytes(host.secret),
            access: Access::Open,
            limits: Limits::open(),
            seed: Zeroizing::new(boot),
        };
        host.relay = Some(Relay::new(config, now).with_corners(host.corners));
    }

    /// Ends a relay without a word.
    pub fn stop_relay(&mut self, label: &str) {
        self.relay_host(label).relay = None;
        if let Some(relay) = self.relays.iter().position(|host| host.label == label) {
            self.break_streams_of(relay);
        }
    }

    /// A relay is asked to end, and tells those that are bound.
    pub fn drain_relay(&mut self, label: &str, grace: Duration) {
        let (now, elapsed) = (self.clock.now(), self.clock.elapsed());
        let host = self.relay_host(label);
        let (ipv4, ipv6) = (host.address, host.address_v6);
        let Some(relay) = host.relay.as_mut() else { return };
        relay.drain(now, grace);
        let mut leaving = Vec::new();
        while let Some(notice) = relay.poll_transmit(now) {
            let Place::Udp(to) = notice.to else { continue };
            let bytes = notice.frame.as_bytes().to_vec();
            for at in host.line.up.send(now, bytes.len()) {
                let packet = Packet {
                    at: elapsed,
                    from: if to.is_ipv4() { ipv4 } else { ipv6 },
                    to,
                    bytes: bytes.clone(),
                    origin: Origin::Relay,
                };
                leaving.push((at, packet));
            }
        }
        leaving.into_iter().for_each(|(at, packet)| self.queue.push(at, Arrival::Core(packet)));
    }

    /// Every relay, as an allowlist names it.
    #[must_use]
    pub fn relay_list(&self) -> Vec<RelayInfo> {
        let info = |host: &RelayHost| RelayInfo {
            key: AgreementSecret::from_bytes(host.secret).public(),
            host: match self.names_relays {
                true => relay_name(&host.label),
                false => host.address.ip().to_string(),
            }
            .parse()
            .expect("a name or an address is a host"),
            port: host.address.port(),
            tls: None,
        };
        self.relays.iter().map(info).collect()
    }

    /// An agent of its own authority, alone in a site behind this NAT.
    pub fn add_agent(&mut self, name: &str, network: impl Into<Network>) {
        let wall = self.clock.wall(0);
        let owner = Owner::new(self.seed, name, self.relay_list(), wall);
        self.owners.insert(name.to_owned(), owner);
        let site = self.add_site(network);
        self.start_instance(name, name, site);
    }

    /// An agent of its own authority, in a site of its own behind the same provider's NAT as another.
    pub fn add_agent_of_same_carrier(&mut self, name: &str, of: &str, nat: NatKind) {
        let wall = self.clock.wall(0);
        let owner = Owner::new(self.seed, name, self.relay_list(), wall);
        self.owners.insert(name.to_owned(), owner);
        let carrier = self.sites[self.agents[self.number(of)].site].carrier;
        let number = self.sites.len() + 1;
        self.sites.push(Site::new(number, &nat.into(), carrier, self.rng.next()));
        self.start_instance(name, name, number - 1);
    }

    /// An agent of its own authority, in the site of another.
    pub fn add_neighbour(&mut self, name: &str, of: &str) {
        let wall = self.clock.wall(0);
        let owner = Owner::new(self.seed, name, self.relay_list(), wall);
        self.owners.insert(name.to_owned(), owner);
        let site = self.agents[self.number(of)].site;
        self.start_instance(name, name, site);
    }

    /// A second instance of an agent, with a key of its own, in a site of its own.
    pub fn add_replica(&mut self, label: &str, of: &str, nat: NatKind) {
        let site = self.add_site(nat);
        self.start_instance(label, of, site);
    }

    /// Ends an agent without a word.
    pub fn kill(&mut self, label: &str) {
        let number = self.number(label);
        self.agents[number].node = None;
        self.flows.agent_gone(number);
    }

    /// A new process of the same agent at the same place: same authority, new key.
    pub fn restart(&mut self, label: &str) {
        let number = self.number(label);
        let (name, site) = (self.agents[number].name.clone(), self.agents[number].site);
        self.kill(label);
        self.start_instance(label, &name, site);
    }

    /// A new process of the same instance at the same place: it kept its key, as a container does that restarts in its pod.
    pub fn restart_with_its_key(&mut self, label: &str) {
        let number = self.number(label);
        let (name, site) = (self.agents[number].name.clone(), self.agents[number].site);
        self.kill(label);
        self.owner(&name).take_last_key_again();
        self.start_instance(label, &name, site);
    }

    /// A new process of the same agent in another network.
    pub fn restart_elsewhere(&mut self, label: &str, nat: NatKind) {
        let name = self.agents[self.number(label)].name.clone();
        let site = self.add_site(nat);
        self.kill(label);
        self.start_instance(label, &name, site);
    }

    /// As [`Self::restart`], by a process that knows which instance was before it, as one that keeps a lock does.
    pub fn restart_as_successor(&mut self, label: &str) {
        let before = self.number(label);
        let ended = self.agents[before].node.as_ref().map(Node::instance);
        self.restart(label);
        let now = self.number(label);
        if let Some(node) = self.agents[now].node.as_mut() {
            node.set_predecessors(ended.into_iter().collect());
        }
    }

    /// Everything the next instance of an agent would be made of.
    pub fn character(&mut self, name: &str) -> Character {
        let wall = self.clock.wall(0);
        let owner = self.owners.get_mut(name).expect("an agent of this world");
        let instance = owner.next_instance();
        Character {
            agent: owner.id.clone(),
            credential: owner.credential(&instance, wall),
            instance,
            snapshot: owner.snapshot(),
        }
    }

    /// A node made of anything, in a site of its own. The world judges it as the agent `name`, which it may not be.
    pub fn add_character(&mut self, label: &str, name: &str, nat: NatKind, character: Character) {
        let site = self.add_site(nat);
        self.start(label, name, site, character);
    }

    /// An endpoint of somebody who is no agent. What reaches it is in [`Self::received_by`].
    pub fn add_stranger(&mut self) -> SocketAddr {
        let address = stranger_address(self.strangers.len() + 1);
        self.strangers.insert(address, Vec::new());
        address
    }

    /// Both owners declare trust.
    pub fn trust(&mut self, one: &str, other: &str) {
        self.declare(one, other);
        self.declare(other, one);
    }

    /// One owner declares trust.
    pub fn declare(&mut self, who: &str, whom: &str) {
        let mut owner = self.owners.remove(who).expect("an agent of this world");
        owner.declare(&self.owners[whom]);
        self.owners.insert(who.to_owned(), owner);
        self.guard.may_hear(who, whom);
        self.apply(who);
    }

    /// One owner withdraws its trust.
    pub fn revoke(&mut self, who: &str, whom: &str) {
        self.owner(who).trusts.remove(whom).expect("a trust that was declared");
        self.guard.may_not_hear(who, whom, self.clock.now());
        self.apply(who);
    }

    /// One owner denies an instance of another agent.
    pub fn deny(&mut self, who: &str, whose: &str, instance: InstanceId) {
        let authority = self.owners[whose].id.authority;
        let until = self.clock.wall(0).plus(Duration::from_secs(24 * 3600));
        self.owner(who).denied.push(DeniedInstance { authority, instance, until });
        self.apply(who);
    }

    /// How sessions between two may travel, by the word of one of them.
    pub fn set_path_mode(&mut self, who: &str, whom: &str, mode: PathMode) {
        let declared = self.owner(who).trusts.get_mut(whom).expect("a trust that was declared");
        declared.path = mode;
        self.apply(who);
    }

    /// Both owners allow ports to be guessed, or one does.
    pub fn allow_birthday(&mut self, who: &str, whom: &str) {
        let declared = self.owner(who).trusts.get_mut(whom).expect("a trust that was declared");
        declared.birthday = BirthdayMode::Enabled;
        self.apply(who);
    }

    /// When one's trust in another ends by itself, in seconds from now.
    pub fn trust_ends_in(&mut self, who: &str, whom: &str, time: Duration) {
        let at = self.clock.wall(0).plus(time);
        let declared = self.owner(who).trusts.get_mut(whom).expect("a trust that was declared");
        declared.expires = Some(at);
        self.apply(who);
    }

    /// How long passports of an agent's later instances last.
    pub fn passports_last(&mut self, name: &str, time: Duration) {
        self.owner(name).passports_last = time;
    }

    /// One opens an invitation; whoever holds the ticket may ask it for trust.
    pub fn invite(&mut self, who: &str, lasting: Duration) -> Ticket {
        let expires = self.clock.wall(0).plus(lasting);
        let ticket = self.owner(who).invite(expires);
        self.apply(who);
        ticket
    }

    /// Withdraws all invitations of an agent's owner.
    pub fn close_invites(&mut self, who: &str) {
        self.owner(who).invites.clear();
        self.apply(who);
    }

    /// For the world's own check: one holds a ticket of another, so they may speak without trust.
    pub fn holds_ticket(&mut self, asker: &str, inviter: &str) {
        self.guard.may_hear(asker, inviter);
        self.guard.may_hear(inviter, asker);
    }

    /// For the world's own check: one may send to another, which need not answer.
    pub fn may_speak(&mut self, speaker: &str, listener: &str) {
        self.guard.may_hear(speaker, listener);
    }

    /// For the world's own check: an agent may answer this stranger, because the spec says that it does.
    pub fn may_answer(&mut self, speaker: &str, stranger: SocketAddr) {
        self.guard.knows_stranger(stranger);
        self.guard.may_hear(speaker, &stranger.to_string());
    }

    pub(super) fn owner(&mut self, name: &str) -> &mut Owner {
        self.owners.get_mut(name).expect("an agent of this world")
    }

    pub(super) fn relay_host(&mut self, label: &str) -> &mut RelayHost {
        let found = self.relays.iter_mut().find(|r| r.label == label);
        found.expect("a relay of this world")
    }

    /// The number of the newest instance with this label.
    pub(super) fn number(&self, label: &str) -> usize {
        let found = self.agents.iter().rposition(|a| a.label == label);
        found.expect("an agent of this world")
    }

    /// Gives every instance of an agent its owner's declarations.
    pub(super) fn apply(&mut self, name: &str) {
        let snapshot = self.owners[name].snapshot();
        for number in 0..self.agents.len() {
            let moment = self.time_of(number);
            let agent = &mut self.agents[number];
            if let Some(node) = agent.node.as_mut().filter(|_| agent.name == name) {
                node.apply_snapshot(moment, snapshot.clone());
                self.drain(number);
            }
        }
    }

    pub(super) fn add_site(&mut self, network: impl Into<Network>) -> usize {
        let network = network.into();
        let number = self.sites.len() + 1;
        let carrier = network.carrier.map(|kind| {
            self.carriers.push(Nat::new(kind, carrier_ip(self.carriers.len() + 1), self.rng.next()));
            self.carriers.len() - 1
        });
        self.sites.push(Site::new(number, &network, carrier, self.rng.next()));
        number - 1
    }

    fn start_instance(&mut self, label: &str, name: &str, site: usize) {
        let character = self.character(name);
        self.start(label, name, site, character);
    }

    fn start(&mut self, label: &str, name: &str, site: usize, character: Character) {
        let number = self.agents.len();
        let port = 40_000 + u16::try_from(number).expect("fewer than 20000 agents");
        let addresses = self.sites[site].new_host(port);
        let moment = self.clock.for_agent(0);
        let config = NodeConfig {
            agent: character.agent,
            instance: character.instance,
            credential: character.credential,
            fixed: Vec::new(),
            memory: self.memory,
            congestion: self.congestion,
            seed: sha256(&[b"node", &self.seed.to_be_bytes(), &(number as u64).to_be_bytes()]),
        };
        let mut node = Node::new(config, moment).expect("a credential of the simulator is short enough");
        node.set_local_addresses(moment, addresses.all());
        node.apply_snapshot(moment, character.snapshot);
        let line = Line::new(&LinkConfig::with_delay(AGENT_DELAY), self.rng.next());
        self.guard.add_agent(name);
        addresses.all().for_each(|address| self.guard.lives_at(name, address.ip()));
        self.agents.push(Agent {
            label: label.to_owned(),
            name: name.to_owned(),
            node: Some(node),
            site,
            addresses,
            extras: Default::default(),
            next_port: 20_000,
            line,
            skew: 0,
            writes_down: true,
            hesitates: false,
            undecided: Vec::new(),
            serves: true,
            events: Vec::new(),
            cut_off: false,
            held_back: false,
            reads: true,
            stopped: None,
        });
        self.drain(number);
    }
}
