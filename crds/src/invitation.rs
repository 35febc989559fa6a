//! What is kept of an invitation: one value in the Secret [`SECRET`] of the operator's namespace.
//!
//! `kubectl peerage invite` writes it and the operator reads it. The ticket itself is written nowhere; what is kept is the
//! key that both ends derive from it, by which the operator knows who holds the ticket.

use serde::{Deserialize, Serialize};

use crate::AllowedNamespaces;

/// The Secret with all open invitations, each under its id: 32 lower-case hex digits.
pub const SECRET: &str = "peerage-invitations";
/// Its type.
pub const SECRET_TYPE: &str = "peerage.dev/invitations";
/// The ConfigMap of the operator's namespace where its authority's record is, and under which key.
pub const AUTHORITY_MAP: &str = "peerage-authority";
/// See [`AUTHORITY_MAP`].
pub const RECORD_KEY: &str = "record";
/// Most invitations that are open at a time: an agent answers no more.
pub const MAX_OPEN: usize = 16;

/// An invitation that nobody has used yet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Invitation {
    /// What the AgentLink will be called here.
    pub link: String,
    /// Whose AgentTrusts may use it.
    pub allowed_namespaces: AllowedNamespaces,
    /// When the invitation ends, in seconds of Unix time.
    pub expires: u64,
    /// The key derived from the ticket, in lower-case hex.
    pub key: String,
}
