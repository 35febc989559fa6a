//! A session's life: accepted, and up. How it ends is in `ending`.

use std::sync::Arc;
use std::time::Instant;

use peerage_model::{AgentId, Credential, UnixTime, passport};
use quinn_proto::{ConnectionHandle, Dir, EndpointEvent, Incoming as QuicIncoming, StreamEvent, StreamId};
use tracing::{debug, info};

use super::Node;
use super::config::{PING_INTERVAL, transport};
use super::control::ControlOut;
use super::event::{Event, Now, SessionKey, StreamError};
use super::listening::Listening;
use super::memory::Share;
use super::pair::{ASK_PATIENCE, MAX_PENDING, MAX_PER_INVITE, PairKey};
use super::rivals::{Drain, MAX_PER_PEER};
use super::session::{Phase, RelayRoute, Session, Since, Up};
use crate::congestion::OfOneConnection;
use crate::knock::KNOCK_LEN;
use crate::noise::{NoiseServer, message_1_verified, peer_identity, server_config};
use crate::path::PathKind;

impl Node {
    /// Answers a first packet whose knock is good.
    pub(super) fn accept(&mut self, incoming: QuicIncoming, first_id: [u8; KNOCK_LEN], route: RelayRoute, now: Now) {
        let matched = self.knocks().check(&first_id, now.wall);
        let congestion = OfOneConnection::new(self.congestion);
        let pacer = congestion.pacer(now.mono);
        let admitted = matched.and_then(|m| Some((self.server_for(&m.pair, m.secret, congestion, now)?, m)));
        let Some(((config, share), matched)) = admitted else {
            self.endpoint.ignore(incoming);
            return;
        };
        let mut response = Vec::new();
        // The response of a failed accept is for strangers, and strangers get silence.
        let Ok((handle, connection)) = self.endpoint.accept(incoming, now.mono, &mut response, Some(config)) else {
            return;
        };
        // Nothing else says that the sender holds the pair's secret: without it this takes no place and uses up no knock.
        if !message_1_verified(&connection) {
            self.endpoint.handle_event(handle, EndpointEvent::drained());
            return;
        }
        self.knocks().mark_used(&matched);
        self.make_room(&matched.pair, now);
        let key = self.new_session_key(handle);
        let pair_key = matched.pair.clone();
        let session =
            Session::new(connection, handle, pair_key.clone(), false, first_id, route, now.mono).paced_by(pacer);
        self.begin_session(key, session, share);
        if let Some(pair) = self.pairs.get_mut(&pair_key) {
            pair.pending.push(key);
            pair.handshakes.take(now.mono);
        }
        self.first_ids.insert(first_id, key);
        self.settle(key, now);
    }

    fn server_for(
        &mut self,
        pair_key: &PairKey,
        secret: usize,
        congestion: OfOneConnection,
        now: Now,
    ) -> Option<(Arc<quinn_proto::ServerConfig>, Share)> {
        // An ended trust or invitation must not even show that we are here.
        let pair = self.pairs.get_mut(pair_key).filter(|pair| !pair.has_ended(now.wall))?;
        if pair.handshakes.is_empty(now.mono) {
            debug!(pair = ?pair_key, "too many handshakes in a short time");
            return None;
        }
        let most = if pair.peer().is_some() { MAX_PER_PEER } else { MAX_PER_INVITE };
        let full = pair.up.len() >= most;
        if pair.pending.len() >= MAX_PENDING || full && self.dispensable(pair_key).is_none() {
            debug!(pair = ?pair_key, "too many handshakes or sessions at a time");
            return None;
        }
        let pair = self.pairs.get(pair_key)?;
        let judge = self.judge.expecting(pair.expected());
        let inbound = pair.inbound.as_ref()?;
        let noise = NoiseServer::new(inbound, secret, self.identity.clone(), judge, self.random.bytes()).ok()?;
        let share = self.memory.offer(pair_key, self.instances_up(pair_key).len());
        Some((Arc::new(server_config(noise, transport(pair_key, share, congestion))), share))
    }

    /// A session is there from now on, and holds its share.
    pub(super) fn begin_session(&mut self, key: SessionKey, session: Session, share: Share) {
        self.memory.grant(key, share);
        self.sessions.insert(key, session);
    }

    /// Lets everything follow from an input to a session: events, endpoint events, control messages, timers.
    pub(super) fn settle(&mut self, key: SessionKey, now: Now) {
        if let (Some(share), Some(session)) = (self.memory.share(key), self.sessions.get_mut(&key)) {
            session.follow_path(share);
        }
        loop {
            let Some(session) = self.sessions.get_mut(&key) else {
                return;
            };
            if let Some(event) = session.connection.poll() {
                self.on_connection_event(key, event, now);
                continue;
            }
            let Some(event) = session.connection.poll_endpoint_events() else {
                break;
            };
            let (handle, drained) = (session.handle, event.is_drained());
            if let Some(answer) = self.endpoint.handle_event(handle, event)
                && let Some(session) = self.sessions.get_mut(&key)
            {
                session.connection.handle_event(answer);
            }
            if drained {
                self.forget_session(key);
                return;
            }
        }
        if let Some(session) = self.sessions.get_mut(&key) {
            session.turns.packets_came();
        }
        self.tell_next_writer(key);
        self.ready.insert(key);
        self.settle_path(key, now);
    }

    fn on_connection_event(&mut self, key: SessionKey, event: quinn_proto::Event, now: Now) {
        match event {
            quinn_proto::Event::HandshakeDataReady => {}
            quinn_proto::Event::Connected => self.bring_up(key, now),
            quinn_proto::Event::ConnectionLost { reason } => self.lost(key, &reason, now),
            quinn_proto::Event::Stream(event) => self.on_stream_event(key, event, now),
            quinn_proto::Event::DatagramReceived => self.on_packets(key),
            quinn_proto::Event::DatagramsUnblocked => {}
        }
    }

    /// A stream that waited for room may find some: one of ours that says what is under control, or one that waits with others.
    fn on_room(&mut self, key: SessionKey, id: StreamId) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.pay_from(id);
        if !session.up().is_some_and(|up| up.streams.contains_key(&id)) {
            self.flush_control(key);
        } else if !session.owed.contains_key(&id) {
            // What it owes goes before its data: where there was no room for all of that, QUIC tells of it again.
            session.turns.room_for(id);
        }
    }

    fn on_stream_event(&mut self, key: SessionKey, event: StreamEvent, now: Now) {
        match event {
            StreamEvent::Opened { dir: Dir::Uni } => self.accept_control(key, now),
            StreamEvent::Opened { dir: Dir::Bi } => self.accept_streams(key, now),
            StreamEvent::Readable { id } => self.on_readable(key, id, now),
            StreamEvent::Writable { id } => self.on_room(key, id),
            StreamEvent::Finished { id } | StreamEvent::Stopped { id, .. } => {
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.turns.forget(id);
                    session.pay_from(id);
                }
                match self.sessions.get(&key).and_then(Session::up).and_then(|up| up.streams.get(&id)) {
                    Some(stream) => self.events.push_back(Event::Writable(*stream)),
                    None => self.flush_control(key),
                }
            }
            StreamEvent::Available { dir: Dir::Bi } => self.room_for_streams(key),
            StreamEvent::Available { dir: Dir::Uni } => {}
        }
    }

    /// Both sides are proven.
    fn bring_up(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let Some(credential) = peer_identity::<Credential>(&session.connection) else {
            debug_assert!(false, "a connection came up without a verified peer");
            self.remove_session(key);
            return;
        };
        let pair_key = session.pair.clone();
        if let Some(pair) = self.pairs.get_mut(&pair_key) {
            pair.is_up(key);
        }
        match pair_key {
            PairKey::Peer(peer) => self.bring_up_peer(key, peer, credential, now),
            PairKey::Ask(ask) => {
                self.bring_up_silent(key, credential, now);
                self.send_request(key, ask);
            }
            // The asker speaks first; `accept_streams` takes its request. It has as long as anybody who asks.
            PairKey::Invite(_) => {
                self.bring_up_silent(key, credential, now);
                if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
                    up.expires = up.expires.map(|at| at.min(now.mono + ASK_PATIENCE));
                }
            }
        }
    }

    fn bring_up_peer(&mut self, key: SessionKey, peer: AgentId, credential: Arc<Credential>, now: Now) {
        let (instance, record) = (credential.instance(), credential.record().clone());
        self.bring_up_silent(key, credential, now);
        if self.sessions.get(&key).and_then(Session::up).is_none() {
            return; // its first streams broke a rule
        }
        let pair_key = PairKey::Peer(peer.clone());
        let mut is_said = false;
        if let Some(pair) = self.pairs.get_mut(&pair_key) {
            pair.replicas.met(instance, key, now.mono);
            is_said = pair.lines.take(now.mono);
        }
        self.meet_rivals(key, now);
        // A dial of ours that still runs is not needed any more, except where both sides dialled at once and ours is
        // the one that stays; it then comes up by itself, because its packets are on the way already.
        let Some(session) = self.sessions.get(&key) else { return };
        let initiator = session.initiator;
        match is_said {
            true => info!(target: "events::session_up", peer = %peer.routing_id(), ?instance, initiator),
            false => debug!(target: "events::session_up", peer = %peer.routing_id(), ?instance, initiator),
        }
        self.events.push_back(Event::PeerRecord { peer: peer.clone(), record: Box::new(record) });
        self.events.push_back(Event::SessionUp { session: key, peer, instance, initiator, path: PathKind::Relayed });
        self.attach_waiting(&pair_key);
        self.say_hello(key);
        self.send_candidates(key, now);
        self.arm_pair(&pair_key);
    }

    fn bring_up_silent(&mut self, key: SessionKey, credential: Arc<Credential>, now: Now) {
        let path = self.new_path_agent(key, now);
        let expires = self.expiry_of(key, &credential, now);
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let confirmed = session.handshake_is_confirmed();
        let next_ping = now.mono + session.ping_interval().unwrap_or(PING_INTERVAL);
        session.phase = Phase::Up(Box::new(Up {
            credential,
            path,
            path_kind: PathKind::Relayed,
            control_out: ControlOut::new(),
            control_in: None,
            streams: Default::default(),
            arriving: Default::default(),
            run: None,
            peer_ports: None,
            said_hello: None,
            clock_ahead: None,
            since: Since { mono: now.mono, wall: now.wall },
            confirmed,
            drain: Drain::default(),
            refusing_until: None,
            turn: 0,
            said_to_be_over: false,
            suspect: None,
            next_ping,
            listening: Listening::new(session.initiator),
            expires: Some(expires),
        }));
        // Streams may have come with the packet that proved the peer.
        self.accept_control(key, now);
        self.accept_streams(key, now);
    }

    /// When a session must end by itself: its passport's end or its trust's, by the wall clock as it is now.
    pub(super) fn expiry_of(&self, key: SessionKey, credential: &Credential, now: Now) -> Instant {
        let trust = self.sessions.get(&key).and_then(|s| self.pairs.get(&s.pair)).and_then(|pair| pair.peer());
        let ends =
            trust.and_then(|peer| peer.expires).map_or(credential.not_after(), |t| t.min(credential.not_after()));
        after(now, ends)
    }

    /// Runs `work` on a session.
    ///
    /// # Errors
    /// [`StreamError::Closed`] when it is gone.
    pub(super) fn on_session<T>(
        &mut self,
        key: SessionKey,
        work: impl FnOnce(&mut Session) -> T,
    ) -> Result<T, StreamError> {
        self.sessions.get_mut(&key).map(work).ok_or(StreamError::Closed)
    }

    /// A name for a new session. QUIC's handles are used again, and what still names an old session must not mean another.
    pub(super) fn new_session_key(&mut self, handle: ConnectionHandle) -> SessionKey {
        self.next_session += 1;
        let key = SessionKey(self.next_session);
        self.by_handle.insert(handle.0, key);
        key
    }
}

/// When the wall clock will say `ends`, as far as one looks ahead: a day, after which it is looked at again. A peer's
/// authority may sign any time, also one that no clock reaches.
pub(super) fn after(now: Now, ends: UnixTime) -> Instant {
    now.mono + now.wall.until(ends).min(passport::LIFETIME)
}
