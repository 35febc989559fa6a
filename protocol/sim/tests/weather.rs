//! Anything may happen to the network: what was written is delivered, exactly, or the stream is reset.
//!
//! A seed decides the NATs, the lines and a minute of events. `PEERAGE_SIM_SEEDS` says how many seeds are tried, and
//! `PEERAGE_SIM_SEED` tries one.

use peerage_sim::link::{Chance, LinkConfig};
use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Sim, SplitMix64, StreamId, ms, secs};

/// Seeds in an ordinary run.
const SEEDS: u64 = 30;
/// Events of one run.
const EVENTS: u64 = 25;

#[test]
fn whatever_happens_streams_deliver_what_was_written_or_are_reset() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    match number("PEERAGE_SIM_SEED") {
        Some(seed) => live_through(seed),
        None => (0..number("PEERAGE_SIM_SEEDS").unwrap_or(SEEDS)).for_each(live_through),
    }
}

/// One run. The world compares every byte by itself; here we ask that nothing hangs and that good weather heals.
fn live_through(seed: u64) {
    let mut weather = Weather::new(seed);
    for _ in 0..EVENTS {
        weather.something_happens();
    }
    weather.clears();
}

struct Weather {
    seed: u64,
    rng: SplitMix64,
    sim: Sim,
    streams: Vec<StreamId>,
    log: Vec<String>,
}

impl Weather {
    fn new(seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let mut sim = Sim::seeded_pair(seed, any_nat(&mut rng), any_nat(&mut rng));
        sim.run_for(ms(rng.below(4_000)));
        Self { seed, rng, sim, streams: Vec::new(), log: Vec::new() }
    }

    fn something_happens(&mut self) {
        let who = ["a", "b"][self.pick(2)];
        let relay = ["r1", "r2"][self.pick(2)];
        let what = self.pick(16);
        self.log.push(format!("{:?} {what} {who} {relay}", self.sim.elapsed()));
        match what {
            0..=3 => self.open(who),
            4..=6 => self.write(),
            7 => {
                let line = self.any_line();
                self.sim.set_line(who, &line);
            }
            8 => self.sim.flush_nat(who),
            9 => {
                let nat = any_nat(&mut self.rng);
                self.sim.move_to(who, nat);
            }
            10 => self.sim.stop_relay(relay),
            11 => self.sim.start_relay(relay),
            12 => self.sim.block_direct(true),
            13 => self.sim.block_direct(false),
            14 => {
                // Passports begin five minutes back, so two clocks may be that far apart.
                let seconds = 145 - i64::try_from(self.rng.below(290)).expect("a small number");
                self.sim.set_clock(who, seconds);
            }
            _ => self.sim.restart(who),
        }
        let time = [ms(5), ms(200), secs(1), secs(6)][self.pick(4)];
        self.sim.run_for(time);
    }

    fn open(&mut self, who: &str) {
        let to = if who == "a" { "b" } else { "a" };
        let bytes = self.any_bytes();
        let stream = self.sim.open(who, to);
        self.sim.write(stream, &bytes);
        self.streams.push(stream);
    }

    fn write(&mut self) {
        if self.streams.is_empty() {
            return;
        }
        let at = self.pick(self.streams.len());
        let stream = self.streams[at];
        let bytes = self.any_bytes();
        self.sim.write(stream, &bytes);
    }

    /// The network is good again, and so must everything be.
    fn clears(mut self) {
        for who in ["a", "b"] {
            self.sim.set_line(who, &LinkConfig::with_delay(ms(10)));
        }
        for relay in ["r1", "r2"] {
            self.sim.start_relay(relay);
        }
        self.sim.block_direct(false);
        for stream in self.streams.clone() {
            self.sim.finish(stream);
        }
        self.sim.run_for(secs(150));
        for stream in &self.streams {
            assert_ne!(
                self.sim.outcome(*stream),
                &Outcome::Open,
                "seed {}: {stream:?} hangs\n{:#?}",
                self.seed,
                self.log
            );
        }
        for (from, to) in [("a", "b"), ("b", "a")] {
            let request = self.sim.request(from, to, b"is all well?");
            self.sim.run_for(secs(5));
            let outcome = self.sim.outcome(request);
            assert_eq!(
                self.sim.returned(request),
                b"is all well?",
                "seed {}: {from} to {to}: {outcome:?}\n{:#?}\n{:#?}",
                self.seed,
                self.log,
                self.sim.trace().0.iter().rev().take(20).collect::<Vec<_>>()
            );
        }
    }

    fn any_bytes(&mut self) -> Vec<u8> {
        let length = [1, 100, 5_000, 200_000][self.pick(4)];
        let first = self.rng.next().to_be_bytes()[0];
        (0..length).map(|n: u32| first.wrapping_add(n.to_be_bytes()[3])).collect()
    }

    fn any_line(&mut self) -> LinkConfig {
        LinkConfig {
            delay: ms(self.rng.below(120)),
            jitter: ms(self.rng.below(30)),
            loss: Chance::percent(u32::try_from(self.rng.below(12)).expect("a small number")),
            duplicate: Chance::percent(u32::try_from(self.rng.below(10)).expect("a small number")),
            reorder: Chance::percent(u32::try_from(self.rng.below(10)).expect("a small number")),
            held_back: ms(self.rng.below(60)),
            bottleneck: None,
        }
    }

    fn pick(&mut self, of: usize) -> usize {
        usize::try_from(self.rng.below(of as u64)).expect("an index")
    }
}

fn any_nat(rng: &mut SplitMix64) -> NatKind {
    let presets = NatKind::presets();
    let at = usize::try_from(rng.below(presets.len() as u64)).expect("an index");
    presets[at].1
}
