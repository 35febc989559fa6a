//! The operator's first frame: that it speaks for the authority, in this very TLS session.

use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

use super::ChannelBinding;
use crate::authority::{Authority, AuthorityRecord, RecordError};
use crate::id::Fingerprint;
use crate::keys::AgreementKey;
use crate::signed::{BadSignature, Kind, verify_detached};
use crate::time::UnixTime;

/// The operator's first frame (section 3).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// The authority's record.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub record: Vec<u8>,
    /// A key drawn for this connection; the agent's proof is made with it.
    #[n(1)]
    pub e: AgreementKey,
    /// The record's signing key's signature.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

/// Why the other end is not taken for our operator. Nothing has been told to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Its record is not good.
    #[error("the operator's authority record is not valid")]
    Record(#[source] RecordError),
    /// It speaks for somebody else.
    #[error(
        "the operator speaks for the authority {found}, not for {expected}; if the authority was made anew, restart the pod"
    )]
    OtherAuthority {
        /// Whom we know.
        expected: Fingerprint,
        /// Whom it shows.
        found: Fingerprint,
    },
    /// It shows a record that was replaced.
    #[error("the operator shows the authority's record {found}, but {seen} is in use; its Secret may be an old copy")]
    OldRecord {
        /// The highest sequence we have seen.
        seen: u64,
        /// What it shows.
        found: u64,
    },
    /// It does not hold the key, or not in this session.
    #[error(
        "the operator did not prove that it holds its authority's key in this TLS session; something in between may open TLS"
    )]
    NotProven(#[source] BadSignature),
}

impl Hello {
    /// The first frame of a connection. `e` must be fresh.
    #[must_use]
    pub fn new(authority: &Authority, binding: &ChannelBinding, e: AgreementKey) -> Self {
        let signature = authority.sign_detached(Kind::Operator, &*signed_bytes(binding, &e));
        Self { record: authority.record().as_bytes().to_vec(), e, signature }
    }

    /// Checks that the other end of the session is the operator of `authority`, with a record that is not older than
    /// `seen`, the highest sequence seen so far.
    ///
    /// # Errors
    /// [`HelloError`]; nothing may be told to the other end then.
    pub fn verify(
        &self,
        binding: &ChannelBinding,
        authority: &Fingerprint,
        seen: u64,
        now: UnixTime,
    ) -> Result<AuthorityRecord, HelloError> {
        let record = AuthorityRecord::verify(&self.record, now).map_err(HelloError::Record)?;
        let found = record.fingerprint();
        if found != *authority {
            return Err(HelloError::OtherAuthority { expected: *authority, found });
        }
        if record.sequence() < seen {
            return Err(HelloError::OldRecord { seen, found: record.sequence() });
        }
        verify_detached(Kind::Operator, &*signed_bytes(binding, &self.e), &self.signature, record.signing_key())
            .map_err(HelloError::NotProven)?;
        Ok(record)
    }
}

fn signed_bytes(binding: &ChannelBinding, e: &AgreementKey) -> Zeroizing<[u8; 64]> {
    let mut out = Zeroizing::new([0; 64]);
    out[..32].copy_from_slice(&binding.0[..]);
    out[32..].copy_from_slice(&e.0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn authority(seed: u8) -> Authority {
        let mut random = Zeroizing::new([seed; 96]);
        random[0] ^= 0x55;
        Authority::new(&random, NOW)
    }

    fn binding(seed: u8) -> ChannelBinding {
        ChannelBinding::new(Zeroizing::new([seed; 32]))
    }

    fn hello() -> Hello {
        Hello::new(&authority(1), &binding(1), AgreementKey([9; 32]))
    }

    #[test]
    fn the_operator_of_our_authority_is_believed_in_its_own_session_only() {
        let ours = authority(1).fingerprint();
        let record = hello().verify(&binding(1), &ours, 1, NOW).expect("it is good");
        assert_eq!(record.fingerprint(), ours);
        let elsewhere = hello().verify(&binding(2), &ours, 1, NOW);
        assert!(matches!(elsewhere, Err(HelloError::NotProven(_))), "a middlebox has two sessions: {elsewhere:?}");
        let another_e = Hello { e: AgreementKey([8; 32]), ..hello() };
        assert!(matches!(another_e.verify(&binding(1), &ours, 1, NOW), Err(HelloError::NotProven(_))));
    }

    #[test]
    fn another_authority_is_named_and_so_is_a_record_that_was_replaced() {
        let theirs = authority(2).fingerprint();
        let other = hello().verify(&binding(1), &theirs, 1, NOW);
        assert_eq!(other, Err(HelloError::OtherAuthority { expected: theirs, found: authority(1).fingerprint() }));
        let old = hello().verify(&binding(1), &authority(1).fingerprint(), 2, NOW);
        assert_eq!(old, Err(HelloError::OldRecord { seen: 2, found: 1 }));
    }

    #[test]
    fn who_has_the_record_but_not_the_key_is_not_believed() {
        let mut forged = Hello::new(&authority(2), &binding(1), AgreementKey([9; 32]));
        forged.record = authority(1).record().as_bytes().to_vec();
        let verdict = forged.verify(&binding(1), &authority(1).fingerprint(), 1, NOW);
        assert!(matches!(verdict, Err(HelloError::NotProven(_))), "{verdict:?}");
    }
}
