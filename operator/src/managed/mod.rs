//! Relays that the operator runs, in its own namespace: for each replica of an AgentRelay with `managed` a key, a Deployment
//! of one pod, and a Service. One key is one relay: two processes with the same would each know half of the agents.
//!
//! The leader does it. What there should be follows from the AgentRelay alone ([`manifest`]); it is applied again and again,
//! so what somebody else changed is mended. Deployment and Service belong to the AgentRelay and go with it; the key is in a
//! Secret that has all of them ([`keys`]). Where a replica is reached is read from its Service and told to the status, from
//! which every operator tells its agents.

pub mod keys;
pub mod manifest;

use std::collections::BTreeMap;
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

fn wanted(cluster: &Cluster) -> BTreeMap<String, ManagedFacts> {
    let state = cluster.read();
    let relays = state.index.relays();
    relays.filter_map(|(name, facts)| Some((name.clone(), facts.managed.clone()?))).collect()
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

    /// Everything once: what there should be is there afterwards, and nothing else of ours.
    async fn round(
        &self,
        wanted: &BTreeMap<String, ManagedFacts>,
        is_known: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, Running>, KeysError> {
        let parts: Vec<Part> = wanted.iter().flat_map(|(name, facts)| Part::all(name, facts)).collect();
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
            let deployment = part.deployment(&self.settings, &self.authority);
            put(&self.deployments, &part.name(), deployment, deployments.contains_key(&part.name())).await?;
            let service = part.service();
            let service = put(&self.services, &part.name(), service, services.contains_key(&part.name())).await?;
            let Running::At { relays, waiting } = state else { continue };
            match part.address(&service, *key) {
                Some(relay) => relays.push(relay),
                None => *waiting = Some(self.waits(part)),
            }
        }
        let names: Vec<_> = parts.iter().map(Part::name).collect();
        let left = |object: &str, relay: Option<&String>| {
            let unreadable = relay.is_some_and(|relay| !wanted.contains_key(relay) && is_known(relay));
            !names.iter().any(|name| name == object) && !unreadable
        };
        remove(&self.deployments, &deployments, left).await?;
        remove(&self.services, &services, left).await?;
        Ok(states)
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

async fn remove<K>(
    api: &Api<K>,
    there: &BTreeMap<String, K>,
    is_left: impl Fn(&str, Option<&String>) -> bool,
) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    for (name, _) in there.iter().filter(|(name, object)| is_left(name, object.labels().get(manifest::RELAY))) {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => tracing::info!(kind = %K::kind(&()), name, "of a relay that nobody wants any more: removed"),
            Err(kube::Error::Api(status)) if status.code == 404 => {} // it went with its AgentRelay
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
