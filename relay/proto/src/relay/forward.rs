//! Sending packets on (`docs/spec/relay.md` section 5).
//!
//! A batch is cut into runs of segments with one and the same header, so the tables are asked once per run. What is
//! charged and what is kept never depends on whether the destination exists: it is looked up last.

use std::net::IpAddr;
use std::time::Instant;

use peerage_model::RoutingId;
use peerage_model::relay::frame::{
    self, COOKIE, Destination, ENDPOINT_HEADER, EndpointId, Frame, MAX_PACKET, ROUTE_HEADER, Tag,
};

use super::{Decision, Forward, Handled, Ingress, Relay};
use crate::counters::DropReason;
use crate::limits::{CHOICES, RECENT, REPICK};
use crate::place::Place;
use crate::table::{Load, Reached, Source};

/// Where a run goes, and how much of it.
struct Hop {
    to: Place,
    local: Option<IpAddr>,
    tag: Tag,
    source: EndpointId,
    packets: usize,
}

impl Relay {
    pub(super) fn forward(&mut self, ingress: &Ingress, batch: &mut [u8], segment: usize) -> Handled {
        let first = segment.min(batch.len());
        let Ok((tag, Frame::To { destination, .. })) = Frame::parse(&batch[..first]) else {
            return Handled { consumed: first, decision: self.drop_for(DropReason::Malformed) };
        };
        let run = match destination {
            // First contact is a packet or two, and its longer header is cut off: one at a time.
            Destination::Route(_) => first,
            Destination::Endpoint(_) => run_of(batch, segment),
        };
        let packets = run.div_ceil(segment);
        let decision = match self.route(ingress, tag, destination, packets, segment) {
            Ok(hop) => self.rewrite(&mut batch[..run], segment, destination, &hop, packets),
            Err(Stop::Challenge) if first >= COOKIE => self.challenge(ingress, tag),
            Err(Stop::Challenge) => self.drop_run(DropReason::Unknown, packets),
            Err(Stop::Drop(reason)) => self.drop_run(reason, packets),
        };
        Handled { consumed: run, decision }
    }

    fn route(
        &mut self,
        ingress: &Ingress,
        tag: Tag,
        destination: Destination,
        packets: usize,
        segment: usize,
    ) -> Result<Hop, Stop> {
        let now = ingress.now;
        let id = self.table.id_at(ingress.from).ok_or(Stop::Challenge)?;
        if self.table.drop_if_ended(id, now, ingress.wall) {
            return Err(Stop::Challenge);
        }
        let source = self.table.get_mut(id).ok_or(Stop::Challenge)?;
        if source.tag != tag {
            return Err(DropReason::WrongTag.into());
        }
        source.last_heard = now;
        let own_authority = source.binding().map(|binding| binding.authority);

        let mut load = Load { packets: packets as u64, size: segment as u64 };
        load.packets = self.table.charge_network(ingress.from, &self.limits.network, now, load);
        if let Some(authority) = own_authority {
            load.packets = self.table.charge_authority(&authority, &self.limits.authority, now, load);
        }
        if load.packets == 0 {
            return Err(DropReason::Quota.into());
        }
        let (target, in_flow) = self.choose(ingress, id, destination, &mut load)?;
        let hop = self.hop_to(id, target, in_flow)?;
        if own_authority.is_none()
            && in_flow
            && let Some(authority) = self.authority_of(target)
        {
            load.packets = self.table.charge_authority(&authority, &self.limits.authority, now, load);
        }
        if load.packets == 0 {
            return Err(DropReason::Quota.into());
        }
        let packets = usize::try_from(load.packets).unwrap_or(packets);
        Ok(Hop { packets, ..hop })
    }

    /// Which endpoint it is, and whether the two are past first contact.
    fn choose(
        &mut self,
        ingress: &Ingress,
        id: EndpointId,
        destination: Destination,
        load: &mut Load,
    ) -> Result<(EndpointId, bool), Stop> {
        if let Destination::Endpoint(target) = destination
            && self.table.flow(id, target, &self.limits, ingress.now)
        {
            return Ok((target, true));
        }
        let source = self.table.get_mut(id).ok_or(Stop::Challenge)?;
        load.packets = source.first_contact(destination, ingress.now, load.packets);
        if load.packets == 0 {
            return Err(DropReason::FirstContact.into());
        }
        let earlier = source.reached(destination);
        let reached = match destination {
            Destination::Endpoint(endpoint) => Reached { endpoint, asked: ingress.now, passed: 0 },
            Destination::Route(route) => {
                self.instance_for(id, route, earlier, ingress.now).ok_or(DropReason::Nowhere)?
            }
        };
        let source = self.table.get_mut(id).ok_or(Stop::Challenge)?;
        source.note_reached(destination, reached);
        Ok((reached.endpoint, false))
    }

    /// The instance that a first packet goes to: the one that had the last, unless it is gone or owes an answer for too
    /// long. An instance that died is bound for up to 90 s, and must not hold its dialers that long.
    fn instance_for(
        &self,
        source: EndpointId,
        route: RoutingId,
        earlier: Option<Reached>,
        now: Instant,
    ) -> Option<Reached> {
        let passed = match earlier.filter(|earlier| self.table.is_bound_to(earlier.endpoint, route)) {
            None => 0,
            Some(earlier) if self.table.has_sent_since(earlier.endpoint, source, earlier.asked) => {
                return Some(Reached { asked: now, ..earlier });
            }
            Some(earlier) if now.saturating_duration_since(earlier.asked) < REPICK => return Some(earlier),
            Some(earlier) => earlier.passed + 1,
        };
        let endpoint = self.pick(source, route, passed, now)?;
        Some(Reached { endpoint, asked: now, passed })
    }

    /// Rendezvous hashing over the instances of a route, those heard recently first; `passed` of them were tried in vain.
    /// Over [`CHOICES`] of them at most, others for each source: anybody may bind thousands under one name and have them asked
    /// for over and over, and ranking all would hold up everybody's packets.
    fn pick(&self, source: EndpointId, route: RoutingId, passed: usize, now: Instant) -> Option<EndpointId> {
        let recent = |instance| {
            let instance = self.table.get(instance);
            instance.is_some_and(|source| now.saturating_duration_since(source.last_heard) < RECENT)
        };
        let taste = self.boot_key.taste(source);
        let instances = self.table.instances_from(route, EndpointId(taste.to_be_bytes()), CHOICES);
        let others = instances.filter(|instance| *instance != source);
        let mut ranked: Vec<_> =
            others.map(|instance| (recent(instance), preference(taste, instance), instance)).collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        let (_, _, instance) = ranked.get(passed % ranked.len().max(1))?;
        Some(*instance)
    }

    fn hop_to(&self, source: EndpointId, target: EndpointId, in_flow: bool) -> Result<Hop, DropReason> {
        let there = self.table.get(target).ok_or(DropReason::Nowhere)?;
        let is_open = in_flow || there.binding().is_some();
        if target == source || !is_open {
            return Err(DropReason::Nowhere);
        }
        Ok(Hop { to: there.place, local: there.local, tag: there.tag, source, packets: 0 })
    }

    fn authority_of(&self, id: EndpointId) -> Option<peerage_model::Fingerprint> {
        self.table.get(id).and_then(Source::binding).map(|binding| binding.authority)
    }

    fn rewrite(
        &mut self,
        run: &mut [u8],
        segment: usize,
        destination: Destination,
        hop: &Hop,
        packets: usize,
    ) -> Decision {
        self.counters.drop(DropReason::Quota, packets - hop.packets);
        let end = run.len().min(hop.packets * segment);
        let start = match destination {
            Destination::Route(_) => ROUTE_HEADER - ENDPOINT_HEADER,
            Destination::Endpoint(_) => 0,
        };
        let header = frame::from_header(hop.tag, hop.source);
        for one in run[start..end].chunks_mut(segment) {
            one[..ENDPOINT_HEADER].copy_from_slice(&header);
        }
        self.counters.forwarded_packets += hop.packets as u64;
        self.counters.forwarded_bytes += (end - start) as u64;
        Decision::Forward(Forward { to: hop.to, local: hop.local, range: start..end, segment })
    }

    fn drop_run(&mut self, reason: DropReason, packets: usize) -> Decision {
        self.counters.drop(reason, packets);
        Decision::Drop
    }
}

/// How much who has this taste prefers `instance` (rendezvous hashing); the highest wins. One multiplication each where a
/// MAC would be half a microsecond: the taste is secret, and who guessed it would only know which instance it gets.
fn preference(taste: u64, instance: EndpointId) -> u64 {
    let mut mixed = taste ^ u64::from_be_bytes(instance.0);
    // The finalizer of SplitMix64 (Steele, Lea and Flood 2014): each bit in changes half of the bits out.
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Why a run goes nowhere.
enum Stop {
    /// Its source is not known at this address.
    Challenge,
    Drop(DropReason),
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// Bytes at the start of `batch` whose segments all are packets under the first one's header.
fn run_of(batch: &[u8], segment: usize) -> usize {
    let (header, mut end) = (&batch[..ENDPOINT_HEADER], segment.min(batch.len()));
    while end < batch.len() {
        let next = &batch[end..batch.len().min(end + segment)];
        let packet = next.len().checked_sub(ENDPOINT_HEADER);
        let same = packet.is_some_and(|len| (1..=MAX_PACKET).contains(&len))
            && next[..ENDPOINT_HEADER] == *header
            && next[ENDPOINT_HEADER] >= 64;
        if !same {
            break;
        }
        end += next.len();
    }
    end
}
