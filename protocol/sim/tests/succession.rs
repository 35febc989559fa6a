//! A peer's process ends and another takes its place: what happens to streams of just that moment.

use peerage_engine::node::{DownReason, Event};
use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Sim, ms, secs};

/// `a` and `b` behind home routers, on a direct path.
fn direct_pair(seed: u64) -> Sim {
    let mut sim = Sim::seeded_pair(seed, NatKind::home_router(), NatKind::home_router());
    sim.run_until(secs(10), |sim| sim.both_direct("a", "b")).expect("two home routers meet");
    sim.run_for(secs(1));
    sim
}

/// Opens a stream at the moment of the restart, and has it answered by the successor.
fn is_answered_by_the_successor(restart: fn(&mut Sim, &str)) {
    for seed in 0..10 {
        let mut sim = direct_pair(seed);
        restart(&mut sim, "b");
        let request = sim.request("a", "b", b"who is there?");
        let answered = sim.run_until(secs(3), |sim| sim.returned(request) == b"who is there?");
        assert!(answered.is_some(), "seed {seed}: {:?}", sim.outcome(request));
    }
}

#[test]
fn a_stream_that_is_opened_while_a_killed_peer_comes_back_is_answered_by_its_successor() {
    is_answered_by_the_successor(Sim::restart_as_successor);
}

#[test]
fn a_stream_that_is_opened_while_a_container_restarts_is_answered_by_its_successor() {
    is_answered_by_the_successor(Sim::restart_with_its_key);
}

#[test]
fn streams_of_a_container_that_restarted_with_its_key_are_reset_as_soon_as_it_is_heard() {
    for seed in 0..10 {
        let mut sim = direct_pair(seed);
        let stream = sim.open("a", "b");
        sim.write(stream, b"hello");
        sim.run_for(secs(1));
        sim.restart_with_its_key("b");
        sim.write(stream, b"anybody there?");
        let reset = sim.run_until(secs(2), |sim| sim.outcome(stream) != &Outcome::Open);
        assert!(reset.is_some(), "seed {seed}: the stream hangs");
        assert!(sim.both_up("a", "b"), "seed {seed}: the successor's own session stays");
    }
}

#[test]
fn a_stream_that_crosses_a_goodbye_waits_for_the_next_process() {
    for seed in 0..10 {
        let mut sim = direct_pair(seed);
        let request = sim.request("a", "b", b"are you going?");
        sim.shut_down("b");
        sim.run_for(ms(200));
        assert!(sim.saw("a", |e| matches!(e, Event::SessionDown { reason: DownReason::PeerLeft, streams: 0, .. })));
        sim.restart("b");
        let answered = sim.run_until(secs(3), |sim| sim.returned(request) == b"are you going?");
        assert!(answered.is_some(), "seed {seed}: {:?}", sim.outcome(request));
    }
}

#[test]
fn a_stream_that_the_process_took_before_its_goodbye_is_reset() {
    for seed in 0..10 {
        let mut sim = direct_pair(seed);
        let stream = sim.open("a", "b");
        sim.write(stream, b"delete everything");
        // One way and not yet the other.
        sim.run_until(ms(500), |sim| !sim.delivered(stream).is_empty()).expect("it arrives");
        sim.shut_down("b");
        sim.restart("b");
        let reset = sim.run_until(secs(2), |sim| sim.outcome(stream) != &Outcome::Open);
        assert!(reset.is_some(), "seed {seed}: it may have been acted on, so nobody else is asked");
    }
}
