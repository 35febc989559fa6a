//! What authorities and networks have used: places, bytes and packets.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::bucket::Bucket;
use crate::limits::Quota;

/// What a source wants to send: `packets` datagrams of at most `size` bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) packets: u64,
    pub(crate) size: u64,
}

/// What takes a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resident {
    Binding,
    Visitor,
}

#[derive(Debug)]
struct Account {
    bytes: Bucket,
    packets: Bucket,
    bindings: u32,
    visitors: u32,
}

impl Account {
    fn new(now: Instant) -> Self {
        Self { bytes: Bucket::full(now), packets: Bucket::full(now), bindings: 0, visitors: 0 }
    }

    fn places(&mut self, of: Resident) -> &mut u32 {
        match of {
            Resident::Binding => &mut self.bindings,
            Resident::Visitor => &mut self.visitors,
        }
    }

    fn is_unused(&self) -> bool {
        self.bindings == 0 && self.visitors == 0
    }

    fn charge(&mut self, quota: &Quota, now: Instant, load: Load) -> u64 {
        let mut fits = load.packets;
        if let Some(rate) = quota.packets {
            fits = fits.min(self.packets.holds(rate, now));
        }
        if let Some(rate) = quota.bytes {
            fits = fits.min(self.bytes.holds(rate, now) / load.size.max(1));
        }
        if let Some(rate) = quota.packets {
            self.packets.take(rate, now, fits);
        }
        if let Some(rate) = quota.bytes {
            self.bytes.take(rate, now, fits * load.size);
        }
        fits
    }
}

/// Accounts by holder. One lives for as long as it has a resident: an account that outlived them would be memory that a flood
/// can make us keep.
#[derive(Debug)]
pub(super) struct Accounts<K>(BTreeMap<K, Account>);

impl<K> Default for Accounts<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Accounts<K> {
    /// The most that an account takes, its map's node aside.
    pub(super) const COST: usize = size_of::<(K, Account)>() * 2;

    /// Takes a place.
    pub(super) fn join(&mut self, holder: K, resident: Resident, now: Instant) {
        *self.0.entry(holder).or_insert_with(|| Account::new(now)).places(resident) += 1;
    }

    /// Gives it up, and the account with its last place.
    pub(super) fn leave(&mut self, holder: &K, resident: Resident) {
        let Some(account) = self.0.get_mut(holder) else { return };
        let places = account.places(resident);
        *places = places.saturating_sub(1);
        if account.is_unused() {
            self.0.remove(holder);
        }
    }

    /// A resident of one is another's from now on.
    pub(super) fn transfer(&mut self, from: &K, to: K, resident: Resident, now: Instant) {
        if *from != to {
            self.join(to, resident, now);
            self.leave(from, resident);
        }
    }

    /// How many bindings and visitors there are.
    pub(super) fn residents(&self, holder: &K) -> (u32, u32) {
        self.0.get(holder).map_or((0, 0), |account| (account.bindings, account.visitors))
    }

    /// Charges what fits of `load`; returns how many packets that is. Who has no resident has no account.
    pub(super) fn charge(&mut self, holder: &K, quota: &Quota, now: Instant, load: Load) -> u64 {
        self.0.get_mut(holder).map_or(0, |account| account.charge(quota, now, load))
    }
}
