//! Frames: a length, then CBOR `[kind, body]` (section 2).

use minicbor::{Decode, Decoder, Encode};

use super::enrol::{MAX_ENROLMENT, MAX_TOKEN, MAX_VERSION};
use super::{Ack, Enrol, GoAway, Hello, Passport, Renew, Report, Resume, Revision, Update};
use crate::passport::MAX_CREDENTIAL;

/// Bytes of the length before each frame.
pub const PREFIX: usize = 4;
/// Longest frame, without its length.
pub const MAX_FRAME: usize = 65_536;
/// Longest frame that the operator takes from who has not shown who it is.
pub const MAX_FIRST: usize = 16_384;

/// "I am here."
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Keepalive {}

/// What the operator says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToAgent {
    /// First on every connection.
    Hello(Hello),
    /// A passport: the answer to Enrol, Resume and Renew.
    Passport(Passport),
    /// Whom the agent may talk to.
    Update(Box<Update>),
    /// The end.
    GoAway(GoAway),
    /// A sign of life.
    Keepalive(Keepalive),
}

/// What the agent says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToOperator {
    /// Who it is, by a token.
    Enrol(Enrol),
    /// Who it is, by a passport.
    Resume(Resume),
    /// A fresh passport, please.
    Renew(Renew),
    /// An update is in force.
    Ack(Ack),
    /// How it is.
    Report(Report),
    /// A sign of life.
    Keepalive(Keepalive),
}

/// Bytes that are not a message of this protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// Not `[kind, body]`, or a body of another shape, or bytes left over.
    #[error("a frame is not a message of kind {kind:?}")]
    Malformed {
        /// Which it should have been, where that could be read.
        kind: Option<u8>,
    },
    /// A list or text is longer than allowed.
    #[error("a message of kind {kind} breaks a limit")]
    Limit {
        /// Which it is.
        kind: u8,
    },
}

/// No frame has this length: the other end does not speak this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {length} bytes; at most {max} are allowed here")]
pub struct NoFrame {
    /// What its length says.
    pub length: u32,
    /// What is allowed.
    pub max: usize,
}

/// How long the frame is whose [`PREFIX`] bytes these are.
///
/// # Errors
/// [`NoFrame`] for nothing, and for more than `max`.
pub fn frame_len(prefix: [u8; PREFIX], max: usize) -> Result<usize, NoFrame> {
    let length = u32::from_be_bytes(prefix);
    match usize::try_from(length) {
        Ok(len) if (1..=max).contains(&len) => Ok(len),
        Ok(_) | Err(_) => Err(NoFrame { length, max }),
    }
}

/// A frame without its length, and what is behind it.
pub type Split<'a> = (&'a [u8], &'a [u8]);

/// The first frame in `bytes`; `None` while it is not all there.
///
/// # Errors
/// As [`frame_len`].
pub fn split_frame(bytes: &[u8], max: usize) -> Result<Option<Split<'_>>, NoFrame> {
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    Ok(rest.split_at_checked(frame_len(*prefix, max)?))
}

impl ToAgent {
    /// The frame, with its length.
    ///
    /// # Panics
    /// If the message is longer than [`MAX_FRAME`]: whoever makes an [`Update`] splits it by [`Update::into_parts`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(body) => framed(0, body),
            Self::Passport(body) => framed(1, body),
            Self::Update(body) => framed(2, body),
            Self::GoAway(body) => framed(3, body),
            Self::Keepalive(body) => framed(4, body),
        }
    }

    /// Reads a frame without its length. `None`: of a kind that this version does not know.
    ///
    /// # Errors
    /// [`BadMessage`], which ends the connection.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadMessage> {
        let (kind, mut d) = open(bytes)?;
        let message = match kind {
            0 => Self::Hello(body(kind, &mut d, |_| true)?),
            1 => Self::Passport(body(kind, &mut d, |passport: &Passport| {
                passport.credential.len() <= MAX_CREDENTIAL && passport.enrolment.len() <= MAX_ENROLMENT
            })?),
            2 => Self::Update(Box::new(body(kind, &mut d, Update::is_within_limits)?)),
            3 => Self::GoAway(body(kind, &mut d, GoAway::is_within_limits)?),
            4 => Self::Keepalive(body(kind, &mut d, |_| true)?),
            _ => return Ok(None),
        };
        Ok(Some(message))
    }
}

impl ToOperator {
    /// The frame, with its length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Enrol(body) => framed(0, body),
            Self::Resume(body) => framed(1, body),
            Self::Renew(body) => framed(2, body),
            Self::Ack(body) => framed(3, body),
            Self::Report(body) => framed(4, body),
            Self::Keepalive(body) => framed(5, body),
        }
    }

    /// Reads a frame without its length. `None`: of a kind that this version does not know.
    ///
    /// # Errors
    /// [`BadMessage`], which ends the connection.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadMessage> {
        let version = |version: &Option<String>| version.as_ref().is_none_or(|text| text.len() <= MAX_VERSION);
        let have = |have: &Option<Revision>| have.as_ref().is_none_or(Revision::is_within_limits);
        let (kind, mut d) = open(bytes)?;
        let message = match kind {
            0 => Self::Enrol(body(kind, &mut d, |enrol: &Enrol| {
                enrol.token.len() <= MAX_TOKEN && version(&enrol.version) && have(&enrol.have)
            })?),
            1 => Self::Resume(body(kind, &mut d, |resume: &Resume| {
                resume.credential.len() <= MAX_CREDENTIAL
                    && resume.enrolment.len() <= MAX_ENROLMENT
                    && version(&resume.version)
                    && have(&resume.have)
            })?),
            2 => Self::Renew(body(kind, &mut d, |_| true)?),
            3 => Self::Ack(body(kind, &mut d, |_| true)?),
            4 => Self::Report(body(kind, &mut d, Report::is_within_limits)?),
            5 => Self::Keepalive(body(kind, &mut d, |_| true)?),
            _ => return Ok(None),
        };
        Ok(Some(message))
    }
}

pub(crate) fn framed<T: Encode<()>>(kind: u8, body: &T) -> Vec<u8> {
    let mut out = vec![0; PREFIX];
    minicbor::encode((kind, body), &mut out).expect("writing to a Vec cannot fail");
    let len = out.len() - PREFIX;
    assert!(len <= MAX_FRAME, "a message of kind {kind} has {len} bytes; its maker splits it");
    out[..PREFIX].copy_from_slice(&u32::try_from(len).expect("the longest frame is far below 4 GiB").to_be_bytes());
    out
}

pub(crate) fn open(bytes: &[u8]) -> Result<(u8, Decoder<'_>), BadMessage> {
    let malformed = BadMessage::Malformed { kind: None };
    let mut d = Decoder::new(bytes);
    match d.array() {
        Ok(Some(2)) => d.u8().map(|kind| (kind, d)).map_err(|_| malformed),
        Ok(_) | Err(_) => Err(malformed),
    }
}

pub(crate) fn body<'b, T: Decode<'b, ()>>(
    kind: u8,
    d: &mut Decoder<'b>,
    is_within_limits: impl FnOnce(&T) -> bool,
) -> Result<T, BadMessage> {
    let read: T = d.decode().map_err(|_| BadMessage::Malformed { kind: Some(kind) })?;
    if d.position() != d.input().len() {
        return Err(BadMessage::Malformed { kind: Some(kind) });
    }
    match is_within_limits(&read) {
        true => Ok(read),
        false => Err(BadMessage::Limit { kind }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor;
    use crate::operator::{GoAwayCode, MAX_TEXT, Nat};

    #[test]
    fn an_unknown_kind_is_skipped_and_a_known_one_must_be_whole() {
        assert_eq!(ToAgent::decode(&cbor::to_vec(&(99u8, Keepalive {}))), Ok(None));
        assert_eq!(ToOperator::decode(&cbor::to_vec(&(99u8, Keepalive {}))), Ok(None));
        let mut longer = cbor::to_vec(&(4u8, Keepalive {}));
        longer.push(0);
        assert_eq!(ToAgent::decode(&longer), Err(BadMessage::Malformed { kind: Some(4) }));
        assert_eq!(ToAgent::decode(b"GET / HTTP/1.1"), Err(BadMessage::Malformed { kind: None }));
        assert_eq!(ToAgent::decode(&cbor::to_vec(&(0u8, 1u8))), Err(BadMessage::Malformed { kind: Some(0) }));
    }

    #[test]
    fn an_unknown_reason_to_go_is_a_passing_one() {
        let frame = cbor::to_vec(&(3u8, GoAway::new(GoAwayCode::Denied, "", None)));
        let unknown: Vec<u8> = frame.iter().map(|byte| if *byte == 7 { 23 } else { *byte }).collect();
        let read = ToAgent::decode(&unknown).expect("it is a message").expect("of a known kind");
        assert_eq!(read, ToAgent::GoAway(GoAway::new(GoAwayCode::NotReady, "", None)));
    }

    #[test]
    fn a_text_that_is_too_long_ends_the_connection() {
        let nat = Nat { word: String::new(), behaviour: "x".repeat(MAX_TEXT + 1) };
        let report = ToOperator::Report(Report { nat: Some(nat), ..Report::default() }).encode();
        assert_eq!(ToOperator::decode(&report[PREFIX..]), Err(BadMessage::Limit { kind: 4 }));
    }

    #[test]
    fn frames_come_apart_where_they_were_joined() {
        let two = [ToAgent::Keepalive(Keepalive {}).encode(), vec![0, 0]].concat();
        let (first, rest) = split_frame(&two, MAX_FRAME).expect("a length").expect("a whole frame");
        assert_eq!(ToAgent::decode(first), Ok(Some(ToAgent::Keepalive(Keepalive {}))));
        assert_eq!(split_frame(rest, MAX_FRAME), Ok(None), "half a length");
        assert_eq!(split_frame(&[0, 0, 0, 9, 1], MAX_FRAME), Ok(None), "half a frame");
        assert_eq!(frame_len([0; 4], MAX_FRAME), Err(NoFrame { length: 0, max: MAX_FRAME }));
        assert!(frame_len(*b"HTTP", MAX_FRAME).is_err());
        assert!(frame_len([0, 0, 0x40, 1], MAX_FIRST).is_err());
    }
}
