//! Where packets go, and where they do not.

use std::time::Duration;

use crate::common::{Client, Out, PACKET, World, addr, agent, cookie_in};
use peerage_model::RoutingId;
use peerage_model::relay::frame::{self, Destination, ENDPOINT_HEADER, EndpointId, Frame, Tag};
use peerage_relay_proto::limits::CHOICES;
use peerage_relay_proto::{Access, Decision, DropReason, Limits, Quota, Rate};

const HOME: &str = "192.0.2.7:4000";
const DIALER: &str = "198.51.100.9:5000";

/// A bound agent, a visitor, and both past first contact.
fn flow() -> (World, Client, Client) {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let bound = world.bind(HOME, &db);
    let visitor = world.visit(DIALER);
    assert!(world.send_to_route(&visitor, db.id.routing_id()).was_forwarded());
    assert!(world.send_to(&bound, visitor.id).was_forwarded());
    (world, bound, visitor)
}

/// `count` segments of equal size under one header, as GSO sends them.
fn batch(from: &Client, to: EndpointId, count: usize, packet: &[u8]) -> Vec<u8> {
    from.frame(Destination::Endpoint(to), packet).repeat(count)
}

#[test]
fn a_first_packet_reaches_the_agent_and_its_answer_the_visitor() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let bound = world.bind(HOME, &db);
    let visitor = world.visit(DIALER);
    let out = world.send_to_route(&visitor, db.id.routing_id());
    bound.assert_got(&out, &visitor, PACKET);
    let out = world.send_to(&bound, visitor.id);
    visitor.assert_got(&out, &bound, PACKET);
    let out = world.send_to(&visitor, bound.id);
    bound.assert_got(&out, &visitor, PACKET);
    assert_eq!(world.relay.occupancy().flows, 1);
}

#[test]
fn first_contact_passes_ten_packets_a_second_until_the_destination_answers() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let bound = world.bind(HOME, &db);
    let visitor = world.visit(DIALER);
    let passed = |world: &mut World, n| {
        (0..n).filter(|_| world.send_to_route(&visitor, db.id.routing_id()).was_forwarded()).count()
    };
    assert_eq!(passed(&mut world, 50), 10);
    world.pass(Duration::from_secs(1));
    assert_eq!(passed(&mut world, 50), 10);
    world.send_to(&bound, visitor.id);
    let after = (0..50).filter(|_| world.send_to(&visitor, bound.id).was_forwarded()).count();
    assert_eq!(after, 50, "the flow is no longer first contact");
}

#[test]
fn a_source_cannot_tell_an_agent_that_exists_from_one_that_does_not() {
    // Two worlds, one with the agent. The same inputs from a visitor must have the same outcome at the visitor, down
    // to which of its other packets still pass.
    let observe = |exists: bool| {
        let mut world = World::open();
        let (db, friend) = (agent(1, "db", 10), agent(3, "friend", 30));
        if exists {
            world.bind(HOME, &db);
        }
        world.bind("192.0.2.8:4000", &friend);
        let visitor = world.visit(DIALER);
        let mut seen = Vec::new();
        for round in 0..40_u8 {
            let out = world.send_to_route(&visitor, db.id.routing_id());
            seen.push(out.reply_len());
            seen.push(world.send_to(&visitor, agent_endpoint(&db)).reply_len());
            world.send_to_route(&visitor, RoutingId([round; 16]));
            seen.push(usize::from(world.send_to_route(&visitor, friend.id.routing_id()).was_forwarded()));
            world.pass(Duration::from_millis(130));
        }
        seen
    };
    assert_eq!(observe(true), observe(false));
}

fn agent_endpoint(agent: &crate::common::Agent) -> EndpointId {
    peerage_model::InstanceId::of_key(&agent.instance.public()).into()
}

#[test]
fn trying_many_destinations_at_once_is_limited() {
    let mut world = World::open();
    let last = agent(1, "last", 10);
    world.bind(HOME, &last);
    let visitor = world.visit(DIALER);
    for n in 0..32 {
        world.send_to_route(&visitor, RoutingId([n; 16]));
    }
    assert_eq!(world.send_to_route(&visitor, last.id.routing_id()), Out::Nothing);
    assert_eq!(world.relay.counters().dropped(DropReason::FirstContact), 1);
    world.pass(Duration::from_millis(250));
    assert!(world.send_to_route(&visitor, last.id.routing_id()).was_forwarded(), "four a second");
    assert_eq!(world.send_to_route(&visitor, RoutingId([99; 16])), Out::Nothing, "and no more");
}

#[test]
fn an_agent_most_of_whose_peers_are_down_reaches_the_one_that_is_up() {
    let mut world = World::open();
    let up = agent(1, "up", 10);
    let bound = world.bind(HOME, &up);
    let dialer = world.visit(DIALER);
    for n in 0..16 {
        world.send_to_route(&dialer, RoutingId([n; 16]));
        world.pass(Duration::from_millis(10));
    }
    assert!(world.send_to_route(&dialer, up.id.routing_id()).was_forwarded());
    // The younger of those that are down are tried again, and push nobody out.
    for n in 1..16 {
        world.send_to_route(&dialer, RoutingId([n; 16]));
    }
    assert!(world.send_to(&bound, dialer.id).was_forwarded(), "its answer finds the way back");
}

#[test]
fn an_agent_cannot_send_to_a_visitor_that_did_not_reach_it() {
    let (mut world, _, visitor) = flow();
    let stranger = world.bind("203.0.113.1:1", &agent(2, "stranger", 20));
    assert_eq!(world.send_to(&stranger, visitor.id), Out::Nothing);
    let other = world.visit("203.0.113.2:1");
    assert_eq!(world.send_to(&other, visitor.id), Out::Nothing);
}

#[test]
fn an_idle_flow_is_first_contact_again() {
    let (mut world, bound, visitor) = flow();
    for _ in 0..8 {
        world.pass(Duration::from_secs(25));
        for client in [&bound, &visitor] {
            world.send(client.address, &frame::keepalive(client.tag, [0; 8]));
        }
    }
    assert_eq!(world.relay.occupancy().flows, 0);
    let passed = (0..50).filter(|_| world.send_to(&visitor, bound.id).was_forwarded()).count();
    assert_eq!(passed, 10);
}

#[test]
fn a_frame_with_a_wrong_tag_goes_nowhere() {
    let (mut world, bound, visitor) = flow();
    let forged = Client { tag: Tag([0; 6]), ..visitor };
    assert_eq!(world.send_to(&forged, bound.id), Out::Nothing);
    assert_eq!(world.relay.counters().dropped(DropReason::WrongTag), 1);
}

#[test]
fn replicas_share_dialers_and_a_retransmission_reaches_the_same_one() {
    let mut world = World::open();
    let replicas = [agent(1, "db", 10), agent(1, "db", 11), agent(1, "db", 12)];
    let route = replicas[0].id.routing_id();
    for (n, replica) in replicas.iter().enumerate() {
        world.bind(&format!("192.0.2.{n}:4000"), replica);
    }
    let mut chosen = Vec::new();
    for n in 0..60 {
        let visitor = world.visit(&format!("198.51.100.{n}:5000"));
        let Out::Forward(first, _) = world.send_to_route(&visitor, route) else {
            panic!("one of them is reached");
        };
        let Out::Forward(second, _) = world.send_to_route(&visitor, route) else {
            panic!("one of them is reached");
        };
        assert_eq!(first, second);
        chosen.push(first);
    }
    chosen.sort();
    chosen.dedup();
    assert_eq!(chosen.len(), 3, "each replica gets some of 60 dialers");
}

#[test]
fn a_new_replica_does_not_take_over_first_contacts_that_are_under_way() {
    let mut world = World::open();
    let route = agent(1, "db", 10).id.routing_id();
    let first = world.bind("192.0.2.10:4000", &agent(1, "db", 10));
    let visitors: Vec<_> = (0..20).map(|n| world.visit(&format!("198.51.100.{n}:5000"))).collect();
    for visitor in &visitors {
        world.send_to_route(visitor, route);
    }
    world.bind("192.0.2.11:4000", &agent(1, "db", 11));
    for visitor in &visitors {
        let out = world.send_to_route(visitor, route);
        first.assert_got(&out, visitor, PACKET);
    }
}

/// Three replicas, a visitor, and the place in the list of the one that its first packet reaches.
fn replicas() -> (World, Vec<Client>, Client, RoutingId, usize) {
    let mut world = World::open();
    let agents = [agent(1, "db", 10), agent(1, "db", 11), agent(1, "db", 12)];
    let bound: Vec<_> =
        agents.iter().enumerate().map(|(n, agent)| world.bind(&format!("192.0.2.{n}:4000"), agent)).collect();
    let visitor = world.visit(DIALER);
    let route = agents[0].id.routing_id();
    let first = reached(&mut world, &bound, &visitor, route);
    (world, bound, visitor, route, first)
}

/// Which of `bound` a first packet reaches.
fn reached(world: &mut World, bound: &[Client], visitor: &Client, route: RoutingId) -> usize {
    let Out::Forward(to, _) = world.send_to_route(visitor, route) else { panic!("one of them is reached") };
    bound.iter().position(|client| client.address == to).expect("it is one of them")
}

#[test]
fn first_packets_that_nobody_answers_try_every_instance_in_turn() {
    let (mut world, bound, visitor, route, first) = replicas();
    world.pass(Duration::from_millis(700));
    assert_eq!(reached(&mut world, &bound, &visitor, route), first, "it may still answer");
    let mut tried = vec![first];
    for _ in 0..3 {
        world.pass(Duration::from_millis(750));
        tried.push(reached(&mut world, &bound, &visitor, route));
    }
    assert_eq!(tried[3], first, "then they begin anew");
    tried.sort_unstable();
    tried.dedup();
    assert_eq!(tried, [0, 1, 2]);
}

#[test]
fn of_very_many_replicas_each_dialer_tries_some_and_all_get_their_share() {
    let mut world = World::open();
    let agents: Vec<_> = (0..100).map(|n| agent(1, "db", n)).collect();
    let route = agents[0].id.routing_id();
    let bound: Vec<_> =
        agents.iter().enumerate().map(|(n, agent)| world.bind(&format!("192.0.{n}.1:4000"), agent)).collect();
    let mut tried = vec![0; bound.len()];
    for dialer in 0..20 {
        let visitor = world.visit(&format!("198.51.100.{dialer}:5000"));
        let first = reached(&mut world, &bound, &visitor, route);
        tried[first] += 1;
        for _ in 1..CHOICES {
            world.pass(Duration::from_millis(750));
            tried[reached(&mut world, &bound, &visitor, route)] += 1;
        }
        world.pass(Duration::from_millis(750));
        assert_eq!(reached(&mut world, &bound, &visitor, route), first, "then it begins anew");
        for client in &bound {
            world.send(client.address, &frame::keepalive(client.tag, [0; 8]));
        }
    }
    assert!(tried.iter().all(|times| (1..=20).contains(times)), "{tried:?}");
}

#[test]
fn an_instance_that_answers_keeps_its_dialer_until_it_falls_silent() {
    let (mut world, bound, visitor, route, first) = replicas();
    for _ in 0..5 {
        assert!(world.send_to(&bound[first], visitor.id).was_forwarded());
        world.pass(Duration::from_secs(2));
        assert_eq!(reached(&mut world, &bound, &visitor, route), first);
    }
    world.pass(Duration::from_millis(750));
    assert_ne!(reached(&mut world, &bound, &visitor, route), first, "its last answer was to an earlier packet");
}

#[test]
fn an_instance_that_was_not_heard_for_long_is_the_last_choice() {
    let (mut world, bound, _, route, _) = replicas();
    world.pass(Duration::from_secs(31));
    let alive = &bound[1];
    world.send(alive.address, &frame::keepalive(alive.tag, [0; 8]));
    for n in 0..20 {
        let visitor = world.visit(&format!("203.0.113.{n}:5000"));
        assert_eq!(reached(&mut world, &bound, &visitor, route), 1);
    }
}

#[test]
fn an_agent_that_unbinds_is_forgotten_at_once_and_its_flows_with_it() {
    let (mut world, bound, visitor) = flow();
    let session = bound.session.as_ref().expect("it is bound");
    let unbind = frame::unbind(bound.tag, bound.id, |body| session.mac(body));
    assert_eq!(world.send(bound.address, &unbind), Out::Nothing, "nobody waits for an answer");
    assert_eq!((world.relay.occupancy().bound, world.relay.occupancy().flows), (0, 0));
    assert_eq!(world.send_to(&visitor, bound.id), Out::Nothing);
    assert_eq!(world.relay.counters().unbinds, 1);
}

#[test]
fn a_first_packet_goes_to_the_replica_that_stays_when_the_other_unbinds() {
    let (mut world, bound, visitor, route, first) = replicas();
    let session = bound[first].session.as_ref().expect("it is bound");
    // From an address that the relay has not seen: the MAC says who it is.
    world.send(addr("203.0.113.77:9"), &frame::unbind(bound[first].tag, bound[first].id, |body| session.mac(body)));
    assert_ne!(reached(&mut world, &bound, &visitor, route), first);
}

#[test]
fn nobody_else_can_unbind_an_agent() {
    let (mut world, bound, visitor) = flow();
    let session = bound.session.as_ref().expect("it is bound");
    let good = frame::unbind(bound.tag, bound.id, |body| session.mac(body));
    let mut forged =
        vec![frame::unbind(bound.tag, bound.id, |_| [0; 16]), frame::unbind(visitor.tag, visitor.id, |_| [0; 16])];
    forged.push(frame::unbind(Tag([0; 6]), bound.id, |body| session.mac(body)));
    forged.push(frame::unbind(bound.tag, visitor.id, |body| session.mac(body)));
    for forged in forged {
        assert_eq!(world.send(bound.address, &forged), Out::Nothing);
    }
    assert_eq!(world.relay.occupancy().bound, 1);
    // One of an earlier binding, repeated by an observer, does not end the next.
    world.send(bound.address, &good);
    world.bind(HOME, &agent(1, "db", 10));
    world.send(bound.address, &good);
    assert_eq!(world.relay.occupancy().bound, 1);
}

#[test]
fn a_batch_is_forwarded_in_place_by_one_decision() {
    let (mut world, bound, visitor) = flow();
    let mut bytes = batch(&visitor, bound.id, 40, &[0x40; 1200]);
    let len = bytes.len();
    let handled = world.relay.handle(&world.ingress(visitor.address), &mut bytes, 1216);
    assert_eq!(handled.consumed, len);
    let Decision::Forward(forward) = handled.decision else {
        panic!("forwarded");
    };
    assert_eq!((forward.range, forward.segment, forward.to), (0..len, 1216, bound.address.into()));
    for segment in bytes.chunks(1216) {
        let (tag, frame) = Frame::parse(segment).expect("each is a frame");
        assert_eq!(tag, bound.tag);
        assert_eq!(frame, Frame::From { source: visitor.id, packet: &[0x40; 1200] });
    }
}

#[test]
fn a_batch_for_two_destinations_is_cut_where_they_change() {
    let (mut world, bound, visitor) = flow();
    let mut bytes = batch(&visitor, bound.id, 3, &[0x40; 100]);
    bytes.extend(batch(&visitor, EndpointId([7; 8]), 2, &[0x40; 100]));
    bytes.extend(batch(&visitor, bound.id, 1, &[0x40; 10]));
    let ingress = world.ingress(visitor.address);
    let mut at = 0;
    let mut forwarded = Vec::new();
    while at < bytes.len() {
        let handled = world.relay.handle(&ingress, &mut bytes[at..], 116);
        if let Decision::Forward(forward) = handled.decision {
            forwarded.push(forward.range.len());
        }
        at += handled.consumed;
    }
    assert_eq!(forwarded, [3 * 116, 26]);
}

#[test]
fn a_segment_in_a_batch_that_is_no_packet_is_dropped_alone() {
    let (mut world, bound, visitor) = flow();
    let mut bytes = batch(&visitor, bound.id, 3, &[0x40; 100]);
    bytes[116 + ENDPOINT_HEADER] = 3; // STUN inside a frame
    let ingress = world.ingress(visitor.address);
    let (mut at, mut forwarded) = (0, 0);
    while at < bytes.len() {
        let handled = world.relay.handle(&ingress, &mut bytes[at..], 116);
        forwarded += usize::from(matches!(handled.decision, Decision::Forward(_)));
        at += handled.consumed;
    }
    assert_eq!(forwarded, 2);
}

#[test]
fn what_exceeds_a_quota_is_dropped_at_whole_packets() {
    let quota = Quota { bytes: Some(Rate::new(1_000, 1_000)), ..Quota::unlimited(10) };
    let mut world = World::new(Access::Open, Limits { authority: quota, ..Limits::open() });
    let db = agent(1, "db", 10);
    let bound = world.bind(HOME, &db);
    let visitor = world.visit(DIALER);
    world.send_to_route(&visitor, db.id.routing_id());
    world.send_to(&bound, visitor.id); // 33 bytes
    let mut bytes = batch(&visitor, bound.id, 20, &[0x40; 84]);
    let handled = world.relay.handle(&world.ingress(visitor.address), &mut bytes, 100);
    let Decision::Forward(forward) = handled.decision else {
        panic!("some of it is forwarded");
    };
    assert_eq!(forward.range, 0..900, "the destination's authority pays for the visitor");
    assert_eq!(world.relay.counters().dropped(DropReason::Quota), 11);
}

#[test]
fn a_known_frame_from_an_unknown_address_is_challenged_with_its_own_tag() {
    let (mut world, bound, visitor) = flow();
    let data = visitor.frame(Destination::Endpoint(bound.id), PACKET);
    let reply = world.send(addr("203.0.113.77:1"), &data).expect_reply();
    cookie_in(&reply, visitor.tag);
    assert!(reply.len() <= data.len());
    let short = visitor.frame(Destination::Endpoint(bound.id), &PACKET[..15]);
    assert_eq!(world.send(addr("203.0.113.77:1"), &short), Out::Nothing);
}

#[test]
fn what_a_relay_says_gets_no_answer_from_a_relay() {
    let (mut world, bound, visitor) = flow();
    let mut said = vec![
        world.send(addr("203.0.113.1:1"), &frame::hello(Tag([1; 6]))),
        world.try_bind(addr("203.0.113.1:1"), &agent(2, "other", 20)).0,
        world.try_bind(addr("203.0.113.1:1"), &crate::common::agent_until(2, "late", 21, crate::common::WALL)).0,
        world.try_visit(addr("203.0.113.2:1"), None),
        world.send(bound.address, &frame::keepalive(bound.tag, [1; 8])),
        world.send_to(&visitor, bound.id),
        world.send(addr("203.0.113.2:1"), &stun_request()),
    ];
    for out in said.drain(..) {
        let bytes = match out {
            Out::Reply(bytes) | Out::Forward(_, bytes) => bytes,
            Out::Nothing => panic!("each of these is answered"),
        };
        for reflected_to in [addr("203.0.113.99:3478"), bound.address, visitor.address] {
            assert_eq!(world.send(reflected_to, &bytes), Out::Nothing, "{:?}", Frame::parse(&bytes));
        }
    }
}

fn stun_request() -> Vec<u8> {
    [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat()
}

#[test]
fn stun_is_answered_to_each_network_only_so_often() {
    let mut world = World::open();
    let answered = (0..500)
        .filter(|n| world.send(addr(&format!("203.0.113.{}:1", n % 200)), &stun_request()).reply_len() == 32)
        .count();
    assert_eq!(answered, 100);
    assert_eq!(world.send(addr("198.51.100.1:1"), &stun_request()).reply_len(), 32);
}
