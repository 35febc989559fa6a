//! Two sessions between the same two processes: whichever of them ends, no stream notices.

use peerage_engine::node::Event;
use peerage_sim::link::{Chance, LinkConfig};
use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Sim, SplitMix64, StreamId, ms, secs};

/// Two agents that come to trust each other one after the other, so that both may be dialling.
fn late_consent(seed: u64, rng: &mut SplitMix64) -> Sim {
    let mut sim = Sim::strangers(seed, NatKind::home_router(), NatKind::home_router());
    for who in ["a", "b"] {
        let loss = Chance::percent(u32::try_from(rng.below(6)).expect("a small number"));
        sim.set_line(who, &LinkConfig { loss, jitter: ms(rng.below(20)), ..LinkConfig::with_delay(ms(rng.below(80))) });
    }
    let (first, second) = if rng.below(2) == 0 { ("a", "b") } else { ("b", "a") };
    sim.declare(first, second);
    sim.run_for(ms([0, 20, 4_000][usize::try_from(rng.below(3)).expect("an index")]));
    sim.declare(second, first);
    sim
}

fn assert_answered(sim: &Sim, seed: u64, requests: &[StreamId]) {
    for request in requests {
        assert_eq!(
            sim.outcome(*request),
            &Outcome::Finished,
            "seed {seed}, {request:?}\n{:#?}\n{:#?}",
            sim.status("a").sessions,
            sim.trace().0
        );
    }
}

/// `PEERAGE_SIM_SEEDS` says how many runs of each test there are.
fn seeds() -> std::ops::Range<u64> {
    let wanted = std::env::var("PEERAGE_SIM_SEEDS").ok().and_then(|n| n.parse().ok());
    0..wanted.unwrap_or(60)
}

#[test]
fn a_session_that_drains_resets_no_new_stream() {
    for seed in seeds() {
        let mut rng = SplitMix64::new(seed);
        let mut sim = late_consent(seed, &mut rng);
        sim.run_until(secs(20), |sim| sim.both_up("a", "b")).expect("a session");
        let mut requests = Vec::new();
        for _ in 0..40 {
            sim.run_for(ms(rng.below(400)));
            requests.push(sim.request("a", "b", b"from a"));
            sim.run_for(ms(rng.below(30)));
            requests.push(sim.request("b", "a", b"from b"));
        }
        sim.run_for(secs(10));
        assert_answered(&sim, seed, &requests);
    }
}

#[test]
fn new_streams_use_the_session_that_works_when_the_relays_die_under_its_twin() {
    for seed in seeds() {
        let mut rng = SplitMix64::new(seed);
        let mut sim = late_consent(seed, &mut rng);
        sim.run_until(secs(20), |sim| sim.both_direct("a", "b")).expect("a direct path");
        let open = sim.open("a", "b");
        sim.run_for(ms(rng.below(400)));
        sim.stop_relay("r1");
        sim.stop_relay("r2");
        sim.run_for(secs(1));
        let mut requests = Vec::new();
        for _ in 0..20 {
            requests.push(sim.request("a", "b", b"from a"));
            requests.push(sim.request("b", "a", b"from b"));
            sim.run_for(ms(rng.below(1_000)));
        }
        sim.run_for(secs(20));
        assert_answered(&sim, seed, &requests);
        assert_eq!(sim.outcome(open), &Outcome::Open, "seed {seed}");
    }
}

#[test]
fn a_revoked_stream_is_reset_on_both_sides_whichever_twin_it_is_on() {
    for seed in seeds() {
        let mut rng = SplitMix64::new(seed);
        let mut sim = late_consent(seed, &mut rng);
        sim.run_until(secs(20), |sim| sim.both_up("a", "b")).expect("a session");
        let mut streams = Vec::new();
        for _ in 0..6 {
            let (from, to) = if rng.below(2) == 0 { ("a", "b") } else { ("b", "a") };
            let stream = sim.open(from, to);
            sim.write(stream, &[7; 3_000]);
            streams.push(stream);
            sim.run_for(ms(rng.below(500)));
        }
        let arrived: Vec<StreamId> = streams.into_iter().filter(|s| sim.far_outcome(*s).is_some()).collect();
        assert!(!arrived.is_empty(), "seed {seed}: no stream arrived");
        let (who, whom) = if rng.below(2) == 0 { ("a", "b") } else { ("b", "a") };
        // A lost goodbye is said again when the peer sends something, so the lines are good from here on.
        for line in ["a", "b"] {
            sim.set_line(line, &LinkConfig::with_delay(ms(10)));
        }
        sim.run_for(ms(300));
        sim.revoke(who, whom);
        sim.run_for(secs(1));
        for stream in arrived {
            let ends = (sim.outcome(stream), sim.far_outcome(stream));
            let reset = matches!(ends, (Outcome::Failed(_), Some(Outcome::Failed(_))));
            assert!(reset, "seed {seed}: {stream:?} ended as {ends:?}");
        }
    }
}

#[test]
fn of_two_sessions_that_were_dialled_at_once_both_ends_keep_one() {
    let mut twins = 0;
    for seed in seeds().take(20) {
        let mut rng = SplitMix64::new(seed);
        let mut sim = late_consent(seed, &mut rng);
        sim.run_until(secs(20), |sim| sim.both_up("a", "b")).expect("a session");
        sim.run_for(secs(30));
        let came_up = |sim: &Sim| {
            let is_up = |(_, event): &&(_, Event)| matches!(event, Event::SessionUp { .. });
            ["a", "b"].map(|who| sim.events(who).iter().filter(is_up).count())
        };
        let before = came_up(&sim);
        twins += usize::from(before[0] > 1);
        let requests = [sim.request("a", "b", b"from a"), sim.request("b", "a", b"from b")];
        sim.run_for(secs(5));
        assert_answered(&sim, seed, &requests);
        assert_eq!(came_up(&sim), before, "seed {seed}: the one that was left serves both ends");
    }
    assert!(twins > 0, "some dialled at once");
}
