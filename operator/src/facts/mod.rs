//! What the operator knows of each object: parsed once, where the watch delivers it, and kept as small as it can be,
//! because there may be ten thousands of each.

mod grant;
pub mod peer;
pub mod trust;

use kube::ResourceExt;

pub use grant::{LinkFacts, LinkRecord, ManagedFacts, Permitted, RelayFacts};
pub use peer::{PeerFacts, PodFacts};
pub use trust::{Target, TrustFacts};

use crate::key::ObjectKey;

/// An object that the API server let in and we cannot read. Its schema excludes that, so the schema is another one
/// than ours: an older or newer version of the CRDs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` is not what this version of the operator understands: {cause}; are its CRDs of the same version?")]
pub struct Unreadable {
    /// Where in the object.
    pub field: &'static str,
    /// What was wrong with it.
    pub cause: String,
}

impl Unreadable {
    /// An object that is not even of its kind's shape; what is wrong says where.
    pub fn whole(cause: String) -> Self {
        Self { field: "the object", cause }
    }

    fn at<E: core::fmt::Display>(field: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self { field, cause: cause.to_string() }
    }
}

/// The key of a namespaced object.
pub fn key_of(object: &impl ResourceExt) -> ObjectKey {
    ObjectKey::new(object.namespace().unwrap_or_default(), object.name_any())
}

fn created(object: &impl ResourceExt) -> i64 {
    object.creation_timestamp().map_or(i64::MAX, |time| time.0.as_second())
}
