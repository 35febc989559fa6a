//! The way to the API server, and what commands ask of it.

use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams};
use kube::config::KubeConfigOptions;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Config, Resource};
use peerage_crds::invitation::{AUTHORITY_MAP, RECORD_KEY};
use peerage_crds::{AgentRelay, Condition};
use peerage_model::relay::RelayInfo;
use peerage_model::{AuthorityRecord, UnixTime};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::Cli;
use crate::failure::{Code, Failure};

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(200);

/// A cluster, as whoever calls us may see it.
pub struct Cluster {
    pub client: Client,
    /// The context that was named.
    pub context: Option<String>,
    /// The namespace that was named, or the context's.
    pub namespace: String,
    /// Where the operator is.
    pub operator: String,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// By kubectl's own configuration.
    ///
    /// # Errors
    /// There is none, or it is not good.
    pub async fn new(cli: &Cli) -> Result<Self, Failure> {
        let no_way = |message: String| {
            Failure::new(
                Code::NoCluster,
                message,
                "see whether `kubectl get namespaces` works, with the same --context",
            )
        };
        let config = match &cli.context {
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
                Config::from_kubeconfig(&options).await.map_err(|error| no_way(error.to_string()))?
            }
            None => Config::infer().await.map_err(|error| no_way(error.to_string()))?,
        };
        let namespace = cli.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| no_way(error.to_string()))?;
        Ok(Self { client, context: cli.context.clone(), namespace, operator: cli.operator_namespace.clone() })
    }

    /// Objects of a cluster-scoped kind, or of every namespace.
    pub fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Objects of the namespace.
    pub fn here<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Objects of the operator's namespace.
    pub fn operators<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.operator)
    }

    /// This cluster's authority record.
    ///
    /// # Errors
    /// No operator has published it.
    pub async fn record(&self) -> Result<AuthorityRecord, Failure> {
        let map = self.operators::<ConfigMap>().get_opt(AUTHORITY_MAP).await;
        let map = map.map_err(|error| Failure::of_kube("read the authority's ConfigMap", &error))?;
        let text = map.as_ref().and_then(|map| map.data.as_ref()?.get(RECORD_KEY));
        let record = text.and_then(|text| AuthorityRecord::from_text(text, now()).ok());
        record.ok_or_else(|| {
            let message = format!("ConfigMap {AUTHORITY_MAP} in namespace {} names no authority", self.operator);
            let hint =
                "install the chart and wait until its operator is ready; say where it is with --operator-namespace";
            Failure::new(Code::NotInstalled, message, hint)
        })
    }

    /// The relays of this cluster; of each AgentRelay one, before the further replicas of any.
    ///
    /// # Errors
    /// The API server does not say.
    pub async fn relays(&self) -> Result<Vec<RelayInfo>, Failure> {
        let relays = list(&self.all::<AgentRelay>(), "list AgentRelays").await?;
        Ok(in_turn(&relays))
    }
}

/// Who takes the first few gets as many different relays as there are.
fn in_turn(relays: &[AgentRelay]) -> Vec<RelayInfo> {
    let mut ranked: Vec<_> = relays.iter().flat_map(|relay| addresses(relay).into_iter().enumerate()).collect();
    ranked.sort_by_key(|(replica, _)| *replica);
    ranked.into_iter().map(|(_, address)| address).collect()
}

/// Where a relay is: as it was declared, or, of one that the operator runs, as the status says, once for each replica.
fn addresses(relay: &AgentRelay) -> Vec<RelayInfo> {
    let found = relay.status.as_ref().map(|status| status.addresses.as_slice()).unwrap_or_default();
    let texts = relay.spec.address.as_ref().map_or(found, std::slice::from_ref);
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// All objects.
///
/// # Errors
/// The API server does not say.
pub async fn list<K>(api: &Api<K>, doing: &str) -> Result<Vec<K>, Failure>
where
    K: Clone + DeserializeOwned + Debug,
{
    let list = api.list(&ListParams::default()).await;
    list.map(|list| list.items).map_err(|error| Failure::of_kube(doing, &error))
}

/// One object.
///
/// # Errors
/// There is none, or the API server does not say.
pub async fn get<K>(api: &Api<K>, name: &str, doing: &str) -> Result<K, Failure>
where
    K: Clone + DeserializeOwned + Debug,
{
    api.get(name).await.map_err(|error| Failure::of_kube(doing, &error))
}

/// Makes an object.
///
/// # Errors
/// There is one already, or the API server refuses.
pub async fn create<K>(api: &Api<K>, object: &K, doing: &str) -> Result<K, Failure>
where
    K: Clone + DeserializeOwned + Serialize + Debug,
{
    api.create(&PostParams::default(), object).await.map_err(|error| Failure::of_kube(doing, &error))
}

/// Looks until `look` gives something, for at most so long; what it gave last, if that was nothing.
///
/// # Errors
/// Looking failed, or it took too long.
pub async fn until<T, F: Future<Output = Result<Result<T, String>, Failure>>>(
    patience: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        match look().await? {
            Ok(found) => return Ok(found),
            Err(why) if begun.elapsed() >= patience => {
                return Err(Failure::new(Code::TimedOut, why, "see `kubectl peerage doctor`"));
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// The condition of that type.
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|one| one.type_ == type_)
}

/// The time of day.
pub fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn relay(spec: &str, addresses: &[&str]) -> AgentRelay {
        let address = |host: &&str| format!("{}@{host}:3478", "a".repeat(52));
        let addresses: Vec<_> = addresses.iter().map(address).collect();
        let spec = match spec {
            "managed" => {
                json!({"managed": {"service": {"type": "LoadBalancer"}}, "allowedNamespaces": {"from": "All"}})
            }
            host => json!({"address": address(&host), "allowedNamespaces": {"from": "All"}}),
        };
        let object = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentRelay", "metadata": {"name": "r"},
            "spec": spec, "status": {"addresses": addresses},
        });
        serde_json::from_value(object).expect("an AgentRelay")
    }

    #[test]
    fn a_relay_is_told_once_and_each_before_the_replicas_of_any() {
        let relays = [relay("managed", &["one", "two", "three"]), relay("given", &["given"])];
        let hosts: Vec<_> = in_turn(&relays).iter().map(|relay| relay.host.as_str().to_owned()).collect();
        assert_eq!(hosts, ["one", "given", "two", "three"]);
    }
}
