//! What one stream has told its agent, and what it tells next. Pure: the connection around it only sends.

use std::collections::{BTreeMap, BTreeSet};

use peerage_model::id::sha256;
use peerage_model::operator::{Entry, MAX_ENTRIES, Revision, Settings, Update};
use peerage_model::{AgentId, AgreementSecret, TrustId};

use crate::hub::{Notes, Owed, Progress};
use crate::index::Index;
use crate::key::ObjectKey;
use crate::roll::Roll;

/// What was told of one peer, in the size that 10,000 of them allow.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    digest: [u8; 32],
    trust: TrustId,
    generation: Option<i64>,
}

/// One agent's view, as told.
#[derive(Debug)]
pub struct Feed {
    agent: ObjectKey,
    told: BTreeMap<AgentId, Told>,
    settings: Option<[u8; 32]>,
    sequence: u64,
    /// AgentTrusts of which the update in the making tells something.
    touched: Vec<TrustId>,
    /// AgentTrusts that are there and have ended, and the update that took back what they gave.
    ended: BTreeMap<TrustId, Owed>,
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
    pub revision: &'a Revision,
    /// How new what it has seen may be.
    pub shown: &'a Revision,
}

impl View<'_> {
    fn update(&self) -> Update {
        Update { revision: self.revision.clone(), shown: self.shown.clone(), ..Update::default() }
    }
}

impl Feed {
    /// Has told nothing yet.
    #[must_use]
    pub fn new(agent: ObjectKey) -> Self {
        Self { agent, told: BTreeMap::new(), settings: None, sequence: 0, touched: Vec::new(), ended: BTreeMap::new() }
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
            self.settle(progress); // what is as it was may be of another generation
            return Vec::new();
        }
        self.number(update, progress)
    }

    /// Nothing but how far this replica has seen, for an agent that waits for that.
    pub fn mark(&mut self, view: View<'_>, progress: &mut Progress) -> Vec<Update> {
        self.number(view.update(), progress)
    }

    fn compare(&mut self, view: View<'_>, notes: &Notes) -> Update {
        let mut update = view.update();
        update.gone = notes.gone.iter().copied().collect();
        self.ended.retain(|trust, _| !notes.gone.contains(trust));
        update.denied = notes.denied.clone();
        let peers: BTreeSet<AgentId> = match notes.all {
            true => view.index.candidates(&self.agent).into_iter().chain(self.told.keys().cloned()).collect(),
            false => notes.pairs.clone(),
        };
        for peer in peers {
            match view.index.entry(&self.agent, &peer, view.keys) {
                Some(entry) => self.tell(entry, view, &mut update),
                None => {
                    if let Some(told) = self.told.remove(&peer) {
                        self.touched.push(told.trust);
                        let generation = view.index.generation_of(&self.agent, &told.trust);
                        self.ended.insert(told.trust, Owed { generation, update: self.sequence });
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

    fn tell(&mut self, entry: Entry, view: View<'_>, update: &mut Update) {
        let peer = entry.peer.id.clone();
        let generation = view.index.generation(&self.agent, &peer);
        let told = Told { digest: digest_entry(&entry), trust: entry.peer.trust, generation };
        match self.told.get(&peer).map(|before| before.digest == told.digest) {
            Some(true) => {
                self.told.insert(peer, told);
                return;
            }
            Some(false) => {}
            // A set without end would be a way to exhaust agents; what is above the limit is left out, in order.
            None if self.told.len() >= MAX_ENTRIES => return,
            None => update.denied.extend(view.roll.denied_of(&peer)),
        }
        self.touched.push(told.trust);
        self.told.insert(peer, told);
        update.entries.push(entry);
    }

    fn number(&mut self, mut update: Update, progress: &mut Progress) -> Vec<Update> {
        update.sequence = self.sequence + 1;
        let parts = update.into_parts();
        self.sequence = parts.last().map_or(self.sequence, |part| part.sequence);
        self.settle(progress);
        parts
    }

    /// Brings `progress` up to what has been told.
    fn settle(&mut self, progress: &mut Progress) {
        let before = std::mem::take(&mut progress.owed);
        progress.about.clear();
        for (peer, told) in &self.told {
            let update = before.get(&told.trust).map_or(self.sequence, |owed| owed.update);
            let owed = progress.owed.entry(told.trust).or_insert(Owed { generation: told.generation, update });
            owed.generation = owed.generation.min(told.generation);
            progress.about.entry(told.trust).or_default().insert(peer.clone());
        }
        // Whoever waits for the end of one wants to know that it has been heard.
        self.ended.retain(|trust, _| !progress.owed.contains_key(trust));
        for trust in self.touched.drain(..) {
            if let Some(owed) = progress.owed.get_mut(&trust).or(self.ended.get_mut(&trust)) {
                owed.update = self.sequence;
            }
        }
        progress.owed.extend(self.ended.iter().map(|(trust, owed)| (*trust, *owed)));
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
