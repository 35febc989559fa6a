//! One of the two clusters: real, with pods, and behind a gateway of its own.

use std::path::Path;
use std::process::Command;

use peerage_e2e_pods::cluster::{Cluster, until};
use peerage_e2e_pods::stage::{self, SYSTEM};
use peerage_netlab::kernel::{KernelLab, Network, Site, SiteConfig};
use peerage_suite::failed::{Failed, Trying as _, ensure};
use serde_json::{Value, json};

/// A cluster, and where it is on the internet.
#[derive(Debug)]
pub struct Side {
    /// The cluster, and the objects that pods are made of.
    pub pods: stage::Stage,
    /// Its node, behind its gateway.
    pub site: Site,
    /// What its kubeconfig is called in the tests' own.
    pub context: &'static str,
}

impl Side {
    /// Starts a cluster that knows names on the internet by this file of hosts.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(repository: &Path, context: &str, hosts: &str) -> Result<Cluster, Failed> {
        let cluster = Cluster::start(repository, &format!("e2e-{}-{context}", std::process::id()), false)?;
        let outside = json!({"data": {"outside": hosts}}).to_string();
        let words = ["patch", "configmap", "coredns", "-n", "kube-system", "--type=merge", "--patch", &outside];
        cluster.run("kubectl", &words, "")?;
        Ok(cluster)
    }

    /// Puts a cluster's node behind a symmetric NAT, whose ports are random, and gives it its images.
    ///
    /// # Errors
    /// The kernel refuses, or a script fails.
    pub fn new(
        cluster: Cluster,
        context: &'static str,
        repository: &Path,
        archives: &str,
        lab: &mut KernelLab,
    ) -> Result<Self, Failed> {
        let node = cluster.script("kube", &["node", &cluster.name])?;
        let process = node.parse().trying("read the number of a process")?;
        let config = SiteConfig::new(Network::SymmetricRandom);
        let site = lab.site_of_process(context, &config, process).trying("put a cluster behind a NAT")?;
        keep_apart(&cluster)?;
        let pods = stage::Stage::on(cluster, repository, archives)?;
        Ok(Self { pods, site, context })
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.pods.cluster
    }

    /// The fingerprint of its authority.
    ///
    /// # Errors
    /// No operator has made one.
    pub fn authority(&self) -> Result<String, Failed> {
        let map = self.cluster().get(&format!("configmap peerage-authority -n {SYSTEM}"))?;
        let found = map["data"]["fingerprint"].as_str().map(str::to_owned);
        found.ok_or_else(|| Failed::new(format!("{} has no authority", self.context)))
    }

    /// The consent of `agent` to an agent of the cluster across, called by its first name here.
    ///
    /// # Errors
    /// That cluster has no authority yet.
    pub fn trust_across(
        &self,
        across: &Self,
        namespace: &str,
        agent: &str,
        peer: &str,
        inbound: &[&str],
    ) -> Result<Value, Failed> {
        let mut object = stage::trust(namespace, agent, peer, inbound);
        object["spec"]["peer"]["linkRef"] = json!({"name": across.context});
        object["spec"]["peer"]["authority"] = json!(across.authority()?);
        Ok(object)
    }

    /// Waits until this holds of an AgentTrust; the last that was seen.
    ///
    /// # Errors
    /// It does not become so.
    pub fn trust(&self, place: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value, Failed> {
        let mut last = Value::Null;
        let so = until(|| {
            last = self.cluster().get(&format!("agenttrust {place}"))?;
            Ok(wanted(&last))
        })?;
        ensure(so, || format!("{}: agenttrust {place} is {last}", self.context))?;
        Ok(last)
    }

    /// What came of requests that a program in a pod sends, one connection each.
    ///
    /// # Errors
    /// The program fails.
    pub fn load(&self, place: &str, target: &str, count: u32, pause: u32, retries: u32) -> Result<Value, Failed> {
        let (count, pause, retries) = (count.to_string(), pause.to_string(), retries.to_string());
        let words = ["app", "load", target, &count, &pause, &retries];
        counts(&self.cluster().begin(place, &words)?.end()?)
    }
}

/// What a load printed.
///
/// # Errors
/// It is no count.
pub fn counts(said: &str) -> Result<Value, Failed> {
    serde_json::from_str(said).trying("read what a load counted")
}

/// Every node has a link to this machine, over which kubectl comes. Nodes are not to meet there.
fn keep_apart(cluster: &Cluster) -> Result<(), Failed> {
    let address =
        cluster.kubectl("get nodes -o jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}")?;
    let number = address.rsplit('.').next().unwrap_or_default();
    let words = ["link", "set", "dev", &format!("peerage-{number}"), "type", "bridge_slave", "isolated", "on"];
    let said = Command::new("ip").args(words).output().trying("run ip")?;
    ensure(said.status.success(), || format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&said.stderr)))
}
