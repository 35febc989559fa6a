//! What is said between replicas, in JSON: both ends are of one release, or of two that follow each other.

use peerage_crds::PathSummary;
use peerage_model::{AgentId, InstanceId, UnixTime};
use serde::{Deserialize, Serialize};

use crate::hub::{AgentTold, TrustCount};
use crate::key::ObjectKey;
use crate::roll::{Holder, PodUid};

/// A namespaced name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    namespace: String,
    name: String,
}

impl From<ObjectKey> for Name {
    fn from(key: ObjectKey) -> Self {
        Self { namespace: key.namespace.to_string(), name: key.name.to_string() }
    }
}

impl From<Name> for ObjectKey {
    fn from(name: Name) -> Self {
        Self::new(name.namespace, name.name)
    }
}

/// The numbers of one AgentTrust at one replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrustRow {
    /// What it is called.
    pub key: Name,
    /// Which it is: another one of this name has other numbers.
    pub uid: [u8; 16],
    /// In which generation.
    pub generation: Option<i64>,
    /// Streams of its agent.
    pub expected: usize,
    /// Of those, how many acknowledged.
    pub acknowledged: usize,
    /// How connections of the two travel.
    pub path: Option<PathSummary>,
    /// Whether a sidecar tried to connect and could not.
    pub failing: bool,
    /// A port of the peer that cannot be where it should be. A replica of the release before tells of none.
    #[serde(default)]
    pub conflict: Option<String>,
}

impl TrustRow {
    pub(super) fn count(&self) -> TrustCount {
        let Self { expected, acknowledged, path, failing, .. } = *self;
        TrustCount { expected, acknowledged, path, failing, conflict: self.conflict.clone() }
    }
}

/// What one replica knows of an agent's streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerRow {
    /// Which.
    pub key: Name,
    /// How many there are.
    pub streams: usize,
    /// How its connections travel.
    pub path: Option<PathSummary>,
    /// The worst NAT.
    pub nat: Option<String>,
    /// A peer's port that cannot be where it should be. A replica of the release before tells of none.
    #[serde(default)]
    pub conflict: Option<String>,
}

impl PeerRow {
    pub(super) fn told(self) -> AgentTold {
        let Self { path, nat, conflict, .. } = self;
        AgentTold { path, nat, conflict }
    }
}

/// What changed of what the streams of one replica told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Numbers of AgentTrusts.
    pub trusts: Vec<TrustRow>,
    /// Of AgentPeers.
    pub peers: Vec<PeerRow>,
    /// UIDs of AgentTrusts that were deleted.
    pub gone: Vec<[u8; 16]>,
    /// Keys of other authorities that agents' peers showed. A replica of the release before tells of none.
    #[serde(default)]
    pub records: Vec<String>,
}

/// A passport that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    uid: PodUid,
    agent: String,
    peer: Name,
    instance: String,
    pod: Name,
    service_account: String,
    issued: u64,
    until: u64,
}

impl Admitted {
    /// For the way.
    #[must_use]
    pub fn new(uid: PodUid, holder: &Holder) -> Self {
        Self {
            uid,
            agent: holder.agent.to_string(),
            peer: holder.peer.clone().into(),
            instance: holder.instance.to_string(),
            pod: holder.pod.clone().into(),
            service_account: holder.service_account.clone(),
            issued: holder.issued.0,
            until: holder.until.0,
        }
    }

    /// Back from the way; none for what is no id.
    #[must_use]
    pub fn read(self) -> Option<(PodUid, Holder)> {
        let agent: AgentId = self.agent.parse().ok()?;
        let instance: InstanceId = self.instance.parse().ok()?;
        let holder = Holder {
            agent,
            peer: self.peer.into(),
            instance,
            pod: self.pod.into(),
            service_account: self.service_account,
            issued: UnixTime(self.issued),
            until: UnixTime(self.until),
        };
        Some((self.uid, holder))
    }
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Shows that the sender holds the authority's agreement key: one proof for each key that counts.
    Proof(Vec<[u8; 32]>),
    /// What changed of what the follower's streams told.
    Counts(Counts),
    /// Passports that were given, by either's agents.
    Admitted(Vec<Admitted>),
    /// A sign of life.
    Keepalive,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_survives_the_way() {
        let peer = ObjectKey::new("tools", "db");
        let holder = Holder {
            agent: peer.agent(peerage_model::Fingerprint([1; 32])).expect("a name"),
            peer,
            instance: InstanceId([2; 8]),
            pod: ObjectKey::new("tools", "db-1"),
            service_account: "db".into(),
            issued: UnixTime(1),
            until: UnixTime(2),
        };
        let text =
            serde_json::to_string(&Message::Admitted(vec![Admitted::new([3; 16], &holder)])).expect("plain data");
        let Message::Admitted(back) = serde_json::from_str(&text).expect("it reads back") else { panic!("{text}") };
        assert_eq!(back.into_iter().next().expect("one").read(), Some(([3; 16], holder)));
    }
}
