//! The relays under the sessions: our own, where peers find us, and the peers', where we find them.

mod events;
mod mailboxes;
mod names;
mod places;
mod seen;
mod stream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use peerage_model::id::sha256;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::EndpointId;
use peerage_model::{AgreementSecret, InstanceId, RoutingId};

use self::names::Names;
use self::seen::News;
use self::stream::{Fallback, Order};
use super::status::{RelayStatus, RelayWay};
use crate::nat::NatClassifier;
use crate::noise::SeededRandom;
use crate::path::DirectPath;
use crate::relay::{Destination, KEEPALIVE, Question, RelayClient};

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
}

/// The relays of a list that serve this routing id: the highest by hash of (relay key, routing id).
fn pick<'a>(list: &'a [RelayInfo], id: &RoutingId) -> Vec<&'a RelayInfo> {
    let mut ranked: Vec<_> =
        list.iter().map(|info| (sha256(&[b"peerage relay pick v1", &info.key.0, &id.0]), info)).collect();
    ranked.sort_by(|a, b| b.cmp(a));
    ranked.dedup();
    ranked.into_iter().take(RELAYS_PER_AGENT).map(|(_, info)| info).collect()
}
