//! The lab: hosts, NATs and links that can be changed while programs run.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use peerage_sim::nat::NatKind;

use crate::enter::is_privileged;
use crate::host::{Host, Jobs, LINK_INDEX, Namespace};
use crate::netlink::{self, LinkEnd};
use crate::router::{Port, Router, host_mac, router_mac};
use crate::sys;
use crate::sys::{Frames, Ring};
use crate::world::{Access, Drops, HostId, SiteId, Traffic, World};

/// A host to be.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Its own address; with a NAT it is private and may occur again behind another one.
    pub address: Ipv4Addr,
    /// What stands between it and the internet.
    pub nat: NatKind,
    /// What its way to the internet does to packets.
    pub link: Access,
}

impl HostConfig {
    /// A host with a public address and a perfect link.
    #[must_use]
    pub fn public(address: Ipv4Addr) -> Self {
        Self::behind(address, NatKind::None)
    }

    /// A host behind a NAT of its own, with a perfect link.
    #[must_use]
    pub fn behind(address: Ipv4Addr, nat: NatKind) -> Self {
        Self { address, nat, link: Access::default() }
    }

    /// The same host with another link.
    #[must_use]
    pub fn with_link(self, link: impl Into<Access>) -> Self {
        Self { link: link.into(), ..self }
    }
}

/// What kept the lab from doing as asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// This process may not make networks.
    #[error("a lab needs privileges over the network: call netlab::enter() first thing in main, or run as root")]
    Unprivileged,
    /// The address belongs to another host already.
    #[error("the address {0} is taken")]
    AddressTaken(Ipv4Addr),
    /// No address is left to change to.
    #[error("no address is left near {0}")]
    AddressesExhausted(Ipv4Addr),
    /// A program that the lab needs is not installed.
    #[error("the lab needs `{program}`: install the package {package}")]
    Missing {
        /// What is called.
        program: &'static str,
        /// Debian's package that brings it.
        package: &'static str,
    },
    /// The kernel refused.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
}

/// An internet of its own. Dropping it ends its threads, kills the programs it started and removes its networks.
#[derive(Debug)]
pub struct Lab {
    router: Arc<Router>,
    /// Where the router's ends of all links are.
    middle: Option<Namespace>,
    hosts: Vec<Namespace>,
    threads: Vec<JoinHandle<()>>,
}

/// NATs get public addresses from here on upwards (RFC 5737: documentation, so no real one is meant).
const FIRST_PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

impl Lab {
    /// An internet without hosts.
    ///
    /// # Errors
    /// The process lacks the privileges, or the kernel refuses.
    pub fn new() -> Result<Self, LabError> {
        Self::with_seed(0)
    }

    /// As [`Lab::new`]; `seed` decides what is left to chance in NATs and links.
    ///
    /// # Errors
    /// The process lacks the privileges, or the kernel refuses.
    pub fn with_seed(seed: u64) -> Result<Self, LabError> {
        if !is_privileged() {
            return Err(LabError::Unprivileged);
        }
        let router = Arc::new(Router::new(World::new(seed)).map_err(while_trying("make the router"))?);
        let middle = Namespace::start("lab".into()).map_err(while_trying("make the router's network"))?;
        let mut lab = Self { router, middle: Some(middle), hosts: Vec::new(), threads: Vec::new() };
        let router = Arc::clone(&lab.router);
        lab.start_thread("clock".into(), move || router.run_clock())?;
        Ok(lab)
    }

    /// Adds a host, with a NAT of its own where the configuration names one.
    ///
    /// # Errors
    /// The address is taken, or the kernel refuses.
    pub fn host(&mut self, name: &str, config: HostConfig) -> Result<Host, LabError> {
        let public = match config.nat {
            NatKind::None if self.router.world().is_taken(config.address) => {
                return Err(LabError::AddressTaken(config.address));
            }
            NatKind::None => config.address,
            NatKind::Translating(_) => self.free_address(FIRST_PUBLIC)?,
        };
        let site = self.router.world().add_site(config.nat, public, config.link);
        self.attach(name, site, config.address)
    }

    /// Adds a host behind the NAT of another, in the same local network.
    ///
    /// # Errors
    /// The address is taken, or the kernel refuses.
    pub fn neighbour(&mut self, name: &str, address: Ipv4Addr, of: &Host) -> Result<Host, LabError> {
        let site = self.router.world().site_of(of.id);
        if self.router.world().is_taken(address) {
            return Err(LabError::AddressTaken(address));
        }
        self.attach(name, site, address)
    }

    /// Changes both directions of a host's link, for packets sent from here on.
    pub fn set_link(&self, host: &Host, link: impl Into<Access>) {
        self.router.world().set_access(host.id, link.into());
    }

    /// Blocks or unblocks what goes straight from one host's site to the other's, in both directions.
    pub fn block_direct(&self, a: &Host, b: &Host, blocked: bool) {
        self.router.world().block(a.id, b.id, blocked);
    }

    /// The address that others see the host come from.
    #[must_use]
    pub fn public_address(&self, host: &Host) -> Ipv4Addr {
        self.router.world().public_address_of(host.id)
    }

    /// The host's own address.
    #[must_use]
    pub fn address(&self, host: &Host) -> Ipv4Addr {
        self.router.world().address_of(host.id)
    }

    /// Makes the host's NAT forget its mappings, as a restarted router does; the public address stays.
    pub fn flush_nat(&self, host: &Host) {
        self.router.world().flush_nat(host.id);
    }

    /// Gives the host's NAT another public address, which ends all its mappings. A host without a NAT changes its own.
    /// Returns the new address.
    ///
    /// # Errors
    /// No address is left, or the kernel refuses.
    pub fn change_public_address(&self, host: &Host) -> Result<Ipv4Addr, LabError> {
        if self.router.world().kind_of(host.id) == NatKind::None {
            return self.change_address(host);
        }
        let new = self.free_address(FIRST_PUBLIC)?;
        self.router.world().set_public_address(host.id, new);
        Ok(new)
    }

    /// Gives the host itself another address of its /24, as a laptop gets in another place. Returns the new address.
    ///
    /// # Errors
    /// No address is left, or the kernel refuses.
    pub fn change_address(&self, host: &Host) -> Result<Ipv4Addr, LabError> {
        let old = self.address(host);
        let new = self.free_address(old)?;
        host.jobs
            .change_address(old, new)
            .map_err(while_trying(format!("give host `{}` another address", host.name)))?;
        self.router.world().set_host_address(host.id, new);
        Ok(new)
    }

    /// What has been delivered from one host to another, by whatever way.
    #[must_use]
    pub fn traffic(&self, from: &Host, to: &Host) -> Traffic {
        self.router.world().traffic(from.id, to.id)
    }

    /// What a host has sent in vain.
    #[must_use]
    pub fn drops(&self, host: &Host) -> Drops {
        self.router.world().drops(host.id)
    }

    fn attach(&mut self, name: &str, site: SiteId, address: Ipv4Addr) -> Result<Host, LabError> {
        let failed = || while_trying(format!("make the network of host `{name}`"));
        let namespace = Namespace::start(name.into()).map_err(failed())?;
        let jobs = namespace.jobs();
        self.hosts.push(namespace);
        // The host's ports and namespaces are counted alike, so this is the id it will get.
        let id = HostId(self.hosts.len() - 1);
        let (port, mut ring) = self.link(id, &jobs).map_err(failed())?;
        jobs.configure(address).map_err(failed())?;
        self.wait_for_carrier(id).map_err(failed())?;

        let port = Arc::new(port);
        self.router.add_port(Arc::clone(&port));
        let added = self.router.world().add_host(site, address);
        assert_eq!(added, id, "a host that could not be attached ended the lab's use");
        let router = Arc::clone(&self.router);
        self.start_thread(format!("from {name}"), move || router.read_from(id, &port, &mut ring))?;
        Ok(Host { id, name: name.into(), jobs })
    }

    /// Makes the link between a host and the router, and the router's socket on it.
    fn link(&self, id: HostId, host: &Jobs) -> io::Result<(Port, Ring)> {
        let there = host.descriptor()?;
        let Some(middle) = &self.middle else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        middle.jobs().run(move || {
            let index = LINK_INDEX + id.0 as u32;
            let name = format!("host{}", id.0);
            let near = LinkEnd { name: &name, index, mac: router_mac(id) };
            let far = LinkEnd { name: "eth0", index: LINK_INDEX, mac: host_mac(id) };
            netlink::create_link(near, far, there.as_fd())?;
            netlink::set_up(index)?;
            let (socket, ring) = sys::packet_socket(index, Frames::Ipv4)?;
            Ok((Port { socket }, ring))
        })?
    }

    /// Waits for the router's end; the host waits for its own.
    fn wait_for_carrier(&self, id: HostId) -> io::Result<()> {
        let Some(middle) = &self.middle else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        middle.jobs().run(move || netlink::wait_for_carrier(LINK_INDEX + id.0 as u32))?
    }

    fn start_thread(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), LabError> {
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(while_trying("start a thread"))?;
        self.threads.push(thread);
        Ok(())
    }

    /// The first address above `near` in its /24 that nobody has, going round.
    fn free_address(&self, near: Ipv4Addr) -> Result<Ipv4Addr, LabError> {
        let [a, b, c, last] = near.octets();
        let world = self.router.world();
        (0..254)
            .map(|n| Ipv4Addr::new(a, b, c, 1 + ((u32::from(last) + 253 + n) % 254) as u8))
            .find(|address| !world.is_taken(*address))
            .ok_or(LabError::AddressesExhausted(near))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.router.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the lab panicked");
            }
        }
        for namespace in self.hosts.drain(..).chain(self.middle.take()) {
            namespace.end();
        }
    }
}

pub(crate) fn while_trying(action: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
    let action = action.into();
    move |cause| LabError::System { action, cause }
}
