//! The stage of every test: relays in public, a client and a server behind NATs of their own.

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use peerage_netlab::{HostConfig, Lab, LinkConfig, NatKind};

use crate::agent::Agent;
use crate::machine::{Machine, Running};
use crate::programs::Programs;
use peerage_suite::failed::{Failed, Trying};

/// What the server's agent is called.
pub const SERVER: &str = "db-tool-server";
const CLIENT: &str = "reporter";

/// Addresses for documentation (RFC 5737), so no real machine is meant.
const RELAYS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];
const RELAY_PORT: u16 = 4478;
/// Of each machine's link, each way: round trips between two machines take four times as long, as within a continent.
const DELAY: Duration = Duration::from_millis(5);
/// Where the server's HTTP server listens, which its agent exposes as port 80.
const ORIGIN: &str = "127.0.0.1:8080";

/// What stands between an agent and the internet, and what to call it.
#[derive(Clone, Copy, Debug)]
pub struct Nats {
    /// Before the client.
    pub client: NatKind,
    /// Before the server.
    pub server: NatKind,
}

impl Nats {
    /// Both behind what most homes have.
    #[must_use]
    pub const fn home_routers() -> Self {
        Self { client: NatKind::home_router(), server: NatKind::home_router() }
    }
}

/// Relays, and two machines that have no agent yet. Dropping it ends everything.
#[derive(Debug)]
pub struct World {
    relays: Vec<Relay>,
    /// Where programs ask for the server by name.
    pub client: Machine,
    /// Where the HTTP server runs.
    pub server: Machine,
    _origin: Running,
    /// The internet; it outlives what runs in it.
    pub lab: Lab,
    _home: tempfile::TempDir,
}

/// A relay's process and how agents name it.
#[derive(Debug)]
struct Relay {
    machine: Machine,
    info: String,
    running: Running,
}

impl World {
    /// Builds it, with one or two relays.
    ///
    /// # Errors
    /// The lab cannot be made, or a program does not start.
    pub fn new(programs: &Programs, nats: Nats, relays: usize) -> Result<Self, Failed> {
        let home = tempfile::tempdir().trying("make a folder")?;
        let mut lab = Lab::new().trying("make an internet")?;
        let link = LinkConfig::with_delay(DELAY);
        let mut machine = |name: &str, address: Ipv4Addr, nat| {
            let host =
                lab.host(name, HostConfig::behind(address, nat).with_link(link.clone())).trying("make a host")?;
            Machine::new(host, home.path(), programs)
        };
        let mut started = Vec::new();
        for (name, address) in ["relay-1", "relay-2"].into_iter().zip(RELAYS).take(relays) {
            started.push(Relay::start(machine(name, address, NatKind::none())?, address)?);
        }
        let client = machine(CLIENT, inside(nats.client, 20), nats.client)?;
        let server = machine(SERVER, inside(nats.server, 21), nats.server)?;
        let origin = start_origin(&server)?;
        Ok(Self { relays: started, client, server, _origin: origin, lab, _home: home })
    }

    /// Both agents, trusting each other and connected.
    ///
    /// # Errors
    /// A step fails.
    pub fn acquainted(&self) -> Result<(Agent, Agent), Failed> {
        let (client, server) = (self.start_client()?, self.start_server()?);
        let invited = server.ask(&["invite", "--expires", "10m"])?;
        let ticket = invited["ticket"].as_str().ok_or_else(|| Failed::new("no ticket in the answer"))?;
        client.ask(&["handshake", ticket, "to read reports"])?;
        server.wait_for(Agent::beginning(), "request", |event| event["name"] == CLIENT)?;
        server.ask(&["approve", CLIENT])?;
        client.wait_for(Agent::beginning(), "connected", |_| true)?;
        client.wait_for(Agent::beginning(), "ports", |event| !event["ports"][0].is_null())?;
        Ok((client, server))
    }

    /// The client's agent, once a relay has taken it in.
    ///
    /// # Errors
    /// It does not start, or no relay answers.
    pub fn start_client(&self) -> Result<Agent, Failed> {
        self.start_agent(&self.client, &["--hostname", CLIENT])
    }

    /// The server's agent, once a relay has taken it in.
    ///
    /// # Errors
    /// It does not start, or no relay answers.
    pub fn start_server(&self) -> Result<Agent, Failed> {
        self.start_agent(&self.server, &["--hostname", SERVER, "--expose", "mcp=80:8080"])
    }

    /// Kills every relay as `kill -9` does.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill_relays(&mut self) -> Result<(), Failed> {
        self.relays.iter_mut().try_for_each(|relay| relay.running.kill())
    }

    /// Starts the relays again, where they were and with the keys that they had.
    ///
    /// # Errors
    /// They do not start, or have other keys.
    pub fn restart_relays(&mut self) -> Result<(), Failed> {
        for relay in &mut self.relays {
            let (_, listen) = relay.info.split_once('@').expect("it said KEY@HOST:PORT");
            let (running, info) = run_relay(&relay.machine, &relay_words(listen))?;
            if info != relay.info {
                return Err(Failed::new(format!("the relay was {} and came back as {info}", relay.info)));
            }
            relay.running = running;
        }
        Ok(())
    }

    /// Where the first relay runs, with a public address.
    #[must_use]
    pub fn relay_machine(&self) -> &Machine {
        &self.relays[0].machine
    }

    /// How agents name the first relay.
    #[must_use]
    pub fn relay(&self) -> &str {
        &self.relays[0].info
    }

    /// The process of the first relay.
    #[must_use]
    pub fn relay_process(&self) -> u32 {
        self.relays[0].running.id()
    }

    /// Bytes on the wire from the server's machine to the client's, past all relays.
    #[must_use]
    pub fn direct_bytes(&self) -> u64 {
        self.lab.traffic(self.server.host(), self.client.host()).bytes
    }

    /// Bytes on the wire from the client's machine to the server's, past all relays.
    #[must_use]
    pub fn direct_bytes_back(&self) -> u64 {
        self.lab.traffic(self.client.host(), self.server.host()).bytes
    }

    /// Bytes on the wire from relays to the client's machine.
    #[must_use]
    pub fn relayed_bytes(&self) -> u64 {
        self.relays.iter().map(|relay| self.lab.traffic(relay.machine.host(), self.client.host()).bytes).sum()
    }

    /// Stands between the two machines, or steps aside; relays stay reachable.
    pub fn block_direct(&self, blocked: bool) {
        self.lab.block_direct(self.client.host(), self.server.host(), blocked);
    }

    fn start_agent(&self, machine: &Machine, words: &[&str]) -> Result<Agent, Failed> {
        let relays = self.relays.iter().flat_map(|relay| ["--relay", &relay.info]);
        let words: Vec<&str> = words.iter().copied().chain(relays).collect();
        let agent = Agent::start(machine, &words)?;
        agent.wait_for(Agent::beginning(), "relay", |event| event["up"] == true)?;
        Ok(agent)
    }
}

impl Relay {
    fn start(machine: Machine, address: Ipv4Addr) -> Result<Self, Failed> {
        let listen = format!("{address}:{RELAY_PORT}");
        let (running, info) = run_relay(&machine, &relay_words(&listen))?;
        if info.ends_with(&format!("@{listen}")) {
            return Ok(Self { machine, info, running });
        }
        Err(Failed::new(format!("the relay said {info:?}\n{}", machine.log("relay"))))
    }
}

fn relay_words(listen: &str) -> Vec<String> {
    ["relay", "--open", "--listen", listen, "--key-file", "laboratory.key"].map(str::to_owned).to_vec()
}

/// Starts a relay and waits until it says how agents name it.
pub(crate) fn run_relay(machine: &Machine, words: &[String]) -> Result<(Running, String), Failed> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut running = machine.start(machine.peerage(&words), "relay")?;
    let info = first_line(&mut running)?;
    if info.contains('@') {
        return Ok((running, info));
    }
    Err(Failed::new(format!("the relay said {info:?}\n{}", machine.log("relay"))))
}

pub(crate) fn start_origin(machine: &Machine) -> Result<Running, Failed> {
    let mut command = Command::new(&machine.programs().origin);
    command.args(["serve", ORIGIN]);
    let mut running = machine.start(command, "origin")?;
    let said = first_line(&mut running)?;
    if said.contains(ORIGIN) { Ok(running) } else { Err(Failed::new(format!("the HTTP server said {said:?}"))) }
}

pub(crate) fn first_line(running: &mut Running) -> Result<String, Failed> {
    let mut line = String::new();
    BufReader::new(running.stdout()).read_line(&mut line).trying("read a program's first line")?;
    Ok(line.trim().to_owned())
}

/// An address behind a NAT; without one, a public address that ends like it.
const fn inside(nat: NatKind, last: u8) -> Ipv4Addr {
    match nat {
        NatKind::None => Ipv4Addr::new(198, 51, 100, last),
        NatKind::Translating(_) => Ipv4Addr::new(10, 0, last, 2),
    }
}
