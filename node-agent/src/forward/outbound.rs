//! From local programs to peers.

use std::fmt;
use std::sync::Arc;

use peerage_model::AgentId;
use peerage_model::stream::{StreamHeader, StreamKind, StreamStatus};
use tokio::net::TcpStream;

use super::copy::{Broken, Local, Moved};
use super::failures::Failures;
use super::stats::Stats;
use crate::tunnel::{Dial, DialError, Opened, TunnelFlow, TunnelStream};

/// Dials for local programs, and remembers what went wrong. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    dial: Arc<dyn Dial>,
    /// Shared counters.
    pub stats: Arc<Stats>,
    /// Why dials failed lately.
    pub failures: Arc<Failures>,
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl Outbound {
    /// Dials by `dial`.
    #[must_use]
    pub fn new(dial: Arc<dyn Dial>, stats: Arc<Stats>) -> Self {
        Self { dial, stats, failures: Arc::default() }
    }

    /// Carries a program's connection to `port` of `peer` until it ends. When the dial fails the program sees a reset.
    pub(crate) async fn carry(&self, peer: &AgentId, port: u16, mut local: Local) {
        // Where there is no stream, dropping the connection resets it.
        if let Ok(tunnel) = self.open_stream(peer, port).await {
            drop(self.converse(peer, port, &mut local, tunnel).await);
        }
    }

    /// Opens a stream to `port` of `peer`; a failure is noted.
    ///
    /// # Errors
    /// What [`Dial::dial`] says.
    pub async fn open_stream(&self, peer: &AgentId, port: u16) -> Result<TunnelStream, DialError> {
        match self.dial(peer, StreamKind::Tcp, port).await? {
            Opened::Stream(stream) => Ok(stream),
            Opened::Flow(_) => Err(self.failed(peer, port, unsupported(peer, port))),
        }
    }

    /// Opens a flow to `port` of `peer`; a failure is noted.
    ///
    /// # Errors
    /// What [`Dial::dial`] says.
    pub async fn open_flow(&self, peer: &AgentId, port: u16) -> Result<TunnelFlow, DialError> {
        match self.dial(peer, StreamKind::Udp, port).await? {
            Opened::Flow(flow) => Ok(flow),
            Opened::Stream(_) => Err(self.failed(peer, port, unsupported(peer, port))),
        }
    }

    /// Copies between a program and a stream that was opened for it, until both ends have ended.
    pub async fn splice(&self, peer: &AgentId, port: u16, local: TcpStream, tunnel: TunnelStream) {
        drop(self.converse(peer, port, &mut Local::new(local), tunnel).await);
    }

    /// As [`Outbound::splice`]. Hands the reason back when the dial turns out to have failed, so that a program whose
    /// protocol has words for it can be told.
    pub(crate) async fn converse(
        &self,
        peer: &AgentId,
        port: u16,
        local: &mut Local,
        tunnel: TunnelStream,
    ) -> Option<DialError> {
        self.stats.outbound.add(1);
        let _open = self.stats.open.hold();
        let mut moved = Moved::default();
        let result = local.splice(tunnel, &mut moved).await;
        self.stats.bytes_sent.add(moved.sent);
        self.stats.bytes_received.add(moved.received);
        match result {
            Ok(()) => self.failures.clear(peer),
            Err(Broken::Tunnel(error)) => match dial_error(&error) {
                Some(cause) => return Some(self.failed(peer, port, cause.clone())),
                None => tracing::debug!(%peer, port, %error, "the peer reset a stream"),
            },
            Err(Broken::Local(error)) => tracing::debug!(%peer, port, %error, "a program reset its connection"),
        }
        None
    }

    /// Notes how a stream ended that was opened here and carried elsewhere.
    pub(crate) fn ended(&self, peer: &AgentId, port: u16, result: &std::io::Result<()>) {
        match result {
            Ok(()) => self.failures.clear(peer),
            Err(error) => {
                if let Some(cause) = dial_error(error) {
                    self.failed(peer, port, cause.clone());
                }
            }
        }
    }

    async fn dial(&self, peer: &AgentId, kind: StreamKind, port: u16) -> Result<Opened, DialError> {
        let dialled = self.dial.dial(peer, StreamHeader { kind, port }).await;
        dialled.map_err(|error| self.failed(peer, port, error))
    }

    /// Notes a failure and hands it back.
    fn failed(&self, peer: &AgentId, port: u16, error: DialError) -> DialError {
        self.stats.dial_failed.add(1);
        self.failures.note(peer, port, &error);
        error
    }
}

/// The dial's own reason inside the error of a first read, if that is what it is.
fn dial_error(error: &std::io::Error) -> Option<&DialError> {
    error.get_ref()?.downcast_ref()
}

/// The tunnel opened something else than was asked for.
fn unsupported(peer: &AgentId, port: u16) -> DialError {
    DialError::Refused { peer: peer.clone(), port, status: StreamStatus::Unsupported }
}
