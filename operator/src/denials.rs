//! Denied instances outlive the process that denied them.
//!
//! They lie in sixteen ConfigMaps of the operator's namespace, by the first digit of the instance's id, as
//! `INSTANCE: "UNTIL AGENT"`. Every replica writes: a merge patch adds one key and touches no other, so two that write
//! at once lose nothing. Every replica watches them, which is how the others hear of a denial. The leader removes what
//! has ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use peerage_model::snapshot::DeniedInstance;
use peerage_model::{AgentId, UnixTime};
use serde_json::json;
use tokio::sync::mpsc;

use crate::cluster::Cluster;
use crate::roll::Denial;

/// Label of the ConfigMaps.
pub const LABEL: &str = "peerage.dev/denied-instances";
/// How long a write that failed waits.
const AGAIN: Duration = Duration::from_secs(2);

/// All denials in one ConfigMap's data; what cannot be read is left out.
#[must_use]
pub fn read(data: &BTreeMap<String, String>) -> Vec<Denial> {
    let one = |(instance, value): (&String, &String)| {
        let (until, agent) = value.split_once(' ')?;
        let agent: AgentId = agent.parse().ok()?;
        let denied = DeniedInstance {
            authority: agent.authority,
            instance: instance.parse().ok()?,
            until: UnixTime(until.parse().ok()?),
        };
        Some(Denial { agent, denied })
    };
    data.iter().filter_map(one).collect()
}

fn entry(denial: &Denial) -> (String, String) {
    (denial.denied.instance.to_string(), format!("{} {}", denial.denied.until.0, denial.agent))
}

fn name_of(instance: &str) -> String {
    format!("peerage-denied-{}", &instance[..1])
}

/// Writes denials down, and forgets them when they have ended.
#[derive(Clone)]
pub struct Ledger {
    maps: Api<ConfigMap>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger(..)")
    }
}

impl Ledger {
    /// In the operator's namespace.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str) -> Self {
        Self { maps: Api::namespaced(client, namespace) }
    }

    /// Writes down what was denied here, for as long as it takes.
    pub async fn run(self, mut denied: mpsc::UnboundedReceiver<Denial>) {
        while let Some(first) = denied.recv().await {
            let mut all = vec![first];
            while let Ok(more) = denied.try_recv() {
                all.push(more);
            }
            let mut by_map: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
            for denial in &all {
                let (instance, value) = entry(denial);
                by_map.entry(name_of(&instance)).or_default().insert(instance, value);
            }
            for (name, data) in by_map {
                while let Err(error) = self.add(&name, &data).await {
                    tracing::warn!(%error, "denied instances could not be written down");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn add(&self, name: &str, data: &BTreeMap<String, String>) -> kube::Result<()> {
        let patch = Patch::Merge(json!({"data": data}));
        match self.maps.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(|_| ()),
        }
        let map = json!({"metadata": {"name": name, "labels": {LABEL: ""}}, "data": data});
        let map = serde_json::from_value(map).map_err(kube::Error::SerdeError)?;
        match self.maps.create(&PostParams::default(), &map).await {
            // Another replica made it in between.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.maps.patch(name, &PatchParams::default(), &patch).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    /// Removes what has ended; for the leader.
    ///
    /// # Errors
    /// What the API server said.
    pub async fn sweep(&self, now: UnixTime) -> kube::Result<()> {
        for map in self.maps.list(&ListParams::default().labels(LABEL)).await?.items {
            let Some((name, data)) = map.metadata.name.zip(map.data) else { continue };
            let ended = read(&data).into_iter().filter(|denial| denial.denied.until <= now);
            let ended: BTreeMap<String, Option<String>> = ended.map(|denial| (entry(&denial).0, None)).collect();
            if !ended.is_empty() {
                let patch = Patch::Merge(json!({"data": ended}));
                self.maps.patch(&name, &PatchParams::default(), &patch).await?;
            }
        }
        Ok(())
    }
}

/// A ConfigMap as the watch delivers it.
pub fn apply(cluster: &Arc<Cluster>, denials: Option<Vec<Denial>>) {
    let now = crate::clock::now();
    for denial in denials.into_iter().flatten().filter(|denial| denial.denied.until > now) {
        cluster.deny(denial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::{Fingerprint, InstanceId};

    #[test]
    fn a_denial_is_read_as_it_was_written_and_nonsense_is_left_out() {
        let agent = AgentId { authority: Fingerprint([1; 32]), name: "db.tools".parse().expect("a name") };
        let denied = DeniedInstance { authority: agent.authority, instance: InstanceId([0xab; 8]), until: UnixTime(7) };
        let denial = Denial { agent, denied };
        let (key, value) = entry(&denial);
        assert_eq!(name_of(&key), "peerage-denied-a");
        let data = BTreeMap::from([(key, value), ("x".into(), "y".into()), ("ab".into(), "1 z".into())]);
        assert_eq!(read(&data), [denial]);
    }
}
