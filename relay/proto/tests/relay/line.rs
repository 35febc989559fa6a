//! Everybody at once, as after a restart: who waits for what, and what a flood of BINDs can keep from others.

use std::net::SocketAddr;

use crate::common::{World, addr, agent, authority, cookie_in};
use peerage_model::relay::frame::{self, Tag};
use peerage_relay_proto::{Access, Decision, DropReason, Limits, Place, StreamId};

/// A BIND with an honest cookie and nothing else: what it is worth is found out when its turn comes.
fn empty_bind(world: &mut World, from: impl Into<Place>, e: u16) -> Vec<u8> {
    let (ingress, tag) = (world.ingress(from), Tag([1; 6]));
    let mut hello = frame::hello(tag);
    let len = hello.len();
    let Decision::Reply(reply) = world.relay.receive(&ingress, &mut hello, len).decision else { panic!("COOKIE") };
    let (cookie, _) = cookie_in(reply.as_bytes(), tag);
    let mut key = [7; 32];
    key[..2].copy_from_slice(&e.to_be_bytes());
    [&[frame::VERSION_1, 3][..], &[2; 6], &cookie.0, &key, &[0; 17], &[0; 16]].concat()
}

/// Puts one in line, as a relay does that looks at proofs later.
fn line_up(world: &mut World, from: impl Into<Place>, mut bind: Vec<u8>) {
    let (ingress, len) = (world.ingress(from), bind.len());
    world.relay.receive(&ingress, &mut bind, len);
}

fn waiting(world: &World) -> usize {
    world.relay.occupancy().binds_waiting
}

/// Whose turn it is, one after the other.
fn turns(world: &mut World) -> Vec<Place> {
    std::iter::from_fn(|| world.relay.poll_proof()).map(|proof| proof.from()).collect()
}

#[test]
fn ten_thousand_clients_behind_one_address_may_ask_at_once() {
    let mut world = World::new(Access::Only([authority(1).fingerprint()].into()), Limits::allowlisted());
    let mut admitted = 0;
    for port in 1..=10_000_u16 {
        let from = SocketAddr::from(([192, 0, 2, 1], port));
        let bind = empty_bind(&mut world, from, port);
        line_up(&mut world, from, bind);
        admitted += usize::from(world.relay.poll_proof().is_some());
    }
    assert_eq!(admitted, 10_000);
}

#[test]
fn a_network_that_floods_waits_behind_itself() {
    let mut world = World::open();
    for port in 1..=100 {
        let from = SocketAddr::from(([192, 0, 2, 1], port));
        let bind = empty_bind(&mut world, from, port);
        line_up(&mut world, from, bind);
    }
    let other = addr("198.51.100.1:1");
    let bind = empty_bind(&mut world, other, 1);
    line_up(&mut world, other, bind);
    assert_eq!(turns(&mut world).iter().position(|place| *place == other.into()), Some(1));
}

#[test]
fn who_asks_again_while_its_bind_waits_takes_no_second_place_and_pays_nothing() {
    let mut world = World::open();
    let from = addr("192.0.2.1:1");
    let bind = empty_bind(&mut world, from, 1);
    for _ in 0..10_000 {
        line_up(&mut world, from, bind.clone());
    }
    let newer = empty_bind(&mut world, from, 2);
    line_up(&mut world, from, newer);
    assert_eq!((waiting(&world), world.relay.counters().dropped(DropReason::Quota)), (1, 0));
}

#[test]
fn who_is_bound_renews_before_a_flood_of_newcomers() {
    let mut world = World::open();
    let bound = addr("192.0.2.7:4000");
    world.bind("192.0.2.7:4000", &agent(1, "db", 10));
    for port in 1..=100 {
        let from = SocketAddr::from(([192, 0, 2, 1], port));
        let bind = empty_bind(&mut world, from, port);
        line_up(&mut world, from, bind);
    }
    let bind = empty_bind(&mut world, bound, 1);
    line_up(&mut world, bound, bind);
    let turn = turns(&mut world).iter().position(|place| *place == bound.into());
    assert!(turn.is_some_and(|turn| turn < 2), "{turn:?}");
}

#[test]
fn one_network_leaves_room_in_the_line_for_the_next() {
    let mut world = World::new(Access::Open, Limits::allowlisted());
    for port in 1..=10_000 {
        let from = SocketAddr::from(([192, 0, 2, 1], port));
        let bind = empty_bind(&mut world, from, port);
        line_up(&mut world, from, bind);
    }
    let full = waiting(&world);
    assert!(full < 8_000, "{full}");
    assert_eq!(world.relay.counters().dropped(DropReason::Quota), 10_000 - full as u64);
    let other = addr("198.51.100.1:1");
    let bind = empty_bind(&mut world, other, 1);
    line_up(&mut world, other, bind);
    assert_eq!(waiting(&world), full + 1);
}

#[test]
fn a_stream_that_ended_has_no_turn() {
    let mut world = World::open();
    let place = Place::Stream(StreamId(1), addr("192.0.2.1:1"));
    let bind = empty_bind(&mut world, place, 1);
    line_up(&mut world, place, bind);
    assert_eq!(waiting(&world), 1);
    world.relay.stream_ended(place, world.now);
    assert!(turns(&mut world).is_empty());
}
