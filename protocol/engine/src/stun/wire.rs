//! What plain and authenticated messages share: the test for "is this STUN at all", the attribute walk, addresses and
//! FINGERPRINT.
//!
//! The five attributes that we read are a number or an address each. A library knows forty, with Unicode's tables for the
//! names and passwords among them, and reads them all before it can be asked for one; in tests stun-rs says whether we
//! read as others do.

use std::net::{IpAddr, SocketAddr};

/// Bytes of the STUN header, RFC 8489 section 5.
pub(super) const HEADER_LEN: usize = 20;
/// Type field of a Binding request.
pub(super) const BINDING_REQUEST: u16 = 0x0001;
/// Type field of a Binding success response.
pub(super) const BINDING_SUCCESS: u16 = 0x0101;
/// Attribute type of XOR-MAPPED-ADDRESS.
pub(super) const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Attribute type of FINGERPRINT.
pub(super) const FINGERPRINT: u16 = 0x8028;
/// Bytes that FINGERPRINT takes with its attribute header.
pub(super) const FINGERPRINT_LEN: usize = 8;
/// Longest message we look at: what every IPv4 host must take (576, RFC 1122) less IP and UDP headers.
const MAX_LEN: usize = 548;
const ATTRIBUTE_HEADER_LEN: usize = 4;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
/// Address families, RFC 8489 section 14.1.
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;

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

/// The value of the first attribute of that type; call only after the walk found all of them whole.
pub(super) fn find(message: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes::of(message)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind == kind)
        .map(|attribute| attribute.value)
}

/// XOR-MAPPED-ADDRESS of a message, IPv4-mapped addresses unwrapped.
pub(super) fn mapped_address(message: &[u8]) -> Result<SocketAddr, Rejected> {
    let mut value = find(message, XOR_MAPPED_ADDRESS).ok_or(Rejected::Malformed)?.to_vec();
    mask(&mut value, message);
    read_address(&value)
}

/// Appends XOR-MAPPED-ADDRESS.
pub(super) fn append_mapped_address(message: &mut Vec<u8>, address: SocketAddr) {
    let mut value = address_value(address);
    mask(&mut value, message);
    append(message, XOR_MAPPED_ADDRESS, &value);
}

/// Masks an address, or takes the mask off, by magic cookie and transaction id: NATs rewrite what looks like an address
/// of theirs, RFC 8489 section 14.2.
fn mask(value: &mut [u8], message: &[u8]) {
    let Some((port, address)) = value.get_mut(2..).and_then(|value| value.split_at_mut_checked(2)) else { return };
    for (field, mask) in [(port, &message[4..6]), (address, &message[4..HEADER_LEN])] {
        field.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// An address as an attribute's value, RFC 8489 section 14.1: family, port and address.
pub(super) fn address_value(address: SocketAddr) -> Vec<u8> {
    let mut value = vec![0, if address.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 }];
    value.extend_from_slice(&address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => value.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => value.extend_from_slice(&ip.octets()),
    }
    value
}

/// Reads an address, IPv4-mapped ones unwrapped.
pub(super) fn read_address(value: &[u8]) -> Result<SocketAddr, Rejected> {
    let (&[_, family, high, low], ip) = value.split_first_chunk().ok_or(Rejected::Malformed)?;
    let ip = match family {
        FAMILY_IPV4 => IpAddr::from(*ip.first_chunk::<4>().ok_or(Rejected::Malformed)?),
        FAMILY_IPV6 => IpAddr::from(*ip.first_chunk::<16>().ok_or(Rejected::Malformed)?),
        _ => return Err(Rejected::Malformed),
    };
    Ok(canonical(SocketAddr::new(ip, u16::from_be_bytes([high, low]))))
}

/// Reads IPv4-mapped IPv6 addresses as IPv4, so that one endpoint has one name.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The header of a message without attributes yet, with room for them.
pub(super) fn begin(message_type: u16, id: TransactionId) -> Vec<u8> {
    // The longest of ours is a check: 20 + 8 + 16 + 36 + 8.
    let mut message = Vec::with_capacity(88);
    message.extend_from_slice(&message_type.to_be_bytes());
    message.extend_from_slice(&[0; 2]);
    message.extend_from_slice(&MAGIC_COOKIE);
    message.extend_from_slice(&id.0);
    message
}

/// Appends an attribute, padded, and sets the header's length to end with it.
pub(super) fn append(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("attribute values of ours have at most 32 bytes");
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
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
