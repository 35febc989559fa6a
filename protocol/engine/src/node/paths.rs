//! Where a session's packets go: the path agent's orders carried out.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::control::{Candidate, CandidateKind, Candidates, ControlMessage, MAX_CANDIDATES, Opened};
use peerage_model::snapshot;
use peerage_model::{AgentId, InstanceId, Label};
use tracing::{debug, info};

use super::config::{HANDSHAKE_TIMEOUT, PING_INTERVAL};
use super::event::{CloseCode, DownReason, Event, Now, SessionKey};
use super::life::after;
use super::pair::PairKey;
use super::session::{Phase, RelayRoute, Session, Suspicion, Up};
use super::{Node, Timer};
use crate::nat::NatType;
use crate::path::{DirectPath, Hop, PathAgent, PathConfig, PathEvent, PathKind, PathMode};
use crate::stun::{CheckKeys, EXPORTER_LABEL, Role};

/// Most checks whose integrity we compute a second: at about a microsecond each, a flood of forged ones costs two hundredths of
/// a core and delays upgrades, not data. Only who saw a check of a session can make one that gets as far.
const CHECKS_PER_SECOND: u32 = 20_000;

/// How long a session may stay silent after three silent timeouts while its peer answers on another one, from another
/// process: the one it was with is gone.
const DOUBT: Duration = Duration::from_secs(5);
/// As [`DOUBT`], while the very process answers on another session. It is not gone, but what is under way to it may wait for
/// its retransmission, and that may wait long (RFC 9002 section 6.2 doubles the time); or it has given this session up and
/// the word of that was lost.
const DOUBT_OF_TWIN: Duration = Duration::from_secs(30);
/// How often a session in doubt asks whether the peer is there, for as long as [`DOUBT`].
const ASK_SOON: Duration = Duration::from_secs(1);
/// And later: ten packets each time, so that a network that is only full is not kept so.
const ASK_LATER: Duration = Duration::from_secs(5);

/// How many checks may still be looked at this second.
#[derive(Debug)]
pub(super) struct CheckBudget {
    second: Option<Instant>,
    left: u32,
}

impl CheckBudget {
    pub(super) fn new() -> Self {
        Self { second: None, left: CHECKS_PER_SECOND }
    }

    fn take(&mut self, now: Now) -> bool {
        let fresh = self.second.is_none_or(|since| now.mono.saturating_duration_since(since) >= Duration::from_secs(1));
        if fresh {
            *self = Self { second: Some(now.mono), left: CHECKS_PER_SECOND };
        }
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}

impl Node {
    pub(super) fn new_path_agent(&mut self, key: SessionKey, now: Now) -> PathAgent {
        let seed = self.random.bytes();
        let local = self.local_candidates();
        let session = &self.sessions[&key];
        let mut material = [0; 64];
        session
            .connection
            .crypto_session()
            .export_keying_material(&mut material, EXPORTER_LABEL, b"")
            .expect("a session that is up exports 64 bytes");
        let role = if session.initiator { Role::Initiator } else { Role::Responder };
        let peer = self.pairs.get(&session.pair).and_then(|pair| pair.peer());
        let config = PathConfig {
            role,
            // A request-only session shows a stranger no address.
            mode: peer.map_or(PathMode::RelayOnly, |peer| mode(peer.path)),
            share_private: peer.is_some(),
            keepalive: self.path_keepalive(),
            birthday: peer.is_some_and(|peer| peer.birthday == snapshot::BirthdayMode::Enabled),
        };
        let scouts = config.mode != PathMode::RelayOnly && self.should_scout(&session.pair, now);
        let mut path = PathAgent::new(now.mono, config, CheckKeys::from_exporter(role, &mut material), &seed);
        if scouts {
            self.scout_for(key, now);
        } else {
            path.local_candidates_changed(now.mono, local);
        }
        path
    }

    /// Our addresses: the driver's, the owner's, and what relays saw.
    pub(super) fn local_candidates(&self) -> Vec<Candidate> {
        let of = |kind, addresses: &BTreeSet<SocketAddr>| {
            addresses.iter().map(move |address| Candidate { kind, address: *address }).collect::<Vec<_>>()
        };
        let fixed: BTreeSet<_> = self.fixed.iter().chain(&self.mapped).copied().collect();
        let mut all = of(CandidateKind::Fixed, &fixed);
        all.extend(of(CandidateKind::Host, &self.hosts));
        let known: BTreeSet<_> = fixed.union(&self.hosts).copied().collect();
        let reflexive: BTreeSet<_> = self.relays.reflexive().difference(&known).copied().collect();
        // Reflexive ones last but never cut off: behind a NAT they are the ones that work.
        let outside = reflexive.iter().find(|address| address.is_ipv4()).copied();
        let local_port = self.hosts.iter().find(|host| host.is_ipv4()).map_or(0, SocketAddr::port);
        let mut predicted = match self.relays.nat_report().behaviour.mapping.is_symmetric() {
            true => self.extras.predictions(self.last.mono, outside, local_port),
            false => Vec::new(),
        };
        // Behind what looks like a cone, new destinations may see another port than old ones.
        predicted.extend(self.outside.moved(self.last.mono));
        predicted.retain(|address| !reflexive.contains(address) && !known.contains(address));
        all.truncate(MAX_CANDIDATES.saturating_sub(reflexive.len() + predicted.len()));
        all.extend(of(CandidateKind::ServerReflexive, &reflexive));
        all.extend(predicted.into_iter().map(|address| Candidate { kind: CandidateKind::Predicted, address }));
        all.truncate(MAX_CANDIDATES);
        all
    }

    /// Our addresses changed: every session learns it.
    pub(super) fn candidates_changed(&mut self, now: Now) {
        for key in self.up_sessions() {
            if self.extras.holds_back(key) {
                continue;
            }
            let Some(session) = self.sessions.get(&key) else { continue };
            let relayed = session.up().is_some_and(|up| up.path.kind() == PathKind::Relayed);
            // Which NAT we are behind may be known only after the session came up.
            if relayed && self.extras.allocation().is_none() && self.should_scout(&session.pair, now) {
                self.scout_for(key, now);
            } else {
                self.tell_candidates(key, now);
            }
        }
    }

    /// Gives a session's path agent our addresses as they are.
    pub(super) fn tell_candidates(&mut self, key: SessionKey, now: Now) {
        let candidates = self.local_candidates();
        let (nat_type, hard) = (self.relays.nat_report().nat_type, self.has_random_ports());
        if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
            up.path.local_nat(nat_type, hard);
            up.path.local_candidates_changed(now.mono, candidates);
        }
        self.settle(key, now);
    }

    pub(super) fn up_sessions(&self) -> Vec<SessionKey> {
        self.sessions.iter().filter(|(_, s)| s.up().is_some()).map(|(key, _)| *key).collect()
    }

    pub(super) fn send_candidates(&mut self, key: SessionKey, now: Now) {
        self.settle_path(key, now);
    }

    pub(super) fn on_candidates(&mut self, key: SessionKey, candidates: &Candidates, now: Now) {
        let (nat_type, hard) = (self.relays.nat_report().nat_type, self.has_random_ports());
        let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) else {
            return;
        };
        let remote = candidates.nat.as_ref().map(|word| word.as_str().parse().unwrap_or(NatType::Unknown));
        up.path.local_nat(nat_type, hard);
        up.path.remote_nat(remote);
        up.path.peer_allows_birthday(now.mono, candidates.birthday);
        let refused = up.path.remote_candidates(now.mono, candidates.generation, candidates.list.iter().copied());
        if !refused.is_empty() {
            debug!(count = refused.len(), "some of the peer's candidates are not usable");
        }
    }

    /// The peer's gateways are open.
    pub(super) fn on_opened(&mut self, key: SessionKey, generation: u64, now: Now) {
        if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
            up.path.on_opened(now.mono, generation);
        }
    }

    /// A datagram that looks like STUN and comes from no relay.
    pub(super) fn on_check(&mut self, from: DirectPath, datagram: &[u8], now: Now) {
        for key in self.up_sessions() {
            let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) else {
                continue;
            };
            if !up.path.is_tagged_by(datagram) {
                continue;
            }
            if !self.check_budget.take(now) {
                return;
            }
            if up.path.handle_check(now.mono, from.link, from.remote, datagram).is_ok() {
                self.settle(key, now);
                return;
            }
        }
    }

    /// Carries out what a session's path agent wants.
    pub(super) fn settle_path(&mut self, key: SessionKey, now: Now) {
        while let Some(event) =
            self.sessions.get_mut(&key).and_then(Session::up_mut).and_then(|up| up.path.poll_event())
        {
            match event {
                PathEvent::LocalCandidates { generation, list } => self.say_candidates(key, generation, list),
                PathEvent::Opened { generation } => {
                    self.say(key, &ControlMessage::Opened(Opened { generation }));
                    self.opened_towards(key, now);
                }
                PathEvent::NothingAnswered => self.look_afresh(now),
                PathEvent::Changed { from, to, kind, why } => {
                    self.path_changed(key, (from, to), kind, &why.to_string(), now)
                }
                PathEvent::TunnelSilent { hop, waited } => {
                    debug!(?hop, ?waited, "tunnel silent");
                    if self.sessions.get(&key).and_then(Session::up).is_some_and(|up| up.said_to_be_over) {
                        self.close_succeeded(key, now);
                        return;
                    }
                    // The peer may be gone, or the way to the relay: UDP that worked so far may be blocked.
                    if let Some(RelayRoute::Known { relay, .. }) = self.sessions.get(&key).map(|s| s.relayed.clone()) {
                        self.relays.doubt(relay, now.mono);
                    }
                    self.race_relays(key, now);
                }
                PathEvent::RedialNeeded => self.suspect(key, now),
                PathEvent::Birthday(wish) => self.on_birthday_wish(key, wish, now),
            }
        }
        let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) else {
            return;
        };
        while let Some(check) = up.path.poll_transmit() {
            self.out.push_back(check);
        }
    }

    fn say_candidates(&mut self, key: SessionKey, generation: u64, list: Vec<Candidate>) {
        let nat: Option<Label> = self.relays.nat_report().nat_type.token().parse().ok();
        let birthday = self.sessions.get(&key).and_then(Session::up).is_some_and(|up| up.path.allows_birthday());
        self.say(key, &ControlMessage::Candidates(Candidates { generation, list, nat, birthday }));
    }

    fn path_changed(&mut self, key: SessionKey, (from, to): (Hop, Hop), kind: PathKind, why: &str, now: Now) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        session.path_changed(now.mono);
        // The peer hears us on the new path at once, and so stops waiting out the timeouts of the old one.
        session.connection.ping();
        self.ready.insert(key);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let PairKey::Peer(peer) = session.pair.clone() else {
            return;
        };
        let Phase::Up(up) = &mut session.phase else { return };
        let rtt = up.path.rtt();
        let instance = up.credential.instance();
        let before = std::mem::replace(&mut up.path_kind, kind);
        debug!(%peer, ?from, ?to, why, "hops");
        let carries_data = up.path.carries_data();
        // Of two sessions that came up at once, one drains; its way is nobody's business.
        if !up.drain.has_begun() {
            info!(target: "events::path_changed", peer = %peer.routing_id(), from = %before, to = %kind, why, ?rtt);
            let (peer, why) = (peer.clone(), why.to_owned());
            self.events.push_back(Event::PathChanged { session: key, peer, from: before, to: kind, why, rtt });
        }
        if let Hop::Direct(path) = to {
            self.share_path(key, &peer, instance, path, now);
        }
        match carries_data {
            true => self.attach_waiting(&PairKey::Peer(peer)),
            // `DirectOnly` promises that no data goes by relay, so streams that would have to are reset instead.
            false if from != Hop::Relayed => {
                let reason = DownReason::Failed("the direct path was lost and policy forbids the relay".to_owned());
                self.close(key, CloseCode::Drained, reason, now.mono);
            }
            false => {}
        }
    }

    /// Another session with the same instance, one that drains but has streams, may go the same way: a port that was
    /// guessed is found once.
    fn share_path(&mut self, key: SessionKey, peer: &AgentId, instance: InstanceId, path: DirectPath, now: Now) {
        let sessions = self.pairs.get(&PairKey::Peer(peer.clone())).map(|pair| pair.up.clone()).unwrap_or_default();
        for other in sessions.into_iter().filter(|other| *other != key) {
            let Some(up) = self.sessions.get_mut(&other).and_then(Session::up_mut) else { continue };
            if up.credential.instance() == instance {
                up.path.try_path(now.mono, path);
                self.settle_path(other, now);
            }
        }
    }

    /// Three silent timeouts: a fresh dial runs beside the session, which may still come back.
    fn suspect(&mut self, key: SessionKey, now: Now) {
        match self.sessions.get(&key).map(|session| session.pair.clone()) {
            Some(PairKey::Peer(peer)) => {
                self.doubt(key, now);
                self.leave_unheard(key, now);
                if self.preferred(&PairKey::Peer(peer.clone())).is_none() {
                    self.redial(&peer, now);
                }
            }
            // Nothing is lost with it.
            Some(PairKey::Ask(_)) => self.close(key, CloseCode::Drained, DownReason::TimedOut, now.mono),
            // Whoever asks dials again.
            Some(PairKey::Invite(_)) | None => {}
        }
    }

    /// A session takes no new streams until it is heard again.
    pub(super) fn doubt(&mut self, key: SessionKey, now: Now) {
        if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
            up.suspect = Some(Suspicion { since: now.mono, next: now.mono + ASK_SOON });
        }
        self.arm_session(key);
    }

    /// A session is in doubt for a while. One whose peer answers elsewhere is given up in time, since whoever uses its streams is
    /// better off knowing; any other is asked again, by all ways.
    fn doubt_on(&mut self, key: SessionKey, now: Now) {
        let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) else { return };
        let Some(suspicion) = &mut up.suspect else { return };
        let lasting = now.mono.saturating_duration_since(suspicion.since);
        suspicion.next = now.mono + if lasting < DOUBT { ASK_SOON } else { ASK_LATER };
        let since = suspicion.since;
        if self.is_succeeded(key, since, lasting) {
            self.close(key, CloseCode::Replaced, DownReason::TimedOut, now.mono);
            return;
        }
        self.ask_others(key, since);
        if let Some(session) = self.sessions.get_mut(&key) {
            // Or a full window on a way that leads nowhere would keep the question back.
            session.path_changed(now.mono);
        }
        self.race_relays(key, now);
    }

    /// Makes the peer speak on its other sessions, if it still does: one that had nothing to say is no proof that anybody is there.
    /// Those that are in doubt themselves ask for themselves.
    fn ask_others(&mut self, key: SessionKey, since: Instant) {
        let pair = self.sessions.get(&key).and_then(|session| self.pairs.get(&session.pair));
        let others = pair.map(|pair| pair.up.clone()).unwrap_or_default();
        for other in others.into_iter().filter(|other| *other != key) {
            let is_quiet =
                |session: &Session| session.last_heard() < since && session.up().is_some_and(|up| up.suspect.is_none());
            if let Some(session) = self.sessions.get_mut(&other).filter(|session| is_quiet(session)) {
                session.connection.ping();
                self.ready.insert(other);
            }
        }
    }

    /// Whether the same agent has answered on another session since then, while this one was silent for that long.
    fn is_succeeded(&self, key: SessionKey, since: Instant, silent: Duration) -> bool {
        let Some(session) = self.sessions.get(&key) else { return false };
        let (Some(up), Some(pair)) = (session.up(), self.pairs.get(&session.pair)) else { return false };
        let is_same_process = |other: &Up| {
            let other_run = other.run.zip(up.run).is_some_and(|(theirs, ours)| theirs != ours);
            other.credential.instance() == up.credential.instance() && !other_run
        };
        let others = pair.up.iter().filter(|other| **other != key && self.answers(**other));
        let heard = others.filter_map(|other| self.sessions.get(other)).filter(|other| other.last_heard() >= since);
        heard.filter_map(Session::up).any(|other| silent >= if is_same_process(other) { DOUBT_OF_TWIN } else { DOUBT })
    }

    /// A session's deadline came.
    pub(super) fn session_timeout(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        session.connection.handle_timeout(now.mono);
        if matches!(session.phase, Phase::Handshaking) && session.born + HANDSHAKE_TIMEOUT <= now.mono {
            self.remove_session(key);
            return;
        }
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let ping = session.ping_interval();
        let listens = session.listening_due(now.mono).is_some_and(|at| at <= now.mono);
        if let Phase::Up(up) = &mut session.phase {
            let refused = !up.confirmed && session.born + HANDSHAKE_TIMEOUT <= now.mono;
            up.path.handle_timeout(now.mono);
            if up.next_ping <= now.mono {
                up.next_ping = now.mono + ping.unwrap_or(PING_INTERVAL);
                if ping.is_some() {
                    session.connection.ping();
                }
            }
            if listens {
                up.listening.asks();
                session.connection.ping();
            }
            let drain = up.drain.is_due(now.mono);
            let over = up.expires.is_some_and(|at| at <= now.mono);
            let doubted = up.suspect.is_some_and(|suspicion| suspicion.next <= now.mono);
            if refused {
                self.close(key, CloseCode::Drained, DownReason::TimedOut, now.mono);
            } else if over {
                self.expired(key, now);
            } else {
                if drain {
                    self.drain_on(key, now);
                }
                if doubted {
                    self.doubt_on(key, now);
                }
                self.expire_headers(key, now);
            }
        }
        self.settle(key, now);
    }

    /// Looks at the wall clock again: it may have been moved.
    fn expired(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(up) = session.up() else { return };
        if let PairKey::Invite(_) = session.pair {
            // Whoever asks has had its time, and its answer.
            self.close(key, CloseCode::Drained, DownReason::Drained, now.mono);
            return;
        }
        let trust = self.pairs.get(&session.pair).and_then(|pair| pair.peer()).and_then(|peer| peer.expires);
        let ends = trust.map_or(up.credential.not_after(), |t| t.min(up.credential.not_after()));
        if now.wall < ends {
            if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
                up.expires = Some(after(now, ends));
            }
            return;
        }
        self.close(key, CloseCode::Expired, DownReason::Expired, now.mono);
    }

    /// Sets a session's timer to the first of its deadlines.
    pub(super) fn arm_session(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let quic = session.poll_timeout();
        let listening = session.listening_due(self.last.mono);
        let ours = match &session.phase {
            Phase::Up(up) => {
                let ping = session.ping_interval().map(|_| up.next_ping);
                let refused = (!up.confirmed).then_some(session.born + HANDSHAKE_TIMEOUT);
                let doubt = up.suspect.map(|suspicion| suspicion.next);
                [
                    up.path.poll_timeout(),
                    ping,
                    up.expires,
                    up.drain.next(),
                    doubt,
                    refused,
                    session.header_due(),
                    listening,
                ]
            }
            Phase::Handshaking => [Some(session.born + HANDSHAKE_TIMEOUT), None, None, None, None, None, None, None],
            Phase::Closing => [None; 8],
        };
        let at = ours.into_iter().chain([quic]).flatten().min();
        self.timers.set(&Timer::Session(key), at);
    }
}

pub(super) fn mode(mode: snapshot::PathMode) -> PathMode {
    match mode {
        snapshot::PathMode::Auto => PathMode::Auto,
        snapshot::PathMode::RelayOnly => PathMode::RelayOnly,
        snapshot::PathMode::DirectOnly => PathMode::DirectOnly,
    }
}
