//! Changes to an object as a JSON Patch (RFC 6902) that names each field that it sets, and no other.

use serde_json::{Map, Value, json};

/// The changes, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch(Vec<Value>);

impl Patch {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The operations, as the API server reads them.
    #[must_use]
    pub fn into_operations(self) -> Value {
        Value::Array(self.0)
    }

    /// Sets what is at `path` of `object`, which is made down to there where it is missing. Two fields of one parent that is
    /// missing are set together, as that parent: paths are looked up in the object as it was.
    pub(super) fn set(&mut self, object: &Value, path: &[&str], value: Value) {
        let mut at = object;
        let mut known = 0;
        while known + 1 < path.len()
            && let Some(below) = at.get(path[known]).filter(|below| below.is_object())
        {
            (at, known) = (below, known + 1);
        }
        let whole = path[known + 1..]
            .iter()
            .rev()
            .fold(value, |value, name| Value::Object(Map::from_iter([((*name).to_owned(), value)])));
        // "add" also replaces a member that is there (RFC 6902 section 4.1).
        self.0.push(json!({"op": "add", "path": format!("/{}", path[..=known].join("/")), "value": whole}));
    }
}

/// A list with more behind what is there.
pub(super) fn extended(list: &Value, more: impl IntoIterator<Item = Value>) -> Value {
    list.as_array().into_iter().flatten().cloned().chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(mut object: Value, path: &[&str], value: Value) -> Value {
        let mut patch = Patch::default();
        patch.set(&object, path, value);
        let operations = serde_json::from_value::<json_patch::Patch>(patch.into_operations()).expect("operations");
        json_patch::patch(&mut object, &operations).expect("they apply");
        object
    }

    #[test]
    fn what_is_missing_on_the_way_is_made() {
        assert_eq!(after(json!({"a": {}}), &["a", "b", "c"], json!(1)), json!({"a": {"b": {"c": 1}}}));
        assert_eq!(after(json!({"a": null}), &["a", "b"], json!(1)), json!({"a": {"b": 1}}));
    }

    #[test]
    fn what_is_beside_it_stays() {
        assert_eq!(after(json!({"a": {"b": 1, "c": 2}}), &["a", "b"], json!(3)), json!({"a": {"b": 3, "c": 2}}));
    }
}
