//! Who holds a passport, for which pod, and whose passport does not count any more.
//!
//! A pod has one live instance. An instance is denied when its pod is deleted or becomes another agent, when its
//! AgentPeer is deleted, and when its pod enrols another key; it stays on the list until its passport would have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use peerage_model::snapshot::DeniedInstance;
use peerage_model::{AgentId, InstanceId, UnixTime};

use crate::index::Index;
use crate::key::{ObjectKey, uid_bytes};

/// A pod's UID.
pub type PodUid = [u8; 16];

/// Who holds a passport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// As whom.
    pub agent: AgentId,
    /// The AgentPeer of that agent.
    pub peer: ObjectKey,
    /// Which instance.
    pub instance: InstanceId,
    /// In which pod.
    pub pod: ObjectKey,
    /// What the pod runs as, by its token.
    pub service_account: String,
    /// When TokenReview said so.
    pub issued: UnixTime,
    /// When its last passport ends.
    pub until: UnixTime,
}

/// What happened to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The agent whose instance it was.
    pub agent: AgentId,
    /// Which, and for how long.
    pub denied: DeniedInstance,
}

/// How often a pod may change its key, after [`KEYS_AT_ONCE`]: honest ones hardly ever do, and each change is a denial that
/// all peers of the agent are told, keep and write down.
const NEW_KEY_EVERY: Duration = Duration::from_secs(600);
/// Keys that a pod may have enrolled in short order.
const KEYS_AT_ONCE: u32 = 5;
/// Denials of one agent that a peer is told when it learns of that agent. Each could fill what the peer keeps of all others.
const MAX_DENIED_OF: usize = 1024;

/// All holders and denials that this replica knows of.
#[derive(Debug, Default)]
pub struct Roll {
    holders: BTreeMap<PodUid, Holder>,
    /// The keys that a pod has enrolled, as the time at which it will have waited for all of them; no entry for one that has.
    paces: BTreeMap<PodUid, UnixTime>,
    /// Those whom this replica's own watches have once shown to be what they say. Another replica's word may come before
    /// its pod and AgentPeer do, and then their absence means nothing.
    verified: BTreeSet<PodUid>,
    by_peer: BTreeMap<ObjectKey, BTreeSet<PodUid>>,
    /// By the name of their pod, which another may have had before it.
    by_pod: BTreeMap<ObjectKey, BTreeSet<PodUid>>,
    denied: BTreeMap<AgentId, BTreeMap<InstanceId, UnixTime>>,
}

/// What the roll says to a passport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It holds. If the pod had another instance, that one is denied.
    Holds(Option<Denial>),
    /// The pod has a younger instance, or this one was denied.
    Denied,
}

impl Roll {
    /// How long a pod must wait before it may enrol this key; `None`: it may.
    #[must_use]
    pub fn wait_for_key(&self, uid: &PodUid, holder: &Holder, now: UnixTime) -> Option<Duration> {
        let same = self.holders.get(uid).is_some_and(|old| old.instance == holder.instance);
        let waited = self.paces.get(uid).filter(|_| !same)?;
        let wait = waited.0.saturating_sub(now.plus(NEW_KEY_EVERY * (KEYS_AT_ONCE - 1)).0);
        (wait > 0).then(|| Duration::from_secs(wait))
    }

    fn count_key(&mut self, uid: PodUid, at: UnixTime) {
        let waited = self.paces.entry(uid).or_insert(at);
        *waited = at.max(*waited).plus(NEW_KEY_EVERY);
    }

    /// Somebody shows or gets a passport for a pod, here or at another replica.
    pub fn admit(&mut self, uid: PodUid, holder: Holder) -> Admission {
        if self.is_denied(&holder.agent, &holder.instance) {
            return Admission::Denied;
        }
        if self.holders.get(&uid).is_none_or(|old| old.instance != holder.instance) {
            self.count_key(uid, holder.issued);
        }
        let Some(old) = self.holders.get_mut(&uid) else {
            self.list(uid, &holder);
            self.holders.insert(uid, holder);
            return Admission::Holds(None);
        };
        if old.instance == holder.instance {
            old.until = old.until.max(holder.until);
            old.issued = old.issued.max(holder.issued);
            return Admission::Holds(None);
        }
        // Replicas hear of enrolments in different order; all must keep the same one.
        if (holder.issued, holder.instance) < (old.issued, old.instance) {
            self.deny(&holder);
            return Admission::Denied;
        }
        let old = std::mem::replace(old, holder.clone());
        self.verified.remove(&uid);
        self.unlist(uid, &old);
        self.list(uid, &holder);
        Admission::Holds(Some(self.deny(&old)))
    }

    /// This replica's watches show that the holder is what it says.
    pub fn verify(&mut self, uid: PodUid) {
        self.verified.insert(uid);
    }

    fn list(&mut self, uid: PodUid, holder: &Holder) {
        for (list, key) in [(&mut self.by_peer, &holder.peer), (&mut self.by_pod, &holder.pod)] {
            list.entry(key.clone()).or_default().insert(uid);
        }
    }

    fn unlist(&mut self, uid: PodUid, holder: &Holder) {
        for (list, key) in [(&mut self.by_peer, &holder.peer), (&mut self.by_pod, &holder.pod)] {
            if let Some(of_key) = list.get_mut(key) {
                of_key.remove(&uid);
                if of_key.is_empty() {
                    list.remove(key);
                }
            }
        }
    }

    fn deny(&mut self, holder: &Holder) -> Denial {
        self.set_denied(&holder.agent, holder.instance, holder.until);
        let authority = holder.agent.authority;
        let denied = DeniedInstance { authority, instance: holder.instance, until: holder.until };
        Denial { agent: holder.agent.clone(), denied }
    }

    /// An instance is denied, here or by somebody else, and holds nothing from then on. Returns whether that is news.
    pub fn set_denied(&mut self, agent: &AgentId, instance: InstanceId, until: UnixTime) -> bool {
        let pods = ObjectKey::of_agent(&agent.name).and_then(|peer| self.by_peer.get(&peer)).into_iter().flatten();
        // An agent of another authority may be called as one of ours is, and its operator say what it likes of it.
        let held = |uid: &&PodUid| {
            self.holders.get(*uid).is_some_and(|holder| holder.instance == instance && holder.agent == *agent)
        };
        if let Some(uid) = pods.copied().collect::<Vec<_>>().iter().find(held) {
            self.remove(uid);
        }
        let of_agent = self.denied.entry(agent.clone()).or_default();
        of_agent.insert(instance, until).is_none()
    }

    /// Whether an instance was denied.
    #[must_use]
    pub fn is_denied(&self, agent: &AgentId, instance: &InstanceId) -> bool {
        self.denied.get(agent).is_some_and(|of_agent| of_agent.contains_key(instance))
    }

    /// The denied instances of an agent, for its peers; of very many those that end last.
    #[must_use]
    pub fn denied_of(&self, agent: &AgentId) -> Vec<DeniedInstance> {
        let of_agent = self.denied.get(agent).into_iter().flatten();
        let mut by_end: Vec<_> = of_agent.map(|(instance, until)| (*until, *instance)).collect();
        by_end.sort_unstable();
        let last = by_end.split_off(by_end.len().saturating_sub(MAX_DENIED_OF));
        let denied = |(until, instance)| DeniedInstance { authority: agent.authority, instance, until };
        last.into_iter().map(denied).collect()
    }

    fn remove(&mut self, uid: &PodUid) -> Option<Holder> {
        self.verified.remove(uid);
        let holder = self.holders.remove(uid)?;
        self.unlist(*uid, &holder);
        Some(holder)
    }

    /// How many of the pods that are an agent hold a passport that counts at `now`. A pod on its way out, or of which only
    /// another replica has heard, is not among them, as it is not among those that an AgentPeer counts.
    #[must_use]
    pub fn enrolled(&self, index: &Index, peer: &ObjectKey, now: UnixTime) -> usize {
        let pods = self.by_peer.get(peer).into_iter().flatten();
        let holders = pods.filter_map(|uid| Some((uid, self.holders.get(uid)?)));
        let stays = |holder: &Holder| index.pod(&holder.pod).is_some_and(|facts| !facts.terminating);
        holders.filter(|(uid, holder)| holder.until > now && stays(holder) && index.is_still(uid, holder)).count()
    }

    /// Looks again at holders after pods or AgentPeers changed, and denies whoever is not that agent any more.
    pub fn recheck(
        &mut self,
        index: &Index,
        pods: &BTreeSet<ObjectKey>,
        replaced: &BTreeSet<ObjectKey>,
    ) -> Vec<Denial> {
        let in_pods = pods.iter().filter_map(|pod| self.by_pod.get(pod));
        let of_replaced = replaced.iter().filter_map(|peer| self.by_peer.get(peer));
        let concerned: BTreeSet<PodUid> = in_pods.chain(of_replaced).flatten().copied().collect();
        let mut lost = Vec::new();
        for (uid, holder) in concerned.iter().filter_map(|uid| Some((uid, self.holders.get(uid)?))) {
            let void = replaced.contains(&holder.peer) || !index.is_still(uid, holder);
            match void {
                true if self.verified.contains(uid) => lost.push(*uid),
                true => {}
                false => drop(self.verified.insert(*uid)),
            }
        }
        lost.into_iter().filter_map(|uid| self.withdraw(uid)).collect()
    }

    /// The pod's passport does not count any more.
    pub fn withdraw(&mut self, uid: PodUid) -> Option<Denial> {
        let holder = self.remove(&uid)?;
        Some(self.deny(&holder))
    }

    /// Forgets passports and denials that have ended at `now`.
    pub fn forget_ended(&mut self, now: UnixTime) {
        let ended: Vec<_> =
            self.holders.iter().filter(|(_, holder)| holder.until <= now).map(|(uid, _)| *uid).collect();
        for uid in ended {
            self.remove(&uid);
        }
        self.paces.retain(|_, waited| *waited > now);
        self.denied.retain(|_, of_agent| {
            of_agent.retain(|_, until| *until > now);
            !of_agent.is_empty()
        });
    }

    /// Everybody who holds a passport, for telling another replica.
    pub fn holders(&self) -> impl Iterator<Item = (&PodUid, &Holder)> {
        self.holders.iter()
    }
}

impl Index {
    /// Whether the holder's pod is there, and no other one in its place.
    #[must_use]
    pub fn is_there(&self, uid: &PodUid, holder: &Holder) -> bool {
        self.pod(&holder.pod).is_some_and(|facts| uid_bytes(&facts.uid).0 == *uid)
    }

    /// Whether a pod that was the agent still is. A pod on its way out is: it may finish what it does. A second AgentPeer
    /// that selects it takes nothing away: who can make AgentPeers must not be able to cut off an agent that runs.
    #[must_use]
    pub fn is_still(&self, uid: &PodUid, holder: &Holder) -> bool {
        let selected = self.agents_selecting(&holder.pod).contains(&holder.peer);
        let account = self.peer(&holder.peer).and_then(|facts| facts.service_account.as_ref());
        self.is_there(uid, holder) && selected && account.is_none_or(|wanted| *wanted == holder.service_account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{PeerFacts, PodFacts};
    use peerage_model::Fingerprint;
    use serde_json::json;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const UID: &str = "00000000-0000-0000-0000-000000000007";
    const OURS: Fingerprint = Fingerprint([1; 32]);

    fn holder(instance: u8, issued: u64) -> Holder {
        let peer = ObjectKey::new("tools", "db");
        Holder {
            agent: peer.agent(OURS).expect("a name"),
            peer,
            instance: InstanceId([instance; 8]),
            pod: ObjectKey::new("tools", "db-1"),
            service_account: "db".into(),
            issued: UnixTime(NOW.0 + issued),
            until: UnixTime(NOW.0 + 86_400),
        }
    }

    fn cluster(app: &str) -> Index {
        let mut index = Index::new(OURS, NOW);
        let peer = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentPeer", "metadata": {"name": "db", "namespace": "tools"},
            "spec": {"selector": {"matchLabels": {"app": "db"}}, "serviceAccountName": "db"},
        });
        let peer = serde_json::from_value(peer).expect("an AgentPeer");
        index.set_peer(&ObjectKey::new("tools", "db"), Some(PeerFacts::read(&peer).expect("it is read")));
        set_pod(&mut index, app, false);
        index
    }

    fn set_pod(index: &mut Index, app: &str, terminating: bool) {
        let labels = (&BTreeMap::from([("app".to_owned(), app.to_owned())])).into();
        let facts = PodFacts {
            uid: UID.into(),
            labels,
            terminating,
            injected: Some("agent:1".into()),
            left_alone: None,
            opted_out: false,
        };
        index.set_pod(&ObjectKey::new("tools", "db-1"), Some(facts));
    }

    fn recheck(roll: &mut Roll, index: &Index) -> Vec<Denial> {
        roll.recheck(index, &[ObjectKey::new("tools", "db-1")].into(), &BTreeSet::new())
    }

    #[test]
    fn a_pod_that_enrols_another_key_loses_the_first_one() {
        let mut roll = Roll::default();
        let uid = uid_bytes(UID).0;
        assert_eq!(roll.admit(uid, holder(1, 0)), Admission::Holds(None));
        assert_eq!(roll.admit(uid, holder(1, 60)), Admission::Holds(None), "a renewal is the same key");
        let Admission::Holds(Some(denial)) = roll.admit(uid, holder(2, 120)) else { panic!("the first is denied") };
        assert_eq!(denial.denied.instance, InstanceId([1; 8]));
        assert_eq!(roll.admit(uid, holder(1, 180)), Admission::Denied, "and cannot come back");
        assert_eq!(roll.holders().count(), 1);
    }

    #[test]
    fn a_pod_is_looked_at_by_its_name_also_after_another_had_it_and_leaves_nothing_behind() {
        let mut roll = Roll::default();
        let index = cluster("db");
        roll.admit([9; 16], holder(1, 0));
        roll.admit(uid_bytes(UID).0, holder(2, 0));
        [[9; 16], uid_bytes(UID).0].into_iter().for_each(|uid| roll.verify(uid));
        let denied: Vec<_> = recheck(&mut roll, &index).into_iter().map(|denial| denial.denied.instance).collect();
        assert_eq!(denied, [InstanceId([1; 8])], "its pod is gone, and one of the same name is there");
        roll.forget_ended(UnixTime(NOW.0 + 86_400));
        assert!(roll.by_pod.is_empty() && roll.by_peer.is_empty());
    }

    #[test]
    fn enrolled_are_the_pods_that_stay_and_whose_instance_was_not_denied() {
        let (peer, uid) = (ObjectKey::new("tools", "db"), uid_bytes(UID).0);
        let mut index = cluster("db");
        let mut roll = Roll::default();
        roll.admit(uid, holder(1, 0));
        let elsewhere = Holder { pod: ObjectKey::new("tools", "db-2"), ..holder(2, 0) };
        roll.admit([9; 16], elsewhere);
        assert_eq!(roll.enrolled(&index, &peer, NOW), 1, "one pod is known here by hearsay only");
        set_pod(&mut index, "db", true);
        assert_eq!(roll.enrolled(&index, &peer, NOW), 0, "one that is on its way out");
        set_pod(&mut index, "db", false);
        roll.set_denied(&holder(1, 0).agent, InstanceId([1; 8]), UnixTime(NOW.0 + 10));
        assert_eq!(roll.enrolled(&index, &peer, NOW), 0, "whom another replica denied");
    }

    #[test]
    fn a_pod_that_enrols_one_key_after_another_has_to_wait() {
        let mut roll = Roll::default();
        let uid = uid_bytes(UID).0;
        for key in 1..=5 {
            let now = UnixTime(NOW.0 + u64::from(key));
            assert_eq!(roll.wait_for_key(&uid, &holder(key, u64::from(key)), now), None, "key {key}");
            roll.admit(uid, holder(key, u64::from(key)));
        }
        assert!(roll.wait_for_key(&uid, &holder(6, 6), NOW.plus(Duration::from_secs(6))).is_some());
        assert_eq!(roll.wait_for_key(&uid, &holder(5, 6), NOW.plus(Duration::from_secs(6))), None, "a renewal");
        let later = NOW.plus(NEW_KEY_EVERY + Duration::from_secs(1));
        assert_eq!(roll.wait_for_key(&uid, &holder(6, 601), later), None);
        assert_eq!(roll.wait_for_key(&[9; 16], &holder(6, 6), NOW), None, "another pod has its own pace");
    }

    #[test]
    fn of_very_many_denials_a_peer_is_told_those_that_end_last() {
        let mut roll = Roll::default();
        let agent = holder(1, 0).agent;
        for number in 0..=MAX_DENIED_OF as u64 {
            roll.set_denied(&agent, InstanceId(number.to_be_bytes()), UnixTime(NOW.0 + number));
        }
        let told = roll.denied_of(&agent);
        assert_eq!((told.len(), told[0].until), (MAX_DENIED_OF, UnixTime(NOW.0 + 1)));
    }

    #[test]
    fn replicas_that_hear_of_two_enrolments_in_either_order_keep_the_same_one() {
        let uid = uid_bytes(UID).0;
        let kept = |first: Holder, second: Holder| {
            let mut roll = Roll::default();
            roll.admit(uid, first);
            roll.admit(uid, second);
            roll.holders().next().expect("one is kept").1.instance
        };
        assert_eq!(kept(holder(1, 0), holder(2, 9)), kept(holder(2, 9), holder(1, 0)));
        assert_eq!(kept(holder(1, 5), holder(2, 5)), kept(holder(2, 5), holder(1, 5)));
    }

    #[test]
    fn labels_that_stop_matching_a_deleted_pod_and_a_deleted_agent_withdraw_the_passport() {
        let uid = uid_bytes(UID).0;
        let mut index = cluster("db");
        let mut roll = Roll::default();
        roll.admit(uid, holder(1, 0));
        assert!(recheck(&mut roll, &index).is_empty());
        set_pod(&mut index, "db", true);
        assert!(recheck(&mut roll, &index).is_empty(), "a pod on its way out may finish");
        set_pod(&mut index, "other", false);
        assert_eq!(recheck(&mut roll, &index).len(), 1);
        assert!(roll.is_denied(&holder(1, 0).agent, &InstanceId([1; 8])));

        let mut roll = Roll::default();
        roll.admit(uid, holder(1, 0));
        roll.verify(uid);
        index.set_pod(&ObjectKey::new("tools", "db-1"), None);
        assert_eq!(recheck(&mut roll, &index).len(), 1, "the pod was deleted");

        let mut roll = Roll::default();
        roll.admit(uid, holder(1, 0));
        roll.verify(uid);
        let replaced = [ObjectKey::new("tools", "db")].into();
        assert_eq!(roll.recheck(&cluster("db"), &BTreeSet::new(), &replaced).len(), 1, "the agent was made anew");
    }

    #[test]
    fn a_replica_that_has_not_seen_a_pod_yet_does_not_take_it_for_deleted() {
        let mut index = cluster("db");
        let pod = ObjectKey::new("tools", "db-1");
        let facts = index.pod(&pod).expect("it is there").clone();
        let peer = index.peer(&ObjectKey::new("tools", "db")).expect("it is there").clone();
        index.set_peer(&ObjectKey::new("tools", "db"), None);
        let mut roll = Roll::default();
        roll.admit(uid_bytes(UID).0, holder(1, 0)); // another replica's word
        index.set_pod(&pod, Some(facts));
        assert!(recheck(&mut roll, &index).is_empty(), "its AgentPeer has not been heard of");
        index.set_peer(&ObjectKey::new("tools", "db"), Some(peer));
        assert!(recheck(&mut roll, &index).is_empty());
        index.set_pod(&pod, None);
        assert_eq!(recheck(&mut roll, &index).len(), 1, "what was seen and is gone was deleted");
    }

    #[test]
    fn a_denial_is_forgotten_when_its_passport_would_have_ended() {
        let mut roll = Roll::default();
        let agent = holder(1, 0).agent;
        assert!(roll.set_denied(&agent, InstanceId([1; 8]), UnixTime(NOW.0 + 10)));
        assert!(!roll.set_denied(&agent, InstanceId([1; 8]), UnixTime(NOW.0 + 10)), "not news");
        roll.forget_ended(UnixTime(NOW.0 + 9));
        assert_eq!(roll.denied_of(&agent).len(), 1);
        roll.forget_ended(UnixTime(NOW.0 + 10));
        assert!(roll.denied_of(&agent).is_empty());
    }
}
