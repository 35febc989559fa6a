//! Who selects whom: labelled objects on one side, selectors on the other.
//!
//! Both sides change all the time, and comparing each with each would take 10⁸ steps where a cluster has 10,000 of
//! both. So every object and every selector is listed under each of its labels, and a change looks only at what shares
//! a label with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Labels;
use crate::key::ObjectKey;

type Slot = (Arc<str>, Arc<str>, Arc<str>); // namespace, key, value

/// Selectors of one kind and what they may select, each selector within one namespace.
#[derive(Debug, Default)]
pub struct Matching {
    labels: BTreeMap<ObjectKey, Labels>,
    by_label: BTreeSet<(Slot, Arc<str>)>,
    selectors: BTreeMap<ObjectKey, (Arc<str>, Labels)>,
    by_selector: BTreeSet<(Slot, ObjectKey)>,
}

impl Matching {
    /// What carries labels came, changed (`Some`) or went (`None`). Returns the selectors that it met before or meets
    /// from here on.
    pub fn set_labels(&mut self, object: &ObjectKey, labels: Option<Labels>) -> BTreeSet<ObjectKey> {
        let mut touched: BTreeSet<_> = self.selecting(object).into_iter().collect();
        if let Some(old) = self.labels.remove(object) {
            for slot in slots(&object.namespace, &old) {
                self.by_label.remove(&(slot, object.name.clone()));
            }
        }
        if let Some(labels) = labels {
            for slot in slots(&object.namespace, &labels) {
                self.by_label.insert((slot, object.name.clone()));
            }
            self.labels.insert(object.clone(), labels);
        }
        touched.extend(self.selecting(object));
        touched
    }

    /// A selector came, changed (`Some`, with the namespace that it looks at) or went (`None`).
    pub fn set_selector(&mut self, id: &ObjectKey, selector: Option<(Arc<str>, Labels)>) {
        if let Some((namespace, old)) = self.selectors.remove(id) {
            for slot in slots(&namespace, &old) {
                self.by_selector.remove(&(slot, id.clone()));
            }
        }
        // Emptiness never means "all": a selector without a label is listed nowhere and selects nothing.
        if let Some((namespace, labels)) = selector.filter(|(_, labels)| !labels.is_empty()) {
            for slot in slots(&namespace, &labels) {
                self.by_selector.insert((slot, id.clone()));
            }
            self.selectors.insert(id.clone(), (namespace, labels));
        }
    }

    /// The selectors that select `object`, in order.
    #[must_use]
    pub fn selecting(&self, object: &ObjectKey) -> Vec<ObjectKey> {
        let Some(labels) = self.labels.get(object) else { return Vec::new() };
        let near: BTreeSet<_> = self.selectors_at(&object.namespace, labels).collect();
        let meets = |id: &&ObjectKey| self.selectors.get(*id).is_some_and(|(_, wanted)| labels.cover(wanted));
        near.into_iter().filter(meets).cloned().collect()
    }

    /// What the selector `id` selects, in order.
    #[must_use]
    pub fn selected(&self, id: &ObjectKey) -> Vec<ObjectKey> {
        let Some((namespace, wanted)) = self.selectors.get(id) else { return Vec::new() };
        let Some(slot) = slots(namespace, wanted).next() else { return Vec::new() };
        let near = under(&self.by_label, slot, "".into());
        let near = near.map(|name| ObjectKey::new(namespace.clone(), name.clone()));
        near.filter(|object| self.labels.get(object).is_some_and(|labels| labels.cover(wanted))).collect()
    }

    /// Whether the selector `id` selects `object`.
    #[must_use]
    pub fn selects(&self, id: &ObjectKey, object: &ObjectKey) -> bool {
        self.selectors.get(id).is_some_and(|(namespace, wanted)| {
            *namespace == object.namespace && self.labels.get(object).is_some_and(|labels| labels.cover(wanted))
        })
    }

    /// Other selectors that select whatever `id` selects, or the other way round, whether or not there is anything.
    #[must_use]
    pub fn overlapping(&self, id: &ObjectKey) -> Vec<ObjectKey> {
        let Some((namespace, own)) = self.selectors.get(id) else { return Vec::new() };
        // Of two where one asks for all that the other asks for, both carry every label of the wider one.
        let near: BTreeSet<_> = self.selectors_at(namespace, own).collect();
        let overlaps = |other: &&ObjectKey| {
            let (_, theirs) = self.selectors.get(*other).expect("what is listed by label is listed");
            *other != id && (own.cover(theirs) || theirs.cover(own))
        };
        near.into_iter().filter(overlaps).cloned().collect()
    }

    /// Selectors that want one of these labels at the least.
    fn selectors_at<'a>(&'a self, namespace: &'a Arc<str>, labels: &'a Labels) -> impl Iterator<Item = &'a ObjectKey> {
        slots(namespace, labels).flat_map(|slot| under(&self.by_selector, slot, ObjectKey::new("", "")))
    }
}

fn slots<'a>(namespace: &'a Arc<str>, labels: &'a Labels) -> impl Iterator<Item = Slot> + 'a {
    labels.iter().map(move |(key, value)| (namespace.clone(), key.clone(), value.clone()))
}

/// What is listed under `slot`, from `least` on.
fn under<T: Ord>(listed: &BTreeSet<(Slot, T)>, slot: Slot, least: T) -> impl Iterator<Item = &T> {
    let from = slot.clone();
    listed.range((from, least)..).take_while(move |(at, _)| *at == slot).map(|(_, of)| of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Labels::from(&pairs.collect::<BTreeMap<_, _>>())
    }

    #[test]
    fn a_selector_without_labels_selects_nothing() {
        let mut matching = Matching::default();
        let (all, pod) = (ObjectKey::new("n", "all"), ObjectKey::new("n", "pod"));
        matching.set_selector(&all, Some(("n".into(), Labels::default())));
        matching.set_labels(&pod, Some(labels(&[("app", "db")])));
        assert!(matching.selected(&all).is_empty() && matching.selecting(&pod).is_empty());
    }

    #[test]
    fn a_narrower_selector_overlaps_a_wider_one_before_any_pod_exists() {
        let mut matching = Matching::default();
        let (wide, narrow) = (ObjectKey::new("n", "wide"), ObjectKey::new("n", "narrow"));
        matching.set_selector(&wide, Some(("n".into(), labels(&[("app", "db")]))));
        matching.set_selector(&narrow, Some(("n".into(), labels(&[("app", "db"), ("tier", "a")]))));
        assert_eq!(matching.overlapping(&narrow), std::slice::from_ref(&wide));
        assert_eq!(matching.overlapping(&wide), [narrow]);
    }

    fn some_labels() -> impl Strategy<Value = Labels> {
        prop::collection::btree_map("[ab]", "[xy]", 0..3).prop_map(|labels| Labels::from(&labels))
    }

    fn name() -> impl Strategy<Value = ObjectKey> {
        ("[mn]", "[pqrs]").prop_map(|(namespace, name)| ObjectKey::new(namespace, name))
    }

    proptest! {
        #[test]
        fn it_finds_what_comparing_each_with_each_finds(
            steps in prop::collection::vec((any::<bool>(), name(), prop::option::of(("[mn]".prop_map(Arc::from), some_labels()))), 0..40)
        ) {
            let mut matching = Matching::default();
            let (mut objects, mut selectors) = (BTreeMap::new(), BTreeMap::new());
            for (labelled, key, value) in steps {
                if labelled {
                    let value = value.map(|(_, labels)| labels);
                    matching.set_labels(&key, value.clone());
                    match value { Some(labels) => objects.insert(key, labels), None => objects.remove(&key) };
                } else {
                    matching.set_selector(&key, value.clone());
                    match value { Some(selector) => selectors.insert(key, selector), None => selectors.remove(&key) };
                }
            }
            for (id, (namespace, wanted)) in &selectors {
                let expected: Vec<_> = objects.iter().filter(|(object, labels)| {
                    !wanted.is_empty() && object.namespace == *namespace && labels.cover(wanted)
                }).map(|(object, _)| object.clone()).collect();
                prop_assert_eq!(matching.selected(id), expected.clone());
                for object in objects.keys() {
                    prop_assert_eq!(matching.selects(id, object), expected.contains(object));
                    prop_assert_eq!(matching.selecting(object).contains(id), expected.contains(object));
                }
            }
        }
    }
}
