//! UDP from a program to a service.

use peerage_agent::forward::Services;
use peerage_model::snapshot::Protocol::Udp;
use tokio::net::UdpSocket;

use crate::support::World;

const PORT: u16 = 5353;

#[tokio::test(flavor = "multi_thread")]
async fn packets_go_both_ways_and_each_client_is_a_client_of_its_own() {
    let service = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let port = service.local_addr().expect("bound").port();
    let world = World::start("udp", &[(Udp, PORT)], Services::new().with_local(Udp, PORT, port)).await;
    let mut sources = Vec::new();
    for name in ["first", "second"] {
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        client.connect(world.at(PORT)).await.expect("connected");
        client.send(name.as_bytes()).await.expect("sent");
        let mut buffer = [0; 64];
        let (length, from) = service.recv_from(&mut buffer).await.expect("arrives");
        assert_eq!(&buffer[..length], name.as_bytes());
        assert_eq!(from.ip(), world.reporter, "the service sees the peer's own address");
        service.send_to(b"echo", from).await.expect("sent");
        let length = client.recv(&mut buffer).await.expect("comes back from the peer's address");
        assert_eq!(&buffer[..length], b"echo");
        sources.push(from);
    }
    assert_ne!(sources[0], sources[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flow_to_nothing_costs_the_program_nothing_but_silence() {
    let world = World::start("udp-none", &[(Udp, PORT)], Services::new()).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    for _ in 0..1000 {
        client.send_to(b"anyone?", world.at(PORT)).await.expect("sent");
    }
    let mut dropped = 0;
    while dropped == 0 {
        tokio::task::yield_now().await;
        dropped = world.outbound.stats.packets_dropped.get();
    }
    assert_eq!(world.outbound.stats.outbound.get(), 1, "one dial, not a thousand");
}
