//! What one change touches.

use std::collections::{BTreeMap, BTreeSet};

use peerage_model::{AgentId, TrustId};

use crate::facts::Target;
use crate::key::ObjectKey;

/// An AgentTrust that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// What it was called.
    pub trust: ObjectKey,
    /// The agent that consented.
    pub agent: ObjectKey,
    /// To whom.
    pub target: Target,
}

/// What has to be asked for again after a change. Too much costs time; too little would be a lie that stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Entries: what the first agent is told of the second.
    pub pairs: BTreeSet<(ObjectKey, AgentId)>,
    /// Agents whose own settings may have changed.
    pub agents: BTreeSet<ObjectKey>,
    /// AgentPeers whose conditions may have changed, beyond `agents`.
    pub judged: BTreeSet<ObjectKey>,
    /// AgentTrusts whose conditions may have changed.
    pub trusts: BTreeSet<ObjectKey>,
    /// Pods that may be another agent than before, or none.
    pub pods: BTreeSet<ObjectKey>,
    /// AgentPeers that were deleted, or made anew under the same name.
    pub replaced: BTreeSet<ObjectKey>,
    /// AgentTrusts that were deleted: what rests on them ends for ever.
    pub gone: BTreeMap<TrustId, Deleted>,
    /// Everything: something that all agents depend on changed, which is rare.
    pub all: bool,
}

impl Dirty {
    /// Adds what another change touched.
    pub fn extend(&mut self, other: Self) {
        self.pairs.extend(other.pairs);
        self.agents.extend(other.agents);
        self.judged.extend(other.judged);
        self.trusts.extend(other.trusts);
        self.pods.extend(other.pods);
        self.replaced.extend(other.replaced);
        self.gone.extend(other.gone);
        self.all |= other.all;
    }

    /// Whether nothing was touched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn agent(&mut self, key: &ObjectKey) {
        self.agents.insert(key.clone());
        self.judged.insert(key.clone());
    }

    pub(super) fn judge_agent(&mut self, key: &ObjectKey) {
        self.judged.insert(key.clone());
    }
}
