//! NATs of the real kernel against those of the simulation: the same packets, and the same must become of them.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use peerage_netlab::kernel::{KernelLab, Network, Site, SiteConfig};
use peerage_netlab::{Access, Host, LinkConfig, command_inside, explain, is_privileged};
use peerage_sim::nat::Nat;

/// What came is there at once; what does not come is waited for this long.
const SILENCE: Duration = Duration::from_millis(250);
/// Only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn every_nat_does_to_packets_what_its_model_does() {
    inside("every_nat_does_to_packets_what_its_model_does", || {
        let mut lab = KernelLab::new().expect("a lab");
        let server = lab.site("server", &SiteConfig::server(2)).expect("a site");
        for network in Network::ALL {
            let Some(nat) = network.nat() else { continue };
            let site = lab.site(network.name(), &SiteConfig::new(network)).expect("a site");
            let seen = kernel(&lab, &server, &site);
            let model = model(Nat::new(nat, IpAddr::V4(PUBLIC), 7));
            assert_eq!(seen, model, "{network}: kernel, then model");
        }
    });
}

/// What becomes of a few packets, the ports by their relation.
#[derive(Debug, PartialEq, Eq)]
struct Story {
    /// A packet goes to the first server; these may answer: its socket, another of its ports, another address.
    let_in: [bool; 3],
    /// Then one goes to that other address: from which port, seen from the first.
    second: Relation,
    /// And one to another port of it: how it follows the second.
    third: Relation,
    /// After that the other address may answer.
    then_in: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Relation {
    Same,
    Next,
    Other,
}

/// A full story: who sends, who receives, and what of it arrived where.
trait Way {
    /// The host sends to this server; the port it is seen from.
    fn out(&mut self, server: usize) -> u16;
    /// This server sends to that port; whether the host gets it.
    fn back(&mut self, server: usize, port: u16) -> bool;
}

/// The servers: two ports of one address, two of another.
const SERVERS: [(u8, u16); 4] = [(1, 4_000), (1, 4_001), (2, 4_000), (2, 4_001)];
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// In a subscriber's block too, whatever its number.
const INSIDE_PORT: u16 = 5_555;

fn story(way: &mut impl Way) -> Story {
    let first = way.out(0);
    let let_in = [way.back(0, first), way.back(1, first), way.back(2, first)];
    let second = way.out(2);
    let third = way.out(3);
    let then_in = way.back(2, second);
    Story { let_in, second: relation(first, second), third: relation(second, third), then_in }
}

fn relation(before: u16, after: u16) -> Relation {
    match after.wrapping_sub(before) {
        0 => Relation::Same,
        1 => Relation::Next,
        _ => Relation::Other,
    }
}

/// The model, in its own time.
struct Model {
    nat: Nat,
    now: Instant,
}

fn model(nat: Nat) -> Story {
    story(&mut Model { nat, now: Instant::now() })
}

impl Model {
    fn server(number: usize) -> SocketAddr {
        let (last, port) = SERVERS[number];
        SocketAddr::from(([198, 51, 100, last], port))
    }

    const INSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), INSIDE_PORT);
}

impl Way for Model {
    fn out(&mut self, server: usize) -> u16 {
        self.nat.outbound(self.now, Self::INSIDE, Self::server(server)).expect("ports are left").port()
    }

    fn back(&mut self, server: usize, port: u16) -> bool {
        let to = SocketAddr::new(self.nat_public(), port);
        self.nat.inbound(self.now, Self::server(server), to).is_some()
    }
}

impl Model {
    /// Without a NAT the host's own address is the public one.
    fn nat_public(&self) -> IpAddr {
        match self.nat.kind() {
            peerage_sim::nat::NatKind::None => Self::INSIDE.ip(),
            peerage_sim::nat::NatKind::Translating(_) => IpAddr::V4(PUBLIC),
        }
    }
}

/// Sockets on the real kernel.
struct Kernel {
    servers: Vec<UdpSocket>,
    host: UdpSocket,
    public: Ipv4Addr,
}

fn kernel(lab: &KernelLab, server: &Site, site: &Site) -> Story {
    let [a, b, c, _] = lab.public(server).octets();
    let servers = SERVERS.map(|(last, port)| bound(server.host(), SocketAddr::from(([a, b, c, last], port))));
    let port = if site.network().name().starts_with("cgnat") { 0 } else { INSIDE_PORT };
    let host = bound(site.host(), SocketAddr::from(([0, 0, 0, 0], port)));
    story(&mut Kernel { servers: servers.into(), host, public: lab.public(site) })
}

impl Way for Kernel {
    fn out(&mut self, server: usize) -> u16 {
        let to = self.servers[server].local_addr().expect("it is bound");
        self.host.send_to(b"out", to).expect("the network is there");
        let (_, from) = receive(&self.servers[server], PATIENCE).expect("it arrives");
        assert_eq!(from.ip(), IpAddr::V4(self.public), "all of it comes from the public address");
        from.port()
    }

    fn back(&mut self, server: usize, port: u16) -> bool {
        self.servers[server].send_to(b"back", (self.public, port)).expect("the network is there");
        let from = self.servers[server].local_addr().expect("it is bound");
        receive(&self.host, SILENCE).is_some_and(|(_, sender)| sender == from)
    }
}

#[test]
fn a_wire_takes_its_time_and_can_be_changed() {
    inside("a_wire_takes_its_time_and_can_be_changed", || {
        let mut lab = KernelLab::new().expect("a lab");
        let slow = LinkConfig::with_delay(Duration::from_millis(30));
        let server = lab.site("server", &SiteConfig::server(1).with_access(slow)).expect("a site");
        let site = lab.site("home", &SiteConfig::new(Network::SymmetricPreserving)).expect("a site");
        let address = SocketAddr::from((lab.public(&server), 4_000));
        let (far, near) = (bound(server.host(), address), bound(site.host(), "0.0.0.0:0".parse().expect("an address")));
        let round_trip = || {
            let begun = Instant::now();
            near.send_to(b"out", address).expect("the network is there");
            let (_, from) = receive(&far, PATIENCE).expect("it arrives");
            far.send_to(b"back", from).expect("the network is there");
            receive(&near, PATIENCE).expect("it comes back");
            begun.elapsed()
        };
        assert!(round_trip() >= Duration::from_millis(60));
        lab.set_access(&server, Access::default()).expect("it has a wire");
        let quick = (0..20).map(|_| round_trip()).min().expect("some");
        assert!(quick < Duration::from_millis(30), "{quick:?}");
        assert!(lab.set_access(&site, Access::default()).is_err(), "a plain link cannot be changed");
    });
}

#[test]
fn a_gateway_with_another_address_has_forgotten_its_mappings() {
    inside("a_gateway_with_another_address_has_forgotten_its_mappings", || {
        let mut lab = KernelLab::new().expect("a lab");
        let server = lab.site("server", &SiteConfig::server(1)).expect("a site");
        let far = bound(server.host(), SocketAddr::from((lab.public(&server), 4_000)));
        for network in [Network::FullCone, Network::SymmetricPreserving, Network::SymmetricSequential] {
            let site = lab.site(network.name(), &SiteConfig::new(network)).expect("a site");
            let near = bound(site.host(), "0.0.0.0:0".parse().expect("an address"));
            let seen = || {
                near.send_to(b"out", far.local_addr().expect("it is bound")).expect("the network is there");
                receive(&far, PATIENCE).expect("it arrives").1
            };
            let before = seen();
            let new = lab.change_public_address(&site).expect("the kernel agrees");
            assert_eq!(seen().ip(), IpAddr::V4(new), "{network}");
            assert_ne!(before.ip(), IpAddr::V4(new), "{network}");
            lab.change_address(&site).expect("the kernel agrees");
            let moved = seen();
            far.send_to(b"back", moved).expect("the network is there");
            assert!(receive(&near, PATIENCE).is_some(), "{network}: the answer finds the host's new address");
        }
    });
}

#[test]
fn what_is_blocked_in_the_middle_is_not_counted_and_what_passes_is() {
    inside("what_is_blocked_in_the_middle_is_not_counted_and_what_passes_is", || {
        let mut lab = KernelLab::with_sides(LinkConfig::with_delay(Duration::from_millis(1))).expect("a lab");
        let server = lab.site("server", &SiteConfig::server(1)).expect("a site");
        let site = lab.site("home", &SiteConfig::new(Network::PortRestricted).far()).expect("a site");
        let far = bound(server.host(), SocketAddr::from((lab.public(&server), 4_000)));
        let near = bound(site.host(), "0.0.0.0:0".parse().expect("an address"));
        let sent = || near.send_to(&[0; 100], far.local_addr().expect("it is bound")).expect("the network is there");
        lab.block(&site, &server, true).expect("nft agrees");
        sent();
        assert!(receive(&far, SILENCE).is_none());
        assert_eq!(lab.bytes(&server, &site).expect("nft says"), 0);
        lab.block(&site, &server, false).expect("nft agrees");
        sent();
        assert!(receive(&far, PATIENCE).is_some());
        assert!(lab.bytes(&site, &server).expect("nft says") >= 128, "a datagram of 100 bytes and its headers");
        assert_eq!(lab.bytes(&server, &site).expect("nft says"), 0);
    });
}

fn bound(host: &Host, address: SocketAddr) -> UdpSocket {
    host.run(move || UdpSocket::bind(address)).expect("the lab is up").expect("the address is the host's")
}

fn receive(socket: &UdpSocket, patience: Duration) -> Option<(usize, SocketAddr)> {
    socket.set_read_timeout(Some(patience)).expect("it is not zero");
    match socket.recv_from(&mut [0; 256]) {
        Ok(received) => Some(received),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Runs `test` with privileges over the network: here, or in this program once more within a user namespace.
fn inside(name: &str, test: impl FnOnce()) {
    if is_privileged() {
        return test();
    }
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([name, "--exact", "--nocapture"]);
    let mut child = command_inside(command).spawn().map_err(explain).expect("user namespaces are permitted");
    assert!(child.wait().expect("a child").success(), "{name} failed inside its namespace");
}
