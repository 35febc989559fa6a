//! Mail for a public agent: what anybody may leave in its mailbox (docs/spec/mailbox.md).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ed25519_dalek::SigningKey;
use peerage_model::mailbox::{LIFETIME, MAX_REASON, MailError, MailRequest};
use peerage_model::pair::hkdf;
use peerage_model::passport::BACKDATED;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::mailbox::SEALED;
use peerage_model::signed::{Kind, Signed};
use peerage_model::ticket::MAX_RELAYS;
use peerage_model::{AgentId, AgreementSecret, cbor};

use crate::feed::Feed;
use crate::model::{NOW, authority};

/// Every secret of the test authority.
const SECRET: u8 = 7;

fn owner() -> AgentId {
    authority().agent("db".parse().expect("a name"))
}

/// The first byte says how deep: any bytes as mail; any text inside a good seal; any payload under a good signature inside
/// it; an honest request, then changed. What opens is within every limit, names who signed, and is sealed and opened again alike.
pub fn mailbox(data: &[u8]) {
    let mut feed = Feed::new(data);
    let sealed = match feed.u8() % 4 {
        0 => raw(&mut feed),
        1 => seal(feed.rest()),
        2 => {
            let key = SigningKey::from_bytes(&[SECRET; 32]);
            seal(&cbor::to_vec(&Signed::new(Kind::MailRequest, feed.rest().to_vec(), &key)))
        }
        _ => {
            honest(&mut feed);
            return;
        }
    };
    if let Ok(request) = open(&sealed) {
        within_limits(&request);
    }
}

fn raw(feed: &mut Feed<'_>) -> Box<[u8; SEALED]> {
    let mut out = Box::new([0; SEALED]);
    let bytes = feed.rest();
    let length = bytes.len().min(SEALED);
    out[..length].copy_from_slice(&bytes[..length]);
    out
}

/// Seals any text, as who knows the owner's public key can.
fn seal(text: &[u8]) -> Box<[u8; SEALED]> {
    const PADDED: usize = SEALED - 48;
    let e = AgreementSecret::from_bytes([9; 32]);
    let theirs = *authority().record().agreement_key();
    let shared = e.agree(&theirs).expect("a good key");
    let key = hkdf(&e.public().0, &shared[..], &[b"peerage mailbox v1", &theirs.0]);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..]).expect("32 bytes"));
    let mut body = vec![0; PADDED];
    let length = text.len().min(PADDED - 2);
    // The length that is written may be a lie.
    body[..2].copy_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    body[2..2 + length].copy_from_slice(&text[..length]);
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    key.seal_in_place_append_tag(nonce, Aad::from(owner().routing_id().0), &mut body).expect("it is short");
    let mut out = Box::new([0; SEALED]);
    out[..32].copy_from_slice(&e.public().0);
    out[32..].copy_from_slice(&body);
    out
}

fn open(sealed: &[u8; SEALED]) -> Result<MailRequest, MailError> {
    MailRequest::open(sealed, authority().agreement(), &owner(), NOW)
}

fn honest(feed: &mut Feed<'_>) {
    let relays = (0..feed.below(6)).map(|n| relay(n, feed.below(240)));
    let request = MailRequest {
        record: authority().record().clone(),
        name: "planner".parse().expect("a name"),
        relays: relays.collect(),
        reason: "x".repeat(feed.below(300)),
        asked: NOW,
    };
    let e = AgreementSecret::from_bytes(feed.array());
    let Ok(mut sealed) = request.seal(authority(), &owner(), authority().record(), &e) else {
        assert!(request.reason.len() > MAX_REASON);
        return;
    };
    let opened = open(&sealed).expect("what was sealed opens");
    assert!(opened.reason == request.reason && request.relays.starts_with(&opened.relays));
    within_limits(&opened);
    let at = feed.below(SEALED);
    let flipped = feed.u8();
    sealed[at] ^= flipped;
    assert_eq!(open(&sealed).is_ok(), flipped == 0, "a changed byte is noticed");
}

fn relay(number: usize, length: usize) -> RelayInfo {
    let host = format!("r{number}.{}", "a".repeat(length)).trim_end_matches('.').parse().expect("a host");
    let key = AgreementSecret::from_bytes([5; 32]).public();
    RelayInfo { key, host, port: 3478, tls: None }
}

fn within_limits(request: &MailRequest) {
    assert!(request.reason.len() <= MAX_REASON && request.relays.len() <= MAX_RELAYS);
    assert!(request.asked <= NOW.plus(BACKDATED) && NOW <= request.asked.plus(LIFETIME));
    assert_eq!(request.asker().authority, request.record.fingerprint());
}
