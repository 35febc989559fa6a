//! One client of the relay: where it is, whom it tries to reach and, if it is bound, whom it talks to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use peerage_model::relay::frame::keys::MacKey;
use peerage_model::relay::frame::{Destination, EndpointId, Tag};
use peerage_model::{AgreementKey, Fingerprint, RoutingId, UnixTime};

use super::account::Resident;
use crate::bucket::Bucket;
use crate::limits::{ATTEMPT_LIFETIME, ATTEMPTS, DISPLACING, FIRST_CONTACT, FLOW_IDLE, LIFETIME, STREAM_GRACE};
use crate::mailbox::Card;
use crate::place::Place;

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
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
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
pub(super) struct Flow {
    /// When the one that keeps it last sent.
    pub(super) here: Instant,
    /// When the other one did.
    pub(super) there: Instant,
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

impl Source {
    /// The most that a source takes without what only a binding has, with all its attempts.
    pub(super) const COST: usize = size_of::<Self>() * 2 + ATTEMPTS * size_of::<Attempt>();

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

    pub(super) fn resident(&self) -> Resident {
        match &self.kind {
            Kind::Bound(_) => Resident::Binding,
            Kind::Visitor { .. } => Resident::Visitor,
        }
    }

    pub(super) fn has_ended(&self, now: Instant, wall: UnixTime) -> bool {
        let silent = now.saturating_duration_since(self.last_heard) >= LIFETIME;
        silent || self.binding().is_some_and(|binding| binding.not_after <= wall)
    }

    /// Ends within [`STREAM_GRACE`] unless it is heard from again.
    pub(super) fn hurry(&mut self, now: Instant) {
        if let Some(early) = now.checked_sub(LIFETIME - STREAM_GRACE) {
            self.last_heard = self.last_heard.min(early);
        }
    }

    /// Is at another place. Gives the one before.
    pub(super) fn relocate(&mut self, place: Place, local: Option<IpAddr>, now: Instant) -> Place {
        self.local = local;
        self.last_heard = now;
        std::mem::replace(&mut self.place, place)
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

    pub(super) fn has_reached(&self, endpoint: EndpointId) -> bool {
        self.attempts.iter().any(|attempt| attempt.reached.is_some_and(|reached| reached.endpoint == endpoint))
    }

    /// Drops attempts and flows that are over, and their memory with the last attempt. Gives how many flows those were.
    pub(super) fn sweep(&mut self, now: Instant) -> usize {
        self.attempts.retain(|attempt| !attempt.is_over(now));
        if self.attempts.is_empty() {
            self.attempts = Vec::new();
        }
        self.binding_mut().map_or(0, |binding| binding.drop_idle_flows(now))
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
    /// The most that a flow takes.
    pub(super) const FLOW_COST: usize = size_of::<(EndpointId, Flow)>() * 2 + 16;

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

    /// A newer handshake of the same instance takes the place of the last; flows stay.
    pub(super) fn renew(&mut self, newer: Self) {
        let ([e, ..], [a, b, c, _]) = (newer.recent, self.recent);
        *self = Self { recent: [e, a, b, c], flows: std::mem::take(&mut self.flows), ..newer };
    }

    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn flow(&self, with: EndpointId) -> Option<&Flow> {
        self.flows.get(&with)
    }

    /// Notes who of the two sent, if this flow is kept here.
    pub(super) fn refresh_flow(&mut self, with: EndpointId, note: impl FnOnce(&mut Flow)) -> bool {
        self.flows.get_mut(&with).map(note).is_some()
    }

    /// Keeps a flow from here on, unless there are `most`.
    pub(super) fn open_flow(&mut self, with: EndpointId, most: usize, now: Instant) -> bool {
        let has_room = self.flows.len() < most;
        if has_room {
            self.flows.insert(with, Flow { here: now, there: now });
        }
        has_room
    }

    fn drop_idle_flows(&mut self, now: Instant) -> usize {
        let before = self.flows.len();
        self.flows.retain(|_, flow| now.saturating_duration_since(flow.here.max(flow.there)) < FLOW_IDLE);
        before - self.flows.len()
    }
}
