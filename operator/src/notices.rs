//! Events, where `kubectl describe` and `kubectl get events` show them: pods that injection left alone, objects that are
//! refused as they are, and consent that was taken back. Conditions say all but the last as well, and more exactly; an Event
//! says when, and is still there when the object is not.
//!
//! Written by the leader, one after the other: a thousand that have something to say at once wait, or are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use peerage_crds::{AgentPeer, AgentTrust, Condition, ConditionStatus, ConditionType};
use peerage_model::TrustId;
use tokio::sync::{mpsc, watch};

use crate::cluster::Cluster;
use crate::facts::Target;
use crate::index::{Deleted, Dirty};
use crate::key::ObjectKey;
use crate::leader::Leadership;

/// Longest note that the API server takes (events.k8s.io/v1).
const MAX_NOTE: usize = 1024;
/// Pods that are remembered as told; with more than that the oldest UIDs go, and a replica may repeat itself.
const MAX_TOLD: usize = 100_000;
/// Refusals that may wait. Who cannot be told of one finds it in the condition.
pub const QUEUE: usize = 64;

/// An object that is refused as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The condition's reason.
    pub reason: String,
    /// And its message.
    pub message: String,
}

impl Refusal {
    /// What there is to tell where conditions change from `old` to `new`: that `Accepted` fails, or does for another reason.
    #[must_use]
    pub fn between(old: &[Condition], new: &[Condition]) -> Option<Self> {
        let accepted = |all: &[Condition]| {
            let found = all.iter().find(|one| one.type_ == ConditionType::Accepted.as_str()).cloned();
            found.filter(|one| one.status == ConditionStatus::False)
        };
        let fails = accepted(new)?;
        let is_told = accepted(old).is_some_and(|before| before.reason == fails.reason);
        (!is_told).then_some(Self { reason: fails.reason, message: fails.message })
    }
}

/// What is told, and of what.
pub type Told = (ObjectReference, Refusal);

/// Tells of what comes, for ever.
pub async fn run(
    cluster: Arc<Cluster>,
    client: Client,
    leadership: watch::Receiver<Leadership>,
    mut changes: mpsc::UnboundedReceiver<Dirty>,
    mut refusals: mpsc::Receiver<Told>,
) {
    let reporter = Reporter { controller: "peerage-operator".into(), instance: None };
    let recorder = Recorder::new(client, reporter);
    let mut told = BTreeSet::new();
    loop {
        tokio::select! {
            changed = changes.recv() => {
                let Some(dirty) = changed else { return };
                // Whoever leads next reads the pods anew only where they change; what the last one told stays told.
                if *leadership.borrow() != Leadership::Ours {
                    continue;
                }
                tell_of_pods(&cluster, &recorder, &dirty.pods, &mut told).await;
                tell_of_deleted(&cluster, &recorder, &dirty.gone).await;
            }
            // Only a leader writes conditions.
            Some((object, Refusal { reason, message })) = refusals.recv() => {
                publish(&recorder, &event(EventType::Warning, &reason, "Judging", message), &object).await;
            }
        }
    }
}

async fn tell_of_pods(cluster: &Cluster, recorder: &Recorder, pods: &BTreeSet<ObjectKey>, told: &mut BTreeSet<String>) {
    for pod in pods {
        let Some((uid, why)) = left_alone(cluster, pod) else { continue };
        if told.contains(&uid) {
            continue;
        }
        let event = event(EventType::Warning, "NotInjected", "Injecting", format!("no agent was injected: {why}"));
        if publish(recorder, &event, &pod_reference(pod, &uid)).await {
            if told.len() >= MAX_TOLD {
                told.clear();
            }
            told.insert(uid);
        }
    }
}

/// On the AgentPeer whose owner it was, since the AgentTrust is not there to be described.
async fn tell_of_deleted(cluster: &Cluster, recorder: &Recorder, gone: &BTreeMap<TrustId, Deleted>) {
    for (uid, deleted) in gone {
        let trust = reference::<AgentTrust>(&deleted.trust, uuid(uid));
        let agent = cluster.read().index.peer(&deleted.agent).map(|facts| facts.uid.clone());
        let mut event = event(EventType::Normal, "TrustDeleted", "Revoking", farewell(deleted));
        let regarding = match agent {
            Some(uid) => {
                event.secondary = Some(trust);
                reference::<AgentPeer>(&deleted.agent, uid)
            }
            None => trust,
        };
        publish(recorder, &event, &regarding).await;
    }
}

fn farewell(Deleted { trust, target, .. }: &Deleted) -> String {
    let whom = match target {
        Target::Here(peer) => peer.to_string(),
        Target::Fleet { namespace, .. } => format!("agents of namespace {namespace}"),
        Target::Away { link, name, .. } => format!("{name} of link {link}"),
    };
    format!("AgentTrust {} was deleted: what was open between this agent and {whom} by it ends", trust.name)
}

fn left_alone(cluster: &Cluster, pod: &ObjectKey) -> Option<(String, String)> {
    let state = cluster.read();
    let facts = state.index.pod(pod)?;
    Some((facts.uid.clone(), facts.left_alone.clone()?))
}

/// Whether it was written.
async fn publish(recorder: &Recorder, event: &Event, regarding: &ObjectReference) -> bool {
    match recorder.publish(event, regarding).await {
        Ok(()) => true,
        // The namespace is on its way out, and takes no Event any more.
        Err(kube::Error::Api(status)) if status.code == 403 || status.code == 404 => false,
        Err(error) => {
            tracing::warn!(reason = event.reason, %error, "an Event could not be written");
            false
        }
    }
}

fn event(type_: EventType, reason: &str, action: &str, mut note: String) -> Event {
    while note.len() > MAX_NOTE {
        note.pop(); // whole characters
    }
    Event { type_, reason: reason.into(), note: Some(note), action: action.into(), secondary: None }
}

fn pod_reference(pod: &ObjectKey, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(pod.name.to_string()),
        namespace: Some(pod.namespace.to_string()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

fn reference<K: Resource<DynamicType = ()>>(key: &ObjectKey, uid: String) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into()),
        kind: Some(K::kind(&()).into()),
        name: Some(key.name.to_string()),
        namespace: Some(key.namespace.to_string()),
        uid: Some(uid),
        ..ObjectReference::default()
    }
}

/// As the API server writes it (RFC 9562 section 4).
fn uuid(id: &TrustId) -> String {
    let hex = id.to_string();
    [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| &hex[from..to]).join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_crds::Reason;

    fn accepted(status: ConditionStatus, reason: Reason) -> Vec<Condition> {
        let at = crate::clock::api_time(peerage_model::UnixTime(1_800_000_000));
        vec![Condition::new(ConditionType::Accepted, status, reason, "why".into(), at)]
    }

    #[test]
    fn a_refusal_is_told_once_for_each_reason() {
        let good = accepted(ConditionStatus::True, Reason::AsDeclared);
        let alias = accepted(ConditionStatus::False, Reason::AliasConflict);
        let link = accepted(ConditionStatus::False, Reason::LinkNotFound);
        let told = |old: &[Condition], new: &[Condition]| Refusal::between(old, new).map(|refusal| refusal.reason);
        assert_eq!(told(&[], &good), None);
        assert_eq!(told(&[], &alias), Some("AliasConflict".into()));
        assert_eq!(told(&good, &alias), Some("AliasConflict".into()));
        assert_eq!(told(&alias, &alias), None);
        assert_eq!(told(&alias, &link), Some("LinkNotFound".into()));
        assert_eq!(told(&link, &good), None);
    }

    #[test]
    fn a_uid_is_written_as_the_api_server_writes_it() {
        let text = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        assert_eq!(uuid(&crate::key::uid_bytes(text)), text);
    }
}
