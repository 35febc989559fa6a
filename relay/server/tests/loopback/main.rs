//! The server on real sockets.

mod client;
mod tls;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use clap::Parser;
use client::{Client, agent, authority};
use peerage_model::AgreementSecret;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::{self, Destination, Frame, Tag, keys};
use peerage_relay::{Bound, Options, RunError};
use tempfile::TempDir;
use tokio::sync::oneshot;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

/// A relay in a thread, on a port of its own.
struct Running {
    address: SocketAddr,
    tls: SocketAddr,
    metrics: SocketAddr,
    info: RelayInfo,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), RunError>>>,
    _folder: TempDir,
}

fn options(folder: &TempDir, args: &[&str]) -> Options {
    let key: PathBuf = folder.path().join("relay.key");
    let key = key.to_str().expect("a path of ours is text");
    let fixed = ["relay", "--open", "--metrics", "127.0.0.1:0", "--key-file", key];
    Command::parse_from(fixed.iter().chain(args)).options
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = options(&folder, args);
        let (told, hear) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let bound = Bound::new(&options).await?;
                let metrics = bound.metrics_addr().expect("asked for");
                let tls = bound.tls_addr().expect("served unless switched off");
                told.send((bound.local_addr(), tls, metrics, bound.info().clone())).expect("somebody listens");
                bound.serve(async { stopped.await.unwrap_or(()) }).await
            })
        });
        let (address, tls, metrics, info) = hear.recv().expect("the relay starts");
        Self { address, tls, metrics, info, stop: Some(stop), thread: Some(thread), _folder: folder }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.metrics).expect("metrics are served");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: relay\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    /// One number of `/metrics`.
    fn metric(&self, name: &str) -> u64 {
        let page = self.get("/metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(name)).expect("the metric is there");
        line.trim().parse().expect("a number")
    }

    fn tell_to_stop(&mut self) {
        let stop = self.stop.take().expect("told once");
        stop.send(()).expect("the relay listens");
    }

    fn ended(&mut self) -> Result<(), RunError> {
        self.thread.take().expect("asked once").join().expect("no panic")
    }
}

fn talks(relay: &Running, address: SocketAddr) {
    let (id, instance, credential) = agent(&authority(1), "db", [10; 32]);
    let bound = Client::bind(address, &relay.info.key, &instance, &credential);
    let visitor = Client::visit(address);
    visitor.send(Destination::Route(id.routing_id()), &[0xc0; 1200]);
    assert_eq!(bound.packet(), (visitor.id, vec![0xc0; 1200]));
    bound.send(Destination::Endpoint(visitor.id), &[0xc1; 1200]);
    assert_eq!(visitor.packet(), (bound.id, vec![0xc1; 1200]));
    visitor.send(Destination::Endpoint(bound.id), &[0x41; 9]);
    assert_eq!(bound.packet(), (visitor.id, vec![0x41; 9]));
}

#[test]
fn a_dialer_and_an_agent_talk_over_ipv4() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    talks(&relay, relay.address);
}

#[test]
fn one_dual_stack_socket_serves_ipv4_and_ipv6_and_between_them() {
    let relay = Running::start(&["--listen", "[::]:0"]);
    let port = relay.address.port();
    let (v4, v6): (SocketAddr, SocketAddr) =
        (([127, 0, 0, 1], port).into(), format!("[::1]:{port}").parse().expect("an address"));
    talks(&relay, v4);
    talks(&relay, v6);
    let (id, instance, credential) = agent(&authority(1), "web", [11; 32]);
    let bound = Client::bind(v6, &relay.info.key, &instance, &credential);
    let visitor = Client::visit(v4);
    visitor.send(Destination::Route(id.routing_id()), &[0xc0; 100]);
    assert_eq!(bound.packet().0, visitor.id);
}

#[test]
fn workers_share_one_relay() {
    let relay = Running::start(&["--listen", "127.0.0.1:0", "--workers", "3"]);
    // The kernel spreads sources over the sockets; eight pairs meet on the same and on different ones.
    for _ in 0..8 {
        talks(&relay, relay.address);
    }
}

#[test]
fn stun_tells_a_client_its_address() {
    let relay = Running::start(&["--listen", "[::]:0"]);
    let socket = client::socket(([127, 0, 0, 1], relay.address.port()).into());
    let request = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    let answer = client::ask(&socket, &request);
    let port = u16::from_be_bytes([answer[26], answer[27]]) ^ 0x2112;
    assert_eq!(port, socket.local_addr().expect("bound").port());
    assert_eq!([answer[28] ^ 0x21, answer[29] ^ 0x12, answer[30] ^ 0xa4, answer[31] ^ 0x42], [127, 0, 0, 1]);
}

/// Where an answer to a Binding request with these CHANGE-REQUEST flags comes from, and the other address that it names.
fn stun_from(relay: SocketAddr, flags: u8) -> (SocketAddr, Option<SocketAddr>) {
    let local = if relay.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = std::net::UdpSocket::bind(local).expect("a port");
    socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("a timeout");
    let request = [&[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12], &[0, 3, 0, 4, 0, 0, 0, flags]].concat();
    socket.send_to(&request, relay).expect("sent");
    let mut buffer = [0; 512];
    let (len, from) = socket.recv_from(&mut buffer).expect("an answer within ten seconds");
    let other = buffer[..len].windows(4).position(|window| window == [0x80, 0x2c, 0, 8]).map(|at| {
        let value = &buffer[at + 4..at + 12];
        let ip = [value[4], value[5], value[6], value[7]];
        SocketAddr::from((ip, u16::from_be_bytes([value[2], value[3]])))
    });
    (from, other)
}

#[test]
fn a_relay_with_a_second_address_answers_stun_from_all_four_places() {
    let relay = Running::start(&["--listen", "127.0.0.1:0", "--stun-address", "127.0.0.2"]);
    let (from, other) = stun_from(relay.address, 0);
    let other = other.expect("it names its other address");
    assert_eq!((from, other.ip()), (relay.address, "127.0.0.2".parse().expect("an address")));
    assert_ne!(other.port(), relay.address.port());
    let place = |ip: SocketAddr, port: SocketAddr| SocketAddr::new(ip.ip(), port.port());
    assert_eq!(stun_from(relay.address, 2).0, place(relay.address, other));
    assert_eq!(stun_from(relay.address, 4).0, place(other, relay.address));
    assert_eq!(stun_from(relay.address, 6).0, other);
    // Asked there, it is the other way round.
    assert_eq!(stun_from(other, 0), (other, Some(relay.address)));
    assert_eq!(stun_from(other, 6).0, relay.address);
}

#[test]
fn a_relay_at_every_address_answers_from_all_four_places_of_the_address_that_agents_know() {
    let relay = Running::start(&["--listen", "[::]:0", "--stun-address", "127.0.0.1,127.0.0.2"]);
    let first = SocketAddr::from(([127, 0, 0, 1], relay.address.port()));
    let (from, other) = stun_from(first, 0);
    let other = other.expect("it names its other address");
    assert_eq!((from, other.ip()), (first, "127.0.0.2".parse().expect("an address")));
    assert_eq!(stun_from(first, 6).0, other);
    assert_eq!(stun_from(SocketAddr::new(other.ip(), first.port()), 2).0, other);
    assert_eq!(
        stun_from(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], first.port())), 0).1,
        None,
        "IPv6 has one address"
    );
}

#[test]
fn a_relay_with_one_address_names_no_other() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    assert_eq!(stun_from(relay.address, 0), (relay.address, None));
}

#[test]
fn a_second_address_needs_a_first_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for wrong in [
        ["--listen", "0.0.0.0:0", "--stun-address", "127.0.0.2"],
        ["--listen", "127.0.0.1:0", "--stun-address", "127.0.0.1"],
        ["--listen", "127.0.0.1:0", "--stun-address", "127.0.0.3,127.0.0.2"],
    ] {
        let error = runtime.block_on(Bound::new(&options(&folder, &wrong))).expect_err("it cannot work");
        assert!(error.to_string().contains("--listen"), "{error}");
    }
}

#[test]
fn metrics_health_and_readiness_are_served() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    talks(&relay, relay.address);
    let metrics = relay.get("/metrics");
    assert!(metrics.contains("peerage_relay_forwarded_packets_total 3\n"), "{metrics}");
    assert!(metrics.contains("peerage_relay_bound_instances 1\n"), "{metrics}");
    assert!(metrics.contains("peerage_relay_dropped_packets_total{reason=\"quota\"} 0\n"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(relay.get("/healthz").starts_with("HTTP/1.1 200 "));
    assert!(relay.get("/readyz").starts_with("HTTP/1.1 200 "));
    assert!(relay.get("/other").starts_with("HTTP/1.1 404 "));
}

#[test]
fn the_reference_has_every_series() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let page = peerage_docs::Page::at("docs/reference/metrics.md");
    page.holds("relay", &peerage_docs::series(&relay.get("/metrics")));
}

#[test]
fn a_relay_told_to_stop_says_so_forwards_for_the_grace_period_and_ends() {
    let mut relay = Running::start(&["--listen", "127.0.0.1:0", "--grace", "2"]);
    let (id, instance, credential) = agent(&authority(1), "db", [10; 32]);
    let bound = Client::bind(relay.address, &relay.info.key, &instance, &credential);
    let visitor = Client::visit(relay.address);
    relay.tell_to_stop();
    let told = client::receive(&bound.socket);
    assert!(matches!(Frame::parse(&told), Ok((_, Frame::Drain { .. }))), "{told:?}");
    assert!(relay.get("/readyz").starts_with("HTTP/1.1 503 "));
    visitor.send(Destination::Route(id.routing_id()), &[0xc0; 100]);
    assert_eq!(bound.packet().0, visitor.id);
    relay.ended().expect("an orderly end");
}

#[test]
fn an_idle_relay_told_to_stop_ends_at_once() {
    let mut relay = Running::start(&["--listen", "127.0.0.1:0", "--grace", "3600"]);
    relay.tell_to_stop();
    relay.ended().expect("an orderly end");
}

#[test]
fn a_draining_relay_ends_when_its_last_agent_has_left() {
    let mut relay = Running::start(&["--listen", "127.0.0.1:0", "--grace", "3600"]);
    let (_, instance, credential) = agent(&authority(1), "db", [10; 32]);
    let socket = client::socket(relay.address);
    let cookie = client::cookie(&socket);
    let e = AgreementSecret::from_bytes([77; 32]);
    let bind = keys::bind(Tag([2; 6]), cookie, &e, &relay.info.key, &instance, &credential).expect("good keys");
    let bound = client::ask(&socket, &bind.frame);
    let Ok((_, Frame::Bound { grant, .. })) = Frame::parse(&bound) else { panic!("BOUND") };
    relay.tell_to_stop();
    assert!(matches!(Frame::parse(&client::receive(&socket)), Ok((_, Frame::Drain { .. }))));
    let endpoint = peerage_model::InstanceId::of_key(&instance.public()).into();
    socket.send(&frame::unbind(grant.tag, endpoint, |body| bind.session.mac(body))).expect("sent");
    relay.ended().expect("an orderly end, long before the grace period's");
}

#[test]
fn what_it_prints_is_its_key_and_where_it_listens_or_what_it_advertises() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let line = relay.info.to_string();
    assert!(line.ends_with(&format!("@127.0.0.1:{}", relay.address.port())), "{line}");
    let relay = Running::start(&["--listen", "127.0.0.1:0", "--advertise", "relay.example.com:3478"]);
    assert!(relay.info.to_string().ends_with("@relay.example.com:3478"));
    assert_eq!(relay.info.to_string().parse::<RelayInfo>().expect("it parses"), relay.info);
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let folder = tempfile::tempdir().expect("a folder");
    let address = relay.address.to_string();
    let options = options(&folder, &["--listen", &address]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let error = runtime.block_on(Bound::new(&options)).expect_err("the port is taken");
    assert!(error.to_string().contains(&address), "{error}");
}
