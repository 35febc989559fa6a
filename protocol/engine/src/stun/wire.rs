//! What plain and authenticated messages share: the test for "is this STUN at all", the attribute walk and FINGERPRINT.
//!
//! stun-rs encodes and decodes attribute values. What it leaves open, we do here over the raw bytes: it accepts a
//! message without integrity, compares tags with `==`, and takes only text as a key.

use stun_rs::attributes::stun::XorMappedAddress;
use stun_rs::methods::BINDING;
use stun_rs::{MessageClass, MessageDecoder, MessageEncoder, StunAttribute, StunMessage, StunMessageBuilder};

/// Bytes of the STUN header, RFC 8489 section 5.
pub(super) const HEADER_LEN: usize = 20;
/// Type field of a Binding request.
pub(super) const BINDING_REQUEST: u16 = 0x0001;
/// Type field of a Binding success response.
pub(super) const BINDING_SUCCESS: u16 = 0x0101;
/// Attribute type of FINGERPRINT.
pub(super) const FINGERPRINT: u16 = 0x8028;
/// Bytes that FINGERPRINT takes with its attribute header.
pub(super) const FINGERPRINT_LEN: usize = 8;
/// Longest message we look at: what every IPv4 host must take (576, RFC 1122) less IP and UDP headers.
const MAX_LEN: usize = 548;
const ATTRIBUTE_HEADER_LEN: usize = 4;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];

/// The 96 random bits that pair a response with its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransactionId(pub [u8; 12]);

/// Whether a datagram is a STUN message, judged by first byte, length and magic cookie alone. Does not allocate, so it
/// can stand in front of everything else that shares the socket.
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN
        && datagram.len() <= MAX_LEN
        && datagram[0] <= 3
        && datagram[4..8] == MAGIC_COOKIE
        && usize::from(read_u16(datagram, 2)) == datagram.len() - HEADER_LEN
        && datagram.len().is_multiple_of(4)
}

/// Why a datagram is not a message of ours. It is dropped whichever it was; the reason is for tests and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// First byte, length or magic cookie are not STUN's.
    #[error("not a STUN message")]
    NotStun,
    /// Not a Binding request or success response.
    #[error("not a Binding request or success response")]
    WrongType,
    /// Attributes do not fill the message exactly, or one that is needed is missing or out of place.
    #[error("attributes are missing, cut off or out of order")]
    Malformed,
    /// FINGERPRINT does not match.
    #[error("FINGERPRINT does not match")]
    Fingerprint,
    /// MESSAGE-INTEGRITY-SHA256 does not verify with this session's key.
    #[error("MESSAGE-INTEGRITY-SHA256 does not verify")]
    Integrity,
}

/// One attribute as it lies in the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attribute<'a> {
    pub(super) kind: u16,
    /// Where the attribute's header starts, counted from the start of the message.
    pub(super) offset: usize,
    pub(super) value: &'a [u8],
}

/// Walks the attributes of a message that passed [`is_stun`]; ends after the first malformed one.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a> {
    message: &'a [u8],
    offset: usize,
}

impl<'a> Attributes<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self { message, offset: HEADER_LEN }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Rejected>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        if offset >= self.message.len() {
            return None;
        }
        let value_start = offset + ATTRIBUTE_HEADER_LEN;
        if value_start > self.message.len() {
            self.offset = self.message.len();
            return Some(Err(Rejected::Malformed));
        }
        let value_end = value_start + usize::from(read_u16(self.message, offset + 2));
        let next = value_end.next_multiple_of(4);
        if next > self.message.len() {
            self.offset = self.message.len();
            return Some(Err(Rejected::Malformed));
        }
        self.offset = next;
        let kind = read_u16(self.message, offset);
        Some(Ok(Attribute { kind, offset, value: &self.message[value_start..value_end] }))
    }
}

/// The message type field; call only after [`is_stun`].
pub(super) fn message_type(message: &[u8]) -> u16 {
    read_u16(message, 0)
}

/// The transaction id; call only after [`is_stun`].
pub(super) fn transaction_id(message: &[u8]) -> TransactionId {
    let mut id = [0; 12];
    id.copy_from_slice(&message[8..HEADER_LEN]);
    TransactionId(id)
}

/// Encodes header and `attributes` by stun-rs, with room for what the caller appends.
pub(super) fn encode(class: MessageClass, id: TransactionId, attributes: Vec<StunAttribute>) -> Vec<u8> {
    let mut builder = StunMessageBuilder::new(BINDING, class).with_transaction_id(stun_rs::TransactionId::from(id.0));
    for attribute in attributes {
        builder = builder.with_attribute(attribute);
    }
    // The largest message of ours is a plain response with two IPv6 addresses: 20 + 24 + 24 + 8.
    let mut buffer = vec![0; 128];
    let length = MessageEncoder::default()
        .encode(&mut buffer, &builder.build())
        .expect("our attributes are valid and fit into 128 bytes");
    buffer.truncate(length);
    buffer
}

/// Decodes by stun-rs, without validation: integrity and layout are checked over the raw bytes.
pub(super) fn decode(message: &[u8]) -> Result<StunMessage, Rejected> {
    MessageDecoder::default().decode(message).map(|(decoded, _)| decoded).map_err(|_| Rejected::Malformed)
}

/// XOR-MAPPED-ADDRESS of a decoded message, IPv4-mapped addresses unwrapped.
pub(super) fn mapped_address(message: &StunMessage) -> Result<std::net::SocketAddr, Rejected> {
    let attribute = message.get::<XorMappedAddress>().ok_or(Rejected::Malformed)?;
    let address = attribute.as_xor_mapped_address().map_err(|_| Rejected::Malformed)?;
    Ok(canonical(*address.socket_address()))
}

/// Reads IPv4-mapped IPv6 addresses as IPv4, so that one endpoint has one name.
pub fn canonical(address: std::net::SocketAddr) -> std::net::SocketAddr {
    std::net::SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Appends an attribute whose value is a multiple of four bytes long, and sets the header's length to end with it.
pub(super) fn append(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    debug_assert!(value.len().is_multiple_of(4), "callers pass padded values");
    let length = u16::try_from(value.len()).expect("attribute values of ours have at most 32 bytes");
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(value);
    let body = u16::try_from(message.len() - HEADER_LEN).expect("messages of ours have at most 128 bytes");
    message[2..4].copy_from_slice(&body.to_be_bytes());
}

/// Appends FINGERPRINT. Its checksum covers the header with the final length, so that is set first.
pub(super) fn append_fingerprint(message: &mut Vec<u8>) {
    append(message, FINGERPRINT, &[0; 4]);
    let start = message.len() - FINGERPRINT_LEN;
    let value = fingerprint(&message[..start]).to_be_bytes();
    message[start + ATTRIBUTE_HEADER_LEN..].copy_from_slice(&value);
}

/// Checks the FINGERPRINT that ends a message.
pub(super) fn check_fingerprint(message: &[u8], attribute: &Attribute<'_>) -> Result<(), Rejected> {
    let ends_message = attribute.offset + FINGERPRINT_LEN == message.len();
    if attribute.value.len() != 4 || !ends_message {
        return Err(Rejected::Malformed);
    }
    let expected = fingerprint(&message[..attribute.offset]).to_be_bytes();
    if attribute.value == expected { Ok(()) } else { Err(Rejected::Fingerprint) }
}

pub(super) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// CRC-32 (ISO-HDLC) xor "STUN", RFC 8489 section 14.7. Bit by bit: messages are short and few.
fn fingerprint(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc ^ 0x5354_554E
}
