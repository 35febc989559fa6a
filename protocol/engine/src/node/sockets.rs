//! Sockets beside the main one: who asked for them, and when they go again.
//!
//! Three things need them. A *scout* opens three for a moment to learn how our symmetric NAT hands out ports; sessions
//! that came up wait for it with their candidates. Behind a NAT that counts they take turns: what one peer is promised is
//! used up before the next is promised anything. A *birthday round* opens hundreds and
//! keeps the one that met the peer for as long as a path of the session needs it. Two measure for how long our NAT keeps a
//! mapping (`lifetime.rs`). The driver opens and closes them when told;
//! it answers each [`Event::OpenSockets`] once, in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::control::{Birthday, BirthdayStep, ControlMessage};
use tracing::debug;

use super::Node;
use super::event::{Event, Now, SessionKey};
use super::lifetime::Measuring;
use super::pair::PairKey;
use super::session::{Phase, Session};
use crate::nat::{Allocation, NatType, SCOUT_PATIENCE, SCOUTS, Scout};
use crate::path::{BIRTHDAY_SOCKETS, BirthdayWish, CheckTransmit, DirectPath, ExtraSocket, Hop, Link};
use crate::stun::TransactionId;

/// A prediction is offered for this long after it was measured.
const PREDICTS_FOR: Duration = Duration::from_secs(5);
/// How long the next peer waits until the ports that one was promised are in use: its list has to come, and our packets
/// to leave.
const TURN: Duration = Duration::from_millis(1000);
/// How long a session waits for its turn at most.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// A measurement that is younger than this is not made again.
const MEASURED_ANEW: Duration = Duration::from_secs(2);
/// When a session that is not the preferred one may ask again.
const NOT_THIS_ONE: Duration = Duration::from_secs(2);
/// The longest that a birthday round takes, on either side.
const ROUND: Duration = Duration::from_secs(30);
/// From one round with a peer to the next; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// What a socket is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Scout,
    Lifetime,
    Round(SessionKey),
}

#[derive(Debug)]
enum Scouting {
    Nothing,
    Opening { until: Instant },
    Asking { scout: Scout, until: Instant },
}

/// The extra sockets of a node.
#[derive(Debug)]
pub(super) struct Extras {
    next: u32,
    sockets: BTreeMap<ExtraSocket, Purpose>,
    /// What the driver was asked for and has not answered.
    asked: VecDeque<(Purpose, Vec<ExtraSocket>)>,
    scouting: Scouting,
    /// Sessions whose candidates wait for the scout, in the order in which they came, and until when at most.
    waiting: VecDeque<(SessionKey, Instant)>,
    /// The session that was promised ports of a NAT that counts, and has not used them. Until when others wait for that.
    turn: Option<(SessionKey, Instant)>,
    measured: Option<(Allocation, Instant)>,
    /// The peers that were told what was measured: each takes the predicted ports for itself.
    told: BTreeSet<PairKey>,
    pub(super) lifetime: Measuring,
    /// The one birthday round that may run: 100 packets a second are for the whole agent.
    round: Option<(SessionKey, Instant)>,
}

/// When a pair may have its next birthday round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundPause {
    until: Option<Instant>,
    rounds: u32,
}

impl RoundPause {
    fn blocks(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| now < *until)
    }

    fn began(&mut self, now: Instant) {
        let long_ago = self.until.is_some_and(|until| now.saturating_duration_since(until) > LONGEST_PAUSE);
        self.rounds = if long_ago { 0 } else { self.rounds };
        let pause = FIRST_PAUSE.saturating_mul(1 << self.rounds.min(16)).min(LONGEST_PAUSE);
        self.until = Some(now + pause);
        self.rounds = self.rounds.saturating_add(1);
    }
}

impl Extras {
    pub(super) fn new() -> Self {
        Self {
            next: 0,
            sockets: BTreeMap::new(),
            asked: VecDeque::new(),
            scouting: Scouting::Nothing,
            waiting: VecDeque::new(),
            turn: None,
            measured: None,
            told: BTreeSet::new(),
            lifetime: Measuring::New,
            round: None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let scouting = match &self.scouting {
            Scouting::Nothing => None,
            Scouting::Opening { until } => Some(*until),
            Scouting::Asking { scout, until } => Some(scout.poll_timeout().map_or(*until, |at| at.min(*until))),
        };
        let turn = self.turn.map(|(_, until)| until).filter(|_| !self.waiting.is_empty());
        let waits = self.waiting.front().map(|(_, until)| *until);
        [scouting, turn, waits, self.lifetime.poll_timeout()].into_iter().flatten().min()
    }

    /// Whether this session's candidates wait for the scout.
    pub(super) fn holds_back(&self, key: SessionKey) -> bool {
        self.waiting.iter().any(|(waiting, _)| *waiting == key)
    }

    pub(super) fn allocation(&self) -> Option<Allocation> {
        self.measured.map(|(allocation, _)| allocation)
    }

    /// Where our next packets to new destinations come from, while that is known. `local` is the main socket.
    pub(super) fn predictions(&self, now: Instant, outside: Option<SocketAddr>, local_port: u16) -> Vec<SocketAddr> {
        match self.measured {
            Some((Allocation::Preserving, _)) => {
                outside.map(|outside| SocketAddr::new(outside.ip(), local_port)).into_iter().collect()
            }
            Some((allocation, at)) if now.saturating_duration_since(at) < PREDICTS_FOR => allocation.predictions(),
            Some(_) | None => Vec::new(),
        }
    }

    /// The network is another one: what was measured says nothing.
    pub(super) fn network_changed(&mut self) {
        self.measured = None;
        self.lifetime = Measuring::New;
    }
}

impl Node {
    /// The driver opened these of the sockets that the oldest unanswered [`Event::OpenSockets`] asked for, with these
    /// local ports; the others could not be opened.
    pub fn sockets_opened(&mut self, now: Now, opened: &[(ExtraSocket, u16)]) {
        self.tick(now);
        let Some((purpose, asked)) = self.extras.asked.pop_front() else { return };
        let opened: Vec<_> = opened.iter().filter(|(socket, _)| asked.contains(socket)).copied().collect();
        self.extras.sockets.extend(opened.iter().map(|(socket, _)| (*socket, purpose)));
        match purpose {
            Purpose::Scout => self.scout_opened(&opened, now),
            Purpose::Lifetime => self.lifetime_sockets_opened(&opened, now),
            Purpose::Round(key) => {
                let sockets = opened.iter().map(|(socket, _)| *socket).collect();
                if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
                    up.path.birthday_sockets(now.mono, sockets);
                }
                self.settle(key, now);
                self.sweep_sockets();
            }
        }
    }

    pub(super) fn ask_for_sockets(&mut self, count: usize, purpose: Purpose) {
        let ids = (0..count).map(|_| {
            self.extras.next = self.extras.next.wrapping_add(1);
            ExtraSocket(self.extras.next)
        });
        let sockets: Vec<ExtraSocket> = ids.collect();
        self.extras.asked.push_back((purpose, sockets.clone()));
        self.events.push_back(Event::OpenSockets { sockets });
    }

    /// Whether how our NAT hands out ports matters and can be measured.
    ///
    /// What was measured a moment ago still holds for the peer that was told: of two sessions that came up at once with one
    /// peer, the second measurement would take the ports that the first one promised. Another peer gets its own, because
    /// those ports are in use by then.
    pub(super) fn should_scout(&self, pair: &PairKey, now: Now) -> bool {
        let age = |at: Instant| now.mono.saturating_duration_since(at);
        let fresh = self.extras.measured.is_some_and(|(_, at)| age(at) < MEASURED_ANEW);
        let known = fresh && self.extras.told.contains(pair);
        let symmetric = self.relays.nat_report().behaviour.mapping.is_symmetric();
        symmetric && !known && self.relays.any_stun_address().is_some()
    }

    /// Lets a session's candidates wait until the allocation of ports was measured.
    pub(super) fn scout_for(&mut self, key: SessionKey, now: Now) {
        if !self.extras.holds_back(key) {
            self.extras.waiting.push_back((key, now.mono + LONGEST_WAIT));
        }
        self.scout_for_next(now);
    }

    /// Measures for whoever waits, unless what was measured last is still to be used.
    fn scout_for_next(&mut self, now: Now) {
        self.extras.turn = self.extras.turn.filter(|(_, until)| now.mono < *until);
        let idle = matches!(self.extras.scouting, Scouting::Nothing) && self.extras.turn.is_none();
        if idle && !self.extras.waiting.is_empty() {
            self.extras.scouting = Scouting::Opening { until: now.mono + SCOUT_PATIENCE };
            self.ask_for_sockets(SCOUTS, Purpose::Scout);
        }
    }

    /// A session has sent to all addresses of its peer: the ports that it was promised are in use.
    pub(super) fn opened_towards(&mut self, key: SessionKey, now: Now) {
        self.extras.turn = self.extras.turn.filter(|(holder, _)| *holder != key);
        self.scout_for_next(now);
    }

    fn scout_opened(&mut self, opened: &[(ExtraSocket, u16)], now: Now) {
        let (Scouting::Opening { until }, Some(relay)) = (&self.extras.scouting, self.relays.any_stun_address()) else {
            self.sweep_sockets();
            return;
        };
        let until = *until;
        let random = &mut self.random;
        let scout = Scout::new(now.mono, relay, opened, || TransactionId(random.bytes()));
        self.extras.scouting = Scouting::Asking { scout, until };
        self.drive_scout(now);
    }

    pub(super) fn drive_scout(&mut self, now: Now) {
        self.drive_measurement(now);
        while let Some((key, _)) = self.extras.waiting.pop_front_if(|(_, until)| *until <= now.mono) {
            self.tell_candidates(key, now);
        }
        self.scout_for_next(now);
    }

    fn drive_measurement(&mut self, now: Now) {
        let until = match &mut self.extras.scouting {
            Scouting::Nothing => return,
            Scouting::Opening { until } => *until,
            Scouting::Asking { scout, until } => {
                let requests = scout.requests(now.mono).into_iter();
                self.out.extend(requests.map(|(path, bytes)| CheckTransmit {
                    link: path.link,
                    to: path.remote,
                    hop_limit: None,
                    bytes,
                }));
                *until
            }
        };
        if until <= now.mono {
            self.scouted(None, now);
        }
    }

    /// A STUN message that came to an extra socket. `true` if it was for the scout.
    pub(super) fn on_scout_answer(&mut self, from: DirectPath, datagram: &[u8], now: Now) -> bool {
        let Scouting::Asking { scout, .. } = &mut self.extras.scouting else { return false };
        let taken = scout.handle(from, datagram);
        if let Some(allocation) = scout.verdict().filter(|_| taken) {
            self.scouted(Some(allocation), now);
        }
        taken
    }

    /// The measurement is over: whoever waited for it goes on.
    fn scouted(&mut self, allocation: Option<Allocation>, now: Now) {
        debug!(?allocation, "ports of the NAT");
        self.extras.scouting = Scouting::Nothing;
        self.extras.measured = allocation.map(|allocation| (allocation, now.mono));
        self.sweep_sockets();
        for key in self.take_served(allocation, now) {
            self.tell_candidates(key, now);
        }
        self.scout_for_next(now);
    }

    /// Who is told what was measured: everybody who waits, or, where ports are counted, the first pair of them.
    fn take_served(&mut self, allocation: Option<Allocation>, now: Now) -> Vec<SessionKey> {
        let pair_of = |key: &SessionKey| self.sessions.get(key).map(|session| session.pair.clone());
        let waiting = std::mem::take(&mut self.extras.waiting);
        let counts = matches!(allocation, Some(Allocation::Sequential { .. }));
        let first = waiting.front().and_then(|(key, _)| pair_of(key));
        let (served, others): (VecDeque<_>, VecDeque<_>) =
            waiting.into_iter().partition(|(key, _)| !counts || pair_of(key) == first);
        let served: Vec<SessionKey> = served.into_iter().map(|(key, _)| key).collect();
        self.extras.told = served.iter().filter_map(pair_of).collect();
        self.extras.turn = served.first().filter(|_| counts).map(|key| (*key, now.mono + TURN));
        self.extras.waiting = others;
        served
    }

    /// What the session's birthday round asks for.
    pub(super) fn on_birthday_wish(&mut self, key: SessionKey, wish: BirthdayWish, now: Now) {
        match wish {
            BirthdayWish::OpenSockets => match self.may_ask_for_round(key, now.mono) {
                Ok(()) => {
                    self.round_began(key, now.mono);
                    self.ask_for_sockets(BIRTHDAY_SOCKETS, Purpose::Round(key));
                }
                Err(until) => {
                    if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
                        up.path.birthday_refused(until);
                    }
                }
            },
            BirthdayWish::Say(step) => self.say(key, &ControlMessage::Birthday(Birthday { step })),
            BirthdayWish::Over => {
                self.end_round(key);
                self.sweep_sockets();
            }
        }
    }

    /// The peer takes a step of a round.
    pub(super) fn on_birthday(&mut self, key: SessionKey, step: BirthdayStep, now: Now) {
        if step == BirthdayStep::Ready && self.may_begin_round(key, now.mono).is_err() {
            return;
        }
        let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) else { return };
        let done = up.path.on_birthday(now.mono, step);
        if done && step == BirthdayStep::Ready {
            self.round_began(key, now.mono);
        }
    }

    /// Of two sessions with one peer the one that new streams use looks for a path; the other one goes the same way.
    fn may_ask_for_round(&self, key: SessionKey, now: Instant) -> Result<(), Instant> {
        let pair = self.sessions.get(&key).map(|session| &session.pair);
        match pair.and_then(|pair| self.preferred(pair)) == Some(key) {
            true => self.may_begin_round(key, now),
            false => Err(now + NOT_THIS_ONE),
        }
    }

    /// One round at a time, and a pause between two with one peer.
    fn may_begin_round(&self, key: SessionKey, now: Instant) -> Result<(), Instant> {
        if let Some((_, until)) = self.extras.round.filter(|(_, until)| now < *until) {
            return Err(until);
        }
        let pair = self.sessions.get(&key).and_then(|session| self.pairs.get(&session.pair));
        pair.and_then(|pair| pair.round_pause.blocks(now)).map_or(Ok(()), Err)
    }

    fn round_began(&mut self, key: SessionKey, now: Instant) {
        self.extras.round = Some((key, now + ROUND));
        let pair = self.sessions.get(&key).map(|session| session.pair.clone());
        if let Some(pair) = pair.and_then(|pair| self.pairs.get_mut(&pair)) {
            pair.round_pause.began(now);
        }
    }

    /// Whether a birthday round runs on this session.
    pub(super) fn has_round(&self, key: SessionKey, now: Instant) -> bool {
        self.extras.round.is_some_and(|(holder, until)| holder == key && now < until)
    }

    pub(super) fn end_round(&mut self, key: SessionKey) {
        self.extras.round = self.extras.round.filter(|(holder, _)| *holder != key);
        self.extras.waiting.retain(|(waiting, _)| *waiting != key);
        self.extras.turn = self.extras.turn.filter(|(holder, _)| *holder != key);
    }

    /// Closes what nobody needs any more.
    pub(super) fn sweep_sockets(&mut self) {
        if self.extras.sockets.is_empty() {
            return;
        }
        let mut wanted: BTreeSet<ExtraSocket> = BTreeSet::new();
        for session in self.sessions.values() {
            // The close of a session goes where its packets last went.
            if let Some(Hop::Direct(DirectPath { link: Link::Extra(socket), .. })) = session.last_hop {
                wanted.insert(socket);
            }
            if let Phase::Up(up) = &session.phase {
                wanted.extend(up.path.extra_sockets());
            }
        }
        let scouts = !matches!(self.extras.scouting, Scouting::Nothing);
        let needed = |socket: &ExtraSocket, purpose: &Purpose| match purpose {
            Purpose::Scout => scouts,
            Purpose::Lifetime => self.extras.lifetime.needs_sockets(),
            Purpose::Round(_) => wanted.contains(socket),
        };
        let (kept, closed): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.extras.sockets).into_iter().partition(|(socket, purpose)| needed(socket, purpose));
        self.extras.sockets = kept;
        if !closed.is_empty() {
            self.events.push_back(Event::CloseSockets { sockets: closed.into_keys().collect() });
        }
    }

    /// Whether nobody can say where our next packet to a new destination will come from.
    pub(super) fn has_random_ports(&self) -> bool {
        let predictable = match self.extras.allocation() {
            Some(Allocation::Preserving | Allocation::Sequential { .. }) => true,
            Some(Allocation::Random) | None => false,
        };
        self.relays.nat_report().nat_type == NatType::Symmetric && !predictable
    }
}
