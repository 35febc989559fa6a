//! Who is here: bound instances and visitors, by id, by address and by route, and what they may still use.
//!
//! Memory is counted, not measured: each entry at the most it can grow to, so that no flood can find an entry that is
//! cheap to count and dear to keep. Ordered maps throughout: look-ups take about 0.1 µs at 10 000 entries and happen
//! once per batch, and the order makes a run reproducible.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use peerage_model::relay::frame::keys::MacKey;
use peerage_model::relay::frame::{Destination, EndpointId, Tag};
use peerage_model::{AgreementKey, Fingerprint, RoutingId, UnixTime};

use crate::bucket::Bucket;
use crate::counters::Occupancy;
use crate::limits::{
    ATTEMPT_LIFETIME, ATTEMPTS, DISPLACING, FIRST_CONTACT, FLOW_IDLE, LIFETIME, Limits, Quota, STREAM_GRACE,
};
use crate::mailbox::Card;
use crate::network::Network;
use crate::place::Place;

/// Room an ordered map's node spends beside an entry, at worst (nodes half full, and their own header).
const MAP_ENTRY: usize = 64;
/// A source without what only a binding has: with all its attempts, its places in three indexes, and alone in its network.
const VISITOR_COST: usize = size_of::<Source>() * 2
    + ATTEMPTS * size_of::<Attempt>()
    + 3 * MAP_ENTRY
    + ACCOUNT_COST
    + 2 * size_of::<(Place, EndpointId)>();
/// The same for a binding, its flows aside.
const BOUND_COST: usize = VISITOR_COST + size_of::<Binding>() + Card::COST + MAP_ENTRY + ACCOUNT_COST;
const FLOW_COST: usize = size_of::<(EndpointId, Flow)>() * 2 + 16;
const ACCOUNT_COST: usize = size_of::<(Fingerprint, Account)>() * 2 + MAP_ENTRY;

/// One client that has shown it receives.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) place: Place,
    /// Which of our own addresses it talks to; answers must come from there.
    pub(crate) local: Option<IpAddr>,
    pub(crate) tag: Tag,
    pub(crate) last_heard: Instant,
    attempts: Vec<Attempt>,
    /// What is left of the right to put a destination in the place of another that is still tried.
    displacing: Bucket,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// An instance with a credential.
    Bound(Box<Binding>),
    /// Anybody. `number` is its place in the order of arrival.
    Visitor { number: u64 },
}

#[derive(Debug)]
pub(crate) struct Binding {
    pub(crate) authority: Fingerprint,
    pub(crate) route: RoutingId,
    pub(crate) instance: AgreementKey,
    pub(crate) session: MacKey,
    /// What a mailbox of this agent shows.
    pub(crate) card: Card,
    pub(crate) not_after: UnixTime,
    /// Of the last MOVE.
    pub(crate) moves: u64,
    /// Starts of the last BINDs' keys, newest first; a replayed BIND repeats one.
    pub(crate) recent: [[u8; 8]; 4],
    /// Who has been answered.
    flows: BTreeMap<EndpointId, Flow>,
}

/// A pair past first contact, kept by whoever answered first.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// When the one that keeps it last sent.
    here: Instant,
    /// When the other one did.
    there: Instant,
}

/// Which instance a source's first packets go to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) endpoint: EndpointId,
    /// Of the first packet to it since it was chosen or last answered.
    pub(crate) asked: Instant,
    /// How many instances were given up on before it.
    pub(crate) passed: usize,
}

/// One destination a source tries to reach; made whether or not it exists.
#[derive(Debug)]
struct Attempt {
    destination: Destination,
    bucket: Bucket,
    last: Instant,
    reached: Option<Reached>,
}

/// What an authority or a network has used.
#[derive(Debug)]
pub(crate) struct Account {
    bytes: Bucket,
    packets: Bucket,
    pub(crate) bindings: u32,
    pub(crate) visitors: u32,
}

/// What a source wants to send: `packets` datagrams of at most `size` bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) packets: u64,
    pub(crate) size: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    sources: BTreeMap<EndpointId, Source>,
    by_place: BTreeMap<Place, EndpointId>,
    routes: BTreeSet<(RoutingId, EndpointId)>,
    /// Visitors that nobody has answered, oldest first: the first to go.
    waiting: BTreeSet<(u64, EndpointId)>,
    /// Visitors in a flow, oldest first: next to go, and only for a binding.
    talking: BTreeSet<(u64, EndpointId)>,
    authorities: BTreeMap<Fingerprint, Account>,
    networks: BTreeMap<Network, Account>,
    flows: usize,
}

impl Source {
    pub(crate) fn visitor(place: Place, local: Option<IpAddr>, tag: Tag, now: Instant, number: u64) -> Self {
        Self::new(place, local, tag, now, Kind::Visitor { number })
    }

    pub(crate) fn bound(place: Place, local: Option<IpAddr>, tag: Tag, now: Instant, binding: Binding) -> Self {
        Self::new(place, local, tag, now, Kind::Bound(Box::new(binding)))
    }

    fn new(place: Place, local: Option<IpAddr>, tag: Tag, now: Instant, kind: Kind) -> Self {
        Self { place, local, tag, last_heard: now, attempts: Vec::new(), displacing: Bucket::full(now), kind }
    }

    pub(crate) fn binding(&self) -> Option<&Binding> {
        match &self.kind {
            Kind::Bound(binding) => Some(binding),
            Kind::Visitor { .. } => None,
        }
    }

    pub(crate) fn binding_mut(&mut self) -> Option<&mut Binding> {
        match &mut self.kind {
            Kind::Bound(binding) => Some(binding),
            Kind::Visitor { .. } => None,
        }
    }

    fn has_ended(&self, now: Instant, wall: UnixTime) -> bool {
        let silent = now.saturating_duration_since(self.last_heard) >= LIFETIME;
        silent || self.binding().is_some_and(|binding| binding.not_after <= wall)
    }

    /// How many of `packets` to `destination` first contact lets through. Depends on this source alone.
    pub(crate) fn first_contact(&mut self, destination: Destination, now: Instant, packets: u64) -> u64 {
        let at = match self.attempts.iter().position(|attempt| attempt.destination == destination) {
            Some(at) => at,
            None => {
                let Some(at) = self.place_for_attempt(now) else { return 0 };
                let attempt = Attempt::new(destination, now);
                match self.attempts.get_mut(at) {
                    Some(place) => *place = attempt,
                    None => self.attempts.push(attempt),
                }
                at
            }
        };
        let attempt = &mut self.attempts[at];
        attempt.last = now;
        let admitted = attempt.bucket.holds(FIRST_CONTACT, now).min(packets);
        attempt.bucket.take(FIRST_CONTACT, now, admitted);
        admitted
    }

    /// Where another attempt goes: to a place that is free, or to that of the one whose last packet is the oldest. An agent whose
    /// peers are mostly down must still reach the one that is up, and may not try half the world.
    fn place_for_attempt(&mut self, now: Instant) -> Option<usize> {
        if let Some(over) = self.attempts.iter().position(|attempt| attempt.is_over(now)) {
            return Some(over);
        }
        if self.attempts.len() < ATTEMPTS {
            return Some(self.attempts.len());
        }
        let oldest = (0..ATTEMPTS).min_by_key(|at| self.attempts[*at].last);
        oldest.filter(|_| self.displacing.admit(DISPLACING, now))
    }

    pub(crate) fn reached(&self, destination: Destination) -> Option<Reached> {
        let attempt = self.attempts.iter().find(|attempt| attempt.destination == destination)?;
        attempt.reached
    }

    pub(crate) fn note_reached(&mut self, destination: Destination, reached: Reached) {
        let attempt = self.attempts.iter_mut().find(|attempt| attempt.destination == destination);
        if let Some(attempt) = attempt {
            attempt.reached = Some(reached);
        }
    }

    fn has_reached(&self, endpoint: EndpointId) -> bool {
        self.attempts.iter().any(|attempt| attempt.reached.is_some_and(|reached| reached.endpoint == endpoint))
    }
}

impl Attempt {
    fn new(destination: Destination, now: Instant) -> Self {
        Self { destination, bucket: Bucket::full(now), last: now, reached: None }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) >= ATTEMPT_LIFETIME
    }
}

impl Binding {
    pub(crate) fn new(
        authority: Fingerprint,
        route: RoutingId,
        instance: AgreementKey,
        session: MacKey,
        card: Card,
        not_after: UnixTime,
        e: [u8; 8],
    ) -> Self {
        Self {
            authority,
            route,
            instance,
            session,
            card,
            not_after,
            moves: 0,
            recent: [e, [0; 8], [0; 8], [0; 8]],
            flows: BTreeMap::new(),
        }
    }

    /// Notes who of the two sent, if this flow is kept here.
    fn refresh_flow(&mut self, with: EndpointId, note: impl FnOnce(&mut Flow)) -> bool {
        self.flows.get_mut(&with).map(note).is_some()
    }
}

impl Account {
    fn new(now: Instant) -> Self {
        Self { bytes: Bucket::full(now), packets: Bucket::full(now), bindings: 0, visitors: 0 }
    }

    /// Charges what fits of `load`; returns how many packets that is.
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

    fn is_unused(&self) -> bool {
        self.bindings == 0 && self.visitors == 0
    }
}

impl Table {
    pub(crate) fn id_at(&self, place: Place) -> Option<EndpointId> {
        self.by_place.get(&place).copied()
    }

    pub(crate) fn get(&self, id: EndpointId) -> Option<&Source> {
        self.sources.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: EndpointId) -> Option<&mut Source> {
        self.sources.get_mut(&id)
    }

    /// Bound ids after `after`, in order; for telling all of them something without a queue.
    pub(crate) fn next_bound(&self, after: Option<EndpointId>) -> Option<(EndpointId, &Source, &Binding)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let mut rest = self.sources.range((from, Unbounded));
        rest.find_map(|(id, source)| source.binding().map(|binding| (*id, source, binding)))
    }

    /// Instances bound to a route.
    pub(crate) fn instances(&self, route: RoutingId) -> impl Iterator<Item = EndpointId> + '_ {
        let all = (route, EndpointId([0; 8]))..=(route, EndpointId([255; 8]));
        self.routes.range(all).map(|(_, id)| *id)
    }

    /// The same, at most `most` of them, round the circle of ids from `start`.
    pub(crate) fn instances_from(
        &self,
        route: RoutingId,
        start: EndpointId,
        most: usize,
    ) -> impl Iterator<Item = EndpointId> + '_ {
        let behind = self.routes.range((route, start)..=(route, EndpointId([255; 8])));
        let before = self.routes.range((route, EndpointId([0; 8]))..(route, start));
        behind.chain(before).map(|(_, id)| *id).take(most)
    }

    pub(crate) fn is_bound_to(&self, id: EndpointId, route: RoutingId) -> bool {
        self.routes.contains(&(route, id))
    }

    /// Whether the source was dropped because it has ended.
    pub(crate) fn drop_if_ended(&mut self, id: EndpointId, now: Instant, wall: UnixTime) -> bool {
        let ended = self.get(id).is_some_and(|source| source.has_ended(now, wall));
        if ended {
            self.remove(id);
        }
        ended
    }

    pub(crate) fn insert(&mut self, id: EndpointId, source: Source) {
        self.remove(id);
        if let Some(former) = self.id_at(source.place) {
            self.remove(former);
        }
        let now = source.last_heard;
        match &source.kind {
            Kind::Bound(binding) => {
                self.routes.insert((binding.route, id));
                self.authority(binding.authority, now).bindings += 1;
                self.network(Network::of(source.place), now).bindings += 1;
            }
            Kind::Visitor { number } => {
                self.waiting.insert((*number, id));
                self.network(Network::of(source.place), now).visitors += 1;
            }
        }
        self.by_place.insert(source.place, id);
        self.sources.insert(id, source);
    }

    pub(crate) fn remove(&mut self, id: EndpointId) {
        let Some(source) = self.sources.remove(&id) else {
            return;
        };
        self.by_place.remove(&source.place);
        let network = Network::of(source.place);
        match source.kind {
            Kind::Bound(binding) => {
                self.routes.remove(&(binding.route, id));
                self.flows -= binding.flows.len();
                release(&mut self.networks, &network, |account| &mut account.bindings);
                release(&mut self.authorities, &binding.authority, |account| &mut account.bindings);
            }
            Kind::Visitor { number } => {
                self.waiting.remove(&(number, id));
                self.talking.remove(&(number, id));
                release(&mut self.networks, &network, |account| &mut account.visitors);
            }
        }
    }

    /// Lets the source at a place end within [`STREAM_GRACE`] unless it is heard from again.
    pub(crate) fn hurry(&mut self, place: Place, now: Instant) {
        let source = self.id_at(place).and_then(|id| self.sources.get_mut(&id));
        if let (Some(source), Some(early)) = (source, now.checked_sub(LIFETIME - STREAM_GRACE)) {
            source.last_heard = source.last_heard.min(early);
        }
    }

    /// Puts a source at another place; whoever was there before ends.
    pub(crate) fn relocate(&mut self, id: EndpointId, place: Place, local: Option<IpAddr>, now: Instant) {
        if let Some(former) = self.id_at(place).filter(|former| *former != id) {
            self.remove(former);
        }
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        let old = std::mem::replace(&mut source.place, place);
        source.local = local;
        source.last_heard = now;
        let bound = source.binding().is_some();
        self.by_place.remove(&old);
        self.by_place.insert(place, id);
        let (leaves, joins) = (Network::of(old), Network::of(place));
        if leaves != joins {
            *self.network(joins, now).residents(bound) += 1;
            release(&mut self.networks, &leaves, |account| account.residents(bound));
        }
    }

    /// Puts a newer handshake of the same instance in the place of the last; its flows stay.
    pub(crate) fn renew(&mut self, id: EndpointId, newer: Binding, now: Instant) {
        let Some(binding) = self.sources.get_mut(&id).and_then(Source::binding_mut) else {
            return;
        };
        let [a, b, c, _] = binding.recent;
        let (left, joined) = (binding.authority, newer.authority);
        let (old_route, new_route) = (binding.route, newer.route);
        *binding = Binding { recent: [newer.recent[0], a, b, c], flows: std::mem::take(&mut binding.flows), ..newer };
        // One key in two passports, of two names: the newer one speaks.
        self.routes.remove(&(old_route, id));
        self.routes.insert((new_route, id));
        if left != joined {
            *self.authority(joined, now).residents(true) += 1;
            release(&mut self.authorities, &left, |account| &mut account.bindings);
        }
    }

    fn authority(&mut self, of: Fingerprint, now: Instant) -> &mut Account {
        self.authorities.entry(of).or_insert_with(|| Account::new(now))
    }

    fn network(&mut self, of: Network, now: Instant) -> &mut Account {
        self.networks.entry(of).or_insert_with(|| Account::new(now))
    }

    pub(crate) fn bindings_of(&self, authority: &Fingerprint) -> u32 {
        self.authorities.get(authority).map_or(0, |account| account.bindings)
    }

    /// Bindings and visitors of a network.
    pub(crate) fn residents_of(&self, network: Network) -> (u32, u32) {
        let account = self.networks.get(&network);
        account.map_or((0, 0), |account| (account.bindings, account.visitors))
    }

    /// Charges what fits of `load`; returns how many packets that is. Who holds no binding has no account.
    pub(crate) fn charge_authority(&mut self, of: &Fingerprint, quota: &Quota, now: Instant, load: Load) -> u64 {
        self.authorities.get_mut(of).map_or(0, |account| account.charge(quota, now, load))
    }

    /// The same for a source's network.
    pub(crate) fn charge_network(&mut self, of: Place, quota: &Quota, now: Instant, load: Load) -> u64 {
        let account = self.networks.get_mut(&Network::of(of));
        account.map_or(0, |account| account.charge(quota, now, load))
    }

    /// Whether the two are past first contact. If `from` here answers who reached it, they are from now on.
    pub(crate) fn flow(&mut self, from: EndpointId, to: EndpointId, limits: &Limits, now: Instant) -> bool {
        let sender = self.sources.get_mut(&from).and_then(Source::binding_mut);
        if sender.is_some_and(|binding| binding.refresh_flow(to, |flow| flow.here = now)) {
            return true;
        }
        let receiver = self.sources.get_mut(&to).and_then(Source::binding_mut);
        if receiver.is_some_and(|binding| binding.refresh_flow(from, |flow| flow.there = now)) {
            return true;
        }
        let answers = self.get(to).is_some_and(|asker| asker.has_reached(from));
        answers && self.open_flow(from, to, limits, now)
    }

    /// Whether `who` has sent something to `to` since then.
    pub(crate) fn has_sent_since(&self, who: EndpointId, to: EndpointId, since: Instant) -> bool {
        let kept_by = |keeper, other| {
            let binding = self.get(keeper).and_then(Source::binding)?;
            binding.flows.get(&other)
        };
        kept_by(who, to).is_some_and(|flow| flow.here >= since)
            || kept_by(to, who).is_some_and(|flow| flow.there >= since)
    }

    fn open_flow(&mut self, answerer: EndpointId, asker: EndpointId, limits: &Limits, now: Instant) -> bool {
        if !self.make_room(FLOW_COST, limits.memory, Shed::Waiting) {
            return false;
        }
        let Some(binding) = self.sources.get_mut(&answerer).and_then(Source::binding_mut) else {
            return false;
        };
        if binding.flows.len() >= limits.flows_per_binding {
            return false;
        }
        binding.flows.insert(asker, Flow { here: now, there: now });
        self.flows += 1;
        if let Some(Kind::Visitor { number }) = self.sources.get(&asker).map(|source| &source.kind) {
            self.waiting.remove(&(*number, asker));
            self.talking.insert((*number, asker));
        }
        true
    }

    /// Whether a binding fits, after pushing out visitors if need be.
    pub(crate) fn make_room_for_binding(&mut self, memory: usize) -> bool {
        self.make_room(BOUND_COST, memory, Shed::AllVisitors)
    }

    /// Whether a visitor fits, after pushing out one that nobody answered if need be.
    pub(crate) fn make_room_for_visitor(&mut self, memory: usize) -> bool {
        self.make_room(VISITOR_COST, memory, Shed::Waiting)
    }

    fn make_room(&mut self, cost: usize, memory: usize, shed: Shed) -> bool {
        while self.memory() + cost > memory {
            let waiting = self.waiting.first();
            let victim = match shed {
                Shed::Waiting => waiting,
                Shed::AllVisitors => waiting.or_else(|| self.talking.first()),
            };
            let Some((_, id)) = victim.copied() else {
                return false;
            };
            self.remove(id);
        }
        true
    }

    fn memory(&self) -> usize {
        let visitors = self.waiting.len() + self.talking.len();
        let bound = self.sources.len() - visitors;
        bound * BOUND_COST + visitors * VISITOR_COST + self.flows * FLOW_COST
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let visitors = self.waiting.len() + self.talking.len();
        Occupancy {
            bound: self.sources.len() - visitors,
            visitors,
            flows: self.flows,
            memory: self.memory(),
            ..Occupancy::default()
        }
    }

    /// Drops all that has ended.
    pub(crate) fn sweep(&mut self, now: Instant, wall: UnixTime) {
        let mut ended = Vec::new();
        for (id, source) in &mut self.sources {
            if source.has_ended(now, wall) {
                ended.push(*id);
                continue;
            }
            source.attempts.retain(|attempt| !attempt.is_over(now));
            if source.attempts.is_empty() {
                source.attempts = Vec::new();
            }
            if let Kind::Bound(binding) = &mut source.kind {
                let before = binding.flows.len();
                binding.flows.retain(|_, flow| now.saturating_duration_since(flow.here.max(flow.there)) < FLOW_IDLE);
                self.flows -= before - binding.flows.len();
            }
        }
        for id in ended {
            self.remove(id);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }
}

/// Gives up one place in an account, and the account with its last place: an account that outlived its residents would
/// be memory that a flood can make us keep.
fn release<K: Ord>(accounts: &mut BTreeMap<K, Account>, key: &K, place: impl FnOnce(&mut Account) -> &mut u32) {
    let Some(account) = accounts.get_mut(key) else {
        return;
    };
    let places = place(account);
    *places = places.saturating_sub(1);
    if account.is_unused() {
        accounts.remove(key);
    }
}

/// Who may be pushed out.
#[derive(Clone, Copy)]
enum Shed {
    Waiting,
    AllVisitors,
}

impl Account {
    fn residents(&mut self, bound: bool) -> &mut u32 {
        if bound { &mut self.bindings } else { &mut self.visitors }
    }
}
