//! How an agent shows which pod and which key it is, and what it gets for that (sections 4 and 5).

use core::fmt;

use aws_lc_rs::{constant_time, hmac};
use minicbor::{Decode, Encode};

use super::{ChannelBinding, Revision};
use crate::authority::{Authority, AuthorityRecord};
use crate::cbor::{self, byte_string};
use crate::id::{AgentId, Fingerprint};
use crate::keys::{AgreementKey, AgreementSecret};
use crate::pair::hkdf;
use crate::signed::{BadSignature, Kind, Signed};
use crate::time::UnixTime;

/// Longest ServiceAccount token, in bytes. Those of kube-apiserver have 1 to 2 KB.
pub const MAX_TOKEN: usize = 8192;
/// Longest encoded [`Enrolment`] with its signature.
pub const MAX_ENROLMENT: usize = 1024;
/// Longest version of a program that is told, in bytes.
pub(super) const MAX_VERSION: usize = 64;
/// Longest name of a namespace, pod or ServiceAccount: a DNS subdomain (RFC 1123).
const MAX_NAME: usize = 253;

/// The audience that the agent's ServiceAccount token must have, and TokenReview must be asked for.
#[must_use]
pub fn audience(authority: &Fingerprint) -> String {
    format!("peerage.dev/{authority}")
}

/// Asks for a passport with a token.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Enrol {
    /// The projected ServiceAccount token.
    #[n(0)]
    pub token: String,
    /// The key that the passport shall be for.
    #[n(1)]
    pub key: AgreementKey,
    /// Over the token, see [`Proof::enrol`].
    #[n(2)]
    pub proof: Proof,
    /// How new what the agent acts on may be.
    #[n(4)]
    pub have: Option<Revision>,
    /// The agent's software version.
    #[n(5)]
    pub version: Option<String>,
}

/// Goes on with a passport that still counts.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Resume {
    /// The record and passport that the agent has.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub credential: Vec<u8>,
    /// As it came with the passport.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub enrolment: Vec<u8>,
    /// Over the credential, see [`Proof::resume`].
    #[n(2)]
    pub proof: Proof,
    /// How new what the agent acts on may be.
    #[n(3)]
    pub have: Option<Revision>,
    /// The agent's software version.
    #[n(4)]
    pub version: Option<String>,
}

/// Asks for a fresh passport for the same key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
#[cbor(map)]
pub struct Renew {}

/// A passport, and what to show with it to [`Resume`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Passport {
    /// Record and passport ([`crate::Credential`]).
    #[cbor(n(0), with = "minicbor::bytes")]
    pub credential: Vec<u8>,
    /// A signed [`Enrolment`], which the agent does not read.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub enrolment: Vec<u8>,
}

/// Shows that its sender holds an instance key, in one TLS session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Proof(pub [u8; 32]);
byte_string!(Proof, 32);

/// The proof does not fit the key, the session or what it is shown with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender did not prove that it holds the instance key it names")]
pub struct BadProof;

impl Proof {
    /// For [`Enrol`]: the agent's side. `None` when the operator's `e` is not a usable point.
    #[must_use]
    pub fn enrol(binding: &ChannelBinding, e: &AgreementKey, instance: &AgreementSecret, token: &str) -> Option<Self> {
        let key = Key::derive(binding, &*instance.agree(e).ok()?, e, &instance.public());
        Some(key.over(Shown::Token(token)))
    }

    /// For [`Resume`]: the agent's side. `None` when the operator's `e` is not a usable point.
    #[must_use]
    pub fn resume(
        binding: &ChannelBinding,
        e: &AgreementKey,
        instance: &AgreementSecret,
        credential: &[u8],
    ) -> Option<Self> {
        let key = Key::derive(binding, &*instance.agree(e).ok()?, e, &instance.public());
        Some(key.over(Shown::Credential(credential)))
    }
}

impl Enrol {
    /// The operator's side: whether the sender holds [`Self::key`]. `e` is the secret half of what [`super::Hello`] said.
    ///
    /// # Errors
    /// [`BadProof`]; the token must then not be looked at.
    pub fn check(&self, binding: &ChannelBinding, e: &AgreementSecret) -> Result<(), BadProof> {
        check(&self.proof, binding, e, &self.key, Shown::Token(&self.token))
    }
}

impl Resume {
    /// The operator's side: whether the sender holds `instance`, which the verified credential names.
    ///
    /// # Errors
    /// [`BadProof`].
    pub fn check(
        &self,
        binding: &ChannelBinding,
        e: &AgreementSecret,
        instance: &AgreementKey,
    ) -> Result<(), BadProof> {
        check(&self.proof, binding, e, instance, Shown::Credential(&self.credential))
    }
}

/// What a proof is shown with; its kind is in the proof, so neither passes for the other.
#[derive(Clone, Copy)]
enum Shown<'a> {
    Token(&'a str),
    Credential(&'a [u8]),
}

struct Key(hmac::Key);

impl Key {
    fn derive(binding: &ChannelBinding, shared: &[u8; 32], e: &AgreementKey, instance: &AgreementKey) -> Self {
        let key = hkdf(&binding.0[..], shared, &[b"peerage operator instance v1", &e.0, &instance.0]);
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key[..]))
    }

    fn over(&self, shown: Shown<'_>) -> Proof {
        let (kind, bytes) = match shown {
            Shown::Token(token) => (0, token.as_bytes()),
            Shown::Credential(credential) => (1, credential),
        };
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&[kind]);
        context.update(bytes);
        Proof(context.sign().as_ref().try_into().expect("HMAC-SHA256 has 32 bytes"))
    }
}

fn check(
    proof: &Proof,
    binding: &ChannelBinding,
    e: &AgreementSecret,
    instance: &AgreementKey,
    shown: Shown<'_>,
) -> Result<(), BadProof> {
    let shared = e.agree(instance).map_err(|_| BadProof)?;
    let right = Key::derive(binding, &shared, &e.public(), instance).over(shown);
    constant_time::verify_slices_are_equal(&right.0, &proof.0).map_err(|_| BadProof)
}

/// Which pod an instance was enrolled for. Signed, so that each replica of the operator can go on where another began,
/// with nothing stored and without asking the API server.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Enrolment {
    /// Who it was enrolled as.
    #[n(0)]
    pub agent: AgentId,
    /// Its key.
    #[n(1)]
    pub instance: AgreementKey,
    /// The pod's UID.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub pod_uid: [u8; 16],
    /// The pod's namespace.
    #[n(3)]
    pub namespace: String,
    /// The pod's name.
    #[n(4)]
    pub pod: String,
    /// What the pod runs as.
    #[n(5)]
    pub service_account: String,
    /// When TokenReview said so.
    #[n(6)]
    pub issued: UnixTime,
}

/// Why an enrolment does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentError {
    /// Not one.
    #[error("not an enrolment")]
    Malformed,
    /// Of another authority record.
    #[error("the enrolment is not signed by this record's key")]
    Signature(#[source] BadSignature),
}

impl Enrolment {
    /// Signs it, for [`Passport::enrolment`].
    #[must_use]
    pub fn sign(&self, authority: &Authority) -> Vec<u8> {
        cbor::to_vec(&authority.sign(Kind::Enrolment, cbor::to_vec(self)))
    }

    /// Reads one that the holder of `record`'s signing key made. During a rotation each of the two records is tried.
    ///
    /// # Errors
    /// [`EnrolmentError`].
    pub fn verify(bytes: &[u8], record: &AuthorityRecord) -> Result<Self, EnrolmentError> {
        if bytes.len() > MAX_ENROLMENT {
            return Err(EnrolmentError::Malformed);
        }
        let signed: Signed = minicbor::decode(bytes).map_err(|_| EnrolmentError::Malformed)?;
        let payload = signed.verify(Kind::Enrolment, record.signing_key()).map_err(EnrolmentError::Signature)?;
        let read: Self = minicbor::decode(payload).map_err(|_| EnrolmentError::Malformed)?;
        let names = [&read.namespace, &read.pod, &read.service_account];
        match read.agent.authority == record.fingerprint() && names.iter().all(|name| name.len() <= MAX_NAME) {
            true => Ok(read),
            false => Err(EnrolmentError::Malformed),
        }
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(..)")
    }
}

impl fmt::Debug for Enrol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret: whoever has it is the pod.
        f.debug_struct("Enrol").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn binding(seed: u8) -> ChannelBinding {
        ChannelBinding::new(Zeroizing::new([seed; 32]))
    }

    fn secret(seed: u8) -> AgreementSecret {
        AgreementSecret::from_bytes([seed; 32])
    }

    fn enrol(token: &str) -> Enrol {
        let proof = Proof::enrol(&binding(1), &secret(2).public(), &secret(3), token).expect("a good key");
        Enrol { token: token.into(), key: secret(3).public(), proof, have: None, version: None }
    }

    #[test]
    fn a_proof_holds_for_its_key_its_session_and_its_token() {
        let right = enrol("token");
        assert_eq!(right.check(&binding(1), &secret(2)), Ok(()));
        assert_eq!(right.check(&binding(2), &secret(2)), Err(BadProof), "another TLS session");
        assert_eq!(right.check(&binding(1), &secret(4)), Err(BadProof), "another connection's e");
        assert_eq!(Enrol { key: secret(5).public(), ..right.clone() }.check(&binding(1), &secret(2)), Err(BadProof));
        assert_eq!(Enrol { token: "tokem".into(), ..right.clone() }.check(&binding(1), &secret(2)), Err(BadProof));
        assert_eq!(Enrol { key: AgreementKey([0; 32]), ..right }.check(&binding(1), &secret(2)), Err(BadProof));
    }

    #[test]
    fn a_proof_for_enrolling_is_none_for_resuming() {
        let credential = b"token".to_vec();
        let resume =
            |proof| Resume { credential: credential.clone(), enrolment: vec![], proof, have: None, version: None };
        let right = Proof::resume(&binding(1), &secret(2).public(), &secret(3), &credential).expect("a good key");
        assert_eq!(resume(right).check(&binding(1), &secret(2), &secret(3).public()), Ok(()));
        assert_eq!(resume(enrol("token").proof).check(&binding(1), &secret(2), &secret(3).public()), Err(BadProof));
    }

    #[test]
    fn an_operator_whose_e_leads_everywhere_to_the_same_secret_gets_no_proof() {
        assert_eq!(Proof::enrol(&binding(1), &AgreementKey([0; 32]), &secret(3), "token"), None);
    }

    #[test]
    fn an_enrolment_is_read_by_who_has_its_authoritys_record() {
        let mut random = Zeroizing::new([1; 96]);
        random[0] ^= 0x55;
        let authority = Authority::new(&random, NOW);
        let enrolment = Enrolment {
            agent: authority.agent("db.tools".parse().expect("a name")),
            instance: secret(3).public(),
            pod_uid: [7; 16],
            namespace: "tools".into(),
            pod: "db-0".into(),
            service_account: "db".into(),
            issued: NOW,
        };
        let signed = enrolment.sign(&authority);
        assert_eq!(Enrolment::verify(&signed, authority.record()), Ok(enrolment.clone()));
        let rotated = authority.rotate(&Zeroizing::new([9; 64]), NOW);
        assert!(matches!(Enrolment::verify(&signed, rotated.record()), Err(EnrolmentError::Signature(_))));
        let long = Enrolment { pod: "x".repeat(MAX_NAME + 1), ..enrolment }.sign(&authority);
        assert_eq!(Enrolment::verify(&long, authority.record()), Err(EnrolmentError::Malformed));
    }

    #[test]
    fn a_token_is_never_printed() {
        assert!(!format!("{:?}", enrol("secret-token")).contains("secret-token"));
    }
}
