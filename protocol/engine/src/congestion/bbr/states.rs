//! What is done to learn of the path, and when (§5.3).
//!
//! ```text
//!   Startup ──► Drain ──► Down ──► Cruise ──► Refill ──► Up
//!                          ▲                              │
//!                          └──────────────────────────────┘      ProbeRtt: from anywhere, and back or to Startup
//! ```
//!
//! Startup doubles the rate until the path delivers no more, and Drain takes back what it queued. Then, every two or three seconds, the
//! pipe is filled (Refill) and more is tried (Up), until the path loses too much or delivers no more; Down empties the queue, and
//! Cruise leaves a little room for others. Every five seconds that brought no shorter round trip, ProbeRtt halves what is under way for
//! 200 ms, so that all flows see the path without their queues. It also does so, for a round, where round trips are longer than the queue that
//! this flow may make: if the shortest is then more than twice what it was, packets take another way by now, and Startup begins anew.

use std::time::{Duration, Instant};

use super::delivery::Sample;
use super::model::BETA;
use super::{Bbr, initial_window};

/// 4 ln 2: the rate that doubles what is delivered each round (§2.4, StartupPacingGain).
const STARTUP: f64 = 2.77;
/// What Startup queued is gone in a round (§2.4, DrainPacingGain).
const DRAIN: f64 = 0.5;
/// §5.6.1.
const DOWN: f64 = 0.9;
const UP: f64 = 1.25;
/// Windows, in products of rate and round trip (§5.6.1).
const WINDOW: f64 = 2.0;
const UP_WINDOW: f64 = 2.25;
const LOOK_WINDOW: f64 = 0.5;
/// §2.13, ProbeRTTInterval and ProbeRTTDuration.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_LASTS: Duration = Duration::from_millis(200);
/// More is tried after two seconds and a part of a third one, or after as many rounds as a Reno flow would take to have its share of
/// such a path, at most 63 (§5.3.3.5).
const PROBE_AFTER: Duration = Duration::from_secs(2);
const MOST_ROUNDS: u64 = 63;
/// Growth of the bound within a round doubles each round, up to so many times (§5.3.3.6).
const MOST_DOUBLINGS: u32 = 30;

/// Where a flow is, and what belongs to that.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Startup,
    Drain,
    Down(Cycle),
    Cruise(Cycle),
    Refill,
    Up(Climb),
    ProbeRtt(Look),
}

/// When more is to be tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cycle {
    at: Instant,
    /// What arrives is still what Up sent.
    probe_arrives: bool,
}

/// How fast the long bound is raised, while it is what holds back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Climb {
    doublings: u32,
    acked: u64,
    /// Bytes to be acknowledged for each packet that the bound is raised by.
    for_a_packet: u64,
}

impl Climb {
    /// Another round: twice as fast.
    fn steeper(self, window: u64, packet: u64) -> Self {
        let for_a_packet = (window >> self.doublings).max(packet);
        Self { doublings: (self.doublings + 1).min(MOST_DOUBLINGS), for_a_packet, ..self }
    }
}

/// A look at the round trip.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    until: Option<Instant>,
    /// A whole round had so little under way.
    round_done: bool,
    window_before: u64,
    /// It is to tell whether the path is still the one that the model is of.
    suspects: bool,
}

impl State {
    pub(super) fn pacing_gain(&self) -> f64 {
        match self {
            Self::Startup => STARTUP,
            Self::Drain => DRAIN,
            Self::Down(_) => DOWN,
            Self::Up(_) => UP,
            Self::Cruise(_) | Self::Refill | Self::ProbeRtt(_) => 1.0,
        }
    }

    pub(super) fn window_gain(&self) -> f64 {
        match self {
            Self::Up(_) => UP_WINDOW,
            Self::ProbeRtt(_) => LOOK_WINDOW,
            _ => WINDOW,
        }
    }
}

/// The state machine.
impl Bbr {
    /// What an acknowledgement changes, after [`Self::learn`].
    pub(super) fn decide(&mut self, now: Instant, sample: &Sample) {
        if matches!(self.state, State::Startup) && self.model.pipe.was_full {
            self.state = State::Drain;
        }
        if matches!(self.state, State::Drain) && self.delivery.in_flight <= self.with_batches(self.product(1.0)) {
            self.start_down(now);
        }
        if self.model.pipe.was_full {
            self.adapt_long_bound(sample);
            self.go_on_probing(now, sample);
        }
        let suspects = self.model.is_far_off(now) && !matches!(self.state, State::ProbeRtt(_));
        let look_is_due = suspects || self.model.looked.is_older_than(LOOK_EVERY, now);
        self.learn_rtt(now, sample, look_is_due);
        self.look_at_rtt(now, look_is_due, suspects);
    }

    /// What was under way without too much loss can be under way (BBRAdaptLongTermModel).
    fn adapt_long_bound(&mut self, sample: &Sample) {
        if let State::Down(cycle) | State::Cruise(cycle) = &mut self.state
            && cycle.probe_arrives
            && self.model.round.starts
        {
            cycle.probe_arrives = false;
            self.judges_losses = false;
            if !sample.app_limited {
                self.model.end_cycle();
            }
        }
        let Some(long) = self.model.bounds.long.filter(|_| !sample.lost_too_much()) else { return };
        self.model.bounds.long = Some(long.max(sample.in_flight));
        if let State::Up(climb) = self.state
            && self.window_is_short()
            && self.window >= long
        {
            let acked = climb.acked + sample.newly_acked;
            let packets = acked / climb.for_a_packet;
            self.model.bounds.long = Some(long.max(sample.in_flight) + packets * self.packet);
            let climb = Climb { acked: acked % climb.for_a_packet, ..climb };
            let steeper = self.model.round.starts;
            self.state = State::Up(if steeper { climb.steeper(self.window, self.packet) } else { climb });
        }
    }

    /// The cycle of Down, Cruise, Refill and Up (BBRUpdateProbeBWCyclePhase).
    fn go_on_probing(&mut self, now: Instant, sample: &Sample) {
        match self.state {
            State::Down(cycle) | State::Cruise(cycle) if self.is_time_to_probe(now, cycle) => {
                self.model.lift_short_bounds();
                self.start(State::Refill);
            }
            State::Down(cycle) if self.queue_is_gone() => self.state = State::Cruise(cycle),
            State::Refill if self.model.round.starts => {
                self.judges_losses = true;
                let flat = Climb { doublings: 0, acked: 0, for_a_packet: 0 };
                self.start(State::Up(flat.steeper(self.window, self.packet)));
                self.model.look_for_growth(sample.rate.unwrap_or_default());
            }
            State::Up(_)
                if self.window_is_short() && self.model.bounds.long.is_some_and(|long| self.window >= long) =>
            {
                // The bound holds it back, not the path.
                self.model.look_for_growth(sample.rate.unwrap_or_default());
            }
            State::Up(_) if self.model.pipe.is_full => self.start_down(now),
            _ => {}
        }
    }

    fn is_time_to_probe(&self, now: Instant, cycle: Cycle) -> bool {
        let packets = self.target() / self.packet;
        now >= cycle.at || self.model.round.since_probe >= packets.min(MOST_ROUNDS)
    }

    /// What should be under way, if nothing else bounds it (BBRTargetInflight).
    fn target(&self) -> u64 {
        self.product(1.0).min(self.window)
    }

    fn queue_is_gone(&self) -> bool {
        let most = self.with_batches(self.product(1.0));
        self.delivery.in_flight <= self.long_with_headroom().unwrap_or(u64::MAX).min(most)
    }

    fn start(&mut self, state: State) {
        self.state = state;
        self.model.start_round(self.delivery.delivered);
    }

    fn start_down(&mut self, now: Instant) {
        self.model.forget_losses();
        // Flows that began together must not probe together. There is no randomness here: when this happens, to the nanosecond, and
        // after how many bytes, is chance enough.
        let chance = mixed(self.delivery.delivered ^ self.model.age_in_nanos(now));
        self.model.round.since_probe = chance & 1;
        let part = Duration::from_micros((chance >> 1) % 1_000_000);
        self.start(State::Down(Cycle { at: now + PROBE_AFTER + part, probe_arrives: true }));
    }

    /// The path lost too much of what was tried; this much it bore (BBRHandleInflightTooHigh).
    pub(super) fn too_much(&mut self, now: Instant, borne: u64, app_limited: bool) {
        self.judges_losses = false;
        if !app_limited {
            self.model.bounds.long = Some(borne.max((BETA * self.target() as f64) as u64));
        }
        if let State::Up(_) = self.state {
            self.start_down(now);
        }
    }

    /// What may be under way during a look.
    pub(super) fn window_of(&self, look: Look) -> u64 {
        if look.suspects { self.smallest_window() } else { self.product(LOOK_WINDOW).max(self.smallest_window()) }
    }

    /// §5.3.4.
    fn look_at_rtt(&mut self, now: Instant, is_due: bool, suspects: bool) {
        if is_due && !self.restarted && !matches!(self.state, State::ProbeRtt(_)) {
            self.start(State::ProbeRtt(Look { until: None, round_done: false, window_before: self.window, suspects }));
            self.judges_losses = false;
        }
        let State::ProbeRtt(look) = self.state else { return };
        // What is delivered meanwhile is less than the path can do.
        self.delivery.mark_app_limited();
        match look.until {
            None if self.delivery.in_flight <= self.window_of(look) => {
                let until = if look.suspects { now } else { now + LOOK_LASTS };
                self.start(State::ProbeRtt(Look { until: Some(until), ..look }));
            }
            None => {}
            Some(until) => {
                let look = Look { round_done: look.round_done || self.model.round.starts, ..look };
                self.state = State::ProbeRtt(look);
                if look.round_done && now > until {
                    self.end_look(now, look);
                }
            }
        }
    }

    /// What the window was before a look is not given back: it is as small as it is for a better reason.
    pub(super) fn forget_window_before_look(&mut self) {
        if let State::ProbeRtt(look) = &mut self.state {
            look.window_before = self.window;
        }
    }

    fn end_look(&mut self, now: Instant, look: Look) {
        if look.suspects {
            // Round trips of packets that left before the look are those of the full window.
            if look.round_done && self.model.looks_longer() {
                return self.begin_anew(now, look);
            }
            self.model.trust_until(now + LOOK_EVERY);
        }
        self.model.looked.renew(now);
        self.window = self.window.max(look.window_before);
        self.model.lift_short_bounds();
        if !self.model.pipe.was_full {
            self.state = State::Startup;
            return;
        }
        self.start_down(now);
        if let State::Down(cycle) = self.state {
            self.state = State::Cruise(cycle);
        }
    }

    /// As on a path of which nothing is known but its round trip.
    fn begin_anew(&mut self, now: Instant, look: Look) {
        self.model = self.model.of_another_path(now, self.delivery.delivered);
        self.model.trust_until(now + LOOK_EVERY);
        // RFC 9000 section 9.4; unless persistent congestion has taken it.
        self.window = initial_window(self.packet).min(look.window_before);
        self.pace = None;
        self.state = State::Startup;
    }

    /// Sending begins again after a silence: at the rate that was, not faster (§5.4).
    pub(super) fn restart(&mut self, now: Instant) {
        self.restarted = true;
        self.model.restart(now);
        match self.state {
            State::Down(_) | State::Cruise(_) | State::Refill | State::Up(_) => self.pace_after_silence(),
            State::ProbeRtt(look) if look.until.is_some_and(|until| now > until) => self.end_look(now, look),
            State::ProbeRtt(_) | State::Startup | State::Drain => {}
        }
    }
}

/// Bits of `seed` that follow no pattern of it: the finalizer of SplitMix64.
fn mixed(seed: u64) -> u64 {
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}
