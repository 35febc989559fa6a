//! The relays under the sessions: our own, where peers find us, and the peers', where we find them.

mod names;
mod seen;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use peerage_model::id::sha256;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::EndpointId;
use peerage_model::relay::frame::mailbox::MailId;
use peerage_model::{AgreementSecret, InstanceId, RoutingId};
use tracing::{debug, info};

use self::names::Names;
use self::seen::News;
use self::stream::{Fallback, Order};
use super::Node;
use super::event::{Event, Now};
use super::session::RelayRoute;
use super::status::{RelayStatus, RelayWay};
use crate::nat::NatClassifier;
use crate::noise::SeededRandom;
use crate::path::DirectPath;
use crate::relay::{ClientConfig, Destination, KEEPALIVE, MailEvent, Question, RelayClient, RelayEvent, Role};

/// An agent binds at, and a dialer asks at, this many of the relays in a list (DESIGN section 6).
const RELAYS_PER_AGENT: usize = 2;
/// A relay that left a list is still bound at, and asked at, for this long: others learn of the change later
/// (DESIGN section 6).
pub(super) const OVERLAP: Duration = Duration::from_secs(600);
/// Most spellings that are remembered. Peers write these lists, and one that is forgotten is found out again.
const MAX_SPELLINGS: usize = 256;
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
    /// Other ways to write relays that we have, found out when a name was looked up.
    spellings: BTreeMap<RelayInfo, RelayKey>,
    next_key: u32,
    hosts: BTreeSet<SocketAddr>,
    /// Where we are seen, as it counts: follows from the entries, by [`Self::judge_nat`].
    outside: BTreeSet<SocketAddr>,
    nat: NatClassifier,
    /// Where the second port of one of our relays sees us, where that was asked.
    second_port: Option<Word>,
    /// Names that the driver must look up.
    names: Names,
    news: News,
    next_stream: u32,
    /// Streams that the driver is to open or close.
    orders: Vec<(RelayKey, Order)>,
    leaving: bool,
    public: bool,
    keepalive: Duration,
}

#[derive(Debug)]
struct Entry {
    info: RelayInfo,
    own: bool,
    added: Instant,
    used: Instant,
    /// It is in our list no more, and left then.
    until: Option<Instant>,
    /// It said that it goes away.
    draining: bool,
    /// It stopped answering; its name may lead elsewhere.
    lost: bool,
    place: Place,
    /// Where it sees us, as it counts. It outlives the relay's silence, as direct paths do.
    word: Option<Word>,
    /// Asked, and neither answered nor given up: for a client that comes later, by UDP or on a stream.
    questions: Vec<(u64, Question)>,
    fallback: Fallback,
}

#[derive(Debug)]
enum Place {
    /// The driver looks the name up.
    Resolving,
    /// It has an address, at which another relay is in use by another key.
    Taken { address: SocketAddr },
    /// The client talks to `address`; `observed` is set while the relay knows us.
    Known { address: SocketAddr, client: Box<RelayClient>, observed: Option<SocketAddr> },
}

/// A relay's word of where it sees us, and the address of the relay that this was seen from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Word {
    relay: SocketAddr,
    seen: SocketAddr,
}

/// Which of a relay's two clients has something to say.
#[derive(Clone, Copy, Debug)]
enum By {
    Udp,
    Stream,
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
            spellings: BTreeMap::new(),
            next_key: 0,
            hosts: BTreeSet::new(),
            outside: BTreeSet::new(),
            nat: NatClassifier::new(0, []),
            second_port: None,
            names: Names::default(),
            news: News::default(),
            next_stream: 0,
            orders: Vec::new(),
            leaving: false,
            public: false,
            keepalive: KEEPALIVE,
        }
    }

    /// Our own list. We bind at those that rendezvous hashing picks; the caller's routing id is in our credential. Those that
    /// are picked no more stay for [`OVERLAP`], since peers go by the list that they have.
    pub(super) fn set_own(&mut self, list: &[RelayInfo], me: &RoutingId, now: Instant) {
        let chosen: BTreeSet<RelayInfo> = pick(list, me).into_iter().cloned().collect();
        if chosen == self.own {
            return;
        }
        for entry in self.entries.values_mut().filter(|entry| entry.own) {
            entry.until = match chosen.contains(&entry.info) {
                true => None,
                false => entry.until.or(Some(now + OVERLAP)),
            };
        }
        self.own = chosen.clone();
        for info in chosen {
            match self.find(&info) {
                Some(key) if self.entries.get(&key).is_some_and(|entry| entry.own) => {
                    if let Some(entry) = self.entries.get_mut(&key) {
                        (entry.info, entry.until) = (info, None);
                    }
                    continue;
                }
                // Where we only visited so far, we bind from now on.
                Some(key) => self.remove(key, now),
                None => {}
            }
            self.add(info, true, now);
        }
    }

    /// Who else is bound under our routing id, by the word of our relays.
    pub(super) fn others(&self) -> BTreeSet<InstanceId> {
        let own = self.entries.values().filter(|entry| entry.own);
        let known = own.flat_map(|entry| {
            let udp = match &entry.place {
                Place::Known { client, .. } => client.others(),
                Place::Resolving | Place::Taken { .. } => &[],
            };
            udp.iter().chain(entry.fallback.others())
        });
        known.map(|id| InstanceId(id.0)).collect()
    }

    /// The relays at which `destination` may be found, of those in each of these lists of its relays.
    pub(super) fn towards<'a>(
        &mut self,
        destination: &RoutingId,
        lists: impl IntoIterator<Item = &'a [RelayInfo]>,
        now: Instant,
    ) -> Vec<RelayKey> {
        let picked: BTreeSet<RelayInfo> = lists.into_iter().flat_map(|list| pick(list, destination)).cloned().collect();
        let named: Vec<RelayKey> =
            picked.into_iter().map(|info| self.find(&info).unwrap_or_else(|| self.add(info, false, now))).collect();
        let there = named.iter().filter_map(|key| self.in_the_place_of(*key));
        let keys: BTreeSet<RelayKey> = named.iter().copied().chain(there).collect();
        let keys: Vec<RelayKey> = keys.into_iter().collect();
        for key in &keys {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.used = now;
            }
        }
        keys
    }

    /// The relay that is in use at this one's address. To reach whoever is bound there no key is needed, so it does not matter
    /// which of the two is right.
    fn in_the_place_of(&self, key: RelayKey) -> Option<RelayKey> {
        match self.entries.get(&key)?.place {
            Place::Taken { address } => self.by_address.get(&address).copied(),
            Place::Resolving | Place::Known { .. } => None,
        }
    }

    /// A relay is its key and its place for UDP: lists may name different TCP ports for one and the same.
    fn find(&self, info: &RelayInfo) -> Option<RelayKey> {
        let same = |of: &RelayInfo| (&of.key, &of.host, of.port) == (&info.key, &info.host, info.port);
        let listed = self.entries.iter().find(|(_, e)| same(&e.info)).map(|(key, _)| *key);
        listed.or_else(|| self.spellings.get(info).copied().filter(|key| self.entries.contains_key(key)))
    }

    fn add(&mut self, info: RelayInfo, own: bool, now: Instant) -> RelayKey {
        self.next_key += 1;
        let key = RelayKey(self.next_key);
        self.entries.insert(key, Entry::new(info.clone(), own, now));
        match info.host.as_str().parse::<IpAddr>() {
            Ok(ip) => self.resolved(&info, &[SocketAddr::new(ip, info.port)], now),
            Err(_) => self.names.want(&info, now),
        }
        self.find(&info).unwrap_or(key)
    }

    /// `key` turned out to be the relay that we have as `holder`, by another name.
    fn merge(&mut self, key: RelayKey, holder: RelayKey) {
        if self.spellings.len() >= MAX_SPELLINGS {
            self.spellings.clear();
        }
        if let Some(entry) = self.entries.remove(&key) {
            self.spellings.insert(entry.info, holder);
        }
        self.judge_nat();
    }

    fn remove(&mut self, key: RelayKey, now: Instant) {
        if let Some(Place::Known { address, .. }) = self.drop_entry(key) {
            self.vacated(address, now);
        }
    }

    fn drop_entry(&mut self, key: RelayKey) -> Option<Place> {
        let mut entry = self.entries.remove(&key)?;
        self.names.forget(&entry.info);
        self.orders.extend(entry.fallback.reset().map(|order| (key, order)));
        self.judge_nat();
        Some(entry.place)
    }

    /// The driver looked a name up; no address means that it could not.
    pub(super) fn looked_up(&mut self, info: &RelayInfo, addresses: &[SocketAddr], now: Instant) {
        let needed = self.find(info).is_some();
        self.names.answered(info, !addresses.is_empty() || !needed, now);
        self.resolved(info, addresses, now);
    }

    /// An address of a family that our socket has is preferred.
    fn resolved(&mut self, info: &RelayInfo, addresses: &[SocketAddr], now: Instant) {
        let Some(key) = self.find(info) else { return };
        let v6 = self.hosts.iter().any(SocketAddr::is_ipv6);
        let v4 = self.hosts.iter().any(SocketAddr::is_ipv4) || !v6;
        let mut usable: Vec<SocketAddr> = addresses
            .iter()
            .filter(|a| if a.is_ipv4() { v4 } else { v6 })
            .copied()
            .map(crate::stun::canonical)
            .collect();
        if usable.is_empty() {
            usable.extend(addresses.iter().copied().map(crate::stun::canonical));
        }
        // IPv4 first: only there do we need the relay to tell our public endpoint, which a peer behind an
        // address-restricted NAT must know before it can let us in. Our IPv6 addresses are candidates as they are.
        usable.sort_by_key(SocketAddr::is_ipv6);
        let Some(address) = self.next_address(key, &usable) else { return };
        if let Some(holder) = self.by_address.get(&address).copied() {
            // Two keys for one address cannot both be right. Ours comes from our owner's list, the other from some peer or
            // from the list before.
            let ours = self.entries.get(&key).is_some_and(|entry| entry.own && entry.until.is_none());
            let yields = self.entries.get(&holder).is_some_and(|entry| !entry.own || entry.until.is_some());
            if !(ours && yields) {
                let held = self.entries.get(&holder).map(|entry| entry.info.key);
                match self.entries.get_mut(&key) {
                    _ if held == Some(info.key) => self.merge(key, holder),
                    Some(entry) if matches!(entry.place, Place::Resolving | Place::Taken { .. }) => {
                        entry.place = Place::Taken { address };
                    }
                    // It stays where it is.
                    Some(_) | None => {}
                }
                return;
            }
            self.take_from(holder, address);
        }
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        let left = match entry.place {
            Place::Known { address, .. } => Some(address),
            Place::Resolving | Place::Taken { .. } => None,
        };
        (entry.lost, entry.draining) = (false, false);
        let own = entry.own;
        let mut client = Box::new(self.new_client(info, own, now));
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        client.resume(entry.fallback.client().and_then(|(_, client)| client.identity()));
        for (token, question) in &entry.questions {
            client.ask(*token, question.clone(), now);
        }
        entry.place = Place::Known { address, client, observed: None };
        self.by_address.insert(address, key);
        if let Some(left) = left {
            self.vacated(left, now);
        }
    }

    /// Ends a relay whose address is another's.
    fn take_from(&mut self, holder: RelayKey, address: SocketAddr) {
        self.by_address.remove(&address);
        if let Some(entry) = self.entries.get_mut(&holder) {
            entry.place = Place::Taken { address };
        }
        self.drop_entry(holder);
    }

    /// An address is free: of the relays that wait for it, one has it. Two lists may give one relay two keys, when one of
    /// them is older than the relay's key.
    fn vacated(&mut self, address: SocketAddr, now: Instant) {
        self.by_address.remove(&address);
        let waits = |entry: &&Entry| matches!(entry.place, Place::Taken { address: wanted } if wanted == address);
        let next = self.entries.values().filter(waits).max_by_key(|entry| entry.own).map(|entry| entry.info.clone());
        if let Some(info) = next {
            self.resolved(&info, &[address], now);
        }
    }

    fn new_client(&mut self, info: &RelayInfo, own: bool, now: Instant) -> RelayClient {
        let role = match own {
            true => Role::Bind { secret: self.secret.clone(), credential: self.credential.clone() },
            false => Role::Visit,
        };
        let mut client = RelayClient::new(ClientConfig::new(info.key, role), self.random.bytes(), now);
        client.set_public(self.public);
        client.set_keepalive(self.keepalive);
        client
    }

    /// Our addresses. Where one of them is gone we may be in another network, and what relays saw of us in the old one says
    /// nothing of this one; they are asked anew.
    pub(super) fn set_hosts(&mut self, hosts: &BTreeSet<SocketAddr>, now: Instant) {
        let moved = !hosts.is_superset(&self.hosts);
        self.hosts.clone_from(hosts);
        let port = hosts.first().map_or(0, SocketAddr::port);
        self.nat = NatClassifier::new(port, hosts.iter().map(SocketAddr::ip));
        if moved {
            self.reset_streams();
            self.clients().for_each(|(_, client)| client.ask_again(now));
            self.entries.values_mut().for_each(|entry| entry.word = None);
        }
        self.judge_nat();
    }

    /// Of the addresses that a name leads to, the one to talk to: the first, or the one behind an address that stopped
    /// answering. `None` where the address in use stays.
    fn next_address(&self, key: RelayKey, found: &[SocketAddr]) -> Option<SocketAddr> {
        let entry = self.entries.get(&key)?;
        let Place::Known { address: current, .. } = entry.place else { return found.first().copied() };
        if !entry.lost {
            return None;
        }
        let behind = found.iter().position(|a| *a == current).map_or(0, |at| (at + 1) % found.len().max(1));
        found.get(behind).copied().filter(|next| *next != current)
    }

    /// A relay does not answer: if it has a name, that may lead to another address.
    fn look_up_again(&mut self, key: RelayKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.lost = true;
        if entry.info.host.as_str().parse::<IpAddr>().is_err() {
            self.names.want(&entry.info, now);
        }
    }

    fn note_drain(&mut self, key: RelayKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.draining = true;
        }
    }

    /// Whether a relay said that it goes away.
    pub(super) fn drains(&self, key: RelayKey) -> bool {
        self.entries.get(&key).is_some_and(|entry| entry.draining)
    }

    fn known(&self) -> impl Iterator<Item = (SocketAddr, &RelayClient, Option<SocketAddr>)> {
        self.entries.values().filter_map(|entry| match &entry.place {
            Place::Known { address, client, observed } => Some((*address, &**client, *observed)),
            Place::Resolving | Place::Taken { .. } => None,
        })
    }

    fn clients(&mut self) -> impl Iterator<Item = (SocketAddr, &mut RelayClient)> {
        self.entries.values_mut().filter_map(|entry| match &mut entry.place {
            Place::Known { address, client, .. } => Some((*address, &mut **client)),
            Place::Resolving | Place::Taken { .. } => None,
        })
    }

    pub(super) fn local_address_changed(&mut self, now: Instant) {
        self.clients().for_each(|(_, client)| client.address_changed(now));
        self.stream_clients().for_each(|(_, client)| client.address_changed(now));
    }

    /// How often we speak by UDP to relays that hear nothing else of us.
    pub(super) fn set_keepalive(&mut self, interval: Duration) {
        self.keepalive = interval;
        self.clients().for_each(|(_, client)| client.set_keepalive(interval));
    }

    pub(super) fn slept(&mut self, now: Instant) {
        self.clients().for_each(|(_, client)| client.slept(now));
    }

    pub(super) fn renew(&mut self, credential: Vec<u8>, now: Instant) {
        self.credential.clone_from(&credential);
        self.clients().for_each(|(_, client)| client.renew(credential.clone(), now));
        self.stream_clients().for_each(|(_, client)| client.renew(credential.clone(), now));
    }

    /// A datagram with a relay frame's first byte; from an address that is no relay of ours it is nothing.
    pub(super) fn handle(&mut self, from: SocketAddr, mut datagram: BytesMut, now: Instant) -> Option<FromRelay> {
        let relay = *self.by_address.get(&from)?;
        let Place::Known { client, .. } = &mut self.entries.get_mut(&relay)?.place else {
            return None;
        };
        let delivered = client.handle_datagram(now, &datagram);
        self.udp_answered(relay, now);
        match delivered {
            Some(delivered) => {
                let packet = datagram.split_off(delivered.packet_at);
                Some(FromRelay::Packet { relay, sender: delivered.from, packet })
            }
            None => Some(FromRelay::Changed),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.clients().for_each(|(_, client)| client.handle_timeout(now));
        self.step_streams(now);
        let stale: Vec<RelayKey> = self
            .entries
            .iter()
            .filter(|(_, e)| match e.own {
                true => e.until.is_some_and(|until| until <= now),
                false => now.saturating_duration_since(e.used) > FORGET_AFTER,
            })
            .map(|(key, _)| *key)
            .collect();
        stale.into_iter().for_each(|key| self.remove(key, now));
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let left = self.entries.values().filter_map(|entry| entry.until);
        let streams = self.entries.values().filter_map(|entry| entry.fallback.next(entry.silent_since()));
        self.known()
            .filter_map(|(_, client, _)| client.poll_timeout())
            .chain(left)
            .chain(streams)
            .chain(self.news.due())
            .chain(self.names.poll_timeout())
            .min()
    }

    pub(super) fn poll_transmit(&mut self) -> Option<(DirectPath, Vec<u8>)> {
        let udp =
            self.clients().find_map(|(address, client)| Some((DirectPath::main(address), client.poll_transmit()?)));
        udp.or_else(|| {
            let mut streams = self.stream_clients();
            streams.find_map(|(stream, client)| Some((DirectPath::stream(stream), client.poll_transmit()?)))
        })
    }

    /// Whether we have a mailbox where we are bound.
    pub(super) fn set_public(&mut self, public: bool) {
        self.public = public;
        self.clients().for_each(|(_, client)| client.set_public(public));
        self.stream_clients().for_each(|(_, client)| client.set_public(public));
    }

    /// Asks a relay something; one that we do not know yet is visited for it.
    pub(super) fn ask(&mut self, info: &RelayInfo, token: u64, question: Question, now: Instant) -> RelayKey {
        let key = self.find(info).unwrap_or_else(|| self.add(info.clone(), false, now));
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.used = now;
            if let Place::Known { client, .. } = &mut entry.place {
                client.ask(token, question.clone(), now);
            }
            if let Some((_, client)) = entry.fallback.client() {
                client.ask(token, question.clone(), now);
            }
            entry.questions.push((token, question));
        }
        key
    }

    pub(super) fn give_up(&mut self, token: u64) {
        self.clients().for_each(|(_, client)| client.give_up(token));
        self.stream_clients().for_each(|(_, client)| client.give_up(token));
        for entry in self.entries.values_mut() {
            entry.questions.retain(|(asked, _)| *asked != token);
        }
    }

    pub(super) fn mail_done(&mut self, info: &RelayInfo, id: MailId, now: Instant) {
        let Some(entry) = self.find(info).and_then(|key| self.entries.get_mut(&key)) else {
            return;
        };
        if let Place::Known { client, .. } = &mut entry.place {
            client.mail_done(id, now);
        }
        if let Some((_, client)) = entry.fallback.client() {
            client.mail_done(id, now);
        }
    }

    /// What came by mail, and from which relay. An answer counts once, by whichever way it came first.
    pub(super) fn poll_mail(&mut self) -> Option<(RelayKey, MailEvent)> {
        for (key, entry) in &mut self.entries {
            while let Some(event) = entry.poll_mail() {
                let token = match &event {
                    MailEvent::Found { token, .. } | MailEvent::Posted { token } => *token,
                    MailEvent::Mail { .. } => return Some((*key, event)),
                };
                if let Some(at) = entry.questions.iter().position(|(asked, _)| *asked == token) {
                    entry.questions.remove(at);
                    return Some((*key, event));
                }
            }
        }
        None
    }

    pub(super) fn info(&self, relay: RelayKey) -> Option<RelayInfo> {
        self.entries.get(&relay).map(|entry| entry.info.clone())
    }

    /// After [`Self::leave`] was asked for: the next relay's UNBIND. To be sent when nothing else is left to send.
    pub(super) fn poll_farewell(&mut self) -> Option<(DirectPath, Vec<u8>)> {
        if !self.leaving {
            return None;
        }
        let udp = self.clients().find_map(|(address, client)| Some((DirectPath::main(address), client.leave()?)));
        udp.or_else(|| {
            let mut streams = self.stream_clients();
            streams.find_map(|(stream, client)| Some((DirectPath::stream(stream), client.leave()?)))
        })
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
        let entry = self.entries.get_mut(&relay)?;
        if entry.uses_stream(now) {
            let (stream, client) = entry.fallback.client()?;
            let framed = client.wrap(now, destination, packets, segment_size, out)?;
            return Some((DirectPath::stream(stream), framed));
        }
        let Place::Known { address, client, .. } = &mut entry.place else {
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

    /// A session hears nothing through this relay; it is asked by the way in use whether it is there.
    pub(super) fn doubt(&mut self, relay: RelayKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(&relay) else {
            return;
        };
        if entry.uses_stream(now) {
            entry.fallback.client().into_iter().for_each(|(_, client)| client.doubt(now));
        } else if let Place::Known { client, .. } = &mut entry.place {
            client.doubt(now);
        }
    }

    pub(super) fn any_reachable(&self) -> bool {
        self.entries.values().any(|entry| entry.way() != RelayWay::None)
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
                    Place::Resolving | Place::Taken { .. } => None,
                },
                rtt: entry.rtt(),
                mailbox: entry.has_mailbox(),
                way: entry.way(),
                note: entry.note(),
            })
            .collect()
    }

    /// What the clients have to say, as (relay, event).
    fn poll_event(&mut self) -> Option<(RelayKey, By, RelayEvent)> {
        self.entries.iter_mut().find_map(|(key, entry)| {
            let udp = match &mut entry.place {
                Place::Known { client, .. } => client.poll_event(),
                Place::Resolving | Place::Taken { .. } => None,
            };
            let stream = |entry: &mut Entry| entry.fallback.client().and_then(|(_, client)| client.poll_event());
            let by_udp = udp.map(|event| (*key, By::Udp, event));
            by_udp.or_else(|| stream(entry).map(|event| (*key, By::Stream, event)))
        })
    }
}

impl Node {
    /// Lets everything follow from what relays said.
    pub(super) fn settle_relays(&mut self, now: Now) {
        let addresses = self.outside_addresses();
        while let Some((key, by, event)) = self.relays.poll_event() {
            match by {
                By::Udp => self.on_relay_event(key, event, now),
                By::Stream => self.on_relay_stream_event(key, event, now),
            }
        }
        self.settle_mail(now);
        self.tell_orders();
        while let Some(relay) = self.relays.names.next(now.mono) {
            self.events.push_back(Event::Resolve { relay });
        }
        self.seen_from(&addresses, now);
        self.drive_outside(now);
        self.tell_what_relays_see(now);
    }

    fn on_relay_event(&mut self, key: RelayKey, event: RelayEvent, now: Now) {
        match event {
            RelayEvent::Ready { observed } => {
                let Some((relay, own, _)) = self.relays.observed(key, Some(observed)) else {
                    return;
                };
                self.relay_is_up(key, relay, own, observed, now);
            }
            RelayEvent::Lost => {
                self.relays.look_up_again(key, now.mono);
                let Some((relay, own, _)) = self.relays.observed(key, None) else {
                    return;
                };
                if self.relays.is_up(key) {
                    return; // the stream carries on
                }
                if own {
                    info!(target: "events::relay_down", ?relay);
                    self.events.push_back(Event::RelayDown { relay });
                }
                self.leave_relay(key, now);
            }
            RelayEvent::Silent => self.relays.look_up_again(key, now.mono),
            RelayEvent::Refused(reason) => {
                if let Some((relay, _, _)) = self.relays.observed(key, None) {
                    info!(target: "events::relay_refused", ?relay, ?reason);
                    self.events.push_back(Event::RelayRefused { relay, reason });
                }
            }
            RelayEvent::Others => self.siblings_changed(),
            RelayEvent::Draining { grace } => {
                debug!(?key, ?grace, "relay drains");
                self.relays.note_drain(key);
                self.leave_relay(key, now);
            }
        }
    }

    fn relay_is_up(&mut self, key: RelayKey, relay: RelayInfo, own: bool, observed: SocketAddr, now: Now) {
        if own {
            info!(target: "events::relay_up", ?relay);
            self.events.push_back(Event::RelayUp { relay, observed });
        }
        self.send_held(key, now);
        self.say_we_are_there(key);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn named_relay() -> (Relays, RelayInfo, RelayKey, Instant) {
        let now = Instant::now();
        let secret = AgreementSecret::from_bytes([7; 32]);
        let key = AgreementSecret::from_bytes([8; 32]).public();
        let info = RelayInfo { key, host: "relay.example".parse().expect("a host"), port: 3478, tls: None };
        let mut relays = Relays::new(secret, Vec::new(), SeededRandom::from_seed([1; 32]));
        relays.set_own(std::slice::from_ref(&info), &RoutingId([2; 16]), now);
        let key = relays.find(&info).expect("it was just added");
        (relays, info, key, now)
    }

    fn in_use(relays: &Relays) -> Vec<SocketAddr> {
        relays.known().map(|(address, _, _)| address).collect()
    }

    #[test]
    fn a_name_is_looked_up_again_when_its_relay_is_lost_and_its_next_address_is_used() {
        let (mut relays, info, key, now) = named_relay();
        let [one, two] = ["192.0.2.1:3478", "192.0.2.2:3478"].map(|text| text.parse().expect("an address"));
        assert_eq!(relays.names.next(now).as_ref(), Some(&info));
        relays.looked_up(&info, &[one, two], now);
        assert_eq!(in_use(&relays), [one]);
        relays.resolved(&info, &[two], now);
        assert_eq!(in_use(&relays), [one], "one that is not lost stays where it is");
        for (next, other) in [(two, one), (one, two)] {
            relays.look_up_again(key, now);
            assert_eq!(relays.names.next(now).as_ref(), Some(&info));
            relays.looked_up(&info, &[one, two], now);
            assert_eq!(in_use(&relays), [next]);
            assert!(relays.by_address.contains_key(&next) && !relays.by_address.contains_key(&other));
        }
    }

    #[test]
    fn a_relay_that_lists_write_in_different_ways_is_one() {
        let (mut relays, info, key, now) = named_relay();
        let address: SocketAddr = "192.0.2.1:3478".parse().expect("an address");
        relays.resolved(&info, &[address], now);
        let to = RoutingId([3; 16]);
        let with_tls = RelayInfo { tls: Some(443), ..info.clone() };
        let by_address = RelayInfo { host: "192.0.2.1".parse().expect("a host"), ..info.clone() };
        let by_another_name = RelayInfo { host: "other.example".parse().expect("a host"), ..info.clone() };
        for other in [&with_tls, &by_address] {
            assert_eq!(relays.towards(&to, [std::slice::from_ref(other)], now), [key], "{other}");
        }
        relays.towards(&to, [std::slice::from_ref(&by_another_name)], now);
        relays.resolved(&by_another_name, &[address], now);
        assert_eq!(relays.towards(&to, [std::slice::from_ref(&by_another_name)], now), [key]);
        assert_eq!((in_use(&relays), relays.entries.len()), (vec![address], 1));

        let other_key = AgreementSecret::from_bytes([9; 32]).public();
        let stranger = RelayInfo { key: other_key, ..by_address };
        assert_ne!(
            relays.towards(&to, [std::slice::from_ref(&stranger)], now),
            [key],
            "it says that it is another one"
        );
    }

    #[test]
    fn a_relay_of_ours_that_is_written_in_another_way_is_not_left() {
        let (mut relays, info, key, now) = named_relay();
        relays.resolved(&info, &["192.0.2.1:3478".parse().expect("an address")], now);
        let with_tls = RelayInfo { tls: Some(443), ..info };
        relays.set_own(std::slice::from_ref(&with_tls), &RoutingId([2; 16]), now);
        relays.handle_timeout(now + OVERLAP);
        assert_eq!(relays.find(&with_tls), Some(key));
        assert_eq!(relays.entries.values().map(|entry| entry.info.clone()).collect::<Vec<_>>(), [with_tls]);
    }

    #[test]
    fn of_two_relays_at_one_address_the_later_is_reached_through_the_other_and_follows_it() {
        let (mut relays, info, key, now) = named_relay();
        let address: SocketAddr = "192.0.2.1:3478".parse().expect("an address");
        relays.looked_up(&info, &[address], now);
        let new_key = RelayInfo { key: AgreementSecret::from_bytes([9; 32]).public(), ..info.clone() };
        let to = RoutingId([3; 16]);
        relays.towards(&to, [std::slice::from_ref(&new_key)], now);
        relays.looked_up(&new_key, &[address], now);
        let later = relays.find(&new_key).expect("it was just added");
        assert_eq!(relays.towards(&to, [std::slice::from_ref(&new_key)], now), [key, later]);
        relays.set_own(&[], &RoutingId([2; 16]), now);
        let end = now + OVERLAP;
        relays.in_use(later, end);
        relays.handle_timeout(end);
        assert_eq!((relays.by_address.get(&address), in_use(&relays)), (Some(&later), vec![address]));
    }

    #[test]
    fn a_name_with_one_address_keeps_it() {
        let (mut relays, info, key, now) = named_relay();
        let only = "192.0.2.1:3478".parse().expect("an address");
        relays.resolved(&info, &[only], now);
        relays.look_up_again(key, now);
        relays.resolved(&info, &[only], now);
        assert_eq!(in_use(&relays), [only]);
    }
}
