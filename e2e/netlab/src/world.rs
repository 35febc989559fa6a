//! What the lab's internet decides about a datagram: where it goes, through which NATs and links, and what is counted.
//!
//! A **site** is what has a public address: a host of its own, or a NAT with hosts behind it. A datagram passes four
//! stages, each at its own time: it *departs* (the sender's NAT, then its uplink), *crosses* the core (routing,
//! blocks, then the receiver's downlink), *arrives* (the receiver's NAT, which judges it only then, as a real one
//! does) and is *delivered*. Hosts of one site reach each other's inside addresses at once.
//!
//! No sockets, no clock: the router asks, and does what the answer says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Instant;

use peerage_sim::link::{Arrivals, Link, LinkConfig};
use peerage_sim::nat::{Nat, NatKind};

use crate::packet::Datagram;

/// Index of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostId(pub(crate) usize);

/// Index of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SiteId(pub(crate) usize);

/// Routers that a packet passes on its way from one site to another, gateways included; few paths of the internet have
/// fewer.
const HOPS: u8 = 5;

/// What was delivered from one host to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets on the wire; a batch counts as many.
    pub packets: u64,
    /// Bytes on the wire, IP and UDP headers included.
    pub bytes: u64,
}

/// Packets of one host that nobody got, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Not UDP over IPv4, or a fragment.
    pub unsupported: u64,
    /// Nobody has the destination address.
    pub unroutable: u64,
    /// Blocked by [`crate::Lab::block_direct`].
    pub blocked: u64,
    /// Lost or dropped by a link.
    pub link: u64,
    /// Not let through by a NAT.
    pub nat: u64,
    /// Allowed too few hops to get from gateway to gateway.
    pub expired: u64,
}

/// What a link does in each direction, seen from its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Towards the internet.
    pub up: LinkConfig,
    /// From the internet.
    pub down: LinkConfig,
}

impl From<LinkConfig> for Access {
    fn from(both: LinkConfig) -> Self {
        Self { up: both.clone(), down: both }
    }
}

/// Where a datagram is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It leaves its host.
    Depart,
    /// It has left the uplink of its sender.
    Cross,
    /// It has left the downlink of this site.
    Arrive(SiteId),
}

/// What happens next to a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Its next stage comes at these times.
    Later(Arrivals, Stage),
    /// It goes to this host.
    Deliver(HostId),
    /// Nobody gets it.
    Drop,
}

#[derive(Debug)]
struct Site {
    nat: Nat,
    up: Link,
    down: Link,
}

#[derive(Debug)]
struct HostState {
    site: SiteId,
    address: Ipv4Addr,
    drops: Drops,
}

/// The whole internet of one lab.
#[derive(Debug, Default)]
pub(crate) struct World {
    seed: u64,
    sites: Vec<Site>,
    hosts: Vec<HostState>,
    /// Public addresses. A host without a NAT is known by its own.
    routes: BTreeMap<Ipv4Addr, SiteId>,
    blocked: BTreeSet<(SiteId, SiteId)>,
    traffic: BTreeMap<(HostId, HostId), Traffic>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    pub(crate) fn add_site(&mut self, kind: NatKind, public: Ipv4Addr, access: Access) -> SiteId {
        let id = SiteId(self.sites.len());
        // Three seeds a site, so that no two of its parts share their chance.
        let seed = self.seed.wrapping_add(3 * id.0 as u64);
        self.sites.push(Site {
            nat: Nat::new(kind, IpAddr::V4(public), seed),
            up: Link::new(access.up, seed.wrapping_add(1)),
            down: Link::new(access.down, seed.wrapping_add(2)),
        });
        self.routes.insert(public, id);
        id
    }

    pub(crate) fn add_host(&mut self, site: SiteId, address: Ipv4Addr) -> HostId {
        self.hosts.push(HostState { site, address, drops: Drops::default() });
        HostId(self.hosts.len() - 1)
    }

    pub(crate) fn site_of(&self, host: HostId) -> SiteId {
        self.hosts[host.0].site
    }

    pub(crate) fn address_of(&self, host: HostId) -> Ipv4Addr {
        self.hosts[host.0].address
    }

    pub(crate) fn kind_of(&self, host: HostId) -> NatKind {
        self.sites[self.site_of(host).0].nat.kind()
    }

    pub(crate) fn public_address_of(&self, host: HostId) -> Ipv4Addr {
        self.public_address(self.site_of(host)).unwrap_or_else(|| self.address_of(host))
    }

    pub(crate) fn is_taken(&self, address: Ipv4Addr) -> bool {
        self.routes.contains_key(&address) || self.hosts.iter().any(|host| host.address == address)
    }

    pub(crate) fn set_access(&mut self, host: HostId, access: Access) {
        let site = self.site_of(host);
        let site = &mut self.sites[site.0];
        site.up.set_config(access.up);
        site.down.set_config(access.down);
    }

    pub(crate) fn block(&mut self, a: HostId, b: HostId, blocked: bool) {
        let pair = ordered(self.site_of(a), self.site_of(b));
        if blocked {
            self.blocked.insert(pair);
        } else {
            self.blocked.remove(&pair);
        }
    }

    pub(crate) fn set_public_address(&mut self, host: HostId, public: Ipv4Addr) {
        let site = self.site_of(host);
        self.routes.retain(|_, owner| *owner != site);
        self.routes.insert(public, site);
        self.sites[site.0].nat.set_public_address(IpAddr::V4(public));
    }

    pub(crate) fn flush_nat(&mut self, host: HostId) {
        let site = self.site_of(host);
        self.sites[site.0].nat.flush();
    }

    pub(crate) fn set_host_address(&mut self, host: HostId, address: Ipv4Addr) {
        self.hosts[host.0].address = address;
        if self.kind_of(host) == NatKind::None {
            self.set_public_address(host, address);
        }
    }

    pub(crate) fn traffic(&self, from: HostId, to: HostId) -> Traffic {
        self.traffic.get(&(from, to)).copied().unwrap_or_default()
    }

    pub(crate) fn drops(&self, host: HostId) -> Drops {
        self.hosts[host.0].drops
    }

    pub(crate) fn count_unsupported(&mut self, host: HostId) {
        self.hosts[host.0].drops.unsupported += 1;
    }

    /// True where a batch from `host` may travel as one unit.
    pub(crate) fn keeps_batches(&self, host: HostId, datagram: &Datagram<'_>) -> bool {
        let to = self.routes.get(datagram.destination().ip());
        let down = to.is_none_or(|site| self.sites[site.0].down.config().keeps_batches());
        down && self.sites[self.site_of(host).0].up.config().keeps_batches()
    }

    /// Takes the datagram of `from` through one stage.
    pub(crate) fn advance(&mut self, now: Instant, from: HostId, stage: Stage, datagram: &mut Datagram<'_>) -> Next {
        let next = match stage {
            Stage::Depart => self.depart(now, from, datagram),
            Stage::Cross => self.cross(now, from, datagram),
            Stage::Arrive(site) => self.arrive(now, site, datagram),
        };
        match next {
            Ok(Next::Deliver(to)) => self.count(from, to, datagram),
            Ok(Next::Later(..) | Next::Drop) => {}
            Err(reason) => *reason.counter(&mut self.hosts[from.0].drops) += datagram.packets() as u64,
        }
        next.unwrap_or(Next::Drop)
    }

    fn depart(&mut self, now: Instant, from: HostId, datagram: &mut Datagram<'_>) -> Result<Next, Reason> {
        let site = self.site_of(from);
        if let Some(neighbour) = self.inside(site, *datagram.destination().ip()) {
            return Ok(Next::Deliver(neighbour));
        }
        let (source, destination) = (datagram.source(), datagram.destination());
        let public = self.sites[site.0].nat.outbound(now, source.into(), destination.into());
        datagram.set_source(v4(public).ok_or(Reason::Nat)?);
        if self.public_address(site) == Some(*destination.ip()) {
            // Hairpin: the NAT itself turns it round, no link is involved.
            return self.arrive(now, site, datagram);
        }
        Ok(Next::Later(arrivals(self.sites[site.0].up.send(now, datagram.wire_bytes()))?, Stage::Cross))
    }

    fn cross(&mut self, now: Instant, from: HostId, datagram: &Datagram<'_>) -> Result<Next, Reason> {
        if datagram.hop_limit() <= HOPS {
            return Err(Reason::Expired);
        }
        let site = *self.routes.get(datagram.destination().ip()).ok_or(Reason::Unroutable)?;
        if self.blocked.contains(&ordered(site, self.site_of(from))) {
            return Err(Reason::Blocked);
        }
        Ok(Next::Later(arrivals(self.sites[site.0].down.send(now, datagram.wire_bytes()))?, Stage::Arrive(site)))
    }

    fn arrive(&mut self, now: Instant, site: SiteId, datagram: &mut Datagram<'_>) -> Result<Next, Reason> {
        let (source, destination) = (datagram.source(), datagram.destination());
        let inside = self.sites[site.0].nat.inbound(now, source.into(), destination.into());
        let inside = v4(inside).ok_or(Reason::Nat)?;
        datagram.set_destination(inside);
        // An address that a host has left since: its mapping leads nowhere.
        self.inside(site, *inside.ip()).map(Next::Deliver).ok_or(Reason::Unroutable)
    }

    fn inside(&self, site: SiteId, address: Ipv4Addr) -> Option<HostId> {
        self.hosts.iter().position(|host| host.site == site && host.address == address).map(HostId)
    }

    fn public_address(&self, site: SiteId) -> Option<Ipv4Addr> {
        match (self.sites[site.0].nat.kind(), self.sites[site.0].nat.public_address()) {
            (NatKind::Translating(_), IpAddr::V4(public)) => Some(public),
            (NatKind::Translating(_), IpAddr::V6(_)) | (NatKind::None, _) => None,
        }
    }

    fn count(&mut self, from: HostId, to: HostId, datagram: &Datagram<'_>) {
        let traffic = self.traffic.entry((from, to)).or_default();
        traffic.packets += datagram.packets() as u64;
        traffic.bytes += datagram.wire_bytes() as u64;
    }
}

/// Why nobody gets a datagram.
#[derive(Clone, Copy, Debug)]
enum Reason {
    Unroutable,
    Blocked,
    Link,
    Nat,
    Expired,
}

impl Reason {
    const fn counter(self, drops: &mut Drops) -> &mut u64 {
        match self {
            Self::Unroutable => &mut drops.unroutable,
            Self::Blocked => &mut drops.blocked,
            Self::Link => &mut drops.link,
            Self::Nat => &mut drops.nat,
            Self::Expired => &mut drops.expired,
        }
    }
}

fn ordered(a: SiteId, b: SiteId) -> (SiteId, SiteId) {
    (a.min(b), a.max(b))
}

const fn arrivals(arrivals: Arrivals) -> Result<Arrivals, Reason> {
    if arrivals.first.is_none() { Err(Reason::Link) } else { Ok(arrivals) }
}

const fn v4(endpoint: Option<SocketAddr>) -> Option<SocketAddrV4> {
    match endpoint {
        Some(SocketAddr::V4(endpoint)) => Some(endpoint),
        Some(SocketAddr::V6(_)) | None => None,
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
