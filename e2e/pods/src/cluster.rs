//! A cluster with a node, started by `scripts/kube` for one run, and kubectl and helm on it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failed::{Failed, Trying, ensure};

/// Far above what anything here takes, also on a busy machine; only a failure waits so long.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what has no event.
const LOOK: Duration = Duration::from_millis(50);

/// A running cluster; removed when this is dropped, unless it is to be kept.
#[derive(Debug)]
pub struct Cluster {
    repository: PathBuf,
    /// What `scripts/kube` calls it.
    pub name: String,
    admin: PathBuf,
    programs: PathBuf,
    keep: bool,
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    /// On stdout, without the spaces at its ends.
    pub out: String,
    /// On stderr, the same; warnings of the API server are here.
    pub err: String,
}

impl Cluster {
    /// Starts one, building Kubernetes if it was never built.
    ///
    /// # Errors
    /// `scripts/kube` could not.
    pub fn start(repository: &Path, name: &str, keep: bool) -> Result<Self, Failed> {
        let (repository, name) = (repository.to_owned(), name.to_owned());
        let mut cluster = Self { repository, name, admin: PathBuf::new(), programs: PathBuf::new(), keep };
        cluster.script("kube", &["start", &cluster.name, "--node"])?;
        cluster.admin = PathBuf::from(cluster.script("kube", &["kubeconfig", &cluster.name])?);
        cluster.programs = PathBuf::from(cluster.script("kube", &["programs"])?);
        Ok(cluster)
    }

    /// Runs one of this repository's scripts; what it printed.
    ///
    /// # Errors
    /// It failed.
    pub fn script(&self, script: &str, arguments: &[&str]) -> Result<String, Failed> {
        let path = self.repository.join("scripts").join(script);
        let said = Command::new(path).args(arguments).stderr(Stdio::inherit()).output().trying("run a script")?;
        ensure(said.status.success(), || format!("scripts/{script} {}: {}", arguments.join(" "), said.status))?;
        Ok(text(&said.stdout))
    }

    /// A command that finds this cluster and its programs, in the repository's folder, as a user's shell has it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let path = format!("{}:{}", self.programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.admin).env("PATH", path).current_dir(&self.repository);
        command
    }

    /// Runs a program with `input`.
    ///
    /// # Errors
    /// It failed, with what it said.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<Said, Failed> {
        let mut command = self.command(program);
        let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().trying("start a program")?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(input.as_bytes()).trying("write to a program")?;
        drop(stdin);
        let said = child.wait_with_output().trying("run a program")?;
        let (out, err) = (text(&said.stdout), text(&said.stderr));
        ensure(said.status.success(), || format!("{program} {}: {out} {err}", arguments.join(" ")))?;
        Ok(Said { out, err })
    }

    /// kubectl, its arguments in one line.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn kubectl(&self, arguments: &str) -> Result<String, Failed> {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        self.run("kubectl", &words, "").map(|said| said.out)
    }

    /// helm, its arguments in one line.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn helm(&self, arguments: &str) -> Result<String, Failed> {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        self.run("helm", &words, "").map(|said| said.out)
    }

    /// Applies objects, whose pods PodSecurity has to take without a warning.
    ///
    /// # Errors
    /// As [`Self::run`], or there was such a warning.
    pub fn apply(&self, objects: &[Value]) -> Result<(), Failed> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let said = self.run("kubectl", &["apply", "-f", "-"], &list.to_string())?;
        ensure(!said.err.contains("PodSecurity"), || format!("the API server warns: {}", said.err))
    }

    /// What kubectl says in JSON; null if there is no such object.
    ///
    /// # Errors
    /// As [`Self::run`], or it is not JSON.
    pub fn get(&self, arguments: &str) -> Result<Value, Failed> {
        let said = self.kubectl(&format!("get --ignore-not-found -o json {arguments}"))?;
        if said.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&said).trying("read what kubectl says") }
    }

    /// Runs a command in a pod, or in one of a Deployment: `-n NAMESPACE deploy/NAME`.
    ///
    /// # Errors
    /// It failed there, with what it said.
    pub fn exec(&self, place: &str, command: &[&str]) -> Result<String, Failed> {
        let mut words: Vec<&str> = vec!["exec"];
        words.extend(place.split_whitespace());
        words.push("--");
        words.extend(command);
        self.run("kubectl", &words, "").map(|said| said.out)
    }

    /// Starts a command in a pod, and returns once it has printed its first line.
    ///
    /// # Errors
    /// It ended before.
    pub fn begin(&self, place: &str, command: &[&str]) -> Result<Running, Failed> {
        let mut words: Vec<&str> = vec!["exec"];
        words.extend(place.split_whitespace());
        words.push("--");
        words.extend(command);
        let mut running = self.watch(&words)?;
        running.line()?;
        Ok(running)
    }

    /// Starts kubectl with something that goes on, such as `logs --follow`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn watch(&self, arguments: &[&str]) -> Result<Running, Failed> {
        let mut kubectl = self.command("kubectl");
        let kubectl = kubectl.args(arguments).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut child = kubectl.spawn().trying("start kubectl")?;
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Running { child, output, what: arguments.join(" ") })
    }

    /// Waits until a condition of an object, `KIND NAME -n NAMESPACE`, has this status, and, if one is named, this reason.
    ///
    /// # Errors
    /// It has not within [`PATIENCE`]; the error tells what it has instead.
    pub fn condition(&self, object: &str, name: &str, status: &str, reason: Option<&str>) -> Result<Value, Failed> {
        let mut last = Value::Null;
        let found = until(|| {
            last = self.get(object)?["status"]["conditions"].take();
            Ok(holds(&last, name, status, reason).is_some())
        })?;
        ensure(found, || format!("{object}: expected {name} to be {status}, found {last}"))?;
        Ok(holds(&last, name, status, reason).cloned().unwrap_or_default())
    }
}

fn holds<'a>(conditions: &'a Value, name: &str, status: &str, reason: Option<&str>) -> Option<&'a Value> {
    conditions.as_array()?.iter().find(|one| {
        one["type"] == name && one["status"] == status && reason.is_none_or(|reason| one["reason"] == reason)
    })
}

/// A kubectl that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
    what: String,
}

impl Running {
    /// The next line that it prints, once it has.
    ///
    /// # Errors
    /// It ended before.
    pub fn line(&mut self) -> Result<String, Failed> {
        let mut line = String::new();
        self.output.read_line(&mut line).trying("read what a pod says")?;
        ensure(!line.is_empty(), || format!("`kubectl {}` says nothing more", self.what))?;
        Ok(line.trim().to_owned())
    }

    /// Waits for its end; what it printed after what was read.
    ///
    /// # Errors
    /// It failed.
    pub fn end(mut self) -> Result<String, Failed> {
        let mut said = String::new();
        self.output.read_to_string(&mut said).trying("read what a pod says")?;
        let status = self.child.wait().trying("wait for kubectl")?;
        ensure(status.success(), || format!("`kubectl {}` ended with {status}: {said}", self.what))?;
        Ok(said.trim().to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// Looks until it is so; false if it is not within [`PATIENCE`].
///
/// # Errors
/// Looking failed.
pub fn until(mut look: impl FnMut() -> Result<bool, Failed>) -> Result<bool, Failed> {
    let begun = Instant::now();
    while !look()? {
        if begun.elapsed() > PATIENCE {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            eprintln!(
                "the cluster is kept: ./scripts/kube kubectl {0} get pods -A; ./scripts/kube delete {0}",
                self.name
            );
        } else if let Err(failed) = self.script("kube", &["delete", &self.name]) {
            eprintln!("the cluster {} is left behind: {failed}", self.name);
        }
    }
}
