//! Whose turn it is while a worker has less time than it needs.
//!
//! The kernel keeps one queue for a socket, and when it is full drops what comes, whoever sent it. One client that sends trains of which
//! each packet goes elsewhere costs the relay forty times what it costs the client; all others would lose nineteen of twenty packets to it. So a worker that
//! falls behind reads ahead and lets sources take turns here, by the work they make (deficit round robin, Shreedhar and Varghese 1995). When
//! there is no room left, who has most work waiting loses its newest. A source that is alone loses nothing by it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

/// Work that a source may make before the next one has its turn. A single packet makes two: enough of them to leave in one batch.
const QUANTUM: i64 = 32;
/// Bytes that are as much work as a system call.
const BYTES: usize = 8 << 10;

/// What it costs to deal with `bytes` that make as many `sends`.
pub(crate) fn work(sends: usize, bytes: usize) -> i64 {
    i64::try_from(1 + sends + bytes / BYTES).unwrap_or(i64::MAX / 2)
}

/// Sources, and the places in memory where what they sent waits.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    sources: HashMap<SocketAddr, Source>,
    order: VecDeque<SocketAddr>,
    waiting: usize,
}

#[derive(Debug)]
struct Source {
    slots: VecDeque<usize>,
    /// Work that it may still make in this turn; less than none where the last was more than was left.
    credit: i64,
    /// What the last of it made.
    each: i64,
}

impl Turns {
    /// Puts what a source sent behind what else it sent.
    pub(crate) fn push(&mut self, from: SocketAddr, slot: usize) {
        let source = self.sources.entry(from).or_insert_with(|| {
            self.order.push_back(from);
            Source { slots: VecDeque::new(), credit: QUANTUM, each: 1 }
        });
        source.slots.push_back(slot);
        self.waiting += 1;
    }

    /// What is to be dealt with next; [`Self::charge`] says what it was.
    pub(crate) fn pop(&mut self) -> Option<(SocketAddr, usize)> {
        loop {
            let from = self.order.pop_front()?;
            let Some(source) = self.sources.get_mut(&from) else { continue };
            if source.slots.is_empty() {
                self.sources.remove(&from);
                continue;
            }
            if source.credit <= 0 {
                source.credit += QUANTUM;
                self.order.push_back(from);
                continue;
            }
            self.order.push_front(from);
            let slot = source.slots.pop_front()?;
            self.waiting -= 1;
            return Some((from, slot));
        }
    }

    /// What a source's last made for work.
    pub(crate) fn charge(&mut self, from: SocketAddr, work: i64) {
        if let Some(source) = self.sources.get_mut(&from) {
            source.credit -= work;
            source.each = work;
        }
    }

    /// Gives up the newest of the one that has most work waiting.
    pub(crate) fn shed(&mut self) -> Option<usize> {
        let waiting = |source: &Source| source.each * i64::try_from(source.slots.len()).unwrap_or(i64::MAX);
        let greediest = self.sources.values_mut().max_by_key(|source| waiting(source))?;
        let slot = greediest.slots.pop_back()?;
        self.waiting -= 1;
        Some(slot)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Whether more than one source is here.
    pub(crate) fn is_contested(&self) -> bool {
        self.sources.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number))
    }

    /// Deals with so many, each of which makes what its source makes, and says of whom they were.
    fn served(turns: &mut Turns, most: usize, work: impl Fn(u16) -> i64) -> Vec<u16> {
        let mut served = Vec::new();
        while served.len() < most
            && let Some((from, _)) = turns.pop()
        {
            turns.charge(from, work(from.port()));
            served.push(from.port());
        }
        served
    }

    #[test]
    fn who_sends_little_does_not_wait_behind_who_sends_much() {
        let mut turns = Turns::default();
        (0..1_000).for_each(|slot| turns.push(source(1), slot));
        turns.push(source(2), 1_000);
        let served = served(&mut turns, 100, |_| 2);
        assert_eq!(served.iter().position(|from| *from == 2), Some(16), "{served:?}");
    }

    #[test]
    fn who_makes_more_work_is_served_less_often() {
        let mut turns = Turns::default();
        for slot in 0..500 {
            turns.push(source(1), slot);
            turns.push(source(2), 500 + slot);
        }
        let served = served(&mut turns, 420, |from| if from == 1 { 40 } else { 2 });
        let dear = served.iter().filter(|from| **from == 1).count();
        assert!((18..=22).contains(&dear), "{dear} of 420");
    }

    #[test]
    fn one_that_is_alone_is_served_in_its_order() {
        let mut turns = Turns::default();
        (0..100).for_each(|slot| turns.push(source(1), slot));
        let slots: Vec<usize> = std::iter::from_fn(|| {
            let (from, slot) = turns.pop()?;
            turns.charge(from, 41);
            Some(slot)
        })
        .collect();
        assert_eq!(slots, (0..100).collect::<Vec<_>>());
        assert!(turns.is_empty());
    }

    #[test]
    fn without_room_the_one_with_most_work_waiting_loses_its_newest() {
        let mut turns = Turns::default();
        (0..30).for_each(|slot| turns.push(source(1), slot));
        (30..35).for_each(|slot| turns.push(source(2), slot));
        assert_eq!(turns.shed(), Some(29), "more of it waits");
        let _ = served(&mut turns, 18, |from| if from == 2 { 40 } else { 2 });
        assert_eq!(turns.shed(), Some(34), "what it sends is dearer");
        assert!(!turns.is_empty());
    }
}
