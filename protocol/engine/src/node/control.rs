//! The two control streams of a session: ours out, the peer's in.

use std::collections::VecDeque;

use peerage_model::control::{BadMessage, ControlMessage, MAX_MESSAGE};
use quinn_proto::{Connection, Dir, ReadError, StreamId, WriteError};

/// The sending half: messages wait here while the stream has no room.
#[derive(Debug)]
pub(super) struct ControlOut {
    stream: Option<StreamId>,
    unsent: VecDeque<u8>,
}

impl ControlOut {
    pub(super) fn new() -> Self {
        Self { stream: None, unsent: VecDeque::new() }
    }

    /// Queues a message; [`Self::flush`] sends it.
    pub(super) fn push(&mut self, message: &ControlMessage) {
        self.unsent.extend(message.encode_framed());
    }

    /// Writes what the stream takes. Returns whether anything was written.
    pub(super) fn flush(&mut self, connection: &mut Connection) -> bool {
        let mut wrote = false;
        while !self.unsent.is_empty() {
            let Some(id) = self.stream.or_else(|| connection.streams().open(Dir::Uni)) else {
                break;
            };
            self.stream = Some(id);
            let (front, _) = self.unsent.as_slices();
            match connection.send_stream(id).write(front) {
                Ok(n) => {
                    self.unsent.drain(..n);
                    wrote = true;
                }
                Err(WriteError::Blocked) => break,
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                    self.unsent.clear();
                    break;
                }
            }
        }
        wrote
    }
}

/// The receiving half: puts messages together, never holding more than one.
#[derive(Debug)]
pub(super) struct ControlIn {
    stream: StreamId,
    partial: Vec<u8>,
}

impl ControlIn {
    pub(super) fn new(stream: StreamId) -> Self {
        Self { stream, partial: Vec::new() }
    }

    pub(super) fn stream(&self) -> StreamId {
        self.stream
    }

    /// Reads what has arrived.
    ///
    /// # Errors
    /// [`BadMessage`] for a malformed or oversized message, or when the peer ended its control stream: in each case
    /// the session cannot go on.
    pub(super) fn read(&mut self, connection: &mut Connection) -> Result<Vec<ControlMessage>, BadMessage> {
        let mut messages = Vec::new();
        let mut stream = connection.recv_stream(self.stream);
        let mut chunks = stream.read(true).map_err(|_| BadMessage)?;
        let result = loop {
            match chunks.next(MAX_MESSAGE) {
                Ok(Some(chunk)) => {
                    self.partial.extend_from_slice(&chunk.bytes);
                    if let Err(bad) = self.take_messages(&mut messages) {
                        break Err(bad);
                    }
                }
                Err(ReadError::Blocked) => break Ok(()),
                Ok(None) | Err(ReadError::Reset(_)) => break Err(BadMessage),
            }
        };
        // The credit goes out with the next packet of this connection, which is marked as having work anyway.
        let _ = chunks.finalize();
        result.map(|()| messages)
    }

    fn take_messages(&mut self, messages: &mut Vec<ControlMessage>) -> Result<(), BadMessage> {
        while let Some((length, rest)) = self.partial.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            if length > MAX_MESSAGE {
                return Err(BadMessage);
            }
            let Some(body) = rest.get(..length) else { break };
            messages.extend(ControlMessage::decode(body)?);
            self.partial.drain(..2 + length);
        }
        Ok(())
    }
}
