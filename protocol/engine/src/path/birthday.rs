//! The birthday round: the last means, where one NAT draws its ports and the other lets in only whom it knows.
//!
//! The *hard* side, whose ports nobody can know, opens [`SOCKETS`] sockets. The *easy* side, whose outside address is
//! known, first sends [`PROBES`] checks from its one socket to as many ports of the hard side's address, so that its
//! filter lets them in; then the hard side sends one check from each socket. Each leaves by a drawn port; that one of
//! 256 hits one of 1,024 among 64,512 fails once in 58 rounds. In this order, because the other way round a gateway
//! that takes early packets for itself would lose the very ports that would have met; every second round goes the other
//! way round, for a hard side with such a gateway.
//!
//! A peer names the address that is probed, so everything here is bounded: both owners opted in, only an address that
//! a relay is said to have seen and that was checked before, 100 packets a second, one round at a time for the whole
//! agent and a pause that doubles ([`super::PathAgent`]'s owner keeps those two). `docs/spec/paths.md` section 9.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use peerage_model::control::{BirthdayStep, CandidateKind};

use super::admission::is_private;
use super::checklist::Source;
use super::{BirthdayWish, DirectPath, ExtraSocket, Guessing, Hop, Link, PathAgent, PathEvent, PathMode};
use crate::nat::NatType;

/// Sockets that the hard side opens.
pub const SOCKETS: usize = 256;
/// Ports that the easy side tries.
pub const PROBES: u32 = 1024;
/// Most packets of a round in any second.
const RATE: usize = 100;
const SECOND: Duration = Duration::from_secs(1);
/// Between two of them.
const PACE: Duration = Duration::from_millis(10);
/// What a late timer may make up for: at most this much, so at most ten packets at once.
const CATCH_UP: Duration = Duration::from_millis(100);
/// How long ordinary checks are given first: five transmissions of a first round.
const PATIENCE: Duration = Duration::from_millis(1000);
/// How long the hard side waits for the easy one: twice what 1,024 probes take, because the easy side's machine may be a
/// busy one, and giving up a moment too early wastes all of them.
const PROBING_TAKES: Duration = Duration::from_millis(20_000);
/// How long the answer to the last check may take.
const LAST_WAIT: Duration = Duration::from_millis(3_000);
/// Ports that NATs draw from: 1024 to 65535.
const FIRST_PORT: u32 = 1024;
const PORTS: u32 = 65_536 - FIRST_PORT;

#[derive(Debug)]
enum State {
    /// Nothing runs; the node is asked for a round not before `not_before`.
    Idle { not_before: Option<Instant> },
    /// Hard: the node opens sockets.
    Asked,
    /// Hard: the peer probes.
    Waiting { sockets: Vec<ExtraSocket>, until: Instant },
    /// Hard: the rest of the sockets, and when the next sends. `before` the peer probes, or after.
    Opening { sockets: Vec<ExtraSocket>, to: SocketAddr, pace: Pace, before: bool },
    /// Easy: what is left to probe, and when the next goes.
    Probing { at: IpAddr, ports: Ports, pace: Pace },
    /// All is sent; answers may come.
    Listening { until: Instant },
}

/// When the packets of a round may go: [`PACE`] apart, and never more than [`RATE`] in any second. What a late timer
/// missed is made up for; else each would make the round longer, and a round has to be over before mappings expire.
#[derive(Debug)]
struct Pace {
    due: Instant,
    /// The newest, at most [`RATE`] of them.
    sent: VecDeque<Instant>,
}

impl Pace {
    fn from(now: Instant) -> Self {
        Self { due: now, sent: VecDeque::with_capacity(RATE) }
    }

    /// When the next may go.
    fn next(&self) -> Instant {
        match self.sent.front().filter(|_| self.sent.len() == RATE) {
            Some(oldest) => self.due.max(*oldest + SECOND),
            None => self.due,
        }
    }

    /// Whether one may go now; it counts as sent.
    fn take(&mut self, now: Instant) -> bool {
        if now < self.next() {
            return false;
        }
        let late = now.saturating_duration_since(self.due);
        self.due += PACE + late.saturating_sub(CATCH_UP);
        if self.sent.len() == RATE {
            self.sent.pop_front();
        }
        self.sent.push_back(now);
        true
    }
}

/// Distinct ports in an order that nobody can foresee: an arithmetic progression, whose start and step are drawn. To
/// ports that were drawn it is as good as any other choice, and it needs no memory.
#[derive(Debug)]
struct Ports {
    next: u32,
    step: u32,
    left: u32,
}

impl Ports {
    fn drawn(random: [u8; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = random;
        // 64,512 = 2^10 · 3^2 · 7: a step that shares no factor with it visits every port once.
        let mut step = u32::from_be_bytes([a, b, c, d]) % PORTS;
        step |= 1;
        while step.is_multiple_of(3) || step.is_multiple_of(7) {
            step += 2;
        }
        Self { next: u32::from_be_bytes([e, f, g, h]) % PORTS, step, left: PROBES }
    }

    fn take(&mut self) -> Option<u16> {
        self.left = self.left.checked_sub(1)?;
        let port = FIRST_PORT + self.next;
        self.next = (self.next + self.step) % PORTS;
        u16::try_from(port).ok()
    }
}

/// What a session knows of birthday rounds.
#[derive(Debug)]
pub(super) struct Birthday {
    /// Our owner allows it.
    pub(super) allowed: bool,
    /// The peer says that its owner does.
    pub(super) peer_allows: bool,
    /// Our ports cannot be predicted.
    pub(super) hard: bool,
    /// Rounds that ended without a path.
    pub(super) failed: u32,
    rounds: u64,
    state: State,
}

impl Birthday {
    pub(super) fn new(allowed: bool) -> Self {
        let state = State::Idle { not_before: None };
        Self { allowed, peer_allows: false, hard: false, failed: 0, rounds: 0, state }
    }

    pub(super) fn guessing(&self) -> Guessing {
        match (self.allowed, self.peer_allows, self.failed) {
            (false, _, _) => Guessing::NotAllowedHere,
            (true, false, _) => Guessing::NotAllowedByPeer,
            (true, true, rounds) if rounds > 0 && !self.is_running() => Guessing::Failed { rounds },
            (true, true, _) => Guessing::Trying,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        !matches!(self.state, State::Idle { .. })
    }
}

impl PathAgent {
    /// Whether our owner allows birthday rounds. The peer learns it with the next list of candidates.
    pub fn allow_birthday(&mut self, now: Instant, allowed: bool) {
        if std::mem::replace(&mut self.birthday.allowed, allowed) == allowed {
            return;
        }
        if !allowed {
            self.end_birthday(now);
        }
        if self.has_offered() && self.config.mode != PathMode::RelayOnly {
            self.offer();
        }
        self.drive(now);
    }

    /// Whether birthday rounds are allowed here.
    pub fn allows_birthday(&self) -> bool {
        self.birthday.allowed
    }

    /// What the peer says of its owner's will.
    pub fn peer_allows_birthday(&mut self, now: Instant, allows: bool) {
        self.birthday.peer_allows = allows;
        if !allows {
            self.end_birthday(now);
        }
    }

    /// The node lets no round begin before then.
    pub fn birthday_refused(&mut self, until: Instant) {
        if matches!(self.birthday.state, State::Asked) {
            self.birthday.state = State::Idle { not_before: Some(until) };
        }
    }

    /// The sockets that were wished for are open.
    pub fn birthday_sockets(&mut self, now: Instant, sockets: Vec<ExtraSocket>) {
        if !matches!(self.birthday.state, State::Asked) {
            return;
        }
        if sockets.is_empty() || !self.in_use.is_relayed() {
            self.end_birthday(now);
            return;
        }
        // The gateway that spoils early packets may be our own. Who cannot know tries the other order the next time.
        let to = self.reflexive_of_peer().filter(|_| self.birthday.failed % 2 == 1);
        match to {
            Some(to) => self.birthday.state = State::Opening { sockets, to, pace: Pace::from(now), before: true },
            None => self.ready(now, sockets),
        }
        self.drive(now);
    }

    fn ready(&mut self, now: Instant, sockets: Vec<ExtraSocket>) {
        self.birthday.state = State::Waiting { sockets, until: now + PROBING_TAKES };
        self.events.push_back(PathEvent::Birthday(BirthdayWish::Say(BirthdayStep::Ready)));
    }

    /// The peer is this far. `false` if we cannot do what it asks for.
    pub fn on_birthday(&mut self, now: Instant, step: BirthdayStep) -> bool {
        if !self.birthday.allowed || !self.birthday.peer_allows || self.config.mode == PathMode::RelayOnly {
            return false;
        }
        let done = match step {
            BirthdayStep::Ready => self.begin_probing(now),
            BirthdayStep::Probed => self.begin_opening(now),
        };
        self.drive(now);
        done
    }

    /// Sockets beside the main one that are still of use.
    pub fn extra_sockets(&self) -> Vec<ExtraSocket> {
        let mut used: Vec<ExtraSocket> = match &self.birthday.state {
            State::Waiting { sockets, .. } | State::Opening { sockets, .. } => sockets.clone(),
            State::Idle { .. } | State::Asked | State::Probing { .. } | State::Listening { .. } => Vec::new(),
        };
        used.extend(self.birthday_sent.iter().copied());
        used.extend(self.checklist.remotes().iter().filter_map(|remote| match remote.path.link {
            Link::Main | Link::RelayStream(_) => None,
            Link::Extra(socket) => Some(socket),
        }));
        used
    }

    fn begin_probing(&mut self, now: Instant) -> bool {
        let idle = !self.birthday.is_running() && self.in_use.is_relayed() && !self.birthday.hard;
        let Some(target) = self.reflexive_of_peer().filter(|_| idle) else { return false };
        self.birthday.rounds += 1;
        let label = [b"birthday".as_slice(), &self.birthday.rounds.to_be_bytes()].concat();
        let ports = Ports::drawn(self.checks.draw(&label));
        self.birthday.state = State::Probing { at: target.ip(), ports, pace: Pace::from(now) };
        true
    }

    fn begin_opening(&mut self, now: Instant) -> bool {
        let Some(to) = self.reflexive_of_peer() else { return false };
        let State::Waiting { sockets, .. } = &mut self.birthday.state else { return false };
        let sockets = std::mem::take(sockets);
        self.birthday.state = State::Opening { sockets, to, pace: Pace::from(now), before: false };
        true
    }

    /// The one kind of address that is worth a round and may have one: seen by a relay, as the peer says, public, and
    /// sent to before by ordinary checks.
    fn reflexive_of_peer(&self) -> Option<SocketAddr> {
        let may = |address: &SocketAddr| address.is_ipv4() && !is_private(address.ip());
        self.checklist
            .remotes()
            .iter()
            .filter(|remote| remote.source == Source::Signalled(CandidateKind::ServerReflexive) && remote.was_checked())
            .map(|remote| remote.path.remote)
            .find(may)
    }

    /// What is due of a round, and whether one should begin.
    pub(super) fn drive_birthday(&mut self, now: Instant) {
        if !self.in_use.is_relayed() {
            if self.birthday.is_running() {
                self.end_birthday(now);
            }
            return;
        }
        match &mut self.birthday.state {
            State::Idle { .. } => {
                if self.birthday_due().is_some_and(|due| due <= now) {
                    self.birthday.state = State::Asked;
                    self.events.push_back(PathEvent::Birthday(BirthdayWish::OpenSockets));
                }
            }
            State::Asked => {}
            State::Waiting { until, .. } | State::Listening { until } => {
                if *until <= now {
                    self.birthday.failed += 1;
                    self.end_birthday(now);
                }
            }
            State::Probing { .. } => self.probe(now),
            State::Opening { .. } => self.open(now),
        }
    }

    fn probe(&mut self, now: Instant) {
        while let State::Probing { at, ports, pace } = &mut self.birthday.state
            && pace.take(now)
        {
            let Some(port) = ports.take() else {
                self.birthday.state = State::Listening { until: now + LAST_WAIT * 3 };
                self.events.push_back(PathEvent::Birthday(BirthdayWish::Say(BirthdayStep::Probed)));
                return;
            };
            let path = DirectPath::main(SocketAddr::new(*at, port));
            self.send_unlisted(path);
        }
    }

    fn open(&mut self, now: Instant) {
        while let State::Opening { sockets, to, pace, before } = &mut self.birthday.state
            && pace.take(now)
        {
            let Some(socket) = sockets.pop() else {
                match before {
                    true => self.ready(now, Vec::new()),
                    false => self.birthday.state = State::Listening { until: now + LAST_WAIT },
                }
                return;
            };
            let path = DirectPath { link: Link::Extra(socket), remote: *to };
            self.birthday_sent.push(socket);
            self.send_unlisted(path);
        }
    }

    /// Ends a round, however it went. Sockets that no path needs are closed.
    pub(super) fn end_birthday(&mut self, now: Instant) {
        let was = std::mem::replace(&mut self.birthday.state, State::Idle { not_before: Some(now) });
        if matches!(was, State::Idle { .. }) {
            self.birthday.state = was;
            return;
        }
        self.birthday_sent.clear();
        let keep = self.in_use.hop();
        self.checklist.retain(|remote| {
            remote.path.link == Link::Main
                || keep == Hop::Direct(remote.path)
                || remote.is_proven() && keep == Hop::Relayed
        });
        self.events.push_back(PathEvent::Birthday(BirthdayWish::Over));
    }

    /// When we should ask for a round: the easy side never asks, it is asked.
    fn birthday_due(&self) -> Option<Instant> {
        let birthday = &self.birthday;
        let State::Idle { not_before } = birthday.state else { return None };
        let known = |nat_type: NatType| match nat_type {
            NatType::OpenInternet
            | NatType::NoNat
            | NatType::Firewalled
            | NatType::FullCone
            | NatType::RestrictedCone
            | NatType::PortRestrictedCone
            | NatType::Cone => true,
            NatType::Symmetric | NatType::Blocked | NatType::Unknown => false,
        };
        let wanted = birthday.allowed && birthday.peer_allows && birthday.hard && self.nat_types.1.is_some_and(known);
        let proven = self.checklist.remotes().iter().any(|remote| remote.is_proven());
        if !wanted || proven || !self.in_use.is_relayed() || self.config.mode == PathMode::RelayOnly {
            return None;
        }
        self.reflexive_of_peer()?;
        let due = self.checking_since? + PATIENCE;
        Some(not_before.map_or(due, |not_before| due.max(not_before)))
    }

    pub(super) fn birthday_timeout(&self) -> Option<Instant> {
        match &self.birthday.state {
            State::Idle { .. } => self.birthday_due(),
            State::Asked => None,
            State::Waiting { until, .. } | State::Listening { until } => Some(*until),
            State::Opening { pace, .. } | State::Probing { pace, .. } => Some(pace.next()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_round_never_tries_a_port_twice_nor_more_than_its_number() {
        for seed in 0..50_u8 {
            let mut ports = Ports::drawn([seed.wrapping_mul(37), seed, 3, seed, 0, seed, 9, seed.wrapping_mul(11)]);
            let all: Vec<u16> = std::iter::from_fn(|| ports.take()).collect();
            let distinct: BTreeSet<u16> = all.iter().copied().collect();
            assert_eq!((all.len(), distinct.len()), (1024, 1024), "seed {seed}");
            assert!(distinct.iter().all(|port| *port >= 1024));
        }
    }

    #[test]
    fn late_timers_make_a_round_neither_longer_nor_faster_than_its_rate() {
        for late in [0, 1, 9, 35, 99] {
            let start = Instant::now();
            let (mut pace, mut now, mut sent) = (Pace::from(start), start, Vec::new());
            while sent.len() < PROBES as usize {
                now = now.max(pace.next()) + Duration::from_millis(late);
                while sent.len() < PROBES as usize && pace.take(now) {
                    sent.push(now);
                }
            }
            let took = now - start;
            // The rate's own pause, once a second, is as late as any.
            let longest = Duration::from_millis(10_300 + 11 * late);
            assert!(took < longest, "{late} ms late each time: {took:?}");
            for window in sent.windows(RATE + 1) {
                assert!(window[RATE] - window[0] >= SECOND, "{late} ms late each time");
            }
        }
    }

    #[test]
    fn a_machine_that_slept_sends_no_flood_when_it_wakes() {
        let start = Instant::now();
        let mut pace = Pace::from(start);
        assert!(pace.take(start));
        let awake = start + Duration::from_secs(60);
        let burst = std::iter::from_fn(|| pace.take(awake).then_some(())).count();
        assert!(burst <= 11, "{burst} packets at once");
    }
}
