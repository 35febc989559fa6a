//! How soon a request is at the server when there is no session yet: all agents are bound at their relays, whose links
//! take time. The design promises one and a half round trips of the relay path: one for the handshake, half of one for
//! the request itself. Beside it, what the same request takes from an agent that has just been started.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use peerage_netlab::kernel::Network;
use peerage_netlab::{Access, LinkConfig};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::kernel::{KernelWorld, acquaint};
use crate::matrix::{Pair, Party, Stage, in_rounds};
use crate::programs::Programs;
use crate::wait::{LOOK, PATIENCE};
use peerage_suite::failed::{Failed, Trying};

/// One way between a relay and anybody: round trips of the relay path take four times as long.
const DELAY: Duration = Duration::from_millis(25);
/// A session without traffic ends after two minutes. What the ends say to each other with each round of checks is traffic, and the third
/// round is two minutes after the first; this is more, on any machine.
const SESSION_END: Duration = Duration::from_secs(330);

/// The round trip from a client through the relay to the server and back.
pub const RELAY_ROUND_TRIP: Duration = DELAY.saturating_mul(4);

/// What was measured of one pair.
#[derive(Clone, Debug)]
pub struct Flight {
    /// Before the client.
    pub client: Network,
    /// Before the server.
    pub server: Network,
    /// What both ends measure of their ways to relays, one after the other: the relay path's round trip with what the emulated
    /// links and the agents add to it.
    pub path: Option<Duration>,
    /// From the program's `connect` until its request is at the server; no session, bound agents.
    pub warm: Result<Duration, String>,
    /// From the start of the client's agent until a request is at the server.
    pub cold: Result<Duration, String>,
}

impl Flight {
    /// How many round trips of the relay path that was.
    #[must_use]
    pub fn round_trips(of: Duration) -> f64 {
        (of.as_secs_f64() / RELAY_ROUND_TRIP.as_secs_f64() * 100.0).round() / 100.0
    }

    /// As one line of `--json`.
    #[must_use]
    pub fn json(&self) -> Value {
        let millis = |of: &Result<Duration, String>| of.as_ref().ok().map(|of| (of.as_secs_f64() * 1e4).round() / 10.0);
        let trips = |of: &Result<Duration, String>| of.as_ref().ok().map(|of| Self::round_trips(*of));
        json!({
            "test": "warm", "client": self.client.name(), "server": self.server.name(),
            "relay_rtt_ms": RELAY_ROUND_TRIP.as_millis() as u64,
            "measured_rtt_ms": self.path.map(|of| (of.as_secs_f64() * 1e4).round() / 10.0),
            "warm_ms": millis(&self.warm), "warm_rtts": trips(&self.warm),
            "cold_ms": millis(&self.cold), "cold_rtts": trips(&self.cold),
            "error": self.warm.as_ref().err().or(self.cold.as_ref().err()),
        })
    }
}

/// Measures these pairs one after the other, and hands over each.
///
/// # Errors
/// The lab cannot be made. What goes wrong in a pair is in its flight.
pub fn run(programs: &Programs, pairs: &[Pair], mut done: impl FnMut(Flight)) -> Result<(), Failed> {
    let relays: Access = LinkConfig::with_delay(DELAY).into();
    let mut stage = Stage::new(KernelWorld::new(programs, 2, &relays)?, pairs)?;
    for party in stage.clients.values() {
        // So that the agent listens where programs connect to: no supervisor is part of what is measured.
        stage.world.lab.allow_low_ports(party.place.site.host()).trying("allow low ports")?;
    }
    let mut problems = Vec::new();
    in_rounds(
        pairs,
        pairs.len(),
        |pair| (pair, meet(&stage, pair)),
        |(pair, met)| {
            if let Err(failed) = met {
                problems.push((pair, failed.to_string()));
            }
        },
    );
    let problem = |pair: Pair| problems.iter().find(|(of, _)| *of == pair).map(|(_, why)| why.clone());
    wait_for_the_end_of_sessions(&stage)?;
    let mut flights = Vec::new();
    for &pair in pairs {
        let warm = match problem(pair) {
            Some(why) => Err(why),
            None => request(&stage, pair, Instant::now()).map_err(|failed| failed.to_string()),
        };
        flights.push((pair, relay_path(&stage, pair), warm));
    }
    for (pair, path, warm) in flights {
        let cold = match &warm {
            Ok(_) => cold(&mut stage, pair).map_err(|failed| failed.to_string()),
            Err(_) => Err("not tried".into()),
        };
        done(Flight { client: pair.0, server: pair.1, path, warm, cold });
    }
    Ok(())
}

/// The slower of each end's two ways, since either may have carried it.
fn relay_path(stage: &Stage, (client, server): Pair) -> Option<Duration> {
    let longest = |party: &Party| {
        let status = party.agent.ask(&["status"]).ok()?;
        let relays = status["relays"].as_array()?.iter().filter_map(|relay| relay["rtt_ms"].as_f64());
        relays.reduce(f64::max).map(|millis| Duration::from_secs_f64(millis / 1e3))
    };
    Some(longest(&stage.clients[&client])? + longest(&stage.servers[&server])?)
}

fn meet(stage: &Stage, (client, server): Pair) -> Result<(), Failed> {
    let (client, server) = (&stage.clients[&client], &stage.servers[&server]);
    if let Some(missing) = [client, server].into_iter().find_map(|party| party.missing.as_ref()) {
        return Err(Failed::new(missing));
    }
    acquaint(&client.agent, &server.agent, client.place.name())
}

/// Nobody says anything, so that every session ends by itself; trust and bindings stay.
fn wait_for_the_end_of_sessions(stage: &Stage) -> Result<(), Failed> {
    let begun = Instant::now();
    for party in stage.clients.values().chain(stage.servers.values()).filter(|party| party.missing.is_none()) {
        loop {
            let status = party.agent.ask(&["status"])?;
            let mut peers = status["peers"].as_array().into_iter().flatten();
            if peers.all(|peer| peer["state"] != "connected") {
                break;
            }
            if begun.elapsed() > SESSION_END {
                return Err(Failed::new(format!("sessions without traffic do not end: {status}")));
            }
            std::thread::sleep(10 * LOOK);
        }
    }
    Ok(())
}

/// Kills and starts the client's agent, and asks as soon as it listens: that includes its start, its relays and a dial.
fn cold(stage: &mut Stage, pair: Pair) -> Result<Duration, Failed> {
    let client = stage.clients.get_mut(&pair.0).ok_or_else(|| Failed::new("there is no such client"))?;
    client.agent.process().kill()?;
    let begun = Instant::now();
    client.agent = stage.world.start(&client.place)?;
    client.agent.wait_for(Agent::beginning(), "started", |_| true)?;
    request(stage, pair, begun)
}

/// Asks the server for its time; returns how long after `begun` the request was there.
fn request(stage: &Stage, (client, server): Pair, begun: Instant) -> Result<Duration, Failed> {
    let (client, server) = (&stage.clients[&client], &stage.servers[&server]);
    let address = address_of(client, server.place.name())?;
    let wall = SystemTime::now();
    let earlier = begun.elapsed();
    let asked = client.place.site.host().run(move || ask(SocketAddr::new(address, 80)));
    let arrived = asked.trying("reach a host")?.trying("ask the server")?;
    Ok(earlier + arrived.duration_since(wall).unwrap_or_default())
}

/// The address that stands for a peer on the client's machine.
fn address_of(client: &Party, server: &str) -> Result<IpAddr, Failed> {
    let status = client.agent.ask(&["status"])?;
    let peer = status["peers"].as_array().into_iter().flatten().find(|peer| peer["name"] == server);
    let address = peer.and_then(|peer| peer["address"].as_str()).and_then(|address| address.parse().ok());
    address.ok_or_else(|| Failed::new(format!("the peer has no address: {status}")))
}

fn ask(server: SocketAddr) -> std::io::Result<SystemTime> {
    let mut stream = connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /stamp HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let stamp = answer.lines().last().and_then(|line| line.trim().parse::<u64>().ok());
    let stamp = stamp.ok_or_else(|| std::io::Error::other(format!("the server said {answer:?}")))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(stamp))
}

/// An agent that has just started listens for a peer once it knows the peer's ports, from the peer itself.
fn connect(server: SocketAddr) -> std::io::Result<TcpStream> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect(server) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            connected => return connected,
        }
    }
}
