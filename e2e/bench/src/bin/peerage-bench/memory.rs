//! What idle processes hold: an agent with a relay and a peer, and a relay with clients that say nothing.

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
use crate::process::resident;
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
