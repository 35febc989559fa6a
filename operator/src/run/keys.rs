//! The authority's keys, at the start and for as long as the operator runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::authority::store::{AuthorityError, Store};
use crate::authority::{Keyring, Stored};
use crate::clock;
use crate::cluster::Cluster;
use crate::denials::Ledger;
use crate::leader::Leadership;
use crate::metrics::Metrics;

/// How often keys are read.
const EVERY: Duration = Duration::from_secs(10);
/// How soon after a start that found none.
const SOON: Duration = Duration::from_secs(2);
/// How often ended denials are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// Tries until there are keys; what stands in the way is said each time.
pub(super) async fn load(store: &Store, metrics: &Metrics) -> (Stored, u64) {
    loop {
        let loaded = async { Ok::<_, AuthorityError>((store.load(clock::now()).await?, store.epoch().await?)) };
        match loaded.await {
            Ok(loaded) => {
                metrics.authority.set(1);
                return loaded;
            }
            Err(error) => {
                store.complain(&error).await;
                tokio::time::sleep(SOON).await;
            }
        }
    }
}

/// Reads the keys again and again: another replica rotates them, or somebody breaks them.
pub(super) async fn keep(
    store: Store,
    keys: watch::Sender<Arc<Keyring>>,
    cluster: Arc<Cluster>,
    leadership: watch::Receiver<Leadership>,
    ledger: Ledger,
) {
    let mut swept = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(EVERY).await;
        let now = clock::now();
        if *leadership.borrow() == Leadership::Ours {
            if let Err(error) = store.maintain(now).await {
                store.complain(&error).await;
            }
            if swept.elapsed() > SWEEP_EVERY {
                swept = tokio::time::Instant::now();
                let is_there = |uid: &_, holder: &_| cluster.read().index.is_there(uid, holder);
                if let Err(error) = ledger.sweep(now, is_there).await {
                    tracing::warn!(%error, "denied instances that have ended could not be removed");
                }
            }
        }
        match store.load(now).await {
            Ok(stored) if stored.fingerprint() == cluster.read().index.authority() => {
                cluster.metrics.authority.set(1);
                let new = stored.keyring(now);
                keys.send_if_modified(|old| {
                    let changed = old.sequences() != new.sequences();
                    if changed {
                        tracing::info!(target: "events::keys_changed", sequences = ?new.sequences());
                        *old = Arc::new(new);
                    }
                    changed
                });
            }
            Ok(stored) => {
                cluster.metrics.authority.set(0);
                tracing::error!(found = %stored.fingerprint(), "the authority was exchanged; restart the operator to change over");
            }
            // The keys in memory are good; new replicas would not get any, so this must be seen.
            Err(error) => {
                cluster.metrics.authority.set(0);
                store.complain(&error).await;
            }
        }
    }
}
