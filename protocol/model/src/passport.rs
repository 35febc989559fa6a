//! Passports: an authority's word that a key is an agent's, for a day.

use core::time::Duration;

use ed25519_dalek::SigningKey;
use minicbor::{Decode, Encode};

use crate::authority::{AuthorityRecord, RecordError};
use crate::cbor;
use crate::id::{AgentId, InstanceId};
use crate::keys::AgreementKey;
use crate::signed::{BadSignature, Kind, Signed};
use crate::time::UnixTime;

/// How far back a passport's start lies, for clocks that disagree.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);
/// How long a passport lasts.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often a fresh one replaces it.
pub const RENEWAL: Duration = Duration::from_secs(3600);
/// Longest encoded [`Credential`]; ours have about 400 bytes, and it must fit one handshake packet.
pub const MAX_CREDENTIAL: usize = 700;

/// What an authority signs for one running agent. A value of this type has been verified.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Passport {
    #[n(0)]
    agent: AgentId,
    #[n(1)]
    instance: AgreementKey,
    #[n(2)]
    not_before: UnixTime,
    #[n(3)]
    not_after: UnixTime,
}

/// Why a credential was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The bytes are not a credential, or too many.
    #[error("not a credential")]
    Malformed,
    /// The authority record in it is not good.
    #[error("the credential's authority record is not valid")]
    Record(#[source] RecordError),
    /// Not signed by the record's signing key.
    #[error("the passport is not signed by its authority")]
    Signature(#[source] BadSignature),
    /// Speaks for another authority than the one that signed it.
    #[error("the passport names another authority than the one that signed it")]
    ForeignAuthority,
    /// Not valid yet.
    #[error("the passport starts at {not_before:?}; check both clocks")]
    NotYet {
        /// When it starts.
        not_before: UnixTime,
    },
    /// Past its end.
    #[error("the passport ended at {not_after:?}")]
    Expired {
        /// When it ended.
        not_after: UnixTime,
    },
}

impl Passport {
    pub(crate) fn sign(
        key: &SigningKey,
        agent: &AgentId,
        instance: AgreementKey,
        not_before: UnixTime,
        not_after: UnixTime,
    ) -> Vec<u8> {
        let body = Self { agent: agent.clone(), instance, not_before, not_after };
        cbor::to_vec(&Signed::new(Kind::Passport, cbor::to_vec(&body), key))
    }
}

/// What an instance shows: its passport, and the record that says who may sign it. Verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    record: AuthorityRecord,
    passport: Passport,
    bytes: Vec<u8>,
}

#[derive(Encode, Decode)]
struct Wire {
    #[cbor(n(0), with = "minicbor::bytes")]
    record: Vec<u8>,
    #[cbor(n(1), with = "minicbor::bytes")]
    passport: Vec<u8>,
}

impl Credential {
    /// Joins a record and a signed passport into the bytes that travel.
    #[must_use]
    pub fn join(record: &AuthorityRecord, passport: Vec<u8>) -> Vec<u8> {
        cbor::to_vec(&Wire { record: record.as_bytes().to_vec(), passport })
    }

    /// Reads and verifies both signatures and the passport's time. Whether this agent is *trusted* is not decided here.
    ///
    /// # Errors
    /// [`CredentialError`], each case of which ends a handshake in silence.
    pub fn verify(bytes: &[u8], now: UnixTime) -> Result<Self, CredentialError> {
        if bytes.len() > MAX_CREDENTIAL {
            return Err(CredentialError::Malformed);
        }
        let wire: Wire = minicbor::decode(bytes).map_err(|_| CredentialError::Malformed)?;
        let record = AuthorityRecord::verify(&wire.record, now).map_err(CredentialError::Record)?;
        let signed: Signed = minicbor::decode(&wire.passport).map_err(|_| CredentialError::Malformed)?;
        let payload = signed.verify(Kind::Passport, record.signing_key()).map_err(CredentialError::Signature)?;
        let passport: Passport = minicbor::decode(payload).map_err(|_| CredentialError::Malformed)?;
        if passport.agent.authority != record.fingerprint() {
            return Err(CredentialError::ForeignAuthority);
        }
        if now < passport.not_before {
            return Err(CredentialError::NotYet { not_before: passport.not_before });
        }
        if passport.not_after <= now {
            return Err(CredentialError::Expired { not_after: passport.not_after });
        }
        Ok(Self { record, passport, bytes: bytes.to_vec() })
    }

    /// Who it speaks for.
    #[must_use]
    pub fn agent(&self) -> &AgentId {
        &self.passport.agent
    }

    /// The key the holder must prove to have.
    #[must_use]
    pub fn instance_key(&self) -> &AgreementKey {
        &self.passport.instance
    }

    /// The id of the running instance.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        InstanceId::of_key(&self.passport.instance)
    }

    /// When it ends; a session that rests on it ends then too.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.passport.not_after
    }

    /// The authority's record.
    #[must_use]
    pub fn record(&self) -> &AuthorityRecord {
        &self.record
    }

    /// The bytes as they travelled.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;
    use crate::keys::AgreementSecret;
    use zeroize::Zeroizing;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn authority(seed: u8) -> Authority {
        Authority::new(&Zeroizing::new([seed; 96]), NOW)
    }

    fn credential(authority: &Authority, not_before: UnixTime, not_after: UnixTime) -> Vec<u8> {
        let agent = authority.agent("db".parse().expect("a name"));
        let key = AgreementSecret::from_bytes([9; 32]).public();
        Credential::join(authority.record(), authority.issue(&agent, key, not_before, not_after))
    }

    #[test]
    fn a_fresh_credential_verifies_and_names_its_agent() {
        let authority = authority(1);
        let bytes = credential(&authority, NOW.minus(BACKDATED), NOW.plus(LIFETIME));
        assert!(bytes.len() < 450, "{} bytes must fit one handshake packet with room to spare", bytes.len());
        let verified = Credential::verify(&bytes, NOW).expect("it is good");
        assert_eq!(verified.agent().name.as_str(), "db");
        assert_eq!(verified.agent().authority, authority.fingerprint());
    }

    #[test]
    fn a_passport_is_refused_before_its_start_and_from_its_end() {
        let bytes = credential(&authority(1), NOW, NOW.plus(LIFETIME));
        let early = Credential::verify(&bytes, UnixTime(NOW.0 - 1));
        assert!(matches!(early, Err(CredentialError::NotYet { .. })), "{early:?}");
        let late = Credential::verify(&bytes, NOW.plus(LIFETIME));
        assert!(matches!(late, Err(CredentialError::Expired { .. })), "{late:?}");
    }

    #[test]
    fn a_passport_signed_by_another_authority_is_refused() {
        let (ours, theirs) = (authority(1), authority(2));
        let agent = ours.agent("db".parse().expect("a name"));
        let key = AgreementSecret::from_bytes([9; 32]).public();
        let forged = theirs.issue(&agent, key, NOW, NOW.plus(LIFETIME));
        let under_ours = Credential::verify(&Credential::join(ours.record(), forged.clone()), NOW);
        assert!(matches!(under_ours, Err(CredentialError::Signature(_))), "{under_ours:?}");
        let under_theirs = Credential::verify(&Credential::join(theirs.record(), forged), NOW);
        assert_eq!(under_theirs, Err(CredentialError::ForeignAuthority));
    }

    #[test]
    fn no_flipped_bit_and_no_truncation_of_a_credential_verifies() {
        let good = credential(&authority(1), NOW, NOW.plus(LIFETIME));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Credential::verify(&bad, NOW).is_err(), "bit {bit} flipped was accepted");
        }
        for length in 0..good.len() {
            assert!(Credential::verify(&good[..length], NOW).is_err(), "{length} bytes were accepted");
        }
    }
}
