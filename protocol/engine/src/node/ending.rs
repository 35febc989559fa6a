//! How sessions end: we close them, the peer or quinn-proto does, or we let go of them without a packet.
//!
//! However it went, what hung on the session is told to the pair it belongs to, and its streams go on elsewhere where they
//! can ([`Untaken`]).

use std::time::Instant;

use quinn_proto::{ConnectionError, EndpointEvent, VarInt};
use tracing::{debug, info};

use super::again::Untaken;
use super::event::{CloseCode, DownReason, Event, Now, SessionKey};
use super::pair::{Dial, FIRST_PAUSE, PairKey, REFUSED};
use super::session::Phase;
use super::{Node, Timer};
use crate::noise::is_silent_end;

impl Node {
    /// The peer broke the protocol.
    pub(super) fn violated(&mut self, key: SessionKey, what: &str, now: Now) {
        self.close(key, CloseCode::Protocol, DownReason::Failed(what.to_owned()), now.mono);
    }

    /// Ends a session and tells the peer why.
    pub(super) fn close(&mut self, key: SessionKey, code: CloseCode, reason: DownReason, now: Instant) {
        self.close_leaving(key, (code, reason), Untaken::Unknown, now);
    }

    /// Ends the session with a process that is gone. What was asked of it since it was last heard goes on to its successor.
    pub(super) fn close_succeeded(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        let (untaken, pair_key) = (session.unheard(), session.pair.clone());
        let instance = session.up().map(|up| up.credential.instance());
        if let (Some(instance), Some(pair)) = (instance, self.pairs.get_mut(&pair_key)) {
            pair.replicas.left(instance);
        }
        self.close_leaving(key, (CloseCode::Replaced, DownReason::Replaced), untaken, now.mono);
        self.find_another(&pair_key, now);
    }

    fn close_leaving(&mut self, key: SessionKey, why: (CloseCode, DownReason), untaken: Untaken, now: Instant) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        if matches!(session.phase, Phase::Handshaking) {
            self.remove_session(key);
            return;
        }
        let (code, reason) = why;
        let seen = session.seen();
        session.connection.close(now, VarInt::from_u32(code as u32), seen);
        self.take_down(key, reason, untaken);
        self.ready.insert(key);
    }

    /// quinn-proto gave the connection up.
    pub(super) fn lost(&mut self, key: SessionKey, reason: &ConnectionError, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        if matches!(session.phase, Phase::Handshaking) || is_silent_end(reason) {
            self.handshake_failed(key, reason, now);
            return;
        }
        let (down, phrase) = match reason {
            ConnectionError::ApplicationClosed(close) => {
                (CloseCode::received(close.error_code.into_inner()), &close.reason[..])
            }
            // What nobody uses ends like this by design; that nothing was heard is news where somebody waits for it.
            ConnectionError::TimedOut if session.up().is_some_and(|up| up.streams.is_empty()) => {
                (DownReason::Drained, &[][..])
            }
            ConnectionError::TimedOut => (DownReason::TimedOut, &[][..]),
            other => (DownReason::Failed(other.to_string()), &[][..]),
        };
        let (untaken, pair_key) = (Untaken::told(&down, phrase), session.pair.clone());
        if down == DownReason::RevokedByPeer
            && let Some(pair) = self.pairs.get_mut(&session.pair)
        {
            pair.refused_until = Some(now.mono + REFUSED);
        }
        self.take_down(key, down, untaken);
        self.find_another(&pair_key, now);
    }

    fn handshake_failed(&mut self, key: SessionKey, reason: &ConnectionError, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        debug!(pair = ?session.pair, %reason, "handshake failed");
        let (pair_key, dialled) = (session.pair.clone(), session.initiator);
        self.take_down(key, DownReason::Failed(reason.to_string()), Untaken::Unknown);
        self.remove_session(key);
        if dialled {
            self.attempt_failed(&pair_key, key, now);
            self.help_refused(&pair_key, now);
        }
    }

    /// An attempt that failed by itself waits for its time before the next: the other side may be wrong about the
    /// trust for a moment, and a knock a second is enough.
    fn attempt_failed(&mut self, pair_key: &PairKey, key: SessionKey, now: Now) {
        if let Some(pair) = self.pairs.get_mut(pair_key)
            && let Dial::Attempt { session, attempts, .. } = pair.dial
            && session == key
        {
            pair.dial = Dial::Pause { until: now.mono + FIRST_PAUSE, attempts };
            self.arm_pair(pair_key);
        }
    }

    /// The session with the inviter ended before the receipt: another one is tried, while the request has time.
    fn ask_again(&mut self, pair_key: &PairKey) {
        if let Some(pair) = self.pairs.get_mut(pair_key) {
            pair.dial = Dial::Pause { until: self.last.mono + FIRST_PAUSE, attempts: 0 };
            self.arm_pair(pair_key);
        }
    }

    /// Resets a session's streams, but for those that another may serve, and tells the driver; packets of the connection may
    /// still go out.
    fn take_down(&mut self, key: SessionKey, reason: DownReason, untaken: Untaken) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let phase = std::mem::replace(&mut session.phase, Phase::Closing);
        let pair_key = session.pair.clone();
        if let Some(pair) = self.pairs.get_mut(&pair_key) {
            pair.forget(key);
            pair.replicas.dial_ended(key, self.last.mono);
        }
        let Phase::Up(up) = phase else { return };
        if let (DownReason::PeerLeft | DownReason::Denied, Some(pair)) = (&reason, self.pairs.get_mut(&pair_key)) {
            pair.replicas.left(up.credential.instance());
        }
        if let PairKey::Ask(_) = pair_key {
            self.ask_again(&pair_key);
        }
        let streams = self.leave_streams(&pair_key, up.streams.into_values(), &reason, untaken);
        if let PairKey::Peer(peer) = pair_key {
            let pair = self.pairs.get_mut(&PairKey::Peer(peer.clone()));
            match pair.is_none_or(|pair| pair.lines.take(self.last.mono)) {
                true => info!(target: "events::session_down", peer = %peer.routing_id(), %reason, streams),
                false => debug!(target: "events::session_down", peer = %peer.routing_id(), %reason, streams),
            }
            self.events.push_back(Event::SessionDown { session: key, peer, reason, streams });
        }
    }

    /// Drops a session at once, without a packet.
    pub(super) fn remove_session(&mut self, key: SessionKey) {
        self.take_down(key, DownReason::Failed("the handshake was given up".to_owned()), Untaken::Unknown);
        if let Some(session) = self.sessions.get(&key) {
            self.endpoint.handle_event(session.handle, EndpointEvent::drained());
        }
        self.forget_session(key);
    }

    /// The endpoint has forgotten the connection; so do we.
    pub(super) fn forget_session(&mut self, key: SessionKey) {
        let answers = self.unanswered.values_mut();
        answers.filter(|place| place.is_some_and(|(session, _)| session == key)).for_each(|place| *place = None);
        if let Some(session) = self.sessions.remove(&key) {
            self.memory.give_back(key);
            self.by_handle.remove(&session.handle.0);
            self.first_ids.remove(&session.first_id);
            if let Some(pair) = self.pairs.get_mut(&session.pair) {
                pair.forget(key);
            }
        }
        self.ready.remove(&key);
        self.timers.set(&Timer::Session(key), None);
        self.end_round(key);
        self.sweep_sockets();
    }
}
