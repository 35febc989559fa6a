//! quinn-proto's configurations, with everything that would read a clock, ask the system for randomness or answer a
//! stranger taken out.

use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::hmac;
use quinn_proto::crypto::{AeadKey, CryptoError, HandshakeTokenKey, HmacKey};
use quinn_proto::{
    ClientConfig, ConnectionId, EndpointConfig, ServerConfig, TimeSource, TransportConfig, ValidationTokenConfig,
};

use super::QUIC_VERSION;
use super::config::{NoiseClient, NoiseServer};
use super::doorkeeper::{Doorkeeper, SharedKnocks};
use super::random::SeededRandom;
use crate::knock::{ConnectionIdKey, ConnectionIds, Knock};

/// The endpoint's configuration: our version only, no greasing, our connection ids, all randomness from `random`.
#[must_use]
pub fn endpoint_config(ids: &ConnectionIdKey, random: &mut SeededRandom) -> EndpointConfig {
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &random.bytes::<32>());
    let mut config = EndpointConfig::new(Arc::new(ResetKey(reset_key)));
    let (ids, seed) = (ids.clone(), random.bytes::<32>());
    config
        .supported_versions(vec![QUIC_VERSION])
        .grease_quic_bit(false)
        .rng_seed(Some(random.bytes()))
        .cid_generator(move || Box::new(ConnectionIds::new(ids.clone(), SeededRandom::from_seed(seed))));
    config
}

/// The endpoint's server configuration, which knows knocks and starts no session.
#[must_use]
pub fn listener_config<K: Clone + Ord + Send + Sync + 'static>(
    knocks: &SharedKnocks<K>,
    random: &mut SeededRandom,
) -> ServerConfig {
    quiet(ServerConfig::new(Arc::new(Doorkeeper::new(Arc::clone(knocks), random.bytes())), Arc::new(NoTokens)))
}

/// The configuration to accept one pair's connection with.
#[must_use]
pub fn server_config(noise: NoiseServer, transport: Arc<TransportConfig>) -> ServerConfig {
    let mut config = quiet(ServerConfig::new(Arc::new(noise), Arc::new(NoTokens)));
    config.transport_config(transport);
    config
}

/// The configuration for one dial, which `knock` opens. A knock serves one dial only.
#[must_use]
pub fn client_config(noise: NoiseClient, knock: Knock, transport: Arc<TransportConfig>) -> ClientConfig {
    let mut config = ClientConfig::new(Arc::new(noise));
    config
        .version(QUIC_VERSION)
        .initial_dst_cid_provider(Arc::new(move || ConnectionId::new(knock.as_bytes())))
        .transport_config(transport);
    config
}

fn quiet(mut config: ServerConfig) -> ServerConfig {
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    config.migration(false).validation_token_config(tokens).time_source(Arc::new(NoClock));
    config
}

struct ResetKey(hmac::Key);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(hmac::sign(&self.0, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        hmac::verify(&self.0, data, signature).map_err(|_| CryptoError)
    }
}

/// Opens no token and, because none is ever sent, seals none.
struct NoTokens;

impl HandshakeTokenKey for NoTokens {
    fn aead_from_hkdf(&self, _random_bytes: &[u8]) -> Box<dyn AeadKey> {
        Box::new(Self)
    }
}

impl AeadKey for NoTokens {
    fn seal(&self, _data: &mut Vec<u8>, _additional_data: &[u8]) -> Result<(), CryptoError> {
        Err(CryptoError)
    }

    fn open<'a>(&self, _data: &'a mut [u8], _additional_data: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        Err(CryptoError)
    }
}

/// quinn-proto asks for the time only to date tokens.
struct NoClock;

impl TimeSource for NoClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}
