//! Where the agent's container is in a pod, or belongs.

use serde_json::{Value, json};

use super::patch::Patch;
use super::sidecar::CONTAINER;

/// A place among the containers of a pod.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// A native sidecar, before or behind other init containers.
    Init(usize),
    /// A container beside the others.
    Beside(usize),
}

impl Place {
    /// Where it is; none if the pod has no agent.
    pub(super) fn of(pod: &Value) -> Option<Self> {
        let at = |list: &str| pod["spec"][list].as_array()?.iter().position(|container| container["name"] == CONTAINER);
        at("initContainers").map(Self::Init).or_else(|| at("containers").map(Self::Beside))
    }

    /// Where it belongs: before every other init container, because these may already call a peer. Among containers that
    /// start together no place is better than another.
    pub(super) fn proper(self) -> Self {
        match self {
            Self::Init(_) => Self::Init(0),
            Self::Beside(index) => Self::Beside(index),
        }
    }

    /// Whether it is where it belongs.
    pub(super) fn is_proper(self) -> bool {
        self.list() == self.proper().list()
    }

    fn list(self) -> (&'static str, usize) {
        match self {
            Self::Init(index) => ("initContainers", index),
            Self::Beside(index) => ("containers", index),
        }
    }

    /// What is there.
    pub(super) fn container(self, pod: &Value) -> &Value {
        let (list, index) = self.list();
        &pod["spec"][list][index]
    }

    /// Puts the agent there, before what is there.
    pub(super) fn insert(self, pod: &Value, container: Value, patch: &mut Patch) {
        let (list, index) = self.list();
        let mut all = pod["spec"][list].as_array().cloned().unwrap_or_default();
        all.insert(index, container);
        patch.set(pod, &["spec", list], Value::Array(all));
    }

    /// Puts `container` in place of the agent that is there, and to where it belongs.
    pub(super) fn replace(self, pod: &Value, container: Value, patch: &mut Patch) {
        let ((list, from), (_, to)) = (self.list(), self.proper().list());
        let mut all = pod["spec"][list].as_array().cloned().unwrap_or_default();
        all.remove(from);
        all.insert(to, container);
        patch.set(pod, &["spec", list], json!(all));
    }
}
