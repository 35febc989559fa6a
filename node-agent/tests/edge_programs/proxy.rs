//! The proxy, with curl.

use peerage_agent::forward::Services;
use peerage_agent::proxy;
use peerage_model::snapshot::Protocol::Tcp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{World, curl, pattern};

/// A world whose peer serves HTTP at port 80, and the proxy's address. Nothing listens for programs but the proxy.
async fn world(tag: &str) -> (World, String) {
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = service.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = service.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.expect("a request");
                let line = String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default().to_owned();
                let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len());
                stream.write_all(response.as_bytes()).await.expect("sent");
            });
        }
    });
    let world = World::start(tag, &[], Services::new().with_local(Tcp, 80, port)).await;
    let config = proxy::Config::new("127.0.0.1:0".parse().expect("an address"));
    let server = proxy::Server::bind(config, world.directory.subscribe(), world.outbound.clone()).await;
    let server = server.expect("a free port");
    let at = server.local_addr().expect("bound").to_string();
    tokio::spawn(server.run());
    (world, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_reached_by_name_in_every_way_that_curl_knows() {
    let (world, proxy) = world("ways").await;
    let expected = (Some(0), "GET /x HTTP/1.1".to_owned());
    let urls = ["db-ways".to_owned(), "db-ways.peer.internal".to_owned(), world.address.to_string()];
    for url in urls.map(|host| format!("http://{host}/x")) {
        assert_eq!(curl(&["--socks5-hostname", &proxy, &url]).await, expected, "SOCKS5 {url}");
        assert_eq!(curl(&["-p", "-x", &proxy, &url]).await, expected, "CONNECT {url}");
        assert_eq!(curl(&["-x", &proxy, &url]).await, expected, "absolute form {url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_leads_to_trusted_peers_only() {
    let (_world, proxy) = world("closed").await;
    let other = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/", other.local_addr().expect("bound"));
    let (socks, _) = curl(&["--socks5-hostname", &proxy, &url]).await;
    assert_eq!(socks, Some(97), "curl's word for a refusal by a SOCKS proxy");
    for url in [url.as_str(), "http://example.com/", "http://[::1]/", "http://localhost/"] {
        let (_, code) = curl(&["-x", &proxy, "-w", "%{http_code}", "-o", "/dev/null", url]).await;
        assert_eq!(code, "403", "{url}");
        let (connect, _) = curl(&["-p", "-x", &proxy, url]).await;
        assert_eq!(connect, Some(56), "{url}: curl's word for a refused CONNECT");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_that_the_peer_refuses_is_told_why() {
    let (_world, proxy) = world("why").await;
    let (_, text) = curl(&["-x", &proxy, "-w", "%{http_code}", "http://db-why:81/"]).await;
    assert!(text.contains("nothing listens on this port at the peer") && text.ends_with("502"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn socks_commands_other_than_connect_are_refused_by_their_code() {
    let (_world, proxy) = world("bind").await;
    let mut stream = TcpStream::connect(&proxy).await.expect("connects");
    stream.write_all(&[5, 1, 0, 5, 2, 0, 1, 127, 0, 0, 1, 0, 80]).await.expect("sent");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("method and reply");
    assert_eq!(answer[..4], [5, 0, 5, 7], "command not supported");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_an_end_is_cut_off() {
    let (_world, proxy) = world("endless").await;
    let mut stream = TcpStream::connect(&proxy).await.expect("connects");
    stream.write_all(b"GET http://db-endless/ HTTP/1.1\r\nX: ").await.expect("sent");
    // The proxy stops reading at some point, and a write may then fail.
    drop(stream.write_all(&[b'x'; 20_000]).await);
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.expect("a refusal");
    assert_eq!(answer, b"HTTP/1.1 431");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_leaves_the_proxy_standing() {
    let (_world, proxy) = world("garbage").await;
    for seed in 0..50 {
        let mut stream = TcpStream::connect(&proxy).await.expect("connects");
        let mut garbage = pattern(seed, 300);
        if seed % 2 == 0 {
            garbage[0] = 5;
        }
        drop(stream.write_all(&garbage).await);
        drop(stream.shutdown().await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
    }
    let (status, _) = curl(&["-x", &proxy, "http://db-garbage/"]).await;
    assert_eq!(status, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_does_not_listen_beyond_loopback() {
    let world = World::start("open", &[], Services::new()).await;
    let config = proxy::Config::new("0.0.0.0:0".parse().expect("an address"));
    let bound = proxy::Server::bind(config, world.directory.subscribe(), world.outbound.clone()).await;
    assert!(bound.is_err());
}
