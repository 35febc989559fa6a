//! Admission: pods get their sidecar, and objects of ours are looked at by who sees the others.
//!
//! [`inject`] and [`validate`] decide, without a cluster; [`server`] is the HTTPS port that the API server asks, and this
//! module is what lies between: from the bytes of a review to the bytes of its answer. Every replica serves. An
//! answer never depends on an operator being right: failurePolicy is Ignore, and what is not understood is let in.

pub mod inject;
#[cfg(test)]
mod inject_tests;
pub mod server;
pub mod settings;
pub mod validate;

mod dns;
mod patch;
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
        let selecting = selecting(&self.cluster.read().index, namespace, &labels);
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
        let key = ObjectKey::new(request.namespace.clone().unwrap_or_default(), &request.name);
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
        name: key.name.clone(),
        service_account: facts.service_account.clone(),
        hosts: index.hosts_of(key),
    })
    .collect()
}
