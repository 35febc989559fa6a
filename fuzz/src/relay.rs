//! The relay and its client, against each other and against everybody else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use peerage_engine::relay::{ClientConfig, RelayClient, Role};
use peerage_model::relay::frame::mailbox::{self, MailId, NameKey, SEALED};
use peerage_model::relay::frame::{self, Destination, EndpointId, Frame, Tag, keys};
use peerage_model::{AgreementKey, AgreementSecret, Credential, InstanceId, RoutingId};
use peerage_relay_proto::{Access, Config, Decision, Ingress, Limits, Place, Relay, StreamId};
use zeroize::Zeroizing;

use crate::feed::Feed;
use crate::model::{NOW, authority};

/// A tunnel packet, as far as a relay looks at it.
const PACKET: &[u8] = &[0xc3, 1, 2, 3, 4, 5, 6, 7];
/// How much longer than its request an answer to STUN may be, docs/spec/relay.md section 7.
const STUN_LONGER: usize = 32;

fn relay(limits: Limits, now: Instant) -> Relay {
    let key = AgreementSecret::from_bytes([77; 32]);
    Relay::new(Config { key, access: Access::Open, limits, seed: Zeroizing::new([88; 32]) }, now)
}

/// An agent of the test authority: key, credential, route.
type Agent = (AgreementSecret, Vec<u8>, RoutingId);

/// Made once: their signatures would take most of a run's time.
static AGENTS: LazyLock<Vec<Agent>> = LazyLock::new(|| (0..8).map(new_agent).collect());

fn agent(number: u8) -> &'static Agent {
    &AGENTS[usize::from(number) % AGENTS.len()]
}

fn new_agent(number: u8) -> Agent {
    let authority = authority();
    let id = authority.agent(format!("agent-{number}").parse().expect("a name"));
    let key = AgreementSecret::from_bytes([number + 1; 32]);
    let not_before = NOW.minus(Duration::from_secs(300));
    let passport = authority.issue(&id, key.public(), not_before, NOW.plus(Duration::from_secs(86_400)));
    (key, Credential::join(authority.record(), passport), id.routing_id())
}

/// A world of one relay and whoever speaks to it.
struct World {
    relay: Relay,
    limits: Limits,
    start: Instant,
    now: Instant,
    /// The newest answer of each kind that came to an address.
    answers: BTreeMap<SocketAddr, Vec<u8>>,
    tags: BTreeMap<SocketAddr, Tag>,
    /// Addresses that have shown that they receive what is sent to them.
    proven: BTreeSet<SocketAddr>,
    /// Of the last BIND that each address sent.
    sessions: BTreeMap<SocketAddr, keys::MacKey>,
    drawn: u8,
}

/// A script of datagrams to one relay, honest, changed and invented. No address that has not shown that it receives
/// gets more bytes than it sent (STUN apart); packets go only where somebody showed that; memory stays within its limit.
pub fn relay_server(data: &[u8]) {
    play(data);
}

fn play(data: &[u8]) -> World {
    let now = Instant::now(); // an arbitrary origin; the script's time is counted from it
    let limits = Limits { memory: 64 << 10, mailbox_memory: 8 << 10, ..Limits::open() };
    let relay = relay(limits, now);
    let (answers, tags, proven) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let sessions = BTreeMap::new();
    let mut world = World { relay, limits, start: now, now, answers, tags, proven, sessions, drawn: 0 };
    let mut feed = Feed::new(data);
    for _ in 0..64 {
        if feed.is_empty() {
            break;
        }
        world.step(&mut feed);
        let held = world.relay.occupancy();
        assert!(held.memory <= world.limits.memory && held.mailbox_memory <= world.limits.mailbox_memory);
    }
    world
}

impl World {
    fn step(&mut self, feed: &mut Feed<'_>) {
        let choice = feed.u8();
        if choice.is_multiple_of(12) {
            self.pass(Duration::from_secs(u64::from(feed.u8())));
            return;
        }
        if choice == 255 {
            self.relay.drain(self.now, Duration::from_secs(30));
        }
        let from = feed.address();
        let mut batch = self.datagram(choice % 12, from, feed);
        let changed = feed.mutate(&mut batch);
        let copies = 1 + feed.below(4);
        let segment = if changed { feed.below(1500) } else { batch.len() };
        self.send(from, batch.repeat(copies), segment);
    }

    fn pass(&mut self, by: Duration) {
        self.now += by;
        self.relay.handle_timeout(self.now, self.wall());
        let ends = self.proven.iter().find(|_| by > Duration::from_secs(200)).copied();
        if let Some(from) = ends {
            self.relay.stream_ended(Self::place(from), self.now);
        }
        while let Some(notice) = self.relay.poll_transmit(self.now) {
            assert!(self.proven.contains(&notice.to.address()), "a notice to a stranger");
        }
    }

    fn wall(&self) -> peerage_model::UnixTime {
        NOW.plus(self.now - self.start)
    }

    /// What an honest client at this address would send next, or no client at all.
    fn datagram(&mut self, kind: u8, from: SocketAddr, feed: &mut Feed<'_>) -> Vec<u8> {
        let tag = self.tags.get(&from).copied().unwrap_or(Tag([2; 6]));
        let cookie = match self.answers.get(&from).map(|answer| Frame::parse(answer)) {
            Some(Ok((_, Frame::Cookie { cookie, .. }))) => cookie,
            Some(_) | None => frame::Cookie([0; 16]),
        };
        let (key, credential, route) = agent(feed.u8());
        let id = EndpointId::from(InstanceId::of_key(&key.public()));
        match kind {
            1 => frame::hello(Tag(feed.array())).to_vec(),
            2 | 3 => {
                self.drawn = self.drawn.wrapping_add(1);
                let e = AgreementSecret::from_bytes([self.drawn; 32]);
                let relay = *self.relay.public_key();
                let bind = keys::bind(Tag(feed.array()), cookie, &e, &relay, key, credential).expect("good keys");
                self.sessions.insert(from, bind.session);
                bind.frame
            }
            4 => frame::visit(Tag(feed.array()), cookie, feed.one_in(2).then_some((id, tag))).to_vec(),
            5 if feed.one_in(3) => frame::unbind(tag, id, |_| [0; 16]).to_vec(),
            5 => frame::moved(Tag(feed.array()), cookie, id, feed.u8().into(), |_| [0; 16]).to_vec(),
            6 => frame::keepalive(tag, feed.array()).to_vec(),
            7 | 8 => to(tag, Destination::Endpoint(id)),
            9 => to(tag, Destination::Route(*route)),
            10 => to(tag, Destination::Endpoint(EndpointId(feed.array()))),
            _ => self.mail(from, tag, feed),
        }
    }

    /// What has to do with mailboxes, honest or not, or nothing at all.
    fn mail(&mut self, from: SocketAddr, tag: Tag, feed: &mut Feed<'_>) -> Vec<u8> {
        let nonce = [1; 8];
        let (_, _, route) = agent(feed.u8());
        match feed.u8() % 5 {
            0 => mailbox::lookup(tag, nonce, NameKey(feed.array()), &AgreementKey(feed.array())).to_vec(),
            1 => {
                let name = NameKey::of(&"agent-1".parse().expect("a name"));
                mailbox::lookup(tag, nonce, name, &AgreementKey([9; 32])).to_vec()
            }
            2 => mailbox::post(tag, nonce, *route, &[feed.u8(); SEALED]),
            3 => {
                let done = match self.answers.get(&from).map(|answer| Frame::parse(answer)) {
                    Some(Ok((_, Frame::Mail { id, .. }))) => id,
                    Some(_) | None => MailId(feed.array()),
                };
                let session = self.sessions.get(&from);
                let mac = |body: &[u8]| session.map_or([0; 16], |session| session.mac(body));
                mailbox::check(tag, nonce, done, mac).to_vec()
            }
            _ => feed.bytes(600).to_vec(),
        }
    }

    /// Clients with IPv6 addresses come through streams, the others by UDP.
    fn place(from: SocketAddr) -> Place {
        match from.ip().to_canonical() {
            IpAddr::V6(ip) => Place::Stream(StreamId(u64::from(ip.segments()[7])), from),
            IpAddr::V4(_) => Place::Udp(from),
        }
    }

    fn send(&mut self, from: SocketAddr, mut batch: Vec<u8>, segment: usize) {
        let mut rest = &mut batch[..];
        while !rest.is_empty() {
            let ingress = Ingress { now: self.now, wall: self.wall(), from: Self::place(from), local: None };
            let before = rest.to_vec();
            let handled = self.relay.handle(&ingress, rest, segment);
            assert!((1..=rest.len()).contains(&handled.consumed));
            let request = &before[..handled.consumed];
            match handled.decision {
                Decision::Drop => {}
                Decision::Reply(reply) => self.replied(from, request, reply.as_bytes()),
                Decision::Forward(forward) => {
                    assert!(forward.range.end <= handled.consumed && !forward.range.is_empty());
                    assert!(
                        self.proven.contains(&forward.to.address()),
                        "a packet to {:?}, who never asked",
                        forward.to
                    );
                    for packet in rest[forward.range].chunks(forward.segment) {
                        assert!(matches!(Frame::parse(packet), Ok((_, Frame::From { .. }))));
                    }
                }
            }
            rest = &mut rest[handled.consumed..];
        }
    }

    fn replied(&mut self, from: SocketAddr, request: &[u8], reply: &[u8]) {
        match Frame::parse(reply) {
            Ok((_, Frame::Bound { grant, .. } | Frame::Visiting { grant, .. })) => {
                assert_eq!(grant.observed, SocketAddr::new(from.ip().to_canonical(), from.port()));
                self.proven.insert(from);
                self.tags.insert(from, grant.tag);
            }
            Ok(_) if Self::place(from) != from.into() => {} // who has a stream receives at its address
            Ok(_) => assert!(reply.len() <= request.len() || self.proven.contains(&from), "amplified"),
            Err(_) => assert!(reply.len() <= request.len() + STUN_LONGER, "an answer to STUN"),
        }
        self.answers.insert(from, reply.to_vec());
    }
}

fn to(tag: Tag, destination: Destination) -> Vec<u8> {
    let mut out = vec![0; destination.header_len()];
    destination.write_header(tag, &mut out);
    out.extend_from_slice(PACKET);
    out
}

/// A script between a client and a real relay, over a network that loses, repeats, changes and invents. The client
/// never answers one datagram by more than two, hands out only what lies inside the datagram, and an honest exchange
/// afterwards always ends bound.
pub fn relay_client(data: &[u8]) {
    let mut feed = Feed::new(data);
    let now = Instant::now(); // an arbitrary origin; the script's time is counted from it
    let relay = relay(Limits::open(), now);
    let (secret, credential, _) = agent(0).clone();
    let role = if feed.one_in(4) { Role::Visit } else { Role::Bind { secret, credential } };
    let client = RelayClient::new(ClientConfig::new(*relay.public_key(), role), [6; 32], now);
    let mut link = Link { relay, client, start: now, now, up: Vec::new(), down: Vec::new() };
    for _ in 0..64 {
        if feed.is_empty() {
            break;
        }
        link.step(&mut feed);
    }
    // Nobody in between any more: within the longest pause after a refusal and a few tries, the client is there.
    for _ in 0..600 {
        link.pass(Duration::from_millis(250));
        link.carry();
    }
    assert!(link.granted(), "the client finds its relay again");
}

struct Link {
    relay: Relay,
    client: RelayClient,
    start: Instant,
    now: Instant,
    /// What the client sent and the relay has not seen; and the other way round.
    up: Vec<Vec<u8>>,
    down: Vec<Vec<u8>>,
}

impl Link {
    fn step(&mut self, feed: &mut Feed<'_>) {
        match feed.u8() % 8 {
            0 | 1 => self.carry(),
            2 => {
                let at = feed.below(self.down.len());
                if let Some(mut datagram) = self.down.get(at).cloned() {
                    feed.mutate(&mut datagram);
                    self.give_client(&datagram);
                }
            }
            3 => self.give_client(feed.bytes(200)),
            4 => {
                self.up.clear();
                self.down.clear();
            }
            5 => self.pass(Duration::from_millis(u64::from(feed.u16()))),
            6 => {
                self.client.address_changed(self.now);
                self.collect(2);
            }
            _ => {
                let mut out = Vec::new();
                let route = Destination::Route(RoutingId(feed.array()));
                if self.client.wrap(self.now, route, PACKET, None, &mut out).is_some() {
                    self.up.push(out);
                }
            }
        }
    }

    fn pass(&mut self, by: Duration) {
        self.now += by;
        self.relay.handle_timeout(self.now, NOW.plus(self.now - self.start));
        self.client.handle_timeout(self.now);
        self.collect(2);
    }

    /// Delivers what is on its way, until nothing is.
    fn carry(&mut self) {
        for _ in 0..16 {
            for mut datagram in std::mem::take(&mut self.up) {
                let from = SocketAddr::from(([198, 18, 0, 9], 4000));
                let ingress =
                    Ingress { now: self.now, wall: NOW.plus(self.now - self.start), from: from.into(), local: None };
                let length = datagram.len();
                if let Decision::Reply(reply) = self.relay.handle(&ingress, &mut datagram, length).decision {
                    self.down.push(reply.as_bytes().to_vec());
                }
            }
            for datagram in std::mem::take(&mut self.down) {
                self.give_client(&datagram);
            }
            if self.up.is_empty() {
                return;
            }
        }
        panic!("client and relay never fall silent");
    }

    fn give_client(&mut self, datagram: &[u8]) {
        if let Some(delivered) = self.client.handle_datagram(self.now, datagram) {
            assert!(delivered.packet_at < datagram.len(), "a packet has at least a byte");
        }
        self.collect(2);
    }

    fn collect(&mut self, most: usize) {
        let before = self.up.len();
        while let Some(datagram) = self.client.poll_transmit() {
            self.up.push(datagram);
            assert!(self.up.len() - before <= most, "a storm");
        }
        while self.client.poll_event().is_some() {}
    }

    fn granted(&mut self) -> bool {
        self.client.wrap(self.now, Destination::Route(RoutingId([1; 16])), PACKET, None, &mut Vec::new()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_of_a_meeting_gets_as_far_as_it_says() {
        let counters = play(&crate::seeds::meeting()).relay.counters();
        assert_eq!((counters.binds, counters.visits, counters.forwarded_packets), (2, 1, 5));
    }
}
