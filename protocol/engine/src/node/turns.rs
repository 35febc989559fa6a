//! Which stream may write, of those that have more to send than the path takes.
//!
//! quinn-proto alone lets some of them starve: of the streams that wait for room in the send window it wakes the one first that came
//! last, which takes the room, waits again, and is woken last. So two of any number take turns, and the others get nothing. Here the one
//! writes next that has waited longest since it last got room.

use std::collections::{BTreeMap, BTreeSet};

use quinn_proto::{StreamId, WriteError};

use super::event::StreamError;
use super::session::Session;
use super::stream::PIECE;

/// So many bytes a writer may write before it is the next one's turn: four reads of a forwarder. Fewer make more wake-ups, more make a
/// burst that others have to wait for.
const TURN: usize = 256 << 10;
/// So many in a row that find too little room mean that there is none, for anybody. One may only have found the end of what its
/// peer reads.
const SHORT: u8 = 2;

/// When a stream last got room, counted in such moments.
type Served = u64;

/// The streams of one session whose writers wait.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Those that may have room and have not been told to write, and those that wait for others without having tried.
    waiting: BTreeSet<(Served, StreamId)>,
    /// When those that had to wait, and others beside them, last got room.
    served: BTreeMap<StreamId, Served>,
    clock: Served,
    /// Those that found none at all, of which QUIC tells when there is some ([`Self::room_for`]). Until then they do not stand in the way of
    /// others: theirs may be the end of what their peers read.
    blocked: BTreeSet<StreamId>,
    /// Those that were told to write, and how many bytes each may before it is the next one's turn.
    told: BTreeMap<StreamId, usize>,
    /// One of them was told since packets last came: the others wait for what it does. It may do nothing.
    expected: bool,
    /// How many in a row that were told found too little room since packets last came.
    short: u8,
}

impl Turns {
    /// Whether this stream's writer may write. If not, it is told when it may.
    pub(super) fn may_write(&mut self, id: StreamId) -> bool {
        let may = self.told.contains_key(&id) || (self.waiting.is_empty() && !self.expected);
        if !may && !self.blocked.contains(&id) {
            self.wait(id);
        }
        may
    }

    /// There may be room for a stream that found none.
    pub(super) fn room_for(&mut self, id: StreamId) {
        self.blocked.remove(&id);
        if !self.told.contains_key(&id) {
            self.wait(id);
        }
    }

    /// Packets came. Whoever was told to write and has not may have nothing to write any more.
    pub(super) fn packets_came(&mut self) {
        self.expected = false;
        self.short = 0;
    }

    /// Whose writer is to be told that it may write, if anybody's.
    pub(super) fn next_writer(&mut self) -> Option<StreamId> {
        if self.expected || self.short >= SHORT {
            return None;
        }
        let (_, next) = self.waiting.pop_first()?;
        self.told.insert(next, TURN);
        self.expected = true;
        Some(next)
    }

    /// A writer wrote, and so much of its data was taken.
    pub(super) fn wrote(&mut self, id: StreamId, taken: usize, all: usize) {
        let blocked = taken < all;
        if let Some(left) = self.told.get_mut(&id) {
            *left = left.saturating_sub(taken);
            // Who wrote little has no more at hand. It may go on all the same.
            self.expected &= !blocked && *left > 0 && all >= PIECE;
            if blocked || *left == 0 {
                self.told.remove(&id);
            }
            self.short = if blocked { self.short.saturating_add(1) } else { 0 };
        }
        if blocked && taken == 0 {
            self.blocked.insert(id);
        }
        if !blocked && self.waiting.is_empty() {
            self.served.remove(&id);
        } else if taken > 0 {
            self.clock += 1;
            self.served.insert(id, self.clock);
        }
    }

    /// A writer has written all that it ever will, or its stream is over.
    pub(super) fn forget(&mut self, id: StreamId) {
        self.blocked.remove(&id);
        if let Some(served) = self.served.remove(&id) {
            self.waiting.remove(&(served, id));
        }
        if self.told.remove(&id).is_some() {
            self.expected = false;
        }
    }

    /// Who is new is behind the one that has waited longest, so that neither waits for all others of its kind.
    fn wait(&mut self, id: StreamId) {
        let longest = self.waiting.first().map_or(self.clock, |(served, _)| *served);
        let served = *self.served.entry(id).or_insert(longest);
        self.waiting.insert((served, id));
    }
}

impl Session {
    /// Whether it is this stream's turn to write, and it owes nothing that goes before.
    ///
    /// # Errors
    /// [`StreamError::Blocked`] until its writer is told; the others are final.
    pub(super) fn may_write(&mut self, id: StreamId) -> Result<(), StreamError> {
        if !self.pay(id) {
            return Err(StreamError::Blocked);
        }
        if self.turns.may_write(id) {
            return Ok(());
        }
        // Who has to wait for others hears all the same that nobody wants its data.
        let over = match self.connection.send_stream(id).stopped() {
            Ok(None) => return Err(StreamError::Blocked),
            Ok(Some(_)) => StreamError::Reset,
            Err(_) => StreamError::Closed,
        };
        self.turns.forget(id);
        Err(over)
    }

    /// A writer tried to have all of so many bytes taken.
    pub(super) fn wrote(&mut self, id: StreamId, written: &Result<usize, WriteError>, all: usize) {
        match written {
            Ok(taken) => self.turns.wrote(id, *taken, all),
            Err(WriteError::Blocked) => self.turns.wrote(id, 0, all),
            Err(WriteError::Stopped(_) | WriteError::ClosedStream) => self.turns.forget(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::{Dir, Side};

    use super::*;

    const ALL: usize = 100;

    fn id(index: u64) -> StreamId {
        StreamId::new(Side::Client, Dir::Bi, index)
    }

    /// So many streams whose writers got a little room and wait for more, which there may be: quinn-proto tells of it to those
    /// first that came last.
    fn waiting(count: u64) -> Turns {
        let mut turns = Turns::default();
        (0..count).for_each(|index| turns.wrote(id(index), 1, ALL));
        room_for_all(&mut turns, count);
        turns
    }

    fn room_for_all(turns: &mut Turns, count: u64) {
        turns.packets_came();
        (0..count).rev().for_each(|index| turns.room_for(id(index)));
    }

    #[test]
    fn of_writers_that_find_little_room_each_gets_some_before_any_gets_it_again() {
        let mut turns = waiting(4);
        let mut served = Vec::new();
        for _ in 0..8 {
            let next = turns.next_writer().expect("four wait");
            turns.wrote(next, 1, ALL);
            served.push(next.index());
            while let Some(late) = turns.next_writer() {
                turns.wrote(late, 0, ALL);
            }
            room_for_all(&mut turns, 4);
        }
        assert_eq!(served, [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn of_writers_that_find_all_the_room_they_want_each_writes_for_a_turn() {
        let mut turns = waiting(3);
        let mut served = Vec::new();
        for _ in 0..6 {
            let next = turns.next_writer().expect("three wait");
            turns.wrote(next, TURN, TURN);
            assert!(!turns.may_write(next), "it has had its turn");
            served.push(next.index());
        }
        assert_eq!(served, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn one_writer_is_told_at_a_time() {
        let mut turns = waiting(2);
        let told = turns.next_writer().expect("two wait");
        assert_eq!(turns.next_writer(), None, "the first has not written");
        turns.wrote(told, PIECE, PIECE);
        assert_eq!(turns.next_writer(), None, "it may write more");
        turns.wrote(told, TURN, TURN);
        assert!(turns.next_writer().is_some());
    }

    #[test]
    fn who_has_little_to_write_makes_nobody_wait_for_more() {
        let mut turns = waiting(2);
        let told = turns.next_writer().expect("two wait");
        turns.wrote(told, ALL, ALL);
        assert!(turns.next_writer().is_some());
        assert!(turns.may_write(told), "it may go on");
    }

    #[test]
    fn who_found_no_room_waits_for_quic_and_is_in_nobodys_way() {
        let mut turns = waiting(3);
        let full = turns.next_writer().expect("three wait");
        turns.wrote(full, 0, ALL);
        assert!(!turns.may_write(full), "others wait");
        let others = [(); 2].map(|()| {
            let next = turns.next_writer().expect("two wait");
            turns.wrote(next, TURN, TURN);
            next.index()
        });
        assert_eq!((others, turns.next_writer()), ([1, 2], None));
        turns.room_for(full);
        assert_eq!(turns.next_writer(), Some(full));
    }

    #[test]
    fn nobody_is_told_once_two_found_no_room_until_packets_come() {
        let mut turns = waiting(4);
        for _ in 0..2 {
            let next = turns.next_writer().expect("there may be room");
            turns.wrote(next, 0, ALL);
        }
        assert_eq!(turns.next_writer(), None);
        turns.packets_came();
        assert!(turns.next_writer().is_some());
    }

    #[test]
    fn a_writer_that_is_told_and_does_nothing_holds_nobody_up() {
        let mut turns = waiting(2);
        let told = turns.next_writer();
        turns.packets_came();
        let next = turns.next_writer();
        assert!(next.is_some() && next != told);
        assert!(turns.may_write(told.expect("two wait")), "late is not never");
    }

    #[test]
    fn a_new_stream_waits_for_one_writer_and_not_for_all() {
        let mut turns = waiting(3);
        assert!(!turns.may_write(id(9)), "others wait");
        let order = [(); 2].map(|()| {
            let next = turns.next_writer().expect("four wait");
            turns.wrote(next, TURN, TURN);
            next.index()
        });
        assert_eq!(order, [0, 9]);
    }

    #[test]
    fn who_finds_nobody_waiting_writes() {
        let mut turns = Turns::default();
        assert!(turns.may_write(id(0)));
        turns.wrote(id(0), 0, ALL);
        assert!(turns.may_write(id(1)), "that one waits for room, of which there may be some");
    }

    #[test]
    fn a_stream_that_is_over_is_told_nothing() {
        let mut turns = waiting(1);
        turns.forget(id(0));
        assert_eq!(turns.next_writer(), None);
    }

    #[test]
    fn nothing_is_remembered_once_nobody_waits() {
        let mut turns = waiting(1);
        let told = turns.next_writer().expect("one waits");
        turns.wrote(told, TURN, TURN);
        turns.wrote(told, 0, ALL);
        turns.forget(told);
        assert!(
            turns.served.is_empty() && turns.told.is_empty() && turns.waiting.is_empty() && turns.blocked.is_empty()
        );
    }
}
