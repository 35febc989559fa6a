//! What becomes of a pod's DNS when the agent is its nameserver: the same servers and searches as before, behind ours.
//!
//! `dnsConfig` under dnsPolicy ClusterFirst is only appended to what the cluster has, so names of peers would be asked of the
//! cluster first and end as NXDOMAIN. So the policy becomes None, and what the kubelet would have written is written out.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};
use peerage_agent::address::{DNS_ADDRESS, ZONE};
use serde_json::{Value, json};

use super::inject::Reason;
use super::settings::ClusterDns;

/// The API server takes no more.
const MAX_SEARCHES: usize = 32;
/// Nor a search list that is longer, written with a space between two domains.
const MAX_SEARCH_LIST: usize = 2048;
/// The longest name in DNS, and the longest label of one (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// Resolvers ask no more; glibc's MAXNS.
const MAX_SERVERS: usize = 3;
/// What the kubelet writes for dnsPolicy ClusterFirst.
const NDOTS: &str = "5";

/// A pod's DNS behind the agent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Behind {
    /// Whom the agent asks about names that are not ours.
    pub(super) servers: Vec<IpAddr>,
    /// The pod's dnsConfig.
    pub(super) config: Value,
}

impl Behind {
    /// The servers as the agent is told them.
    pub(super) fn servers_as_text(&self) -> String {
        self.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

/// What the kubelet would have given the pod, behind the agent.
pub(super) fn behind_agent(spec: &PodSpec, namespace: &str, cluster: Option<&ClusterDns>) -> Result<Behind, Reason> {
    let own = spec.dns_config.clone().unwrap_or_default();
    let (mut servers, mut searches, mut options) = (Vec::new(), vec![ZONE.to_owned()], Vec::new());
    match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => {}
        // Without the host's network the second is the first.
        "ClusterFirst" | "ClusterFirstWithHostNet" => {
            let cluster = cluster.ok_or(Reason::ClusterDnsUnknown)?;
            servers.extend(cluster.servers.iter().copied());
            let domain = &cluster.domain;
            searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]);
            searches.extend(cluster.node_searches.iter().cloned());
            options.push(("ndots".to_owned(), Some(NDOTS.to_owned())));
        }
        // Also what a later Kubernetes may call something.
        other => return Err(Reason::DnsPolicy(other.to_owned())),
    }
    add(&own, &mut servers, &mut searches, &mut options);
    let options: Vec<_> = options.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let config = json!({"nameservers": [DNS_ADDRESS], "searches": searches, "options": options});
    Ok(Behind { servers, config })
}

/// The same for a pod that has its agent, and whose DNS somebody has changed since; `None` while the agent is its only
/// nameserver. The agent asks `told` besides those that were put beside it, in the order in which they are.
pub(super) fn behind_agent_again(
    spec: &PodSpec,
    namespace: &str,
    cluster: Option<&ClusterDns>,
    told: &str,
) -> Result<Option<Behind>, Reason> {
    let told: Vec<String> = told.split(',').map(str::to_owned).collect();
    let agent = DNS_ADDRESS.to_string();
    let mut config = spec.dns_config.clone().unwrap_or_default();
    let servers = config.nameservers.take().unwrap_or_default();
    if spec.dns_policy.as_deref() == Some("None") && servers == [agent.clone()] {
        return Ok(None);
    }
    let behind = |server| if server == agent { told.clone() } else { vec![server] };
    config.nameservers = Some(servers.into_iter().flat_map(behind).collect());
    let spec = PodSpec { dns_config: Some(config), ..spec.clone() };
    behind_agent(&spec, namespace, cluster).map(Some)
}

/// A search domain as the API server takes it in a pod. A kubelet passes on whatever its node's resolv.conf holds; a pod
/// in which we repeated that would be refused, so what is no lower-case name (RFC 1123) is `None`.
pub(super) fn search_domain(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        let known = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(known)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (name.len() <= MAX_NAME && name.split('.').all(is_label)).then_some(name)
}

/// The first of them that fit into a pod, as a kubelet cuts them off.
fn fitting(searches: Vec<String>) -> Vec<String> {
    let mut written = 0;
    let fits = |search: &String| {
        written += search.len() + 1;
        written <= MAX_SEARCH_LIST + 1 // the last one has no space behind it
    };
    searches.into_iter().take(MAX_SEARCHES).take_while(fits).collect()
}

/// Merges the pod's own dnsConfig as the kubelet does: servers and searches behind the others, options in their place.
fn add(
    own: &PodDNSConfig,
    servers: &mut Vec<IpAddr>,
    searches: &mut Vec<String>,
    options: &mut Vec<(String, Option<String>)>,
) {
    for server in own.nameservers.iter().flatten().filter_map(|server| server.parse::<IpAddr>().ok()) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers.truncate(MAX_SERVERS);
    for search in own.searches.iter().flatten() {
        if !searches.contains(search) {
            searches.push(search.clone());
        }
    }
    *searches = fitting(std::mem::take(searches));
    for option in own.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        options.retain(|(known, _)| *known != name);
        options.push((name, option.value.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests::settings;
    use super::*;

    fn behind(spec: Value) -> Result<Behind, Reason> {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let spec = serde_json::from_value(spec).expect("a PodSpec");
        behind_agent(&spec, "tools", settings().cluster_dns.as_ref())
    }

    #[test]
    fn a_pod_searches_for_peers_first_and_then_where_it_always_did() {
        let behind = behind(json!({})).expect("it can be");
        assert_eq!(behind.servers, ["10.96.0.10".parse::<IpAddr>().expect("an address")]);
        assert_eq!(
            behind.config,
            json!({
                "nameservers": ["127.64.0.1"],
                "searches": ["peer.internal", "tools.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"],
                "options": [{"name": "ndots", "value": "5"}],
            })
        );
    }

    #[test]
    fn what_the_pod_adds_itself_is_kept_as_the_kubelet_would_merge_it() {
        let own = json!({"nameservers": ["192.0.2.53"], "searches": ["lab.example", "cluster.local"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        let behind = behind(json!({"dnsConfig": own})).expect("it can be");
        assert_eq!(behind.servers.len(), 2);
        let searches = behind.config["searches"].as_array().expect("a list");
        assert_eq!((searches.len(), searches.last()), (6, Some(&json!("lab.example"))));
        assert_eq!(
            behind.config["options"],
            json!([{"name": "ndots", "value": "2"}, {"name": "edns0", "value": null}])
        );
    }

    #[test]
    fn a_pod_with_dns_of_its_own_keeps_it_and_nothing_of_the_clusters() {
        let own = json!({"nameservers": ["192.0.2.53", "192.0.2.54"], "searches": ["lab.example"]});
        let behind = behind(json!({"dnsPolicy": "None", "dnsConfig": own})).expect("it can be");
        assert_eq!(behind.servers.len(), 2);
        assert_eq!(behind.config["searches"], json!(["peer.internal", "lab.example"]));
        assert_eq!(behind.config["options"], json!([]));
    }

    #[test]
    fn a_search_domain_is_written_as_the_api_server_takes_it_or_not_at_all() {
        for (said, taken) in [
            ("corp.example", Some("corp.example")),
            ("CORP.Example.", Some("corp.example")),
            ("_msdcs.corp.example", None),
            ("-corp.example", None),
            ("corp..example", None),
            (".", None),
        ] {
            assert_eq!(search_domain(said).as_deref(), taken, "{said}");
        }
        assert_eq!(search_domain(&"a".repeat(64)), None, "a label has 63 octets at most");
    }

    #[test]
    fn a_search_list_is_never_longer_than_the_api_server_takes() {
        let long = |number: usize| format!("{number:03}{}.{}", "a".repeat(60), "b".repeat(60));
        let own = json!({"nameservers": ["192.0.2.53"], "searches": (0..30).map(long).collect::<Vec<_>>()});
        let long = behind(json!({"dnsPolicy": "None", "dnsConfig": own})).expect("it can be");
        let searches: Vec<_> =
            long.config["searches"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert!(searches.join(" ").len() <= MAX_SEARCH_LIST, "{} searches", searches.len());
        assert_eq!(searches.len(), 1 + (MAX_SEARCH_LIST - ZONE.len()) / 125, "and as many as fit are kept");
        let many = (0..40).map(|number| format!("d{number}")).collect::<Vec<_>>();
        let own = json!({"nameservers": ["192.0.2.53"], "searches": many});
        let many = behind(json!({"dnsPolicy": "None", "dnsConfig": own})).expect("it can be");
        assert_eq!(many.config["searches"].as_array().map(Vec::len), Some(MAX_SEARCHES));
    }

    #[test]
    fn what_only_the_node_knows_is_not_guessed() {
        assert_eq!(behind(json!({"dnsPolicy": "Default"})), Err(Reason::DnsPolicy("Default".into())));
        let spec = serde_json::from_value(json!({"containers": []})).expect("a PodSpec");
        assert_eq!(behind_agent(&spec, "tools", None), Err(Reason::ClusterDnsUnknown));
    }
}
