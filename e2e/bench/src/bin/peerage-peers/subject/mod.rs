//! What is compared. A newcomer is a file beside this one that implements [`Subject`], and a line in [`all`].
//!
//! The programs at both ends are always the same and know nothing of any of this: they use plain TCP, and what lies
//! between them is a matter of the address that the client's side is told to connect to.

mod iroh;
mod nebula;
mod peerage;
mod rathole;
mod raw_tcp;
mod tailscale;
mod tls;
mod unavailable;
mod wireguard;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use peerage_bench::Result;
use peerage_bench::network::{Network, Program};
use peerage_bench::wait::until;

use crate::cache::Cache;

/// Everything that is compared, in the order of tables.
pub fn all() -> Vec<Box<dyn Subject>> {
    let mut all: Vec<Box<dyn Subject>> = vec![
        Box::new(raw_tcp::RawTcp),
        Box::new(tls::Tls),
        Box::new(peerage::Peerage),
        Box::new(iroh::Iroh),
        Box::new(wireguard::WireGuard),
        Box::new(nebula::Nebula),
        Box::new(tailscale::Tailscale),
        Box::new(rathole::Rathole),
    ];
    all.extend(unavailable::all());
    all
}

/// One way for a program here to reach a program there.
pub trait Subject {
    /// As tables and JSON name it.
    fn name(&self) -> &'static str;

    /// Gets it as its users do, into the cache; nothing where it is there already, or part of this program. Called while
    /// the network is the machine's own.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn install(&self, cache: &Cache) -> Result<()>;

    /// Starts both sides, and what they need in between. It need not wait until they have found each other.
    ///
    /// # Errors
    /// Why it cannot run, or not by this route.
    fn start(&self, stage: &Stage<'_>, route: Route) -> Result<Box<dyn Running>>;
}

/// A subject that runs. Dropping it ends its processes.
pub trait Running {
    /// Where a program of the client's side reaches this service of the server's side.
    fn address(&self, service: Service) -> SocketAddr;

    /// Its processes on the client's side.
    fn client(&self) -> Vec<u32>;

    /// Its processes elsewhere.
    fn others(&self) -> Vec<u32>;

    /// Ends its processes on the client's side and starts them anew, without waiting for more than is needed to tell
    /// them what to do.
    ///
    /// # Errors
    /// They do not start.
    fn restart_client(&mut self) -> Result<()>;

    /// Waits until data takes the route that was asked for.
    ///
    /// # Errors
    /// It does not.
    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

/// How the two sides may reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// By the link that they have in common.
    Direct,
    /// By way of the third place only.
    Relayed,
}

/// What the server's side offers, on all addresses of its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Takes bytes and says how many came.
    Bulk,
    /// Answers small HTTP requests.
    Web,
}

impl Route {
    /// For reasons.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        }
    }
}

impl Service {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bulk, Self::Web];

    /// Where it listens.
    pub const fn port(self) -> u16 {
        match self {
            Self::Bulk => 5201,
            Self::Web => 5280,
        }
    }
}

/// Where a subject is to run.
pub struct Stage<'a> {
    /// The places.
    pub network: &'a Network,
    /// Where installed programs are.
    pub cache: &'a Cache,
    /// The `peerage` command.
    pub peerage: &'a Path,
    /// This program, which is also the helpers of some subjects.
    pub itself: &'a Path,
    /// For the subject's files; of this start alone.
    pub folder: PathBuf,
}

impl Stage<'_> {
    /// `LISTEN=TO` for both services, as our helpers take it: each listens `from` that far above the service's port and
    /// goes on `to` that far above it.
    pub fn forwards(
        listen: impl Fn(u16) -> SocketAddr,
        from: u16,
        to: impl Fn(u16) -> SocketAddr,
        on: u16,
    ) -> [String; 2] {
        Service::ALL.map(|service| format!("{}={}", listen(service.port() + from), to(service.port() + on)))
    }

    /// `LISTEN=PORT` for both services: where a subject's client side listens for a port of the other side, so far above it.
    pub fn listens(&self, above: u16) -> [String; 2] {
        let here = self.network.client.loopback();
        Service::ALL.map(|service| format!("{}={}", here.address(service.port() + above), service.port()))
    }

    /// A file of this start.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Whether a program may make a network device of its own here.
fn can_make_devices() -> Result<()> {
    let opened = fs::File::options().read(true).write(true).open("/dev/net/tun");
    opened
        .map(drop)
        .map_err(|error| format!("it needs a network device, and /dev/net/tun cannot be opened: {error}").into())
}

/// What a program has written down of itself, once there is a whole line of it.
fn first_line(program: &mut Program, log: &Path) -> Result<String> {
    until("its first line", || {
        let said = fs::read_to_string(log).unwrap_or_default();
        if let Some((line, _)) = said.split_once('\n') {
            return Ok(Some(line.trim().to_owned()));
        }
        match program.has_ended() {
            true => Err(format!("it ended: {}", said.trim()).into()),
            false => Ok(None),
        }
    })
}
