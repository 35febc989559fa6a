//! Streams that no process of the peer took: they go on to its next session instead of being reset.
//!
//! A program may connect at the very moment at which the peer's process ends, or is found to have ended. The connection then
//! sits on a session that leads nowhere, and resetting it would make a restart visible that the program need not see.
//! Moving it is right only while no process can have acted on what was written; docs/spec/session.md section 5.1 says
//! when that is certain.

use std::time::Instant;

use bytes::Bytes;
use quinn_proto::StreamId;

use super::Node;
use super::event::{DownReason, Now, StreamKey};
use super::pair::PairKey;
use super::session::Session;
use super::stream::{Place, Stream};

/// Bytes of a stream that are kept until its status has come: most requests, and not much for each of 512 streams.
const KEPT: usize = 16 << 10;

/// What it takes to ask another process of the peer.
#[derive(Debug)]
pub(super) struct Again {
    /// When the stream was put on its session.
    asked: Instant,
    /// When it stops waiting for one.
    deadline: Instant,
    /// All that was written; `None` once that is more than we keep.
    written: Option<Vec<u8>>,
}

impl Again {
    pub(super) fn new(asked: Instant, deadline: Instant, early: Vec<u8>) -> Self {
        let mut again = Self { asked, deadline, written: Some(Vec::new()) };
        again.keep(&early);
        again
    }

    pub(super) fn keep(&mut self, data: &[u8]) {
        let Some(written) = &mut self.written else { return };
        if written.len() + data.len() > KEPT {
            self.written = None;
            return;
        }
        written.extend_from_slice(data);
    }
}

/// What a session's end says of streams whose status has not come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Untaken {
    /// Nothing: they may have been acted on.
    Unknown,
    /// The peer has seen so many of ours, and none that came later.
    From(u64),
    /// Its process is gone, and whatever was opened since it was last heard never reached it.
    Since(Instant),
}

impl Untaken {
    /// What the peer's own words say. Only an end that means "somebody else may serve you" leaves anything to be served.
    pub(super) fn told(reason: &DownReason, phrase: &[u8]) -> Self {
        match reason {
            DownReason::PeerLeft | DownReason::Replaced | DownReason::Drained => {
                phrase.try_into().map_or(Self::Unknown, |count| Self::From(u64::from_be_bytes(count)))
            }
            DownReason::RevokedHere
            | DownReason::RevokedByPeer
            | DownReason::Expired
            | DownReason::Denied
            | DownReason::TimedOut
            | DownReason::Shutdown
            | DownReason::Failed(_) => Self::Unknown,
        }
    }

    fn covers(self, id: StreamId, again: &Again) -> bool {
        match self {
            Self::Unknown => false,
            Self::From(seen) => id.index() >= seen,
            Self::Since(heard) => again.asked >= heard,
        }
    }
}

impl Stream {
    /// Takes the stream off its session, if nobody took it there. False leaves it as it was.
    pub(super) fn wait_again(&mut self, untaken: Untaken) -> bool {
        let Place::Asked { id, again, .. } = &self.place else { return false };
        untaken.covers(*id, again) && self.start_over()
    }

    /// Whether its status has not come, and it was put on its session then or later.
    pub(super) fn was_asked_since(&self, then: Instant) -> bool {
        matches!(&self.place, Place::Asked { again, .. } if again.asked >= then)
    }

    /// Whether its user has written nothing yet.
    pub(super) fn carries_nothing(&self) -> bool {
        let written = match &self.place {
            Place::Asked { again, .. } => again.written.as_ref(),
            Place::Waiting { early, .. } => Some(early),
            Place::Offered { .. } | Place::Open { .. } | Place::Dead(_) => None,
        };
        written.is_some_and(Vec::is_empty) && !self.finished
    }

    /// Where it waits, it does so until then and no longer.
    pub(super) fn wait_until(&mut self, latest: Instant) {
        if let Place::Waiting { deadline, .. } = &mut self.place {
            *deadline = latest.min(*deadline);
        }
    }

    /// Takes the stream off its session with all that was written. False leaves it as it was.
    pub(super) fn start_over(&mut self) -> bool {
        let Place::Asked { again, .. } = &mut self.place else { return false };
        let Some(early) = again.written.take() else { return false };
        self.place = Place::Waiting { early, deadline: again.deadline };
        true
    }
}

impl Session {
    /// The reason phrase of its close: how many of the peer's streams were seen here.
    pub(super) fn seen(&self) -> Bytes {
        let seen = self.up().map(|up| up.drain.accepted_so_far().to_be_bytes());
        seen.map_or_else(Bytes::new, |seen| Bytes::copy_from_slice(&seen))
    }

    /// What is left of it when its process turns out to be gone.
    pub(super) fn unheard(&self) -> Untaken {
        Untaken::Since(self.last_heard())
    }
}

impl Node {
    /// Remembers what was written to a stream, as long as it may have to be written again.
    pub(super) fn keep_written(&mut self, key: StreamKey, data: &[u8]) {
        if let Some(Place::Asked { again, .. }) = self.streams.get_mut(&key).map(|stream| &mut stream.place) {
            again.keep(data);
        }
    }

    /// Finds a session for streams that their own left behind.
    pub(super) fn find_another(&mut self, pair_key: &PairKey, now: Now) {
        let waits = |node: &Self| node.pairs.get(pair_key).is_some_and(|pair| !pair.waiting.is_empty());
        if waits(self) {
            self.attach_waiting(pair_key);
        }
        if waits(self) {
            self.dial_wanted(pair_key, now);
        }
    }

    /// Moves the streams of a session that ended to its pair, or says that they ended with it. Returns how many did.
    pub(super) fn leave_streams(
        &mut self,
        pair_key: &PairKey,
        streams: impl Iterator<Item = StreamKey>,
        reason: &DownReason,
        untaken: Untaken,
    ) -> usize {
        let mut ended = 0;
        for key in streams {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            match stream.wait_again(untaken) && self.pairs.contains_key(pair_key) {
                true => self.let_wait(pair_key, key),
                false => {
                    stream.end(super::StreamError::SessionEnded(reason.clone()));
                    ended += 1;
                }
            }
            self.wake(key);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quinn_proto::{Dir, Side};
    use std::time::Duration;

    fn asked(start: Instant, early: &[u8]) -> Again {
        Again::new(start, start + Duration::from_secs(15), early.to_vec())
    }

    fn id(index: u64) -> StreamId {
        StreamId::new(Side::Client, Dir::Bi, index)
    }

    #[test]
    fn a_stream_that_the_peer_has_not_counted_is_nobodys() {
        let told = Untaken::told(&DownReason::PeerLeft, &2u64.to_be_bytes());
        let stream = asked(Instant::now(), b"");
        assert!(!told.covers(id(1), &stream), "it was the second of two");
        assert!(told.covers(id(2), &stream));
    }

    #[test]
    fn a_peer_that_counts_nothing_or_means_us_leaves_nothing() {
        assert_eq!(Untaken::told(&DownReason::PeerLeft, b""), Untaken::Unknown);
        assert_eq!(Untaken::told(&DownReason::PeerLeft, b"123456789"), Untaken::Unknown);
        assert_eq!(Untaken::told(&DownReason::RevokedByPeer, &0u64.to_be_bytes()), Untaken::Unknown);
    }

    #[test]
    fn what_was_opened_before_the_peer_was_last_heard_may_have_been_taken() {
        let start = Instant::now();
        let heard = start + Duration::from_millis(1);
        assert!(!Untaken::Since(heard).covers(id(0), &asked(start, b"")));
        assert!(Untaken::Since(heard).covers(id(0), &asked(heard, b"")));
    }

    #[test]
    fn a_stream_with_more_than_is_kept_is_not_written_again() {
        let mut again = asked(Instant::now(), &[1; 10]);
        again.keep(&[2; KEPT - 10]);
        assert_eq!(again.written.as_ref().map(Vec::len), Some(KEPT));
        again.keep(&[3]);
        assert_eq!(again.written, None);
        again.keep(&[4]);
        assert_eq!(again.written, None, "a tail without its head is nothing");
    }
}
