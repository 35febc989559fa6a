//! Events about pods that injection left alone, on the pods themselves, where `kubectl describe` shows them. Written by the
//! leader once for each pod: the webhook itself only answers, and a pod has no UID yet when it does.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::{mpsc, watch};

use crate::cluster::Cluster;
use crate::index::Dirty;
use crate::key::ObjectKey;
use crate::leader::Leadership;

/// Longest note that the API server takes (events.k8s.io/v1).
const MAX_NOTE: usize = 1024;
/// Pods that are remembered as told; with more than that the oldest UIDs go, and a replica may repeat itself.
const MAX_TOLD: usize = 100_000;

/// Tells of pods as they come, for ever.
pub async fn run(
    cluster: Arc<Cluster>,
    client: Client,
    leadership: watch::Receiver<Leadership>,
    mut changes: mpsc::UnboundedReceiver<Dirty>,
) {
    let reporter = Reporter { controller: "peerage-operator".into(), instance: None };
    let recorder = Recorder::new(client, reporter);
    let mut told = BTreeSet::new();
    while let Some(dirty) = changes.recv().await {
        // Whoever leads next reads the pods anew only where they change; what the last one told stays told.
        if *leadership.borrow() != Leadership::Ours {
            continue;
        }
        for pod in &dirty.pods {
            let Some((uid, why)) = left_alone(&cluster, pod) else { continue };
            if told.contains(&uid) {
                continue;
            }
            match recorder.publish(&event(&why), &reference(pod, &uid)).await {
                Ok(()) => {
                    if told.len() >= MAX_TOLD {
                        told.clear();
                    }
                    told.insert(uid);
                }
                Err(error) => tracing::warn!(%error, "no Event could be written about a pod that was left alone"),
            }
        }
    }
}

fn left_alone(cluster: &Cluster, pod: &ObjectKey) -> Option<(String, String)> {
    let state = cluster.read();
    let facts = state.index.pod(pod)?;
    Some((facts.uid.clone(), facts.left_alone.clone()?))
}

fn event(why: &str) -> Event {
    let mut note = format!("no agent was injected: {why}");
    while note.len() > MAX_NOTE {
        note.pop(); // whole characters
    }
    Event {
        type_: EventType::Warning,
        reason: "NotInjected".into(),
        note: Some(note),
        action: "Injecting".into(),
        secondary: None,
    }
}

fn reference(pod: &ObjectKey, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(pod.name.clone()),
        namespace: Some(pod.namespace.clone()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}
