//! Where the demo plays: hosts, NATs, directories, and their end.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peerage_netlab::{Host, HostConfig, Lab, LinkConfig, NatKind, Possibility, can_be_direct};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::machine::Machine;
use crate::options::{NatPreset, Options};
use crate::problem::Problem;

/// Addresses for documentation (RFC 5737), so no real machine is meant.
pub(crate) const RELAYS: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];
const LAPTOP: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 7, 5);
/// What hosts without NAT get; of different networks, so that no path between them is taken for a local one.
const PUBLIC: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 20), Ipv4Addr::new(198, 51, 100, 20)];

/// Everything that must end with the demo, also when it is interrupted.
#[derive(Debug)]
pub(crate) struct Teardown {
    home: PathBuf,
    keep: bool,
    /// Processes that run, each the leader of its group.
    groups: Mutex<BTreeSet<i32>>,
}

impl Teardown {
    /// Makes the directory for everything that runs; with `keep` it stays.
    pub(crate) fn new(keep: bool) -> Result<Self, Problem> {
        Ok(Self { home: private_directory()?, keep, groups: Mutex::default() })
    }

    /// A process has started.
    pub(crate) fn started(&self, process: u32) {
        if let Ok(process) = i32::try_from(process) {
            self.groups().insert(process);
        }
    }

    /// A process has been waited for, so its number may soon be another's.
    pub(crate) fn ended(&self, process: u32) {
        if let Ok(process) = i32::try_from(process) {
            self.groups().remove(&process);
        }
    }

    /// Ends all processes, and removes the files unless they shall be kept.
    pub(crate) fn now(&self) {
        for group in std::mem::take(&mut *self.groups()) {
            if let Some(group) = Pid::from_raw(group) {
                // It may have ended by itself.
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        if !self.keep {
            // What cannot be removed lies in a directory for temporary files.
            let _ = std::fs::remove_dir_all(&self.home);
        }
    }

    /// Where state and logs are.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    fn groups(&self) -> std::sync::MutexGuard<'_, BTreeSet<i32>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The machines and the internet between them. Dropping it takes everything down.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) relays: [Machine; 2],
    /// Where curl runs.
    pub(crate) laptop: Machine,
    /// Where `db-tool-server` runs.
    pub(crate) server: Machine,
    /// Whether the two NATs leave a direct way.
    pub(crate) possibility: Possibility,
    pub(crate) teardown: Arc<Teardown>,
    /// Last: what runs ends before the world it runs in.
    lab: Lab,
}

impl Stage {
    pub(crate) fn build(options: &Options, teardown: &Arc<Teardown>) -> Result<Self, Problem> {
        let mut lab = Lab::new()?;
        let rtt = Duration::from_millis(options.rtt.into());
        // Each packet passes both access links once, and by relay the relay's link twice besides.
        let (access, relay) = (LinkConfig::with_delay(rtt / 4), LinkConfig::with_delay(rtt / 8));
        let mut host = |name: &str, address, nat, link: &LinkConfig| -> Result<Machine, Problem> {
            let host = lab.host(name, HostConfig::behind(address, nat).with_link(link.clone()))?;
            give_up_privileges(&host)?;
            Machine::new(name, host, teardown)
        };
        let relays = [
            host("relay-1", RELAYS[0], NatKind::none(), &relay)?,
            host("relay-2", RELAYS[1], NatKind::none(), &relay)?,
        ];
        let laptop = host("laptop", inside(options.nat_a, LAPTOP, PUBLIC[0]), options.nat_a.kind(), &access)?;
        let server = host("server", inside(options.nat_b, SERVER, PUBLIC[1]), options.nat_b.kind(), &access)?;
        let possibility = can_be_direct(&options.nat_a.kind(), &options.nat_b.kind());
        Ok(Self { relays, laptop, server, possibility, teardown: Arc::clone(teardown), lab })
    }

    /// Lets nothing pass straight between the two, or everything that the NATs let.
    pub(crate) fn close_direct_way(&self, closed: bool) {
        self.lab.block_direct(self.laptop.host(), self.server.host(), closed);
    }

    /// Bytes that went from the server's machine to the laptop without passing a relay, headers included: counted by the
    /// emulated internet itself, whatever agents say.
    pub(crate) fn bytes_past_relays(&self) -> u64 {
        self.lab.traffic(self.server.host(), self.laptop.host()).bytes
    }

    /// Whether the agents must find a direct way. Predicting or guessing ports is not asked of them.
    pub(crate) fn must_be_direct(&self) -> bool {
        match self.possibility {
            Possibility::Direct | Possibility::Punched => true,
            Possibility::NeedsPrediction | Possibility::NeedsBirthday | Possibility::Impossible => false,
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.teardown.now();
    }
}

/// What is drawn before the first step.
pub(crate) fn picture(options: &Options) -> String {
    let (a, b) = (inside(options.nat_a, LAPTOP, PUBLIC[0]), inside(options.nat_b, SERVER, PUBLIC[1]));
    let [one, two] = RELAYS;
    let laptop = format!("laptop {a}");
    let server = format!("server {b}");
    format!(
        "\n   {laptop:<21} ──[ {:<19} ]──┐\n   {:<21}     {:<19}    ├── internet ── relays {one}, {two}\n   {server:<21} ──[ {:<19} ]──┘",
        options.nat_a.words(),
        "",
        "",
        options.nat_b.words(),
    )
}

const fn inside(nat: NatPreset, private: Ipv4Addr, public: Ipv4Addr) -> Ipv4Addr {
    match nat {
        NatPreset::None => public,
        NatPreset::FullCone | NatPreset::RestrictedCone | NatPreset::PortRestricted | NatPreset::Symmetric => private,
    }
}

/// A directory of our own that others cannot read.
fn private_directory() -> Result<PathBuf, Problem> {
    let path = std::env::temp_dir().join(format!("peerage-demo-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// What starts on this host from here on has no capability, as in an ordinary container or for an ordinary user: whoever
/// makes networks is root of them, and the demo is to show that agents need not be.
fn give_up_privileges(host: &Host) -> Result<(), Problem> {
    host.run(|| {
        CapabilitySet::all().iter().try_for_each(|capability| match remove_capability_from_bounding_set(capability) {
            // A kernel older than that capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(error) => Err(std::io::Error::from(error)),
        })
    })??;
    Ok(())
}
