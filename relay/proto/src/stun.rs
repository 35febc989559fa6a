//! Plain STUN Binding requests, answered (`docs/spec/relay.md` section 7; RFC 8489).
//!
//! By hand, because a server needs so little of it: no integrity, no TCP, no error answers. The answer has one
//! attribute, so it is as short as the RFC allows.

use std::net::{IpAddr, SocketAddr};

const HEADER: usize = 20;
const MAGIC: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const CHANGE_REQUEST: u16 = 0x0003;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const RESPONSE_PORT: u16 = 0x0027;
const FINGERPRINT: u16 = 0x8028;
const OTHER_ADDRESS: u16 = 0x802C;
/// Flags of CHANGE-REQUEST (RFC 5780 section 7.2).
const CHANGE_IP: u8 = 4;
const CHANGE_PORT: u8 = 2;
/// The lowest port that an answer is sent to instead of the one it was asked from: NATs hand out none below, and services
/// that might take a STUN message for a question of theirs listen there.
const FIRST_RESPONSE_PORT: u16 = 1024;
/// Longest request looked at: what IPv4 hosts must take (576, RFC 1122) less headers.
const MAX_REQUEST: usize = 548;
/// Longest answer: header, two IPv6 addresses and FINGERPRINT.
pub const MAX_RESPONSE: usize = HEADER + 24 + 24 + 8;

/// Which of a relay's two addresses and two ports: where a request came to, or an answer leaves from (RFC 5780).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Corner {
    /// Not the address where the relay is, but its second.
    pub other_ip: bool,
    /// Not its port, but the second.
    pub other_port: bool,
}

/// The four places of a relay that has two addresses: each of them with each of two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corners {
    /// Where the relay is.
    pub first: SocketAddr,
    /// Its second address, with its second port. Both differ from the first.
    pub second: SocketAddr,
}

impl Corners {
    /// The address of one of the four.
    #[must_use]
    pub fn address(&self, corner: Corner) -> SocketAddr {
        let ip = if corner.other_ip { self.second.ip() } else { self.first.ip() };
        let port = if corner.other_port { self.second.port() } else { self.first.port() };
        SocketAddr::new(ip, port)
    }
}

/// An answer, and from where it is sent.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    bytes: [u8; MAX_RESPONSE],
    len: usize,
    /// From where.
    pub from: Corner,
    /// To which port of the asker's address (RFC 5780 section 7.5), where it is not the one that it asked from.
    pub port: Option<u16>,
}

impl Answer {
    /// The bytes to send.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What a request asks for.
struct Wanted {
    fingerprint: bool,
    change: Corner,
    port: Option<u16>,
}

/// The answer to a Binding request from `source` that came to `at`; `None` if the request gets none. Only a relay that
/// has all four `corners` names its other address and answers from elsewhere: an answer from the wrong place would be
/// read as a NAT that filters nothing.
#[must_use]
pub fn answer(request: &[u8], source: SocketAddr, corners: Option<&Corners>, at: Corner) -> Option<Answer> {
    let Wanted { fingerprint, change, port } = accept(request)?;
    if corners.is_none() && change != Corner::default() {
        return None;
    }
    let from = Corner { other_ip: at.other_ip ^ change.other_ip, other_port: at.other_port ^ change.other_port };
    let mut out = [0; MAX_RESPONSE];
    out[..2].copy_from_slice(&BINDING_SUCCESS.to_be_bytes());
    out[4..HEADER].copy_from_slice(&request[4..HEADER]);
    let mut len = HEADER + xor_mapped_address(source, &mut out);
    if let Some(corners) = corners {
        let across = Corner { other_ip: !at.other_ip, other_port: !at.other_port };
        len += other_address(corners.address(across), &mut out[len..]);
    }
    if fingerprint {
        // The checksum covers the header with the length that includes FINGERPRINT itself (RFC 8489 section 14.7).
        set_length(&mut out, len + 8 - HEADER);
        let crc = fingerprint_of(&out[..len]).to_be_bytes();
        put_attribute(&mut out[len..], FINGERPRINT, &crc);
        len += 8;
    }
    set_length(&mut out, len - HEADER);
    Some(Answer { bytes: out, len, from, port })
}

/// What it asks for, if it is a request that one may answer.
fn accept(request: &[u8]) -> Option<Wanted> {
    let well_formed = (HEADER..=MAX_REQUEST).contains(&request.len())
        && request.len().is_multiple_of(4)
        && usize::from(u16_at(request, 2)) == request.len() - HEADER
        && request[4..8] == MAGIC
        && u16_at(request, 0) == BINDING_REQUEST;
    if !well_formed {
        return None;
    }
    let (mut fingerprint, mut change, mut port) = (false, Corner::default(), None);
    let mut at = HEADER;
    while at < request.len() {
        let kind = u16_at(request, at);
        let value = request.get(at + 4..at + 4 + usize::from(u16_at(request, at + 2)))?;
        match kind {
            CHANGE_REQUEST if value.len() != 4 => return None,
            CHANGE_REQUEST => {
                change = Corner { other_ip: value[3] & CHANGE_IP != 0, other_port: value[3] & CHANGE_PORT != 0 };
            }
            // Two bytes and two of padding, which some count as part of the value.
            RESPONSE_PORT => match value {
                [high, low] | [high, low, _, _] => port = Some(u16::from_be_bytes([*high, *low])),
                _ => return None,
            },
            FINGERPRINT if value != fingerprint_of(&request[..at]).to_be_bytes() => return None,
            FINGERPRINT => fingerprint = true,
            _ => {}
        }
        at += 4 + value.len().next_multiple_of(4);
    }
    let whole = at == request.len() && port.is_none_or(|port| port >= FIRST_RESPONSE_PORT);
    whole.then_some(Wanted { fingerprint, change, port })
}

/// RFC 8489 section 14.2; returns the bytes written.
fn xor_mapped_address(source: SocketAddr, out: &mut [u8; MAX_RESPONSE]) -> usize {
    let mask: [u8; 16] = out[4..HEADER].try_into().expect("cookie and transaction id are 16 bytes");
    let port = source.port() ^ 0x2112;
    let mut value = [0; 20];
    value[2..4].copy_from_slice(&port.to_be_bytes());
    let (family, len) = match source.ip().to_canonical() {
        IpAddr::V4(ip) => {
            value[4..8].copy_from_slice(&ip.octets());
            (1, 8)
        }
        IpAddr::V6(ip) => {
            value[4..].copy_from_slice(&ip.octets());
            (2, 20)
        }
    };
    value[1] = family;
    for (byte, mask) in value[4..len].iter_mut().zip(mask) {
        *byte ^= mask;
    }
    put_attribute(&mut out[HEADER..], XOR_MAPPED_ADDRESS, &value[..len]);
    len + 4
}

/// RFC 5780 section 7.4; returns the bytes written.
fn other_address(address: SocketAddr, out: &mut [u8]) -> usize {
    let mut value = [0; 20];
    value[2..4].copy_from_slice(&address.port().to_be_bytes());
    let (family, len) = match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            value[4..8].copy_from_slice(&ip.octets());
            (1, 8)
        }
        IpAddr::V6(ip) => {
            value[4..].copy_from_slice(&ip.octets());
            (2, 20)
        }
    };
    value[1] = family;
    put_attribute(out, OTHER_ADDRESS, &value[..len]);
    len + 4
}

fn put_attribute(out: &mut [u8], kind: u16, value: &[u8]) {
    out[..2].copy_from_slice(&kind.to_be_bytes());
    let length = u16::try_from(value.len()).expect("our attributes have at most 20 bytes");
    out[2..4].copy_from_slice(&length.to_be_bytes());
    out[4..4 + value.len()].copy_from_slice(value);
}

fn set_length(out: &mut [u8; MAX_RESPONSE], length: usize) {
    let length = u16::try_from(length).expect("an answer has at most 76 bytes");
    out[2..4].copy_from_slice(&length.to_be_bytes());
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// CRC-32 (ISO-HDLC) xor "STUN". Bit by bit: at most 548 bytes, at most 20 000 times a second.
fn fingerprint_of(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc ^ 0x5354_554E
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER_PERMISSIVE;
    use proptest::prelude::{any, prop_assert, proptest};

    /// The transaction id of the messages in RFC 5769.
    const ID: &str = "b7e7a701bc34d686fa87dfae";

    fn unhex(text: &str) -> Vec<u8> {
        HEXLOWER_PERMISSIVE.decode(text.replace(' ', "").as_bytes()).expect("hex")
    }

    fn request(attributes: &str) -> Vec<u8> {
        let attributes = unhex(attributes);
        let length = u16::try_from(attributes.len()).expect("short");
        let header = [&[0, 1][..], &length.to_be_bytes(), &MAGIC, &unhex(ID)].concat();
        [header, attributes].concat()
    }

    fn answered(request: &[u8], source: &str) -> Option<Vec<u8>> {
        let answer = answer(request, source.parse().expect("an address"), None, Corner::default())?;
        assert_eq!(answer.from, Corner::default());
        Some(answer.as_bytes().to_vec())
    }

    fn corners() -> Corners {
        let at = |text: &str| text.parse().expect("an address");
        Corners { first: at("192.0.2.10:3478"), second: at("192.0.2.11:3479") }
    }

    #[test]
    fn a_relay_with_two_addresses_answers_from_where_it_is_asked_to() {
        let corner = |other_ip, other_port| Corner { other_ip, other_port };
        for (flags, from) in [
            ("00", corner(false, false)),
            ("02", corner(false, true)),
            ("04", corner(true, false)),
            ("06", corner(true, true)),
        ] {
            let request = request(&format!("00030004000000{flags}"));
            let source = "192.0.2.1:32853".parse().expect("an address");
            for at in [corner(false, false), corner(true, false), corner(false, true), corner(true, true)] {
                let answer = answer(&request, source, Some(&corners()), at).expect("answered");
                let expected = corner(at.other_ip ^ from.other_ip, at.other_port ^ from.other_port);
                assert_eq!(answer.from, expected, "flags {flags} at {at:?}");
            }
        }
    }

    #[test]
    fn the_other_address_is_the_one_across_of_where_the_request_came_to() {
        let source = "192.0.2.1:32853".parse().expect("an address");
        let first = answer(&request(""), source, Some(&corners()), Corner::default()).expect("answered");
        // Attribute 0x802c: IPv4, port 3479, 192.0.2.11.
        assert!(first.as_bytes().ends_with(&unhex("802c000800010d97c000020b")), "{:x?}", first.as_bytes());
        let at = Corner { other_ip: true, other_port: false };
        let second = answer(&request(""), source, Some(&corners()), at).expect("answered");
        assert!(second.as_bytes().ends_with(&unhex("802c000800010d97c000020a")), "{:x?}", second.as_bytes());
    }

    #[test]
    fn the_address_attribute_is_that_of_rfc_5769_section_2_2() {
        let response = answered(&request(""), "192.0.2.1:32853").expect("answered");
        assert_eq!(response, unhex(&format!("0101000c2112a442{ID}002000080001a147e112a643")));
    }

    #[test]
    fn the_address_attribute_is_that_of_rfc_5769_section_2_3() {
        let response = answered(&request(""), "[2001:db8:1234:5678:11:2233:4455:6677]:32853").expect("answered");
        let value = "0020001400 02a1470113a9faa5d3f179bc25f4b5bed2b9d9".replace(' ', "");
        assert_eq!(response, unhex(&format!("010100182112a442{ID}{value}")));
    }

    #[test]
    fn an_ipv4_client_on_an_ipv6_socket_is_told_its_ipv4_address() {
        let mapped = answered(&request(""), "[::ffff:192.0.2.1]:32853");
        assert_eq!(mapped, answered(&request(""), "192.0.2.1:32853"));
    }

    #[test]
    fn a_request_with_a_fingerprint_gets_an_answer_with_one() {
        // As in docs/spec/vectors/paths.json, made by an independent implementation.
        let request = unhex("000100082112a442b7e7a701bc34d686fa87dfae80280004fdf6ae02");
        let response = answered(&request, "192.0.2.1:32853").expect("answered");
        let expected = "010100142112a442b7e7a701bc34d686fa87dfae002000080001a147e112a643802800047d281f59";
        assert_eq!(response, unhex(expected));
    }

    #[test]
    fn a_wrong_fingerprint_gets_no_answer() {
        let request = unhex("000100082112a442b7e7a701bc34d686fa87dfae80280004fdf6ae03");
        assert_eq!(answered(&request, "192.0.2.1:1"), None);
    }

    #[test]
    fn a_request_to_answer_from_elsewhere_gets_no_answer() {
        for flags in ["02", "04", "06"] {
            let request = request(&format!("00030004000000{flags}"));
            assert_eq!(answered(&request, "192.0.2.1:1"), None, "flags {flags}");
        }
        assert!(answered(&request("0003000400000000"), "192.0.2.1:1").is_some());
    }

    #[test]
    fn an_answer_goes_to_the_port_that_the_request_names() {
        let to = |attribute: &str| {
            let source = "192.0.2.1:32853".parse().expect("an address");
            answer(&request(attribute), source, None, Corner::default()).map(|answer| answer.port)
        };
        assert_eq!(to(""), Some(None));
        assert_eq!(to("00270004 9c40 0000"), Some(Some(40_000)));
        assert_eq!(to("00270002 9c40 0000"), Some(Some(40_000)), "the padding may be no part of the value");
        assert_eq!(to("00270004 0035 0000"), None, "no port where a service may listen");
        assert_eq!(to("00270003 9c40 0000"), None);
    }

    #[test]
    fn only_requests_are_answered_so_no_two_servers_talk_to_each_other() {
        let response = answered(&request(""), "192.0.2.1:32853").expect("answered");
        assert_eq!(answered(&response, "192.0.2.1:3478"), None);
    }

    #[test]
    fn attributes_that_do_not_fill_the_message_get_no_answer() {
        assert_eq!(answered(&request("80220010"), "192.0.2.1:1"), None);
        assert_eq!(answered(&request("8022ffff61616161"), "192.0.2.1:1"), None);
        let mut short = request("");
        short.pop();
        assert_eq!(answered(&short, "192.0.2.1:1"), None);
    }

    proptest! {
        #[test]
        fn no_datagram_makes_it_panic_or_answer_at_length(attributes in proptest::collection::vec(any::<u8>(), 0..140)) {
            let whole = attributes.len() / 4 * 4;
            let length = u16::try_from(whole).expect("short");
            let request = [&[0, 1][..], &length.to_be_bytes(), &MAGIC, &[0; 12], &attributes[..whole]].concat();
            let source = ([192, 0, 2, 1], 1).into();
            if let Some(answer) = answer(&request, source, None, Corner::default()) {
                prop_assert!(answer.as_bytes().len() <= request.len() + 24);
            }
            if let Some(answer) = answer(&request, source, Some(&corners()), Corner::default()) {
                prop_assert!(answer.as_bytes().len() <= request.len() + 48);
            }
            let _ = answer(&attributes, source, Some(&corners()), Corner::default());
        }
    }
}
