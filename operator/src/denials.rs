//! Denied instances outlive the process that denied them; and so does the knowledge of who enrolled, because a pod that is
//! deleted while no operator runs must be denied by the next one.
//!
//! Each lies in sixteen ConfigMaps of the operator's namespace, by the first digit of the instance's id: a denial as
//! `INSTANCE: "UNTIL AGENT"` in `peerage-denied-…`, one of another cluster's instance as `INSTANCE.AUTHORITY: "UNTIL AGENT"`,
//! because that cluster may say any id, ours too; an enrolment as `INSTANCE: "UID NAMESPACE/POD SERVICEACCOUNT ISSUED AGENT"`
//! in `peerage-enrolled-…`. Every replica writes: a merge patch touches its own keys and no others, so two that write at
//! once lose nothing. Every replica watches the denials, which is how the others hear of one; enrolments are read once,
//! at the start, so that a rollout is no flood of news. The leader removes what has ended. Renewals are not written: an
//! enrolment counts for as long as its pod is there.
//!
//! A ConfigMap holds 1 MiB: sixteen have room for about 70,000 pods, and as many denials of one day. An enrolment that
//! finds no room is given up and said so; its pod, should it go while no operator runs, keeps a passport until that ends.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use peerage_model::passport::LIFETIME;
use peerage_model::snapshot::DeniedInstance;
use peerage_model::{AgentId, Fingerprint, InstanceId, TrustId, UnixTime};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::cluster::Cluster;
use crate::key::ObjectKey;
use crate::roll::{Denial, Holder, PodUid};

/// Label of the ConfigMaps with denials.
pub const LABEL: &str = "peerage.dev/denied-instances";

/// What is written down apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Book {
    Denied,
    Enrolled,
}

impl Book {
    fn label(self) -> &'static str {
        match self {
            Self::Denied => LABEL,
            Self::Enrolled => "peerage.dev/enrolled-instances",
        }
    }

    /// The ConfigMap of an instance.
    fn map_of(self, instance: &str) -> String {
        let word = match self {
            Self::Denied => "denied",
            Self::Enrolled => "enrolled",
        };
        format!("peerage-{word}-{}", &instance[..1])
    }
}
/// After so long every watch knows of a pod.
const SETTLED: Duration = Duration::from_secs(3600);
/// For how long enrolments are gathered: each write is one of the whole ConfigMap to etcd, and a rollout enrols by the
/// hundred. A denial waits for nothing.
const GATHER: Duration = Duration::from_millis(500);
/// How long a request that failed waits.
const AGAIN: Duration = Duration::from_secs(2);
/// Writes at a time.
const AT_ONCE: usize = 4;
/// The API server's answer to an object with more than 1 MiB: 422 Unprocessable Content, as to any that is not valid.
const TOO_LARGE: u16 = 422;

/// What is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An instance was denied.
    Denied(Denial),
    /// An instance was let in.
    Enrolled(PodUid, Holder),
}

/// All denials in one ConfigMap's data; what cannot be read is left out.
#[must_use]
pub fn read(data: &BTreeMap<String, String>) -> Vec<Denial> {
    data.iter().filter_map(|(key, value)| read_one(key, value)).collect()
}

fn read_one(key: &str, value: &str) -> Option<Denial> {
    let (until, agent) = value.split_once(' ')?;
    let agent: AgentId = agent.parse().ok()?;
    let instance = match key.split_once('.') {
        Some((instance, authority)) => (authority.parse() == Ok(agent.authority)).then_some(instance)?,
        None => key,
    };
    let denied = DeniedInstance {
        authority: agent.authority,
        instance: instance.parse().ok()?,
        until: UnixTime(until.parse().ok()?),
    };
    Some(Denial { agent, denied })
}

/// All enrolments in one ConfigMap's data, whose passports may count until a day after `now`; what cannot be read is left
/// out.
#[must_use]
pub fn read_enrolled(data: &BTreeMap<String, String>, now: UnixTime) -> Vec<(PodUid, Holder)> {
    let one = |(key, value): (&String, &String)| {
        let instance: InstanceId = key.parse().ok()?;
        let words: Vec<&str> = value.split(' ').collect();
        let [uid, pod, service_account, issued, agent] = words[..] else { return None };
        let uid: TrustId = uid.parse().ok()?; // the same sixteen bytes
        let (namespace, pod) = pod.split_once('/')?;
        let agent: AgentId = agent.parse().ok()?;
        let holder = Holder {
            peer: ObjectKey::of_agent(&agent.name)?,
            agent,
            instance,
            pod: ObjectKey::new(namespace, pod),
            service_account: service_account.to_owned(),
            issued: UnixTime(issued.parse().ok()?),
            until: now.plus(LIFETIME),
        };
        Some((uid.0, holder))
    };
    data.iter().filter_map(one).collect()
}

fn enrolled(uid: &PodUid, holder: &Holder) -> (String, String) {
    let Holder { agent, instance, pod, service_account, issued, .. } = holder;
    let value = format!("{} {}/{} {service_account} {} {agent}", TrustId(*uid), pod.namespace, pod.name, issued.0);
    (instance.to_string(), value)
}

fn entry(denial: &Denial, ours: &Fingerprint) -> (String, String) {
    let Denial { agent, denied } = denial;
    let key = match agent.authority == *ours {
        true => denied.instance.to_string(),
        false => format!("{}.{}", denied.instance, agent.authority),
    };
    (key, format!("{} {agent}", denied.until.0))
}

/// Writes denials down, and forgets them when they have ended.
#[derive(Clone)]
pub struct Ledger {
    maps: Api<ConfigMap>,
    ours: Fingerprint,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger(..)")
    }
}

impl Ledger {
    /// In the operator's namespace; `ours`: this cluster's authority.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, ours: Fingerprint) -> Self {
        Self { maps: Api::namespaced(client, namespace), ours }
    }

    /// Who enrolled and was not denied, as earlier processes wrote it down; asked until there is an answer.
    pub async fn enrolled(&self) -> Vec<(PodUid, Holder)> {
        loop {
            match self.maps.list(&ListParams::default().labels(Book::Enrolled.label())).await {
                Ok(maps) => {
                    let data = maps.items.into_iter().filter_map(|map| map.data);
                    return data.flat_map(|data| read_enrolled(&data, crate::clock::now())).collect();
                }
                Err(error) => tracing::warn!(%error, "who enrolled before could not be read"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Writes down what happened here, for as long as it takes; `written`: whose enrolment is there already. A ConfigMap that
    /// cannot be written holds up no other.
    pub async fn run(self, entries: mpsc::UnboundedReceiver<Entry>, written: BTreeSet<InstanceId>) {
        let write = |place: Place, data: Changes| {
            let ledger = self.clone();
            async move { ledger.add(&place, &data).await }
        };
        write_down(self.ours, entries, written, write).await;
    }

    /// Whether it is done with.
    async fn add(&self, (book, name): &Place, data: &Changes) -> bool {
        let count = data.len();
        match (self.try_add(*book, name, data).await, book) {
            (Ok(()), _) => true,
            (Err(kube::Error::Api(status)), Book::Enrolled) if status.code == TOO_LARGE => {
                tracing::error!(map = name, count, "who enrolled is not written down: there is no room for more pods");
                true
            }
            (Err(error), _) => {
                tracing::warn!(%error, map = name, count, "instances could not be written down");
                false
            }
        }
    }

    async fn try_add(&self, book: Book, name: &str, data: &Changes) -> kube::Result<()> {
        let patch = Patch::Merge(json!({"data": data}));
        match self.maps.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(|_| ()),
        }
        let new: BTreeMap<_, _> = data.iter().filter(|(_, value)| value.is_some()).collect();
        if new.is_empty() {
            return Ok(()); // what was to be removed was never there
        }
        let map = json!({"metadata": {"name": name, "labels": {book.label(): ""}}, "data": new});
        let map = serde_json::from_value(map).map_err(kube::Error::SerdeError)?;
        match self.maps.create(&PostParams::default(), &map).await {
            // Another replica made it in between.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.maps.patch(name, &PatchParams::default(), &patch).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    /// Removes denials that have ended at `now`, and enrolments of pods that are not there any more; for the leader.
    ///
    /// # Errors
    /// What the API server said.
    pub async fn sweep(&self, now: UnixTime, is_there: impl Fn(&PodUid, &Holder) -> bool) -> kube::Result<()> {
        let ended = |data: &BTreeMap<String, String>| -> Changes {
            let has_ended =
                |key: &str, value: &str| read_one(key, value).is_some_and(|denial| denial.denied.until <= now);
            let ended = data.iter().filter(|(key, value)| has_ended(key, value));
            ended.map(|(key, _)| (key.clone(), None)).collect()
        };
        self.remove(Book::Denied, ended).await?;
        let left = |data: &BTreeMap<String, String>| -> Changes {
            // Of a pod that has just enrolled our own watch may not know yet.
            let old = |holder: &Holder| holder.issued.plus(SETTLED) < now;
            let left = read_enrolled(data, now).into_iter();
            let left = left.filter(|(uid, holder)| old(holder) && !is_there(uid, holder));
            left.map(|(uid, holder)| (enrolled(&uid, &holder).0, None)).collect()
        };
        self.remove(Book::Enrolled, left).await
    }

    async fn remove(&self, book: Book, what: impl Fn(&BTreeMap<String, String>) -> Changes) -> kube::Result<()> {
        for map in self.maps.list(&ListParams::default().labels(book.label())).await?.items {
            let Some((name, data)) = map.metadata.name.zip(map.data) else { continue };
            let changes = what(&data);
            if !changes.is_empty() {
                let patch = Patch::Merge(json!({"data": changes}));
                self.maps.patch(&name, &PatchParams::default(), &patch).await?;
            }
        }
        Ok(())
    }
}

/// Keys of one ConfigMap, and what they become; none: they go.
type Changes = BTreeMap<String, Option<String>>;
/// One ConfigMap.
type Place = (Book, String);

fn note(ours: &Fingerprint, what: &Entry, by_map: &mut BTreeMap<Place, Changes>, written: &mut BTreeSet<InstanceId>) {
    let mut put = |book: Book, key: String, value: Option<String>| {
        by_map.entry((book, book.map_of(&key))).or_default().insert(key, value);
    };
    match what {
        Entry::Denied(denial) => {
            let (key, value) = entry(denial, ours);
            // What another cluster says of its instances ends no enrolment here.
            if denial.agent.authority == *ours {
                put(Book::Enrolled, key.clone(), None);
                written.remove(&denial.denied.instance);
            }
            put(Book::Denied, key, Some(value));
        }
        Entry::Enrolled(uid, holder) => {
            // Who comes back is enrolled already.
            if written.insert(holder.instance) {
                let (key, value) = enrolled(uid, holder);
                put(Book::Enrolled, key, Some(value));
            }
        }
    }
}

/// Hands what happened to `write`, ConfigMap by ConfigMap, and again where it failed.
async fn write_down<F: Future<Output = bool>>(
    ours: Fingerprint,
    mut entries: mpsc::UnboundedReceiver<Entry>,
    mut written: BTreeSet<InstanceId>,
    write: impl Fn(Place, Changes) -> F,
) {
    let mut pending: BTreeMap<Place, Changes> = BTreeMap::new();
    let mut failed: BTreeMap<Place, Changes> = BTreeMap::new();
    let mut again = tokio::time::interval(AGAIN);
    let mut gathered = tokio::time::interval(GATHER);
    for interval in [&mut again, &mut gathered] {
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    loop {
        let mut is_time = false;
        tokio::select! {
            entry = entries.recv() => {
                let Some(mut entry) = entry else { return };
                loop {
                    note(&ours, &entry, &mut pending, &mut written);
                    let Ok(more) = entries.try_recv() else { break };
                    entry = more;
                }
            }
            _ = again.tick() => for (place, data) in std::mem::take(&mut failed) {
                pending.entry(place).or_default().extend(data);
            },
            _ = gathered.tick() => is_time = true,
        }
        // What waits for another try takes along what came later, so that the later one holds.
        for (place, waiting) in &mut failed {
            waiting.extend(pending.remove(place).into_iter().flatten());
        }
        let (due, later) = std::mem::take(&mut pending).into_iter().partition(|((book, _), _)| match book {
            Book::Denied => true,
            Book::Enrolled => is_time,
        });
        pending = later;
        let due = BTreeMap::into_iter(due).map(|(place, data)| {
            let written = write(place.clone(), data.clone());
            async move { (!written.await).then_some((place, data)) }
        });
        let outcomes: Vec<_> = futures::stream::iter(due).buffer_unordered(AT_ONCE).collect().await;
        for (place, data) in outcomes.into_iter().flatten() {
            failed.entry(place).or_default().extend(data);
        }
    }
}

/// A ConfigMap as the watch delivers it.
pub fn apply(cluster: &Arc<Cluster>, denials: Option<Vec<Denial>>) {
    let now = crate::clock::now();
    for denial in denials.into_iter().flatten().filter(|denial| denial.denied.until > now) {
        cluster.deny(denial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    use peerage_model::Fingerprint;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const OURS: Fingerprint = Fingerprint([1; 32]);
    const THEIRS: Fingerprint = Fingerprint([2; 32]);

    fn holder(instance: u8) -> Holder {
        Holder {
            agent: AgentId { authority: Fingerprint([1; 32]), name: "db.tools".parse().expect("a name") },
            peer: ObjectKey::new("tools", "db"),
            instance: InstanceId([instance; 8]),
            pod: ObjectKey::new("tools", "db-1"),
            service_account: "db".into(),
            issued: NOW,
            until: NOW.plus(LIFETIME),
        }
    }

    #[tokio::test]
    async fn enrolments_of_one_moment_are_one_write() {
        let (tell, enrolled) = mpsc::unbounded_channel();
        let (written, mut seen) = mpsc::unbounded_channel();
        for instance in [0xa1, 0xa2, 0xa3] {
            tell.send(Entry::Enrolled([instance; 16], holder(instance))).expect("it listens");
        }
        tokio::spawn(write_down(OURS, enrolled, BTreeSet::new(), move |(_, name), data: Changes| {
            written.send((name, data.len())).expect("the test listens");
            std::future::ready(true)
        }));
        assert_eq!(seen.recv().await, Some(("peerage-enrolled-a".to_owned(), 3)));
    }

    #[test]
    fn an_enrolment_is_read_as_it_was_written_until_its_instance_is_denied() {
        let holder = holder(0xab);
        let agent = holder.agent.clone();
        let (mut by_map, mut written) = (BTreeMap::new(), BTreeSet::new());
        note(&OURS, &Entry::Enrolled([7; 16], holder.clone()), &mut by_map, &mut written);
        let place = (Book::Enrolled, "peerage-enrolled-a".to_owned());
        let changes = by_map.remove(&place).expect("by its first digit");
        assert!(by_map.is_empty(), "who follows denials hears nothing of it");
        let data = changes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        assert_eq!(read_enrolled(&data, NOW), [([7; 16], holder.clone())]);
        assert!(read(&data).is_empty(), "it is no denial");

        note(&OURS, &Entry::Enrolled([7; 16], holder.clone()), &mut by_map, &mut written);
        assert!(by_map.is_empty(), "it is written once");
        let denied = DeniedInstance { authority: agent.authority, instance: holder.instance, until: NOW };
        note(&OURS, &Entry::Denied(Denial { agent, denied }), &mut by_map, &mut written);
        let changes = by_map.remove(&place).expect("the same place");
        assert_eq!(changes.values().collect::<Vec<_>>(), [&None], "the enrolment goes");
        assert!(by_map.contains_key(&(Book::Denied, "peerage-denied-a".to_owned())));
    }

    fn denial(first: u8) -> Denial {
        let agent = AgentId { authority: Fingerprint([1; 32]), name: "db.tools".parse().expect("a name") };
        let denied =
            DeniedInstance { authority: agent.authority, instance: InstanceId([first; 8]), until: UnixTime(7) };
        Denial { agent, denied }
    }

    #[tokio::test]
    async fn a_map_that_cannot_be_written_holds_up_no_other_and_is_tried_again() {
        let (tell, denied) = mpsc::unbounded_channel();
        let (written, mut seen) = mpsc::unbounded_channel();
        let full = Arc::new(AtomicBool::new(true));
        let is_full = Arc::clone(&full);
        tokio::spawn(write_down(OURS, denied, BTreeSet::new(), move |(book, name), data: Changes| {
            let refused = name == "peerage-denied-a" && is_full.load(Ordering::Relaxed);
            if !refused && book == Book::Denied {
                written.send((name, data.len())).expect("the test listens");
            }
            std::future::ready(!refused)
        }));
        for first in [0xaa, 0xbb, 0xa1] {
            tell.send(Entry::Denied(denial(first))).expect("it listens");
        }
        assert_eq!(seen.recv().await, Some(("peerage-denied-b".to_owned(), 1)));
        full.store(false, Ordering::Relaxed);
        assert_eq!(seen.recv().await, Some(("peerage-denied-a".to_owned(), 2)));
    }

    #[test]
    fn another_clusters_denial_of_an_id_of_ours_touches_neither_our_denial_nor_our_enrolment() {
        let (mut by_map, mut written) = (BTreeMap::new(), BTreeSet::from([InstanceId([0xab; 8])]));
        let ours = denial(0xab);
        let agent = AgentId { authority: THEIRS, ..ours.agent.clone() };
        let denied = DeniedInstance { authority: THEIRS, ..ours.denied.clone() };
        let theirs = Denial { agent, denied };
        note(&OURS, &Entry::Denied(theirs.clone()), &mut by_map, &mut written);
        let mut changes = by_map.remove(&(Book::Denied, "peerage-denied-a".to_owned())).expect("by its first digit");
        assert!(by_map.is_empty(), "no enrolment of ours goes");
        assert!(written.contains(&InstanceId([0xab; 8])));
        let (key, value) = entry(&ours, &OURS);
        assert_eq!(changes.insert(key, Some(value)), None, "ours has a key of its own");
        let data = changes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        assert_eq!(read(&data), [ours, theirs]);
    }

    #[test]
    fn a_denial_is_read_as_it_was_written_and_nonsense_is_left_out() {
        let agent = AgentId { authority: Fingerprint([1; 32]), name: "db.tools".parse().expect("a name") };
        let denied = DeniedInstance { authority: agent.authority, instance: InstanceId([0xab; 8]), until: UnixTime(7) };
        let denial = Denial { agent, denied };
        let (key, value) = entry(&denial, &OURS);
        assert_eq!(Book::Denied.map_of(&key), "peerage-denied-a");
        let data = BTreeMap::from([(key, value), ("x".into(), "y".into()), ("ab".into(), "1 z".into())]);
        assert_eq!(read(&data), [denial]);
    }
}
