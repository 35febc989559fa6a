//! Streams that wait for a session.
//!
//! A program may open thousands at once, and a peer lets it have more a round trip later, some at a time. So nothing here looks at
//! all of them: they are kept by who has refused them, since what one of such a group finds, or does not, all of it would; and by
//! when they have waited long enough.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use peerage_model::InstanceId;

use super::event::StreamKey;

/// Instances that did not take a stream.
pub(super) type Refusers = BTreeSet<InstanceId>;

/// The streams of a pair that wait for a session.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    streams: BTreeMap<StreamKey, (Refusers, Instant)>,
    groups: BTreeMap<Refusers, BTreeSet<StreamKey>>,
    deadlines: BTreeSet<(Instant, StreamKey)>,
}

impl Waiting {
    /// A stream waits until then for an instance that is none of these.
    pub(super) fn insert(&mut self, key: StreamKey, refusers: Refusers, deadline: Instant) {
        self.remove(key);
        self.groups.entry(refusers.clone()).or_default().insert(key);
        self.deadlines.insert((deadline, key));
        self.streams.insert(key, (refusers, deadline));
    }

    /// It waits no more.
    pub(super) fn remove(&mut self, key: StreamKey) {
        let Some((refusers, deadline)) = self.streams.remove(&key) else { return };
        self.deadlines.remove(&(deadline, key));
        if let Some(group) = self.groups.get_mut(&refusers) {
            group.remove(&key);
            if group.is_empty() {
                self.groups.remove(&refusers);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    pub(super) fn contains(&self, key: StreamKey) -> bool {
        self.streams.contains_key(&key)
    }

    /// Whether it waits, and these have refused it.
    pub(super) fn is_refused_by(&self, key: StreamKey, refusers: &Refusers) -> bool {
        self.streams.get(&key).is_some_and(|(by, _)| by == refusers)
    }

    /// The oldest stream that waits, and who has refused it; but none that all of one of these have refused, and nobody else.
    pub(super) fn oldest_but(&self, not: &BTreeSet<Refusers>) -> Option<(StreamKey, &Refusers)> {
        let groups = self.groups.iter().filter(|(refusers, _)| !not.contains(*refusers));
        groups.filter_map(|(refusers, keys)| Some((*keys.first()?, refusers))).min()
    }

    /// Who has refused streams that wait.
    pub(super) fn refusers(&self) -> impl Iterator<Item = &Refusers> {
        self.groups.keys().filter(|refusers| !refusers.is_empty())
    }

    /// Takes out those that these have refused.
    pub(super) fn take_refused_by(&mut self, refusers: &Refusers) -> BTreeSet<StreamKey> {
        let keys = self.groups.get(refusers).cloned().unwrap_or_default();
        keys.iter().for_each(|key| self.remove(*key));
        keys
    }

    /// When the first of them has waited long enough.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Takes out one that has waited long enough.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<StreamKey> {
        let (_, key) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now)?;
        self.remove(key);
        Some(key)
    }

    /// All of them, oldest first.
    pub(super) fn into_keys(self) -> impl Iterator<Item = StreamKey> {
        self.streams.into_keys()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MANY: u64 = 5000;

    fn refusers(ids: &[u8]) -> Refusers {
        ids.iter().map(|id| InstanceId([*id; 8])).collect()
    }

    /// Offers room for so many to the streams that wait, as the node does, and counts how many it was offered to.
    fn offer(waiting: &mut Waiting, mut room: usize) -> usize {
        let (mut without, mut offered) = (BTreeSet::new(), 0);
        while let Some((key, by)) = waiting.oldest_but(&without) {
            offered += 1;
            if room == 0 {
                without.insert(by.clone());
                continue;
            }
            room -= 1;
            waiting.remove(key);
        }
        offered
    }

    #[test]
    fn of_thousands_that_wait_alike_one_that_finds_no_room_speaks_for_all() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        (0..MANY).for_each(|key| waiting.insert(StreamKey(key), Refusers::new(), now));
        let offered: usize = (0..MANY).map(|_| offer(&mut waiting, 1)).sum();
        assert!(waiting.is_empty());
        assert_eq!(u64::try_from(offered), Ok(2 * MANY - 1), "each once, and one in vain while some are left");
    }

    #[test]
    fn those_that_others_have_refused_are_asked_for_apart_and_the_oldest_of_all_comes_first() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let by = [refusers(&[]), refusers(&[1]), refusers(&[1, 2])];
        (0..MANY).zip(by.iter().cycle()).for_each(|(key, by)| waiting.insert(StreamKey(key), by.clone(), now));
        assert_eq!(offer(&mut waiting, 0), 3);
        assert_eq!(waiting.refusers().collect::<Vec<_>>(), [&by[1], &by[2]]);
        assert_eq!(waiting.oldest_but(&[by[0].clone()].into()), Some((StreamKey(1), &by[1])));
        assert!(waiting.take_refused_by(&by[1]).iter().map(|key| key.0).eq((1..MANY).step_by(3)));
        assert_eq!(waiting.oldest_but(&[by[0].clone()].into()), Some((StreamKey(2), &by[2])));
        assert!(waiting.is_refused_by(StreamKey(2), &by[2]) && !waiting.contains(StreamKey(1)));
    }

    #[test]
    fn each_has_waited_long_enough_at_its_own_time() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        (0..3).for_each(|key| waiting.insert(StreamKey(key), Refusers::new(), at(10 - key)));
        waiting.insert(StreamKey(0), refusers(&[1]), at(4));
        assert_eq!(waiting.next_end(), Some(at(4)), "it was refused, and waits no longer than that");
        let due: Vec<u64> = std::iter::from_fn(|| waiting.take_due(at(9))).map(|key| key.0).collect();
        assert_eq!((due, waiting.next_end()), (vec![0, 2, 1], None));
        assert_eq!((waiting.groups.len(), waiting.into_keys().count()), (0, 0));
    }
}
