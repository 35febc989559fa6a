//! Streams as the node keeps them: who opened them, whether their session is up, what the peer answered.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use peerage_model::stream::{StreamHeader, StreamKind, StreamStatus};
use quinn_proto::{ReadError, ReadableError, StreamId, VarInt, WriteError};

use super::again::Again;
use super::config::{EARLY_BUFFER, MAX_PACKETS};
use super::event::{SessionKey, StreamError};
use super::pair::PairKey;
use super::replicas::Refusals;
use super::session::Session;

/// Code for a stream that its user dropped (docs/spec/session.md).
pub(super) const RESET_DROPPED: VarInt = VarInt::from_u32(0);

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) pair: PairKey,
    pub(super) header: StreamHeader,
    pub(super) place: Place,
    /// Whether our half was finished; letting go of the stream must then not take back what is still on its way.
    pub(super) finished: bool,
    /// Whether the peer's half was read to its end. QUIC forgets a half with its end, so we remember.
    pub(super) read_to_end: bool,
    pub(super) packets: VecDeque<Bytes>,
    /// Packets of a flow that we opened, until the peer has said that it takes it.
    pub(super) unsent: VecDeque<Bytes>,
    /// Who did not take it.
    pub(super) refusals: Refusals,
}

/// Where a stream is in its life.
#[derive(Debug)]
pub(super) enum Place {
    /// Opened by us; no session yet. `early` is written as soon as there is one.
    Waiting { early: Vec<u8>, deadline: Instant },
    /// Opened by us; the peer's status byte has not come.
    Asked { session: SessionKey, id: StreamId, again: Again },
    /// Opened by the peer; we have not answered.
    Offered { session: SessionKey, id: StreamId },
    /// Data both ways.
    Open { session: SessionKey, id: StreamId },
    /// Over, and why; stays until its user lets go.
    Dead(StreamError),
}

impl Stream {
    pub(super) fn waiting(pair: PairKey, header: StreamHeader, deadline: Instant) -> Self {
        Self::new(pair, header, Place::Waiting { early: Vec::new(), deadline })
    }

    pub(super) fn offered(pair: PairKey, header: StreamHeader, session: SessionKey, id: StreamId) -> Self {
        Self::new(pair, header, Place::Offered { session, id })
    }

    fn new(pair: PairKey, header: StreamHeader, place: Place) -> Self {
        Self {
            pair,
            header,
            place,
            finished: false,
            read_to_end: false,
            packets: VecDeque::new(),
            unsent: VecDeque::new(),
            refusals: Refusals::default(),
        }
    }

    /// The session and QUIC stream under it, once there is one.
    pub(super) fn attached(&self) -> Option<(SessionKey, StreamId)> {
        match self.place {
            Place::Asked { session, id, .. } | Place::Offered { session, id } | Place::Open { session, id } => {
                Some((session, id))
            }
            Place::Waiting { .. } | Place::Dead(_) => None,
        }
    }

    /// Keeps a packet for the reader, dropping the oldest when there are too many.
    pub(super) fn push_packet(&mut self, packet: Bytes) {
        if self.packets.len() == MAX_PACKETS {
            self.packets.pop_front();
        }
        self.packets.push_back(packet);
    }

    /// Keeps a packet until the peer has said that it takes the flow, dropping the oldest when there are too many.
    pub(super) fn hold_packet(&mut self, packet: &[u8]) {
        self.unsent.push_back(Bytes::copy_from_slice(packet));
        let is_too_much = |unsent: &VecDeque<Bytes>| {
            unsent.len() > MAX_PACKETS || unsent.iter().map(Bytes::len).sum::<usize>() > EARLY_BUFFER
        };
        while is_too_much(&self.unsent) {
            self.unsent.pop_front();
        }
    }

    /// It is over, and why; what waited for the peer's word goes with it.
    pub(super) fn end(&mut self, why: StreamError) {
        self.place = Place::Dead(why);
        self.unsent = VecDeque::new();
    }

    /// Takes early bytes, or says how it stands.
    pub(super) fn write_early(&mut self, data: &[u8]) -> Option<Result<usize, StreamError>> {
        match &mut self.place {
            Place::Waiting { .. } if self.finished => Some(Err(StreamError::Closed)),
            Place::Waiting { early, .. } => {
                let n = data.len().min(EARLY_BUFFER - early.len());
                early.extend_from_slice(&data[..n]);
                Some(if n == 0 && !data.is_empty() { Err(StreamError::Blocked) } else { Ok(n) })
            }
            Place::Dead(why) => Some(Err(why.clone())),
            Place::Asked { .. } | Place::Offered { .. } | Place::Open { .. } => None,
        }
    }
}

/// Whether streams of this kind may be opened by any trusted peer, without a port rule.
pub(super) fn needs_no_rule(kind: StreamKind) -> bool {
    match kind {
        StreamKind::Echo | StreamKind::Discard => true,
        StreamKind::Tcp | StreamKind::Udp | StreamKind::Request => false,
    }
}

/// Reads at most `max` bytes. `Ok(None)` is the end. The second value says whether credit must be sent.
pub(super) fn read(session: &mut Session, id: StreamId, max: usize) -> (Result<Option<Bytes>, StreamError>, bool) {
    let mut stream = session.connection.recv_stream(id);
    let mut chunks = match stream.read(true) {
        Ok(chunks) => chunks,
        Err(ReadableError::ClosedStream | ReadableError::IllegalOrderedRead) => {
            return (Err(StreamError::Closed), false);
        }
    };
    let result = match chunks.next(max) {
        Ok(Some(chunk)) => Ok(Some(chunk.bytes)),
        Ok(None) => Ok(None),
        Err(ReadError::Blocked) => Err(StreamError::Blocked),
        Err(ReadError::Reset(_)) => Err(StreamError::Reset),
    };
    (result, chunks.finalize().should_transmit())
}

/// What [`read_into`] did.
#[derive(Debug, Default)]
pub(super) struct Filled {
    /// Bytes at the front of the buffer.
    pub(super) bytes: usize,
    /// Nothing comes after them.
    pub(super) ended: bool,
    /// Credit must be sent.
    pub(super) credit: bool,
}

/// Fills as much of `buffer` as there is: a packet brings a thousand bytes, and who copies them on wants many.
pub(super) fn read_into(session: &mut Session, id: StreamId, buffer: &mut [u8]) -> Result<Filled, StreamError> {
    let mut stream = session.connection.recv_stream(id);
    let mut chunks = stream.read(true).map_err(|_| StreamError::Closed)?;
    let mut filled = Filled::default();
    let mut stopped = None;
    while filled.bytes < buffer.len() && !filled.ended && stopped.is_none() {
        match chunks.next(buffer.len() - filled.bytes) {
            Ok(Some(chunk)) => {
                let end = filled.bytes + chunk.bytes.len();
                buffer[filled.bytes..end].copy_from_slice(&chunk.bytes);
                filled.bytes = end;
            }
            Ok(None) => filled.ended = true,
            Err(ReadError::Blocked) => stopped = Some(StreamError::Blocked),
            Err(ReadError::Reset(_)) => stopped = Some(StreamError::Reset),
        }
    }
    filled.credit = chunks.finalize().should_transmit();
    match stopped {
        // A reset throws away what was not read, so it never comes behind bytes; being blocked often does.
        Some(why) if filled.bytes == 0 => Err(why),
        Some(_) | None => Ok(filled),
    }
}

/// Bytes taken at a time. QUIC frees what one write brought only when all of it is acknowledged.
pub(super) const PIECE: usize = 64 << 10;

/// Writes what flow control, the send window and those that wait for it leave.
pub(super) fn write(session: &mut Session, id: StreamId, data: &[u8]) -> Result<usize, StreamError> {
    session.may_write(id)?;
    let piece = &data[..data.len().min(PIECE)];
    let written = session.connection.send_stream(id).write(piece);
    session.wrote(id, &written, piece.len());
    written.map_err(write_error)
}

fn write_error(error: WriteError) -> StreamError {
    match error {
        WriteError::Blocked => StreamError::Blocked,
        WriteError::Stopped(_) => StreamError::Reset,
        WriteError::ClosedStream => StreamError::Closed,
    }
}

/// What the peer's status byte makes of a stream that we opened.
pub(super) fn answered(status: StreamStatus) -> Result<(), StreamError> {
    match status {
        StreamStatus::Open => Ok(()),
        refusal @ (StreamStatus::Denied
        | StreamStatus::Refused
        | StreamStatus::Unreachable
        | StreamStatus::Busy
        | StreamStatus::Unsupported) => Err(StreamError::Refused(refusal)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use peerage_model::{AgentId, Fingerprint};

    use super::*;

    /// A flow of ours whose peer has not answered.
    fn flow() -> Stream {
        let peer = AgentId { authority: Fingerprint([7; 32]), name: "db".parse().expect("a name") };
        let header = StreamHeader { kind: StreamKind::Udp, port: 53 };
        Stream::waiting(PairKey::Peer(peer), header, Instant::now())
    }

    #[test]
    fn a_flow_keeps_the_latest_packets_and_no_more_than_its_bounds() {
        for (size, kept) in [(0, MAX_PACKETS), (100, MAX_PACKETS), (1000, EARLY_BUFFER / 1000), (EARLY_BUFFER + 1, 0)] {
            let mut flow = flow();
            (0..1000).for_each(|_| flow.hold_packet(&vec![1; size]));
            assert_eq!(flow.unsent.len(), kept, "of {size} bytes");
        }
        let mut flow = flow();
        (0..1000u32).for_each(|n| flow.hold_packet(&n.to_be_bytes()));
        assert_eq!(flow.unsent.back().map(|packet| &packet[..]), Some(&999u32.to_be_bytes()[..]));
    }

    #[test]
    fn a_flow_that_was_refused_keeps_nothing() {
        let mut flow = flow();
        flow.hold_packet(b"query");
        flow.end(StreamError::Refused(StreamStatus::Denied));
        assert_eq!((flow.unsent.len(), flow.unsent.capacity()), (0, 0));
    }
}
