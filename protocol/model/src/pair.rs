//! Pair secrets: what two agents that trust each other share without a message.

use core::fmt;

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::Zeroizing;

use crate::cbor::byte_string;
use crate::id::AgentId;
use crate::keys::{AgreementKey, AgreementSecret, WeakKey};

/// 32 bytes known to two agents (and their authorities) and to nobody else; the relay never has them.
#[derive(Clone, PartialEq, Eq)]
pub struct PairSecret(Zeroizing<[u8; 32]>);
byte_string!(PairSecret, 32);

impl PairSecret {
    /// Between agents of two authorities: HKDF-SHA256 over the DH of the authorities' agreement keys, bound to both
    /// agent ids in sorted order (docs/spec/identity.md).
    ///
    /// # Errors
    /// [`WeakKey`] when the other authority's key contributes nothing.
    pub fn between(own: &AgreementSecret, other: &AgreementKey, a: &AgentId, b: &AgentId) -> Result<Self, WeakKey> {
        let shared = own.agree(other)?;
        Ok(Self::derive(b"peerage pair v1", &shared, &sorted(a, b)))
    }

    /// Between agents of one authority, whose own agreement secret takes the DH's place.
    #[must_use]
    pub fn within(own: &AgreementSecret, a: &AgentId, b: &AgentId) -> Self {
        Self::derive(b"peerage pair within v1", own.expose(), &sorted(a, b))
    }

    /// For the request-only session that a ticket opens: from its invite secret, bound to the inviter.
    #[must_use]
    pub fn of_invite(secret: &[u8; 32], inviter: &AgentId) -> Self {
        Self::derive(b"peerage invite v1", secret, &inviter.binding())
    }

    /// From its bytes, as a snapshot or a test has them.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for deriving keys.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    fn derive(label: &[u8], secret: &[u8; 32], binding: &[u8]) -> Self {
        Self(hkdf(label, secret, &[binding]))
    }
}

fn sorted(a: &AgentId, b: &AgentId) -> Vec<u8> {
    let (first, second) = if a <= b { (a, b) } else { (b, a) };
    let mut out = first.binding();
    out.extend_from_slice(&second.binding());
    out
}

struct Bytes32;
impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        32
    }
}

/// 32 bytes of HKDF-SHA256 (RFC 5869).
#[must_use]
pub fn hkdf(salt: &[u8], secret: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut out = Zeroizing::new([0; 32]);
    Salt::new(HKDF_SHA256, salt)
        .extract(secret)
        .expand(info, Bytes32)
        .and_then(|okm| okm.fill(&mut out[..]))
        .expect("32 bytes are within HKDF's limit of 255 blocks");
    out
}

impl fmt::Debug for PairSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Fingerprint;

    fn id(authority: u8, name: &str) -> AgentId {
        AgentId { authority: Fingerprint([authority; 32]), name: name.parse().expect("a name") }
    }

    #[test]
    fn both_sides_derive_the_same_secret_whichever_order_they_name_the_agents() {
        let (ours, theirs) = (AgreementSecret::from_bytes([1; 32]), AgreementSecret::from_bytes([2; 32]));
        let (a, b) = (id(1, "a"), id(2, "b"));
        let here = PairSecret::between(&ours, &theirs.public(), &a, &b).expect("good keys");
        let there = PairSecret::between(&theirs, &ours.public(), &b, &a).expect("good keys");
        assert_eq!(here, there);
    }

    #[test]
    fn another_pair_of_the_same_authorities_has_another_secret() {
        let own = AgreementSecret::from_bytes([1; 32]);
        let other = AgreementSecret::from_bytes([2; 32]).public();
        let one = PairSecret::between(&own, &other, &id(1, "a"), &id(2, "b")).expect("good keys");
        let two = PairSecret::between(&own, &other, &id(1, "a"), &id(2, "c")).expect("good keys");
        assert_ne!(one, two);
    }
}
