//! The chart installed without pods, and operators as processes that hold what its pods would hold: the chart's own
//! ServiceAccount token, and nothing else.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::cluster::{Cluster, until};
use crate::failed::{Failed, Trying, ensure};

/// Where the chart is installed.
pub const NAMESPACE: &str = "peerage-system";
/// The chart's ServiceAccount, as the API server calls it.
pub const ACCOUNT: &str = "system:serviceaccount:peerage-system:peerage-operator";

/// Where the API server asks about pods.
const WEBHOOK: u16 = 9443;

/// Installs the chart.
///
/// # Errors
/// Helm refuses, or the definitions are not established.
pub fn install(cluster: &Cluster, repository: &Path) -> Result<(), Failed> {
    let chart = repository.join("charts/peerage");
    let chart = chart.to_str().ok_or_else(|| Failed::new("the path of the chart is not text"))?;
    // No Service leads anywhere here: the API server asks the first operator's own address.
    let webhook = format!("webhook.url=https://{}", address(0, WEBHOOK));
    let values = ["--set", &webhook, "--set", "agent.clusterDNS={10.96.0.10}"];
    let install = ["install", "peerage", chart, "--namespace", NAMESPACE, "--create-namespace"];
    cluster.run("helm", &[&install[..], &values[..]].concat(), "")?;
    cluster.kubectl("wait --for=condition=Established --timeout=60s crd agentpeers.peerage.dev agenttrusts.peerage.dev agentlinks.peerage.dev agentrelays.peerage.dev agenttrustrequests.peerage.dev").map(|_| ())
}

/// Upgrades the release with these values besides those that it has.
///
/// # Errors
/// Helm refuses.
pub fn upgrade(cluster: &Cluster, values: &[&str]) -> Result<(), Failed> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/peerage");
    let chart = chart.to_str().ok_or_else(|| Failed::new("the path of the chart is not text"))?;
    let upgrade = ["upgrade", "peerage", chart, "--namespace", NAMESPACE, "--reuse-values"];
    let values = values.iter().flat_map(|value| ["--set", value]);
    cluster.run("helm", &upgrade.into_iter().chain(values).collect::<Vec<_>>(), "").map(|_| ())
}

/// A running operator; killed when this is dropped.
#[derive(Debug)]
pub struct Operator {
    child: Child,
    /// Where agents are served.
    pub agents: SocketAddr,
    health: SocketAddr,
    log: PathBuf,
    _folder: TempDir,
}

impl Operator {
    /// Starts replica `number` and waits until it says that it is ready.
    ///
    /// # Errors
    /// It ends instead, or is not ready in time; the error has the end of its log.
    pub fn start(cluster: &Cluster, program: &Path, number: u8) -> Result<Self, Failed> {
        let mut operator = Self::launch(cluster, program, number)?;
        let ready = until(|| {
            operator.still_runs()?;
            Ok(http_status(operator.health, "/readyz") == Some(200))
        })?;
        ensure(ready, || format!("operator {number} is not ready: {}", operator.end_of_log()))?;
        Ok(operator)
    }

    /// Starts replica `number`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(cluster: &Cluster, program: &Path, number: u8) -> Result<Self, Failed> {
        let folder = tempfile::tempdir().trying("make a folder")?;
        let kubeconfig = folder.path().join("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_of_the_chart(cluster)?).trying("write a kubeconfig")?;
        let log = folder.path().join("log");
        let file = fs::File::create(&log).trying("make a log")?;
        let (agents, health) = (address(number, 8443), address(number, 8080));
        let admission = folder.path().join("admission.json");
        fs::write(&admission, what_the_chart_says(cluster)?).trying("write what the chart says of webhooks")?;
        let child = Command::new(program)
            .args(["--namespace", NAMESPACE, "--identity", &format!("operator-{number}")])
            .args(["--listen", &agents.to_string(), "--advertise", &agents.to_string()])
            .args(["--health", &health.to_string()])
            .args(["--listen-admission", &address(number, WEBHOOK).to_string(), "--admission"])
            .arg(&admission)
            .env("KUBECONFIG", &kubeconfig)
            .env_remove("POD_NAME")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .trying("start the operator")?;
        Ok(Self { child, agents, health, log, _folder: folder })
    }

    /// What it says when asked whether it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        http_status(self.health, "/readyz") == Some(200)
    }

    /// The last lines that it logged.
    #[must_use]
    pub fn end_of_log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn still_runs(&mut self) -> Result<(), Failed> {
        let ended = self.child.try_wait().trying("look at the operator")?;
        ensure(ended.is_none(), || format!("the operator ended: {}", self.end_of_log()))
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// An address of loopback that no other run has, instead of ports that somebody may have.
fn address(number: u8, port: u16) -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 16 + number, high, low), port))
}

/// What would be mounted into the operator's pod.
fn what_the_chart_says(cluster: &Cluster) -> Result<String, Failed> {
    let map = cluster.get(&format!("configmap peerage-operator -n {NAMESPACE}"))?.unwrap_or_default();
    let file = map["data"]["admission.json"].as_str();
    file.map(str::to_owned).ok_or_else(|| Failed::new("the chart says nothing of webhooks"))
}

fn kubeconfig_of_the_chart(cluster: &Cluster) -> Result<String, Failed> {
    let token = cluster.kubectl(&format!("create token peerage-operator -n {NAMESPACE} --duration=2h"))?;
    let admin = cluster.kubectl("config view --raw --minify -o json")?;
    let mut config: serde_json::Value = serde_json::from_str(&admin).trying("read the administrator's kubeconfig")?;
    let user = config["users"][0]["name"].clone();
    config["users"] = json!([{"name": user, "user": {"token": token}}]);
    Ok(config.to_string())
}

/// The status of an answer to GET; none if nobody answers.
fn http_status(at: SocketAddr, path: &str) -> Option<u16> {
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).ok()?;
    std::str::from_utf8(&answer).ok()?.strip_prefix("HTTP/1.1 ")?.parse().ok()
}
