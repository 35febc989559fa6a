//! Trust requests for a mailbox: what a stranger leaves at a relay for an agent of which it knows the name
//! (`docs/spec/mailbox.md` section 4).
//!
//! The relay must not read it, so it is sealed to the owner's authority; its reader must know who asks, so it is signed by the
//! asker's; and it has one length, so that it says nothing by that.

use core::fmt;
use core::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

use crate::authority::{Authority, AuthorityRecord, RecordError};
use crate::cbor;
use crate::id::AgentId;
use crate::keys::{AgreementKey, AgreementSecret, WeakKey};
use crate::name::AgentName;
use crate::pair::hkdf;
use crate::passport::BACKDATED;
use crate::relay::RelayInfo;
use crate::relay::frame::mailbox::SEALED;
use crate::signed::{BadSignature, Kind, Signed};
use crate::ticket::MAX_RELAYS;
use crate::time::UnixTime;

/// Longest reason, in bytes of UTF-8.
pub const MAX_REASON: usize = 256;
/// How long a request is worth reading.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// The text inside the seal, with its padding.
const PADDED: usize = SEALED - 32 - 16;

/// Who asks, why, and where it can be found. A value that was opened has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailRequest {
    /// Who vouches for the asker.
    pub record: AuthorityRecord,
    /// The asker's name there.
    pub name: AgentName,
    /// Where it can be found.
    pub relays: Vec<RelayInfo>,
    /// Its words, at most [`MAX_REASON`] bytes.
    pub reason: String,
    /// When it was asked.
    pub asked: UnixTime,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[cbor(n(0), with = "minicbor::bytes")]
    record: Vec<u8>,
    #[n(1)]
    name: AgentName,
    #[n(2)]
    relays: Vec<RelayInfo>,
    #[n(3)]
    reason: String,
    #[n(4)]
    asked: UnixTime,
    #[cbor(n(5), with = "minicbor::bytes")]
    owner: Vec<u8>,
}

/// Why a request was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The reason is too long, or name and reason together are.
    #[error("the reason is too long: at most {MAX_REASON} bytes")]
    TooLong,
    /// The owner's key cannot be sealed to.
    #[error("the owner's authority uses a key that cannot be sealed to")]
    WeakKey(#[source] WeakKey),
}

/// Why mail was not taken. Its sender is not told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MailError {
    /// Not sealed to this authority for this agent.
    #[error("the mail is not sealed to this agent")]
    Sealed,
    /// What was sealed is no request.
    #[error("the mail is not a trust request")]
    Malformed,
    /// The asker's record is not good.
    #[error("the asker's authority record is not valid")]
    Record(#[source] RecordError),
    /// Not signed by who is said to ask.
    #[error("the request is not signed by the asker's authority")]
    Signature(#[source] BadSignature),
    /// Meant for somebody else.
    #[error("the request is for another agent")]
    Foreign,
    /// Asked too long ago, or in the future.
    #[error("the request was asked at {asked:?}; check both clocks")]
    Untimely {
        /// When.
        asked: UnixTime,
    },
}

impl MailRequest {
    /// Who asks.
    #[must_use]
    pub fn asker(&self) -> AgentId {
        AgentId { authority: self.record.fingerprint(), name: self.name.clone() }
    }

    /// Signs and seals a request of `asker`'s agent `self.name` to `owner`, whose authority has `record`. `e` must be fresh: the
    /// nonce is constant. Relays are left out from the end until the rest fits.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(
        &self,
        asker: &Authority,
        owner: &AgentId,
        record: &AuthorityRecord,
        e: &AgreementSecret,
    ) -> Result<Box<[u8; SEALED]>, SealError> {
        if self.reason.len() > MAX_REASON {
            return Err(SealError::TooLong);
        }
        let most = self.relays.len().min(MAX_RELAYS);
        let text = (0..=most).rev().map(|relays| self.sign(asker, owner, relays)).find(|text| text.len() <= PADDED - 2);
        let text = text.ok_or(SealError::TooLong)?;
        let mut out = Box::new([0; SEALED]);
        let (head, rest) = out.split_at_mut(32);
        let (body, tag) = rest.split_at_mut(PADDED);
        head.copy_from_slice(&e.public().0);
        body[..2].copy_from_slice(&u16::try_from(text.len()).expect("it fits the padding").to_be_bytes());
        body[2..2 + text.len()].copy_from_slice(&text);
        let shared = e.agree(record.agreement_key()).map_err(SealError::WeakKey)?;
        let key = key(&shared, &e.public(), record.agreement_key());
        let aad = owner.routing_id().0;
        let sealed = key.seal_in_place_separate_tag(zero_nonce(), Aad::from(aad), body);
        tag.copy_from_slice(sealed.expect("a kilobyte is far below AES-GCM's limit").as_ref());
        Ok(out)
    }

    fn sign(&self, asker: &Authority, owner: &AgentId, relays: usize) -> Vec<u8> {
        let wire = Wire {
            record: self.record.as_bytes().to_vec(),
            name: self.name.clone(),
            relays: self.relays[..relays].to_vec(),
            reason: self.reason.clone(),
            asked: self.asked,
            owner: owner.binding(),
        };
        cbor::to_vec(&asker.sign(Kind::MailRequest, cbor::to_vec(&wire)))
    }

    /// Opens mail for `owner`, one of the agents of the authority with this agreement secret, and verifies what is in it.
    ///
    /// # Errors
    /// [`MailError`].
    pub fn open(
        sealed: &[u8; SEALED],
        secret: &AgreementSecret,
        owner: &AgentId,
        now: UnixTime,
    ) -> Result<Self, MailError> {
        let (e, body) = sealed.split_first_chunk::<32>().ok_or(MailError::Sealed)?;
        let e = AgreementKey(*e);
        let shared = secret.agree(&e).map_err(|_| MailError::Sealed)?;
        let key = key(&shared, &e, &secret.public());
        let mut buffer = Zeroizing::new(body.to_vec());
        let text = key.open_in_place(zero_nonce(), Aad::from(owner.routing_id().0), &mut buffer);
        let text = text.map_err(|_| MailError::Sealed)?;
        let (length, rest) = text.split_first_chunk::<2>().ok_or(MailError::Malformed)?;
        let signed = rest.get(..usize::from(u16::from_be_bytes(*length))).ok_or(MailError::Malformed)?;
        Self::verify(signed, owner, now)
    }

    fn verify(bytes: &[u8], owner: &AgentId, now: UnixTime) -> Result<Self, MailError> {
        let signed: Signed = minicbor::decode(bytes).map_err(|_| MailError::Malformed)?;
        let wire: Wire = minicbor::decode(signed.unverified_payload()).map_err(|_| MailError::Malformed)?;
        let record = AuthorityRecord::verify(&wire.record, now).map_err(MailError::Record)?;
        signed.verify(Kind::MailRequest, record.signing_key()).map_err(MailError::Signature)?;
        if wire.owner != owner.binding() {
            return Err(MailError::Foreign);
        }
        if wire.asked > now.plus(BACKDATED) || wire.asked.plus(LIFETIME) < now {
            return Err(MailError::Untimely { asked: wire.asked });
        }
        if wire.reason.len() > MAX_REASON || wire.relays.len() > MAX_RELAYS {
            return Err(MailError::Malformed);
        }
        Ok(Self { record, name: wire.name, relays: wire.relays, reason: wire.reason, asked: wire.asked })
    }
}

fn key(shared: &[u8; 32], e: &AgreementKey, owner: &AgreementKey) -> LessSafeKey {
    let key = hkdf(&e.0, shared, &[b"peerage mailbox v1", &owner.0]);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..]).expect("the key has 32 bytes"))
}

/// The constant nonce of a key that seals once.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// A relay's inventions for names that nobody has published (`docs/spec/mailbox.md` section 3).
#[derive(Clone)]
pub struct Decoys(Zeroizing<[u8; 32]>);

impl Decoys {
    /// 2025-01-01: no authority of this project is older.
    const FIRST: u64 = 1_735_689_600;

    /// Of the relay with this key: the same after each restart, so that a restart does not tell which records are real.
    #[must_use]
    pub fn of_relay(key: &AgreementSecret) -> Self {
        Self(hkdf(b"", key.expose(), &[b"peerage mailbox decoy v1"]))
    }

    /// The record that this name has here as long as nobody publishes it.
    #[must_use]
    pub fn record(&self, name: &crate::relay::frame::mailbox::NameKey) -> AuthorityRecord {
        let mut random = Zeroizing::new([0; 96]);
        for (i, part) in (0_u8..).zip(random.chunks_exact_mut(32)) {
            part.copy_from_slice(&self.prf(&[b"key", &[i], &name.0]));
        }
        let mut age = [0; 8];
        age.copy_from_slice(&self.prf(&[b"time", &name.0])[..8]);
        let made = UnixTime(Self::FIRST + u64::from_be_bytes(age) % (1 << 25));
        Authority::new(&random, made).record().clone()
    }

    fn prf(&self, parts: &[&[u8]]) -> [u8; 32] {
        use aws_lc_rs::hmac;
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0[..]));
        for part in parts {
            context.update(part);
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }
}

impl fmt::Debug for Decoys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decoys(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::*;
    use crate::relay::frame::mailbox::NameKey;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn authority(seed: u8) -> Authority {
        let mut random = [seed; 96];
        random[0] ^= 0x55;
        Authority::new(&Zeroizing::new(random), NOW)
    }

    fn agent(authority: &Authority, name: &str) -> AgentId {
        authority.agent(name.parse().expect("a name"))
    }

    fn relay(host: &str) -> RelayInfo {
        RelayInfo { key: AgreementKey([5; 32]), host: host.parse().expect("a host"), port: 3478, tls: None }
    }

    fn request(asker: &Authority, relays: Vec<RelayInfo>) -> MailRequest {
        MailRequest {
            record: asker.record().clone(),
            name: "planner".parse().expect("a name"),
            relays,
            reason: "to read reports".into(),
            asked: NOW,
        }
    }

    fn sealed(request: &MailRequest, asker: &Authority, owner: &Authority) -> Box<[u8; SEALED]> {
        let e = AgreementSecret::from_bytes([9; 32]);
        request.seal(asker, &agent(owner, "db"), owner.record(), &e).expect("it fits")
    }

    fn opened(sealed: &[u8; SEALED], owner: &Authority, now: UnixTime) -> Result<MailRequest, MailError> {
        MailRequest::open(sealed, owner.agreement(), &agent(owner, "db"), now)
    }

    #[test]
    fn the_owner_reads_what_the_asker_wrote() {
        let (asker, owner) = (authority(1), authority(2));
        let request = request(&asker, vec![relay("relay.example"), relay("192.0.2.1")]);
        assert_eq!(opened(&sealed(&request, &asker, &owner), &owner, NOW), Ok(request.clone()));
        assert_eq!(request.asker(), agent(&asker, "planner"));
    }

    #[test]
    fn only_the_agent_that_it_is_for_opens_it() {
        let (asker, owner) = (authority(1), authority(2));
        let mail = sealed(&request(&asker, vec![]), &asker, &owner);
        assert_eq!(opened(&mail, &authority(3), NOW), Err(MailError::Sealed));
        let other = MailRequest::open(&mail, owner.agreement(), &agent(&owner, "web"), NOW);
        assert_eq!(other, Err(MailError::Sealed));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let (asker, owner) = (authority(1), authority(2));
        let mail = sealed(&request(&asker, vec![]), &asker, &owner);
        for at in (0..SEALED).step_by(7) {
            let mut changed = mail.clone();
            changed[at] ^= 1;
            assert_eq!(opened(&changed, &owner, NOW), Err(MailError::Sealed), "byte {at}");
        }
    }

    #[test]
    fn nobody_asks_in_anothers_name() {
        let (asker, owner, liar) = (authority(1), authority(2), authority(3));
        // The liar shows the asker's record, which is public, and signs itself.
        let mail = sealed(&request(&asker, vec![]), &liar, &owner);
        assert!(matches!(opened(&mail, &owner, NOW), Err(MailError::Signature(_))));
    }

    #[test]
    fn what_is_too_old_or_not_asked_yet_is_refused() {
        let (asker, owner) = (authority(1), authority(2));
        let mail = sealed(&request(&asker, vec![]), &asker, &owner);
        let second = Duration::from_secs(1);
        for (now, good) in [
            (NOW.plus(LIFETIME), true),
            (NOW.plus(LIFETIME).plus(second), false),
            (NOW.minus(BACKDATED), true),
            (NOW.minus(BACKDATED).minus(second), false),
        ] {
            assert_eq!(opened(&mail, &owner, now).is_ok(), good, "{now:?}");
        }
    }

    #[test]
    fn relays_that_do_not_fit_are_left_out_and_a_reason_that_does_not_is_an_error() {
        let (asker, owner) = (authority(1), authority(2));
        let long = "a.".repeat(110) + "example";
        let mut request = request(&asker, vec![relay("near.example"), relay(&long), relay(&long), relay(&long)]);
        let read = opened(&sealed(&request, &asker, &owner), &owner, NOW).expect("it opens");
        assert_eq!(read.relays, request.relays[..3], "the last did not fit");
        request.reason = "x".repeat(MAX_REASON + 1);
        let e = AgreementSecret::from_bytes([9; 32]);
        let refused = request.seal(&asker, &agent(&owner, "db"), owner.record(), &e);
        assert_eq!(refused, Err(SealError::TooLong));
    }

    #[test]
    fn the_longest_name_and_reason_still_fit_with_a_relay() {
        let (asker, owner) = (authority(1), authority(2));
        let mut request = request(&asker, vec![relay("relay.example")]);
        request.name = format!("{0}.{0}", "n".repeat(63)).parse().expect("127 bytes");
        request.reason = "x".repeat(MAX_REASON);
        let read = opened(&sealed(&request, &asker, &owner), &owner, NOW).expect("it opens");
        assert_eq!(read, request);
    }

    #[test]
    fn a_decoy_is_a_good_record_always_the_same_and_each_name_has_its_own() {
        let decoys = Decoys::of_relay(&AgreementSecret::from_bytes([7; 32]));
        let key = |name: &str| NameKey::of(&name.parse().expect("a name"));
        let one = decoys.record(&key("db"));
        AuthorityRecord::verify(one.as_bytes(), NOW).expect("it verifies");
        let again = Decoys::of_relay(&AgreementSecret::from_bytes([7; 32])).record(&key("db"));
        assert_eq!(one, again, "after a restart, too");
        assert_ne!(one.fingerprint(), decoys.record(&key("web")).fingerprint());
        let other = Decoys::of_relay(&AgreementSecret::from_bytes([8; 32]));
        assert_ne!(one.fingerprint(), other.record(&key("db")).fingerprint());
        assert_eq!(one.as_bytes().len(), authority(1).record().as_bytes().len(), "its length tells nothing");
        assert_eq!(one.sequence(), authority(1).record().sequence());
    }

    #[test]
    fn sealing_decoys_and_frames_match_the_vectors() {
        use crate::relay::frame::mailbox::{MailId, answer_key, check, lookup, mail, post, posted, records};
        use crate::relay::frame::{Frame, MAC, Tag, keys::MacKey};
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec/vectors/mailbox.json");
        let text = std::fs::read_to_string(path).expect("the vectors are part of the repository");
        let v: serde_json::Value = serde_json::from_str(&text).expect("the vectors are JSON");
        let bytes = |value: &serde_json::Value| {
            data_encoding::HEXLOWER.decode(value.as_str().expect("text").as_bytes()).expect("lower-case hex")
        };
        let (asker, owner) = (authority(1), authority(2));
        let request = request(&asker, vec![relay("relay.example")]);
        let made = sealed(&request, &asker, &owner);
        assert_eq!(made[..], bytes(&v["sealed"])[..]);
        assert_eq!(opened(&made, &owner, NOW), Ok(request));

        let relay_key = AgreementSecret::from_bytes(bytes(&v["relay_secret"]).try_into().expect("32 bytes"));
        let name = NameKey::of(&"db".parse().expect("a name"));
        assert_eq!(name.0[..], bytes(&v["name_key"])[..]);
        let decoy = Decoys::of_relay(&relay_key).record(&name);
        assert_eq!(decoy.as_bytes(), bytes(&v["decoy"]));

        let tag = Tag([0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6]);
        let (nonce, id) = (
            [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18],
            MailId([0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28]),
        );
        let session = MacKey::new(Zeroizing::new([0x42; 32]));
        let route = agent(&owner, "db").routing_id();
        let e = AgreementSecret::from_bytes(bytes(&v["e_secret"]).try_into().expect("32 bytes"));
        let es = relay_key.agree(&e.public()).expect("good keys");
        let answer = answer_key(&es, &relay_key.public(), &e.public());
        let frames = [
            ("lookup", lookup(tag, nonce, name, &e.public()).to_vec()),
            ("records", records(tag, nonce, [decoy.as_bytes(); 2], |body| answer.mac(body))),
            ("post", post(tag, nonce, route, &made)),
            ("posted", posted(tag, nonce).to_vec()),
            ("check", check(tag, nonce, id, |body| session.mac(body)).to_vec()),
            ("mail", mail(tag, nonce, Some((id, &made)), |body| session.mac(body))),
            ("mail_none", mail(tag, nonce, None, |body| session.mac(body))),
        ];
        for (name, frame) in frames {
            assert_eq!(frame, bytes(&v["frames"][name]), "{name}");
            let (read, _) = Frame::parse(&frame).expect("it is a frame");
            assert_eq!(read, tag);
            for length in 0..frame.len() {
                let whole_records = name == "records" && length == 8 + 8 + 2 + decoy.as_bytes().len() + MAC;
                assert_eq!(Frame::parse(&frame[..length]).is_ok(), whole_records, "{name} cut to {length}");
            }
            let longer = [&frame[..], &[0]].concat();
            assert!(Frame::parse(&longer).is_err(), "{name} with a byte too many");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_text_inside_the_seal_makes_the_reader_panic(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let owner = authority(2);
            let _ = MailRequest::verify(&text, &agent(&owner, "db"), NOW);
        }
    }
}
