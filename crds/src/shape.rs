//! What a string in our resources may look like: one pattern and one length for each kind of word.
//!
//! A pattern admits no more than the parser of the same word in `peerage-model` does, so that nothing the API server
//! let in can fail later; `tests/model.rs` holds that by generating strings from these patterns. Every pattern is
//! anchored: the API server searches, it does not match whole strings. The syntax is the part that RE2, ECMA 262 and
//! Rust's `regex` agree on.

/// A DNS label (RFC 1123): an agent's name, a namespace, a port's name, an alias.
pub const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// Longest DNS label, RFC 1035 section 2.3.4.
pub const LABEL_MAX: usize = 63;

/// A DNS subdomain: the name of a Kubernetes object that need not be a label.
pub const SUBDOMAIN: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// Longest name of a Kubernetes object.
pub const SUBDOMAIN_MAX: usize = 253;

/// A key inside a Secret, as the API server validates it.
pub const SECRET_KEY: &str = "^[-._a-zA-Z0-9]+$";

/// An authority's fingerprint: SHA-256 in lower-case hex, docs/spec/identity.md section 2.
pub const FINGERPRINT: &str = "^[0-9a-f]{64}$";
/// Length of a fingerprint's text.
pub const FINGERPRINT_LEN: usize = 64;

/// An authority's record, docs/spec/identity.md section 3, in base64url without padding.
pub const RECORD: &str = "^[-_A-Za-z0-9]+$";
/// Longest record; ours have about 300 characters.
pub const RECORD_MAX: usize = 1024;
/// Most records of one authority that count at a time: two while its keys rotate.
pub const RECORDS_MAX: usize = 2;

/// A relay as `peerage relay` prints it, `KEY@HOST:PORT` or `KEY@HOST:PORT/TCPPORT`. The key is 32 bytes in base32
/// without padding: 52 characters, and the last carries one bit, so it is `a` or `q`. IPv6 goes in brackets.
pub const RELAY: &str = concat!(
    "^[A-Za-z2-7]{51}[AaQq]@",
    r"([A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f.]{0,4}:[0-9A-Fa-f:.]{1,40}\])",
    "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?",
    "(/([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$",
);
/// Longest text of a relay: key, `@`, host, and two ports with what separates them.
pub const RELAY_MAX: usize = 52 + 1 + 253 + 6 + 6;

/// A host name or an address without brackets.
pub const HOST: &str = "^[A-Za-z0-9:]([A-Za-z0-9.:_-]*[A-Za-z0-9:])?$";
/// Longest host name.
pub const HOST_MAX: usize = 253;

/// The value of a label of a pod.
pub const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

/// An agent's whole name as others see it, `<name>.<namespace>` or one label outside Kubernetes.
pub const AGENT_NAME: &str = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";
/// Longest agent name, docs/spec/identity.md section 2.
pub const AGENT_NAME_MAX: usize = 127;

/// Most ports that one object names. A sidecar binds one listener for each port of each peer.
pub const PORTS_MAX: usize = 16;
/// Most relays that one link names.
pub const RELAYS_MAX: usize = 16;
/// Most namespaces that one cluster-scoped object names; for more there are labels.
pub const NAMESPACES_MAX: usize = 64;
/// Most labels in one selector.
pub const SELECTOR_MAX: usize = 16;
/// Most conditions in one status; the largest kind has four.
pub const CONDITIONS_MAX: usize = 8;

/// What a person writes to a person: a purpose, a reason.
pub const PROSE_MAX: usize = 512;
