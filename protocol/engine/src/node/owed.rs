//! What a stream must send before anything else: the opener's header with its early bytes, or the receiver's status.
//!
//! A session whose send window or credit is used up takes not even one byte, so these wait like any other; data of the
//! stream waits behind them.

use quinn_proto::{StreamId, VarInt, WriteError};

use super::session::Session;

/// Bytes still to write, and whether the stream's half ends behind them.
#[derive(Debug)]
pub(super) struct Owed {
    bytes: Vec<u8>,
    finish: bool,
}

impl Session {
    /// Puts bytes at the front of a stream that nothing was written to.
    pub(super) fn owe(&mut self, id: StreamId, bytes: Vec<u8>, finish: bool) {
        self.owed.insert(id, Owed { bytes, finish });
        self.pay(id);
    }

    /// Writes what a stream owes as far as it goes. True when it owes nothing (any more).
    pub(super) fn pay(&mut self, id: StreamId) -> bool {
        let Some(owed) = self.owed.get_mut(&id) else { return true };
        let mut send = self.connection.send_stream(id);
        while !owed.bytes.is_empty() {
            match send.write(&owed.bytes) {
                Ok(written) => drop(owed.bytes.drain(..written)),
                Err(WriteError::Blocked) => return false,
                // The peer wants none of it.
                Err(WriteError::Stopped(_) | WriteError::ClosedStream) => owed.bytes.clear(),
            }
        }
        if owed.finish {
            // Fails only where the peer has stopped the stream.
            let _ = send.finish();
        }
        self.owed.remove(&id);
        true
    }

    /// Pays this stream, and then the others from the oldest on as far as it goes: of the streams that wait for room QUIC wakes
    /// one at a time, and one that only has data to send would be served before a header.
    pub(super) fn pay_from(&mut self, id: StreamId) {
        self.pay(id);
        let waiting: Vec<StreamId> = self.owed.keys().copied().collect();
        let _all = waiting.into_iter().all(|other| self.pay(other));
    }

    /// Takes a stream's sending half back, with what it owes.
    pub(super) fn reset(&mut self, id: StreamId, code: VarInt) {
        self.owed.remove(&id);
        self.turns.forget(id);
        // Fails where that half is over already, which is just as good.
        let _ = self.connection.send_stream(id).reset(code);
    }

    /// Ends a stream's half behind what it owes. False when it owes nothing, so that the caller ends it itself.
    pub(super) fn finish_behind_owed(&mut self, id: StreamId) -> bool {
        self.owed.get_mut(&id).map(|owed| owed.finish = true).is_some()
    }
}
