//! Tunnel streams and flows, as async readers and writers over the shared node.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use peerage_engine::node::{Node, StreamError, StreamKey};
use peerage_model::AgentId;
use peerage_model::stream::{StreamHeader, StreamKind};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::shared::{Shared, Wakers};
use crate::tunnel::{DialError, Duplex, Opened, PacketFlow};

/// How long a stream waits for a session, for the error's text; the engine keeps the time.
const PATIENCE_SECONDS: u64 = 15;

/// Hands a stream of the node out in the form that its kind has.
pub(super) fn opened(shared: &Arc<Shared>, key: StreamKey, peer: AgentId, header: StreamHeader) -> Opened {
    let stream = DriverStream { shared: shared.clone(), key, peer, port: header.port };
    match header.kind {
        StreamKind::Udp => Opened::Flow(Box::new(DriverFlow(stream))),
        StreamKind::Tcp | StreamKind::Echo | StreamKind::Discard | StreamKind::Request => {
            Opened::Stream(Box::new(stream))
        }
    }
}

/// One stream. Dropping it lets go of it in the node.
struct DriverStream {
    shared: Arc<Shared>,
    key: StreamKey,
    peer: AgentId,
    port: u16,
}

impl DriverStream {
    fn error(&self, error: StreamError) -> io::Error {
        let peer = self.peer.clone();
        match error {
            StreamError::Refused(status) => {
                let refused = DialError::Refused { peer, port: self.port, status };
                io::Error::new(io::ErrorKind::ConnectionRefused, refused)
            }
            StreamError::Unreachable(hint) => {
                let hint = hint.to_owned();
                let unreachable = DialError::Unreachable { peer, seconds: PATIENCE_SECONDS, hint };
                io::Error::new(io::ErrorKind::TimedOut, unreachable)
            }
            StreamError::SessionEnded(reason) => {
                let ended = DialError::Ended { peer, reason: reason.to_string() };
                io::Error::new(io::ErrorKind::ConnectionReset, ended)
            }
            StreamError::Reset | StreamError::Blocked => io::ErrorKind::ConnectionReset.into(),
            StreamError::Closed => io::ErrorKind::BrokenPipe.into(),
            StreamError::TooLarge => io::Error::new(io::ErrorKind::InvalidInput, error),
        }
    }

    /// Runs `work` on the node; where it is blocked, `wait` notes who to wake.
    fn poll<T>(
        &self,
        work: impl FnOnce(&mut Node) -> Result<T, StreamError>,
        wait: impl FnOnce(&mut Wakers),
    ) -> Poll<io::Result<T>> {
        let mut inner = self.shared.lock();
        match work(&mut inner.node) {
            Ok(value) => Poll::Ready(Ok(value)),
            Err(StreamError::Blocked) => {
                // Under the same lock, so an event cannot slip in between.
                wait(inner.wakers.entry(self.key).or_default());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(self.error(error))),
        }
    }
}

impl AsyncRead for DriverStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut credit_is_due = false;
        let fill = |node: &mut Node| {
            let read = node.read_into(self.key, buf.initialize_unfilled())?;
            credit_is_due = node.wants_to_send();
            Ok(read)
        };
        let read = self.poll(fill, |wakers| wakers.read = Some(cx.waker().clone()));
        if credit_is_due {
            self.shared.nudge.notify_one();
        }
        read.map_ok(|read| buf.advance(read))
    }
}

impl AsyncWrite for DriverStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut is_told = false;
        let write = |node: &mut Node| {
            let written = node.write(self.key, data);
            is_told = node.has_events();
            written
        };
        let written = self.poll(write, |wakers| wakers.write = Some(cx.waker().clone()));
        // Also where there was no room: it may be another stream's turn.
        if written.is_ready() || is_told {
            self.shared.nudge.notify_one();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let finished = self.shared.with_node(|node| node.finish(self.key));
        Poll::Ready(finished.map_err(|error| self.error(error)))
    }
}

impl Duplex for DriverStream {
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let lost = self.poll(
            |node| match node.is_unwanted(self.key) {
                Ok(_) => Err(StreamError::Blocked),
                Err(why) => Ok(why),
            },
            |wakers| wakers.write = Some(cx.waker().clone()),
        );
        lost.map(|why| why.map_or_else(|error| error, |why| self.error(why)))
    }

    fn poll_unwanted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let unwanted = self.poll(
            |node| if node.is_unwanted(self.key)? { Ok(()) } else { Err(StreamError::Blocked) },
            |wakers| wakers.write = Some(cx.waker().clone()),
        );
        unwanted.map(drop)
    }
}

impl Drop for DriverStream {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.node.release(self.key);
        inner.wakers.remove(&self.key);
        drop(inner);
        self.shared.nudge.notify_one();
    }
}

/// One side of a UDP flow.
struct DriverFlow(DriverStream);

impl PacketFlow for DriverFlow {
    fn send(&self, packet: Bytes) -> io::Result<()> {
        let sent = self.0.shared.with_node(|node| node.send_packet(self.0.key, &packet));
        match sent {
            Ok(()) | Err(StreamError::Blocked) => Ok(()),
            Err(error) => Err(self.0.error(error)),
        }
    }

    fn recv(&self) -> Pin<Box<dyn Future<Output = Option<Bytes>> + Send + '_>> {
        Box::pin(poll_fn(|cx| {
            let next =
                self.0.poll(|node| node.recv_packet(self.0.key), |wakers| wakers.read = Some(cx.waker().clone()));
            next.map(Result::ok)
        }))
    }
}
