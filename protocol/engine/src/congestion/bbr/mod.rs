//! BBR, version 3: sends as fast as the path delivers, and keeps no more under way than that takes.
//!
//! CUBIC halts at every loss, whatever lost it, so that a radio link which loses one packet in fifty is a hundred times too fast for it; and
//! where nothing is lost it fills whatever queue there is. BBR measures instead: the highest rate at which acknowledgements came
//! lately, and the shortest round trip. Their product is what the path holds. It paces by the rate, bounds what is under way by
//! twice the product, and every few seconds tries whether there is more. Loss is heard where packets wait in a queue: any outside
//! of those trials, above 2 % of a round trip's flight within them.
//!
//! This is draft-ietf-ccwg-bbr-05; sections are cited as §. What differs, mostly because of what quinn-proto tells a controller:
//!
//! * Packets that left together share one note ([`delivery`]), and of a batch of losses the newest is known. Where the draft
//!   looks at each lost packet, this looks at each batch.
//! * The loss of an acknowledgement's batch is told after the batch, so that it counts one acknowledgement later.
//! * There is no packet conservation in recovery (§5.6.4.4): quinn-proto tells of no recovery, and the bounds of §5.5.10 do the same within
//!   a round trip.
//! * A mark of congestion (ECN) counts as loss without bytes: as RFC 3168 wants, and the draft leaves open.
//! * A loss that comes while round trips are as short as they ever are is not that of a full queue, and counts for two fifths
//!   (docs/decisions/0045-losses-without-a-queue.md). The draft knows losses of one kind.
//! * Round trips that this flow's own packets cannot explain lead to a look at the path at once, and to a new Startup where it is another one: where
//!   the draft waits for ten seconds and climbs by a quarter each few.
//! * Filters over ten rounds have two spans of five.
//! * It is never slower than the smallest window in a round trip: the draft's window lets that much out, too.
//!
//! [`model`] is what is known of the path, [`states`] what is done to learn it, and this file what follows from both.

mod delivery;
mod filters;
mod model;
mod states;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerMetrics};

use self::delivery::{Delivery, Sample};
use self::model::Model;
use self::states::State;

/// RFC 9002 section 7.2: ten packets, and no more than this in bytes where they are large.
const INITIAL_PACKETS: u64 = 10;
const INITIAL_BYTES: u64 = 14_720;
/// With fewer packets under way acknowledgements that come for every two would stop the flow (§2.7, MinPipeCwnd).
const MIN_PACKETS: u64 = 4;
/// So much slower than measured, lest the queue grow by the error of the measurement (§5.6.2, PacingMarginPercent).
const PACING_MARGIN: f64 = 0.01;
/// Batches that are being filled, on their way and being acknowledged (§5.6.4.2, offload budget).
const BATCHES: u64 = 3;
/// A batch is what leaves in a millisecond, at most 64 KiB, what one call hands to the kernel (§5.6.3).
const BATCH_SECONDS: f64 = 0.001;
const MAX_BATCH: u64 = 64 << 10;

/// The controller of one path.
#[derive(Clone, Debug)]
pub(super) struct Bbr {
    /// Bytes of a full packet (SMSS).
    packet: u64,
    window: u64,
    /// Bytes per second; `None` before the first round trip.
    pace: Option<f64>,
    delivery: Delivery,
    model: Model,
    state: State,
    /// Whether so much was under way that the window held data back: in this round, and in the one before.
    held_back: [bool; 2],
    /// Sending began again after there was nothing to send and nothing under way.
    restarted: bool,
    /// What is lost is what was tried, and tells how much the path bears (§5.5.10, bw_probe_samples).
    judges_losses: bool,
}

impl Bbr {
    pub(super) fn new(now: Instant, packet: u16) -> Self {
        let packet = u64::from(packet);
        Self {
            packet,
            window: initial_window(packet),
            pace: None,
            delivery: Delivery::new(now),
            model: Model::new(now),
            state: State::Startup,
            held_back: [false; 2],
            restarted: false,
            judges_losses: false,
        }
    }

    fn smallest_window(&self) -> u64 {
        MIN_PACKETS * self.packet
    }

    /// Bytes per second: the smallest window in each round trip. Who has sent little so far has measured as little, and its next
    /// packets, and the acknowledgements in them, would wait for seconds.
    fn slowest_pace(&self) -> f64 {
        let rtt = self.model.shortest_rtt().map_or(1.0, |rtt| rtt.as_secs_f64().max(1e-6));
        self.smallest_window() as f64 / rtt
    }

    /// What the path holds, so many times over (§5.6.4.2).
    fn product(&self, gain: f64) -> u64 {
        match self.model.shortest_rtt() {
            Some(rtt) if self.model.rate() > 0.0 => (gain * self.model.rate() * rtt.as_secs_f64()) as u64,
            _ => (gain * initial_window(self.packet) as f64) as u64,
        }
    }

    /// What must be under way for that, since packets leave and arrive in batches (BBRQuantizationBudget).
    fn with_batches(&self, bytes: u64) -> u64 {
        let more = if let State::Up(_) = self.state { 2 * self.packet } else { 0 };
        bytes.max(BATCHES * self.batch()).max(self.smallest_window()) + more
    }

    fn batch(&self) -> u64 {
        let rate = self.pace.unwrap_or_default();
        ((rate * BATCH_SECONDS) as u64).clamp(2 * self.packet, MAX_BATCH)
    }

    /// Whether the window held data back in the last round trip or so.
    fn window_is_short(&self) -> bool {
        self.held_back.contains(&true)
    }

    /// Everything that follows from an acknowledgement (§5.2.3).
    fn on_sample(&mut self, now: Instant, sample: &Sample) {
        self.learn(now, sample);
        self.decide(now, sample);
        self.model.end_of_sample(sample);
        self.set_pace();
        self.set_window(sample.newly_acked);
        if self.model.round.starts {
            self.held_back = [false, self.held_back[0]];
        }
        self.restarted = false;
    }

    /// §5.6.2.
    fn set_pace(&mut self) {
        let rate = self.state.pacing_gain() * self.model.rate() * (1.0 - PACING_MARGIN);
        match self.pace {
            // The first flight took a round trip; the next may leave twice as fast.
            None => {
                let rtt = self.model.shortest_rtt().map_or(BATCH_SECONDS, |rtt| rtt.as_secs_f64().max(1e-6));
                let first = self.state.pacing_gain() * initial_window(self.packet) as f64 / rtt;
                self.pace = Some(first.max(rate));
            }
            Some(pace) if self.model.pipe.was_full || rate > pace => self.pace = Some(rate.max(self.slowest_pace())),
            Some(_) => {}
        }
    }

    /// The rate that was measured.
    fn pace_after_silence(&mut self) {
        self.pace = Some((self.model.rate() * (1.0 - PACING_MARGIN)).max(self.slowest_pace()));
    }

    /// §5.6.4.6.
    fn set_window(&mut self, newly_acked: u64) {
        let most = self.with_batches(self.product(self.state.window_gain()) + self.model.aggregation());
        if self.model.pipe.was_full {
            self.window = most.min(self.window + newly_acked);
        } else if self.window < most || self.delivery.delivered < initial_window(self.packet) {
            self.window += newly_acked;
        }
        let bound = self.bound().max(self.smallest_window());
        self.window = self.window.clamp(self.smallest_window(), bound);
    }

    /// What the bounds of the path leave (§5.6.4.7), and what a look at the round trip does (§5.6.4.5).
    fn bound(&self) -> u64 {
        let long = match self.state {
            State::Down(_) | State::Refill | State::Up(_) => self.model.bounds.long,
            State::Cruise(_) => self.long_with_headroom(),
            State::ProbeRtt(look) => Some(self.long_with_headroom().unwrap_or(u64::MAX).min(self.window_of(look))),
            State::Startup | State::Drain => None,
        };
        [long, self.model.bounds.short].into_iter().flatten().min().unwrap_or(u64::MAX)
    }
}

impl Controller for Bbr {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        if self.delivery.in_flight == 0 && self.delivery.is_app_limited() {
            self.restart(now);
        }
        self.delivery.on_sent(now, bytes);
        self.held_back[0] |= self.delivery.in_flight + self.packet >= self.window;
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _app_limited: bool, _rtt: &RttEstimator) {
        self.delivery.on_ack(now, sent, bytes);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _largest: Option<u64>) {
        let sample = self.delivery.take_sample(now, in_flight, self.model.shortest_rtt());
        if app_limited {
            self.delivery.mark_app_limited();
        }
        if let Some(sample) = sample {
            // What there is to send is known when an acknowledgement comes, not when the last of it leaves.
            self.on_sample(now, &Sample { app_limited: sample.app_limited || app_limited, ..sample });
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.on_loss(now, sent, lost_bytes);
        if is_persistent_congestion {
            // Nothing arrived for a long time: what the model says is of another path. It is believed again as fast as
            // acknowledgements come (§5.6.4.4).
            self.window = self.smallest_window();
            self.forget_window_before_look();
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.packet = u64::from(new_mtu);
        self.window = self.window.max(self.smallest_window());
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window;
        metrics.pacing_rate = self.pace.map(|rate| (rate * 8.0) as u64);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        initial_window(self.packet)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn initial_window(packet: u64) -> u64 {
    (INITIAL_PACKETS * packet).min(INITIAL_BYTES.max(2 * packet))
}
