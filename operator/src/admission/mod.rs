//! Admission: pods get their sidecar, and objects of ours are looked at by who sees the others.
//!
//! [`inject`] and [`validate`] decide, without a cluster; [`server`] is the HTTPS port that the API server asks, and this
//! module is what lies between: from the bytes of a review to the bytes of its answer. Every replica serves. An
//! answer never depends on an operator being right: failurePolicy is Ignore, and what is not understood is let in.

pub mod inject;
#[cfg(test)]
mod inject_tests;
pub mod quantity;
pub mod resources;
pub mod server;
pub mod settings;
pub mod validate;

mod dns;
mod patch;
mod place;
mod refresh;
mod sidecar;

use std::sync::Arc;

use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};

pub use patch::Patch;

use crate::cluster::Cluster;
use crate::index::{Index, Labels};
use crate::key::ObjectKey;
use crate::metrics::{Admission, Word};
use inject::{Decision, Selecting};
use settings::Settings;

/// The two questions that the API server asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// What should become of this pod?
    Mutate,
    /// Is there something to say of this object?
    Validate,
}

/// Answers reviews.
#[derive(Debug)]
pub struct Reviewer {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// What injection is decided by.
    pub settings: Settings,
}

/// Bytes that are no review.
#[derive(Debug, thiserror::Error)]
#[error("not an AdmissionReview of admission.k8s.io/v1 with a request")]
pub struct NoReview;

type Request = AdmissionRequest<DynamicObject>;

impl Reviewer {
    /// Answers one.
    ///
    /// # Errors
    /// [`NoReview`].
    pub fn answer(&self, question: Question, bytes: &[u8]) -> Result<Vec<u8>, NoReview> {
        let review: AdmissionReview<DynamicObject> = serde_json::from_slice(bytes).map_err(|_| NoReview)?;
        let request: Request = review.try_into().map_err(|_| NoReview)?;
        let (response, outcome) = match question {
            Question::Mutate => self.mutate(&request),
            Question::Validate => self.validate(&request),
        };
        self.cluster.metrics.admissions.get_or_create(&Admission { outcome: Word(outcome) }).inc();
        tracing::debug!(uid = request.uid, ?question, outcome, "admission");
        Ok(serde_json::to_vec(&response.into_review()).expect("strings and numbers have a form in JSON"))
    }

    fn mutate(&self, request: &Request) -> (AdmissionResponse, &'static str) {
        let response = AdmissionResponse::from(request);
        let (Some(object), Some(namespace)) = (&request.object, &request.namespace) else {
            return (response, "nothing");
        };
        let pod = serde_json::to_value(object).expect("it came as JSON");
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let selecting = selecting(&self.cluster.read().index, namespace, &(&labels).into());
        let (patch, warnings, outcome) = match inject::decide(&pod, namespace, &selecting, &self.settings) {
            Decision::Inject { patch, warnings } => (patch, warnings, "injected"),
            Decision::LeftAlone { reason, patch } => {
                (patch, vec![format!("no agent was injected: {reason}")], "left_alone")
            }
            Decision::Unchanged => (Patch::default(), Vec::new(), "unchanged"),
            Decision::OptedOut => (Patch::default(), Vec::new(), "opted_out"),
        };
        let mut response = patched(response, patch);
        response.warnings = (!warnings.is_empty()).then_some(warnings);
        (response, outcome)
    }

    fn validate(&self, request: &Request) -> (AdmissionResponse, &'static str) {
        let mut response = AdmissionResponse::from(request);
        let Some(object) = &request.object else { return (response, "nothing") };
        let declared = |object: &DynamicObject| object.data.get("spec").cloned();
        // Who only takes a finalizer off, or labels it, is not told about a spec that is as it was.
        if request.old_object.as_ref().map(declared).is_some_and(|old| old == declared(object)) {
            return (response, "allowed");
        }
        let key = ObjectKey::new(request.namespace.clone().unwrap_or_default(), request.name.as_str());
        let object = serde_json::to_value(object).expect("it came as JSON");
        // What a stale watch does not know may be there.
        if self.cluster.stale().is_some() {
            return (response, "allowed");
        }
        let findings = validate::look(&self.cluster.read().index, &key, &request.kind.kind, &object);
        let outcome = match (&findings.refusal, &findings.warnings[..]) {
            (Some(_), _) => "refused",
            (None, []) => "allowed",
            (None, [..]) => "warned",
        };
        response.warnings = (!findings.warnings.is_empty()).then_some(findings.warnings);
        match findings.refusal {
            Some(why) => (response.deny(why), outcome),
            None => (response, outcome),
        }
    }
}

fn patched(response: AdmissionResponse, patch: Patch) -> AdmissionResponse {
    if patch.is_empty() {
        return response;
    }
    let operations = serde_json::from_value(patch.into_operations()).expect("each is a JSON Patch operation");
    response.with_patch(operations).expect("operations have a form in JSON")
}

/// The AgentPeers that select a pod with these labels, as injection needs them.
fn selecting(index: &Index, namespace: &str, labels: &Labels) -> Vec<Selecting> {
    let all = index.peers_selecting(namespace, labels);
    all.map(|(key, facts)| Selecting {
        name: key.name.to_string(),
        service_account: facts.service_account.clone(),
        hosts: index.hosts_of(key),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use peerage_model::{Fingerprint, UnixTime};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::metrics::Metrics;

    pub(super) fn reviewer() -> Reviewer {
        let index = Index::new(Fingerprint([1; 32]), UnixTime(0));
        let (news, _) = tokio::sync::mpsc::unbounded_channel();
        let cluster = Cluster::new(index, 1, Vec::new(), Arc::new(Metrics::default()), news);
        Reviewer { cluster: Arc::new(cluster), settings: settings::tests::settings() }
    }

    pub(super) fn review(kind: &str, object: Value) -> Vec<u8> {
        let kind = json!({"group": "", "version": "v1", "kind": kind});
        let resource = json!({"group": "", "version": "v1", "resource": "things"});
        let request = json!({
            "uid": "7", "kind": kind, "resource": resource, "name": "own", "namespace": "tools", "operation": "CREATE",
            "userInfo": {}, "object": object, "oldObject": null,
        });
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).to_string().into()
    }

    fn answered(question: Question, review: &[u8]) -> Value {
        let answer = reviewer().answer(question, review).expect("it is a review");
        serde_json::from_slice(&answer).expect("JSON")
    }

    #[test]
    fn an_answer_names_the_request_and_says_what_to_change() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": []}});
        let answer = answered(Question::Mutate, &review("Pod", pod));
        let response = &answer["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("7"), &json!(true)));
        assert_eq!(response["patchType"], "JSONPatch");
    }

    #[test]
    fn what_can_never_be_right_is_refused_in_words() {
        let spec = json!({"agentRef": {"name": "a"}, "peer": {"name": "a"}});
        let metadata = json!({"name": "own", "namespace": "tools"});
        let own =
            json!({"apiVersion": "peerage.dev/v1alpha1", "kind": "AgentTrust", "metadata": metadata, "spec": spec});
        let reviewer = reviewer();
        let peer = json!({"apiVersion": "peerage.dev/v1alpha1", "kind": "AgentPeer", "metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": {"app": "a"}}}});
        let facts = crate::facts::PeerFacts::read(&serde_json::from_value(peer).expect("an AgentPeer"));
        reviewer.cluster.change(|index| index.set_peer(&ObjectKey::new("tools", "a"), facts.ok()));
        let answer = reviewer.answer(Question::Validate, &review("AgentTrust", own)).expect("it is a review");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(answer["response"]["allowed"], false);
        assert!(
            answer["response"]["status"]["message"].as_str().is_some_and(|why| why.contains("in itself")),
            "{answer}"
        );
    }

    fn some_json() -> impl Strategy<Value = Value> {
        let words = ["spec", "metadata", "annotations", "containers", "peerage-agent", "name", "peerage.dev/injected"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            prop::sample::select(words.to_vec()).prop_map(Value::from)
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            let member = (prop::sample::select(words.to_vec()), inner.clone());
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                prop::collection::vec(member, 0..4)
                    .prop_map(|all| all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_somebody_posts_is_answered_or_refused(object in some_json(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let reviewer = reviewer();
            for kind in ["Pod", "AgentPeer", "AgentTrust", "AgentLink", "AgentRelay"] {
                for question in [Question::Mutate, Question::Validate] {
                    let _ = reviewer.answer(question, &review(kind, object.clone()));
                }
            }
            prop_assert!(reviewer.answer(Question::Mutate, &bytes).is_err());
        }
    }
}
