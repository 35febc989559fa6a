//! The relays under the sessions: our own, where peers find us, and the peers', where we find them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use peerage_model::id::sha256;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::EndpointId;
use peerage_model::{AgreementSecret, RoutingId};
use tracing::{debug, info};

use super::Node;
use super::event::{Event, Now};
use super::session::RelayRoute;
use super::status::RelayStatus;
use crate::nat::{NatClassifier, NatReport};
use crate::noise::SeededRandom;
use crate::path::DirectPath;
use crate::relay::{ClientConfig, Destination, RelayClient, RelayEvent, Role};

/// An agent binds at, and a dialer asks at, this many of the relays in a list (DESIGN section 6).
const RELAYS_PER_AGENT: usize = 2;
/// A relay of a peer's that no session used for this long is left.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// One relay of this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct RelayKey(u32);

/// What came from a relay.
#[derive(Debug)]
pub(super) enum FromRelay {
    /// A tunnel packet.
    Packet { relay: RelayKey, sender: EndpointId, packet: BytesMut },
    /// The relay itself had something to say.
    Changed,
}

/// All relay clients of a node.
#[derive(Debug)]
pub(super) struct Relays {
    secret: AgreementSecret,
    credential: Vec<u8>,
    random: SeededRandom,
    own: BTreeSet<RelayInfo>,
    entries: BTreeMap<RelayKey, Entry>,
    by_address: BTreeMap<SocketAddr, RelayKey>,
    next_key: u32,
    hosts: BTreeSet<SocketAddr>,
    nat: NatClassifier,
    /// Names that the driver must look up.
    unresolved: Vec<RelayInfo>,
    reported: Option<NatReport>,
    leaving: bool,
}

#[derive(Debug)]
struct Entry {
    info: RelayInfo,
    own: bool,
    used: Instant,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The driver looks the name up.
    Resolving,
    /// The client talks to `address`; `observed` is set while the relay knows us.
    Known { address: SocketAddr, client: Box<RelayClient>, observed: Option<SocketAddr> },
}

impl Relays {
    pub(super) fn new(secret: AgreementSecret, credential: Vec<u8>, random: SeededRandom) -> Self {
        Self {
            secret,
            credential,
            random,
            own: BTreeSet::new(),
            entries: BTreeMap::new(),
            by_address: BTreeMap::new(),
            next_key: 0,
            hosts: BTreeSet::new(),
            nat: NatClassifier::new(0, []),
            unresolved: Vec::new(),
            reported: None,
            leaving: false,
        }
    }

    /// Our own list. We bind at those that rendezvous hashing picks; the caller's routing id is in our credential.
    pub(super) fn set_own(&mut self, list: &[RelayInfo], me: &RoutingId, now: Instant) {
        let chosen: BTreeSet<RelayInfo> = pick(list, me).into_iter().cloned().collect();
        if chosen == self.own {
            return;
        }
        let left: Vec<RelayKey> =
            self.entries.iter().filter(|(_, e)| e.own && !chosen.contains(&e.info)).map(|(key, _)| *key).collect();
        left.into_iter().for_each(|key| self.remove(key));
        self.own = chosen.clone();
        for info in chosen {
            match self.find(&info) {
                Some(key) if self.entries.get(&key).is_some_and(|entry| entry.own) => continue,
                // Where we only visited so far, we bind from now on.
                Some(key) => self.remove(key),
                None => {}
            }
            self.add(info, true, now);
        }
    }

    /// The relays at which `destination` may be found, of those in its list.
    pub(super) fn towards(&mut self, destination: &RoutingId, list: &[RelayInfo], now: Instant) -> Vec<RelayKey> {
        let picked: Vec<RelayInfo> = pick(list, destination).into_iter().cloned().collect();
        let keys: Vec<RelayKey> =
            picked.into_iter().map(|info| self.find(&info).unwrap_or_else(|| self.add(info, false, now))).collect();
        for key in &keys {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.used = now;
            }
        }
        keys
    }

    fn find(&self, info: &RelayInfo) -> Option<RelayKey> {
        self.entries.iter().find(|(_, e)| e.info == *info).map(|(key, _)| *key)
    }

    fn add(&mut self, info: RelayInfo, own: bool, now: Instant) -> RelayKey {
        self.next_key += 1;
        let key = RelayKey(self.next_key);
        self.entries.insert(key, Entry { info: info.clone(), own, used: now, place: Place::Resolving });
        match info.host.as_str().parse::<IpAddr>() {
            Ok(ip) => self.resolved(&info, &[SocketAddr::new(ip, info.port)], now),
            Err(_) => self.unresolved.push(info),
        }
        key
    }

    fn remove(&mut self, key: RelayKey) {
        if let Some(Entry { place: Place::Known { address, .. }, .. }) = self.entries.remove(&key) {
            self.by_address.remove(&address);
        }
    }

    /// A name was looked up. An address of a family that our socket has is preferred; an empty answer is asked again.
    pub(super) fn resolved(&mut self, info: &RelayInfo, addresses: &[SocketAddr], now: Instant) {
        let Some(key) = self.find(info) else { return };
        let v6 = self.hosts.iter().any(SocketAddr::is_ipv6);
        let v4 = self.hosts.iter().any(SocketAddr::is_ipv4) || !v6;
        let usable = |a: &&SocketAddr| if a.is_ipv4() { v4 } else { v6 };
        let Some(address) = addresses.iter().find(usable).or(addresses.first()).copied() else {
            return;
        };
        let address = crate::stun::canonical(address);
        if let Some(holder) = self.by_address.get(&address).copied() {
            // Two keys for one address cannot both be right. Ours comes from our owner, the other from some peer.
            let ours = self.entries.get(&key).is_some_and(|entry| entry.own);
            let theirs = self.entries.get(&holder).is_some_and(|entry| !entry.own);
            if !(ours && theirs) {
                return;
            }
            self.remove(holder);
        }
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if !matches!(entry.place, Place::Resolving) {
            return;
        }
        let role = match entry.own {
            true => Role::Bind { secret: self.secret.clone(), credential: self.credential.clone() },
            false => Role::Visit,
        };
        let client = Box::new(RelayClient::new(ClientConfig::new(info.key, role), self.random.bytes(), now));
        entry.place = Place::Known { address, client, observed: None };
        self.by_address.insert(address, key);
    }

    pub(super) fn set_hosts(&mut self, hosts: &BTreeSet<SocketAddr>) {
        self.hosts.clone_from(hosts);
        let port = hosts.first().map_or(0, SocketAddr::port);
        self.nat = NatClassifier::new(port, hosts.iter().map(SocketAddr::ip));
        let seen: Vec<_> = self.known().filter_map(|(a, _, observed)| Some((a, observed?))).collect();
        for (relay, observed) in seen {
            self.nat.observe_mapping(relay, observed);
        }
    }

    fn known(&self) -> impl Iterator<Item = (SocketAddr, &RelayClient, Option<SocketAddr>)> {
        self.entries.values().filter_map(|entry| match &entry.place {
            Place::Known { address, client, observed } => Some((*address, &**client, *observed)),
            Place::Resolving => None,
        })
    }

    fn clients(&mut self) -> impl Iterator<Item = (SocketAddr, &mut RelayClient)> {
        self.entries.values_mut().filter_map(|entry| match &mut entry.place {
            Place::Known { address, client, .. } => Some((*address, &mut **client)),
            Place::Resolving => None,
        })
    }

    pub(super) fn local_address_changed(&mut self, now: Instant) {
        self.clients().for_each(|(_, client)| client.address_changed(now));
    }

    pub(super) fn renew(&mut self, credential: Vec<u8>, now: Instant) {
        self.credential.clone_from(&credential);
        self.clients().for_each(|(_, client)| client.renew(credential.clone(), now));
    }

    /// A datagram with a relay frame's first byte; from an address that is no relay of ours it is nothing.
    pub(super) fn handle(&mut self, from: SocketAddr, mut datagram: BytesMut, now: Instant) -> Option<FromRelay> {
        let relay = *self.by_address.get(&from)?;
        let Place::Known { client, .. } = &mut self.entries.get_mut(&relay)?.place else {
            return None;
        };
        match client.handle_datagram(now, &datagram) {
            Some(delivered) => {
                let packet = datagram.split_off(delivered.packet_at);
                Some(FromRelay::Packet { relay, sender: delivered.from, packet })
            }
            None => Some(FromRelay::Changed),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.clients().for_each(|(_, client)| client.handle_timeout(now));
        let stale: Vec<RelayKey> = self
            .entries
            .iter()
            .filter(|(_, e)| !e.own && now.saturating_duration_since(e.used) > FORGET_AFTER)
            .map(|(key, _)| *key)
            .collect();
        stale.into_iter().for_each(|key| self.remove(key));
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.known().filter_map(|(_, client, _)| client.poll_timeout()).min()
    }

    pub(super) fn poll_transmit(&mut self) -> Option<(DirectPath, Vec<u8>)> {
        self.clients().find_map(|(address, client)| Some((DirectPath::main(address), client.poll_transmit()?)))
    }

    /// After [`Self::leave`] was asked for: the next relay's UNBIND. To be sent when nothing else is left to send.
    pub(super) fn poll_farewell(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        if !self.leaving {
            return None;
        }
        self.clients().find_map(|(address, client)| Some((address, client.leave()?)))
    }

    /// This agent shuts down: relays forget it at once, so that no first flight goes astray until the binding ends.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
    }

    /// Puts packets for an endpoint of a relay into frames. `None` while the relay is not up.
    pub(super) fn wrap(
        &mut self,
        now: Instant,
        relay: RelayKey,
        destination: Destination,
        packets: &[u8],
        segment_size: Option<usize>,
        out: &mut Vec<u8>,
    ) -> Option<(DirectPath, Option<usize>)> {
        let Place::Known { address, client, .. } = &mut self.entries.get_mut(&relay)?.place else {
            return None;
        };
        let framed = client.wrap(now, destination, packets, segment_size, out)?;
        Some((DirectPath::main(*address), framed))
    }

    /// Keeps a peer's relay while a session uses it.
    pub(super) fn in_use(&mut self, relay: RelayKey, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&relay) {
            entry.used = now;
        }
    }

    /// Where relays see us.
    pub(super) fn reflexive(&self) -> BTreeSet<SocketAddr> {
        self.nat.reflexive()
    }

    pub(super) fn nat_report(&self) -> NatReport {
        self.nat.report()
    }

    pub(super) fn any_reachable(&self) -> bool {
        self.known().any(|(_, _, observed)| observed.is_some())
    }

    /// What to tell somebody whose peer did not answer.
    pub(super) fn why_unreachable(&self) -> &'static str {
        match self.any_reachable() {
            true => "the relay is reachable; the peer may be down, or may not trust this agent (yet)",
            false => "no relay could be reached; check the network and the relay's address (`peerage doctor`)",
        }
    }

    pub(super) fn status(&self) -> Vec<RelayStatus> {
        self.entries
            .values()
            .map(|entry| RelayStatus {
                relay: entry.info.clone(),
                own: entry.own,
                observed: match &entry.place {
                    Place::Known { observed, .. } => *observed,
                    Place::Resolving => None,
                },
            })
            .collect()
    }

    /// What the clients have to say, as (relay, event).
    fn poll_event(&mut self) -> Option<(RelayKey, RelayEvent)> {
        self.entries.iter_mut().find_map(|(key, entry)| match &mut entry.place {
            Place::Known { client, .. } => Some((*key, client.poll_event()?)),
            Place::Resolving => None,
        })
    }

    fn observed(&mut self, key: RelayKey, seen: Option<SocketAddr>) -> Option<(RelayInfo, bool, SocketAddr)> {
        let entry = self.entries.get_mut(&key)?;
        let Place::Known { address, observed, .. } = &mut entry.place else {
            return None;
        };
        *observed = seen.map(crate::stun::canonical);
        if let Some(seen) = *observed {
            self.nat.observe_mapping(*address, seen);
        }
        Some((entry.info.clone(), entry.own, *address))
    }
}

impl Node {
    /// Lets everything follow from what relays said.
    pub(super) fn settle_relays(&mut self, now: Now) {
        while let Some(relay) = self.relays.unresolved.pop() {
            self.events.push_back(Event::Resolve { relay });
        }
        let before = self.relays.reflexive();
        while let Some((key, event)) = self.relays.poll_event() {
            self.on_relay_event(key, event, now);
        }
        if self.relays.reflexive() != before {
            self.candidates_changed(now);
        }
        let report = self.relays.nat_report();
        if self.relays.reported != Some(report) && self.relays.any_reachable() {
            self.relays.reported = Some(report);
            self.events.push_back(Event::Nat(report));
        }
    }

    fn on_relay_event(&mut self, key: RelayKey, event: RelayEvent, now: Now) {
        match event {
            RelayEvent::Ready { observed } => {
                let Some((relay, own, _)) = self.relays.observed(key, Some(observed)) else {
                    return;
                };
                if own {
                    info!(target: "events::relay_up", ?relay);
                    self.events.push_back(Event::RelayUp { relay, observed });
                }
                self.send_held(key, now);
                self.say_we_are_there(key);
            }
            RelayEvent::Lost => {
                let Some((relay, own, _)) = self.relays.observed(key, None) else {
                    return;
                };
                if own {
                    info!(target: "events::relay_down", ?relay);
                    self.events.push_back(Event::RelayDown { relay });
                }
            }
            RelayEvent::Refused(reason) => {
                if let Some((relay, _, _)) = self.relays.observed(key, None) {
                    info!(target: "events::relay_refused", ?relay, ?reason);
                    self.events.push_back(Event::RelayRefused { relay, reason: format!("{reason:?}") });
                }
            }
            RelayEvent::Draining { grace } => debug!(?key, ?grace, "relay drains"),
        }
    }

    /// A relay that was away or saw us move is back: sessions over it say so, instead of waiting out their timeouts.
    fn say_we_are_there(&mut self, relay: RelayKey) {
        for (key, session) in &mut self.sessions {
            let over_it = matches!(session.relayed, RelayRoute::Known { relay: used, .. } if used == relay);
            if over_it && session.up().is_some() {
                session.connection.ping();
                self.ready.insert(*key);
            }
        }
    }

    /// First flights that waited for this relay go out now, instead of after a retransmission timeout.
    fn send_held(&mut self, relay: RelayKey, now: Now) {
        let waiting: Vec<_> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.held.is_some())
            .filter(|(_, s)| matches!(&s.relayed, RelayRoute::Racing { relays, .. } if relays.contains(&relay)))
            .map(|(key, _)| *key)
            .collect();
        for key in waiting {
            self.release_held(key, relay, now.mono);
        }
    }
}

/// The relays of a list that serve this routing id: the highest by hash of (relay key, routing id).
fn pick<'a>(list: &'a [RelayInfo], id: &RoutingId) -> Vec<&'a RelayInfo> {
    let mut ranked: Vec<_> =
        list.iter().map(|info| (sha256(&[b"peerage relay pick v1", &info.key.0, &id.0]), info)).collect();
    ranked.sort_by(|a, b| b.cmp(a));
    ranked.dedup();
    ranked.into_iter().take(RELAYS_PER_AGENT).map(|(_, info)| info).collect()
}
