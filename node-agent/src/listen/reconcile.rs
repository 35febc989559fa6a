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
    /// 512 per listener and 1024 in all: the usual limit of file descriptors is 1024 or more, and each takes one.
    fn default() -> Self {
        Self { avoid: BTreeSet::new(), per_listener: 512, total: 1024 }
    }
}

/// What should listen, and for whom.
#[must_use]
pub fn plan(directory: &Directory) -> BTreeMap<Endpoint, AgentId> {
    let endpoints = directory.entries().flat_map(|entry| {
        entry.ports.iter().map(|(protocol, port)| {
            let address = SocketAddr::from((entry.address, *port));
            (Endpoint { protocol: *protocol, address }, entry.id.clone())
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
    let mut listeners = Listeners { room: Room::new(config.total), config, outbound, running: BTreeMap::new() };
    loop {
        let wanted = plan(&directory.borrow_and_update().clone());
        listeners.reconcile(&wanted).await;
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
    room: Room,
    outbound: Outbound,
    running: BTreeMap<Endpoint, Running>,
}

struct Running {
    peer: AgentId,
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
    async fn reconcile(&mut self, wanted: &BTreeMap<Endpoint, AgentId>) {
        self.running.retain(|endpoint, running| wanted.get(endpoint) == Some(&running.peer));
        for (endpoint, peer) in wanted {
            match self.running.get(endpoint) {
                None => {
                    let running = self.start(*endpoint, peer).await;
                    match &running.conflict {
                        // The usual case without root, and `peerage run` leads programs to the port that was had instead.
                        Some(reason @ ConflictReason::Reserved) => {
                            tracing::info!(peer = %peer.routing_id(), port = endpoint.address.port(), %reason, "a peer's port is elsewhere");
                        }
                        Some(reason) => {
                            tracing::warn!(peer = %peer.routing_id(), port = endpoint.address.port(), %reason, "a peer's port is taken");
                        }
                        None => {}
                    }
                    self.running.insert(*endpoint, running);
                }
                Some(running) if running.conflict.is_some() => {
                    // Perhaps whoever had the port has gone.
                    if let Ok(bound) = self.bind_as_asked(*endpoint).await {
                        let running = self.serve(*endpoint, peer, bound, None);
                        self.running.insert(*endpoint, running);
                    } else if let Place::Nowhere = running.place {
                        let running = self.start(*endpoint, peer).await;
                        self.running.insert(*endpoint, running);
                    }
                }
                Some(_) => {}
            }
        }
    }

    async fn start(&self, endpoint: Endpoint, peer: &AgentId) -> Running {
        let nowhere = |error: &io::Error| Running {
            peer: peer.clone(),
            place: Place::Nowhere,
            conflict: Some(ConflictReason::Other(error.to_string())),
        };
        let reason = match self.bind_as_asked(endpoint).await {
            Ok(bound) => return self.serve(endpoint, peer, bound, None),
            Err(Unavailable::Because(reason)) => reason,
            Err(Unavailable::Failed(error)) => return nowhere(&error),
        };
        let free = SocketAddr::new(endpoint.address.ip(), 0);
        match bind(Endpoint { address: free, ..endpoint }).await {
            Ok(bound) => self.serve(endpoint, peer, bound, Some(reason)),
            Err(error) => nowhere(&error),
        }
    }

    async fn bind_as_asked(&self, endpoint: Endpoint) -> Result<Bound, Unavailable> {
        if self.config.avoid.contains(&(endpoint.protocol, endpoint.address.port())) {
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

    fn serve(&self, endpoint: Endpoint, peer: &AgentId, bound: Bound, conflict: Option<ConflictReason>) -> Running {
        let port = endpoint.address.port();
        let (local, task) = match bound {
            Bound::Tcp(listener) => {
                let local = listener.local_addr();
                let room = self.room.share(self.config.per_listener);
                (local, tokio::spawn(accept(listener, peer.clone(), port, room, self.outbound.clone())))
            }
            Bound::Udp(socket) => {
                let local = socket.local_addr();
                (local, tokio::spawn(serve_udp(Arc::new(socket), peer.clone(), port, self.outbound.clone())))
            }
        };
        let task = StopOnDrop(task.abort_handle());
        let place = match local {
            Ok(actual) => Place::At { actual, _task: task },
            Err(_) => Place::Nowhere,
        };
        Running { peer: peer.clone(), place, conflict }
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
                peer: running.peer.clone(),
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
