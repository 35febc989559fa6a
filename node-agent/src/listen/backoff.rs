//! Waits after a failed accept or receive, so that a lasting shortage (descriptors, memory) does not become a hot loop.

use std::io;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

const FIRST: Duration = Duration::from_millis(10);
/// One second: a shortage is noticed to be over about as soon as a program would notice it.
const LONGEST: Duration = Duration::from_secs(1);

/// Something that programs connect to.
pub trait Accept: Sync {
    /// A connection.
    type Stream: Send;
    /// The next one.
    fn accept_one(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept_one(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept_one(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Doubles the wait from 10 ms to 1 s while failures follow each other.
#[derive(Debug, Default)]
pub struct Backoff {
    next: Option<Duration>,
}

impl Backoff {
    /// The next connection of `listener`, whatever shortage it takes to get there.
    pub async fn accept<L: Accept>(&mut self, doing: &str, listener: &L) -> L::Stream {
        loop {
            match listener.accept_one().await {
                Ok(stream) => {
                    self.succeeded();
                    return stream;
                }
                Err(error) => self.failed(doing, &error).await,
            }
        }
    }

    /// Waits, if `error` is one that will come again at once.
    pub async fn failed(&mut self, doing: &str, error: &io::Error) {
        // The one client that went away before we looked says nothing about the next.
        if [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset].contains(&error.kind()) {
            return;
        }
        let wait = self.next.unwrap_or(FIRST);
        if self.next.is_none() {
            tracing::warn!(%error, "{doing} failed; trying again");
        }
        self.next = Some((wait * 2).min(LONGEST));
        tokio::time::sleep(wait).await;
    }

    /// The shortage is over.
    pub fn succeeded(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use tokio::time::Instant;

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_that_went_away_costs_no_wait() {
        let mut backoff = Backoff::default();
        let started = Instant::now();
        backoff.failed("accepting", &io::ErrorKind::ConnectionAborted.into()).await;
        assert!(started.elapsed() < FIRST);
        assert_eq!(backoff.next, None);
    }

    /// A listener that has room at the third try.
    #[derive(Default)]
    struct Short(AtomicUsize);

    impl Accept for Short {
        type Stream = usize;

        async fn accept_one(&self) -> io::Result<usize> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                2 => Ok(2),
                _ => Err(io::ErrorKind::OutOfMemory.into()),
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_shortage_delays_a_connection_and_does_not_lose_it() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.accept("accepting", &Short::default()).await, 2);
        assert_eq!(backoff.next, None, "the shortage is over");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_wait_doubles_until_something_succeeds() {
        let mut backoff = Backoff::default();
        backoff.failed("accepting", &io::ErrorKind::OutOfMemory.into()).await;
        assert_eq!(backoff.next, Some(FIRST * 2));
        backoff.failed("accepting", &io::ErrorKind::OutOfMemory.into()).await;
        assert_eq!(backoff.next, Some(FIRST * 4));
        backoff.succeeded();
        assert_eq!(backoff.next, None);
    }
}
