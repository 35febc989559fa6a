//! Clients that come through streams, beside those that come by UDP.

use std::time::Duration;

use crate::common::{Client, Out, PACKET, World, addr, agent, bound_in, visiting_in};
use peerage_model::relay::frame::{self, Destination, Frame, Tag};
use peerage_relay_proto::{Access, Decision, DropReason, Limits, Place, Rate, StreamId};

const HOME: &str = "192.0.2.7:4000";
const DIALER: &str = "198.51.100.9:5000";

fn stream(number: u64, from: &str) -> Place {
    Place::Stream(StreamId(number), addr(from))
}

/// Where a packet from one client to another leaves.
fn place_of(world: &mut World, from: Place, client: &Client, to: &Client) -> Option<Place> {
    let mut bytes = client.frame(Destination::Endpoint(to.id), PACKET);
    let len = bytes.len();
    match world.relay.handle(&world.ingress(from), &mut bytes, len).decision {
        Decision::Forward(forward) => Some(forward.to),
        Decision::Drop | Decision::Reply(_) => None,
    }
}

fn visit_by(world: &mut World, place: Place, earlier: Option<&Client>) -> Client {
    let earlier = earlier.map(|client| (client.id, client.tag));
    let reply = world.try_visit(place, earlier).expect_reply();
    let (grant, id) = visiting_in(&reply);
    assert_eq!(grant.observed, place.address());
    Client { address: grant.observed, id, tag: grant.tag, session: None }
}

#[test]
fn a_visitor_on_a_stream_and_an_agent_on_udp_reach_each_other() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let bound = world.bind(HOME, &db);
    let place = stream(1, DIALER);
    let visitor = visit_by(&mut world, place, None);
    let out = world.send(place, &visitor.frame(Destination::Route(db.id.routing_id()), PACKET));
    bound.assert_got(&out, &visitor, PACKET);
    assert_eq!(place_of(&mut world, addr(HOME).into(), &bound, &visitor), Some(place));
    assert_eq!(place_of(&mut world, place, &visitor, &bound), Some(addr(HOME).into()));
}

#[test]
fn a_binding_changes_between_udp_and_a_stream_and_keeps_tag_and_flows() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let bound = world.bind(HOME, &db);
    let visitor = world.visit(DIALER);
    assert!(world.send_to_route(&visitor, db.id.routing_id()).was_forwarded());
    assert!(world.send_to(&bound, visitor.id).was_forwarded());

    let place = stream(7, HOME);
    let (out, _) = world.try_bind(place, &db);
    assert_eq!(bound_in(&out.expect_reply()).tag, bound.tag);
    assert_eq!(world.relay.occupancy().flows, 1);
    assert_eq!(place_of(&mut world, addr(DIALER).into(), &visitor, &bound), Some(place));

    world.bind(HOME, &db);
    assert_eq!(place_of(&mut world, addr(DIALER).into(), &visitor, &bound), Some(addr(HOME).into()));
    assert!(!world.relay.knows(place), "a client is at one place");
    assert_eq!(world.relay.occupancy().bound, 1);
}

#[test]
fn a_visitor_keeps_its_id_from_udp_to_a_stream() {
    let mut world = World::open();
    let before = world.visit(DIALER);
    let after = visit_by(&mut world, stream(1, "203.0.113.4:9"), Some(&before));
    assert_eq!((after.id, after.tag), (before.id, before.tag));
    assert_eq!(world.relay.occupancy().visitors, 1);
}

#[test]
fn a_cookie_of_one_place_is_worth_nothing_at_another() {
    let mut world = World::open();
    let (of_udp, _) = world.cookie(addr(DIALER));
    let (of_stream, _) = world.cookie(stream(1, DIALER));
    for (place, cookie) in [
        (stream(1, DIALER), of_udp),
        (addr(DIALER).into(), of_stream),
        (stream(2, DIALER), of_stream),
        (stream(1, "198.51.100.9:5001"), of_stream),
    ] {
        assert_eq!(world.send(place, &frame::visit(Tag([1; 6]), cookie, None)), Out::Nothing, "{place:?}");
    }
    assert_eq!(world.relay.counters().dropped(DropReason::BadCookie), 4);
    assert!(world.send(stream(1, DIALER), &frame::visit(Tag([1; 6]), of_stream, None)).reply_len() > 0);
}

#[test]
fn two_streams_from_one_address_are_two_clients() {
    let mut world = World::open();
    let one = visit_by(&mut world, stream(1, DIALER), None);
    let two = visit_by(&mut world, stream(2, DIALER), None);
    assert_ne!(one.id, two.id);
    assert_eq!(world.relay.occupancy().visitors, 2);
    let other = world.send(stream(2, DIALER), &frame::keepalive(one.tag, [1; 8]));
    assert_eq!(other, Out::Nothing, "a tag is of one client");
}

#[test]
fn who_comes_back_within_ten_seconds_of_its_streams_end_is_still_known() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let place = stream(1, HOME);
    let (out, _) = world.try_bind(place, &db);
    let tag = bound_in(&out.expect_reply()).tag;
    let visitor = world.visit(DIALER);
    assert!(world.send_to_route(&visitor, db.id.routing_id()).was_forwarded());

    world.relay.stream_ended(place, world.now);
    world.pass(Duration::from_secs(9));
    let (out, _) = world.try_bind(stream(2, HOME), &db);
    assert_eq!(bound_in(&out.expect_reply()).tag, tag);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.relay.occupancy().bound, 1);

    world.relay.stream_ended(stream(2, HOME), world.now);
    world.pass(Duration::from_secs(10));
    world.pass(Duration::from_secs(10));
    assert_eq!(world.relay.occupancy().bound, 0, "nobody came back");
}

#[test]
fn stun_is_not_spoken_on_a_stream() {
    let mut world = World::open();
    let mut request = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
    request.extend_from_slice(&[7; 12]);
    assert!(world.send(addr(DIALER), &request).reply_len() > 0, "it is a good request");
    assert_eq!(world.send(stream(1, DIALER), &request), Out::Nothing);
}

#[test]
fn streams_of_one_network_begin_at_the_rate_of_handshakes() {
    let handshakes = Rate::new(50, 200);
    let mut world = World::new(Access::Open, Limits { handshakes, ..Limits::open() });
    let admitted =
        |world: &mut World, from: &str| (0..1000).filter(|_| world.relay.admit_stream(addr(from), world.now)).count();
    assert_eq!(admitted(&mut world, DIALER), 200);
    assert_eq!(admitted(&mut world, "198.51.100.77:1"), 0, "the same network");
    assert_eq!(admitted(&mut world, HOME), 200);
    world.pass(Duration::from_secs(1));
    assert_eq!(admitted(&mut world, DIALER), 50);
}

#[test]
fn an_agent_on_a_stream_is_told_of_a_drain_there() {
    let mut world = World::open();
    let place = stream(3, HOME);
    let (out, bind) = world.try_bind(place, &agent(1, "db", 10));
    out.expect_reply();
    world.relay.drain(world.now, Duration::from_secs(5));
    let notice = world.relay.poll_transmit(world.now).expect("it is told");
    assert_eq!(notice.to, place);
    assert!(bind.session.verifies(notice.frame.as_bytes()));
    assert!(matches!(Frame::parse(notice.frame.as_bytes()), Ok((_, Frame::Drain { grace: 5, .. }))));
}
