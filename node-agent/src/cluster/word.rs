//! How old the operator's word is, and what that means: past maxStaleness it is stale and said to be; where the operator set
//! that, it is not acted on any more, and this agent is closed until an operator is heard again.

use std::time::Duration;

use peerage_model::UnixTime;

/// The part of maxStaleness by which a restart may forget.
const HEARD_SHARE: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Word {
    heard: Option<UnixTime>,
    /// The latest of them that a restart would know.
    kept: Option<UnixTime>,
    stale: bool,
    closed: bool,
}

/// What time made of it.
#[derive(Debug)]
pub(super) struct Aged {
    /// It is stale from now on, or is not any more.
    pub(super) turns: Option<bool>,
    /// It is not to be acted on from now on.
    pub(super) closes: bool,
}

impl Word {
    /// As an earlier container has left it.
    pub(super) fn heard_at(heard: Option<UnixTime>) -> Self {
        Self { heard, kept: heard, stale: false, closed: false }
    }

    /// When an operator confirmed it last.
    pub(super) fn heard(&self) -> Option<UnixTime> {
        self.heard
    }

    /// Whether it is too old to act on.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// An operator confirms it. Whether it may be acted on again.
    pub(super) fn hear(&mut self, now: UnixTime) -> bool {
        self.heard = Some(now);
        std::mem::take(&mut self.closed)
    }

    /// Whether a restart must know that it was heard now, where its age counts from `limit` on.
    pub(super) fn is_worth_keeping(&self, now: UnixTime, limit: Duration) -> bool {
        !self.kept.is_some_and(|kept| kept.plus(limit / HEARD_SHARE) > now && kept <= now)
    }

    /// A restart would know.
    pub(super) fn on_kept(&mut self, now: UnixTime) {
        self.kept = Some(now);
    }

    /// Time passed. `limit` is maxStaleness, if there is one.
    pub(super) fn age(&mut self, now: UnixTime, limit: Option<Duration>, fail_closed: bool) -> Aged {
        let stale = limit.is_some_and(|limit| self.heard.is_none_or(|heard| heard.plus(limit) < now));
        let closes = stale && fail_closed && !self.closed;
        self.closed |= closes;
        let turns = (stale != std::mem::replace(&mut self.stale, stale)).then_some(stale);
        Aged { turns, closes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARD: UnixTime = UnixTime(1_800_000_000);
    const LIMIT: Duration = Duration::from_secs(100);

    fn at(seconds: u64) -> UnixTime {
        HEARD.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn a_word_turns_stale_once_and_closes_where_the_operator_says_so_until_it_is_heard_again() {
        for fail_closed in [false, true] {
            let mut word = Word::heard_at(Some(HEARD));
            let age = |word: &mut Word, seconds| {
                let Aged { turns, closes } = word.age(at(seconds), Some(LIMIT), fail_closed);
                (turns, closes, word.is_closed())
            };
            assert_eq!(age(&mut word, 100), (None, false, false));
            assert_eq!(age(&mut word, 101), (Some(true), fail_closed, fail_closed));
            assert_eq!(age(&mut word, 102), (None, false, fail_closed), "which is said once");
            assert_eq!(word.hear(at(103)), fail_closed);
            assert_eq!(age(&mut word, 104), (Some(false), false, false));
        }
    }

    #[test]
    fn a_restart_forgets_at_most_a_quarter_of_the_limit() {
        let mut word = Word::heard_at(None);
        assert!(word.is_worth_keeping(HEARD, LIMIT), "it would know of none");
        word.on_kept(HEARD);
        assert!(!word.is_worth_keeping(at(24), LIMIT));
        assert!(word.is_worth_keeping(at(25), LIMIT));
        assert!(word.is_worth_keeping(UnixTime(HEARD.0 - 1), LIMIT), "the clock was set back");
    }
}
