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

/// Losses in a round.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    ends_at: u64,
    starts: bool,
    /// Batches, bytes, and what had been delivered when the round began.
    batches: u32,
    bytes: u64,
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

    /// Growth is looked for from this rate on.
    pub(super) fn look_for_growth(&mut self, from: f64) {
        self.pipe = Pipe { highest: from, without_growth: 0, is_full: false, ..self.pipe };
    }

    pub(super) fn forget_losses(&mut self) {
        self.losses.batches = 0;
        self.losses.bytes = 0;
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

    fn note_loss(&mut self, delivered: u64, bytes: u64) {
        if self.losses.batches == 0 {
            self.losses.ends_at = delivered;
            self.losses.delivered_before = delivered;
        }
        self.losses.batches += 1;
        self.losses.bytes += bytes;
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
        self.model.measure_growth(sample);
    }

    /// A round trip with loss lowers the bounds, but not while more is tried (§5.5.10).
    fn end_round_of_losses(&mut self) {
        if !self.model.losses.starts {
            return;
        }
        let losses = self.model.losses;
        if losses.batches > 0 && !self.state.probes() {
            let model = &mut self.model;
            let rate = model.bounds.short_rate.unwrap_or(model.rates.get());
            model.bounds.short_rate = Some(model.latest_rate.max(BETA * rate));
            let short = model.bounds.short.unwrap_or(self.window) as f64;
            model.bounds.short = Some(model.latest_delivered.max((BETA * short) as u64));
        }
        let delivered = self.delivery.delivered - losses.delivered_before;
        let lossy = losses.bytes as f64 > TOO_LOSSY * (delivered + losses.bytes) as f64;
        if !self.model.pipe.was_full && losses.batches >= LOSSES_OF_A_FULL_PIPE && lossy {
            self.model.pipe.was_full = true;
            self.model.bounds.long = Some(self.product(1.0).max(self.model.latest_delivered));
        }
        self.model.losses = Losses { batches: 0, bytes: 0, ..losses };
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
        self.model.measure_rtt(now, sample.rtt, look_is_due);
    }

    /// §5.2.4.
    pub(super) fn on_loss(&mut self, now: Instant, sent: Instant, bytes: u64) {
        let lost = self.delivery.on_lost(sent, bytes);
        self.model.note_loss(self.delivery.delivered, bytes);
        let Some((note, lost_since)) = lost.filter(|_| self.judges_losses) else { return };
        let marked = bytes == 0;
        if marked || is_too_much(lost_since, note.in_flight) {
            let borne = borne_before(note.in_flight, lost_since, bytes);
            self.too_much(now, borne, note.app_limited);
        }
    }

    /// Leaves room for others (BBRInflightWithHeadroom).
    pub(super) fn long_with_headroom(&self) -> Option<u64> {
        let free = |long: u64| ((HEADROOM * long as f64) as u64).max(self.packet);
        self.model.bounds.long.map(|long| long.saturating_sub(free(long)).max(self.smallest_window()))
    }
}

/// How much was under way when the loss became too much, within the batch that was lost at last (§5.5.10.2, BBRInflightAtLoss).
fn borne_before(in_flight: u64, lost_since: u64, batch: u64) -> u64 {
    let before = in_flight.saturating_sub(batch) as f64;
    let lost_before = lost_since.saturating_sub(batch) as f64;
    let part = (TOO_LOSSY * before - lost_before) / (1.0 - TOO_LOSSY);
    (before + part.max(0.0)) as u64
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
