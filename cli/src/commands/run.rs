//! `peerage run`: the daemon's names and ports, given to an unmodified program.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use peerage_agent::control::client::{self, Events};
use peerage_agent::control::view::Names;
use peerage_agent::control::{Code, Failure, Request};
use peerage_agent::state::Place;
use peerage_agent::state::document;
use peerage_output::Output;
use peerage_run::{LiveNames, Program, Redirect, Transport};

use super::{Done, Threads, failed, runtime};

/// How long a daemon that has gone is left alone before it is looked for, at first and at most.
const LOOK: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// The program's world, as the daemon last said.
#[derive(Debug, Default)]
struct Live {
    names: Arc<LiveNames>,
    redirects: Arc<Redirects>,
}

/// Where the agent really listens.
#[derive(Debug, Default)]
struct Redirects(RwLock<Places>);

#[derive(Debug, Default)]
struct Places {
    listeners: BTreeMap<(SocketAddr, Transport), SocketAddr>,
    dns: Option<SocketAddr>,
}

impl Redirects {
    fn look<T>(&self, look: impl FnOnce(&Places) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Redirect for Redirects {
    fn redirect(&self, to: SocketAddr, transport: Transport) -> Option<SocketAddr> {
        self.look(|places| places.listeners.get(&(to, transport)).copied())
    }

    fn dns(&self) -> Option<SocketAddr> {
        self.look(|places| places.dns)
    }
}

pub fn run(place: &Place, command: Vec<OsString>, output: Output) -> Done {
    let runtime = runtime(Threads::None)?;
    let live = Live::default();
    let mut events = runtime.block_on(client::stream(place, &Request::Names))?;
    live.take_over(&runtime.block_on(events.next::<Names>())?.unwrap_or_default());
    let (names, redirects) = (Arc::clone(&live.names), Arc::clone(&live.redirects));
    // Its own thread: `peerage_run::run` keeps this one until the program has ended.
    let place = place.clone();
    thread::spawn(move || runtime.block_on(live.follow(&place, events)));

    let mut words = command.into_iter();
    let mut program = std::process::Command::new(words.next().unwrap_or_default());
    program.args(words);
    let mut program = Program::new(program, names, redirects);
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
            failed(output, &Failure::new(Code::NotPermitted, message, error.hint()));
            Ok(ExitCode::from(error.exit_code()))
        }
    }
}

impl Live {
    /// Keeps the program's world in step, for ever: the daemon that goes may be one that starts anew, and has other ports then.
    /// Until it is back the last names stay, and connections fail as they would with any server that is down.
    async fn follow(&self, place: &Place, mut events: Events) {
        let mut wait = LOOK[0];
        loop {
            while let Ok(Some(now)) = events.next::<Names>().await {
                self.take_over(&now);
                wait = LOOK[0];
            }
            events = loop {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LOOK[1]);
                if let Ok(events) = client::stream(place, &Request::Names).await {
                    break events;
                }
            };
        }
    }

    fn take_over(&self, now: &Names) {
        let listeners = now.redirects.iter().map(|listener| {
            let transport = match listener.protocol {
                document::Transport::Tcp => Transport::Tcp,
                document::Transport::Udp => Transport::Udp,
            };
            ((listener.address, transport), listener.bound)
        });
        // Redirects first: a name must not lead to where nothing listens yet.
        let places = Places { listeners: listeners.collect(), dns: now.dns };
        *self.redirects.0.write().unwrap_or_else(PoisonError::into_inner) = places;
        self.names.set(peerage_run::Names { hosts: now.hosts.clone() });
    }
}

#[cfg(test)]
mod tests {
    use peerage_agent::control::server::Handling;
    use peerage_agent::control::{ControlSocket, Handler, Reply};
    use tokio::sync::mpsc;

    use super::*;

    /// A daemon that knows these names, and ends when it has said so.
    struct Says(Names);

    impl Handler for Says {
        fn handle(self: Arc<Self>, _: Request) -> Handling {
            Box::pin(async move {
                let (say, said) = mpsc::channel(1);
                let names = serde_json::to_value(&self.0).expect("names have text for keys");
                say.send(Ok(names)).await.expect("there is room");
                Ok(Reply::Stream(said))
            })
        }
    }

    fn names(port: u16) -> Names {
        Names { dns: Some(([127, 64, 0, 1], port).into()), ..Names::default() }
    }

    #[tokio::test]
    async fn a_program_follows_its_agent_to_where_it_listens_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::find(Some(dir.path())).expect("a flag is a place");
        let daemon = |port| {
            let socket = ControlSocket::bind(&place.socket()).expect("it can be made");
            tokio::spawn(socket.serve(Arc::new(Says(names(port)))))
        };
        let first = daemon(1);
        let live = Live::default();
        let redirects = Arc::clone(&live.redirects);
        let events = client::stream(&place, &Request::Names).await.expect("it runs");
        let following = tokio::spawn({
            let place = place.clone();
            async move { live.follow(&place, events).await }
        });
        let until = async |port: u16| {
            let looked = async {
                while redirects.dns().is_none_or(|dns| dns.port() != port) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), looked).await.expect("it never follows");
        };
        until(1).await;
        first.abort();
        assert!(first.await.is_err(), "it has ended");
        let _second = daemon(2);
        until(2).await;
        following.abort();
    }
}
