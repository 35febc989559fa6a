//! Who can bind, and who cannot.

use std::net::SocketAddr;
use std::time::Duration;

use crate::common::{
    Agent, Out, WALL, World, addr, agent, agent_until, authority, bound_in, cookie_in, refusal_in, visiting_in,
};
use peerage_model::relay::frame::keys;
use peerage_model::relay::frame::{self, AliveFlags, Cookie, Destination, Frame, Refusal, Tag};
use peerage_model::{AgreementSecret, InstanceId};
use peerage_relay_proto::{Access, Decision, DropReason, Limits, Proof};

const HOME: &str = "192.0.2.7:4000";
const ELSEWHERE: &str = "198.51.100.9:5000";

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn an_agent_binds_in_two_round_trips_and_learns_its_address() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let client = world.bind(HOME, &db);
    assert_eq!(client.id.0, InstanceId::of_key(&db.instance.public()).0);
    assert_eq!(world.relay.occupancy().bound, 1);
}

#[test]
fn a_bind_is_looked_at_away_from_the_relay_which_goes_on_and_may_change_its_mind() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let bind = bind_of(&mut world, &db);
    let (first, again) = (proof_in(&mut world, &bind), proof_in(&mut world, &bind));
    assert_eq!(world.relay.occupancy().bound, 0);
    world.bind(ELSEWHERE, &agent(2, "web", 20));
    assert!(matches!(world.relay.conclude(first.check()), Decision::Reply(_)));
    assert_eq!(world.relay.occupancy().bound, 2);
    assert!(matches!(world.relay.conclude(again.check()), Decision::Drop), "the same BIND is a replay by then");
    let late = bind_of(&mut world, &db);
    let late = proof_in(&mut world, &late);
    world.relay.drain(world.now, secs(5));
    let Decision::Reply(reply) = world.relay.conclude(late.check()) else { panic!("a refusal") };
    assert_eq!(refusal_in(reply.as_bytes()), Refusal::Draining);
}

/// A fresh BIND of `agent`, from [`HOME`].
fn bind_of(world: &mut World, agent: &Agent) -> Vec<u8> {
    let (cookie, _) = world.cookie(addr(HOME));
    let (e, relay) = (world.fresh_key(), world.relay_key());
    keys::bind(Tag([3; 6]), cookie, &e, &relay, &agent.instance, &agent.credential).expect("good keys").frame
}

fn proof_in(world: &mut World, bind: &[u8]) -> Proof {
    world.relay.receive(&world.ingress(addr(HOME)), &mut bind.to_vec(), bind.len());
    world.relay.poll_proof().expect("it waits for its turn")
}

#[test]
fn a_forged_cookie_gets_no_answer() {
    let mut world = World::open();
    let (e, relay, db) = (world.fresh_key(), world.relay_key(), agent(1, "db", 10));
    let forged = Cookie([5; 16]);
    let bind = keys::bind(Tag([1; 6]), forged, &e, &relay, &db.instance, &db.credential).expect("good keys");
    assert_eq!(world.send(addr(HOME), &bind.frame), Out::Nothing);
    assert_eq!(world.send(addr(HOME), &frame::visit(Tag([1; 6]), forged, None)), Out::Nothing);
    assert_eq!(world.relay.counters().dropped(DropReason::BadCookie), 2);
}

#[test]
fn a_cookie_of_another_address_gets_no_answer() {
    let mut world = World::open();
    let (cookie, _) = world.cookie(addr(ELSEWHERE));
    let visit = frame::visit(Tag([1; 6]), cookie, None);
    assert_eq!(world.send(addr(HOME), &visit), Out::Nothing);
    let (other_port, _) = world.cookie(addr("192.0.2.7:4001"));
    assert_eq!(world.send(addr(HOME), &frame::visit(Tag([1; 6]), other_port, None)), Out::Nothing);
}

#[test]
fn a_cookie_lives_for_at_least_one_minute_and_less_than_two() {
    let mut world = World::open();
    let (cookie, _) = world.cookie(addr(HOME));
    let visit = frame::visit(Tag([1; 6]), cookie, None);
    world.pass(secs(60));
    visiting_in(&world.send(addr(HOME), &visit).expect_reply());
    world.pass(secs(60));
    assert_eq!(world.send(addr(HOME), &visit), Out::Nothing);
}

#[test]
fn somebody_elses_credential_does_not_bind_without_its_instance_key() {
    let mut world = World::open();
    let stolen = Agent { instance: AgreementSecret::from_bytes([66; 32]), ..agent(1, "db", 10) };
    let (out, _) = world.try_bind(addr(HOME), &stolen);
    assert_eq!(out, Out::Nothing);
    assert_eq!(world.relay.occupancy().bound, 0);
}

#[test]
fn an_expired_passport_is_refused_with_the_reason() {
    let mut world = World::open();
    let (out, bind) = world.try_bind(addr(HOME), &agent_until(1, "db", 10, WALL));
    let reply = out.expect_reply();
    assert_eq!(refusal_in(&reply), Refusal::Credential);
    assert!(bind.refusal.verifies(&reply), "REFUSED is authentic");
}

#[test]
fn a_bind_sealed_to_another_relays_key_gets_no_answer() {
    let mut world = World::open();
    let (cookie, _) = world.cookie(addr(HOME));
    let other = AgreementSecret::from_bytes([78; 32]).public();
    let (e, db) = (world.fresh_key(), agent(1, "db", 10));
    let bind = keys::bind(Tag([1; 6]), cookie, &e, &other, &db.instance, &db.credential).expect("good keys");
    assert_eq!(world.send(addr(HOME), &bind.frame), Out::Nothing);
}

#[test]
fn an_authority_that_is_not_listed_is_refused_and_one_that_is_binds() {
    let listed = [authority(1).fingerprint()].into();
    let mut world = World::new(Access::Only(listed), Limits::allowlisted());
    let (out, _) = world.try_bind(addr(HOME), &agent(2, "db", 10));
    assert_eq!(refusal_in(&out.expect_reply()), Refusal::Authority);
    world.bind(HOME, &agent(1, "db", 10));
}

#[test]
fn nobody_can_be_reached_under_somebody_elses_routing_id() {
    let mut world = World::open();
    // Another authority may use the same name; the routing id is another.
    world.bind(ELSEWHERE, &agent(2, "db", 20));
    let visitor = world.visit(HOME);
    let real = agent(1, "db", 10);
    assert_eq!(world.send_to_route(&visitor, real.id.routing_id()), Out::Nothing);
}

#[test]
fn no_flipped_bit_in_a_bind_binds() {
    let mut world = World::new(
        Access::Open,
        Limits { handshakes: peerage_relay_proto::Rate::new(1_000_000, 1_000_000), ..Limits::open() },
    );
    let (cookie, _) = world.cookie(addr(HOME));
    let (e, relay, db) = (world.fresh_key(), world.relay_key(), agent(1, "db", 10));
    let bind = keys::bind(Tag([1; 6]), cookie, &e, &relay, &db.instance, &db.credential).expect("good keys");
    for bit in (0..bind.frame.len() * 8).step_by(7) {
        let mut bad = bind.frame.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(world.send(addr(HOME), &bad), Out::Nothing, "bit {bit}");
    }
    assert_eq!(world.relay.occupancy().bound, 0);
}

#[test]
fn a_lost_bound_is_sent_again_for_the_same_bind() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let (out, bind) = world.try_bind(addr(HOME), &db);
    assert_eq!(world.send(addr(HOME), &bind.frame), out);
    assert_eq!(world.relay.counters().binds, 1);
}

#[test]
fn a_recorded_bind_cannot_pull_a_binding_back_to_an_address_it_left() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let (_, recorded) = world.try_bind(addr(HOME), &db);
    let moved = world.bind(ELSEWHERE, &db);
    assert_eq!(world.send(addr(HOME), &recorded.frame), Out::Nothing);
    let visitor = world.visit("203.0.113.1:1");
    let out = world.send_to_route(&visitor, db.id.routing_id());
    moved.assert_got(&out, &visitor, crate::common::PACKET);
}

#[test]
fn a_renewed_binding_keeps_its_tag_so_nothing_in_flight_is_lost() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let before = world.bind(HOME, &db);
    let after = world.bind(HOME, &db);
    assert_eq!(before.tag, after.tag);
    assert_eq!(world.relay.occupancy().bound, 1);
}

#[test]
fn a_binding_ends_with_its_passport() {
    let mut world = World::open();
    let db = agent_until(1, "db", 10, WALL.plus(secs(60)));
    let client = world.bind(HOME, &db);
    world.pass(secs(59));
    let keepalive = frame::keepalive(client.tag, [1; 8]);
    let alive = world.send(client.address, &keepalive).expect_reply();
    assert!(matches!(Frame::parse(&alive), Ok((_, Frame::Alive { .. }))));
    world.pass(secs(1));
    cookie_in(&world.send(client.address, &keepalive).expect_reply(), client.tag);
}

#[test]
fn a_silent_binding_ends_after_ninety_seconds_and_a_kept_alive_one_does_not() {
    let mut world = World::open();
    let (silent, kept) = (agent(1, "silent", 10), agent(1, "kept", 11));
    world.bind(HOME, &silent);
    let client = world.bind(ELSEWHERE, &kept);
    for _ in 0..4 {
        world.pass(secs(25));
        world.send(client.address, &frame::keepalive(client.tag, [1; 8]));
    }
    assert_eq!(world.relay.occupancy().bound, 1);
    let visitor = world.visit("203.0.113.1:1");
    assert!(world.send_to_route(&visitor, kept.id.routing_id()).was_forwarded());
    assert_eq!(world.send_to_route(&visitor, silent.id.routing_id()), Out::Nothing);
}

/// What the relay answers to WHO_ELSE.
fn who_else(world: &mut World, from: SocketAddr, tag: Tag) -> Option<Vec<[u8; 8]>> {
    match world.send(from, &frame::who_else(tag, [7; 8])) {
        Out::Nothing => None,
        out => {
            let reply = out.expect_reply();
            let (_, Frame::Others { nonce: [7, ..], ids }) = Frame::parse(&reply).expect("it is a frame") else {
                panic!("it is OTHERS");
            };
            Some(ids.to_vec())
        }
    }
}

#[test]
fn an_instance_is_told_of_the_others_of_its_own_agent_that_were_heard_lately() {
    let mut world = World::open();
    let (one, two, gone) = (agent(1, "db", 10), agent(1, "db", 11), agent(1, "db", 12));
    world.bind("203.0.113.3:3", &gone);
    world.pass(secs(20));
    let client = world.bind(HOME, &one);
    world.bind(ELSEWHERE, &two);
    world.bind("203.0.113.4:4", &agent(1, "web", 13));
    world.pass(secs(11));
    world.send(client.address, &frame::keepalive(client.tag, [1; 8]));
    let told = who_else(&mut world, client.address, client.tag);
    assert_eq!(told, Some(vec![InstanceId::of_key(&two.instance.public()).0]));
}

#[test]
fn a_keepalive_says_whether_there_are_others() {
    let mut world = World::open();
    let client = world.bind(HOME, &agent(1, "db", 10));
    let says = |world: &mut World| {
        let alive = world.send(client.address, &frame::keepalive(client.tag, [1; 8])).expect_reply();
        matches!(Frame::parse(&alive), Ok((_, Frame::Alive { flags: AliveFlags { others: true, .. }, .. })))
    };
    assert!(!says(&mut world));
    world.bind(ELSEWHERE, &agent(1, "db", 11));
    assert!(says(&mut world));
}

#[test]
fn visitors_and_who_guesses_learn_of_nobodys_instances() {
    let mut world = World::open();
    let client = world.bind(HOME, &agent(1, "db", 10));
    world.bind(ELSEWHERE, &agent(1, "db", 11));
    let visitor = world.visit("203.0.113.1:1");
    assert_eq!(who_else(&mut world, visitor.address, visitor.tag), None);
    assert_eq!(who_else(&mut world, client.address, Tag([0; 6])), None);
}

#[test]
fn of_very_many_instances_eight_are_told() {
    let mut world = World::open();
    let client = world.bind(HOME, &agent(1, "db", 10));
    for number in 11..40 {
        world.bind(&format!("203.0.113.{number}:1"), &agent(1, "db", number));
    }
    let told = who_else(&mut world, client.address, client.tag).expect("an answer");
    assert_eq!(told.len(), frame::MAX_OTHERS);
}

#[test]
fn a_changed_address_is_challenged_and_then_keeps_its_binding() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let client = world.bind(HOME, &db);
    let data = client.frame(Destination::Endpoint(client.id), crate::common::PACKET);
    let (cookie, _) = cookie_in(&world.send(addr(ELSEWHERE), &data).expect_reply(), client.tag);
    let session = client.session.clone().expect("bound");
    let moved = frame::moved(Tag([8; 6]), cookie, client.id, 1, |body| session.mac(body));
    let reply = world.send(addr(ELSEWHERE), &moved).expect_reply();
    assert!(session.verifies(&reply));
    assert_eq!(bound_in(&reply).observed, addr(ELSEWHERE));
    assert_eq!(bound_in(&reply).tag, client.tag);

    let again = world.send(addr(ELSEWHERE), &moved).expect_reply();
    assert_eq!(again, reply, "a retransmission gets the same answer");

    let visitor = world.visit("203.0.113.1:1");
    let Out::Forward(to, _) = world.send_to_route(&visitor, db.id.routing_id()) else {
        panic!("the agent is still found");
    };
    assert_eq!(to, addr(ELSEWHERE));
}

#[test]
fn a_recorded_move_cannot_pull_a_binding_back() {
    let mut world = World::open();
    let client = world.bind(HOME, &agent(1, "db", 10));
    let session = client.session.clone().expect("bound");
    let mut relocate = |to: &str, counter| {
        let (cookie, _) = world.cookie(addr(to));
        let frame = frame::moved(Tag([8; 6]), cookie, client.id, counter, |body| session.mac(body));
        (world.send(addr(to), &frame), frame)
    };
    let (_, recorded) = relocate(ELSEWHERE, 1);
    let (out, _) = relocate("203.0.113.5:9", 2);
    bound_in(&out.expect_reply());
    assert_eq!(world.send(addr(ELSEWHERE), &recorded), Out::Nothing);
}

#[test]
fn a_move_without_the_session_key_gets_no_answer() {
    let mut world = World::open();
    let client = world.bind(HOME, &agent(1, "db", 10));
    let (cookie, _) = world.cookie(addr(ELSEWHERE));
    let forged = frame::moved(Tag([8; 6]), cookie, client.id, 1, |_| [0; 16]);
    assert_eq!(world.send(addr(ELSEWHERE), &forged), Out::Nothing);
}

#[test]
fn a_visitor_keeps_its_id_over_a_change_of_address_if_it_knows_its_tag() {
    let mut world = World::open();
    let visitor = world.visit(HOME);
    let reply = world.try_visit(addr(ELSEWHERE), Some((visitor.id, visitor.tag))).expect_reply();
    assert_eq!(visiting_in(&reply).1, visitor.id);
    let thief = world.try_visit(addr("203.0.113.5:9"), Some((visitor.id, Tag([0; 6])))).expect_reply();
    assert_ne!(visiting_in(&thief).1, visitor.id);
}

#[test]
fn nobody_visits_under_a_bound_agents_id() {
    let mut world = World::open();
    let client = world.bind(HOME, &agent(1, "db", 10));
    let reply = world.try_visit(addr(ELSEWHERE), Some((client.id, client.tag))).expect_reply();
    assert_ne!(visiting_in(&reply).1, client.id);
    assert_eq!(world.relay.occupancy().bound, 1);
}

#[test]
fn a_replayed_visit_does_not_end_a_binding() {
    let mut world = World::open();
    let (cookie, _) = world.cookie(addr(HOME));
    let visit = frame::visit(Tag([1; 6]), cookie, None);
    world.send(addr(HOME), &visit);
    world.bind(HOME, &agent(1, "db", 10));
    assert_eq!(world.send(addr(HOME), &visit), Out::Nothing);
    assert_eq!(world.relay.occupancy().bound, 1);
}

#[test]
fn a_draining_relay_tells_every_binding_and_takes_no_newcomers() {
    let mut world = World::open();
    let (db, web) = (agent(1, "db", 10), agent(1, "web", 11));
    let bound = [world.bind(HOME, &db), world.bind(ELSEWHERE, &web)];
    let visitor = world.visit("203.0.113.1:1");
    let (cookie, _) = world.cookie(addr("203.0.113.2:1"));
    world.relay.drain(world.now, secs(30));

    let mut told = Vec::new();
    while let Some(notice) = world.relay.poll_transmit(world.now) {
        let client = bound.iter().find(|client| notice.to == client.address.into()).expect("a binding");
        let frame = notice.frame.as_bytes();
        assert!(client.session.as_ref().expect("bound").verifies(frame));
        assert!(matches!(Frame::parse(frame), Ok((_, Frame::Drain { grace: 30, .. }))));
        told.push(notice.to);
    }
    assert_eq!(told.len(), 2, "each is told once");

    assert_eq!(world.send(addr("203.0.113.3:1"), &frame::hello(Tag([1; 6]))), Out::Nothing);
    assert_eq!(world.send(addr("203.0.113.2:1"), &frame::visit(Tag([1; 6]), cookie, None)), Out::Nothing);
    assert!(world.send_to_route(&visitor, db.id.routing_id()).was_forwarded(), "it still forwards");
    let alive = world.send(bound[0].address, &frame::keepalive(bound[0].tag, [1; 8])).expect_reply();
    assert!(matches!(Frame::parse(&alive), Ok((_, Frame::Alive { flags: AliveFlags { draining: true, .. }, .. }))));
}
