//! Two agents meet: by relay at once, then directly where their NATs let them, and with a reason where not.

use peerage_engine::node::{DownReason, Event};
use peerage_engine::path::PathKind;
use peerage_sim::nat::NatKind;
use peerage_sim::{Sim, ms, secs};

#[test]
fn two_home_routers_start_on_a_relay_and_punch_within_a_second() {
    let mut sim = Sim::pair(NatKind::home_router(), NatKind::home_router());
    let up = sim.run_until(secs(5), |sim| sim.both_up("a", "b"));
    assert!(up.is_some(), "a session comes up by itself");
    assert_eq!(sim.path("a", "b"), Some(PathKind::Relayed), "data flows before any punch succeeds");
    let direct = sim.run_until(secs(1), |sim| sim.both_direct("a", "b"));
    assert!(direct.is_some(), "direct within a second of the session");
    assert_eq!(sim.path("a", "b"), Some(PathKind::Punched));
}

#[test]
fn a_request_is_at_the_server_after_a_round_trip_and_a_half_with_a_warm_relay() {
    let mut sim = Sim::strangers(1, NatKind::home_router(), NatKind::home_router());
    sim.run_for(secs(2));
    sim.trust("a", "b");
    let request = sim.request("a", "b", b"GET / HTTP/1.0\r\n\r\n");
    let answered = sim.run_until(secs(3), |sim| !sim.returned(request).is_empty());
    assert!(answered.is_some(), "the request is answered");
    // One way by relay is 10 + 5 + 5 + 10 ms.
    let one_way = ms(30);
    assert_eq!(sim.time_to_server(request), Some(one_way * 3));
    assert_eq!(sim.time_to_answer(request), Some(one_way * 4));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut sim = Sim::seeded_pair(seed, NatKind::symmetric_random(), NatKind::restricted_cone());
        let stream = sim.request("a", "b", &[7; 50_000]);
        sim.run_for(secs(20));
        assert_eq!(sim.returned(stream).len(), 50_000);
        let (trace, digest) = sim.trace();
        (trace.to_vec(), digest)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).1, run(8).1);
}

#[test]
fn packets_of_a_udp_flow_arrive_and_come_back() {
    let mut sim = Sim::pair(NatKind::home_router(), NatKind::none());
    sim.run_for(secs(3));
    let flow = sim.open_flow("a", "b");
    sim.run_for(secs(1));
    for n in 0..10 {
        sim.send_packet(flow, &[n; 400]);
    }
    sim.run_for(secs(1));
    let (arrived, returned) = sim.packets(flow);
    assert_eq!(arrived.len(), 10);
    assert_eq!(arrived, returned);
}

#[test]
fn the_first_packet_of_a_flow_arrives_with_a_session_and_without_one() {
    let mut sim = Sim::pair(NatKind::home_router(), NatKind::none());
    let early = sim.open_flow("a", "b");
    sim.send_packet(early, &[1; 400]);
    sim.run_for(secs(5));
    assert_eq!(sim.packets(early).1, [&[1; 400][..]], "the only packet of a flow that had to wait for a session");
    let late = sim.open_flow("a", "b");
    sim.send_packet(late, &[2; 400]);
    sim.run_for(secs(1));
    assert_eq!(sim.packets(late).1, [&[2; 400][..]], "the only packet of a flow whose session was there");
}

#[test]
fn a_packet_that_waited_and_is_too_large_for_the_path_is_lost_and_its_flow_goes_on() {
    let mut sim = Sim::pair(NatKind::home_router(), NatKind::none());
    let flow = sim.open_flow("a", "b");
    sim.send_packet(flow, &[1; 3000]);
    sim.send_packet(flow, &[2; 400]);
    sim.run_for(secs(5));
    sim.send_packet(flow, &[3; 400]);
    sim.run_for(secs(1));
    assert_eq!(sim.packets(flow).1, [&[2; 400][..], &[3; 400][..]]);
}

#[test]
fn a_session_that_nobody_uses_ends_as_not_in_use_and_not_as_a_failure() {
    let mut sim = Sim::pair(NatKind::home_router(), NatKind::none());
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    sim.run_for(secs(300));
    let ended = |wanted: DownReason| {
        sim.saw("a", |event| matches!(event, Event::SessionDown { reason, .. } if *reason == wanted))
    };
    assert!(ended(DownReason::Drained), "two minutes without a stream are its end");
    assert!(!ended(DownReason::TimedOut), "a peer that is well was not silent");
}
