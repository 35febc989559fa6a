//! A peer that runs as several replicas: each new stream goes to the one that has the least to do.
//!
//! A first flight reaches one instance, whichever a relay picks, and its session carries everything until there is reason for
//! more. The reason is a stream to place: then another instance is dialled beside, one at a time, and streams are spread over
//! all that answer. Sessions that are not used end by themselves when they are idle, so a quiet peer costs one at most.
//!
//! Other instances are known by sessions with them, which both ends may have begun, and by the word of one of them. A word
//! leads to a knock and to nothing else: whoever does not show the peer's passport stays silent or is no session, so an
//! instance (or a relay) that lies costs a few packets. A dial to one that is gone is not repeated for long.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use peerage_model::stream::StreamStatus;
use peerage_model::{AgentId, InstanceId};

use super::Node;
use super::event::{CloseCode, DownReason, Now, SessionKey, StreamError, StreamKey};
use super::pair::{ATTEMPT, PairKey, pause_after};
use super::session::Session;
use super::stream::Stream;
use super::waiting::Refusers;

/// Most instances of a peer that we dial for the sake of our streams. More would spread them no better: eight that each get
/// their share leave none with more than a seventh when one goes.
const MAX_SPREAD: usize = 8;
/// Most instances remembered for each peer.
const MAX_KNOWN: usize = 16;
/// After so many dials in vain an instance is forgotten, until it comes by itself or is named anew.
const MAX_FAILURES: u32 = 3;
/// For how long an instance that did not take a stream is asked last.
const REFUSING: Duration = Duration::from_secs(1);
/// How long a stream that was refused waits for an instance that is not up: two dials, one after the other. Whoever is told
/// in the end that it was refused should not have waited like somebody whose peer is not there.
const REFUSED_PATIENCE: Duration = Duration::from_secs(4);

/// What is known of a peer's instances.
#[derive(Debug, Default)]
pub(super) struct Replicas {
    known: BTreeMap<InstanceId, Known>,
    /// Instances that became known so far.
    numbered: u64,
    aside: Option<Aside>,
    /// Streams placed so far: whoever got the last one gets the next one last.
    turn: u64,
}

/// An instance that may be dialled.
#[derive(Debug)]
struct Known {
    not_before: Option<Instant>,
    failures: u32,
    source: Source,
    /// When it became known, counted in instances.
    number: u64,
}

/// How we know of an instance.
#[derive(Debug)]
enum Source {
    /// It showed the peer's passport.
    Met,
    /// These instances name it in their latest hello, as far as we keep count.
    Named(BTreeSet<InstanceId>),
}

/// The dial that runs, to one instance.
#[derive(Clone, Copy, Debug)]
struct Aside {
    instance: InstanceId,
    session: SessionKey,
    until: Instant,
}

/// How much an instance has to do. Smaller is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Load {
    /// It did not take a stream a moment ago.
    pub(super) refusing: bool,
    /// Streams that are open with it.
    pub(super) streams: usize,
    /// When it got one last: streams that are over at once go round.
    pub(super) turn: u64,
}

impl Replicas {
    /// An instance says which others there are: these, and of those that it named before no other.
    pub(super) fn named_by(&mut self, speaker: InstanceId, named: &[InstanceId]) {
        self.known.retain(|instance, known| match &mut known.source {
            Source::Named(by) if !named.contains(instance) => !(by.remove(&speaker) && by.is_empty()),
            Source::Named(_) | Source::Met => true,
        });
        for instance in named {
            match self.known.get_mut(instance).map(|known| &mut known.source) {
                Some(Source::Named(by)) if by.len() < MAX_KNOWN => {
                    by.insert(speaker);
                }
                Some(Source::Named(_) | Source::Met) => {}
                None => self.learn(*instance, Source::Named([speaker].into())),
            }
        }
    }

    /// A session with it came up.
    pub(super) fn met(&mut self, instance: InstanceId, session: SessionKey, now: Instant) {
        self.known.remove(&instance);
        self.learn(instance, Source::Met);
        if let Some(aside) = self.aside.take_if(|aside| aside.session == session)
            && aside.instance != instance
        {
            self.failed(aside.instance, now);
        }
    }

    /// Remembers an instance, where there is room or another one is worth less: one that did not answer, or of which others
    /// only speak, and the longest of these. What has proven itself takes any place.
    fn learn(&mut self, instance: InstanceId, source: Source) {
        if self.known.len() >= MAX_KNOWN {
            let proven = matches!(source, Source::Met);
            let gives_way = |known: &Known| proven || known.failures > 0 || matches!(known.source, Source::Named(_));
            let worth = |known: &Known| (Reverse(known.failures), matches!(known.source, Source::Met), known.number);
            let others = self.known.iter().filter(|(_, known)| gives_way(known));
            let Some(least) = others.min_by_key(|(_, known)| worth(known)).map(|(least, _)| *least) else { return };
            self.known.remove(&least);
        }
        self.numbered += 1;
        let known = Known { not_before: None, failures: 0, source, number: self.numbered };
        self.known.insert(instance, known);
    }

    /// It ended for certain.
    pub(super) fn left(&mut self, instance: InstanceId) {
        self.known.remove(&instance);
    }

    /// A session is gone that may be the dial that runs.
    pub(super) fn dial_ended(&mut self, session: SessionKey, now: Instant) {
        if let Some(aside) = self.aside.take_if(|aside| aside.session == session) {
            self.failed(aside.instance, now);
        }
    }

    fn failed(&mut self, instance: InstanceId, now: Instant) {
        let Some(known) = self.known.get_mut(&instance) else { return };
        known.not_before = Some(now + pause_after(known.failures));
        known.failures += 1;
        if known.failures >= MAX_FAILURES {
            self.known.remove(&instance);
        }
    }

    /// The dial that runs, and when it has had its time.
    pub(super) fn dialling(&self) -> Option<(SessionKey, Instant)> {
        self.aside.map(|aside| (aside.session, aside.until))
    }

    pub(super) fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }
}

/// Which instances did not take a stream, and what the last of them said.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    by: Refusers,
    last: Option<StreamStatus>,
}

impl Refusals {
    fn add(&mut self, instance: InstanceId, status: StreamStatus) {
        self.by.insert(instance);
        self.last = Some(status);
    }

    pub(super) fn by(&self) -> &Refusers {
        &self.by
    }

    pub(super) fn last(&self) -> Option<StreamStatus> {
        self.last
    }
}

impl Node {
    /// The session for a new stream of this pair, among those whose path may carry data (with `DirectOnly` only a direct one
    /// may) and whose instance has not refused it.
    fn carrier(&self, pair_key: &PairKey, refusers: &Refusers) -> Option<SessionKey> {
        let pair = self.pairs.get(pair_key)?;
        let mut streams: BTreeMap<InstanceId, usize> = BTreeMap::new();
        for up in pair.up.iter().filter_map(|key| self.sessions.get(key)?.up()) {
            *streams.entry(up.credential.instance()).or_default() += up.streams.len();
        }
        self.fittest(pair_key, |up| {
            let instance = up.credential.instance();
            let may = up.path.carries_data() && !refusers.contains(&instance);
            may.then(|| Load {
                refusing: up.refusing_until.is_some_and(|until| self.last.mono < until),
                streams: streams.get(&instance).copied().unwrap_or_default(),
                turn: up.turn,
            })
        })
    }

    /// Puts a stream on a session, or lets it wait for one; where nobody is left who could take it, it fails.
    pub(super) fn place(&mut self, pair_key: &PairKey, key: StreamKey, now: Now) {
        loop {
            let Some(stream) = self.streams.get(&key) else { return };
            let Some(session) = self.carrier(pair_key, stream.refusals.by()) else { break };
            if self.attach(session, key) {
                self.widen(pair_key, now);
                return;
            }
            if self.sessions.get(&session).is_some_and(Session::is_granted_more_soon) {
                break;
            }
            // Its peer lets us have no more streams open.
            self.refused_by(session, key, StreamStatus::Busy);
        }
        let refused = self.streams.get_mut(&key).filter(|stream| !stream.refusals.by().is_empty());
        let is_refused = refused.map(|stream| stream.wait_until(now.mono + REFUSED_PATIENCE)).is_some();
        self.let_wait(pair_key, key);
        if is_refused {
            self.arm_pair(pair_key);
        }
        self.help_refused(pair_key, now);
    }

    fn refused_by(&mut self, session: SessionKey, key: StreamKey, status: StreamStatus) {
        let Some(up) = self.sessions.get_mut(&session).and_then(Session::up_mut) else { return };
        up.refusing_until = Some(self.last.mono + REFUSING);
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.refusals.add(up.credential.instance(), status);
        }
    }

    /// The peer lets us have more streams open: those that found no room are placed anew.
    pub(super) fn room_for_streams(&mut self, session: SessionKey) {
        let Some(pair_key) = self.sessions.get(&session).map(|session| session.pair.clone()) else { return };
        if self.pairs.get(&pair_key).is_some_and(|pair| !pair.waiting.is_empty()) {
            self.attach_waiting(&pair_key);
            self.arm_pair(&pair_key);
        }
    }

    /// Puts waiting streams on sessions, where there are some that may carry them. Of those that the same have refused, none is tried
    /// after one that has to wait on: thousands may, each time that there is room for a few.
    pub(super) fn attach_waiting(&mut self, pair_key: &PairKey) {
        let (now, mut without_room) = (self.last, BTreeSet::new());
        loop {
            let Some(pair) = self.pairs.get_mut(pair_key) else { return };
            let Some((key, refusers)) = pair.waiting.oldest_but(&without_room) else { return };
            let refusers = refusers.clone();
            pair.waiting.remove(key);
            self.place(pair_key, key, now);
            if self.pairs.get(pair_key).is_some_and(|pair| pair.waiting.is_refused_by(key, &refusers)) {
                without_room.insert(refusers);
            }
        }
    }

    /// An instance did not take a stream, and no byte of it reached a service: another one is asked instead, if there is
    /// one. False leaves the stream as it is.
    pub(super) fn ask_another(&mut self, key: StreamKey, status: StreamStatus) -> bool {
        let Some(stream) = self.streams.get(&key) else { return false };
        let (pair_key, Some((session, id))) = (stream.pair.clone(), stream.attached()) else { return false };
        let passes = match status {
            StreamStatus::Refused | StreamStatus::Unreachable | StreamStatus::Busy => true,
            // So would any other say.
            StreamStatus::Open | StreamStatus::Denied | StreamStatus::Unsupported => false,
        };
        if !passes {
            return false;
        }
        self.refused_by(session, key, status);
        let Some(stream) = self.streams.get(&key) else { return false };
        if !self.has_another(&pair_key, stream.refusals.by()) {
            return false;
        }
        if !self.streams.get_mut(&key).is_some_and(Stream::start_over) {
            return false;
        }
        self.discard(session, id);
        self.place(&pair_key, key, self.last);
        self.arm_pair(&pair_key);
        true
    }

    /// Whether there is, or may be soon, a session with an instance that has not refused.
    fn has_another(&self, pair_key: &PairKey, refusers: &Refusers) -> bool {
        let Some(pair) = self.pairs.get(pair_key) else { return false };
        let dialable = self.dialable(pair_key, self.last);
        let may_be_dialled = dialable.iter().any(|instance| !refusers.contains(instance));
        let up = self.fittest(pair_key, |up| (!refusers.contains(&up.credential.instance())).then(Load::default));
        may_be_dialled || up.is_some() || pair.replicas.aside.is_some() || pair.is_dialling()
    }

    /// Looks for somebody else to take waiting streams that were refused, and fails those that nobody is left for.
    pub(super) fn help_refused(&mut self, pair_key: &PairKey, now: Now) {
        if self.pairs.get(pair_key).is_none_or(|pair| pair.waiting.refusers().next().is_none()) {
            return;
        }
        self.widen(pair_key, now);
        let Some(pair) = self.pairs.get(pair_key) else { return };
        let refusers = pair.waiting.refusers();
        let hopeless: Vec<Refusers> = refusers.filter(|by| !self.has_another(pair_key, by)).cloned().collect();
        for by in hopeless {
            let left = self.pairs.get_mut(pair_key).map(|pair| pair.waiting.take_refused_by(&by)).unwrap_or_default();
            left.into_iter().for_each(|key| self.end_refused(key));
        }
    }

    fn end_refused(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(&key)
            && let Some(status) = stream.refusals.last()
        {
            stream.end(StreamError::Refused(status));
        }
        self.wake(key);
    }

    /// The peer's instances that sessions are up with.
    pub(super) fn instances_up(&self, pair_key: &PairKey) -> BTreeSet<InstanceId> {
        let up = self.pairs.get(pair_key).map(|pair| &pair.up[..]).unwrap_or_default();
        up.iter().filter_map(|key| Some(self.sessions.get(key)?.up()?.credential.instance())).collect()
    }

    /// Instances that may be dialled at this moment; none where enough are up.
    fn dialable(&self, pair_key: &PairKey, now: Now) -> Vec<InstanceId> {
        let (Some(pair), up) = (self.pairs.get(pair_key), self.instances_up(pair_key)) else { return Vec::new() };
        if up.len() >= MAX_SPREAD || pair.has_ended(now.wall) {
            return Vec::new();
        }
        let due = |known: &Known| known.not_before.is_none_or(|at| at <= now.mono);
        let known = pair.replicas.known.iter().filter(|(instance, known)| due(known) && !up.contains(instance));
        known.map(|(instance, _)| *instance).collect()
    }

    /// An instance of a peer names others of the same.
    pub(super) fn hear_of_siblings(&mut self, peer: &AgentId, speaker: InstanceId, siblings: &[InstanceId]) {
        if let Some(pair) = self.pairs.get_mut(&PairKey::Peer(peer.clone())) {
            pair.replicas.named_by(speaker, siblings);
        }
    }

    /// Dials another instance of a peer that streams of ours are open with or wait for, where one is known.
    pub(super) fn widen(&mut self, pair_key: &PairKey, now: Now) {
        if self.pairs.get(pair_key).is_none_or(|pair| pair.replicas.aside.is_some()) {
            return;
        }
        let open = self.dialable(pair_key, now);
        let count = u64::try_from(open.len()).unwrap_or(u64::MAX);
        if count == 0 {
            return;
        }
        // Drawn, so that of very many replicas not all clients know the same eight.
        let drawn = usize::try_from(u64::from_be_bytes(self.random.bytes()) % count).unwrap_or_default();
        let Some(instance) = open.get(drawn).copied() else { return };
        let dialled = self.connect(pair_key, Some(instance), now);
        let Some(pair) = self.pairs.get_mut(pair_key) else { return };
        match dialled {
            Some(session) => {
                pair.replicas.aside = Some(Aside { instance, session, until: now.mono + ATTEMPT });
                self.arm_pair(pair_key);
            }
            None => pair.replicas.failed(instance, now.mono),
        }
    }

    /// The dial of one instance has had its time.
    pub(super) fn end_aside(&mut self, pair_key: &PairKey, now: Now) {
        let dialling = self.pairs.get(pair_key).and_then(|pair| pair.replicas.dialling());
        let Some((session, _)) = dialling.filter(|(_, until)| *until <= now.mono) else { return };
        self.remove_session(session);
        self.help_refused(pair_key, now);
    }

    /// A session fell silent for long, and another instance answers: streams that were put on it since it was last heard are
    /// not kept waiting for it. One that carries nothing yet goes there. The others end, because their bytes may have been
    /// acted on, and whoever wrote them knows best whether to write them again.
    pub(super) fn leave_unheard(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        let (pair_key, heard, Some(up)) = (session.pair.clone(), session.last_heard(), session.up()) else { return };
        let (instance, Some(pair)) = (up.credential.instance(), self.pairs.get(&pair_key)) else { return };
        let is_another = |other: &SessionKey| {
            let up = self.sessions.get(other).and_then(Session::up);
            up.is_some_and(|up| up.credential.instance() != instance) && self.answers(*other)
        };
        if !pair.up.iter().any(is_another) {
            return;
        }
        let unheard = |stream: &Stream| stream.was_asked_since(heard);
        let left: Vec<_> = up.streams.iter().map(|(id, stream)| (*id, *stream)).collect();
        for (id, stream_key) in left {
            let Some(stream) = self.streams.get_mut(&stream_key).filter(|stream| unheard(stream)) else { continue };
            match stream.carries_nothing() && stream.start_over() {
                true => {
                    self.discard(key, id);
                    self.place(&pair_key, stream_key, now);
                }
                false => self.end_stream(key, id, stream_key, CloseCode::Drained, DownReason::TimedOut),
            }
        }
        self.arm_pair(&pair_key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: InstanceId = InstanceId([1; 8]);
    const SPEAKER: InstanceId = InstanceId([9; 8]);
    const SESSION: SessionKey = SessionKey(1);

    fn dialled(replicas: &mut Replicas, instance: InstanceId, now: Instant) {
        replicas.aside = Some(Aside { instance, session: SESSION, until: now + ATTEMPT });
    }

    #[test]
    fn an_instance_that_never_answers_is_forgotten() {
        let (mut replicas, now) = (Replicas::default(), Instant::now());
        replicas.named_by(SPEAKER, &[ONE]);
        for attempt in 0..MAX_FAILURES {
            assert!(replicas.known.contains_key(&ONE), "attempt {attempt}");
            dialled(&mut replicas, ONE, now);
            replicas.dial_ended(SESSION, now);
        }
        assert!(replicas.known.is_empty());
    }

    #[test]
    fn hearsay_without_end_fills_no_memory_and_makes_room_for_who_is_there() {
        let (mut replicas, now) = (Replicas::default(), Instant::now());
        (0..=255).for_each(|invented| replicas.named_by(InstanceId([!invented; 8]), &[InstanceId([invented; 8])]));
        assert_eq!(replicas.known.len(), MAX_KNOWN);
        let there = InstanceId([0xaa; 8]);
        replicas.met(there, SESSION, now);
        assert!(replicas.known.contains_key(&there) && replicas.known.len() == MAX_KNOWN);
    }

    #[test]
    fn instances_that_replace_all_that_were_named_become_known() {
        let mut replicas = Replicas::default();
        let generation = |tens: u8| [0, 1, 2, 3, 4, 5, 6, 7].map(|n| InstanceId([tens + n; 8]));
        // Each speaker lives through one change, and ends with what it named last.
        for (tens, speaker) in [(10, 1), (20, 1), (20, 2), (30, 2), (40, 3), (50, 4), (60, 5)] {
            replicas.named_by(InstanceId([speaker; 8]), &generation(tens));
            let known = |instance| replicas.known.contains_key(instance);
            assert!(generation(tens).iter().all(known), "{:?}", replicas.known);
        }
        replicas.named_by(InstanceId([5; 8]), &[]);
        assert!(!replicas.known.contains_key(&generation(60)[0]), "nobody names it");
    }

    #[test]
    fn what_others_say_does_not_take_the_place_of_an_instance_that_was_met() {
        let (mut replicas, now) = (Replicas::default(), Instant::now());
        replicas.met(ONE, SESSION, now);
        (10..=255).for_each(|invented| replicas.named_by(SPEAKER, &[ONE, InstanceId([invented; 8])]));
        (10..=255).for_each(|liar| replicas.named_by(InstanceId([liar; 8]), &[InstanceId([!liar; 8])]));
        assert!(replicas.known.contains_key(&ONE));
    }

    #[test]
    fn a_dial_that_another_instance_answers_counts_against_the_one_that_was_asked() {
        let (mut replicas, now) = (Replicas::default(), Instant::now());
        replicas.named_by(SPEAKER, &[ONE]);
        dialled(&mut replicas, ONE, now);
        replicas.met(InstanceId([2; 8]), SESSION, now);
        assert_eq!(replicas.dialling(), None);
        assert_eq!(replicas.known.get(&ONE).map(|known| known.failures), Some(1));
    }

    #[test]
    fn who_refused_comes_after_who_is_busy_and_equals_go_round() {
        let idle = Load::default();
        let busy = Load { streams: 9, ..idle };
        let refusing = Load { refusing: true, ..idle };
        let served = Load { turn: 1, ..idle };
        assert!(idle < served && served < busy && busy < refusing);
    }
}
