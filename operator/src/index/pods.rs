//! Which agent a pod is, and whether it has a sidecar.

use std::net::Ipv4Addr;

use peerage_agent::address::{AddressBook, Listed};
use peerage_model::AgentId;

use super::{Index, Labels};
use crate::facts::PeerFacts;
use crate::facts::peer::OPT_OUT;
use crate::key::ObjectKey;

/// Which agent a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodAgent {
    /// This one.
    One(ObjectKey),
    /// There is no such pod, another one by its name, or it is on its way out.
    Gone,
    /// No AgentPeer selects it.
    None,
    /// One does, and asks for another ServiceAccount.
    OtherServiceAccount {
        /// Which AgentPeer.
        agent: ObjectKey,
        /// As whom the pod would have to run.
        wanted: String,
    },
    /// Several AgentPeers select it.
    Ambiguous(Vec<ObjectKey>),
    /// None that we could read does, and this one could not be read.
    Unknown(ObjectKey),
}

/// How it is with the pods of an agent; what is on its way out does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSums {
    /// Pods that the selector finds.
    pub matched: usize,
    /// Of those, with a sidecar.
    pub injected: usize,
    /// Of those, with another image of the sidecar than is injected today.
    pub outdated: usize,
    /// Pods without one that injection leaves alone.
    pub left_alone: usize,
    /// Why, of the first of them.
    pub why: Option<String>,
}

/// A peer as a pod's hosts file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Who it is.
    pub id: AgentId,
    /// The address that stands for it.
    pub address: Ipv4Addr,
    /// What programs call it.
    pub names: Vec<String>,
}

impl Index {
    /// Which agent the pod is. UID and ServiceAccount are what the API server says of its token: labels may be written
    /// by who cannot create pods, so they choose among the agents of a namespace and prove nothing.
    #[must_use]
    pub fn agent_of(&self, pod: &ObjectKey, uid: &str, service_account: &str) -> PodAgent {
        if !self.pods.get(pod).is_some_and(|facts| facts.uid == uid && !facts.terminating) {
            return PodAgent::Gone;
        }
        let selecting = self.workloads.selecting(pod);
        let wanted = |agent: &ObjectKey| self.peers.get(agent)?.service_account.clone();
        match &selecting[..] {
            [] => {
                let unread = self.unread_peers.iter().find(|peer| peer.namespace == pod.namespace);
                unread.map_or(PodAgent::None, |peer| PodAgent::Unknown(peer.clone()))
            }
            [agent] => match wanted(agent) {
                Some(wanted) if wanted != service_account => {
                    PodAgent::OtherServiceAccount { agent: agent.clone(), wanted }
                }
                Some(_) | None => PodAgent::One(agent.clone()),
            },
            [..] => PodAgent::Ambiguous(selecting),
        }
    }

    /// The AgentPeers that select the pod.
    #[must_use]
    pub fn agents_selecting(&self, pod: &ObjectKey) -> Vec<ObjectKey> {
        self.workloads.selecting(pod)
    }

    /// The pods that are the agent, with their UIDs, also those on their way out.
    #[must_use]
    pub fn pods_of(&self, agent: &ObjectKey) -> Vec<ObjectKey> {
        self.workloads.selected(agent)
    }

    /// How it is with the agent's pods.
    #[must_use]
    pub fn pod_sums(&self, agent: &ObjectKey) -> PodSums {
        let pods = self.workloads.selected(agent);
        let alive = pods.iter().filter_map(|pod| self.pods.get(pod)).filter(|facts| !facts.terminating);
        alive.fold(PodSums::default(), |mut sums, facts| {
            let outdated =
                facts.injected.as_ref().is_some_and(|image| self.sidecar.as_ref().is_some_and(|new| new != image));
            sums.matched += 1;
            sums.injected += usize::from(facts.injected.is_some());
            sums.outdated += usize::from(outdated);
            let out = facts.opted_out.then(|| format!("annotation {OPT_OUT} says so"));
            if let Some(why) = facts.left_alone.clone().or(out).filter(|_| facts.injected.is_none()) {
                sums.left_alone += 1;
                sums.why.get_or_insert(why);
            }
            sums
        })
    }

    /// The AgentPeers of a namespace.
    pub fn peers_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a ObjectKey, &'a PeerFacts)> {
        let from = self.peers.range(ObjectKey::new(namespace, "")..);
        from.take_while(move |(key, _)| *key.namespace == *namespace).map(|(key, facts)| (key, &**facts))
    }

    /// Those of them that would select a pod with these labels.
    pub fn peers_selecting<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a PeerFacts)> {
        // Emptiness never means "all".
        let selects = |facts: &PeerFacts| !facts.selector.is_empty() && labels.cover(&facts.selector);
        self.peers_in(namespace).filter(move |(_, facts)| selects(facts))
    }

    /// What programs of an agent call the peers that it consents to, and the address that its sidecar will give each: both
    /// follow from who the peer is, so they are known before the sidecar runs. It is told them all the same: where two peers'
    /// ids have one hash, it could not know who came first.
    #[must_use]
    pub fn hosts_of(&self, agent: &ObjectKey) -> Vec<Host> {
        let listed = self.candidates(agent).into_iter().filter_map(|peer| {
            let (_, facts) = self.consent(agent, &peer)?;
            Some(Listed::new(peer.clone(), self.alias_of(facts, &peer)?, Vec::new()))
        });
        let directory = AddressBook::new().directory(listed);
        let names = |entry: &peerage_agent::address::Entry| {
            // What leads nowhere by DNS (`localhost`, two peers' name) must not lead there by the hosts file.
            let leads = |name: &String| directory.by_name(name).is_some_and(|found| found.id == entry.id);
            let mut names = vec![entry.alias.to_string(), entry.alias_name(), entry.full_name()];
            names.retain(leads);
            names.dedup();
            names
        };
        let host = |entry: &peerage_agent::address::Entry| Host {
            id: entry.id.clone(),
            address: entry.address,
            names: names(entry),
        };
        directory.entries().map(host).collect()
    }

    /// Whoever else selects a pod of this agent's, or would as soon as there is one.
    #[must_use]
    pub fn rivals(&self, agent: &ObjectKey) -> Vec<ObjectKey> {
        let mut rivals = self.workloads.overlapping(agent);
        for pod in self.workloads.selected(agent) {
            rivals.extend(self.workloads.selecting(&pod).into_iter().filter(|other| other != agent));
        }
        rivals.sort();
        rivals.dedup();
        rivals
    }
}
