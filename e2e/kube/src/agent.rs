//! An agent as a process, with the token that a kubelet would have put into its pod.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cluster::{Cluster, until};
use crate::failed::{Failed, Trying, ensure};

/// A running `peerage-agent`; killed when this is dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
    folder: TempDir,
}

/// What one is started with.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// `peerage-agent`.
    pub program: &'a Path,
    /// Where operators are.
    pub operators: Vec<SocketAddr>,
    /// Whom they must speak for.
    pub authority: String,
    /// The pod's token.
    pub token: String,
}

impl Agent {
    /// Starts one in the network of the tests.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(how: &Start<'_>) -> Result<Self, Failed> {
        Self::start_by(how, |mut command| command.spawn())
    }

    /// Starts one as `spawn` does.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_by(how: &Start<'_>, spawn: impl FnOnce(Command) -> io::Result<Child>) -> Result<Self, Failed> {
        let folder = tempfile::tempdir().trying("make a folder")?;
        let log = folder.path().join("log");
        fs::write(folder.path().join("token"), &how.token).trying("write a token")?;
        let child = spawn(command(how, folder.path())?).trying("start the agent")?;
        Ok(Self { child, log, folder })
    }

    /// Kills it, as a container dies, and starts another one on the same memory volume.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart_by(
        &mut self,
        how: &Start<'_>,
        spawn: impl FnOnce(Command) -> io::Result<Child>,
    ) -> Result<(), Failed> {
        self.stop()?;
        self.child = spawn(command(how, self.folder.path())?).trying("start the agent")?;
        Ok(())
    }

    /// Ends it, as a node does that takes a pod away.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn stop(&mut self) -> Result<(), Failed> {
        self.child.kill().trying("kill an agent")?;
        self.child.wait().trying("bury an agent").map(drop)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has logged these words.
    ///
    /// # Errors
    /// It has not; the error has its log.
    pub fn says(&mut self, words: &str) -> Result<(), Failed> {
        let found = until(|| {
            let ended = self.child.try_wait().trying("look at the agent")?;
            ensure(ended.is_none() || self.log().contains(words), || format!("the agent ended: {}", self.log()))?;
            Ok(self.log().contains(words))
        })?;
        ensure(found, || format!("the agent does not say `{words}`: {}", self.log()))
    }

    /// Everything that it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

fn command(how: &Start<'_>, folder: &Path) -> Result<Command, Failed> {
    let log = fs::File::options().create(true).append(true).open(folder.join("log")).trying("open a log")?;
    let operators: Vec<String> = how.operators.iter().map(ToString::to_string).collect();
    let mut command = Command::new(how.program);
    command.args(["--operator", &operators.join(","), "--authority", &how.authority]);
    command.arg("--token-file").arg(folder.join("token")).arg("--state").arg(folder.join("state"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(command)
}

/// A token of the ServiceAccount of `pod`, bound to that pod, as a projected volume has it.
///
/// # Errors
/// The API server makes none.
pub fn token(cluster: &Cluster, namespace: &str, pod: &str, audience: &str) -> Result<String, Failed> {
    let account = cluster.kubectl(&format!("get pod {pod} -n {namespace} -o jsonpath={{.spec.serviceAccountName}}"))?;
    cluster.kubectl(&format!(
        "create token {account} -n {namespace} --audience={audience} --bound-object-kind=Pod --bound-object-name={pod} --duration=1h"
    ))
}
