//! BINDs that wait for somebody to look at their proofs.
//!
//! A proof costs as much as a hundred packets, so whoever runs a relay looks at them beside the packets, as fast as it can, and what comes
//! faster waits here. After a restart everybody comes at once, a company's ten thousand agents from one address: they must not
//! be turned away by a rate that is meant for one that floods. So the rates in front of this are wide, and order does the rest: networks
//! take turns, and who is bound and renews takes turns with all newcomers together. A flood waits behind itself.

use std::collections::{BTreeMap, VecDeque};

use super::proof::Proof;
use crate::network::Network;
use crate::place::Place;

/// BINDs that wait, at most: 8 MiB. A proof takes some 0.2 ms, so the last one waits 2 s, within the four tries of a client.
const MOST: usize = 8_192;
/// One network's part of the line: this many times the places that are free. Alone it gets four fifths of the line, ten
/// networks that flood a tenth each, and the next to come finds room (Choudhury and Hahne 1998, "dynamic thresholds").
const PART: usize = 4;

/// Who waits, and in which order.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// One of each place: a newer one of the same client takes the place of the former.
    waiting: BTreeMap<Place, Proof>,
    renewals: VecDeque<Place>,
    newcomers: BTreeMap<Network, VecDeque<Place>>,
    /// Networks that have somebody in the line.
    turns: VecDeque<Network>,
    renewals_first: bool,
}

impl Line {
    /// Whether this very BIND waits already: who asks again for want of an answer shall not cost twice.
    pub(super) fn holds(&self, place: Place, e: &[u8; 32]) -> bool {
        self.waiting.get(&place).is_some_and(|proof| proof.e.0 == *e)
    }

    /// Whether there is room for a BIND from there.
    pub(super) fn has_room(&self, place: Place, renews: bool) -> bool {
        let free = MOST.saturating_sub(self.waiting.len());
        let own = self.newcomers.get(&Network::of(place)).map_or(0, VecDeque::len);
        self.waiting.contains_key(&place) || if renews { free > 0 } else { own < free.saturating_mul(PART) }
    }

    /// Puts a BIND in line.
    pub(super) fn push(&mut self, proof: Proof, renews: bool) {
        let place = proof.ingress.from;
        if self.waiting.insert(place, proof).is_some() {
            return; // it has the place of the former
        }
        if renews {
            self.renewals.push_back(place);
            return;
        }
        let network = Network::of(place);
        let own = self.newcomers.entry(network).or_default();
        if own.is_empty() {
            self.turns.push_back(network);
        }
        own.push_back(place);
    }

    /// Nobody is there any more to be answered.
    pub(super) fn forget(&mut self, place: Place) {
        self.waiting.remove(&place); // its turn comes, and is nobody's
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Proof> {
        loop {
            self.renewals_first = !self.renewals_first;
            let place = match self.renewals_first {
                true => self.renewals.pop_front().or_else(|| self.newcomer()),
                false => self.newcomer().or_else(|| self.renewals.pop_front()),
            };
            if let Some(proof) = self.waiting.remove(&place?) {
                return Some(proof);
            }
        }
    }

    fn newcomer(&mut self) -> Option<Place> {
        let network = self.turns.pop_front()?;
        let own = self.newcomers.get_mut(&network)?;
        let place = own.pop_front();
        match own.is_empty() {
            true => drop(self.newcomers.remove(&network)),
            false => self.turns.push_back(network),
        }
        place
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}
