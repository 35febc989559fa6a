//! Where everybody is: sites behind NATs, hosts in them, relays and strangers in public.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use peerage_relay_proto::stun::Corners;

use crate::link::{Link, LinkConfig};
use crate::nat::{Families, Firewall, Nat, NatKind, Network};

/// One way between a host and the core; relays are nearer.
pub(super) const AGENT_DELAY: Duration = Duration::from_millis(10);
pub(super) const RELAY_DELAY: Duration = Duration::from_millis(5);
/// Between two hosts of one site.
pub(super) const SITE_DELAY: Duration = Duration::from_micros(200);

/// A network behind one NAT.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) nat: Nat,
    /// What is before its IPv6 addresses.
    pub(super) firewall: Firewall,
    /// The provider's NAT in front of it, by its place in the world's list.
    pub(super) carrier: Option<usize>,
    families: Families,
    /// Whether UDP gets out.
    pub(super) blocks_udp: bool,
    hosts: u8,
    number: u8,
}

/// A host's addresses, as it sees them: at least one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) ipv4: Option<SocketAddr>,
    pub(super) ipv6: Option<SocketAddr>,
}

impl Addresses {
    pub(super) fn all(self) -> impl Iterator<Item = SocketAddr> {
        self.ipv4.into_iter().chain(self.ipv6)
    }

    /// The one from which packets to `to` leave.
    pub(super) fn towards(self, to: SocketAddr) -> Option<SocketAddr> {
        if to.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }

    /// The one that tests ask for: of IPv4, if there is one.
    pub(super) fn first(self) -> SocketAddr {
        self.all().next().expect("a host has an address")
    }
}

/// A host's access line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) up: Link,
    pub(super) down: Link,
}

impl Site {
    pub(super) fn new(number: usize, network: &Network, carrier: Option<usize>, seed: u64) -> Self {
        let number = u8::try_from(number).expect("fewer than 256 sites");
        let outside = match carrier {
            None => public_ip(number),
            // Shared address space, RFC 6598.
            Some(_) => Ipv4Addr::new(100, 64, number, 1).into(),
        };
        let nat = Nat::new(network.nat, outside, seed);
        let (families, blocks_udp) = (network.families, network.blocks_udp);
        Self { nat, firewall: Firewall::default(), carrier, families, blocks_udp, hosts: 0, number }
    }

    /// The addresses of a new host, as it sees itself. Without a NAT they are public ones.
    pub(super) fn new_host(&mut self, port: u16) -> Addresses {
        self.hosts += 1;
        let ipv6 = Ipv6Addr::new(0x2001, 0xdb8, self.number.into(), 0, 0, 0, 0, self.hosts.into());
        Addresses {
            ipv4: self.families.has_ipv4().then(|| SocketAddr::new(self.new_ipv4(), port)),
            ipv6: self.families.has_ipv6().then(|| SocketAddr::new(ipv6.into(), port)),
        }
    }

    fn new_ipv4(&self) -> IpAddr {
        let ip = match self.nat.kind() {
            NatKind::None => Ipv4Addr::new(5, self.number, 1, self.hosts),
            NatKind::Translating(_) => Ipv4Addr::new(10, self.number, 0, self.hosts),
        };
        ip.into()
    }

    /// Whether packets for this address outside come here.
    pub(super) fn owns(&self, ip: IpAddr) -> bool {
        match (self.nat.kind(), ip) {
            (NatKind::Translating(_), IpAddr::V4(_)) => ip == self.nat.public_address(),
            (NatKind::None, IpAddr::V4(ip)) => ip.octets()[..3] == [5, self.number, 1],
            (_, IpAddr::V6(ip)) => ip.segments()[..3] == [0x2001, 0xdb8, self.number.into()],
        }
    }

    /// Whether this is an address inside.
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        match (self.nat.kind(), ip) {
            (NatKind::Translating(_), IpAddr::V4(ip)) => ip.octets()[..2] == [10, self.number],
            (NatKind::None, IpAddr::V4(_)) | (_, IpAddr::V6(_)) => self.owns(ip),
        }
    }
}

impl Line {
    pub(super) fn new(config: &LinkConfig, seed: u64) -> Self {
        Self { up: Link::new(config.clone(), seed), down: Link::new(config.clone(), seed ^ 0x5555_5555) }
    }

    pub(super) fn set_config(&mut self, config: &LinkConfig) {
        self.up.set_config(config.clone());
        self.down.set_config(config.clone());
    }
}

/// Each site has its own /24, so that no two look like one network.
fn public_ip(site: u8) -> IpAddr {
    Ipv4Addr::new(5, site, 1, 1).into()
}

/// Where a provider's NAT is seen.
pub(super) fn carrier_ip(number: usize) -> IpAddr {
    let number = u8::try_from(number).expect("fewer than 256 carriers");
    Ipv4Addr::new(8, number, 1, 1).into()
}

pub(super) fn relay_address(number: usize) -> SocketAddr {
    let number = u8::try_from(number).expect("fewer than 256 relays");
    SocketAddr::new(Ipv4Addr::new(6, number, 1, 1).into(), 3478)
}

/// What a relay is called where names are used.
pub(super) fn relay_name(label: &str) -> String {
    format!("{label}.example")
}

/// Where a relay is for those that have IPv6; no site has this number.
pub(super) fn relay_address_v6(number: usize) -> SocketAddr {
    let number = u16::try_from(number).expect("fewer than 256 relays");
    SocketAddr::new(Ipv6Addr::new(0x2001, 0xdb8, 0x6000 + number, 0, 0, 0, 0, 1).into(), 3478)
}

/// Whether an address is one of the relays'.
pub(super) fn is_relay(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 6,
        IpAddr::V6(ip) => ip.segments()[2] >= 0x6000,
    }
}

/// A relay's four places for STUN (RFC 5780).
pub(super) fn relay_corners(number: usize) -> Corners {
    let first = relay_address(number);
    let number = u8::try_from(number).expect("fewer than 256 relays");
    Corners { first, second: SocketAddr::new(Ipv4Addr::new(6, number, 1, 2).into(), 3479) }
}

pub(super) fn stranger_address(number: usize) -> SocketAddr {
    let number = u8::try_from(number).expect("fewer than 256 strangers");
    SocketAddr::new(Ipv4Addr::new(7, number, 1, 1).into(), 6666)
}

/// What is on its way, by arrival; equal times keep the order of sending.
#[derive(Debug)]
pub(super) struct Queue<T> {
    items: BTreeMap<(Instant, u64), T>,
    sent: u64,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { items: BTreeMap::new(), sent: 0 }
    }

    pub(super) fn push(&mut self, at: Instant, item: T) {
        self.sent += 1;
        self.items.insert((at, self.sent), item);
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.items.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.items.pop_first().map(|(_, item)| item)
    }
}
