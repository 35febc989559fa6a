//! How fast the path delivers: samples from what is acknowledged (draft-ietf-ccwg-bbr-05 section 4.1).
//!
//! For everything that is sent a note is kept of what had been delivered by then. When an acknowledgement comes, what was delivered
//! in between, divided by the time it took, is a rate: by the time it took to arrive or by the time it took to leave, whichever is
//! longer, since acknowledgements can be compressed on their way and so would promise more than the path can do.
//!
//! A controller is told times, not packets, so there is a note for all that left together. Notes are few: those of which an
//! acknowledgement is still to be expected, and no more than [`MAX_NOTES`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Above, what is sent counts as sent with the last that has a note, and its samples have longer intervals. A round trip of
/// trains (`pacer.rs`) has some hundred; of single packets, one for each two acknowledged, 100 ms at 500 Mb/s have two thousand.
const MAX_NOTES: usize = 8_192;
/// A note is kept for so many round trips after something that left later arrived. Then what it is about is lost for good:
/// quinn-proto waits 9/8 (RFC 9002 section 6.1.2).
const KEPT_ROUND_TRIPS: u32 = 2;
/// An idle session keeps room for so many notes.
const IDLE_ROOM: usize = 16;

/// What was known when something left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    at: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    weighed: u64,
    /// Bytes under way, these included.
    pub(super) in_flight: u64,
    pub(super) app_limited: bool,
}

/// What an acknowledgement says (RS in the draft).
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Bytes per second; `None` where the interval is too short to tell.
    pub(super) rate: Option<f64>,
    /// Bytes delivered between the departure of what arrived and its acknowledgement.
    pub(super) delivered: u64,
    /// What had been delivered when it left.
    pub(super) prior_delivered: u64,
    /// What was under way when it left, and how much was lost since, by weight.
    pub(super) in_flight: u64,
    pub(super) lost: u64,
    pub(super) newly_acked: u64,
    pub(super) rtt: Duration,
    /// The sender had no more to send, so the path may well do more.
    pub(super) app_limited: bool,
}

/// Counts what is delivered (C in the draft).
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) delivered: u64,
    pub(super) in_flight: u64,
    /// Bytes lost, each as far as it tells of too much under way (`model.rs`).
    weighed: u64,
    delivered_at: Instant,
    /// When the newest left of what has arrived.
    first_sent: Instant,
    /// Until so much is delivered, samples say what the sender had, not what the path can do.
    app_limited_until: Option<u64>,
    notes: VecDeque<Note>,
    /// When the newest left of this batch of acknowledgements.
    newest: Option<Instant>,
    newly_acked: u64,
}

impl Delivery {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            delivered: 0,
            in_flight: 0,
            weighed: 0,
            delivered_at: now,
            first_sent: now,
            app_limited_until: None,
            notes: VecDeque::new(),
            newest: None,
            newly_acked: 0,
        }
    }

    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64) {
        if self.in_flight == 0 {
            (self.first_sent, self.delivered_at) = (now, now);
        }
        self.in_flight += bytes;
        let same = self.notes.back().is_some_and(|last| last.at == now);
        if same || self.notes.len() >= MAX_NOTES {
            if let Some(last) = self.notes.back_mut() {
                last.in_flight = self.in_flight;
            }
            return;
        }
        self.notes.push_back(Note {
            at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            weighed: self.weighed,
            in_flight: self.in_flight,
            app_limited: self.app_limited_until.is_some(),
        });
    }

    /// Something arrived that left at `sent`.
    pub(super) fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.newly_acked += bytes;
        self.delivered_at = now;
        self.newest = self.newest.max(Some(sent));
    }

    /// The batch is complete. Nothing where it tells nothing.
    pub(super) fn take_sample(&mut self, now: Instant, in_flight: u64, shortest: Option<Duration>) -> Option<Sample> {
        self.in_flight = in_flight;
        if self.app_limited_until.is_some_and(|until| self.delivered > until) {
            self.app_limited_until = None;
        }
        let newly_acked = std::mem::take(&mut self.newly_acked);
        let sent = self.newest.take()?;
        let note = self.note_of(sent)?;
        self.first_sent = sent;
        let rtt = now.saturating_duration_since(sent);
        self.forget_before(sent, rtt);
        let interval =
            sent.saturating_duration_since(note.first_sent).max(now.saturating_duration_since(note.delivered_at));
        let delivered = self.delivered - note.delivered;
        // Shorter than any round trip: the acknowledgements came together (section 4.1.2.3).
        let tells = !interval.is_zero() && shortest.is_none_or(|shortest| interval >= shortest);
        Some(Sample {
            rate: tells.then(|| delivered as f64 / interval.as_secs_f64()),
            delivered,
            prior_delivered: note.delivered,
            in_flight: note.in_flight,
            lost: self.weighed - note.weighed,
            newly_acked,
            rtt,
            app_limited: note.app_limited,
        })
    }

    /// Something was lost that counts as `weighed` bytes. Returns what was known when the newest of it left, and what was lost since, by
    /// weight.
    pub(super) fn on_lost(&mut self, sent: Instant, bytes: u64, weighed: u64) -> Option<(Note, u64)> {
        self.weighed += weighed;
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.note_of(sent).map(|note| (note, self.weighed - note.weighed))
    }

    /// The sender has no more to send: all that is under way, and what leaves until it arrived, tells less than the path can do.
    pub(super) fn mark_app_limited(&mut self) {
        self.app_limited_until = Some((self.delivered + self.in_flight).max(1));
    }

    pub(super) fn is_app_limited(&self) -> bool {
        self.app_limited_until.is_some()
    }

    /// The note about what left at `sent`, or the last before it.
    fn note_of(&self, sent: Instant) -> Option<Note> {
        let behind = self.notes.partition_point(|note| note.at <= sent);
        self.notes.get(behind.checked_sub(1)?).copied()
    }

    fn forget_before(&mut self, newest: Instant, rtt: Duration) {
        if self.in_flight == 0 {
            self.notes.clear();
            self.notes.shrink_to(IDLE_ROOM);
            return;
        }
        let old = |note: &Note| note.at + rtt * KEPT_ROUND_TRIPS < newest;
        while self.notes.len() > 1 && self.notes.front().is_some_and(old) {
            self.notes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u64 = 1_000;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Ten packets, one each millisecond, and their acknowledgements after these times.
    fn samples(acks: [u64; 10]) -> Vec<Sample> {
        let start = Instant::now();
        let mut delivery = Delivery::new(start);
        (0..10).for_each(|n| delivery.on_sent(start + ms(n), PACKET));
        let one = |(n, at): (u64, u64)| {
            delivery.on_ack(start + ms(at), start + ms(n), PACKET);
            delivery.take_sample(start + ms(at), (9 - n) * PACKET, None)
        };
        (0..).zip(acks).filter_map(one).collect()
    }

    #[test]
    fn the_rate_is_that_of_what_arrives() {
        let samples = samples([50, 52, 54, 56, 58, 60, 62, 64, 66, 68]);
        let rate = samples[9].rate.expect("a rate");
        assert!((rate - 10.0 * PACKET as f64 / 0.068).abs() < 1.0, "{rate}");
    }

    #[test]
    fn acknowledgements_that_come_together_promise_no_more_than_was_sent() {
        let start = Instant::now();
        let mut delivery = Delivery::new(start);
        for n in 0..10 {
            delivery.on_sent(start + ms(n * 10), PACKET);
        }
        delivery.on_ack(start + ms(50), start, PACKET);
        delivery.take_sample(start + ms(50), 9 * PACKET, None);
        delivery.on_sent(start + ms(100), PACKET);
        (1..10).for_each(|n| delivery.on_ack(start + ms(150), start + ms(n * 10), PACKET));
        delivery.take_sample(start + ms(150), PACKET, None);
        delivery.on_ack(start + ms(151), start + ms(100), PACKET);
        let sample = delivery.take_sample(start + ms(151), 0, None).expect("a sample");
        assert!(sample.rate.expect("a rate") <= 100.0 * PACKET as f64 * 1.01, "one in 10 ms was sent: {sample:?}");
    }

    #[test]
    fn an_interval_shorter_than_a_round_trip_tells_nothing() {
        let start = Instant::now();
        let mut delivery = Delivery::new(start);
        delivery.on_sent(start, PACKET);
        delivery.on_ack(start + ms(10), start, PACKET);
        let sample = delivery.take_sample(start + ms(10), 0, Some(ms(20))).expect("a sample");
        assert_eq!((sample.rate, sample.rtt), (None, ms(10)));
    }

    #[test]
    fn what_leaves_while_there_is_nothing_more_is_marked_until_it_arrived() {
        let start = Instant::now();
        let mut delivery = Delivery::new(start);
        delivery.on_sent(start, PACKET);
        delivery.mark_app_limited();
        let mut marked = |at, sent| {
            delivery.on_sent(start + ms(sent), PACKET);
            delivery.on_ack(start + ms(at), start + ms(sent), PACKET);
            delivery.take_sample(start + ms(at), PACKET, None).map(|sample| sample.app_limited)
        };
        assert_eq!([marked(10, 1), marked(20, 11), marked(30, 21)], [Some(true), Some(true), Some(false)]);
    }

    #[test]
    fn a_loss_is_told_with_what_was_lost_since_it_left() {
        let start = Instant::now();
        let mut delivery = Delivery::new(start);
        delivery.on_sent(start, PACKET);
        delivery.on_lost(start, PACKET, PACKET);
        (1..4).for_each(|n| delivery.on_sent(start + ms(n), PACKET));
        let (note, lost) = delivery.on_lost(start + ms(2), 2 * PACKET, 2 * PACKET).expect("a note");
        assert_eq!((note.in_flight, lost), (2 * PACKET, 2 * PACKET));
    }

    #[test]
    fn notes_are_no_more_than_a_bound_and_none_when_all_has_arrived() {
        let start = Instant::now();
        let mut delivery = Delivery::new(start);
        for n in 0..2 * MAX_NOTES as u64 {
            delivery.on_sent(start + Duration::from_micros(n), PACKET);
        }
        assert_eq!(delivery.notes.len(), MAX_NOTES);
        delivery.on_ack(start + ms(50), start + ms(1), PACKET);
        delivery.take_sample(start + ms(50), 0, None);
        assert!(delivery.notes.capacity() <= IDLE_ROOM, "{}", delivery.notes.capacity());
    }
}
