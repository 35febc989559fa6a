//! What the ways to a relay are worth beside each other: by UDP, by TLS on TCP port 443 where UDP is blocked, and by TLS
//! through an HTTP proxy. One server, one relay, a client in a network of each kind; the same downloads and the same small
//! requests, in turns. The path is relayed in all of them, also where a direct one could be had.
//!
//! No link of this lab takes time or has a rate, so what is measured is what the ways themselves cost.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_netlab::Access;
use peerage_netlab::kernel::{Network, SiteConfig};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::kernel::{KernelWorld, Place, acquaint_on, fetch, path_to};
use crate::programs::Programs;
use peerage_suite::failed::Failed;

const SERVER: &str = "server";
/// No direct path, so that all three go by the relay.
const TERMS: [&str; 2] = ["--path", "relay-only"];
/// Small requests of each way in each round.
const REQUESTS: usize = 10;

/// By what a client reaches its relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// UDP.
    Udp,
    /// TLS on TCP port 443.
    Tls,
    /// The same through an HTTP proxy.
    Proxy,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Udp, Self::Tls, Self::Proxy];

    /// As tables and JSON name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "relay by UDP",
            Self::Tls => "relay by TLS on TCP 443",
            Self::Proxy => "relay by TLS, HTTP proxy",
        }
    }

    /// The network in which it is the only one.
    const fn network(self) -> Network {
        match self {
            Self::Udp => Network::None,
            Self::Tls => Network::UdpBlocked,
            Self::Proxy => Network::HttpProxy,
        }
    }
}

/// What was measured of one way.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Of each download, in Gb/s.
    pub gbit_per_s: Vec<f64>,
    /// Of each small request on a session that is up: from curl's start to the first byte of the answer.
    pub request: Vec<Duration>,
    /// Of the first request after the session came up.
    pub first_byte: Duration,
}

impl Row {
    /// As one line of `--json`.
    #[must_use]
    pub fn json(&self, way: Way) -> Value {
        let millis = |time: &Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
        json!({
            "test": "fallback", "way": way.name(), "gbit_per_s": self.gbit_per_s,
            "request_ms": self.request.iter().map(millis).collect::<Vec<_>>(),
            "first_byte_ms": millis(&self.first_byte),
        })
    }
}

/// Measures all ways in this many rounds, with downloads of this size.
///
/// # Errors
/// The lab cannot be made, nobody is connected, or a download is not whole.
pub fn run(programs: &Programs, rounds: usize, mib: u64) -> Result<BTreeMap<Way, Row>, Failed> {
    let mut world = KernelWorld::new(programs, 1, &Access::default())?;
    let server = world.server(SERVER, &SiteConfig::new(Network::None))?;
    let server = world.start_bound(&server)?;
    let mut clients = BTreeMap::new();
    let mut rows = BTreeMap::new();
    for way in Way::ALL {
        let place = world.client(&format!("client-{}", way.network()), &SiteConfig::new(way.network()))?;
        let agent = world.start_bound(&place)?;
        acquaint_on(&agent, &server, place.name(), &TERMS)?;
        rows.insert(way, Row { first_byte: fetch(&agent, SERVER)?, ..Row::default() });
        clients.insert(way, (place, agent));
    }
    for round in 0..rounds {
        for turn in 0..Way::ALL.len() {
            // Who comes first has the warmer or the colder processor.
            let way = Way::ALL[(round + turn) % Way::ALL.len()];
            let row = rows.entry(way).or_default();
            measure(&clients[&way], mib, row)?;
        }
    }
    Ok(rows)
}

fn measure((place, agent): &(Place, Agent), mib: u64, row: &mut Row) -> Result<(), Failed> {
    let bytes = mib << 20;
    for _ in 0..REQUESTS {
        row.request.push(fetch(agent, SERVER)?);
    }
    let url = format!("http://{SERVER}/bytes/{bytes}");
    let answer =
        agent.curl(&["-o", "/dev/null", "-w", "%{size_download} %{time_starttransfer} %{time_total}", &url])?;
    let figures: Vec<f64> = answer.stdout.split(' ').filter_map(|word| word.parse().ok()).collect();
    match (answer.status.success(), figures.as_slice()) {
        (true, [size, begun, ended]) if *size == bytes as f64 && ended > begun => {
            row.gbit_per_s.push(size * 8.0 / (ended - begun) / 1e9);
        }
        _ => return Err(Failed::new(format!("{}: curl: {}", place.name(), answer.said()))),
    }
    match path_to(agent, SERVER)?.as_str() {
        "relayed" => Ok(()),
        other => Err(Failed::new(format!("{}: what should go by relay took the path `{other}`", place.name()))),
    }
}
