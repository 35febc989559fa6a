//! The model agrees, byte for byte, with `docs/spec/vectors/candidates.json`, which an independent implementation wrote.

use data_encoding::HEXLOWER;
use peerage_model::control::{BadMessage, Candidate, CandidateKind, Candidates, ControlMessage, Opened};
use serde_json::Value;

/// The message of this name without its two bytes of length, and with them.
fn vector(name: &str) -> (Vec<u8>, Vec<u8>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec/vectors/candidates.json");
    let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
    let all: Value = serde_json::from_str(&text).expect("the vectors are JSON");
    let framed = all[name]["framed"].as_str().expect("a vector of that name");
    let framed = HEXLOWER.decode(framed.as_bytes()).expect("hexadecimal");
    (framed[2..].to_vec(), framed)
}

fn list() -> ControlMessage {
    let of = |kind, address: &str| Candidate { kind, address: address.parse().expect("an address") };
    ControlMessage::Candidates(Candidates {
        generation: 7,
        list: vec![
            of(CandidateKind::Host, "10.0.0.2:4433"),
            of(CandidateKind::Fixed, "[2001:db8::7]:443"),
            of(CandidateKind::ServerReflexive, "198.51.100.1:40000"),
            of(CandidateKind::Predicted, "198.51.100.1:40001"),
        ],
        nat: Some("symmetric".parse().expect("a label")),
        birthday: true,
    })
}

#[test]
fn a_list_of_candidates_has_the_bytes_of_the_vector() {
    let (body, framed) = vector("known");
    assert_eq!(ControlMessage::decode(&body), Ok(Some(list())));
    assert_eq!(list().encode_framed(), framed);
}

#[test]
fn candidates_of_unknown_kinds_are_skipped_whatever_they_hold() {
    assert_eq!(ControlMessage::decode(&vector("unknown_kinds").0), Ok(Some(list())));
}

#[test]
fn candidates_of_unknown_kinds_count_among_the_sixteen() {
    assert_eq!(ControlMessage::decode(&vector("too_many").0), Err(BadMessage));
}

#[test]
fn a_candidate_of_a_known_kind_has_an_address() {
    assert_eq!(ControlMessage::decode(&vector("bad_address").0), Err(BadMessage));
}

#[test]
fn a_word_that_the_gateways_are_open_has_the_bytes_of_the_vector() {
    let (body, framed) = vector("opened");
    let opened = ControlMessage::Opened(Opened { generation: 300 });
    assert_eq!(ControlMessage::decode(&body), Ok(Some(opened.clone())));
    assert_eq!(opened.encode_framed(), framed);
}
