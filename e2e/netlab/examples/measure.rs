//! How fast the lab itself is: throughput between two hosts behind NATs, and the latency it adds.
//!
//! `cargo run --release -p peerage-netlab --example measure`. Sender and receiver are threads of this program with
//! sockets in two hosts. The sender keeps a window of 1 MiB under way, as a tunnel does, and the receiver reports what it
//! has; so the figure is what arrives. Latency is half of a ping-pong, beside the same on one host's loopback.

use std::error::Error;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use peerage_netlab::{Host, HostConfig, Lab, LinkConfig, NatKind};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};

const PACKET: usize = 1_200;
const WINDOW: u64 = 1 << 20;
const RUN: Duration = Duration::from_secs(3);
const PINGS: usize = 2_000;

fn main() -> Result<(), Box<dyn Error>> {
    peerage_netlab::enter()?;
    let mut lab = Lab::new()?;
    let a = lab.host("a", HostConfig::behind([10, 0, 1, 2].into(), NatKind::home_router()))?;
    let b = lab.host("b", HostConfig::public([198, 51, 100, 2].into()))?;

    for (links, config) in links() {
        lab.set_link(&a, config);
        for segments in [1, 10, 40] {
            let before = lab.traffic(&a, &b).bytes;
            let (gigabits, lost) = throughput(socket(&a)?, socket(&b)?, lab.address(&b).into(), segments)?;
            let carried = lab.traffic(&a, &b).bytes - before;
            println!("{links}, {segments:2} packets a call: {gigabits:.2} Gb/s, {lost} windows lost, {carried} bytes");
        }
    }
    lab.set_link(&a, LinkConfig::default());
    println!("loopback, one way: {:?}", latency(socket(&a)?, socket(&a)?, [127, 0, 0, 1].into())?);
    println!("lab, one way: {:?}", latency(socket(&a)?, socket(&b)?, lab.address(&b).into())?);
    lab.set_link(&a, LinkConfig::with_delay(Duration::from_millis(5)));
    println!("lab with a delay of 5 ms, one way: {:?}", latency(socket(&a)?, socket(&b)?, lab.address(&b).into())?);
    Ok(())
}

fn links() -> [(&'static str, LinkConfig); 3] {
    let jitter = Duration::from_micros(100);
    [
        ("perfect link", LinkConfig::default()),
        ("1 ms delay", LinkConfig::with_delay(Duration::from_millis(1))),
        ("1 ms delay and 0.1 ms jitter", LinkConfig { jitter, ..LinkConfig::with_delay(Duration::from_millis(1)) }),
    ]
}

/// Gigabits per second of payload that arrived, and how often the sender waited in vain for a report.
fn throughput(near: UdpSocket, far: UdpSocket, to: std::net::IpAddr, segments: usize) -> io::Result<(f64, u32)> {
    let to = SocketAddr::new(to, far.local_addr()?.port());
    let receiver = thread::spawn(move || receive_all(&far));
    let sending = UdpSocketState::new((&near).into())?;
    near.set_nonblocking(false)?;
    near.set_read_timeout(Some(Duration::from_millis(20)))?;
    let payload = vec![7; PACKET * segments];
    let (mut sent, mut known, mut lost) = (0, 0, 0);
    let start = Instant::now();
    while start.elapsed() < RUN {
        while sent - known < WINDOW {
            let segment_size = (segments > 1).then_some(PACKET);
            let transmit = Transmit { destination: to, ecn: None, contents: &payload, segment_size, src_ip: None };
            sending.try_send((&near).into(), &transmit)?;
            sent += payload.len() as u64;
        }
        let mut report = [0; 8];
        match near.recv(&mut report) {
            Ok(_) => known = u64::from_be_bytes(report).max(known),
            Err(_) => {
                lost += 1;
                // What is missing after so long is lost: count it as arrived, so that the window opens.
                known = sent;
            }
        }
    }
    let took = start.elapsed();
    near.send_to(b"end", to)?;
    let arrived = receiver.join().map_err(|_| io::Error::other("the receiver panicked"))??;
    Ok((arrived as f64 * 8.0 / took.as_secs_f64() / 1e9, lost))
}

fn receive_all(far: &UdpSocket) -> io::Result<u64> {
    let receiving = UdpSocketState::new(far.into())?;
    // As much as the machine allows; the default holds a fraction of the window.
    receiving.set_recv_buffer_size(far.into(), 4 * WINDOW as usize)?;
    far.set_nonblocking(false)?;
    far.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut storage = vec![vec![0; 65_536]; 8];
    let mut arrived = 0;
    loop {
        let mut buffers: Vec<IoSliceMut<'_>> = storage.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let mut metas = [RecvMeta::default(); 8];
        let count = match receiving.recv(far.into(), &mut buffers, &mut metas) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(arrived),
            Err(error) => return Err(error),
        };
        for meta in &metas[..count] {
            if meta.len == 3 {
                return Ok(arrived);
            }
            arrived += meta.len as u64;
        }
        far.send_to(&arrived.to_be_bytes(), metas[0].addr)?;
    }
}

/// Half of the median ping-pong.
fn latency(near: UdpSocket, far: UdpSocket, to: std::net::IpAddr) -> io::Result<Duration> {
    let to = SocketAddr::new(to, far.local_addr()?.port());
    let echo = thread::spawn(move || -> io::Result<()> {
        let mut buffer = [0; 64];
        loop {
            let (length, from) = far.recv_from(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            far.send_to(&buffer[..length], from)?;
        }
    });
    let mut round_trips = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let sent = Instant::now();
        near.send_to(b"ping", to)?;
        near.recv(&mut [0; 64])?;
        round_trips.push(sent.elapsed());
    }
    near.send_to(b"", to)?;
    echo.join().map_err(|_| io::Error::other("the echo panicked"))??;
    round_trips.sort_unstable();
    Ok(round_trips[PINGS / 2] / 2)
}

fn socket(host: &Host) -> Result<UdpSocket, Box<dyn Error>> {
    Ok(host.run(|| UdpSocket::bind("0.0.0.0:0"))??)
}
