//! Authenticated checks between two peers of a session (`docs/spec/paths.md` section 1.2).
//!
//! Only these teach a path. The layout is fixed, so there is one valid form of each message: any flipped bit, missing,
//! added or moved attribute is a rejection. Keys are directional: a message thrown back at its sender does not verify.

use std::fmt;
use std::net::SocketAddr;

use stun_rs::attributes::ice::Priority;
use stun_rs::attributes::stun::XorMappedAddress;
use stun_rs::{MessageClass, StunAttribute};
use zeroize::{Zeroize, Zeroizing};

use super::wire::{self, Attribute, Rejected, TransactionId};
use crate::mac::MacKey;

/// Label under which the session's exporter yields the 64 bytes for [`CheckKeys::from_exporter`]; the context is empty.
pub const EXPORTER_LABEL: &[u8] = b"peerage path checks v1";

const PRIORITY: u16 = 0x0024;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const CHECK_STATE: u16 = 0xFF50;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001C;
const IN_USE: u32 = 1;

/// Which end of the session we are; it decides which half of the exporter's bytes we send with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Dialled the session.
    Initiator,
    /// Accepted it.
    Responder,
}

/// What a key yields its tag from. No STUN message begins like this, so no tag is the beginning of a message's own.
const TAG_LABEL: &[u8] = b"peerage check tag v1";
const TAG_LEN: usize = 4;

/// The two keys of a session, one per direction, and the tags by which a check's session is found without one.
pub struct CheckKeys {
    send: MacKey,
    receive: MacKey,
    send_tag: [u8; TAG_LEN],
    receive_tag: [u8; TAG_LEN],
}

impl CheckKeys {
    /// Splits the exporter's bytes: the first half is for what the initiator sends. The caller's copy is wiped.
    pub fn from_exporter(role: Role, material: &mut [u8; 64]) -> Self {
        let [initiator, responder] = halves(material).map(MacKey::new);
        material.zeroize();
        let (send, receive) = match role {
            Role::Initiator => (initiator, responder),
            Role::Responder => (responder, initiator),
        };
        let (send_tag, receive_tag) = (tag(&send), tag(&receive));
        Self { send, receive, send_tag, receive_tag }
    }

    /// The id of a request that we send: our tag, and what makes it one of its own.
    pub fn transaction_id(&self, random: [u8; 8]) -> TransactionId {
        let mut id = [0; 12];
        id[..TAG_LEN].copy_from_slice(&self.send_tag);
        id[TAG_LEN..].copy_from_slice(&random);
        TransactionId(id)
    }

    /// Whether a message of STUN's shape may be one that these keys verify. Who saw a check of this session can make others
    /// pass here; who did not, one in four billion.
    pub fn are_for(&self, datagram: &[u8]) -> bool {
        if !wire::is_stun(datagram) {
            return false;
        }
        let tag = match wire::message_type(datagram) {
            wire::BINDING_REQUEST => &self.receive_tag,
            wire::BINDING_SUCCESS => &self.send_tag,
            _ => return false,
        };
        wire::transaction_id(datagram).0.starts_with(tag)
    }
}

/// Each half, in memory that is wiped.
fn halves(material: &[u8; 64]) -> [Zeroizing<[u8; 32]>; 2] {
    let mut halves = [Zeroizing::new([0; 32]), Zeroizing::new([0; 32])];
    for (half, bytes) in halves.iter_mut().zip(material.chunks(32)) {
        half.copy_from_slice(bytes);
    }
    halves
}

fn tag(key: &MacKey) -> [u8; TAG_LEN] {
    *key.sign(TAG_LABEL).as_ref().first_chunk().expect("SHA-256 gives 32 bytes")
}

impl fmt::Debug for CheckKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckKeys(..)")
    }
}

/// "Do you hear me at this address?"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckRequest {
    /// From [`CheckKeys::transaction_id`]; repeated in the answer.
    pub id: TransactionId,
    /// RFC 8445 priority of the sender's candidate; 0 means none.
    pub priority: u32,
    /// Position in what the sender sent in this session; its receiver's [`super::ReplayWindow`] refuses repeats.
    pub sequence: u64,
    /// The sender's traffic takes this path.
    pub in_use: bool,
}

/// "I do, and you look like this."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckResponse {
    /// The request's transaction id.
    pub id: TransactionId,
    /// Where the request came from.
    pub mapped: SocketAddr,
}

/// A message that verified with this session's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The peer asks.
    Request(CheckRequest),
    /// The peer answers.
    Response(CheckResponse),
}

impl Check {
    /// The message as bytes to send: 88 for a request, 76 or 88 for a response.
    pub fn encode(&self, keys: &CheckKeys) -> Vec<u8> {
        let mut message = match self {
            Self::Request(request) => {
                let priority = StunAttribute::from(Priority::from(request.priority));
                let mut message = wire::encode(MessageClass::Request, request.id, vec![priority]);
                let mut state = [0; 12];
                state[..8].copy_from_slice(&request.sequence.to_be_bytes());
                state[8..].copy_from_slice(&(if request.in_use { IN_USE } else { 0 }).to_be_bytes());
                wire::append(&mut message, CHECK_STATE, &state);
                message
            }
            Self::Response(response) => {
                let mapped = StunAttribute::from(XorMappedAddress::from(response.mapped));
                wire::encode(MessageClass::SuccessResponse, response.id, vec![mapped])
            }
        };
        let end = message.len();
        wire::append(&mut message, MESSAGE_INTEGRITY_SHA256, &[0; 32]);
        let tag = keys.send.sign(&message[..end]);
        message[end + 4..].copy_from_slice(tag.as_ref());
        wire::append_fingerprint(&mut message);
        message
    }

    /// Verifies and reads a datagram. Cheap tests come first, attribute values are read only after the tag verified.
    pub fn decode(datagram: &[u8], keys: &CheckKeys) -> Result<Self, Rejected> {
        if !wire::is_stun(datagram) {
            return Err(Rejected::NotStun);
        }
        let id = wire::transaction_id(datagram);
        match wire::message_type(datagram) {
            wire::BINDING_REQUEST => {
                let [priority, state, integrity, fingerprint] = layout(datagram)?;
                expect(&priority, PRIORITY, 4)?;
                expect(&state, CHECK_STATE, 12)?;
                verify(datagram, &integrity, &fingerprint, keys)?;
                decode_request(datagram, id, state.value).map(Self::Request)
            }
            wire::BINDING_SUCCESS => {
                let [mapped, integrity, fingerprint] = layout(datagram)?;
                if mapped.kind != XOR_MAPPED_ADDRESS || !matches!(mapped.value.len(), 8 | 20) {
                    return Err(Rejected::Malformed);
                }
                verify(datagram, &integrity, &fingerprint, keys)?;
                let mapped = wire::mapped_address(&wire::decode(datagram)?)?;
                Ok(Self::Response(CheckResponse { id, mapped }))
            }
            _ => Err(Rejected::WrongType),
        }
    }
}

fn decode_request(datagram: &[u8], id: TransactionId, state: &[u8]) -> Result<CheckRequest, Rejected> {
    let message = wire::decode(datagram)?;
    let priority = message.get::<Priority>().ok_or(Rejected::Malformed)?;
    let priority = *priority.as_priority().map_err(|_| Rejected::Malformed)?.as_ref();
    let (sequence, flags) = state.split_first_chunk::<8>().ok_or(Rejected::Malformed)?;
    let flags = flags.first_chunk::<4>().ok_or(Rejected::Malformed)?;
    Ok(CheckRequest {
        id,
        priority,
        sequence: u64::from_be_bytes(*sequence),
        in_use: u32::from_be_bytes(*flags) & IN_USE != 0,
    })
}

/// Exactly `N` attributes that fill the message.
fn layout<const N: usize>(datagram: &[u8]) -> Result<[Attribute<'_>; N], Rejected> {
    let mut walk = wire::Attributes::of(datagram);
    let mut found = [Attribute { kind: 0, offset: 0, value: &[] }; N];
    for slot in &mut found {
        *slot = walk.next().ok_or(Rejected::Malformed)??;
    }
    if walk.next().is_some() { Err(Rejected::Malformed) } else { Ok(found) }
}

fn expect(attribute: &Attribute<'_>, kind: u16, length: usize) -> Result<(), Rejected> {
    if attribute.kind == kind && attribute.value.len() == length { Ok(()) } else { Err(Rejected::Malformed) }
}

/// FINGERPRINT, then the tag in constant time. The tag covers the message as it was when integrity was its last attribute.
fn verify(
    datagram: &[u8],
    integrity: &Attribute<'_>,
    fingerprint: &Attribute<'_>,
    keys: &CheckKeys,
) -> Result<(), Rejected> {
    expect(integrity, MESSAGE_INTEGRITY_SHA256, 32)?;
    expect(fingerprint, wire::FINGERPRINT, 4)?;
    wire::check_fingerprint(datagram, fingerprint)?;
    let length = u16::try_from(fingerprint.offset - wire::HEADER_LEN).map_err(|_| Rejected::Malformed)?;
    let mut context = keys.receive.begin();
    context.update(&datagram[..2]);
    context.update(&length.to_be_bytes());
    context.update(&datagram[4..integrity.offset]);
    let expected = context.sign();
    aws_lc_rs::constant_time::verify_slices_are_equal(expected.as_ref(), integrity.value)
        .map_err(|_| Rejected::Integrity)
}
