//! A sender with much under way when its path changes: nothing of it may hold up what goes by the new one.

use std::time::Duration;

use peerage_engine::path::PathKind;
use peerage_sim::link::{Bottleneck, Chance, LinkConfig};
use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Sim, SplitMix64, StreamId, ms, secs};

/// A line of 2 Mb/s with a third of a second of queue: under way is ten times what a new path may begin with.
fn line() -> LinkConfig {
    let bottleneck = Bottleneck { bits_per_second: 2_000_000, queue_bytes: 75_000 };
    LinkConfig { bottleneck: Some(bottleneck), ..LinkConfig::with_delay(ms(15)) }
}

/// A transfer from `a` to `b` on a direct path, at full speed, with much left.
fn transfer(seed: u64) -> (Sim, StreamId) {
    let mut sim = Sim::seeded_pair(seed, NatKind::home_router(), NatKind::home_router());
    for who in ["a", "b"] {
        sim.set_line(who, &line());
    }
    sim.run_until(secs(10), |sim| sim.both_direct("a", "b")).expect("two home routers meet");
    let stream = sim.open("a", "b");
    sim.write(stream, &vec![7; 12_000_000]);
    sim.run_for(secs(2));
    assert!(sim.delivered(stream).len() > 150_000, "it flows: {}", sim.delivered(stream).len());
    (sim, stream)
}

/// The longest time in which nothing arrived, watched for `time`.
fn longest_pause(sim: &mut Sim, stream: StreamId, time: Duration) -> Duration {
    let end = sim.elapsed() + time;
    let mut longest = Duration::ZERO;
    while sim.elapsed() < end {
        let so_far = sim.delivered(stream).len();
        let pause = sim.run_until(time, |sim| sim.delivered(stream).len() > so_far).unwrap_or(time);
        longest = longest.max(pause);
    }
    assert_eq!(sim.outcome(stream), &Outcome::Open);
    longest
}

#[test]
fn a_full_flight_on_a_dead_path_does_not_silence_the_next_one() {
    for seed in 0..2 {
        let (mut sim, stream) = transfer(seed);
        sim.block_direct(true);
        let pause = longest_pause(&mut sim, stream, secs(5));
        println!("blocked, seed {seed}: {pause:?}");
        assert_eq!(sim.path("a", "b"), Some(PathKind::Relayed));
        // Three round trips with a full queue until the silence is one, one and a half by relay, and retransmission.
        assert!(pause < secs(2), "seed {seed}: {pause:?}");
    }
}

#[test]
fn a_full_flight_does_not_silence_a_sender_that_was_cut_off() {
    for who in ["a", "b"] {
        for outage in [ms(1_500), secs(4), secs(9)] {
            let (mut sim, stream) = transfer(3);
            sim.cut_off(who, true);
            sim.run_for(outage);
            sim.cut_off(who, false);
            let pause = longest_pause(&mut sim, stream, secs(8));
            println!("{who} was away for {outage:?}: {pause:?}");
            // With full queues a round trip takes more than a second here, so that three of them, a silence, may be longer than
            // the outage. Then the probe timeout decides, which has doubled meanwhile (RFC 9002 section 6.2.1).
            assert!(pause < outage + ms(500), "{who} was away for {outage:?}: {pause:?}");
        }
    }
}

/// `PEERAGE_SIM_SEEDS` says how many, `PEERAGE_SIM_SEED` which one.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    match number("PEERAGE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PEERAGE_SIM_SEEDS").unwrap_or(12),
    }
}

/// Something that a network does to those who use it, none of it for longer than seconds.
fn something_happens(sim: &mut Sim, rng: &mut SplitMix64) -> String {
    let who = ["a", "b"][usize::from(rng.below(2) == 1)];
    let relay = ["r1", "r2"][usize::from(rng.below(2) == 1)];
    let what = rng.below(8);
    match what {
        0 | 1 => sim.block_direct(true),
        2 | 3 => sim.block_direct(false),
        4 => sim.flush_nat(who),
        5 => sim.move_to(who, NatKind::home_router()),
        6 => {
            sim.cut_off(who, true);
            sim.run_for(ms(rng.below(2_500)));
            sim.cut_off(who, false);
        }
        _ => {
            sim.stop_relay(relay);
            sim.run_for(ms(rng.below(2_000)));
            sim.start_relay(relay);
        }
    }
    format!("{:?} {what} {who} {relay}", sim.elapsed())
}

#[test]
fn no_stream_is_reset_while_both_processes_live() {
    for seed in seeds() {
        let mut rng = SplitMix64::new(seed);
        let (mut sim, stream) = transfer(seed);
        let loss = Chance::percent(u32::try_from(rng.below(4)).expect("a small number"));
        for who in ["a", "b"] {
            sim.set_line(who, &LinkConfig { loss, ..line() });
        }
        let mut log = Vec::new();
        for _ in 0..12 {
            log.push(something_happens(&mut sim, &mut rng));
            sim.run_for([ms(300), secs(1), secs(4)][usize::try_from(rng.below(3)).expect("an index")]);
            assert_eq!(sim.outcome(stream), &Outcome::Open, "seed {seed}: {log:#?}");
        }
        sim.block_direct(false);
        let so_far = sim.delivered(stream).len();
        let goes_on = sim.run_until(secs(20), |sim| sim.delivered(stream).len() > so_far);
        assert!(goes_on.is_some(), "seed {seed}: {:?} after {log:#?}\n{:#?}", sim.outcome(stream), sim.trace().0);
    }
}
