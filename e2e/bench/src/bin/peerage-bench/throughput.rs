//! One stream of bytes by every way, in turns.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use peerage_agent::state::document::Path as PathMode;
use peerage_bench::alone::flavor::{Flavor, Kind as Crypto};
use peerage_bench::alone::transfer;
use peerage_bench::bulk::{self, Amount, Load};

use crate::agents::{Agent, Relay};
use crate::network::Network;
use crate::report::Report;
use crate::{Result, bare};

/// What the bytes go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    RawTcp,
    BareQuinn,
    EngineTls,
    EngineNoise,
    Direct,
    Relayed,
}

impl Way {
    const ALL: [Self; 6] =
        [Self::RawTcp, Self::BareQuinn, Self::EngineTls, Self::EngineNoise, Self::Direct, Self::Relayed];

    /// As tables and JSON name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RawTcp => "raw TCP",
            Self::BareQuinn => "bare quinn, TLS 1.3",
            Self::EngineTls => "engine's QUIC loop, TLS 1.3",
            Self::EngineNoise => "engine alone (Noise)",
            Self::Direct => "app to app, direct",
            Self::Relayed => "app to app, relayed",
        }
    }
}

/// Where the counting server listens for what comes through agents.
const BEHIND: u16 = 5201;
/// Where it listens for what comes straight.
const STRAIGHT: u16 = 5202;

struct Stage<'a> {
    network: &'a Network,
    bytes: usize,
    direct: SocketAddr,
    relayed: SocketAddr,
    processes: Vec<u32>,
}

pub fn measure(peerage: &Path, network: &Network, rounds: u32, mebibytes: u32, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Who may use it is known when the agents have made their keys; until then it only says what it is called.
    let relay = Relay::start(peerage, &network.relay, 3478, folder.path())?.info;
    bulk::serve(&network.server, SocketAddr::from((Ipv4Addr::LOCALHOST, BEHIND)))?;
    bulk::serve(&network.server, network.server.address(STRAIGHT))?;
    // A pair for each path: what is allowed to go direct does, and the other never may.
    let client = |name: &str| Agent::start(peerage, &network.client, name, &relay, &[], folder.path());
    let expose = [format!("bulk={BEHIND}")];
    let server = |name: &str| Agent::start(peerage, &network.server, name, &relay, &expose, folder.path());
    let (ann, bob, carl, dora) = (client("ann")?, server("bob")?, client("carl")?, server("dora")?);
    let relay = Relay::start_for(&[&ann, &bob, &carl, &dora], peerage, &network.relay, 3478, folder.path())?;
    ann.befriend(&bob, PathMode::Auto)?;
    carl.befriend(&dora, PathMode::RelayOnly)?;
    let (direct, relayed) = (ann.address_of(&bob, BEHIND)?, carl.address_of(&dora, BEHIND)?);
    let path = ann.wait_for_path(&bob, |path| path != "relayed")?;
    report.note(format!("app to app, direct: the path was `{path}`"));
    let processes = [&ann, &bob, &carl, &dora].map(|agent| agent.program.id());
    let processes = processes.into_iter().chain([relay.program.id(), std::process::id()]).collect();
    let stage = Stage { network, bytes: (mebibytes as usize) << 20, direct, relayed, processes };
    for round in 0..rounds as usize {
        for turn in 0..Way::ALL.len() {
            // The order turns from round to round: who comes first has the warmer or the colder processor.
            let way = Way::ALL[(round + turn) % Way::ALL.len()];
            stage.once(way, report).map_err(|error| format!("{}: {error}", way.name()))?;
        }
    }
    let path = carl.wait_for_path(&dora, |_| true)?;
    report.note(format!("direct: {}; relayed: {}", ann.examine("mtu")?, carl.examine("mtu")?));
    match path.as_str() {
        "relayed" => Ok(()),
        other => Err(format!("what should have gone by relay took the path `{other}`").into()),
    }
}

impl Stage<'_> {
    fn once(&self, way: Way, report: &mut Report) -> Result<()> {
        let before = self.processor_time()?;
        let took = match way {
            Way::RawTcp => self.tcp(self.network.server.address(STRAIGHT))?,
            Way::BareQuinn => bare::transfer(&self.network.client, &self.network.server, self.bytes)?.0,
            Way::EngineTls => self.engine(Crypto::Tls256)?,
            Way::EngineNoise => self.engine(Crypto::Noise)?,
            Way::Direct => self.tcp(self.direct)?,
            Way::Relayed => self.tcp(self.relayed)?,
        };
        let spent = self.processor_time()? - before;
        let gibibytes = self.bytes as f64 / f64::from(1 << 30);
        report.throughput(way, self.bytes as f64 * 8.0 / took.as_secs_f64() / 1e9, spent / gibibytes);
        Ok(())
    }

    fn tcp(&self, to: SocketAddr) -> Result<Duration> {
        let load = Load { to, streams: 1, amount: Amount::Bytes(self.bytes as u64), mark: Duration::ZERO };
        Ok(bulk::send(&self.network.client, load)?.took)
    }

    fn engine(&self, crypto: Crypto) -> Result<Duration> {
        let (flavor, done) = (Arc::new(Flavor::new(crypto)), Arc::new(AtomicBool::new(false)));
        let (said, address) = mpsc::channel();
        let (bytes, at) = (self.bytes, self.network.server.address(0));
        let (theirs, ended) = (Arc::clone(&flavor), Arc::clone(&done));
        let serving = self.network.server.thread(move || transfer::serve(&theirs, at, bytes, &ended, &said))?;
        let (to, from) = (address.recv()?, self.network.client.address(0));
        let sending = self.network.client.thread(move || transfer::send(&flavor, from, to, bytes, &done))?;
        let (started, _) = sending.join().map_err(|_| "the client panicked")??;
        let finished = serving.join().map_err(|_| "the server panicked")??;
        Ok(finished.duration_since(started))
    }

    /// Seconds of processor time that all processes that take part have used so far.
    fn processor_time(&self) -> Result<f64> {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let mut total = 0.0;
        for process in &self.processes {
            let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
            // The name, in parentheses, may contain anything; after it utime and stime are the 12th and 13th word.
            let after = stat.rsplit_once(") ").ok_or("the kernel does not say")?.1;
            let words: Vec<&str> = after.split(' ').collect();
            let word = |n: usize| -> Result<f64> { Ok(words.get(n).ok_or("the kernel does not say")?.parse()?) };
            total += (word(11)? + word(12)?) / ticks;
        }
        Ok(total)
    }
}
