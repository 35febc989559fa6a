//! The lab on the real kernel: programs behind NATs, in namespaces, with or without root.

use std::io::{BufRead, BufReader, ErrorKind, IoSliceMut, Read};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peerage_netlab::{
    Bottleneck, Chance, Host, HostConfig, Lab, LinkConfig, NatKind, command_inside, explain, is_privileged,
};

use quinn_udp::{RecvMeta, Transmit, UdpSocketState};

const RELAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

#[test]
fn programs_behind_port_restricted_nats_punch_a_hole() {
    inside("programs_behind_port_restricted_nats_punch_a_hole", || {
        let net = Net::new(NatKind::port_restricted_cone(), NatKind::port_restricted_cone());
        let [a, b] = net.punch();
        assert_eq!(a, format!("direct {}", net.lab.public_address(&net.b)), "what a met");
        assert_eq!(b, format!("direct {}", net.lab.public_address(&net.a)), "what b met");
        assert!(net.lab.traffic(&net.a, &net.b).packets > 0 && net.lab.traffic(&net.b, &net.a).packets > 0);
    });
}

#[test]
fn programs_behind_random_symmetric_nats_find_no_path() {
    inside("programs_behind_random_symmetric_nats_find_no_path", || {
        let net = Net::new(NatKind::symmetric_random(), NatKind::symmetric_random());
        assert_eq!(net.punch(), ["no path", "no path"]);
        assert_eq!(net.lab.traffic(&net.a, &net.b).packets, 0);
        assert!(net.lab.traffic(&net.a, &net.relay).packets > 0, "the relay was reached");
        assert!(net.lab.drops(&net.a).nat > 0, "and the other NAT is what stood in the way");
    });
}

#[test]
fn blocking_the_direct_way_leaves_the_relay() {
    inside("blocking_the_direct_way_leaves_the_relay", || {
        let net = Net::new(NatKind::full_cone(), NatKind::full_cone());
        net.lab.block_direct(&net.a, &net.b, true);
        assert_eq!(net.punch(), ["no path", "no path"]);
        assert!(net.lab.drops(&net.a).blocked > 0);
        net.lab.block_direct(&net.a, &net.b, false);
        assert!(net.punch().iter().all(|met| met.starts_with("direct")));
    });
}

#[test]
fn a_delay_is_the_sum_of_both_links() {
    inside("a_delay_is_the_sum_of_both_links", || {
        let net = Net::new(NatKind::home_router(), NatKind::none());
        net.lab.set_link(&net.a, LinkConfig::with_delay(Duration::from_millis(20)));
        net.lab.set_link(&net.b, LinkConfig::with_delay(Duration::from_millis(5)));
        let (near, far) = net.pair();
        let sent = Instant::now();
        near.send(b"ping").expect("the link is up");
        let took = arrival(&far, sent);
        assert!(took >= Duration::from_millis(25), "{took:?}");
        assert!(took < Duration::from_millis(500), "{took:?} is more than a busy machine explains");
    });
}

#[test]
fn total_loss_is_counted_and_can_be_lifted() {
    inside("total_loss_is_counted_and_can_be_lifted", || {
        let net = Net::new(NatKind::home_router(), NatKind::none());
        let (near, far) = net.pair();
        net.lab.set_link(&net.a, LinkConfig { loss: Chance::ALWAYS, ..LinkConfig::default() });
        near.send(b"lost").expect("the link is up");
        wait_until(|| net.lab.drops(&net.a).link == 1);
        net.lab.set_link(&net.a, LinkConfig::default());
        near.send(b"kept").expect("the link is up");
        assert_eq!(receive(&far), b"kept");
    });
}

#[test]
fn a_bottleneck_drops_what_its_queue_cannot_hold() {
    inside("a_bottleneck_drops_what_its_queue_cannot_hold", || {
        let net = Net::new(NatKind::home_router(), NatKind::none());
        let (near, _far) = net.pair();
        let narrow = Bottleneck { bits_per_second: 80_000, queue_bytes: 4_000 };
        net.lab.set_link(&net.a, LinkConfig { bottleneck: Some(narrow), ..LinkConfig::default() });
        for _ in 0..10 {
            near.send(&[7; 972]).expect("the link is up");
        }
        // Packets of 1000 bytes: four fit, and within the moment that sending takes at most one more has left.
        wait_until(|| net.lab.drops(&net.a).link >= 5);
    });
}

#[test]
fn a_new_public_address_ends_the_mappings() {
    inside("a_new_public_address_ends_the_mappings", || {
        let net = Net::new(NatKind::port_restricted_cone(), NatKind::none());
        let (near, far) = net.pair();
        near.send(b"one").expect("the link is up");
        let before = sender(&far);
        let new = net.lab.change_public_address(&net.a).expect("addresses are left");
        far.send_to(b"to the old address", before).expect("the link is up");
        near.send(b"two").expect("the link is up");
        let after = sender(&far);
        assert_ne!(before.ip(), after.ip());
        assert_eq!(after.ip(), new);
        far.send_to(b"to the new address", after).expect("the link is up");
        assert_eq!(receive(&near), b"to the new address");
    });
}

#[test]
fn a_host_that_changes_its_address_goes_on_sending() {
    inside("a_host_that_changes_its_address_goes_on_sending", || {
        for nat in [NatKind::port_restricted_cone(), NatKind::none()] {
            let net = Net::new(nat, NatKind::none());
            // Not connected: a connected socket keeps its source address by definition.
            let near = socket(&net.a);
            let far = socket(&net.b);
            let to = SocketAddr::new(net.lab.address(&net.b).into(), port(&far));
            near.send_to(b"one", to).expect("the link is up");
            let before = sender(&far);
            let new = net.lab.change_address(&net.a).expect("addresses are left");
            near.send_to(b"two", to).expect("the link is up");
            let after = sender(&far);
            assert_ne!(before, after, "{nat:?}");
            assert_eq!(net.lab.address(&net.a), new);
            far.send_to(b"back", after).expect("the link is up");
            assert_eq!(receive(&near), b"back");
        }
    });
}

#[test]
fn neighbours_meet_inside_and_by_hairpin() {
    inside("neighbours_meet_inside_and_by_hairpin", || {
        let mut net = Net::new(NatKind::home_router(), NatKind::none());
        let neighbour = net.lab.neighbour("c", Ipv4Addr::new(10, 0, 1, 3), &net.a).expect("a free address");
        let (at_a, at_c) = (socket(&net.a), socket(&neighbour));
        at_a.send_to(b"inside", (net.lab.address(&neighbour), port(&at_c))).expect("the link is up");
        assert_eq!(receive(&at_c), b"inside");

        let far = socket(&net.b);
        let public = |from: &UdpSocket| {
            from.send_to(b"who am I?", (net.lab.address(&net.b), port(&far))).expect("the link is up");
            sender(&far)
        };
        let (public_a, public_c) = (public(&at_a), public(&at_c));
        at_c.send_to(b"opens the filter", public_a).expect("the link is up");
        wait_until(|| net.lab.drops(&neighbour).nat == 1);
        at_a.send_to(b"round the corner", public_c).expect("the link is up");
        assert_eq!(receive(&at_c), b"round the corner");
    });
}

#[test]
fn the_loopback_of_a_host_is_its_own() {
    inside("the_loopback_of_a_host_is_its_own", || {
        let net = Net::new(NatKind::home_router(), NatKind::none());
        let listen = || std::net::TcpListener::bind("127.0.0.1:80");
        let at_a = net.a.run(listen).expect("the host lives").expect("port 80 is free on a");
        let at_b = net.b.run(listen).expect("the host lives").expect("port 80 is free on b");
        net.a.run(|| std::net::TcpStream::connect("127.0.0.1:80")).expect("the host lives").expect("a reaches itself");
        at_b.set_nonblocking(true).expect("a listener");
        assert!(at_a.accept().is_ok());
        assert_eq!(at_b.accept().expect_err("b was not meant").kind(), ErrorKind::WouldBlock);
    });
}

#[test]
fn dropping_the_lab_kills_its_programs() {
    inside("dropping_the_lab_kills_its_programs", || {
        let net = Net::new(NatKind::none(), NatKind::none());
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped());
        let mut child = net.a.spawn(command).expect("cat exists");
        // Kept open: the end of its input must not be what ends it.
        let _input = child.stdin.take();
        drop(net);
        assert!(!child.wait().expect("a child").success());
    });
}

#[test]
fn a_batch_arrives_whole_through_a_nat_and_in_pieces_through_jitter() {
    inside("a_batch_arrives_whole_through_a_nat_and_in_pieces_through_jitter", || {
        let net = Net::new(NatKind::home_router(), NatKind::none());
        let jittery = LinkConfig { jitter: Duration::from_millis(1), ..LinkConfig::default() };
        for (link, whole) in [(LinkConfig::default(), true), (jittery, false)] {
            net.lab.set_link(&net.a, link);
            let before = net.lab.traffic(&net.a, &net.b);
            let (near, far) = net.pair();
            let sent: Vec<u8> = (0..25_000_u32).map(|n| (n % 251) as u8).collect();
            let strides = exchange_batch(&near, &far, &sent, 1_200);
            assert_eq!(strides[0] > 1_200, whole, "{strides:?}");
            let after = net.lab.traffic(&net.a, &net.b);
            assert_eq!(after.packets - before.packets, 21, "packets on the wire");
            assert_eq!(after.bytes - before.bytes, 25_000 + 21 * 28, "bytes on the wire");
        }
    });
}

/// Sends `sent` in one call, checks what arrives, and returns the bytes that each receive brought.
fn exchange_batch(near: &UdpSocket, far: &UdpSocket, sent: &[u8], segment: usize) -> Vec<usize> {
    let state = |socket: &UdpSocket| {
        let state = UdpSocketState::new(socket.into()).expect("a UDP socket");
        socket.set_nonblocking(false).expect("a socket");
        state
    };
    let (sender, receiver) = (state(near), state(far));
    let destination = near.peer_addr().expect("connected");
    let transmit = Transmit { destination, ecn: None, contents: sent, segment_size: Some(segment), src_ip: None };
    sender.try_send(near.into(), &transmit).expect("the link is up");
    let (mut received, mut lengths) = (Vec::new(), Vec::new());
    while received.len() < sent.len() {
        let mut buffer = vec![0; 65_536];
        let mut meta = [RecvMeta::default()];
        receiver.recv(far.into(), &mut [IoSliceMut::new(&mut buffer)], &mut meta).expect("within five seconds");
        received.extend_from_slice(&buffer[..meta[0].len]);
        lengths.push(meta[0].len);
    }
    assert_eq!(received, sent);
    lengths
}

/// Runs `test` with privileges: here, or in this program once more within a user namespace.
fn inside(name: &str, test: impl FnOnce()) {
    if is_privileged() {
        return test();
    }
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([name, "--exact", "--nocapture"]);
    let mut child = command_inside(command).spawn().map_err(explain).expect("user namespaces are permitted");
    assert!(child.wait().expect("a child").success(), "{name} failed inside its namespace");
}

/// A relay and two hosts.
struct Net {
    lab: Lab,
    relay: Host,
    a: Host,
    b: Host,
}

impl Net {
    fn new(a: NatKind, b: NatKind) -> Self {
        let mut lab = Lab::new().expect("privileged");
        let relay = lab.host("relay", HostConfig::public(RELAY)).expect("a host");
        let a = lab.host("a", host([10, 0, 1, 2], [198, 51, 100, 2], a)).expect("a host");
        let b = lab.host("b", host([10, 0, 2, 2], [198, 51, 100, 3], b)).expect("a host");
        Self { lab, relay, a, b }
    }

    /// What the probes on both hosts say, without the ports.
    fn punch(&self) -> [String; 2] {
        let mut rendezvous = probe(&self.relay, &["rendezvous", "198.51.100.1:7000"]);
        let stdout = rendezvous.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut String::new()).expect("a line");
        let probes = [&self.a, &self.b].map(|host| probe(host, &["punch", "198.51.100.1:7000"]));
        let said = probes.map(|mut probe| {
            let mut said = String::new();
            probe.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
            assert!(probe.wait().expect("a child").success());
            said.trim().split(':').next().expect("a first part").to_owned()
        });
        rendezvous.kill().expect("it runs");
        rendezvous.wait().expect("a child");
        said
    }

    /// A socket on `a` connected to one on `b`, which has no NAT.
    fn pair(&self) -> (UdpSocket, UdpSocket) {
        let (near, far) = (socket(&self.a), socket(&self.b));
        near.connect((self.lab.address(&self.b), port(&far))).expect("a route");
        (near, far)
    }
}

fn host(inside: [u8; 4], public: [u8; 4], nat: NatKind) -> HostConfig {
    HostConfig::behind(if nat == NatKind::None { public } else { inside }.into(), nat)
}

fn probe(host: &Host, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netlab-probe"));
    command.args(arguments).stdout(Stdio::piped());
    host.spawn(command).expect("the probe starts")
}

fn socket(host: &Host) -> UdpSocket {
    let socket = host.run(|| UdpSocket::bind("0.0.0.0:0")).expect("the host lives").expect("a port");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    socket
}

fn port(socket: &UdpSocket) -> u16 {
    socket.local_addr().expect("bound").port()
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).expect("a datagram within five seconds");
    buffer[..length].to_vec()
}

fn sender(socket: &UdpSocket) -> SocketAddr {
    socket.recv_from(&mut [0; 2048]).expect("a datagram within five seconds").1
}

fn arrival(socket: &UdpSocket, sent: Instant) -> Duration {
    receive(socket);
    sent.elapsed()
}

/// Counters follow the packets; there is nothing to wait on but them.
fn wait_until(condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < until, "it did not happen within five seconds");
        std::thread::yield_now();
    }
}
