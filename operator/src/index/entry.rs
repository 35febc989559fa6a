//! What one agent is told: of each peer, and of itself.

use peerage_model::operator::{Entry, LocalPort, Offer, Settings};
use peerage_model::snapshot::{Peer, Port, Protocol};
use peerage_model::{AgentId, AgreementSecret, PairSecret};

use super::{Index, MAX_RELAYS};
use crate::facts::{PeerFacts, Target, TrustFacts};
use crate::key::ObjectKey;

impl Index {
    /// What `agent` is told of itself; `None` when there is no such agent.
    #[must_use]
    pub fn settings(&self, agent: &ObjectKey) -> Option<Settings> {
        let facts = self.peers.get(agent)?;
        let relays = self.relays_of(&agent.namespace);
        let super::Staleness { limit, fail_closed } = self.staleness;
        let ports = facts.ports.clone();
        Some(Settings { ports, relays, max_staleness: limit, fail_closed, ..Settings::default() })
    }

    /// Everybody whom `agent` may have an entry of, in order: ask [`Self::entry`] for each.
    #[must_use]
    pub fn candidates(&self, agent: &ObjectKey) -> Vec<AgentId> {
        let trusts = self.trusts_of.get(agent).into_iter().flatten();
        let facts = trusts.filter_map(|key| Some((key, self.trusts.get(key)?)));
        let mut peers: Vec<_> = facts.flat_map(|(key, facts)| self.peers_of(key, facts)).collect();
        peers.sort();
        peers.dedup();
        peers
    }

    /// What `agent` is told of `peer`: nothing, unless everybody whose consent it takes has given it. `keys` are the
    /// authority's agreement secrets, the current one first.
    #[must_use]
    pub fn entry(&self, agent: &ObjectKey, peer: &AgentId, keys: &[AgreementSecret]) -> Option<Entry> {
        let own = self.peers.get(agent)?;
        let id = agent.agent(self.authority)?;
        let (_, consent) = self.consent(agent, peer)?;
        match &consent.target {
            Target::Here(_) | Target::Fleet { .. } => {
                let other = ObjectKey::of_agent(&peer.name)?;
                let (_, theirs) = self.consent(&other, &id)?;
                let offers = &self.peers.get(&other)?.ports;
                let open = offers.iter().filter(|offer| theirs.inbound.contains(&offer.name)).map(Offer::as_port);
                let mut entry = Told { index: self, own, consent, peer }.entry(open.collect())?;
                entry.peer.secrets = keys.iter().map(|key| PairSecret::within(key, &id, peer)).collect();
                entry.peer.relays = self.relays_of(&other.namespace);
                entry.peer.expires = [consent.expires, theirs.expires].into_iter().flatten().min();
                entry.consents.push(theirs.uid);
                Some(entry)
            }
            Target::Away { link, .. } => {
                let leads = self.leads(link, self.links.get(link)?).ok()?;
                let mut entry = Told { index: self, own, consent, peer }.entry(Vec::new())?;
                // Our newest keys with their newest come first: those dial, and all are accepted.
                let of = |key| leads.records.iter().map(move |record| (key, record.agreement_key()));
                let secret = |(key, theirs)| PairSecret::between(key, theirs, &id, peer);
                entry.peer.secrets = keys.iter().flat_map(of).map(secret).collect::<Result<_, _>>().ok()?;
                entry.peer.relays = leads.relays.to_vec();
                entry.peer.relays.truncate(MAX_RELAYS);
                entry.link = link.parse().ok();
                Some(entry)
            }
        }
    }
}

/// What all kinds of entries have in common.
struct Told<'a> {
    index: &'a Index,
    own: &'a PeerFacts,
    consent: &'a TrustFacts,
    peer: &'a AgentId,
}

impl Told<'_> {
    fn entry(&self, open: Vec<Port>) -> Option<Entry> {
        let stated = self.consent.ports.as_ref();
        let ports = match stated {
            // A stated port needs no name; its number is all that a listener needs.
            Some(ports) => ports.iter().map(|port| stated_port(port.number, port.protocol)).collect(),
            None => open,
        };
        let moved = stated.into_iter().flatten().filter(|port| port.local != port.number);
        let local = |port: &crate::facts::trust::KnownPort| LocalPort {
            port: port.number,
            protocol: port.protocol,
            here: port.local,
        };
        Some(Entry {
            peer: Peer {
                trust: self.consent.uid,
                id: self.peer.clone(),
                secrets: Vec::new(),
                alias: self.index.alias_of(self.consent, self.peer)?,
                inbound: self.consent.inbound.clone(),
                ports,
                relays: Vec::new(),
                expires: self.consent.expires,
                path: self.own.path,
                birthday: self.own.birthday,
            },
            consents: vec![self.consent.uid],
            link: None,
            local_ports: moved.map(local).collect(),
        })
    }
}

fn stated_port(number: u16, protocol: Protocol) -> Port {
    let name = format!("{protocol}-{number}").parse().expect("letters, a hyphen and digits are a label");
    Port { name, number, protocol }
}
