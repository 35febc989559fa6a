//! Whether a pod becomes an agent's, and what is changed for that: pure, from the pod, the AgentPeers that select it and
//! the settings.
//!
//! Who asked is decided before: the webhooks are called for pods whose namespace or whose own label asks for injection. So
//! a pod is injected whether or not an AgentPeer selects it yet; its agent waits for one, and the order in which the two
//! are applied does not matter. Nothing of the pod's own containers is changed. What stands in the way is said on the
//! pod, in an annotation, and the pod is let in as it is: an agent that is missing is seen, a pod that is refused may be an outage.

use std::fmt;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Pod, PodSpec, Sysctl};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::dns;
use super::patch::{Patch, extended};
use super::place::Place;
use super::refresh::refreshed;
use super::resources;
use super::settings::{ContainerKind, DnsMode, Settings};
use super::sidecar::{CONTAINER, Names, STATE, TOKEN, container, ports_of, volumes};
use crate::facts::peer::{INJECTED, LEFT_ALONE, OPT_OUT};
use crate::index::Host;

/// Annotation of a pod that says how its programs find names: `Nameserver` or `HostAliases`.
pub const DNS: &str = "peerage.dev/dns";
/// What the kubelet sets on pods of its own, which the API server cannot change.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Who may take low ports.
const SYSCTL: &str = "net.ipv4.ip_unprivileged_port_start";
/// Label of nodes with their operating system.
const NODE_OS: &str = "kubernetes.io/os";
/// Where the agent answers for names.
pub(super) const DNS_PORT: u16 = 53;

/// An AgentPeer that selects the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selecting {
    /// Its name.
    pub name: String,
    /// As whom its pods must run.
    pub service_account: Option<String>,
    /// Its peers as they are known.
    pub hosts: Vec<Host>,
}

/// What becomes of the pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It gets a sidecar.
    Inject {
        /// What changes.
        patch: Patch,
        /// What whoever made it should know.
        warnings: Vec<String>,
    },
    /// It has one already, and that is as it should be.
    Unchanged,
    /// It wants none.
    OptedOut,
    /// It stays as it is, but for the annotation that says why.
    LeftAlone {
        /// Why.
        reason: Reason,
        /// That annotation.
        patch: Patch,
    },
}

/// What stands in the way. Each says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The pod is not one that we can read.
    Unreadable(String),
    /// It uses the node's network.
    HostNetwork,
    /// It is not for Linux.
    Windows,
    /// It keeps low ports for root.
    Sysctl(String),
    /// One of its containers has the port of DNS.
    DnsPort,
    /// Its DNS is the node's.
    DnsPolicy(String),
    /// The annotation says something else.
    DnsMode(String),
    /// Nobody said what the cluster's DNS is.
    ClusterDnsUnknown,
    /// It has something of that name that is not ours.
    NameTaken(&'static str),
    /// Several AgentPeers select it.
    Ambiguous(Vec<String>),
    /// Its agent would ask for what no container can.
    Resources(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "the pod cannot be read ({error})"),
            Self::HostNetwork => {
                f.write_str("the pod uses its node's network (hostNetwork), whose names and ports are not its own")
            }
            Self::Windows => f.write_str("the pod is for Windows"),
            Self::Sysctl(value) => write!(
                f,
                "the pod sets sysctl {SYSCTL} to {value}, and the agent takes ports from {DNS_PORT} up without being root; remove it"
            ),
            Self::DnsPort => write!(
                f,
                "a container of the pod has port {DNS_PORT}, where the agent answers for names; set annotation {DNS}: HostAliases"
            ),
            Self::DnsPolicy(policy) => write!(
                f,
                "dnsPolicy {policy} is the node's, which is not known here; set annotation {DNS}: HostAliases, or dnsPolicy None"
            ),
            Self::DnsMode(mode) => write!(f, "annotation {DNS} is `{mode}`; it is Nameserver or HostAliases"),
            Self::ClusterDnsUnknown => {
                f.write_str("the operator does not know the cluster's DNS; set the chart's value agent.clusterDNS")
            }
            Self::NameTaken(name) => write!(f, "the pod has a container or volume called {name} of its own; rename it"),
            Self::Resources(why) => write!(f, "{why}; change the annotation"),
            Self::Ambiguous(names) => {
                write!(
                    f,
                    "AgentPeers {} select the pod, and it can be one agent only; change a selector",
                    names.join(", ")
                )
            }
        }
    }
}

/// Decides about `pod`, which is being made in `namespace`.
#[must_use]
pub fn decide(pod: &Value, namespace: &str, selecting: &[Selecting], settings: &Settings) -> Decision {
    let read = match serde_json::from_value::<Pod>(pod.clone()) {
        Ok(read) => read,
        Err(error) => return left_alone(pod, Reason::Unreadable(error.to_string())),
    };
    let Some(spec) = &read.spec else { return left_alone(pod, Reason::Unreadable("it has no spec".into())) };
    let annotation = |name: &str| read.annotations().get(name).map(String::as_str);
    if annotation(OPT_OUT) == Some("false") || annotation(MIRROR).is_some() {
        return Decision::OptedOut;
    }
    if annotation(INJECTED).is_some()
        && let Some(place) = Place::of(pod)
    {
        return refreshed(pod, spec, namespace, place, settings);
    }
    match injected(pod, &read, spec, namespace, selecting, settings) {
        Ok(patch) => Decision::Inject { patch, warnings: warnings(spec, selecting) },
        Err(reason) => left_alone(pod, reason),
    }
}

fn injected(
    pod: &Value,
    read: &Pod,
    spec: &PodSpec,
    namespace: &str,
    selecting: &[Selecting],
    settings: &Settings,
) -> Result<Patch, Reason> {
    let mode = match read.annotations().get(DNS) {
        Some(text) => text.parse().map_err(|()| Reason::DnsMode(text.clone()))?,
        None => settings.agent.dns,
    };
    obstacles(spec, selecting)?;
    let resources = resources::of_agent(read.annotations(), spec, &settings.agent)?;
    let ports = ports_of(spec);
    let mut patch = Patch::default();
    let names = match mode {
        DnsMode::Nameserver if ports.iter().any(|(port, _)| *port == DNS_PORT) => return Err(Reason::DnsPort),
        DnsMode::Nameserver => {
            let behind = dns::behind_agent(spec, namespace, settings.cluster_dns.as_ref())?;
            through_nameserver(pod, behind, &mut patch)
        }
        DnsMode::HostAliases => through_host_aliases(pod, selecting, &mut patch),
    };
    let native = match settings.agent.container {
        ContainerKind::Auto => settings.native,
        ContainerKind::Native => true,
        ContainerKind::Plain => false,
    };
    let agent = container(settings, native, &ports, &names, &json!(resources));
    let place = if native { Place::Init(0) } else { Place::Beside(spec.containers.len()) };
    place.insert(pod, agent, &mut patch);
    patch.set(pod, &["spec", "volumes"], extended(&pod["spec"]["volumes"], volumes(settings)));
    free_low_ports(pod, spec, &mut patch);
    annotate(pod, &mut patch, (INJECTED, &settings.agent.image), LEFT_ALONE);
    Ok(patch)
}

/// Programs find peers by asking the agent, which hands on what is not its own.
fn through_nameserver(pod: &Value, behind: dns::Behind, patch: &mut Patch) -> Names {
    let servers = behind.servers_as_text();
    patch.set(pod, &["spec", "dnsPolicy"], json!("None"));
    patch.set(pod, &["spec", "dnsConfig"], behind.config);
    Names { dns: servers, addresses: String::new() }
}

/// Programs find peers in /etc/hosts.
fn through_host_aliases(pod: &Value, selecting: &[Selecting], patch: &mut Patch) -> Names {
    let hosts: Vec<&Host> = selecting.iter().flat_map(|agent| &agent.hosts).collect();
    let aliases = hosts.iter().map(|host| json!({"ip": host.address, "hostnames": host.names}));
    patch.set(pod, &["spec", "hostAliases"], extended(&pod["spec"]["hostAliases"], aliases));
    let addresses: Vec<_> = hosts.iter().map(|host| format!("{}={}", host.address, host.id)).collect();
    Names { dns: "off".to_owned(), addresses: addresses.join(",") }
}

/// Lets the agent listen on ports below 1024 without privileges, unless the pod says itself which ports are free.
fn free_low_ports(pod: &Value, spec: &PodSpec, patch: &mut Patch) {
    if sysctls(spec).iter().any(|sysctl| sysctl.name == SYSCTL) {
        return;
    }
    let free = json!({"name": SYSCTL, "value": "0"});
    let all = extended(&pod["spec"]["securityContext"]["sysctls"], [free]);
    patch.set(pod, &["spec", "securityContext", "sysctls"], all);
}

/// What no setting gets around.
fn obstacles(spec: &PodSpec, selecting: &[Selecting]) -> Result<(), Reason> {
    if spec.host_network == Some(true) {
        return Err(Reason::HostNetwork);
    }
    if is_for_windows(spec) {
        return Err(Reason::Windows);
    }
    let low =
        |sysctl: &&Sysctl| sysctl.name == SYSCTL && sysctl.value.parse::<u16>().is_ok_and(|port| port <= DNS_PORT);
    if let Some(other) = sysctls(spec).iter().find(|sysctl| sysctl.name == SYSCTL && !low(sysctl)) {
        return Err(Reason::Sysctl(other.value.clone()));
    }
    let inits = spec.init_containers.iter().flatten();
    if inits.chain(&spec.containers).any(|container| container.name == CONTAINER) {
        return Err(Reason::NameTaken(CONTAINER));
    }
    for ours in [STATE, TOKEN] {
        if spec.volumes.iter().flatten().any(|volume| volume.name == ours) {
            return Err(Reason::NameTaken(ours));
        }
    }
    match selecting {
        [] | [_] => Ok(()),
        [..] => Err(Reason::Ambiguous(selecting.iter().map(|agent| agent.name.clone()).collect())),
    }
}

/// Whether it says so, or can run on no other nodes.
fn is_for_windows(spec: &PodSpec) -> bool {
    let chosen = spec.node_selector.as_ref().and_then(|labels| labels.get(NODE_OS));
    let said = [spec.os.as_ref().map(|os| &os.name), chosen].into_iter().flatten().any(|os| os == "windows");
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|nodes| nodes.required_during_scheduling_ignored_during_execution.as_ref());
    // One of the terms has to hold, and in it everything.
    let terms = required.map_or(&[][..], |required| &required.node_selector_terms);
    said || (!terms.is_empty() && terms.iter().all(excludes_linux))
}

fn excludes_linux(term: &NodeSelectorTerm) -> bool {
    let about_os = term.match_expressions.iter().flatten().filter(|expression| expression.key == NODE_OS);
    about_os.into_iter().any(|expression| {
        let has_linux = expression.values.iter().flatten().any(|os| os == "linux");
        match expression.operator.as_str() {
            "In" => !has_linux,
            "NotIn" => has_linux,
            _ => false, // every node has the label, and it is no number
        }
    })
}

fn sysctls(spec: &PodSpec) -> &[Sysctl] {
    spec.security_context.as_ref().and_then(|context| context.sysctls.as_deref()).unwrap_or_default()
}

/// What will keep the agent from being one, and may still be mended.
fn warnings(spec: &PodSpec, selecting: &[Selecting]) -> Vec<String> {
    let runs_as = spec.service_account_name.as_deref().unwrap_or("default");
    let others = selecting.iter().filter_map(|agent| Some((&agent.name, agent.service_account.as_deref()?)));
    let others = others.filter(|(_, wanted)| *wanted != runs_as);
    let text = |(name, wanted)| {
        format!("AgentPeer {name} is for ServiceAccount {wanted}, and this pod runs as {runs_as}: it will not enrol")
    };
    others.map(text).collect()
}

fn left_alone(pod: &Value, reason: Reason) -> Decision {
    let mut patch = Patch::default();
    annotate(pod, &mut patch, (LEFT_ALONE, &reason.to_string()), INJECTED);
    Decision::LeftAlone { reason, patch }
}

/// Sets one annotation, and takes away the one that says the contrary.
fn annotate(pod: &Value, patch: &mut Patch, (name, value): (&str, &str), contrary: &str) {
    let mut annotations = pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.remove(contrary);
    annotations.insert(name.to_owned(), json!(value));
    if pod["metadata"]["annotations"].as_object() != Some(&annotations) {
        patch.set(pod, &["metadata", "annotations"], Value::Object(annotations));
    }
}
