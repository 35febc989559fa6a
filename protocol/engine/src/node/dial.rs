//! Dialling: a knock for each attempt, sent through every relay where the peer may be.

use std::time::Instant;

use peerage_model::relay::frame::Destination;
use peerage_model::{AgentId, InstanceId};
use tracing::debug;

use super::config::transport;
use super::event::{AskError, Event, Now, SessionKey};
use super::pair::{ATTEMPT, Dial, MAX_PAUSE, PairKey, Purpose, pause_after};
use super::session::{RelayRoute, Session};
use super::{Node, Timer, VIRTUAL_REMOTE};
use crate::congestion::OfOneConnection;
use crate::knock::Knock;
use crate::noise::{NoiseClient, client_config};

impl Node {
    /// Starts one attempt with a fresh knock, replacing the one that runs.
    pub(super) fn start_attempt(&mut self, pair_key: &PairKey, attempts: u32, now: Now) {
        self.abandon_attempt(pair_key);
        let dial = match self.connect(pair_key, None, now) {
            Some(session) => {
                Dial::Attempt { session, until: now.mono + ATTEMPT * (attempts + 1).min(4), attempts: attempts + 1 }
            }
            None => Dial::Pause { until: now.mono + pause_after(attempts), attempts: attempts + 1 },
        };
        if let Some(pair) = self.pairs.get_mut(pair_key) {
            pair.dial = dial;
        }
        self.arm_pair(pair_key);
    }

    /// Begins a handshake with one instance of the pair's agent, or with any.
    pub(super) fn connect(&mut self, pair_key: &PairKey, instance: Option<InstanceId>, now: Now) -> Option<SessionKey> {
        let pair = self.pairs.get(pair_key).filter(|pair| !pair.has_ended(now.wall))?;
        let (agent, relays) = pair.destination()?;
        let id = agent.routing_id();
        let via = self.relays.towards(&id, [relays, pair.former_relays(now.mono)], now.mono);
        if via.is_empty() {
            debug!(%agent, "no relay of this agent is known and reachable");
            return None;
        }
        let direction = pair.outbound.directions().first()?;
        let knock = Knock::new(direction, now.wall, &mut self.random);
        let judge = self.judge.expecting(pair.expected());
        let noise = NoiseClient::new(&pair.outbound, 0, self.identity.clone(), judge, self.random.bytes()).ok()?;
        let share = self.memory.offer(pair_key, self.instances_up(pair_key).len());
        let congestion = OfOneConnection::new(self.congestion);
        let pacer = congestion.pacer(now.mono);
        let config = client_config(noise, knock, transport(pair_key, share, congestion));
        let (handle, connection) = match self.endpoint.connect(now.mono, config, VIRTUAL_REMOTE, "peerage") {
            Ok(connected) => connected,
            Err(error) => {
                debug!(%error, "cannot start a connection");
                return None;
            }
        };
        let key = self.new_session_key(handle);
        let destination = instance.map_or(Destination::Route(id), |instance| Destination::Endpoint(instance.into()));
        let route = RelayRoute::Racing { relays: via, destination };
        let session = Session::new(connection, handle, pair_key.clone(), true, *knock.as_bytes(), route, now.mono)
            .paced_by(pacer);
        self.begin_session(key, session, share);
        self.ready.insert(key);
        Some(key)
    }

    /// Drops the attempt that runs, without a packet.
    pub(super) fn abandon_attempt(&mut self, pair_key: &PairKey) {
        let Some(pair) = self.pairs.get_mut(pair_key) else {
            return;
        };
        if let Dial::Attempt { session, .. } = pair.dial {
            pair.dial = Dial::Rest;
            self.remove_session(session);
        }
    }

    /// The pair's deadline came: the attempt failed, a pause is over, streams waited too long, or a used invitation is over.
    pub(super) fn pair_timeout(&mut self, pair_key: &PairKey, now: Now) {
        let why = self.relays.why_unreachable();
        self.expire_waiting(pair_key, now.mono, why);
        self.end_aside(pair_key, now);
        if let PairKey::Invite(_) = pair_key {
            self.close_invite(pair_key, now);
            return;
        }
        let Some(pair) = self.pairs.get(pair_key) else { return };
        if let Purpose::Ask { deadline, .. } = pair.purpose
            && deadline <= now.mono
        {
            self.end_ask(pair_key);
            return;
        }
        if self.preferred(pair_key).is_some() {
            // The peer's own dial came through first.
            self.abandon_attempt(pair_key);
            if let Some(pair) = self.pairs.get_mut(pair_key) {
                pair.dial = Dial::Rest;
            }
            self.attach_waiting(pair_key);
            self.arm_pair(pair_key);
            return;
        }
        let eager = !pair.waiting.is_empty() || matches!(pair.purpose, Purpose::Ask { .. });
        match pair.dial {
            Dial::Attempt { until, attempts, .. } if until <= now.mono => match eager {
                true => self.start_attempt(pair_key, attempts, now),
                false => self.rest_before_next(pair_key, attempts, now.mono),
            },
            Dial::Pause { until, attempts } if until <= now.mono => self.start_attempt(pair_key, attempts, now),
            Dial::Attempt { .. } | Dial::Pause { .. } | Dial::Rest => {}
        }
        self.arm_pair(pair_key);
    }

    fn rest_before_next(&mut self, pair_key: &PairKey, attempts: u32, now: Instant) {
        self.abandon_attempt(pair_key);
        // Spread, so that agents which lost the same relay do not all come back in the same instant.
        let pause = pause_after(attempts);
        let spread = self.random_below(pause.as_millis().try_into().unwrap_or(u64::MAX) / 4);
        if let Some(pair) = self.pairs.get_mut(pair_key) {
            pair.dial = Dial::Pause { until: now + pause.min(MAX_PAUSE) + spread, attempts };
        }
    }

    fn end_ask(&mut self, pair_key: &PairKey) {
        self.abandon_attempt(pair_key);
        let sessions = self.pairs.remove(pair_key).map(|pair| pair.sessions()).unwrap_or_default();
        self.timers.set(&Timer::Pair(pair_key.clone()), None);
        sessions.into_iter().for_each(|session| self.remove_session(session));
        if let PairKey::Ask(ask) = pair_key {
            let error = if self.relays.any_reachable() { AskError::NoAnswer } else { AskError::NoRelay };
            self.events.push_back(Event::Asked { ask: *ask, result: Err(error) });
        }
    }

    /// Dials a peer that the tunnel went silent on, with what is known afresh.
    pub(super) fn redial(&mut self, peer: &AgentId, now: Now) {
        let pair_key = PairKey::Peer(peer.clone());
        self.dial_wanted(&pair_key, now);
    }
}
