//! Puts the parts together: what `main` starts.
//!
//! Here is the order of a start, which matters: sockets before keys, keys before anybody is served, who enrolled before the
//! watches begin. What each part does is in its own module.

mod injecting;
mod keys;
mod tasks;
mod watching;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use peerage_agent::health::{HealthServer, Readiness};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::authority::store::Store;
use crate::cluster::Cluster;
use crate::denials::Ledger;
use crate::index::{Index, Staleness};
use crate::leader::{Candidate, Leadership};
use crate::metrics::Metrics;
use crate::replicas::Others;
use crate::serve::Server;
use crate::watch::Health;
use crate::{clock, managed, serve};

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
    /// How relays are run; none for an operator that runs none.
    pub relays: Option<managed::Settings>,
}

/// What the webhooks need.
#[derive(Clone, Debug)]
pub struct AdmissionOptions {
    /// Where the API server is served.
    pub listen: SocketAddr,
    /// The file in which the chart says how the webhooks and the sidecar are.
    pub file: PathBuf,
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
    /// TLS could not be set up.
    #[error("cannot serve")]
    Tls(#[from] serve::TlsError),
}

/// How long the API server may take to take a connection, and to answer a request.
const CONNECTING: Duration = Duration::from_secs(5);
const ANSWERING: Duration = Duration::from_secs(35);
/// How long streams may take to hear that we stop.
const FAREWELL: Duration = Duration::from_millis(500);

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

/// What every task of an operator stands on.
struct Ground {
    cluster: Arc<Cluster>,
    client: Client,
    namespace: String,
    leadership: watch::Receiver<Leadership>,
}

/// Runs the operator until `stop` is done.
///
/// # Errors
/// [`RunError`].
pub async fn run(options: Options, client: Client, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let (listener, reviews) = listen(&options).await?;
    let watches: Vec<_> = watching::KINDS.into_iter().map(Health::new).collect();
    let (metrics, readiness) = (Arc::new(Metrics::default()), Readiness::default());
    // Between two reasons not to be ready there must be no moment without any: the Service would send reviews here.
    let starting = readiness.wait_for("everything to be started");
    let registry = metrics.registry(watches.clone());
    let health = HealthServer::bind(serve::present(options.health), readiness.clone(), registry);
    tokio::spawn(health.await.map_err(|cause| RunError::Listen { address: options.health, cause })?.run());

    let mut stop = std::pin::pin!(stop);
    let waiting = readiness.wait_for("the authority's keys");
    let store = Store::new(&client, &options.namespace);
    let (stored, epoch) = tokio::select! {
        loaded = keys::load(&store, &metrics) => loaded,
        () = &mut stop => return Ok(()),
    };
    drop(waiting);

    let (file, _unusable) = injecting::read(options.admission.as_ref(), &readiness);
    let (stopper, stopping) = watch::channel(false);
    let (news, heard) = mpsc::unbounded_channel();
    let image = file.as_ref().map(|file| file.agent.image.clone());
    let index = Index::new(stored.fingerprint(), clock::now()).injecting(image).with_staleness(options.staleness);
    let cluster = Arc::new(Cluster::new(index, epoch, watches, metrics, news));
    let (keep, keyring) = watch::channel(Arc::new(stored.keyring(clock::now())));
    let candidate = Candidate::new(client.clone(), &options.namespace, options.identity, options.advertise);
    let leadership = candidate.leadership();
    let ground = Ground { cluster, client, namespace: options.namespace, leadership };
    let others = Arc::new(Others::default());

    // Before the watches begin: whoever is written down was there when they list what is.
    let authority = ground.cluster.read().index.authority();
    let ledger = Ledger::new(ground.client.clone(), &ground.namespace, authority);
    let enrolled = tokio::select! {
        enrolled = ledger.enrolled() => enrolled,
        () = &mut stop => return Ok(()),
    };
    watching::start(&ground);
    let written = enrolled.iter().map(|(_, holder)| holder.instance).collect();
    let told = tasks::Told { heard, others: Arc::clone(&others), keyring: keyring.clone(), relays: options.relays };
    tasks::start_telling(&ground, told, ledger.clone(), written);
    tasks::start_keeping(&ground, enrolled, readiness.clone());
    let reviewing = match (file, reviews) {
        (Some(file), Some(listener)) => {
            Some(injecting::start(&ground, file, listener, &readiness, stopping.clone()).await)
        }
        (None, _) | (_, None) => None,
    };
    tokio::spawn(keys::keep(store, keep, Arc::clone(&ground.cluster), ground.leadership.clone(), ledger));
    let leading = tokio::spawn(candidate.run(stopping.clone()));

    let server = Server::new(ground.cluster, authority, keyring, ground.client, others, stopping);
    let serving = tokio::spawn(server.run(listener));
    tracing::info!(%authority, listen = %options.listen, "serving");
    drop(starting);
    stop.await;
    // Agents and the other replicas hear of it at once; nobody is left who would not want to.
    let _ = stopper.send(true);
    let _ = tokio::time::timeout(FAREWELL * 4, leading).await;
    tokio::time::sleep(FAREWELL).await;
    if let Some(reviewing) = reviewing {
        // A panic of it is in the log, and changes nothing any more.
        let _ = reviewing.await;
    }
    match serving.await {
        Ok(result) => Ok(result?),
        Err(_) => Ok(()),
    }
}

/// The sockets for agents, and for the API server's reviews if there is to be one.
async fn listen(options: &Options) -> Result<(TcpListener, Option<TcpListener>), RunError> {
    let bind =
        async |address| serve::bind(serve::present(address)).await.map_err(|cause| RunError::Listen { address, cause });
    let agents = bind(options.listen).await?;
    let reviews = match &options.admission {
        Some(admission) => Some(bind(admission.listen).await?),
        None => None,
    };
    Ok((agents, reviews))
}
