//! Who is here: bound instances and visitors, by id, by address and by route, and what they may still use.
//!
//! Memory is counted, not measured: each entry at the most it can grow to, so that no flood can find an entry that is
//! cheap to count and dear to keep. Ordered maps throughout: look-ups take about 0.1 µs at 10 000 entries and happen
//! once per batch, and the order makes a run reproducible.

mod account;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use peerage_model::relay::frame::EndpointId;
use peerage_model::{Fingerprint, RoutingId, UnixTime};

use self::account::{Accounts, Resident};
use self::source::Kind;
use crate::counters::Occupancy;
use crate::limits::{Limits, Quota};
use crate::mailbox::Card;
use crate::network::Network;
use crate::place::Place;

pub(crate) use self::account::Load;
pub(crate) use self::source::{Binding, Reached, Source};

/// Room an ordered map's node spends beside an entry, at worst (nodes half full, and their own header).
const MAP_ENTRY: usize = 64;
/// A source without what only a binding has: with its places in three indexes, and alone in its network.
const VISITOR_COST: usize = Source::COST + 3 * MAP_ENTRY + ACCOUNT_COST + 2 * size_of::<(Place, EndpointId)>();
/// The same for a binding, its flows aside.
const BOUND_COST: usize = VISITOR_COST + size_of::<Binding>() + Card::COST + MAP_ENTRY + ACCOUNT_COST;
const ACCOUNT_COST: usize = Accounts::<Fingerprint>::COST + MAP_ENTRY;

#[derive(Debug, Default)]
pub(crate) struct Table {
    sources: BTreeMap<EndpointId, Source>,
    by_place: BTreeMap<Place, EndpointId>,
    routes: BTreeSet<(RoutingId, EndpointId)>,
    /// Visitors that nobody has answered, oldest first: the first to go.
    waiting: BTreeSet<(u64, EndpointId)>,
    /// Visitors in a flow, oldest first: next to go, and only for a binding.
    talking: BTreeSet<(u64, EndpointId)>,
    authorities: Accounts<Fingerprint>,
    networks: Accounts<Network>,
    flows: usize,
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
                self.authorities.join(binding.authority, Resident::Binding, now);
            }
            Kind::Visitor { number } => {
                self.waiting.insert((*number, id));
            }
        }
        self.networks.join(Network::of(source.place), source.resident(), now);
        self.by_place.insert(source.place, id);
        self.sources.insert(id, source);
    }

    pub(crate) fn remove(&mut self, id: EndpointId) {
        let Some(source) = self.sources.remove(&id) else {
            return;
        };
        self.by_place.remove(&source.place);
        self.networks.leave(&Network::of(source.place), source.resident());
        match source.kind {
            Kind::Bound(binding) => {
                self.routes.remove(&(binding.route, id));
                self.flows -= binding.flows();
                self.authorities.leave(&binding.authority, Resident::Binding);
            }
            Kind::Visitor { number } => {
                self.waiting.remove(&(number, id));
                self.talking.remove(&(number, id));
            }
        }
    }

    /// Lets the source at a place end soon unless it is heard from again.
    pub(crate) fn hurry(&mut self, place: Place, now: Instant) {
        if let Some(source) = self.id_at(place).and_then(|id| self.sources.get_mut(&id)) {
            source.hurry(now);
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
        let old = source.relocate(place, local, now);
        self.networks.transfer(&Network::of(old), Network::of(place), source.resident(), now);
        self.by_place.remove(&old);
        self.by_place.insert(place, id);
    }

    /// Puts a newer handshake of the same instance in the place of the last; its flows stay.
    pub(crate) fn renew(&mut self, id: EndpointId, newer: Binding, now: Instant) {
        let Some(binding) = self.sources.get_mut(&id).and_then(Source::binding_mut) else {
            return;
        };
        // One key in two passports, of two names: the newer one speaks.
        self.routes.remove(&(binding.route, id));
        self.routes.insert((newer.route, id));
        self.authorities.transfer(&binding.authority, newer.authority, Resident::Binding, now);
        binding.renew(newer);
    }

    pub(crate) fn bindings_of(&self, authority: &Fingerprint) -> u32 {
        self.authorities.residents(authority).0
    }

    /// Bindings and visitors of a network.
    pub(crate) fn residents_of(&self, network: Network) -> (u32, u32) {
        self.networks.residents(&network)
    }

    /// Charges what fits of `load`; returns how many packets that is. Who holds no binding has no account.
    pub(crate) fn charge_authority(&mut self, of: &Fingerprint, quota: &Quota, now: Instant, load: Load) -> u64 {
        self.authorities.charge(of, quota, now, load)
    }

    /// The same for a source's network.
    pub(crate) fn charge_network(&mut self, of: Place, quota: &Quota, now: Instant, load: Load) -> u64 {
        self.networks.charge(&Network::of(of), quota, now, load)
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
        let kept_by = |keeper, other| self.get(keeper).and_then(Source::binding)?.flow(other);
        kept_by(who, to).is_some_and(|flow| flow.here >= since)
            || kept_by(to, who).is_some_and(|flow| flow.there >= since)
    }

    fn open_flow(&mut self, answerer: EndpointId, asker: EndpointId, limits: &Limits, now: Instant) -> bool {
        if !self.make_room(Binding::FLOW_COST, limits.memory, Shed::Waiting) {
            return false;
        }
        let keeper = self.sources.get_mut(&answerer).and_then(Source::binding_mut);
        if !keeper.is_some_and(|binding| binding.open_flow(asker, limits.flows_per_binding, now)) {
            return false;
        }
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

    /// How many are bound, and how many visit.
    fn counts(&self) -> (usize, usize) {
        let visitors = self.waiting.len() + self.talking.len();
        (self.sources.len() - visitors, visitors)
    }

    fn memory(&self) -> usize {
        let (bound, visitors) = self.counts();
        bound * BOUND_COST + visitors * VISITOR_COST + self.flows * Binding::FLOW_COST
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let (bound, visitors) = self.counts();
        Occupancy { bound, visitors, flows: self.flows, memory: self.memory(), ..Occupancy::default() }
    }

    /// Drops all that has ended.
    pub(crate) fn sweep(&mut self, now: Instant, wall: UnixTime) {
        let mut ended = Vec::new();
        for (id, source) in &mut self.sources {
            if source.has_ended(now, wall) {
                ended.push(*id);
                continue;
            }
            self.flows -= source.sweep(now);
        }
        for id in ended {
            self.remove(id);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }
}

/// Who may be pushed out.
#[derive(Clone, Copy)]
enum Shed {
    Waiting,
    AllVisitors,
}
