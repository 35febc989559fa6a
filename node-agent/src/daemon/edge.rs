//! Names and ports for local programs: DNS, listeners, forwarders and the proxy, fed from the snapshot.
//!
//! They get a directory without keys. A part that cannot start (no 127.64.0.1, the proxy's port taken) is a problem
//! that status tells of, never a reason not to run: tunnels and `peerage connect` work without it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use peerage_model::AgentId;
use peerage_model::snapshot::{Peer, Port, Protocol};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use super::addresses::Kept;
use crate::address::{AddressBook, Directory, Listed};
use crate::control::message::Listener;
use crate::control::view;
use crate::dns;
use crate::forward::{Inbound, Limits, Outbound, Services, Stats};
use crate::listen::{self, Avoid, ConflictReason, Listening, Whose};
use crate::process;
use crate::proxy;
use crate::state::document::Service;
use crate::tunnel::{Dial, Incoming};

/// How the edge is set up.
#[derive(Clone, Debug, Default)]
pub struct EdgeConfig {
    /// Where the proxy listens; nowhere unless asked for.
    pub proxy: Option<SocketAddr>,
    /// Whether programs find peers by name and connect to their addresses.
    pub names: bool,
    /// Who answers for names, and whom it asks about others.
    pub dns: Dns,
    /// What the process before this one has left of that.
    pub handed_on: Option<Arc<dns::HandedOn>>,
    /// Where this runs.
    pub whose: Whose,
    /// Addresses that stand for peers already, because programs were told of them.
    pub addresses: Vec<(AgentId, Ipv4Addr)>,
    /// Where it is kept which address stands for whom; nowhere, and addresses are as old as the process.
    pub kept: Option<PathBuf>,
}

/// DNS on 127.64.0.1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Dns {
    /// Asks the servers of /etc/resolv.conf about names that are not ours.
    #[default]
    System,
    /// Asks these instead: in a pod whose resolv.conf names nobody but us.
    Servers(Vec<SocketAddr>),
    /// Names are told to programs in another way, so nothing of ours is on the port.
    Off,
}

impl std::str::FromStr for Dns {
    type Err = InvalidDns;

    fn from_str(text: &str) -> Result<Self, InvalidDns> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let server = |one: &str| match one.trim().parse() {
            Ok(address) => Ok(SocketAddr::new(address, 53)),
            Err(_) => one.trim().parse(),
        };
        text.split(',').map(server).collect::<Result<_, _>>().map(Self::Servers).map_err(|_| InvalidDns)
    }
}

/// Text that does not say whom to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DNS servers are addresses with commas between, like 10.96.0.10 or [fd00::a]:53; `off` is no DNS")]
pub struct InvalidDns;

/// Something in the way of programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What, and what to do.
    pub text: String,
    /// Whether there is nothing wrong with it: a limit of the machine that `peerage run` gets around.
    pub expected: bool,
}

/// The running edge; dropping it ends what it runs.
#[derive(Debug)]
pub struct Edge {
    book: Mutex<Book>,
    directory: watch::Sender<Arc<Directory>>,
    services: watch::Sender<Arc<Services>>,
    listening: watch::Receiver<Arc<Listening>>,
    /// What it counted.
    pub stats: Arc<Stats>,
    /// Dials for local programs.
    pub outbound: Outbound,
    /// Where DNS answers, if it is ours to answer.
    dns: Option<watch::Receiver<dns::Place>>,
    /// That it may begin to.
    known: Arc<Notify>,
    /// Where the proxy listens.
    pub proxy: Option<SocketAddr>,
    problems: Vec<String>,
    whose: Whose,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Book {
    addresses: AddressBook,
    kept: Option<Kept>,
    /// What peers said; it outlives their sessions, so that a program finds the port and the dial finds the peer.
    ports: BTreeMap<AgentId, Vec<Port>>,
    peers: Vec<Listed>,
    reserved: BTreeSet<(Protocol, u16)>,
}

impl Edge {
    /// Starts everything; questions for names wait for [`Self::answer`].
    pub async fn start(config: EdgeConfig, dial: Arc<dyn Dial>, incoming: mpsc::Receiver<Incoming>) -> Self {
        let (directory, seen) = watch::channel(Arc::default());
        let (services, offered) = watch::channel(Arc::default());
        let (report, listening) = watch::channel(Arc::default());
        let stats = Arc::new(Stats::default());
        let outbound = Outbound::new(dial, Arc::clone(&stats));
        let (mut tasks, mut problems, known) = (JoinSet::new(), Vec::new(), Arc::new(Notify::new()));
        let shares = Shares::of(process::files());
        let inbound = Inbound::new(offered, seen.clone(), shares.inbound, Arc::clone(&stats));
        tasks.spawn(inbound.run(incoming));
        if config.names {
            tasks.spawn(listen::run(seen.clone(), outbound.clone(), shares.listen.clone(), report));
        }
        let dns = match upstreams(config.dns).filter(|_| config.names) {
            Some(upstreams) => {
                let dns = dns::Config { handed_on: config.handed_on, ..dns::Config::new(upstreams) };
                Some(start_dns(dns, seen.clone(), Arc::clone(&known), &mut tasks).await)
            }
            None => None,
        };
        let proxy = match config.proxy {
            Some(address) => {
                start_proxy(shares.proxy(address), seen, outbound.clone(), &mut tasks, &mut problems).await
            }
            None => None,
        };
        let mut book = Book { kept: config.kept.map(Kept::at), ..Book::default() };
        // What programs were told goes first: nothing can take it back from them.
        book.addresses.restore(config.addresses);
        if let Some(kept) = &mut book.kept {
            kept.restore(&mut book.addresses);
        }
        Self {
            book: Mutex::new(book),
            directory,
            services,
            listening,
            stats,
            outbound,
            dns,
            known,
            proxy,
            problems,
            whose: config.whose,
            _tasks: tasks,
        }
    }

    /// Begins to answer for names. Who goes on with what was there before calls it when that is known: until then a peer would be
    /// answered to be nobody, and programs remember such an answer.
    pub fn answer(&self) {
        self.known.notify_one();
    }

    /// Acts on whom we trust and what we offer.
    pub fn apply(&self, peers: &[Peer], offered: &[Service], avoid: &[Avoid]) {
        let listed = peers.iter().map(|peer| Listed::new(peer.id.clone(), peer.alias.clone(), peer.ports.clone()));
        let reserved = avoid.iter().map(|avoid| (avoid.protocol, avoid.port)).collect();
        self.apply_listed(listed.collect(), offered, reserved);
    }

    /// The same where more is known: which cluster a peer is in, other numbers for its ports, and ports that the programs
    /// here need themselves.
    pub fn apply_listed(&self, peers: Vec<Listed>, offered: &[Service], reserved: BTreeSet<(Protocol, u16)>) {
        let mut services = Services::new();
        for service in offered {
            services = services.with(service.protocol.into(), service.port, service.target);
        }
        self.services.send_replace(Arc::new(services));
        let mut book = self.book();
        let known: BTreeSet<&AgentId> = peers.iter().map(|peer| &peer.id).collect();
        book.ports.retain(|id, _| known.contains(id));
        (book.peers, book.reserved) = (peers, reserved);
        self.publish(&mut book);
    }

    /// Acts on what a peer said of its ports.
    pub fn learn_ports(&self, peer: &AgentId, ports: Vec<Port>) {
        let mut book = self.book();
        // Each session begins with it, and of many peers most come back as they were.
        if book.ports.get(peer) == Some(&ports) {
            return;
        }
        book.ports.insert(peer.clone(), ports);
        self.publish(&mut book);
    }

    /// What a peer said of its ports.
    pub fn ports_of(&self, peer: &AgentId) -> Vec<Port> {
        self.book().ports.get(peer).cloned().unwrap_or_default()
    }

    /// Whom programs find.
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.borrow())
    }

    /// What listens for programs, and what could not.
    pub fn listening(&self) -> Arc<Listening> {
        Arc::clone(&self.listening.borrow())
    }

    /// Where DNS answers at the moment.
    pub fn dns(&self) -> Option<SocketAddr> {
        self.dns.as_ref()?.borrow().as_ref().ok().copied()
    }

    /// Tells when [`Self::dns`] changes; `None`: there is no DNS of ours.
    pub fn watch_dns(&self) -> Option<watch::Receiver<dns::Place>> {
        self.dns.clone()
    }

    /// What stands in the way of programs that want to reach peers.
    pub fn problems(&self) -> Vec<Problem> {
        let listening = Arc::clone(&self.listening.borrow());
        let conflicts = listening.conflicts.iter().map(|conflict| Problem {
            text: format!("{conflict}: {}", conflict.remedy(self.whose)),
            // Without root this is how it always is, and `peerage run` is made for it.
            expected: conflict.reason == ConflictReason::Reserved,
        });
        let own = self.problems.iter().map(|text| Problem { text: text.clone(), expected: false });
        let dns = self.dns.as_ref().and_then(|place| place.borrow().as_ref().err().cloned()).map(|error| Problem {
            text: format!("names of peers cannot be answered by DNS: {error}; `peerage run` finds them anyway"),
            expected: false,
        });
        own.chain(dns).chain(conflicts).collect()
    }

    /// Names and redirects of this moment.
    pub fn names(&self) -> view::Names {
        let directory = self.directory();
        let hosts = directory.entries().flat_map(|entry| {
            // An alias that two peers answer to leads nowhere; the directory decides.
            let spoken = [entry.alias.to_string(), entry.alias_name(), entry.full_name()];
            let mine = |name: &String| directory.by_name(name).is_some_and(|found| found.id == entry.id);
            let mut names: Vec<String> = spoken.into_iter().filter(mine).collect();
            names.dedup();
            names.into_iter().map(|name| (name, entry.address.into())).collect::<Vec<_>>()
        });
        let redirects = self.listening.borrow().redirects().into_iter().map(|(endpoint, bound)| Listener {
            address: endpoint.address,
            protocol: view::transport(endpoint.protocol),
            bound,
        });
        view::Names { hosts: hosts.collect(), redirects: redirects.collect(), dns: self.dns() }
    }

    /// Tells when [`Self::names`] may have changed.
    pub fn watch_names(&self) -> NamesWatch {
        NamesWatch { directory: self.directory.subscribe(), listening: self.listening.clone(), dns: self.dns.clone() }
    }

    fn publish(&self, book: &mut Book) {
        let listed = |peer: &Listed| Listed {
            ports: book.ports.get(&peer.id).cloned().unwrap_or_else(|| peer.ports.clone()),
            ..peer.clone()
        };
        let listed: Vec<Listed> = book.peers.iter().map(listed).collect();
        let directory = Arc::new(book.addresses.directory(listed).keeping_off(book.reserved.clone()));
        if let Some(kept) = &mut book.kept {
            kept.keep(&book.addresses);
        }
        self.directory.send_if_modified(|old| {
            let changed = **old != *directory;
            *old = directory;
            changed
        });
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Edge::watch_names`].
#[derive(Debug)]
pub struct NamesWatch {
    directory: watch::Receiver<Arc<Directory>>,
    listening: watch::Receiver<Arc<Listening>>,
    dns: Option<watch::Receiver<dns::Place>>,
}

impl NamesWatch {
    /// Resolves at the next change; false when the daemon is gone.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            result = self.directory.changed() => result.is_ok(),
            // Without listeners there are no redirects that could change.
            Ok(()) = self.listening.changed() => true,
            () = changed(self.dns.as_mut()) => true,
        }
    }
}

/// Files that are not connections': listeners, the tunnel's sockets, questions that DNS has passed on (256), its clients over TCP
/// (64), the control socket and the state. Without them names fail, and nobody could revoke.
const OTHER_FILES: usize = 512;
/// However few files there are, a few connections are tried.
const FEWEST: usize = 16;

/// How many connections each part may have, so that all of them together leave files for the rest.
#[derive(Clone, Debug)]
struct Shares {
    inbound: Limits,
    listen: listen::Config,
    proxy: Option<usize>,
}

impl Shares {
    /// The usual limits, or as much less as `files` is too few for them.
    fn of(files: usize) -> Self {
        let (mut inbound, mut listen) = (Limits::default(), listen::Config::default());
        let proxy = proxy::Config::new(([127, 0, 0, 1], 0).into()).total;
        let (wanted, room) = (inbound.total + listen.total + proxy, files.saturating_sub(OTHER_FILES));
        if wanted <= room {
            return Self { inbound, listen, proxy: None };
        }
        let share = |most: usize| (most * room / wanted).max(FEWEST);
        (inbound.total, inbound.per_peer) = (share(inbound.total), share(inbound.per_peer));
        (listen.total, listen.per_listener) = (share(listen.total), share(listen.per_listener));
        Self { inbound, listen, proxy: Some(share(proxy)) }
    }

    fn proxy(&self, address: SocketAddr) -> proxy::Config {
        let usual = proxy::Config::new(address);
        proxy::Config { total: self.proxy.unwrap_or(usual.total), ..usual }
    }
}

/// Resolves when there is something to watch and it has changed.
async fn changed(place: Option<&mut watch::Receiver<dns::Place>>) {
    let Some(place) = place else { return std::future::pending().await };
    if place.changed().await.is_err() {
        // The server has ended with the edge, whose other parts say so.
        std::future::pending().await
    }
}

fn upstreams(dns: Dns) -> Option<dns::Upstreams> {
    match dns {
        Dns::System => Some(dns::Upstreams::from_file("/etc/resolv.conf")),
        Dns::Servers(servers) => Some(dns::Upstreams::fixed(servers)),
        Dns::Off => None,
    }
}

/// Binds the DNS server, which answers once it is `known` who our peers are.
async fn start_dns(
    config: dns::Config,
    seen: watch::Receiver<Arc<Directory>>,
    known: Arc<Notify>,
    tasks: &mut JoinSet<()>,
) -> watch::Receiver<dns::Place> {
    let server = dns::Server::bind(config, seen).await;
    let place = server.place();
    tasks.spawn(async move {
        known.notified().await;
        server.run().await;
    });
    place
}

async fn start_proxy(
    config: proxy::Config,
    seen: watch::Receiver<Arc<Directory>>,
    outbound: Outbound,
    tasks: &mut JoinSet<()>,
    problems: &mut Vec<String>,
) -> Option<SocketAddr> {
    let address = config.address;
    let bound = async {
        let server = proxy::Server::bind(config, seen, outbound).await?;
        let local = server.local_addr()?;
        tasks.spawn(server.run());
        std::io::Result::Ok(local)
    };
    match bound.await {
        Ok(local) => Some(local),
        Err(error) => {
            problems.push(format!("the proxy cannot listen on {address}: {error}; choose another with --proxy"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::stream::StreamHeader;

    use crate::tunnel::{DialError, Opened};

    /// Nobody is reached.
    struct NoTunnel;

    impl Dial for NoTunnel {
        fn dial<'a>(
            &'a self,
            peer: &'a AgentId,
            _: StreamHeader,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Opened, DialError>> + Send + 'a>> {
            Box::pin(std::future::ready(Err(DialError::NotTrusted { peer: peer.clone() })))
        }
    }

    async fn edge(config: EdgeConfig) -> Edge {
        Edge::start(config, Arc::new(NoTunnel), mpsc::channel(1).1).await
    }

    fn listed(name: &str) -> Listed {
        let id = AgentId { authority: peerage_model::Fingerprint([7; 32]), name: name.parse().expect("a name") };
        Listed::new(id, name.parse().expect("a label"), Vec::new())
    }

    #[tokio::test]
    async fn a_port_that_a_program_here_needs_is_free_of_peers() {
        let peer = |number| Port { name: "p".parse().expect("a label"), number, protocol: Protocol::Tcp };
        let program = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = program.local_addr().expect("bound").port();
        drop(program);
        let edge = edge(EdgeConfig { names: true, dns: Dns::Off, ..EdgeConfig::default() }).await;
        let db = Listed { ports: vec![peer(port)], ..listed("avoided") };
        edge.apply_listed(vec![db], &[], [(Protocol::Tcp, port)].into());
        let mut listening = edge.listening.clone();
        let heard = listening.wait_for(|listening| !listening.bound.is_empty()).await.expect("it runs").clone();
        assert_eq!(heard.conflicts[0].reason, ConflictReason::Declared);
        std::net::TcpListener::bind(("0.0.0.0", port)).expect("a program has it on all addresses");
    }

    #[tokio::test]
    async fn a_peer_that_comes_back_with_the_same_ports_is_no_reason_to_look_at_all_others() {
        let edge = edge(EdgeConfig::default()).await;
        let db = listed("db");
        edge.apply_listed(vec![db.clone(), listed("cache")], &[], BTreeSet::new());
        let ports = |number| vec![Port { name: "p".parse().expect("a label"), number, protocol: Protocol::Tcp }];
        edge.learn_ports(&db.id, ports(80));
        let known = edge.directory();
        edge.learn_ports(&db.id, ports(80));
        assert!(Arc::ptr_eq(&known, &edge.directory()), "it is not made anew");
        edge.learn_ports(&db.id, ports(81));
        assert!(edge.directory().get(&db.id).is_some_and(|entry| entry.ports.contains_key(&(Protocol::Tcp, 81))));
    }

    #[test]
    fn all_connections_together_leave_files_for_names_and_for_people() {
        let loopback = ([127, 0, 0, 1], 0).into();
        for files in [1024, 2048, 4096] {
            let shares = Shares::of(files);
            let connections = shares.inbound.total + shares.listen.total + shares.proxy(loopback).total;
            assert!(connections + OTHER_FILES <= files, "{connections} of {files}");
            assert!(shares.inbound.per_peer < shares.inbound.total, "one peer must not have them all");
        }
        assert_eq!(Shares::of(65_536).inbound.total, Limits::default().total);
    }

    #[tokio::test]
    async fn a_peer_has_the_address_that_programs_know_it_by_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let (db, cache) = (listed("db"), listed("cache"));
        let known = Ipv4Addr::new(127, 64, 9, 9);
        let config = EdgeConfig { kept: Some(dir.path().join(super::super::addresses::FILE)), ..EdgeConfig::default() };
        let told = EdgeConfig { addresses: vec![(db.id.clone(), known)], ..config.clone() };
        let first = edge(told).await;
        first.apply_listed(vec![db.clone(), cache.clone()], &[], BTreeSet::new());
        let before = first.directory();
        drop(first);
        let again = edge(config).await;
        again.apply_listed(vec![cache, db.clone()], &[], BTreeSet::new());
        assert_eq!(again.directory(), before);
        assert_eq!(before.get(&db.id).map(|entry| entry.address), Some(known));
    }

    #[test]
    fn dns_servers_are_addresses_whose_port_is_53_unless_said() {
        let servers: Dns = "10.96.0.10, [fd00::a]:5353,fd00::b".parse().expect("it is right");
        let expected =
            ["10.96.0.10:53", "[fd00::a]:5353", "[fd00::b]:53"].map(|text| text.parse().expect("an address"));
        assert_eq!(servers, Dns::Servers(expected.into()));
        assert_eq!("off".parse(), Ok(Dns::Off));
        for wrong in ["", "kube-dns", "10.96.0.10,"] {
            assert_eq!(wrong.parse::<Dns>(), Err(InvalidDns), "{wrong}");
        }
    }
}
