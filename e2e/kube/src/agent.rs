//! An agent as a process, with the token that a kubelet would have put into its pod.

use std::fs;
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
    _folder: TempDir,
}

impl Agent {
    /// Starts one that shows `token` to the operators at `operators`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Path, operators: &[SocketAddr], authority: &str, token: &str) -> Result<Self, Failed> {
        let folder = tempfile::tempdir().trying("make a folder")?;
        let (token_file, log) = (folder.path().join("token"), folder.path().join("log"));
        fs::write(&token_file, token).trying("write a token")?;
        let operators: Vec<String> = operators.iter().map(ToString::to_string).collect();
        let child = Command::new(program)
            .args(["--operator", &operators.join(","), "--authority", authority])
            .arg("--token-file")
            .arg(&token_file)
            .arg("--state")
            .arg(folder.path().join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).trying("make a log")?)
            .spawn()
            .trying("start the agent")?;
        Ok(Self { child, log, _folder: folder })
    }

    /// Waits until it has logged these words.
    ///
    /// # Errors
    /// It has not; the error has the end of its log.
    pub fn says(&mut self, words: &str) -> Result<(), Failed> {
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        let found = until(|| {
            let ended = self.child.try_wait().trying("look at the agent")?;
            ensure(ended.is_none() || log().contains(words), || format!("the agent ended: {}", log()))?;
            Ok(log().contains(words))
        })?;
        ensure(found, || format!("the agent does not say `{words}`: {}", log()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
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
