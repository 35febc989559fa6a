//! A control plane that `scripts/kube` starts for one run, and kubectl on it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failed::{Failed, Trying, ensure};

/// Far above what anything here takes, also on a busy machine; only a failure waits so long.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at what has no event.
const LOOK: Duration = Duration::from_millis(100);

/// A running control plane, removed when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    script: PathBuf,
    name: String,
    /// The administrator's kubeconfig; audit log and programs are found from it.
    admin: PathBuf,
    /// Where kubectl and helm are.
    programs: PathBuf,
    /// What is installed in it; this repository's unless an operator of another version has its own.
    pub chart: PathBuf,
}

impl Cluster {
    /// Starts one, building Kubernetes if it was never built.
    ///
    /// # Errors
    /// `scripts/kube` could not.
    pub fn start(repository: &Path) -> Result<Self, Failed> {
        Self::start_called(repository, "e2e")
    }

    /// The same, for one of several.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_called(repository: &Path, name: &str) -> Result<Self, Failed> {
        let (script, chart) = (repository.join("scripts/kube"), repository.join("charts/peerage"));
        let name = format!("{name}-{}", std::process::id());
        let mut cluster = Self { script, name, admin: PathBuf::new(), programs: PathBuf::new(), chart };
        cluster.ask("start")?;
        cluster.admin = PathBuf::from(cluster.ask("kubeconfig")?);
        cluster.programs = PathBuf::from(cluster.ask("programs")?);
        Ok(cluster)
    }

    fn ask(&self, command: &str) -> Result<String, Failed> {
        let said = Command::new(&self.script).args([command, &self.name]).stderr(Stdio::inherit()).output();
        let said = said.trying("run scripts/kube")?;
        ensure(said.status.success(), || format!("scripts/kube {command}: {}", said.status))?;
        Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }

    /// The folder that holds all of it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.admin.parent().unwrap_or(&self.admin)
    }

    /// The folder where the API server writes down every request, in files called `audit*.json`.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.admin.with_file_name("log")
    }

    /// The key by which the API server signs ServiceAccounts' tokens. Who has it can be everybody.
    #[must_use]
    pub fn signing_key(&self) -> PathBuf {
        self.admin.with_file_name("pki").join("service-account.key")
    }

    /// Runs a program of the cluster as its administrator, with `input`; what it printed.
    ///
    /// # Errors
    /// It failed, with what it said.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String, Failed> {
        self.run_saying(program, arguments, input).map(|(printed, _)| printed)
    }

    /// The same, and what it said besides: the API server's warnings.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_saying(&self, program: &str, arguments: &[&str], input: &str) -> Result<(String, String), Failed> {
        let mut command = Command::new(self.programs.join(program));
        command.args(arguments).env("KUBECONFIG", &self.admin);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().trying("start a program")?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(input.as_bytes()).trying("write to a program")?;
        drop(stdin);
        let said = child.wait_with_output().trying("run a program")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        ensure(said.status.success(), || {
            format!("{program} {}: {}{}", arguments.join(" "), text(&said.stderr), text(&said.stdout))
        })?;
        Ok((text(&said.stdout), text(&said.stderr)))
    }

    /// kubectl, its arguments in one line.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn kubectl(&self, arguments: &str) -> Result<String, Failed> {
        self.run("kubectl", &arguments.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// Applies an object.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn apply(&self, object: &Value) -> Result<(), Failed> {
        self.run("kubectl", &["apply", "-f", "-"], &object.to_string()).map(|_| ())
    }

    /// What kubectl says in JSON; none if there is no such object.
    ///
    /// # Errors
    /// As [`Self::run`], or it is not JSON.
    pub fn get(&self, arguments: &str) -> Result<Option<Value>, Failed> {
        let said = self.kubectl(&format!("get --ignore-not-found -o json {arguments}"))?;
        if said.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&said).trying("read what kubectl says").map(Some)
    }

    /// Waits until a condition of an object, `KIND NAME -n NAMESPACE`, has this status and reason.
    ///
    /// # Errors
    /// It has not within [`PATIENCE`]; the error tells what it has instead.
    pub fn condition(&self, object: &str, condition: &str, status: &str, reason: &str) -> Result<(), Failed> {
        let mut last = Value::Null;
        let found = until(|| {
            last = self.get(object)?.map_or(Value::Null, |mut object| object["status"]["conditions"].take());
            let mut all = last.as_array().into_iter().flatten();
            Ok(all.any(|one| one["type"] == condition && one["status"] == status && one["reason"] == reason))
        })?;
        ensure(found, || format!("{object}: expected {condition} to be {status} for {reason}, found {last}"))
    }

    /// Waits for an Event with this reason, `regarding` an object, `KIND/NAME`.
    ///
    /// # Errors
    /// There is none within [`PATIENCE`]; the error tells which there are.
    pub fn event(&self, namespace: &str, regarding: &str, reason: &str) -> Result<(), Failed> {
        let mut told = Vec::new();
        let found = until(|| {
            let events = self.get(&format!("events.events.k8s.io -n {namespace}"))?.unwrap_or_default();
            let of = |event: &Value, field: &str| event["regarding"][field].as_str().unwrap_or_default().to_owned();
            let all = events["items"].as_array().into_iter().flatten();
            told = all
                .map(|event| (format!("{}/{}", of(event, "kind"), of(event, "name")), event["reason"].clone()))
                .collect();
            Ok(told.iter().any(|(object, why)| object == regarding && why == reason))
        })?;
        ensure(found, || format!("no Event says {reason} of {regarding}; there are {told:?}"))
    }
}

/// Looks until it is so; false if it is not within [`PATIENCE`].
///
/// # Errors
/// Looking failed.
pub fn until(look: impl FnMut() -> Result<bool, Failed>) -> Result<bool, Failed> {
    until_within(PATIENCE, look)
}

/// Looks until it is so; false if it is not within `patience`.
///
/// # Errors
/// Looking failed.
pub fn until_within(patience: Duration, mut look: impl FnMut() -> Result<bool, Failed>) -> Result<bool, Failed> {
    let begun = Instant::now();
    while !look()? {
        if begun.elapsed() > patience {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(failed) = self.ask("delete") {
            eprintln!("the control plane {} is left behind: {failed}", self.name);
        }
    }
}
