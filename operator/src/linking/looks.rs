//! How often the API server is asked for all requests: whoever wishes and takes back, time and again, must not decide that.

use std::collections::BTreeSet;
use std::time::Duration;

use peerage_model::TrustId;
use tokio::time::Instant;

use super::throttle::Throttle;

/// Between two looks because other wishes are worth one.
const EVERY: Duration = Duration::from_secs(1);

/// When requests are looked at.
#[derive(Debug)]
pub(super) struct Looks {
    /// Wishes that were worth a request when that was last done.
    wanted: BTreeSet<(TrustId, TrustId)>,
    /// Whether it is done whatever is wanted.
    pub(super) asked: bool,
    pace: Throttle,
}

impl Default for Looks {
    fn default() -> Self {
        Self { wanted: BTreeSet::new(), asked: true, pace: Throttle::every(EVERY) }
    }
}

impl Looks {
    /// Whether to look, where these are the wishes that are worth a request. If so, it counts as done.
    pub(super) fn is_due(&mut self, wanted: BTreeSet<(TrustId, TrustId)>, now: Instant) -> bool {
        let is_due = self.asked || wanted != self.wanted && self.pace.may(now);
        if is_due {
            (self.wanted, self.asked) = (wanted, false);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(200);

    #[test]
    fn wishes_that_come_and_go_are_a_look_each_second_and_what_is_asked_for_one_at_once() {
        let (mut looks, begun) = (Looks::default(), Instant::now());
        let wanted = |number: u8| BTreeSet::from([(TrustId([9; 16]), TrustId([number; 16]))]);
        assert!(looks.is_due(wanted(0), begun), "it has not looked yet");
        let looked = (1..=50_u8).filter(|number| looks.is_due(wanted(*number), begun + MOMENT * u32::from(*number)));
        assert_eq!(looked.count(), 10);
        let now = begun + MOMENT * 50;
        assert!(!looks.is_due(wanted(51), now), "it has just looked");
        looks.asked = true;
        assert!(looks.is_due(wanted(51), now));
        assert!(!looks.is_due(wanted(51), now + EVERY), "nothing is new");
    }
}
