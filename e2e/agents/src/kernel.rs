//! The stage of the tests on the real kernel: relays with names, and any number of agents, each in a network of its
//! own. What `World` is to the emulated internet, with the NATs of Linux instead of ours.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use peerage_netlab::kernel::{KernelLab, Network, Site, SiteConfig};
use peerage_netlab::{Access, LinkConfig};

use crate::agent::Agent;
use crate::machine::{Machine, Running};
use crate::programs::Programs;
use crate::world::{first_line, run_relay, start_origin};
use peerage_suite::failed::{Failed, Trying};

/// The relays' UDP port, and the TCP port that networks let through which block UDP.
const RELAY_PORT: u16 = 4478;
const TLS_PORT: u16 = 443;
/// Where HTTP proxies listen, as usual.
const PROXY_PORT: u16 = 3128;

/// Relays, and machines wherever they are put. Dropping it ends everything.
#[derive(Debug)]
pub struct KernelWorld {
    relays: Vec<KernelRelay>,
    programs: Programs,
    /// The internet; it outlives what runs in it.
    pub lab: KernelLab,
    home: tempfile::TempDir,
}

/// A relay's process, and how agents name it.
#[derive(Debug)]
struct KernelRelay {
    machine: Machine,
    site: Site,
    name: String,
    info: String,
    running: Running,
}

/// A machine in a network, with what belongs there; its agent is started apart.
#[derive(Debug)]
pub struct Place {
    /// The computer.
    pub machine: Machine,
    /// Where it is.
    pub site: Site,
    name: String,
    words: Vec<String>,
    proxy: Option<String>,
    _running: Vec<Running>,
}

impl Place {
    /// What its agent is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl KernelWorld {
    /// An internet with relays on its near side, servers on its far one, and `between` on the way from side to side.
    ///
    /// # Errors
    /// The lab cannot be made, or a relay does not start.
    pub fn with_sides(programs: &Programs, relays: usize, between: Duration) -> Result<Self, Failed> {
        let lab = KernelLab::with_sides(LinkConfig::with_delay(between)).trying("make an internet")?;
        Self::on(lab, programs, relays, &Access::default())
    }

    /// An internet with relays; their links take what `access` says.
    ///
    /// # Errors
    /// The lab cannot be made, or a relay does not start.
    pub fn new(programs: &Programs, relays: usize, access: &Access) -> Result<Self, Failed> {
        Self::on(KernelLab::new().trying("make an internet")?, programs, relays, access)
    }

    fn on(mut lab: KernelLab, programs: &Programs, relays: usize, access: &Access) -> Result<Self, Failed> {
        let home = tempfile::tempdir().trying("make a folder")?;
        let mut sites = Vec::new();
        let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for number in 1..=relays {
            let name = format!("relay-{number}");
            let config = SiteConfig::server(2).with_access(access.clone());
            let site = lab.site(&name, &config).trying("make a relay's network")?;
            // A name that is never anybody's (RFC 6761), with an address of each family as relays have.
            for address in [lab.public(&site).to_string(), site.ipv6().to_string()] {
                writeln!(hosts, "{address} {name}.test").expect("a String takes everything");
            }
            sites.push((name, site));
        }
        std::fs::write(home.path().join("hosts"), hosts).trying("write the hosts file")?;
        let mut started = Vec::new();
        for (name, site) in sites {
            lab.allow_low_ports(site.host()).trying("prepare a relay")?;
            let machine = Machine::new(site.host().clone(), home.path(), programs)?;
            let (running, info) = run_relay(&machine, &relay_words(&name, lab.public(&site)))?;
            started.push(KernelRelay { machine, site, name, info, running });
        }
        Ok(Self { relays: started, programs: programs.clone(), lab, home })
    }

    /// A machine whose agent will ask others.
    ///
    /// # Errors
    /// Its network cannot be made.
    pub fn client(&mut self, name: &str, config: &SiteConfig) -> Result<Place, Failed> {
        let site = self.lab.site(name, config).trying("make a network")?;
        let hosts = self.home.path().join("hosts");
        self.lab.put_file(site.host(), &hosts, "/etc/hosts".as_ref()).trying("give a host the relays' names")?;
        let mut running = Vec::new();
        let mut proxy = None;
        if let (Network::HttpProxy, Some(gateway)) = (site.network(), site.gateway()) {
            let address = format!("{}:{PROXY_PORT}", site.gateway_address());
            self.lab.put_file(gateway, &hosts, "/etc/hosts".as_ref()).trying("give a proxy the relays' names")?;
            let gateway = Machine::new(gateway.clone(), self.home.path(), &self.programs)?;
            let mut command = Command::new(&self.programs.origin);
            command.args(["proxy", &address]);
            let mut process = gateway.start(command, "proxy")?;
            first_line(&mut process)?;
            running.push(process);
            proxy = Some(format!("http://{address}"));
        }
        let machine = Machine::new(site.host().clone(), self.home.path(), &self.programs)?;
        Ok(Place { machine, site, name: name.to_owned(), words: Vec::new(), proxy, _running: running })
    }

    /// A machine with an HTTP server that its agent will expose as port 80.
    ///
    /// # Errors
    /// Its network cannot be made, or the server does not start.
    pub fn server(&mut self, name: &str, config: &SiteConfig) -> Result<Place, Failed> {
        let mut place = self.client(name, config)?;
        place._running.push(start_origin(&place.machine)?);
        place.words = ["--expose", "mcp=80:8080"].map(str::to_owned).to_vec();
        Ok(place)
    }

    /// Starts the agent of a machine; it may not have found a relay yet.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, place: &Place) -> Result<Agent, Failed> {
        let mut words = vec!["--hostname", &place.name];
        words.extend(self.relays.iter().flat_map(|relay| ["--relay", relay.info.as_str()]));
        words.extend(place.words.iter().map(String::as_str));
        Agent::start_with(&place.machine, &words, |command| {
            if let Some(proxy) = &place.proxy {
                command.env("HTTPS_PROXY", proxy);
            }
        })
    }

    /// Starts the agent of a machine, and waits until a relay has taken it in.
    ///
    /// # Errors
    /// It cannot be started, or no relay takes it in.
    pub fn start_bound(&self, place: &Place) -> Result<Agent, Failed> {
        let agent = self.start(place)?;
        agent.wait_for(Agent::beginning(), "relay", |event| event["up"] == true)?;
        Ok(agent)
    }

    /// Kills a relay as `kill -9` does.
    ///
    /// # Errors
    /// The kernel refuses, or there is no such relay.
    pub fn kill_relay(&mut self, number: usize) -> Result<(), Failed> {
        self.relay_mut(number)?.running.kill()
    }

    /// Starts a killed relay again, with the key that it had.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_relay(&mut self, number: usize) -> Result<(), Failed> {
        let relay = self.relays.get_mut(number).ok_or_else(|| Failed::new(format!("there is no relay {number}")))?;
        let words = relay_words(&relay.name, self.lab.public(&relay.site));
        (relay.running, relay.info) = run_relay(&relay.machine, &words)?;
        Ok(())
    }

    /// Where a relay is; the first is number 0.
    #[must_use]
    pub fn relay_site(&self, number: usize) -> Option<&Site> {
        self.relays.get(number).map(|relay| &relay.site)
    }

    /// How agents name a relay.
    #[must_use]
    pub fn relay_info(&self, number: usize) -> Option<&str> {
        self.relays.get(number).map(|relay| relay.info.as_str())
    }

    /// How many relays there are.
    #[must_use]
    pub fn relays(&self) -> usize {
        self.relays.len()
    }

    /// Bytes from one place to the other and back, past all relays.
    ///
    /// # Errors
    /// The lab does not say.
    pub fn direct_bytes(&self, a: &Place, b: &Place) -> Result<[u64; 2], Failed> {
        let bytes = |from: &Place, to: &Place| self.lab.bytes(&from.site, &to.site).trying("count packets");
        Ok([bytes(a, b)?, bytes(b, a)?])
    }

    fn relay_mut(&mut self, number: usize) -> Result<&mut KernelRelay, Failed> {
        self.relays.get_mut(number).ok_or_else(|| Failed::new(format!("there is no relay {number}")))
    }
}

/// A relay at every address of its machine. The machine has two of IPv4, the second one up from the first.
fn relay_words(name: &str, first: Ipv4Addr) -> Vec<String> {
    let second = Ipv4Addr::from(u32::from(first) + 1);
    let (udp, tls) = (format!("[::]:{RELAY_PORT}"), format!("[::]:{TLS_PORT}"));
    let place = format!("{name}.test:{RELAY_PORT}/{TLS_PORT}");
    let stun = format!("{first},{second}");
    let words = ["relay", "--open", "--listen", &udp, "--tls-listen", &tls, "--advertise", &place];
    let more = ["--key-file", "relay.key", "--stun-address", &stun];
    words.into_iter().chain(more).map(str::to_owned).collect()
}

/// Lets the agent at `client` ask the one at `server` for trust, and returns once they are connected and the client knows
/// what it may open.
///
/// # Errors
/// A step fails.
pub fn acquaint(client: &Agent, server: &Agent, client_name: &str) -> Result<(), Failed> {
    acquaint_on(client, server, client_name, &[])
}

/// The same, with these words in both consents.
///
/// # Errors
/// A step fails.
pub fn acquaint_on(client: &Agent, server: &Agent, client_name: &str, terms: &[&str]) -> Result<(), Failed> {
    let [client_before, server_before] = [client.mark(), server.mark()];
    let invited = server.ask(&["invite", "--expires", "10m"])?;
    let ticket = invited["ticket"].as_str().ok_or_else(|| Failed::new("no ticket in the answer"))?;
    client.ask(&[&["handshake", ticket, "to read reports"], terms].concat())?;
    server.wait_for(server_before, "request", |event| event["name"] == client_name)?;
    server.ask(&[&["approve", client_name], terms].concat())?;
    client.wait_for(client_before, "connected", |_| true)?;
    client.wait_for(client_before, "ports", |event| !event["ports"][0].is_null())?;
    Ok(())
}

/// The path of an agent to this peer, in its own words; empty if there is none.
///
/// # Errors
/// The agent does not answer.
pub fn path_to(agent: &Agent, peer: &str) -> Result<String, Failed> {
    let status = agent.ask(&["status"])?;
    let found = status["peers"].as_array().into_iter().flatten().find(|known| known["name"] == peer);
    Ok(found.and_then(|known| known["path"].as_str()).unwrap_or_default().to_owned())
}

/// Fetches a page by hostname; returns the time to its first byte, as curl measures it.
///
/// # Errors
/// It does not come.
pub fn fetch(client: &Agent, server: &str) -> Result<Duration, Failed> {
    let answer = client.curl(&["-w", "%{stderr}%{time_starttransfer}", &format!("http://{server}/")])?;
    if !answer.status.success() || answer.stdout != "hello\n" {
        return Err(Failed::new(format!("curl: {}", answer.said())));
    }
    let seconds = answer.stderr.trim().parse().map_err(|_| Failed::new(format!("curl said {:?}", answer.stderr)))?;
    Ok(Duration::from_secs_f64(seconds))
}
