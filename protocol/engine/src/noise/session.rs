//! One handshake, as the state machine of docs/spec/handshake.md section 4, and the keys that come out of it.

use core::any::Any;
use core::fmt;
use std::io::Cursor;
use std::sync::{Arc, OnceLock};

use quinn_proto::crypto::{ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{Connection, ConnectionError, ConnectionId, Side, TransportError, TransportErrorCode};
use snow::HandshakeState;
use zeroize::{Zeroize, Zeroizing};

use super::config::LocalIdentity;
use super::framing::{FramingError, Inbox, MAX_MESSAGE, Payload, write_message};
use super::kdf::{DirectionSecret, Secret, expand_into, sha256};
use super::keys::{OneRtt, SpaceSecrets};
use super::random::SeededRandom;
use super::resolver::Resolver;

const PATTERN: &str = "Noise_XXpsk0_25519_AESGCM_SHA256";

/// What a [`VerifyPeer`] found out about the peer, as the verifier's own type.
pub type Peer = Arc<dyn Any + Send + Sync>;

/// The verifier's answer for a peer that must not be spoken to. The reason stays here; the peer is told nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("peer rejected: {0}")]
pub struct PeerRejected(pub String);

/// Judges the peer's credential during the handshake.
pub trait VerifyPeer: Send + Sync {
    /// `noise_static` is the key that the peer proved to hold; the credential must name the same one.
    ///
    /// # Errors
    /// [`PeerRejected`] ends the connection without a packet.
    fn verify(&self, credential: &[u8], noise_static: &[u8; 32]) -> Result<Peer, PeerRejected>;
}

/// The verified peer of an established connection, if the verifier's type is `T`.
#[must_use]
pub fn peer_identity<T: Any + Send + Sync>(connection: &Connection) -> Option<Arc<T>> {
    let peer = connection.crypto_session().peer_identity()?.downcast::<Peer>().ok()?;
    Arc::downcast::<T>(*peer).ok()
}

/// Whether `error` is a handshake that ended here without telling the peer.
#[must_use]
pub fn is_silent_end(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::TransportError(error) if error.code == SILENT_END)
}

/// Whether the client's message 1 verified on this accepted connection: then its knock counts as used. A connection
/// without is to be dropped at once, because nothing says that its client holds the pair secret.
#[must_use]
pub fn message_1_verified(connection: &Connection) -> bool {
    matches!(connection.crypto_session().transport_parameters(), Ok(Some(_)))
}

/// The one error that makes quinn-proto drain a connection at once and send no close (as RFC 9001 section 6.6 wants it
/// for this code): a failed handshake must not be told apart from an agent that is not there.
const SILENT_END: TransportErrorCode = TransportErrorCode::AEAD_LIMIT_REACHED;

/// What one handshake is about.
pub(crate) struct Setup {
    pub(crate) prologue: Arc<[u8]>,
    pub(crate) direction: DirectionSecret,
    pub(crate) identity: Arc<LocalIdentity>,
    pub(crate) verifier: Arc<dyn VerifyPeer>,
}

/// A failed step of the handshake. Logged and shown locally, never sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error(transparent)]
    Framing(#[from] FramingError),
    #[error("Noise message refused ({0:?})")]
    Noise(snow::Error),
    #[error("the server's random has {0} bytes")]
    Random(usize),
    #[error("a handshake message where none is expected")]
    OutOfTurn,
    #[error("the first packet holds only a part of message 1")]
    Incomplete,
    #[error("transport parameters refused")]
    Parameters,
    #[error(transparent)]
    Rejected(#[from] PeerRejected),
    #[error("no knock was resolved for this connection")]
    NoKnock,
}

impl From<HandshakeError> for TransportError {
    fn from(error: HandshakeError) -> Self {
        Self { code: SILENT_END, frame: None, reason: error.to_string() }
    }
}

/// Each state carries what the next step needs; `Write…` states wait for quinn-proto to ask for output.
enum State {
    WriteMessage1 {
        noise: Box<HandshakeState>,
    },
    AwaitRandom {
        noise: Box<HandshakeState>,
        message_1_hash: [u8; 32],
    },
    InstallHandshakeKeys {
        noise: Box<HandshakeState>,
        keys: Keys,
    },
    AwaitMessage2 {
        noise: Box<HandshakeState>,
    },
    WriteMessage3 {
        noise: Box<HandshakeState>,
    },
    AwaitMessage1 {
        noise: Box<HandshakeState>,
    },
    WriteRandom {
        noise: Box<HandshakeState>,
        message_1_hash: [u8; 32],
    },
    WriteMessage2 {
        noise: Box<HandshakeState>,
    },
    AwaitMessage3 {
        noise: Box<HandshakeState>,
    },
    InstallOneRttKeys {
        one_rtt: OneRtt,
    },
    Established {
        one_rtt: OneRtt,
    },
    /// A step failed; the connection is being dropped.
    Failed,
}

/// A quinn-proto session whose handshake is Noise.
pub(crate) struct NoiseSession {
    side: Side,
    setup: Arc<Setup>,
    /// Set when quinn-proto asks for Initial keys, which it does before anything else.
    first_id: OnceLock<ConnectionId>,
    own_parameters: Vec<u8>,
    /// Only ever what the peer sealed for us, never a copy of ours.
    peer_parameters: Option<TransportParameters>,
    peer: Option<Peer>,
    inbox: Inbox,
    random: SeededRandom,
    state: State,
}

impl NoiseSession {
    pub(crate) fn new(side: Side, setup: Arc<Setup>, own_parameters: Vec<u8>, seed: Secret) -> Self {
        let mut random = SeededRandom::from_seed(*seed);
        let noise = Box::new(build_noise(side, &setup, Zeroizing::new(random.bytes())));
        let state = match side {
            Side::Client => State::WriteMessage1 { noise },
            Side::Server => State::AwaitMessage1 { noise },
        };
        Self {
            side,
            setup,
            first_id: OnceLock::new(),
            own_parameters,
            peer_parameters: None,
            peer: None,
            inbox: Inbox::default(),
            random,
            state,
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), HandshakeError> {
        let Some(message) = self.inbox.push(bytes)? else {
            return match &self.state {
                // A knock is used up by the packet that holds message 1, so that packet must hold all of it.
                State::AwaitMessage1 { .. } => Err(HandshakeError::Incomplete),
                _ => Ok(()),
            };
        };
        match core::mem::replace(&mut self.state, State::Failed) {
            State::AwaitMessage1 { noise } => self.read_message_1(noise, &message),
            State::AwaitRandom { noise, message_1_hash } => self.read_random(noise, &message_1_hash, &message),
            State::AwaitMessage2 { noise } => self.read_message_2(noise, &message),
            State::AwaitMessage3 { noise } => self.read_message_3(noise, &message),
            State::WriteMessage1 { .. }
            | State::InstallHandshakeKeys { .. }
            | State::WriteMessage3 { .. }
            | State::WriteRandom { .. }
            | State::WriteMessage2 { .. }
            | State::InstallOneRttKeys { .. }
            | State::Established { .. }
            | State::Failed => Err(HandshakeError::OutOfTurn),
        }
    }

    fn read_message_1(&mut self, mut noise: Box<HandshakeState>, message: &[u8]) -> Result<(), HandshakeError> {
        let bytes = open(&mut noise, message)?;
        let payload = Payload::decode(&bytes)?;
        if !payload.credential.is_empty() {
            return Err(FramingError::Payload.into());
        }
        self.peer_parameters = Some(self.parse_parameters(payload.parameters)?);
        self.state = State::WriteRandom { noise, message_1_hash: sha256(message) };
        Ok(())
    }

    fn read_random(
        &mut self,
        noise: Box<HandshakeState>,
        message_1_hash: &[u8; 32],
        message: &[u8],
    ) -> Result<(), HandshakeError> {
        let random: &[u8; 32] = message.try_into().map_err(|_| HandshakeError::Random(message.len()))?;
        let keys = self.handshake_keys(message_1_hash, random)?;
        self.state = State::InstallHandshakeKeys { noise, keys };
        Ok(())
    }

    fn read_message_2(&mut self, mut noise: Box<HandshakeState>, message: &[u8]) -> Result<(), HandshakeError> {
        let bytes = open(&mut noise, message)?;
        let payload = Payload::decode(&bytes)?;
        let parameters = self.parse_parameters(payload.parameters)?;
        self.verify_peer(&noise, payload.credential)?;
        self.peer_parameters = Some(parameters);
        self.state = State::WriteMessage3 { noise };
        Ok(())
    }

    fn read_message_3(&mut self, mut noise: Box<HandshakeState>, message: &[u8]) -> Result<(), HandshakeError> {
        let bytes = open(&mut noise, message)?;
        let payload = Payload::decode(&bytes)?;
        if !payload.parameters.is_empty() {
            return Err(FramingError::Payload.into());
        }
        self.verify_peer(&noise, payload.credential)?;
        self.state = State::InstallOneRttKeys { one_rtt: split(&mut noise) };
        Ok(())
    }

    fn write(&mut self, out: &mut Vec<u8>) -> Result<Option<Keys>, HandshakeError> {
        match core::mem::replace(&mut self.state, State::Failed) {
            State::WriteMessage1 { mut noise } => {
                let message = self.seal(&mut noise, &self.own_parameters, b"")?;
                write_message(&message, out);
                self.state = State::AwaitRandom { noise, message_1_hash: sha256(&message) };
                Ok(None)
            }
            State::InstallHandshakeKeys { noise, keys } => {
                self.state = State::AwaitMessage2 { noise };
                Ok(Some(keys))
            }
            State::WriteMessage3 { mut noise } => {
                write_message(&self.seal(&mut noise, b"", &self.setup.identity.credential)?, out);
                let one_rtt = split(&mut noise);
                Ok(Some(self.establish(one_rtt)))
            }
            State::WriteRandom { noise, message_1_hash } => {
                let random = self.random.bytes();
                write_message(&random, out);
                let keys = self.handshake_keys(&message_1_hash, &random)?;
                self.state = State::WriteMessage2 { noise };
                Ok(Some(keys))
            }
            State::WriteMessage2 { mut noise } => {
                let message = self.seal(&mut noise, &self.own_parameters, &self.setup.identity.credential)?;
                write_message(&message, out);
                self.state = State::AwaitMessage3 { noise };
                Ok(None)
            }
            State::InstallOneRttKeys { one_rtt } => Ok(Some(self.establish(one_rtt))),
            waiting @ (State::AwaitRandom { .. }
            | State::AwaitMessage1 { .. }
            | State::AwaitMessage2 { .. }
            | State::AwaitMessage3 { .. }
            | State::Established { .. }
            | State::Failed) => {
                self.state = waiting;
                Ok(None)
            }
        }
    }

    fn seal(
        &self,
        noise: &mut HandshakeState,
        parameters: &[u8],
        credential: &[u8],
    ) -> Result<Vec<u8>, HandshakeError> {
        let payload = Payload { parameters, credential }.encode();
        let mut message = vec![0; MAX_MESSAGE];
        let length = noise.write_message(&payload, &mut message).map_err(HandshakeError::Noise)?;
        message.truncate(length);
        Ok(message)
    }

    fn establish(&mut self, one_rtt: OneRtt) -> Keys {
        let keys = one_rtt.secrets.keys(self.side);
        self.state = State::Established { one_rtt };
        keys
    }

    fn handshake_keys(&self, message_1_hash: &[u8; 32], random: &[u8; 32]) -> Result<Keys, HandshakeError> {
        let first_id = self.first_id.get().ok_or(HandshakeError::NoKnock)?;
        let secrets = SpaceSecrets::handshake(&self.setup.direction, first_id, message_1_hash, random);
        Ok(secrets.keys(self.side))
    }

    fn parse_parameters(&self, bytes: &[u8]) -> Result<TransportParameters, HandshakeError> {
        TransportParameters::read(self.side, &mut Cursor::new(bytes)).map_err(|_| HandshakeError::Parameters)
    }

    fn verify_peer(&mut self, noise: &HandshakeState, credential: &[u8]) -> Result<(), HandshakeError> {
        let noise_static = noise.get_remote_static().and_then(|key| key.first_chunk::<32>());
        let noise_static = noise_static.ok_or(HandshakeError::OutOfTurn)?;
        self.peer = Some(self.setup.verifier.verify(credential, noise_static)?);
        Ok(())
    }
}

fn build_noise(side: Side, setup: &Setup, ephemeral_seed: Secret) -> HandshakeState {
    let psk = setup.direction.derive("psk", b"");
    let key = Arc::clone(&setup.identity.key);
    let resolver = Box::new(Resolver { static_key: Arc::clone(&key), ephemeral_seed });
    let builder = snow::Builder::with_resolver(PATTERN.parse().expect("the pattern is a constant"), resolver)
        .prologue(&setup.prologue)
        .and_then(|builder| builder.psk(0, &psk))
        .and_then(|builder| builder.local_private_key(key.bytes()));
    let built = builder.and_then(|builder| match side {
        Side::Client => builder.build_initiator(),
        Side::Server => builder.build_responder(),
    });
    built.expect("prologue, pre-shared key and static key are each set once, in the lengths the pattern has")
}

fn open(noise: &mut HandshakeState, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, HandshakeError> {
    let mut payload = Zeroizing::new(vec![0; MAX_MESSAGE]);
    let length = noise.read_message(message, &mut payload).map_err(HandshakeError::Noise)?;
    payload.truncate(length);
    Ok(payload)
}

fn split(noise: &mut HandshakeState) -> OneRtt {
    let (mut initiator, mut responder) = noise.dangerously_get_raw_split();
    let one_rtt = OneRtt::from_split(&initiator, &responder);
    initiator.zeroize();
    responder.zeroize();
    one_rtt
}

impl Session for NoiseSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        let first_id = self.first_id.get_or_init(|| *dst_cid);
        SpaceSecrets::initial(&self.setup.direction, first_id).initial_keys(side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        let peer: Peer = Arc::clone(self.peer.as_ref()?);
        Some(Box::new(peer))
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        !matches!(self.state, State::Established { .. })
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        match self.read(buf) {
            Ok(()) => Ok(false),
            Err(error) => {
                self.state = State::Failed;
                tracing::debug!(%error, "handshake failed");
                Err(error.into())
            }
        }
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        Ok(self.peer_parameters)
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        // Writing cannot fail: message sizes are bounded when the configuration is made, and the peer's keys were
        // checked on reading. Were it to, the session stays in `Failed`, says nothing and times out.
        self.write(buf).unwrap_or_else(|error| {
            tracing::debug!(%error, "handshake failed");
            None
        })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        match &mut self.state {
            State::Established { one_rtt } => Some(one_rtt.update(self.side)),
            _ => None,
        }
    }

    fn is_valid_retry(&self, _orig_dst_cid: &ConnectionId, _header: &[u8], _payload: &[u8]) -> bool {
        false
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        let State::Established { one_rtt } = &self.state else {
            return Err(ExportKeyingMaterialError);
        };
        let label_length = u16::try_from(label.len()).map_err(|_| ExportKeyingMaterialError)?;
        let bound = sha256(&[&label_length.to_be_bytes(), label, context].concat());
        expand_into(&one_rtt.exporter, "export", &bound, output).map_err(|_| ExportKeyingMaterialError)
    }
}

impl fmt::Debug for NoiseSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NoiseSession").field("side", &self.side).finish_non_exhaustive()
    }
}
