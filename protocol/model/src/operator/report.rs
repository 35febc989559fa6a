//! What the agent tells of itself (sections 6 and 9), and how the operator ends a stream (section 8).

use minicbor::{Decode, Encode};

use super::enrol::MAX_VERSION;
use crate::id::AgentId;
use crate::linking::{MAX_RECORD, RecordBytes};
use crate::snapshot::Protocol;

/// Longest explanation in a report, in bytes.
pub const MAX_TEXT: usize = 256;
/// Longest text of [`GoAway`], in bytes.
const MAX_GOODBYE: usize = 512;
/// Most peers, most conflicts and most records in one report.
pub const MAX_REPORTED: usize = 32;
/// Longest RFC 3489 word, in bytes.
const MAX_WORD: usize = 64;

/// An update is in force: sessions that lost their entry are reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Ack {
    /// The last part of it.
    #[n(0)]
    pub sequence: u64,
    /// Entries that the agent was told and did not take.
    #[n(1)]
    pub refused: u64,
}

/// The agent's NAT.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Nat {
    /// In RFC 3489's word.
    #[n(0)]
    pub word: String,
    /// In RFC 4787's words.
    #[n(1)]
    pub behaviour: String,
}

/// Whether a peer can be reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum PeerState {
    /// No session, and nothing is known against one.
    #[default]
    #[n(0)]
    Idle,
    /// There is a session.
    #[n(1)]
    Connected,
    /// No session, and the last attempt failed.
    #[n(2)]
    Failing,
}

/// Which way a session goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum PathWord {
    /// No session.
    #[default]
    #[n(0)]
    None,
    /// Within a node or a network.
    #[n(1)]
    Local,
    /// Directly.
    #[n(2)]
    Direct,
    /// Directly, through a hole in NATs.
    #[n(3)]
    Punched,
    /// Through a relay.
    #[n(4)]
    Relayed,
}

/// How it is with one peer.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct PeerReport {
    /// Which.
    #[n(0)]
    pub peer: AgentId,
    /// Whether it can be reached.
    #[n(1)]
    pub state: PeerState,
    /// Over the best of its sessions.
    #[n(2)]
    pub path: PathWord,
    /// Why not better.
    #[n(3)]
    pub why: Option<String>,
}

/// A peer's port that could not be had.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Conflict {
    /// Whose.
    #[n(0)]
    pub peer: AgentId,
    /// Which number here.
    #[n(1)]
    pub port: u16,
    /// Its transport.
    #[n(2)]
    pub protocol: Protocol,
    /// Where it is instead.
    #[n(3)]
    pub instead: Option<u16>,
    /// Why, and what to do.
    #[n(4)]
    pub why: String,
}

/// What changed since the last report of this connection.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Report {
    /// The NAT.
    #[n(0)]
    pub nat: Option<Nat>,
    /// Peers whose state or path changed.
    #[cbor(n(1), default)]
    pub peers: Vec<PeerReport>,
    /// All conflicts.
    #[n(2)]
    pub conflicts: Option<Vec<Conflict>>,
    /// The agent's software version.
    #[n(3)]
    pub version: Option<String>,
    /// The newest records that peers of other authorities showed, for an operator whom nobody over there may tell.
    #[cbor(n(4), default)]
    pub records: Vec<RecordBytes>,
}

impl Report {
    pub(super) fn is_within_limits(&self) -> bool {
        let conflicts = self.conflicts.as_deref().unwrap_or_default();
        self.peers.len() <= MAX_REPORTED
            && conflicts.len() <= MAX_REPORTED
            && self.nat.as_ref().is_none_or(|nat| nat.word.len() <= MAX_WORD && nat.behaviour.len() <= MAX_TEXT)
            && self.peers.iter().all(|peer| peer.why.as_ref().is_none_or(|why| why.len() <= MAX_TEXT))
            && conflicts.iter().all(|conflict| conflict.why.len() <= MAX_TEXT)
            && self.records.len() <= MAX_REPORTED
            && self.records.iter().all(|record| record.0.len() <= MAX_RECORD)
            && self.version.as_ref().is_none_or(|version| version.len() <= MAX_VERSION)
    }
}

/// `text`, cut at a character so that it has at most [`MAX_TEXT`] bytes.
#[must_use]
pub fn clipped(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

/// Why the operator ends a stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum GoAwayCode {
    /// It shuts down, or balances.
    Closing = 0,
    /// The agent sent what no agent sends.
    Malformed = 1,
    /// The agent does not hold the key it names.
    BadProof = 2,
    /// The token is not a good one.
    BadToken = 3,
    /// The pod is no agent.
    NoAgent = 4,
    /// The pod is several agents.
    Ambiguous = 5,
    /// The pod was deleted.
    PodGone = 6,
    /// The instance was withdrawn.
    Denied = 7,
    /// The passport does not count any more.
    EnrolAnew = 8,
    /// The replica has not seen what the agent has.
    Behind = 9,
    /// The operator cannot answer for the cluster at the moment.
    NotReady = 10,
    /// Too many agents ask at once.
    Busy = 11,
    /// Another connection of this instance took over.
    Replaced = 12,
}

impl GoAwayCode {
    /// An unknown one is a passing trouble that we have no word for.
    #[must_use]
    pub fn read(code: u8) -> Self {
        match code {
            0 => Self::Closing,
            1 => Self::Malformed,
            2 => Self::BadProof,
            3 => Self::BadToken,
            4 => Self::NoAgent,
            5 => Self::Ambiguous,
            6 => Self::PodGone,
            7 => Self::Denied,
            8 => Self::EnrolAnew,
            9 => Self::Behind,
            11 => Self::Busy,
            12 => Self::Replaced,
            _ => Self::NotReady,
        }
    }
}

impl<C> Encode<C> for GoAwayCode {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u8(*self as u8)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for GoAwayCode {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Ok(Self::read(d.u8()?))
    }
}

/// The operator's last frame.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct GoAway {
    /// Why.
    #[n(0)]
    pub code: GoAwayCode,
    /// What to do, for whoever reads the agent's status.
    #[n(1)]
    pub text: String,
    /// How long the agent should stay away, in seconds.
    #[n(2)]
    pub retry_after: Option<u32>,
}

impl GoAway {
    /// With a text that is cut where it is too long.
    #[must_use]
    pub fn new(code: GoAwayCode, text: &str, retry_after: Option<u32>) -> Self {
        Self { code, text: text[..text.floor_char_boundary(MAX_GOODBYE)].to_owned(), retry_after }
    }

    pub(super) fn is_within_limits(&self) -> bool {
        self.text.len() <= MAX_GOODBYE
    }
}
