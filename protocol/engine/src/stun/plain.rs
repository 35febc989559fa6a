//! Binding requests to relays and their answers, without integrity (`docs/spec/paths.md` section 1.1).
//!
//! An answer is a hint about our own address and becomes a candidate at most. A liar between us and the relay can make
//! us offer a useless candidate, which then fails its checks; it cannot make us use a path.

use std::net::SocketAddr;

use super::wire::{self, Rejected, TransactionId};

const CHANGE_REQUEST: u16 = 0x0003;
const RESPONSE_PORT: u16 = 0x0027;
const OTHER_ADDRESS: u16 = 0x802C;
/// Flags of CHANGE-REQUEST, RFC 5780 section 7.2.
const CHANGE_IP: u32 = 0x4;
const CHANGE_PORT: u32 = 0x2;

/// From where a relay with two addresses shall answer (RFC 5780 CHANGE-REQUEST).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnswerFrom {
    /// The address and port the request was sent to.
    SameAddress,
    /// The other port of the same address.
    OtherPort,
    /// The other address and the other port.
    OtherAddressAndPort,
}

/// A Binding request as a relay sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainRequest {
    /// Repeated in the answer.
    pub id: TransactionId,
    /// From where to answer.
    pub answer_from: AnswerFrom,
    /// At which port of the asker's address to answer, if not at the one it asks from (RFC 5780 RESPONSE-PORT).
    pub answer_at: Option<u16>,
}

/// A relay's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainResponse {
    /// The request's transaction id; the caller knows which are in flight.
    pub id: TransactionId,
    /// Our address as the relay saw it.
    pub mapped: SocketAddr,
    /// The relay's second address, if it has one.
    pub other: Option<SocketAddr>,
}

impl PlainRequest {
    /// The request as bytes to send; 28 to 44 of them.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = wire::begin(wire::BINDING_REQUEST, self.id);
        let flags = match self.answer_from {
            AnswerFrom::SameAddress => 0,
            AnswerFrom::OtherPort => CHANGE_PORT,
            AnswerFrom::OtherAddressAndPort => CHANGE_IP | CHANGE_PORT,
        };
        if flags != 0 {
            wire::append(&mut message, CHANGE_REQUEST, &flags.to_be_bytes());
        }
        if let Some(port) = self.answer_at {
            wire::append(&mut message, RESPONSE_PORT, &port.to_be_bytes());
        }
        wire::append_fingerprint(&mut message);
        message
    }

    /// Reads a request. Unknown attributes are ignored: any STUN client may ask a relay.
    pub fn decode(datagram: &[u8]) -> Result<Self, Rejected> {
        check(datagram, wire::BINDING_REQUEST)?;
        let flags = match wire::find(datagram, CHANGE_REQUEST) {
            Some(value) => u32::from_be_bytes(*value.first_chunk().ok_or(Rejected::Malformed)?),
            None => 0,
        };
        let answer_from = if flags & CHANGE_IP != 0 {
            AnswerFrom::OtherAddressAndPort
        } else if flags & CHANGE_PORT != 0 {
            AnswerFrom::OtherPort
        } else {
            AnswerFrom::SameAddress
        };
        let answer_at = match wire::find(datagram, RESPONSE_PORT) {
            Some(value) => Some(u16::from_be_bytes(*value.first_chunk().ok_or(Rejected::Malformed)?)),
            None => None,
        };
        Ok(Self { id: wire::transaction_id(datagram), answer_from, answer_at })
    }
}

impl PlainResponse {
    /// The answer as bytes to send; at most 76 of them.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = wire::begin(wire::BINDING_SUCCESS, self.id);
        wire::append_mapped_address(&mut message, self.mapped);
        if let Some(other) = self.other {
            wire::append(&mut message, OTHER_ADDRESS, &wire::address_value(other));
        }
        wire::append_fingerprint(&mut message);
        message
    }

    /// Reads an answer; `XOR-MAPPED-ADDRESS` must be there.
    pub fn decode(datagram: &[u8]) -> Result<Self, Rejected> {
        check(datagram, wire::BINDING_SUCCESS)?;
        let mapped = wire::mapped_address(datagram)?;
        let other = wire::find(datagram, OTHER_ADDRESS).map(wire::read_address).transpose()?;
        Ok(Self { id: wire::transaction_id(datagram), mapped, other })
    }
}

/// Header, attribute bounds, and FINGERPRINT where there is one.
fn check(datagram: &[u8], expected_type: u16) -> Result<(), Rejected> {
    if !wire::is_stun(datagram) {
        return Err(Rejected::NotStun);
    }
    if wire::message_type(datagram) != expected_type {
        return Err(Rejected::WrongType);
    }
    for attribute in wire::Attributes::of(datagram) {
        let attribute = attribute?;
        if attribute.kind == wire::FINGERPRINT {
            wire::check_fingerprint(datagram, &attribute)?;
        }
    }
    Ok(())
}
