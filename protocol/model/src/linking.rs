//! What the operators of two linked clusters tell each other (docs/spec/linking.md).
//!
//! Each side opens one stream to the other and tells what it has: its keys, its relays, whom its agents would like to talk
//! to, which of its instances are denied. The other side answers with nothing but how much it has heard, so an answer
//! never says whether something exists there. All of it is state: a stream that broke is opened anew and everything told
//! again.

use core::time::Duration;

use minicbor::{Decode, Encode};

use crate::authority::{AuthorityRecord, RecordError};
use crate::id::{Fingerprint, InstanceId, TrustId};
use crate::name::AgentName;
use crate::operator::frame::{body, framed, open};
use crate::operator::{BadMessage, Keepalive};
use crate::relay::RelayInfo;
use crate::time::UnixTime;

/// What the agent is called that speaks for a cluster. One label: agents in clusters have two, so no AgentPeer has it.
pub const OPERATOR: &str = "operator";
/// The port that it offers other operators, and what the port is called.
pub const PORT: u16 = 1;
/// See [`PORT`].
pub const PORT_NAME: &str = "linking";

/// Longest frame, without its length: two records and sixteen relays with the longest host names.
pub const MAX_FRAME: usize = 16_384;
/// Most records in a [`Hello`].
pub const MAX_RECORDS: usize = 2;
/// Longest record.
pub const MAX_RECORD: usize = 512;
/// Most relays in a [`Hello`].
pub const MAX_RELAYS: usize = 16;
/// Longest purpose of a [`Wish`], in bytes of UTF-8.
pub const MAX_PURPOSE: usize = 512;
/// Longest version, in bytes.
pub const MAX_VERSION: usize = 64;
/// Most messages that may be on their way without a [`Heard`] for them.
pub const WINDOW: u64 = 64;
/// Most wishes that one side tells, and that the other keeps.
pub const MAX_WISHES: usize = 1000;
/// A side that has told nothing for this long sends a keepalive, and expects an answer.
pub const KEEPALIVE: Duration = Duration::from_secs(15);
/// A side that has heard nothing for this long takes the stream for dead.
pub const SILENCE: Duration = Duration::from_secs(45);
/// For how long the relays of a former list are used besides those of the new one.
pub const RELAYS_OVERLAP: Duration = Duration::from_secs(600);

/// First on every stream, and again when any of it changes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The teller's software version, for status.
    #[n(0)]
    pub version: Option<String>,
    /// Its authority's records that count, the newest first.
    #[n(1)]
    pub records: Vec<RecordBytes>,
    /// Where its agents are found.
    #[n(2)]
    pub relays: Vec<RelayInfo>,
}

/// A record as it travels; [`Hello::records`] verifies it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(transparent)]
pub struct RecordBytes(#[cbor(n(0), with = "minicbor::bytes")] pub Vec<u8>);

impl Hello {
    /// The records, verified, of the authority that the hearer expects.
    ///
    /// # Errors
    /// One is not good, or of somebody else: nothing of this hello counts.
    pub fn records(&self, of: &Fingerprint, now: UnixTime) -> Result<Vec<AuthorityRecord>, RecordError> {
        let read = |bytes: &RecordBytes| {
            let record = AuthorityRecord::verify(&bytes.0, now)?;
            if record.fingerprint() == *of { Ok(record) } else { Err(RecordError::Malformed) }
        };
        self.records.iter().map(read).collect()
    }

    fn is_within_limits(&self) -> bool {
        self.version.as_ref().is_none_or(|text| text.len() <= MAX_VERSION)
            && (1..=MAX_RECORDS).contains(&self.records.len())
            && self.records.iter().all(|record| record.0.len() <= MAX_RECORD)
            && self.relays.len() <= MAX_RELAYS
    }
}

/// One of the teller's agents has consented to one of the hearer's, and waits for its owner.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Wish {
    /// The teller's declaration of it.
    #[n(0)]
    pub id: TrustId,
    /// The teller's agent.
    #[n(1)]
    pub from: AgentName,
    /// The hearer's agent, if there is one of that name.
    #[n(2)]
    pub to: AgentName,
    /// What it is for, in the words of the asker's owner.
    #[n(3)]
    pub purpose: Option<String>,
}

/// The consent was taken back. Whether the hearer has consented or not, sessions of the two have ended.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Withdrawn {
    /// [`Wish::id`].
    #[n(0)]
    pub id: TrustId,
}

/// An instance of the teller's whose passport does not count any more.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Denied {
    /// Whose.
    #[n(0)]
    pub agent: AgentName,
    /// Which.
    #[n(1)]
    pub instance: InstanceId,
    /// When its passport ends by itself.
    #[n(2)]
    pub until: UnixTime,
}

/// Everything that there is has been told: a wish that the hearer knows from an earlier stream and that was not among it
/// is withdrawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Told {}

/// What the opener of a stream says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tell {
    /// Who it is, and where.
    Hello(Hello),
    /// A request for trust.
    Wish(Wish),
    /// And its end.
    Withdrawn(Withdrawn),
    /// An instance to refuse.
    Denied(Denied),
    /// The end of the beginning.
    Told(Told),
    /// A sign of life.
    Keepalive(Keepalive),
}

/// The only answer: how many messages of this stream have been heard. It is the same whatever they were about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Heard {
    /// Since the stream began.
    #[n(0)]
    pub count: u64,
}

impl Tell {
    /// The frame, with its length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(body) => framed(0, body),
            Self::Wish(body) => framed(1, body),
            Self::Withdrawn(body) => framed(2, body),
            Self::Denied(body) => framed(3, body),
            Self::Told(body) => framed(4, body),
            Self::Keepalive(body) => framed(5, body),
        }
    }

    /// Reads a frame without its length. `None`: of a kind that this version does not know.
    ///
    /// # Errors
    /// [`BadMessage`], which ends the stream.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadMessage> {
        let (kind, mut d) = open(bytes)?;
        let message = match kind {
            0 => Self::Hello(body(kind, &mut d, Hello::is_within_limits)?),
            1 => Self::Wish(body(kind, &mut d, |wish: &Wish| {
                wish.purpose.as_ref().is_none_or(|text| text.len() <= MAX_PURPOSE)
            })?),
            2 => Self::Withdrawn(body(kind, &mut d, |_| true)?),
            3 => Self::Denied(body(kind, &mut d, |_| true)?),
            4 => Self::Told(body(kind, &mut d, |_| true)?),
            5 => Self::Keepalive(body(kind, &mut d, |_| true)?),
            _ => return Ok(None),
        };
        Ok(Some(message))
    }
}

impl Heard {
    /// The frame, with its length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        framed(0, self)
    }

    /// Reads a frame without its length. `None`: of a kind that this version does not know.
    ///
    /// # Errors
    /// [`BadMessage`], which ends the stream.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadMessage> {
        let (kind, mut d) = open(bytes)?;
        match kind {
            0 => body(kind, &mut d, |_| true).map(Some),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::operator::PREFIX;
    use zeroize::Zeroizing;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn hello(records: usize) -> Hello {
        let authority = Authority::new(&Zeroizing::new([3; 96]), NOW);
        let record = RecordBytes(authority.record().as_bytes().to_vec());
        Hello { records: vec![record; records], ..Hello::default() }
    }

    #[test]
    fn a_hello_counts_for_the_authority_that_signed_it_only() {
        let ours = Authority::new(&Zeroizing::new([3; 96]), NOW).fingerprint();
        assert_eq!(hello(1).records(&ours, NOW).map(|records| records.len()), Ok(1));
        let others = Authority::new(&Zeroizing::new([4; 96]), NOW).fingerprint();
        assert!(hello(1).records(&others, NOW).is_err());
    }

    #[test]
    fn what_breaks_a_limit_ends_the_stream() {
        for count in [0, MAX_RECORDS + 1] {
            let frame = Tell::Hello(hello(count)).encode();
            assert_eq!(Tell::decode(&frame[PREFIX..]), Err(BadMessage::Limit { kind: 0 }), "{count} records");
        }
        let wish = Wish {
            id: TrustId([1; 16]),
            from: "a.b".parse().expect("a name"),
            to: "c.d".parse().expect("a name"),
            purpose: Some("x".repeat(MAX_PURPOSE + 1)),
        };
        assert_eq!(Tell::decode(&Tell::Wish(wish).encode()[PREFIX..]), Err(BadMessage::Limit { kind: 1 }));
    }

    #[test]
    fn the_largest_hello_fits_a_frame() {
        let relay = RelayInfo {
            key: crate::AgreementKey([7; 32]),
            host: format!("{}.example", "a.".repeat(120) + "b").parse().expect("a host"),
            port: 65535,
            tls: Some(65535),
        };
        let records = vec![RecordBytes(vec![9; MAX_RECORD]); MAX_RECORDS];
        let version = Some("v".repeat(MAX_VERSION));
        let largest = Hello { version, records, relays: vec![relay; MAX_RELAYS] };
        assert!(Tell::Hello(largest).encode().len() - PREFIX <= MAX_FRAME);
    }

    #[test]
    fn an_unknown_kind_is_skipped() {
        assert_eq!(Tell::decode(&crate::cbor::to_vec(&(99u8, Told {}))), Ok(None));
        assert_eq!(Heard::decode(&crate::cbor::to_vec(&(99u8, Told {}))), Ok(None));
    }
}
