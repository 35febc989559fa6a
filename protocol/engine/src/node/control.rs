//! The two control streams of a session: ours out, the peer's in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use peerage_model::control::{BadMessage, ControlMessage, MAX_MESSAGE};
use quinn_proto::{Connection, Dir, ReadError, StreamId, WriteError};

use crate::path::budget::Budget;

/// Messages that a peer may send at once, and one more each [`MESSAGE_INTERVAL`]. An allowlist that changes all the time and
/// a network that flaps bring a few a second; each costs us work, and some an event for the driver.
const MESSAGE_BURST: u32 = 128;
const MESSAGE_INTERVAL: Duration = Duration::from_millis(100);

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
    allowance: Budget,
}

impl ControlIn {
    pub(super) fn new(stream: StreamId, now: Instant) -> Self {
        Self { stream, partial: Vec::new(), allowance: Budget::full(now, MESSAGE_BURST, MESSAGE_INTERVAL) }
    }

    pub(super) fn stream(&self) -> StreamId {
        self.stream
    }

    /// Reads what has arrived.
    ///
    /// # Errors
    /// [`BadMessage`] for a malformed or oversized message, for more messages than anybody needs, or when the peer ended its
    /// control stream: in each case the session cannot go on.
    pub(super) fn read(
        &mut self,
        connection: &mut Connection,
        now: Instant,
    ) -> Result<Vec<ControlMessage>, BadMessage> {
        let mut messages = Vec::new();
        let mut stream = connection.recv_stream(self.stream);
        let mut chunks = stream.read(true).map_err(|_| BadMessage)?;
        let result = loop {
            match chunks.next(MAX_MESSAGE) {
                Ok(Some(chunk)) => {
                    self.partial.extend_from_slice(&chunk.bytes);
                    if let Err(bad) = self.take_messages(&mut messages, now) {
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

    fn take_messages(&mut self, messages: &mut Vec<ControlMessage>, now: Instant) -> Result<(), BadMessage> {
        while let Some((length, rest)) = self.partial.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            if length > MAX_MESSAGE {
                return Err(BadMessage);
            }
            let Some(body) = rest.get(..length) else { break };
            // Also for kinds that we do not know: to read them costs as much.
            if !self.allowance.take(now) {
                return Err(BadMessage);
            }
            messages.extend(ControlMessage::decode(body)?);
            self.partial.drain(..2 + length);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::control::Hello;
    use quinn_proto::{Dir, Side};

    /// A control stream on which these bytes have arrived.
    fn fed(bytes: &[u8], now: Instant) -> (ControlIn, Vec<ControlMessage>, Result<(), BadMessage>) {
        let mut control = ControlIn::new(StreamId::new(Side::Client, Dir::Uni, 0), now);
        control.partial.extend_from_slice(bytes);
        let mut messages = Vec::new();
        let result = control.take_messages(&mut messages, now);
        (control, messages, result)
    }

    #[test]
    fn more_messages_than_anybody_needs_end_the_session() {
        let now = Instant::now();
        let hello = ControlMessage::Hello(Hello::default()).encode_framed();
        let burst = usize::try_from(MESSAGE_BURST).expect("a small number");
        let (mut control, messages, result) = fed(&hello.repeat(burst), now);
        assert_eq!((messages.len(), result), (burst, Ok(())));
        control.partial.extend_from_slice(&hello);
        assert_eq!(control.take_messages(&mut Vec::new(), now), Err(BadMessage));
        let later = now + 10 * MESSAGE_INTERVAL;
        control.partial = hello.repeat(10);
        assert_eq!(control.take_messages(&mut Vec::new(), later), Ok(()), "one more each interval");
    }

    #[test]
    fn a_message_that_claims_to_be_too_long_is_not_waited_for() {
        let (_, _, result) = fed(&[0xff, 0xff], Instant::now());
        assert_eq!(result, Err(BadMessage));
    }

    #[test]
    fn a_message_that_came_in_part_is_kept_and_no_more() {
        let hello = ControlMessage::Hello(Hello::default()).encode_framed();
        let (control, messages, result) = fed(&[&hello[..], &hello[..3]].concat(), Instant::now());
        assert_eq!((messages.len(), result, control.partial.len()), (1, Ok(()), 3));
    }
}
