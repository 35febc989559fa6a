//! Streams between agents, with every byte compared.
//!
//! Each stream starts with eight bytes that name it, so that the far side knows whose words it should be hearing. The
//! far side keeps what it reads and sends it back. Both directions must be, at every moment, a prefix of what was written.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use peerage_engine::node::{Node, StreamError, StreamKey};

use super::pour::Pour;

/// Bytes at the start of each stream and of each packet of a flow.
pub(super) const NAME_LEN: usize = 8;

/// A stream or flow opened through the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub(super) u64);

/// How a side's use of a stream ended, if it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Open,
    /// All was read to the end and all was written.
    Finished,
    /// It failed.
    Failed(StreamError),
    /// The agent on this side was ended.
    AgentGone,
}

/// One side's half of a stream.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) agent: usize,
    pub(super) key: StreamKey,
    pub(super) outcome: Outcome,
    /// What shall be written; the first `sent` bytes are.
    to_write: Vec<u8>,
    sent: usize,
    finish: Finish,
    pub(super) read: Vec<u8>,
    read_ended: bool,
    pub(super) first_byte_at: Option<Duration>,
}

/// Whether this side is done writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    NotYet,
    Wanted,
    Done,
}

impl Half {
    pub(super) fn new(agent: usize, key: StreamKey) -> Self {
        Self {
            agent,
            key,
            outcome: Outcome::Open,
            to_write: Vec::new(),
            sent: 0,
            finish: Finish::NotYet,
            read: Vec::new(),
            read_ended: false,
            first_byte_at: None,
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        assert_eq!(self.finish, Finish::NotYet, "a test wrote after it finished");
        self.to_write.extend_from_slice(bytes);
    }

    pub(super) fn finish(&mut self) {
        if self.finish == Finish::NotYet {
            self.finish = Finish::Wanted;
        }
    }

    pub(super) fn written(&self) -> &[u8] {
        &self.to_write
    }

    pub(super) fn is_open(&self) -> bool {
        self.outcome == Outcome::Open
    }

    /// Writes and reads what can be. Returns what was read anew.
    pub(super) fn pump(&mut self, node: &mut Node, now: Duration) -> Vec<u8> {
        if !self.is_open() {
            return Vec::new();
        }
        let result = self.pump_out(node).and_then(|()| self.pump_in(node, now));
        match result {
            Ok(fresh) => {
                if self.read_ended && self.finish == Finish::Done {
                    self.end(node, Outcome::Finished);
                }
                fresh
            }
            Err(error) => {
                self.end(node, Outcome::Failed(error));
                Vec::new()
            }
        }
    }

    fn end(&mut self, node: &mut Node, outcome: Outcome) {
        self.outcome = outcome;
        node.release(self.key);
    }

    fn pump_out(&mut self, node: &mut Node) -> Result<(), StreamError> {
        while self.sent < self.to_write.len() {
            match node.write(self.key, &self.to_write[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(StreamError::Blocked) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if self.finish == Finish::Wanted {
            node.finish(self.key)?;
            self.finish = Finish::Done;
        }
        Ok(())
    }

    fn pump_in(&mut self, node: &mut Node, now: Duration) -> Result<Vec<u8>, StreamError> {
        let mut fresh = Vec::new();
        while !self.read_ended {
            match node.read(self.key, 64 << 10) {
                Ok(Some(bytes)) => {
                    self.first_byte_at.get_or_insert(now);
                    fresh.extend_from_slice(&bytes);
                }
                Ok(None) => self.read_ended = true,
                Err(StreamError::Blocked) => break,
                Err(error) => {
                    self.read.extend_from_slice(&fresh);
                    return Err(error);
                }
            }
        }
        self.read.extend_from_slice(&fresh);
        Ok(fresh)
    }

    pub(super) fn has_read_all(&self) -> bool {
        self.read_ended
    }
}

/// A stream from both sides.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) opened_at: Duration,
    pub(super) near: Half,
    /// The name of the agent that it was opened to.
    pub(super) to: String,
    pub(super) far: Option<Half>,
}

impl Stream {
    /// Nobody may ever read what the other side did not write, in that order.
    pub(super) fn check(&self, id: StreamId) {
        if let Some(far) = &self.far {
            assert!(
                self.near.written().starts_with(&far.read),
                "{id:?}: the far side read something that was not written"
            );
            assert!(
                far.written().starts_with(&self.near.read),
                "{id:?}: the near side read something that was not sent back"
            );
        }
    }
}

/// An incoming stream whose name has not arrived whole.
#[derive(Debug)]
pub(super) struct Unnamed {
    pub(super) half: Half,
    pub(super) peer: peerage_model::AgentId,
}

/// A UDP flow from both sides.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) agent: usize,
    pub(super) key: StreamKey,
    /// Packets that arrived at the far side.
    pub(super) arrived: Vec<Bytes>,
    /// Packets that came back.
    pub(super) returned: Vec<Bytes>,
}

/// All streams and flows of a world.
#[derive(Debug, Default)]
pub(super) struct Flows {
    pub(super) streams: BTreeMap<StreamId, Stream>,
    pub(super) unnamed: BTreeMap<(usize, StreamKey), Unnamed>,
    pub(super) flows: BTreeMap<StreamId, Flow>,
    pub(super) pours: BTreeMap<StreamId, Pour>,
    /// Which stream a node's key belongs to.
    pub(super) keys: BTreeMap<(usize, StreamKey), StreamId>,
    opened: u64,
}

impl Flows {
    pub(super) fn next_id(&mut self) -> StreamId {
        self.opened += 1;
        StreamId(self.opened)
    }

    /// The agent is gone, and its halves with it.
    pub(super) fn agent_gone(&mut self, agent: usize) {
        for stream in self.streams.values_mut() {
            let halves = [Some(&mut stream.near), stream.far.as_mut()];
            for half in halves.into_iter().flatten().filter(|h| h.agent == agent && h.is_open()) {
                half.outcome = Outcome::AgentGone;
            }
        }
        self.unnamed.retain(|(of, _), _| *of != agent);
    }

    /// Lets the sides of a stream write and read. Returns whether anything moved.
    pub(super) fn pump(&mut self, id: StreamId, side: usize, node: &mut Node, now: Duration) {
        if let Some(pour) = self.pours.get_mut(&id) {
            pour.pump(side, node);
            return;
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.near.agent == side {
            stream.near.pump(node, now);
        }
        if let Some(far) = stream.far.as_mut().filter(|far| far.agent == side) {
            pump_far(far, node, now);
        }
        stream.check(id);
    }

    /// Lets an incoming stream say its name; once it has, it is attached to its near side.
    pub(super) fn pump_unnamed(&mut self, at: (usize, StreamKey), me: &str, node: &mut Node, now: Moment<'_>) {
        let Some(unnamed) = self.unnamed.get_mut(&at) else { return };
        unnamed.half.pump(node, now.elapsed);
        if unnamed.half.read.len() < NAME_LEN {
            if !unnamed.half.is_open() {
                self.unnamed.remove(&at);
            }
            return;
        }
        let Some(Unnamed { mut half, peer }) = self.unnamed.remove(&at) else {
            return;
        };
        let mut name = [0; NAME_LEN];
        name.copy_from_slice(&half.read[..NAME_LEN]);
        let id = StreamId(u64::from_be_bytes(name));
        if let Some(pour) = self.pours.get_mut(&id) {
            assert_eq!(
                (pour.to.as_str(), &peer),
                (me, &(now.agent_of)(pour.near.0)),
                "{id:?} arrived at or from somebody else"
            );
            pour.far = Some(at);
            pour.arrived = (half.read.len() - NAME_LEN) as u64;
            self.keys.insert(at, id);
            return;
        }
        let stream = self.streams.get_mut(&id).expect("a stream that somebody opened");
        assert!(stream.far.is_none(), "{id:?} arrived twice");
        assert_eq!(stream.to, me, "{id:?} arrived at somebody else");
        assert_eq!((now.agent_of)(stream.near.agent), peer, "{id:?} arrived under the wrong identity");
        let read = half.read.clone();
        half.to_write.extend_from_slice(&read);
        stream.far = Some(half);
        self.keys.insert(at, id);
        self.pump(id, at.0, node, now.elapsed);
    }
}

/// What [`Flows::pump_unnamed`] must know of the world.
#[derive(Clone, Copy)]
pub(super) struct Moment<'a> {
    pub(super) elapsed: Duration,
    pub(super) agent_of: &'a dyn Fn(usize) -> peerage_model::AgentId,
}

/// The far side sends back what it reads, and ends when the near side did.
fn pump_far(far: &mut Half, node: &mut Node, now: Duration) {
    let fresh = far.pump(node, now);
    if far.is_open() {
        far.to_write.extend_from_slice(&fresh);
        if far.has_read_all() {
            far.finish();
        }
        far.pump(node, now);
    }
}
