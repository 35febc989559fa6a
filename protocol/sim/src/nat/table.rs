//! One NAT device: its mappings, its filters and its clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::kind::{Dependence, NatKind, PortAllocation, Translation};
use crate::rng::SplitMix64;

/// The lowest port a NAT hands out.
const FIRST_PORT: u16 = 1024;

/// A NAT with its state. Time comes in with each packet and does not run backwards.
#[derive(Clone, Debug)]
pub struct Nat {
    kind: NatKind,
    public: IpAddr,
    rng: SplitMix64,
    /// Where sequential allocation goes on.
    next_port: u16,
    /// Mappings made so far: the place of the next among all.
    made: u64,
    mappings: BTreeMap<MappingKey, Mapping>,
    /// The same mappings by public port; several only where they differ in the remote.
    by_port: BTreeMap<u16, Vec<MappingKey>>,
    /// (Public port, remote) pairs that the gateway took for itself, and when that ends.
    stolen: BTreeMap<(u16, SocketAddr), Instant>,
    /// Before this nothing can have expired, so there is nothing to look for.
    sweep_at: Option<Instant>,
}

/// What a mapping is reused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MappingKey {
    inside: SocketAddr,
    remote: Remote,
}

/// As much of a remote endpoint as a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Remote {
    Any,
    Address(IpAddr),
    Endpoint(SocketAddr),
}

#[derive(Clone, Debug)]
struct Mapping {
    port: u16,
    /// Its place among all that were made.
    number: u64,
    expires: Instant,
    /// Who may send in, and until when.
    permitted: BTreeMap<Remote, Instant>,
}

impl Nat {
    /// A NAT with the public address `public`; `seed` decides its ports. [`NatKind::None`] leaves packets as they are.
    #[must_use]
    pub const fn new(kind: NatKind, public: IpAddr, seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let next_port = random_port(&mut rng);
        Self {
            kind,
            public,
            rng,
            next_port,
            made: 0,
            mappings: BTreeMap::new(),
            by_port: BTreeMap::new(),
            stolen: BTreeMap::new(),
            sweep_at: None,
        }
    }

    /// How it behaves.
    #[must_use]
    pub const fn kind(&self) -> NatKind {
        self.kind
    }

    /// Its public address.
    #[must_use]
    pub const fn public_address(&self) -> IpAddr {
        self.public
    }

    /// Forgets everything, as after a restart: inside endpoints get new mappings with their next packets.
    pub fn flush(&mut self) {
        self.mappings.clear();
        self.by_port.clear();
        self.stolen.clear();
        self.next_port = random_port(&mut self.rng);
    }

    /// Changes the public address, which ends every mapping.
    pub fn set_public_address(&mut self, public: IpAddr) {
        self.public = public;
        self.flush();
    }

    /// A packet leaves: the public source it gets, or nothing where no port is free.
    pub fn outbound(&mut self, now: Instant, src: SocketAddr, dst: SocketAddr) -> Option<SocketAddr> {
        let NatKind::Translating(how) = self.kind else {
            return Some(src);
        };
        let key = MappingKey { inside: src, remote: Remote::seen_by(how.mapping, dst) };
        if self.mappings.get(&key).is_none_or(|mapping| mapping.expires <= now) {
            self.expire(now);
            self.create(now, how, key, dst)?;
        }
        let mapping = self.mappings.get_mut(&key)?;
        mapping.expires = now + how.expiry;
        mapping.permitted.insert(Remote::seen_by(how.filtering, dst), now + how.expiry);
        Some(SocketAddr::new(self.public, mapping.port))
    }

    /// A packet arrives for `to`: the inside endpoint that gets it, or nothing where it is dropped.
    pub fn inbound(&mut self, now: Instant, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        let NatKind::Translating(how) = self.kind else {
            return Some(to);
        };
        if to.ip() != self.public || (from.ip() == self.public && !how.hairpinning) {
            return None;
        }
        let inside = self.permitted(now, how, from, to.port());
        if inside.is_none() && how.gateway_input_steals_port && !self.is_mapped(now, from, to.port()) {
            self.expire(now);
            self.stolen.insert((to.port(), from), now + how.expiry);
            self.sweep_by(now + how.expiry);
        }
        inside
    }

    fn permitted(&self, now: Instant, how: Translation, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        let filter = Remote::seen_by(how.filtering, from);
        let open = |key: &&MappingKey| {
            self.mappings.get(*key).is_some_and(|mapping| {
                mapping.expires > now && mapping.permitted.get(&filter).is_some_and(|until| *until > now)
            })
        };
        let candidates = || self.by_port.get(&port).into_iter().flatten().filter(open);
        // Where a port is shared between destinations, the mapping made for this remote goes first.
        let exact = Remote::seen_by(how.mapping, from);
        candidates().find(|key| key.remote == exact).or_else(|| candidates().next()).map(|key| key.inside)
    }

    /// True where a live mapping already holds `port` towards `remote`.
    fn is_mapped(&self, now: Instant, remote: SocketAddr, port: u16) -> bool {
        let live = |key: &&MappingKey| self.mappings.get(*key).is_some_and(|mapping| mapping.expires > now);
        self.by_port.get(&port).into_iter().flatten().filter(live).any(|key| key.remote.covers(remote))
    }

    fn create(&mut self, now: Instant, how: Translation, key: MappingKey, dst: SocketAddr) -> Option<()> {
        let port = self.allocate(how, key, dst)?;
        self.by_port.entry(port).or_default().push(key);
        self.made += 1;
        let mapping = Mapping { port, number: self.made, expires: now + how.expiry, permitted: BTreeMap::new() };
        self.mappings.insert(key, mapping);
        self.sweep_by(now + how.expiry);
        Some(())
    }

    fn allocate(&mut self, how: Translation, key: MappingKey, dst: SocketAddr) -> Option<u16> {
        let kept = [self.newest_port(key.inside), Some(key.inside.port())].into_iter().flatten();
        let kept = kept.into_iter().find(|port| self.is_free_towards(*port, key, dst));
        let wanted = match (how.allocation, kept) {
            (PortAllocation::Preserving, Some(kept)) => return Some(kept),
            (PortAllocation::Preserving | PortAllocation::Random, _) => random_port(&mut self.rng),
            (PortAllocation::Sequential, _) => self.next_port,
        };
        let port = (0..=u16::MAX - FIRST_PORT).map(|n| port_after(wanted, n)).find(|port| self.is_free(*port))?;
        self.next_port = port_after(port, 1);
        Some(port)
    }

    /// The port of the newest mapping of an inside endpoint. Linux goes on with it towards everybody new, so that a port which
    /// was taken once because the own one was stolen stays as long as something uses it.
    fn newest_port(&self, inside: SocketAddr) -> Option<u16> {
        let lowest = MappingKey { inside, remote: Remote::Any };
        let of_inside = self.mappings.range(lowest..).take_while(|(key, _)| key.inside == inside);
        of_inside.max_by_key(|(_, mapping)| mapping.number).map(|(_, mapping)| mapping.port)
    }

    /// A port that is kept may serve several destinations, as long as no two mappings meet at one remote.
    fn is_free_towards(&self, port: u16, key: MappingKey, dst: SocketAddr) -> bool {
        let taken = self.by_port.get(&port).into_iter().flatten().any(|other| other.remote.meets(key.remote));
        !taken && !self.stolen.contains_key(&(port, dst))
    }

    fn is_free(&self, port: u16) -> bool {
        let lowest = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let stolen = self.stolen.range((port, lowest)..).next().is_some_and(|((stolen, _), _)| *stolen == port);
        !stolen && !self.by_port.contains_key(&port)
    }

    fn sweep_by(&mut self, at: Instant) {
        self.sweep_at = Some(self.sweep_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn expire(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        self.mappings.retain(|_, mapping| {
            mapping.permitted.retain(|_, until| *until > now);
            mapping.expires > now
        });
        let live = &self.mappings;
        self.by_port.retain(|_, keys| {
            keys.retain(|key| live.contains_key(key));
            !keys.is_empty()
        });
        self.stolen.retain(|_, until| *until > now);
        let expiries = self.mappings.values().map(|mapping| mapping.expires);
        self.sweep_at = expiries.chain(self.stolen.values().copied()).min();
    }
}

impl Remote {
    const fn seen_by(dependence: Dependence, remote: SocketAddr) -> Self {
        match dependence {
            Dependence::EndpointIndependent => Self::Any,
            Dependence::AddressDependent => Self::Address(remote.ip()),
            Dependence::AddressAndPortDependent => Self::Endpoint(remote),
        }
    }

    fn covers(self, remote: SocketAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Address(address) => address == remote.ip(),
            Self::Endpoint(endpoint) => endpoint == remote,
        }
    }

    /// True where some remote endpoint belongs to both.
    fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            (Self::Endpoint(endpoint), other) | (other, Self::Endpoint(endpoint)) => other.covers(endpoint),
            (Self::Address(a), Self::Address(b)) => a == b,
        }
    }
}

const fn random_port(rng: &mut SplitMix64) -> u16 {
    port_after(FIRST_PORT, rng.below((u16::MAX - FIRST_PORT) as u64 + 1) as u16)
}

/// The port `n` after `port`, going round within `FIRST_PORT..=u16::MAX`.
const fn port_after(port: u16, n: u16) -> u16 {
    let span = (u16::MAX - FIRST_PORT) as u32 + 1;
    let base = if port < FIRST_PORT { 0 } else { (port - FIRST_PORT) as u32 };
    FIRST_PORT + ((base + n as u32) % span) as u16
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
