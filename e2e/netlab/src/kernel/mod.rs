//! The lab on the real kernel: an internet of network namespaces whose NATs are nftables.
//!
//! [`crate::Lab`] has the NATs of the simulation, so it cannot say whether the simulation is right. Here a packet goes
//! from namespace to namespace as it would from machine to machine, and what becomes of it is up to Linux: routing,
//! conntrack, the rules in `rules`. What a home has is a namespace for the host and one for its gateway; a carrier has
//! one before its subscribers' gateways; one in the middle is the internet, which routes and counts.
//!
//! Two things are ours. A link that takes time, loses or has a rate is a `wire` (the kernels this runs on have no
//! netem). And all interfaces have one hardware address and no ARP: a link has two ends, so that nobody need ask.
//!
//! Namespaces belong to threads of this process and go with them, whatever becomes of it. Needs `ip` and `nft`, and
//! what `crate::enter` gives; root is not needed.

mod addresses;
mod network;
mod programs;
mod rules;
mod running;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::addresses::{inner_addresses, lan_addresses, network_addresses, own_public, range, subscriber};
pub use self::network::{Network, UnknownNetwork, possibility};
use self::programs::{ip, nft};
use self::wire::Wire;
use crate::enter::is_privileged;
use crate::host::{Host, Jobs, LINK_INDEX, Namespace};
use crate::lab::{LabError, while_trying};
use crate::netlink::{self, LinkEnd, Mac};
use crate::sys::{self, Frames};
use crate::world::{Access, HostId};

/// The hardware address of every interface; locally administered, as 0x02 says.
const MAC: Mac = [0x02, 0, 0, 0, 0, 1];
/// Where a host finds its gateway inside its namespace, below which the kernel puts its own devices.
const LAN_INDEX: u32 = LINK_INDEX + 1;

/// A site to be.
#[derive(Clone, Debug)]
pub struct SiteConfig {
    /// What stands between its host and the internet.
    pub network: Network,
    /// What its way to the internet does to packets.
    pub access: Access,
    /// How long its gateway keeps a UDP mapping; Linux's own 30 s and 120 s, or what the network says, by default.
    pub mapping_lifetime: Option<Duration>,
    /// For a host without a gateway: how many IPv4 addresses it has, and IPv6 too.
    pub public: Option<Public>,
    /// Whether it is on the far side of the internet, where there is one.
    pub far: bool,
}

/// What a host without a gateway has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Public {
    /// IPv4 addresses.
    pub addresses: u8,
    /// Whether it has an IPv6 address.
    pub ipv6: bool,
}

impl SiteConfig {
    /// A host in a network of this kind.
    #[must_use]
    pub fn new(network: Network) -> Self {
        Self { network, access: Access::default(), mapping_lifetime: None, public: None, far: false }
    }

    /// A public host with several addresses, and IPv6: a relay.
    #[must_use]
    pub fn server(addresses: u8) -> Self {
        Self { public: Some(Public { addresses, ipv6: true }), ..Self::new(Network::None) }
    }

    /// The same on the far side of the internet.
    #[must_use]
    pub fn far(self) -> Self {
        Self { far: true, ..self }
    }

    /// The same with another link.
    #[must_use]
    pub fn with_access(self, access: impl Into<Access>) -> Self {
        Self { access: access.into(), ..self }
    }

    /// The same with another lifetime of UDP mappings.
    #[must_use]
    pub fn with_mapping_lifetime(self, lifetime: Duration) -> Self {
        Self { mapping_lifetime: Some(lifetime), ..self }
    }
}

/// A host, and what is before it. Clones are the same site.
#[derive(Clone, Debug)]
pub struct Site {
    number: u8,
    network: Network,
    host: Host,
    gateway: Option<Host>,
}

impl Site {
    /// What is before the host.
    #[must_use]
    pub const fn network(&self) -> Network {
        self.network
    }

    /// The host.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// The host's gateway, if it has one.
    #[must_use]
    pub const fn gateway(&self) -> Option<&Host> {
        self.gateway.as_ref()
    }

    /// The gateway's own address inside.
    #[must_use]
    pub const fn gateway_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.number, 1)
    }

    /// The host's IPv6 address, where it has one.
    #[must_use]
    pub const fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, self.number as u16, 0, 0, 0, 0, 2)
    }
}

/// What can change of a site.
#[derive(Debug)]
struct State {
    network: Network,
    /// What others see; a carrier's, if there is one.
    public: Ipv4Addr,
    /// The host's own.
    inside: Ipv4Addr,
    wire: Option<Wire>,
    /// Ports of the gateway's own address at which everybody reaches the host.
    open: Vec<u16>,
    /// The last octet that was given out, inside and outside.
    last: u8,
}

/// A carrier's gateway.
#[derive(Debug)]
struct Carrier {
    jobs: Jobs,
    public: Ipv4Addr,
    hairpin: bool,
    subscribers: Vec<(u8, Ipv4Addr)>,
}

/// An internet on the real kernel. Dropping it kills what runs in it and removes its networks.
#[derive(Debug)]
pub struct KernelLab {
    sites: Mutex<BTreeMap<u8, State>>,
    carriers: BTreeMap<u8, Carrier>,
    internet: Jobs,
    /// The far side of it, and the way there.
    far: Option<(Jobs, Wire)>,
    wires: Option<Jobs>,
    spaces: Vec<Namespace>,
    /// Interfaces in the internet's namespace, and in that of the wires.
    links: u32,
}

/// One end of a link to be.
#[derive(Clone, Debug)]
struct LinkTo {
    jobs: Jobs,
    name: String,
    index: u32,
}

impl KernelLab {
    /// An internet without sites.
    ///
    /// # Errors
    /// The process lacks the privileges or the programs, or the kernel refuses.
    pub fn new() -> Result<Self, LabError> {
        if !is_privileged() {
            return Err(LabError::Unprivileged);
        }
        for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
            if programs::find(program).is_none() {
                return Err(LabError::Missing { program, package });
            }
        }
        let space = Namespace::start("internet".into()).map_err(while_trying("make a network"))?;
        let internet = space.jobs();
        let lab = Self {
            sites: Mutex::default(),
            carriers: BTreeMap::new(),
            internet,
            far: None,
            wires: None,
            spaces: vec![space],
            links: 0,
        };
        prepare(&lab.internet, true).map_err(while_trying("make the internet"))?;
        nft(&lab.internet, rules::internet()).map_err(while_trying("count packets with nft"))?;
        Ok(lab)
    }

    /// An internet of two sides, with a way between them that takes time or does something else; carriers and what is
    /// not said to be [`SiteConfig::far`] are on the near one.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_sides(between: impl Into<Access>) -> Result<Self, LabError> {
        let mut lab = Self::new()?;
        lab.add_far_side(&between.into()).map_err(while_trying("make the far side of the internet"))?;
        Ok(lab)
    }

    /// Joins the network of this process, which must be one of its own ([`crate::enter_own_network`]), to the internet, at
    /// these addresses of 198.18.0.0/16 from 198.18.201.0 on, which no site has: so that what runs outside of the lab is
    /// reached from within.
    ///
    /// # Errors
    /// The kernel refuses; it was joined before.
    pub fn join_outside(&mut self, addresses: &[Ipv4Addr]) -> Result<(), LabError> {
        self.join_process(addresses).map_err(while_trying("join the network of this process to the internet"))
    }

    fn join_process(&mut self, addresses: &[Ipv4Addr]) -> io::Result<()> {
        let space = Namespace::here("outside".into())?;
        let outside = space.jobs();
        self.spaces.push(space);
        self.links += 1;
        let far = LinkTo { jobs: self.internet.clone(), name: "outside".into(), index: LINK_INDEX + self.links };
        join(&LinkTo { jobs: outside.clone(), name: "wan".into(), index: LINK_INDEX }, &far)?;
        let own = addresses.iter().map(|address| format!("addr add {address}/32 dev wan"));
        ip(&outside, own.chain(["route add 198.18.0.0/15 dev wan".into()]).collect())?;
        ip(&self.internet, addresses.iter().map(|address| format!("route add {address}/32 dev outside")).collect())
    }

    fn add_far_side(&mut self, between: &Access) -> io::Result<()> {
        let far = self.space("far")?;
        prepare(&far, true)?;
        nft(&far, rules::internet())?;
        let end = |jobs: &Jobs| LinkTo { jobs: jobs.clone(), name: "across".into(), index: LINK_INDEX };
        let (near_end, far_end) = (end(&self.internet), end(&far));
        let wire = self.splice(&near_end, &far_end, between, u64::MAX / 2)?;
        for side in [&self.internet, &far] {
            // What is not on this side is on the other.
            ip(side, vec!["route add default dev across".into(), "route add ::/0 dev across".into()])?;
        }
        self.far = Some((far, wire));
        Ok(())
    }

    /// Adds a site; at most 200.
    ///
    /// # Errors
    /// The kernel refuses, or there are too many.
    pub fn site(&mut self, name: &str, config: &SiteConfig) -> Result<Site, LabError> {
        let number = self.next_number()?;
        let jobs = self.space(name).map_err(while_trying(format!("make the network of `{name}`")))?;
        let inner = LinkTo { jobs, name: "eth0".into(), index: LINK_INDEX };
        self.build(number, name, config, &inner).map_err(while_trying(format!("make the network of `{name}`")))
    }

    /// Adds a site whose host is the network of a process that runs already, such as a cluster's node. A link `uplink` is
    /// added to it, which is its way out from here on.
    ///
    /// # Errors
    /// As [`Self::site`]; or the site is to have no gateway.
    pub fn site_of_process(&mut self, name: &str, config: &SiteConfig, process: u32) -> Result<Site, LabError> {
        let number = self.next_number()?;
        let trying = while_trying(format!("put the network of process {process} behind a gateway"));
        let mut adopt = || {
            if config.network == Network::None {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no gateway to put it behind"));
            }
            let space = Namespace::of_process(name.chars().take(15).collect(), process)?;
            let inner = LinkTo { jobs: space.jobs(), name: "uplink".into(), index: LINK_INDEX };
            self.spaces.push(space);
            self.build(number, name, config, &inner)
        };
        adopt().map_err(trying)
    }

    fn next_number(&self) -> Result<u8, LabError> {
        let number = u8::try_from(self.sites().len() + 1).ok().filter(|number| *number <= 200);
        number.ok_or(LabError::AddressesExhausted(Ipv4Addr::new(198, 18, 200, 1)))
    }

    fn build(&mut self, number: u8, name: &str, config: &SiteConfig, inner: &LinkTo) -> io::Result<Site> {
        let network = config.network;
        let host = inner.jobs.clone();
        prepare(&host, false)?;
        let gateway = if network == Network::None { None } else { Some(self.space(&format!("{name}-gw"))?) };
        let carrier = network.carrier().map(|carrier| self.carrier(carrier)).transpose()?;
        let public = carrier.as_ref().map_or(Ipv4Addr::new(198, 18, number, 1), |(_, public)| *public);
        let outer = gateway.as_ref().unwrap_or(&host);
        let outer = LinkTo { jobs: outer.clone(), name: "wan".into(), index: LINK_INDEX };
        let inside;
        let mut wire = None;
        if let Some(gateway) = &gateway {
            inside = Ipv4Addr::new(10, 0, number, 2);
            prepare(gateway, true)?;
            let near = LinkTo { jobs: gateway.clone(), name: "lan".into(), index: LAN_INDEX };
            join(&near, inner)?;
            ip(&host, inner_addresses(number, network, inside, &inner.name))?;
            ip(gateway, lan_addresses(number, network))?;
        } else {
            inside = public;
        }
        match (&carrier, &gateway) {
            (Some((carrier, _)), Some(gateway)) => {
                let far = LinkTo {
                    jobs: carrier.clone(),
                    name: format!("sub{number}"),
                    index: LINK_INDEX + u32::from(number),
                };
                join(&outer, &far)?;
                let own = subscriber(network, number);
                ip(carrier, vec![format!("route add {own}/32 dev {}", far.name)])?;
                ip(gateway, vec![format!("addr add {own}/32 dev wan"), "route add default dev wan".into()])?;
                self.subscribe(network, number, own)?;
                set(&host, "net/ipv4/ip_local_port_range", range(number))?;
            }
            _ => {
                wire = self.attach(&outer, number, public, network_addresses(number, config), config)?;
            }
        }
        if let Some(gateway) = &gateway {
            set_lifetimes(gateway, network, config.mapping_lifetime)?;
            nft(gateway, rules::gateway(network, own_public(network, number, public), inside, &[]))?;
        }
        self.sites().insert(number, State { network, public, inside, wire, open: Vec::new(), last: 2 });
        let named = |jobs: Jobs, name: String| Host { id: HostId(usize::from(number)), name, jobs };
        let gateway = gateway.map(|jobs| named(jobs, format!("{name}-gw")));
        Ok(Site { number, network, host: named(host, name.to_owned()), gateway })
    }

    /// Joins a namespace to the internet, with these addresses in its `wan`.
    fn attach(
        &mut self,
        outer: &LinkTo,
        number: u8,
        public: Ipv4Addr,
        addresses: Vec<String>,
        config: &SiteConfig,
    ) -> io::Result<Option<Wire>> {
        let access = &config.access;
        let side = self.far.as_ref().filter(|_| config.far).map_or(&self.internet, |(far, _)| far).clone();
        self.links += 1;
        let name = format!("w{}", self.links);
        let far = LinkTo { jobs: side.clone(), name: name.clone(), index: LINK_INDEX + self.links };
        let wire = if *access == Access::default() {
            join(outer, &far)?;
            None
        } else {
            Some(self.splice(outer, &far, access, u64::from(number))?)
        };
        let [a, b, c, _] = public.octets();
        ip(
            &side,
            vec![
                format!("route add {a}.{b}.{c}.0/24 dev {name}"),
                format!("route add 2001:db8:{number:x}::/48 dev {name}"),
            ],
        )?;
        ip(&outer.jobs, addresses)?;
        Ok(wire)
    }

    /// Joins two ends by a wire of ours.
    fn splice(&mut self, site: &LinkTo, internet: &LinkTo, access: &Access, seed: u64) -> io::Result<Wire> {
        if self.wires.is_none() {
            self.wires = Some(self.space("wires")?);
        }
        let middle = self.wires.clone().ok_or(io::ErrorKind::NotConnected)?;
        let end = |to: &LinkTo, name: String, index| -> io::Result<wire::End> {
            let near = LinkTo { jobs: middle.clone(), name, index };
            join(&near, to)?;
            if !(access.up.keeps_batches() && access.down.keeps_batches()) {
                // The wire is to see packets, not batches of them.
                ip(&to.jobs, vec![format!("link set dev {} gso_max_segs 1", to.name)])?;
            }
            middle.run(move || sys::packet_socket(index, Frames::All))?
        };
        let number = self.links;
        let near = end(site, format!("s{number}"), LINK_INDEX + 2 * number)?;
        let far = end(internet, format!("i{number}"), LINK_INDEX + 2 * number + 1)?;
        Wire::start(near, far, access, 2 * seed)
    }

    /// The carrier of that number, made when it is first asked for.
    fn carrier(&mut self, number: u8) -> io::Result<(Jobs, Ipv4Addr)> {
        if let Some(carrier) = self.carriers.get(&number) {
            return Ok((carrier.jobs.clone(), carrier.public));
        }
        let jobs = self.space(&format!("carrier{number}"))?;
        prepare(&jobs, true)?;
        let public = Ipv4Addr::new(198, 19, number, 1);
        let addresses = vec![format!("addr add {public}/32 dev wan"), "route add default dev wan".into()];
        let outer = LinkTo { jobs: jobs.clone(), name: "wan".into(), index: LINK_INDEX };
        // Sites end at 200, so that their IPv6 networks are not the carrier's.
        self.attach(&outer, 200 + number, public, addresses, &SiteConfig::new(Network::Carrier))?;
        let hairpin = Network::CarrierHairpin.carrier() == Some(number);
        self.carriers.insert(number, Carrier { jobs: jobs.clone(), public, hairpin, subscribers: Vec::new() });
        Ok((jobs, public))
    }

    fn subscribe(&mut self, network: Network, number: u8, own: Ipv4Addr) -> io::Result<()> {
        let carrier = network.carrier().and_then(|carrier| self.carriers.get_mut(&carrier));
        let carrier = carrier.ok_or(io::ErrorKind::NotFound)?;
        carrier.subscribers.push((number, own));
        nft(&carrier.jobs, rules::carrier(carrier.public, carrier.hairpin, &carrier.subscribers))
    }

    fn space(&mut self, name: &str) -> io::Result<Jobs> {
        let space = Namespace::start(name.chars().take(15).collect())?;
        let jobs = space.jobs();
        self.spaces.push(space);
        Ok(jobs)
    }

    fn sites(&self) -> MutexGuard<'_, BTreeMap<u8, State>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for KernelLab {
    fn drop(&mut self) {
        // Wires first: they hold sockets of a namespace.
        self.sites().clear();
        self.far = None;
        for space in self.spaces.drain(..) {
            space.end();
        }
    }
}

/// Makes a namespace quiet and, if it is to be a router, one.
fn prepare(jobs: &Jobs, router: bool) -> io::Result<()> {
    jobs.run(|| netlink::set_up(netlink::LOOPBACK))??;
    // Both ends of a link have one hardware address, which IPv6 would take for a duplicate.
    let mut settings = vec![("net/ipv6/conf/default/addr_gen_mode", "1"), ("net/ipv6/conf/default/accept_dad", "0")];
    settings.push(("net/ipv6/conf/default/accept_ra", "0"));
    for all in ["net/ipv4/conf/all/rp_filter", "net/ipv4/conf/default/rp_filter"] {
        settings.push((all, "0"));
    }
    if router {
        settings.push(("net/ipv4/ip_forward", "1"));
        settings.push(("net/ipv6/conf/all/forwarding", "1"));
    }
    settings.into_iter().try_for_each(|(name, value)| set(jobs, name, value.into()))
}

fn set(jobs: &Jobs, name: &'static str, value: String) -> io::Result<()> {
    let write = move || std::fs::write(format!("/proc/sys/{name}"), value);
    jobs.run(write)?.map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}: {error}")))
}

/// Makes a link of two ends, and waits until it carries packets.
fn join(near: &LinkTo, far: &LinkTo) -> io::Result<()> {
    let there = far.jobs.descriptor()?;
    let (one, other) = (near.clone(), far.clone());
    near.jobs.run(move || {
        let near = LinkEnd { name: &one.name, index: one.index, mac: MAC };
        let far = LinkEnd { name: &other.name, index: other.index, mac: MAC };
        netlink::create_link(near, far, there.as_fd())
    })??;
    for end in [near, far] {
        let index = end.index;
        end.jobs.run(move || netlink::set_up(index))??;
    }
    for end in [near, far] {
        let index = end.index;
        end.jobs.run(move || netlink::wait_for_carrier(index))??;
    }
    Ok(())
}

/// How long conntrack keeps UDP: unanswered, and answered.
fn set_lifetimes(gateway: &Jobs, network: Network, lifetime: Option<Duration>) -> io::Result<()> {
    let short = (network == Network::ShortLived).then_some(Duration::from_secs(20));
    let Some(lifetime) = lifetime.or(short) else { return Ok(()) };
    for name in ["net/netfilter/nf_conntrack_udp_timeout", "net/netfilter/nf_conntrack_udp_timeout_stream"] {
        set(gateway, name, lifetime.as_secs().max(1).to_string())?;
    }
    Ok(())
}
