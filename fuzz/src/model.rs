//! The model's parsers: names, tickets, signed objects, control messages, snapshots.

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::SigningKey;
use minicbor::{Decode, Encode};
use peerage_model::control::{ControlMessage, MAX_CANDIDATES, MAX_MESSAGE, MAX_PORTS, MAX_REQUEST, TrustRequest};
use peerage_model::id::sha256;
use peerage_model::linking::{self, Heard, Tell};
use peerage_model::operator::{Enrolment, MAX_FRAME, PREFIX, ToAgent, ToOperator, split_frame};
use peerage_model::passport::MAX_CREDENTIAL;
use peerage_model::relay::{RelayHost, RelayInfo};
use peerage_model::signed::{Kind, Signed};
use peerage_model::stream::{StreamHeader, StreamStatus};
use peerage_model::ticket::MAX_RELAYS;
use peerage_model::{
    AgentId, AgentName, Authority, AuthorityRecord, Credential, Fingerprint, InstanceId, Label, RoutingId, Snapshot,
    Ticket, TrustId, UnixTime, cbor,
};
use zeroize::Zeroizing;

use crate::feed::Feed;

/// The time of every target.
pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);
/// Every secret of the test authority: its root and its signing key are the same.
const SECRET: u8 = 7;

/// The authority whose keys the targets know, so that what they sign gets behind the signature.
pub(crate) fn authority() -> &'static Authority {
    static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::new(&Zeroizing::new([SECRET; 96]), NOW));
    &AUTHORITY
}

/// Text that names something. What parses is written as text that parses to the same.
pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    same_again::<Label>(text);
    same_again::<AgentName>(text);
    same_again::<AgentId>(text);
    same_again::<Fingerprint>(text);
    same_again::<RoutingId>(text);
    same_again::<InstanceId>(text);
    same_again::<TrustId>(text);
    same_again::<RelayInfo>(text);
    if let Ok(host) = text.parse::<RelayHost>() {
        assert_eq!(host.as_str(), text);
    }
    if let Ok(name) = text.parse::<AgentName>() {
        assert_eq!(name.first_label().as_str(), text.split('.').next().expect("a first part"));
    }
}

pub(crate) fn same_again<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string().parse::<T>().ok();
        assert_eq!(again, Some(value));
    }
}

/// A ticket: first byte even, the rest is its text; odd, the rest is what its text encodes, and gets a good checksum.
pub fn ticket(data: &[u8]) {
    let mut feed = Feed::new(data);
    let text = match feed.u8() % 2 {
        0 => String::from_utf8_lossy(feed.rest()).into_owned(),
        _ => ticket_text(feed.rest()),
    };
    let Ok(ticket) = Ticket::parse(&text, NOW) else { return };
    assert!(ticket.relays.len() <= MAX_RELAYS && ticket.expires > NOW);
    assert_eq!(Ticket::parse(&ticket.to_string(), NOW), Ok(ticket.clone()));
    assert!(Ticket::parse(&text, ticket.expires).is_err(), "it ends");
}

/// The text of a ticket with this payload.
pub(crate) fn ticket_text(payload: &[u8]) -> String {
    let mut bytes = payload.to_vec();
    bytes.extend_from_slice(&sha256(&[payload])[..4]);
    format!("peerage1-{}", BASE64URL_NOPAD.encode(&bytes))
}

/// Signed objects. The first byte says which of four: a credential, a record, the inside of a record, the inside of a
/// passport; an inside is signed here.
pub fn signed(data: &[u8]) {
    let mut feed = Feed::new(data);
    let key = SigningKey::from_bytes(&[SECRET; 32]);
    match feed.u8() % 4 {
        0 => credential(feed.rest()),
        1 => record(feed.rest()),
        2 => record(&cbor::to_vec(&Signed::new(Kind::AuthorityRecord, feed.rest().to_vec(), &key))),
        _ => {
            let passport = cbor::to_vec(&Signed::new(Kind::Passport, feed.rest().to_vec(), &key));
            credential(&Credential::join(authority().record(), passport));
        }
    }
}

fn credential(bytes: &[u8]) {
    let Ok(credential) = Credential::verify(bytes, NOW) else { return };
    assert!(bytes.len() <= MAX_CREDENTIAL);
    assert!(credential.not_after() > NOW);
    assert_eq!(credential.agent().authority, credential.record().fingerprint());
    assert_eq!(credential.as_bytes(), bytes);
    assert!(Credential::verify(bytes, credential.not_after()).is_err(), "it ends");
}

fn record(bytes: &[u8]) {
    let Ok(record) = AuthorityRecord::verify(bytes, NOW) else { return };
    assert_eq!(record.as_bytes(), bytes);
    assert_eq!(AuthorityRecord::verify(record.as_bytes(), NOW), Ok(record));
}

/// What two ends of a session say: control messages, trust requests, stream headers. Within the sizes that the engine
/// lets through; what is read is within its limits and is written as what reads the same.
pub fn control(data: &[u8]) {
    let mut feed = Feed::new(data);
    match feed.u8() % 3 {
        0 if data.len() <= MAX_MESSAGE => control_message(feed.rest()),
        1 if data.len() <= MAX_REQUEST => same_encoding::<TrustRequest>(feed.rest()),
        _ => {
            let header: [u8; 4] = feed.array();
            if let Ok(read) = StreamHeader::decode(header) {
                assert_eq!(read.encode(), header);
            }
            let status = StreamStatus::decode(feed.u8());
            assert_eq!(StreamStatus::decode(status as u8), status);
        }
    }
}

fn control_message(bytes: &[u8]) {
    let Ok(Some(message)) = ControlMessage::decode(bytes) else { return };
    match &message {
        ControlMessage::Hello(hello) => assert!(hello.ports.len() <= MAX_PORTS),
        ControlMessage::Candidates(candidates) => assert!(candidates.list.len() <= MAX_CANDIDATES),
        ControlMessage::Renewal(renewal) => assert!(renewal.credential.len() <= MAX_CREDENTIAL),
        ControlMessage::Retire(_) | ControlMessage::Birthday(_) | ControlMessage::Opened(_) => {}
    }
    assert_eq!(ControlMessage::decode(&message.encode_framed()[2..]), Ok(Some(message)));
}

pub(crate) fn same_encoding<T>(bytes: &[u8])
where
    T: for<'b> Decode<'b, ()> + Encode<()> + PartialEq + Debug,
{
    let Ok(value) = minicbor::decode::<T>(bytes) else { return };
    let again = minicbor::decode::<T>(&cbor::to_vec(&value)).expect("what we write, we read");
    assert_eq!(again, value);
}

/// An allowlist snapshot: what is read is written as what reads the same.
pub fn snapshot(data: &[u8]) {
    same_encoding::<Snapshot>(data);
}

/// What operator and agent say. The first byte says which: frames from the operator, frames from the agent, the inside
/// of an enrolment, which is signed here. Frames are read one after the other until one is wrong, as either end does;
/// each is within its limits and is written as what reads the same, and a part of an update fits a frame again.
pub fn operator(data: &[u8]) {
    let mut feed = Feed::new(data);
    match feed.u8() % 3 {
        0 => frames(feed.rest(), |body| match ToAgent::decode(body) {
            Ok(Some(message)) => {
                to_agent(&message);
                true
            }
            Ok(None) => true,
            Err(_) => false,
        }),
        1 => frames(feed.rest(), |body| match ToOperator::decode(body) {
            Ok(Some(message)) => {
                assert_eq!(ToOperator::decode(&message.encode()[PREFIX..]), Ok(Some(message)));
                true
            }
            Ok(None) => true,
            Err(_) => false,
        }),
        _ => {
            let key = SigningKey::from_bytes(&[SECRET; 32]);
            let signed = cbor::to_vec(&Signed::new(Kind::Enrolment, feed.rest().to_vec(), &key));
            let Ok(enrolment) = Enrolment::verify(&signed, authority().record()) else { return };
            assert_eq!(enrolment.agent.authority, authority().fingerprint());
            assert_eq!(Enrolment::verify(&enrolment.sign(authority()), authority().record()), Ok(enrolment));
        }
    }
}

/// What another cluster's operator says. What is read is within the limits and is written as it was read; a record counts for
/// the authority that signed it only.
pub fn linking(data: &[u8]) {
    let mut feed = Feed::new(data);
    if feed.u8().is_multiple_of(2) {
        frames(feed.rest(), |body| match Tell::decode(body) {
            Ok(Some(tell)) => {
                if let Tell::Hello(hello) = &tell {
                    let records = hello.records(&authority().fingerprint(), NOW).unwrap_or_default();
                    assert!(records.iter().all(|record| record.fingerprint() == authority().fingerprint()));
                }
                let written = tell.encode();
                assert!(written.len() - PREFIX <= linking::MAX_FRAME);
                assert_eq!(Tell::decode(&written[PREFIX..]), Ok(Some(tell)));
                true
            }
            Ok(None) => true,
            Err(_) => false,
        });
    } else {
        frames(feed.rest(), |body| match Heard::decode(body) {
            Ok(Some(heard)) => {
                assert_eq!(Heard::decode(&heard.encode()[PREFIX..]), Ok(Some(heard)));
                true
            }
            Ok(None) => true,
            Err(_) => false,
        });
    }
}

fn frames(mut bytes: &[u8], mut is_good: impl FnMut(&[u8]) -> bool) {
    while let Ok(Some((body, rest))) = split_frame(bytes, MAX_FRAME) {
        if !is_good(body) {
            return;
        }
        bytes = rest;
    }
}

fn to_agent(message: &ToAgent) {
    if let ToAgent::Update(update) = message {
        for part in (**update).clone().into_parts() {
            let part = ToAgent::Update(Box::new(part));
            assert_eq!(ToAgent::decode(&part.encode()[PREFIX..]), Ok(Some(part)));
        }
        return;
    }
    assert_eq!(ToAgent::decode(&message.encode()[PREFIX..]), Ok(Some(message.clone())));
}
