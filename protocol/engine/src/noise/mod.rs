//! QUIC's handshake by Noise: `Noise_XXpsk0_25519_AESGCM_SHA256` as a quinn-proto crypto session.
//!
//! A dialer knocks with its first connection id. The listener's [`Doorkeeper`] resolves the knock to a pair before
//! quinn-proto decrypts anything; a packet without a valid knock gets no keys and no answer. The pair's own
//! [`NoiseServer`] then runs the handshake: message 1 in the Initial space, the server's 32 random bytes there, messages
//! 2 and 3 in the Handshake space, 1-RTT keys for the client after one round trip. Credentials travel sealed in messages
//! 2 and 3 and are judged by a [`VerifyPeer`]; whatever fails ends the connection without a packet.
//!
//! The layouts, the key schedule and the reasons are in `docs/spec/handshake.md`.

mod config;
mod doorkeeper;
mod framing;
pub(crate) mod kdf;
mod keys;
mod quic;
mod random;
mod resolver;
mod session;
#[cfg(test)]
pub(crate) mod vectors;

pub use config::{ConfigError, LocalIdentity, MAX_ID, NoiseClient, NoiseServer, Pairing};
pub use doorkeeper::{Doorkeeper, SharedKnocks};
pub use framing::{MAX_CREDENTIAL, MAX_MESSAGE, MAX_PARAMETERS};
pub use kdf::DirectionSecret;
pub use quic::{client_config, endpoint_config, listener_config, server_config};
pub use random::SeededRandom;
pub use session::{Peer, PeerRejected, VerifyPeer, is_silent_end, message_1_verified, peer_identity};

/// The one QUIC version spoken: "PRG" and 1. Private, so that no QUIC endpoint on the Internet answers to it.
pub const QUIC_VERSION: u32 = 0x5052_4701;
