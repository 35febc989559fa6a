//! What a handshake needs to know beforehand: the pair, ourselves, and who judges the peer.

use core::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use peerage_model::{AgreementSecret, PairSecret};
use quinn_proto::crypto::{ClientConfig, Keys, ServerConfig, Session, UnsupportedVersion};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side};
use zeroize::Zeroizing;

use super::QUIC_VERSION;
use super::framing::{MAX_CREDENTIAL, MAX_PARAMETERS, write_message};
use super::kdf::{DirectionSecret, Secret};
use super::keys::SpaceSecrets;
use super::random::SeededRandom;
use super::resolver::KeyPair;
use super::session::{NoiseSession, Setup, VerifyPeer};

/// The longest agent id in a prologue, in bytes; `AgentId::binding` needs fewer than 200.
pub const MAX_ID: usize = 512;
const PROTOCOL_LABEL: &[u8] = b"peerage noise v1";

/// Why a configuration was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A pairing needs at least one pair secret.
    #[error("a pairing without a pair secret")]
    NoSecret,
    /// There is no candidate of this index.
    #[error("pair secret {index} of {count}")]
    NoSuchSecret {
        /// What was asked for.
        index: usize,
        /// How many candidates there are.
        count: usize,
    },
    /// An agent id is longer than [`MAX_ID`].
    #[error("an agent id of {length} bytes")]
    IdTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// A credential is longer than [`MAX_CREDENTIAL`].
    #[error("a credential of {length} bytes")]
    CredentialTooLong {
        /// Its length in bytes.
        length: usize,
    },
}

/// Who dials whom, and with which secrets: one direction of one pair.
#[derive(Clone)]
pub struct Pairing {
    prologue: Arc<[u8]>,
    directions: Arc<[DirectionSecret]>,
}

impl Pairing {
    /// The direction `initiator` → `responder`. `secrets` has more than one entry while an authority rotates its keys.
    /// The ids are `AgentId::binding` bytes; the initiator's is empty in a request-only session.
    ///
    /// # Errors
    /// When there is no secret, or an id is longer than [`MAX_ID`].
    pub fn new(secrets: &[PairSecret], initiator: &[u8], responder: &[u8]) -> Result<Self, ConfigError> {
        if secrets.is_empty() {
            return Err(ConfigError::NoSecret);
        }
        let mut prologue = Vec::new();
        for part in [PROTOCOL_LABEL, initiator, responder] {
            if part.len() > MAX_ID {
                return Err(ConfigError::IdTooLong { length: part.len() });
            }
            write_message(part, &mut prologue);
        }
        let directions = secrets.iter().map(|secret| DirectionSecret::new(secret, &prologue)).collect();
        Ok(Self { prologue: prologue.into(), directions })
    }

    /// One [`DirectionSecret`] for each candidate pair secret, in the order they were given.
    #[must_use]
    pub fn directions(&self) -> &[DirectionSecret] {
        &self.directions
    }

    /// The direction secret of candidate `index`.
    ///
    /// # Errors
    /// When there are fewer candidates.
    pub fn direction(&self, index: usize) -> Result<&DirectionSecret, ConfigError> {
        self.directions.get(index).ok_or(ConfigError::NoSuchSecret { index, count: self.directions.len() })
    }
}

impl fmt::Debug for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pairing").field("candidates", &self.directions.len()).finish_non_exhaustive()
    }
}

/// Our own side of every handshake: the static key, parsed once, and the credential that vouches for it.
pub struct LocalIdentity {
    pub(crate) key: Arc<KeyPair>,
    pub(crate) credential: Bytes,
}

impl LocalIdentity {
    /// From the instance's X25519 key and its encoded credential.
    ///
    /// # Errors
    /// When the credential is longer than [`MAX_CREDENTIAL`].
    pub fn new(key: &AgreementSecret, credential: impl Into<Bytes>) -> Result<Self, ConfigError> {
        let credential = credential.into();
        if credential.len() > MAX_CREDENTIAL {
            return Err(ConfigError::CredentialTooLong { length: credential.len() });
        }
        Ok(Self { key: Arc::new(KeyPair::new(Zeroizing::new(*key.expose()))), credential })
    }

    /// The public half of the static key.
    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        self.key.public()
    }
}

impl fmt::Debug for LocalIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalIdentity").field("credential", &self.credential.len()).finish_non_exhaustive()
    }
}

/// What the client's and the server's configuration have in common.
struct Common {
    setup: Arc<Setup>,
    random: Mutex<SeededRandom>,
}

impl Common {
    fn new(
        pairing: &Pairing,
        secret: usize,
        identity: Arc<LocalIdentity>,
        verifier: Arc<dyn VerifyPeer>,
        seed: [u8; 32],
    ) -> Result<Self, ConfigError> {
        let direction = pairing.direction(secret)?.clone();
        let setup = Setup { prologue: Arc::clone(&pairing.prologue), direction, identity, verifier };
        Ok(Self { setup: Arc::new(setup), random: Mutex::new(SeededRandom::from_seed(seed)) })
    }

    fn session(&self, side: Side, params: &TransportParameters) -> Option<NoiseSession> {
        let mut own = Vec::new();
        params.write(&mut own);
        if own.len() > MAX_PARAMETERS {
            return None;
        }
        let seed: Secret = Zeroizing::new(self.random.lock().unwrap_or_else(PoisonError::into_inner).bytes());
        Some(NoiseSession::new(side, Arc::clone(&self.setup), own, seed))
    }
}

/// A dialer's configuration for one pair. Several dials may use it; each draws its own randomness from the seed.
pub struct NoiseClient(Common);

impl NoiseClient {
    /// For dialing `pairing`'s responder under candidate `secret`, the one its knock was made with. `seed` must never be
    /// used twice.
    ///
    /// # Errors
    /// When there is no such candidate.
    pub fn new(
        pairing: &Pairing,
        secret: usize,
        identity: Arc<LocalIdentity>,
        verifier: Arc<dyn VerifyPeer>,
        seed: [u8; 32],
    ) -> Result<Self, ConfigError> {
        Common::new(pairing, secret, identity, verifier, seed).map(Self)
    }
}

impl ClientConfig for NoiseClient {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        _server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        if version != QUIC_VERSION {
            return Err(ConnectError::UnsupportedVersion);
        }
        match self.0.session(Side::Client, params) {
            Some(session) => Ok(Box::new(session)),
            None => Err(ConnectError::EndpointStopping),
        }
    }
}

impl fmt::Debug for NoiseClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoiseClient(..)")
    }
}

/// A listener's configuration for one pair, chosen by the knock before the connection is accepted.
pub struct NoiseServer(Common);

impl NoiseServer {
    /// For answering `pairing`'s initiator under candidate `secret`, the one that the knock matched. `seed` must never be
    /// used twice.
    ///
    /// # Errors
    /// When there is no such candidate.
    pub fn new(
        pairing: &Pairing,
        secret: usize,
        identity: Arc<LocalIdentity>,
        verifier: Arc<dyn VerifyPeer>,
        seed: [u8; 32],
    ) -> Result<Self, ConfigError> {
        Common::new(pairing, secret, identity, verifier, seed).map(Self)
    }
}

impl ServerConfig for NoiseServer {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        if version != QUIC_VERSION {
            return Err(UnsupportedVersion);
        }
        Ok(SpaceSecrets::initial(&self.0.setup.direction, dst_cid).initial_keys(Side::Server))
    }

    /// Zeros: no client of ours accepts a Retry, and no listener of ours sends one.
    fn retry_tag(&self, _version: u32, _orig_dst_cid: &ConnectionId, _packet: &[u8]) -> [u8; 16] {
        [0; 16]
    }

    fn start_session(self: Arc<Self>, _version: u32, params: &TransportParameters) -> Box<dyn Session> {
        let session = self.0.session(Side::Server, params);
        Box::new(session.expect("quinn-proto's transport parameters take about 100 bytes"))
    }
}

impl fmt::Debug for NoiseServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoiseServer(..)")
    }
}
