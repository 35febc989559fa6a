//! Makes the listeners be what the directory says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::AgentId;
use peerage_model::snapshot::Protocol;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::accept::{Room, accept};
use super::report::{ConflictReason, Listening, PortConflict};
use crate::address::Directory;
use crate::forward::{Outbound, serve_udp};

/// How often a port that could not be had is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// Something that programs connect or send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// By which transport.
    pub protocol: Protocol,
    /// Where.
    pub address: SocketAddr,
}

/// How listeners behave.
#[derive(Debug, Clone)]
pub struct Config {
    /// Ports that programs here will listen on, on all addresses: a listener of ours would make them fail to start.
    pub avoid: BTreeSet<(Protocol, u16)>,
    /// Connections at one listener.
    pub per_listener: usize,
    /// Connections at all of them.
    pub total: usize,
}

impl Default for Config {
    /// 512 per listener and 1024 in all. Each takes a file: where there are few, the daemon gives less.
    fn default() -> Self {
        Self { avoid: BTreeSet::new(), per_listener: 512, total: 1024 }
    }
}

/// Where a listener leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// To whom.
    pub peer: AgentId,
    /// To which of its ports.
    pub port: u16,
}

/// What should listen, and for whom.
#[must_use]
pub fn plan(directory: &Directory) -> BTreeMap<Endpoint, Target> {
    let endpoints = directory.entries().flat_map(|entry| {
        entry.ports.iter().map(|((protocol, here), port)| {
            let address = SocketAddr::from((entry.address, *here));
            (Endpoint { protocol: *protocol, address }, Target { peer: entry.id.clone(), port: *port })
        })
    });
    endpoints.filter(|(endpoint, _)| endpoint.address.port() != 0).collect()
}

/// Keeps listeners in step with `directory` until its sender is gone, and says in `report` what listens.
pub async fn run(
    mut directory: watch::Receiver<Arc<Directory>>,
    outbound: Outbound,
    config: Config,
    report: watch::Sender<Arc<Listening>>,
) {
    let (room, reserved, running) = (Room::new(config.total), BTreeSet::new(), BTreeMap::new());
    let mut listeners = Listeners { room, config, reserved, outbound, running };
    loop {
        let seen = directory.borrow_and_update().clone();
        listeners.reserved.clone_from(seen.reserved());
        listeners.reconcile(&plan(&seen)).await;
        let listening = Arc::new(listeners.report());
        report.send_if_modified(|old| {
            let changed = *old != listening;
            *old = listening.clone();
            changed
        });
        let again = Instant::now() + TRY_AGAIN;
        tokio::select! {
            changed = directory.changed() => if changed.is_err() { return },
            () = sleep_until(again), if !listening.conflicts.is_empty() => {}
        }
    }
}

struct Listeners {
    config: Config,
    /// Like [`Config::avoid`], as the directory says at the moment.
    reserved: BTreeSet<(Protocol, u16)>,
    room: Room,
    outbound: Outbound,
    running: BTreeMap<Endpoint, Running>,
}

struct Running {
    target: Target,
    place: Place,
    conflict: Option<ConflictReason>,
}

enum Place {
    Nowhere,
    At { actual: SocketAddr, _task: StopOnDrop },
}

struct StopOnDrop(AbortHandle);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

enum Bound {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listeners {
    async fn reconcile(&mut self, wanted: &BTreeMap<Endpoint, Target>) {
        let mut running = std::mem::take(&mut self.running);
        running.retain(|endpoint, running| {
            let in_the_way = running.conflict.is_none() && self.is_declared(*endpoint);
            wanted.get(endpoint) == Some(&running.target) && !in_the_way
        });
        self.running = running;
        for (endpoint, target) in wanted {
            match self.running.get(endpoint) {
                None => {
                    let running = self.start(*endpoint, target).await;
                    match &running.conflict {
                        // The usual case without root, and `peerage run` leads programs to the port that was had instead.
                        Some(reason @ ConflictReason::Reserved) => {
                            tracing::info!(peer = %target.peer.routing_id(), port = endpoint.address.port(), %reason, "a peer's port is elsewhere");
                        }
                        Some(reason) => {
                            tracing::warn!(peer = %target.peer.routing_id(), port = endpoint.address.port(), %reason, "a peer's port is taken");
                        }
                        None => {}
                    }
                    self.running.insert(*endpoint, running);
                }
                Some(running) if running.conflict.is_some() => {
                    // Perhaps whoever had the port has gone.
                    if let Ok(bound) = self.bind_as_asked(*endpoint).await {
                        let running = self.serve(target, bound, None);
                        self.running.insert(*endpoint, running);
                    } else if let Place::Nowhere = running.place {
                        let running = self.start(*endpoint, target).await;
                        self.running.insert(*endpoint, running);
                    }
                }
                Some(_) => {}
            }
        }
    }

    async fn start(&self, endpoint: Endpoint, target: &Target) -> Running {
        let nowhere = |error: &io::Error| Running {
            target: target.clone(),
            place: Place::Nowhere,
            conflict: Some(ConflictReason::Other(error.to_string())),
        };
        let reason = match self.bind_as_asked(endpoint).await {
            Ok(bound) => return self.serve(target, bound, None),
            Err(Unavailable::Because(reason)) => reason,
            Err(Unavailable::Failed(error)) => return nowhere(&error),
        };
        let free = SocketAddr::new(endpoint.address.ip(), 0);
        match bind(Endpoint { address: free, ..endpoint }).await {
            Ok(bound) => self.serve(target, bound, Some(reason)),
            Err(error) => nowhere(&error),
        }
    }

    async fn bind_as_asked(&self, endpoint: Endpoint) -> Result<Bound, Unavailable> {
        if self.is_declared(endpoint) {
            return Err(Unavailable::Because(ConflictReason::Declared));
        }
        match bind(endpoint).await {
            Ok(bound) => Ok(bound),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::PermissionDenied => Unavailable::Because(ConflictReason::Reserved),
                io::ErrorKind::AddrInUse => Unavailable::Because(ConflictReason::InUse),
                _ => Unavailable::Failed(error),
            }),
        }
    }

    fn is_declared(&self, endpoint: Endpoint) -> bool {
        let number = (endpoint.protocol, endpoint.address.port());
        self.config.avoid.contains(&number) || self.reserved.contains(&number)
    }

    fn serve(&self, target: &Target, bound: Bound, conflict: Option<ConflictReason>) -> Running {
        let Target { peer, port } = target.clone();
        let (local, task) = match bound {
            Bound::Tcp(listener) => {
                let local = listener.local_addr();
                let room = self.room.share(self.config.per_listener);
                (local, tokio::spawn(accept(listener, peer, port, room, self.outbound.clone())))
            }
            Bound::Udp(socket) => {
                let local = socket.local_addr();
                (local, tokio::spawn(serve_udp(Arc::new(socket), peer, port, self.outbound.clone())))
            }
        };
        let task = StopOnDrop(task.abort_handle());
        let place = match local {
            Ok(actual) => Place::At { actual, _task: task },
            Err(_) => Place::Nowhere,
        };
        Running { target: target.clone(), place, conflict }
    }

    fn report(&self) -> Listening {
        let mut listening = Listening::default();
        for (endpoint, running) in &self.running {
            let actual = match running.place {
                Place::Nowhere => None,
                Place::At { actual, .. } => Some(actual),
            };
            listening.bound.extend(actual.map(|actual| (*endpoint, actual)));
            listening.conflicts.extend(running.conflict.clone().map(|reason| PortConflict {
                peer: running.target.peer.clone(),
                asked: *endpoint,
                actual,
                reason,
            }));
        }
        listening
    }
}

enum Unavailable {
    Because(ConflictReason),
    Failed(io::Error),
}

async fn bind(endpoint: Endpoint) -> io::Result<Bound> {
    Ok(match endpoint.protocol {
        Protocol::Tcp => Bound::Tcp(TcpListener::bind(endpoint.address).await?),
        Protocol::Udp => Bound::Udp(UdpSocket::bind(endpoint.address).await?),
    })
}
