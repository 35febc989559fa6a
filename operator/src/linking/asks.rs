//! What the API server is asked about requests for trust, one thing at a time. Nobody waits for it: how long it takes would
//! tell other operators what their words came to.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::Client;
use peerage_model::TrustId;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::looks::Looks;
use super::requests::{self, Asking, Memory, Store, There};
use crate::index::Index;

/// See the module.
pub(super) struct Asks {
    store: Arc<Store>,
    memory: Memory,
    looks: Looks,
    running: JoinSet<Step>,
}

/// How far a look at requests has got.
pub(super) enum Step {
    /// These are there.
    Found(kube::Result<Vec<There>>),
    /// What was planned is done, or not; and whether to look again soon.
    Done(kube::Result<()>, bool),
}

impl Asks {
    pub(super) fn new(client: Client) -> Self {
        Self {
            store: Arc::new(Store::new(client)),
            memory: Memory::default(),
            looks: Looks::default(),
            running: JoinSet::new(),
        }
    }

    /// The next look is at all requests, whatever is wished for.
    pub(super) fn ask_for_all(&mut self) {
        self.looks.asked = true;
    }

    /// Begins to make objects of wishes, and to take back those that are not wished for, where that is due.
    pub(super) fn look(&mut self, index: &Index, links: &[Asking<'_>]) {
        if !self.running.is_empty() {
            return;
        }
        if !self.looks.is_due(requests::all_wanted(index, links), Instant::now()) {
            return;
        }
        let store = Arc::clone(&self.store);
        self.running.spawn(async move { Step::Found(store.there().await) });
    }

    /// Waits for what is asked. [`Self::go_on`] takes it.
    pub(super) async fn next(&mut self) -> Option<Result<Step, JoinError>> {
        self.running.join_next().await
    }

    /// Does what follows from an answer. Where that was a plan: how many requests of each link wait for somebody here.
    pub(super) fn go_on(
        &mut self,
        step: Result<Step, JoinError>,
        index: &Index,
        links: &[Asking<'_>],
    ) -> Option<BTreeMap<TrustId, usize>> {
        match step {
            Ok(Step::Found(Ok(there))) => return Some(self.plan(index, links, &there)),
            Ok(Step::Found(Err(error))) => {
                tracing::warn!(%error, "requests for trust could not be read");
                self.looks.asked = true;
            }
            Ok(Step::Done(applied, again)) => {
                if let Err(error) = &applied {
                    tracing::warn!(%error, "requests for trust could not be written");
                }
                // Those that were made want their condition; what failed is tried again.
                self.looks.asked |= again || applied.is_err();
            }
            Err(error) => {
                tracing::error!(%error, "a look at requests ended before its time");
                self.looks.asked = true;
            }
        }
        None
    }

    fn plan(&mut self, index: &Index, links: &[Asking<'_>], there: &[There]) -> BTreeMap<TrustId, usize> {
        let now = crate::clock::now();
        let mut plan = requests::plan(index, links, there, &mut self.memory, now);
        let pending = std::mem::take(&mut plan.pending);
        let store = Arc::clone(&self.store);
        self.running.spawn(async move { Step::Done(store.apply(&plan, now).await, !plan.create.is_empty()) });
        pending
    }
}
