//! The chart installed without pods, and operators as processes that hold what its pods would hold: the chart's own
//! ServiceAccount token, and nothing else.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::cluster::{Cluster, until};
use crate::failed::{Failed, Trying, ensure};

/// Where the chart is installed.
pub const NAMESPACE: &str = "peerage-system";
/// The Secret with tickets of links.
pub const TICKETS: &str = "peerage-tickets";
/// The chart's ServiceAccount, as the API server calls it.
pub const ACCOUNT: &str = "system:serviceaccount:peerage-system:peerage-operator";
/// How many operators there can be at a time; each has an address of its own.
pub const MOST: u8 = 8;
/// After how many seconds without an operator agents raise an alarm; a test waits for it.
const MAX_STALENESS: &str = "20";
/// How long an operator's health may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the API server asks about pods.
const WEBHOOK: u16 = 9443;
/// The file that says how to answer.
const ADMISSION: &str = "admission.json";
/// The file that says how relays are run.
const RELAYS: &str = "relays.json";

/// Installs the chart.
///
/// # Errors
/// Helm refuses, or the definitions are not established.
pub fn install(cluster: &Cluster) -> Result<(), Failed> {
    // No Service leads anywhere here: the API server asks the first operator's own address.
    let webhook = format!("webhook.url=https://{}", SocketAddr::from((address(0), WEBHOOK)));
    install_with(cluster, &[&webhook, "agent.clusterDNS={10.96.0.10}", "managedRelays.enabled=true"])
}

/// Installs the chart with these values.
///
/// # Errors
/// As [`install`].
pub fn install_with(cluster: &Cluster, values: &[&str]) -> Result<(), Failed> {
    let install = ["install", "peerage", chart(cluster)?, "--namespace", NAMESPACE, "--create-namespace"];
    let values = values.iter().flat_map(|value| ["--set", value]);
    cluster.run("helm", &install.into_iter().chain(values).collect::<Vec<_>>(), "")?;
    cluster.kubectl("wait --for=condition=Established --timeout=60s crd agentpeers.peerage.dev agenttrusts.peerage.dev agentlinks.peerage.dev agentrelays.peerage.dev agenttrustrequests.peerage.dev").map(|_| ())
}

/// Upgrades the release with these values besides those that it has.
///
/// # Errors
/// Helm refuses.
pub fn upgrade(cluster: &Cluster, values: &[&str]) -> Result<(), Failed> {
    let upgrade = ["upgrade", "peerage", chart(cluster)?, "--namespace", NAMESPACE, "--reuse-values"];
    let values = values.iter().flat_map(|value| ["--set", value]);
    cluster.run("helm", &upgrade.into_iter().chain(values).collect::<Vec<_>>(), "").map(|_| ())
}

fn chart(cluster: &Cluster) -> Result<&str, Failed> {
    cluster.chart.to_str().ok_or_else(|| Failed::new("the path of the chart is not text"))
}

/// A running operator; killed when this is dropped.
#[derive(Debug)]
pub struct Operator {
    child: Child,
    number: u8,
    program: PathBuf,
    /// Where agents are served.
    pub agents: SocketAddr,
    health: SocketAddr,
    folder: TempDir,
}

/// The address of replica `number` in the lab.
#[must_use]
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 201, 10 + number)
}

impl Operator {
    /// Starts replica `number` and waits until it says that it is ready.
    ///
    /// # Errors
    /// It ends instead, or is not ready in time; the error has the end of its log.
    pub fn start(cluster: &Cluster, program: &Path, number: u8) -> Result<Self, Failed> {
        let mut operator = Self::launch(cluster, program, number)?;
        operator.until_ready()?;
        Ok(operator)
    }

    /// Starts replica `number`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(cluster: &Cluster, program: &Path, number: u8) -> Result<Self, Failed> {
        Self::launch_through(cluster, program, number, None)
    }

    /// Starts replica `number`, which finds the API server at `gate`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch_through(
        cluster: &Cluster,
        program: &Path,
        number: u8,
        gate: Option<SocketAddr>,
    ) -> Result<Self, Failed> {
        let folder = tempfile::tempdir().trying("make a folder")?;
        fs::write(folder.path().join("kubeconfig"), kubeconfig_of_the_chart(cluster, gate)?)
            .trying("write a kubeconfig")?;
        fs::write(folder.path().join(ADMISSION), what_the_chart_says(cluster)?)
            .trying("write what the chart says of webhooks")?;
        fs::write(folder.path().join(RELAYS), of_relays(cluster)?).trying("write what the chart says of relays")?;
        let at = |port| SocketAddr::from((address(number), port));
        let (agents, health) = (at(8443), at(8080));
        let child = run(program, number, agents, health, folder.path())?;
        Ok(Self { child, number, program: program.to_owned(), agents, health, folder })
    }

    /// Kills it with SIGKILL and starts it again at once.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn kill_and_restart(&mut self) -> Result<(), Failed> {
        self.child.kill().trying("kill an operator")?;
        self.child.wait().trying("bury an operator")?;
        self.child = run(&self.program, self.number, self.agents, self.health, self.folder.path())?;
        Ok(())
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&mut self) -> Result<(), Failed> {
        self.child.kill().trying("kill an operator")?;
        self.child.wait().trying("bury an operator").map(drop)
    }

    /// Tells it to stop, as the kubelet does.
    ///
    /// # Errors
    /// There is no such process.
    pub fn tell_to_stop(&self) -> Result<(), Failed> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failed::new("a process without a number"))?;
        kill_process(pid, Signal::TERM).trying("tell an operator to stop")
    }

    /// Whether agents can connect to it.
    #[must_use]
    pub fn serves_agents(&self) -> bool {
        TcpStream::connect_timeout(&self.agents, PATIENCE).is_ok()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It goes on.
    pub fn until_ended(&mut self) -> Result<ExitStatus, Failed> {
        let mut ended = None;
        until(|| {
            ended = self.child.try_wait().trying("look at the operator")?;
            Ok(ended.is_some())
        })?;
        ended.ok_or_else(|| Failed::new(format!("operator {} goes on: {}", self.number, self.end_of_log())))
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// It ends instead, or is not ready in time; the error has the end of its log.
    pub fn until_ready(&mut self) -> Result<(), Failed> {
        let ready = until(|| {
            let ended = self.child.try_wait().trying("look at the operator")?;
            ensure(ended.is_none(), || format!("operator {} ended: {}", self.number, self.end_of_log()))?;
            Ok(self.is_ready())
        })?;
        ensure(ready, || format!("operator {} is not ready: {}", self.number, self.end_of_log()))
    }

    /// What it says when asked whether it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        get(self.health, "/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    }

    /// One number of its metrics, as it is written there; none if nobody answers or there is no such line.
    #[must_use]
    pub fn metric(&self, line: &str) -> Option<f64> {
        let answer = get(self.health, "/metrics")?;
        answer.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
    }

    /// The buckets of a histogram: upper bounds, and how many were at most that.
    #[must_use]
    pub fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let answer = get(self.health, "/metrics").unwrap_or_default();
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(name)?.strip_prefix("_bucket{le=\"")?.split_once("\"} ")?;
            Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? }, count.parse().ok()?))
        };
        answer.lines().filter_map(bucket).collect()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The last lines that it logged.
    #[must_use]
    pub fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// What would be mounted into the operator's pod.
fn what_the_chart_says(cluster: &Cluster) -> Result<String, Failed> {
    let map = cluster.get(&format!("configmap peerage-operator -n {NAMESPACE}"))?.unwrap_or_default();
    let file = map["data"]["admission.json"].as_str();
    file.map(str::to_owned).ok_or_else(|| Failed::new("the chart says nothing of webhooks"))
}

/// What would be in the environment of the operator's container.
fn of_relays(cluster: &Cluster) -> Result<String, Failed> {
    let deployment = cluster.get(&format!("deployment peerage-operator -n {NAMESPACE}"))?.unwrap_or_default();
    let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().cloned().unwrap_or_default();
    let found = env.iter().find(|variable| variable["name"] == "PEERAGE_MANAGED_RELAYS");
    let text = found.and_then(|variable| variable["value"].as_str());
    text.map(str::to_owned).ok_or_else(|| Failed::new("the chart says nothing of relays"))
}

fn run(program: &Path, number: u8, agents: SocketAddr, health: SocketAddr, folder: &Path) -> Result<Child, Failed> {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).trying("open a log")?;
    Command::new(program)
        .args(["--namespace", NAMESPACE, "--identity", &format!("operator-{number}")])
        .args(["--listen", &agents.to_string(), "--advertise", &agents.to_string()])
        .args(["--health", &health.to_string(), "--agent-max-staleness", MAX_STALENESS])
        .args(["--listen-admission", &SocketAddr::from((address(number), WEBHOOK)).to_string(), "--admission"])
        .arg(folder.join(ADMISSION))
        .env("KUBECONFIG", folder.join("kubeconfig"))
        .env("PEERAGE_MANAGED_RELAYS", fs::read_to_string(folder.join(RELAYS)).trying("read what the chart says")?)
        .env_remove("POD_NAME")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .trying("start the operator")
}

/// How the operator's pod would reach the API server, or through a gate.
///
/// # Errors
/// The API server gives no token.
pub fn kubeconfig_of_the_chart(cluster: &Cluster, gate: Option<SocketAddr>) -> Result<String, Failed> {
    let token = cluster.kubectl(&format!("create token peerage-operator -n {NAMESPACE} --duration=2h"))?;
    let admin = cluster.kubectl("config view --raw --minify -o json")?;
    let mut config: serde_json::Value = serde_json::from_str(&admin).trying("read the administrator's kubeconfig")?;
    let user = config["users"][0]["name"].clone();
    config["users"] = json!([{"name": user, "user": {"token": token}}]);
    if let Some(gate) = gate {
        config["clusters"][0]["cluster"]["server"] = format!("https://{gate}").into();
        config["clusters"][0]["cluster"]["tls-server-name"] = "localhost".into();
    }
    Ok(config.to_string())
}

/// An answer to GET, head and body; none if nobody answers.
fn get(at: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
