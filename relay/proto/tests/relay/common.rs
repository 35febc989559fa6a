//! A relay, and clients made by hand from the codec, so that tests can also say what no honest client would.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::relay::frame::keys::{self, MacKey};
use peerage_model::relay::frame::{self, Boot, Cookie, Destination, EndpointId, Frame, Grant, Refusal, Tag};
use peerage_model::{AgentId, AgreementKey, AgreementSecret, Authority, Credential, RoutingId, UnixTime};
use peerage_relay_proto::{Access, Config, Decision, Ingress, Limits, Place, Relay};
use zeroize::Zeroizing;

pub const WALL: UnixTime = UnixTime(1_800_000_000);
pub const PACKET: &[u8] = &[0xc3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

pub struct World {
    pub relay: Relay,
    pub now: Instant,
    pub wall: UnixTime,
    drawn: u16,
}

/// What left the relay for one datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Out {
    Nothing,
    Reply(Vec<u8>),
    Forward(SocketAddr, Vec<u8>),
}

pub struct Agent {
    pub id: AgentId,
    pub instance: AgreementSecret,
    pub credential: Vec<u8>,
}

/// A bound agent or a visitor.
pub struct Client {
    pub address: SocketAddr,
    pub id: EndpointId,
    pub tag: Tag,
    pub session: Option<MacKey>,
}

pub fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

pub fn authority(seed: u8) -> Authority {
    Authority::new(&Zeroizing::new([seed; 96]), WALL)
}

/// The agent `name` of authority `seed`, running with the key made of `key`.
pub fn agent(seed: u8, name: &str, key: u8) -> Agent {
    agent_until(seed, name, key, WALL.plus(Duration::from_secs(86_400)))
}

pub fn agent_until(seed: u8, name: &str, key: u8, not_after: UnixTime) -> Agent {
    let authority = authority(seed);
    let id = authority.agent(name.parse().expect("a name"));
    let instance = AgreementSecret::from_bytes([key; 32]);
    let not_before = WALL.minus(Duration::from_secs(300));
    let passport = authority.issue(&id, instance.public(), not_before, not_after);
    Agent { credential: Credential::join(authority.record(), passport), id, instance }
}

impl World {
    pub fn open() -> Self {
        Self::new(Access::Open, Limits::open())
    }

    /// The same relay in another run.
    pub fn with_seed(seed: u8) -> Self {
        Self::seeded(Access::Open, Limits::open(), seed)
    }

    pub fn new(access: Access, limits: Limits) -> Self {
        Self::seeded(access, limits, 88)
    }

    fn seeded(access: Access, limits: Limits, seed: u8) -> Self {
        let start = Instant::now();
        let config =
            Config { key: AgreementSecret::from_bytes([77; 32]), access, limits, seed: Zeroizing::new([seed; 32]) };
        Self { relay: Relay::new(config, start), now: start, wall: WALL, drawn: 0 }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.wall = self.wall.plus(time);
        self.relay.handle_timeout(self.now, self.wall);
    }

    pub fn relay_key(&self) -> AgreementKey {
        *self.relay.public_key()
    }

    /// Another key each time.
    pub fn fresh_key(&mut self) -> AgreementSecret {
        self.drawn += 1;
        let mut bytes = [1; 32];
        bytes[..2].copy_from_slice(&self.drawn.to_be_bytes());
        AgreementSecret::from_bytes(bytes)
    }

    pub fn ingress(&self, from: impl Into<Place>) -> Ingress {
        Ingress { now: self.now, wall: self.wall, from: from.into(), local: None }
    }

    pub fn send(&mut self, from: impl Into<Place>, datagram: &[u8]) -> Out {
        let mut buffer = datagram.to_vec();
        let len = buffer.len();
        let handled = self.relay.handle(&self.ingress(from), &mut buffer, len.max(1));
        assert_eq!(handled.consumed, len, "one datagram is handled whole");
        match handled.decision {
            Decision::Drop => Out::Nothing,
            Decision::Reply(reply) => Out::Reply(reply.as_bytes().to_vec()),
            Decision::Forward(forward) => Out::Forward(forward.to.address(), buffer[forward.range].to_vec()),
        }
    }

    pub fn cookie(&mut self, from: impl Into<Place>) -> (Cookie, Boot) {
        let tag = Tag([9; 6]);
        let reply = self.send(from, &frame::hello(tag)).expect_reply();
        cookie_in(&reply, tag)
    }

    /// Sends a BIND with an honest cookie.
    pub fn try_bind(&mut self, from: impl Into<Place> + Copy, agent: &Agent) -> (Out, keys::Bind) {
        let (cookie, _) = self.cookie(from);
        let e = self.fresh_key();
        let relay = self.relay_key();
        let bind = keys::bind(Tag([3; 6]), cookie, &e, &relay, &agent.instance, &agent.credential).expect("good keys");
        (self.send(from, &bind.frame), bind)
    }

    pub fn bind(&mut self, from: &str, agent: &Agent) -> Client {
        let from = addr(from);
        let (out, bind) = self.try_bind(from, agent);
        let reply = out.expect_reply();
        assert!(bind.session.verifies(&reply), "BOUND is authentic");
        let grant = bound_in(&reply);
        assert_eq!(grant.observed, from);
        Client {
            address: from,
            id: peerage_model::InstanceId::of_key(&agent.instance.public()).into(),
            tag: grant.tag,
            session: Some(bind.session),
        }
    }

    pub fn try_visit(&mut self, from: impl Into<Place> + Copy, earlier: Option<(EndpointId, Tag)>) -> Out {
        let (cookie, _) = self.cookie(from);
        self.send(from, &frame::visit(Tag([4; 6]), cookie, earlier))
    }

    pub fn visit(&mut self, from: &str) -> Client {
        let reply = self.try_visit(addr(from), None).expect_reply();
        let (grant, id) = visiting_in(&reply);
        Client { address: grant.observed, id, tag: grant.tag, session: None }
    }

    pub fn send_to_route(&mut self, from: &Client, route: RoutingId) -> Out {
        self.send(from.address, &from.frame(Destination::Route(route), PACKET))
    }

    pub fn send_to(&mut self, from: &Client, to: EndpointId) -> Out {
        self.send(from.address, &from.frame(Destination::Endpoint(to), PACKET))
    }
}

impl Client {
    pub fn frame(&self, destination: Destination, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0; destination.header_len()];
        destination.write_header(self.tag, &mut out);
        out.extend_from_slice(packet);
        out
    }

    /// Asserts that `out` is `packet` from `from`, delivered to this client.
    #[track_caller]
    pub fn assert_got(&self, out: &Out, from: &Client, packet: &[u8]) {
        let Out::Forward(to, bytes) = out else {
            panic!("forwarded, not {out:?}");
        };
        assert_eq!(*to, self.address);
        let (tag, frame) = Frame::parse(bytes).expect("it is a frame");
        assert_eq!(tag, self.tag);
        assert_eq!(frame, Frame::From { source: from.id, packet });
    }
}

impl Out {
    #[track_caller]
    pub fn expect_reply(self) -> Vec<u8> {
        match self {
            Self::Reply(bytes) => bytes,
            other @ (Self::Nothing | Self::Forward(..)) => panic!("a reply, not {other:?}"),
        }
    }

    /// Bytes sent to the sender itself.
    pub fn reply_len(&self) -> usize {
        match self {
            Self::Reply(bytes) => bytes.len(),
            Self::Nothing | Self::Forward(..) => 0,
        }
    }

    pub fn was_forwarded(&self) -> bool {
        matches!(self, Self::Forward(..))
    }
}

#[track_caller]
pub fn cookie_in(reply: &[u8], expected: Tag) -> (Cookie, Boot) {
    match Frame::parse(reply) {
        Ok((tag, Frame::Cookie { cookie, boot })) if tag == expected => (cookie, boot),
        other => panic!("COOKIE, not {other:?}"),
    }
}

#[track_caller]
pub fn bound_in(reply: &[u8]) -> Grant {
    match Frame::parse(reply) {
        Ok((_, Frame::Bound { grant, .. })) => grant,
        other => panic!("BOUND, not {other:?}"),
    }
}

#[track_caller]
pub fn visiting_in(reply: &[u8]) -> (Grant, EndpointId) {
    match Frame::parse(reply) {
        Ok((_, Frame::Visiting { grant, id })) => (grant, id),
        other => panic!("VISITING, not {other:?}"),
    }
}

#[track_caller]
pub fn refusal_in(reply: &[u8]) -> Refusal {
    match Frame::parse(reply) {
        Ok((_, Frame::Refused { reason, .. })) => reason,
        other => panic!("REFUSED, not {other:?}"),
    }
}
