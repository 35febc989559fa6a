//! Everything the operator knows of the cluster, and what follows for whom.
//!
//! Objects go in as they change; each change answers with what it touches ([`Dirty`]): pairs of agents, agents, pods.
//! Whoever serves an agent asks again for those, and for nothing else, so that one trust among 50,000 costs what one
//! costs. Nothing here has a client or a clock: the same objects and the same time give the same answers, in
//! whatever order they came.

mod dirty;
mod entry;
mod judge;
mod labels;
mod leads;
mod matching;
mod pods;
mod ranks;
#[cfg(test)]
mod tests;
mod trusts;

use std::collections::{BTreeMap, BTreeSet};

use peerage_model::relay::RelayInfo;
use peerage_model::{AgentId, Fingerprint, Label, UnixTime};

pub use dirty::{Deleted, Dirty};
pub use judge::{Heard, LinkLive, PeerLive, TrustLive, Verdict};
pub use labels::Labels;
pub use leads::Leads;
pub use matching::Matching;
pub use pods::{Host, PodAgent, PodSums};
use ranks::Ranks;
pub use trusts::Refusal;

use crate::facts::{LinkFacts, LinkRecord, PeerFacts, PodFacts, RelayFacts, TrustFacts};
use crate::key::{Object, ObjectKey};

/// How old agents' knowledge of their peers may become before they raise an alarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staleness {
    /// After how many seconds; none: never.
    pub limit: Option<u64>,
    /// Whether they then talk to nobody until an operator is back.
    pub fail_closed: bool,
}

/// All objects, with the ways from one to another that a change needs.
#[derive(Debug)]
pub struct Index {
    authority: Fingerprint,
    staleness: Staleness,
    now: UnixTime,
    peers: BTreeMap<ObjectKey, Box<PeerFacts>>,
    trusts: BTreeMap<ObjectKey, Box<TrustFacts>>,
    pods: BTreeMap<ObjectKey, Box<PodFacts>>,
    links: BTreeMap<String, LinkFacts>,
    records: BTreeMap<String, LinkRecord>,
    relays: BTreeMap<String, RelayFacts>,
    /// AgentPeers that are there and that nobody has been able to read: what they select is not known.
    unread_peers: BTreeSet<ObjectKey>,
    /// The same of AgentLinks.
    unread_links: BTreeSet<String>,
    /// All objects that cannot be read as they are, and why.
    unreadable: BTreeMap<Object, String>,
    namespaces: BTreeMap<String, Labels>,
    /// Which AgentPeer selects which pod.
    workloads: Matching,
    /// Which fleet AgentTrust selects which AgentPeer.
    fleets: Matching,
    /// AgentTrusts that name one peer and have not ended, by agent and peer.
    named: BTreeMap<(ObjectKey, AgentId), Ranks>,
    /// The same, by agent and alias.
    aliases: BTreeMap<(ObjectKey, Label), Ranks>,
    /// AgentTrusts that select a fleet and have not ended, by agent.
    fleets_of: BTreeMap<ObjectKey, Ranks>,
    /// All AgentTrusts of an agent.
    trusts_of: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// AgentTrusts that go over each link.
    over: BTreeMap<String, BTreeSet<ObjectKey>>,
    /// AgentTrusts that will end.
    endings: BTreeSet<(UnixTime, ObjectKey)>,
    /// The image of the sidecar that is injected today, if this operator injects.
    sidecar: Option<String>,
}

impl Index {
    /// Knows nothing yet, of the agents of this authority, at `now`.
    #[must_use]
    pub fn new(authority: Fingerprint, now: UnixTime) -> Self {
        Self {
            authority,
            staleness: Staleness::default(),
            now,
            peers: BTreeMap::new(),
            trusts: BTreeMap::new(),
            pods: BTreeMap::new(),
            links: BTreeMap::new(),
            records: BTreeMap::new(),
            relays: BTreeMap::new(),
            unread_peers: BTreeSet::new(),
            unread_links: BTreeSet::new(),
            unreadable: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            workloads: Matching::default(),
            fleets: Matching::default(),
            named: BTreeMap::new(),
            aliases: BTreeMap::new(),
            fleets_of: BTreeMap::new(),
            trusts_of: BTreeMap::new(),
            over: BTreeMap::new(),
            endings: BTreeSet::new(),
            sidecar: None,
        }
    }

    /// The same, where sidecars of this image are injected.
    #[must_use]
    pub fn injecting(self, sidecar: Option<String>) -> Self {
        Self { sidecar, ..self }
    }

    /// Whose agents these are.
    #[must_use]
    pub fn authority(&self) -> Fingerprint {
        self.authority
    }

    /// How old agents' knowledge may become, from here on.
    #[must_use]
    pub fn with_staleness(self, staleness: Staleness) -> Self {
        Self { staleness, ..self }
    }

    /// The AgentPeer of this key.
    #[must_use]
    pub fn peer(&self, key: &ObjectKey) -> Option<&PeerFacts> {
        self.peers.get(key).map(Box::as_ref)
    }

    /// The AgentTrust of this key.
    #[must_use]
    pub fn trust(&self, key: &ObjectKey) -> Option<&TrustFacts> {
        self.trusts.get(key).map(Box::as_ref)
    }

    /// The pod of this key.
    #[must_use]
    pub fn pod(&self, key: &ObjectKey) -> Option<&PodFacts> {
        self.pods.get(key).map(Box::as_ref)
    }

    /// The AgentLink of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&LinkFacts> {
        self.links.get(name)
    }

    /// What a link's Secret says.
    #[must_use]
    pub fn record(&self, link: &str) -> Option<&LinkRecord> {
        self.records.get(link)
    }

    /// The AgentRelay of this name.
    #[must_use]
    pub fn relay(&self, name: &str) -> Option<&RelayFacts> {
        self.relays.get(name)
    }

    /// The keys of all AgentPeers.
    pub fn peer_keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.peers.keys()
    }

    /// The keys of all AgentTrusts.
    pub fn trust_keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.trusts.keys()
    }

    /// The names of all AgentLinks, with what they declare.
    pub fn links(&self) -> impl Iterator<Item = (&String, &LinkFacts)> {
        self.links.iter()
    }

    /// The names of all AgentRelays, with what they declare.
    pub fn relays(&self) -> impl Iterator<Item = (&String, &RelayFacts)> {
        self.relays.iter()
    }

    /// Whether an object can be read: why not, if it cannot.
    pub fn set_unreadable(&mut self, object: Object, why: Option<String>) {
        match why {
            Some(why) => self.unreadable.insert(object, why),
            None => self.unreadable.remove(&object),
        };
    }

    /// All objects that cannot be read as they are, and why.
    #[must_use]
    pub fn unreadable(&self) -> &BTreeMap<Object, String> {
        &self.unreadable
    }

    /// Whether there is a namespace of this name.
    #[must_use]
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// How many AgentPeers, AgentTrusts and pods there are.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        [self.peers.len(), self.trusts.len(), self.pods.len()]
    }

    /// An AgentPeer came, changed, or went.
    pub fn set_peer(&mut self, key: &ObjectKey, new: Option<PeerFacts>) -> Dirty {
        let mut dirty = Dirty::default();
        self.unread_peers.remove(key);
        let old = match &new {
            Some(facts) => self.peers.insert(key.clone(), Box::new(facts.clone())),
            None => self.peers.remove(key),
        };
        if let (Some(old), Some(new)) = (&old, &new)
            && old.same_declaration(new)
        {
            dirty.judge_agent(key); // its status was written, by us or by somebody else
            return dirty;
        }
        // An AgentPeer that was made anew is another one, and what its pods had been given is void.
        if old.as_ref().map(|facts| &facts.uid) != new.as_ref().map(|facts| &facts.uid) {
            dirty.replaced.insert(key.clone());
        }
        let before = self.workloads.selected(key).into_iter().collect::<BTreeSet<_>>();
        let rivals = self.workloads.overlapping(key);
        self.workloads.set_selector(key, new.as_ref().map(|facts| (key.namespace.clone(), facts.selector.clone())));
        let after = self.workloads.selected(key);
        for rival in rivals.into_iter().chain(self.workloads.overlapping(key)) {
            dirty.judge_agent(&rival);
        }
        dirty.pods.extend(before.into_iter().chain(after));
        let fleets = self.fleets.set_labels(key, new.map(|facts| facts.labels));
        dirty.agent(key);
        self.touch_agent(key, &mut dirty);
        self.touch_fleets(key, fleets, &mut dirty);
        dirty
    }

    /// An AgentPeer is there and cannot be read. What was read last stands until it can be: taking it for deleted would deny
    /// all its pods for good. Where nothing was read, it is not known whose pods are its.
    pub fn hide_peer(&mut self, key: &ObjectKey) -> Dirty {
        if !self.peers.contains_key(key) {
            self.unread_peers.insert(key.clone());
        }
        Dirty::default()
    }

    /// Whether an AgentPeer is there that has never been read.
    #[must_use]
    pub fn is_unread(&self, peer: &ObjectKey) -> bool {
        self.unread_peers.contains(peer)
    }

    /// A pod came, changed, or went.
    pub fn set_pod(&mut self, key: &ObjectKey, new: Option<PodFacts>) -> Dirty {
        let mut dirty = Dirty::default();
        if self.pod(key) == new.as_ref() {
            return dirty;
        }
        let touched = self.workloads.set_labels(key, new.as_ref().map(|facts| facts.labels.clone()));
        touched.iter().for_each(|agent| dirty.judge_agent(agent));
        dirty.pods.insert(key.clone());
        match new {
            Some(facts) => self.pods.insert(key.clone(), Box::new(facts)),
            None => self.pods.remove(key),
        };
        dirty
    }

    /// An AgentTrust came, changed, or went.
    pub fn set_trust(&mut self, key: &ObjectKey, new: Option<TrustFacts>) -> Dirty {
        let mut dirty = Dirty::default();
        if let (Some(old), Some(new)) = (self.trusts.get_mut(key), &new)
            && old.same_declaration(new)
        {
            **old = new.clone();
            dirty.trusts.insert(key.clone());
            return dirty;
        }
        self.touch_trust(key, &mut dirty);
        let old = self.unlist_trust(key);
        // The UID, not the key, is what agents remember: of an object that was deleted and made again within one
        // interruption of the watch, the first one is gone.
        if let Some(old) = old.filter(|old| new.as_ref().is_none_or(|new| new.uid != old.uid)) {
            dirty.gone.insert(old.uid, Deleted { trust: key.clone(), agent: old.agent, target: old.target });
        }
        if let Some(facts) = new {
            self.list_trust(key, facts);
            dirty.trusts.insert(key.clone());
        }
        self.touch_trust(key, &mut dirty);
        dirty
    }

    /// An AgentTrust is there and cannot be read: nobody rests on it until it can be, and then they may again.
    pub fn hide_trust(&mut self, key: &ObjectKey) -> Dirty {
        let mut dirty = self.set_trust(key, None);
        dirty.gone.clear();
        dirty
    }

    /// An AgentLink came, changed, or went.
    pub fn set_link(&mut self, name: &str, new: Option<LinkFacts>) -> Dirty {
        self.unread_links.remove(name);
        // What is learned is in the status, too, but is a field of its own here.
        let same = |old: &LinkFacts, new: &LinkFacts| LinkFacts { status: new.status.clone(), ..old.clone() } == *new;
        let unchanged = matches!((self.links.get(name), &new), (Some(old), Some(new)) if same(old, new));
        put(&mut self.links, name, new);
        if unchanged { Dirty::default() } else { self.touch_link(name) }
    }

    /// An AgentLink is there and cannot be read. What was read last stands until it can be.
    pub fn hide_link(&mut self, name: &str) -> Dirty {
        if self.links.contains_key(name) {
            return Dirty::default();
        }
        self.unread_links.insert(name.to_owned());
        self.touch_link(name)
    }

    /// What a link's Secret says changed.
    pub fn set_record(&mut self, link: &str, new: Option<LinkRecord>) -> Dirty {
        if self.records.get(link) == new.as_ref() {
            return Dirty::default();
        }
        put(&mut self.records, link, new);
        self.touch_link(link)
    }

    /// An AgentRelay came, changed, or went.
    pub fn set_relay(&mut self, name: &str, new: Option<RelayFacts>) -> Dirty {
        let told = |facts: Option<&RelayFacts>| facts.map(|facts| (facts.relays.clone(), facts.allowed.clone()));
        let unchanged = told(self.relays.get(name)) == told(new.as_ref());
        put(&mut self.relays, name, new);
        Dirty { all: !unchanged, ..Dirty::default() }
    }

    /// A namespace came, changed, or went; its labels decide which links and relays it may use.
    pub fn set_namespace(&mut self, name: &str, new: Option<Labels>) -> Dirty {
        let before = (self.relays_of(name), self.permitted_links(name));
        put(&mut self.namespaces, name, new);
        Dirty { all: before != (self.relays_of(name), self.permitted_links(name)), ..Dirty::default() }
    }

    /// Time passed: trusts that have ended by `now` take effect no more. A clock that was set back brings none back.
    pub fn advance(&mut self, now: UnixTime) -> Dirty {
        self.now = self.now.max(now);
        let mut dirty = Dirty::default();
        while let Some((at, key)) = self.endings.first().cloned().filter(|(at, _)| *at <= self.now) {
            self.touch_trust(&key, &mut dirty);
            self.endings.remove(&(at, key.clone()));
            if let Some(facts) = self.trusts.get(&key).cloned() {
                self.unlist_claims(&key, &facts);
            }
            self.touch_trust(&key, &mut dirty);
        }
        dirty
    }

    /// When [`Self::advance`] has something to do next.
    #[must_use]
    pub fn next_ending(&self) -> Option<UnixTime> {
        self.endings.first().map(|(at, _)| *at)
    }

    /// The relays that agents of a namespace use, in order.
    #[must_use]
    pub fn relays_of(&self, namespace: &str) -> Vec<RelayInfo> {
        let labels = self.namespaces.get(namespace);
        let permitted = self.relays.values().filter(|facts| facts.allowed.permits(namespace, labels));
        let relays: BTreeSet<_> = permitted.flat_map(|facts| facts.relays.iter().cloned()).collect();
        relays.into_iter().take(MAX_RELAYS).collect()
    }

    /// All relays of the cluster, in order: the operator itself is no namespace's.
    #[must_use]
    pub fn all_relays(&self) -> Vec<RelayInfo> {
        let relays: BTreeSet<_> = self.relays.values().flat_map(|facts| facts.relays.iter().cloned()).collect();
        relays.into_iter().take(MAX_RELAYS).collect()
    }

    fn permitted_links(&self, namespace: &str) -> Vec<String> {
        let labels = self.namespaces.get(namespace);
        let permitted = self.links.iter().filter(|(_, facts)| facts.allowed.permits(namespace, labels));
        permitted.map(|(name, _)| name.clone()).collect()
    }
}

/// Most relays that one agent is told (docs/spec/control-plane.md section 6).
const MAX_RELAYS: usize = 16;

fn put<T>(map: &mut BTreeMap<String, T>, name: &str, value: Option<T>) {
    match value {
        Some(value) => map.insert(name.to_owned(), value),
        None => map.remove(name),
    };
}
