//! Labels, as the index keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

/// One label: its key and its value.
type Label = (Arc<str>, Arc<str>);

/// Labels of an object, or those that a selector wants. Most objects have one or two, and every pod and agent of the cluster is here
/// with its own, so they are a slice that copies share: the first node of a map of the standard library has room for eleven.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Arc<[Label]>);

impl Labels {
    /// The value of this key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.0.binary_search_by(|(label, _)| label.as_ref().cmp(key)).ok()?;
        self.0.get(place).map(|(_, value)| value.as_ref())
    }

    /// All of them, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.0.iter()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether they have everything that is `wanted`.
    #[must_use]
    pub fn cover(&self, wanted: &Self) -> bool {
        wanted.iter().all(|(key, value)| self.get(key) == Some(value))
    }
}

/// As objects have them.
impl From<&BTreeMap<String, String>> for Labels {
    fn from(labels: &BTreeMap<String, String>) -> Self {
        let label = |(key, value): (&String, &String)| (key.as_str().into(), value.as_str().into());
        Self(labels.iter().map(label).collect())
    }
}
