//! The controller on a path of its own: a rate, a round trip and a queue, in virtual time. What whole agents make of it, beside
//! others, is in `protocol/sim/tests/congestion.rs`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::*;

const PACKET: u64 = 1_200;
/// 10 Mb/s and 40 ms: 50 kB, 41 packets.
const RATE: f64 = 1_250_000.0;
const RTT: Duration = Duration::from_millis(40);
const HOLDS: u64 = 50_000;

/// A sender with this controller that always has data, and the path that it sends on.
struct Bench {
    bbr: Bbr,
    now: Instant,
    rate: f64,
    round_trip: Duration,
    /// Bytes that may wait.
    queue: f64,
    /// One packet in so many is lost by chance; none if zero.
    lose_one_in: u64,
    free_at: Instant,
    may_send_at: Instant,
    sent: u64,
    /// When each left, when its acknowledgement comes, and whether it arrived.
    under_way: VecDeque<(Instant, Instant, bool)>,
    /// The states so far, by name.
    seen: Vec<&'static str>,
    most_under_way: u64,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            bbr: Bbr::new(now, 1_200),
            now,
            rate: RATE,
            round_trip: RTT,
            queue: 10.0 * HOLDS as f64,
            lose_one_in: 0,
            free_at: now,
            may_send_at: now,
            sent: 0,
            under_way: VecDeque::new(),
            seen: vec!["Startup"],
            most_under_way: 0,
        }
    }

    fn in_flight(&self) -> u64 {
        self.under_way.len() as u64 * PACKET
    }

    fn name(&self) -> &'static str {
        match self.bbr.state {
            State::Startup => "Startup",
            State::Drain => "Drain",
            State::Down(_) => "Down",
            State::Cruise(_) => "Cruise",
            State::Refill => "Refill",
            State::Up(_) => "Up",
            State::ProbeRtt(_) => "ProbeRtt",
        }
    }

    fn send(&mut self) {
        self.sent += 1;
        self.bbr.on_sent(self.now, PACKET, self.sent);
        let waits = self.free_at.saturating_duration_since(self.now).as_secs_f64() * self.rate;
        let arrives = waits <= self.queue && (self.lose_one_in == 0 || !self.sent.is_multiple_of(self.lose_one_in));
        if waits <= self.queue {
            self.free_at = self.free_at.max(self.now) + Duration::from_secs_f64(PACKET as f64 / self.rate);
        }
        self.under_way.push_back((self.now, self.free_at + self.round_trip, arrives));
        self.most_under_way = self.most_under_way.max(self.in_flight());
        let pace = self.bbr.pace.unwrap_or(f64::INFINITY);
        self.may_send_at = self.now + Duration::from_secs_f64(PACKET as f64 / pace);
    }

    fn acknowledge(&mut self, app_limited: bool) {
        let mut lost = None;
        while let Some((sent, _, false)) = self.under_way.front().copied() {
            self.under_way.pop_front();
            let (_, bytes) = lost.unwrap_or((sent, 0));
            lost = Some((sent, bytes + PACKET));
        }
        let (sent, ..) = self.under_way.pop_front().expect("an acknowledgement is of something");
        // As `on_ack` does; only quinn-proto can make the estimate of the round trip that it takes and does not use.
        self.bbr.delivery.on_ack(self.now, sent, PACKET);
        self.bbr.on_end_acks(self.now, self.in_flight(), app_limited, None);
        if let Some((sent, bytes)) = lost {
            self.bbr.on_congestion_event(self.now, sent, false, bytes);
        }
        if self.seen.last() != Some(&self.name()) {
            self.seen.push(self.name());
        }
    }

    /// The acknowledgement that comes next, which tells of those lost before it.
    fn next_ack(&self) -> Option<Instant> {
        self.under_way.iter().find(|(.., arrives)| *arrives).map(|(_, at, _)| *at)
    }

    /// Sends all that it may for this time, or until `done`.
    fn run_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + time;
        while self.now < end && !done(self) {
            let may_send = self.in_flight() + PACKET < self.bbr.window();
            let send_at = may_send.then_some(self.may_send_at.max(self.now));
            match (send_at, self.next_ack()) {
                (Some(at), ack) if ack.is_none_or(|ack| at <= ack) => {
                    self.now = at;
                    self.send();
                }
                (_, Some(at)) => {
                    self.now = self.now.max(at);
                    self.acknowledge(false);
                }
                (_, None) => panic!("it neither sends nor hears"),
            }
        }
        done(self)
    }

    fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    fn reach(&mut self, state: &str) {
        assert!(self.run_until(secs(30), |bench| bench.name() == state), "{state} is not among {:?}", self.seen);
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn startup_finds_the_rate_within_ten_round_trips() {
    let mut bench = Bench::new();
    assert!(bench.run_until(RTT * 10, |bench| bench.name() == "Drain"), "{:?}", bench.seen);
    assert!((bench.bbr.model.rate() / RATE - 1.0).abs() < 0.05, "{} of {RATE}", bench.bbr.model.rate());
}

#[test]
fn startup_doubles_what_is_under_way_each_round_trip() {
    let mut bench = Bench { rate: RATE * 1_000.0, ..Bench::new() };
    bench.run(RTT * 3);
    let before = bench.most_under_way;
    bench.run(RTT * 3);
    assert!(bench.most_under_way > before * 6, "{before}, then {}", bench.most_under_way);
}

#[test]
fn startup_does_not_end_because_the_program_has_little_to_say() {
    let mut bench = Bench::new();
    for _ in 0..50 {
        bench.send();
        bench.now = bench.next_ack().expect("it arrives");
        bench.acknowledge(true);
    }
    assert_eq!(bench.seen, ["Startup"]);
}

#[test]
fn startup_ends_when_a_round_trip_loses_too_much() {
    let mut bench = Bench { rate: RATE * 1_000.0, ..Bench::new() };
    bench.run(RTT * 6);
    assert_eq!(bench.name(), "Startup");
    bench.lose_one_in = 5;
    bench.run(RTT * 4);
    assert_ne!(bench.name(), "Startup");
    assert!(bench.bbr.model.bounds.long.is_some());
}

#[test]
fn startup_goes_on_where_less_is_lost_without_a_queue() {
    let mut bench = Bench { rate: RATE * 1_000.0, lose_one_in: 40, ..Bench::new() };
    bench.run(RTT * 8);
    assert_eq!(bench.seen, ["Startup"]);
}

#[test]
fn startup_ends_when_a_short_queue_runs_over() {
    let mut bench = Bench { queue: 0.25 * HOLDS as f64, ..Bench::new() };
    bench.reach("Drain");
    assert!(bench.bbr.model.bounds.long.is_some_and(|long| long < 2 * HOLDS), "{:?}", bench.bbr.model.bounds);
}

#[test]
fn drain_takes_the_queue_back() {
    let mut bench = Bench::new();
    bench.reach("Drain");
    assert!(bench.in_flight() > HOLDS * 14 / 10, "Startup made a queue: {}", bench.in_flight());
    bench.reach("Cruise");
    assert!(bench.in_flight() <= HOLDS * 11 / 10, "{}", bench.in_flight());
}

#[test]
fn the_states_follow_each_other() {
    let mut bench = Bench::new();
    bench.run(secs(4));
    // There is no queue to empty the first time.
    let cycle = ["Startup", "Drain", "Cruise", "Refill", "Up", "Down", "Cruise"];
    assert_eq!(bench.seen[..cycle.len()], cycle);
}

#[test]
fn cruise_paces_a_little_below_the_rate_and_may_have_twice_the_product_under_way() {
    let mut bench = Bench::new();
    bench.reach("Cruise");
    bench.run(RTT * 5);
    assert_eq!(bench.name(), "Cruise");
    let pace = bench.bbr.pace.expect("it has a pace");
    assert!((pace / bench.bbr.model.rate() - 0.99).abs() < 1e-6, "{pace}");
    assert!((2 * HOLDS..HOLDS * 26 / 10).contains(&bench.bbr.window()), "{}", bench.bbr.window());
}

#[test]
fn more_is_tried_before_a_reno_flow_would_have_its_share() {
    let mut bench = Bench::new();
    bench.reach("Cruise");
    let begun = bench.now;
    bench.reach("Refill");
    // 41 packets are under way: 41 rounds, of a little more than 40 ms.
    assert!(bench.now - begun < RTT * 50, "{:?}", bench.now - begun);
}

#[test]
fn on_a_long_path_more_is_tried_after_three_seconds_at_most() {
    let mut bench = Bench { rate: RATE * 10.0, ..Bench::new() };
    bench.reach("Cruise");
    let begun = bench.now;
    bench.reach("Refill");
    assert!((secs(2)..=secs(3) + RTT).contains(&(bench.now - begun)), "{:?}", bench.now - begun);
}

#[test]
fn a_rate_that_doubles_is_found() {
    let mut bench = Bench::new();
    bench.run(secs(3));
    bench.rate = 2.0 * RATE;
    bench.run(secs(10));
    assert!(bench.bbr.model.rate() > 1.9 * RATE, "{}", bench.bbr.model.rate() / RATE);
}

#[test]
fn a_rate_that_halves_is_believed_after_two_cycles() {
    let mut bench = Bench::new();
    bench.run(secs(3));
    bench.rate = RATE / 2.0;
    bench.run(secs(15));
    assert!(bench.bbr.model.rate() < 0.55 * RATE, "{}", bench.bbr.model.rate() / RATE);
}

#[test]
fn losing_one_packet_in_forty_by_chance_leaves_nine_tenths_of_the_rate() {
    let mut bench = Bench { lose_one_in: 40, ..Bench::new() };
    bench.run(secs(3));
    let before = bench.bbr.delivery.delivered;
    bench.run(secs(10));
    let brought = (bench.bbr.delivery.delivered - before) as f64 / 10.0;
    assert!(brought > 0.9 * RATE, "{}", brought / RATE);
}

#[test]
fn a_round_trip_that_grows_tenfold_is_that_of_another_path() {
    let mut bench = Bench::new();
    bench.run(secs(3));
    bench.round_trip = RTT * 10;
    assert!(bench.run_until(secs(3), |bench| bench.seen.ends_with(&["ProbeRtt", "Startup"])), "{:?}", bench.seen);
    bench.run(secs(6));
    let brought = bench.bbr.model.rate();
    assert!((brought / RATE - 1.0).abs() < 0.1, "{}", brought / RATE);
    assert!(bench.bbr.window() > 10 * HOLDS, "{}", bench.bbr.window());
}

#[test]
fn a_queue_of_its_own_is_not_another_path() {
    let mut bench = Bench::new();
    bench.run(secs(3));
    bench.rate = RATE / 5.0;
    assert!(bench.run_until(ms(1_500), |bench| bench.name() == "ProbeRtt"), "{:?}", bench.seen);
    bench.run(secs(15));
    assert_eq!(bench.seen.iter().filter(|state| **state == "Startup").count(), 1, "{:?}", bench.seen);
    assert_eq!(bench.bbr.model.shortest_rtt().map(|rtt| rtt < RTT * 2), Some(true));
}

#[test]
fn a_look_that_ends_for_want_of_data_tells_of_no_other_path() {
    let mut bench = Bench::new();
    bench.run(secs(3));
    bench.rate = RATE / 5.0;
    bench.reach("ProbeRtt");
    while let Some(at) = bench.next_ack() {
        bench.now = at;
        bench.acknowledge(true);
    }
    bench.now += secs(1);
    bench.send();
    bench.now = bench.next_ack().expect("it arrives");
    bench.acknowledge(true);
    assert_eq!(bench.seen.iter().filter(|state| **state == "Startup").count(), 1, "{:?}", bench.seen);
}

#[test]
fn what_a_late_probe_shows_to_be_lost_may_have_been_in_a_queue() {
    let mut bench = Bench::new();
    bench.reach("Cruise");
    let ((left, _), shortest) = bench.bbr.model.last.zip(bench.bbr.model.shortest_rtt()).expect("round trips");
    bench.bbr.model.last = Some((left, shortest));
    let chance = |sent| !bench.bbr.model.may_be_of_a_queue(sent, PACKET);
    assert_eq!([left - ms(5), left - RTT].map(chance), [true, false]);
}

#[test]
fn up_ends_at_too_much_loss_and_remembers_what_was_borne() {
    let mut bench = Bench::new();
    bench.reach("Up");
    bench.lose_one_in = 10;
    assert!(bench.run_until(RTT * 2, |bench| bench.name() == "Down"), "{:?}", bench.seen);
    let long = bench.bbr.model.bounds.long.expect("a bound");
    assert!((HOLDS * 6 / 10..HOLDS * 14 / 10).contains(&long), "{long}");
}

#[test]
fn a_mark_of_congestion_ends_up() {
    let mut bench = Bench::new();
    bench.reach("Up");
    let (sent, ..) = bench.under_way[0];
    bench.bbr.on_congestion_event(bench.now, sent, false, 0);
    assert_eq!(bench.name(), "Down");
}

#[test]
fn cruise_leaves_room_below_what_was_borne() {
    let mut bench = Bench::new();
    bench.reach("Cruise");
    bench.bbr.model.bounds.long = Some(HOLDS);
    assert_eq!(bench.bbr.bound(), HOLDS * 85 / 100);
}

#[test]
fn a_look_at_the_round_trip_halves_what_is_under_way_and_gives_it_back() {
    let mut bench = Bench::new();
    bench.reach("Cruise");
    bench.run(RTT * 5);
    let before = bench.bbr.window();
    bench.reach("ProbeRtt");
    let begun = bench.now;
    bench.run(RTT * 2);
    assert!(bench.in_flight() <= HOLDS * 6 / 10, "{}", bench.in_flight());
    bench.reach("Cruise");
    assert!((Duration::from_millis(200)..RTT * 10).contains(&(bench.now - begun)), "{:?}", bench.now - begun);
    assert!(bench.bbr.window() >= before * 9 / 10, "{before}, then {}", bench.bbr.window());
}

#[test]
fn silence_costs_no_knowledge_of_the_rate() {
    let mut bench = Bench::new();
    bench.run(secs(3));
    let known = bench.bbr.model.rate();
    for _ in 0..200 {
        while let Some(at) = bench.next_ack() {
            bench.now = at;
            bench.acknowledge(true);
        }
        bench.now += secs(1);
        bench.send();
    }
    assert!(bench.bbr.model.rate() > 0.95 * known, "{} of {known}", bench.bbr.model.rate());
}

#[test]
fn after_persistent_congestion_the_window_is_four_packets() {
    let mut bench = Bench::new();
    bench.run(secs(3));
    let (sent, ..) = bench.under_way[0];
    bench.bbr.on_congestion_event(bench.now, sent, true, PACKET);
    assert_eq!(bench.bbr.window(), 4 * PACKET);
}

#[test]
fn a_look_at_the_round_trip_gives_no_window_back_that_persistent_congestion_took() {
    let mut bench = Bench::new();
    bench.reach("ProbeRtt");
    let (sent, ..) = bench.under_way[0];
    bench.bbr.on_congestion_event(bench.now, sent, true, PACKET);
    bench.reach("Cruise");
    assert!(bench.bbr.window() < HOLDS, "{}", bench.bbr.window());
}

#[test]
fn larger_packets_raise_the_smallest_window() {
    let mut bbr = Bbr::new(Instant::now(), 1_200);
    bbr.window = bbr.smallest_window();
    bbr.on_mtu_update(9_000);
    assert_eq!(bbr.window(), 36_000);
}
