//! The codec against `docs/spec/vectors/stun.json` (made by an independent implementation) and against hostile bytes.

use std::net::SocketAddr;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

#[test]
fn plain_requests_match_the_vectors() {
    for vector in list("plain_requests") {
        let answer_from = match text(&vector, "answer_from") {
            "same" => AnswerFrom::SameAddress,
            "other_port" => AnswerFrom::OtherPort,
            "other_address_and_port" => AnswerFrom::OtherAddressAndPort,
            other => panic!("unknown answer_from {other}"),
        };
        let answer_at = vector["answer_at"].as_u64().map(|port| u16::try_from(port).expect("a port"));
        let request = PlainRequest { id: id(&vector), answer_from, answer_at };
        assert_eq!(request.encode(), message(&vector));
        assert_eq!(PlainRequest::decode(&message(&vector)), Ok(request));
    }
}

#[test]
fn plain_responses_match_the_vectors() {
    for vector in list("plain_responses") {
        let other = vector["other"].as_str().map(|other| other.parse().expect("vector addresses parse"));
        let response = PlainResponse { id: id(&vector), mapped: address(&vector), other };
        assert_eq!(response.encode(), message(&vector));
        assert_eq!(PlainResponse::decode(&message(&vector)), Ok(response));
    }
}

#[test]
fn check_requests_match_the_vectors() {
    for vector in list("check_requests") {
        let request = Check::Request(CheckRequest {
            id: id(&vector),
            priority: u32::try_from(vector["priority"].as_u64().expect("a number")).expect("32 bits"),
            sequence: vector["sequence"].as_u64().expect("a number"),
            in_use: vector["in_use"].as_bool().expect("a truth value"),
        });
        assert_vector(&vector, request);
    }
}

#[test]
fn check_responses_match_the_vectors() {
    for vector in list("check_responses") {
        assert_vector(&vector, Check::Response(CheckResponse { id: id(&vector), mapped: address(&vector) }));
    }
}

#[test]
fn a_check_begins_with_the_tag_that_its_direction_has_in_the_vectors() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec/vectors/candidates.json");
    let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
    let vector: Value = serde_json::from_str::<Value>(&text).expect("the vectors are JSON")["tags"].clone();
    let bytes = |name: &str| hex(vector[name].as_str().expect("a vector of that name"));
    let keys = |role| CheckKeys::from_exporter(role, &mut bytes("exported").try_into().expect("64 bytes"));
    let ends = [(Role::Initiator, Role::Responder, "initiator"), (Role::Responder, Role::Initiator, "responder")];
    for (sender, receiver, name) in ends {
        let (sender, receiver) = (keys(sender), keys(receiver));
        let id = sender.transaction_id([9; 8]);
        assert_eq!(id.0[..4], bytes(name), "{name}");
        let request = Check::Request(CheckRequest { id, priority: 0, sequence: 1, in_use: false }).encode(&sender);
        let mapped = "198.51.100.1:4000".parse().expect("an address");
        let response = Check::Response(CheckResponse { id, mapped }).encode(&receiver);
        assert!(receiver.are_for(&request) && sender.are_for(&response), "{name}");
        assert!(!sender.are_for(&request) && !receiver.are_for(&response), "{name}: thrown back");
    }
}

#[test]
fn checks_outside_the_layout_are_rejected() {
    for vector in list("rejected_checks") {
        let verdict = Check::decode(&message(&vector), &keys(Role::Responder));
        assert!(verdict.is_err(), "accepted: {}", text(&vector, "why"));
    }
}

#[test]
fn a_check_thrown_back_at_its_sender_does_not_verify() {
    for check in [request(7), response("198.18.0.1:9")] {
        let bytes = check.encode(&keys(Role::Initiator));
        assert_eq!(Check::decode(&bytes, &keys(Role::Initiator)), Err(Rejected::Integrity));
    }
}

#[test]
fn every_single_bit_of_a_check_counts() {
    for check in [request(7), response("198.18.0.1:9"), response("[2001:db8::1]:9")] {
        let bytes = check.encode(&keys(Role::Initiator));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Check::decode(&flipped, &keys(Role::Responder)).is_err(), "bit {bit} does not count");
        }
    }
}

#[test]
fn a_response_is_never_longer_than_its_request() {
    let request = request(1).encode(&keys(Role::Initiator)).len();
    for address in ["198.18.0.1:9", "[2001:db8::1]:9"] {
        assert!(response(address).encode(&keys(Role::Initiator)).len() <= request);
    }
}

#[test]
fn a_fingerprint_forged_over_a_wrong_tag_does_not_help() {
    let mut bytes = request(7).encode(&keys(Role::Initiator));
    bytes.truncate(bytes.len() - wire::FINGERPRINT_LEN);
    *bytes.last_mut().expect("not empty") ^= 1;
    wire::append_fingerprint(&mut bytes);
    assert_eq!(Check::decode(&bytes, &keys(Role::Responder)), Err(Rejected::Integrity));
}

#[test]
fn a_relays_answer_with_a_wrong_fingerprint_is_rejected() {
    let response =
        PlainResponse { id: TransactionId([1; 12]), mapped: "198.18.0.1:9".parse().expect("ok"), other: None };
    let mut bytes = response.encode();
    *bytes.last_mut().expect("not empty") ^= 1;
    assert_eq!(PlainResponse::decode(&bytes), Err(Rejected::Fingerprint));
}

#[test]
fn quic_and_relay_frames_are_not_stun() {
    let stun =
        PlainRequest { id: TransactionId([1; 12]), answer_from: AnswerFrom::SameAddress, answer_at: None }.encode();
    assert!(is_stun(&stun));
    for first in [4, 15, 64, 0xC0] {
        let mut other = stun.clone();
        other[0] = first;
        assert!(!is_stun(&other));
    }
}

proptest! {
    #[test]
    fn garbage_never_panics_and_never_verifies(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        never_accepted(&bytes)?;
    }

    #[test]
    fn garbage_behind_a_valid_header_never_panics_and_never_verifies(
        message_type in prop_oneof![Just(1u16), Just(0x101u16), 0u16..0x4000],
        kinds in proptest::collection::vec(
            (prop_oneof![Just(0x1Cu16), Just(0x24), Just(0x20), Just(0xFF50), Just(3), Just(0x802C), Just(0x8028), any::<u16>()],
             proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
        cut in 0usize..8,
    ) {
        let mut bytes = vec![0; 20];
        bytes[..2].copy_from_slice(&message_type.to_be_bytes());
        bytes[4..8].copy_from_slice(&[0x21, 0x12, 0xA4, 0x42]);
        for (kind, value) in kinds {
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&u16::try_from(value.len()).expect("short").to_be_bytes());
            bytes.extend_from_slice(&value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes.truncate(bytes.len().saturating_sub(cut * 4).max(20));
        let length = u16::try_from(bytes.len() - 20).expect("short");
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        never_accepted(&bytes)?;
        let _ = PlainRequest::decode(&bytes);
        let _ = PlainResponse::decode(&bytes);
    }

    #[test]
    fn a_changed_check_never_verifies(at in 0usize..88, change in 1u8..=255, cut in 0usize..88) {
        let bytes = request(7).encode(&keys(Role::Initiator));
        let mut changed = bytes.clone();
        changed[at] ^= change;
        never_accepted(&changed)?;
        never_accepted(&bytes[..cut])?;
    }

    #[test]
    fn checks_survive_the_trip(sequence: u64, priority: u32, in_use: bool, id: [u8; 12]) {
        let check = Check::Request(CheckRequest { id: TransactionId(id), priority, sequence, in_use });
        prop_assert_eq!(Check::decode(&check.encode(&keys(Role::Responder)), &keys(Role::Initiator)), Ok(check));
    }
}

fn never_accepted(bytes: &[u8]) -> Result<(), TestCaseError> {
    prop_assert!(Check::decode(bytes, &keys(Role::Initiator)).is_err());
    prop_assert!(Check::decode(bytes, &keys(Role::Responder)).is_err());
    Ok(())
}

fn assert_vector(vector: &Value, check: Check) {
    let (sender, receiver) = match text(vector, "sender") {
        "initiator" => (Role::Initiator, Role::Responder),
        "responder" => (Role::Responder, Role::Initiator),
        other => panic!("unknown sender {other}"),
    };
    assert_eq!(check.encode(&keys(sender)), message(vector));
    assert_eq!(Check::decode(&message(vector), &keys(receiver)), Ok(check));
}

fn request(sequence: u64) -> Check {
    Check::Request(CheckRequest { id: TransactionId([9; 12]), priority: 0, sequence, in_use: false })
}

fn response(mapped: &str) -> Check {
    Check::Response(CheckResponse { id: TransactionId([9; 12]), mapped: mapped.parse().expect("a test address") })
}

fn keys(role: Role) -> CheckKeys {
    let mut material = [0; 64];
    material.copy_from_slice(&hex(vectors()["exporter_material"].as_str().expect("text")));
    CheckKeys::from_exporter(role, &mut material)
}

fn vectors() -> &'static Value {
    static VECTORS: std::sync::OnceLock<Value> = std::sync::OnceLock::new();
    VECTORS.get_or_init(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec/vectors/stun.json");
        serde_json::from_slice(&std::fs::read(path).expect("the vectors lie beside the spec")).expect("valid JSON")
    })
}

fn list(name: &str) -> Vec<Value> {
    vectors()[name].as_array().expect("a list of vectors").clone()
}

fn text<'a>(vector: &'a Value, field: &str) -> &'a str {
    vector[field].as_str().expect("a text field")
}

fn id(vector: &Value) -> TransactionId {
    TransactionId(hex(text(vector, "id")).try_into().expect("12 bytes"))
}

fn message(vector: &Value) -> Vec<u8> {
    hex(text(vector, "message"))
}

fn address(vector: &Value) -> SocketAddr {
    text(vector, "mapped").parse().expect("vector addresses parse")
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal"))
        .collect()
}
