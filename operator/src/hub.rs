//! Who is connected, and what each of them has to be told.
//!
//! A change names the pairs and agents that it touches; the hub leaves a note with the streams of exactly those, and
//! wakes them. A stream takes its notes when it gets to it, so that a slow one holds up nobody and hears once of what
//! changed twice.

mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use peerage_crds::PathSummary;
use peerage_model::operator::{PathWord, PeerState};
use peerage_model::snapshot::DeniedInstance;
use peerage_model::{AgentId, InstanceId, TrustId};
use tokio::sync::Notify;

pub use self::progress::{NATS, Owed, Progress};
use crate::index::Dirty;
use crate::key::ObjectKey;

/// What a stream has to look at again.
#[derive(Debug, Default)]
pub struct Notes {
    /// When this replica was told of the first change that these notes are about.
    pub told: Option<Instant>,
    /// Entries of these peers.
    pub pairs: BTreeSet<AgentId>,
    /// AgentTrusts that were deleted.
    pub gone: BTreeSet<TrustId>,
    /// Instances that were denied.
    pub denied: Vec<DeniedInstance>,
    /// The agent's own settings.
    pub settings: bool,
    /// Everything.
    pub all: bool,
    /// Whether the pod is still the agent.
    pub pod: bool,
    /// Another connection of this instance took over.
    pub replaced: bool,
    /// This instance was denied.
    pub withdrawn: bool,
}

impl Notes {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { told: _, pairs, gone, denied, settings, all, pod, replaced, withdrawn } = self;
        pairs.is_empty()
            && gone.is_empty()
            && denied.is_empty()
            && ![settings, all, pod, replaced, withdrawn].into_iter().any(|b| *b)
    }
}

/// One connected instance.
#[derive(Debug)]
pub struct Stream {
    /// Of which agent.
    pub agent: ObjectKey,
    /// Which instance.
    pub instance: InstanceId,
    /// In which pod.
    pub pod: ObjectKey,
    notes: Mutex<Notes>,
    wake: Notify,
    progress: Mutex<Progress>,
}

impl Stream {
    /// Waits until there are notes, and takes them.
    pub async fn notes(&self) -> Notes {
        loop {
            let woken = self.wake.notified();
            let notes = std::mem::take(&mut *lock(&self.notes));
            if !notes.is_empty() {
                return notes;
            }
            woken.await;
        }
    }

    /// How far it is, for reading and writing.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    fn note(&self, write: impl FnOnce(&mut Notes)) {
        write(&mut lock(&self.notes));
        self.wake.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers of one AgentTrust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustCount {
    /// Streams of our agent.
    pub expected: usize,
    /// Of those, how many acknowledged.
    pub acknowledged: usize,
    /// How connections of the two travel.
    pub path: Option<PathSummary>,
    /// Whether a sidecar tried to connect and could not.
    pub failing: bool,
    /// A port of the peer that cannot be where it should be, as the first stream that has one tells it.
    pub conflict: Option<String>,
}

/// What an agent's sidecars told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentTold {
    /// How its connections travel.
    pub path: Option<PathSummary>,
    /// The worst NAT that one of them is behind.
    pub nat: Option<String>,
    /// A peer's port that cannot be where it should be, with the peer's name, as the first stream that has one tells it.
    pub conflict: Option<String>,
}

/// Everybody who is connected to this replica.
#[derive(Debug, Default)]
pub struct Hub {
    streams: Mutex<Streams>,
    serial: AtomicU64,
}

/// Streams, each with the number of its seat: a change names whom it touches, and who that is must not be looked for among all.
#[derive(Debug, Default)]
struct Streams {
    by_agent: Seats,
    by_pod: Seats,
}

type Seats = BTreeMap<ObjectKey, BTreeMap<u64, Arc<Stream>>>;

impl Streams {
    fn of(&self, agent: &ObjectKey) -> impl Iterator<Item = &Arc<Stream>> {
        self.by_agent.get(agent).into_iter().flat_map(BTreeMap::values)
    }

    fn in_pod(&self, pod: &ObjectKey) -> impl Iterator<Item = &Arc<Stream>> {
        self.by_pod.get(pod).into_iter().flat_map(BTreeMap::values)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Stream>> {
        self.by_agent.values().flat_map(BTreeMap::values)
    }

    /// Gives a stream a seat. Whoever sits there for the same instance is told that it was replaced.
    fn join(&mut self, serial: u64, stream: Arc<Stream>) {
        for other in self.of(&stream.agent).filter(|other| other.instance == stream.instance) {
            other.note(|notes| notes.replaced = true);
        }
        self.by_pod.entry(stream.pod.clone()).or_default().insert(serial, Arc::clone(&stream));
        self.by_agent.entry(stream.agent.clone()).or_default().insert(serial, stream);
    }

    fn leave(&mut self, stream: &Stream, serial: u64) {
        for (seats, key) in [(&mut self.by_agent, &stream.agent), (&mut self.by_pod, &stream.pod)] {
            if let Some(of_key) = seats.get_mut(key) {
                of_key.remove(&serial);
                if of_key.is_empty() {
                    seats.remove(key);
                }
            }
        }
    }
}

/// A place in the hub, given up when dropped.
#[derive(Debug)]
pub struct Seat {
    hub: Arc<Hub>,
    serial: u64,
    /// The stream that sits there.
    pub stream: Arc<Stream>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.hub.streams).leave(&self.stream, self.serial);
    }
}

impl Hub {
    /// Takes a place. An earlier connection of the same instance is told that it was replaced.
    #[must_use]
    pub fn join(self: &Arc<Self>, agent: ObjectKey, instance: InstanceId, pod: ObjectKey) -> Seat {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(Stream {
            agent,
            instance,
            pod,
            notes: Mutex::default(),
            wake: Notify::new(),
            progress: Mutex::default(),
        });
        lock(&self.streams).join(serial, Arc::clone(&stream));
        Seat { hub: Arc::clone(self), serial, stream }
    }

    /// How many are connected.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.streams).all().count()
    }

    /// Whether nobody is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.streams).by_agent.is_empty()
    }

    /// The streams of an agent.
    #[must_use]
    pub fn of(&self, agent: &ObjectKey) -> Vec<Arc<Stream>> {
        lock(&self.streams).of(agent).cloned().collect()
    }

    /// Whether an agent has streams.
    #[must_use]
    pub fn has(&self, agent: &ObjectKey) -> bool {
        lock(&self.streams).by_agent.contains_key(agent)
    }

    /// Agents that have streams.
    #[must_use]
    pub fn agents(&self) -> Vec<ObjectKey> {
        lock(&self.streams).by_agent.keys().cloned().collect()
    }

    /// Leaves notes with those whom a change that we were told at `told` touches. Returns how many were woken.
    pub fn spread(&self, dirty: &Dirty, told: Instant) -> usize {
        let streams = lock(&self.streams);
        let mut woken = 0;
        let mut note = |agent: &ObjectKey, write: &dyn Fn(&mut Notes)| {
            for stream in streams.of(agent) {
                stream.note(|notes| {
                    notes.told.get_or_insert(told);
                    write(notes);
                });
                woken += 1;
            }
        };
        if dirty.all {
            streams.by_agent.keys().for_each(|agent| note(agent, &|notes| notes.all = true));
        }
        for (agent, peer) in &dirty.pairs {
            note(agent, &|notes| {
                notes.pairs.insert(peer.clone());
                notes.gone.extend(dirty.gone.keys());
            });
        }
        for agent in &dirty.agents {
            note(agent, &|notes| notes.settings = true);
        }
        let in_pods = dirty.pods.iter().flat_map(|pod| streams.in_pod(pod));
        let of_replaced = dirty.replaced.iter().flat_map(|agent| streams.of(agent));
        in_pods.chain(of_replaced).for_each(|stream| stream.note(|notes| notes.pod = true));
        woken
    }

    /// Tells these agents that an instance was denied and, where it is one of `agent` of this cluster, the instance itself.
    pub fn deny(&self, denied: &DeniedInstance, agent: Option<&ObjectKey>, peers: &[ObjectKey]) {
        let streams = lock(&self.streams);
        for peer in peers {
            for stream in streams.of(peer) {
                stream.note(|notes| notes.denied.push(denied.clone()));
            }
        }
        let own = agent.into_iter().flat_map(|agent| streams.of(agent));
        for stream in own.filter(|stream| stream.instance == denied.instance) {
            stream.note(|notes| notes.withdrawn = true);
        }
    }

    /// Wakes everybody to look at everything again.
    pub fn refresh(&self) {
        for stream in lock(&self.streams).all() {
            stream.note(|notes| notes.all = true);
        }
    }

    /// The numbers of an AgentTrust of `agent`, as it is in this generation: who was told of an earlier one has not
    /// acknowledged it, whether or not its stream has got to that yet.
    #[must_use]
    pub fn count(&self, agent: &ObjectKey, trust: &TrustId, generation: Option<i64>) -> TrustCount {
        let mut count = TrustCount::default();
        let mut words = Vec::new();
        for stream in self.of(agent) {
            let progress = stream.progress();
            count.expected += 1;
            let owed = progress.owed.get(trust).filter(|owed| owed.generation == generation);
            count.acknowledged += usize::from(owed.is_some_and(|owed| owed.update <= progress.acknowledged));
            let about = || progress.about.get(trust).into_iter().flatten();
            words.extend(about().filter_map(|peer| progress.peers.get(peer)).copied());
            let conflict = about().find_map(|peer| progress.conflicts.get(peer));
            count.conflict = count.conflict.or_else(|| conflict.cloned());
        }
        count.path = summary(&words);
        count.failing = words.iter().any(|(state, _)| *state == PeerState::Failing);
        count
    }

    /// What the streams of an agent told of it.
    #[must_use]
    pub fn told(&self, agent: &ObjectKey) -> AgentTold {
        let streams = self.of(agent);
        let mut words = Vec::new();
        let mut nats = Vec::new();
        let mut conflict = None;
        for stream in &streams {
            let progress = stream.progress();
            words.extend(progress.peers.values().copied());
            nats.extend(progress.nat);
            let first = progress.conflicts.iter().next();
            conflict = conflict.or_else(|| first.map(|(peer, why)| format!("{}: {why}", peer.name)));
        }
        let path = if streams.is_empty() { None } else { summary(&words).or(Some(PathSummary::Idle)) };
        let worst = NATS.into_iter().rfind(|word| nats.contains(word));
        AgentTold { path, nat: worst.map(str::to_owned), conflict }
    }
}

/// One word for many connections; none where nothing was reported.
fn summary(words: &[(PeerState, PathWord)]) -> Option<PathSummary> {
    if words.is_empty() {
        return None;
    }
    let (mut relayed, mut direct) = (false, false);
    for (state, path) in words {
        match (state, path) {
            (PeerState::Connected, PathWord::Relayed) => relayed = true,
            (PeerState::Connected, PathWord::Local | PathWord::Direct | PathWord::Punched) => direct = true,
            (PeerState::Connected, PathWord::None) | (PeerState::Idle | PeerState::Failing, _) => {}
        }
    }
    Some(match (direct, relayed) {
        (true, true) => PathSummary::Mixed,
        (true, false) => PathSummary::Direct,
        (false, true) => PathSummary::Relayed,
        (false, false) => PathSummary::Idle,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Target;
    use crate::index::Deleted;
    use peerage_model::Fingerprint;
    use peerage_model::operator::{Conflict, Report};

    fn peer(name: &str) -> AgentId {
        AgentId { authority: Fingerprint([1; 32]), name: name.parse().expect("a name") }
    }

    fn join(hub: &Arc<Hub>, agent: &str, instance: u8) -> Seat {
        hub.join(
            ObjectKey::new("n", agent),
            InstanceId([instance; 8]),
            ObjectKey::new("n", format!("{agent}-{instance}")),
        )
    }

    #[tokio::test]
    async fn a_change_wakes_the_agents_of_its_pairs_and_nobody_else() {
        let hub = Arc::new(Hub::default());
        let (a, b, c) = (join(&hub, "a", 1), join(&hub, "b", 2), join(&hub, "c", 3));
        let mut dirty = Dirty::default();
        dirty.pairs.insert((ObjectKey::new("n", "a"), peer("b.n")));
        dirty.pairs.insert((ObjectKey::new("n", "b"), peer("a.n")));
        let key = |name| ObjectKey::new("n", name);
        let deleted = Deleted { trust: key("a-b"), agent: key("a"), target: Target::Here(key("b")) };
        dirty.gone.insert(TrustId([7; 16]), deleted);
        assert_eq!(hub.spread(&dirty, Instant::now()), 2);
        for seat in [&a, &b] {
            let notes = seat.stream.notes().await;
            assert_eq!((notes.pairs.len(), notes.gone.len(), notes.all), (1, 1, false));
        }
        assert!(lock(&c.stream.notes).is_empty());
        drop(a);
        assert_eq!(hub.len(), 2, "who leaves gives up its place");
    }

    #[test]
    fn a_pod_that_changes_is_looked_at_by_the_streams_in_it_and_an_agent_that_was_replaced_by_all_of_its_own() {
        let hub = Arc::new(Hub::default());
        let seats = [("a", 1), ("a", 2), ("b", 3), ("b", 4)].map(|(agent, instance)| join(&hub, agent, instance));
        let key = |name| ObjectKey::new("n", name);
        let dirty = Dirty { pods: [key("a-2"), key("c-1")].into(), replaced: [key("b")].into(), ..Dirty::default() };
        hub.spread(&dirty, Instant::now());
        assert_eq!(seats.each_ref().map(|seat| lock(&seat.stream.notes).pod), [false, true, true, true]);
        drop(seats);
        assert!(hub.is_empty() && lock(&hub.streams).by_pod.is_empty(), "who leaves gives up both places");
    }

    #[tokio::test]
    async fn a_second_connection_of_an_instance_replaces_the_first() {
        let hub = Arc::new(Hub::default());
        let (first, other) = (join(&hub, "a", 1), join(&hub, "a", 2));
        let _second = join(&hub, "a", 1);
        assert!(first.stream.notes().await.replaced);
        assert!(lock(&other.stream.notes).is_empty(), "a replica is another instance");
    }

    #[test]
    fn a_trust_counts_as_acknowledged_when_the_update_that_told_of_it_is() {
        let hub = Arc::new(Hub::default());
        let seat = join(&hub, "a", 1);
        let (agent, trust) = (ObjectKey::new("n", "a"), TrustId([7; 16]));
        let count = |generation| hub.count(&agent, &trust, Some(generation));
        assert_eq!(count(1), TrustCount { expected: 1, ..TrustCount::default() });
        seat.stream.progress().owed.insert(trust, Owed { generation: Some(1), update: 3 });
        for (acknowledged, counted) in [(2, 0), (3, 1)] {
            seat.stream.progress().acknowledged = acknowledged;
            assert_eq!(count(1).acknowledged, counted);
        }
        assert_eq!(count(2).acknowledged, 0, "in a generation of which it was not told");
    }

    #[test]
    fn an_agent_tells_of_a_peer_s_port_that_is_not_where_it_should_be_until_it_is() {
        let hub = Arc::new(Hub::default());
        let seat = join(&hub, "a", 1);
        let agent = ObjectKey::new("n", "a");
        seat.stream.progress().about.insert(TrustId([7; 16]), [peer("b.n")].into());
        let report =
            |conflicts| seat.stream.progress().report(Report { conflicts: Some(conflicts), ..Report::default() });
        let conflict = |name: &str| Conflict {
            peer: peer(name),
            port: 80,
            protocol: peerage_model::snapshot::Protocol::Tcp,
            instead: None,
            why: "set localPort".into(),
        };
        report(vec![conflict("stranger.n"), conflict("b.n")]);
        let told = hub.told(&agent).conflict.expect("it told");
        assert!(told.starts_with("b.n: port 80/") && told.ends_with("set localPort"), "{told}");
        report(Vec::new());
        assert_eq!(hub.told(&agent).conflict, None);
    }

    #[test]
    fn many_paths_are_one_word() {
        let connected = |path| (PeerState::Connected, path);
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[(PeerState::Idle, PathWord::None)]), Some(PathSummary::Idle));
        assert_eq!(summary(&[connected(PathWord::Relayed)]), Some(PathSummary::Relayed));
        assert_eq!(summary(&[connected(PathWord::Punched), connected(PathWord::Relayed)]), Some(PathSummary::Mixed));
    }
}
