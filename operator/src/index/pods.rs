//! Which agent a pod is.

use super::Index;
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
            [] => PodAgent::None,
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

    /// How many pods the agent's selector finds, and how many of those carry a sidecar; what is on its way out does not
    /// count.
    #[must_use]
    pub fn pod_counts(&self, agent: &ObjectKey) -> (usize, usize) {
        let pods = self.workloads.selected(agent);
        let alive = pods.iter().filter_map(|pod| self.pods.get(pod)).filter(|facts| !facts.terminating);
        alive.fold((0, 0), |(matched, injected), facts| (matched + 1, injected + usize::from(facts.injected)))
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
