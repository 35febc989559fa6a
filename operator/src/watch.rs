//! Watches: what the API server knows, in the order in which it changed.
//!
//! kube-runtime has a watcher. This one differs in what the operator promises of itself: it says when the server was
//! last heard, also when nothing changed, and up to which resourceVersion everything has been seen. Both come from
//! bookmarks and from the ends of requests, which a watcher of objects does not show.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt};
use kube::api::{Api, ListParams, WatchParams};
use kube::core::{DeserializeGuard, ObjectList, PartialObjectMeta, WatchEvent};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::key::ObjectKey;

/// How long one watch request lasts. At its end the server ends it and the next one is answered at once, so silence for
/// longer is a dead connection.
const REQUEST: Duration = Duration::from_secs(25);
/// How long after that we give up, and how long the answer to a new request may take. A connection that died without a
/// word says nothing, so this is the only way to know.
const GRACE: Duration = Duration::from_secs(5);
/// How long one page of a list may take.
const LISTING: Duration = Duration::from_secs(30);
/// After so long without a word a watch is stale and its replica serves nobody. A request that dies just after it was
/// answered, and the next one, which is answered, take less; and an alarm must be there within a minute.
pub const STALE: Duration = Duration::from_secs(45);
/// Objects in one page of a list.
const PAGE: u32 = 500;
/// First and longest wait after a failure.
const BACKOFF: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(10)];

/// How it is with one watch.
#[derive(Debug)]
pub struct Health {
    kind: &'static str,
    heard: Mutex<Instant>,
    synced: AtomicBool,
    version: AtomicU64,
    shown: AtomicU64,
    /// Objects that could not be read, at the last count.
    unreadable: AtomicU64,
}

impl Health {
    /// Of a watch that has not begun.
    #[must_use]
    pub fn new(kind: &'static str) -> Arc<Self> {
        Arc::new(Self {
            kind,
            heard: Mutex::new(Instant::now()),
            synced: AtomicBool::new(false),
            version: AtomicU64::new(0),
            shown: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
        })
    }

    /// What it watches.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// How long ago the server was heard.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Whether what it delivered may be relied upon.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.synced.load(Ordering::Acquire) && self.age() < STALE
    }

    /// The resourceVersion up to which everything was applied.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The highest resourceVersion of a change that may have been applied.
    #[must_use]
    pub fn shown(&self) -> u64 {
        self.shown.load(Ordering::Acquire)
    }

    /// Objects that could not be read.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// The server answered, and what it said shows how things are.
    pub fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// A change of this version is about to be applied; said by whoever will apply it.
    pub fn applying(&self, version: u64) {
        self.shown.fetch_max(version, Ordering::AcqRel);
    }

    /// Everything up to `version` was applied; said by whoever applied it.
    pub fn applied(&self, version: u64) {
        self.version.fetch_max(version, Ordering::AcqRel);
        self.synced.store(true, Ordering::Release);
    }
}

/// What became of an object.
#[derive(Debug)]
pub enum Found<T> {
    /// It came or changed.
    Here(T),
    /// It was deleted.
    Gone,
    /// It is there, and we cannot read it, for this reason.
    Unreadable(String),
}

impl<T> Found<T> {
    /// What is known of it, where an object that cannot be read is as good as none.
    pub fn readable(self) -> Option<T> {
        match self {
            Self::Here(facts) => Some(facts),
            Self::Gone | Self::Unreadable(_) => None,
        }
    }
}

/// What a watch delivers.
#[derive(Debug)]
pub enum Delivery<T> {
    /// An object, what became of it, when we were told, and at which version it did, as far as that is known.
    Object(ObjectKey, Found<T>, Instant, u64),
    /// All of the above up to this version has been delivered.
    Version(u64),
}

/// Where objects come from: whole, or their metadata only.
pub trait Source: Send + Sync + 'static {
    /// What is delivered.
    type Object: ResourceExt + Clone + Send;

    /// One page.
    fn list(&self, params: &ListParams) -> impl Future<Output = kube::Result<ObjectList<Self::Object>>> + Send;

    /// One watch request.
    fn watch(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> impl Future<Output = kube::Result<impl Stream<Item = kube::Result<WatchEvent<Self::Object>>> + Send>> + Send;
}

/// Whole objects, each of which may turn out not to be readable.
#[derive(Debug)]
pub struct Whole<K>(pub Api<DeserializeGuard<K>>);

/// Metadata only.
#[derive(Debug)]
pub struct Metadata<K>(pub Api<K>);

impl<K> Source for Whole<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    type Object = DeserializeGuard<K>;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Self::Object>> {
        self.0.list(params).await
    }

    async fn watch(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> kube::Result<impl Stream<Item = kube::Result<WatchEvent<Self::Object>>> + Send> {
        self.0.watch(params, version).await
    }
}

impl<K> Source for Metadata<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    type Object = PartialObjectMeta<K>;

    async fn list(&self, params: &ListParams) -> kube::Result<ObjectList<Self::Object>> {
        self.0.list_metadata(params).await
    }

    async fn watch(
        &self,
        params: &WatchParams,
        version: &str,
    ) -> kube::Result<impl Stream<Item = kube::Result<WatchEvent<Self::Object>>> + Send> {
        self.0.watch_metadata(params, version).await
    }
}

/// One kind, watched for ever.
pub struct Watch<S, F> {
    /// Where from.
    pub source: S,
    /// Which objects, as a field selector.
    pub fields: Option<String>,
    /// Which objects, as a label selector.
    pub labels: Option<String>,
    /// What is kept of an object, or why it cannot be read.
    pub read: F,
    /// Where it says how it is.
    pub health: Arc<Health>,
}

/// Nobody takes deliveries any more.
struct Closed;

impl<S, F> Debug for Watch<S, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({})", self.health.kind)
    }
}

enum Ended {
    /// Go on from this version.
    At(String),
    /// The server does not remember our version: begin with a list.
    Expired,
}

impl<S: Source, T: Send, F: Fn(S::Object) -> Result<T, String> + Send> Watch<S, F> {
    /// Runs until nobody takes what it delivers.
    pub async fn run(self, out: mpsc::Sender<Delivery<T>>) {
        let mut known = BTreeSet::new();
        let mut version: Option<String> = None;
        let mut wait = BACKOFF[0];
        loop {
            let result = match &version {
                None => self.list(&mut known, &out).await.map(|listed| listed.map(Ended::At)),
                Some(from) => self.watch_once(from.clone(), &mut known, &out).await,
            };
            match result {
                Err(Closed) => return,
                Ok(Ok(Ended::At(next))) => (version, wait) = (Some(next), BACKOFF[0]),
                Ok(Ok(Ended::Expired)) => version = None,
                Ok(Err(error)) => {
                    tracing::warn!(kind = self.health.kind, %error, "a watch failed and is tried again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(BACKOFF[1]);
                }
            }
        }
    }

    async fn list(
        &self,
        known: &mut BTreeSet<ObjectKey>,
        out: &mpsc::Sender<Delivery<T>>,
    ) -> Result<kube::Result<String>, Closed> {
        let mut params = ListParams { limit: Some(PAGE), ..ListParams::default() };
        (params.field_selector, params.label_selector) = (self.fields.clone(), self.labels.clone());
        let mut listed = BTreeSet::new();
        loop {
            let page = match in_time(LISTING, self.source.list(&params)).await {
                Ok(page) => page,
                Err(error) => return Ok(Err(error)),
            };
            self.health.hear();
            for object in page.items {
                listed.insert(self.put(object, out).await?);
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let version = page.metadata.resource_version.unwrap_or_default();
                for gone in known.difference(&listed) {
                    send(out, Delivery::Object(gone.clone(), Found::Gone, Instant::now(), number(&version))).await?;
                }
                *known = listed;
                self.reached(&version, out).await?;
                return Ok(Ok(version));
            }
        }
    }

    async fn watch_once(
        &self,
        mut version: String,
        known: &mut BTreeSet<ObjectKey>,
        out: &mpsc::Sender<Delivery<T>>,
    ) -> Result<kube::Result<Ended>, Closed> {
        let params = WatchParams {
            timeout: Some(u32::try_from(REQUEST.as_secs()).unwrap_or(u32::MAX)),
            bookmarks: true,
            field_selector: self.fields.clone(),
            label_selector: self.labels.clone(),
            ..WatchParams::default()
        };
        let from = version.clone();
        let stream = match in_time(GRACE, self.source.watch(&params, &from)).await {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error)),
        };
        self.health.hear();
        let mut stream = pin!(stream.into_stream());
        let end = tokio::time::Instant::now() + REQUEST + GRACE;
        loop {
            let event = match tokio::time::timeout_at(end, stream.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Ok(Ended::At(version))),
                Err(_) => return Ok(Err(silence())),
            };
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    version = object.resource_version().unwrap_or(version);
                    known.insert(self.put(object, out).await?);
                }
                Ok(WatchEvent::Deleted(object)) => {
                    version = object.resource_version().unwrap_or(version);
                    let key = key_of(&object);
                    known.remove(&key);
                    send(out, Delivery::Object(key, Found::Gone, Instant::now(), number(&version))).await?;
                }
                Ok(WatchEvent::Bookmark(bookmark)) => version = bookmark.metadata.resource_version,
                // 410 Gone: what we saw last was compacted away.
                Ok(WatchEvent::Error(status)) if status.code == 410 => return Ok(Ok(Ended::Expired)),
                Ok(WatchEvent::Error(status)) => return Ok(Err(kube::Error::Api(status))),
                Err(error) => return Ok(Err(error)),
            }
            self.health.hear(); // an error shows nothing of how things are
            self.reached(&version, out).await?;
        }
    }

    async fn put(&self, object: S::Object, out: &mpsc::Sender<Delivery<T>>) -> Result<ObjectKey, Closed> {
        let (key, told) = (key_of(&object), Instant::now());
        let version = number(&object.resource_version().unwrap_or_default());
        let facts = match (self.read)(object) {
            Ok(facts) => Found::Here(facts),
            Err(error) => {
                // It stalls nobody else.
                self.health.unreadable.fetch_add(1, Ordering::Relaxed);
                tracing::error!(kind = self.health.kind, object = %key, error, "an object cannot be read and is ignored");
                Found::Unreadable(error)
            }
        };
        send(out, Delivery::Object(key.clone(), facts, told, version)).await?;
        Ok(key)
    }

    async fn reached(&self, version: &str, out: &mpsc::Sender<Delivery<T>>) -> Result<(), Closed> {
        match number(version) {
            0 => Ok(()),
            version => send(out, Delivery::Version(version)).await,
        }
    }
}

/// A resourceVersion as a number, which they are comparable as since Kubernetes 1.35 and were before; 0 for none.
pub(crate) fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

fn key_of(object: &impl ResourceExt) -> ObjectKey {
    ObjectKey::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// The client itself waits for ever.
async fn in_time<T>(patience: Duration, answer: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| Err(silence()))
}

fn silence() -> kube::Error {
    kube::Error::Service(Box::new(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        "the API server was not heard in time; the connection is given up",
    )))
}

async fn send<T>(out: &mpsc::Sender<Delivery<T>>, delivery: Delivery<T>) -> Result<(), Closed> {
    out.send(delivery).await.map_err(|_| Closed)
}
