//! The way to agents in their pods: `kubectl exec`, with the rights that whoever calls us has (`create` of `pods/exec`).
//!
//! What an object's status says is coarse on purpose. What one pod sees at this moment is known to its agent, which is
//! asked by the same kubectl that called this plug-in, so that every way to log in that kubectl knows works here, too.

use std::process::Stdio;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ListParams;
use peerage_crds::AgentPeer;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::cluster::{Cluster, get};
use crate::failure::{Code, Failure};

/// What injection calls the agent's container.
const CONTAINER: &str = "peerage-agent";
/// The agent's program in its image.
const PROGRAM: &str = "/peerage-agent";
/// How many pods are asked at a time: each is a connection through the API server.
const AT_ONCE: usize = 8;
/// How long each has: an agent answers at once, and a node that has gone never.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one pod's agent answered, or why it did not.
#[derive(Debug)]
pub struct Answer<T> {
    pub pod: String,
    pub said: Result<T, Failure>,
}

/// Asks the agent of each running pod of `agent`, an AgentPeer of the namespace: `status`, `peers` or `doctor`. No answers:
/// there is no such pod.
///
/// # Errors
/// There is no such AgentPeer, or the API server does not say.
pub async fn ask<T: DeserializeOwned>(cluster: &Cluster, agent: &str, what: &str) -> Result<Vec<Answer<T>>, Failure> {
    let pods = pods(cluster, agent).await?;
    let answers = stream::iter(pods).map(|pod| async move {
        let said = ask_one(cluster, &pod, what).await;
        Answer { pod, said }
    });
    Ok(answers.buffered(AT_ONCE).collect().await)
}

/// The running pods of an agent that have a sidecar.
async fn pods(cluster: &Cluster, agent: &str) -> Result<Vec<String>, Failure> {
    let peer: AgentPeer = get(&cluster.here(), agent, "read the AgentPeer").await?;
    let labels = peer.spec.selector.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
    let chosen = ListParams::default().labels(&labels.collect::<Vec<_>>().join(","));
    let pods = cluster.here::<Pod>().list(&chosen).await;
    let pods = pods.map_err(|error| Failure::of_kube("list the agent's pods", &error))?;
    let account = peer.spec.service_account_name.as_deref();
    let ours = pods.items.iter().filter(|pod| runs_agent(pod) && account.is_none_or(|account| runs_as(pod, account)));
    Ok(ours.map(|pod| pod.name_any()).collect())
}

/// Whether a pod runs as that ServiceAccount, which the AgentPeer may ask for beside labels.
fn runs_as(pod: &Pod, account: &str) -> bool {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    name.unwrap_or("default") == account
}

fn runs_agent(pod: &Pod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let Some(status) = &pod.status else { return false };
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers
        .into_iter()
        .any(|one| one.name == CONTAINER && one.state.as_ref().is_some_and(|state| state.running.is_some()))
}

async fn ask_one<T: DeserializeOwned>(cluster: &Cluster, pod: &str, what: &str) -> Result<T, Failure> {
    let mut command = Command::new("kubectl");
    command.args(cluster.context.iter().flat_map(|context| ["--context", context]));
    command.args([
        "exec",
        "--namespace",
        &cluster.namespace,
        pod,
        "--container",
        CONTAINER,
        "--",
        PROGRAM,
        "ask",
        what,
    ]);
    let done = timeout(PATIENCE, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let done = done.map_err(|_| {
        let message = format!("it did not answer within {} s", PATIENCE.as_secs());
        Failure::new(Code::NoAnswer, message, "see whether its node is there: kubectl get nodes")
    })?;
    let done = done.map_err(|error| {
        let hint = "agents in pods are asked by `kubectl exec`: put kubectl into the PATH";
        Failure::new(Code::NoCluster, format!("cannot run kubectl: {error}"), hint)
    })?;
    understand(&done.stdout, &String::from_utf8_lossy(&done.stderr))
}

/// An agent's answer is JSON on stdout, also where it is a failure; without any, kubectl says on stderr what hindered it.
fn understand<T: DeserializeOwned>(stdout: &[u8], stderr: &str) -> Result<T, Failure> {
    let Ok(answer) = serde_json::from_slice::<Value>(stdout) else {
        let hint = "it takes the right to `create` `pods/exec` in the namespace, and an agent of this version or newer";
        let code = if stderr.contains("Forbidden") { Code::NotPermitted } else { Code::NoAnswer };
        return Err(Failure::new(code, format!("could not ask: {}", stderr.trim()), hint));
    };
    if let Some(failure) = answer.get("error") {
        let part = |name: &str| failure[name].as_str().unwrap_or_default().to_owned();
        return Err(Failure::new(Code::NoAnswer, part("message"), part("hint")));
    }
    serde_json::from_value(answer).map_err(|error| {
        let hint = "use a kubectl-peerage of the agents' version";
        Failure::new(Code::NoAnswer, format!("the agent said something unknown: {error}"), hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_failure_comes_with_its_own_words() {
        let said = br#"{"error":{"code":"not_enrolled","message":"no operator has let this agent in","hint":"wait"}}"#;
        let failure = understand::<Value>(said, "command terminated with exit code 1").expect_err("it failed");
        assert_eq!((failure.message.as_str(), failure.hint.as_str()), ("no operator has let this agent in", "wait"));
    }

    #[test]
    fn what_hinders_kubectl_is_said() {
        let stderr = "Error from server (Forbidden): pods \"db\" is forbidden: User \"ann\" cannot create resource \"pods/exec\"";
        let failure = understand::<Value>(b"", stderr).expect_err("nothing was answered");
        assert_eq!(failure.code, Code::NotPermitted);
        assert!(failure.message.contains("pods/exec"), "{failure:?}");
    }

    #[test]
    fn an_agent_without_the_command_is_no_answer() {
        let stderr = "error: unexpected argument 'ask' found";
        assert_eq!(understand::<Value>(b"", stderr).expect_err("nothing was answered").code, Code::NoAnswer);
    }
}
