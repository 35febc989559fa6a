//! Tells silence from quiet: quiet is nothing to say, silence is no answer.

use std::time::{Duration, Instant};

/// Silence is never judged faster than this, DESIGN section 5.
const SHORTEST: Duration = Duration::from_millis(300);
/// Nor slower: no network takes a third of this, and what was measured to be more was a process that stood still.
const LONGEST: Duration = Duration::from_secs(10);
/// Round trip to assume before one was measured, RFC 9002 section 6.2.2.
const INITIAL_RTT: Duration = Duration::from_millis(333);
/// Who judges this much too late had no processor, and the answer may wait in the socket.
const LATE: Duration = Duration::from_millis(25);
/// For so long it is given time to be read, once.
const EXCUSE: Duration = Duration::from_millis(25);
/// Silent timeouts in a row after which the peer itself is in doubt.
const REDIAL_AFTER: u32 = 3;

/// What a silent timeout asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// Traffic belongs on the relay.
    Silent { waited: Duration },
    /// And the session should be dialled anew.
    SilentForTooLong { waited: Duration },
}

#[derive(Clone, Debug)]
pub(super) enum Liveness {
    /// Nothing waits for an answer.
    Quiet { timeouts: u32 },
    /// The oldest unanswered ack-eliciting packet went out at `since`.
    Waiting { since: Instant, timeouts: u32, excused: bool },
    /// Redial was asked for; nothing more to judge until the tunnel is heard.
    GivenUp,
}

impl Liveness {
    pub(super) fn new() -> Self {
        Self::Quiet { timeouts: 0 }
    }

    pub(super) fn on_sent(&mut self, now: Instant) {
        match *self {
            Self::Quiet { timeouts } => *self = Self::Waiting { since: now, timeouts, excused: false },
            Self::Waiting { .. } | Self::GivenUp => {}
        }
    }

    /// The peer lives and the path in use with it.
    pub(super) fn on_heard(&mut self) {
        *self = Self::Quiet { timeouts: 0 };
    }

    /// The peer lives, but this says nothing of the path in use.
    pub(super) fn on_heard_elsewhere(&mut self) {
        match *self {
            Self::Quiet { .. } | Self::GivenUp => *self = Self::Quiet { timeouts: 0 },
            Self::Waiting { since, excused, .. } => *self = Self::Waiting { since, timeouts: 0, excused },
        }
    }

    /// Traffic moved: what the new path owes is counted from what is sent on it.
    pub(super) fn on_moved(&mut self) {
        match *self {
            Self::Waiting { timeouts, .. } => *self = Self::Quiet { timeouts },
            Self::Quiet { .. } | Self::GivenUp => {}
        }
    }

    /// Whether an answer is overdue.
    pub(super) fn is_silent(&self) -> bool {
        match *self {
            Self::Quiet { timeouts } | Self::Waiting { timeouts, .. } => timeouts > 0,
            Self::GivenUp => true,
        }
    }

    pub(super) fn deadline(&self, rtt: Option<Duration>) -> Option<Instant> {
        match *self {
            Self::Waiting { since, .. } => Some(since + patience(rtt)),
            Self::Quiet { .. } | Self::GivenUp => None,
        }
    }

    /// Judges at `now`. After a silent timeout the next one runs at once: the packet is still unanswered. Who comes late
    /// judges a moment later still, because a process that got no time has read nothing meanwhile.
    pub(super) fn judge(&mut self, now: Instant, rtt: Option<Duration>) -> Option<Silence> {
        let Self::Waiting { since, timeouts, excused } = *self else {
            return None;
        };
        let late = now.checked_duration_since(since + patience(rtt))?;
        if late > LATE && !excused {
            *self = Self::Waiting { since: since + late + EXCUSE, timeouts, excused: true };
            return None;
        }
        let waited = now.saturating_duration_since(since);
        let timeouts = timeouts + 1;
        if timeouts >= REDIAL_AFTER {
            *self = Self::GivenUp;
            return Some(Silence::SilentForTooLong { waited });
        }
        *self = Self::Waiting { since: now, timeouts, excused: false };
        Some(Silence::Silent { waited })
    }
}

fn patience(rtt: Option<Duration>) -> Duration {
    (3 * rtt.unwrap_or(INITIAL_RTT)).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_judges_late_gives_the_answer_time_to_be_read_but_only_once() {
        let (mut liveness, sent) = (Liveness::new(), Instant::now());
        let rtt = Some(Duration::from_millis(20));
        liveness.on_sent(sent);
        let woken = sent + Duration::from_millis(900);
        assert_eq!(liveness.judge(woken, rtt), None, "the process stood still");
        let mut heard = liveness.clone();
        heard.on_heard();
        assert_eq!(heard.judge(woken + EXCUSE, rtt), None);
        assert_eq!(liveness.deadline(rtt), Some(woken + EXCUSE));
        let judged = liveness.judge(woken + EXCUSE + LATE + Duration::from_millis(1), rtt);
        assert!(matches!(judged, Some(Silence::Silent { .. })), "{judged:?}");
    }

    #[test]
    fn who_judges_in_time_excuses_nothing() {
        let (mut liveness, sent) = (Liveness::new(), Instant::now());
        liveness.on_sent(sent);
        let judged = liveness.judge(sent + patience(None), None);
        assert!(matches!(judged, Some(Silence::Silent { .. })), "{judged:?}");
    }

    #[test]
    fn a_round_trip_of_half_a_minute_delays_no_judgement_for_longer_than_ten_seconds() {
        let (mut liveness, sent) = (Liveness::new(), Instant::now());
        liveness.on_sent(sent);
        let judged = liveness.judge(sent + Duration::from_secs(10), Some(Duration::from_secs(30)));
        assert_eq!(judged, Some(Silence::Silent { waited: Duration::from_secs(10) }));
    }
}
