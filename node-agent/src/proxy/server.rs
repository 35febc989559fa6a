//! The proxy's listener, and what both of its languages share.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use peerage_model::AgentId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{http, socks};
use crate::address::Directory;
use crate::forward::Outbound;
use crate::listen::{Backoff, Room};

/// How the proxy is set up.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Where to listen; loopback only. Port 0 takes a free one.
    pub address: SocketAddr,
    /// How long a client may take to say what it wants.
    pub patience: Duration,
    /// Connections at a time; more wait in the kernel's queue.
    pub total: usize,
}

impl Config {
    /// Ten seconds to say what it wants; 512 connections.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address, patience: Duration::from_secs(10), total: 512 }
    }
}

/// A proxy that has its socket.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    config: Config,
    clients: Clients,
}

/// What serving a client takes.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    directory: watch::Receiver<Arc<Directory>>,
    pub(super) outbound: Outbound,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// When the address is not loopback, or cannot be had.
    pub async fn bind(
        config: Config,
        directory: watch::Receiver<Arc<Directory>>,
        outbound: Outbound,
    ) -> io::Result<Self> {
        if !config.address.ip().is_loopback() {
            // Whoever can reach the proxy acts as this agent.
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the proxy listens on loopback addresses only"));
        }
        let listener = TcpListener::bind(config.address).await?;
        Ok(Self { listener, config, clients: Clients { directory, outbound } })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped; connections live on.
    pub async fn run(self) {
        let mut backoff = Backoff::default();
        let room = Room::new(self.config.total);
        loop {
            let stream = backoff.accept("accepting a proxy client", &self.listener).await;
            let guard = room.enter().await;
            let (clients, patience) = (self.clients.clone(), self.config.patience);
            tokio::spawn(async move {
                clients.serve(stream, patience).await;
                drop(guard);
            });
        }
    }
}

impl Clients {
    async fn serve(&self, mut stream: TcpStream, patience: Duration) {
        let mut first = [0];
        let greeting = timeout(patience, stream.peek(&mut first)).await;
        let Ok(Ok(1)) = greeting else { return };
        let served = if first[0] == socks::VERSION {
            match timeout(patience, socks::greet(self, &mut stream)).await {
                Ok(Ok(Some((peer, port, tunnel)))) => {
                    self.outbound.splice(&peer, port, stream, tunnel).await;
                    Ok(())
                }
                Ok(Ok(None)) => Ok(()),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        } else {
            http::serve(self, stream, patience).await
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a proxy client ended early");
        }
    }

    /// The trusted peer of that name.
    pub(super) fn by_name(&self, name: &str) -> Option<AgentId> {
        match name.parse::<IpAddr>() {
            Ok(address) => self.by_address(address),
            Err(_) => self.directory.borrow().by_name(name).map(|entry| entry.id.clone()),
        }
    }

    /// The trusted peer that lives at that address.
    pub(super) fn by_address(&self, address: IpAddr) -> Option<AgentId> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.directory.borrow().by_address(address).map(|entry| entry.id.clone()),
            IpAddr::V6(_) => None,
        }
    }
}
