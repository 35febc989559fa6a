//! What two agents tell each other inside a session (docs/spec/session.md).
//!
//! Each side opens one unidirectional stream for these, its first. A message is two bytes of length, big-endian, then
//! that many bytes of CBOR: the array [kind, body]. An unknown kind is skipped, so that a newer agent may say more.

use core::net::SocketAddr;

use minicbor::{Decode, Decoder, Encode};

use crate::InstanceId;
use crate::cbor;
use crate::name::Label;
use crate::snapshot::Port;
use crate::time::UnixTime;

/// Longest encoded message. The largest, a full candidate list, has about 500 bytes.
pub const MAX_MESSAGE: usize = 4096;
/// Most candidates in one list (DESIGN section 5).
pub const MAX_CANDIDATES: usize = 16;
/// Most ended instances that one agent may name.
pub const MAX_PREDECESSORS: usize = 4;
/// Most other instances of itself that one agent may name.
pub const MAX_SIBLINGS: usize = 8;
/// Most ports one agent may announce.
pub const MAX_PORTS: usize = 64;

/// Where a candidate address comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum CandidateKind {
    /// An address of one of our interfaces.
    #[n(0)]
    Host,
    /// Given by our owner as reachable.
    #[n(1)]
    Fixed,
    /// What a relay saw of us.
    #[n(2)]
    ServerReflexive,
    /// Where our next packet to a new destination will come from, if our NAT goes on as it did.
    #[n(3)]
    Predicted,
}

impl CandidateKind {
    /// Whether this version has a kind of that number.
    const fn is_known(number: u64) -> bool {
        number <= Self::Predicted as u64
    }
}

/// An address where its sender may be reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Candidate {
    /// Where it comes from.
    #[n(0)]
    pub kind: CandidateKind,
    /// The address itself.
    #[cbor(n(1), with = "cbor::socket_addr")]
    pub address: SocketAddr,
}

/// Which ports the receiver may open at the sender, and what the sender calls itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// What the receiver may open.
    #[n(0)]
    pub ports: Vec<Port>,
    /// The sender's software version, for status.
    #[n(1)]
    pub version: Option<String>,
    /// Instances of the same agent that have ended for certain, because the sender took their place. Sessions with them
    /// are over.
    #[cbor(n(2), default)]
    pub succeeds: Vec<InstanceId>,
    /// Which run of its instance the sender is. A process that restarts with the key it kept is another one.
    #[n(3)]
    pub run: Option<RunId>,
    /// The sender's clock when it said this. Shows people that clocks differ, and decides nothing.
    #[n(4)]
    pub time: Option<UnixTime>,
    /// Other instances of the same agent, as far as the sender has heard: the receiver may dial them.
    #[cbor(n(5), default, skip_if = "Vec::is_empty")]
    pub siblings: Vec<InstanceId>,
}

/// One process of an instance: drawn when it starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(transparent)]
pub struct RunId(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 8]);

/// The sender's addresses, all of them; replaces what it said before.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Candidates {
    /// Grows with each list.
    #[n(0)]
    pub generation: u64,
    /// The list. Candidates of a kind that this version does not know are left out when it is read.
    #[cbor(n(1), with = "known_candidates")]
    pub list: Vec<Candidate>,
    /// The sender's NAT as far as it knows: an RFC 3489 word, for the other side's explanation of the path.
    #[n(2)]
    pub nat: Option<Label>,
    /// Whether the sender's owner allows a birthday round with the receiver.
    #[cbor(n(3), default)]
    pub birthday: bool,
}

/// The sender's own gateways are open towards every address of this list of the receiver's: checks may come
/// (docs/spec/paths.md section 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Opened {
    /// Which list: its [`Candidates::generation`].
    #[n(0)]
    pub generation: u64,
}

/// How far the sender is in a birthday round (docs/spec/paths.md section 9).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum BirthdayStep {
    /// My ports are unpredictable and my sockets are open: let your packets out to my address, over many ports.
    #[n(0)]
    Ready,
    /// They are out.
    #[n(1)]
    Probed,
}

/// A step of a birthday round.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Birthday {
    /// Which.
    #[n(0)]
    pub step: BirthdayStep,
}

/// A fresh credential for the same instance, before the old one ends.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Renewal {
    /// As in the handshake.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub credential: Vec<u8>,
}

/// The sender has nothing on this session and opens no more streams on it, because another session serves the pair.
///
/// The session is closed once each end has said so and has seen all streams that the other opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Retire {
    /// Bidirectional streams that the sender opened in all.
    #[n(0)]
    pub opened: u64,
    /// Bidirectional streams of the receiver's that the sender has seen, all of them over.
    #[n(1)]
    pub accepted: u64,
}

/// One control message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlMessage {
    /// First on every control stream, and again when the ports change.
    Hello(Hello),
    /// Addresses to try.
    Candidates(Candidates),
    /// A fresh credential.
    Renewal(Renewal),
    /// This session is not needed.
    Retire(Retire),
    /// A step of a birthday round.
    Birthday(Birthday),
    /// Checks may come.
    Opened(Opened),
}

/// A trust request, the one message of a request-only session. The asker's credential was shown in the handshake.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct TrustRequest {
    /// Why, in the asker's words; at most [`MAX_REASON`] bytes.
    #[n(0)]
    pub reason: String,
    /// Where the asker can be found.
    #[n(1)]
    pub relays: Vec<crate::relay::RelayInfo>,
}

/// Longest reason of a [`TrustRequest`], in bytes of UTF-8.
pub const MAX_REASON: usize = 500;
/// Longest encoded [`TrustRequest`].
pub const MAX_REQUEST: usize = 2048;

/// Bytes that are not a control message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a control message")]
pub struct BadMessage;

impl ControlMessage {
    /// The message with its two bytes of length in front.
    #[must_use]
    pub fn encode_framed(&self) -> Vec<u8> {
        let body = match self {
            Self::Hello(m) => cbor::to_vec(&(0u8, m)),
            Self::Candidates(m) => cbor::to_vec(&(1u8, m)),
            Self::Renewal(m) => cbor::to_vec(&(2u8, m)),
            Self::Retire(m) => cbor::to_vec(&(3u8, m)),
            Self::Birthday(m) => cbor::to_vec(&(4u8, m)),
            Self::Opened(m) => cbor::to_vec(&(5u8, m)),
        };
        let length = u16::try_from(body.len()).expect("our own messages stay below MAX_MESSAGE");
        let mut out = length.to_be_bytes().to_vec();
        out.extend_from_slice(&body);
        out
    }

    /// Reads one message without its length. `None` is a kind this version does not know.
    ///
    /// # Errors
    /// [`BadMessage`] for malformed bytes, a list over its limit, or trailing bytes.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadMessage> {
        let mut d = Decoder::new(bytes);
        if d.array().map_err(|_| BadMessage)? != Some(2) {
            return Err(BadMessage);
        }
        let message = match d.u8().map_err(|_| BadMessage)? {
            0 => Self::Hello(d.decode().map_err(|_| BadMessage)?),
            1 => Self::Candidates(d.decode().map_err(|_| BadMessage)?),
            2 => Self::Renewal(d.decode().map_err(|_| BadMessage)?),
            3 => Self::Retire(d.decode().map_err(|_| BadMessage)?),
            4 => Self::Birthday(d.decode().map_err(|_| BadMessage)?),
            5 => Self::Opened(d.decode().map_err(|_| BadMessage)?),
            _ => return Ok(None),
        };
        let within_limits = match &message {
            Self::Hello(hello) => {
                hello.ports.len() <= MAX_PORTS
                    && hello.succeeds.len() <= MAX_PREDECESSORS
                    && hello.siblings.len() <= MAX_SIBLINGS
                    && hello.version.as_ref().is_none_or(|v| v.len() <= 64)
            }
            Self::Candidates(candidates) => candidates.list.len() <= MAX_CANDIDATES,
            Self::Renewal(renewal) => renewal.credential.len() <= crate::passport::MAX_CREDENTIAL,
            Self::Retire(_) | Self::Birthday(_) | Self::Opened(_) => true,
        };
        match within_limits && d.position() == bytes.len() {
            true => Ok(Some(message)),
            false => Err(BadMessage),
        }
    }
}

/// A list of candidates, in which those of unknown kinds are skipped: a newer agent may have ways that this one lacks, and what
/// describes them need not be an address.
mod known_candidates {
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error as EncodeError, Write};
    use minicbor::{Decode, Decoder, Encoder};

    use super::{Candidate, CandidateKind, MAX_CANDIDATES};

    /// As much of a candidate as all kinds have.
    #[derive(Decode)]
    #[cbor(map)]
    struct Tagged {
        #[n(0)]
        kind: u64,
    }

    pub(super) fn encode<C, W: Write>(
        list: &[Candidate],
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.encode_with(list, ctx)?.ok()
    }

    pub(super) fn decode<'b, C>(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Vec<Candidate>, DecodeError> {
        let count = d.array()?.ok_or_else(|| DecodeError::message("a list without its length"))?;
        if usize::try_from(count).map_or(true, |count| count > MAX_CANDIDATES) {
            return Err(DecodeError::message("too many candidates"));
        }
        let mut known = Vec::new();
        for _ in 0..count {
            let begin = d.position();
            let Tagged { kind } = d.decode_with(ctx)?;
            if CandidateKind::is_known(kind) {
                d.set_position(begin);
                known.push(d.decode_with(ctx)?);
            }
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_reads_back_as_written() {
        let address = "[2001:db8::7]:4433".parse().expect("an address");
        let candidate = Candidate { kind: CandidateKind::ServerReflexive, address };
        for message in [
            ControlMessage::Hello(Hello::default()),
            ControlMessage::Candidates(Candidates {
                generation: 3,
                list: vec![candidate; 16],
                nat: None,
                birthday: true,
            }),
            ControlMessage::Birthday(Birthday { step: BirthdayStep::Probed }),
            ControlMessage::Opened(Opened { generation: u64::MAX }),
            ControlMessage::Renewal(Renewal { credential: vec![1; 400] }),
            ControlMessage::Retire(Retire { opened: 3, accepted: u64::MAX }),
        ] {
            let framed = message.encode_framed();
            assert_eq!(usize::from(u16::from_be_bytes([framed[0], framed[1]])), framed.len() - 2);
            assert_eq!(ControlMessage::decode(&framed[2..]), Ok(Some(message)));
        }
    }

    #[test]
    fn a_retirement_has_the_bytes_of_the_spec() {
        let framed = ControlMessage::Retire(Retire { opened: 2, accepted: 300 }).encode_framed();
        assert_eq!(framed, [0, 9, 0x82, 0x03, 0xa2, 0x00, 0x02, 0x01, 0x19, 0x01, 0x2c]);
    }

    #[test]
    fn a_hello_has_the_bytes_of_the_spec_and_one_without_a_run_is_read() {
        let run = Some(RunId([0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8]));
        let framed = ControlMessage::Hello(Hello { run, ..Hello::default() }).encode_framed();
        let bytes = [0, 17, 0x82, 0, 0xa3, 0, 0x80, 2, 0x80, 3, 0x48, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8];
        assert_eq!(framed, bytes);
        let earlier = ControlMessage::decode(&[0x82, 0, 0xa2, 0, 0x80, 2, 0x80]);
        assert_eq!(earlier, Ok(Some(ControlMessage::Hello(Hello::default()))));
        let siblings = vec![InstanceId([0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8])];
        let framed = ControlMessage::Hello(Hello { siblings, ..Hello::default() }).encode_framed();
        let bytes =
            [0, 18, 0x82, 0, 0xa3, 0, 0x80, 2, 0x80, 5, 0x81, 0x48, 0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8];
        assert_eq!(framed, bytes);
    }

    #[test]
    fn an_unknown_kind_is_skipped_and_an_overlong_list_is_an_error() {
        assert_eq!(ControlMessage::decode(&cbor::to_vec(&(99u8, Hello::default()))), Ok(None));
        let address = "192.0.2.1:1".parse().expect("an address");
        let list = vec![Candidate { kind: CandidateKind::Host, address }; MAX_CANDIDATES + 1];
        let long =
            ControlMessage::Candidates(Candidates { generation: 0, list, ..Candidates::default() }).encode_framed();
        assert_eq!(ControlMessage::decode(&long[2..]), Err(BadMessage));
    }
}
