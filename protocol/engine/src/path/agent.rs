//! The path agent of one session: what goes in, what comes out, and when traffic moves.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use peerage_model::control::{Candidate, CandidateKind};

use super::admission::{self, Refused};
use super::birthday::Birthday;
use super::budget::Budget;
use super::checklist::{Checklist, Due, Proof, Remote, Source};
use super::explain::{self, WhyNotBetter};
use super::liveness::{Liveness, Silence};
use super::score::{LOCAL_RTT, Rank, Score};
use super::{CheckTransmit, DirectPath, ExtraSocket, Hop, Link, PathEvent, PathKind, PathMode, Route, Why};
use crate::nat::NatType;
use crate::stun::{
    Check, CheckKeys, CheckRequest, CheckResponse, Rejected, ReplayWindow, Role, TransactionId, canonical,
};

/// Longest time that both paths carry everything after a switch.
const DUAL_SEND: Duration = Duration::from_secs(1);
/// Service without silence that clears a path's losses.
const FORGIVE_AFTER: Duration = Duration::from_secs(60);
/// How many routers an opener passes: past our own gateway, also one behind another (a container's host in a home), and
/// not as far as the peer's, which is on the other side of both providers' networks.
const OPENER_HOPS: u8 = 3;
/// Answers at once, and one more each interval: under 100 in any first second.
const ANSWER_BURST: u32 = 50;
const ANSWER_INTERVAL: Duration = Duration::from_millis(20);

/// What a session's path agent is told at its birth.
#[derive(Clone, Copy, Debug)]
pub struct PathConfig {
    /// Our end of the session.
    pub role: Role,
    /// What the owner's policy allows.
    pub mode: PathMode,
    /// Whether both ends may share a host or network, so that private host addresses are offered and checked.
    pub share_private: bool,
    /// A direct path in use is checked when nothing was sent over it for this long; 15 s suits mappings of 30 s.
    pub keepalive: Duration,
    /// Whether the owner allows birthday rounds.
    pub birthday: bool,
}

/// Why a datagram taught nothing and got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckRefused {
    /// It does not carry this session's tag.
    #[error("a check of another session, or none")]
    OtherSession,
    /// It carries this session's tag, and is no check of it.
    #[error("not a check of this session")]
    Rejected(#[source] Rejected),
    /// Policy allows no direct path.
    #[error("policy is RelayOnly")]
    Policy,
    /// The request was seen before, or is older than the window.
    #[error("replayed")]
    Replayed,
    /// The response answers nothing that is in flight to that address.
    #[error("answers no check in flight to that address")]
    Unasked,
    /// The source may not be a candidate.
    #[error("refused source address")]
    Source(#[source] Refused),
    /// More requests than we answer in this time.
    #[error("too many checks")]
    TooMany,
}

/// Chooses between relay and direct paths for one session.
#[derive(Debug)]
pub struct PathAgent {
    pub(super) config: PathConfig,
    keys: CheckKeys,
    pub(super) ids: hmac::Key,
    sent_checks: u64,
    replay: ReplayWindow,
    answers: Budget,
    locals: Vec<Candidate>,
    /// How many lists we have sent: the generation of the newest.
    offered: u64,
    /// The generation of the peer's newest list.
    remote_generation: u64,
    refused: usize,
    peer_sent: bool,
    pub(super) checklist: Checklist,
    pub(super) hop: Hop,
    since: Instant,
    dual: Option<(Hop, Instant)>,
    /// While the peer sends by relay and we directly: until when our packets go both ways.
    answer_by_relay: Option<Instant>,
    liveness: Liveness,
    relay_rtt: Option<Duration>,
    /// The tunnel's own round trip over the path in use.
    tunnel_rtt: Option<Duration>,
    last_sent: Instant,
    pub(super) nat_types: (Option<NatType>, Option<NatType>),
    transmits: VecDeque<CheckTransmit>,
    pub(super) events: VecDeque<PathEvent>,
    pub(super) birthday: Birthday,
    /// Extra sockets that have sent and wait for an answer.
    pub(super) birthday_sent: Vec<ExtraSocket>,
    /// Since when addresses of the peer are checked.
    pub(super) checking_since: Option<Instant>,
}

impl PathAgent {
    /// A session that was just established, on its relay. `seed` must be random and secret: transaction ids come from it.
    pub fn new(now: Instant, config: PathConfig, keys: CheckKeys, seed: &[u8; 32]) -> Self {
        Self {
            config,
            keys,
            ids: hmac::Key::new(hmac::HMAC_SHA256, seed),
            sent_checks: 0,
            replay: ReplayWindow::default(),
            answers: Budget::full(now, ANSWER_BURST, ANSWER_INTERVAL),
            locals: Vec::new(),
            offered: 0,
            remote_generation: 0,
            refused: 0,
            peer_sent: false,
            checklist: Checklist::new(now),
            hop: Hop::Relayed,
            since: now,
            dual: None,
            answer_by_relay: None,
            liveness: Liveness::new(),
            relay_rtt: None,
            tunnel_rtt: None,
            last_sent: now,
            nat_types: (None, None),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            birthday: Birthday::new(config.birthday),
            birthday_sent: Vec::new(),
            checking_since: None,
        }
    }

    /// Our addresses, all of them; replaces what was said before. If one went away (address change, NAT rebinding),
    /// traffic goes to the relay first and everything is checked anew.
    pub fn local_candidates_changed(&mut self, now: Instant, candidates: impl IntoIterator<Item = Candidate>) {
        let (locals, _) = admission::admit(candidates, self.config.share_private);
        if locals == self.locals {
            return;
        }
        // A prediction that is over takes nothing with it.
        let real = |old: &&Candidate| old.kind != CandidateKind::Predicted;
        let gone = self.locals.iter().filter(real).any(|old| locals.iter().all(|new| new.address != old.address));
        self.locals = locals;
        if gone {
            self.move_to(now, Hop::Relayed, Why::LocalAddressChanged);
            self.end_birthday(now);
            self.checklist.forget_proofs();
        }
        if self.config.mode != PathMode::RelayOnly {
            self.offer();
            self.begin_round(now);
        }
        self.drive(now);
    }

    /// The peer's list, as it came through the tunnel; replaces the one before. Returns why some were refused.
    pub fn remote_candidates(
        &mut self,
        now: Instant,
        generation: u64,
        list: impl IntoIterator<Item = Candidate>,
    ) -> Vec<Refused> {
        self.remote_generation = generation;
        let (admitted, refused) = admission::admit(list, self.config.share_private);
        self.refused = refused.len();
        self.peer_sent = !admitted.is_empty();
        self.checklist.set_signalled(&admitted);
        if let Hop::Direct(path) = self.hop
            && self.checklist.get(path).is_none()
        {
            self.move_to(now, Hop::Relayed, Why::RemoteAddressWithdrawn);
        }
        self.begin_round(now);
        self.drive(now);
        refused
    }

    /// The peer says that its gateways are open towards this list of ours. A list before the newest does not count.
    pub fn on_opened(&mut self, now: Instant, generation: u64) {
        if generation == self.offered {
            self.checklist.peer_opened(now);
            self.drive(now);
        }
    }

    /// Our own NAT, and whether nobody can say which port it takes next.
    pub fn local_nat(&mut self, nat_type: NatType, random_ports: bool) {
        self.nat_types.0 = Some(nat_type);
        self.birthday.hard = random_ports;
    }

    /// What the peer says of its NAT.
    pub fn remote_nat(&mut self, nat_type: Option<NatType>) {
        self.nat_types.1 = nat_type;
    }

    /// How long a direct path in use may be without a packet of ours.
    pub fn set_keepalive(&mut self, interval: Duration) {
        self.config.keepalive = interval;
    }

    /// The owner's policy changed.
    pub fn set_mode(&mut self, now: Instant, mode: PathMode) {
        if std::mem::replace(&mut self.config.mode, mode) == mode {
            return;
        }
        match mode {
            PathMode::RelayOnly => {
                self.move_to(now, Hop::Relayed, Why::Policy);
                self.end_birthday(now);
                self.checklist.forget_proofs();
                self.say(Vec::new());
            }
            PathMode::Auto | PathMode::DirectOnly => {
                self.offer();
                self.begin_round(now);
            }
        }
        self.drive(now);
    }

    /// A datagram that [`crate::stun::is_stun`] took for STUN, and the socket it came to. Nothing is learned or answered
    /// unless it verifies.
    pub fn handle_check(
        &mut self,
        now: Instant,
        link: Link,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), CheckRefused> {
        if self.config.mode == PathMode::RelayOnly {
            return Err(CheckRefused::Policy);
        }
        if !self.keys.are_for(datagram) {
            return Err(CheckRefused::OtherSession);
        }
        let from = DirectPath { link, remote: canonical(from) };
        match Check::decode(datagram, &self.keys).map_err(CheckRefused::Rejected)? {
            Check::Request(request) => self.on_request(now, from, &request)?,
            Check::Response(response) => {
                if !self.checklist.on_answered(now, from, response.id, response.mapped) {
                    return Err(CheckRefused::Unasked);
                }
            }
        }
        self.drive(now);
        Ok(())
    }

    /// Whether a datagram has the tag of this session's checks: to see that costs next to nothing.
    #[must_use]
    pub fn is_tagged_by(&self, datagram: &[u8]) -> bool {
        self.keys.are_for(datagram)
    }

    /// The peer answered another session over this path: it is checked here, too.
    pub fn try_path(&mut self, now: Instant, path: DirectPath) {
        if self.config.mode == PathMode::RelayOnly || self.hop != Hop::Relayed {
            return;
        }
        self.checklist.learn(now, path);
        self.drive(now);
    }

    /// A tunnel packet went out over `hop`. Call once for each hop that carried it.
    pub fn on_tunnel_sent(&mut self, now: Instant, hop: Hop, ack_eliciting: bool) {
        if hop == self.hop {
            self.last_sent = now;
            if ack_eliciting {
                self.liveness.on_sent(now);
            }
        }
    }

    /// An authenticated tunnel packet came in over `hop`; `rtt` is the tunnel's smoothed round trip, if it has one that
    /// was measured since the last switch.
    pub fn on_tunnel_heard(&mut self, now: Instant, hop: Hop, rtt: Option<Duration>) {
        let speaks_for_path = match (self.hop, hop) {
            (Hop::Relayed, Hop::Relayed | Hop::Direct(_)) | (Hop::Direct(_), Hop::Direct(_)) => true,
            (Hop::Direct(_), Hop::Relayed) => self.dual.is_some(),
        };
        if speaks_for_path {
            self.liveness.on_heard();
        } else {
            self.liveness.on_heard_elsewhere();
        }
        if hop != self.hop {
            self.on_heard_beside(now, hop);
            return;
        }
        self.dual = None;
        if rtt.is_some() {
            self.tunnel_rtt = rtt;
        }
        match hop {
            Hop::Relayed => self.relay_rtt = rtt.or(self.relay_rtt),
            Hop::Direct(_) => {}
        }
    }

    /// The peer uses a path that we do not. If we hold it back after silence, its packets are the proof that the tunnel
    /// passes again; without this the holds of both ends could run out of step and each find the other on the relay.
    ///
    /// Or it went back to the relay, perhaps because nothing of ours reaches it directly. A side that only acknowledges
    /// never notices that by its own silence, so its answers go both ways for as long as the peer comes by relay.
    fn on_heard_beside(&mut self, now: Instant, hop: Hop) {
        if hop == Hop::Relayed && self.dual.is_none() {
            self.answer_by_relay = Some(now + DUAL_SEND);
        }
        if let Hop::Direct(path) = hop
            && let Some(remote) = self.checklist.get_mut(path)
            && remote.is_held()
            && remote.rtt().is_some()
        {
            remote.lift_hold();
            self.drive(now);
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.dual.is_some_and(|(_, until)| now >= until) {
            self.dual = None;
        }
        if let Some(silence) = self.liveness.judge(now, self.patience_rtt()) {
            self.on_silence(now, silence);
        }
        self.drive(now);
    }

    /// The next check to send.
    pub fn poll_transmit(&mut self) -> Option<CheckTransmit> {
        self.transmits.pop_front()
    }

    /// The next thing the session must act on.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    /// When to call [`PathAgent::handle_timeout`] next; an instant in the past means at once.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let checks = match self.config.mode {
            PathMode::RelayOnly => None,
            PathMode::Auto | PathMode::DirectOnly => self.checklist.timeout(),
        };
        let keepalive = match self.hop {
            Hop::Relayed => None,
            Hop::Direct(_) => Some(self.last_sent + self.config.keepalive),
        };
        let silence = self.liveness.deadline(self.patience_rtt());
        let dual = self.dual.map(|(_, until)| until);
        [checks, keepalive, silence, dual, self.birthday_timeout()].into_iter().flatten().min()
    }

    /// Where tunnel packets go at `now`. With [`PathMode::DirectOnly`] no copy goes by relay: there may be data in it.
    pub fn route(&self, now: Instant) -> Route {
        let switched = self.dual.filter(|(_, until)| now < *until).map(|(hop, _)| hop);
        let answering = self.answer_by_relay.filter(|until| now < *until).map(|_| Hop::Relayed);
        let allowed = |hop: &Hop| *hop != Hop::Relayed || self.config.mode != PathMode::DirectOnly;
        let duplicate = switched.or(answering).filter(|hop| *hop != self.hop).filter(allowed);
        Route { primary: self.hop, duplicate }
    }

    /// Whether application data may go now: with [`PathMode::DirectOnly`] it waits for a direct path.
    pub fn carries_data(&self) -> bool {
        self.config.mode != PathMode::DirectOnly || self.hop != Hop::Relayed
    }

    /// The path in use, in people's words.
    pub fn kind(&self) -> PathKind {
        match self.hop {
            Hop::Relayed => PathKind::Relayed,
            Hop::Direct(path) => self.checklist.get(path).map_or(PathKind::Punched, |remote| self.kind_of(remote)),
        }
    }

    /// Whether what was sent last went without an answer for longer than it should.
    pub fn is_silent(&self) -> bool {
        self.liveness.is_silent()
    }

    /// Since when the path in use is in use.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Round trip of the path in use: the tunnel's own, else that of its checks.
    pub fn rtt(&self) -> Option<Duration> {
        self.tunnel_rtt.or(match self.hop {
            Hop::Relayed => self.relay_rtt,
            Hop::Direct(path) => self.checklist.get(path).and_then(Remote::rtt),
        })
    }

    /// Why traffic is relayed; `None` if it is not.
    pub fn why_not_better(&self) -> Option<WhyNotBetter> {
        if self.hop != Hop::Relayed {
            return None;
        }
        let candidates = self.checklist.remotes().len();
        let usable = self.checklist.remotes().iter().filter(|remote| self.is_usable(remote.path)).count();
        let best = self.best();
        Some(if self.config.mode == PathMode::RelayOnly {
            WhyNotBetter::PolicyRelayOnly
        } else if candidates == 0 && self.refused > 0 {
            WhyNotBetter::CandidatesRefused(self.refused)
        } else if candidates == 0 {
            WhyNotBetter::PeerSentNoCandidates
        } else if self.locals.is_empty() {
            WhyNotBetter::NoLocalCandidates
        } else if usable == 0 {
            WhyNotBetter::NoCommonAddressFamily
        } else if self.checklist.remotes().iter().any(|remote| remote.is_held()) {
            WhyNotBetter::HeldAfterSilence
        } else if let (Some(direct), Some(relay)) = (best.and_then(|(_, remote)| remote.rtt()), self.relay_rtt) {
            WhyNotBetter::SlowerThanRelay { direct, relay }
        } else if self.checklist.is_in_first_round() {
            WhyNotBetter::StillChecking { candidates: usable }
        } else {
            let is_prediction = |candidate: &Candidate| candidate.kind == CandidateKind::Predicted;
            let theirs = Source::Signalled(CandidateKind::Predicted);
            let predicted = self.locals.iter().any(is_prediction)
                || self.checklist.remotes().iter().any(|remote| remote.source == theirs);
            if self.is_seen_where_the_peer_is() {
                WhyNotBetter::NoHairpin
            } else {
                explain::by_nat_types(self.nat_types, predicted, self.birthday.guessing())
                    .unwrap_or(WhyNotBetter::NoAnswer { candidates: usable })
            }
        })
    }

    /// Whether relays see both ends at one address.
    fn is_seen_where_the_peer_is(&self) -> bool {
        let seen = |candidate: &&Candidate| candidate.kind == CandidateKind::ServerReflexive;
        let theirs = Source::Signalled(CandidateKind::ServerReflexive);
        let remotes = || self.checklist.remotes().iter().filter(|remote| remote.source == theirs);
        self.locals
            .iter()
            .filter(seen)
            .any(|local| remotes().any(|remote| remote.path.remote.ip() == local.address.ip()))
    }

    pub(super) fn offer(&mut self) {
        self.say(self.locals.clone());
    }

    /// Whether the peer has heard of our addresses.
    pub(super) fn has_offered(&self) -> bool {
        self.offered > 0
    }

    fn say(&mut self, list: Vec<Candidate>) {
        self.offered += 1;
        self.events.push_back(PathEvent::LocalCandidates { generation: self.offered, list });
    }

    /// A first round; not before our own list is under way, since a check that the peer cannot expect may cost it its port.
    fn begin_round(&mut self, now: Instant) {
        if self.has_offered() {
            self.checklist.begin(now);
            self.checking_since.get_or_insert(now);
        }
    }

    fn on_request(&mut self, now: Instant, from: DirectPath, request: &CheckRequest) -> Result<(), CheckRefused> {
        if !self.replay.accept(request.sequence) {
            return Err(CheckRefused::Replayed);
        }
        admission::check(from.remote).map_err(CheckRefused::Source)?;
        if !self.answers.take(now) {
            return Err(CheckRefused::TooMany);
        }
        let response = Check::Response(CheckResponse { id: request.id, mapped: from.remote });
        self.transmit(from, None, &response);
        self.checklist.learn(now, from);
        Ok(())
    }

    /// Everything that follows from an input: rounds, checks, keepalive, choice.
    pub(super) fn drive(&mut self, now: Instant) {
        if self.config.mode == PathMode::RelayOnly {
            return;
        }
        let in_use = match self.hop {
            Hop::Relayed => None,
            Hop::Direct(path) => Some(path),
        };
        let (locals, checklist) = (&self.locals, &mut self.checklist);
        checklist.release(now);
        // Without a gateway there is no port to keep, and one router less on the way: an opener might arrive.
        let outside = |local: &Candidate| {
            local.address.is_ipv4() && matches!(local.kind, CandidateKind::ServerReflexive | CandidateKind::Predicted)
        };
        let translated = locals.iter().any(outside);
        checklist.start_round(now, translated, in_use, |path| is_usable(locals, path));
        while let Some(due) = self.checklist.due(now, in_use) {
            match due {
                Due::Check(path) => self.send_check(now, path),
                Due::Opener(path) => {
                    self.send_request(path, Some(OPENER_HOPS));
                    self.checklist.on_opened(now);
                }
            }
        }
        if self.checklist.take_opened(now) {
            self.events.push_back(PathEvent::Opened { generation: self.remote_generation });
        }
        if self.checklist.take_failed() {
            self.events.push_back(PathEvent::NothingAnswered);
        }
        if let Some(path) = in_use
            && now >= self.last_sent + self.config.keepalive
        {
            self.last_sent = now;
            self.send_check(now, path);
        }
        self.choose(now);
        self.drive_birthday(now);
    }

    fn send_check(&mut self, now: Instant, path: DirectPath) {
        let id = self.send_unlisted(path);
        self.checklist.on_sent(now, path, id);
    }

    /// A check whose answer is waited for by nobody; what it leads to are checks of the peer.
    pub(super) fn send_unlisted(&mut self, path: DirectPath) -> TransactionId {
        self.send_request(path, None)
    }

    fn send_request(&mut self, path: DirectPath, hop_limit: Option<u8>) -> TransactionId {
        self.sent_checks += 1;
        let random = hmac::sign(&self.ids, &self.sent_checks.to_be_bytes());
        let random = *random.as_ref().first_chunk().expect("SHA-256 gives 32 bytes");
        let request = CheckRequest {
            id: self.keys.transaction_id(random),
            priority: 0,
            sequence: self.sent_checks,
            in_use: self.hop == Hop::Direct(path),
        };
        self.transmit(path, hop_limit, &Check::Request(request));
        request.id
    }

    fn transmit(&mut self, path: DirectPath, hop_limit: Option<u8>, check: &Check) {
        let DirectPath { link, remote: to } = path;
        self.transmits.push_back(CheckTransmit { link, to, hop_limit, bytes: check.encode(&self.keys) });
    }

    fn choose(&mut self, now: Instant) {
        let current = self.current_score();
        match self.best() {
            Some((score, remote)) if score.rank < Rank::Relayed && score.is_worth_leaving(&current) => {
                let to = Hop::Direct(remote.path);
                self.move_to(now, to, Why::CheckAnswered);
            }
            Some(_) | None if current.rank == Rank::Slow => {
                if let Hop::Direct(path) = self.hop
                    && let Some(remote) = self.checklist.get_mut(path)
                {
                    remote.is_too_slow(now);
                }
                self.move_to(now, Hop::Relayed, Why::SlowerThanRelay);
            }
            Some(_) | None => {}
        }
    }

    fn current_score(&self) -> Score {
        let relayed = Score::relayed(self.relay_rtt);
        let Hop::Direct(path) = self.hop else { return relayed };
        match self.checklist.get(path).and_then(|remote| Some((remote, remote.rtt()?))) {
            Some((remote, rtt)) => Score::direct(self.kind_of(remote), rtt, self.relay_rtt, true),
            None => relayed,
        }
    }

    /// The best proven path that is neither in use nor held.
    fn best(&self) -> Option<(Score, &Remote)> {
        self.checklist
            .remotes()
            .iter()
            .filter(|remote| Hop::Direct(remote.path) != self.hop && !remote.is_held())
            .filter_map(|remote| {
                let score = Score::direct(self.kind_of(remote), remote.rtt()?, self.relay_rtt, false);
                Some((score, remote))
            })
            .min_by_key(|(score, remote)| (*score, remote.path))
    }

    fn kind_of(&self, remote: &Remote) -> PathKind {
        // The same network by number is not the same network where it takes long (a VPN, a flat cloud range).
        let near = admission::same_network(remote.path.remote.ip(), &self.locals)
            && remote.rtt().is_none_or(|rtt| rtt <= LOCAL_RTT);
        let untranslated = match remote.proof {
            Proof::Unproven => false,
            Proof::Proven { mapped, .. } => self.locals.iter().any(|local| {
                matches!(local.kind, CandidateKind::Host | CandidateKind::Fixed) && local.address == mapped
            }),
        };
        match remote.source {
            Source::Signalled(CandidateKind::Host) | Source::PeerReflexive if near => PathKind::Local,
            Source::Signalled(CandidateKind::Host | CandidateKind::Fixed) => PathKind::Direct,
            Source::Signalled(CandidateKind::ServerReflexive | CandidateKind::Predicted) | Source::PeerReflexive => {
                if untranslated {
                    PathKind::Direct
                } else {
                    PathKind::Punched
                }
            }
        }
    }

    fn is_usable(&self, path: DirectPath) -> bool {
        is_usable(&self.locals, path)
    }

    fn move_to(&mut self, now: Instant, to: Hop, why: Why) {
        let from = std::mem::replace(&mut self.hop, to);
        if from == to {
            return;
        }
        self.dual = match why {
            // Silence may be bad luck on a lossy path, and the relay may be gone as well.
            Why::CheckAnswered | Why::SlowerThanRelay | Why::TunnelSilent => Some((from, now + DUAL_SEND)),
            // The path before is gone or forbidden.
            Why::LocalAddressChanged | Why::RemoteAddressWithdrawn | Why::Policy => None,
        };
        self.since = now;
        self.last_sent = now;
        self.tunnel_rtt = None;
        self.liveness.on_moved();
        let kind = self.kind();
        self.events.push_back(PathEvent::Changed { from, to, kind, why });
    }

    fn on_silence(&mut self, now: Instant, silence: Silence) {
        let hop = self.hop;
        let (waited, too_long) = match silence {
            Silence::Silent { waited } => (waited, false),
            Silence::SilentForTooLong { waited } => (waited, true),
        };
        self.events.push_back(PathEvent::TunnelSilent { hop, waited });
        if let Hop::Direct(path) = hop {
            let served_long = now.saturating_duration_since(self.since) >= FORGIVE_AFTER;
            if let Some(remote) = self.checklist.get_mut(path) {
                if served_long {
                    remote.forgive();
                }
                remote.hold(now);
            }
            self.move_to(now, Hop::Relayed, Why::TunnelSilent);
            self.begin_round(now);
        }
        if too_long {
            self.events.push_back(PathEvent::RedialNeeded);
        }
    }

    fn patience_rtt(&self) -> Option<Duration> {
        self.rtt().or(self.relay_rtt)
    }
}

/// Whether we have an address of that family, and it is not our own.
fn is_usable(locals: &[Candidate], path: DirectPath) -> bool {
    let address = path.remote;
    locals.iter().any(|local| local.address.is_ipv4() == address.is_ipv4())
        && locals.iter().all(|local| {
            local.address != address || matches!(local.kind, CandidateKind::ServerReflexive | CandidateKind::Predicted)
        })
}
