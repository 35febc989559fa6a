//! Signed bytes: what travels is exactly what was signed.
//!
//! A signed object is the CBOR array [payload, signature]. The Ed25519 signature (RFC 8032) covers
//! `"peerage KIND v1"` ‖ 0x00 ‖ payload, so a signature of one kind never passes for another.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use minicbor::{Decode, Encode};

/// A payload with its signature, not yet verified.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Signed {
    #[cbor(n(0), with = "minicbor::bytes")]
    payload: Vec<u8>,
    #[cbor(n(1), with = "minicbor::bytes")]
    signature: [u8; 64],
}

/// Which object a signature is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An authority record, signed by the root.
    AuthorityRecord,
    /// A passport, signed by the authority's signing key.
    Passport,
    /// A trust request for a mailbox, signed by the asker's authority's signing key.
    MailRequest,
    /// Which pod an instance was enrolled for, signed by the authority's signing key.
    Enrolment,
    /// That an operator speaks in a TLS session, signed by the authority's signing key.
    Operator,
}

impl Kind {
    fn label(self) -> &'static [u8] {
        match self {
            Self::AuthorityRecord => b"peerage authority record v1\0",
            Self::Passport => b"peerage passport v1\0",
            Self::MailRequest => b"peerage mail request v1\0",
            Self::Enrolment => b"peerage enrolment v1\0",
            Self::Operator => b"peerage operator v1\0",
        }
    }
}

/// The signature does not belong to these bytes, this kind and this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not match")]
pub struct BadSignature;

impl Signed {
    /// Signs `payload` as an object of `kind`.
    #[must_use]
    pub fn new(kind: Kind, payload: Vec<u8>, key: &SigningKey) -> Self {
        let signature = sign_detached(kind, &payload, key);
        Self { payload, signature }
    }

    /// The payload, for whoever needs to read which key to verify with. Trust nothing in it before [`Self::verify`].
    #[must_use]
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// Checks the signature and hands out the payload.
    ///
    /// # Errors
    /// [`BadSignature`] for a wrong key, kind, payload or signature, and for keys of small order (strict verification).
    pub fn verify(&self, kind: Kind, key: &[u8; 32]) -> Result<&[u8], BadSignature> {
        verify_detached(kind, &self.payload, &self.signature, key)?;
        Ok(&self.payload)
    }
}

/// A signature over bytes that both sides have anyway, so that they do not travel.
pub(crate) fn sign_detached(kind: Kind, payload: &[u8], key: &SigningKey) -> [u8; 64] {
    key.sign(&message(kind, payload)).to_bytes()
}

/// Checks what [`sign_detached`] made, strictly.
pub(crate) fn verify_detached(
    kind: Kind,
    payload: &[u8],
    signature: &[u8; 64],
    key: &[u8; 32],
) -> Result<(), BadSignature> {
    let key = VerifyingKey::from_bytes(key).map_err(|_| BadSignature)?;
    key.verify_strict(&message(kind, payload), &Signature::from_bytes(signature)).map_err(|_| BadSignature)
}

fn message(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = kind.label().to_vec();
    out.extend_from_slice(payload);
    out
}

impl core::fmt::Debug for Signed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Signed({} bytes)", self.payload.len())
    }
}
