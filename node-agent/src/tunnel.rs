//! The face that the tunnel shows to the rest of the agent.
//!
//! Listeners, proxies and the control socket dial through [`Dial`]; streams that peers open arrive as [`Incoming`].
//! The driver implements both over the engine; tests implement them over memory. Nothing here holds a key.
//!
//! One seam, seen from both sides:
//!
//! ```text
//!  listen  proxy  forward  control            programs and people; no key
//!     │      │       │        │
//!     ▼      ▼       ▼        ▼
//!   tunnel::Dial ◄─────── tunnel::Incoming    this file: streams and flows, nothing else
//!     ▲                       ▲
//!     │  in a pod: cluster::tunnel, which dials through the tunnel of the moment, since the first
//!     │  passport may be long in coming and a withdrawn instance ends with its tunnel
//!     │                       │
//!   daemon::link::Link ───────┘               what the daemon asks besides: allowlists, passports, requests, status
//!     ▲
//!   daemon::driver                            says in the daemon's words what the driver says in the engine's
//!     ▲
//!   driver                                    sockets, clocks, randomness around the engine; holds this run's key
//! ```
//!
//! `Link` is a trait because the daemon is tested over one that only remembers, and `Dial` is a smaller one because who
//! carries bytes must not be able to change an allowlist.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use peerage_model::AgentId;
use peerage_model::stream::{StreamHeader, StreamStatus};
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways. Shutting the write half down tells the peer that no more comes (half-close); dropping the stream
/// before that resets it; a reset by the peer reads as [`io::ErrorKind::ConnectionReset`].
///
/// Who has read the end has nothing left to read a reset from, and who is not ready for more does not read: both learn by
/// the two questions below what became of the stream. They share one waker with writing.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {
    /// Ready with the reason when the session under the stream has ended, or its trust was taken back.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error>;
    /// Ready when the peer has said that it reads nothing more, or the stream is lost.
    fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// A stream through the tunnel.
pub type TunnelStream = Box<dyn Duplex>;

/// One side of a UDP flow: whole packets, unordered, some lost. Dropping it ends the flow.
pub trait PacketFlow: Send + Sync {
    /// Sends one packet; a full queue drops it, as UDP does.
    ///
    /// # Errors
    /// When the flow has ended, or the packet is larger than the tunnel carries at the moment.
    fn send(&self, packet: Bytes) -> io::Result<()>;
    /// The next packet, or `None` when the flow has ended. Called by one task at a time.
    fn recv(&self) -> Pin<Box<dyn Future<Output = Option<Bytes>> + Send + '_>>;
}

/// A UDP flow through the tunnel.
pub type TunnelFlow = Box<dyn PacketFlow>;

/// What a dial gave.
pub enum Opened {
    /// For every kind but UDP.
    Stream(TunnelStream),
    /// For [`peerage_model::stream::StreamKind::Udp`].
    Flow(TunnelFlow),
}

/// Why a dial failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// We do not trust that peer (any more).
    #[error("`{peer}` is not a trusted peer of this agent")]
    NotTrusted {
        /// Whom.
        peer: AgentId,
    },
    /// No session came up in time.
    #[error("`{peer}` did not answer within {seconds} s: {hint}")]
    Unreachable {
        /// Whom.
        peer: AgentId,
        /// How long we tried, in seconds.
        seconds: u64,
        /// What may be wrong and what to do.
        hint: String,
    },
    /// The peer answered with a refusal.
    #[error("`{peer}` refused{}: {status}", of_port(*port))]
    Refused {
        /// Whom.
        peer: AgentId,
        /// Which port; 0 where none was asked for, as with a ping.
        port: u16,
        /// The peer's answer.
        status: StreamStatus,
    },
    /// The session ended while the stream was being opened.
    #[error("the session with `{peer}` ended: {reason}")]
    Ended {
        /// Whom.
        peer: AgentId,
        /// Why.
        reason: String,
    },
}

fn of_port(port: u16) -> String {
    if port == 0 { String::new() } else { format!(" port {port}") }
}

/// Opens streams to peers.
pub trait Dial: Send + Sync {
    /// Opens a stream or flow to `peer`, bringing a session up first where there is none. Resolves at once, so that the
    /// first bytes written travel with the handshake's last message and no round trip is spent on asking. What goes
    /// wrong later (no session, or the peer's refusal) comes out of the first read as an [`io::Error`] of kind
    /// `ConnectionRefused`, `TimedOut` or `ConnectionReset` whose inner error is a [`DialError`].
    ///
    /// # Errors
    /// [`DialError::NotTrusted`] at once.
    fn dial<'a>(
        &'a self,
        peer: &'a AgentId,
        header: StreamHeader,
    ) -> Pin<Box<dyn Future<Output = Result<Opened, DialError>> + Send + 'a>>;
}

/// A stream or flow that a peer opened and that our policy allows. Answer it exactly once.
pub struct Incoming {
    /// Who opened it.
    pub peer: AgentId,
    /// What it asked for.
    pub header: StreamHeader,
    answer: Box<dyn FnOnce(StreamStatus) -> Opened + Send>,
}

impl Incoming {
    /// For the driver and for tests: `answer` sends the status byte and hands the stream out.
    pub fn new(
        peer: AgentId,
        header: StreamHeader,
        answer: impl FnOnce(StreamStatus) -> Opened + Send + 'static,
    ) -> Self {
        Self { peer, header, answer: Box::new(answer) }
    }

    /// Tells the peer to go on, and hands out the stream or flow.
    #[must_use]
    pub fn accept(self) -> Opened {
        (self.answer)(StreamStatus::Open)
    }

    /// Tells the peer why not.
    pub fn refuse(self, status: StreamStatus) {
        drop((self.answer)(status));
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("peer", &self.peer).field("header", &self.header).finish_non_exhaustive()
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream(_) => "Stream(..)",
            Self::Flow(_) => "Flow(..)",
        })
    }
}
