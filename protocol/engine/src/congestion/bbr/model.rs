//! What is known of the path: its rate, its round trip, and how much it bears (§5.5).

use std::time::{Duration, Instant};

use super::Bbr;
use super::delivery::Sample;
use super::filters::{Highest, Shortest};
use super::states::State;

/// The shortest round trip is believed for so long (§2.13, MinRTTFilterLen).
const RTT_LASTS: Duration = Duration::from_secs(10);
/// More than this of a flight lost is too much (§2.7, LossThresh).
const TOO_LOSSY: f64 = 0.02;
/// What is lost without a queue counts for two fifths, so that 5 % of it are too much. A queue too short to be seen loses more than that of what Up
/// sends, if the flow has more than a fifth of the line: a quarter of its part is beyond the rate.
const CHANCE: f64 = 0.4;
/// There is a queue where a round trip is longer than the shortest by a 16th, by more than timers err, and by more than three packets take, since
/// those of a train (`pacer.rs`) wait for each other.
const QUEUE_OF_RTT: u32 = 16;
const QUEUE: Duration = Duration::from_millis(2);
const TRAIN_PACKETS: u64 = 3;
/// Rounds are far off whose every round trip is longer, by a quarter and this, than what may be under way takes at the rate that was measured.
const FAR: Duration = Duration::from_millis(5);
/// So many in a row are no accident.
const FAR_ROUNDS: u32 = 3;
/// A shortest round trip that is so many times what it was, and [`FAR`] more, belongs to another path.
const ANOTHER_PATH: u32 = 2;
/// What is left of a bound after a round trip with loss (§2.7, Beta).
pub(super) const BETA: f64 = 0.7;
/// What is left free of the most that the path bears, for others (§2.7, Headroom).
const HEADROOM: f64 = 0.15;
/// Batches of lost packets in a round trip of Startup that are no accident (§5.3.1.3, StartupFullLossCnt).
const LOSSES_OF_A_FULL_PIPE: u32 = 6;
/// A rate that grew by less is no growth, and after so many rounds of none the pipe is full (§5.3.1.2).
const GROWTH: f64 = 1.25;
const ROUNDS_WITHOUT_GROWTH: u32 = 3;
/// Rounds in one of the two spans of the aggregation filter: ten together (§2.11, ExtraAckedFilterLen).
const AGGREGATION_ROUNDS: u64 = 5;

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Bytes per second: the highest of this cycle of probing and the one before (§5.5.5).
    rates: Highest,
    rtt: Shortest,
    /// The shortest since the last look, which says whether another one is due (§5.3.4).
    pub(super) looked: Shortest,
    /// The last round trip: when it began, and how long it took.
    pub(super) last: Option<(Instant, Duration)>,
    far: Far,
    pub(super) round: Round,
    pub(super) pipe: Pipe,
    losses: Losses,
    /// The best of the current round for losses (§5.5.10, bw_latest and inflight_latest).
    latest_rate: f64,
    latest_delivered: u64,
    pub(super) bounds: Bounds,
    extra: Extra,
    since: Instant,
}

/// A round trip, as packets take it: from the departure of one to its acknowledgement (§5.5.1).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Round {
    ends_at: u64,
    pub(super) starts: bool,
    /// Rounds since the rate was probed.
    pub(super) since_probe: u64,
}

/// Whether a rate that was offered was met by growth (§5.3.1.2).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pipe {
    highest: f64,
    without_growth: u32,
    pub(super) is_full: bool,
    /// It was, at some time on this path: Startup is over.
    pub(super) was_full: bool,
}

/// Whether round trips are longer than this flow's own packets can make them.
#[derive(Clone, Copy, Debug, Default)]
struct Far {
    /// The shortest of this round.
    shortest: Option<Duration>,
    rounds: u32,
    /// A look has told that the path is the same: nothing is suspected until then.
    trusted_until: Option<Instant>,
}

/// Losses in a round.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    ends_at: u64,
    starts: bool,
    /// Batches, those of them that a queue explains, bytes by weight ([`CHANCE`]), and what had been delivered when the round began.
    batches: u32,
    of_a_queue: u32,
    weighed: u64,
    delivered_before: u64,
}

/// How much may be under way, where that is known (§5.5.10).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bounds {
    /// What the path bore before it lost too much.
    pub(super) long: Option<u64>,
    /// What the losses since the last probe leave.
    pub(super) short: Option<u64>,
    short_rate: Option<f64>,
}

/// What acknowledgements bring beyond the rate, since they come together (§5.5.9).
#[derive(Clone, Copy, Debug)]
struct Extra {
    since: Instant,
    acked: u64,
    highest: Highest,
    rounds: u64,
}

impl Model {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rates: Highest::default(),
            rtt: Shortest::new(now),
            looked: Shortest::new(now),
            last: None,
            far: Far::default(),
            round: Round::default(),
            pipe: Pipe::default(),
            losses: Losses::default(),
            latest_rate: 0.0,
            latest_delivered: 0,
            bounds: Bounds::default(),
            extra: Extra { since: now, acked: 0, highest: Highest::default(), rounds: 0 },
            since: now,
        }
    }

    /// The rate to go by, in bytes per second.
    pub(super) fn rate(&self) -> f64 {
        self.bounds.short_rate.map_or(self.rates.get(), |bound| bound.min(self.rates.get()))
    }

    pub(super) fn shortest_rtt(&self) -> Option<Duration> {
        self.rtt.get()
    }

    pub(super) fn aggregation(&self) -> u64 {
        self.extra.highest.get() as u64
    }

    pub(super) fn age_in_nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.since).as_nanos()).unwrap_or_default()
    }

    /// A round begins with what leaves next.
    pub(super) fn start_round(&mut self, delivered: u64) {
        self.round.ends_at = delivered;
    }

    /// The cycle of probing is over: rates of the one before it are forgotten.
    pub(super) fn end_cycle(&mut self) {
        self.rates.advance();
    }

    /// The model of a path that has this one's round trip of late, and nothing else of it.
    pub(super) fn of_another_path(&self, now: Instant, delivered: u64) -> Self {
        let rtt = Shortest::of(self.looked.get(), now);
        Self { rtt, looked: rtt, round: Round { ends_at: delivered, ..Round::default() }, ..Self::new(now) }
    }

    /// Whether round trips have been longer for a while than this flow can make them.
    pub(super) fn is_far_off(&self, now: Instant) -> bool {
        self.pipe.was_full && self.far.rounds >= FAR_ROUNDS && self.far.trusted_until.is_none_or(|until| now > until)
    }

    /// It was looked at, and is the same path.
    pub(super) fn trust_until(&mut self, time: Instant) {
        self.far = Far { trusted_until: Some(time), ..Far::default() };
    }

    /// Whether the shortest round trip of late is that of another path.
    pub(super) fn looks_longer(&self) -> bool {
        let both = self.looked.get().zip(self.rtt.get());
        both.is_some_and(|(looked, believed)| looked > believed * ANOTHER_PATH + FAR)
    }

    /// `window`: what may be under way.
    fn measure_distance(&mut self, sample: &Sample, window: u64) {
        let shortest = self.far.shortest.map_or(sample.rtt, |shortest| shortest.min(sample.rtt));
        if !self.round.starts {
            self.far.shortest = Some(shortest);
            return;
        }
        let rate = self.rates.get();
        // Who says little is answered late, too (RFC 9000 section 13.2.1).
        let tells = !sample.app_limited && rate > 0.0;
        let own = Duration::try_from_secs_f64(window as f64 / rate).unwrap_or_default();
        let near = own.max(self.rtt.get().unwrap_or_default()) * 5 / 4 + FAR;
        let rounds = if tells && shortest > near { self.far.rounds + 1 } else { 0 };
        self.far = Far { shortest: Some(sample.rtt), rounds, ..self.far };
    }

    /// Growth is looked for from this rate on.
    pub(super) fn look_for_growth(&mut self, from: f64) {
        self.pipe = Pipe { highest: from, without_growth: 0, is_full: false, ..self.pipe };
    }

    pub(super) fn forget_losses(&mut self) {
        (self.losses.batches, self.losses.of_a_queue, self.losses.weighed) = (0, 0, 0);
        (self.latest_rate, self.latest_delivered) = (0.0, 0);
    }

    pub(super) fn lift_short_bounds(&mut self) {
        (self.bounds.short, self.bounds.short_rate) = (None, None);
    }

    pub(super) fn restart(&mut self, now: Instant) {
        (self.extra.since, self.extra.acked) = (now, 0);
    }

    /// When the sample has been used (BBRAdvanceLatestDeliverySignals).
    pub(super) fn end_of_sample(&mut self, sample: &Sample) {
        if self.losses.starts {
            (self.latest_rate, self.latest_delivered) = (sample.rate.unwrap_or_default(), sample.delivered);
        }
    }

    /// Whether what left at `sent` may have been pushed out of a queue. The packet that the last acknowledgement is of left after it and
    /// met the same queue, unless it left much later, as a probe for the end of a flight does: then nothing is known.
    pub(super) fn may_be_of_a_queue(&self, sent: Instant, packet: u64) -> bool {
        let (Some((left, rtt)), Some(shortest)) = (self.last, self.rtt.get()) else { return true };
        let train = Duration::try_from_secs_f64((TRAIN_PACKETS * packet) as f64 / self.rates.get()).unwrap_or_default();
        let unseen = QUEUE.max(shortest / QUEUE_OF_RTT).max(train);
        rtt > shortest + unseen || left > sent + shortest / 2 + 2 * unseen
    }

    fn note_loss(&mut self, delivered: u64, weighed: u64, of_a_queue: bool) {
        if self.losses.batches == 0 {
            self.losses.ends_at = delivered;
            self.losses.delivered_before = delivered;
        }
        self.losses.batches += 1;
        self.losses.of_a_queue += u32::from(of_a_queue);
        self.losses.weighed += weighed;
    }

    fn measure_rtt(&mut self, now: Instant, rtt: Duration, look_is_due: bool) {
        self.looked.take(rtt, now, look_is_due);
        if let Some(looked) = self.looked.get() {
            let expired = self.rtt.is_older_than(RTT_LASTS, now);
            self.rtt.take(looked, self.looked.since(), expired);
        }
    }

    fn measure_growth(&mut self, sample: &Sample) {
        let Some(rate) = sample.rate.filter(|_| !sample.app_limited && !self.pipe.is_full) else { return };
        if rate >= self.pipe.highest * GROWTH {
            self.look_for_growth(rate);
        } else if self.round.starts {
            self.pipe.without_growth += 1;
            self.pipe.is_full = self.pipe.without_growth >= ROUNDS_WITHOUT_GROWTH;
            self.pipe.was_full |= self.pipe.is_full;
        }
    }
}

/// What an acknowledgement or a loss tells.
impl Bbr {
    pub(super) fn learn(&mut self, now: Instant, sample: &Sample) {
        let delivered = self.delivery.delivered;
        let model = &mut self.model;
        model.latest_rate = model.latest_rate.max(sample.rate.unwrap_or_default());
        model.latest_delivered = model.latest_delivered.max(sample.delivered);
        model.losses.starts = sample.prior_delivered >= model.losses.ends_at;
        if model.losses.starts {
            model.losses.ends_at = delivered;
        }
        model.round.starts = sample.prior_delivered >= model.round.ends_at;
        if model.round.starts {
            model.round.ends_at = delivered;
            model.round.since_probe += 1;
        }
        if let Some(rate) = sample.rate.filter(|rate| *rate >= model.rates.get() || !sample.app_limited) {
            model.rates.add(rate);
        }
        self.end_round_of_losses();
        self.measure_aggregation(now, sample.newly_acked);
        self.model.measure_distance(sample, self.window);
        self.model.measure_growth(sample);
    }

    /// A round trip with loss lowers the bounds, but not while more is tried (§5.5.10).
    fn end_round_of_losses(&mut self) {
        if !self.model.losses.starts {
            return;
        }
        let losses = self.model.losses;
        let delivered = self.delivery.delivered - losses.delivered_before;
        let lossy = losses.weighed as f64 > TOO_LOSSY * (delivered + losses.weighed) as f64;
        if (losses.of_a_queue > 0 || lossy) && !self.state.probes() {
            let model = &mut self.model;
            let rate = model.bounds.short_rate.unwrap_or(model.rates.get());
            model.bounds.short_rate = Some(model.latest_rate.max(BETA * rate));
            let short = model.bounds.short.unwrap_or(self.window) as f64;
            model.bounds.short = Some(model.latest_delivered.max((BETA * short) as u64));
        }
        if !self.model.pipe.was_full && losses.batches >= LOSSES_OF_A_FULL_PIPE && lossy {
            self.model.pipe.was_full = true;
            self.model.bounds.long = Some(self.product(1.0).max(self.model.latest_delivered));
        }
        self.model.losses = Losses { batches: 0, of_a_queue: 0, weighed: 0, ..losses };
    }

    fn measure_aggregation(&mut self, now: Instant, newly_acked: u64) {
        let expected = self.model.rate() * now.saturating_duration_since(self.model.extra.since).as_secs_f64();
        let model = &mut self.model;
        let mut beyond = model.extra.acked as f64 - expected;
        if beyond <= 0.0 {
            (model.extra.since, model.extra.acked, beyond) = (now, 0, 0.0);
        }
        model.extra.acked += newly_acked;
        if model.round.starts {
            model.extra.rounds += 1;
            let span = if model.pipe.was_full { AGGREGATION_ROUNDS } else { 1 };
            if model.extra.rounds >= span {
                model.extra.rounds = 0;
                model.extra.highest.advance();
            }
        }
        model.extra.highest.add((beyond + newly_acked as f64).min(self.window as f64));
    }

    /// The round trip, and whether it is time to look at it with an empty queue.
    pub(super) fn learn_rtt(&mut self, now: Instant, sample: &Sample, look_is_due: bool) {
        self.model.last = now.checked_sub(sample.rtt).map(|left| (left, sample.rtt));
        self.model.measure_rtt(now, sample.rtt, look_is_due);
    }

    /// §5.2.4.
    pub(super) fn on_loss(&mut self, now: Instant, sent: Instant, bytes: u64) {
        let marked = bytes == 0;
        let of_a_queue = marked || self.model.may_be_of_a_queue(sent, self.packet);
        let weight = if of_a_queue { 1.0 } else { CHANCE };
        let weighed = (bytes as f64 * weight) as u64;
        let lost = self.delivery.on_lost(sent, bytes, weighed);
        self.model.note_loss(self.delivery.delivered, weighed, of_a_queue);
        let Some((note, lost_since)) = lost.filter(|_| self.judges_losses) else { return };
        if marked || is_too_much(lost_since, note.in_flight) {
            let borne = borne_before(note.in_flight, lost_since.saturating_sub(weighed), bytes, weight);
            self.too_much(now, borne, note.app_limited);
        }
    }

    /// Leaves room for others (BBRInflightWithHeadroom).
    pub(super) fn long_with_headroom(&self) -> Option<u64> {
        let free = |long: u64| ((HEADROOM * long as f64) as u64).max(self.packet);
        self.model.bounds.long.map(|long| long.saturating_sub(free(long)).max(self.smallest_window()))
    }
}

/// How much was under way when the loss became too much, within the batch that was lost at last (§5.5.10.2, BBRInflightAtLoss). Each byte of
/// it counts with this weight, and `lost_before` is the weight of what was lost before it.
fn borne_before(in_flight: u64, lost_before: u64, batch: u64, weight: f64) -> u64 {
    let before = in_flight.saturating_sub(batch) as f64;
    let part = (TOO_LOSSY * before - lost_before as f64) / (weight - TOO_LOSSY);
    (before + part.clamp(0.0, batch as f64)) as u64
}

/// Whether a flight lost more than a path loses that is not full (IsInflightTooHigh).
fn is_too_much(lost: u64, of: u64) -> bool {
    lost as f64 > TOO_LOSSY * of as f64
}

impl Sample {
    pub(super) fn lost_too_much(&self) -> bool {
        is_too_much(self.lost, self.in_flight)
    }
}

impl State {
    /// While more is tried, loss says nothing of what was borne before (BBRIsProbingBW).
    fn probes(&self) -> bool {
        matches!(self, Self::Startup | Self::Refill | Self::Up(_))
    }
}
