//! What the driver's task and the streams share: the node under its lock, and who waits for what.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use peerage_engine::node::{AskError, ErrandKey, Node, Now, StreamKey};
use peerage_model::control::TrustRequest;
use peerage_model::relay::RelayInfo;
use peerage_model::{AuthorityRecord, Ticket, UnixTime};
use tokio::sync::{Notify, oneshot};

use super::{Asking, RequestError};

/// Both clocks, now.
pub(super) fn now() -> Now {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Instant::now(), wall: UnixTime(since_epoch.as_secs()) }
}

/// The node, and everything that must change together with it.
pub(super) struct Inner {
    pub(super) node: Node,
    pub(super) wakers: BTreeMap<StreamKey, Wakers>,
    pub(super) asking: Asking,
    pub(super) looking: BTreeMap<ErrandKey, oneshot::Sender<Found>>,
    pub(super) posting: BTreeMap<ErrandKey, oneshot::Sender<Vec<RelayInfo>>>,
}

/// What relays say to a look-up.
pub(super) type Found = Vec<(RelayInfo, Vec<AuthorityRecord>)>;

/// Who waits for one stream.
#[derive(Default)]
pub(super) struct Wakers {
    pub(super) read: Option<Waker>,
    pub(super) write: Option<Waker>,
}

/// See the module.
pub(super) struct Shared {
    inner: Mutex<Inner>,
    /// Tells the task that the node may have something to send or say.
    pub(super) nudge: Notify,
}

impl Shared {
    pub(super) fn new(node: Node) -> Self {
        let inner = Inner {
            node,
            wakers: BTreeMap::new(),
            asking: BTreeMap::new(),
            looking: BTreeMap::new(),
            posting: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner), nudge: Notify::new() }
    }

    /// The node is consistent after every call, also after one that panicked half-way in the caller's code.
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An input to the node from outside the task.
    pub(super) fn with_node<T>(&self, work: impl FnOnce(&mut Node) -> T) -> T {
        let result = work(&mut self.lock().node);
        self.nudge.notify_one();
        result
    }

    /// Starts something whose answer an event of the node brings.
    pub(super) fn errand<T>(&self, start: impl FnOnce(&mut Inner, oneshot::Sender<T>)) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        // Under one lock, so that the answer cannot come before it is waited for.
        start(&mut self.lock(), sender);
        self.nudge.notify_one();
        receiver
    }

    pub(super) fn ask(
        &self,
        ticket: &Ticket,
        request: TrustRequest,
        receipt: oneshot::Sender<Result<(), AskError>>,
    ) -> Result<(), RequestError> {
        let mut inner = self.lock();
        let ask = inner.node.ask(now(), ticket, request).map_err(|_| RequestError::Ask(AskError::NoAnswer))?;
        inner.asking.insert(ask, receipt);
        drop(inner);
        self.nudge.notify_one();
        Ok(())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared(..)")
    }
}
