//! The agent's container and its volumes, as they go into a pod.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use peerage_model::operator::audience;
use serde_json::{Value, json};

use super::settings::Settings;

/// What the container is called.
pub const CONTAINER: &str = "peerage-agent";
/// The volume in memory, for key and passport.
pub(super) const STATE: &str = "peerage-state";
/// The volume with the token.
pub(super) const TOKEN: &str = "peerage-token";

/// Where the token is. The API server mounts its own token here into whatever container has nothing here, also into ones
/// that webhooks add; with this mount the agent gets the one that is good for us and nobody else.
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a token lasts, in seconds; the kubelet renews it after four fifths. An agent needs it when it enrols.
const TOKEN_LASTS: u32 = 3600;
const STATE_FOLDER: &str = "/run/peerage";
/// What may lie there: key, passport and the last snapshot, of which 1,000 peers take about a megabyte.
const STATE_SIZE: &str = "16Mi";
/// Where `/readyz` and `/metrics` are, or above it where the pod needs that port itself.
const HEALTH: u16 = 9402;
/// For how many seconds the agent may not be ready: it is after 10, operator or not, and an image is there by then.
const START: u32 = 60;

/// A port of a pod's own container: number, and whether it is UDP.
pub(super) type Port = (u16, bool);

/// Ports that the pod's own containers declare, or that somebody expects them to answer on.
pub(super) fn ports_of(spec: &PodSpec) -> BTreeSet<Port> {
    let inits = spec.init_containers.iter().flatten();
    let containers = inits.chain(&spec.containers).filter(|container| container.name != CONTAINER);
    containers.flat_map(ports_of_container).collect()
}

fn ports_of_container(container: &Container) -> Vec<Port> {
    let declared = container.ports.iter().flatten().filter_map(|port| {
        let udp = match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => false,
            "UDP" => true,
            _ => return None, // SCTP: nothing of ours is there
        };
        Some((u16::try_from(port.container_port).ok()?, udp))
    });
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    declared.chain(probes.into_iter().flatten().filter_map(|probe| Some((probed(probe)?, false)))).collect()
}

/// A program may listen where it is probed and not declare it.
fn probed(probe: &Probe) -> Option<u16> {
    let by_http = probe.http_get.as_ref().map(|http| &http.port);
    let port = by_http.or_else(|| probe.tcp_socket.as_ref().map(|tcp| &tcp.port))?;
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(_) => None, // the name of a declared one
    }
}

/// What the agent is told of how the pod's programs find names.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// Whom it asks about names that are not ours; `off`: nobody asks it.
    pub(super) dns: String,
    /// Whose the addresses in the pod's hosts file are.
    pub(super) addresses: String,
}

/// The agent's container, beside containers that need `ports`.
pub(super) fn container(
    settings: &Settings,
    native: bool,
    ports: &BTreeSet<Port>,
    names: &Names,
    resources: &Value,
) -> Value {
    let health = (HEALTH..).find(|port| !ports.contains(&(*port, false))).unwrap_or(HEALTH);
    let reserved: Vec<_> =
        ports.iter().map(|(port, udp)| format!("{port}{}", if *udp { "/udp" } else { "" })).collect();
    let mut environment = vec![
        json!({"name": "PEERAGE_OPERATOR", "value": settings.operators().join(",")}),
        json!({"name": "PEERAGE_AUTHORITY", "value": settings.authority.to_string()}),
        json!({"name": "PEERAGE_TOKEN_FILE", "value": format!("{TOKEN_FOLDER}/token")}),
        // Not the volume itself, which is open to each user of the pod: a folder in it that only the agent enters.
        json!({"name": "PEERAGE_STATE", "value": format!("{STATE_FOLDER}/agent")}),
        json!({"name": "PEERAGE_HEALTH", "value": format!("[::]:{health}")}),
        json!({"name": "PEERAGE_DNS", "value": names.dns}),
    ];
    if !reserved.is_empty() {
        environment.push(json!({"name": "PEERAGE_RESERVED_PORTS", "value": reserved.join(",")}));
    }
    if !names.addresses.is_empty() {
        environment.push(json!({"name": "PEERAGE_ADDRESSES", "value": names.addresses}));
    }
    if let Some(log) = &settings.agent.log {
        environment.push(json!({"name": "PEERAGE_LOG", "value": log}));
    }
    let mut container = json!({
        "name": CONTAINER,
        "image": settings.agent.image,
        "args": ["--keep"],
        "env": environment,
        "ports": [{"name": "peerage-health", "containerPort": health, "protocol": "TCP"}],
        "startupProbe": {"httpGet": {"path": "/readyz", "port": health}, "periodSeconds": 1, "failureThreshold": START},
        "resources": resources,
        "securityContext": security(settings.agent.run_as_user),
        "volumeMounts": [
            {"name": STATE, "mountPath": STATE_FOLDER},
            {"name": TOKEN, "mountPath": TOKEN_FOLDER, "readOnly": true},
        ],
    });
    if let Some(policy) = &settings.agent.image_pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    if native {
        container["restartPolicy"] = json!("Always");
    }
    container
}

/// PodSecurity "restricted", whatever the pod says for its others.
fn security(user: Option<i64>) -> Value {
    let mut context = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if let Some(user) = user {
        context["runAsUser"] = json!(user);
        context["runAsGroup"] = json!(user);
    }
    context
}

/// The agent's volumes.
pub(super) fn volumes(settings: &Settings) -> [Value; 2] {
    let token = json!({"audience": audience(&settings.authority), "expirationSeconds": TOKEN_LASTS, "path": "token"});
    [
        json!({"name": STATE, "emptyDir": {"medium": "Memory", "sizeLimit": STATE_SIZE}}),
        json!({"name": TOKEN, "projected": {"sources": [{"serviceAccountToken": token}]}}),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::settings::tests::settings;
    use super::*;

    fn ports(containers: Value) -> BTreeSet<Port> {
        ports_of(&serde_json::from_value(json!({"containers": containers})).expect("a PodSpec"))
    }

    #[test]
    fn the_agent_keeps_off_ports_that_are_declared_or_probed() {
        let app = json!([{
            "name": "app",
            "ports": [{"containerPort": 80}, {"containerPort": 5353, "protocol": "UDP"}, {"containerPort": 7, "protocol": "SCTP"}],
            "readinessProbe": {"httpGet": {"port": 8080}},
            "livenessProbe": {"tcpSocket": {"port": "named"}},
        }]);
        assert_eq!(ports(app), BTreeSet::from([(80, false), (5353, true), (8080, false)]));
    }

    #[test]
    fn its_own_ports_are_nobodys_hindrance() {
        let agent = json!([{"name": CONTAINER, "ports": [{"containerPort": 9402}]}]);
        assert!(ports(agent).is_empty(), "or it would move at each invocation");
        let taken = BTreeSet::from([(9402, false), (9403, false)]);
        let taken = container(&settings(), true, &taken, &Names::default(), &json!({}));
        assert_eq!(taken["ports"][0]["containerPort"], 9404);
        assert_eq!(taken["startupProbe"]["httpGet"]["port"], 9404);
    }

    #[test]
    fn a_cluster_that_gives_out_users_is_not_told_which() {
        let mut settings = settings();
        settings.agent.run_as_user = None;
        let agent = container(&settings, true, &BTreeSet::new(), &Names::default(), &json!({}));
        let context = &agent["securityContext"];
        assert!(context.get("runAsUser").is_none() && context["runAsNonRoot"] == true);
    }
}
