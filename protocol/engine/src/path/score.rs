//! Which of two proven paths is better. Declaration order is the rule.

use std::time::Duration;

use super::PathKind;

/// A local path must be this fast to count as one: a VPN with private addresses may span continents.
pub(super) const LOCAL_RTT: Duration = Duration::from_millis(10);
/// A difference below this is noise, however short the path.
const NOISE: Duration = Duration::from_millis(5);

/// Smaller is better: any direct path beats the relay unless twice as slow, then latency decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    pub(super) rank: Rank,
    pub(super) rtt: Rtt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Local,
    Wide,
    Relayed,
    /// A direct path that is more than twice as slow as the relay.
    Slow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rtt {
    Measured(Duration),
    /// Last, so that no path wins by being unmeasured.
    Unknown,
}

impl Score {
    pub(super) fn relayed(rtt: Option<Duration>) -> Self {
        Self { rank: Rank::Relayed, rtt: rtt.map_or(Rtt::Unknown, Rtt::Measured) }
    }

    /// `in_use` widens the limit from 2 to 2.4 times the relay's round trip, so that a path at the limit does not flap.
    pub(super) fn direct(kind: PathKind, rtt: Duration, relay: Option<Duration>, in_use: bool) -> Self {
        let limit = relay.map(|relay| if in_use { relay * 12 / 5 } else { relay * 2 });
        let rank = match limit {
            // Noise again: next to a relay on the same host everything is "twice as slow".
            Some(limit) if rtt > limit + NOISE => Rank::Slow,
            Some(_) | None if kind == PathKind::Local && rtt <= LOCAL_RTT => Rank::Local,
            Some(_) | None => Rank::Wide,
        };
        Self { rank, rtt: Rtt::Measured(rtt) }
    }

    /// Whether moving from `current` to this is worth it.
    pub(super) fn is_worth_leaving(&self, current: &Self) -> bool {
        match self.rank.cmp(&current.rank) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => match (self.rtt, current.rtt) {
                (Rtt::Measured(new), Rtt::Measured(old)) => new + NOISE.max(old / 5) < old,
                (Rtt::Measured(_), Rtt::Unknown) => true,
                (Rtt::Unknown, Rtt::Measured(_) | Rtt::Unknown) => false,
            },
            std::cmp::Ordering::Greater => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_beats_the_relay_unless_twice_as_slow() {
        let relay = Score::relayed(Some(ms(50)));
        assert!(wide(90, 50).is_worth_leaving(&relay));
        assert!(!wide(120, 50).is_worth_leaving(&relay));
        assert!(relay.is_worth_leaving(&wide(140, 50)));
    }

    #[test]
    fn a_measured_path_beats_a_relay_never_measured() {
        assert!(Score::direct(PathKind::Punched, ms(500), None, false).is_worth_leaving(&Score::relayed(None)));
    }

    #[test]
    fn local_beats_every_other_path_but_only_when_it_is_near() {
        let local = |rtt| Score::direct(PathKind::Local, ms(rtt), None, false);
        assert!(local(9).is_worth_leaving(&wide(9, 50)));
        assert!(!local(40).is_worth_leaving(&wide(20, 50)), "a VPN is not local");
    }

    #[test]
    fn five_milliseconds_and_a_fifth_are_noise() {
        assert!(!wide(4, 50).is_worth_leaving(&wide(8, 50)), "half, but 4 ms");
        assert!(!wide(170, 500).is_worth_leaving(&wide(200, 500)), "30 ms, but 15 %");
        assert!(wide(150, 500).is_worth_leaving(&wide(200, 500)));
    }

    #[test]
    fn a_path_in_use_is_given_up_later_than_it_would_be_taken() {
        let at_limit = |in_use| Score::direct(PathKind::Direct, ms(110), Some(ms(50)), in_use).rank;
        assert_eq!((at_limit(false), at_limit(true)), (Rank::Slow, Rank::Wide));
    }

    fn wide(rtt: u64, relay: u64) -> Score {
        Score::direct(PathKind::Punched, ms(rtt), Some(ms(relay)), false)
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }
}
