//! What the tests share: a cluster with the images on its node, and the objects that tests are made of.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cluster::{Cluster, until};
use crate::failed::{Failed, Trying, ensure};

/// Where the chart is installed.
pub const SYSTEM: &str = "peerage-system";
/// What the injected container is called.
pub const SIDECAR: &str = "peerage-agent";
/// The client of the first two agents, in which most tests ask.
pub const REPORTER: &str = "-n reports deploy/reporter -c app";

/// A cluster, and what belongs to it.
#[derive(Debug)]
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
    /// This repository.
    pub repository: PathBuf,
    /// The tag of all images.
    tag: String,
}

impl Stage {
    /// Starts a cluster and loads the images.
    ///
    /// # Errors
    /// A script fails.
    pub fn set(repository: &Path, debug: bool, keep: bool) -> Result<Self, Failed> {
        let cluster = Cluster::start(repository, &format!("e2e-{}", std::process::id()), keep)?;
        let archives = images(&cluster, &[], debug)?;
        Self::on(cluster, repository, &archives)
    }

    /// Loads the images of these archives, one a line, into a cluster that runs.
    ///
    /// # Errors
    /// A script fails, or the image of tools is not among them.
    pub fn on(cluster: Cluster, repository: &Path, archives: &str) -> Result<Self, Failed> {
        let mut words = vec!["load", &cluster.name];
        words.extend(archives.lines());
        cluster.script("kube", &words)?;
        let tag = archives.lines().find_map(|line| line.split("peerage-test-tools-").nth(1)?.strip_suffix(".tar"));
        let tag = tag.ok_or_else(|| Failed::new(format!("scripts/images made no tools: {archives}")))?.to_owned();
        Ok(Self { cluster, repository: repository.to_owned(), tag })
    }

    /// The commands of the first block of shell under this heading of a page, as somebody would paste them.
    ///
    /// # Errors
    /// There is no such page, heading or block.
    pub fn steps(&self, page: &str, heading: &str) -> Result<Vec<String>, Failed> {
        let text = std::fs::read_to_string(self.repository.join(page)).trying("read a page")?;
        let section = text.split_once(&format!("\n## {heading}\n")).map(|(_, rest)| rest);
        let block = section.and_then(|section| section.split_once("```sh\n")?.1.split_once("\n```"));
        let (block, _) = block.ok_or_else(|| Failed::new(format!("{page} has no steps under `{heading}`")))?;
        let lines = block.replace("\\\n", " ");
        Ok(lines.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
    }

    /// Takes one of those steps; what it printed.
    ///
    /// # Errors
    /// It failed, or PodSecurity has warned of it.
    pub fn step(&self, step: &str) -> Result<String, Failed> {
        let said = self.cluster.run("bash", &["-euo", "pipefail", "-c", step], "")?;
        ensure(!said.err.contains("PodSecurity"), || format!("`{step}` is warned: {}", said.err))?;
        Ok(said.out)
    }

    /// A namespace that enforces PodSecurity "restricted", in which pods can be made and are injected.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn namespace(&self, name: &str) -> Result<(), Failed> {
        let labels = json!({
            "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted",
            "peerage.dev/injection": "enabled",
        });
        let metadata = json!({"name": name, "labels": labels});
        self.cluster.apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})])?;
        let account = || Ok(!self.cluster.get(&format!("serviceaccount default -n {name}"))?.is_null());
        ensure(until(account)?, || format!("namespace {name} has no ServiceAccount"))
    }

    /// A container of an unmodified program.
    #[must_use]
    pub fn container(&self, command: &[&str], ports: &[u16]) -> Value {
        let ports: Vec<Value> = ports.iter().map(|port| json!({"containerPort": port})).collect();
        json!({
            "name": "app", "image": format!("peerage-test/tools:{}", self.tag), "imagePullPolicy": "Never",
            "command": command, "ports": ports,
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true},
        })
    }

    /// The same with Python and the SDK of the Model Context Protocol.
    #[must_use]
    pub fn python(&self, command: &[&str], ports: &[u16]) -> Value {
        self.with_image("mcp", command, ports)
    }

    /// The same with another of the tests' images.
    #[must_use]
    pub fn with_image(&self, name: &str, command: &[&str], ports: &[u16]) -> Value {
        let mut container = self.container(command, ports);
        container["image"] = json!(format!("peerage-test/{name}:{}", self.tag));
        container
    }

    /// Waits until the agent has `count` pods with a passport, and those are ready.
    ///
    /// # Errors
    /// It has not.
    pub fn enrolled(&self, namespace: &str, agent: &str, count: i64) -> Result<(), Failed> {
        let mut last = Value::Null;
        let so = until(|| {
            last = self.cluster.get(&format!("agentpeer {agent} -n {namespace}"))?["status"]["pods"].take();
            Ok(last["enrolled"] == count && last["matched"] == count)
        })?;
        ensure(so, || format!("{namespace}/{agent}: expected {count} enrolled pods, found {last}"))
    }
}

/// Builds the images of everything that pods of tests run, and `others`, by `scripts/images`; the paths of the archives, one a
/// line.
///
/// # Errors
/// The script fails.
pub fn images(cluster: &Cluster, others: &[&str], debug: bool) -> Result<String, Failed> {
    let mut words = vec!["operator", "agent", "relay", "tools", "mcp"];
    words.extend(others);
    words.extend(debug.then_some("--debug"));
    cluster.script("images", &words)
}

/// The spec of a pod that PodSecurity "restricted" admits.
#[must_use]
pub fn restricted(container: &Value) -> Value {
    let context = json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
    json!({"securityContext": context, "automountServiceAccountToken": false, "containers": [container]})
}

/// A pod.
#[must_use]
pub fn pod(name: &str, namespace: &str, app: &str, spec: &Value) -> Value {
    let metadata = json!({"name": name, "namespace": namespace, "labels": {"app": app}});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

/// A Deployment of one pod.
#[must_use]
pub fn deployment(name: &str, namespace: &str, spec: &Value) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    })
}

/// An AgentPeer for pods with this label `app`, which offers `ports`: name, port, target.
#[must_use]
pub fn agent(name: &str, namespace: &str, ports: &[(&str, u16, u16)]) -> Value {
    let port = |(name, port, target): &(&str, u16, u16)| json!({"name": name, "port": port, "targetPort": target});
    let ports: Vec<Value> = ports.iter().map(port).collect();
    let spec = json!({"selector": {"matchLabels": {"app": name}}, "ports": ports});
    object("AgentPeer", name, namespace, &spec)
}

/// The consent of `agent` to `peer`, which may use `inbound`.
#[must_use]
pub fn trust(namespace: &str, agent: &str, peer: &str, inbound: &[&str]) -> Value {
    let inbound: Vec<Value> = inbound.iter().map(|name| json!({"portName": name})).collect();
    let (name, peer_namespace) = peer.split_once('.').unwrap_or((peer, namespace));
    let spec =
        json!({"agentRef": {"name": agent}, "peer": {"name": name, "namespace": peer_namespace}, "inbound": inbound});
    object("AgentTrust", &format!("{agent}-{name}"), namespace, &spec)
}

fn object(kind: &str, name: &str, namespace: &str, spec: &Value) -> Value {
    let metadata = json!({"name": name, "namespace": namespace});
    json!({"apiVersion": "peerage.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}
