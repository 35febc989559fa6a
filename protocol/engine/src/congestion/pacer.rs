//! Holds data back until its time, in the name of an algorithm that knows the rate of its path.
//!
//! quinn-proto has a pacer, whose rate is the window by the round trip, and a quarter more. That is enough for CUBIC, whose window
//! is what it knows. BBR sets a rate and a window that is twice what the rate needs, and the difference is what keeps its queue
//! short. quinn-proto asks a controller for nothing but its window, so that is where data are held back: while the gate
//! is closed the window is zero, and quinn-proto sends what needs no window: loss probes, and acknowledgements where no data wait
//! for the same packet. The driver is woken when the gate opens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A train of packets leaves in such intervals: timers have a granularity of a millisecond, and packets that leave together cost less
/// than each on its own.
const TRAIN: Duration = Duration::from_millis(1);
/// Or in this part of a round trip, where that is longer. A full queue drops the end of a train, and the receiver is left with one gap;
/// without trains it drops every second packet of a sender that is twice too fast. quinn-proto's receiver ends the connection
/// when there are more than 1024 gaps (`MAX_CHUNKS` in its `assembler.rs`), a round trip of 500 Mb/s at 100 ms has 4300 packets.
const TRAINS_IN_ROUND_TRIP: u32 = 128;
/// Where a round trip has fewer trains than this, whoever waits for an answer would feel the wait for the next: packets leave as they
/// may.
const MIN_TRAINS: u32 = 16;
/// A train is under way while this part of the interval has not passed.
const PART_OF_TRAIN: u32 = 4;
/// So many trains may be saved up, for timers that are late. quinn-proto's pacer has the same 2 ms.
const SAVED_TRAINS: f64 = 2.0;
/// The least that may be saved up, in packets: an initial window (RFC 9002 section 7.7).
const MIN_BURST: f64 = 10.0;

/// Whether data may leave. The controller reads it, the pacer sets it.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(super) fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set_closed(&self, closed: bool) {
        self.0.store(closed, Ordering::Relaxed);
    }
}

/// What the pace follows from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) bits_per_second: u64,
    pub(crate) rtt: Duration,
    /// Bytes of a full packet.
    pub(crate) packet: u16,
}

/// A bucket that fills at the rate of the path, and is emptied by what leaves.
#[derive(Debug)]
pub(crate) struct Pacer {
    gate: Gate,
    /// Bytes that may leave; below zero after more left than was saved up.
    saved: f64,
    filled: Instant,
    /// When the last train began, and how long it may take to leave.
    train: Option<Instant>,
    takes: Duration,
    /// When data that are held back may leave.
    due: Option<Instant>,
}

impl Pace {
    fn train(&self) -> Duration {
        TRAIN.max(self.rtt / TRAINS_IN_ROUND_TRIP)
    }

    fn bytes_per_second(&self) -> f64 {
        self.bits_per_second.max(1) as f64 / 8.0
    }

    /// The most that may be saved up, in bytes.
    fn burst(&self) -> f64 {
        let trains = self.bytes_per_second() * self.train().as_secs_f64() * SAVED_TRAINS;
        trains.max(MIN_BURST * f64::from(self.packet))
    }
}

impl Pacer {
    pub(super) fn new(gate: Gate, now: Instant) -> Self {
        // Not finite until the first rate is known: the first flight leaves at once.
        Self { gate, saved: f64::INFINITY, filled: now, train: None, takes: Duration::ZERO, due: None }
    }

    /// One that belongs to no controller and holds nothing back.
    pub(crate) fn unlimited(now: Instant) -> Self {
        Self::new(Gate::default(), now)
    }

    /// Opens or closes the gate for what is sent next, at this pace, if there is one. Returns how many packets may leave together.
    pub(crate) fn open(&mut self, now: Instant, pace: Option<Pace>) -> usize {
        self.due = None;
        let Some(pace) = pace else {
            self.saved = f64::INFINITY; // what an earlier path owed is not this one's
            return usize::MAX;
        };
        let earned = pace.bytes_per_second() * now.saturating_duration_since(self.filled).as_secs_f64();
        self.saved = (self.saved + earned).min(pace.burst());
        self.filled = now;
        self.takes = pace.train() / PART_OF_TRAIN;
        self.due = self.earned_at(now, &pace).into_iter().chain(self.next_train(now, &pace)).max();
        self.gate.set_closed(self.due.is_some());
        (self.saved / f64::from(pace.packet)).ceil().max(1.0) as usize
    }

    /// When half of what may be saved up is, if it is not: one packet at each acknowledgement would be no train.
    fn earned_at(&self, now: Instant, pace: &Pace) -> Option<Instant> {
        let missing = pace.burst() / 2.0 - self.saved;
        let takes = || Duration::from_secs_f64(missing / pace.bytes_per_second()) + Duration::from_nanos(1);
        (missing > 0.0).then(|| now + takes())
    }

    /// When the next train leaves, if the last is gone and its interval has not passed.
    fn next_train(&self, now: Instant, pace: &Pace) -> Option<Instant> {
        let next = self.train? + pace.train();
        let waits = pace.rtt >= pace.train() * MIN_TRAINS && !self.is_leaving(now) && now < next;
        waits.then_some(next)
    }

    fn is_leaving(&self, now: Instant) -> bool {
        self.train.is_some_and(|begun| now <= begun + self.takes)
    }

    /// So much left at `now` that is paced; the gate is open again for whoever asks for the window.
    pub(crate) fn sent(&mut self, now: Instant, bytes: usize) {
        let held_back = self.gate.is_closed();
        self.gate.set_closed(false);
        self.saved -= bytes as f64;
        // Loss probes leave between trains.
        if bytes > 0 && !held_back && !self.is_leaving(now) {
            self.train = Some(now);
        }
    }

    /// When to try again, if the gate was closed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u16 = 1_250;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// So many packets in a second, on a path with this round trip.
    fn pace(packets: u64, rtt: Duration) -> Option<Pace> {
        Some(Pace { bits_per_second: packets * 10_000, rtt, packet: PACKET })
    }

    /// Sends all it can at `now`, and returns how many packets those were.
    fn send_all(pacer: &mut Pacer, now: Instant, pace: Option<Pace>) -> usize {
        let mut packets = 0;
        loop {
            let allowed = pacer.open(now, pace);
            if pacer.gate.is_closed() {
                pacer.sent(now, 0);
                return packets;
            }
            packets += allowed;
            pacer.sent(now, allowed * usize::from(PACKET));
        }
    }

    #[test]
    fn without_a_rate_nothing_is_held_back() {
        let now = Instant::now();
        let mut pacer = Pacer::unlimited(now);
        for _ in 0..100 {
            assert_eq!((pacer.open(now, None), pacer.gate.is_closed()), (usize::MAX, false));
            pacer.sent(now, 1_000_000);
        }
        assert_eq!(pacer.due(), None);
    }

    #[test]
    fn over_a_second_as_much_leaves_as_the_rate_says() {
        for rate in [100, 10_000, 100_000] {
            let start = Instant::now();
            let mut pacer = Pacer::unlimited(start);
            let mut packets = send_all(&mut pacer, start, pace(rate, ms(30)));
            while let Some(due) = pacer.due().filter(|due| *due <= start + ms(1_000)) {
                packets += send_all(&mut pacer, due, pace(rate, ms(30)));
            }
            let most = rate + rate / 100 + 20;
            assert!((rate - rate / 50..=most).contains(&(packets as u64)), "{packets} of {rate}");
        }
    }

    #[test]
    fn a_long_silence_saves_up_no_more_than_a_burst() {
        let start = Instant::now();
        let mut pacer = Pacer::unlimited(start);
        send_all(&mut pacer, start, pace(100, ms(30)));
        assert_eq!(send_all(&mut pacer, start + ms(60_000), pace(100, ms(30))), 10);
    }

    #[test]
    fn what_is_held_back_leaves_when_half_a_burst_is_saved_up() {
        let start = Instant::now();
        let mut pacer = Pacer::unlimited(start);
        assert_eq!(send_all(&mut pacer, start, pace(100, ms(30))), 10);
        let due = pacer.due().expect("it is held back");
        assert!(due > start + ms(49) && due < start + ms(51), "{:?}", due - start);
        assert_eq!(send_all(&mut pacer, due - ms(1), pace(100, ms(30))), 0);
    }

    #[test]
    fn a_round_trip_with_many_trains_has_one_in_each_interval_however_much_is_saved_up() {
        let start = Instant::now();
        let mut pacer = Pacer::unlimited(start);
        for (at, open) in [(0, true), (100, true), (300, false), (999, false), (1_000, true), (1_500, false)] {
            let now = start + Duration::from_micros(at);
            pacer.open(now, pace(1_000_000, ms(100)));
            assert_eq!(!pacer.gate.is_closed(), open, "after {at} microseconds");
            pacer.sent(now, if open { usize::from(PACKET) } else { 0 });
        }
    }

    #[test]
    fn on_a_short_path_nobody_waits_for_the_next_train() {
        let start = Instant::now();
        let mut pacer = Pacer::unlimited(start);
        for at in (0..2_000).step_by(100) {
            let now = start + Duration::from_micros(at);
            pacer.open(now, pace(1_000_000, ms(2)));
            assert!(!pacer.gate.is_closed(), "after {at} microseconds");
            pacer.sent(now, usize::from(PACKET));
        }
    }

    #[test]
    fn outside_of_a_send_the_gate_is_open() {
        let start = Instant::now();
        let mut pacer = Pacer::unlimited(start);
        send_all(&mut pacer, start, pace(100, ms(30)));
        pacer.open(start, pace(100, ms(30)));
        assert!(pacer.gate.is_closed());
        pacer.sent(start, 0);
        assert!(!pacer.gate.is_closed());
    }
}
