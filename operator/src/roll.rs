//! Who holds a passport, for which pod, and whose passport does not count any more.
//!
//! A pod has one live instance. An instance is denied when its pod is deleted or becomes another agent, when its
//! AgentPeer is deleted, and when its pod enrols another key; it stays on the list until its passport would have ended.

use std::collections::{BTreeMap, BTreeSet};

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

/// All holders and denials that this replica knows of.
#[derive(Debug, Default)]
pub struct Roll {
    holders: BTreeMap<PodUid, Holder>,
    /// Those whom this replica's own watches have once shown to be what they say. Another replica's word may come before
    /// its pod and AgentPeer do, and then their absence means nothing.
    verified: BTreeSet<PodUid>,
    by_peer: BTreeMap<ObjectKey, BTreeSet<PodUid>>,
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
    /// Somebody shows or gets a passport for a pod, here or at another replica.
    pub fn admit(&mut self, uid: PodUid, holder: Holder) -> Admission {
        if self.is_denied(&holder.agent, &holder.instance) {
            return Admission::Denied;
        }
        let Some(old) = self.holders.get_mut(&uid) else {
            self.by_peer.entry(holder.peer.clone()).or_default().insert(uid);
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
        self.relist(uid, &old.peer, Some(&holder.peer));
        Admission::Holds(Some(self.deny(&old)))
    }

    /// This replica's watches show that the holder is what it says.
    pub fn verify(&mut self, uid: PodUid) {
        self.verified.insert(uid);
    }

    fn relist(&mut self, uid: PodUid, from: &ObjectKey, to: Option<&ObjectKey>) {
        if let Some(pods) = self.by_peer.get_mut(from) {
            pods.remove(&uid);
            if pods.is_empty() {
                self.by_peer.remove(from);
            }
        }
        if let Some(to) = to {
            self.by_peer.entry(to.clone()).or_default().insert(uid);
        }
    }

    fn deny(&mut self, holder: &Holder) -> Denial {
        self.set_denied(&holder.agent, holder.instance, holder.until);
        let authority = holder.agent.authority;
        let denied = DeniedInstance { authority, instance: holder.instance, until: holder.until };
        Denial { agent: holder.agent.clone(), denied }
    }

    /// Somebody else denied an instance. Returns whether that is news.
    pub fn set_denied(&mut self, agent: &AgentId, instance: InstanceId, until: UnixTime) -> bool {
        let of_agent = self.denied.entry(agent.clone()).or_default();
        of_agent.insert(instance, until).is_none()
    }

    /// Whether an instance was denied.
    #[must_use]
    pub fn is_denied(&self, agent: &AgentId, instance: &InstanceId) -> bool {
        self.denied.get(agent).is_some_and(|of_agent| of_agent.contains_key(instance))
    }

    /// The denied instances of an agent, for its peers.
    #[must_use]
    pub fn denied_of(&self, agent: &AgentId) -> Vec<DeniedInstance> {
        let of_agent = self.denied.get(agent).into_iter().flatten();
        of_agent
            .map(|(instance, until)| DeniedInstance { authority: agent.authority, instance: *instance, until: *until })
            .collect()
    }

    /// How many pods of an agent hold a passport that counts at `now`.
    #[must_use]
    pub fn enrolled(&self, peer: &ObjectKey, now: UnixTime) -> usize {
        let pods = self.by_peer.get(peer).into_iter().flatten();
        pods.filter_map(|uid| self.holders.get(uid)).filter(|holder| holder.until > now).count()
    }

    /// Looks again at holders after pods or AgentPeers changed, and denies whoever is not that agent any more.
    pub fn recheck(
        &mut self,
        index: &Index,
        pods: &BTreeSet<ObjectKey>,
        replaced: &BTreeSet<ObjectKey>,
    ) -> Vec<Denial> {
        let concerned = |holder: &Holder| pods.contains(&holder.pod) || replaced.contains(&holder.peer);
        let mut lost = Vec::new();
        for (uid, holder) in self.holders.iter().filter(|(_, holder)| concerned(holder)) {
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
        self.verified.remove(&uid);
        let holder = self.holders.remove(&uid)?;
        self.relist(uid, &holder.peer, None);
        Some(self.deny(&holder))
    }

    /// Forgets passports and denials that have ended at `now`.
    pub fn forget_ended(&mut self, now: UnixTime) {
        let ended: Vec<_> =
            self.holders.iter().filter(|(_, holder)| holder.until <= now).map(|(uid, _)| *uid).collect();
        for uid in ended {
            self.verified.remove(&uid);
            if let Some(holder) = self.holders.remove(&uid) {
                self.relist(uid, &holder.peer, None);
            }
        }
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
        let labels = [("app".to_owned(), app.to_owned())].into();
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
        assert_eq!(roll.enrolled(&ObjectKey::new("tools", "db"), NOW), 1);
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
