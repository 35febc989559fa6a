//! What the webhooks are told by whoever installs: one JSON file, which the chart writes.
//!
//! During an upgrade operators of two versions read the same file, and one of either may be restarted. So a field that is not
//! known is said and passed over, and one that is missing has a default.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use peerage_agent::dns::ResolvConf;
use peerage_model::Fingerprint;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::dns::search_domain;
use super::resources::{Above, Amounts, Resources};

/// Where a pod's own resolver is described.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The file, as it is written.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AdmissionFile {
    /// The webhooks themselves.
    pub webhook: WebhookFile,
    /// The sidecar.
    pub agent: AgentFile,
    /// What this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// Fields by their names.
type Unknown = BTreeMap<String, IgnoredAny>;

/// How the API server finds the webhooks.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WebhookFile {
    /// What the MutatingWebhookConfiguration and the ValidatingWebhookConfiguration are called.
    pub configuration: String,
    /// The names and addresses by which the API server reaches us.
    pub names: Vec<String>,
    /// What this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// The sidecar.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentFile {
    /// Its image.
    pub image: String,
    /// When it is pulled; the cluster's own rule if it is left out.
    #[serde(default)]
    pub image_pull_policy: Option<String>,
    /// Where it finds operators, `HOST:PORT`. The cluster's domain is added to a host that ends in `.svc`.
    pub operators: Vec<String>,
    /// As which user it runs; none where the cluster gives each namespace its own users.
    #[serde(default)]
    pub run_as_user: Option<i64>,
    /// `resources` of its container.
    #[serde(default)]
    pub resources: Resources,
    /// Requests and limits both, in pods of QoS class Guaranteed.
    #[serde(default = "guaranteed")]
    pub guaranteed: Amounts,
    /// What it logs.
    #[serde(default)]
    pub log: Option<String>,
    /// Which kind of container it is.
    #[serde(default)]
    pub container: ContainerKind,
    /// How pods find the names of peers, unless they say otherwise.
    #[serde(default)]
    pub dns: DnsMode,
    /// The cluster's nameservers; found from the operator's own resolv.conf if there is none.
    #[serde(default)]
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain; found in the same way.
    #[serde(default)]
    pub cluster_domain: Option<String>,
    /// What this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What the chart's values.yaml says as well. A limit on the processor slows a tunnel down, so this is well above what an idle
/// agent takes; the memory is the chart's limit. Who needs more says so for the pod.
fn guaranteed() -> Amounts {
    [("cpu", "250m"), ("memory", "128Mi")]
        .into_iter()
        .map(|(of, amount)| (of.to_owned(), amount.parse().expect("it is a quantity")))
        .collect()
}

/// Which kind of container the sidecar is.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum ContainerKind {
    /// Native where the server knows such.
    #[default]
    Auto,
    /// An init container that goes on running: names resolve before anything else starts, and Jobs end.
    Native,
    /// A container beside the others.
    Plain,
}

/// How the programs of a pod find the names of peers.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub enum DnsMode {
    /// The agent is the pod's nameserver.
    #[default]
    Nameserver,
    /// The names that are known when the pod is made are written into its hosts file; its DNS stays as it was.
    HostAliases,
}

impl std::str::FromStr for DnsMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "Nameserver" => Ok(Self::Nameserver),
            "HostAliases" => Ok(Self::HostAliases),
            _ => Err(()),
        }
    }
}

/// Why the webhooks cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file is not there.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// It holds something else.
    #[error("{} is not what the chart writes; look at the chart's values under agent and webhook", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        #[source]
        cause: serde_json::Error,
    },
    /// Pods with such a sidecar would be refused.
    #[error("the chart's value agent.resources cannot be")]
    Resources(#[source] Above),
}

impl AdmissionFile {
    /// Reads it.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text =
            std::fs::read_to_string(path).map_err(|cause| SettingsError::Read { path: path.to_owned(), cause })?;
        let file: Self =
            serde_json::from_str(&text).map_err(|cause| SettingsError::Parse { path: path.to_owned(), cause })?;
        file.agent.resources.check().map_err(SettingsError::Resources)?;
        Ok(file)
    }

    /// Where the file has what this version does not know.
    #[must_use]
    pub fn unknown(&self) -> Vec<String> {
        let parts = [("", &self.unknown), ("webhook.", &self.webhook.unknown), ("agent.", &self.agent.unknown)];
        parts.iter().flat_map(|(part, unknown)| unknown.keys().map(move |name| format!("{part}{name}"))).collect()
    }
}

/// Everything that injection is decided by, besides the pod and the AgentPeers.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The sidecar, as whoever installs wants it.
    pub agent: AgentFile,
    /// Whose agents they are.
    pub authority: Fingerprint,
    /// The cluster's DNS, as a pod with dnsPolicy ClusterFirst has it; none if it is not known.
    pub cluster_dns: Option<ClusterDns>,
    /// Whether the server knows native sidecars.
    pub native: bool,
}

/// How the cluster's DNS is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDns {
    /// Its nameservers.
    pub servers: Vec<IpAddr>,
    /// The cluster's domain, usually `cluster.local`.
    pub domain: String,
    /// What the nodes themselves search, which every pod searches last.
    pub node_searches: Vec<String>,
}

impl ClusterDns {
    /// From what the file says and, for the rest, from the operator's own resolv.conf: its pod has dnsPolicy
    /// ClusterFirst like any other. `None` where neither says what the nameservers are.
    #[must_use]
    pub fn find(file: &AgentFile, own: &ResolvConf, own_namespace: &str) -> Option<Self> {
        let prefix = format!("{own_namespace}.svc.");
        let searches = own.search.iter().filter_map(|search| taken(search)).collect::<Vec<_>>();
        let found = searches.iter().find_map(|search| search.strip_prefix(&prefix)).map(str::to_owned);
        let in_cluster = found.is_some();
        let domain = file.cluster_domain.clone().or(found).unwrap_or_else(|| "cluster.local".to_owned());
        let servers = match (&file.cluster_dns[..], in_cluster) {
            ([], true) => own.nameservers.clone(),
            ([], false) => return None, // a resolv.conf of no pod: these servers know no Services
            (said, _) => said.to_vec(),
        };
        let ours = [format!("{prefix}{domain}"), format!("svc.{domain}"), domain.clone()];
        let node_searches = match in_cluster {
            true => searches.into_iter().filter(|search| !ours.contains(search)).collect(),
            false => Vec::new(),
        };
        (!servers.is_empty()).then_some(Self { servers, domain, node_searches })
    }

    /// Of the pod that we run in, if we run in one.
    #[must_use]
    pub fn here(file: &AgentFile, own_namespace: &str) -> Option<Self> {
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        Self::find(file, &ResolvConf::parse(&text), own_namespace)
    }
}

/// A search domain of our own pod that others can have as well; that one cannot is said once, when the operator starts.
fn taken(search: &str) -> Option<String> {
    let taken = search_domain(search);
    if taken.is_none() {
        tracing::warn!(
            search,
            "this search domain of the nodes is no lower-case DNS name; pods with an agent go without it"
        );
    }
    taken
}

impl Settings {
    /// Where the sidecar finds operators: in full, so that its pod's search list does not matter.
    #[must_use]
    pub fn operators(&self) -> Vec<String> {
        let domain = self.cluster_dns.as_ref().map(|dns| dns.domain.as_str());
        let whole = |operator: &String| match (operator.rsplit_once(':'), domain) {
            (Some((host, port)), Some(domain)) if host.ends_with(".svc") => format!("{host}.{domain}:{port}"),
            (Some(_) | None, _) => operator.clone(),
        };
        self.agent.operators.iter().map(whole).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Of a cluster like any other.
    pub(in crate::admission) fn settings() -> Settings {
        let agent = serde_json::from_value(serde_json::json!({
            "image": "peerage-agent:1", "operators": ["peerage-operator.peerage-system.svc:8443"], "runAsUser": 64210,
            "resources": {"requests": {"memory": "16Mi"}},
        }));
        Settings {
            agent: agent.expect("it is right"),
            authority: Fingerprint([0xab; 32]),
            cluster_dns: Some(ClusterDns {
                servers: vec!["10.96.0.10".parse().expect("an address")],
                domain: "cluster.local".into(),
                node_searches: vec!["corp.example".into()],
            }),
            native: true,
        }
    }

    const POD: &str = "search peerage-system.svc.k8s.example svc.k8s.example k8s.example corp.example\nnameserver 10.0.0.10\noptions ndots:5\n";

    fn find(change: impl FnOnce(&mut AgentFile), resolv: &str) -> Option<ClusterDns> {
        let mut file = settings().agent;
        change(&mut file);
        ClusterDns::find(&file, &ResolvConf::parse(resolv), "peerage-system")
    }

    #[test]
    fn the_clusters_dns_is_what_the_operators_own_pod_has() {
        let found = find(|_| (), POD).expect("it is a pod's");
        assert_eq!(found.servers, ["10.0.0.10".parse::<IpAddr>().expect("an address")]);
        assert_eq!(
            (found.domain.as_str(), &found.node_searches[..]),
            ("k8s.example", &["corp.example".to_owned()][..])
        );
    }

    #[test]
    fn what_the_nodes_search_becomes_what_the_api_server_takes() {
        let pod = "search peerage-system.svc.K8S.example svc.K8S.example K8S.example CORP.EXAMPLE. _msdcs.corp.example\nnameserver 10.0.0.10\n";
        let found = find(|_| (), pod).expect("it is a pod's");
        assert_eq!(
            (found.domain.as_str(), &found.node_searches[..]),
            ("k8s.example", &["corp.example".to_owned()][..])
        );
    }

    #[test]
    fn what_is_said_goes_before_what_is_found() {
        let server: IpAddr = "10.9.9.9".parse().expect("an address");
        let found = find(|file| file.cluster_dns = vec![server], "nameserver 192.0.2.1\n").expect("it was said");
        assert_eq!((found.servers, found.domain.as_str()), (vec![server], "cluster.local"));
    }

    #[test]
    fn a_machines_own_nameservers_are_not_taken_for_a_clusters() {
        assert_eq!(find(|_| (), "search example.com\nnameserver 192.0.2.1\n"), None);
    }

    #[test]
    fn operators_are_named_in_full() {
        let mut settings = settings();
        settings.agent.operators.push("203.0.113.1:8443".into());
        assert_eq!(
            settings.operators(),
            ["peerage-operator.peerage-system.svc.cluster.local:8443", "203.0.113.1:8443"]
        );
    }

    fn read(agent: &str) -> Result<AdmissionFile, SettingsError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("admission.json");
        let file = format!(r#"{{"webhook": {{"configuration": "c", "names": [], "ca": 1}}, "agent": {agent}}}"#);
        std::fs::write(&path, file).expect("it is written");
        AdmissionFile::read(&path)
    }

    #[test]
    fn what_another_version_of_the_chart_says_is_named_and_passed_over() {
        let file = read(r#"{"image": "i", "operators": [], "colour": {"of": ["the", "agent"]}}"#).expect("it is read");
        assert_eq!(file.unknown(), ["webhook.ca", "agent.colour"]);
    }

    #[test]
    fn a_sidecar_that_no_pod_could_have_is_an_error_when_the_operator_starts_and_not_with_each_pod() {
        let with = |resources: &str| read(&format!(r#"{{"image": "i", "operators": [], "resources": {resources}}}"#));
        assert!(matches!(
            with(r#"{"requests": {"memory": "24Mi"}, "limits": {"memory": "16Mi"}}"#),
            Err(SettingsError::Resources(_))
        ));
        assert!(matches!(with(r#"{"limits": {"memory": "128Mib"}}"#), Err(SettingsError::Parse { .. })));
        assert!(with(r#"{"requests": {"cpu": 1}, "limits": {"cpu": "1000m"}}"#).is_ok());
    }
}
