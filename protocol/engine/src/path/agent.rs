//! The path agent of one session: what goes in, what comes out, and when traffic moves.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::control::{Candidate, CandidateKind};

use super::admission::{self, Refused};
use super::birthday::Birthday;
use super::checklist::{Checklist, Due, Proof, Remote, Source};
use super::checks::{CheckRefused, Checks};
use super::in_use::InUse;
use super::liveness::Silence;
use super::score::{LOCAL_RTT, Rank, Score};
use super::{CheckTransmit, DirectPath, ExtraSocket, Hop, Link, PathEvent, PathKind, PathMode, Route, Why};
use crate::nat::NatType;
use crate::stun::{Check, CheckKeys, Role, TransactionId, canonical};

/// Service without silence that clears a path's losses.
const FORGIVE_AFTER: Duration = Duration::from_secs(60);
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

/// Chooses between relay and direct paths for one session.
#[derive(Debug)]
pub struct PathAgent {
    pub(super) config: PathConfig,
    pub(super) checks: Checks,
    pub(super) locals: Vec<Candidate>,
    /// How many lists we have sent: the generation of the newest.
    offered: u64,
    /// The generation of the peer's newest list.
    remote_generation: u64,
    /// How many of that list may be no candidates.
    pub(super) refused: usize,
    pub(super) checklist: Checklist,
    pub(super) in_use: InUse,
    /// Ours, and the peer's.
    pub(super) nat_types: (Option<NatType>, Option<NatType>),
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
            checks: Checks::new(now, keys, seed),
            locals: Vec::new(),
            offered: 0,
            remote_generation: 0,
            refused: 0,
            checklist: Checklist::new(now),
            in_use: InUse::new(now),
            nat_types: (None, None),
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
        self.checklist.set_signalled(&admitted);
        if self.in_use.direct().is_some_and(|path| self.checklist.get(path).is_none()) {
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
        let from = DirectPath { link, remote: canonical(from) };
        match self.checks.read(datagram)? {
            Check::Request(request) => {
                self.checks.answer(now, from, &request)?;
                self.checklist.learn(now, from);
            }
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
        self.checks.are_tagged_as(datagram)
    }

    /// The peer answered another session over this path: it is checked here, too.
    pub fn try_path(&mut self, now: Instant, path: DirectPath) {
        if self.config.mode == PathMode::RelayOnly || !self.in_use.is_relayed() {
            return;
        }
        self.checklist.learn(now, path);
        self.drive(now);
    }

    /// A tunnel packet went out over `hop`. Call once for each hop that carried it.
    pub fn on_tunnel_sent(&mut self, now: Instant, hop: Hop, ack_eliciting: bool) {
        self.in_use.on_sent(now, hop, ack_eliciting);
    }

    /// An authenticated tunnel packet came in over `hop`; `rtt` is the tunnel's smoothed round trip, if it has one that
    /// was measured since the last switch.
    pub fn on_tunnel_heard(&mut self, now: Instant, hop: Hop, rtt: Option<Duration>) {
        self.in_use.on_heard(now, hop, rtt);
        if hop != self.in_use.hop() {
            self.on_heard_beside(now, hop);
        }
    }

    /// The peer uses a path that we do not. If we hold it back after silence, its packets are the proof that the tunnel
    /// passes again; without this the holds of both ends could run out of step and each find the other on the relay.
    fn on_heard_beside(&mut self, now: Instant, hop: Hop) {
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
        self.in_use.settle(now);
        let rtt = self.patience_rtt();
        if let Some(silence) = self.in_use.judge(now, rtt) {
            self.on_silence(now, silence);
        }
        self.drive(now);
    }

    /// The next check to send.
    pub fn poll_transmit(&mut self) -> Option<CheckTransmit> {
        self.checks.poll_transmit()
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
        let in_use = self.in_use.timeout(self.config.keepalive, self.patience_rtt());
        [checks, in_use, self.birthday_timeout()].into_iter().flatten().min()
    }

    /// Where tunnel packets go at `now`. With [`PathMode::DirectOnly`] no copy goes by relay: there may be data in it.
    pub fn route(&self, now: Instant) -> Route {
        self.in_use.route(now, self.config.mode)
    }

    /// Whether application data may go now: with [`PathMode::DirectOnly`] it waits for a direct path.
    pub fn carries_data(&self) -> bool {
        self.config.mode != PathMode::DirectOnly || !self.in_use.is_relayed()
    }

    /// The path in use, in people's words.
    pub fn kind(&self) -> PathKind {
        match self.in_use.hop() {
            Hop::Relayed => PathKind::Relayed,
            Hop::Direct(path) => self.checklist.get(path).map_or(PathKind::Punched, |remote| self.kind_of(remote)),
        }
    }

    /// Whether what was sent last went without an answer for longer than it should.
    pub fn is_silent(&self) -> bool {
        self.in_use.is_silent()
    }

    /// Since when the path in use is in use.
    pub fn since(&self) -> Instant {
        self.in_use.since()
    }

    /// Round trip of the path in use: the tunnel's own, else that of its checks.
    pub fn rtt(&self) -> Option<Duration> {
        self.in_use.rtt().or_else(|| self.checklist.get(self.in_use.direct()?).and_then(Remote::rtt))
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

    /// Everything that follows from an input: rounds, checks, keepalive, choice.
    pub(super) fn drive(&mut self, now: Instant) {
        if self.config.mode == PathMode::RelayOnly {
            return;
        }
        let in_use = self.in_use.direct();
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
                    self.checks.open(path, in_use == Some(path));
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
        if let Some(path) = self.in_use.takes_keepalive(now, self.config.keepalive) {
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
        self.checks.request(path, self.in_use.direct() == Some(path))
    }

    fn choose(&mut self, now: Instant) {
        let current = self.current_score();
        match self.best() {
            Some((score, remote)) if score.rank < Rank::Relayed && score.is_worth_leaving(&current) => {
                let to = Hop::Direct(remote.path);
                self.move_to(now, to, Why::CheckAnswered);
            }
            Some(_) | None if current.rank == Rank::Slow => {
                if let Some(path) = self.in_use.direct()
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
        let relayed = Score::relayed(self.in_use.relay_rtt());
        let Some(path) = self.in_use.direct() else { return relayed };
        match self.checklist.get(path).and_then(|remote| Some((remote, remote.rtt()?))) {
            Some((remote, rtt)) => Score::direct(self.kind_of(remote), rtt, self.in_use.relay_rtt(), true),
            None => relayed,
        }
    }

    /// The best proven path that is neither in use nor held.
    pub(super) fn best(&self) -> Option<(Score, &Remote)> {
        self.checklist
            .remotes()
            .iter()
            .filter(|remote| self.in_use.direct() != Some(remote.path) && !remote.is_held())
            .filter_map(|remote| {
                let score = Score::direct(self.kind_of(remote), remote.rtt()?, self.in_use.relay_rtt(), false);
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

    fn move_to(&mut self, now: Instant, to: Hop, why: Why) {
        if let Some(from) = self.in_use.move_to(now, to, why) {
            let kind = self.kind();
            self.events.push_back(PathEvent::Changed { from, to, kind, why });
        }
    }

    fn on_silence(&mut self, now: Instant, silence: Silence) {
        let hop = self.in_use.hop();
        let (waited, too_long) = match silence {
            Silence::Silent { waited } => (waited, false),
            Silence::SilentForTooLong { waited } => (waited, true),
        };
        self.events.push_back(PathEvent::TunnelSilent { hop, waited });
        if let Hop::Direct(path) = hop {
            let served_long = now.saturating_duration_since(self.in_use.since()) >= FORGIVE_AFTER;
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
        self.rtt().or(self.in_use.relay_rtt())
    }
}

/// Whether we have an address of that family, and it is not our own.
pub(super) fn is_usable(locals: &[Candidate], path: DirectPath) -> bool {
    let address = path.remote;
    locals.iter().any(|local| local.address.is_ipv4() == address.is_ipv4())
        && locals.iter().all(|local| {
            local.address != address || matches!(local.kind, CandidateKind::ServerReflexive | CandidateKind::Predicted)
        })
}
