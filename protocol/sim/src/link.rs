//! One direction of a link: when, and whether, a packet arrives.
//!
//! A packet first waits for the packets ahead of it (rate and a bounded queue that drops what does not fit), then
//! travels (delay and jitter), and on the way it may be lost, doubled or overtaken. The link keeps no packets: it
//! is asked with [`Link::send`] and answers with arrival times, so a simulator in virtual time and a router of real
//! packets use the same model. The same configuration, seed and calls give the same answers.
//!
//! Jitter alone never reorders, as in a queue somewhere on the way; only a packet chosen for reordering is overtaken.

use std::time::{Duration, Instant};

use crate::rng::SplitMix64;

/// How often something happens, in events per million packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance(u32);

impl Chance {
    /// It does not happen.
    pub const NEVER: Self = Self(0);
    /// It happens to every packet.
    pub const ALWAYS: Self = Self(Self::WHOLE);

    const WHOLE: u32 = 1_000_000;

    /// `events` of a million packets; more than a million counts as every packet.
    #[must_use]
    pub const fn per_million(events: u32) -> Self {
        Self(if events > Self::WHOLE { Self::WHOLE } else { events })
    }

    /// `events` of a hundred packets; more than a hundred counts as every packet.
    #[must_use]
    pub const fn percent(events: u32) -> Self {
        Self::per_million(events.saturating_mul(10_000))
    }

    const fn strikes(self, rng: &mut SplitMix64) -> bool {
        rng.below(Self::WHOLE as u64) < self.0 as u64
    }
}

/// What a link does to packets. The default is a perfect link: nothing lost, no delay, no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkConfig {
    /// One-way travel time.
    pub delay: Duration,
    /// Each packet travels up to this much longer, evenly distributed.
    pub jitter: Duration,
    /// Packets that never arrive.
    pub loss: Chance,
    /// Packets that arrive twice.
    pub duplicate: Chance,
    /// Packets that are held back by [`Self::held_back`], so that later ones overtake them.
    pub reorder: Chance,
    /// How much later a reordered packet arrives.
    pub held_back: Duration,
    /// The bottleneck, if there is one.
    pub bottleneck: Option<Bottleneck>,
}

/// A rate and the queue in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bottleneck {
    /// Bits per second; zero lets nothing through.
    pub bits_per_second: u64,
    /// Bytes that may wait; a packet that would not fit is dropped.
    pub queue_bytes: usize,
}

impl LinkConfig {
    /// A link that only takes time.
    #[must_use]
    pub fn with_delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// True where packets sent together stay together, so that a batch may pass as one unit.
    #[must_use]
    pub fn keeps_batches(&self) -> bool {
        self.bottleneck.is_none()
            && self.jitter.is_zero()
            && [self.loss, self.duplicate, self.reorder].iter().all(|chance| *chance == Chance::NEVER)
    }
}

/// When the copies of one packet arrive: none, one or two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// The packet itself, unless it was lost.
    pub first: Option<Instant>,
    /// Its duplicate, if there is one.
    pub second: Option<Instant>,
}

impl IntoIterator for Arrivals {
    type Item = Instant;
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<Instant>, 2>>;

    fn into_iter(self) -> Self::IntoIter {
        [self.first, self.second].into_iter().flatten()
    }
}

/// One direction of a link.
#[derive(Clone, Debug)]
pub struct Link {
    config: LinkConfig,
    rng: SplitMix64,
    /// When the bottleneck has sent all that was accepted.
    busy_until: Option<Instant>,
    /// The latest arrival of a packet that keeps its place.
    last_arrival: Option<Instant>,
}

impl Link {
    /// A link whose chance comes from `seed`.
    #[must_use]
    pub const fn new(config: LinkConfig, seed: u64) -> Self {
        Self { config, rng: SplitMix64::new(seed), busy_until: None, last_arrival: None }
    }

    /// What the link does at present.
    #[must_use]
    pub const fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// Changes what the link does to packets sent from here on. Packets under way keep their arrival times.
    pub fn set_config(&mut self, config: LinkConfig) {
        self.config = config;
        self.busy_until = None;
        self.last_arrival = None;
    }

    /// How long the bottleneck takes for all that it has accepted.
    #[must_use]
    pub fn waiting(&self, now: Instant) -> Duration {
        self.busy_until.map_or(Duration::ZERO, |busy| busy.saturating_duration_since(now))
    }

    /// Sends a packet of `bytes` at `now` and says when it arrives. Calls come in the order of time.
    pub fn send(&mut self, now: Instant, bytes: usize) -> Arrivals {
        let Some(sent) = self.pass_bottleneck(now, bytes) else {
            return Arrivals::default();
        };
        // Loss comes after the bottleneck: a packet lost on the way has taken its share of the rate.
        if self.config.loss.strikes(&mut self.rng) {
            return Arrivals::default();
        }
        let first = self.travel(sent);
        let second = self.config.duplicate.strikes(&mut self.rng).then(|| self.travel(sent));
        Arrivals { first: Some(first), second }
    }

    /// When the last bit of the packet leaves the queue; nothing if the queue is full.
    fn pass_bottleneck(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        let Some(Bottleneck { bits_per_second, queue_bytes }) = self.config.bottleneck else {
            return Some(now);
        };
        let start = self.busy_until.map_or(now, |busy| busy.max(now));
        let waiting = start.duration_since(now).as_nanos() * u128::from(bits_per_second) / (8 * NANOS_PER_SECOND);
        // The packet in transmission counts as waiting; an idle link takes a packet whatever the queue's size.
        let full = start > now && waiting + bytes as u128 > queue_bytes as u128;
        if bits_per_second == 0 || full {
            return None;
        }
        let takes = bytes as u128 * 8 * NANOS_PER_SECOND / u128::from(bits_per_second);
        let done = start + Duration::from_nanos(u64::try_from(takes).unwrap_or(u64::MAX));
        self.busy_until = Some(done);
        Some(done)
    }

    fn travel(&mut self, sent: Instant) -> Instant {
        let jitter = u64::try_from(self.config.jitter.as_nanos()).unwrap_or(u64::MAX);
        let longer = Duration::from_nanos(self.rng.below(jitter.saturating_add(1)));
        let arrival = sent + self.config.delay + longer;
        if self.config.reorder.strikes(&mut self.rng) {
            return arrival + self.config.held_back;
        }
        let in_order = self.last_arrival.map_or(arrival, |last| last.max(arrival));
        self.last_arrival = Some(in_order);
        in_order
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;

    #[test]
    fn a_perfect_link_delivers_at_once() {
        let now = epoch();
        assert_eq!(Link::new(LinkConfig::default(), 1).send(now, 1_200), Arrivals { first: Some(now), second: None });
    }

    #[test]
    fn a_delay_is_the_same_for_every_packet() {
        let now = epoch();
        let mut link = Link::new(LinkConfig::with_delay(ms(15)), 1);
        assert_eq!(link.send(now, 100).first, Some(now + ms(15)));
        assert_eq!(link.send(now + ms(1), 100).first, Some(now + ms(16)));
    }

    #[test]
    fn jitter_stays_within_its_bound_and_never_reorders() {
        let config = LinkConfig { jitter: ms(5), ..LinkConfig::with_delay(ms(10)) };
        let travelled = run(config, 3, 1_000);
        let now = epoch();
        assert!(travelled.is_sorted());
        for (sent, arrival) in travelled.iter().enumerate() {
            let took = *arrival - (now + us(sent as u64));
            assert!(took >= ms(10) && took <= ms(15), "packet {sent} took {took:?}");
        }
    }

    #[test]
    fn loss_is_close_to_its_chance() {
        let arrived = run(LinkConfig { loss: Chance::percent(2), ..LinkConfig::default() }, 4, 100_000).len();
        assert!((97_700..98_300).contains(&arrived), "{arrived} of 100000 arrived");
    }

    #[test]
    fn total_loss_delivers_nothing() {
        assert!(run(LinkConfig { loss: Chance::ALWAYS, ..LinkConfig::default() }, 5, 100).is_empty());
    }

    #[test]
    fn duplication_delivers_a_second_copy() {
        let arrived = run(LinkConfig { duplicate: Chance::ALWAYS, ..LinkConfig::default() }, 6, 100);
        assert_eq!(arrived.len(), 200);
    }

    #[test]
    fn a_reordered_packet_is_overtaken() {
        let config = LinkConfig { reorder: Chance::percent(10), held_back: ms(1), ..LinkConfig::default() };
        assert!(!run(config, 7, 1_000).is_sorted());
    }

    #[test]
    fn the_rate_spaces_packets() {
        let now = epoch();
        let mut link = Link::new(narrow(8_000_000, 100_000), 1);
        assert_eq!(link.send(now, 1_000).first, Some(now + ms(1)));
        assert_eq!(link.send(now, 1_000).first, Some(now + ms(2)));
        assert_eq!(link.send(now + ms(10), 1_000).first, Some(now + ms(11)), "an idle link has no backlog");
    }

    #[test]
    fn a_full_queue_drops_what_comes_last() {
        let now = epoch();
        let mut link = Link::new(narrow(8_000_000, 3_000), 1);
        let accepted = (0..10).filter(|_| link.send(now, 1_000).first.is_some()).count();
        assert_eq!(accepted, 3);
        assert!(link.send(now + ms(1), 1_000).first.is_some(), "a packet left, so there is room for one");
    }

    #[test]
    fn a_rate_of_zero_lets_nothing_through() {
        assert!(run(narrow(0, 1_000), 1, 10).is_empty());
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let config = LinkConfig {
            jitter: ms(3),
            loss: Chance::percent(5),
            duplicate: Chance::percent(1),
            reorder: Chance::percent(1),
            held_back: ms(2),
            ..narrow(1_000_000_000, 50_000)
        };
        assert_eq!(run(config.clone(), 8, 5_000), run(config.clone(), 8, 5_000));
        assert_ne!(run(config.clone(), 8, 5_000), run(config, 9, 5_000));
    }

    #[test]
    fn only_an_even_link_keeps_batches() {
        assert!(LinkConfig::with_delay(ms(20)).keeps_batches());
        assert!(!LinkConfig { loss: Chance::per_million(1), ..LinkConfig::default() }.keeps_batches());
        assert!(!narrow(1, 1).keeps_batches());
    }

    /// Sends `packets`, a microsecond apart, and returns the arrivals in the order of sending.
    fn run(config: LinkConfig, seed: u64, packets: u64) -> Vec<Instant> {
        let now = epoch();
        let mut link = Link::new(config, seed);
        (0..packets).flat_map(|n| link.send(now + us(n), 1_200)).collect()
    }

    fn narrow(bits_per_second: u64, queue_bytes: usize) -> LinkConfig {
        LinkConfig { bottleneck: Some(Bottleneck { bits_per_second, queue_bytes }), ..LinkConfig::default() }
    }

    /// One arbitrary instant, the same for the whole test program.
    fn epoch() -> Instant {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        *EPOCH.get_or_init(Instant::now)
    }

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    const fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }
}
