//! Puts the parts together: what `main` starts.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::{Api, Client, ResourceExt};
use peerage_agent::health::{HealthServer, Readiness};
use peerage_crds::{AgentLink, AgentPeer, AgentRelay, AgentTrust};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::admission::settings::{AdmissionFile, ClusterDns, Settings, SettingsError};
use crate::admission::{self, Reviewer};
use crate::authority::store::Store;
use crate::authority::{Keyring, Stored};
use crate::certificates::bundle;
use crate::certificates::keeper::Keeper;
use crate::cluster::{Cluster, News};
use crate::denials::{Entry, Ledger};
use crate::facts::{LinkFacts, PeerFacts, PodFacts, RelayFacts, TrustFacts, Unreadable};
use crate::heap::Heap;
use crate::index::{Dirty, Index, Labels, Staleness};
use crate::key::ObjectKey;
use crate::leader::{Candidate, Leadership};
use crate::metrics::Metrics;
use crate::replicas::{Admitted, Follower, Others};
use crate::roll::{Denial, Holder, PodUid};
use crate::serve::Server;
use crate::status::Writer;
use crate::watch::{Delivery, Found, Health, Metadata, Source, Watch, Whole};
use crate::{clock, denials, links, notices, probe, serve};

/// What somebody chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// The operator's own namespace.
    pub namespace: String,
    /// Where agents and replicas are served.
    pub listen: SocketAddr,
    /// Where other replicas reach this one, `HOST:PORT`.
    pub advertise: String,
    /// Where health and metrics are served.
    pub health: SocketAddr,
    /// What this replica is called in the Lease.
    pub identity: String,
    /// How old agents' knowledge may become.
    pub staleness: Staleness,
    /// Where the API server's reviews are answered, and how; none for an operator that injects nothing.
    pub admission: Option<AdmissionOptions>,
}

/// What the webhooks need.
#[derive(Clone, Debug)]
pub struct AdmissionOptions {
    /// Where the API server is served.
    pub listen: SocketAddr,
    /// What the chart says of the webhooks and of the sidecar.
    pub file: AdmissionFile,
}

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no way to an API server.
    #[error("no API server: neither KUBECONFIG nor a ServiceAccount says where it is")]
    Client(#[source] Box<kube::Error>),
    /// A socket could not be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// What the chart says of injection cannot be read.
    #[error("cannot inject")]
    Admission(#[from] SettingsError),
    /// TLS could not be set up.
    #[error("cannot serve")]
    Tls(#[from] serve::TlsError),
}

/// How long the API server may take to take a connection, and to answer a request.
const CONNECTING: Duration = Duration::from_secs(5);
const ANSWERING: Duration = Duration::from_secs(35);
/// How often keys are read and time is looked at.
const KEYS_EVERY: Duration = Duration::from_secs(10);
/// How often ended denials are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// How long streams may take to hear that we stop.
const FAREWELL: Duration = Duration::from_millis(500);
/// Deliveries that may wait while the index is busy.
const QUEUE: usize = 256;
/// What is watched, in the order of `watches`. Agents compare what replicas have seen place by place: another kind goes to
/// the end. The last one is read again and again instead ([`links`]).
const KINDS: [&str; 8] =
    ["agentpeers", "agenttrusts", "agentlinks", "agentrelays", "pods", "namespaces", "configmaps", "tickets"];

/// A way to the API server: $KUBECONFIG, or the pod's ServiceAccount.
///
/// # Errors
/// [`RunError::Client`].
pub async fn client() -> Result<Client, RunError> {
    let mut config =
        kube::Config::infer().await.map_err(|error| RunError::Client(Box::new(kube::Error::InferConfig(error))))?;
    // A connection that died without a word must hold up nobody: not a status, not a token, not a denied instance. The
    // client's own defaults wait for ever. Above the longest silence of a watch, which has its own, shorter patience.
    (config.connect_timeout, config.read_timeout) = (Some(CONNECTING), Some(ANSWERING));
    config.reset_reader_on_write = true;
    Client::try_from(config).map_err(|error| RunError::Client(Box::new(error)))
}

/// Runs the operator until `stop` is done.
///
/// # Errors
/// [`RunError`].
pub async fn run(options: Options, client: Client, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let listen_error = |address| move |cause| RunError::Listen { address, cause };
    let listener = serve::bind(serve::present(options.listen)).await.map_err(listen_error(options.listen))?;
    let reviews = match &options.admission {
        Some(admission) => {
            Some(serve::bind(serve::present(admission.listen)).await.map_err(listen_error(admission.listen))?)
        }
        None => None,
    };
    let watches: Vec<_> = KINDS.into_iter().map(Health::new).collect();
    let (metrics, readiness) = (Arc::new(Metrics::default()), Readiness::default());
    let registry = metrics.registry(watches.clone());
    let health = HealthServer::bind(serve::present(options.health), readiness.clone(), registry)
        .await
        .map_err(listen_error(options.health))?;
    tokio::spawn(health.run());

    let mut stop = std::pin::pin!(stop);
    let waiting = readiness.wait_for("the authority's keys");
    let store = Store::new(&client, &options.namespace);
    let (stored, epoch) = tokio::select! {
        loaded = load(&store, &metrics) => loaded,
        () = &mut stop => return Ok(()),
    };
    drop(waiting);

    let (stopper, stopping) = watch::channel(false);
    let (news, heard) = mpsc::unbounded_channel();
    let sidecar = options.admission.as_ref().map(|admission| admission.file.agent.image.clone());
    let index = Index::new(stored.fingerprint(), clock::now()).injecting(sidecar).with_staleness(options.staleness);
    let cluster = Arc::new(Cluster::new(index, epoch, watches, metrics, news));
    let (keys, keyring) = watch::channel(Arc::new(stored.keyring(clock::now())));
    let candidate =
        Candidate::new(client.clone(), &options.namespace, options.identity.clone(), options.advertise.clone());
    let leadership = candidate.leadership();
    let others = Arc::new(Others::default());

    // Before the watches begin: whoever is written down was there when they list what is.
    let ledger = Ledger::new(client.clone(), &options.namespace);
    let enrolled = tokio::select! {
        enrolled = ledger.enrolled() => enrolled,
        () = &mut stop => return Ok(()),
    };
    let written = enrolled.iter().map(|(_, holder)| holder.instance).collect();
    start_watches(&cluster, &client, &options.namespace);
    tokio::spawn(recall(Arc::clone(&cluster), enrolled));
    let (judged, counted) = (Arc::new(Heap::default()), Arc::new(Heap::default()));
    let (tell_admitted, admitted) = mpsc::unbounded_channel();
    let (write_down, entries) = mpsc::unbounded_channel();
    let (notice, noticed) = mpsc::unbounded_channel();
    let (tell_probe, probed) = mpsc::channel(16);
    let heaps = [Arc::clone(&judged), Arc::clone(&counted)];
    tokio::spawn(spread_news(heard, Arc::clone(&others), heaps, tell_admitted, write_down, notice));
    let writer = Writer::new(Arc::clone(&cluster), Arc::clone(&others), client.clone(), leadership.clone());
    tokio::spawn(writer.run(judged, probed));
    let follower = Follower { cluster: Arc::clone(&cluster), keyring: keyring.clone(), leadership: leadership.clone() };
    tokio::spawn(follower.run(counted, admitted));
    tokio::spawn(probe::run(Arc::clone(&cluster), leadership.clone(), tell_probe));
    tokio::spawn(notices::run(Arc::clone(&cluster), client.clone(), leadership.clone(), noticed));
    if let (Some(admission), Some(listener)) = (options.admission, reviews) {
        start_admission(&cluster, &client, &options.namespace, admission, listener, &leadership, &readiness).await;
    }
    tokio::spawn(ledger.clone().run(entries, written));
    tokio::spawn(keep_time(Arc::clone(&cluster)));
    tokio::spawn(keep_ready(Arc::clone(&cluster), readiness));
    tokio::spawn(keep_keys(store, keys, Arc::clone(&cluster), leadership, ledger));
    let leading = tokio::spawn(candidate.run(stopping.clone()));

    let authority = cluster.read().index.authority();
    let server = Server::new(cluster, authority, keyring, client, others, stopping);
    let serving = tokio::spawn(server.run(listener));
    tracing::info!(%authority, listen = %options.listen, "serving");
    stop.await;
    // Nobody is left who would not want to hear it.
    let _ = stopper.send(true);
    let _ = tokio::time::timeout(FAREWELL * 4, leading).await;
    tokio::time::sleep(FAREWELL).await;
    match serving.await {
        Ok(result) => Ok(result?),
        Err(_) => Ok(()),
    }
}

/// Serves the API server's reviews. Not ready before there is a certificate for that.
async fn start_admission(
    cluster: &Arc<Cluster>,
    client: &Client,
    namespace: &str,
    AdmissionOptions { listen, file }: AdmissionOptions,
    listener: TcpListener,
    leadership: &watch::Receiver<Leadership>,
    readiness: &Readiness,
) {
    let (keep, current) = watch::channel(None);
    let keeper = Keeper::new(client.clone(), namespace, file.webhook.names);
    tokio::spawn(keeper.run(keep, leadership.clone()));
    let told = readiness.wait_for("the API server to know the webhooks' CA");
    tokio::spawn(bundle::run(client.clone(), file.webhook.configuration, current.clone(), leadership.clone(), told));
    let waiting = readiness.wait_for("the webhooks' certificate");
    let mut first = current.clone();
    tokio::spawn(async move {
        // An error means that the process ends.
        let _ = first.wait_for(Option::is_some).await;
        drop(waiting);
    });
    let cluster_dns = ClusterDns::here(&file.agent, namespace);
    if cluster_dns.is_none() {
        tracing::warn!("the cluster's DNS is not known: pods that use it are left alone; set agent.clusterDNS");
    }
    let authority = cluster.read().index.authority();
    let native = knows_native_sidecars(client).await;
    tracing::info!(%listen, ?cluster_dns, native, "injecting");
    let settings = Settings { agent: file.agent, authority, cluster_dns, native };
    let reviewer = Reviewer { cluster: Arc::clone(cluster), settings };
    tokio::spawn(admission::server::Server::new(reviewer, current).run(listener));
}

/// From 1.29 on; older servers drop the field that makes a container one, and its pod would never get past it.
async fn knows_native_sidecars(client: &Client) -> bool {
    loop {
        match client.apiserver_version().await {
            Ok(version) => return is_native(&version.major, &version.minor),
            Err(error) => tracing::warn!(%error, "the API server does not say which version it is"),
        }
        tokio::time::sleep(KEYS_EVERY / 5).await;
    }
}

/// Some servers put a `+` behind the number.
fn is_native(major: &str, minor: &str) -> bool {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    number(major).zip(number(minor)).is_some_and(|version| version >= (1, 29))
}

/// Tries until there are keys; what stands in the way is said each time.
async fn load(store: &Store, metrics: &Metrics) -> (Stored, u64) {
    loop {
        let loaded = async {
            Ok::<_, crate::authority::store::AuthorityError>((store.load(clock::now()).await?, store.epoch().await?))
        };
        match loaded.await {
            Ok(loaded) => {
                metrics.authority.set(1);
                return loaded;
            }
            Err(error) => {
                store.complain(&error).await;
                tokio::time::sleep(KEYS_EVERY / 5).await;
            }
        }
    }
}

/// Reads the keys again and again: another replica rotates them, or somebody breaks them.
async fn keep_keys(
    store: Store,
    keys: watch::Sender<Arc<Keyring>>,
    cluster: Arc<Cluster>,
    leadership: watch::Receiver<Leadership>,
    ledger: Ledger,
) {
    let mut swept = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(KEYS_EVERY).await;
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

/// Looks at who enrolled before, as soon as every watch has told what there is.
async fn recall(cluster: Arc<Cluster>, enrolled: Vec<(PodUid, Holder)>) {
    let mut changes = cluster.changes();
    // A watch without objects changes nothing, so time passing is a reason to look, too.
    while cluster.stale().is_some() {
        let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
    }
    cluster.recall(enrolled);
}

async fn keep_time(cluster: Arc<Cluster>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        cluster.advance(clock::now());
    }
}

/// Not ready while a watch is not to be relied upon.
async fn keep_ready(cluster: Arc<Cluster>, readiness: Readiness) {
    let mut pending = None;
    let mut reported = None;
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
                if !dirty.pods.is_empty() {
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

fn start_watches(cluster: &Arc<Cluster>, client: &Client, namespace: &str) {
    let [peers, trusts, links, relays, pods, namespaces, maps, tickets] = &cluster.watches[..] else {
        unreachable!("there is one for each of KINDS");
    };
    fn whole<K, T>(read: fn(&K) -> Result<T, Unreadable>) -> impl Fn(DeserializeGuard<K>) -> Result<T, String> {
        move |object| read(&object.0.map_err(|error| error.error)?).map_err(|error| error.to_string())
    }
    let none = (None, None);
    let c = client;
    follow(
        cluster,
        peers,
        Whole::<AgentPeer>(Api::all(c.clone())),
        none.clone(),
        whole(PeerFacts::read),
        |cluster, key, found, told| match found {
            Found::Unreadable => cluster.change_told(told, |index| index.hide_peer(&key)),
            Found::Here(facts) => cluster.change_told(told, |index| index.set_peer(&key, Some(facts))),
            Found::Gone => cluster.change_told(told, |index| index.set_peer(&key, None)),
        },
    );
    follow(
        cluster,
        trusts,
        Whole::<AgentTrust>(Api::all(c.clone())),
        none.clone(),
        whole(TrustFacts::read),
        |cluster, key, found, told| match found {
            Found::Unreadable => cluster.change_told(told, |index| index.hide_trust(&key)),
            Found::Here(facts) => cluster.change_told(told, |index| index.set_trust(&key, Some(facts))),
            Found::Gone => cluster.change_told(told, |index| index.set_trust(&key, None)),
        },
    );
    follow(
        cluster,
        links,
        Whole::<AgentLink>(Api::all(c.clone())),
        none.clone(),
        whole(LinkFacts::read),
        |cluster, key, found, told| match found {
            Found::Unreadable => cluster.change_told(told, |index| index.hide_link(&key.name)),
            Found::Here(facts) => cluster.change_told(told, |index| index.set_link(&key.name, Some(facts))),
            Found::Gone => cluster.change_told(told, |index| index.set_link(&key.name, None)),
        },
    );
    follow(
        cluster,
        relays,
        Whole::<AgentRelay>(Api::all(c.clone())),
        none.clone(),
        whole(RelayFacts::read),
        |cluster, key, found, told| match found {
            // What was read last stands: agents lose no relay because somebody changed a schema.
            Found::Unreadable => {}
            Found::Here(facts) => cluster.change_told(told, |index| index.set_relay(&key.name, Some(facts))),
            Found::Gone => cluster.change_told(told, |index| index.set_relay(&key.name, None)),
        },
    );
    // A pod that has finished holds no agent any more, though its object stays.
    let running = Some("status.phase!=Succeeded,status.phase!=Failed".to_owned());
    let pod = |pod: PartialObjectMeta<Pod>| Ok::<_, String>(PodFacts::read(&pod));
    follow(cluster, pods, Metadata::<Pod>(Api::all(c.clone())), (running, None), pod, |cluster, key, facts, told| {
        cluster.change_told(told, |index| index.set_pod(&key, facts.readable()));
    });
    let labels = |object: PartialObjectMeta<Namespace>| Ok::<Labels, String>(object.labels().clone());
    follow(
        cluster,
        namespaces,
        Metadata::<Namespace>(Api::all(c.clone())),
        none,
        labels,
        |cluster, key, labels, told| {
            cluster.change_told(told, |index| index.set_namespace(&key.name, labels.readable()));
        },
    );
    let own: Api<DeserializeGuard<ConfigMap>> = Api::namespaced(c.clone(), namespace);
    let read = |map: DeserializeGuard<ConfigMap>| -> Result<Vec<Denial>, String> {
        let map = map.0.map_err(|error| error.error)?;
        Ok(map.data.as_ref().map(denials::read).unwrap_or_default())
    };
    let label = Some(denials::LABEL.to_owned());
    follow(cluster, maps, Whole::<ConfigMap>(own), (None, label), read, |cluster, _, found, _| {
        denials::apply(cluster, found.readable())
    });
    tokio::spawn(links::run(Arc::clone(cluster), c.clone(), namespace.to_owned(), Arc::clone(tickets)));
}

/// Starts one watch and applies what it delivers.
fn follow<S: Source, T: Send + 'static>(
    cluster: &Arc<Cluster>,
    health: &Arc<Health>,
    source: S,
    (fields, labels): (Option<String>, Option<String>),
    read: impl Fn(S::Object) -> Result<T, String> + Send + Sync + 'static,
    apply: impl Fn(&Arc<Cluster>, ObjectKey, Found<T>, Instant) + Send + 'static,
) {
    let (out, mut deliveries) = mpsc::channel(QUEUE);
    let watch = Watch { source, fields, labels, read, health: Arc::clone(health) };
    tokio::spawn(watch.run(out));
    let (cluster, health) = (Arc::clone(cluster), Arc::clone(health));
    tokio::spawn(async move {
        while let Some(delivery) = deliveries.recv().await {
            match delivery {
                Delivery::Object(key, facts, told, version) => {
                    health.applying(version);
                    apply(&cluster, key, facts, told);
                }
                Delivery::Version(version) => health.applied(version),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::is_native;

    #[test]
    fn native_sidecars_are_there_from_1_29_on() {
        for (version, expected) in [(("1", "28"), false), (("1", "29"), true), (("1", "34+"), true), (("2", "0"), true)]
        {
            assert_eq!(is_native(version.0, version.1), expected, "{version:?}");
        }
        assert!(!is_native("", "v"), "what is not understood is taken for old");
    }
}
