//! Relays that the operator runs, in its own namespace: for each replica of an AgentRelay with `managed` a key, a Deployment
//! of one pod, and a Service. One key is one relay: two processes with the same would each know half of the agents.
//!
//! The leader does it. What there should be follows from the AgentRelay alone ([`manifest`]); it is applied again and again,
//! so what somebody else changed is mended. Deployment and Service belong to the AgentRelay and go with it; the key is in a
//! Secret that has all of them ([`keys`]). Where a replica is reached is read from its Service and told to the status, from
//! which every operator tells its agents.

pub mod keys;
pub mod manifest;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use peerage_crds::Reason;
use peerage_model::Fingerprint;
use peerage_model::relay::RelayInfo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::facts::ManagedFacts;
use crate::key::Object;
use crate::leader::Leadership;
use crate::status::{FIELD_MANAGER, Finding};
use keys::{Keys, KeysError};
use manifest::Part;

/// How often all of it is applied again.
const EVERY: Duration = Duration::from_secs(30);
/// The same while something is missing, such as an address that a load balancer gives.
const SOON: Duration = Duration::from_secs(2);
/// For how long changes of the cluster are gathered before they are looked at.
const GATHER: Duration = Duration::from_millis(200);

/// What whoever installs says of the relays' pods: JSON, which the chart writes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Their image.
    pub image: String,
    /// When it is pulled; the cluster's own rule if it is left out.
    #[serde(default)]
    pub image_pull_policy: Option<String>,
    /// With which Secrets.
    #[serde(default)]
    pub image_pull_secrets: Vec<Value>,
    /// Further options of the program.
    #[serde(default)]
    pub args: Vec<String>,
    /// `resources` of the container.
    #[serde(default)]
    pub resources: Value,
    /// `securityContext` of the pod, which PodSecurity `restricted` must admit.
    pub pod_security_context: Value,
    /// On which nodes they may run.
    #[serde(default)]
    pub node_selector: Value,
    /// In spite of what.
    #[serde(default)]
    pub tolerations: Vec<Value>,
}

impl std::str::FromStr for Settings {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

/// What became of one managed relay.
#[derive(Clone, Debug, PartialEq)]
pub enum Running {
    /// It does not run, for this reason, and what to do.
    Refused(Reason, String),
    /// It runs.
    At {
        /// Where its replicas are, of those that have an address.
        relays: Vec<RelayInfo>,
        /// What the others wait for.
        waiting: Option<String>,
    },
}

/// Runs relays while this replica leads, for ever. Without `settings` it says of each that it does not.
pub async fn run(
    cluster: Arc<Cluster>,
    client: kube::Client,
    namespace: String,
    settings: Option<Settings>,
    mut leadership: watch::Receiver<Leadership>,
    found: mpsc::Sender<Finding>,
) {
    let authority = cluster.read().index.authority();
    let runner = settings.map(|settings| Runner::new(client, &namespace, settings, authority));
    let mut changes = cluster.changes();
    loop {
        if leadership.wait_for(|leadership| *leadership == Leadership::Ours).await.is_err() {
            return;
        }
        let wanted = wanted(&cluster);
        let mut is_settled = false;
        // An AgentRelay that was not seen yet must not be taken for one that was deleted.
        if cluster.stale().is_none() {
            let states = match &runner {
                Some(runner) => runner.round(&wanted, |name| is_known(&cluster, name)).await,
                None => Ok(wanted.keys().map(|name| (name.clone(), refused_by_chart())).collect()),
            };
            match states {
                Ok(states) => {
                    is_settled = states.values().all(|state| !matches!(state, Running::At { waiting: Some(_), .. }));
                    for (name, state) in states {
                        if found.send(Finding::Runs(name, state)).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "managed relays could not be looked after"),
            }
        }
        let changed = async {
            while self::wanted(&cluster) == wanted && changes.changed().await.is_ok() {
                tokio::time::sleep(GATHER).await;
            }
        };
        let _ = timeout(if is_settled { EVERY } else { SOON }, changed).await;
    }
}

fn refused_by_chart() -> Running {
    let text = "this operator runs no relays: set the chart's managedRelays.enabled, or run one and give its address";
    Running::Refused(Reason::NotEnabled, text.to_owned())
}

/// What an AgentRelay asks for, and who may bind there beside the agents of this cluster.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    facts: ManagedFacts,
    guests: BTreeSet<Fingerprint>,
}

fn wanted(cluster: &Cluster) -> BTreeMap<String, Wanted> {
    let state = cluster.read();
    let authority = |link: &String| state.index.link(link)?.authority;
    let relays = state.index.relays().filter_map(|(name, relay)| {
        let facts = relay.managed.clone()?;
        let guests = facts.spec.allowed_links.iter().filter_map(authority).collect();
        Some((name.clone(), Wanted { facts, guests }))
    });
    relays.collect()
}

/// Whether there is an AgentRelay of this name, readable or not.
fn is_known(cluster: &Cluster, name: &str) -> bool {
    let state = cluster.read();
    state.index.relay(name).is_some() || state.index.unreadable().contains_key(&Object::Relay(name.to_owned()))
}

/// Applies, and reads what came of it.
struct Runner {
    keys: Keys,
    deployments: Api<Deployment>,
    services: Api<Service>,
    settings: Settings,
    authority: Fingerprint,
    namespace: String,
}

impl Runner {
    fn new(client: kube::Client, namespace: &str, settings: Settings, authority: Fingerprint) -> Self {
        Self {
            keys: Keys::new(client.clone(), namespace),
            deployments: Api::namespaced(client.clone(), namespace),
            services: Api::namespaced(client, namespace),
            settings,
            authority,
            namespace: namespace.to_owned(),
        }
    }

    /// Everything once: what there should be is there afterwards, and nothing else of ours. A relay whose objects the API
    /// server does not take holds up no other.
    async fn round(
        &self,
        wanted: &BTreeMap<String, Wanted>,
        is_known: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, Running>, KeysError> {
        let parts: Vec<Part> =
            wanted.iter().flat_map(|(name, wanted)| Part::all(name, &wanted.facts, &wanted.guests)).collect();
        let ours = ListParams::default().labels(&format!("{}={}", manifest::COMPONENT, manifest::MANAGED));
        let deployments = by_name(self.deployments.list(&ours).await?.items);
        let services = by_name(self.services.list(&ours).await?.items);
        let has_run = |part: &Part| deployments.get(&part.name()).is_some_and(|there| part.owns(there));
        let remembered = |part: &Part| part.has_address || has_run(part);
        let entries = parts.iter().map(|part| (part.entry(), remembered(part))).collect();
        let keys = self.keys.ensure(&entries, |entry| is_known(manifest::relay_of(entry))).await?;
        let mut states = BTreeMap::new();
        for part in &parts {
            let state = states.entry(part.relay.clone()).or_insert(Running::At { relays: Vec::new(), waiting: None });
            let Some(key) = keys.get(&part.entry()) else {
                *state = Running::Refused(Reason::SecretNotFound, self.lost(part));
                continue;
            };
            let put = self.put(part, deployments.contains_key(&part.name()), services.contains_key(&part.name())).await;
            let Running::At { relays, waiting } = state else { continue };
            match put.as_ref().map(|service| part.address(service, *key)) {
                Ok(Some(relay)) => relays.push(relay),
                Ok(None) => *waiting = Some(self.waits(part)),
                Err(error) => {
                    tracing::warn!(relay = part.relay, replica = part.replica, %error, "a managed relay could not be applied");
                    // One that runs as it was is used all the same.
                    let there = services.get(&part.name()).filter(|_| has_run(part));
                    relays.extend(there.and_then(|service| part.address(service, *key)));
                    *waiting = Some(self.fails(part, error));
                }
            }
        }
        let names: Vec<_> = parts.iter().map(Part::name).collect();
        let left = |object: &str, relay: Option<&String>| {
            let unreadable = relay.is_some_and(|relay| !wanted.contains_key(relay) && is_known(relay));
            !names.iter().any(|name| name == object) && !unreadable
        };
        remove(&self.deployments, &deployments, left).await;
        remove(&self.services, &services, left).await;
        Ok(states)
    }

    /// Applies one replica; its Service as it is then.
    async fn put(&self, part: &Part, has_deployment: bool, has_service: bool) -> kube::Result<Service> {
        let deployment = part.deployment(&self.settings, &self.authority);
        put(&self.deployments, &part.name(), deployment, has_deployment).await?;
        put(&self.services, &part.name(), part.service(), has_service).await
    }

    fn fails(&self, part: &Part, error: &kube::Error) -> String {
        format!(
            "Deployment or Service {} in namespace {} could not be written ({error}); mend what the API server names, here or in \
             this AgentRelay: it is tried again all the time",
            part.name(),
            self.namespace
        )
    }

    fn lost(&self, part: &Part) -> String {
        format!(
            "Secret {} in namespace {} has lost `{}`, the key that agents know this relay by: restore it from a backup, or delete \
             this AgentRelay and make it anew, as another relay",
            keys::NAME,
            self.namespace,
            part.entry()
        )
    }

    fn waits(&self, part: &Part) -> String {
        format!(
            "Service {} in namespace {} has no address yet; see its Events, or set managed.service.host",
            part.name(),
            self.namespace
        )
    }
}

fn by_name<K: ResourceExt>(items: Vec<K>) -> BTreeMap<String, K> {
    items.into_iter().map(|item| (item.name_any(), item)).collect()
}

/// Creates or applies. An apply that creates would need both rights as well, and the audit log would show one of them.
async fn put<K>(api: &Api<K>, name: &str, object: Value, is_there: bool) -> kube::Result<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
{
    if !is_there {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let object = serde_json::from_value(object.clone()).map_err(kube::Error::SerdeError)?;
        match api.create(&params, &object).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {} // it is there, without our label
            other => return other,
        }
    }
    api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await
}

/// What cannot be removed is tried in the next round again.
async fn remove<K>(api: &Api<K>, there: &BTreeMap<String, K>, is_left: impl Fn(&str, Option<&String>) -> bool)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    for (name, _) in there.iter().filter(|(name, object)| is_left(name, object.labels().get(manifest::RELAY))) {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => tracing::info!(kind = %K::kind(&()), name, "of a relay that nobody wants any more: removed"),
            Err(kube::Error::Api(status)) if status.code == 404 => {} // it went with its AgentRelay
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), name, %error, "of a relay that nobody wants any more: not removed")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use data_encoding::BASE64;
    use http_body_util::{BodyExt, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Method, Request, Response};
    use hyper_util::rt::TokioIo;
    use peerage_crds::relay::{ManagedRelay, RelayService, ServiceType};
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    /// What an API server answers that has keys for `bad` and `good`, the Deployment of a relay that is gone, and takes no
    /// Deployment of `bad`.
    async fn answer(request: Request<Incoming>, deleted: mpsc::UnboundedSender<String>) -> (u16, Value) {
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        let body = request.into_body().collect().await.expect("a body").to_bytes();
        let kind = path.rsplit('/').find(|word| !word.starts_with("relay-")).unwrap_or_default();
        match (method, kind) {
            (Method::GET, "peerage-relays") => {
                // 52 digits of base32, as the key's file is written.
                let key = BASE64.encode("A".repeat(52).as_bytes());
                (200, json!({"metadata": {"name": "peerage-relays"}, "data": {"bad.0": key, "good.0": key}}))
            }
            (Method::GET, "deployments") => {
                (200, json!({"metadata": {}, "items": [{"metadata": {"name": "relay-gone-0"}}]}))
            }
            (Method::GET, _) => (200, json!({"metadata": {}, "items": []})),
            (Method::DELETE, _) => {
                deleted.send(path).expect("the test listens");
                (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))
            }
            (_, kind) => {
                let object: Value = serde_json::from_slice(&body).expect("an object");
                if kind == "deployments" && object["metadata"]["name"] == "relay-bad-0" {
                    return (
                        403,
                        json!({"kind": "Status", "status": "Failure", "code": 403, "message": "no, says a webhook"}),
                    );
                }
                (201, object)
            }
        }
    }

    async fn api_server(deleted: mpsc::UnboundedSender<String>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let deleted = deleted.clone();
                let service = service_fn(move |request| {
                    let answer = answer(request, deleted.clone());
                    async move {
                        let (status, body) = answer.await;
                        let response =
                            Response::builder().status(status).body(Full::new(Bytes::from(body.to_string())));
                        Ok::<_, Infallible>(response.expect("a response"))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        address
    }

    #[tokio::test]
    async fn a_relay_that_the_api_server_refuses_holds_up_neither_the_others_nor_what_is_to_be_removed() {
        let (sender, mut deleted) = mpsc::unbounded_channel();
        let address = api_server(sender).await;
        let config = kube::Config::new(format!("http://{address}").parse().expect("an address"));
        let client = kube::Client::try_from(config).expect("a client connects when it is used");
        let runner = Runner::new(client, "peerage", Settings::default(), Fingerprint([1; 32]));
        let relay = |name: &str| {
            let host = Some(format!("{name}.example"));
            let service = RelayService { type_: ServiceType::LoadBalancer, port: 443, node_port: None, host };
            let spec = ManagedRelay { service, replicas: 1, allowed_links: Vec::new() };
            let facts = ManagedFacts { uid: "u".into(), spec, has_address: true };
            (name.to_owned(), Wanted { facts, guests: BTreeSet::new() })
        };
        let wanted = [relay("bad"), relay("good")].into();
        let states = runner.round(&wanted, |_| true).await.expect("the API server answers");
        let Running::At { relays, waiting: Some(why) } = &states["bad"] else { panic!("{states:?}") };
        assert!(relays.is_empty() && why.contains("no, says a webhook"), "{why}");
        let Running::At { relays, waiting: None } = &states["good"] else { panic!("{states:?}") };
        assert_eq!(relays.len(), 1);
        let gone = deleted.recv().await.expect("something is removed");
        assert!(gone.ends_with("/deployments/relay-gone-0"), "{gone}");
    }
}
