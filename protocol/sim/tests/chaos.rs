//! Everything at once: partitions, flapping lines, relays that restart, drain or die, agents that move together, are stopped,
//! restarted or revoked, clocks that are wrong. What was written is delivered, exactly, or the stream is reset; and when the
//! network is good again, so is everything else.
//!
//! A seed decides all of it. `scripts/chaos 10000` tries that many; `PEERAGE_SIM_SEED=N` tries one.

use std::num::NonZero;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use peerage_sim::link::{Chance, LinkConfig};
use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Sim, SplitMix64, StreamId, ms, secs};

/// Seeds in an ordinary run.
const SEEDS: u64 = 40;
/// Events of one run.
const EVENTS: usize = 30;
const AGENTS: [&str; 3] = ["a", "b", "c"];
const RELAYS: [&str; 3] = ["r1", "r2", "r3"];

#[test]
fn after_any_chaos_everything_works_again_and_no_byte_was_wrong() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    match number("PEERAGE_SIM_SEED") {
        Some(seed) => live_through(seed),
        None => try_all(number("PEERAGE_SIM_SEEDS").unwrap_or(SEEDS)),
    }
}

/// Every seed below `seeds`, on all processors. All that fail are named.
fn try_all(seeds: u64) {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    // The world looks at itself all the time and panics where something is wrong.
                    if std::panic::catch_unwind(AssertUnwindSafe(|| live_through(seed))).is_err() {
                        failed.lock().expect("no thread panics with it").push(seed);
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().expect("no thread panics with it");
    failed.sort_unstable();
    assert!(failed.is_empty(), "{} of {seeds} seeds failed: {failed:?}", failed.len());
    println!("{seeds} seeds of {EVENTS} events each: all passed");
}

fn live_through(seed: u64) {
    let mut chaos = Chaos::new(seed);
    for _ in 0..EVENTS {
        chaos.something_happens();
    }
    chaos.ends();
}

struct Chaos {
    seed: u64,
    rng: SplitMix64,
    sim: Sim,
    streams: Vec<StreamId>,
    /// Who trusts whom at the moment.
    friends: Vec<(&'static str, &'static str)>,
    log: Vec<String>,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let mut sim = Sim::new(seed);
        for relay in RELAYS {
            sim.add_relay(relay);
        }
        for agent in AGENTS {
            sim.add_agent(agent, any_nat(&mut rng));
        }
        let friends = vec![("a", "b"), ("b", "c"), ("a", "c")];
        for (one, other) in &friends {
            sim.trust(one, other);
        }
        sim.run_for(ms(rng.below(4_000)));
        Self { seed, rng, sim, streams: Vec::new(), friends, log: Vec::new() }
    }

    fn something_happens(&mut self) {
        let (who, relay) = (AGENTS[self.pick(3)], RELAYS[self.pick(3)]);
        let what = self.pick(20);
        self.log.push(format!("{:?} {what} {who} {relay}", self.sim.elapsed()));
        match what {
            0..=3 => self.open(),
            4..=6 => self.write(),
            7 => self.partition(who),
            8 => self.flap(who),
            9 => {
                let line = self.any_line();
                self.sim.set_line(who, &line);
            }
            10 => self.sim.flush_nat(who),
            11 => self.move_together(),
            12 => {
                self.sim.stop_relay(relay);
                self.sim.run_for(ms(self.rng.below(3_000)));
                self.sim.start_relay(relay);
            }
            13 => self.sim.stop_relay(relay),
            14 => {
                self.sim.drain_relay(relay, secs(2));
                self.sim.run_for(secs(2));
                self.sim.start_relay(relay);
            }
            15 => {
                let blocked = self.pick(2) == 0;
                self.sim.block_direct(blocked);
            }
            16 => {
                // Passports begin five minutes back, so two clocks may be that far apart.
                let seconds = 145 - i64::try_from(self.rng.below(290)).expect("a small number");
                self.sim.set_clock(who, seconds);
            }
            17 => self.stand_still(who),
            18 => self.change_of_heart(),
            _ => self.sim.restart(who),
        }
        let time = [ms(5), ms(200), secs(1), secs(6)][self.pick(4)];
        self.sim.run_for(time);
    }

    fn open(&mut self) {
        let at = self.pick(self.friends.len());
        let (mut from, mut to) = self.friends[at];
        if self.pick(2) == 0 {
            (from, to) = (to, from);
        }
        let bytes = self.any_bytes();
        let stream = self.sim.open(from, to);
        self.sim.write(stream, &bytes);
        self.streams.push(stream);
    }

    fn write(&mut self) {
        if !self.streams.is_empty() {
            let at = self.pick(self.streams.len());
            let bytes = self.any_bytes();
            self.sim.write(self.streams[at], &bytes);
        }
    }

    /// One hears nobody for a while.
    fn partition(&mut self, who: &str) {
        self.sim.cut_off(who, true);
        self.sim.run_for(ms(self.rng.below(8_000)));
        self.sim.cut_off(who, false);
    }

    /// A line comes and goes.
    fn flap(&mut self, who: &str) {
        for _ in 0..4 {
            self.sim.cut_off(who, true);
            self.sim.run_for(ms(self.rng.below(700)));
            self.sim.cut_off(who, false);
            self.sim.run_for(ms(self.rng.below(700)));
        }
    }

    /// Two agents change their address in the same moment.
    fn move_together(&mut self) {
        for who in ["a", "b"] {
            let nat = any_nat(&mut self.rng);
            self.sim.move_to(who, nat);
        }
    }

    /// A process is stopped for a while, as by a debugger or a lid.
    fn stand_still(&mut self, who: &str) {
        self.sim.stop(who);
        self.sim.run_for(ms(self.rng.below(20_000)));
        self.sim.go_on(who);
    }

    /// A trust is withdrawn, and declared anew.
    fn change_of_heart(&mut self) {
        let at = self.pick(self.friends.len());
        let (one, other) = self.friends[at];
        self.sim.revoke(one, other);
        self.sim.run_for(ms(self.rng.below(2_000)));
        self.sim.declare(one, other);
    }

    fn ends(mut self) {
        for who in AGENTS {
            self.sim.set_line(who, &LinkConfig::with_delay(ms(10)));
            self.sim.set_clock(who, 0);
        }
        for relay in RELAYS {
            self.sim.start_relay(relay);
        }
        self.sim.block_direct(false);
        for stream in self.streams.clone() {
            self.sim.finish(stream);
        }
        self.sim.run_for(secs(150));
        for stream in &self.streams {
            let over = self.sim.outcome(*stream) != &Outcome::Open;
            assert!(over, "seed {}: {stream:?} hangs\n{:#?}", self.seed, self.log);
        }
        for (one, other) in self.friends.clone() {
            for (from, to) in [(one, other), (other, one)] {
                let request = self.sim.request(from, to, b"is all well?");
                let answered = self.sim.run_until(secs(5), |sim| sim.returned(request) == b"is all well?").is_some();
                let (seed, outcome) = (self.seed, self.sim.outcome(request));
                let last: Vec<_> = self.sim.trace().0.iter().rev().take(20).collect();
                assert!(answered, "seed {seed}: {from} to {to}: {outcome:?}\n{:#?}\n{last:#?}", self.log);
            }
        }
    }

    fn any_bytes(&mut self) -> Vec<u8> {
        let length = [1, 100, 5_000, 100_000][self.pick(4)];
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
