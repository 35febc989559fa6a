//! The peer's addresses, what each has proven, and when to check which.
//!
//! Bounds live here, because a peer names the addresses: rounds with few transmissions, a pace between any two, and a
//! token for each check to an address that has not answered the one before (`docs/spec/paths.md` section 3).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::control::{Candidate, CandidateKind, MAX_CANDIDATES};

use super::budget::Budget;
use super::{DirectPath, Link};
use crate::stun::TransactionId;

/// When a round checks an address, after its start: RFC 8445's Ta of 50 ms, doubling.
const OFFSETS: [Duration; 7] = [ms(0), ms(50), ms(150), ms(350), ms(750), ms(1550), ms(3150)];
/// How long the last check of a round may take to come back.
const LAST_WAIT: Duration = ms(1000);
/// From one round's start to the next; the last repeats.
const GAPS: [Duration; 4] = [ms(40_000), ms(80_000), ms(160_000), ms(300_000)];
/// How long checks of an address outside wait for the peer's word that its gateways are open. The tunnel delivers it however
/// busy the peer's machine is; this is for a peer that gave up on us.
const WORD_WITHIN: Duration = ms(3000);
/// How long such a word holds: less than the 20 s for which the most forgetful gateways keep an unanswered packet.
const WORD_HOLDS: Duration = ms(10_000);
/// A peer that begins a round makes us begin ours, if our last began this long ago.
const CALLED_AFTER: Duration = ms(20_000);
/// Between two rounds that an address has for itself after it was lost.
const LOST_REST: Duration = GAPS[0];
/// And while it answers but is too slow: no more often than everybody is asked in the long run.
const SLOW_REST: Duration = GAPS[GAPS.len() - 1];
/// Between any two checks of a session: at most 100 a second.
const PACE: Duration = ms(10);
/// Checks at once to addresses that did not answer: a full first round of 16 addresses is 112.
const UNANSWERED_BURST: u32 = 128;
/// One more such check each.
const UNANSWERED_INTERVAL: Duration = ms(500);
/// Checks in flight remembered per address: one round.
const MAX_IN_FLIGHT: usize = 8;
/// Answers in one round after which an address rests until the next, if traffic is direct: one proves, three measure.
const ENOUGH_ANSWERS: u8 = 3;
/// Round trips remembered per address.
const MAX_SAMPLES: usize = 8;
/// Peer-reflexive addresses kept.
const MAX_LEARNED: usize = 16;
/// First hold of a path lost to silence; doubles with each loss.
const FIRST_HOLD: Duration = ms(2000);
/// Longest hold.
const LONGEST_HOLD: Duration = ms(300_000);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How we know an address. Order is worth: what the peer said before what we learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Signalled(CandidateKind),
    PeerReflexive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
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

/// One address of the peer, as seen from one socket of ours.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) path: DirectPath,
    pub(super) source: Source,
    pub(super) proof: Proof,
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
    fn new(path: DirectPath, source: Source) -> Self {
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

    pub(super) fn rtt(&self) -> Option<Duration> {
        match self.proof {
            Proof::Unproven => None,
            Proof::Proven { rtt, .. } => Some(rtt),
        }
    }

    pub(super) fn is_held(&self) -> bool {
        self.held_until.is_some()
    }

    /// The tunnel fell silent here: back off, and prove anew.
    pub(super) fn hold(&mut self, now: Instant) {
        let doubled = FIRST_HOLD.saturating_mul(1 << self.losses.min(16));
        self.held_until = Some(now + doubled.min(LONGEST_HOLD));
        self.losses += 1;
        self.revivals = 0;
        self.proof = Proof::Unproven;
        self.samples.clear();
    }

    /// Traffic left it for the relay, which is faster: it is asked again soon, since what made it slow may be a queue.
    pub(super) fn is_too_slow(&mut self, now: Instant) {
        self.revivals = 0;
        self.revive(now, SLOW_REST);
    }

    /// Gives it a round of its own, each later than the one before, by no more than `longest`.
    fn revive(&mut self, now: Instant, longest: Duration) {
        self.revivals += 1;
        let wait = FIRST_HOLD.saturating_mul(1 << self.revivals.min(16)).min(longest);
        self.schedule = Schedule::Running { base: now + wait, step: 0 };
        self.answers_in_round = 0;
    }

    /// The tunnel was heard here again.
    pub(super) fn lift_hold(&mut self) {
        self.held_until = None;
    }

    /// The path served long enough that old losses say nothing.
    pub(super) fn forgive(&mut self) {
        self.losses = 0;
    }

    /// Whether a check was ever sent there.
    pub(super) fn was_checked(&self) -> bool {
        self.checked
    }

    /// Its place in a round. Predicted addresses first: behind a counting NAT our own first packets take the ports that
    /// the peer expects, in the order in which both walk the lists.
    fn turn(&self) -> u8 {
        match self.source {
            Source::Signalled(CandidateKind::Predicted) => 0,
            Source::Signalled(CandidateKind::ServerReflexive) | Source::PeerReflexive => 1,
            Source::Signalled(CandidateKind::Host | CandidateKind::Fixed) => 2,
        }
    }

    /// Whether its gateway may take a packet of ours for itself that comes before the peer has sent to us: then it is checked
    /// only after both ends have opened their own gateways with packets that do not reach the other's.
    fn is_opened_first(&self) -> bool {
        let outside = match self.source {
            Source::Signalled(CandidateKind::ServerReflexive | CandidateKind::Predicted) => true,
            Source::Signalled(CandidateKind::Host | CandidateKind::Fixed) | Source::PeerReflexive => false,
        };
        outside && self.proof == Proof::Unproven && self.path.remote.is_ipv4()
    }

    fn due(&self) -> Option<Instant> {
        match self.schedule {
            Schedule::Idle | Schedule::Gated { .. } => None,
            Schedule::Running { base, step } => match OFFSETS.get(step) {
                Some(offset) => Some(base + *offset),
                None => Some(base + OFFSETS[OFFSETS.len() - 1] + LAST_WAIT),
            },
        }
    }
}

/// What is to be sent now.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    /// A check.
    Check(DirectPath),
    /// A check that dies on its way: all that it does is open our own gateway.
    Opener(DirectPath),
}

#[derive(Clone, Copy, Debug)]
struct NextRound {
    at: Instant,
    number: usize,
}

/// What is left to be said of a round.
#[derive(Clone, Copy, Debug, Default)]
struct Unsaid {
    /// To the peer: that our gateways are open.
    opened: bool,
    /// To our owner: that a first round went without an answer.
    failed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Checklist {
    remotes: Vec<Remote>,
    next_round: Option<NextRound>,
    /// When the last round began.
    began: Option<Instant>,
    /// When the peer said that its gateways are open towards our newest list.
    peer_opened: Option<Instant>,
    unsaid: Unsaid,
    /// Before this no check goes out.
    pace: Instant,
    unanswered: Budget,
}

impl Checklist {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            remotes: Vec::new(),
            next_round: None,
            began: None,
            peer_opened: None,
            unsaid: Unsaid::default(),
            pace: now,
            unanswered: Budget::full(now, UNANSWERED_BURST, UNANSWERED_INTERVAL),
        }
    }

    pub(super) fn remotes(&self) -> &[Remote] {
        &self.remotes
    }

    pub(super) fn get(&self, path: DirectPath) -> Option<&Remote> {
        self.remotes.iter().find(|remote| remote.path == path)
    }

    pub(super) fn get_mut(&mut self, path: DirectPath) -> Option<&mut Remote> {
        self.remotes.iter_mut().find(|remote| remote.path == path)
    }

    /// Replaces what the peer said before. Learned addresses stay, named ones that are gone go.
    pub(super) fn set_signalled(&mut self, list: &[Candidate]) {
        self.remotes.retain(|remote| {
            remote.source == Source::PeerReflexive
                || list.iter().any(|named| DirectPath::main(named.address) == remote.path)
        });
        for candidate in list.iter().take(MAX_CANDIDATES) {
            let source = Source::Signalled(candidate.kind);
            let path = DirectPath::main(candidate.address);
            match self.get_mut(path) {
                Some(known) => known.source = source,
                None => self.remotes.push(Remote::new(path, source)),
            }
        }
    }

    /// A verified request came from here. An unknown address is learned; to make room the oldest unproven learned one
    /// goes. `false` if there is no room.
    pub(super) fn learn(&mut self, now: Instant, path: DirectPath) -> bool {
        if self.get(path).is_none() {
            let learned = self.remotes.iter().filter(|remote| remote.source == Source::PeerReflexive).count();
            if learned >= MAX_LEARNED {
                let spare = |remote: &Remote| remote.source == Source::PeerReflexive && remote.proof == Proof::Unproven;
                let Some(oldest) = self.remotes.iter().position(spare) else {
                    return false;
                };
                self.remotes.remove(oldest);
            }
            self.remotes.push(Remote::new(path, Source::PeerReflexive));
        }
        if let Some(remote) = self.get_mut(path)
            && remote.proof == Proof::Unproven
        {
            remote.triggered = true;
            if remote.schedule == Schedule::Idle {
                // The triggered check is this small round's first.
                remote.schedule = Schedule::Running { base: now, step: 1 };
                remote.answers_in_round = 0;
            }
        }
        true
    }

    /// Lets go of addresses.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Remote) -> bool) {
        self.remotes.retain(keep);
    }

    /// A new first round: one of the two lists is another.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next_round = (!self.remotes.is_empty()).then_some(NextRound { at: now, number: 0 });
        self.peer_opened = None;
    }

    /// The peer's gateways are open towards our newest list. Without a round of ours this is a call for one.
    pub(super) fn peer_opened(&mut self, now: Instant) {
        self.peer_opened = Some(now);
        for remote in &mut self.remotes {
            if let Schedule::Gated { .. } = remote.schedule {
                remote.schedule = Schedule::Running { base: now, step: 0 };
            }
        }
        let rested = self.began.is_some_and(|began| now.saturating_duration_since(began) >= CALLED_AFTER);
        if let Some(round) = self.next_round.as_mut().filter(|_| rested) {
            round.at = now.min(round.at);
        }
    }

    /// No round, no proof, nothing in flight: our own addresses changed, or policy forbids checks.
    pub(super) fn forget_proofs(&mut self) {
        self.next_round = None;
        self.unsaid = Unsaid::default();
        // What extra sockets met, they met from the address before.
        self.remotes.retain(|remote| remote.path.link == Link::Main);
        for remote in &mut self.remotes {
            *remote = Remote { losses: remote.losses, ..Remote::new(remote.path, remote.source) };
        }
    }

    /// Starts the round that is due. `translated` says whether a gateway of ours gives our packets their ports, which has to be
    /// opened; `usable` tells which addresses we can send to; `in_use` has its keepalive.
    pub(super) fn start_round(
        &mut self,
        now: Instant,
        translated: bool,
        in_use: Option<DirectPath>,
        usable: impl Fn(DirectPath) -> bool,
    ) {
        self.pass_gates(now);
        let Some(round) = self.next_round.filter(|round| round.at <= now) else { return };
        let is_open = self.peer_opened.is_some_and(|said| now.saturating_duration_since(said) < WORD_HOLDS);
        for remote in &mut self.remotes {
            let settled = round.number == 0 && remote.proof != Proof::Unproven;
            if Some(remote.path) != in_use && !settled && usable(remote.path) {
                let waits = remote.is_opened_first();
                remote.opens = waits && translated;
                remote.schedule = match waits && !is_open {
                    true => Schedule::Gated { until: now + WORD_WITHIN },
                    false => Schedule::Running { base: now, step: 0 },
                };
                remote.answers_in_round = 0;
            }
        }
        let opens = self.remotes.iter().any(|remote| remote.opens);
        self.unsaid = Unsaid { opened: opens || round.number == 0, failed: round.number == 0 };
        self.began = Some(now);
        let gap = GAPS[round.number.min(GAPS.len() - 1)];
        self.next_round = Some(NextRound { at: now + gap, number: round.number + 1 });
    }

    /// Waits for the peer's word end.
    fn pass_gates(&mut self, now: Instant) {
        for remote in &mut self.remotes {
            if let Schedule::Gated { until } = remote.schedule
                && until <= now
            {
                remote.schedule = Schedule::Running { base: now, step: 0 };
            }
        }
    }

    /// Whether a packet of ours has gone to every address of this round, which is said once.
    pub(super) fn take_opened(&mut self, now: Instant) -> bool {
        // A round that an address has for itself, later, is not this one.
        let begins = |schedule| matches!(schedule, Schedule::Running { step: 0, base } if base <= now);
        let unsent = |remote: &Remote| remote.opens || begins(remote.schedule);
        let done = self.unsaid.opened && !self.remotes.iter().any(unsent);
        self.unsaid.opened &= !done;
        done
    }

    /// Whether a first round is over and nobody has answered, which is said once.
    pub(super) fn take_failed(&mut self) -> bool {
        let unanswered = |remote: &Remote| remote.schedule == Schedule::Idle && remote.proof == Proof::Unproven;
        let done = self.unsaid.failed && !self.remotes.is_empty() && self.remotes.iter().all(unanswered);
        self.unsaid.failed &= !done;
        done
    }

    /// What to send now, if something is due and pace and budget allow.
    pub(super) fn due(&mut self, now: Instant, in_use: Option<DirectPath>) -> Option<Due> {
        while now >= self.pace {
            let index = self.next_due(now)?;
            let is_fastest = self.fastest() == Some(index);
            let remote = &mut self.remotes[index];
            let opens = std::mem::take(&mut remote.opens);
            if !opens && !advance(now, remote, in_use, is_fastest) {
                continue;
            }
            if !remote.owes_answer || self.unanswered.take(now) {
                return Some(if opens { Due::Opener(remote.path) } else { Due::Check(remote.path) });
            }
        }
        None
    }

    /// Which of those that answer has the shortest round trip.
    fn fastest(&self) -> Option<usize> {
        let answering = self.remotes.iter().enumerate().filter(|(_, remote)| !remote.is_held());
        let timed = answering.filter_map(|(index, remote)| Some((remote.rtt()?, index)));
        timed.min().map(|(_, index)| index)
    }

    fn next_due(&self, now: Instant) -> Option<usize> {
        let order = |remote: &Remote| (!remote.opens, !remote.triggered, remote.turn(), remote.due());
        (0..self.remotes.len())
            .filter(|index| {
                let remote = &self.remotes[*index];
                remote.opens || remote.triggered || remote.due().is_some_and(|due| due <= now)
            })
            .min_by_key(|index| order(&self.remotes[*index]))
    }

    /// An opener went out.
    pub(super) fn on_opened(&mut self, now: Instant) {
        self.pace = now + PACE;
    }

    /// A check with this id went over `path`.
    pub(super) fn on_sent(&mut self, now: Instant, path: DirectPath, id: TransactionId) {
        self.pace = now + PACE;
        let Some(remote) = self.get_mut(path) else { return };
        remote.owes_answer = true;
        remote.checked = true;
        if remote.in_flight.len() == MAX_IN_FLIGHT {
            remote.in_flight.pop_front();
        }
        remote.in_flight.push_back(InFlight { id, sent: now });
    }

    /// A verified response. It counts for the address its request went to, once. `false`: for none in flight there.
    pub(super) fn on_answered(
        &mut self,
        now: Instant,
        from: DirectPath,
        id: TransactionId,
        mapped: SocketAddr,
    ) -> bool {
        let Some(remote) = self.get_mut(from) else { return false };
        let Some(index) = remote.in_flight.iter().position(|check| check.id == id) else {
            return false;
        };
        let Some(check) = remote.in_flight.remove(index) else {
            return false;
        };
        if remote.samples.len() == MAX_SAMPLES {
            remote.samples.pop_front();
        }
        remote.samples.push_back(now.saturating_duration_since(check.sent));
        let rtt = remote.samples.iter().copied().min().unwrap_or_default();
        remote.proof = Proof::Proven { rtt, mapped };
        remote.owes_answer = false;
        remote.answers_in_round = remote.answers_in_round.saturating_add(1);
        true
    }

    /// When something is due next. Past instants mean "now".
    pub(super) fn timeout(&self) -> Option<Instant> {
        let checks = self.remotes.iter().filter_map(|remote| {
            let due = if remote.opens || remote.triggered { Some(self.pace) } else { remote.due() };
            due.map(|due| due.max(self.pace))
        });
        let holds = self.remotes.iter().filter_map(|remote| remote.held_until);
        let gates = self.remotes.iter().filter_map(|remote| match remote.schedule {
            Schedule::Gated { until } => Some(until),
            Schedule::Idle | Schedule::Running { .. } => None,
        });
        checks.chain(holds).chain(gates).chain(self.next_round.map(|round| round.at)).min()
    }

    /// Ends the holds that are over.
    pub(super) fn release(&mut self, now: Instant) {
        for remote in &mut self.remotes {
            remote.held_until = remote.held_until.filter(|until| now < *until);
        }
    }

    /// Whether a first round is waiting or running.
    pub(super) fn is_in_first_round(&self) -> bool {
        let running = self.remotes.iter().any(|remote| remote.schedule != Schedule::Idle);
        self.next_round.is_some_and(|round| round.number == 0 || (round.number == 1 && running))
    }
}

/// Takes the next step of an address's schedule; whether that is a check to send. `is_fastest`: none that answers does so sooner.
fn advance(now: Instant, remote: &mut Remote, in_use: Option<DirectPath>, is_fastest: bool) -> bool {
    if std::mem::take(&mut remote.triggered) {
        return true;
    }
    let Schedule::Running { base, step } = remote.schedule else {
        return false;
    };
    // While traffic is relayed although an address answers, its round trips were bad: the rest of the round may find better.
    if remote.answers_in_round >= ENOUGH_ANSWERS && in_use.is_some() {
        remote.schedule = Schedule::Idle;
        return false;
    }
    if step < OFFSETS.len() {
        remote.schedule = Schedule::Running { base, step: step + 1 };
        return true;
    }
    remote.schedule = Schedule::Idle;
    // A lost round says that an unused path may be gone. Of the path in use only the tunnel's silence says so.
    if Some(remote.path) != in_use && remote.answers_in_round == 0 {
        remote.proof = Proof::Unproven;
    }
    let lost = remote.losses > 0 && remote.answers_in_round == 0;
    // It answers, and traffic is relayed all the same: it is more than twice as slow as the relay, and the slower ones even more.
    let too_slow = is_fastest && remote.answers_in_round > 0 && in_use.is_none() && !remote.is_held();
    // A path that worked once gets small rounds of its own until it works again, the fastest of slow ones until it is not.
    if lost {
        remote.revive(now, LOST_REST);
    } else if too_slow {
        remote.revive(now, SLOW_REST);
    }
    false
}

#[cfg(test)]
mod tests;
