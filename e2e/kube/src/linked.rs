//! A second cluster, as far from the first one as two clusters are: a control plane of its own, its operator and its agent
//! behind a NAT, and nothing that can be reached from outside.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use peerage_netlab::kernel::Site;
use peerage_suite::repository;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{self, Agent, Start};
use crate::api::Api;
use crate::cluster::{Cluster, until};
use crate::failed::{Failed, Trying, ensure};
use crate::gate::Gate;
use crate::operator::{self, NAMESPACE};
use crate::pair::{Place, RESOLVER};
use crate::process::Process;
use crate::tests::{Stage, object, peer, pod};

/// Where the second cluster's API server is for its own operator. A cloud would have it inside; here it is on this side of
/// the NAT, and nobody else has a token for it.
pub const GATE: Ipv4Addr = Ipv4Addr::new(198, 18, 201, 4);
/// Where its operator serves its agent, on their common host.
const OPERATOR: &str = "127.0.0.1:8443";
/// The agent's namespace.
pub const NAMESPACE_OF_AGENT: &str = "reports";

/// The second cluster, with agent `reporter` in namespace `reports`. What is declared first ends first.
#[derive(Debug)]
pub struct Second {
    /// Its agent, on the host that the operator is on, too.
    pub reporter: Place,
    _operator: Process,
    _gate: Gate,
    folder: TempDir,
    /// Its control plane.
    pub cluster: Cluster,
}

impl Second {
    /// Starts one with the same relay as the first.
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(stage: &Stage) -> Result<Self, Failed> {
        let cluster = Cluster::start_called(repository()?, "e2e-second")?;
        operator::install_with(&cluster, &["webhook.enabled=false"])?;
        let folder = tempfile::tempdir().trying("make a folder")?;
        let resolver = folder.path().join("resolv.conf");
        fs::write(&resolver, RESOLVER).trying("write a resolv.conf")?;
        let site = Place::prepare(&mut stage.lab.borrow_mut(), "second", &resolver)?;
        let gate = Gate::open_at(&stage.runtime, (GATE, 6443).into(), Api::new(&cluster)?.address())?;
        let config = operator::kubeconfig_of_the_chart(&cluster, Some(gate.address))?;
        fs::write(folder.path().join("kubeconfig"), config).trying("write a kubeconfig")?;
        let operator = run(&stage.programs.operator, folder.path(), &site)?;
        let authority = authority(&cluster, folder.path())?;
        relay_of(stage, &cluster)?;
        declare(&cluster)?;
        let agent = reporter(stage, &cluster, &authority, &site)?;
        cluster.kubectl("wait agentpeer reporter -n reports --for=condition=Enrolled --timeout=60s")?;
        let reporter = Place { agent, site };
        Ok(Self { reporter, _operator: operator, _gate: gate, folder, cluster })
    }

    /// Its agent's pod goes, and after `between` another one comes in its place.
    ///
    /// # Errors
    /// It cannot be deleted or made, or `between` failed.
    pub fn replace_reporter(
        &mut self,
        stage: &Stage,
        between: impl FnOnce() -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        self.cluster.kubectl(&format!("delete pod reporter-0 -n {NAMESPACE_OF_AGENT} --now"))?;
        between()?;
        self.cluster.apply(&pod("reporter-0", NAMESPACE_OF_AGENT, "reporter", "default"))?;
        let authority = self.authority()?;
        // The old process holds the addresses that the new one wants.
        self.reporter.agent.stop()?;
        self.reporter.agent = reporter(stage, &self.cluster, &authority, &self.reporter.site)?;
        Ok(())
    }

    /// Its authority's fingerprint.
    ///
    /// # Errors
    /// Nothing names one.
    pub fn authority(&self) -> Result<String, Failed> {
        authority(&self.cluster, self.folder.path())
    }

    /// Everything that its operator logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

fn reporter(stage: &Stage, cluster: &Cluster, authority: &str, site: &Site) -> Result<Agent, Failed> {
    let audience = format!("peerage.dev/{authority}");
    let token = agent::token(cluster, NAMESPACE_OF_AGENT, "reporter-0", &audience)?;
    let operators: Vec<SocketAddr> = vec![OPERATOR.parse().trying("read an address")?];
    let how = Start { program: &stage.programs.agent, operators, authority: authority.to_owned(), token };
    Agent::start_by(&how, |command| site.host().spawn(command))
}

fn run(program: &Path, folder: &Path, site: &Site) -> Result<Process, Failed> {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).trying("open a log")?;
    let mut command = Command::new(program);
    command.args(["--namespace", NAMESPACE, "--identity", "second-0", "--listen", OPERATOR, "--advertise", OPERATOR]);
    command.args(["--health", "127.0.0.1:8080"]).env("KUBECONFIG", folder.join("kubeconfig")).env_remove("POD_NAME");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(Process(site.host().spawn(command).trying("start the operator")?))
}

/// Its authority, once its operator has one.
fn authority(cluster: &Cluster, folder: &Path) -> Result<String, Failed> {
    let mut found = String::new();
    let there = until(|| {
        let map = cluster.get(&format!("configmap peerage-authority -n {NAMESPACE}"))?.unwrap_or_default();
        found = map["data"]["fingerprint"].as_str().unwrap_or_default().to_owned();
        Ok(!found.is_empty() && map["data"]["record"].is_string())
    })?;
    ensure(there, || {
        format!("the second cluster has no authority: {}", fs::read_to_string(folder.join("log")).unwrap_or_default())
    })?;
    Ok(found)
}

/// The relay of the first cluster is the second's as well.
fn relay_of(stage: &Stage, cluster: &Cluster) -> Result<(), Failed> {
    let relay = stage.cluster.get("agentrelay main")?.unwrap_or(Value::Null);
    let spec = json!({"address": relay["spec"]["address"], "allowedNamespaces": {"from": "All"}});
    cluster.apply(&object("AgentRelay", "main", None, &spec))
}

fn declare(cluster: &Cluster) -> Result<(), Failed> {
    let namespace = NAMESPACE_OF_AGENT;
    cluster.kubectl(&format!("create namespace {namespace}"))?;
    let there = until(|| Ok(cluster.get(&format!("serviceaccount default -n {namespace}"))?.is_some()))?;
    ensure(there, || format!("namespace {namespace} has no ServiceAccount"))?;
    cluster.apply(&peer("reporter", namespace))?;
    cluster.apply(&pod("reporter-0", namespace, "reporter", "default"))
}
