//! What objects are called inside the operator.

use core::fmt;
use std::sync::Arc;

use peerage_model::{AgentId, AgentName, Fingerprint, TrustId};

/// A namespaced object: an AgentPeer, an AgentTrust or a pod. It is written down in half a dozen places for each of them, so
/// those share their letters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The object called `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The agent that an AgentPeer of this key is, `<name>.<namespace>`. `None` if that is no agent name, which the API
    /// server's rules exclude.
    #[must_use]
    pub fn agent(&self, authority: Fingerprint) -> Option<AgentId> {
        let name: AgentName = self.to_string().parse().ok()?;
        Some(AgentId { authority, name })
    }

    /// The AgentPeer behind an agent's name; `None` for a name that no AgentPeer can have.
    #[must_use]
    pub fn of_agent(name: &AgentName) -> Option<Self> {
        let (name, namespace) = name.as_str().split_once('.')?;
        // Names of namespaces and AgentPeers are single labels, so a second dot names something else.
        (!namespace.contains('.')).then(|| Self::new(namespace, name))
    }
}

/// An object of a kind of ours that has a status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// An AgentPeer.
    Peer(ObjectKey),
    /// An AgentTrust.
    Trust(ObjectKey),
    /// An AgentLink.
    Link(String),
    /// An AgentRelay.
    Relay(String),
}

impl Object {
    /// What its kind is called.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Peer(_) => "AgentPeer",
            Self::Trust(_) => "AgentTrust",
            Self::Link(_) => "AgentLink",
            Self::Relay(_) => "AgentRelay",
        }
    }
}

/// As the agent's name is written, `<name>.<namespace>`.
impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An object's UID as 16 bytes. The API server makes UUIDs (RFC 9562); whatever else it may send is hashed, so that
/// two UIDs never become one id.
#[must_use]
pub fn uid_bytes(uid: &str) -> TrustId {
    let hex: String = uid.chars().filter(|c| *c != '-').collect();
    hex.parse().unwrap_or_else(|_| {
        let mut id = [0; 16];
        id.copy_from_slice(&peerage_model::id::sha256(&[b"peerage uid v1", uid.as_bytes()])[..16]);
        TrustId(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_called_after_its_object_and_its_namespace() {
        let key = ObjectKey::new("tools", "db");
        let agent = key.agent(Fingerprint([1; 32])).expect("a name");
        assert_eq!(agent.name.as_str(), "db.tools");
        assert_eq!(ObjectKey::of_agent(&agent.name), Some(key));
        for foreign in ["laptop", "a.b.c"] {
            assert_eq!(ObjectKey::of_agent(&foreign.parse().expect("a name")), None, "{foreign}");
        }
    }

    #[test]
    fn a_uid_is_its_sixteen_bytes_and_anything_else_is_hashed() {
        let uid = uid_bytes("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0");
        assert_eq!(uid.to_string(), "0f1e2d3c4b5a69788796a5b4c3d2e1f0");
        assert_ne!(uid_bytes("x"), uid_bytes("y"));
    }
}
