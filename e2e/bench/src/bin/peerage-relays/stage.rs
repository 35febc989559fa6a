//! A relay as a process, on loopback of a namespace of its own, and what can be seen of it from outside.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use peerage_bench::agents::Relay;
use peerage_bench::network::Place;
use peerage_bench::people::Person;
use peerage_bench::process::{self, Resident};
use peerage_bench::{Error, Result};
use peerage_engine::relay::{ClientConfig, Role};
use peerage_model::relay::RelayInfo;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::crowd::Crowd;

/// Clients of one authority: as many as a relay takes.
pub const PER_AUTHORITY: u32 = 10_000;
/// Clients of one /24 where they are spread over networks.
const PER_NETWORK: u32 = 100;
/// Clients at one socket, each with an address of its own.
const PER_SOCKET: u32 = 1_000;
/// Clients that are being bound at one time, where they are not to be a storm.
const AT_ONCE: usize = 200;
/// MiB that the relay may count for them, 3 KiB each: the default is for 90,000.
const MEMORY: u32 = 512;
/// How long a crowd may take, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(600);

/// Everything a relay is started with, so that it can be started again as the same one.
pub struct Stage {
    peerage: PathBuf,
    place: Place,
    folder: TempDir,
    people: Vec<Person>,
    workers: u16,
    port: u16,
    metrics: SocketAddr,
}

/// A relay that runs.
pub struct Running {
    relay: Relay,
    pub info: RelayInfo,
    metrics: SocketAddr,
}

/// Where the clients of a crowd are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// All at one address, as an office behind its NAT.
    OneAddress,
    /// A hundred in each network.
    Networks,
}

impl Stage {
    /// A relay for this many clients; it lists their authorities. Called in the place itself.
    pub fn new(peerage: &Path, place: &Place, clients: u32, workers: u16) -> Result<Self> {
        let people = (0..clients.div_ceil(PER_AUTHORITY).max(1)).map(|_| Person::new("crowd")).collect();
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let (peerage, place, folder) = (peerage.to_owned(), place.clone(), tempfile::tempdir()?);
        Ok(Self { peerage, place, folder, people, workers, port: free_port()?, metrics })
    }

    /// Starts it, or starts it again.
    pub fn start(&self) -> Result<Running> {
        let mut options: Vec<String> = Vec::new();
        for person in &self.people {
            options.extend(["--allow-authority".into(), person.id.authority.to_string()]);
        }
        options.extend(["--workers".into(), self.workers.to_string(), "--metrics".into(), self.metrics.to_string()]);
        options.extend(["--tls-streams".into(), PER_AUTHORITY.to_string(), "--memory".into(), MEMORY.to_string()]);
        let relay = Relay::start_with(&self.peerage, &self.place, self.port, self.folder.path(), &options)?;
        let info = relay.info.parse().map_err(|error| format!("{error:?}"))?;
        Ok(Running { relay, info, metrics: self.metrics })
    }

    /// Another agent: the key of its run, and what vouches for it.
    pub fn member(&self, number: u32) -> (peerage_model::AgreementSecret, Vec<u8>) {
        self.people[usize::try_from(number / PER_AUTHORITY).unwrap_or(0)].colleague(&format!("a{number}")).instance()
    }

    /// What the client of that number is made of.
    pub fn client(&self, relay: &Running, number: u32) -> ClientConfig {
        let (secret, credential) = self.member(number);
        ClientConfig::new(relay.info.key, Role::Bind { secret, credential })
    }

    /// Adds clients to a crowd, some at a time, until all are bound.
    pub fn bind(
        &self,
        relay: &Running,
        crowd: &mut Crowd,
        numbers: std::ops::Range<u32>,
        spread: Spread,
    ) -> Result<()> {
        let (started, before) = (Instant::now(), crowd.bound().len());
        let (mut next, all) = (numbers.start, before + numbers.len());
        let mut joined = before;
        let mut shared = None;
        while crowd.bound().len() < all {
            while joined < all && joined - crowd.bound().len() < AT_ONCE {
                let (socket, from) = match spread {
                    Spread::OneAddress => (crowd.open(Ipv4Addr::LOCALHOST)?, Ipv4Addr::LOCALHOST),
                    Spread::Networks => {
                        if (next - numbers.start).is_multiple_of(PER_SOCKET) {
                            shared = None;
                        }
                        let socket = shared.map_or_else(|| crowd.open(Ipv4Addr::UNSPECIFIED), Ok)?;
                        shared = Some(socket);
                        (socket, address(next))
                    }
                };
                crowd.join(self.client(relay, next), socket, from)?;
                (next, joined) = (next + 1, joined + 1);
            }
            crowd.turn(Duration::from_millis(50), &mut |_| {})?;
            if started.elapsed() > PATIENCE {
                return Err(format!("{} of {all} clients are bound after {PATIENCE:?}", crowd.bound().len()).into());
            }
        }
        Ok(())
    }
}

impl Running {
    /// Where it takes datagrams.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.info.port))
    }

    /// Processor time it has used.
    pub fn processor(&self) -> Result<Duration> {
        process::processor_time(self.relay.program.id())
    }

    /// Memory it holds.
    pub fn resident(&self) -> Result<Resident> {
        process::resident(self.relay.program.id())
    }

    /// A number of its `/metrics`.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(self.metrics)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: relay\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.ok_or_else(|| Error::from(format!("the relay does not tell {name}")))?.trim().parse()?)
    }

    /// Sends it a signal, as a service manager does.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let process = i32::try_from(self.relay.program.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(process.ok_or("a process has a number")?, signal)?)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.relay.program.has_ended()
    }
}

/// The n-th of many addresses of this machine, a hundred in each /24.
pub fn address(number: u32) -> Ipv4Addr {
    let (network, host) = (number / PER_NETWORK, number % PER_NETWORK);
    let [_, _, high, low] = network.to_be_bytes();
    Ipv4Addr::new(127, high + 1, low, u8::try_from(host).unwrap_or(0) + 1)
}

/// A port that nobody uses.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
