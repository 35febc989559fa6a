//! Where relays are: names that are looked up, addresses that two of them claim, and ways to write one and the same.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use peerage_model::relay::RelayInfo;

use super::{Entry, MAX_SPELLINGS, Place, RelayKey, Relays};
use crate::relay::{ClientConfig, RelayClient, Role};

impl Relays {
    /// The relay that is in use at this one's address. To reach whoever is bound there no key is needed, so it does not matter
    /// which of the two is right.
    pub(super) fn in_the_place_of(&self, key: RelayKey) -> Option<RelayKey> {
        match self.entries.get(&key)?.place {
            Place::Taken { address } => self.by_address.get(&address).copied(),
            Place::Resolving | Place::Known { .. } => None,
        }
    }

    /// A relay is its key and its place for UDP: lists may name different TCP ports for one and the same.
    pub(super) fn find(&self, info: &RelayInfo) -> Option<RelayKey> {
        let same = |of: &RelayInfo| (&of.key, &of.host, of.port) == (&info.key, &info.host, info.port);
        let listed = self.entries.iter().find(|(_, e)| same(&e.info)).map(|(key, _)| *key);
        listed.or_else(|| self.spellings.get(info).copied().filter(|key| self.entries.contains_key(key)))
    }

    pub(super) fn add(&mut self, info: RelayInfo, own: bool, now: Instant) -> RelayKey {
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

    pub(super) fn remove(&mut self, key: RelayKey, now: Instant) {
        if let Some(Place::Known { address, .. }) = self.drop_entry(key) {
            self.vacated(address, now);
        }
    }

    pub(super) fn drop_entry(&mut self, key: RelayKey) -> Option<Place> {
        let mut entry = self.entries.remove(&key)?;
        self.names.forget(&entry.info);
        self.orders.extend(entry.fallback.reset().map(|order| (key, order)));
        self.judge_nat();
        Some(entry.place)
    }

    /// The driver looked a name up; no address means that it could not.
    pub(in super::super) fn looked_up(&mut self, info: &RelayInfo, addresses: &[SocketAddr], now: Instant) {
        let needed = self.find(info).is_some();
        self.names.answered(info, !addresses.is_empty() || !needed, now);
        self.resolved(info, addresses, now);
    }

    /// A relay is at one of these addresses.
    pub(super) fn resolved(&mut self, info: &RelayInfo, addresses: &[SocketAddr], now: Instant) {
        let Some(key) = self.find(info) else { return };
        let Some(address) = self.next_address(key, &self.preferred(addresses)) else { return };
        match self.by_address.get(&address).copied() {
            Some(holder) if !self.goes_before(key, holder) => self.yield_to(holder, key, address),
            Some(holder) => {
                self.take_from(holder, address);
                self.move_in(key, address, now);
            }
            None => self.move_in(key, address, now),
        }
    }

    /// Those of a family that our socket has, if there are any, in the order in which they are tried.
    fn preferred(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let v6 = self.hosts.iter().any(SocketAddr::is_ipv6);
        let v4 = self.hosts.iter().any(SocketAddr::is_ipv4) || !v6;
        let ours = |address: &SocketAddr| if address.is_ipv4() { v4 } else { v6 };
        let any = addresses.iter().any(ours);
        let usable = addresses.iter().filter(|address| !any || ours(address));
        let mut usable: Vec<SocketAddr> = usable.copied().map(crate::stun::canonical).collect();
        // IPv4 first: only there do we need the relay to tell our public endpoint, which a peer behind an
        // address-restricted NAT must know before it can let us in. Our IPv6 addresses are candidates as they are.
        usable.sort_by_key(SocketAddr::is_ipv6);
        usable
    }

    /// Whether an address is `key`'s rather than `holder`'s. Two keys for one address cannot both be right. Ours comes from our
    /// owner's list, the other from some peer or from the list before.
    fn goes_before(&self, key: RelayKey, holder: RelayKey) -> bool {
        let is_current = |key| self.entries.get(&key).is_some_and(|entry| entry.own && entry.until.is_none());
        is_current(key) && self.entries.contains_key(&holder) && !is_current(holder)
    }

    /// The address that a relay is at is `holder`'s: the two are one, or it waits.
    fn yield_to(&mut self, holder: RelayKey, key: RelayKey, address: SocketAddr) {
        let [held, claims] = [holder, key].map(|key| self.entries.get(&key).map(|entry| entry.info.key));
        match self.entries.get_mut(&key) {
            _ if held == claims => self.merge(key, holder),
            Some(entry) if matches!(entry.place, Place::Resolving | Place::Taken { .. }) => {
                entry.place = Place::Taken { address };
            }
            // It stays where it is.
            Some(_) | None => {}
        }
    }

    /// A relay is at this address from now on, and is spoken to there.
    fn move_in(&mut self, key: RelayKey, address: SocketAddr, now: Instant) {
        let Some((info, own)) = self.entries.get(&key).map(|entry| (entry.info.clone(), entry.own)) else { return };
        let mut client = Box::new(self.new_client(&info, own, now));
        let Some(entry) = self.entries.get_mut(&key) else { return };
        client.resume(entry.fallback.client().and_then(|(_, client)| client.identity()));
        for (token, question) in &entry.questions {
            client.ask(*token, question.clone(), now);
        }
        (entry.lost, entry.draining) = (false, false);
        let left = std::mem::replace(&mut entry.place, Place::Known { address, client, observed: None });
        self.by_address.insert(address, key);
        if let Place::Known { address: left, .. } = left {
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

    pub(super) fn new_client(&mut self, info: &RelayInfo, own: bool, now: Instant) -> RelayClient {
        let role = match own {
            true => Role::Bind { secret: self.secret.clone(), credential: self.credential.clone() },
            false => Role::Visit,
        };
        let mut client = RelayClient::new(ClientConfig::new(info.key, role), self.random.bytes(), now);
        client.set_public(self.public);
        client.set_keepalive(self.keepalive);
        client
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
    pub(super) fn look_up_again(&mut self, key: RelayKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.lost = true;
        if entry.info.host.as_str().parse::<IpAddr>().is_err() {
            self.names.want(&entry.info, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use peerage_model::{AgreementSecret, RoutingId};

    use super::*;
    use crate::node::relays::OVERLAP;
    use crate::noise::SeededRandom;

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
