//! What goes on beside the streams: news to whoever acts on them, time, readiness.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use peerage_agent::health::{Pending, Readiness};
use peerage_model::InstanceId;
use tokio::sync::{mpsc, watch};

use super::Ground;
use crate::authority::Keyring;
use crate::cluster::{Cluster, News};
use crate::denials::{Entry, Ledger};
use crate::heap::Heap;
use crate::index::Dirty;
use crate::linking::{Board, Linking};
use crate::replicas::{Admitted, Follower, Others};
use crate::roll::{Holder, PodUid};
use crate::status::Writer;
use crate::{clock, managed, notices, probe};

/// What the tasks of [`start_telling`] need besides the ground.
pub(super) struct Told {
    pub(super) heard: mpsc::UnboundedReceiver<News>,
    pub(super) others: Arc<Others>,
    pub(super) keyring: watch::Receiver<Arc<Keyring>>,
    pub(super) relays: Option<managed::Settings>,
}

/// What is waited for until the watches were looked at for the first time.
const FIRST_LOOK: &str = "the watches";

/// Starts whatever makes news of this replica known: status, Events, the other replicas, other clusters, and what the next
/// process will read; `written`: whose enrolment it reads already.
pub(super) fn start_telling(
    Ground { cluster, client, namespace, leadership }: &Ground,
    Told { heard, others, keyring, relays }: Told,
    ledger: Ledger,
    written: BTreeSet<InstanceId>,
) {
    let (judged, counted) = (Arc::new(Heap::default()), Arc::new(Heap::default()));
    let (tell_admitted, admitted) = mpsc::unbounded_channel();
    let (write_down, entries) = mpsc::unbounded_channel();
    let (notice, noticed) = mpsc::unbounded_channel();
    let (find, findings) = mpsc::channel(16);
    let heaps = [Arc::clone(&judged), Arc::clone(&counted)];
    tokio::spawn(spread_news(heard, Arc::clone(&others), heaps, tell_admitted, write_down, notice));
    let board = Arc::new(Board::default());
    let linking = Linking {
        cluster: Arc::clone(cluster),
        client: client.clone(),
        namespace: namespace.clone(),
        keyring: keyring.clone(),
        leadership: leadership.clone(),
        board: Arc::clone(&board),
    };
    tokio::spawn(linking.run());
    let (refuse, refused) = mpsc::channel(notices::QUEUE);
    let writer = Writer::new(Arc::clone(cluster), others, client.clone(), leadership.clone(), board, refuse);
    tokio::spawn(writer.run(judged, findings));
    let follower = Follower { cluster: Arc::clone(cluster), keyring, leadership: leadership.clone() };
    tokio::spawn(follower.run(counted, admitted));
    tokio::spawn(probe::run(Arc::clone(cluster), leadership.clone(), find.clone()));
    let (c, n) = (client.clone(), namespace.clone());
    tokio::spawn(managed::run(Arc::clone(cluster), c, n, relays, leadership.clone(), find));
    tokio::spawn(notices::run(Arc::clone(cluster), client.clone(), leadership.clone(), noticed, refused));
    tokio::spawn(ledger.run(entries, written));
}

/// Starts whatever looks at the cluster again as time passes.
pub(super) fn start_keeping(ground: &Ground, enrolled: Vec<(PodUid, Holder)>, readiness: Readiness) {
    tokio::spawn(recall(Arc::clone(&ground.cluster), enrolled));
    tokio::spawn(keep_time(Arc::clone(&ground.cluster)));
    let pending = readiness.wait_for(FIRST_LOOK);
    tokio::spawn(keep_ready(Arc::clone(&ground.cluster), readiness, pending));
}

/// Hands news on to whoever acts on them.
async fn spread_news(
    mut heard: mpsc::UnboundedReceiver<News>,
    others: Arc<Others>,
    heaps: [Arc<Heap>; 2],
    admitted: mpsc::UnboundedSender<Admitted>,
    write_down: mpsc::UnboundedSender<Entry>,
    notice: mpsc::UnboundedSender<Dirty>,
) {
    while let Some(news) = heard.recv().await {
        // Who does not listen any more has ended with the process.
        match news {
            News::Judge(dirty) => {
                heaps.iter().for_each(|heap| heap.add(dirty.clone()));
                if !dirty.pods.is_empty() || !dirty.gone.is_empty() {
                    let _ = notice.send(dirty);
                }
            }
            News::Admitted(uid, holder) => {
                let row = Admitted::new(uid, &holder);
                others.announce(row.clone());
                let _ = admitted.send(row);
                let _ = write_down.send(Entry::Enrolled(uid, holder));
            }
            News::Denied(denial) => drop(write_down.send(Entry::Denied(denial))),
        }
    }
}

/// Looks at who enrolled before, as soon as every watch has told what there is.
async fn recall(cluster: Arc<Cluster>, enrolled: Vec<(PodUid, Holder)>) {
    let mut changes = cluster.changes();
    // A watch without objects changes nothing, so time passing is a reason to look, too.
    while cluster.stale().is_some() {
        let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
    }
    cluster.recall(enrolled);
}

/// Lets what ends by the clock end.
async fn keep_time(cluster: Arc<Cluster>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        cluster.advance(clock::now());
    }
}

/// Not ready while a watch is not to be relied upon.
async fn keep_ready(cluster: Arc<Cluster>, readiness: Readiness, first: Pending) {
    let mut pending = Some(first);
    let mut reported = Some(FIRST_LOOK);
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tick.tick().await;
        let stale = cluster.stale();
        if stale != reported {
            pending = stale.map(|kind| readiness.wait_for(kind));
            reported = stale;
        }
        let _ = &pending;
    }
}
