//! The node's streams, as its driver uses them.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use peerage_model::AgentId;
use peerage_model::stream::{StreamHeader, StreamKind, StreamStatus};
use quinn_proto::{SendDatagramError, StreamId, VarInt};

use super::again::Again;
use super::event::{DownReason, Event, Now, OpenError, SessionKey, StreamError, StreamKey};
use super::pair::{PairKey, STREAM_PATIENCE};
use super::session::Session;
use super::stream::{self, Place, RESET_DROPPED, Stream};
use super::{Node, Timer};

/// Bytes in front of each UDP packet: the flow's stream id, its low 32 bits, big-endian (docs/spec/session.md).
pub(super) const FLOW_LEN: usize = 4;

impl Node {
    /// Opens a stream to a trusted peer, dialling first where no session is up. The stream can be written at once.
    ///
    /// # Errors
    /// [`OpenError::NotTrusted`]. Whatever goes wrong later is told by the first read.
    pub fn open(&mut self, now: Now, peer: &AgentId, header: StreamHeader) -> Result<StreamKey, OpenError> {
        self.tick(now);
        let pair_key = PairKey::Peer(peer.clone());
        if !self.pairs.contains_key(&pair_key) {
            return Err(OpenError::NotTrusted);
        }
        let refused =
            self.pairs.get(&pair_key).and_then(|pair| pair.refused_until).is_some_and(|until| now.mono < until);
        let key = self.new_stream_key();
        let mut stream = Stream::waiting(pair_key.clone(), header, now.mono + STREAM_PATIENCE);
        if refused {
            stream.place = Place::Dead(StreamError::SessionEnded(DownReason::RevokedByPeer));
            self.streams.insert(key, stream);
            return Ok(key);
        }
        self.streams.insert(key, stream);
        self.place(&pair_key, key, now);
        if self.pairs.get(&pair_key).is_some_and(|pair| pair.waiting.contains(key)) {
            match self.preferred(&pair_key) {
                Some(_) => self.arm_pair(&pair_key),
                None => self.dial_wanted(&pair_key, now),
            }
        }
        Ok(key)
    }

    /// Reads at most `max` bytes; `None` is the end of what the peer sends.
    ///
    /// # Errors
    /// [`StreamError::Blocked`] until [`Event::Readable`]; the others are final.
    pub fn read(&mut self, key: StreamKey, max: usize) -> Result<Option<Bytes>, StreamError> {
        self.take_status(key)?;
        let (session, id) = self.attached(key)?;
        let (result, credit) = self.on_session(session, |s| stream::read(s, id, max))?;
        if credit {
            self.ready.insert(session);
        }
        result
    }

    /// Reads as much as there is and `buffer` holds, and says how much; zero is the end of what the peer sends, or an
    /// empty buffer.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_into(&mut self, key: StreamKey, buffer: &mut [u8]) -> Result<usize, StreamError> {
        if self.streams.get(&key).is_some_and(|stream| stream.read_to_end) || buffer.is_empty() {
            return Ok(0);
        }
        self.take_status(key)?;
        let (session, id) = self.attached(key)?;
        let filled = self.on_session(session, |s| stream::read_into(s, id, buffer))??;
        if filled.ended
            && let Some(stream) = self.streams.get_mut(&key)
        {
            stream.read_to_end = true;
        }
        if filled.credit {
            self.ready.insert(session);
        }
        Ok(filled.bytes)
    }

    /// Whether [`Self::poll_transmit`] may have something that it did not have when it last gave `None`.
    #[must_use]
    pub fn wants_to_send(&self) -> bool {
        !self.ready.is_empty() || !self.out.is_empty() || !self.batches.is_empty()
    }

    /// Writes some of `data`, and says how much.
    ///
    /// # Errors
    /// [`StreamError::Blocked`] until [`Event::Writable`]; the others are final.
    pub fn write(&mut self, key: StreamKey, data: &[u8]) -> Result<usize, StreamError> {
        let stream = self.streams.get_mut(&key).ok_or(StreamError::Closed)?;
        if let Some(early) = stream.write_early(data) {
            return early;
        }
        let (session, id) = self.attached(key)?;
        let written = self.on_session(session, |s| stream::write(s, id, data))?;
        let written = self.unless_asked(key, written);
        self.tell_next_writer(session);
        self.ready.insert(session);
        written.inspect(|n| self.keep_written(key, &data[..*n]))
    }

    /// Tells the writer whose turn it is, of those that wait for room in a session.
    pub(super) fn tell_next_writer(&mut self, session: SessionKey) {
        let Some(session) = self.sessions.get_mut(&session) else { return };
        while let Some(next) = session.turns.next_writer() {
            if let Some(stream) = session.up().and_then(|up| up.streams.get(&next)) {
                return self.events.push_back(Event::Writable(*stream));
            }
            // Its user has let go of it.
            session.turns.forget(next);
        }
    }

    /// Who stops a stream before its status has come is about to refuse it, and another instance may take it.
    fn unless_asked(&self, key: StreamKey, written: Result<usize, StreamError>) -> Result<usize, StreamError> {
        let is_asked = self.streams.get(&key).is_some_and(|stream| matches!(stream.place, Place::Asked { .. }));
        written.map_err(|error| if is_asked && error == StreamError::Reset { StreamError::Blocked } else { error })
    }

    /// Says that nothing more will be written. The peer reads an end after all that was written before.
    ///
    /// # Errors
    /// When the stream is over already.
    pub fn finish(&mut self, key: StreamKey) -> Result<(), StreamError> {
        let stream = self.streams.get_mut(&key).ok_or(StreamError::Closed)?;
        if let Place::Waiting { .. } = stream.place {
            stream.finished = true;
            return Ok(());
        }
        let (session, id) = self.attached(key)?;
        let end = |s: &mut Session| {
            s.turns.forget(id);
            s.finish_behind_owed(id) || s.connection.send_stream(id).finish().is_ok()
        };
        let ended = self.on_session(session, end)?;
        self.tell_next_writer(session);
        self.ready.insert(session);
        let Some(stream) = self.streams.get_mut(&key) else { return Err(StreamError::Closed) };
        // A half that the peer stopped is not finished: letting go of it must still reset it. Unless it stopped it in order to
        // refuse it: then it ends where it is taken.
        let ended = ended || matches!(stream.place, Place::Asked { .. });
        stream.finished |= ended;
        if ended { Ok(()) } else { Err(StreamError::Reset) }
    }

    /// Whether the peer has said that it reads nothing more of this stream. For who has nothing to read or write at the moment,
    /// and would not learn it from that.
    ///
    /// # Errors
    /// Why the stream is over, where the session under it has ended. [`Event::Writable`] comes when the answer has changed.
    pub fn is_unwanted(&mut self, key: StreamKey) -> Result<bool, StreamError> {
        let stream = self.streams.get(&key).ok_or(StreamError::Closed)?;
        match &stream.place {
            Place::Dead(why) => Err(why.clone()),
            Place::Waiting { .. } => Ok(false),
            Place::Asked { session, id, .. } | Place::Offered { session, id } | Place::Open { session, id } => {
                let (session, id) = (*session, *id);
                // A half that is forgotten was finished and acknowledged, or reset by us.
                self.on_session(session, |s| matches!(s.connection.send_stream(id).stopped(), Ok(Some(_))))
            }
        }
    }

    /// Lets go of a stream. What was not finished is reset, what was not read is refused.
    pub fn release(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.remove(&key) else {
            return;
        };
        if let Some(pair) = self.pairs.get_mut(&stream.pair) {
            pair.waiting.remove(key);
        }
        let Some((session_key, id)) = stream.attached() else {
            return;
        };
        if let Some(session) = self.sessions.get_mut(&session_key) {
            if !stream.finished {
                session.reset(id, RESET_DROPPED);
            }
            // Fails where that half is over already, which is just as good.
            let _ = session.connection.recv_stream(id).stop(RESET_DROPPED);
            if let Some(up) = session.up_mut() {
                up.streams.remove(&id);
            }
            self.ready.insert(session_key);
        }
        self.tell_next_writer(session_key);
    }

    /// Answers a stream that a peer opened: [`StreamStatus::Open`] lets it go on, the others end it.
    ///
    /// # Errors
    /// When the stream is over already.
    pub fn answer(&mut self, key: StreamKey, status: StreamStatus) -> Result<(), StreamError> {
        let stream = self.streams.get_mut(&key).ok_or(StreamError::Closed)?;
        let (session, id) = match &stream.place {
            Place::Offered { session, id } => (*session, *id),
            Place::Dead(why) => return Err(why.clone()),
            Place::Waiting { .. } | Place::Asked { .. } | Place::Open { .. } => return Err(StreamError::Closed),
        };
        stream.place = Place::Open { session, id };
        self.answer_raw(session, id, status);
        if status != StreamStatus::Open {
            self.streams.remove(&key);
            if let Some(up) = self.sessions.get_mut(&session).and_then(|s| s.up_mut()) {
                up.streams.remove(&id);
            }
        }
        Ok(())
    }

    /// Sends one packet of a UDP flow. A full queue drops its oldest, as networks do. Until the peer has said that it takes the
    /// flow, packets wait: quinn-proto puts them in front of the header that opens it, so the first one would always come
    /// before its flow is there, and be lost.
    ///
    /// # Errors
    /// [`StreamError::TooLarge`] above what the session carries at the moment; otherwise when the flow is over.
    pub fn send_packet(&mut self, key: StreamKey, packet: &[u8]) -> Result<(), StreamError> {
        let stream = self.streams.get_mut(&key).ok_or(StreamError::Closed)?;
        if let Place::Waiting { .. } | Place::Asked { .. } = stream.place {
            stream.hold_packet(packet);
            return Ok(());
        }
        let (session, id) = self.attached(key)?;
        let mut framed = Vec::with_capacity(FLOW_LEN + packet.len());
        framed.extend_from_slice(&flow_of(id));
        framed.extend_from_slice(packet);
        let sent = self.on_session(session, |s| s.connection.datagrams().send(framed.into(), true))?;
        self.ready.insert(session);
        sent.map_err(|error| match error {
            SendDatagramError::TooLarge => StreamError::TooLarge,
            SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled => StreamError::Closed,
            SendDatagramError::Blocked(_) => StreamError::Blocked,
        })
    }

    /// The next packet of a UDP flow.
    ///
    /// # Errors
    /// [`StreamError::Blocked`] until [`Event::PacketReadable`]; the others are final.
    pub fn recv_packet(&mut self, key: StreamKey) -> Result<Bytes, StreamError> {
        self.take_status(key)?;
        let stream = self.streams.get_mut(&key).ok_or(StreamError::Closed)?;
        match (stream.packets.pop_front(), &stream.place) {
            (Some(packet), _) => Ok(packet),
            (None, Place::Dead(why)) => Err(why.clone()),
            (None, _) => self.flow_ended(key),
        }
    }

    /// A flow lives as long as its stream: an end or reset of that ends the flow. The stream carries nothing else; what a
    /// peer writes there all the same is thrown away, so that it neither waits in memory nor hides the end.
    fn flow_ended(&mut self, key: StreamKey) -> Result<Bytes, StreamError> {
        let Ok((session, id)) = self.attached(key) else {
            return Err(StreamError::Blocked);
        };
        loop {
            let (read, credit) = self.on_session(session, |s| stream::read(s, id, usize::MAX))?;
            if credit {
                self.ready.insert(session);
            }
            match read {
                Ok(Some(_)) => {}
                Ok(None) | Err(StreamError::Closed) => return Err(StreamError::Closed),
                Err(other) => return Err(other),
            }
        }
    }

    /// Writes a status byte; a refusal also ends the stream both ways.
    pub(super) fn answer_raw(&mut self, session_key: SessionKey, id: StreamId, status: StreamStatus) {
        let Some(session) = self.sessions.get_mut(&session_key) else {
            return;
        };
        session.owe(id, vec![status as u8], status != StreamStatus::Open);
        if status != StreamStatus::Open {
            // Fails where the peer has ended its half already.
            let _ = session.connection.recv_stream(id).stop(RESET_DROPPED);
        }
        self.ready.insert(session_key);
    }

    /// Puts a waiting stream on a session: its header, and what was written so far. False where that session may have no more.
    pub(super) fn attach(&mut self, session_key: SessionKey, key: StreamKey) -> bool {
        let Some(session) = self.sessions.get_mut(&session_key) else { return false };
        let Some(stream) = self.streams.get_mut(&key) else { return false };
        let turn = self.pairs.get_mut(&stream.pair).map(|pair| pair.replicas.next_turn()).unwrap_or_default();
        let Place::Waiting { early, deadline } = &mut stream.place else { return true };
        let Some(id) = session.connection.streams().open(quinn_proto::Dir::Bi) else { return false };
        let first = [&stream.header.encode()[..], early].concat();
        session.owe(id, first, stream.finished);
        let again = Again::new(self.last.mono, *deadline, std::mem::take(early));
        stream.place = Place::Asked { session: session_key, id, again };
        if let Some(up) = session.up_mut() {
            up.streams.insert(id, key);
            up.drain.opened();
            up.turn = turn;
        }
        self.ready.insert(session_key);
        self.events.push_back(Event::Writable(key));
        true
    }

    /// Looks whether the status of a stream has come that we opened.
    pub(super) fn hear_status(&mut self, key: StreamKey) {
        let is_asked = |node: &Self| node.streams.get(&key).is_some_and(|s| matches!(s.place, Place::Asked { .. }));
        // What comes of it is read from where the stream is then.
        if is_asked(self) && self.take_status(key).is_err() && !is_asked(self) {
            self.wake(key);
        }
    }

    /// Consumes the status byte of a stream that we opened, once it is there.
    fn take_status(&mut self, key: StreamKey) -> Result<(), StreamError> {
        let stream = self.streams.get(&key).ok_or(StreamError::Closed)?;
        let (session, id) = match &stream.place {
            Place::Asked { session, id, .. } => (*session, *id),
            Place::Waiting { .. } => return Err(StreamError::Blocked),
            Place::Dead(why) if stream.packets.is_empty() => return Err(why.clone()),
            Place::Dead(_) | Place::Offered { .. } | Place::Open { .. } => return Ok(()),
        };
        let answer = match self.on_session(session, |s| stream::read(s, id, 1))?.0 {
            Ok(Some(byte)) => stream::answered(StreamStatus::decode(byte.first().copied().unwrap_or(2))),
            // QUIC tells of a reset once, and not what it was when asked again.
            Ok(None) | Err(StreamError::Reset) => Err(StreamError::Reset),
            Err(other) => return Err(other),
        };
        if let Err(StreamError::Refused(status)) = answer
            && self.ask_another(key, status)
        {
            return Err(StreamError::Blocked);
        }
        if answer.is_err() {
            self.discard(session, id);
        }
        let stopped = |s: &mut Session| matches!(s.connection.send_stream(id).stopped(), Ok(Some(_)));
        let was_stopped = answer.is_ok() && self.on_session(session, stopped)?;
        let stream = self.streams.get_mut(&key).ok_or(StreamError::Closed)?;
        match &answer {
            Ok(()) => stream.place = Place::Open { session, id },
            Err(why) => stream.end(why.clone()),
        }
        if was_stopped && std::mem::take(&mut stream.finished) {
            // It could not be finished, and nothing else would free that half.
            self.on_session(session, |s| s.reset(id, RESET_DROPPED))?;
            self.ready.insert(session);
        }
        if answer.is_ok() {
            self.send_held_packets(key);
        }
        answer
    }

    /// Sends the packets that waited for the peer to take their flow.
    fn send_held_packets(&mut self, key: StreamKey) {
        let held = self.streams.get_mut(&key).map(|stream| std::mem::take(&mut stream.unsent)).unwrap_or_default();
        for packet in held {
            // What the path does not carry is lost, as in networks; the flow goes on.
            let _ = self.send_packet(key, &packet);
        }
    }

    /// Gives back what a stream holds in its session: both halves, and its place among the session's streams.
    pub(super) fn discard(&mut self, session_key: SessionKey, id: StreamId) {
        let Some(session) = self.sessions.get_mut(&session_key) else { return };
        session.reset(id, RESET_DROPPED);
        // Fails where that half is over already, which is just as good.
        let _ = session.connection.recv_stream(id).stop(RESET_DROPPED);
        if let Some(up) = session.up_mut() {
            up.streams.remove(&id);
        }
        self.ready.insert(session_key);
    }

    fn attached(&self, key: StreamKey) -> Result<(SessionKey, StreamId), StreamError> {
        let stream = self.streams.get(&key).ok_or(StreamError::Closed)?;
        match &stream.place {
            Place::Dead(why) => Err(why.clone()),
            Place::Waiting { .. } => Err(StreamError::Blocked),
            Place::Asked { session, id, .. } | Place::Offered { session, id } | Place::Open { session, id } => {
                Ok((*session, *id))
            }
        }
    }

    /// Fails the streams that waited too long.
    pub(super) fn expire_waiting(&mut self, pair_key: &PairKey, now: Instant, why: &'static str) {
        while let Some(key) = self.pairs.get_mut(pair_key).and_then(|pair| pair.waiting.take_due(now)) {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            // Those that were there are known better than those that were not.
            let refusal = stream.refusals.last().map(StreamError::Refused);
            stream.end(refusal.unwrap_or(StreamError::Unreachable(why)));
            self.wake(key);
        }
    }

    /// Notes that a stream waits for a session.
    pub(super) fn let_wait(&mut self, pair_key: &PairKey, key: StreamKey) {
        let (Some(stream), Some(pair)) = (self.streams.get(&key), self.pairs.get_mut(pair_key)) else { return };
        if let Place::Waiting { deadline, .. } = stream.place {
            pair.waiting.insert(key, stream.refusals.by().clone(), deadline);
        }
    }

    /// Lets everybody who waits for this stream look at it again.
    pub(super) fn wake(&mut self, key: StreamKey) {
        let flow = self.streams.get(&key).is_some_and(|s| s.header.kind == StreamKind::Udp);
        self.events.push_back(Event::Readable(key));
        self.events.push_back(Event::Writable(key));
        if flow {
            self.events.push_back(Event::PacketReadable(key));
        }
    }

    pub(super) fn new_stream_key(&mut self) -> StreamKey {
        self.next_stream += 1;
        StreamKey(self.next_stream)
    }

    /// Asks for a session where none is up and no dial runs.
    pub(super) fn dial_wanted(&mut self, pair_key: &PairKey, now: Now) {
        if self.pairs.get(pair_key).is_some_and(|pair| pair.may_dial_now()) {
            self.start_attempt(pair_key, 0, now);
        }
        self.arm_pair(pair_key);
    }

    pub(super) fn arm_pair(&mut self, pair_key: &PairKey) {
        let at =
            self.pairs.get(pair_key).and_then(|pair| pair.waiting.next_end().into_iter().chain(pair.next_step()).min());
        self.timers.set(&Timer::Pair(pair_key.clone()), at);
    }
}

/// The open stream that packets with this mark belong to. A mark comes again after 2^30 streams, when the first is long over;
/// so the high bits are those of the newest stream, or (of the other end's streams, of which there are fewer) lower ones.
pub(super) fn stream_of(streams: &BTreeMap<StreamId, StreamKey>, flow: &[u8]) -> Option<StreamKey> {
    let low = u32::from_be_bytes(flow.try_into().ok()?);
    let newest = u64::from(*streams.last_key_value()?.0) >> 32;
    let ids = (0..=newest).rev().filter_map(|high| VarInt::from_u64(high << 32 | u64::from(low)).ok());
    ids.map(StreamId::from).find_map(|id| streams.get(&id).copied())
}

/// How a flow is marked in front of its packets.
pub(super) fn flow_of(id: StreamId) -> [u8; FLOW_LEN] {
    let id = u64::from(id).to_be_bytes();
    [id[4], id[5], id[6], id[7]]
}

#[cfg(test)]
mod tests {
    use quinn_proto::{Dir, Side};

    use super::*;

    #[test]
    fn a_packet_finds_the_stream_of_either_end_that_its_mark_names() {
        let opened = [(Side::Client, 7), (Side::Server, 7), (Side::Client, (1 << 30) + 8)];
        let ids = opened.map(|(side, index)| StreamId::new(side, Dir::Bi, index));
        let streams = (1..).map(StreamKey).zip(ids).map(|(key, id)| (id, key)).collect();
        assert_eq!(ids.map(|id| stream_of(&streams, &flow_of(id))), [1, 2, 3].map(|n| Some(StreamKey(n))));
        assert_eq!(stream_of(&streams, &flow_of(StreamId::new(Side::Client, Dir::Bi, 8))), Some(StreamKey(3)));
        assert_eq!(stream_of(&streams, &flow_of(StreamId::new(Side::Client, Dir::Bi, 9))), None);
        assert_eq!(stream_of(&BTreeMap::new(), &[0; FLOW_LEN]), None);
    }
}
