//! What tunnels survive: moved agents, forgetful NATs, lost and restarted relays, restarted peers, jumping clocks.

use peerage_engine::node::{DownReason, Event};
use peerage_engine::path::PathKind;
use peerage_model::snapshot::PathMode;
use peerage_sim::link::{Bottleneck, Chance, LinkConfig};
use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Sim, ms, secs};

/// `a` and `b` behind home routers, on a direct path, with a stream between them.
fn direct_pair(seed: u64) -> (Sim, peerage_sim::StreamId) {
    let mut sim = Sim::seeded_pair(seed, NatKind::home_router(), NatKind::home_router());
    let direct = sim.run_until(secs(10), |sim| sim.both_direct("a", "b"));
    assert!(direct.is_some(), "two home routers meet");
    let stream = sim.open("a", "b");
    sim.write(stream, &[1; 10_000]);
    sim.run_for(secs(2));
    assert_eq!(sim.returned(stream).len(), 10_000);
    (sim, stream)
}

/// The stream goes on: more bytes arrive and come back within `limit`.
fn goes_on(sim: &mut Sim, stream: peerage_sim::StreamId, limit: std::time::Duration) {
    let wanted = sim.returned(stream).len() + 5_000;
    sim.write(stream, &[2; 5_000]);
    let took = sim.run_until(limit, |sim| sim.returned(stream).len() == wanted);
    let outcome = sim.outcome(stream);
    assert!(took.is_some(), "the stream does not go on within {limit:?}: {outcome:?}");
}

#[test]
fn when_the_direct_path_dies_the_stream_goes_on_by_relay_within_a_second() {
    let (mut sim, stream) = direct_pair(1);
    sim.block_direct(true);
    goes_on(&mut sim, stream, secs(1));
    assert_eq!(sim.path("a", "b"), Some(PathKind::Relayed));
    assert!(sim.why_not_better("a", "b").is_some());
    sim.block_direct(false);
    let back = sim.run_until(secs(60), |sim| sim.both_direct("a", "b"));
    assert!(back.is_some(), "the direct path is found again");
    goes_on(&mut sim, stream, secs(1));
}

#[test]
fn a_stream_survives_a_nat_that_forgets_everything() {
    let (mut sim, stream) = direct_pair(2);
    sim.flush_nat("a");
    goes_on(&mut sim, stream, secs(2));
    // Nothing can reach `b` before it sends something itself. That it hears nothing more makes it ask after a second.
    sim.flush_nat("b");
    goes_on(&mut sim, stream, secs(3));
}

#[test]
fn who_only_listens_is_found_again_after_no_longer_than_it_was_quiet_before() {
    for (seed, quiet) in [(0, 0), (1, 1), (2, 3), (3, 7)] {
        for kind in [NatKind::symmetric_random(), NatKind::home_router()] {
            let mut sim = Sim::seeded_pair(seed, kind, kind);
            sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
            let stream = sim.open("a", "b");
            sim.write(stream, b"hello");
            sim.run_for(secs(2));
            sim.write(stream, b"and then nothing");
            sim.run_for(ms(500) + secs(quiet));
            sim.flush_nat("b");
            goes_on(&mut sim, stream, secs(quiet + 3));
        }
    }
}

#[test]
fn a_stream_survives_an_agent_that_wakes_up_in_another_network() {
    for who in ["a", "b"] {
        let (mut sim, stream) = direct_pair(3);
        sim.move_to(who, NatKind::symmetric_random());
        goes_on(&mut sim, stream, secs(3));
    }
}

#[test]
fn a_stream_survives_an_outage_that_is_longer_than_a_session_that_only_idles_is_believed() {
    for seed in 0..6 {
        let (mut sim, stream) = direct_pair(seed);
        assert_eq!(sim.sessions("a", "b").len(), 2, "seed {seed}: both dialled, and one of the two idles");
        ["a", "b"].iter().for_each(|who| sim.cut_off(who, true));
        sim.run_for(secs(50));
        assert_eq!(sim.outcome(stream), &Outcome::Open, "seed {seed}");
        ["a", "b"].iter().for_each(|who| sim.cut_off(who, false));
        goes_on(&mut sim, stream, secs(12));
    }
}

#[test]
fn a_relayed_stream_survives_the_loss_of_its_relay() {
    for seed in 0..4 {
        let mut sim = Sim::seeded_pair(seed, NatKind::symmetric_random(), NatKind::symmetric_random());
        sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
        let stream = sim.open("a", "b");
        sim.write(stream, b"hello");
        sim.run_for(secs(2));
        sim.stop_relay("r1");
        let on_the_other = sim.request("a", "b", b"still there?");
        sim.run_for(secs(10));
        let again = sim.request("a", "b", b"and now?");
        sim.run_for(secs(3));
        assert_eq!(sim.returned(again), b"and now?", "seed {seed}: {:?}", sim.outcome(on_the_other));
    }
}

#[test]
fn a_relay_that_restarts_is_used_again() {
    let mut sim = Sim::pair(NatKind::symmetric_random(), NatKind::symmetric_random());
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    let stream = sim.open("a", "b");
    sim.write(stream, b"hello");
    sim.run_for(secs(2));
    for relay in ["r1", "r2"] {
        sim.stop_relay(relay);
        sim.start_relay(relay);
    }
    goes_on(&mut sim, stream, secs(5));
}

#[test]
fn both_relays_may_be_gone_while_a_direct_path_carries() {
    let (mut sim, stream) = direct_pair(4);
    sim.stop_relay("r1");
    sim.stop_relay("r2");
    sim.run_for(secs(200));
    goes_on(&mut sim, stream, secs(1));
}

#[test]
fn a_restarted_peer_is_found_again_within_two_seconds() {
    for seed in 0..10 {
        let (mut sim, _) = direct_pair(seed);
        let former = sim.sessions("a", "b")[0].instance;
        sim.restart("b");
        let found = sim.run_until(secs(2), |sim| sim.sessions("a", "b").iter().any(|s| s.instance != former));
        assert!(found.is_some(), "seed {seed}: not found");
        let request = sim.request("a", "b", b"are you back?");
        let answered = sim.run_until(secs(1), |sim| !sim.returned(request).is_empty());
        assert!(answered.is_some(), "seed {seed}: {:?}", sim.outcome(request));
    }
}

#[test]
fn streams_of_a_process_that_is_gone_are_reset_while_its_successor_answers() {
    for seed in 0..10 {
        let (mut sim, stream) = direct_pair(seed);
        sim.restart("b");
        sim.write(stream, b"anybody there?");
        let reset = sim.run_until(secs(8), |sim| sim.outcome(stream) != &Outcome::Open);
        assert!(reset.is_some(), "seed {seed}: the stream hangs");
    }
}

#[test]
fn a_successor_that_knows_its_predecessor_ends_its_streams_as_soon_as_it_is_heard() {
    for seed in 0..10 {
        let (mut sim, stream) = direct_pair(seed);
        sim.restart_as_successor("b");
        sim.write(stream, b"anybody there?");
        let reset = sim.run_until(secs(2), |sim| sim.outcome(stream) != &Outcome::Open);
        assert!(reset.is_some(), "seed {seed}: the stream hangs");
        assert!(sim.both_up("a", "b"), "seed {seed}: the successor's own session stays");
    }
}

#[test]
fn a_peer_that_shuts_down_says_so() {
    let (mut sim, stream) = direct_pair(5);
    sim.shut_down("b");
    sim.run_for(ms(50));
    assert!(sim.saw("a", |e| matches!(e, Event::SessionDown { reason: DownReason::PeerLeft, .. })));
    assert_ne!(sim.outcome(stream), &Outcome::Open);
}

#[test]
fn when_both_dial_at_once_one_session_stays_and_no_stream_is_lost() {
    for seed in 0..10 {
        let mut sim = Sim::strangers(seed, NatKind::home_router(), NatKind::home_router());
        sim.run_for(secs(3));
        sim.trust("a", "b");
        let there = sim.request("a", "b", &[1; 3_000]);
        let back = sim.request("b", "a", &[2; 3_000]);
        sim.run_for(secs(20));
        for stream in [there, back] {
            assert_eq!(sim.outcome(stream), &Outcome::Finished, "seed {seed}");
            assert_eq!(sim.returned(stream).len(), 3_000);
        }
        assert_eq!((sim.sessions("a", "b").len(), sim.sessions("b", "a").len()), (1, 1), "seed {seed}");
    }
}

#[test]
fn replicas_of_one_name_all_keep_their_sessions() {
    let mut sim = Sim::pair(NatKind::home_router(), NatKind::home_router());
    sim.add_replica("b#2", "b", NatKind::full_cone());
    sim.run_for(secs(15));
    assert_eq!(sim.sessions("a", "b").len(), 2, "one for each instance");
    sim.run_for(secs(100));
    assert_eq!((sim.sessions("b", "a").len(), sim.sessions("b#2", "a").len()), (1, 1));
    sim.kill("b#2");
    sim.run_for(ms(100));
    let request = sim.request("a", "b", b"one of you");
    sim.run_for(secs(5));
    if sim.returned(request).is_empty() {
        let again = sim.request("a", "b", b"the other");
        sim.run_for(secs(2));
        assert_eq!(sim.returned(again), b"the other");
    }
}

#[test]
fn sessions_survive_clocks_that_jump_by_minutes() {
    // Passports begin five minutes back, so that is how far a clock may be behind.
    for seconds in [-290, -61, 61, 550] {
        let (mut sim, stream) = direct_pair(6);
        sim.set_clock("a", seconds);
        goes_on(&mut sim, stream, secs(1));
        sim.run_for(secs(30));
        sim.restart("b");
        sim.run_for(secs(5));
        let request = sim.request("a", "b", b"again");
        sim.run_for(secs(3));
        assert_eq!(sim.returned(request), b"again", "clock off by {seconds} s");
    }
}

#[test]
fn a_session_with_an_idle_stream_outlives_the_idle_timeout() {
    let (mut sim, stream) = direct_pair(7);
    sim.run_for(secs(600));
    goes_on(&mut sim, stream, secs(1));
}

#[test]
fn relay_only_sends_no_packet_past_the_relay() {
    let mut sim = Sim::strangers(1, NatKind::none(), NatKind::none());
    sim.trust("a", "b");
    sim.set_path_mode("a", "b", PathMode::RelayOnly);
    let tape = sim.record();
    let stream = sim.request("a", "b", &[1; 10_000]);
    sim.run_for(secs(20));
    assert_eq!(sim.outcome(stream), &Outcome::Finished);
    assert_eq!(sim.path("a", "b"), Some(PathKind::Relayed));
    let relays = sim.relay_addresses();
    let own = sim.address("a");
    assert_eq!(tape.only(|p| p.from == own && !relays.contains(&p.to)), []);
}

#[test]
fn turning_to_direct_only_ends_the_streams_that_go_by_relay() {
    let mut sim = Sim::seeded_pair(1, NatKind::symmetric_random(), NatKind::symmetric_random());
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    let bulk = sim.open("a", "b");
    let bottleneck = Some(Bottleneck { bits_per_second: 10_000_000, queue_bytes: 100_000 });
    sim.set_line("a", &LinkConfig { delay: ms(20), bottleneck, ..LinkConfig::default() });
    sim.write(bulk, &vec![7; 4 << 20]);
    sim.run_for(secs(1));
    sim.set_path_mode("a", "b", PathMode::DirectOnly);
    sim.run_for(secs(1));
    let before = sim.bytes_relayed();
    sim.run_for(secs(5));
    assert!(matches!(sim.outcome(bulk), Outcome::Failed(_)), "{:?}", sim.outcome(bulk));
    assert!(sim.bytes_relayed() - before < 20_000, "{} bytes went on", sim.bytes_relayed() - before);
    let lost = sim.saw("a", |event| matches!(event, Event::SessionDown { reason: DownReason::Failed(_), .. }));
    assert!(!lost, "the session goes on looking for a direct path");
}

#[test]
fn turning_to_direct_only_drops_the_packets_that_wait_for_the_relay() {
    let mut sim = Sim::seeded_pair(1, NatKind::symmetric_random(), NatKind::symmetric_random());
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    let flow = sim.open_flow("a", "b");
    sim.run_for(secs(1));
    let bottleneck = Some(Bottleneck { bits_per_second: 1_000_000, queue_bytes: 50_000 });
    sim.set_line("a", &LinkConfig { delay: ms(20), bottleneck, ..LinkConfig::default() });
    (0..900).for_each(|_| sim.send_packet(flow, &[7; 1000]));
    sim.set_path_mode("a", "b", PathMode::DirectOnly);
    sim.run_for(secs(1));
    let before = sim.bytes_relayed();
    sim.run_for(secs(5));
    // What is relayed all the same is a new session and its search for a direct path.
    assert!(sim.bytes_relayed() - before < 100_000, "{} bytes went on", sim.bytes_relayed() - before);
}

#[test]
fn neighbours_behind_one_router_meet_inside() {
    let mut sim = Sim::new(1);
    sim.add_relay("r1");
    sim.add_relay("r2");
    sim.add_agent("a", NatKind::symmetric_random());
    sim.add_neighbour("b", "a");
    sim.trust("a", "b");
    let direct = sim.run_until(secs(10), |sim| sim.both_direct("a", "b"));
    assert!(direct.is_some());
    assert_eq!(sim.path("a", "b"), Some(PathKind::Local));
}

#[test]
fn a_process_that_was_stopped_goes_on_at_once() {
    for who in ["a", "b"] {
        for seconds in [5, 30, 100] {
            let (mut sim, stream) = direct_pair(8);
            sim.stop(who);
            sim.run_for(secs(seconds));
            sim.go_on(who);
            goes_on(&mut sim, stream, secs(1));
        }
    }
}

#[test]
fn a_process_that_was_stopped_for_long_finds_its_peer_again_within_two_seconds() {
    for who in ["a", "b"] {
        for seconds in [130, 200, 3_000] {
            let (mut sim, _) = direct_pair(9);
            sim.stop(who);
            sim.run_for(secs(seconds));
            sim.go_on(who);
            let up = sim.run_until(secs(2), |sim| sim.both_up("a", "b"));
            assert!(up.is_some(), "{who} after {seconds} s");
            let request = sim.request("b", "a", b"awake?");
            let answered = sim.run_until(secs(2), |sim| sim.returned(request) == b"awake?");
            assert!(answered.is_some(), "{who} after {seconds} s: {:?}", sim.outcome(request));
        }
    }
}

#[test]
fn a_stream_that_is_opened_when_a_session_is_about_to_end_by_idleness_is_answered_at_once() {
    for seed in 0..10 {
        let mut sim = Sim::seeded_pair(seed, NatKind::home_router(), NatKind::home_router());
        sim.run_until(secs(10), |sim| sim.both_direct("a", "b")).expect("a direct path");
        // The last word of each is lost to the other, so that their clocks run apart.
        sim.run_for(secs(10));
        let early = sim.request("a", "b", b"the last words");
        sim.run_for(ms(25 + seed * 7));
        sim.cut_off("b", true);
        sim.run_for(ms(600));
        sim.cut_off("b", false);
        sim.run_for(secs(117));
        for _ in 0..12 {
            sim.run_for(ms(300));
            let request = sim.request("a", "b", b"still there?");
            let answered = sim.run_until(secs(2), |sim| sim.returned(request) == b"still there?");
            assert!(answered.is_some(), "seed {seed}: {:?} {:?}", sim.outcome(request), sim.outcome(early));
        }
    }
}

#[test]
fn an_agent_that_stood_still_takes_the_stop_for_no_round_trip() {
    for seed in 0..10 {
        let mut sim = Sim::seeded_pair(seed, NatKind::symmetric_random(), NatKind::symmetric_random());
        sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
        let stream = sim.open("b", "a");
        sim.run_for(secs(2));
        // The answer to this waits in its socket.
        sim.write(stream, &[1; 5_000]);
        sim.stop("b");
        sim.run_for(secs(18));
        sim.go_on("b");
        goes_on(&mut sim, stream, secs(2));
        let rtt = sim.sessions("b", "a").iter().find(|session| session.streams > 0).and_then(|session| session.rtt);
        assert!(rtt.is_some_and(|rtt| rtt < secs(1)), "seed {seed}: {rtt:?}");
    }
}

#[test]
fn a_dial_that_was_given_up_while_its_answerer_stood_still_leaves_no_session() {
    for seed in 0..10 {
        let mut sim = Sim::strangers(seed, NatKind::symmetric_random(), NatKind::symmetric_random());
        sim.run_for(secs(2));
        sim.declare("b", "a");
        sim.declare("a", "b");
        let dialled = sim.run_until(secs(10), |sim| !sim.sessions("a", "b").is_empty());
        assert!(dialled.is_some(), "seed {seed}: nobody dialled");
        sim.stop("b");
        // In its socket waits what proves the dialler, but not that it gave up.
        sim.run_for(ms(200));
        sim.set_line("a", &LinkConfig { loss: Chance::percent(100), ..LinkConfig::with_delay(ms(10)) });
        sim.run_for(secs(18));
        sim.set_line("a", &LinkConfig::with_delay(ms(10)));
        sim.go_on("b");
        let request = sim.request("b", "a", b"is anybody there?");
        let answered = sim.run_until(secs(5), |sim| sim.returned(request) == b"is anybody there?");
        assert!(answered.is_some(), "seed {seed}: {:?}", sim.outcome(request));
    }
}
