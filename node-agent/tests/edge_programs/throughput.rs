//! How fast the edge alone is: one stream through both edges and a tunnel of memory, beside one plain TCP connection.

use std::time::Instant;

use peerage_agent::forward::Services;
use peerage_model::snapshot::Protocol::Tcp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::World;

const TOTAL: usize = 2 << 30;

/// Gb/s of one connection to `at` that `service` accepts.
async fn measure(at: std::net::SocketAddr, service: &TcpListener) -> f64 {
    let mut client = TcpStream::connect(at).await.expect("connects");
    let (mut server, _) = service.accept().await.expect("accepted");
    let started = Instant::now();
    let writing = tokio::spawn(async move {
        let data = vec![7; 256 << 10];
        for _ in 0..TOTAL / data.len() {
            client.write_all(&data).await.expect("sent");
        }
    });
    let mut buffer = vec![0; 256 << 10];
    let mut read = 0;
    while read < TOTAL {
        read += server.read(&mut buffer).await.expect("received");
    }
    writing.await.expect("no panic");
    8.0 * TOTAL as f64 / started.elapsed().as_secs_f64() / 1e9
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it alone, in release"]
async fn one_stream_through_both_edges_beside_plain_tcp() {
    let service = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let plain = service.local_addr().expect("bound");
    let world = World::start("speed", &[(Tcp, 8080)], Services::new().with_local(Tcp, 8080, plain.port())).await;
    let (mut raw, mut edge) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        raw.push(measure(plain, &service).await);
        edge.push(measure(world.at(8080), &service).await);
    }
    raw.sort_by(f64::total_cmp);
    edge.sort_by(f64::total_cmp);
    println!("plain TCP {:.1} Gb/s, through both edges {:.1} Gb/s (medians of 5)", raw[2], edge[2]);
}
