//! What changed and has not been looked at: one heap, however often it changes.
//!
//! A queue of changes would grow for as long as its reader waits for an API server that is away, and with it the memory of
//! whoever lets others cause changes. A heap never names anything twice, so it is no larger than the cluster.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::index::Dirty;

/// See the module. One reader; any number of writers.
#[derive(Debug, Default)]
pub struct Heap {
    dirty: Mutex<Dirty>,
    grown: Notify,
}

impl Heap {
    /// Puts something on it.
    pub fn add(&self, dirty: Dirty) {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).extend(dirty);
        self.grown.notify_one();
    }

    /// Takes what is there, which may be nothing.
    #[must_use]
    pub fn take(&self) -> Dirty {
        std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there is something, and leaves it there. May be dropped at any await.
    pub async fn grown(&self) {
        loop {
            let grown = self.grown.notified();
            if !self.dirty.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                return;
            }
            grown.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ObjectKey;

    fn trust(name: &str) -> Dirty {
        Dirty { trusts: [ObjectKey::new("n", name)].into(), ..Dirty::default() }
    }

    #[tokio::test]
    async fn what_changes_often_is_there_once() {
        let heap = Heap::default();
        for _ in 0..1000 {
            heap.add(trust("a"));
        }
        heap.add(trust("b"));
        heap.grown().await;
        assert_eq!(heap.take().trusts.len(), 2);
        assert!(heap.take().is_empty());
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_first_thing() {
        let heap = std::sync::Arc::new(Heap::default());
        let waiting = tokio::spawn({
            let heap = std::sync::Arc::clone(&heap);
            async move {
                heap.grown().await;
                heap.take()
            }
        });
        tokio::task::yield_now().await;
        heap.add(trust("a"));
        assert_eq!(waiting.await.expect("it ends"), trust("a"));
    }
}
