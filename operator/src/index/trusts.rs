//! Which AgentTrusts hold, and which pairs of agents each one is about.

use std::collections::BTreeSet;

use peerage_crds::Reason;
use peerage_model::{AgentId, Label, TrustId};

use super::ranks::{Rank, Ranks};
use super::{Dirty, Index};
use crate::facts::{Target, TrustFacts};
use crate::key::ObjectKey;

/// Why an AgentTrust does not hold, whatever the other side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In one word.
    pub reason: Reason,
    /// For people, with what to do.
    pub message: String,
}

impl Refusal {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl Index {
    /// Whether an AgentTrust holds from its own side.
    ///
    /// # Errors
    /// [`Refusal`], which its condition `Accepted` says.
    pub fn accept(&self, key: &ObjectKey, facts: &TrustFacts) -> Result<(), Refusal> {
        if !self.peers.contains_key(&facts.agent) {
            return Err(Refusal::new(
                Reason::AgentNotFound,
                format!("there is no AgentPeer `{}` in this namespace; create it", facts.agent.name),
            ));
        }
        if facts.ended(self.now) {
            return Err(Refusal::new(Reason::Expired, "expiresAt has passed; set a later one, or delete this object"));
        }
        if facts.target == Target::Here(facts.agent.clone()) {
            return Err(Refusal::new(Reason::PeerIsSelf, "an agent needs no trust in itself; name another peer"));
        }
        if let Target::Away { link, .. } = &facts.target {
            self.accept_link(link, facts)?;
        }
        self.accept_claims(key, facts)
    }

    /// Of two AgentTrusts that contradict each other the elder holds.
    fn accept_claims(&self, key: &ObjectKey, facts: &TrustFacts) -> Result<(), Refusal> {
        let Some(peer) = self.named_peer(facts) else { return Ok(()) };
        let first = |set: Option<&Ranks>| set.and_then(Ranks::first).map(|rank| rank.trust.clone());
        if let Some(elder) = first(self.named.get(&(facts.agent.clone(), peer.clone()))).filter(|elder| elder != key) {
            let message =
                format!("AgentTrust `{}` of this agent names the same peer and is older; delete one", elder.name);
            return Err(Refusal::new(Reason::DuplicateTrust, message));
        }
        let Some(alias) = facts.alias() else { return Ok(()) };
        match self.alias_holder(&facts.agent, &alias) {
            Some(holder) if holder.trust != *key => Err(Refusal::new(
                Reason::AliasConflict,
                format!(
                    "AgentTrust `{}` calls another peer `{alias}` already and is older; set spec.alias",
                    holder.trust.name
                ),
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Who calls a peer by this alias. Duplicates of one peer claim it too; the first of them is the one that holds.
    fn alias_holder(&self, agent: &ObjectKey, alias: &Label) -> Option<&Rank> {
        self.aliases.get(&(agent.clone(), alias.clone()))?.first()
    }

    fn accept_link(&self, link: &str, trust: &TrustFacts) -> Result<(), Refusal> {
        let Some(facts) = self.links.get(link) else {
            if self.unread_links.contains(link) {
                let message =
                    format!("AgentLink `{link}` is not what this operator understands; are its CRDs of its version?");
                return Err(Refusal::new(Reason::LinkUnreadable, message));
            }
            return Err(Refusal::new(Reason::LinkNotFound, format!("there is no AgentLink `{link}`")));
        };
        let namespace = &trust.agent.namespace;
        if !facts.allowed.permits(namespace, self.namespaces.get(&**namespace)) {
            let message = format!("AgentLink `{link}` does not list this namespace in allowedNamespaces");
            return Err(Refusal::new(Reason::NotPermittedByLink, message));
        }
        let Target::Away { authority, .. } = &trust.target else { return Ok(()) };
        let leads_to = self.leads(link, facts)?.authority;
        if leads_to != *authority {
            let message =
                format!("AgentLink `{link}` leads to {leads_to}, and this object pins {authority}: traffic is stopped");
            return Err(Refusal::new(Reason::AuthorityChanged, message));
        }
        Ok(())
    }

    /// The AgentTrusts of `agent` that are about `peer`, the one that counts first: an object that names the peer goes
    /// before one that selects it, and the elder before the younger.
    pub(super) fn claims(&self, agent: &ObjectKey, peer: &AgentId) -> Vec<&ObjectKey> {
        let named = self.named.get(&(agent.clone(), peer.clone())).into_iter().flatten();
        let here = ObjectKey::of_agent(&peer.name).filter(|_| peer.authority == self.authority);
        let fleets = self.fleets_of.get(agent).into_iter().flatten();
        let selecting = fleets
            .filter(|rank| here.as_ref().is_some_and(|here| here != agent && self.fleets.selects(&rank.trust, here)));
        named.chain(selecting).map(|rank| &rank.trust).collect()
    }

    /// The AgentTrust by which `agent` consents to `peer`.
    pub(super) fn consent(&self, agent: &ObjectKey, peer: &AgentId) -> Option<(&ObjectKey, &TrustFacts)> {
        let claims = self.claims(agent, peer);
        let mut facts = claims.into_iter().filter_map(|key| Some((key, &**self.trusts.get(key)?)));
        facts.find(|(key, facts)| self.accept(key, facts).is_ok() && self.alias_of(facts, peer).is_some())
    }

    /// The generation of the AgentTrust by which `agent` consents to `peer`.
    #[must_use]
    pub fn generation(&self, agent: &ObjectKey, peer: &AgentId) -> Option<i64> {
        self.consent(agent, peer)?.1.generation
    }

    /// The generation of an agent's AgentTrust of this UID.
    #[must_use]
    pub fn generation_of(&self, agent: &ObjectKey, trust: &TrustId) -> Option<i64> {
        let mut facts = self.trusts_of.get(agent).into_iter().flatten().filter_map(|key| self.trusts.get(key));
        facts.find(|facts| facts.uid == *trust)?.generation
    }

    /// The peer of an AgentTrust that names one.
    pub(super) fn named_peer(&self, facts: &TrustFacts) -> Option<AgentId> {
        match &facts.target {
            Target::Here(peer) => peer.agent(self.authority),
            Target::Away { authority, name, .. } => Some(AgentId { authority: *authority, name: name.clone() }),
            Target::Fleet { .. } => None,
        }
    }

    /// Everybody whom an AgentTrust is about.
    pub(super) fn peers_of(&self, key: &ObjectKey, facts: &TrustFacts) -> Vec<AgentId> {
        match self.named_peer(facts) {
            Some(peer) => vec![peer],
            None => self
                .fleets
                .selected(key)
                .into_iter()
                .filter(|peer| *peer != facts.agent)
                .filter_map(|peer| peer.agent(self.authority))
                .collect(),
        }
    }

    /// The AgentTrusts of an agent.
    #[must_use]
    pub fn trusts_of(&self, agent: &ObjectKey) -> BTreeSet<ObjectKey> {
        self.trusts_of.get(agent).cloned().unwrap_or_default()
    }

    /// Those of them that have one of these UIDs.
    #[must_use]
    pub fn trusts_with(&self, agent: &ObjectKey, uids: &[TrustId]) -> BTreeSet<ObjectKey> {
        let all = self.trusts_of.get(agent).into_iter().flatten();
        all.filter(|key| self.trusts.get(*key).is_some_and(|facts| uids.contains(&facts.uid))).cloned().collect()
    }

    pub(super) fn list_trust(&mut self, key: &ObjectKey, facts: TrustFacts) {
        self.trusts_of.entry(facts.agent.clone()).or_default().insert(key.clone());
        if let Target::Away { link, .. } = &facts.target {
            self.over.entry(link.clone()).or_default().insert(key.clone());
        }
        if !facts.ended(self.now) {
            if let Some(at) = facts.expires {
                self.endings.insert((at, key.clone()));
            }
            self.list_claims(key, &facts);
        }
        self.trusts.insert(key.clone(), Box::new(facts));
    }

    fn list_claims(&mut self, key: &ObjectKey, facts: &TrustFacts) {
        let rank = Rank { created: facts.created, uid: facts.uid, trust: key.clone() };
        match (&facts.target, self.named_peer(facts)) {
            (Target::Fleet { namespace, selector }, _) => {
                self.fleets.set_selector(key, Some((namespace.clone(), selector.clone())));
                self.fleets_of.entry(facts.agent.clone()).or_default().insert(rank);
            }
            (Target::Here(_) | Target::Away { .. }, Some(peer)) => {
                if let Some(alias) = facts.alias() {
                    self.aliases.entry((facts.agent.clone(), alias)).or_default().insert(rank.clone());
                }
                self.named.entry((facts.agent.clone(), peer)).or_default().insert(rank);
            }
            (Target::Here(_) | Target::Away { .. }, None) => {}
        }
    }

    pub(super) fn unlist_trust(&mut self, key: &ObjectKey) -> Option<TrustFacts> {
        let facts = self.trusts.remove(key)?;
        self.unlist_claims(key, &facts);
        if let Some(at) = facts.expires {
            self.endings.remove(&(at, key.clone()));
        }
        if let Target::Away { link, .. } = &facts.target
            && let Some(over) = self.over.get_mut(link)
        {
            over.remove(key);
            if over.is_empty() {
                self.over.remove(link);
            }
        }
        if let Some(of_agent) = self.trusts_of.get_mut(&facts.agent) {
            of_agent.remove(key);
            if of_agent.is_empty() {
                self.trusts_of.remove(&facts.agent);
            }
        }
        Some(*facts)
    }

    pub(super) fn unlist_claims(&mut self, key: &ObjectKey, facts: &TrustFacts) {
        let rank = Rank { created: facts.created, uid: facts.uid, trust: key.clone() };
        if let Some(peer) = self.named_peer(facts) {
            remove(&mut self.named, (facts.agent.clone(), peer), &rank);
        }
        if let Some(alias) = facts.alias() {
            remove(&mut self.aliases, (facts.agent.clone(), alias), &rank);
        }
        remove(&mut self.fleets_of, facts.agent.clone(), &rank);
        self.fleets.set_selector(key, None);
    }

    /// Everything that may depend on an AgentTrust as it is listed: its own pairs in both directions, and those of
    /// whoever wants the same alias.
    pub(super) fn touch_trust(&self, key: &ObjectKey, dirty: &mut Dirty) {
        let Some(facts) = self.trusts.get(key) else { return };
        dirty.trusts.insert(key.clone());
        for peer in self.peers_of(key, facts) {
            self.touch_pair(&facts.agent, &peer, dirty);
        }
        for alias in self.aliases_of(key, facts) {
            for rank in self.aliases.get(&(facts.agent.clone(), alias.clone())).into_iter().flatten() {
                let rival = self.trusts.get(&rank.trust).and_then(|rival| self.named_peer(rival));
                if let Some(peer) = rival {
                    self.touch_pair(&facts.agent, &peer, dirty);
                }
            }
            for member in self.members_called(&facts.agent, &alias) {
                self.touch_pair(&facts.agent, &member, dirty);
            }
        }
    }

    /// Members of an agent's fleets that go by this name, whose fleet is the elder one first.
    fn members_called(&self, agent: &ObjectKey, alias: &Label) -> Vec<AgentId> {
        let fleets = self.fleets_of.get(agent).into_iter().flatten();
        let member = |rank: &Rank| {
            let Target::Fleet { namespace, .. } = &self.trusts.get(&rank.trust)?.target else { return None };
            let member = ObjectKey::new(namespace.clone(), alias.as_str());
            let selected = member != *agent && self.fleets.selects(&rank.trust, &member);
            selected.then(|| member.agent(self.authority)).flatten()
        };
        fleets.filter_map(member).collect()
    }

    /// What `agent` calls `peer` by this AgentTrust; `None` where a member of a fleet has the name of somebody else,
    /// who was named or belongs to an elder fleet.
    pub(super) fn alias_of(&self, facts: &TrustFacts, peer: &AgentId) -> Option<Label> {
        if let Some(alias) = facts.alias() {
            return Some(alias);
        }
        let alias = peer.name.first_label();
        let named = self.aliases.get(&(facts.agent.clone(), alias.clone())).and_then(Ranks::first);
        let holder = named.and_then(|rank| self.named_peer(self.trusts.get(&rank.trust)?));
        let holder = holder.or_else(|| self.members_called(&facts.agent, &alias).into_iter().next());
        (holder.as_ref() == Some(peer)).then_some(alias)
    }

    fn aliases_of(&self, key: &ObjectKey, facts: &TrustFacts) -> Vec<Label> {
        match facts.alias() {
            Some(alias) => vec![alias],
            None => self.peers_of(key, facts).into_iter().map(|peer| peer.name.first_label()).collect(),
        }
    }

    /// What both agents are told of each other, and the conditions of whatever AgentTrust is about the two.
    pub(super) fn touch_pair(&self, agent: &ObjectKey, peer: &AgentId, dirty: &mut Dirty) {
        dirty.pairs.insert((agent.clone(), peer.clone()));
        dirty.trusts.extend(self.claims(agent, peer).into_iter().cloned());
        let other = ObjectKey::of_agent(&peer.name).filter(|_| peer.authority == self.authority);
        if let (Some(other), Some(id)) = (other, agent.agent(self.authority)) {
            dirty.trusts.extend(self.claims(&other, &id).into_iter().cloned());
            dirty.pairs.insert((other, id));
        }
    }

    /// All pairs of one agent: its own trusts, and everybody who has consented to it.
    pub(super) fn touch_agent(&self, agent: &ObjectKey, dirty: &mut Dirty) {
        for trust in self.trusts_of.get(agent).into_iter().flatten() {
            // Its own trusts are found whether or not they hold.
            dirty.trusts.insert(trust.clone());
            let Some(facts) = self.trusts.get(trust) else { continue };
            for peer in self.peers_of(trust, facts) {
                self.touch_pair(agent, &peer, dirty);
            }
        }
    }

    /// An agent's labels changed, so these fleets gained, lost or keep it; and its name is taken or free for members of
    /// other fleets of the same owner.
    pub(super) fn touch_fleets(&self, agent: &ObjectKey, fleets: BTreeSet<ObjectKey>, dirty: &mut Dirty) {
        let Some(id) = agent.agent(self.authority) else { return };
        for fleet in fleets {
            let Some(facts) = self.trusts.get(&fleet) else { continue };
            self.touch_pair(&facts.agent, &id, dirty);
            for namesake in self.members_called(&facts.agent, &id.name.first_label()) {
                self.touch_pair(&facts.agent, &namesake, dirty);
            }
            dirty.trusts.insert(fleet);
        }
    }

    /// A link changed: every AgentTrust that goes over it.
    pub(super) fn touch_link(&self, link: &str) -> Dirty {
        let mut dirty = Dirty::default();
        for key in self.over.get(link).into_iter().flatten() {
            self.touch_trust(key, &mut dirty);
        }
        dirty
    }

    /// The AgentTrusts that hold on our side and go over a link.
    pub fn trusts_over(&self, link: &str) -> impl Iterator<Item = (&ObjectKey, &TrustFacts)> {
        let facts = |key| Some((key, &**self.trusts.get(key)?));
        let over = self.over.get(link).into_iter().flatten().filter_map(facts);
        over.filter(|(key, facts)| self.accept(key, facts).is_ok())
    }

    /// Our agents whose owners name this agent of another cluster.
    #[must_use]
    pub fn trusting(&self, peer: &AgentId) -> Vec<ObjectKey> {
        let facts = self.over.values().flatten().filter_map(|key| self.trusts.get(key));
        let about = facts.filter(|facts| self.named_peer(facts).as_ref() == Some(peer));
        about.map(|facts| facts.agent.clone()).collect()
    }

    /// Agents of other clusters that an owner here names.
    #[must_use]
    pub fn named_away(&self) -> BTreeSet<AgentId> {
        let facts = self.over.values().flatten().filter_map(|key| self.trusts.get(key));
        facts.filter_map(|facts| self.named_peer(facts)).collect()
    }

    /// Whether AgentTrusts of a namespace may go over a link.
    #[must_use]
    pub fn may_use(&self, link: &str, namespace: &str) -> bool {
        let facts = self.links.get(link);
        facts.is_some_and(|facts| facts.allowed.permits(namespace, self.namespaces.get(namespace)))
    }

    /// Whether the owner of `agent` has consented to `peer`.
    #[must_use]
    pub fn has_consented(&self, agent: &ObjectKey, peer: &AgentId) -> bool {
        self.consent(agent, peer).is_some()
    }
}

fn remove<K: Ord>(map: &mut std::collections::BTreeMap<K, Ranks>, key: K, rank: &Rank) {
    if let Some(set) = map.get_mut(&key) {
        set.remove(rank);
        if set.is_empty() {
            map.remove(&key);
        }
    }
}
