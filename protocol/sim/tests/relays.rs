//! Relays are killed, drained, replaced and moved; what runs over them goes on.

use std::time::Duration;

use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Sim, StreamId, ms, secs};

/// `a` and `b` between which only relays help, with a stream.
fn relayed_pair(seed: u64) -> (Sim, StreamId) {
    let mut sim = Sim::seeded_pair(seed, NatKind::symmetric_random(), NatKind::symmetric_random());
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    let stream = sim.open("a", "b");
    sim.write(stream, &[1; 5_000]);
    sim.run_for(secs(2));
    assert_eq!(sim.returned(stream).len(), 5_000, "seed {seed}");
    (sim, stream)
}

/// How long it takes until more bytes have gone there and back.
fn there_and_back(sim: &mut Sim, stream: StreamId, limit: Duration) -> Duration {
    let wanted = sim.returned(stream).len() + 5_000;
    sim.write(stream, &[2; 5_000]);
    let took = sim.run_until(limit, |sim| sim.returned(stream).len() == wanted);
    let outcome = sim.outcome(stream);
    took.unwrap_or_else(|| panic!("the stream does not go on within {limit:?}: {outcome:?}"))
}

#[test]
fn an_open_stream_goes_on_within_a_second_when_either_relay_is_killed() {
    for seed in 0..20 {
        for relay in ["r1", "r2"] {
            let (mut sim, stream) = relayed_pair(seed);
            sim.stop_relay(relay);
            there_and_back(&mut sim, stream, secs(1));
            let request = sim.request("b", "a", b"and new ones?");
            let answered = sim.run_until(secs(1), |sim| sim.returned(request) == b"and new ones?");
            assert!(answered.is_some(), "seed {seed}, {relay}: {:?}", sim.outcome(request));
        }
    }
}

#[test]
fn a_stream_goes_on_within_a_second_when_the_other_relay_is_killed_after_the_first_came_back() {
    for seed in 0..20 {
        let (mut sim, stream) = relayed_pair(seed);
        // Each kill loses packets, and so makes the window smaller that the next one fills.
        for relay in ["r1", "r2", "r1", "r2", "r1", "r2"] {
            sim.stop_relay(relay);
            there_and_back(&mut sim, stream, secs(1));
            sim.start_relay(relay);
            // An idle agent binds again with the first keepalive, 25 s after it last heard the relay.
            sim.run_for(secs(40));
        }
    }
}

#[test]
fn a_drained_relay_is_left_before_it_goes() {
    for seed in 0..20 {
        for relay in ["r1", "r2"] {
            let (mut sim, stream) = relayed_pair(seed);
            sim.drain_relay(relay, secs(5));
            sim.run_for(secs(2));
            let usual = there_and_back(&mut sim, stream, secs(1));
            sim.stop_relay(relay);
            let took = there_and_back(&mut sim, stream, secs(1));
            assert!(took <= usual + ms(100), "seed {seed}, {relay}: {took:?} instead of {usual:?}: packets were lost");
        }
    }
}

#[test]
fn a_peer_that_moved_to_other_relays_is_found_by_who_has_the_old_list_for_ten_minutes() {
    let mut sim = Sim::strangers(1, NatKind::symmetric_random(), NatKind::symmetric_random());
    let old = sim.relay_list();
    sim.add_relay("r3");
    sim.add_relay("r4");
    let new = sim.relay_list()[2..].to_vec();
    sim.trust("a", "b");
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    sim.set_relays("b", new.clone());
    sim.run_for(secs(500));
    assert!(sim.sessions("a", "b").is_empty(), "it was idle for long");
    let request = sim.request("a", "b", b"by the old list");
    assert!(sim.run_until(secs(2), |sim| sim.returned(request) == b"by the old list").is_some());
    sim.run_for(secs(300));
    let request = sim.request("a", "b", b"too late");
    sim.run_for(secs(20));
    assert!(matches!(sim.outcome(request), Outcome::Failed(_)), "it has left them: {:?}", sim.outcome(request));
    sim.set_relays_of_peer("a", "b", new);
    let request = sim.request("a", "b", b"by the new list");
    assert!(sim.run_until(secs(2), |sim| sim.returned(request) == b"by the new list").is_some());
    assert_eq!(old.len(), 2);
}

#[test]
fn who_has_the_new_list_finds_a_peer_that_is_still_at_the_old_relays() {
    let mut sim = Sim::strangers(2, NatKind::symmetric_random(), NatKind::symmetric_random());
    sim.add_relay("r3");
    sim.add_relay("r4");
    let new = sim.relay_list()[2..].to_vec();
    sim.trust("a", "b");
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    sim.run_for(secs(300));
    assert!(sim.sessions("a", "b").is_empty());
    sim.set_relays_of_peer("a", "b", new);
    let request = sim.request("a", "b", b"ahead of you");
    assert!(sim.run_until(secs(2), |sim| sim.returned(request) == b"ahead of you").is_some());
}

#[test]
fn two_agents_with_relays_of_different_owners_survive_the_loss_of_any_one() {
    for dead in ["r1", "r2", "r3", "r4"] {
        let mut sim = Sim::strangers(3, NatKind::symmetric_random(), NatKind::symmetric_random());
        sim.add_relay("r3");
        sim.add_relay("r4");
        let (of_a, of_b) = (sim.relay_list()[..2].to_vec(), sim.relay_list()[2..].to_vec());
        sim.set_relays("a", of_a.clone());
        sim.set_relays("b", of_b.clone());
        sim.trust("a", "b");
        sim.set_relays_of_peer("a", "b", of_b);
        sim.set_relays_of_peer("b", "a", of_a);
        sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
        let stream = sim.open("a", "b");
        sim.run_for(secs(12));
        sim.stop_relay(dead);
        there_and_back(&mut sim, stream, secs(1));
    }
}

#[test]
fn a_peer_restarted_in_another_network_is_reached_within_two_seconds_without_any_news() {
    for seed in 0..20 {
        let mut sim = Sim::seeded_pair(seed, NatKind::home_router(), NatKind::home_router());
        sim.run_until(secs(10), |sim| sim.both_direct("a", "b")).expect("a direct path");
        sim.restart_elsewhere("b", NatKind::symmetric_random());
        let begun = sim.elapsed();
        let mut answered = false;
        while !answered && sim.elapsed() < begun + secs(2) {
            // A program that is refused asks again, as browsers and clients do.
            let request = sim.request("a", "b", b"there?");
            answered = sim.run_until(ms(250), |sim| sim.returned(request) == b"there?").is_some();
        }
        assert!(answered, "seed {seed}");
    }
}
