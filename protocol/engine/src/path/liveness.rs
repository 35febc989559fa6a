//! Tells silence from quiet: quiet is nothing to say, silence is no answer.

use std::time::{Duration, Instant};

/// Silence is never judged faster than this, DESIGN section 5.
const SHORTEST: Duration = Duration::from_millis(300);
/// Round trip to assume before one was measured, RFC 9002 section 6.2.2.
const INITIAL_RTT: Duration = Duration::from_millis(333);
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
    Waiting { since: Instant, timeouts: u32 },
    /// Redial was asked for; nothing more to judge until the tunnel is heard.
    GivenUp,
}

impl Liveness {
    pub(super) fn new() -> Self {
        Self::Quiet { timeouts: 0 }
    }

    pub(super) fn on_sent(&mut self, now: Instant) {
        match *self {
            Self::Quiet { timeouts } => *self = Self::Waiting { since: now, timeouts },
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
            Self::Waiting { since, .. } => *self = Self::Waiting { since, timeouts: 0 },
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

    /// Judges at `now`. After a silent timeout the next one runs at once: the packet is still unanswered.
    pub(super) fn judge(&mut self, now: Instant, rtt: Option<Duration>) -> Option<Silence> {
        let Self::Waiting { since, timeouts } = *self else {
            return None;
        };
        if now < since + patience(rtt) {
            return None;
        }
        let waited = now.saturating_duration_since(since);
        let timeouts = timeouts + 1;
        if timeouts >= REDIAL_AFTER {
            *self = Self::GivenUp;
            return Some(Silence::SilentForTooLong { waited });
        }
        *self = Self::Waiting { since: now, timeouts };
        Some(Silence::Silent { waited })
    }
}

fn patience(rtt: Option<Duration>) -> Duration {
    SHORTEST.max(3 * rtt.unwrap_or(INITIAL_RTT))
}
