//! The path in use: since when, what went over it and came back, and what goes both ways around a switch.

use std::time::{Duration, Instant};

use super::liveness::{Liveness, Silence};
use super::{DirectPath, Hop, PathMode, Route, Why};

/// Longest time that both paths carry everything after a switch.
const DUAL_SEND: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct InUse {
    hop: Hop,
    since: Instant,
    /// The path before, which gets every packet too until then.
    dual: Option<(Hop, Instant)>,
    /// While the peer sends by relay and we directly: until when our packets go both ways.
    answer_by_relay: Option<Instant>,
    liveness: Liveness,
    relay_rtt: Option<Duration>,
    /// The tunnel's own round trip over this path.
    tunnel_rtt: Option<Duration>,
    last_sent: Instant,
}

impl InUse {
    /// Of a session that was just established, on its relay.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            hop: Hop::Relayed,
            since: now,
            dual: None,
            answer_by_relay: None,
            liveness: Liveness::new(),
            relay_rtt: None,
            tunnel_rtt: None,
            last_sent: now,
        }
    }

    pub(super) fn hop(&self) -> Hop {
        self.hop
    }

    pub(super) fn is_relayed(&self) -> bool {
        self.hop == Hop::Relayed
    }

    /// The direct path, if traffic is not relayed.
    pub(super) fn direct(&self) -> Option<DirectPath> {
        match self.hop {
            Hop::Relayed => None,
            Hop::Direct(path) => Some(path),
        }
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Round trip through the relay, when that was in use last.
    pub(super) fn relay_rtt(&self) -> Option<Duration> {
        self.relay_rtt
    }

    /// Round trip of this path as the tunnel measures it.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.tunnel_rtt.or(if self.is_relayed() { self.relay_rtt } else { None })
    }

    /// Moves traffic. Gives the path before, if that was another.
    pub(super) fn move_to(&mut self, now: Instant, to: Hop, why: Why) -> Option<Hop> {
        let from = std::mem::replace(&mut self.hop, to);
        if from == to {
            return None;
        }
        self.dual = match why {
            // Silence may be bad luck on a lossy path, and the relay may be gone as well.
            Why::CheckAnswered | Why::SlowerThanRelay | Why::TunnelSilent => Some((from, now + DUAL_SEND)),
            // The path before is gone or forbidden.
            Why::LocalAddressChanged | Why::RemoteAddressWithdrawn | Why::Policy => None,
        };
        self.since = now;
        self.last_sent = now;
        self.tunnel_rtt = None;
        self.liveness.on_moved();
        Some(from)
    }

    /// Where packets go at `now`. With [`PathMode::DirectOnly`] no copy goes by relay: there may be data in it.
    pub(super) fn route(&self, now: Instant, mode: PathMode) -> Route {
        let switched = self.dual.filter(|(_, until)| now < *until).map(|(hop, _)| hop);
        let answering = self.answer_by_relay.filter(|until| now < *until).map(|_| Hop::Relayed);
        let allowed = |hop: &Hop| *hop != Hop::Relayed || mode != PathMode::DirectOnly;
        let duplicate = switched.or(answering).filter(|hop| *hop != self.hop).filter(allowed);
        Route { primary: self.hop, duplicate }
    }

    /// A tunnel packet went out.
    pub(super) fn on_sent(&mut self, now: Instant, hop: Hop, ack_eliciting: bool) {
        if hop == self.hop {
            self.last_sent = now;
            if ack_eliciting {
                self.liveness.on_sent(now);
            }
        }
    }

    /// An authenticated tunnel packet came in, and this is the tunnel's round trip.
    pub(super) fn on_heard(&mut self, now: Instant, hop: Hop, rtt: Option<Duration>) {
        let speaks_for_path = match (self.hop, hop) {
            (Hop::Relayed, Hop::Relayed | Hop::Direct(_)) | (Hop::Direct(_), Hop::Direct(_)) => true,
            (Hop::Direct(_), Hop::Relayed) => self.dual.is_some(),
        };
        if speaks_for_path {
            self.liveness.on_heard();
        } else {
            self.liveness.on_heard_elsewhere();
        }
        if hop != self.hop {
            self.on_heard_beside(now, hop);
            return;
        }
        self.dual = None;
        if rtt.is_some() {
            self.tunnel_rtt = rtt;
        }
        match hop {
            Hop::Relayed => self.relay_rtt = rtt.or(self.relay_rtt),
            Hop::Direct(_) => {}
        }
    }

    /// The peer went back to the relay, perhaps because nothing of ours reaches it directly. A side that only acknowledges
    /// never notices that by its own silence, so its answers go both ways for as long as the peer comes by relay.
    fn on_heard_beside(&mut self, now: Instant, hop: Hop) {
        if hop == Hop::Relayed && self.dual.is_none() {
            self.answer_by_relay = Some(now + DUAL_SEND);
        }
    }

    /// Ends what lasts for a while after a switch.
    pub(super) fn settle(&mut self, now: Instant) {
        self.dual = self.dual.filter(|(_, until)| now < *until);
    }

    /// Judges whether the tunnel is silent, which with this round trip it is after a while.
    pub(super) fn judge(&mut self, now: Instant, rtt: Option<Duration>) -> Option<Silence> {
        self.liveness.judge(now, rtt)
    }

    /// Whether an answer is overdue.
    pub(super) fn is_silent(&self) -> bool {
        self.liveness.is_silent()
    }

    /// Whether a direct path has been without a packet of ours for this long; one goes out now.
    pub(super) fn takes_keepalive(&mut self, now: Instant, interval: Duration) -> Option<DirectPath> {
        let path = self.direct().filter(|_| now >= self.last_sent + interval)?;
        self.last_sent = now;
        Some(path)
    }

    /// When one of these is due next: a keepalive, a judgement of silence, the end of what follows a switch.
    pub(super) fn timeout(&self, keepalive: Duration, rtt: Option<Duration>) -> Option<Instant> {
        let keepalive = self.direct().map(|_| self.last_sent + keepalive);
        let dual = self.dual.map(|(_, until)| until);
        [keepalive, self.liveness.deadline(rtt), dual].into_iter().flatten().min()
    }
}
