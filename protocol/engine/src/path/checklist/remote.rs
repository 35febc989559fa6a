//! One address of the peer as seen from one socket of ours: what it has proven, and when it is checked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::control::CandidateKind;

use super::{Due, GAPS, ms};
use crate::path::DirectPath;
use crate::stun::TransactionId;

/// When a round checks an address, after its start: RFC 8445's Ta of 50 ms, doubling.
pub(super) const OFFSETS: [Duration; 7] = [ms(0), ms(50), ms(150), ms(350), ms(750), ms(1550), ms(3150)];
/// How long the last check of a round may take to come back.
const LAST_WAIT: Duration = ms(1000);
/// How long checks of an address outside wait for the peer's word that its gateways are open. The tunnel delivers it however
/// busy the peer's machine is; this is for a peer that gave up on us.
const WORD_WITHIN: Duration = ms(3000);
/// Between two rounds that an address has for itself after it was lost.
const LOST_REST: Duration = GAPS[0];
/// And while it answers but is too slow: no more often than everybody is asked in the long run.
const SLOW_REST: Duration = GAPS[GAPS.len() - 1];
/// Checks in flight remembered per address: one round.
const MAX_IN_FLIGHT: usize = 8;
/// Answers in one round after which an address rests until the next, if traffic is direct: one proves, three measure.
const ENOUGH_ANSWERS: u8 = 3;
/// Round trips remembered per address.
const MAX_SAMPLES: usize = 8;
/// First hold of a path lost to silence; doubles with each loss.
const FIRST_HOLD: Duration = ms(2000);
/// Longest hold.
const LONGEST_HOLD: Duration = ms(300_000);

/// How we know an address. Order is worth: what the peer said before what we learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::path) enum Source {
    Signalled(CandidateKind),
    PeerReflexive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::path) enum Proof {
    Unproven,
    /// A check came back: least of the newest round trips, and our own address as the peer saw it.
    Proven {
        rtt: Duration,
        mapped: SocketAddr,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    Idle,
    /// Checks wait until the peer says that its gateways are open, or until then.
    Gated {
        until: Instant,
    },
    /// `step` indexes [`OFFSETS`]; one past the end waits for the last answer.
    Running {
        base: Instant,
        step: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    id: TransactionId,
    sent: Instant,
}

/// See the module.
#[derive(Clone, Debug)]
pub(in crate::path) struct Remote {
    pub(in crate::path) path: DirectPath,
    pub(in crate::path) source: Source,
    pub(in crate::path) proof: Proof,
    schedule: Schedule,
    triggered: bool,
    /// An opener waits to be sent.
    opens: bool,
    checked: bool,
    in_flight: VecDeque<InFlight>,
    owes_answer: bool,
    answers_in_round: u8,
    /// The newest round trips; the least of them counts, for what is above it was a queue.
    samples: VecDeque<Duration>,
    losses: u32,
    /// Rounds of its own since the path was lost, or was found to be too slow.
    revivals: u32,
    held_until: Option<Instant>,
}

impl Remote {
    pub(super) fn new(path: DirectPath, source: Source) -> Self {
        Self {
            path,
            source,
            proof: Proof::Unproven,
            schedule: Schedule::Idle,
            triggered: false,
            opens: false,
            checked: false,
            in_flight: VecDeque::new(),
            // Nobody answers there until somebody did.
            owes_answer: true,
            answers_in_round: 0,
            samples: VecDeque::new(),
            losses: 0,
            revivals: 0,
            held_until: None,
        }
    }

    pub(in crate::path) fn is_proven(&self) -> bool {
        self.proof != Proof::Unproven
    }

    pub(in crate::path) fn rtt(&self) -> Option<Duration> {
        match self.proof {
            Proof::Unproven => None,
            Proof::Proven { rtt, .. } => Some(rtt),
        }
    }

    pub(in crate::path) fn is_held(&self) -> bool {
        self.held_until.is_some()
    }

    /// The tunnel fell silent here: back off, and prove anew.
    pub(in crate::path) fn hold(&mut self, now: Instant) {
        let doubled = FIRST_HOLD.saturating_mul(1 << self.losses.min(16));
        self.held_until = Some(now + doubled.min(LONGEST_HOLD));
        self.losses += 1;
        self.revivals = 0;
        self.proof = Proof::Unproven;
        self.samples.clear();
    }

    /// The tunnel was heard here again.
    pub(in crate::path) fn lift_hold(&mut self) {
        self.held_until = None;
    }

    /// Ends a hold that is over.
    pub(super) fn release(&mut self, now: Instant) {
        self.held_until = self.held_until.filter(|until| now < *until);
    }

    /// The path served long enough that old losses say nothing.
    pub(in crate::path) fn forgive(&mut self) {
        self.losses = 0;
    }

    /// All that it has shown was shown to another address of ours.
    pub(super) fn forget(&mut self) {
        *self = Self { losses: self.losses, ..Self::new(self.path, self.source) };
    }

    /// Traffic left it for the relay, which is faster: it is asked again soon, since what made it slow may be a queue.
    pub(in crate::path) fn is_too_slow(&mut self, now: Instant) {
        self.revivals = 0;
        self.revive(now, SLOW_REST);
    }

    /// Gives it a round of its own, each later than the one before, by no more than `longest`.
    fn revive(&mut self, now: Instant, longest: Duration) {
        self.revivals += 1;
        let wait = FIRST_HOLD.saturating_mul(1 << self.revivals.min(16)).min(longest);
        self.start(Schedule::Running { base: now + wait, step: 0 });
    }

    fn start(&mut self, schedule: Schedule) {
        self.schedule = schedule;
        self.answers_in_round = 0;
    }

    /// The peer checks us from there: unless it has proven itself, it is checked at once.
    pub(super) fn trigger(&mut self, now: Instant) {
        if self.is_proven() {
            return;
        }
        self.triggered = true;
        if self.schedule == Schedule::Idle {
            // The triggered check is this small round's first.
            self.start(Schedule::Running { base: now, step: 1 });
        }
    }

    /// A round begins. `translated` says whether a gateway of ours gives our packets their ports, which has to be opened;
    /// `peer_is_open` whether the peer's are open towards us, as it says.
    pub(super) fn begin_round(&mut self, now: Instant, translated: bool, peer_is_open: bool) {
        let waits = self.is_opened_first();
        self.opens = waits && translated;
        self.start(match waits && !peer_is_open {
            true => Schedule::Gated { until: now + WORD_WITHIN },
            false => Schedule::Running { base: now, step: 0 },
        });
    }

    /// The peer's gateways are open, as it says.
    pub(super) fn open_gate(&mut self, now: Instant) {
        match self.schedule {
            Schedule::Gated { .. } => self.schedule = Schedule::Running { base: now, step: 0 },
            Schedule::Idle | Schedule::Running { .. } => {}
        }
    }

    /// Ends a wait for the peer's word that was long enough.
    pub(super) fn pass_gate(&mut self, now: Instant) {
        if self.gated_until().is_some_and(|until| until <= now) {
            self.open_gate(now);
        }
    }

    fn gated_until(&self) -> Option<Instant> {
        match self.schedule {
            Schedule::Gated { until } => Some(until),
            Schedule::Idle | Schedule::Running { .. } => None,
        }
    }

    /// Whether a check was ever sent there.
    pub(in crate::path) fn was_checked(&self) -> bool {
        self.checked
    }

    /// Whether an opener waits to be sent.
    pub(super) fn has_opener(&self) -> bool {
        self.opens
    }

    /// Whether no packet of the round that runs has gone there. A round that it has for itself, later, is not this one.
    pub(super) fn is_untouched(&self, now: Instant) -> bool {
        self.opens || matches!(self.schedule, Schedule::Running { step: 0, base } if base <= now)
    }

    /// Whether a round runs, or waits for the peer's word.
    pub(super) fn is_in_round(&self) -> bool {
        self.schedule != Schedule::Idle
    }

    /// Whether it has not answered the check before.
    pub(super) fn owes_answer(&self) -> bool {
        self.owes_answer
    }

    /// Whether its gateway may take a packet of ours for itself that comes before the peer has sent to us: then it is checked
    /// only after both ends have opened their own gateways with packets that do not reach the other's.
    fn is_opened_first(&self) -> bool {
        let outside = match self.source {
            Source::Signalled(CandidateKind::ServerReflexive | CandidateKind::Predicted) => true,
            Source::Signalled(CandidateKind::Host | CandidateKind::Fixed) | Source::PeerReflexive => false,
        };
        outside && !self.is_proven() && self.path.remote.is_ipv4()
    }

    /// Its place among those that are due. Predicted addresses before others: behind a counting NAT our own first packets take
    /// the ports that the peer expects, in the order in which both walk the lists.
    pub(super) fn turn(&self) -> impl Ord + use<> {
        let kind = match self.source {
            Source::Signalled(CandidateKind::Predicted) => 0,
            Source::Signalled(CandidateKind::ServerReflexive) | Source::PeerReflexive => 1,
            Source::Signalled(CandidateKind::Host | CandidateKind::Fixed) => 2,
        };
        (!self.opens, !self.triggered, kind, self.next_step())
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.is_urgent() || self.next_step().is_some_and(|due| due <= now)
    }

    fn is_urgent(&self) -> bool {
        self.opens || self.triggered
    }

    /// When the next step of its schedule is.
    fn next_step(&self) -> Option<Instant> {
        match self.schedule {
            Schedule::Idle | Schedule::Gated { .. } => None,
            Schedule::Running { base, step } => match OFFSETS.get(step) {
                Some(offset) => Some(base + *offset),
                None => Some(base + OFFSETS[OFFSETS.len() - 1] + LAST_WAIT),
            },
        }
    }

    /// When something is due, where nothing goes out before `pace`.
    pub(super) fn timeout(&self, pace: Instant) -> Option<Instant> {
        let check = if self.is_urgent() { Some(pace) } else { self.next_step().map(|due| due.max(pace)) };
        [check, self.held_until, self.gated_until()].into_iter().flatten().min()
    }

    /// Takes the next step; what that is to send. `in_use` is the path that traffic takes, if it is not relayed; `is_fastest` says
    /// that no address which answers does so sooner.
    pub(super) fn advance(&mut self, now: Instant, in_use: Option<DirectPath>, is_fastest: bool) -> Option<Due> {
        if std::mem::take(&mut self.opens) {
            return Some(Due::Opener(self.path));
        }
        if std::mem::take(&mut self.triggered) {
            return Some(Due::Check(self.path));
        }
        let Schedule::Running { base, step } = self.schedule else { return None };
        // While traffic is relayed although an address answers, its round trips were bad: the rest of the round may find better.
        if self.answers_in_round >= ENOUGH_ANSWERS && in_use.is_some() {
            self.schedule = Schedule::Idle;
            return None;
        }
        if step < OFFSETS.len() {
            self.schedule = Schedule::Running { base, step: step + 1 };
            return Some(Due::Check(self.path));
        }
        self.end_round(now, in_use, is_fastest);
        None
    }

    fn end_round(&mut self, now: Instant, in_use: Option<DirectPath>, is_fastest: bool) {
        self.schedule = Schedule::Idle;
        let unanswered = self.answers_in_round == 0;
        // A lost round says that an unused path may be gone. Of the path in use only the tunnel's silence says so.
        if in_use != Some(self.path) && unanswered {
            self.proof = Proof::Unproven;
        }
        // It answers, and traffic is relayed all the same: it is more than twice as slow as the relay, and the slower ones even more.
        let too_slow = is_fastest && !unanswered && in_use.is_none() && !self.is_held();
        // A path that worked once gets small rounds of its own until it works again, the fastest of slow ones until it is not.
        if self.losses > 0 && unanswered {
            self.revive(now, LOST_REST);
        } else if too_slow {
            self.revive(now, SLOW_REST);
        }
    }

    /// A check with this id went there.
    pub(super) fn on_sent(&mut self, now: Instant, id: TransactionId) {
        self.owes_answer = true;
        self.checked = true;
        if self.in_flight.len() == MAX_IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back(InFlight { id, sent: now });
    }

    /// A verified response came from there. `false`: to none in flight.
    pub(super) fn on_answered(&mut self, now: Instant, id: TransactionId, mapped: SocketAddr) -> bool {
        let index = self.in_flight.iter().position(|check| check.id == id);
        let Some(check) = index.and_then(|index| self.in_flight.remove(index)) else { return false };
        if self.samples.len() == MAX_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(now.saturating_duration_since(check.sent));
        let rtt = self.samples.iter().copied().min().unwrap_or_default();
        self.proof = Proof::Proven { rtt, mapped };
        self.owes_answer = false;
        self.answers_in_round = self.answers_in_round.saturating_add(1);
        true
    }
}
