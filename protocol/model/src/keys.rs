//! X25519 keys as values. No key here is ever converted into a key of another kind.

use core::fmt;

use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use zeroize::Zeroizing;

use crate::cbor::byte_string;

/// An X25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgreementKey(pub [u8; 32]);
byte_string!(AgreementKey, 32);

/// An X25519 private key; wiped when dropped.
#[derive(Clone)]
pub struct AgreementSecret(Zeroizing<[u8; 32]>);
byte_string!(AgreementSecret, 32);

/// The other side's key was a point of small order, so the result would not depend on our secret (RFC 7748 section 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side's X25519 key is not a usable point")]
pub struct WeakKey;

impl AgreementSecret {
    /// From 32 random bytes, which the caller draws from the operating system.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves, for storing or for a Noise handshake.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> AgreementKey {
        let public = self.parsed().compute_public_key().expect("a private key that parsed has a public half");
        let mut out = [0; 32];
        out.copy_from_slice(public.as_ref());
        AgreementKey(out)
    }

    /// Diffie-Hellman.
    ///
    /// # Errors
    /// [`WeakKey`] when the other key contributes nothing.
    pub fn agree(&self, other: &AgreementKey) -> Result<Zeroizing<[u8; 32]>, WeakKey> {
        let peer = UnparsedPublicKey::new(&X25519, &other.0);
        agreement::agree(&self.parsed(), peer, WeakKey, |shared| {
            let mut out = Zeroizing::new([0; 32]);
            out.copy_from_slice(shared);
            Ok(out)
        })
    }

    fn parsed(&self) -> PrivateKey {
        PrivateKey::from_private_key(&X25519, &self.0[..]).expect("every 32-byte string is an X25519 private key")
    }
}

impl fmt::Debug for AgreementSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgreementSecret(..)")
    }
}

impl fmt::Debug for AgreementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    fn key(hex: &str) -> [u8; 32] {
        HEXLOWER.decode(hex.as_bytes()).expect("hex").try_into().expect("32 bytes")
    }

    #[test]
    fn agreement_matches_rfc_7748_section_6_1() {
        let alice =
            AgreementSecret::from_bytes(key("77076d0a7318a57d3c16c17251b26645c6c2f6c0d3d6e0d1e9a6e0d5e3c0b2a1"));
        let bob = AgreementSecret::from_bytes(key("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        assert_eq!(bob.public().0, key("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        let ours = alice.agree(&bob.public()).expect("good keys agree");
        let theirs = bob.agree(&alice.public()).expect("good keys agree");
        assert_eq!(ours, theirs);
    }

    #[test]
    fn a_point_of_small_order_is_refused() {
        let secret = AgreementSecret::from_bytes([7; 32]);
        assert!(secret.agree(&AgreementKey([0; 32])).is_err());
    }
}
