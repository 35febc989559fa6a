//! Mailboxes: sealed trust requests kept for public agents (`docs/spec/mailbox.md`).
//!
//! Everything a stranger can see is the same whether or not there is a mailbox: a name without one has a record that we
//! invented, and what is posted to nobody is thanked for. So each answer is made before it is known whether it is true.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::mailbox::Decoys;
use peerage_model::relay::frame::keys::BootKey;
use peerage_model::relay::frame::mailbox::{MAX_RECORD, MAX_RECORDS, MailId, NameKey, SEALED};
use peerage_model::{AgreementSecret, AuthorityRecord, Fingerprint, RoutingId};

use crate::bucket::{Bucket, Rate};
use crate::network::Network;
use crate::spread::SpreadBuckets;

/// Mail in one mailbox.
pub const MAIL: usize = 20;
/// Of it, from one source network.
pub const MAIL_PER_NETWORK: usize = 4;
/// Mailboxes of one authority.
pub const MAILBOXES_PER_AUTHORITY: usize = 1_000;
/// How long mail, and a mailbox that its owner does not look into, is kept.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
const LOOKUPS: Rate = Rate::new(2, 20);
/// Deriving and signing an invented record and authenticating the answer takes 0.2 ms, under the lock that forwarding needs.
const LOOKUPS_IN_ALL: Rate = Rate::new(200, 200);
const POSTS: Rate = Rate::new(1, 10);

/// Mailboxes that are looked at to find one that can go. All of them would be a millisecond under the lock that
/// forwarding needs, for each of a flooder's CHECKs.
const LOOKED_AT: usize = 64;

/// What a mailbox takes at most, with its places in six maps.
const BOX_COST: usize = size_of::<Mailbox>() + MAX_RECORD + 7 * 64;
const MAIL_COST: usize = SEALED + size_of::<Mail>() * 2 + 64;

/// What of a credential makes a mailbox: kept with each binding, so that CHECK need not repeat it.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) name: NameKey,
    /// The authority's record, if it is short enough to be published.
    pub(crate) record: Option<Box<[u8]>>,
}

impl Card {
    /// The most that one takes beside its binding.
    pub(crate) const COST: usize = MAX_RECORD;

    pub(crate) fn new(name: &peerage_model::AgentName, record: &AuthorityRecord) -> Self {
        let bytes = record.as_bytes();
        Self { name: NameKey::of(name), record: (bytes.len() <= MAX_RECORD).then(|| bytes.into()) }
    }
}

/// What there is room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Bytes for mailboxes and mail.
    pub(crate) memory: usize,
    /// Mailboxes that one source network has opened.
    pub(crate) per_network: usize,
}

/// Who opens a mailbox or keeps it open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) route: RoutingId,
    pub(crate) authority: Fingerprint,
    pub(crate) card: &'a Card,
    pub(crate) from: SocketAddr,
}

#[derive(Debug)]
pub(crate) struct Mailboxes {
    decoys: Decoys,
    boxes: BTreeMap<RoutingId, Mailbox>,
    /// By name, and there by the order in which they were opened.
    names: BTreeSet<(NameKey, u64, RoutingId)>,
    authorities: BTreeMap<Fingerprint, usize>,
    /// By when their owners were heard, so that the one that was not for longest is found.
    heard: BTreeSet<(Instant, RoutingId)>,
    /// The same for each network's.
    networks: BTreeMap<Network, BTreeSet<(Instant, RoutingId)>>,
    /// All mail by its number, so that the oldest is found.
    mail: BTreeMap<u64, RoutingId>,
    counted: u64,
    lookups: SpreadBuckets,
    lookups_in_all: Bucket,
    posts: SpreadBuckets,
}

#[derive(Debug)]
struct Mailbox {
    name: NameKey,
    number: u64,
    authority: Fingerprint,
    /// From where it was opened.
    network: Network,
    record: Box<[u8]>,
    heard: Instant,
    mail: Vec<Mail>,
}

/// Oldest first in its mailbox.
#[derive(Debug)]
struct Mail {
    number: u64,
    id: MailId,
    from: Network,
    received: Instant,
    sealed: Box<[u8; SEALED]>,
}

/// What became of a post. Never told to who posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Posted {
    /// It waits for its owner.
    Kept,
    /// There is no such mailbox, it is in it already, or there is no room.
    Discarded,
}

impl Mailboxes {
    pub(crate) fn new(key: &AgreementSecret, now: Instant) -> Self {
        Self {
            decoys: Decoys::of_relay(key),
            boxes: BTreeMap::new(),
            names: BTreeSet::new(),
            authorities: BTreeMap::new(),
            heard: BTreeSet::new(),
            networks: BTreeMap::new(),
            mail: BTreeMap::new(),
            counted: 0,
            lookups: SpreadBuckets::new(now),
            lookups_in_all: Bucket::full(now),
            posts: SpreadBuckets::new(now),
        }
    }

    pub(crate) fn admit_lookup(&mut self, key: &BootKey, from: SocketAddr, now: Instant) -> bool {
        self.lookups.admit(key, from, LOOKUPS, now) && self.lookups_in_all.admit(LOOKUPS_IN_ALL, now)
    }

    pub(crate) fn admit_post(&mut self, key: &BootKey, from: SocketAddr, now: Instant) -> bool {
        self.posts.admit(key, from, POSTS, now)
    }

    /// Hands the records of a name to `answer`: those of who published it, or the one that we invent.
    pub(crate) fn look_up<T>(&self, name: NameKey, answer: impl FnOnce(&[&[u8]]) -> T) -> T {
        // First and always, so that the time this takes does not tell whether it is needed.
        let decoy = self.decoys.record(&name);
        let all = (name, 0, RoutingId([0; 16]))..=(name, u64::MAX, RoutingId([255; 16]));
        let published = self.names.range(all).take(MAX_RECORDS);
        let records: Vec<&[u8]> = published.filter_map(|(_, _, id)| Some(&*self.boxes.get(id)?.record)).collect();
        match records.is_empty() {
            true => answer(&[decoy.as_bytes()]),
            false => answer(&records),
        }
    }

    /// Opens a mailbox or keeps it open. False where there is no room, or the record cannot be published.
    pub(crate) fn keep_open(
        &mut self,
        owner: Owner<'_>,
        room: Room,
        now: Instant,
        is_bound: impl Fn(RoutingId) -> bool,
    ) -> bool {
        let Owner { route, authority, card, from } = owner;
        let Some(record) = &card.record else { return false };
        if let Some(mailbox) = self.boxes.get_mut(&route) {
            mailbox.record.clone_from(record); // a rotation publishes the newer one
            self.note_heard(route, now);
            return true;
        }
        let network = Network::of_address(from);
        let of_authority = self.authorities.get(&authority).copied().unwrap_or(0);
        if of_authority >= MAILBOXES_PER_AUTHORITY || !self.make_place(network, room, now, is_bound) {
            return false;
        }
        self.counted += 1;
        let (number, name, record) = (self.counted, card.name, record.clone());
        self.names.insert((name, number, route));
        *self.authorities.entry(authority).or_default() += 1;
        self.heard.insert((now, route));
        self.networks.entry(network).or_default().insert((now, route));
        self.boxes.insert(route, Mailbox { name, number, authority, network, record, heard: now, mail: Vec::new() });
        true
    }

    /// Makes room for one more mailbox, if need be by closing another. Mailboxes get half the memory, so that
    /// authorities that somebody made up by the thousand leave the rest to mail. One whose owner is bound never goes.
    fn make_place(&mut self, network: Network, room: Room, now: Instant, is_bound: impl Fn(RoutingId) -> bool) -> bool {
        let of_network = self.networks.get(&network).filter(|own| own.len() >= room.per_network);
        let is_full = (self.boxes.len() + 1) * BOX_COST > room.memory / 2;
        let longest_silent: Vec<RoutingId> = match of_network {
            Some(own) => own.iter().take(LOOKED_AT).map(|(_, route)| *route).collect(),
            None if is_full => self.heard.iter().take(LOOKED_AT).map(|(_, route)| *route).collect(),
            None => return self.make_room(BOX_COST, room.memory),
        };
        for route in longest_silent {
            if !is_bound(route) {
                self.close(route);
                return self.make_room(BOX_COST, room.memory);
            }
            // Else the same ones, bound and never heard again, would hide all others from us.
            self.note_heard(route, now);
        }
        false
    }

    fn note_heard(&mut self, route: RoutingId, now: Instant) {
        let Some(mailbox) = self.boxes.get_mut(&route) else { return };
        let before = std::mem::replace(&mut mailbox.heard, now);
        self.heard.remove(&(before, route));
        self.heard.insert((now, route));
        if let Some(own) = self.networks.get_mut(&mailbox.network) {
            own.remove(&(before, route));
            own.insert((now, route));
        }
    }

    /// Puts something into a mailbox.
    pub(crate) fn post(
        &mut self,
        key: &BootKey,
        to: RoutingId,
        from: SocketAddr,
        sealed: &[u8; SEALED],
        memory: usize,
        now: Instant,
    ) -> Posted {
        let from = Network::of_address(from);
        let Some(mailbox) = self.boxes.get(&to) else { return Posted::Discarded };
        // The same ephemeral key is the same mail once more: a retransmission, or an asker that makes sure.
        if mailbox.mail.iter().any(|mail| mail.sealed[..32] == sealed[..32]) {
            return Posted::Discarded;
        }
        // One network's flood displaces its own mail, and only a flood from many displaces somebody else's.
        let of_network = || mailbox.mail.iter().filter(|mail| mail.from == from);
        let displaced = match of_network().count() >= MAIL_PER_NETWORK {
            true => of_network().next(),
            false => mailbox.mail.first().filter(|_| mailbox.mail.len() >= MAIL),
        };
        if let Some(number) = displaced.map(|mail| mail.number) {
            self.discard(number);
        }
        if !self.make_room(MAIL_COST, memory) {
            return Posted::Discarded;
        }
        self.counted += 1;
        let (number, id) = (self.counted, key.mail(self.counted));
        let mail = Mail { number, id, from, received: now, sealed: Box::new(*sealed) };
        let Some(mailbox) = self.boxes.get_mut(&to) else { return Posted::Discarded };
        mailbox.mail.push(mail);
        self.mail.insert(number, to);
        Posted::Kept
    }

    /// Forgets what the owner is done with.
    pub(crate) fn forget(&mut self, route: RoutingId, done: MailId) {
        let mailbox = self.boxes.get(&route);
        let found = mailbox.and_then(|mailbox| mailbox.mail.iter().find(|mail| mail.id == done));
        if let Some(number) = found.map(|mail| mail.number) {
            self.discard(number);
        }
    }

    /// The oldest mail in a mailbox.
    pub(crate) fn oldest(&self, route: RoutingId) -> Option<(MailId, &[u8; SEALED])> {
        let mail = self.boxes.get(&route)?.mail.first()?;
        Some((mail.id, &mail.sealed))
    }

    pub(crate) fn has_mail(&self, route: RoutingId) -> bool {
        self.boxes.get(&route).is_some_and(|mailbox| !mailbox.mail.is_empty())
    }

    /// Drops what nobody has come for.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let over = |since: Instant| now.saturating_duration_since(since) >= LIFETIME;
        let ended: Vec<RoutingId> =
            self.boxes.iter().filter(|(_, mailbox)| over(mailbox.heard)).map(|(route, _)| *route).collect();
        for route in ended {
            self.close(route);
        }
        // Numbers grow with time, so the oldest come first.
        while let Some((number, route)) = self.mail.first_key_value().map(|(number, route)| (*number, *route)) {
            let mailbox = self.boxes.get(&route);
            let mail = mailbox.and_then(|mailbox| mailbox.mail.iter().find(|mail| mail.number == number));
            if mail.is_some_and(|mail| !over(mail.received)) {
                return;
            }
            self.discard(number);
        }
    }

    fn close(&mut self, route: RoutingId) {
        let Some(mailbox) = self.boxes.remove(&route) else { return };
        self.heard.remove(&(mailbox.heard, route));
        if let Some(own) = self.networks.get_mut(&mailbox.network) {
            own.remove(&(mailbox.heard, route));
            if own.is_empty() {
                self.networks.remove(&mailbox.network);
            }
        }
        self.names.remove(&(mailbox.name, mailbox.number, route));
        for mail in &mailbox.mail {
            self.mail.remove(&mail.number);
        }
        if let Some(count) = self.authorities.get_mut(&mailbox.authority) {
            *count -= 1;
            if *count == 0 {
                self.authorities.remove(&mailbox.authority);
            }
        }
    }

    fn discard(&mut self, number: u64) {
        if let Some(mailbox) = self.mail.remove(&number).and_then(|route| self.boxes.get_mut(&route)) {
            mailbox.mail.retain(|mail| mail.number != number);
        }
    }

    /// The oldest mail of all makes room; mailboxes stay. Where all of it would not be enough, none is lost.
    fn make_room(&mut self, cost: usize, memory: usize) -> bool {
        if self.boxes.len() * BOX_COST + cost > memory {
            return false;
        }
        while self.memory() + cost > memory {
            let Some((number, _)) = self.mail.first_key_value() else { return false };
            self.discard(*number);
        }
        true
    }

    pub(crate) fn memory(&self) -> usize {
        self.boxes.len() * BOX_COST + self.mail.len() * MAIL_COST
    }

    /// Mailboxes, and mail in them.
    pub(crate) fn occupancy(&self) -> (usize, usize) {
        (self.boxes.len(), self.mail.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.boxes.is_empty()
    }
}
