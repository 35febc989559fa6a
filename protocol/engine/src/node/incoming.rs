//! What peers open: headers, the policy check that counts, trust requests, packets of flows.

use bytes::Bytes;
use peerage_model::control::{MAX_REASON, MAX_REQUEST, TrustRequest};
use peerage_model::snapshot::Protocol;
use peerage_model::stream::{HEADER_LEN, StreamHeader, StreamKind, StreamStatus};
use peerage_model::ticket::MAX_RELAYS;
use peerage_model::{AgentId, TrustId, cbor};
use peerage_policy::{Verdict, check_inbound};
use quinn_proto::{Dir, StreamId};
use tracing::debug;

use super::config::{DATAGRAM_BUFFER, HEADER_PATIENCE};
use super::event::{AskError, AskKey, CloseCode, DownReason, Event, Now, SessionKey, StreamError, StreamKey};
use super::io::{FLOW_LEN, stream_of};
use super::pair::{PairKey, Purpose, SERVED_FOR, Served, Standing};
use super::session::{Arriving, Phase, Session};
use super::stream::{self, Stream};
use super::{Node, Timer};

/// The room for packets of flows while none waits: quinn sets some aside for its own record of the next one.
const NO_PACKET_WAITS: usize = DATAGRAM_BUFFER - size_of::<Bytes>();

impl Node {
    /// Takes the streams that the peer opened.
    pub(super) fn accept_streams(&mut self, key: SessionKey, now: Now) {
        while let Some(Session { connection, phase: Phase::Up(up), .. }) = self.sessions.get_mut(&key) {
            let Some(id) = connection.streams().accept(Dir::Bi) else { break };
            up.arriving.insert(id, Arriving { header: Vec::new(), until: now.mono + HEADER_PATIENCE });
            up.drain.accepted();
            self.on_readable(key, id, now);
        }
        if let Some(session) = self.sessions.get_mut(&key) {
            session.grant_streams();
        }
    }

    pub(super) fn on_readable(&mut self, key: SessionKey, id: StreamId, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        if let PairKey::Ask(ask) = session.pair {
            self.on_ask_answer(key, id, ask, now);
            return;
        }
        let Some(up) = session.up() else { return };
        if let Some(stream) = up.streams.get(&id).copied() {
            // At once: whoever was refused may be taken elsewhere, before its user learns that it was stopped here.
            self.hear_status(stream);
            self.wake_readers(stream);
        } else if up.control_in.as_ref().is_some_and(|control| control.stream() == id) {
            self.read_control(key, now);
        } else if up.arriving.contains_key(&id) {
            self.read_header(key, id, now);
        }
    }

    fn wake_readers(&mut self, key: StreamKey) {
        self.events.push_back(Event::Readable(key));
        if self.streams.get(&key).is_some_and(|s| s.header.kind == StreamKind::Udp) {
            self.events.push_back(Event::PacketReadable(key));
        }
    }

    /// Reads a new stream's header, and in a request-only session the whole request.
    fn read_header(&mut self, key: SessionKey, id: StreamId, now: Now) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let asking = matches!(session.pair, PairKey::Invite(_));
        let wanted = if asking { HEADER_LEN + MAX_REQUEST + 1 } else { HEADER_LEN };
        let (bytes, ended) = match read_up_to(session, id, wanted) {
            Read::Some(bytes) => (bytes, false),
            Read::All(bytes) => (bytes, true),
            Read::Cancelled => {
                self.cancelled(key, id);
                return;
            }
        };
        self.ready.insert(key);
        let Some(arriving) = self.sessions.get_mut(&key).and_then(Session::up_mut).map(|up| &mut up.arriving) else {
            return;
        };
        let Some(partial) = arriving.get_mut(&id) else { return };
        partial.header.extend_from_slice(&bytes);
        let complete = ended || partial.header.len() >= wanted;
        if !complete {
            return;
        }
        let whole = arriving.remove(&id).map(|arrived| arrived.header).unwrap_or_default();
        match asking {
            true => self.on_request(key, id, &whole, now),
            false => self.on_header(key, id, &whole, now),
        }
    }

    /// A stream whose header does not become whole gives its place back.
    fn cancelled(&mut self, key: SessionKey, id: StreamId) {
        if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
            up.arriving.remove(&id);
        }
        self.discard(key, id);
    }

    /// Resets the streams that had their time and have not said what they are for.
    pub(super) fn expire_headers(&mut self, key: SessionKey, now: Now) {
        let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) else { return };
        let is_due = |arriving: &Arriving| arriving.until <= now.mono;
        let silent = up.suspect.is_some() || up.path.is_silent();
        if silent && up.arriving.values().any(is_due) {
            // Not the opener but the way to it is late, and a session that stays silent ends. All of them, so that the oldest stays the first that is due.
            up.arriving.values_mut().for_each(|arriving| arriving.until = now.mono + HEADER_PATIENCE);
            return;
        }
        let due = up.arriving.iter().filter(|(_, arriving)| is_due(arriving));
        let due: Vec<_> = due.map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.cancelled(key, id));
    }

    fn on_header(&mut self, key: SessionKey, id: StreamId, bytes: &[u8], now: Now) {
        let header = <[u8; HEADER_LEN]>::try_from(bytes).ok().and_then(|b| StreamHeader::decode(b).ok());
        let Some(header) = header else {
            self.answer_raw(key, id, StreamStatus::Unsupported);
            return;
        };
        let Some(session) = self.sessions.get(&key) else { return };
        let pair_key = session.pair.clone();
        let Some(peer) = self.pairs.get(&pair_key).and_then(|pair| pair.peer()) else {
            return;
        };
        let protocol = match header.kind {
            StreamKind::Udp => Protocol::Udp,
            StreamKind::Tcp | StreamKind::Echo | StreamKind::Discard | StreamKind::Request => Protocol::Tcp,
        };
        if header.kind == StreamKind::Request {
            self.answer_raw(key, id, StreamStatus::Unsupported);
            return;
        }
        let verdict = check_inbound(peer, &self.ports, header.port, protocol, now.wall);
        if let Verdict::Deny(reason) = verdict
            && !stream::needs_no_rule(header.kind)
        {
            debug!(peer = %peer.id, port = header.port, %reason, "stream refused");
            self.answer_raw(key, id, StreamStatus::Denied);
            return;
        }
        if !session.up().is_some_and(|up| up.path.carries_data()) {
            self.answer_raw(key, id, StreamStatus::Unreachable);
            return;
        }
        let peer = peer.id.clone();
        let stream_key = self.new_stream_key();
        self.streams.insert(stream_key, Stream::offered(pair_key, header, key, id));
        if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
            up.streams.insert(id, stream_key);
        }
        self.events.push_back(Event::Incoming { stream: stream_key, peer, header });
    }

    /// A stranger with a ticket of ours asks. One request, one answer, closed.
    fn on_request(&mut self, key: SessionKey, id: StreamId, bytes: &[u8], now: Now) {
        let Some(Session { pair: PairKey::Invite(invite), phase: Phase::Up(up), .. }) = self.sessions.get(&key) else {
            return;
        };
        let (invite, asker) = (*invite, up.credential.clone());
        let Some(request) = parse_request(bytes) else {
            self.answer_raw(key, id, StreamStatus::Unsupported);
            return;
        };
        match self.use_invite(invite, asker.agent(), now) {
            Use::First => {
                self.unanswered.insert(invite, Some((key, id)));
                self.events.push_back(Event::TrustRequested { invite, asker: Box::new((*asker).clone()), request });
            }
            // The same request, whose receipt is not written yet or did not arrive.
            Use::Again if self.unanswered.contains_key(&invite) => {
                self.unanswered.insert(invite, Some((key, id)));
            }
            Use::Again => self.give_receipt(key, id, StreamStatus::Open),
            Use::None => self.answer_raw(key, id, StreamStatus::Denied),
        }
    }

    /// An invitation serves one asker, whatever its owner does next.
    fn use_invite(&mut self, invite: TrustId, asker: &AgentId, now: Now) -> Use {
        let pair_key = PairKey::Invite(invite);
        let Some(pair) = self.pairs.get_mut(&pair_key).filter(|pair| !pair.has_ended(now.wall)) else {
            return Use::None;
        };
        if !self.spent_invites.insert(invite) {
            let is_refused = pair.standing().is_some_and(|standing| *standing == Standing::Refused);
            return if pair.served(now.mono) == Some(asker) && !is_refused { Use::Again } else { Use::None };
        }
        let until = now.mono + SERVED_FOR;
        pair.serve(Some(Served { asker: asker.clone(), until, standing: Standing::Open }));
        self.arm_pair(&pair_key);
        Use::First
    }

    /// Answers [`Event::TrustRequested`] once the request is safe: [`StreamStatus::Open`] is the receipt. Any other status
    /// says that it was not taken, and leaves the invitation open for another try, unless its owner has closed it meanwhile.
    pub fn answer_request(&mut self, invite: TrustId, status: StreamStatus) {
        // The invitation first: the asker may be gone meanwhile, and comes back.
        if status != StreamStatus::Open {
            self.reopen(invite);
        }
        // No session waits for it where the asker has gone meanwhile, or was given it already.
        if let Some(Some((key, id))) = self.unanswered.remove(&invite) {
            self.give_receipt(key, id, status);
        }
    }

    fn give_receipt(&mut self, key: SessionKey, id: StreamId, status: StreamStatus) {
        self.answer_raw(key, id, status);
        if status == StreamStatus::Open
            && let Some(session) = self.sessions.get_mut(&key)
        {
            // Where the asker has gone meanwhile, nobody needs the end either.
            let _ = session.connection.send_stream(id).finish();
        }
    }

    /// The request that had spent an invitation could not be kept.
    fn reopen(&mut self, invite: TrustId) {
        let pair_key = PairKey::Invite(invite);
        let Some(pair) = self.pairs.get_mut(&pair_key) else {
            // It took so long that the pair is gone; the next snapshot makes it anew, if the invitation is open there.
            self.spent_invites.remove(&invite);
            return;
        };
        match pair.standing() {
            Some(Standing::Open) => {
                self.spent_invites.remove(&invite);
                pair.serve(None);
                self.arm_pair(&pair_key);
            }
            // Whoever holds such a ticket, its owner has been told that it opens nothing.
            Some(standing) => *standing = Standing::Refused,
            None => {}
        }
    }

    /// The inviter is proven: sends our request.
    pub(super) fn send_request(&mut self, key: SessionKey, ask: AskKey) {
        let Some(pair) = self.pairs.get(&PairKey::Ask(ask)) else {
            return;
        };
        let Purpose::Ask { request, .. } = &pair.purpose else {
            return;
        };
        let header = StreamHeader { kind: StreamKind::Request, port: 0 };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&cbor::to_vec(request));
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        if let Some(id) = session.connection.streams().open(Dir::Bi) {
            let mut send = session.connection.send_stream(id);
            // A request fits a new stream's window many times over.
            let _ = send.write(&bytes);
            let _ = send.finish();
        }
        self.ready.insert(key);
    }

    /// The inviter's receipt for a request of ours.
    fn on_ask_answer(&mut self, key: SessionKey, id: StreamId, ask: AskKey, now: Now) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let (Ok(Some(byte)), _) = stream::read(session, id, 1) else {
            return;
        };
        let status = StreamStatus::decode(byte.first().copied().unwrap_or(2));
        let result = stream::answered(status).map_err(|error| match error {
            StreamError::Refused(status) => AskError::Refused(status),
            _ => AskError::NoAnswer,
        });
        self.events.push_back(Event::Asked { ask, result });
        // Before its session, which would be dialled anew otherwise.
        self.pairs.remove(&PairKey::Ask(ask));
        self.timers.set(&Timer::Pair(PairKey::Ask(ask)), None);
        self.close(key, CloseCode::Drained, DownReason::Drained, now.mono);
    }

    /// Packets of UDP flows came.
    pub(super) fn on_packets(&mut self, key: SessionKey) {
        while let Some(Session { connection, phase: Phase::Up(up), .. }) = self.sessions.get_mut(&key) {
            let Some(mut packet) = connection.datagrams().recv() else {
                return;
            };
            if packet.len() < FLOW_LEN {
                continue;
            }
            let flow = packet.split_to(FLOW_LEN);
            // Of a flow that is over, or whose opener did not wait for our word.
            let Some(stream_key) = stream_of(&up.streams, &flow) else { continue };
            if let Some(stream) = self.streams.get_mut(&stream_key).filter(|s| s.header.kind == StreamKind::Udp) {
                // Its own copy: a packet that waits must not keep the whole batch it came in.
                stream.push_packet(Bytes::copy_from_slice(&packet));
                self.events.push_back(Event::PacketReadable(stream_key));
            }
        }
    }

    /// Closes streams that the policy does not allow any more.
    pub(super) fn recheck_streams(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(up) = session.up() else { return };
        let Some(peer) = self.pairs.get(&session.pair).and_then(|pair| pair.peer()) else {
            return;
        };
        let denied = |stream: &Stream| {
            let protocol = if stream.header.kind == StreamKind::Udp { Protocol::Udp } else { Protocol::Tcp };
            let verdict = check_inbound(peer, &self.ports, stream.header.port, protocol, now.wall);
            matches!(verdict, Verdict::Deny(_)) && !stream::needs_no_rule(stream.header.kind)
        };
        let theirs = up.streams.iter().filter(|(id, _)| id.initiator().is_client() != session.initiator);
        let ended: Vec<_> = theirs
            .filter(|(_, stream_key)| self.streams.get(stream_key).is_some_and(denied))
            .map(|(id, stream_key)| (*id, *stream_key))
            .collect();
        for (id, stream_key) in ended {
            self.end_stream(key, id, stream_key, CloseCode::Revoked, DownReason::RevokedHere);
        }
    }

    /// Ends the streams of a session that may carry no data, as its owner has just decided.
    pub(super) fn end_streams_without_way(&mut self, key: SessionKey, now: Now) {
        let Some(up) = self.sessions.get(&key).and_then(Session::up).filter(|up| !up.path.carries_data()) else {
            return;
        };
        let streams: Vec<_> = up.streams.iter().map(|(id, stream_key)| (*id, *stream_key)).collect();
        let why = DownReason::Failed("there is no direct path, and policy forbids the relay".to_owned());
        for (id, stream_key) in streams {
            self.end_stream(key, id, stream_key, CloseCode::Drained, why.clone());
        }
        // Packets of flows that wait for their turn cannot be taken back, and would leave by the relay after all.
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.connection.datagrams().send_buffer_space() < NO_PACKET_WAITS {
            self.close(key, CloseCode::Drained, why, now.mono);
        }
    }

    pub(super) fn end_stream(
        &mut self,
        key: SessionKey,
        id: StreamId,
        stream_key: StreamKey,
        code: CloseCode,
        why: DownReason,
    ) {
        if let Some(stream) = self.streams.get_mut(&stream_key) {
            stream.end(StreamError::SessionEnded(why));
        }
        if let Some(session) = self.sessions.get_mut(&key) {
            session.reset(id, (code as u32).into());
            // Fails where that half is over already, which is just as good.
            let _ = session.connection.recv_stream(id).stop((code as u32).into());
            if let Some(up) = session.up_mut() {
                up.streams.remove(&id);
            }
        }
        self.ready.insert(key);
        self.wake(stream_key);
    }
}

/// Whether an invitation lets an asker ask.
enum Use {
    /// It is used from now on.
    First,
    /// This asker has used it, and comes again.
    Again,
    /// It does not: somebody else used it, its time is over, or its owner has closed it.
    None,
}

/// What [`read_up_to`] found.
enum Read {
    /// This much for now, or as much as was wanted.
    Some(Vec<u8>),
    /// This much, and the end.
    All(Vec<u8>),
    /// The opener took its stream back.
    Cancelled,
}

/// Reads until `limit` bytes, the end, or nothing more is there.
fn read_up_to(session: &mut Session, id: StreamId, limit: usize) -> Read {
    let mut out = Vec::new();
    while out.len() < limit {
        match stream::read(session, id, limit - out.len()).0 {
            Ok(Some(bytes)) => out.extend_from_slice(&bytes),
            Ok(None) => return Read::All(out),
            Err(StreamError::Blocked) => return Read::Some(out),
            Err(_) => return Read::Cancelled,
        }
    }
    Read::Some(out)
}

fn parse_request(bytes: &[u8]) -> Option<TrustRequest> {
    let (header, body) = bytes.split_first_chunk::<HEADER_LEN>()?;
    if StreamHeader::decode(*header).ok()?.kind != StreamKind::Request || body.len() > MAX_REQUEST {
        return None;
    }
    let request: TrustRequest = minicbor::decode(body).ok()?;
    (request.reason.len() <= MAX_REASON && request.relays.len() <= MAX_RELAYS).then_some(request)
}
