//! The oracle against packets: for every ordered pair the easiest strategy that connects is the one it names.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::time::Instant;

use super::*;
use crate::nat::Nat;

#[test]
fn every_ordered_pair_connects_by_the_named_effort_and_by_no_lesser() {
    for (name_a, a) in NatKind::presets() {
        for (name_b, b) in NatKind::presets() {
            assert_eq!(can_be_direct(&a, &b), easiest(a, b), "{name_a} towards {name_b}");
        }
    }
}

#[test]
fn the_order_of_a_pair_does_not_matter() {
    for (_, a) in NatKind::presets() {
        for (_, b) in NatKind::presets() {
            assert_eq!(can_be_direct(&a, &b), can_be_direct(&b, &a), "{a:?} {b:?}");
        }
    }
}

#[test]
fn two_home_routers_are_punched() {
    assert_eq!(can_be_direct(&NatKind::home_router(), &NatKind::home_router()), Possibility::Punched);
}

#[test]
fn two_random_symmetric_nats_stay_relayed() {
    assert_eq!(can_be_direct(&NatKind::symmetric_random(), &NatKind::symmetric_random()), Possibility::Impossible);
}

#[test]
fn a_punch_that_does_not_cross_its_answer_fails_where_the_port_is_stolen() {
    let stealing = NatKind::symmetric_port_stealing();
    let mut net = Net::new(stealing, NatKind::port_restricted_cone());
    let (a, b) = (net.seen_by_relay(0), net.seen_by_relay(1));
    // The stealing side is late: the packet of the other side has arrived before its own left.
    assert!(!net.send(1, a) && !net.send(0, b) && !net.send(1, a));
}

fn easiest(a: NatKind, b: NatKind) -> Possibility {
    if connects(a, b, one_side_sends) || connects(b, a, one_side_sends) {
        Possibility::Direct
    } else if connects(a, b, both_send) {
        Possibility::Punched
    } else if connects(a, b, both_predict) {
        Possibility::NeedsPrediction
    } else if connects(a, b, birthday) || connects(b, a, birthday) {
        Possibility::NeedsBirthday
    } else {
        Possibility::Impossible
    }
}

/// A strategy counts only if it works from several seeds: a lucky port is no strategy.
fn connects(a: NatKind, b: NatKind, strategy: fn(&mut Net) -> bool) -> bool {
    (0..5).all(|seed| strategy(&mut Net { seed, ..Net::new(a, b) }.reseeded()))
}

fn one_side_sends(net: &mut Net) -> bool {
    net.seen_by_relay(0);
    let b = net.seen_by_relay(1);
    net.send(0, b)
}

fn both_send(net: &mut Net) -> bool {
    let (a, b) = (net.seen_by_relay(0), net.seen_by_relay(1));
    net.cross(b, a)
}

fn both_predict(net: &mut Net) -> bool {
    let (a, b) = (net.seen_by_relay(0), net.seen_by_relay(1));
    let next = |seen: SocketAddr| SocketAddr::new(seen.ip(), seen.port() + 1);
    let sequential = |net: &Net, side: usize| match net.nats[side].kind() {
        NatKind::Translating(nat) => matches!(endpoint(&nat), Endpoint::Predictable),
        NatKind::None => false,
    };
    let a = if sequential(net, 0) { next(a) } else { a };
    let b = if sequential(net, 1) { next(b) } else { b };
    net.cross(b, a)
}

/// Side 1 tries ports spread over the range, then side 0 sends from 256 ports to side 1's known endpoint: it is enough
/// that one of them was tried. In this order, because the other way round a gateway that steals ports spoils exactly
/// the pairs that would have met. Four times the probes of a real round, so that luck plays no part here.
fn birthday(net: &mut Net) -> bool {
    let (public, b) = (net.nats[0].public_address(), net.seen_by_relay(1));
    if (0..4096).any(|n| net.send(1, SocketAddr::new(public, 1024 + n * 15 + 7))) {
        return true;
    }
    (20_000..20_256).any(|port| {
        net.insides[0].set_port(port);
        net.send(0, b)
    })
}

/// Two hosts, their NATs, and a relay; packets arrive at once.
struct Net {
    insides: [SocketAddr; 2],
    nats: [Nat; 2],
    seed: u64,
}

impl Net {
    fn new(a: NatKind, b: NatKind) -> Self {
        let nats = [(a, "203.0.113.1"), (b, "203.0.113.2")].map(|(kind, public)| Nat::new(kind, ip(public), 0));
        let inside = |kind: NatKind, private: &str, public: &str| match kind {
            NatKind::None => SocketAddr::new(ip(public), 4000),
            NatKind::Translating(_) => SocketAddr::new(ip(private), 4000),
        };
        let insides = [inside(a, "10.0.0.2", "203.0.113.1"), inside(b, "10.0.0.2", "203.0.113.2")];
        Self { insides, nats, seed: 0 }
    }

    fn reseeded(self) -> Self {
        let seed = self.seed;
        let nats = self.nats.map(|nat| Nat::new(nat.kind(), nat.public_address(), seed * 1_000 + last_octet(&nat)));
        Self { nats, ..self }
    }

    fn seen_by_relay(&mut self, side: usize) -> SocketAddr {
        let relay = SocketAddr::new(ip("198.51.100.1"), 3478);
        self.nats[side].outbound(epoch(), self.insides[side], relay).expect("ports are free")
    }

    /// Sends one packet; true if it arrives and its answer, to where it came from, arrives as well.
    fn send(&mut self, side: usize, to: SocketAddr) -> bool {
        let Some(from) = self.nats[side].outbound(epoch(), self.insides[side], to) else {
            return false;
        };
        self.arrives(side, from, to)
    }

    fn arrives(&mut self, side: usize, from: SocketAddr, to: SocketAddr) -> bool {
        let other = 1 - side;
        let Some(inside) = self.nats[other].inbound(epoch(), from, to) else {
            return false;
        };
        let answer = self.nats[other].outbound(epoch(), inside, from).expect("ports are free");
        self.nats[side].inbound(epoch(), answer, from).is_some()
    }

    /// Both send before either packet arrives, and once more after.
    fn cross(&mut self, to_b: SocketAddr, to_a: SocketAddr) -> bool {
        let from_a = self.nats[0].outbound(epoch(), self.insides[0], to_b).expect("ports are free");
        let from_b = self.nats[1].outbound(epoch(), self.insides[1], to_a).expect("ports are free");
        let crossed = [self.arrives(0, from_a, to_b), self.arrives(1, from_b, to_a)];
        crossed.contains(&true) || self.send(0, to_b) || self.send(1, to_a)
    }
}

fn last_octet(nat: &Nat) -> u64 {
    match nat.public_address() {
        IpAddr::V4(address) => u64::from(address.octets()[3]),
        IpAddr::V6(_) => 0,
    }
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}
