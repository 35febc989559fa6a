//! Measures for how long our NAT keeps a UDP mapping that nobody uses (RFC 5780 section 4.6).
//!
//! One socket opens a mapping and is quiet; after a while another one asks the relay to answer at the first one's outside
//! port (RESPONSE-PORT). If the answer comes through, the mapping lived. From the middle of a ladder of times it goes up for as
//! long as mappings live, or down until one does. A main socket cannot measure this: it is never quiet, and one that
//! asked by itself would open its mapping anew, often with the same port.

use core::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::path::{DirectPath, ExtraSocket, Link};
use crate::stun::{AnswerFrom, PlainRequest, PlainResponse, TransactionId};

/// Sockets that it takes.
pub const LIFETIME_SOCKETS: usize = 2;
/// The times that are tried, in seconds. RFC 4787 REQ-5 asks NATs for 120 and more; many keep 30, some 20.
const LADDER: [u64; 6] = [10, 20, 30, 60, 120, 180];
/// The rung to begin with.
const MIDDLE: usize = 2;
/// When a mapping is made, in two steps: Linux gives one that saw packets both ways after 2 s a longer life, and a mapping
/// in use is such a one.
const OPEN_AT: [Duration; 2] = [Duration::ZERO, Duration::from_millis(2_500)];
/// When questions are repeated, and when they are given up.
const REPEAT_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(600), Duration::from_millis(1_600)];
const PATIENCE: Duration = Duration::from_secs(3);

/// What was found out about unused mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingLifetime {
    /// They live this long, at least; zero where not even the shortest time that was tried was survived.
    pub at_least: Duration,
    /// They are gone after this, where one was.
    pub less_than: Option<Duration>,
}

impl fmt::Display for MappingLifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_least = self.at_least.as_secs();
        match self.less_than {
            Some(less_than) if at_least == 0 => write!(f, "forgets unused ports within {} s", less_than.as_secs()),
            Some(less_than) => write!(f, "forgets unused ports after {at_least} to {} s", less_than.as_secs()),
            None => write!(f, "keeps unused ports for {at_least} s and more"),
        }
    }
}

/// How a measurement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    Running,
    /// It is over.
    Found(MappingLifetime),
    /// It cannot be told: relays that do not know RESPONSE-PORT, a NAT with several outside addresses, no answers.
    Unknown,
}

/// The steps of one rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Both sockets ask where they are seen.
    Opening { times: usize },
    /// Nothing is sent until then.
    Quiet { until: Instant, port: u16 },
    /// The answer should come to the quiet socket.
    Asking { times: usize, port: u16 },
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct LifetimeProbe {
    relay: SocketAddr,
    quiet: Link,
    asker: Link,
    quiet_seen: Option<SocketAddr>,
    asker_seen: Option<SocketAddr>,
    rung: usize,
    lived: Option<usize>,
    died: Option<usize>,
    step: Step,
    since: Instant,
    id: TransactionId,
}

impl LifetimeProbe {
    /// `relay` answers Binding requests. `id` must be random.
    pub fn new(now: Instant, relay: SocketAddr, quiet: ExtraSocket, asker: ExtraSocket, id: TransactionId) -> Self {
        Self {
            relay,
            quiet: Link::Extra(quiet),
            asker: Link::Extra(asker),
            quiet_seen: None,
            asker_seen: None,
            rung: MIDDLE,
            lived: None,
            died: None,
            step: Step::Opening { times: 0 },
            since: now,
            id,
        }
    }

    /// Time passed: what to send, and how it stands. A step that begins takes a new id from `fresh`.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        fresh: impl FnOnce() -> TransactionId,
    ) -> (Vec<(DirectPath, Vec<u8>)>, Progress) {
        match self.step {
            Step::Opening { times } => self.open(now, times),
            Step::Quiet { until, .. } if now < until => (Vec::new(), Progress::Running),
            Step::Quiet { port, .. } => {
                self.begin(Step::Asking { times: 0, port }, now, fresh());
                self.ask(now, 0, port)
            }
            Step::Asking { times, port } if now < self.since + PATIENCE => self.ask(now, times, port),
            Step::Asking { .. } => {
                self.died = Some(self.rung);
                (Vec::new(), self.climb(now, fresh()))
            }
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        let next = |schedule: &[Duration], times: usize| self.since + schedule.get(times).copied().unwrap_or(PATIENCE);
        match self.step {
            Step::Opening { times } => next(&OPEN_AT, times),
            Step::Quiet { until, .. } => until,
            Step::Asking { times, .. } => next(&REPEAT_AT, times),
        }
    }

    /// A STUN message that came to one of the two sockets; `None` if it was not for them.
    pub fn handle(
        &mut self,
        from: DirectPath,
        datagram: &[u8],
        now: Instant,
        fresh: TransactionId,
    ) -> Option<Progress> {
        let response = PlainResponse::decode(datagram).ok()?;
        if response.id != self.id || from.remote != self.relay {
            return None;
        }
        match self.step {
            Step::Opening { .. } if from.link == self.quiet => self.quiet_seen = Some(response.mapped),
            Step::Opening { .. } if from.link == self.asker => self.asker_seen = Some(response.mapped),
            Step::Asking { .. } if from.link == self.quiet => {
                self.lived = Some(self.rung);
                return Some(self.climb(now, fresh));
            }
            // The relay does not know RESPONSE-PORT: it answered where it was asked from.
            Step::Asking { .. } if from.link == self.asker => return Some(Progress::Unknown),
            Step::Opening { .. } | Step::Quiet { .. } | Step::Asking { .. } => return None,
        }
        Some(Progress::Running)
    }

    fn open(&mut self, now: Instant, times: usize) -> (Vec<(DirectPath, Vec<u8>)>, Progress) {
        if now >= self.since + PATIENCE {
            let progress = self.opened(now);
            return (Vec::new(), progress);
        }
        let due = OPEN_AT.iter().filter(|offset| self.since + **offset <= now).count();
        if due <= times {
            return (Vec::new(), Progress::Running);
        }
        self.step = Step::Opening { times: due };
        (vec![self.request(self.quiet, None), self.request(self.asker, None)], Progress::Running)
    }

    /// Both were answered, or time is up.
    fn opened(&mut self, now: Instant) -> Progress {
        match (self.quiet_seen, self.asker_seen) {
            // With several outside addresses RESPONSE-PORT would name a port of another one.
            (Some(quiet), Some(asker)) if quiet.ip() == asker.ip() => {
                let until = now + Duration::from_secs(LADDER[self.rung]);
                self.step = Step::Quiet { until, port: quiet.port() };
                Progress::Running
            }
            (_, _) => Progress::Unknown,
        }
    }

    fn ask(&mut self, now: Instant, times: usize, port: u16) -> (Vec<(DirectPath, Vec<u8>)>, Progress) {
        let due = REPEAT_AT.iter().filter(|offset| self.since + **offset <= now).count();
        if due <= times {
            return (Vec::new(), Progress::Running);
        }
        self.step = Step::Asking { times: due, port };
        (vec![self.request(self.asker, Some(port))], Progress::Running)
    }

    fn request(&self, link: Link, answer_at: Option<u16>) -> (DirectPath, Vec<u8>) {
        let request = PlainRequest { id: self.id, answer_from: AnswerFrom::SameAddress, answer_at };
        (DirectPath { link, remote: self.relay }, request.encode())
    }

    fn begin(&mut self, step: Step, now: Instant, id: TransactionId) {
        (self.step, self.since, self.id) = (step, now, id);
    }

    /// The next rung, or the verdict.
    fn climb(&mut self, now: Instant, id: TransactionId) -> Progress {
        let next = match (self.lived, self.died) {
            (Some(lived), None) if lived + 1 < LADDER.len() => Some(lived + 1),
            (None, Some(died)) if died > 0 => Some(died - 1),
            (_, _) => None,
        };
        let Some(rung) = next else {
            let seconds = |rung: usize| Duration::from_secs(LADDER[rung]);
            let at_least = self.lived.map_or(Duration::ZERO, seconds);
            return Progress::Found(MappingLifetime { at_least, less_than: self.died.map(seconds) });
        };
        self.rung = rung;
        (self.quiet_seen, self.asker_seen) = (None, None);
        self.begin(Step::Opening { times: 0 }, now, id);
        Progress::Running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: ([u8; 4], u16) = ([198, 18, 0, 1], 3478);

    /// A NAT that forgets after `lifetime`, with a relay behind it that may know RESPONSE-PORT. Says what was found, and
    /// how many packets that took.
    fn measure(lifetime: Duration, knows_response_port: bool, addresses: usize) -> (Progress, usize) {
        let begin = Instant::now();
        let mut now = begin;
        let mut ids = 0_u8;
        let mut fresh = || {
            ids += 1;
            TransactionId([ids; 12])
        };
        let relay = SocketAddr::from(RELAY);
        let mut probe = LifetimeProbe::new(now, relay, ExtraSocket(1), ExtraSocket(2), fresh());
        let (mut used, mut sent) = (now, 0);
        loop {
            let (requests, mut progress) = probe.handle_timeout(now, &mut fresh);
            for (path, bytes) in requests {
                sent += 1;
                let request = PlainRequest::decode(&bytes).expect("our own");
                let outside = |link| if link == Link::Extra(ExtraSocket(1)) || addresses == 1 { 1 } else { 2 };
                let mapped = SocketAddr::from(([203, 0, 113, outside(path.link)], 40_000));
                let to = match request.answer_at.filter(|_| knows_response_port) {
                    Some(40_000) if now - used < lifetime => Link::Extra(ExtraSocket(1)),
                    Some(_) => continue,
                    None => path.link,
                };
                if path.link == Link::Extra(ExtraSocket(1)) {
                    used = now;
                }
                let answer = PlainResponse { id: request.id, mapped, other: None }.encode();
                progress = probe.handle(DirectPath { link: to, remote: relay }, &answer, now, fresh()).expect("taken");
            }
            if progress != Progress::Running {
                return (progress, sent);
            }
            now = now.max(probe.poll_timeout());
            assert!(now - begin < Duration::from_secs(900), "it ends");
        }
    }

    fn found(at_least: u64, less_than: Option<u64>) -> Progress {
        let at_least = Duration::from_secs(at_least);
        Progress::Found(MappingLifetime { at_least, less_than: less_than.map(Duration::from_secs) })
    }

    #[test]
    fn the_lifetime_is_found_between_two_rungs() {
        for (lifetime, expected) in [
            (5, found(0, Some(10))),
            (15, found(10, Some(20))),
            (25, found(20, Some(30))),
            (45, found(30, Some(60))),
            (150, found(120, Some(180))),
            (600, found(180, None)),
        ] {
            let (progress, sent) = measure(Duration::from_secs(lifetime), true, 1);
            assert_eq!(progress, expected, "{lifetime} s");
            assert!(sent <= 24, "{lifetime} s: {sent} packets");
        }
    }

    #[test]
    fn a_relay_that_does_not_know_response_port_says_nothing() {
        assert_eq!(measure(Duration::from_secs(60), false, 1).0, Progress::Unknown);
    }

    #[test]
    fn a_nat_with_several_outside_addresses_is_not_measured() {
        assert_eq!(measure(Duration::from_secs(60), true, 2).0, Progress::Unknown);
    }

    #[test]
    fn answers_of_others_and_to_other_questions_are_not_taken() {
        let now = Instant::now();
        let relay = SocketAddr::from(RELAY);
        let mut probe = LifetimeProbe::new(now, relay, ExtraSocket(1), ExtraSocket(2), TransactionId([1; 12]));
        let answer = |id| PlainResponse { id: TransactionId([id; 12]), mapped: relay, other: None }.encode();
        let by = |remote| DirectPath { link: Link::Extra(ExtraSocket(1)), remote };
        let stranger = SocketAddr::from(([198, 18, 0, 2], 3478));
        assert_eq!(probe.handle(by(stranger), &answer(1), now, TransactionId([2; 12])), None);
        assert_eq!(probe.handle(by(relay), &answer(9), now, TransactionId([2; 12])), None);
        assert_eq!(probe.handle(by(relay), &answer(1), now, TransactionId([2; 12])), Some(Progress::Running));
    }
}
