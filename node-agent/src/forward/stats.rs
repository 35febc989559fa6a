//! Counters of what local programs and peers did, for `/metrics` and `status`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Monotonic counts, except where a field says otherwise.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections of local programs towards peers.
    pub outbound: Counter,
    /// Streams and flows that peers opened and that reached a service.
    pub inbound: Counter,
    /// Streams and flows that peers opened and that were refused here.
    pub refused: Counter,
    /// Dials that failed, or whose stream was refused before a byte came back.
    pub dial_failed: Counter,
    /// Connections, streams and flows that are open; goes up and down.
    pub open: Counter,
    /// Bytes from local programs into tunnels.
    pub bytes_sent: Counter,
    /// Bytes from tunnels to local programs.
    pub bytes_received: Counter,
    /// Packets of local programs or services that found a full queue or did not fit.
    pub packets_dropped: Counter,
}

/// One count.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts one up until the guard is dropped.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.add(1);
        Held(self)
    }
}

/// See [`Counter::hold`].
#[derive(Debug)]
pub(crate) struct Held<'a>(&'a Counter);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
