//! Speaks with the operators of other clusters (docs/spec/linking.md).
//!
//! Two clusters that have met need each other's operators for nothing that flows: consent is each side's own object, and
//! keys and relays are written into the link. What operators tell each other makes it comfortable: who asks for trust, which
//! instances are denied, where relays have moved to, which keys follow.
//!
//! The leader is an agent called `operator` of this cluster's authority (`agent`). It answers those who hold a ticket
//! (`invitations`), calls on those whose ticket it was given (`meet`), and has a stream each way with every operator that it
//! is linked with (`tell`, `hear`). `desk` keeps what all that comes to, a `line` for each link that
//! is `declared`; `requests` makes objects of wishes, when `asks` gets to it; the status writer reads the `board`.

mod agent;
mod asks;
mod board;
mod declared;
mod desk;
mod frames;
mod hear;
mod invitations;
mod line;
mod looks;
mod meet;
mod outgoing;
mod requests;
#[cfg(test)]
mod served;
mod tell;
mod throttle;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;

pub use self::board::{Board, Row};
pub use self::requests::REJECTED;
use crate::authority::Keyring;
use crate::cluster::Cluster;
use crate::leader::Leadership;
use agent::Agent;
use desk::Desk;

/// How long it takes until a tunnel that could not begin is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long other operators get to hear that we stop.
const FAREWELL: Duration = Duration::from_secs(2);

/// What it needs of this replica.
#[derive(Clone)]
pub struct Linking {
    /// What is known of the cluster.
    pub cluster: Arc<Cluster>,
    /// A way to the API server.
    pub client: Client,
    /// The operator's namespace.
    pub namespace: String,
    /// The authority's keys.
    pub keyring: watch::Receiver<Arc<Keyring>>,
    /// Whether this replica leads.
    pub leadership: watch::Receiver<Leadership>,
    /// What is found out of links, and of relays by using them, goes here.
    pub board: Arc<Board>,
}

impl std::fmt::Debug for Linking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Linking").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Linking {
    /// Runs until nobody can lead.
    pub async fn run(mut self) {
        loop {
            if self.leadership.wait_for(|leadership| *leadership == Leadership::Ours).await.is_err() {
                return;
            }
            // What was not seen yet is not gone: links would be dropped, and requests that came over them.
            if self.cluster.stale().is_some() {
                tokio::time::sleep(AGAIN / 20).await;
                continue;
            }
            let keys = Arc::clone(&self.keyring.borrow());
            match Agent::start(&keys, crate::clock::now()) {
                Ok(agent) => self.lead(agent).await,
                Err(error) => {
                    tracing::error!(%error, "the operator's own tunnel cannot begin; links stay unconnected");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Until another replica leads.
    async fn lead(&mut self, agent: Agent) {
        let tunnel = agent.tunnel.clone();
        let mut desk = Desk::new(self, agent);
        tokio::select! {
            () = desk.run() => {}
            _ = self.leadership.wait_for(|leadership| *leadership != Leadership::Ours) => {}
        }
        drop(desk);
        self.board.set(Default::default(), Default::default());
        // Operators that do not hear it notice by silence.
        let _ = tokio::time::timeout(FAREWELL, tunnel.shutdown()).await;
    }
}
