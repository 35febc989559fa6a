//! Accepts the connections of local programs, as many as there is room for.

use std::sync::Arc;

use peerage_model::AgentId;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::Backoff;
use crate::forward::{Local, Outbound};

/// Connections that may be open at a time. Beyond that programs wait in the kernel's queue of the listener, where they
/// cost us nothing.
#[derive(Debug, Clone)]
pub struct Room {
    total: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

impl Room {
    /// Room for `total` connections at all listeners together.
    #[must_use]
    pub fn new(total: usize) -> Self {
        Self { total: Arc::new(Semaphore::new(total)), own: Arc::new(Semaphore::new(total)) }
    }

    /// The same total, of which one listener gets at most `most`, so that one peer's cannot use it all up.
    #[must_use]
    pub fn share(&self, most: usize) -> Self {
        Self { total: self.total.clone(), own: Arc::new(Semaphore::new(most)) }
    }

    /// Waits for room for one; it is free again when the guard is dropped.
    pub(crate) async fn enter(&self) -> impl Send + use<> {
        let never = "these semaphores are never closed";
        let own = self.own.clone().acquire_owned().await.expect(never);
        let total = self.total.clone().acquire_owned().await.expect(never);
        (own, total)
    }
}

/// Accepts for `port` of `peer` until dropped; accepted connections live on.
pub(super) async fn accept(listener: TcpListener, peer: AgentId, port: u16, room: Room, outbound: Outbound) {
    let mut backoff = Backoff::default();
    loop {
        // Accept first and hold that one connection: a listener that waits for room in vain would not notice that.
        let stream = backoff.accept("accepting a connection", &listener).await;
        // From here on it ends by a reset unless all went well, also where this listener is closed while it waits for room.
        let local = Local::new(stream);
        let guard = room.enter().await;
        let (outbound, peer) = (outbound.clone(), peer.clone());
        tokio::spawn(async move {
            outbound.carry(&peer, port, local).await;
            drop(guard);
        });
    }
}
