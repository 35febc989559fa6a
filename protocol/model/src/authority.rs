//! Authorities: who vouches for agents.
//!
//! A root Ed25519 key names the authority for life. The root signs versioned records of the keys in daily use, so
//! that rotation is a new record and the name stays.

use core::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::SigningKey;
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

use crate::cbor;
use crate::id::{AgentId, Fingerprint};
use crate::keys::{AgreementKey, AgreementSecret};
use crate::passport::Passport;
use crate::signed::{self, BadSignature, Kind, Signed};
use crate::time::UnixTime;

/// How long a record made by [`Authority`] is good for. Long, because records travel out of band in tickets; the
/// passports under it live a day.
pub const RECORD_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The keys an authority uses now, signed by its root. A value of this type has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityRecord {
    body: Body,
    signed: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct Body {
    #[cbor(n(0), with = "minicbor::bytes")]
    root: [u8; 32],
    #[cbor(n(1), with = "minicbor::bytes")]
    signing: [u8; 32],
    #[n(2)]
    agreement: AgreementKey,
    #[n(3)]
    sequence: u64,
    #[n(4)]
    not_after: UnixTime,
    #[n(5)]
    former_until: Option<UnixTime>,
}

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are not a signed authority record.
    #[error("not an authority record")]
    Malformed,
    /// Not signed by the root it names.
    #[error("the authority record is not signed by its root")]
    Signature(#[source] BadSignature),
    /// Past its end.
    #[error("the authority record ended at {not_after:?}; ask the other side for a new one")]
    Expired {
        /// When it ended.
        not_after: UnixTime,
    },
}

impl AuthorityRecord {
    /// Reads and verifies a record. The caller compares [`Self::fingerprint`] with the authority it expects.
    ///
    /// # Errors
    /// [`RecordError`] when malformed, not signed by its root, or ended at `now`.
    pub fn verify(bytes: &[u8], now: UnixTime) -> Result<Self, RecordError> {
        let signed: Signed = minicbor::decode(bytes).map_err(|_| RecordError::Malformed)?;
        let claimed: Body = minicbor::decode(signed.unverified_payload()).map_err(|_| RecordError::Malformed)?;
        signed.verify(Kind::AuthorityRecord, &claimed.root).map_err(RecordError::Signature)?;
        if claimed.not_after < now {
            return Err(RecordError::Expired { not_after: claimed.not_after });
        }
        Ok(Self { body: claimed, signed: bytes.to_vec() })
    }

    /// Whose record this is.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of_root(&self.body.root)
    }

    /// The Ed25519 key that signs passports.
    #[must_use]
    pub fn signing_key(&self) -> &[u8; 32] {
        &self.body.signing
    }

    /// The X25519 key that pair secrets are made with.
    #[must_use]
    pub fn agreement_key(&self) -> &AgreementKey {
        &self.body.agreement
    }

    /// Grows by one with each rotation.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.body.sequence
    }

    /// When records with a smaller sequence stop counting, whatever they say of their own end; `None` says nothing of them.
    #[must_use]
    pub fn former_until(&self) -> Option<UnixTime> {
        self.body.former_until
    }

    /// Whether a newer record of the same authority has ended this one.
    #[must_use]
    pub fn is_ended_by(&self, newer: &Self, now: UnixTime) -> bool {
        let follows = newer.fingerprint() == self.fingerprint() && newer.sequence() > self.sequence();
        follows && newer.former_until().is_some_and(|until| until <= now)
    }

    /// The record as signed, for sending on.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.signed
    }

    /// The record as text, in base64url without padding. Nothing in it is secret.
    #[must_use]
    pub fn to_text(&self) -> String {
        BASE64URL_NOPAD.encode(&self.signed)
    }

    /// Reads and verifies what [`Self::to_text`] wrote.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn from_text(text: &str, now: UnixTime) -> Result<Self, RecordError> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| RecordError::Malformed)?;
        Self::verify(&bytes, now)
    }
}

/// An authority's own keys: the root, and those of its current record.
#[derive(Clone)]
pub struct Authority {
    root: SigningKey,
    signing: SigningKey,
    agreement: AgreementSecret,
    record: AuthorityRecord,
}

/// The secrets of an [`Authority`], for storing with mode 0600. Wiped when dropped.
#[derive(Encode, Decode)]
#[cbor(map)]
pub struct AuthoritySecrets {
    #[cbor(n(0), with = "minicbor::bytes")]
    root: [u8; 32],
    #[cbor(n(1), with = "minicbor::bytes")]
    signing: [u8; 32],
    #[n(2)]
    agreement: AgreementSecret,
    #[cbor(n(3), with = "minicbor::bytes")]
    record: Vec<u8>,
}

impl Drop for AuthoritySecrets {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.root);
        zeroize::Zeroize::zeroize(&mut self.signing);
    }
}

impl Authority {
    /// A new authority from 96 random bytes: root, signing and agreement key.
    #[must_use]
    pub fn new(random: &Zeroizing<[u8; 96]>, now: UnixTime) -> Self {
        let part = |i: usize| {
            let mut out = Zeroizing::new([0; 32]);
            out.copy_from_slice(&random[32 * i..32 * (i + 1)]);
            out
        };
        let root = SigningKey::from_bytes(&part(0));
        let keys = (SigningKey::from_bytes(&part(1)), AgreementSecret::from_bytes(*part(2)));
        Self::with_record(root, keys, (1, None), now)
    }

    /// The same authority with new daily keys, from 64 random bytes. The old record stays valid until its end, so
    /// that both count while peers learn the new one.
    #[must_use]
    pub fn rotate(&self, random: &Zeroizing<[u8; 64]>, now: UnixTime) -> Self {
        self.followed_by(random, None, now)
    }

    /// As [`Self::rotate`], with an end for the old record: whoever has learned the new one does not take the old one from
    /// then on, so that keys which were stolen are of no more use.
    #[must_use]
    pub fn rotate_ending(&self, random: &Zeroizing<[u8; 64]>, former_until: UnixTime, now: UnixTime) -> Self {
        self.followed_by(random, Some(former_until), now)
    }

    fn followed_by(&self, random: &Zeroizing<[u8; 64]>, former_until: Option<UnixTime>, now: UnixTime) -> Self {
        let mut signing = Zeroizing::new([0; 32]);
        signing.copy_from_slice(&random[..32]);
        let mut agreement = [0; 32];
        agreement.copy_from_slice(&random[32..]);
        let sequence = self.record.sequence() + 1;
        let keys = (SigningKey::from_bytes(&signing), AgreementSecret::from_bytes(agreement));
        Self::with_record(self.root.clone(), keys, (sequence, former_until), now)
    }

    fn with_record(
        root: SigningKey,
        (signing, agreement): (SigningKey, AgreementSecret),
        (sequence, former_until): (u64, Option<UnixTime>),
        now: UnixTime,
    ) -> Self {
        let body = Body {
            root: root.verifying_key().to_bytes(),
            signing: signing.verifying_key().to_bytes(),
            agreement: agreement.public(),
            sequence,
            not_after: now.plus(RECORD_LIFETIME),
            former_until,
        };
        let signed = cbor::to_vec(&Signed::new(Kind::AuthorityRecord, cbor::to_vec(&body), &root));
        Self { root, signing, agreement, record: AuthorityRecord { body, signed } }
    }

    /// The record to hand out.
    #[must_use]
    pub fn record(&self) -> &AuthorityRecord {
        &self.record
    }

    /// Who this is.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.record.fingerprint()
    }

    /// The secret half of the record's agreement key, for pair secrets.
    #[must_use]
    pub fn agreement(&self) -> &AgreementSecret {
        &self.agreement
    }

    /// The id of this authority's agent called `name`.
    #[must_use]
    pub fn agent(&self, name: crate::AgentName) -> AgentId {
        AgentId { authority: self.fingerprint(), name }
    }

    /// Signs a passport for one running instance.
    #[must_use]
    pub fn issue(&self, agent: &AgentId, instance: AgreementKey, not_before: UnixTime, not_after: UnixTime) -> Vec<u8> {
        Passport::sign(&self.signing, agent, instance, not_before, not_after)
    }

    /// Signs what this authority vouches for.
    pub(crate) fn sign(&self, kind: Kind, payload: Vec<u8>) -> Signed {
        Signed::new(kind, payload, &self.signing)
    }

    /// Signs bytes that the reader has already.
    pub(crate) fn sign_detached(&self, kind: Kind, payload: &[u8]) -> [u8; 64] {
        signed::sign_detached(kind, payload, &self.signing)
    }

    /// What to store.
    #[must_use]
    pub fn secrets(&self) -> AuthoritySecrets {
        AuthoritySecrets {
            root: self.root.to_bytes(),
            signing: self.signing.to_bytes(),
            agreement: self.agreement.clone(),
            record: self.record.signed.clone(),
        }
    }

    /// Back from the store.
    ///
    /// # Errors
    /// [`RecordError`] when the stored record is not one, is of other keys, or has ended.
    pub fn restore(secrets: &AuthoritySecrets, now: UnixTime) -> Result<Self, RecordError> {
        let record = AuthorityRecord::verify(&secrets.record, now)?;
        let root = SigningKey::from_bytes(&secrets.root);
        let signing = SigningKey::from_bytes(&secrets.signing);
        let same = record.body.root == root.verifying_key().to_bytes()
            && record.body.signing == signing.verifying_key().to_bytes()
            && record.body.agreement == secrets.agreement.public();
        if !same {
            return Err(RecordError::Malformed);
        }
        Ok(Self { root, signing, agreement: secrets.agreement.clone(), record })
    }
}

impl core::fmt::Debug for Authority {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Authority({:?})", self.fingerprint())
    }
}

impl core::fmt::Debug for AuthoritySecrets {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("AuthoritySecrets(..)")
    }
}
