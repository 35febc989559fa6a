//! What there should be of a managed relay: the same AgentRelay gives the same objects.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use peerage_crds::relay::ServiceType;
use peerage_model::relay::RelayInfo;
use peerage_model::{AgreementKey, Fingerprint};
use serde_json::{Value, json};

use super::{Settings, keys};
use crate::facts::ManagedFacts;

/// The label by which all of it is found, and its value.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// See [`COMPONENT`].
pub const MANAGED: &str = "managed-relay";
/// The label with the AgentRelay's name.
pub const RELAY: &str = "peerage.dev/relay";
/// The label with the replica's number.
const REPLICA: &str = "peerage.dev/replica";
/// The port in the pod, for UDP and TCP.
const PORT: u16 = 3478;

/// One replica of a managed relay.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The AgentRelay's name.
    pub relay: String,
    /// Which of its replicas.
    pub replica: u16,
    /// Whether the status has an address of it, so that agents know its key.
    pub has_address: bool,
    facts: ManagedFacts,
    /// Who may bind there beside the agents of this cluster.
    guests: BTreeSet<Fingerprint>,
}

/// Which AgentRelay an entry of the Secret is of.
#[must_use]
pub fn relay_of(entry: &str) -> &str {
    entry.rsplit_once('.').map_or(entry, |(relay, _)| relay)
}

impl Part {
    /// All replicas.
    pub fn all(relay: &str, facts: &ManagedFacts, guests: &BTreeSet<Fingerprint>) -> Vec<Self> {
        let one = |replica| Self {
            relay: relay.to_owned(),
            replica,
            // The status counts those that have one; of a lone relay that is it.
            has_address: replica == 0 && facts.has_address,
            facts: facts.clone(),
            guests: guests.clone(),
        };
        (0..facts.spec.replicas).map(one).collect()
    }

    /// What its Deployment and Service are called.
    #[must_use]
    pub fn name(&self) -> String {
        format!("relay-{}-{}", self.relay, self.replica)
    }

    /// Where its key is in the Secret; no AgentRelay has a dot in its name.
    #[must_use]
    pub fn entry(&self) -> String {
        format!("{}.{}", self.relay, self.replica)
    }

    fn selector(&self) -> Value {
        json!({RELAY: self.relay, REPLICA: self.replica.to_string()})
    }

    fn metadata(&self) -> Value {
        let mut labels = json!({
            "app.kubernetes.io/name": "peerage", COMPONENT: MANAGED, "app.kubernetes.io/managed-by": "peerage-operator",
        });
        let selector = self.selector();
        labels
            .as_object_mut()
            .into_iter()
            .for_each(|labels| labels.extend(selector.as_object().cloned().unwrap_or_default()));
        // With `blockOwnerDeletion` the operator would need a right on AgentRelays that it uses for nothing else.
        let owner = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentRelay", "name": self.relay, "uid": self.facts.uid,
            "controller": true,
        });
        json!({"name": self.name(), "labels": labels, "ownerReferences": [owner]})
    }

    /// Whether `object` was made for this very AgentRelay, and not for another one that had its name.
    #[must_use]
    pub fn owns(&self, object: &impl ResourceExt) -> bool {
        object.owner_references().iter().any(|owner| owner.uid == self.facts.uid)
    }

    /// Its Deployment: what PodSecurity `restricted` admits, with a file system that nobody writes to.
    #[must_use]
    pub fn deployment(&self, settings: &Settings, authority: &Fingerprint) -> Value {
        let metadata = self.metadata();
        let template = json!({"metadata": {"labels": metadata["labels"]}, "spec": self.pod(settings, authority)});
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {
                "replicas": 1, "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": self.selector()}, "template": template,
            },
        })
    }

    fn pod(&self, settings: &Settings, authority: &Fingerprint) -> Value {
        let mut pod = json!({
            "automountServiceAccountToken": false,
            // It goes on forwarding for 10 s after it was told to stop, while agents bind elsewhere.
            "terminationGracePeriodSeconds": 20,
            "securityContext": settings.pod_security_context,
            "containers": [self.container(settings, authority)],
            "volumes": [{"name": "key", "secret": {
                "secretName": keys::NAME, "defaultMode": 0o440, "items": [{"key": self.entry(), "path": "relay.key"}],
            }}],
        });
        for (field, value) in [
            ("imagePullSecrets", json!(settings.image_pull_secrets)),
            ("nodeSelector", settings.node_selector.clone()),
            ("tolerations", json!(settings.tolerations)),
        ] {
            if !is_empty(&value) {
                pod[field] = value;
            }
        }
        pod
    }

    fn container(&self, settings: &Settings, authority: &Fingerprint) -> Value {
        let admitted =
            BTreeSet::from([*authority]).union(&self.guests).map(ToString::to_string).collect::<Vec<_>>().join(",");
        let probe = |path: &str| json!({"httpGet": {"path": path, "port": "metrics"}, "periodSeconds": 5});
        let mut env = vec![
            json!({"name": "PEERAGE_RELAY_KEY_FILE", "value": "/etc/peerage/relay.key"}),
            json!({"name": "PEERAGE_RELAY_LISTEN", "value": format!("[::]:{PORT}")}),
            json!({"name": "PEERAGE_RELAY_METRICS", "value": "[::]:8080"}),
            json!({"name": "PEERAGE_RELAY_ALLOW_AUTHORITY", "value": admitted}),
        ];
        env.extend(
            self.facts.spec.service.host.as_ref().map(|host| json!({"name": "PEERAGE_RELAY_ADVERTISE", "value": host})),
        );
        let mut container = json!({
            "name": "relay", "image": settings.image, "env": env,
            "ports": [
                {"name": "relay-udp", "containerPort": PORT, "protocol": "UDP"},
                {"name": "relay-tcp", "containerPort": PORT, "protocol": "TCP"},
                {"name": "metrics", "containerPort": 8080, "protocol": "TCP"},
            ],
            "livenessProbe": probe("/healthz"), "readinessProbe": probe("/readyz"),
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "key", "mountPath": "/etc/peerage", "readOnly": true}],
        });
        if let Some(policy) = &settings.image_pull_policy {
            container["imagePullPolicy"] = json!(policy);
        }
        if !settings.args.is_empty() {
            container["args"] = json!(settings.args);
        }
        if !is_empty(&settings.resources) {
            container["resources"] = settings.resources.clone();
        }
        container
    }

    /// Its Service. The relay tells agents the address that it sees, so nobody may put another one in its place.
    #[must_use]
    pub fn service(&self) -> Value {
        let service = &self.facts.spec.service;
        let type_ = match service.type_ {
            ServiceType::LoadBalancer => "LoadBalancer",
            ServiceType::NodePort => "NodePort",
        };
        let ports = ["UDP", "TCP"].map(|protocol| {
            let name = format!("relay-{}", protocol.to_lowercase());
            let mut port = json!({"name": name, "port": service.port, "targetPort": name, "protocol": protocol});
            if let Some(number) = service.node_port {
                port["nodePort"] = json!(number.saturating_add(self.replica));
            }
            port
        });
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": self.metadata(),
            "spec": {"type": type_, "externalTrafficPolicy": "Local", "selector": self.selector(), "ports": ports},
        })
    }

    /// Where agents reach it; none while it has no address.
    #[must_use]
    pub fn address(&self, there: &Service, key: AgreementKey) -> Option<RelayInfo> {
        let service = &self.facts.spec.service;
        let given = || {
            let ingress = there.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?;
            ingress.ip.clone().or_else(|| ingress.hostname.clone())
        };
        let host = service.host.clone().or_else(given)?.parse().ok()?;
        let node_port = |protocol: &str| {
            let ports = there.spec.as_ref()?.ports.as_ref()?;
            let port = ports.iter().find(|port| port.protocol.as_deref() == Some(protocol))?;
            u16::try_from(port.node_port?).ok()
        };
        let (udp, tcp) = match service.type_ {
            ServiceType::LoadBalancer => (service.port, service.port),
            ServiceType::NodePort => (node_port("UDP")?, node_port("TCP")?),
        };
        Some(RelayInfo { key, host, port: udp, tls: Some(tcp).filter(|tcp| *tcp != udp) })
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use peerage_crds::relay::{ManagedRelay, RelayService};
    use peerage_model::AgreementSecret;

    use super::*;

    fn part(type_: ServiceType, host: Option<&str>, node_port: Option<u16>) -> Part {
        let service = RelayService { type_, port: 443, node_port, host: host.map(Into::into) };
        let facts = ManagedFacts {
            uid: "u".into(),
            spec: ManagedRelay { service, replicas: 2, allowed_links: Vec::new() },
            has_address: false,
        };
        Part::all("edge", &facts, &BTreeSet::new()).remove(1)
    }

    fn key() -> AgreementKey {
        AgreementSecret::from_bytes([7; 32]).public()
    }

    fn service(spec: Value, status: Value) -> Service {
        serde_json::from_value(json!({"metadata": {}, "spec": spec, "status": status})).expect("a Service")
    }

    #[test]
    fn a_load_balancer_is_reached_where_it_says_and_by_the_name_that_somebody_gave_it() {
        let without = part(ServiceType::LoadBalancer, None, None);
        let none = service(json!({}), json!({}));
        assert_eq!(without.address(&none, key()), None);
        for (ingress, host) in
            [(json!({"ip": "192.0.2.7"}), "192.0.2.7"), (json!({"hostname": "lb.example"}), "lb.example")]
        {
            let there = service(json!({}), json!({"loadBalancer": {"ingress": [ingress]}}));
            let found = without.address(&there, key()).expect("it has an address");
            assert_eq!((found.host.as_str(), found.port, found.tls), (host, 443, None));
        }
        let named = part(ServiceType::LoadBalancer, Some("relay.example"), None).address(&none, key());
        assert_eq!(named.expect("its name is known").host.as_str(), "relay.example");
    }

    #[test]
    fn a_node_port_is_reached_at_the_ports_that_the_cluster_gave() {
        let ports = json!([
            {"port": 443, "protocol": "TCP", "nodePort": 30479}, {"port": 443, "protocol": "UDP", "nodePort": 30478},
        ]);
        let node = part(ServiceType::NodePort, Some("198.51.100.7"), None);
        let found = node.address(&service(json!({"ports": ports}), json!({})), key()).expect("it has ports");
        assert_eq!((found.host.as_str(), found.port, found.tls), ("198.51.100.7", 30478, Some(30479)));
        assert_eq!(node.address(&service(json!({}), json!({})), key()), None, "before there are any");
    }

    #[test]
    fn a_relay_lets_in_agents_of_this_cluster_and_of_the_links_that_were_named() {
        let admitted = |part: &Part| {
            let deployment = part.deployment(&Settings::default(), &Fingerprint([1; 32]));
            let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].clone();
            let env: Vec<(String, String)> = env
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| {
                    (
                        one["name"].as_str().unwrap_or_default().to_owned(),
                        one["value"].as_str().unwrap_or_default().to_owned(),
                    )
                })
                .collect();
            env.into_iter().find(|(name, _)| name == "PEERAGE_RELAY_ALLOW_AUTHORITY").expect("it is said").1
        };
        let mut relay = part(ServiceType::LoadBalancer, None, None);
        assert_eq!(admitted(&relay), Fingerprint([1; 32]).to_string());
        relay.guests.insert(Fingerprint([2; 32]));
        assert_eq!(admitted(&relay), format!("{},{}", Fingerprint([1; 32]), Fingerprint([2; 32])));
    }

    #[test]
    fn each_replica_has_a_node_port_a_key_and_objects_of_its_own() {
        let second = part(ServiceType::NodePort, Some("198.51.100.7"), Some(30000));
        assert_eq!(second.service()["spec"]["ports"][0]["nodePort"], 30001);
        let deployment = second.deployment(&Settings::default(), &Fingerprint([1; 32]));
        assert_eq!(deployment["metadata"]["name"], "relay-edge-1");
        let items = &deployment["spec"]["template"]["spec"]["volumes"][0]["secret"]["items"];
        assert_eq!(*items, json!([{"key": "edge.1", "path": "relay.key"}]));
        assert_eq!(relay_of("edge.1"), "edge");
    }
}
