//! Streams as the node keeps them: who opened them, whether their session is up, what the peer answered.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use peerage_model::stream::{StreamHeader, StreamKind, StreamStatus};
use quinn_proto::{ReadError, ReadableError, StreamId, VarInt, WriteError};

use super::config::{EARLY_BUFFER, MAX_PACKETS};
use super::event::{SessionKey, StreamError};
use super::pair::PairKey;
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
    pub(super) packets: VecDeque<Bytes>,
}

/// Where a stream is in its life.
#[derive(Debug)]
pub(super) enum Place {
    /// Opened by us; no session yet. `early` is written as soon as there is one.
    Waiting { early: Vec<u8>, deadline: Instant },
    /// Opened by us; the peer's status byte has not come.
    Asked { session: SessionKey, id: StreamId },
    /// Opened by the peer; we have not answered.
    Offered { session: SessionKey, id: StreamId },
    /// Data both ways.
    Open { session: SessionKey, id: StreamId },
    /// Over, and why; stays until its user lets go.
    Dead(StreamError),
}

impl Stream {
    pub(super) fn waiting(pair: PairKey, header: StreamHeader, deadline: Instant) -> Self {
        let place = Place::Waiting { early: Vec::new(), deadline };
        Self { pair, header, place, finished: false, packets: VecDeque::new() }
    }

    pub(super) fn offered(pair: PairKey, header: StreamHeader, session: SessionKey, id: StreamId) -> Self {
        Self { pair, header, place: Place::Offered { session, id }, finished: false, packets: VecDeque::new() }
    }

    /// The session and QUIC stream under it, once there is one.
    pub(super) fn attached(&self) -> Option<(SessionKey, StreamId)> {
        match self.place {
            Place::Asked { session, id } | Place::Offered { session, id } | Place::Open { session, id } => {
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

/// Writes what flow control and the send window take.
pub(super) fn write(session: &mut Session, id: StreamId, data: &[u8]) -> Result<usize, StreamError> {
    session.connection.send_stream(id).write(data).map_err(write_error)
}

/// As [`write()`], without copying.
pub(super) fn write_chunk(session: &mut Session, id: StreamId, data: &mut Bytes) -> Result<usize, StreamError> {
    let mut chunks = [std::mem::take(data)];
    let written = session.connection.send_stream(id).write_chunks(&mut chunks);
    let [rest] = chunks;
    *data = rest;
    written.map(|w| w.bytes).map_err(write_error)
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
