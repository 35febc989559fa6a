//! The other side of a link's channel: what another operator tells us, kept within bounds.
//!
//! The teller may be hostile. A stream is read at a pace, every message gets the same answer whatever it was about, and what
//! is kept of a link has an end. Here nothing is written to the API server; `requests` decides what is worth that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peerage_agent::tunnel::TunnelStream;
use peerage_model::TrustId;
use peerage_model::linking::{Denied, Heard, Hello, MAX_WISHES, SILENCE, Tell, Wish};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::frames::{self, Ended};

/// Between two messages of one link. An honest cluster has a thousand things to tell once, and then one at a time.
const PACE: Duration = Duration::from_millis(10);

/// When the next message of a link may be read, on whichever of its streams: a teller that opens one after the other is read
/// no faster than one that keeps to one.
#[derive(Clone, Debug)]
pub(super) struct Pace(Arc<Mutex<Instant>>);

impl Pace {
    pub(super) fn begin(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }

    /// Waits until a message may be read, and counts it.
    async fn turn(&self) {
        while let Some(next) = self.wait(Instant::now()) {
            tokio::time::sleep_until(next).await;
        }
    }

    /// Until when to wait; none: it is counted.
    fn wait(&self, now: Instant) -> Option<Instant> {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *next > now {
            return Some(*next);
        }
        *next = now + PACE;
        None
    }
}

/// What one message came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Its keys and relays.
    Hello(Hello),
    /// Its wishes are others than before.
    Wishes,
    /// An instance of its is denied.
    Denied(Denied),
    /// Nothing that anybody needs to know.
    Nothing,
}

/// What a link's other side has told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    wishes: BTreeMap<TrustId, Wish>,
    /// Those of them, and no others, that this stream has told; none once it has told all.
    fresh: Option<BTreeSet<TrustId>>,
    /// Whether some stream has told all.
    whole: bool,
}

impl Known {
    /// A stream begins, and an earlier one is over.
    pub(super) fn begin(&mut self) {
        self.fresh = Some(BTreeSet::new());
    }

    /// What its agents wish for.
    pub(super) fn wishes(&self) -> impl Iterator<Item = &Wish> {
        self.wishes.values()
    }

    /// Whether a wish that is not among [`Self::wishes`] is not there, rather than not told yet.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Takes a message.
    pub(super) fn take(&mut self, tell: Tell) -> News {
        match tell {
            Tell::Hello(hello) => News::Hello(hello),
            Tell::Wish(wish) => self.wish(wish),
            Tell::Withdrawn(gone) => {
                if let Some(fresh) = &mut self.fresh {
                    fresh.remove(&gone.id);
                }
                match self.wishes.remove(&gone.id) {
                    Some(_) => News::Wishes,
                    None => News::Nothing,
                }
            }
            Tell::Denied(denied) => News::Denied(denied),
            Tell::Told(_) => {
                let Some(fresh) = self.fresh.take() else { return News::Nothing };
                let before = self.wishes.len();
                self.wishes.retain(|id, _| fresh.contains(id));
                let is_first = !std::mem::replace(&mut self.whole, true);
                if self.wishes.len() == before && !is_first { News::Nothing } else { News::Wishes }
            }
            Tell::Keepalive(_) => News::Nothing,
        }
    }

    fn wish(&mut self, wish: Wish) -> News {
        // A teller with more than its due wishes for nothing more; it does not learn that.
        if self.wishes.len() >= MAX_WISHES && !self.wishes.contains_key(&wish.id) {
            return News::Nothing;
        }
        if let Some(fresh) = &mut self.fresh {
            fresh.insert(wish.id);
        }
        match self.wishes.insert(wish.id, wish.clone()) {
            Some(old) if old == wish => News::Nothing,
            Some(_) | None => News::Wishes,
        }
    }
}

/// Reads a stream to its end and hands each message on, one after the other.
pub(super) async fn run(stream: TunnelStream, pace: Pace, out: mpsc::Sender<Tell>) {
    let ended = listen(stream, pace, out).await;
    tracing::debug!(?ended, "a stream from another operator ended");
}

async fn listen(stream: TunnelStream, pace: Pace, out: mpsc::Sender<Tell>) -> Result<(), Ended> {
    let (mut reader, mut writer) = frames::split(stream);
    let mut count = 0;
    loop {
        pace.turn().await;
        let frame = tokio::time::timeout(SILENCE, reader.next()).await.map_err(|_| Ended::Silent)??;
        let tell = Tell::decode(&frame).map_err(|_| Ended::Malformed)?;
        // Before anybody looks at it: how long that takes is an answer, too.
        count += 1;
        writer.send(&Heard { count }.encode()).await?;
        if let Some(tell) = tell
            && out.send(tell).await.is_err()
        {
            return Ok(()); // the link is gone, or a younger stream has taken over
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::linking::{Told, Withdrawn};

    fn wish(id: u128) -> Tell {
        let (from, to) = ("a.b".parse().expect("a name"), "c.d".parse().expect("a name"));
        Tell::Wish(Wish { id: TrustId(id.to_be_bytes()), from, to, purpose: None })
    }

    #[test]
    fn what_a_later_stream_does_not_tell_is_withdrawn_once_it_has_told_all() {
        let mut known = Known::default();
        known.begin();
        for tell in [wish(1), wish(2), Tell::Told(Told {})] {
            known.take(tell);
        }
        known.begin();
        assert_eq!(known.take(wish(2)), News::Nothing, "it was known");
        assert_eq!(known.wishes().count(), 2, "it may be on its way");
        assert_eq!(known.take(Tell::Told(Told {})), News::Wishes);
        let left: Vec<_> = known.wishes().map(|wish| wish.id).collect();
        assert_eq!(left, [TrustId(2_u128.to_be_bytes())]);
    }

    #[test]
    fn streams_of_one_link_share_one_pace() {
        let now = Instant::now();
        let pace = Pace::begin(now);
        let younger = pace.clone();
        assert_eq!(pace.wait(now), None);
        assert_eq!(younger.wait(now), Some(now + PACE));
        assert_eq!(younger.wait(now + PACE), None);
    }

    #[test]
    fn a_hostile_teller_fills_no_more_than_its_share() {
        let mut known = Known::default();
        known.begin();
        for id in 0..10_000 {
            known.take(wish(id));
        }
        assert_eq!(known.wishes().count(), MAX_WISHES);
        let gone = known.take(Tell::Withdrawn(Withdrawn { id: TrustId(1_u128.to_be_bytes()) }));
        assert_eq!(gone, News::Wishes);
        assert_eq!(known.take(wish(20_000)), News::Wishes, "there is room again");
    }

    #[test]
    fn a_teller_that_wishes_and_takes_back_before_it_has_told_all_leaves_nothing() {
        let mut known = Known::default();
        known.begin();
        for id in 0..10_u128 {
            known.take(wish(id));
            known.take(Tell::Withdrawn(Withdrawn { id: TrustId(id.to_be_bytes()) }));
        }
        assert_eq!(known, Known { fresh: Some(BTreeSet::new()), ..Known::default() });
    }
}
