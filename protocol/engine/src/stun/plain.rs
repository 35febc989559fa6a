//! Binding requests to relays and their answers, without integrity (`docs/spec/paths.md` section 1.1).
//!
//! An answer is a hint about our own address and becomes a candidate at most. A liar between us and the relay can make
//! us offer a useless candidate, which then fails its checks; it cannot make us use a path.

use std::net::SocketAddr;

use stun_rs::attributes::discovery::{ChangeRequest, ChangeRequestFlags, OtherAddress, ResponsePort};
use stun_rs::attributes::stun::XorMappedAddress;
use stun_rs::{MessageClass, StunAttribute};

use super::wire::{self, Rejected, TransactionId};

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
        let flags = match self.answer_from {
            AnswerFrom::SameAddress => None,
            AnswerFrom::OtherPort => Some(ChangeRequestFlags::ChangePort.into()),
            AnswerFrom::OtherAddressAndPort => Some(ChangeRequestFlags::ChangeIp | ChangeRequestFlags::ChangePort),
        };
        let change = flags.map(|flags| StunAttribute::from(ChangeRequest::new(Some(flags))));
        let port = self.answer_at.map(|port| StunAttribute::from(ResponsePort::from(port)));
        let attributes = change.into_iter().chain(port).collect();
        let mut message = wire::encode(MessageClass::Request, self.id, attributes);
        wire::append_fingerprint(&mut message);
        message
    }

    /// Reads a request. Unknown attributes are ignored: any STUN client may ask a relay.
    pub fn decode(datagram: &[u8]) -> Result<Self, Rejected> {
        check(datagram, wire::BINDING_REQUEST)?;
        let message = wire::decode(datagram)?;
        let answer_from = match message.get::<ChangeRequest>() {
            Some(attribute) => {
                let flags = attribute.as_change_request().map_err(|_| Rejected::Malformed)?.flags();
                if flags.contains(ChangeRequestFlags::ChangeIp) {
                    AnswerFrom::OtherAddressAndPort
                } else if flags.contains(ChangeRequestFlags::ChangePort) {
                    AnswerFrom::OtherPort
                } else {
                    AnswerFrom::SameAddress
                }
            }
            None => AnswerFrom::SameAddress,
        };
        let answer_at = match message.get::<ResponsePort>() {
            Some(attribute) => Some(attribute.as_response_port().map_err(|_| Rejected::Malformed)?.as_u16()),
            None => None,
        };
        Ok(Self { id: wire::transaction_id(datagram), answer_from, answer_at })
    }
}

impl PlainResponse {
    /// The answer as bytes to send; at most 76 of them.
    pub fn encode(&self) -> Vec<u8> {
        let mut attributes = vec![StunAttribute::from(XorMappedAddress::from(self.mapped))];
        attributes.extend(self.other.map(|other| StunAttribute::from(OtherAddress::from(other))));
        let mut message = wire::encode(MessageClass::SuccessResponse, self.id, attributes);
        wire::append_fingerprint(&mut message);
        message
    }

    /// Reads an answer; `XOR-MAPPED-ADDRESS` must be there.
    pub fn decode(datagram: &[u8]) -> Result<Self, Rejected> {
        check(datagram, wire::BINDING_SUCCESS)?;
        let message = wire::decode(datagram)?;
        let mapped = wire::mapped_address(&message)?;
        let other = match message.get::<OtherAddress>() {
            Some(attribute) => {
                let other = attribute.as_other_address().map_err(|_| Rejected::Malformed)?;
                Some(wire::canonical(*other.socket_address()))
            }
            None => None,
        };
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
