//! What a congestion controller makes of a path: alone, and beside another on the same bottleneck.
//!
//! The whole of both agents runs, in virtual time, so that a figure is the same on every machine and at every load. Senders `a` and `c`
//! pour to `b`, whose access line is the bottleneck for both; what is lost is lost on that line, in both directions.

use std::time::Duration;

use peerage_engine::node::Algorithm;

use crate::link::{Bottleneck, Chance, LinkConfig};
use crate::nat::NatKind;
use crate::{Sim, StreamId, ms, secs};

/// A path between two agents.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Round trip without a queue.
    pub rtt: Duration,
    /// Rate of the bottleneck in Mb/s.
    pub mbit: u64,
    /// Its queue, in thousandths of what the path holds.
    pub queue: u64,
    /// What is lost by chance.
    pub loss: Chance,
}

/// What was seen of one flow or two.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// What each brought, in Mb/s of data.
    pub mbit: [f64; 2],
    /// How long a packet waited in the queue, on average.
    pub waited: Duration,
}

/// How often the queue is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Between transfers on one session.
const PAUSE: Duration = Duration::from_millis(500);
/// The later of two flows begins so much later.
const APART: Duration = Duration::from_millis(1_700);

impl Path {
    /// A path that loses nothing by chance.
    #[must_use]
    pub const fn clean(rtt_ms: u64, mbit: u64, queue: u64) -> Self {
        Self { rtt: ms(rtt_ms), mbit, queue, loss: Chance::NEVER }
    }

    /// Bytes that it holds without a queue.
    #[must_use]
    pub fn holds(&self) -> u64 {
        self.mbit * 125 * u64::try_from(self.rtt.as_millis()).unwrap_or(u64::MAX)
    }

    fn bottleneck(&self) -> LinkConfig {
        let queue_bytes = usize::try_from(self.holds() * self.queue / 1_000).unwrap_or(usize::MAX);
        let bottleneck = Some(Bottleneck { bits_per_second: self.mbit * 1_000_000, queue_bytes });
        LinkConfig { bottleneck, loss: self.loss, ..LinkConfig::with_delay(self.rtt / 4) }
    }

    /// Senders `a` and `c` with these algorithms, each on a direct path to `b`.
    fn world(&self, seed: u64, algorithms: [Algorithm; 2]) -> Sim {
        let mut sim = Sim::new(seed);
        sim.add_relay("r1");
        sim.add_relay("r2");
        for (name, algorithm) in ["a", "c", "b"].into_iter().zip(algorithms.into_iter().chain([Algorithm::default()])) {
            sim.use_congestion(algorithm);
            sim.add_agent(name, NatKind::full_cone());
        }
        for (name, line) in [
            ("a", LinkConfig::with_delay(self.rtt / 4)),
            ("c", LinkConfig::with_delay(self.rtt / 4)),
            ("b", self.bottleneck()),
        ] {
            sim.set_line(name, &line);
        }
        for sender in ["a", "c"] {
            sim.trust(sender, "b");
            // A first stream, and it becomes direct.
            sim.pour(sender, "b", 1);
            sim.run_until(secs(30), |sim| sim.both_direct(sender, "b")).expect("full cones meet");
        }
        sim.run_for(secs(1));
        sim
    }

    /// How long so many bytes take on a session that is up.
    ///
    /// # Panics
    ///
    /// If they are not there in ten minutes.
    #[must_use]
    pub fn transfer(&self, seed: u64, algorithm: Algorithm, bytes: u64) -> Duration {
        let mut sim = self.world(seed, [algorithm; 2]);
        let pour = sim.pour("a", "b", bytes);
        sim.run_until(secs(600), |sim| sim.poured(pour) == bytes).expect("they arrive")
    }

    /// How long each of several transfers of so many bytes takes, one after the other on one session, which at first had the path `before`.
    ///
    /// # Panics
    ///
    /// If one is not there in ten minutes.
    #[must_use]
    pub fn transfers(&self, before: &Self, seed: u64, algorithm: Algorithm, bytes: u64, count: usize) -> Vec<Duration> {
        let mut sim = before.world(seed, [algorithm; 2]);
        let pour = sim.pour("a", "b", bytes);
        sim.run_until(secs(600), |sim| sim.poured(pour) == bytes).expect("they arrive");
        sim.run_for(PAUSE);
        sim.set_line("a", &LinkConfig::with_delay(self.rtt / 4));
        sim.set_line("b", &self.bottleneck());
        let mut one = || {
            let pour = sim.pour("a", "b", bytes);
            let took = sim.run_until(secs(600), |sim| sim.poured(pour) == bytes).expect("they arrive");
            sim.run_for(PAUSE);
            took
        };
        (0..count).map(|_| one()).collect()
    }

    /// What one flow brings in `time`, after `warm`.
    #[must_use]
    pub fn alone(&self, seed: u64, algorithm: Algorithm, warm: Duration, time: Duration) -> Seen {
        let mut sim = self.world(seed, [algorithm; 2]);
        let pour = sim.pour("a", "b", u64::MAX);
        sim.run_for(warm);
        watch(&mut sim, [pour; 2], time)
    }

    /// How long a small request of the receiver takes to reach the sender, while it receives and has sent nothing else for `warm`.
    ///
    /// # Panics
    ///
    /// If it is not there in ten seconds.
    #[must_use]
    pub fn request_beside(&self, seed: u64, algorithm: Algorithm, warm: Duration) -> Duration {
        let mut sim = self.world(seed, [algorithm; 2]);
        sim.pour("a", "b", u64::MAX);
        sim.run_for(warm);
        let request = sim.request("b", "a", b"how are you?");
        sim.run_until(secs(10), |sim| sim.time_to_server(request).is_some()).expect("it arrives");
        sim.time_to_server(request).unwrap_or_default()
    }

    /// What two flows bring in `time`, after `warm`. The second begins later than the first.
    #[must_use]
    pub fn shared(&self, seed: u64, algorithms: [Algorithm; 2], warm: Duration, time: Duration) -> Seen {
        let mut sim = self.world(seed, algorithms);
        let first = sim.pour("a", "b", u64::MAX);
        sim.run_for(APART);
        let second = sim.pour("c", "b", u64::MAX);
        sim.run_for(warm);
        watch(&mut sim, [first, second], time)
    }
}

impl Seen {
    /// The part of the first.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.mbit[0] / (self.mbit[0] + self.mbit[1])
    }

    /// Jain's index: 1 where both bring the same, 0.5 where one brings all.
    #[must_use]
    pub fn fairness(&self) -> f64 {
        let [a, b] = self.mbit;
        (a + b).powi(2) / (2.0 * (a * a + b * b))
    }
}

fn watch(sim: &mut Sim, pours: [StreamId; 2], time: Duration) -> Seen {
    let before = pours.map(|pour| sim.poured(pour));
    let end = sim.elapsed() + time;
    let (mut waited, mut looks) = (Duration::ZERO, 0);
    while sim.elapsed() < end {
        sim.run_for(LOOK_EVERY);
        waited += sim.queue_before("b");
        looks += 1;
    }
    let mbit = |n: usize| (sim.poured(pours[n]) - before[n]) as f64 * 8e-6 / time.as_secs_f64();
    Seen { mbit: [mbit(0), mbit(1)], waited: waited / looks }
}
