//! What happens to sessions when a relay under them is gone, goes, or comes back.
//!
//! Two bound agents have the same ids at all their relays, so a session needs no word with the peer to change: while it is not
//! certain that the relay in use leads anywhere, every packet goes through the others as well, and the first proven packet
//! that comes back decides. Nobody waits for a keepalive to fail.

use std::time::Duration;

use tracing::debug;

use super::Node;
use super::config::{HANDSHAKE_TIMEOUT, IDLE_TIMEOUT};
use super::event::{CloseCode, DownReason, Now, SessionKey};
use super::pair::{Dial, Pair, PairKey};
use super::relays::RelayKey;
use super::session::{Phase, RelayRoute, Session};

/// How we know that we were away.
#[derive(Clone, Copy, Debug)]
pub(super) enum Away {
    /// A timer was so late: time passed, and we did not run.
    Stopped(Duration),
    /// The wall clock went so far ahead of the timers': the machine slept, or its clock was set.
    ClockJumped(Duration),
}

impl Node {
    /// The tunnel fell silent: its packets go through every relay where the peer may be, until one of them brings an answer.
    pub(super) fn race_relays(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        let RelayRoute::Known { relay: used, .. } = session.relayed else { return };
        // A request-only session shows its asker no more than it must.
        let (PairKey::Peer(peer), Some(pair)) = (&session.pair, self.pairs.get(&session.pair)) else { return };
        let Some((_, relays)) = pair.destination() else { return };
        let lists = [relays, pair.former_relays(now.mono)];
        let mut beside = self.relays.towards(&peer.routing_id(), lists, now.mono);
        beside.retain(|relay| *relay != used);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let raced = !std::mem::replace(&mut session.beside, beside).is_empty();
        if !raced && session.up().is_some_and(|up| up.path.is_silent()) {
            // Other ways carry nothing yet. The window of the silent one may be small, after losses, and is full of what was
            // lost there: it would keep the question back until QUIC's own timeout.
            session.path_changed(now.mono);
        }
        session.connection.ping();
        self.ready.insert(key);
        self.settle_relays(now);
    }

    /// We stood still, perhaps for long: NATs and relays may have forgotten us, and peers given us up. Everything is asked
    /// at once instead of waiting until it turns out to be gone, and peers whose session has ended meanwhile are dialled.
    pub(super) fn resumed(&mut self, away: Away, now: Now) {
        debug!(?away, "stood still");
        self.relays.slept(now.mono);
        if let Away::Stopped(_) = away {
            self.give_up_late_handshakes(now);
            self.sessions.values_mut().for_each(|session| session.is_back(now.mono));
        }
        let had_sessions = |pair: &Pair| !pair.up.is_empty() && pair.dial == Dial::Rest && pair.peer().is_some();
        let pairs: Vec<PairKey> =
            self.pairs.iter().filter(|(_, pair)| had_sessions(pair)).map(|(key, _)| key.clone()).collect();
        for key in pairs {
            if let Some(pair) = self.pairs.get_mut(&key) {
                // Goes to rest again at once where the session is still up.
                pair.dial = Dial::Pause { until: now.mono, attempts: 0 };
            }
            self.arm_pair(&key);
        }
        for key in self.up_sessions() {
            match away {
                // Peers have given it up, whatever old packets in our socket say.
                Away::Stopped(at_least) if at_least >= IDLE_TIMEOUT => {
                    self.close(key, CloseCode::Drained, DownReason::TimedOut, now.mono);
                }
                // So they have, or somebody set the clock. New streams wait until one or the other is known.
                Away::ClockJumped(forward) if forward >= IDLE_TIMEOUT => {
                    self.race_relays(key, now);
                    self.doubt(key, now);
                }
                Away::Stopped(_) | Away::ClockJumped(_) => self.race_relays(key, now),
            }
        }
    }

    /// Who dialled us before we stood still has given up meanwhile. What waits in our socket would still bring its session up,
    /// with nobody at the other end.
    fn give_up_late_handshakes(&mut self, now: Now) {
        let is_late = |session: &Session| {
            matches!(session.phase, Phase::Handshaking) && session.born + HANDSHAKE_TIMEOUT <= now.mono
        };
        let late: Vec<SessionKey> =
            self.sessions.iter().filter(|(_, session)| is_late(session)).map(|(key, _)| *key).collect();
        late.into_iter().for_each(|key| self.remove_session(key));
    }

    /// A relay does not answer any more, or says that it goes: sessions on it look for another at once.
    pub(super) fn leave_relay(&mut self, relay: RelayKey, now: Now) {
        for key in self.up_sessions() {
            let over_it = |route: &RelayRoute| matches!(route, RelayRoute::Known { relay: used, .. } if *used == relay);
            if self.sessions.get(&key).is_some_and(|session| over_it(&session.relayed)) {
                self.race_relays(key, now);
            }
        }
    }

    /// A relay that was away or saw us move is back: sessions over it say so, instead of waiting out their timeouts.
    pub(super) fn say_we_are_there(&mut self, relay: RelayKey) {
        for (key, session) in &mut self.sessions {
            let over_it = matches!(session.relayed, RelayRoute::Known { relay: used, .. } if used == relay);
            if (over_it || session.beside.contains(&relay)) && session.up().is_some() {
                session.connection.ping();
                self.ready.insert(*key);
            }
        }
    }
}
