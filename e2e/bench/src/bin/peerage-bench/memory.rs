//! What idle processes hold: an agent with a relay and a peer, and a relay with clients that say nothing.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use peerage_agent::state::document::Path as PathMode;
use peerage_engine::relay::{ClientConfig, RelayClient, RelayEvent, Role};
use peerage_model::relay::RelayInfo;

use crate::Result;
use crate::agents::{Agent, Relay};
use crate::network::Network;
use crate::people::{Person, random};
use crate::report::Report;

/// After the last thing that happened. An agent counts as idle after ten quiet seconds, and gives memory back at the next look.
const SETTLE: Duration = Duration::from_secs(25);
/// Clients bound at the relay, enough that pages divided by them tell bytes.
const CLIENTS: u16 = 2_000;
/// Clients of one /24: below the relay's quota for handshakes at once.
const PER_NETWORK: u16 = 100;

/// `agent` is the program for containers, where there is one.
pub fn measure(peerage: &Path, agent: Option<&Path>, network: &Network, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let relay = Relay::start(peerage, &network.relay, 3478, folder.path())?;
    let ann = Agent::start(peerage, &network.client, "ann", &relay.info, &[], folder.path())?;
    std::thread::sleep(SETTLE);
    report.memory("`peerage up`, relay bound, nobody trusted", resident(ann.program.id())?);
    let bob = Agent::start(peerage, &network.server, "bob", &relay.info, &["bulk=5201".into()], folder.path())?;
    ann.befriend(&bob, PathMode::Auto)?;
    std::thread::sleep(SETTLE);
    report.memory("`peerage up`, one idle session", resident(ann.program.id())?);
    report.memory("`peerage relay`, two agents bound", resident(relay.program.id())?);
    drop(ann);
    if let Some(agent) = agent {
        let carl = Agent::start_contained(agent, &network.client, "carl", &relay.info, folder.path())?;
        carl.befriend(&bob, PathMode::Auto)?;
        std::thread::sleep(SETTLE);
        report.memory("`peerage-agent`, one idle session", resident(carl.program.id())?);
    }
    drop(bob);
    drop(relay);
    clients(peerage, network, report)
}

/// Binds many clients to a relay on loopback, where every /24 is ours to send from.
fn clients(peerage: &Path, network: &Network, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let place = network.relay.loopback();
    let relay = Relay::start(peerage, &place, 0, folder.path())?;
    let info: RelayInfo = relay.info.parse().map_err(|error| format!("{error:?}"))?;
    let process = relay.program.id();
    let each = place.thread(move || grown_by(&info, process))?.join().map_err(|_| "a client panicked")??;
    report.memory_each("relay, each idle client", each);
    Ok(())
}

/// By how many KiB each client made the relay grow.
fn grown_by(info: &RelayInfo, relay: u32) -> Result<f64> {
    let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), info.port);
    let person = Person::new("idle");
    // The first few make what all share.
    let mut held: Vec<UdpSocket> = (0..8).map(|n| bind(&person, info, to, n)).collect::<Result<_>>()?;
    let before = resident(relay)?;
    for number in 8..8 + CLIENTS {
        held.push(bind(&person, info, to, number)?);
    }
    let after = resident(relay)?;
    Ok((after.total - before.total) / f64::from(CLIENTS))
}

/// One client, bound; its socket keeps the address.
fn bind(person: &Person, info: &RelayInfo, to: SocketAddr, number: u16) -> Result<UdpSocket> {
    let network = u8::try_from(number / PER_NETWORK)?;
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 1, network, 1), 0))?;
    socket.connect(to)?;
    let (secret, credential) = person.instance();
    let config = ClientConfig::new(info.key, Role::Bind { secret, credential });
    let mut client = RelayClient::new(config, random(), Instant::now());
    let mut buffer = [0; 2048];
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(10) {
        while let Some(datagram) = client.poll_transmit() {
            socket.send(&datagram)?;
        }
        if let Some(RelayEvent::Ready { .. }) = client.poll_event() {
            return Ok(socket);
        }
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        match socket.recv(&mut buffer) {
            Ok(length) => drop(client.handle_datagram(Instant::now(), &buffer[..length])),
            Err(_) => client.handle_timeout(Instant::now()),
        }
    }
    Err(format!("the relay did not take client {number}").into())
}

/// Resident memory of a process in KiB.
#[derive(Clone, Copy)]
pub struct Resident {
    /// All of it: what the targets are about.
    pub total: f64,
    /// What no file backs: heap, stacks and written data.
    pub own: f64,
}

pub fn resident(process: u32) -> Result<Resident> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.ok_or("the kernel does not say")?.parse()?)
    };
    Ok(Resident { total: field("VmRSS:")?, own: field("RssAnon:")? })
}

/// The processor time that a process has used, of its own and of the kernel for it.
pub fn processor_time(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is the program's name in parentheses; user and system time are the twelfth and thirteenth after it.
    let fields: Vec<&str> = stat.rsplit_once(')').ok_or("the kernel does not say")?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11..13).ok_or("the kernel does not say")?.iter().map(|f| f.parse().unwrap_or(0)).sum();
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}
