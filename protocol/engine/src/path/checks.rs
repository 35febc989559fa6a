//! Checks of one session, as they leave and come: authenticated by its keys, each request counted once, and no more of them
//! answered than an honest peer sends. What they teach is for the checklist.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::admission::{self, Refused};
use super::budget::Budget;
use super::{CheckTransmit, DirectPath};
use crate::mac::MacKey;
use crate::stun::{Check, CheckKeys, CheckRequest, CheckResponse, Rejected, ReplayWindow, TransactionId};

/// How many routers an opener passes: past our own gateway, also one behind another (a container's host in a home), and
/// not as far as the peer's, which is on the other side of both providers' networks.
const OPENER_HOPS: u8 = 3;
/// Answers at once, and one more each interval: under 100 in any first second.
const ANSWER_BURST: u32 = 50;
const ANSWER_INTERVAL: Duration = Duration::from_millis(20);

/// Why a datagram taught nothing and got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckRefused {
    /// It does not carry this session's tag.
    #[error("a check of another session, or none")]
    OtherSession,
    /// It carries this session's tag, and is no check of it.
    #[error("not a check of this session")]
    Rejected(#[source] Rejected),
    /// Policy allows no direct path.
    #[error("policy is RelayOnly")]
    Policy,
    /// The request was seen before, or is older than the window.
    #[error("replayed")]
    Replayed,
    /// The response answers nothing that is in flight to that address.
    #[error("answers no check in flight to that address")]
    Unasked,
    /// The source may not be a candidate.
    #[error("refused source address")]
    Source(#[source] Refused),
    /// More requests than we answer in this time.
    #[error("too many checks")]
    TooMany,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Checks {
    keys: CheckKeys,
    /// What transaction ids are drawn with.
    ids: MacKey,
    /// How many requests were sent: the sequence number of the newest.
    sent: u64,
    replay: ReplayWindow,
    answers: Budget,
    transmits: VecDeque<CheckTransmit>,
}

impl Checks {
    pub(super) fn new(now: Instant, keys: CheckKeys, seed: &[u8; 32]) -> Self {
        Self {
            keys,
            ids: MacKey::new(*seed),
            sent: 0,
            replay: ReplayWindow::default(),
            answers: Budget::full(now, ANSWER_BURST, ANSWER_INTERVAL),
            transmits: VecDeque::new(),
        }
    }

    /// Whether a datagram has the tag of this session's checks.
    pub(super) fn are_tagged_as(&self, datagram: &[u8]) -> bool {
        self.keys.are_for(datagram)
    }

    /// Reads a check, which verifies.
    pub(super) fn read(&self, datagram: &[u8]) -> Result<Check, CheckRefused> {
        if !self.are_tagged_as(datagram) {
            return Err(CheckRefused::OtherSession);
        }
        Check::decode(datagram, &self.keys).map_err(CheckRefused::Rejected)
    }

    /// Answers a request, unless it is none that an honest peer sends.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        from: DirectPath,
        request: &CheckRequest,
    ) -> Result<(), CheckRefused> {
        if !self.replay.accept(request.sequence) {
            return Err(CheckRefused::Replayed);
        }
        admission::check(from.remote).map_err(CheckRefused::Source)?;
        if !self.answers.take(now) {
            return Err(CheckRefused::TooMany);
        }
        self.transmit(from, None, &Check::Response(CheckResponse { id: request.id, mapped: from.remote }));
        Ok(())
    }

    /// Sends a request. `in_use`: traffic takes this path.
    pub(super) fn request(&mut self, path: DirectPath, in_use: bool) -> TransactionId {
        self.send(path, in_use, None)
    }

    /// Sends a request that dies on its way.
    pub(super) fn open(&mut self, path: DirectPath, in_use: bool) {
        self.send(path, in_use, Some(OPENER_HOPS));
    }

    fn send(&mut self, path: DirectPath, in_use: bool, hop_limit: Option<u8>) -> TransactionId {
        self.sent += 1;
        let id = self.keys.transaction_id(self.draw(&self.sent.to_be_bytes()));
        let request = CheckRequest { id, priority: 0, sequence: self.sent, in_use };
        self.transmit(path, hop_limit, &Check::Request(request));
        id
    }

    fn transmit(&mut self, path: DirectPath, hop_limit: Option<u8>, check: &Check) {
        let DirectPath { link, remote: to } = path;
        self.transmits.push_back(CheckTransmit { link, to, hop_limit, bytes: check.encode(&self.keys) });
    }

    /// Bytes that nobody can foresee; the same for the same label. Numbers of requests, 8 bytes, are labels of ids.
    pub(super) fn draw<const N: usize>(&self, label: &[u8]) -> [u8; N] {
        let drawn = self.ids.sign(label);
        *drawn.as_ref().first_chunk().expect("SHA-256 gives 32 bytes, and nobody asks for more")
    }

    pub(super) fn poll_transmit(&mut self) -> Option<CheckTransmit> {
        self.transmits.pop_front()
    }
}
