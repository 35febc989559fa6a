//! TCP from a program to a service.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_agent::forward::{Limits, Services};
use peerage_agent::listen;
use peerage_model::id::sha256;
use peerage_model::snapshot::Protocol::Tcp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::{World, curl, pattern};

const PORT: u16 = 8080;

/// A listening service, and a world in which `PORT` of the peer leads to it.
async fn world(tag: &str) -> (World, TcpListener) {
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = service.local_addr().expect("bound").port();
    let world = World::start(tag, &[(Tcp, PORT)], Services::new().with_local(Tcp, PORT, port)).await;
    (world, service)
}

/// A program's connection and the service's end of it.
async fn pair(world: &World, service: &TcpListener) -> (TcpStream, TcpStream, SocketAddr) {
    let client = TcpStream::connect(world.at(PORT)).await.expect("the peer's port is open");
    let (server, from) = service.accept().await.expect("the service is reached");
    (client, server, from)
}

fn is_reset<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    let error = result.expect_err("a reset was expected");
    error.kind() == io::ErrorKind::ConnectionReset
}

/// A connection that is reset at once may fail as early as in `connect`.
async fn connect_and_read(world: &World) -> io::Result<usize> {
    TcpStream::connect(world.at(PORT)).await?.read(&mut [0; 8]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_reaches_the_service_which_sees_the_peers_own_address() {
    let (world, service) = world("curl").await;
    tokio::spawn(async move {
        let (mut stream, from) = service.accept().await.expect("curl comes");
        let mut request = [0; 1024];
        let _length = stream.read(&mut request).await.expect("a request");
        let body = from.ip().to_string();
        let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        stream.write_all(response.as_bytes()).await.expect("curl reads");
    });
    let (status, seen) = curl(&[&format!("http://{}/", world.at(PORT))]).await;
    assert_eq!((status, seen), (Some(0), world.reporter.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_finished_sending_still_reads_everything() {
    let (world, service) = world("half-client").await;
    let (mut client, mut server, _) = pair(&world, &service).await;
    client.write_all(b"question").await.expect("sent");
    client.shutdown().await.expect("half closed");
    let mut asked = Vec::new();
    server.read_to_end(&mut asked).await.expect("the service sees the end");
    assert_eq!(asked, b"question");
    let answer = pattern(1, 1 << 20);
    let writing = tokio::spawn({
        let answer = answer.clone();
        async move { server.write_all(&answer).await }
    });
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.expect("a clean end");
    writing.await.expect("no panic").expect("sent");
    assert!(read == answer, "the answer arrived whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_has_finished_sending_still_reads_everything() {
    let (world, service) = world("half-service").await;
    let (mut client, mut server, _) = pair(&world, &service).await;
    server.write_all(b"hello").await.expect("sent");
    server.shutdown().await.expect("half closed");
    let mut greeting = Vec::new();
    client.read_to_end(&mut greeting).await.expect("the client sees the end");
    assert_eq!(greeting, b"hello");
    client.write_all(b"late words").await.expect("the other direction is open");
    client.shutdown().await.expect("closed");
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.expect("a clean end");
    assert_eq!(heard, b"late words");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_by_the_client_resets_the_service() {
    let (world, service) = world("reset-client").await;
    let (client, mut server, _) = pair(&world, &service).await;
    client.set_zero_linger().expect("set");
    drop(client);
    assert!(is_reset(server.read(&mut [0; 8]).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_by_the_service_resets_the_client() {
    let (world, service) = world("reset-service").await;
    let (mut client, server, _) = pair(&world, &service).await;
    server.set_zero_linger().expect("set");
    drop(server);
    assert!(is_reset(client.read(&mut [0; 8]).await));
}

/// Waits until no connection of ours is open.
async fn all_over(world: &World) {
    let over = async {
        while world.outbound.stats.open.get() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), over).await.expect("the connection is held though an end of it has died");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_dies_after_its_last_word_is_not_waited_for() {
    let (world, service) = world("dies-service").await;
    let (mut client, mut server, _) = pair(&world, &service).await;
    server.shutdown().await.expect("half closed");
    assert_eq!(client.read(&mut [0; 8]).await.expect("a clean end"), 0);
    server.set_zero_linger().expect("set");
    drop(server);
    all_over(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_dies_after_its_last_word_is_not_waited_for() {
    let (world, service) = world("dies-client").await;
    let (mut client, mut server, _) = pair(&world, &service).await;
    client.shutdown().await.expect("half closed");
    assert_eq!(server.read(&mut [0; 8]).await.expect("a clean end"), 0);
    client.set_zero_linger().expect("set");
    drop(client);
    all_over(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_waits_for_room_is_reset_when_its_peer_is_not_trusted_any_more() {
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = service.local_addr().expect("bound").port();
    let services = Services::new().with_local(Tcp, PORT, port);
    let config = listen::Config { per_listener: 1, ..listen::Config::default() };
    let mut world = World::start_with("room", &[(Tcp, PORT)], services, config, Limits::default()).await;
    let (_first, _server, _) = pair(&world, &service).await;
    let mut second = TcpStream::connect(world.at(PORT)).await.expect("the peer's port is open");
    // Its turn has not come, and it has said nothing: the kernel would end it in order.
    world.trust([]);
    world.wait_listening(|listening| listening.bound.is_empty()).await;
    assert!(is_reset(second.read(&mut [0; 8]).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_stops_the_writer() {
    let (world, service) = world("slow").await;
    let (client, mut server, _) = pair(&world, &service).await;
    let data = pattern(2, 64 << 10);
    let mut accepted = 0;
    // The writer is stopped when nothing more is taken for a while; nobody reads.
    while let Ok(ready) = timeout(Duration::from_millis(500), client.writable()).await {
        ready.expect("the connection stands");
        match client.try_write(&data) {
            Ok(n) => accepted += n,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(accepted < 64 << 20, "nothing stops the writer");
    }
    // Four kernel buffers (each at most 4 or 6 MiB), a window and two chunks lie between the two ends.
    assert!(accepted < 24 << 20, "{accepted} bytes were taken");
    drop(client);
    let mut read = Vec::new();
    server.read_to_end(&mut read).await.expect("what was taken arrives, and the end");
    assert_eq!(read.len(), accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_connections_at_once_keep_their_bytes() {
    let (world, service) = world("many").await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = service.accept().await {
            tokio::spawn(async move {
                let mut data = Vec::new();
                stream.read_to_end(&mut data).await.expect("a whole upload");
                stream.write_all(&sha256(&[&data])).await.expect("the client waits");
            });
        }
    });
    let clients = (0..200_u64).map(|seed| {
        let at = world.at(PORT);
        tokio::spawn(async move {
            let data = pattern(seed, 100_000 + 1000 * usize::try_from(seed).expect("small"));
            let mut stream = TcpStream::connect(at).await.expect("connects");
            stream.write_all(&data).await.expect("sent");
            stream.shutdown().await.expect("finished");
            let mut hash = Vec::new();
            stream.read_to_end(&mut hash).await.expect("answered");
            assert_eq!(hash, sha256(&[&data]));
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("every hash fits");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_not_there_is_a_reset_with_a_reason_in_the_status() {
    let (world, service) = world("absent").await;
    drop(service);
    assert!(is_reset(connect_and_read(&world).await));
    let failures = world.outbound.failures.all();
    let failure = failures.get(&world.db.id).expect("the failure is kept");
    assert_eq!(failure.port, PORT);
    assert!(failure.text.contains("nothing listens on this port at the peer"), "{}", failure.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_gets_no_more_streams_than_its_share() {
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let services = Services::new().with_local(Tcp, PORT, service.local_addr().expect("bound").port());
    let limits = Limits { per_peer: 2, ..Limits::default() };
    let world = World::start_with("share", &[(Tcp, PORT)], services, listen::Config::default(), limits).await;
    let first = pair(&world, &service).await;
    let _second = pair(&world, &service).await;
    assert!(is_reset(connect_and_read(&world).await));
    let failures = world.outbound.failures.all();
    assert!(failures[&world.db.id].text.contains("too many streams"), "{failures:?}");
    drop(first);
    // The place is free as soon as the inbound side has seen the end.
    loop {
        let client = TcpStream::connect(world.at(PORT)).await;
        if let Ok(accepted) = timeout(Duration::from_millis(50), service.accept()).await {
            accepted.expect("served again");
            break;
        }
        drop(client);
    }
}
