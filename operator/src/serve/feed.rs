//! What one stream has told its agent, and what it tells next. Pure: the connection around it only sends.

use std::collections::{BTreeMap, BTreeSet};

use peerage_model::id::sha256;
use peerage_model::operator::{Entry, MAX_ENTRIES, Revision, Settings, Update};
use peerage_model::{AgentId, AgreementSecret, TrustId};

use crate::hub::{Notes, Progress};
use crate::index::Index;
use crate::key::ObjectKey;
use crate::roll::Roll;

/// What was told of one peer, in the size that 10,000 of them allow.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    digest: [u8; 32],
    trust: TrustId,
}

/// One agent's view, as told.
#[derive(Debug)]
pub struct Feed {
    agent: ObjectKey,
    told: BTreeMap<AgentId, Told>,
    settings: Option<[u8; 32]>,
    sequence: u64,
}

/// What there is to look at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The cluster.
    pub index: &'a Index,
    /// Who is denied.
    pub roll: &'a Roll,
    /// The authority's agreement secrets, the current one first.
    pub keys: &'a [AgreementSecret],
    /// How far this replica has seen.
    pub revision: Revision,
}

impl Feed {
    /// Has told nothing yet.
    #[must_use]
    pub fn new(agent: ObjectKey) -> Self {
        Self { agent, told: BTreeMap::new(), settings: None, sequence: 0 }
    }

    /// Everything, as the first thing that an agent hears.
    pub fn full(&mut self, view: View<'_>, progress: &mut Progress) -> Vec<Update> {
        (self.told, self.settings) = (BTreeMap::new(), None);
        let notes = Notes { all: true, ..Notes::default() };
        let update = self.compare(view, &notes);
        self.number(Update { full: true, ..update }, progress)
    }

    /// What changed of what the notes name; nothing where the agent knows it all.
    pub fn changes(&mut self, view: View<'_>, notes: &Notes, progress: &mut Progress) -> Vec<Update> {
        let update = self.compare(view, notes);
        let Update { entries, withdrawn, gone, denied, settings, .. } = &update;
        if entries.is_empty() && withdrawn.is_empty() && gone.is_empty() && denied.is_empty() && settings.is_none() {
            return Vec::new();
        }
        self.number(update, progress)
    }

    fn compare(&mut self, view: View<'_>, notes: &Notes) -> Update {
        let mut update = Update { revision: view.revision, ..Update::default() };
        update.gone = notes.gone.iter().copied().collect();
        update.denied = notes.denied.clone();
        let peers: BTreeSet<AgentId> = match notes.all {
            true => view.index.candidates(&self.agent).into_iter().chain(self.told.keys().cloned()).collect(),
            false => notes.pairs.clone(),
        };
        for peer in peers {
            match view.index.entry(&self.agent, &peer, view.keys) {
                Some(entry) => self.tell(entry, view.roll, &mut update),
                None => {
                    if self.told.remove(&peer).is_some() {
                        update.withdrawn.push(peer);
                    }
                }
            }
        }
        // Without its AgentPeer there is no agent, and nothing that it offers.
        let settings = view.index.settings(&self.agent).unwrap_or_default();
        let digest = digest(&settings);
        if self.settings != Some(digest) {
            self.settings = Some(digest);
            update.settings = Some(settings);
        }
        update
    }

    fn tell(&mut self, entry: Entry, roll: &Roll, update: &mut Update) {
        let peer = entry.peer.id.clone();
        let told = Told { digest: digest_entry(&entry), trust: entry.peer.trust };
        match self.told.get(&peer) {
            Some(before) if *before == told => return,
            Some(_) => {}
            // A set without end would be a way to exhaust agents; what is above the limit is left out, in order.
            None if self.told.len() >= MAX_ENTRIES => return,
            None => update.denied.extend(roll.denied_of(&peer)),
        }
        self.told.insert(peer, told);
        update.entries.push(entry);
    }

    fn number(&mut self, mut update: Update, progress: &mut Progress) -> Vec<Update> {
        update.sequence = self.sequence + 1;
        let changed: Vec<_> = update.entries.iter().map(|entry| entry.peer.trust).collect();
        let parts = update.into_parts();
        self.sequence = parts.last().map_or(self.sequence, |part| part.sequence);
        progress.about.clear();
        for (peer, told) in &self.told {
            progress.about.entry(told.trust).or_default().insert(peer.clone());
        }
        let about = &progress.about;
        progress.owed.retain(|trust, _| about.contains_key(trust));
        for trust in changed {
            progress.owed.insert(trust, self.sequence);
        }
        parts
    }

    /// The number of the last update.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

fn digest(settings: &Settings) -> [u8; 32] {
    sha256(&[&peerage_model::cbor::to_vec(settings)])
}

fn digest_entry(entry: &Entry) -> [u8; 32] {
    sha256(&[&peerage_model::cbor::to_vec(entry)])
}
