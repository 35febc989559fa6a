//! The model agrees, byte for byte, with `docs/spec/vectors/linking.json`, which an independent implementation wrote.

use data_encoding::HEXLOWER;
use peerage_model::linking::{Denied, Heard, Hello, MAX_FRAME, RecordBytes, Tell, Told, Wish, Withdrawn};
use peerage_model::operator::{Keepalive, split_frame};
use peerage_model::{AgreementKey, Authority, InstanceId, TrustId, UnixTime};
use serde_json::Value;
use zeroize::Zeroizing;

fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec/vectors/linking.json");
    let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
    serde_json::from_str(&text).expect("the vectors are JSON")
}

fn bytes(vectors: &Value, at: &str) -> Vec<u8> {
    let text = vectors.pointer(at).and_then(Value::as_str).expect(at);
    HEXLOWER.decode(text.as_bytes()).expect(at)
}

fn messages(vectors: &Value) -> Vec<(&'static str, Tell)> {
    let now = UnixTime(vectors["now"].as_u64().expect("a time"));
    let random: [u8; 96] = bytes(vectors, "/authority_random").try_into().expect("96 bytes");
    let authority = Authority::new(&Zeroizing::new(random), now);
    let key: Vec<u8> = (64..96).collect();
    let relay = peerage_model::relay::RelayInfo {
        key: AgreementKey(key.try_into().expect("32 bytes")),
        host: "relay.example.com".parse().expect("a host"),
        port: 3478,
        tls: None,
    };
    let mut id = [0; 16];
    (0..16).zip(&mut id).for_each(|(value, byte)| *byte = value);
    let id = TrustId(id);
    let (from, to) = ("reporter.reports", "db.tools");
    let name = |text: &str| text.parse().expect("a name");
    let wish = Wish { id, from: name(from), to: name(to), purpose: Some("figures".into()) };
    let records = vec![RecordBytes(authority.record().as_bytes().to_vec())];
    let denied = Denied { agent: name(from), instance: InstanceId([3; 8]), until: UnixTime(now.0 + 86_400) };
    vec![
        ("hello", Tell::Hello(Hello { version: Some("0.1.0".into()), records, relays: vec![relay] })),
        ("wish", Tell::Wish(wish.clone())),
        ("wish_without_purpose", Tell::Wish(Wish { purpose: None, ..wish })),
        ("withdrawn", Tell::Withdrawn(Withdrawn { id })),
        ("denied", Tell::Denied(denied)),
        ("told", Tell::Told(Told {})),
        ("keepalive", Tell::Keepalive(Keepalive {})),
    ]
}

#[test]
fn what_operators_tell_is_written_and_read_alike() {
    let vectors = vectors();
    for (name, message) in messages(&vectors) {
        let expected = bytes(&vectors, &format!("/tell/{name}"));
        assert_eq!(HEXLOWER.encode(&message.encode()), HEXLOWER.encode(&expected), "{name}");
        let (body, rest) = split_frame(&expected, MAX_FRAME).expect("a frame").expect("a whole one");
        assert_eq!((Tell::decode(body), rest), (Ok(Some(message)), &[][..]), "{name}");
    }
}

#[test]
fn the_one_answer_is_written_and_read_alike() {
    let expected = bytes(&vectors(), "/heard");
    let heard = Heard { count: 300 };
    assert_eq!(heard.encode(), expected);
    let (body, _) = split_frame(&expected, MAX_FRAME).expect("a frame").expect("a whole one");
    assert_eq!(Heard::decode(body), Ok(Some(heard)));
}
