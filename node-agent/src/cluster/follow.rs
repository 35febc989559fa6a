//! Whom we may talk to, from what replicas of the operator told (docs/spec/control-plane.md sections 6 and 7).
//!
//! Two pictures are kept apart: what the replica at the other end of this connection *told*, and what is *applied*. Where
//! the replica has not surely seen all that others had told before it, only its removals count; its additions wait until
//! it has. So a replica that lags can neither bring a revoked trust back nor end a newer one by not knowing it. No clock,
//! no socket: time is an argument.
//!
//! Two replicas, A and B, and two peers, a and b; B's watch lags by a moment:
//!
//! | replica, its revision | says | told | applied | why |
//! |---|---|---|---|---|
//! | A, 10 | everything: a, b | a, b | a, b | nobody has shown more than 10 |
//! | A, 12 | a's trust is gone; b is withdrawn | – | – | removals count at once; a's trust id is a tombstone |
//! | B, 11 (A's connection broke) | everything: a, b | a, b | – | B has not surely seen 12: both wait, and the ack says so |
//! | B, 13 | nothing new | a, b | b | B has seen 12, so b was consented to anew; a's trust is gone for good |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minicbor::{Decode, Encode};
use peerage_model::id::sha256;
use peerage_model::operator::{Ack, Entry, MAX_DENIED, MAX_ENTRIES, Revision, Settings, Update};
use peerage_model::snapshot::DeniedInstance;
use peerage_model::snapshot::Peer;
use peerage_model::{AgentId, Fingerprint, InstanceId, Snapshot, TrustId, UnixTime};

/// An update that no operator sends. The connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUpdate {
    /// One is missing, or came twice.
    #[error("update {found} came where {expected} was due")]
    Sequence {
        /// Which was due.
        expected: u64,
        /// Which came.
        found: u64,
    },
    /// The first of a connection must be everything.
    #[error("the first update of a connection does not say that it is everything")]
    NotFull,
    /// A peer of ours is not ourselves.
    #[error("the operator names this agent as its own peer")]
    Ourselves,
}

/// What there is to do after an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// More parts follow.
    Part,
    /// Act on it, then send this.
    Whole(Ack),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Follow {
    told: Told,
    entries: BTreeMap<AgentId, Arc<Entry>>,
    settings: Settings,
    /// How new what we act on may be: the highest that anybody has shown, since everybody's removals count.
    reached: Option<Revision>,
    /// What the replica of this connection must have seen before its additions count: what others had shown by then. Its own
    /// later words are no reason to doubt it.
    bar: Option<Revision>,
    gone: BTreeSet<TrustId>,
    denied: BTreeMap<(Fingerprint, InstanceId), UnixTime>,
    /// What the engine is told at the moment, each with the number of its appearance.
    shown: BTreeMap<(AgentId, Vec<TrustId>), u64>,
    appearances: u64,
}

/// What this connection's replica said.
#[derive(Clone, Debug, Default)]
struct Told {
    sequence: u64,
    is_whole: bool,
    revision: Revision,
    entries: BTreeMap<AgentId, Arc<Entry>>,
    settings: Option<Settings>,
    /// Since the last whole update.
    parts: Vec<Update>,
}

/// What is kept in the memory volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Kept {
    #[n(0)]
    reached: Option<Revision>,
    #[n(1)]
    entries: Vec<Entry>,
    #[n(2)]
    settings: Settings,
    #[n(3)]
    gone: Vec<TrustId>,
    #[n(4)]
    denied: Vec<DeniedInstance>,
}

impl Follow {
    /// Back from the memory volume.
    #[must_use]
    pub fn restore(kept: Kept) -> Self {
        let entries = kept.entries.into_iter().map(|entry| (entry.peer.id.clone(), Arc::new(entry)));
        let denied = kept.denied.into_iter().map(|denied| ((denied.authority, denied.instance), denied.until));
        let mut follow = Self {
            told: Told::default(),
            entries: entries.collect(),
            settings: kept.settings,
            bar: kept.reached.clone(),
            reached: kept.reached,
            gone: kept.gone.into_iter().collect(),
            denied: denied.collect(),
            shown: BTreeMap::new(),
            appearances: 0,
        };
        follow.bury();
        follow
    }

    /// For the memory volume.
    #[must_use]
    pub fn keep(&self, now: UnixTime) -> Kept {
        Kept {
            reached: self.reached.clone(),
            entries: self.entries.values().map(|entry| Entry::clone(entry)).collect(),
            settings: self.settings.clone(),
            gone: self.gone.iter().copied().collect(),
            denied: self.denied(now),
        }
    }

    /// A connection begins: nothing has been told on it.
    pub fn begin(&mut self) {
        self.told = Told::default();
        self.bar.clone_from(&self.reached);
    }

    /// This pod is no agent any more: nobody may be talked to. Tombstones, denials and what was reached stay, so that a replica
    /// that has not heard of it yet brings nothing back.
    pub fn clear(&mut self) {
        self.begin();
        self.entries.clear();
    }

    /// Takes an update.
    ///
    /// # Errors
    /// [`BadUpdate`], after which the connection must end. What was applied before stays.
    pub fn take(&mut self, update: Update, us: &AgentId) -> Result<Taken, BadUpdate> {
        let expected = self.told.sequence + 1;
        if update.sequence != expected {
            return Err(BadUpdate::Sequence { expected, found: update.sequence });
        }
        if expected == 1 && !update.full {
            return Err(BadUpdate::NotFull);
        }
        if update.entries.iter().any(|entry| entry.peer.id == *us) {
            return Err(BadUpdate::Ourselves);
        }
        self.told.sequence = expected;
        let more = update.more;
        self.told.parts.push(update);
        match more {
            true => Ok(Taken::Part),
            false => Ok(Taken::Whole(self.act())),
        }
    }

    /// Acts on all parts at once. What takes something away is always acted on; of what adds, as much as there is room for:
    /// whoever can make an operator say too much must not be able to freeze what this agent acts on.
    fn act(&mut self) -> Ack {
        let mut left_out = 0;
        for part in std::mem::take(&mut self.told.parts) {
            if part.full {
                self.told.entries.clear();
            }
            self.reached.get_or_insert_default().raise(&part.shown);
            self.told.revision = part.revision;
            for peer in &part.withdrawn {
                self.told.entries.remove(peer);
                self.entries.remove(peer);
            }
            self.gone.extend(part.gone);
            for denied in part.denied {
                let until = self.denied.entry((denied.authority, denied.instance)).or_insert(denied.until);
                *until = denied.until.max(*until);
            }
            for entry in part.entries {
                let room = self.told.entries.len() < MAX_ENTRIES;
                match room || self.told.entries.contains_key(&entry.peer.id) {
                    true => drop(self.told.entries.insert(entry.peer.id.clone(), Arc::new(entry))),
                    false => left_out += 1,
                }
            }
            self.told.settings = part.settings.or(self.told.settings.take());
        }
        self.trim_denied();
        self.told.is_whole = true;
        if !self.is_behind() {
            self.entries.clone_from(&self.told.entries);
            if let Some(settings) = &self.told.settings {
                self.settings.clone_from(settings);
            }
        }
        self.bury();
        Ack { sequence: self.told.sequence, refused: self.refused() + left_out }
    }

    /// Where there are more denials than we keep, those go that would end first: they are needed for the shortest time.
    fn trim_denied(&mut self) {
        let surplus = self.denied.len().saturating_sub(MAX_DENIED);
        if surplus == 0 {
            return;
        }
        let mut by_end: Vec<_> = self.denied.iter().map(|(instance, until)| (*until, *instance)).collect();
        by_end.sort_unstable();
        for (_, instance) in &by_end[..surplus] {
            self.denied.remove(instance);
        }
    }

    fn bury(&mut self) {
        let gone = &self.gone;
        self.entries.retain(|_, entry| entry.consents.iter().all(|consent| !gone.contains(consent)));
    }

    /// Entries that were told and are not acted on.
    fn refused(&self) -> u64 {
        self.told.entries.iter().filter(|(peer, entry)| self.entries.get(*peer) != Some(*entry)).count() as u64
    }

    /// Whether the replica has told everything once, and may not have seen all that others had told before.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.told.is_whole && self.bar.as_ref().is_some_and(|bar| !self.told.revision.covers(bar))
    }

    /// Whether the replica has told everything, and it is in force.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.told.is_whole && !self.is_behind()
    }

    /// How new what we act on may be; none before anybody has told us anything.
    #[must_use]
    pub fn reached(&self) -> Option<&Revision> {
        self.reached.as_ref()
    }

    /// Whom we may talk to.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().map(|entry| &**entry)
    }

    /// What concerns ourselves.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Instances that are denied at `now`; forgets those whose time is over.
    fn denied(&self, now: UnixTime) -> Vec<DeniedInstance> {
        let denied = self.denied.iter().filter(|(_, until)| **until > now);
        denied
            .map(|((authority, instance), until)| DeniedInstance {
                authority: *authority,
                instance: *instance,
                until: *until,
            })
            .collect()
    }

    /// Forgets denials whose passports have ended.
    pub fn sweep(&mut self, now: UnixTime) {
        self.denied.retain(|_, until| *until > now);
    }

    /// For the engine. Where it must not talk to anybody (`closed`), it keeps its relays, so that it can begin again.
    #[must_use]
    pub fn snapshot(&mut self, now: UnixTime, closed: bool) -> Snapshot {
        let alive = self.entries.values().filter(|entry| entry.peer.expires.is_none_or(|end| end > now));
        let alive: Vec<Arc<Entry>> = alive.filter(|_| !closed).cloned().collect();
        let before = std::mem::take(&mut self.shown);
        let peers = alive.iter().map(|entry| {
            let what = (entry.peer.id.clone(), entry.consents.clone());
            let number = before.get(&what).copied().unwrap_or_else(|| {
                self.appearances += 1;
                self.appearances
            });
            self.shown.insert(what, number);
            Peer { trust: shown_as(entry, number), ..entry.peer.clone() }
        });
        Snapshot {
            peers: peers.collect(),
            ports: self.settings.ports.iter().map(peerage_model::operator::Offer::as_port).collect(),
            relays: self.settings.relays.clone(),
            denied: self.denied(now),
            invites: Vec::new(),
        }
    }

    /// The next moment at which an entry ends by itself.
    #[must_use]
    pub fn next_end(&self, now: UnixTime) -> Option<UnixTime> {
        self.entries().filter_map(|entry| entry.peer.expires).filter(|end| *end > now).min()
    }
}

/// What the engine calls a trust. It never takes back what left its snapshot; here only an AgentTrust that is gone is gone for
/// ever ([`Follow`] sees to that). What was withdrawn, or closed for a while, comes back under another id.
fn shown_as(entry: &Entry, appearance: u64) -> TrustId {
    let consents: Vec<u8> = entry.consents.iter().flat_map(|consent| consent.0).collect();
    let hash = sha256(&[b"peerage shown trust", &consents, &appearance.to_be_bytes()]);
    TrustId(*hash.first_chunk().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use peerage_model::PairSecret;
    use peerage_model::snapshot::{BirthdayMode, PathMode};

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn agent(name: &str) -> AgentId {
        AgentId { authority: Fingerprint([1; 32]), name: name.parse().expect("a name") }
    }

    fn entry(name: &str, ours: u8, theirs: u8) -> Entry {
        let peer = Peer {
            trust: TrustId([ours; 16]),
            id: agent(name),
            secrets: vec![PairSecret::from_bytes([ours; 32])],
            alias: agent(name).name.first_label(),
            inbound: Vec::new(),
            ports: Vec::new(),
            relays: Vec::new(),
            expires: None,
            path: PathMode::Auto,
            birthday: BirthdayMode::Disabled,
        };
        Entry { peer, consents: vec![TrustId([ours; 16]), TrustId([theirs; 16])], link: None, local_ports: Vec::new() }
    }

    fn version(version: u64) -> Revision {
        Revision { epoch: 1, versions: vec![version] }
    }

    /// From a replica that knows exactly how far it has seen.
    fn full(at: u64, entries: &[Entry]) -> Update {
        Update { full: true, entries: entries.to_vec(), ..delta(1, at) }
    }

    fn delta(sequence: u64, at: u64) -> Update {
        Update { sequence, revision: version(at), shown: version(at), ..Update::default() }
    }

    fn names(follow: &Follow) -> Vec<String> {
        follow.clone().snapshot(NOW, false).peers.iter().map(|peer| peer.alias.to_string()).collect()
    }

    /// What comes of an update on the connection that is open.
    fn take(follow: &mut Follow, update: Update) -> Ack {
        match follow.take(update, &agent("us")) {
            Ok(Taken::Whole(ack)) => ack,
            other => panic!("it is whole: {other:?}"),
        }
    }

    /// What comes of a new connection that begins so.
    fn connect(follow: &mut Follow, update: Update) -> Ack {
        follow.begin();
        take(follow, update)
    }

    #[test]
    fn everything_then_changes() {
        let mut follow = Follow::default();
        assert_eq!(connect(&mut follow, full(5, &[entry("a", 1, 2)])), Ack { sequence: 1, refused: 0 });
        take(&mut follow, Update { entries: vec![entry("b", 3, 4)], ..delta(2, 6) });
        assert_eq!(names(&follow), ["a", "b"]);
        take(&mut follow, Update { withdrawn: vec![agent("a")], ..delta(3, 7) });
        assert_eq!(names(&follow), ["b"]);
        take(&mut follow, Update { entries: vec![entry("a", 1, 2)], ..delta(4, 8) });
        assert_eq!(names(&follow), ["a", "b"], "what was only withdrawn may come back");
        assert_eq!(follow.reached(), Some(&version(8)));
    }

    #[test]
    fn parts_take_effect_together() {
        let mut follow = Follow::default();
        follow.begin();
        let first = Update { more: true, ..full(5, &[entry("a", 1, 2)]) };
        assert_eq!(follow.take(first, &agent("us")), Ok(Taken::Part));
        assert!(names(&follow).is_empty() && !follow.is_current());
        take(&mut follow, Update { entries: vec![entry("b", 3, 4)], ..delta(2, 5) });
        assert_eq!(names(&follow), ["a", "b"]);
        assert!(follow.is_current());
    }

    #[test]
    fn what_is_gone_comes_back_from_nobody_at_no_revision_and_after_no_restart() {
        for consent in [1, 2] {
            let mut follow = Follow::default();
            connect(&mut follow, full(5, &[entry("a", 1, 2), entry("b", 3, 4)]));
            take(&mut follow, Update { gone: vec![TrustId([consent; 16])], ..delta(2, 6) });
            assert_eq!(names(&follow), ["b"], "either side's deletion ends it");
            let ack = connect(&mut follow, full(900, &[entry("a", 1, 2)]));
            assert_eq!((names(&follow), ack.refused), (vec![], 1));
            let kept = minicbor::to_vec(follow.keep(NOW)).expect("to memory");
            let mut again = Follow::restore(minicbor::decode(&kept).expect("it reads back"));
            connect(&mut again, full(1000, &[entry("a", 1, 2)]));
            assert!(names(&again).is_empty(), "after a restart");
            connect(&mut again, full(1001, &[entry("a", 8, 9)]));
            assert_eq!(names(&again), ["a"], "made anew, it is another one");
        }
    }

    #[test]
    fn a_replica_that_is_behind_neither_adds_nor_ends_by_not_knowing() {
        let mut follow = Follow::default();
        connect(&mut follow, full(10, &[entry("new", 5, 6)]));
        let ack = connect(&mut follow, full(7, &[entry("withdrawn-since", 1, 2)]));
        assert_eq!((names(&follow), ack.refused), (vec!["new".to_owned()], 1));
        assert!(follow.is_behind() && !follow.is_current());
        assert_eq!(follow.reached(), Some(&version(10)));
        take(&mut follow, Update { entries: vec![entry("later", 7, 8)], ..delta(2, 9) });
        assert_eq!(names(&follow), ["new"], "still behind");
        let caught_up = Update { withdrawn: vec![agent("withdrawn-since")], ..delta(3, 10) };
        take(&mut follow, Update { entries: vec![entry("new", 5, 6)], ..caught_up });
        assert_eq!(names(&follow), ["later", "new"], "all that it told counts once it has caught up");
        assert!(follow.is_current());
    }

    /// A replica's word, whose sources are at `seen` for sure and at `shown` at most.
    fn word(update: Update, seen: [u64; 2], shown: [u64; 2]) -> Update {
        let revision = |versions: [u64; 2]| Revision { epoch: 1, versions: versions.to_vec() };
        Update { revision: revision(seen), shown: revision(shown), ..update }
    }

    #[test]
    fn what_one_replica_took_back_no_other_brings_back_that_may_not_have_seen_it() {
        let both = [entry("a", 1, 2), entry("b", 3, 4)];
        let mut follow = Follow::default();
        connect(&mut follow, word(full(0, &both), [100, 100], [100, 100]));
        // Its first source is far ahead of its second one, so that by the slower of the two it has seen nothing new.
        take(&mut follow, word(Update { withdrawn: vec![agent("a")], ..delta(2, 0) }, [200, 100], [200, 100]));
        assert_eq!(names(&follow), ["b"]);
        assert!(follow.is_current(), "its own word is no reason to doubt it");
        connect(&mut follow, word(full(0, &both), [150, 150], [150, 150]));
        assert_eq!(names(&follow), ["b"], "farther by its slower source, and still before the withdrawal");
        take(&mut follow, word(delta(2, 0), [200, 150], [150, 150]));
        assert_eq!(names(&follow), ["a", "b"], "it says so knowing of the withdrawal: it was undone");
    }

    #[test]
    fn what_a_replica_that_is_behind_took_back_stays_taken_back_too() {
        let mut follow = Follow::default();
        connect(&mut follow, word(full(0, &[entry("a", 1, 2)]), [100, 100], [100, 100]));
        connect(&mut follow, word(full(0, &[entry("a", 1, 2)]), [90, 300], [90, 300]));
        take(&mut follow, word(Update { withdrawn: vec![agent("a")], ..delta(2, 0) }, [90, 310], [90, 310]));
        assert!(names(&follow).is_empty());
        connect(&mut follow, word(full(0, &[entry("a", 1, 2)]), [120, 305], [120, 305]));
        assert!(names(&follow).is_empty(), "this one has not seen what that one took back");
    }

    #[test]
    fn removals_count_from_a_replica_that_is_behind() {
        let mut follow = Follow::default();
        connect(&mut follow, full(10, &[entry("a", 1, 2), entry("b", 3, 4), entry("c", 5, 6)]));
        connect(&mut follow, Update { gone: vec![TrustId([1; 16])], withdrawn: vec![agent("b")], ..full(2, &[]) });
        assert_eq!(names(&follow), ["c"]);
    }

    #[test]
    fn an_agent_that_was_none_for_a_while_takes_nothing_from_before_that() {
        let mut follow = Follow::default();
        connect(&mut follow, full(10, &[entry("a", 1, 2)]));
        follow.clear();
        assert!(names(&follow).is_empty());
        connect(&mut follow, full(9, &[entry("a", 1, 2)]));
        assert!(names(&follow).is_empty(), "from a replica that has not heard of it");
        connect(&mut follow, full(11, &[entry("a", 1, 2)]));
        assert_eq!(names(&follow), ["a"]);
    }

    #[test]
    fn a_new_epoch_counts_whatever_its_version() {
        let mut follow = Follow::default();
        connect(&mut follow, full(1000, &[entry("a", 1, 2)]));
        let restored = Revision { epoch: 2, versions: vec![3] };
        connect(&mut follow, Update { revision: restored.clone(), shown: restored, ..full(0, &[entry("b", 3, 4)]) });
        assert_eq!(names(&follow), ["b"]);
    }

    #[test]
    fn a_denied_instance_stays_denied_until_its_end_whoever_forgets_it() {
        let denied = |until| DeniedInstance {
            authority: Fingerprint([1; 32]),
            instance: InstanceId([7; 8]),
            until: UnixTime(until),
        };
        let mut follow = Follow::default();
        connect(&mut follow, Update { denied: vec![denied(NOW.0 + 100)], ..full(5, &[]) });
        connect(&mut follow, Update { denied: vec![denied(NOW.0 + 50)], ..full(6, &[]) });
        assert_eq!(follow.snapshot(NOW, false).denied, [denied(NOW.0 + 100)]);
        assert!(follow.snapshot(UnixTime(NOW.0 + 100), false).denied.is_empty());
    }

    fn denials(count: u64, until: u64) -> Vec<DeniedInstance> {
        let one = |number: u64| DeniedInstance {
            authority: Fingerprint([1; 32]),
            instance: InstanceId((until << 32 | number).to_be_bytes()),
            until: UnixTime(NOW.0 + until),
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn a_flood_of_denials_holds_up_no_removal_and_pushes_out_what_ends_first() {
        let mut follow = Follow::default();
        connect(&mut follow, full(5, &[entry("a", 1, 2), entry("b", 3, 4)]));
        take(&mut follow, Update { denied: denials(10, 1), ..delta(2, 6) });
        let flood = Update { denied: denials(MAX_DENIED as u64, 2), gone: vec![TrustId([1; 16])], ..delta(3, 7) };
        take(&mut follow, flood);
        assert_eq!(names(&follow), ["b"], "the revocation that came with it counts");
        let denied = follow.snapshot(NOW, false).denied;
        assert_eq!(denied.len(), MAX_DENIED);
        assert!(denied.iter().all(|denied| denied.until == UnixTime(NOW.0 + 2)));
        connect(&mut follow, Update { denied: denials(10, 1), ..full(8, &[]) });
        assert!(names(&follow).is_empty(), "and so does everything that is said later");
    }

    #[test]
    fn more_peers_than_an_agent_may_have_are_refused_and_what_was_withdrawn_goes_all_the_same() {
        let many: Vec<_> = (0..=MAX_ENTRIES).map(|number| entry(&format!("p{number}"), 1, 2)).collect();
        let mut follow = Follow::default();
        connect(&mut follow, full(5, &[entry("a", 3, 4)]));
        let ack = take(&mut follow, Update { entries: many, withdrawn: vec![agent("a")], ..delta(2, 6) });
        assert_eq!((names(&follow).len(), ack.refused), (MAX_ENTRIES, 1));
        assert!(!names(&follow).contains(&"a".to_owned()));
    }

    #[test]
    fn a_trust_ends_at_its_time_without_a_word() {
        let mut ending = entry("a", 1, 2);
        ending.peer.expires = Some(UnixTime(NOW.0 + 10));
        let mut follow = Follow::default();
        connect(&mut follow, full(5, &[ending]));
        assert_eq!(names(&follow), ["a"]);
        assert_eq!(follow.next_end(NOW), Some(UnixTime(NOW.0 + 10)));
        assert!(follow.snapshot(UnixTime(NOW.0 + 10), false).peers.is_empty());
    }

    #[test]
    fn what_no_operator_says_ends_the_connection_and_changes_nothing() {
        let mut follow = Follow::default();
        connect(&mut follow, full(5, &[entry("a", 1, 2)]));
        follow.begin();
        assert_eq!(follow.take(Update { full: false, ..full(6, &[]) }, &agent("us")), Err(BadUpdate::NotFull));
        let skipped = follow.take(Update { sequence: 3, ..full(6, &[]) }, &agent("us"));
        assert_eq!(skipped, Err(BadUpdate::Sequence { expected: 1, found: 3 }));
        assert_eq!(follow.take(full(6, &[entry("us", 1, 2)]), &agent("us")), Err(BadUpdate::Ourselves));
        assert_eq!(names(&follow), ["a"]);
    }

    #[test]
    fn what_was_away_for_a_while_comes_back_under_an_id_that_the_engine_has_not_buried() {
        let mut follow = Follow::default();
        connect(&mut follow, full(5, &[entry("a", 1, 2), entry("b", 3, 4)]));
        let ids = |follow: &mut Follow, closed| {
            follow.snapshot(NOW, closed).peers.iter().map(|peer| peer.trust).collect::<Vec<_>>()
        };
        let first = ids(&mut follow, false);
        assert_eq!(ids(&mut follow, false), first, "who stays keeps its id");
        assert!(ids(&mut follow, true).is_empty());
        let again = ids(&mut follow, false);
        assert!(again.len() == 2 && again.iter().all(|id| !first.contains(id)), "{first:?}, then {again:?}");
    }

    #[test]
    fn closed_it_talks_to_nobody_and_keeps_its_relays() {
        let mut follow = Follow::default();
        connect(&mut follow, full(5, &[entry("a", 1, 2)]));
        assert!(follow.snapshot(NOW, true).peers.is_empty());
    }
}
