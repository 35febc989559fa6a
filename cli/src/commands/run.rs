//! `peerage run`: the daemon's names and ports, given to an unmodified program.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use peerage_agent::control::client::{self, Events};
use peerage_agent::control::view::Names;
use peerage_agent::control::{Code, Failure, Request};
use peerage_agent::state::Place;
use peerage_agent::state::document;
use peerage_run::{LiveNames, Program, Redirect, Transport};

use super::{Done, Threads, runtime};
use crate::output::Output;

/// Where the agent really listens, as the daemon last said.
#[derive(Debug, Default)]
struct Redirects(RwLock<BTreeMap<(SocketAddr, Transport), SocketAddr>>);

impl Redirect for Redirects {
    fn redirect(&self, to: SocketAddr, transport: Transport) -> Option<SocketAddr> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&(to, transport)).copied()
    }
}

pub fn run(place: &Place, command: Vec<OsString>, output: Output) -> Done {
    let runtime = runtime(Threads::None)?;
    let (names, redirects) = (Arc::new(LiveNames::default()), Arc::new(Redirects::default()));
    let mut events = runtime.block_on(client::stream(place, &Request::Names))?;
    let first = runtime.block_on(events.next::<Names>())?.unwrap_or_default();
    let dns = first.dns;
    take_over(&names, &redirects, &first);
    // Its own thread: `peerage_run::run` keeps this one until the program has ended.
    let (live, moving) = (Arc::clone(&names), Arc::clone(&redirects));
    thread::spawn(move || runtime.block_on(follow(events, &live, &moving)));

    let mut words = command.into_iter();
    let mut program = std::process::Command::new(words.next().unwrap_or_default());
    program.args(words);
    let mut program = Program::new(program, names, redirects);
    program.dns = dns;
    program.on_waiting = Some(Box::new(move |_| {
        if io::IsTerminal::is_terminal(&io::stderr()) {
            output.note("peerage: the command has ended; waiting for the processes it left running");
        }
    }));
    match peerage_run::run(program) {
        Ok(status) => Ok(ExitCode::from(peerage_run::exit_code(status))),
        Err(error) => {
            let message = peerage_agent::control::failure::chain(&error);
            // A shell's statuses, not ours: 127 not found, 126 not executable, 125 anything else before it ran.
            let _ = output.fail(&Failure::new(Code::NotPermitted, message, error.hint()));
            Ok(ExitCode::from(error.exit_code()))
        }
    }
}

/// Keeps the program's world in step. When the daemon goes, the last names stay: its listeners are gone anyway, and
/// connections fail as they would with any server that is down.
async fn follow(mut events: Events, names: &LiveNames, redirects: &Redirects) {
    while let Ok(Some(now)) = events.next::<Names>().await {
        take_over(names, redirects, &now);
    }
}

fn take_over(names: &LiveNames, redirects: &Redirects, now: &Names) {
    let listeners = now.redirects.iter().map(|listener| {
        let transport = match listener.protocol {
            document::Transport::Tcp => Transport::Tcp,
            document::Transport::Udp => Transport::Udp,
        };
        ((listener.address, transport), listener.bound)
    });
    // Redirects first: a name must not lead to where nothing listens yet.
    *redirects.0.write().unwrap_or_else(PoisonError::into_inner) = listeners.collect();
    names.set(peerage_run::Names { hosts: now.hosts.clone() });
}
