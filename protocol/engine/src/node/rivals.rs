//! Several sessions with one peer: which one new streams use, and how one that is not needed ends without harm.
//!
//! Both ends may dial at once, a path may die under a session and come back, a peer may run as several replicas. Each end
//! chooses for itself where it opens streams, by what it knows of the sessions at that moment; the two need not agree.
//! What they must agree on is the end of a session: an end that closed one while the other opens a stream on it would
//! reset that stream. So each says that it *retires* a session, and it is closed when both have, with all streams over.

use core::cmp::Reverse;
use std::time::{Duration, Instant};

use peerage_model::control::{ControlMessage, Retire, RunId};
use peerage_model::{AgentId, InstanceId};

use super::Node;
use super::config::DRAIN_GRACE;
use super::event::{CloseCode, DownReason, Now, SessionKey};
use super::pair::PairKey;
use super::replicas::Load;
use super::session::{Session, Up};

/// Two sessions that came up this close together were dialled at once; further apart, the newer one replaces the older.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Most sessions with one instance. Two are usual when both dial at once, a third may come when a path dies; more than
/// this is a peer that dials without end.
const MAX_PER_INSTANCE: usize = 4;
/// Most sessions with all instances of a peer.
pub(super) const MAX_PER_PEER: usize = 64;

/// How the end of a session that is not needed is agreed with the peer.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// It lost to another session, and is looked at then.
    at: Option<Instant>,
    /// Bidirectional streams of this session, since its beginning.
    counts: Retire,
    said: Option<Retire>,
    heard: Option<Retire>,
}

impl Drain {
    pub(super) fn opened(&mut self) {
        self.counts.opened += 1;
    }

    pub(super) fn accepted(&mut self) {
        self.counts.accepted += 1;
    }

    pub(super) fn accepted_so_far(&self) -> u64 {
        self.counts.accepted
    }

    pub(super) fn has_begun(&self) -> bool {
        self.at.is_some()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.at
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }

    fn begin(&mut self, now: Instant) {
        self.at.get_or_insert(now + DRAIN_GRACE);
    }

    /// It is the one that stays after all; what an end has said cannot be taken back.
    fn cancel(&mut self) {
        if self.said.is_none() && self.heard.is_none() {
            self.at = None;
        }
    }

    /// Whether each end has retired the session and has seen all that the other opened.
    fn is_agreed(&self) -> bool {
        let Some(heard) = self.heard else { return false };
        self.said == Some(self.counts) && heard.accepted == self.counts.opened && heard.opened == self.counts.accepted
    }
}

/// How fit a session is for new streams. Smaller is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Unfitness {
    /// The peer has not shown that it takes us. Its half may never come up; that of one that is silent did.
    unconfirmed: bool,
    /// An answer is overdue: its path may be dead, and another's is not.
    silent: bool,
    draining: bool,
    load: Load,
    age: Reverse<usize>,
}

impl Node {
    /// The session of this pair that stays when there is nothing to spread.
    pub(super) fn preferred(&self, pair_key: &PairKey) -> Option<SessionKey> {
        self.fittest(pair_key, |_| Some(Load::default()))
    }

    /// The session that is fit for new streams before all others, of those that `admit` gives a load.
    pub(super) fn fittest(&self, pair_key: &PairKey, admit: impl Fn(&Up) -> Option<Load>) -> Option<SessionKey> {
        let pair = self.pairs.get(pair_key)?;
        let candidates = pair.up.iter().enumerate().filter_map(|(at, key)| {
            let session = self.sessions.get(key)?;
            let up = session.up()?;
            let usable = up.suspect.is_none() && up.drain.said.is_none() && !session.may_be_forgotten(self.last.mono);
            let unfitness = Unfitness {
                unconfirmed: !up.confirmed,
                silent: up.path.is_silent(),
                draining: up.drain.has_begun(),
                load: admit(up).filter(|_| usable)?,
                age: Reverse(at),
            };
            Some((unfitness, *key))
        });
        candidates.min().map(|(_, key)| key)
    }

    /// Whether a session's peer is there for certain, as far as one can know.
    pub(super) fn answers(&self, key: SessionKey) -> bool {
        let up = self.sessions.get(&key).and_then(Session::up);
        up.is_some_and(|up| up.confirmed && up.suspect.is_none() && !up.path.is_silent())
    }

    /// A session came up beside others.
    pub(super) fn meet_rivals(&mut self, new: SessionKey, now: Now) {
        let Some((instance, rivals)) = self.rivals(new) else { return };
        let route = self.sessions.get(&new).map(|session| session.relayed.clone());
        for old in &rivals {
            let Some(session) = self.sessions.get_mut(old) else { continue };
            if session.up().is_some_and(|up| up.credential.instance() == instance)
                && let Some(route) = &route
            {
                // The new session's way by relay works at this moment; that of an older one may have ended unnoticed while
                // it went directly (a relay keeps an idle flow to a visitor for three minutes).
                session.relayed = route.clone();
            }
            // What looks like a replica may be the successor of a process that is gone: the answer, or its absence, tells.
            session.connection.ping();
            self.ready.insert(*old);
        }
        if self.sessions.get(&new).and_then(Session::up).is_some_and(|up| up.confirmed) {
            self.settle_rivals(new, now);
        }
        self.limit_sessions(instance, &rivals, now);
    }

    /// Settles what a session that both ends have confirmed means for older ones with the same instance.
    pub(super) fn settle_rivals(&mut self, new: SessionKey, now: Now) {
        let Some((instance, rivals)) = self.rivals(new) else { return };
        let Some(session) = self.sessions.get(&new) else { return };
        let (PairKey::Peer(peer), new_initiator) = (&session.pair, session.initiator) else { return };
        let lower_is_ours = (&self.agent, self.instance) < (peer, instance);
        let mut stays = true;
        for old in rivals {
            let Some(session) = self.sessions.get_mut(&old) else { continue };
            let (was_ours, Some(up)) = (session.initiator, session.up_mut()) else { continue };
            if up.credential.instance() != instance {
                continue;
            }
            let at_once = now.mono.saturating_duration_since(up.since.mono) < AT_ONCE && was_ours != new_initiator;
            let keeps_old = at_once && up.confirmed && up.suspect.is_none() && was_ours == lower_is_ours;
            let loser = if keeps_old { new } else { old };
            stays &= !keeps_old;
            self.begin_drain(loser, now.mono);
        }
        // The twin is confirmed first, as its server is from the beginning, and sent this one away, unconfirmed as it was.
        if let Some(up) = self.sessions.get_mut(&new).and_then(Session::up_mut).filter(|_| stays) {
            up.drain.cancel();
        }
    }

    /// The other sessions of the same peer, and the instance that `key` is with.
    fn rivals(&self, key: SessionKey) -> Option<(InstanceId, Vec<SessionKey>)> {
        let session = self.sessions.get(&key)?;
        let instance = session.up()?.credential.instance();
        let pair = self.pairs.get(&session.pair)?;
        Some((instance, pair.up.iter().copied().filter(|other| *other != key).collect()))
    }

    fn begin_drain(&mut self, key: SessionKey, now: Instant) {
        if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
            up.drain.begin(now);
        }
        self.arm_session(key);
    }

    /// A peer that dials without end fills no memory: of too many sessions with one instance the oldest goes.
    fn limit_sessions(&mut self, instance: InstanceId, rivals: &[SessionKey], now: Now) {
        let with_it = |key: &&SessionKey| {
            self.sessions.get(key).and_then(Session::up).is_some_and(|up| up.credential.instance() == instance)
        };
        let same: Vec<SessionKey> = rivals.iter().filter(with_it).copied().collect();
        if same.len() < MAX_PER_INSTANCE {
            return;
        }
        let unused = |key: &SessionKey| self.sessions.get_mut(key).is_some_and(Session::is_unused);
        if let Some(oldest) = same.iter().copied().find(unused).or(same.first().copied()) {
            self.close(oldest, CloseCode::Replaced, DownReason::Replaced, now.mono);
        }
    }

    /// Of a peer's sessions, where they are as many as it may have, the one that gives way to another: nothing is on it, and its
    /// peer was silent for longest. A peer may run as more clients than that, of which most are idle.
    pub(super) fn dispensable(&mut self, pair_key: &PairKey) -> Option<SessionKey> {
        let pair = self.pairs.get(pair_key).filter(|pair| pair.peer().is_some() && pair.up.len() >= MAX_PER_PEER)?;
        let unused = pair.up.clone().into_iter().filter_map(|key| {
            let session = self.sessions.get_mut(&key)?;
            session.is_unused().then_some((session.last_heard(), key))
        });
        unused.min().map(|(_, key)| key)
    }

    /// Somebody who holds the peer's secret begins another session.
    pub(super) fn make_room(&mut self, pair_key: &PairKey, now: Now) {
        if let Some(key) = self.dispensable(pair_key) {
            self.close(key, CloseCode::Replaced, DownReason::Replaced, now.mono);
        }
    }

    /// A draining session's time came: retires it once nothing is on it and another one serves the pair.
    pub(super) fn drain_on(&mut self, key: SessionKey, now: Now) {
        let replaced = self.rivals(key).is_some_and(|(instance, rivals)| {
            // One that is retired serves nobody: of two that drain, the second stays.
            let serves = |up: &Up| up.credential.instance() == instance && up.drain.said.is_none();
            let same = |other: &SessionKey| self.sessions.get(other).and_then(Session::up).is_some_and(serves);
            rivals.iter().any(|other| same(other) && self.answers(*other))
        });
        // Of two sessions the one that looks for a path stays until it has found it; the other one may go.
        let looks_for_path = self.has_round(key, now.mono);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let unused = session.is_unused() && !looks_for_path;
        let Some(up) = session.up_mut() else { return };
        up.drain.at = Some(now.mono + DRAIN_GRACE);
        if !unused || !(replaced || up.drain.said.is_some()) {
            return;
        }
        if up.drain.said != Some(up.drain.counts) {
            up.drain.said = Some(up.drain.counts);
            let retire = up.drain.counts;
            self.say(key, &ControlMessage::Retire(retire));
        }
        self.close_if_agreed(key, now);
    }

    /// The peer opens no more streams on this session.
    pub(super) fn on_retire(&mut self, key: SessionKey, retire: Retire, now: Now) {
        if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
            up.drain.heard = Some(retire);
            up.drain.begin(now.mono);
        }
        self.close_if_agreed(key, now);
        self.arm_session(key);
    }

    fn close_if_agreed(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.is_unused() && session.up().is_some_and(|up| up.drain.is_agreed()) {
            self.close(key, CloseCode::Drained, DownReason::Drained, now.mono);
        }
    }

    /// The peer says which of its instances have ended. It can only speak for its own name, not for the instance that
    /// speaks, and a replica that errs (or lies) must not end the sessions of another: the claim only makes the first
    /// silence count, and an answer refutes it.
    pub(super) fn doubt_predecessors(&mut self, peer: &AgentId, ended: &[InstanceId], speaker: InstanceId) {
        let Some(pair) = self.pairs.get(&PairKey::Peer(peer.clone())) else { return };
        for key in pair.up.clone() {
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            let Some(up) = session.up_mut() else { continue };
            let instance = up.credential.instance();
            if instance != speaker && ended.contains(&instance) {
                up.said_to_be_over = true;
                session.connection.ping();
                self.ready.insert(key);
            }
        }
    }

    /// A session's instance says which run of it this is: older sessions with another run of it are over, unless an answer
    /// shows that two processes share a key.
    pub(super) fn doubt_earlier_runs(&mut self, new: SessionKey, run: RunId) {
        let Some((instance, _)) = self.rivals(new) else { return };
        let Some(pair) = self.sessions.get(&new).and_then(|session| self.pairs.get(&session.pair)) else { return };
        let older: Vec<SessionKey> = pair.up.iter().copied().take_while(|key| *key != new).collect();
        for key in older {
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            let Some(up) = session.up_mut() else { continue };
            if up.credential.instance() == instance && up.run.is_some_and(|other| other != run) {
                up.said_to_be_over = true;
                session.connection.ping();
                self.ready.insert(key);
            }
        }
    }
}

impl Session {
    /// Whether no stream is on it. What was finished may still be on its way; the control stream is the one that is always
    /// open.
    fn is_unused(&mut self) -> bool {
        let sending = self.connection.streams().send_streams() > 1;
        self.up().is_some_and(|up| up.streams.is_empty() && up.arriving.is_empty()) && !sending
    }
}
