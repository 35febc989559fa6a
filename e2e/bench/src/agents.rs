//! A relay and agents as processes of the `peerage` command, and what a person would do with them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use peerage_agent::control::view::{Approved, Asked, Finding, Invited, Peer, PeerState, Pending, Status};
use peerage_agent::control::{Request, client, message::Terms};
use peerage_agent::state::Place as State;
use peerage_agent::state::document::Path as PathMode;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::network::{Place, Program};
use crate::wait::until;

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    /// What agents are told: `KEY@HOST:PORT`.
    pub info: String,
    /// Its process.
    pub program: Program,
}

impl Relay {
    /// Starts one that takes everybody, within the quotas that such a relay has.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(peerage: &Path, place: &Place, port: u16, folder: &Path) -> Result<Self> {
        Self::start_with(peerage, place, port, folder, &["--open".to_owned()])
    }

    /// Starts one for these agents only, whose traffic it does not limit: 200 000 packets a second, the limit of an open
    /// relay, would be what is measured. In the same folder it is the same relay as before.
    ///
    /// # Errors
    /// It does not start, or the agents do not find it.
    pub fn start_for(agents: &[&Agent], peerage: &Path, place: &Place, port: u16, folder: &Path) -> Result<Self> {
        let mut access = Vec::new();
        for agent in agents {
            let status: Status = ask(&agent.state, &Request::Status)?;
            access.extend(["--allow-authority".to_owned(), status.agent.authority.to_string()]);
        }
        let relay = Self::start_with(peerage, place, port, folder, &access)?;
        for agent in agents {
            until("an agent to find the relay", || {
                let status: Status = ask(&agent.state, &Request::Status)?;
                Ok(status.relays.iter().any(|relay| relay.up).then_some(()))
            })?;
        }
        Ok(relay)
    }

    /// Starts one with these options. In the same folder it is the same relay as before.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_with(peerage: &Path, place: &Place, port: u16, folder: &Path, options: &[String]) -> Result<Self> {
        let address = place.address(port);
        let key = folder.join("relay.key");
        let mut command = Command::new(peerage);
        command.arg("relay").args(options);
        command.arg("--listen").arg(address.to_string()).arg("--key-file").arg(&key);
        // Its key is made at the first start and stays, so a second start tells what the first was called.
        let said = folder.join("relay.out");
        std::fs::write(&said, "")?;
        let mut shell = Command::new("sh");
        shell.arg("-c").arg("out=$1; shift; exec \"$@\" >\"$out\" 2>/dev/null").arg("relay").arg(&said);
        shell.arg(command.get_program()).args(command.get_args());
        let mut program = place.spawn(&mut shell)?;
        let info = until("the relay", || {
            if program.has_ended() {
                return Err("the relay ended".into());
            }
            let text = std::fs::read_to_string(&said).unwrap_or_default();
            Ok(text.strip_suffix('\n').map(str::to_owned))
        })?;
        Ok(Self { info, program })
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// Its process.
    pub program: Program,
    name: String,
    state: State,
    place: Place,
    command: Command,
}

impl Agent {
    /// Starts one that uses this relay and offers these services (`NAME=PORT`); its state is in a folder of `folder`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(
        peerage: &Path,
        place: &Place,
        name: &str,
        relay: &str,
        expose: &[String],
        folder: &Path,
    ) -> Result<Self> {
        let directory = folder.join(name);
        let mut command = Command::new(peerage);
        command.arg("--state").arg(&directory).args(["--json", "up", "--hostname", name, "--relay", relay]);
        for service in expose {
            command.args(["--expose", service]);
        }
        Self::run(place, name, command, &directory)
    }

    /// Starts the program for containers, which is told by its environment.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_contained(agent: &Path, place: &Place, name: &str, relay: &str, folder: &Path) -> Result<Self> {
        let directory = folder.join(name);
        let mut command = Command::new("env");
        command.arg(format!("PEERAGE_STATE={}", directory.display())).arg("PEERAGE_LOG=warn");
        command.arg(format!("PEERAGE_HOSTNAME={name}")).arg(format!("PEERAGE_RELAYS={relay}")).arg(agent);
        Self::run(place, name, command, &directory)
    }

    fn run(place: &Place, name: &str, mut command: Command, directory: &Path) -> Result<Self> {
        let mut program = place.spawn(&mut command)?;
        let state = State::find(Some(directory))?;
        until("the agent", || {
            if program.has_ended() {
                return Err(format!("{name} ended; try: {command:?}").into());
            }
            Ok(ask::<serde_json::Value>(&state, &Request::Status).ok())
        })?;
        Ok(Self { program, name: name.to_owned(), state, place: place.clone(), command })
    }

    /// Kills it and starts it anew, with the state that it had; does not wait until it says something.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.program.end();
        self.program = self.place.spawn(&mut self.command)?;
        Ok(())
    }

    /// Makes both trust each other, and waits until they are connected.
    ///
    /// # Errors
    /// They do not connect.
    pub fn befriend(&self, other: &Self, path: PathMode) -> Result<()> {
        let terms = Terms { inbound: Some(vec!["all".into()]), path: Some(path), ..Terms::default() };
        let Invited { ticket, .. } = ask(&other.state, &Request::Invite { expires_s: 600 })?;
        let reason = "to measure".to_owned();
        let _: Asked = ask(&self.state, &Request::Handshake { ticket, to: None, reason, terms: terms.clone() })?;
        until("the request", || {
            let pending: Vec<Pending> = ask(&other.state, &Request::Requests)?;
            Ok(pending.into_iter().find(|pending| pending.name == self.name))
        })?;
        let _: Approved = ask(&other.state, &Request::Approve { name: self.name.clone(), terms })?;
        until("the session", || {
            Ok(self.peer(other)?.filter(|peer| peer.state == PeerState::Connected && !peer.ports.is_empty()))
        })?;
        Ok(())
    }

    /// How many peers it has a session with.
    ///
    /// # Errors
    /// It does not answer.
    pub fn connected(&self) -> Result<usize> {
        let peers: Vec<Peer> = ask(&self.state, &Request::Peers)?;
        Ok(peers.iter().filter(|peer| peer.state == PeerState::Connected).count())
    }

    /// Where programs here reach `port` of `other`.
    ///
    /// # Errors
    /// It is not known to be a peer.
    pub fn address_of(&self, other: &Self, port: u16) -> Result<SocketAddr> {
        let peer = self.peer(other)?.ok_or("it is no peer")?;
        Ok(SocketAddr::new(peer.address.ok_or("the peer has no address")?, port))
    }

    /// Waits until data to `other` takes a path for which `good`; returns its name.
    ///
    /// # Errors
    /// No such path is taken.
    pub fn wait_for_path(&self, other: &Self, good: impl Fn(&str) -> bool) -> Result<String> {
        until("the path", || Ok(self.peer(other)?.and_then(|peer| peer.path).filter(|path| good(path))))
    }

    /// What the agent's own examination says of one thing.
    ///
    /// # Errors
    /// It does not answer.
    pub fn examine(&self, check: &str) -> Result<String> {
        let findings: Vec<Finding> = ask(&self.state, &Request::Doctor)?;
        let found = findings.into_iter().find(|finding| finding.check == check);
        Ok(found.map_or_else(|| format!("{check}: nothing found"), |finding| finding.found))
    }

    fn peer(&self, other: &Self) -> Result<Option<Peer>> {
        let peers: Vec<Peer> = ask(&self.state, &Request::Peers)?;
        Ok(peers.into_iter().find(|peer| peer.name == other.name))
    }
}

fn ask<T: DeserializeOwned>(state: &State, request: &Request) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(client::call(state, request)).map_err(|failure| failure.to_string().into())
}
