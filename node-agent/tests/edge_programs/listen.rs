//! Where the agent listens, and what it does where it cannot.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_agent::forward::{Limits, Services};
use peerage_agent::listen::{self, ConflictReason, Endpoint, Whose};
use peerage_model::snapshot::Protocol::{Tcp, Udp};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{World, listed};

/// Runs a test as a program without any privilege would run, also where the tests are started by root. The capabilities
/// of Linux are each thread's own.
fn without_privilege(test: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(|| {
        let mut sets = capabilities(None).expect("capabilities can be read");
        sets.effective.remove(CapabilitySet::NET_BIND_SERVICE);
        set_capabilities(None, sets).expect("they can always be given up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test);
    });
    thread.join().expect("the test passes");
}

#[test]
fn a_port_reserved_to_root_is_served_elsewhere_and_reported_with_a_remedy() {
    without_privilege(async {
        if std::net::TcpListener::bind("127.77.77.77:80").is_ok() {
            return; // This machine reserves no ports: nothing to show.
        }
        let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = service.local_addr().expect("bound").port();
        let services = Services::new().with_local(Tcp, 80, port);
        let world = World::start("low", &[(Tcp, 80), (Udp, 53)], services).await;
        let listening = world.listening.borrow().clone();
        assert_eq!(listening.conflicts.len(), 2);
        assert!(listening.conflicts.iter().all(|c| c.reason == ConflictReason::Reserved));
        assert!(listening.conflicts[0].remedy(Whose::Machine).contains("ip_unprivileged_port_start"));
        let asked = Endpoint { protocol: Tcp, address: world.at(80) };
        let actual = listening.redirects()[&asked];
        assert_eq!(actual.ip(), world.address);
        let _client = TcpStream::connect(actual).await.expect("it listens there");
        service.accept().await.expect("and leads to port 80 of the peer");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_a_program_has_on_all_addresses_is_served_elsewhere() {
    let program = TcpListener::bind("0.0.0.0:0").await.expect("a free port");
    let port = program.local_addr().expect("bound").port();
    let world = World::start("wildcard", &[(Tcp, port)], Services::new()).await;
    let listening = world.listening.borrow().clone();
    assert_eq!(listening.conflicts[0].reason, ConflictReason::InUse);
    assert_eq!(listening.conflicts[0].asked.address, world.at(port));
    assert!(listening.conflicts[0].remedy(Whose::Pod).contains("localPort"));
    assert_eq!(listening.redirects().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_port_stays_free_for_its_program() {
    let config = listen::Config { avoid: [(Tcp, 8080)].into(), ..listen::Config::default() };
    let world = World::start_with("declared", &[(Tcp, 8080)], Services::new(), config, Limits::default()).await;
    assert_eq!(world.listening.borrow().conflicts[0].reason, ConflictReason::Declared);
    TcpListener::bind(world.at(8080)).await.expect("the port is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_no_longer_trusted_has_no_listener_but_open_connections_stay() {
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let services = Services::new().with_local(Tcp, 8080, service.local_addr().expect("bound").port());
    let mut world = World::start("leaving", &[(Tcp, 8080)], services).await;
    let mut client = TcpStream::connect(world.at(8080)).await.expect("connects");
    let (mut server, _) = service.accept().await.expect("reached");
    world.trust([]);
    world.wait_listening(|listening| listening.bound.is_empty()).await;
    while TcpStream::connect(world.at(8080)).await.is_ok() {
        tokio::task::yield_now().await; // The listener's task ends a moment after the report.
    }
    client.write_all(b"still here").await.expect("sent");
    let mut heard = [0; 10];
    server.read_exact(&mut heard).await.expect("arrives");
    assert_eq!(&heard, b"still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_learned_later_is_listened_on_and_the_others_are_left_alone() {
    let mut world = World::start("later", &[(Tcp, 8080)], Services::new()).await;
    world.trust([listed("db-later", &[(Tcp, 8080), (Tcp, 9090)])]);
    world.wait_listening(|listening| listening.bound.len() == 2).await;
    for port in [8080, 9090] {
        assert!(TcpListener::bind(world.at(port)).await.is_err(), "{port} is listened on");
    }
    assert!(world.listening.borrow().conflicts.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_listener_serves_again_when_a_connection_ends() {
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let services = Services::new().with_local(Tcp, 8080, service.local_addr().expect("bound").port());
    let config = listen::Config { per_listener: 1, ..listen::Config::default() };
    let world = World::start_with("full", &[(Tcp, 8080)], services, config, Limits::default()).await;
    let at: SocketAddr = world.at(8080);
    let first = TcpStream::connect(at).await.expect("connects");
    let (first_served, _) = service.accept().await.expect("served");
    let _second = TcpStream::connect(at).await.expect("waits in the queue");
    let early = tokio::time::timeout(Duration::from_millis(100), service.accept()).await;
    assert!(early.is_err(), "the second waits");
    drop((first, first_served));
    service.accept().await.expect("the second is served");
}
