//! A session's life: accepted, up, drained or taken down.

use std::sync::Arc;
use std::time::Instant;

use peerage_model::control::{ControlMessage, Hello};
use peerage_model::{AgentId, Credential, UnixTime, passport};
use quinn_proto::{
    ConnectionError, ConnectionHandle, Dir, EndpointEvent, Incoming as QuicIncoming, StreamEvent, VarInt,
};
use tracing::{debug, info};

use super::again::Untaken;
use super::config::{PING_INTERVAL, transport};
use super::control::{ControlIn, ControlOut};
use super::event::{CloseCode, DownReason, Event, Now, SessionKey, StreamError};
use super::listening::Listening;
use super::memory::Share;
use super::pair::{ASK_PATIENCE, Dial, MAX_PENDING, MAX_PER_INVITE, PairKey};
use super::rivals::{Drain, MAX_PER_PEER};
use super::session::{Phase, RelayRoute, Session, Since, Up};
use super::{Node, Timer};
use crate::congestion::OfOneConnection;
use crate::knock::KNOCK_LEN;
use crate::noise::{NoiseServer, is_silent_end, message_1_verified, peer_identity, server_config};
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

    fn on_stream_event(&mut self, key: SessionKey, event: StreamEvent, now: Now) {
        match event {
            StreamEvent::Opened { dir: Dir::Uni } => self.accept_control(key, now),
            StreamEvent::Opened { dir: Dir::Bi } => self.accept_streams(key, now),
            StreamEvent::Readable { id } => self.on_readable(key, id, now),
            StreamEvent::Writable { id } | StreamEvent::Finished { id } | StreamEvent::Stopped { id, .. } => {
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.pay_from(id);
                }
                match self.sessions.get(&key).and_then(Session::up).and_then(|up| up.streams.get(&id)) {
                    Some(stream) => self.events.push_back(Event::Writable(*stream)),
                    None => self.flush_control(key),
                }
            }
            StreamEvent::Available { .. } => {}
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

    /// Tells what the peer may open, unless it was told just that.
    pub(super) fn say_hello(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(peer) = self.pairs.get(&session.pair).and_then(|pair| pair.peer()) else {
            return;
        };
        let ports = peerage_policy::open_to(peer, &self.ports);
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        let time = self.last.wall;
        let (succeeds, siblings) = (self.predecessors.clone(), self.siblings.known().to_vec());
        let hello = Hello { ports, version, succeeds, run: Some(self.run), time: None, siblings };
        let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) else { return };
        if up.said_hello.as_ref() != Some(&hello) {
            up.said_hello = Some(hello.clone());
            self.say(key, &ControlMessage::Hello(Hello { time: Some(time), ..hello }));
        }
    }

    /// Sends a control message to the peer of a session that is up.
    pub(super) fn say(&mut self, key: SessionKey, message: &ControlMessage) {
        let trusted = |session: &&mut Session| matches!(session.pair, PairKey::Peer(_));
        // A stranger with a ticket gets a receipt and nothing else (docs/spec/session.md section 6).
        let Some(up) = self.sessions.get_mut(&key).filter(trusted).and_then(Session::up_mut) else {
            return;
        };
        up.control_out.push(message);
        self.flush_control(key);
    }

    pub(super) fn flush_control(&mut self, key: SessionKey) {
        let Some(Session { connection, phase: Phase::Up(up), .. }) = self.sessions.get_mut(&key) else {
            return;
        };
        if up.control_out.flush(connection) {
            self.ready.insert(key);
        }
    }

    fn accept_control(&mut self, key: SessionKey, now: Now) {
        let Some(Session { connection, phase: Phase::Up(up), .. }) = self.sessions.get_mut(&key) else {
            return;
        };
        let mut excess = false;
        while let Some(id) = connection.streams().accept(Dir::Uni) {
            excess |= up.control_in.is_some();
            up.control_in = Some(ControlIn::new(id, now.mono));
        }
        match excess {
            true => self.violated(key, "two control streams", now),
            false => self.read_control(key, now),
        }
    }

    pub(super) fn read_control(&mut self, key: SessionKey, now: Now) {
        let Some(Session { connection, phase: Phase::Up(up), .. }) = self.sessions.get_mut(&key) else {
            return;
        };
        let Some(control) = &mut up.control_in else { return };
        match control.read(connection, now.mono) {
            Ok(messages) => messages.into_iter().for_each(|message| self.on_control(key, message, now)),
            Err(_) => self.violated(key, "a malformed control message", now),
        }
    }

    fn on_control(&mut self, key: SessionKey, message: ControlMessage, now: Now) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let PairKey::Peer(peer) = session.pair.clone() else {
            return;
        };
        let Some(up) = session.up_mut() else { return };
        match message {
            ControlMessage::Hello(hello) => {
                let news = up.peer_ports.as_ref() != Some(&hello.ports);
                up.peer_ports = Some(hello.ports.clone());
                up.run = hello.run;
                up.clock_ahead = hello.time.and_then(|theirs| ahead(theirs, now.wall));
                let own = up.credential.instance();
                self.hear_of_siblings(&peer, own, &hello.siblings);
                self.doubt_predecessors(&peer, &hello.succeeds, own);
                if let Some(run) = hello.run {
                    self.doubt_earlier_runs(key, run);
                }
                if news {
                    self.events.push_back(Event::PeerPorts { peer, ports: hello.ports });
                }
            }
            ControlMessage::Candidates(candidates) => self.on_candidates(key, &candidates, now),
            ControlMessage::Retire(retire) => self.on_retire(key, retire, now),
            ControlMessage::Renewal(renewal) => self.on_renewal(key, &renewal.credential, now),
            ControlMessage::Birthday(birthday) => self.on_birthday(key, birthday.step, now),
            ControlMessage::Opened(opened) => self.on_opened(key, opened.generation, now),
        }
    }

    /// A fresh passport for the same instance moves the session's end; anything else ends it.
    fn on_renewal(&mut self, key: SessionKey, credential: &[u8], now: Now) {
        let verified = self.judge.verify(credential);
        let Some(up) = self.sessions.get(&key).and_then(Session::up) else {
            return;
        };
        let same = |new: &Credential| {
            new.agent() == up.credential.agent() && new.instance_key() == up.credential.instance_key()
        };
        match verified {
            Ok(new) if same(&new) => {
                let expires = self.expiry_of(key, &new, now);
                let rotated = new.record().sequence() != up.credential.record().sequence();
                if rotated && let Some(peer) = self.sessions.get(&key).and_then(Session::peer) {
                    let record = Box::new(new.record().clone());
                    self.events.push_back(Event::PeerRecord { peer: peer.clone(), record });
                }
                if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
                    up.credential = Arc::new(new);
                    up.expires = Some(expires);
                }
            }
            Ok(_) | Err(_) => self.violated(key, "a renewal that is not this peer's", now),
        }
    }

    /// When a session must end by itself: its passport's end or its trust's, by the wall clock as it is now.
    fn expiry_of(&self, key: SessionKey, credential: &Credential, now: Now) -> Instant {
        let trust = self.sessions.get(&key).and_then(|s| self.pairs.get(&s.pair)).and_then(|pair| pair.peer());
        let ends =
            trust.and_then(|peer| peer.expires).map_or(credential.not_after(), |t| t.min(credential.not_after()));
        after(now, ends)
    }

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
    fn lost(&mut self, key: SessionKey, reason: &ConnectionError, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        if matches!(session.phase, Phase::Handshaking) || is_silent_end(reason) {
            debug!(pair = ?session.pair, %reason, "handshake failed");
            let pair_key = session.pair.clone();
            let dialled = session.initiator;
            self.take_down(key, DownReason::Failed(reason.to_string()), Untaken::Unknown);
            self.remove_session(key);
            if dialled {
                self.attempt_failed(&pair_key, key, now);
                self.help_refused(&pair_key, now);
            }
            return;
        }
        let (down, phrase) = match reason {
            ConnectionError::ApplicationClosed(close) => {
                (CloseCode::received(close.error_code.into_inner()), &close.reason[..])
            }
            ConnectionError::TimedOut => (DownReason::TimedOut, &[][..]),
            other => (DownReason::Failed(other.to_string()), &[][..]),
        };
        let (untaken, pair_key) = (Untaken::told(&down, phrase), session.pair.clone());
        if down == DownReason::RevokedByPeer
            && let Some(pair) = self.pairs.get_mut(&session.pair)
        {
            pair.refused_until = Some(now.mono + super::pair::REFUSED);
        }
        self.take_down(key, down, untaken);
        self.find_another(&pair_key, now);
    }

    /// An attempt that failed by itself waits for its time before the next: the other side may be wrong about the
    /// trust for a moment, and a knock a second is enough.
    fn attempt_failed(&mut self, pair_key: &PairKey, key: SessionKey, now: Now) {
        if let Some(pair) = self.pairs.get_mut(pair_key)
            && let Dial::Attempt { session, attempts, .. } = pair.dial
            && session == key
        {
            pair.dial = Dial::Pause { until: now.mono + super::pair::FIRST_PAUSE, attempts };
            self.arm_pair(pair_key);
        }
    }

    /// The session with the inviter ended before the receipt: another one is tried, while the request has time.
    fn ask_again(&mut self, pair_key: &PairKey) {
        if let Some(pair) = self.pairs.get_mut(pair_key) {
            pair.dial = Dial::Pause { until: self.last.mono + super::pair::FIRST_PAUSE, attempts: 0 };
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
    fn forget_session(&mut self, key: SessionKey) {
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

/// How many seconds a clock is ahead of another.
fn ahead(theirs: UnixTime, ours: UnixTime) -> Option<i64> {
    i64::try_from(i128::from(theirs.0) - i128::from(ours.0)).ok()
}

/// When the wall clock will say `ends`, as far as one looks ahead: a day, after which it is looked at again. A peer's
/// authority may sign any time, also one that no clock reaches.
pub(super) fn after(now: Now, ends: UnixTime) -> Instant {
    now.mono + now.wall.until(ends).min(passport::LIFETIME)
}
