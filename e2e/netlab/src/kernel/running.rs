//! What can be done to a lab in use, and read from it.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::UnshareFlags;

use super::addresses::subscriber;
use super::programs::{self, ip, nft};
use super::{KernelLab, Network, Site, State, rules, set};
use crate::host::{Host, Jobs, LINK_INDEX};
use crate::lab::{LabError, while_trying};
use crate::netlink;
use crate::sys;
use crate::world::Access;

impl KernelLab {
    /// The IPv4 address that others see the site by.
    ///
    /// # Panics
    /// The site is another lab's.
    #[must_use]
    pub fn public(&self, site: &Site) -> Ipv4Addr {
        self.sites().get(&site.number).expect("a site of this lab").public
    }

    /// The host's own IPv4 address.
    ///
    /// # Panics
    /// The site is another lab's.
    #[must_use]
    pub fn inside(&self, site: &Site) -> Ipv4Addr {
        self.sites().get(&site.number).expect("a site of this lab").inside
    }

    /// Changes what the site's link does. It must have had a link that does something from the beginning.
    ///
    /// # Errors
    /// It had none.
    pub fn set_access(&self, site: &Site, access: impl Into<Access>) -> Result<(), LabError> {
        let sites = self.sites();
        let wire = sites.get(&site.number).and_then(|state| state.wire.as_ref());
        let none = || while_trying("change a link")(io::Error::other("the site was made with a plain link"));
        wire.ok_or_else(none)?.set(access.into());
        Ok(())
    }

    /// Gives the host another address, as a laptop gets in another place; with it go all mappings.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn change_address(&self, site: &Site) -> Result<Ipv4Addr, LabError> {
        self.readdress(site).map_err(while_trying("give a host another address"))
    }

    /// Gives the site's gateway another public address. A host without a gateway changes its own.
    ///
    /// # Errors
    /// The kernel refuses, or the public address is a carrier's.
    pub fn change_public_address(&self, site: &Site) -> Result<Ipv4Addr, LabError> {
        let trying = while_trying("give a gateway another address");
        let Some(gateway) = &site.gateway else { return self.change_address(site) };
        let change = || {
            if site.network.carrier().is_some() {
                return Err(io::Error::other("it is the carrier's"));
            }
            let mut sites = self.sites();
            let state = sites.get_mut(&site.number).ok_or(io::ErrorKind::NotFound)?;
            state.last += 1;
            let (old, new) = (state.public, Ipv4Addr::new(198, 18, site.number, state.last));
            move_address(&gateway.jobs, "wan", old, new)?;
            state.public = new;
            renew(gateway, state)?;
            Ok(new)
        };
        change().map_err(trying)
    }

    /// Puts another kind of NAT before a site; open connections meet it as they are, what conntrack knows goes. What
    /// [`Site::network`] says stays as it was.
    ///
    /// # Errors
    /// The kernel refuses; one of the two kinds is more than the rules of one gateway.
    pub fn change_network(&self, site: &Site, network: Network) -> Result<(), LabError> {
        let is_gateway = |network: Network| {
            network != Network::None
                && network != Network::HttpProxy
                && network.carrier().is_none()
                && !network.has_ipv6()
        };
        let change = || {
            let mut sites = self.sites();
            let state = sites.get_mut(&site.number).ok_or(io::ErrorKind::NotFound)?;
            let gateway = site.gateway.as_ref().filter(|_| is_gateway(state.network) && is_gateway(network));
            let gateway =
                gateway.ok_or_else(|| io::Error::other(format!("{} cannot become {network}", state.network)))?;
            state.network = network;
            renew(gateway, state)
        };
        change().map_err(while_trying("put another NAT before a site"))
    }

    /// Lets everybody reach the host at this port of its gateway's address, by UDP and TCP, as a router does that was told to, or
    /// a cloud's load balancer. What conntrack knows goes.
    ///
    /// # Errors
    /// The kernel refuses, or the site has no gateway.
    pub fn open_port(&self, site: &Site, port: u16) -> Result<(), LabError> {
        self.change_open(site, |open| open.push(port)).map_err(while_trying("open a port of a gateway"))
    }

    /// Closes a port that was opened. What conntrack knows goes.
    ///
    /// # Errors
    /// As [`Self::open_port`].
    pub fn close_port(&self, site: &Site, port: u16) -> Result<(), LabError> {
        self.change_open(site, |open| open.retain(|one| *one != port))
            .map_err(while_trying("close a port of a gateway"))
    }

    fn change_open(&self, site: &Site, change: impl FnOnce(&mut Vec<u16>)) -> io::Result<()> {
        let mut sites = self.sites();
        let state = sites.get_mut(&site.number).ok_or(io::ErrorKind::NotFound)?;
        let gateway = site.gateway.as_ref().ok_or_else(|| io::Error::other("there is no gateway"))?;
        change(&mut state.open);
        renew(gateway, state)
    }

    fn readdress(&self, site: &Site) -> io::Result<Ipv4Addr> {
        let mut sites = self.sites();
        let state = sites.get_mut(&site.number).ok_or(io::ErrorKind::NotFound)?;
        state.last += 1;
        let [a, b, c, _] = state.inside.octets();
        let (old, new) = (state.inside, Ipv4Addr::new(a, b, c, state.last));
        // By our own thread: what is started on a host may have lost the right to.
        let plen = if site.gateway.is_some() { 24 } else { 32 };
        site.host.jobs.run(move || {
            netlink::remove_address_of(LINK_INDEX, old, plen)?;
            netlink::add_address_of(LINK_INDEX, new, plen)?;
            netlink::add_default_route(LINK_INDEX)
        })??;
        state.inside = new;
        match &site.gateway {
            Some(gateway) => renew(gateway, state)?,
            None => state.public = new,
        }
        Ok(new)
    }

    /// Makes the site's gateway forget its mappings, as a restart does.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn flush_nat(&self, site: &Site) -> Result<(), LabError> {
        let Some(gateway) = &site.gateway else { return Ok(()) };
        let flush = || gateway.jobs.run(netlink::flush_conntrack)?;
        flush().map_err(while_trying("make a gateway forget"))
    }

    /// Keeps two sites apart in the middle of the internet, or lets them meet again. IPv4 only.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn block(&self, a: &Site, b: &Site, blocked: bool) -> Result<(), LabError> {
        let (a, b) = (self.public(a), self.public(b));
        let rules = if blocked {
            format!("add element ip block pairs {{ {a} . {b}, {b} . {a} }}\n")
        } else {
            "flush set ip block pairs\n".to_owned()
        };
        nft(&self.internet, rules).map_err(while_trying("keep two sites apart"))
    }

    /// Bytes that have gone from one site to another past everybody else, also if only a carrier saw them.
    ///
    /// # Errors
    /// nft does not say.
    pub fn bytes(&self, from: &Site, to: &Site) -> Result<u64, LabError> {
        let count = || {
            let pairs = [
                (IpAddr::V4(self.public(from)), IpAddr::V4(self.public(to))),
                (IpAddr::V6(from.ipv6()), IpAddr::V6(to.ipv6())),
            ];
            let mut sum = count(&self.internet, &pairs)?;
            if let Some((far, _)) = &self.far {
                // What crosses is seen twice.
                sum = sum.max(count(far, &pairs)?);
            }
            if let Some(carrier) = shared_carrier(from, to).and_then(|carrier| self.carriers.get(&carrier)) {
                // It counts before it writes its own address over the source.
                let own = |site: &Site| IpAddr::V4(subscriber(site.network, site.number));
                sum += count(&carrier.jobs, &[(own(from), own(to))])?;
            }
            Ok(sum)
        };
        count().map_err(while_trying("count packets"))
    }

    /// Shows `file` to programs on this host in the place of `at`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn put_file(&self, host: &Host, file: &Path, at: &Path) -> Result<(), LabError> {
        let (file, at) = (file.to_owned(), at.to_owned());
        let put = move || {
            sys::unshare(UnshareFlags::NEWNS)?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            Ok(mount_bind(&file, &at)?)
        };
        let done = host.jobs.run(put);
        done.and_then(|done: io::Result<()>| done).map_err(while_trying("show a host another file"))
    }

    /// Lets programs without privileges on this host listen on low ports, as a container of a cluster may.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn allow_low_ports(&self, host: &Host) -> Result<(), LabError> {
        set(&host.jobs, "net/ipv4/ip_unprivileged_port_start", "0".into()).map_err(while_trying("allow low ports"))
    }
}

fn shared_carrier(a: &Site, b: &Site) -> Option<u8> {
    a.network.carrier().filter(|carrier| b.network.carrier() == Some(*carrier))
}

/// Replaces an address and the default route that went with it.
fn move_address(jobs: &Jobs, link: &str, old: Ipv4Addr, new: Ipv4Addr) -> io::Result<()> {
    ip(
        jobs,
        vec![
            format!("addr del {old}/32 dev {link}"),
            format!("addr add {new}/32 dev {link}"),
            format!("route replace default dev {link}"),
        ],
    )
}

/// New rules for new addresses; what conntrack knows is of the old ones.
fn renew(gateway: &Host, state: &State) -> io::Result<()> {
    nft(&gateway.jobs, rules::gateway(state.network, state.public, state.inside, &state.open))?;
    gateway.jobs.run(netlink::flush_conntrack)?
}

/// The sum of what a namespace has counted between these addresses.
fn count(jobs: &Jobs, pairs: &[(IpAddr, IpAddr)]) -> io::Result<u64> {
    let mut sum = 0;
    for set in ["flows4", "flows6"] {
        let listed = programs::run(jobs, "nft", &["-n", "list", "set", "inet", "count", set], String::new())?;
        sum += pairs.iter().map(|(from, to)| counted(&listed, *from, *to)).sum::<u64>();
    }
    Ok(sum)
}

/// `ADDRESS . ADDRESS counter packets N bytes N`, with a comma between two.
fn counted(listed: &str, from: IpAddr, to: IpAddr) -> u64 {
    let words: Vec<&str> = listed.split_whitespace().map(|word| word.trim_end_matches(',')).collect();
    let (from, to) = (from.to_string(), to.to_string());
    let flows = words.windows(8).filter(|words| words[0] == from && words[1] == "." && words[2] == to);
    flows.filter_map(|words| (words[6] == "bytes").then(|| words[7].parse::<u64>().ok())?).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_both_addresses() {
        let listed =
            "table inet count {\n set flows4 {\n elements = { 10.0.0.1 . 10.0.0.2 counter packets 2 bytes 70,\n
            10.0.0.2 . 10.0.0.1 counter packets 1 bytes 30 }\n }\n}\n";
        let address = |last| IpAddr::from([10, 0, 0, last]);
        assert_eq!(counted(listed, address(1), address(2)), 70);
        assert_eq!(counted(listed, address(2), address(1)), 30);
        assert_eq!(counted(listed, address(1), address(3)), 0);
    }
}
