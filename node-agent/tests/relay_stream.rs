//! Agents whose network lets no UDP out: relays by TLS on TCP, directly and through an HTTP proxy, and back to UDP.

#[expect(dead_code, reason = "shared with tests that need more of it")]
mod world;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use peerage_agent::driver::{DriverEvent, DriverHandle, ProxySettings, RelayState};
use peerage_agent::tunnel::{Dial, Opened, TunnelStream};
use peerage_model::AgreementSecret;
use peerage_model::relay::RelayInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use world::{Person, Running, WEB, person, relay, snapshot, stream, trust};

const PATIENCE: Duration = Duration::from_secs(60);

/// A UDP port at which nobody answers, for as long as the socket lives.
async fn silent_port() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let port = socket.local_addr().expect("bound").port();
    (socket, port)
}

/// The relay's entry as it is for somebody who reaches only its TCP port.
fn with_udp_at(info: &RelayInfo, port: u16) -> RelayInfo {
    RelayInfo { port, tls: Some(info.tls_port()), ..info.clone() }
}

/// Sends back what comes.
fn echo(running: Running) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut running = running; // the driver ends with its last handle
        while let Some(incoming) = running.incoming.recv().await {
            if let Opened::Stream(stream) = incoming.accept() {
                tokio::spawn(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                        // A peer that is gone hears no end.
                        let _ = write.shutdown().await;
                    }
                });
            }
        }
    })
}

async fn relay_until(handle: &DriverHandle, what: &str, right: impl Fn(&RelayState) -> bool) -> RelayState {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let relays = handle.status().relays;
        if let Some(found) = relays.iter().find(|relay| right(relay)) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "{what}: not within a minute, but {relays:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn dial(running: &Running, whom: &Person) -> TunnelStream {
    stream(running.handle.dial(&whom.id, WEB).await.expect("trusted"))
}

/// Writes and reads back `round` of a stream, byte by byte the same.
async fn ping(tunnel: &mut TunnelStream, bytes: &[u8]) {
    let exchange = async {
        tunnel.write_all(bytes).await.expect("the stream takes it");
        tunnel.flush().await.expect("the stream takes it");
        let mut back = vec![0; bytes.len()];
        tunnel.read_exact(&mut back).await.expect("the peer sends it back");
        assert!(back == bytes, "other bytes came back");
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer within a minute");
}

#[tokio::test]
async fn two_agents_without_udp_meet_through_tls() {
    let relay = relay().await;
    let (_silent, port) = silent_port().await;
    let entry = with_udp_at(&relay.info, port);
    let (ann, bob) = (person("ann"), person("bob"));
    let start = Instant::now();
    let mut bob_runs = bob.start(snapshot(&entry, vec![trust(&bob, &ann, &entry, &["web"])]));
    bob_runs.wait_for(|event| matches!(event, DriverEvent::Relay { observed: Some(_), .. }).then_some(())).await;
    let bound = start.elapsed();
    assert!(bound >= Duration::from_millis(400), "UDP had its time");
    let _bob = echo(bob_runs);

    let ann_runs = ann.start(snapshot(&entry, vec![trust(&ann, &bob, &entry, &[])]));
    let start = Instant::now();
    let mut tunnel = dial(&ann_runs, &bob).await;
    ping(&mut tunnel, b"x").await;
    println!("bound by TLS after {bound:?}; a cold agent's first byte came back after {:?}", start.elapsed());
    let state = relay_until(&ann_runs.handle, "by TLS", |relay| relay.up && relay.tls).await;
    let note = state.note.expect("it says why");
    assert!(note.contains("UDP") && note.contains(&entry.tls_port().to_string()), "{note}");
    assert_eq!(state.observed, None, "what a stream shows says nothing about UDP");
    assert_eq!(ann_runs.handle.status().nat_type, "blocked");

    let sent: Vec<u8> = (0..5_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(&mut tunnel);
    let writing = async {
        write.write_all(&sent).await.expect("the stream takes it");
        write.shutdown().await.expect("it can be ended");
    };
    let mut back = Vec::new();
    let started = Instant::now();
    let (_, read) = tokio::time::timeout(PATIENCE, async { tokio::join!(writing, read.read_to_end(&mut back)) })
        .await
        .expect("5 MB both ways in a minute");
    read.expect("the peer sends it back");
    assert!(back == sent, "{} of {} bytes came back, or others", back.len(), sent.len());
    println!("5 MB there and back through two TLS legs each in {:?}", started.elapsed());
}

/// An HTTP proxy that knows one name, wants credentials, and lets CONNECT only.
struct ConnectProxy {
    address: SocketAddr,
    refused: Arc<AtomicUsize>,
    connected: Arc<AtomicUsize>,
}

async fn connect_proxy(name: &'static str, target: SocketAddr, credentials: &'static str) -> ConnectProxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (refused, connected) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&refused), Arc::clone(&connected));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (refused, connected) = (Arc::clone(&counters.0), Arc::clone(&counters.1));
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await?);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let allowed = head.contains(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
                if !allowed || !head.starts_with(&format!("CONNECT {name}:{} HTTP/1.1\r\n", target.port())) {
                    refused.fetch_add(1, Ordering::Relaxed);
                    let status = if allowed { "403 Forbidden" } else { "407 Proxy Authentication Required" };
                    return client.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await;
                }
                connected.fetch_add(1, Ordering::Relaxed);
                let mut relay = TcpStream::connect(target).await?;
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
                tokio::io::copy_bidirectional(&mut client, &mut relay).await.map(|_| ())
            });
        }
    });
    ConnectProxy { address, refused, connected }
}

fn behind(url: String) -> ProxySettings {
    ProxySettings::from_env(move |name| (name == "HTTPS_PROXY").then(|| url.clone()))
}

#[tokio::test]
async fn an_agent_behind_an_http_proxy_that_knows_the_name_reaches_one_on_udp() {
    let relay = relay().await;
    let target = SocketAddr::from(([127, 0, 0, 1], relay.info.tls_port()));
    // "user:p@ss"
    let proxy = connect_proxy("relay.invalid", target, "dXNlcjpwQHNz").await;
    let (ann, bob) = (person("ann"), person("bob"));
    // `invalid` has no address anywhere (RFC 6761 section 6.4): only the proxy can know what is meant.
    let by_name = RelayInfo { host: "relay.invalid".parse().expect("a host"), ..relay.info.clone() };
    let _bob = echo(bob.start(snapshot(&relay.info, vec![trust(&bob, &ann, &relay.info, &["web"])])));
    let settings = behind(format!("http://user:p%40ss@{}", proxy.address));
    let ann_runs = ann.start_behind(settings, snapshot(&by_name, vec![trust(&ann, &bob, &by_name, &[])]));
    let start = Instant::now();
    let mut tunnel = dial(&ann_runs, &bob).await;
    ping(&mut tunnel, b"through the proxy").await;
    println!("a cold agent's first byte came back through the proxy after {:?}", start.elapsed());
    assert_eq!(proxy.refused.load(Ordering::Relaxed), 0);
    assert!(proxy.connected.load(Ordering::Relaxed) >= 1, "it went through the proxy");
}

#[tokio::test]
async fn what_stands_in_the_way_is_said() {
    let relay = relay().await;
    let (_silent, port) = silent_port().await;
    let entry = with_udp_at(&relay.info, port);
    let target = SocketAddr::from(([127, 0, 0, 1], relay.info.tls_port()));
    let proxy = connect_proxy("127.0.0.1", target, "dXNlcjpwQHNz").await;
    let ann = person("ann");
    let failure = async |entry: &RelayInfo, settings: ProxySettings| {
        let running = ann.start_behind(settings, snapshot(entry, Vec::new()));
        let state = relay_until(&running.handle, "a reason", |relay| relay.note.is_some()).await;
        assert!(!state.up);
        state.note.expect("a reason")
    };

    let note = failure(&entry, behind(format!("http://{}", proxy.address))).await;
    assert!(note.contains("407") && note.contains("USER:PASSWORD"), "{note}");
    let note = failure(&entry, behind("socks5://127.0.0.1:1080".into())).await;
    assert!(note.contains("socks5"), "{note}");
    let (_taken, nobody) = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        (drop(listener), port)
    };
    let note = failure(&RelayInfo { tls: Some(nobody), ..entry.clone() }, ProxySettings::default()).await;
    assert!(note.contains("cannot connect") && note.contains("refused"), "{note}");
    // As for a middlebox that opens TLS: who answers does not hold the key of the list.
    let other = RelayInfo { key: AgreementSecret::from_bytes([9; 32]).public(), ..entry };
    let note = failure(&other, ProxySettings::default()).await;
    assert!(note.contains("opens TLS"), "{note}");
}

/// UDP between agents and the relay that can be cut.
struct Cable {
    port: u16,
    lets_through: Arc<AtomicBool>,
}

async fn cable(relay: SocketAddr) -> Cable {
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
    let port = front.local_addr().expect("bound").port();
    let lets_through = Arc::new(AtomicBool::new(false));
    let open = Arc::clone(&lets_through);
    tokio::spawn(async move {
        let mut backs: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
        let mut buffer = vec![0; 65_536];
        loop {
            let Ok((len, from)) = front.recv_from(&mut buffer).await else { continue };
            if !open.load(Ordering::Relaxed) {
                continue;
            }
            let back = match backs.get(&from) {
                Some(back) => Arc::clone(back),
                None => {
                    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
                    back.connect(relay).await.expect("loopback");
                    backs.insert(from, Arc::clone(&back));
                    tokio::spawn(downwards(Arc::clone(&back), Arc::clone(&front), from, Arc::clone(&open)));
                    back
                }
            };
            // Full buffers lose datagrams, as cables do.
            let _ = back.send(&buffer[..len]).await;
        }
    });
    Cable { port, lets_through }
}

async fn downwards(back: Arc<UdpSocket>, front: Arc<UdpSocket>, to: SocketAddr, open: Arc<AtomicBool>) {
    let mut buffer = vec![0; 65_536];
    while let Ok(len) = back.recv(&mut buffer).await {
        if open.load(Ordering::Relaxed) {
            let _ = front.send_to(&buffer[..len], to).await;
        }
    }
}

#[tokio::test]
async fn agents_go_back_to_udp_when_it_returns_and_to_tls_when_it_goes_and_their_streams_go_on() {
    let relay = relay().await;
    let cable = cable(SocketAddr::from(([127, 0, 0, 1], relay.info.port))).await;
    let entry = with_udp_at(&relay.info, cable.port);
    let (ann, bob) = (person("ann"), person("bob"));
    let bob_runs = bob.start(snapshot(&entry, vec![trust(&bob, &ann, &entry, &["web"])]));
    let bob_handle = bob_runs.handle.clone();
    let _bob = echo(bob_runs);
    let ann_runs = ann.start(snapshot(&entry, vec![trust(&ann, &bob, &entry, &[])]));
    let mut tunnel = dial(&ann_runs, &bob).await;
    ping(&mut tunnel, b"by TLS").await;
    for handle in [&ann_runs.handle, &bob_handle] {
        relay_until(handle, "by TLS", |relay| relay.up && relay.tls).await;
    }

    cable.lets_through.store(true, Ordering::Relaxed);
    for handle in [&ann_runs.handle, &bob_handle] {
        let state = relay_until(handle, "by UDP", |relay| relay.up && !relay.tls).await;
        assert!(state.observed.is_some() && state.note.is_none(), "{state:?}");
    }
    ping(&mut tunnel, &[7; 100_000]).await;

    cable.lets_through.store(false, Ordering::Relaxed);
    let cut = Instant::now();
    ping(&mut tunnel, b"by TLS again").await;
    println!("a stream went on by TLS {:?} after UDP was cut", cut.elapsed());
    for handle in [&ann_runs.handle, &bob_handle] {
        relay_until(handle, "by TLS again", |relay| relay.up && relay.tls).await;
    }
    ping(&mut tunnel, &[9; 100_000]).await;
}
