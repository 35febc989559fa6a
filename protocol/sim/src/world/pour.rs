//! Pours: as much as a path takes, counted and not kept.
//!
//! Streams in [`super::flow`] compare every byte with what was written, so far back that a transfer of some hundred megabytes would
//! take hours. A pour writes zeroes, and what arrives is counted: for measurements of speed, where the streams of other tests vouch
//! for the bytes.

use peerage_engine::node::{Node, StreamKey};

use super::Sim;
use super::flow::{NAME_LEN, StreamId};

/// What is offered to the node at a time.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// One direction of bytes without meaning.
#[derive(Debug)]
pub(super) struct Pour {
    /// Who writes.
    pub(super) near: (usize, StreamKey),
    /// Who reads, once it has heard of it.
    pub(super) far: Option<(usize, StreamKey)>,
    pub(super) to: String,
    /// What of the name is not written.
    name: Vec<u8>,
    /// Bytes that are not written.
    left: u64,
    pub(super) arrived: u64,
}

impl Pour {
    fn new(id: StreamId, near: (usize, StreamKey), to: &str, bytes: u64) -> Self {
        let name = id.0.to_be_bytes().to_vec();
        debug_assert_eq!(name.len(), NAME_LEN);
        Self { near, far: None, to: to.to_owned(), name, left: bytes, arrived: 0 }
    }

    /// Writes and reads what can be, on this side.
    pub(super) fn pump(&mut self, side: usize, node: &mut Node) {
        if self.near.0 == side {
            self.write(node);
        }
        if let Some((_, key)) = self.far.filter(|(agent, _)| *agent == side) {
            while let Ok(Some(bytes)) = node.read(key, 1 << 20) {
                self.arrived += bytes.len() as u64;
            }
        }
    }

    fn write(&mut self, node: &mut Node) {
        let (_, key) = self.near;
        while !self.name.is_empty() {
            let Ok(written) = node.write(key, &self.name) else { return };
            self.name.drain(..written);
        }
        while self.left > 0 {
            let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(ZEROES.len());
            let Ok(written) = node.write(key, &ZEROES[..most]) else { return };
            self.left -= written as u64;
        }
    }
}

impl Sim {
    /// Opens a TCP stream and writes so many bytes to it as fast as it takes them. The far side reads them, and nobody compares them.
    pub fn pour(&mut self, from: &str, to: &str, bytes: u64) -> StreamId {
        let (id, near) = self.open_unnamed(from, to);
        self.flows.pours.insert(id, Pour::new(id, near, to, bytes));
        self.flows.keys.insert(near, id);
        self.pump(near.0, near.1);
        self.drain(near.0);
        id
    }

    /// How much of a pour has arrived.
    #[must_use]
    pub fn poured(&self, id: StreamId) -> u64 {
        self.flows.pours[&id].arrived
    }
}
