//! How much a relay forwards with one core: bytes and packets over its own processor time, so that a sender or a neighbour that
//! takes the other core neither flatters nor spoils the figure.
//!
//! Nobody reads what arrives until the end: waking a reader is work of the sending thread on loopback, several times that of handing
//! a packet to a network card, and the reader would take a core from the relay. What its socket has no room for is dropped there.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use peerage_bench::Result;
use peerage_bench::figures::Figure;
use peerage_bench::network::Place;
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use rustix::process::Signal;

use crate::crowd::{Arrived, Crowd};
use crate::stage::{Running, Spread, Stage};

/// What an agent puts into a datagram, in bytes.
pub const PACKET: usize = 1_200;
/// Of a tunnel's packet: no frame of a relay begins so.
const FIRST_BYTE: u8 = 0x41;
/// How long two clients may take to get to know each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// As the figures call it.
    pub name: &'static str,
    /// Packets that leave a sender in one GSO batch.
    pub train: usize,
    /// Senders, each with a receiver of its own, in turns.
    pub pairs: u32,
    /// Whether the relay always finds a full queue. One sender on the other core is slower than it, so that it would wake for each packet.
    pub queued: bool,
}

/// From the best that can come in to the worst: nothing to join, neither on the way in nor out.
pub const LOADS: [Load; 6] = [
    Load { name: "trains of 40", train: 40, pairs: 1, queued: false },
    Load { name: "trains of 10", train: 10, pairs: 1, queued: false },
    Load { name: "single packets, a full queue", train: 1, pairs: 1, queued: true },
    Load { name: "single packets, as they come", train: 1, pairs: 1, queued: false },
    Load { name: "single packets of 64 in turns, a full queue", train: 1, pairs: 64, queued: true },
    Load { name: "single packets of 64 in turns, as they come", train: 1, pairs: 64, queued: false },
];
/// What fits into a socket's buffer of 4 MiB, as the kernel counts.
const QUEUED: usize = 1_500;
/// Several times what a relay needs for them.
const TO_FORWARD: Duration = Duration::from_millis(20);

/// One relay, one load after the other.
pub fn take(peerage: &Path, place: &Place, workers: u16, time: Duration) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for load in LOADS {
        let stage = Stage::new(peerage, place, 2 * load.pairs, workers)?;
        let relay = stage.start()?;
        let mut crowd = Crowd::new(relay.address())?;
        stage.bind(&relay, &mut crowd, 0..load.pairs, Spread::Networks)?;
        stage.bind(&relay, &mut crowd, load.pairs..2 * load.pairs, Spread::Networks)?;
        let pairs: Vec<_> = (0..usize::try_from(load.pairs)?).map(|n| (n, n + load.pairs as usize)).collect();
        introduce(&mut crowd, &pairs)?;
        figures.extend(measure(load, &relay, &mut crowd, &pairs, time)?);
    }
    Ok(figures)
}

fn measure(
    load: Load,
    relay: &Running,
    crowd: &mut Crowd,
    pairs: &[(usize, usize)],
    time: Duration,
) -> Result<Vec<Figure>> {
    let read = || -> Result<_> {
        let bytes = relay.metric("peerage_relay_forwarded_bytes_total")?;
        Ok((Instant::now(), bytes, relay.metric("peerage_relay_forwarded_packets_total")?, relay.processor()?))
    };
    let (start, bytes, packets, busy) = read()?;
    match load.queued {
        true => queue_up(relay, crowd, pairs, time)?,
        false => {
            let stop = Arc::new(AtomicBool::new(false));
            let flood = Flood::start(crowd, 0, pairs, load.train, Arc::clone(&stop))?;
            std::thread::sleep(time); // the length of a measurement, not a synchronisation
            stop.store(true, Ordering::Relaxed);
            flood.join()?;
        }
    }
    let (end, more_bytes, more_packets, more_busy) = read()?;
    let (busy, forwarded) = ((more_busy - busy).as_secs_f64(), more_packets - packets);
    if busy == 0.0 || received(crowd)? == 0 {
        return Err("nothing was forwarded".into());
    }
    let name = format!("forwarding, {}", load.name);
    Ok(vec![
        Figure::new(format!("{name}, per core"), 8e-9 * (more_bytes - bytes) / busy, "Gbit/s"),
        Figure::new(format!("{name}, packets per core"), forwarded / busy, "1/s"),
        Figure::new(format!("{name}, cores used"), busy / (end - start).as_secs_f64(), "cores"),
    ])
}

/// Lets packets wait while the relay stands still, and then lets it go on, again and again.
fn queue_up(relay: &Running, crowd: &mut Crowd, pairs: &[(usize, usize)], time: Duration) -> Result<()> {
    let frames: Vec<Vec<u8>> = frames(crowd, pairs)?.into_iter().map(|(_, frame)| frame).collect();
    let begun = Instant::now();
    while begun.elapsed() < time {
        relay.signal(Signal::STOP)?;
        for number in 0..QUEUED {
            let turn = number % pairs.len();
            crowd.send(pairs[turn].0, &frames[turn])?;
        }
        relay.signal(Signal::CONT)?;
        std::thread::sleep(TO_FORWARD); // whether it needs less or more, what counts is its processor time
    }
    Ok(())
}

/// Has each second one answer the first, so that what follows is past first contact.
pub fn introduce(crowd: &mut Crowd, pairs: &[(usize, usize)]) -> Result<()> {
    let started = Instant::now();
    let mut met = vec![false; pairs.len()];
    while !met.iter().all(|met| *met) {
        for (pair, (one, other)) in pairs.iter().enumerate().filter(|(pair, _)| !met[*pair]).collect::<Vec<_>>() {
            debug_assert!(pair < met.len());
            let to = crowd.id(*other)?;
            let frame = crowd.frame(*one, to, &[FIRST_BYTE; 64])?;
            crowd.send(*one, &frame)?;
        }
        let round = Instant::now();
        while round.elapsed() < Duration::from_secs(1) && !met.iter().all(|met| *met) {
            let mut answers = Vec::new();
            crowd.turn(Duration::from_millis(20), &mut |Arrived { client, from, .. }| match pairs
                .iter()
                .position(|(one, _)| *one == client)
            {
                Some(pair) => met[pair] = true,
                None => answers.push((client, from)),
            })?;
            for (client, to) in answers {
                let frame = crowd.frame(client, to, &[FIRST_BYTE; 64])?;
                crowd.send(client, &frame)?;
            }
        }
        if started.elapsed() > PATIENCE {
            return Err("two clients do not reach each other".into());
        }
    }
    Ok(())
}

/// Senders that send as fast as the machine lets them. Loopback holds nobody back: what the relay has no time for is dropped at its socket.
pub struct Flood(JoinHandle<Result<()>>);

impl Flood {
    /// From these clients, who share this socket, to theirs: a train to each in turns.
    pub fn start(
        crowd: &mut Crowd,
        socket: usize,
        pairs: &[(usize, usize)],
        train: usize,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let frames = frames(crowd, pairs)?;
        let batches = frames.into_iter().map(|(from, frame)| (from, frame.repeat(train))).collect();
        Self::pour(crowd, socket, batches, train, stop)
    }

    /// From one client to all of its others: trains of which each packet goes elsewhere. One system call of the sender is as many
    /// of the relay as there are packets in it.
    pub fn fan(crowd: &mut Crowd, socket: usize, pairs: &[(usize, usize)], stop: Arc<AtomicBool>) -> Result<Self> {
        let frames = frames(crowd, pairs)?;
        let from = frames.first().ok_or("nobody floods")?.0;
        let train: Vec<u8> = frames.into_iter().flat_map(|(_, frame)| frame).collect();
        Self::pour(crowd, socket, vec![(from, train)], pairs.len(), stop)
    }

    fn pour(
        crowd: &Crowd,
        socket: usize,
        batches: Vec<(IpAddr, Vec<u8>)>,
        train: usize,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let (socket, to) = (crowd.socket(socket)?, crowd.relay());
        Ok(Self(std::thread::spawn(move || pour(&socket, to, &batches, train, &stop))))
    }

    /// Waits for its end, after `stop`.
    pub fn join(self) -> Result<()> {
        self.0.join().map_err(|_| "a sender panicked")?
    }
}

/// A full packet of each pair, and where it is sent from.
fn frames(crowd: &mut Crowd, pairs: &[(usize, usize)]) -> Result<Vec<(IpAddr, Vec<u8>)>> {
    let mut frames = Vec::new();
    for (one, other) in pairs {
        let to = crowd.id(*other)?;
        frames.push((crowd.address(*one), crowd.frame(*one, to, &[FIRST_BYTE; PACKET])?));
    }
    Ok(frames)
}

fn pour(
    socket: &UdpSocket,
    to: SocketAddr,
    batches: &[(IpAddr, Vec<u8>)],
    train: usize,
    stop: &AtomicBool,
) -> Result<()> {
    let state = UdpSocketState::new(UdpSockRef::from(socket))?;
    while !stop.load(Ordering::Relaxed) {
        for (from, contents) in batches {
            let segment_size = Some(contents.len() / train);
            let transmit = Transmit { destination: to, ecn: None, contents, segment_size, src_ip: Some(*from) };
            match state.try_send(UdpSockRef::from(socket), &transmit) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// How much has arrived, as far as the receivers' socket had room.
fn received(crowd: &mut Crowd) -> Result<usize> {
    let mut packets = 0;
    let (begun, mut before) = (Instant::now(), usize::MAX);
    while packets != before && begun.elapsed() < PATIENCE {
        before = packets;
        crowd.turn(Duration::from_millis(50), &mut |Arrived { .. }| packets += 1)?;
    }
    Ok(packets)
}
