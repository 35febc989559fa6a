//! One device at a time: what each rule lets through.

use std::sync::OnceLock;
use std::time::Duration;

use super::*;

const PUBLIC: &str = "203.0.113.1";
const INSIDE: &str = "10.0.0.2:4000";
const RELAY: &str = "198.51.100.1:3478";
const RELAY_OTHER_PORT: &str = "198.51.100.1:3479";
const PEER: &str = "198.51.100.2:5000";

#[test]
fn without_a_nat_packets_stay_as_they_are() {
    let mut nat = device(NatKind::none());
    assert_eq!(nat.outbound(epoch(), at(INSIDE), at(PEER)), Some(at(INSIDE)));
    assert_eq!(nat.inbound(epoch(), at(PEER), at(INSIDE)), Some(at(INSIDE)));
}

#[test]
fn a_cone_uses_one_public_endpoint_for_every_destination() {
    for kind in [NatKind::full_cone(), NatKind::restricted_cone(), NatKind::port_restricted_cone()] {
        let mut nat = device(kind);
        assert_eq!(send(&mut nat, RELAY), send(&mut nat, PEER));
    }
}

#[test]
fn a_symmetric_nat_uses_another_port_for_every_destination() {
    for kind in [NatKind::symmetric_random(), NatKind::symmetric_sequential()] {
        let mut nat = device(kind);
        let ports = [RELAY, RELAY_OTHER_PORT, PEER].map(|to| send(&mut nat, to).port());
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2], "{ports:?}");
        assert_eq!(send(&mut nat, RELAY).port(), ports[0], "a known destination keeps its mapping");
    }
}

#[test]
fn a_sequential_nat_counts_up() {
    let mut nat = device(NatKind::symmetric_sequential());
    let first = send(&mut nat, RELAY).port();
    assert_eq!(send(&mut nat, PEER).port(), port_after(first, 1));
}

#[test]
fn a_preserving_nat_keeps_the_port_for_every_destination() {
    let mut nat = device(NatKind::symmetric_preserving());
    assert_eq!([RELAY, PEER].map(|to| send(&mut nat, to).port()), [4000, 4000]);
}

#[test]
fn a_preserving_nat_gives_a_second_host_another_port_and_goes_on_with_it() {
    let mut nat = device(NatKind::symmetric_preserving());
    send(&mut nat, PEER);
    let second = nat.outbound(epoch(), at("10.0.0.3:4000"), at(PEER)).expect("ports are free");
    assert_ne!(second.port(), 4000);
    let elsewhere = nat.outbound(epoch(), at("10.0.0.3:4000"), at(RELAY)).expect("ports are free");
    assert_eq!(elsewhere, second, "although towards another remote the first is free");
}

#[test]
fn a_shared_port_delivers_to_the_host_that_talks_to_that_remote() {
    let mut nat = device(NatKind::symmetric_preserving());
    let public = send(&mut nat, PEER);
    nat.outbound(epoch(), at("10.0.0.3:4000"), at(RELAY)).expect("ports are free");
    assert_eq!(nat.inbound(epoch(), at(PEER), public), Some(at(INSIDE)));
    assert_eq!(nat.inbound(epoch(), at(RELAY), public), Some(at("10.0.0.3:4000")));
}

#[test]
fn a_full_cone_lets_strangers_in() {
    let mut nat = device(NatKind::full_cone());
    let public = send(&mut nat, RELAY);
    assert_eq!(nat.inbound(epoch(), at(PEER), public), Some(at(INSIDE)));
}

#[test]
fn a_restricted_cone_lets_other_ports_of_a_known_address_in() {
    let mut nat = device(NatKind::restricted_cone());
    let public = send(&mut nat, RELAY);
    assert_eq!(nat.inbound(epoch(), at(RELAY_OTHER_PORT), public), Some(at(INSIDE)));
    assert_eq!(nat.inbound(epoch(), at(PEER), public), None);
}

#[test]
fn a_port_restricted_cone_lets_only_the_known_endpoint_in() {
    let mut nat = device(NatKind::port_restricted_cone());
    let public = send(&mut nat, RELAY);
    assert_eq!(nat.inbound(epoch(), at(RELAY), public), Some(at(INSIDE)));
    assert_eq!(nat.inbound(epoch(), at(RELAY_OTHER_PORT), public), None);
}

#[test]
fn an_unmapped_port_or_a_foreign_address_leads_nowhere() {
    let mut nat = device(NatKind::full_cone());
    let public = send(&mut nat, RELAY);
    assert_eq!(nat.inbound(epoch(), at(RELAY), SocketAddr::new(public.ip(), 4001)), None);
    assert_eq!(nat.inbound(epoch(), at(RELAY), SocketAddr::new(at(PEER).ip(), 4000)), None);
}

#[test]
fn a_mapping_ends_with_its_last_outbound_packet() {
    let mut nat = device(NatKind::home_router());
    let public = send(&mut nat, RELAY);
    let before = epoch() + Duration::from_secs(29);
    assert_eq!(nat.inbound(before, at(RELAY), public), Some(at(INSIDE)));
    let after = epoch() + Duration::from_secs(30);
    assert_eq!(nat.inbound(after, at(RELAY), public), None, "the inbound packet prolonged nothing");
}

#[test]
fn an_expired_symmetric_mapping_comes_back_with_another_port() {
    let mut nat = device(NatKind::symmetric_random());
    let first = send(&mut nat, RELAY);
    let later = nat.outbound(epoch() + Duration::from_secs(31), at(INSIDE), at(RELAY)).expect("ports are free");
    assert_ne!(first, later);
}

#[test]
fn a_permission_ends_even_while_the_mapping_lives_on() {
    let mut nat = device(NatKind::home_router());
    let public = send(&mut nat, PEER);
    let later = epoch() + Duration::from_secs(20);
    nat.outbound(later, at(INSIDE), at(RELAY)).expect("ports are free");
    assert_eq!(nat.inbound(epoch() + Duration::from_secs(40), at(PEER), public), None);
    assert_eq!(nat.inbound(epoch() + Duration::from_secs(40), at(RELAY), public), Some(at(INSIDE)));
}

#[test]
fn only_a_hairpinning_nat_lets_insiders_meet_by_public_endpoints() {
    for (kind, meets) in [(NatKind::home_router(), true), (NatKind::port_restricted_cone(), false)] {
        let mut nat = device(kind);
        let (a, b) = (at("10.0.0.2:4000"), at("10.0.0.3:5000"));
        let public_a = nat.outbound(epoch(), a, at(RELAY)).expect("ports are free");
        let public_b = nat.outbound(epoch(), b, at(RELAY)).expect("ports are free");
        nat.outbound(epoch(), b, public_a).expect("ports are free");
        let from = nat.outbound(epoch(), a, public_b).expect("ports are free");
        assert_eq!(nat.inbound(epoch(), from, public_b).is_some(), meets, "{kind:?}");
    }
}

#[test]
fn an_early_punch_steals_the_port_where_the_gateway_accepts_input() {
    for (kind, stolen) in [(NatKind::symmetric_port_stealing(), true), (NatKind::symmetric_preserving(), false)] {
        let mut nat = device(kind);
        let public = send(&mut nat, RELAY);
        assert_eq!(nat.inbound(epoch(), at(PEER), public), None);
        assert_eq!(send(&mut nat, PEER).port() != 4000, stolen, "{kind:?}");
    }
}

#[test]
fn the_port_taken_instead_of_a_stolen_one_serves_everybody_new() {
    let mut nat = device(NatKind::symmetric_port_stealing());
    let public = send(&mut nat, RELAY);
    nat.inbound(epoch(), at(PEER), public);
    let instead = send(&mut nat, PEER);
    assert_eq!(send(&mut nat, RELAY_OTHER_PORT), instead, "a new destination");
    assert_eq!(send(&mut nat, RELAY), public, "an old one");
}

#[test]
fn a_stolen_port_comes_back_after_the_expiry() {
    let mut nat = device(NatKind::symmetric_port_stealing());
    let public = send(&mut nat, RELAY);
    nat.inbound(epoch(), at(PEER), public);
    let later = epoch() + Duration::from_secs(31);
    assert_eq!(nat.outbound(later, at(INSIDE), at(PEER)).map(|public| public.port()), Some(4000));
}

#[test]
fn a_punch_that_comes_second_steals_nothing() {
    let mut nat = device(NatKind::symmetric_port_stealing());
    let public = send(&mut nat, PEER);
    assert_eq!(nat.inbound(epoch(), at(PEER), public), Some(at(INSIDE)));
    assert_eq!(send(&mut nat, PEER), public);
}

#[test]
fn a_flush_forgets_and_a_new_public_address_shows() {
    let mut nat = device(NatKind::full_cone());
    let public = send(&mut nat, RELAY);
    nat.set_public_address(at(PEER).ip());
    assert_eq!(nat.inbound(epoch(), at(RELAY), public), None);
    assert_eq!(send(&mut nat, RELAY).ip(), at(PEER).ip());
}

#[test]
fn a_nat_without_a_free_port_drops_the_packet() {
    let mut nat = device(NatKind::symmetric_random());
    let ports = u16::MAX - FIRST_PORT;
    for n in 0..=ports {
        let to = SocketAddr::new(at(PEER).ip(), FIRST_PORT + n);
        nat.by_port.insert(FIRST_PORT + n, vec![MappingKey { inside: at(INSIDE), remote: Remote::Endpoint(to) }]);
        let mapping =
            Mapping { port: 0, number: 0, expires: epoch() + Duration::from_secs(1), permitted: BTreeMap::new() };
        nat.mappings.insert(MappingKey { inside: at(INSIDE), remote: Remote::Endpoint(to) }, mapping);
    }
    assert_eq!(nat.outbound(epoch(), at(INSIDE), at(RELAY)), None);
}

#[test]
fn the_same_seed_gives_the_same_ports() {
    let ports = |seed| {
        let mut nat = Nat::new(NatKind::symmetric_random(), at(PEER).ip(), seed);
        [RELAY, RELAY_OTHER_PORT, PEER].map(|to| send(&mut nat, to).port())
    };
    assert_eq!(ports(11), ports(11));
    assert_ne!(ports(11), ports(12));
}

fn device(kind: NatKind) -> Nat {
    Nat::new(kind, PUBLIC.parse().expect("an address"), 42)
}

fn send(nat: &mut Nat, to: &str) -> SocketAddr {
    nat.outbound(epoch(), at(INSIDE), at(to)).expect("ports are free")
}

fn at(endpoint: &str) -> SocketAddr {
    endpoint.parse().expect("an endpoint")
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}
