//! Measures the relay on this machine: one flow forwarded over loopback, and memory per idle binding.
//!
//! `cargo run --release -p peerage-relay --example relay-bench`. The relay runs on a thread of its own, whose processor
//! time is read from the kernel: Gb/s per core is bytes forwarded over that time, so that a sender or a neighbour that
//! takes the other core does not flatter or spoil it.

#[path = "../tests/loopback/client.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod client;

use std::fs;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use client::{Client, agent, authority};
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::{self, Frame};
use peerage_model::relay::frame::{Destination, EndpointId, Tag, keys};
use peerage_model::{AgreementSecret, UnixTime};
use peerage_relay::{Bound, Options};
use peerage_relay_proto::{Access, Config, Counters, Decision, Ingress, Limits, Occupancy, Quota, Rate, Relay};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

const IDLE_CLIENTS: u32 = 10_000;

#[derive(Parser)]
struct Arguments {
    /// Seconds of each run
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Runs of each kind; the median is what counts
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Sockets of the relay
    #[arg(long, default_value_t = 1)]
    workers: u16,
}

fn main() {
    let arguments = Arguments::parse();
    println!("# {} cores, kernel {}", cores(), kernel().trim());
    memory(); // first, so that nothing freed is used again
    for (packet, segments) in [(1_200, 40), (1_436, 40), (1_200, 10), (1_200, 1)] {
        flow(&arguments, packet, segments);
    }
    decisions();
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

struct Running {
    address: SocketAddr,
    info: RelayInfo,
    counters: Box<dyn Fn() -> (Counters, Occupancy) + Send>,
    /// Kernel thread ids of the relay.
    threads: Vec<String>,
    _stop: oneshot::Sender<()>,
}

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn start(workers: u16) -> Running {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("relay.key");
    let (stop, stopped) = oneshot::channel();
    let (told, hear) = std::sync::mpsc::channel();
    let before = threads();
    std::thread::spawn(move || {
        let key = key.to_str().expect("a path of ours is text");
        let fingerprint = authority(1).fingerprint().to_string();
        let workers = workers.to_string();
        let arguments = [
            "relay",
            "--allow-authority",
            &fingerprint,
            "--listen",
            "127.0.0.1:0",
            "--key-file",
            key,
            "--workers",
            &workers,
        ];
        let options = Command::parse_from(arguments).options;
        let runtime = runtime(options.workers);
        runtime.block_on(async {
            let bound = Bound::new(&options).await.expect("the relay starts");
            let told_all = (bound.local_addr(), bound.info().clone(), Box::new(bound.counters()));
            told.send(told_all).expect("somebody listens");
            let ended = bound.serve(async { stopped.await.unwrap_or(()) }).await;
            drop(folder);
            ended.expect("an orderly end");
        });
    });
    let (address, info, counters) = hear.recv().expect("the relay starts");
    let threads = threads().into_iter().filter(|thread| !before.contains(thread)).collect();
    Running { address, info, counters, threads, _stop: stop }
}

fn runtime(workers: u16) -> tokio::runtime::Runtime {
    let mut builder = match workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if workers > 1 {
        builder.worker_threads(usize::from(workers));
    }
    builder.enable_all().build().expect("a runtime")
}

fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux");
    tasks.filter_map(|task| task.ok()?.file_name().into_string().ok()).collect()
}

/// Processor time of some threads.
fn processor_time(threads: &[String]) -> Duration {
    let nanos = threads.iter().map(|thread| {
        let stat = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap_or_default();
        stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
    });
    Duration::from_nanos(nanos.sum())
}

/// One sender, one receiver, as fast as they can.
fn flow(arguments: &Arguments, packet: usize, segments: usize) {
    let relay = start(arguments.workers);
    let (id, instance, credential) = agent(&authority(1), "db", [10; 32]);
    let (_, instance2, credential2) = agent(&authority(1), "web", [11; 32]);
    let receiver = Client::bind(relay.address, &relay.info.key, &instance, &credential);
    let sender = Client::bind(relay.address, &relay.info.key, &instance2, &credential2);
    sender.send(Destination::Route(id.routing_id()), &[0xc0; 1200]);
    let (from, _) = receiver.packet();
    receiver.send(Destination::Endpoint(from), &[0xc1; 9]);
    let (peer, _) = sender.packet();

    let stop = Arc::new(AtomicBool::new(false));
    let sink = sink(receiver.socket, Arc::clone(&stop));
    let source = source(&sender, peer, packet, segments, Arc::clone(&stop));
    let mut rates: Vec<(f64, f64, f64)> = (0..arguments.runs).map(|_| measure(&relay, arguments.seconds)).collect();
    stop.store(true, Ordering::Relaxed);
    let delivered = sink.join().expect("no panic");
    source.join().expect("no panic");
    rates.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (gbits, per_core, packets) = rates[rates.len() / 2];
    let all: Vec<String> = rates.iter().map(|rate| format!("{:.2}", rate.1)).collect();
    println!(
        "forward packet={packet} segments={segments} workers={} median: {gbits:.2} Gb/s, {per_core:.2} Gb/s per core of the relay, {packets:.0} packets/s per core; per core, all runs: {}; delivered {delivered} packets",
        arguments.workers,
        all.join(" ")
    );
}

fn measure(relay: &Running, seconds: u64) -> (f64, f64, f64) {
    let read = || (Instant::now(), (relay.counters)().0, processor_time(&relay.threads));
    let (start, before, busy_before) = read();
    std::thread::sleep(Duration::from_secs(seconds)); // the length of a measurement, not a synchronisation
    let (end, after, busy_after) = read();
    let bits = 8.0 * (after.forwarded_bytes - before.forwarded_bytes) as f64;
    let packets = (after.forwarded_packets - before.forwarded_packets) as f64;
    let busy = (busy_after - busy_before).as_secs_f64();
    (bits / 1e9 / (end - start).as_secs_f64(), bits / 1e9 / busy, packets / busy)
}

fn sink(socket: UdpSocket, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).expect("a UDP socket");
        socket.set_nonblocking(false).expect("blocking");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let mut memory = vec![0; BATCH_SIZE * 65_536];
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let mut packets = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut slices: Vec<_> = memory.chunks_exact_mut(65_536).map(IoSliceMut::new).collect();
            match state.recv(UdpSockRef::from(&socket), &mut slices, &mut meta) {
                Ok(n) => {
                    packets += meta[..n].iter().map(|meta| meta.len.div_ceil(meta.stride.max(1)) as u64).sum::<u64>()
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => panic!("receive: {error}"),
            }
        }
        packets
    })
}

fn source(
    sender: &Client,
    peer: EndpointId,
    packet: usize,
    segments: usize,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let socket = sender.socket.try_clone().expect("a second handle");
    let one = sender.frame(Destination::Endpoint(peer), &vec![0x41; packet]);
    let batch = one.repeat(segments);
    std::thread::spawn(move || {
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).expect("a UDP socket");
        let transmit = Transmit {
            destination: socket.peer_addr().expect("connected"),
            ecn: None,
            contents: &batch,
            segment_size: Some(one.len()),
            src_ip: None,
        };
        socket.set_nonblocking(false).expect("blocking");
        while !stop.load(Ordering::Relaxed) {
            // Loopback gives no back-pressure; what the relay cannot take is dropped at its socket.
            if state.try_send(UdpSockRef::from(&socket), &transmit).is_err() {
                std::thread::yield_now();
            }
        }
    })
}

/// A relay value without sockets, and everybody who is bound there.
struct InMemory {
    relay: Relay,
    now: Instant,
    wall: UnixTime,
}

impl InMemory {
    fn new() -> Self {
        let free = Quota::unlimited(u32::MAX);
        let limits = Limits {
            authority: free,
            network: free,
            handshakes: Rate::new(1_000_000_000, 1_000_000_000),
            binds: Rate::new(1_000_000_000, 1_000_000_000),
            ..Limits::open()
        };
        let config = Config {
            key: AgreementSecret::from_bytes([7; 32]),
            access: Access::Open,
            limits,
            seed: Zeroizing::new([8; 32]),
        };
        let now = Instant::now();
        Self { relay: Relay::new(config, now), now, wall: client::now() }
    }

    fn send(&mut self, from: SocketAddr, datagram: &[u8]) -> Vec<u8> {
        let mut buffer = datagram.to_vec();
        let len = buffer.len();
        let ingress = Ingress { now: self.now, wall: self.wall, from: from.into(), local: None };
        match self.relay.handle(&ingress, &mut buffer, len).decision {
            Decision::Drop => Vec::new(),
            Decision::Reply(reply) => reply.as_bytes().to_vec(),
            Decision::Forward(forward) => buffer[forward.range].to_vec(),
        }
    }

    fn bind(&mut self, n: u32) -> (SocketAddr, EndpointId, Tag) {
        let [_, a, b, c] = n.to_be_bytes();
        let from = SocketAddr::from(([10, a, b, c], 4000));
        let mut key = [3; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let (_, instance, credential) = agent(&authority(1), &format!("a{n}"), key);
        let reply = self.send(from, &frame::hello(Tag([1; 6])));
        let Ok((_, Frame::Cookie { cookie, .. })) = Frame::parse(&reply) else {
            panic!("COOKIE");
        };
        key[31] = 4;
        let relay = *self.relay.public_key();
        let e = AgreementSecret::from_bytes(key);
        let bind = keys::bind(Tag([2; 6]), cookie, &e, &relay, &instance, &credential).expect("good keys");
        let reply = self.send(from, &bind.frame);
        let Ok((_, Frame::Bound { grant, .. })) = Frame::parse(&reply) else {
            panic!("BOUND");
        };
        (from, peerage_model::InstanceId::of_key(&instance.public()).into(), grant.tag)
    }
}

/// Time for one decision among 10 000 bindings, without system calls.
fn decisions() {
    let mut world = InMemory::new();
    let clients: Vec<_> = (0..IDLE_CLIENTS).map(|n| world.bind(n)).collect();
    let mut frames = Vec::new();
    for pair in clients.chunks_exact(2) {
        let [(from_a, a, tag_a), (from_b, b, tag_b)] = [pair[0], pair[1]];
        for (from, tag, to) in [(from_a, tag_a, b), (from_b, tag_b, a)] {
            let mut header = [0x41; 40];
            Destination::Endpoint(to).write_header(tag, &mut header);
            world.send(from, &header);
            frames.push((from, header));
        }
    }
    let started = Instant::now();
    let rounds = 20;
    let mut forwarded = 0_u32;
    for _ in 0..rounds {
        for (from, header) in &frames {
            let ingress = Ingress { now: world.now, wall: world.wall, from: (*from).into(), local: None };
            let mut buffer = *header;
            let handled = world.relay.handle(&ingress, &mut buffer, header.len());
            forwarded += u32::from(matches!(handled.decision, Decision::Forward(_)));
        }
    }
    let each = started.elapsed().as_nanos() / u128::from(forwarded.max(1));
    println!("decide among {IDLE_CLIENTS} bindings, random order of flows: {each} ns each, {forwarded} forwarded");
}

/// Resident memory per idle binding.
fn memory() {
    let before = resident();
    let mut world = InMemory::new();
    world.bind(u32::MAX >> 8);
    let started = Instant::now();
    for n in 0..IDLE_CLIENTS {
        world.bind(n);
    }
    let took = started.elapsed();
    let grown = resident().saturating_sub(before);
    let held = world.relay.occupancy();
    println!(
        "memory {} idle bindings: {} bytes each (resident), {} bytes each as counted against the limit; bound in {:.2} s, both sides' cryptography included",
        held.bound,
        grown / held.bound,
        held.memory / held.bound,
        took.as_secs_f64()
    );
}

fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    let kib: usize = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
    kib * 1024
}
