//! Who may be decrypted at all: the endpoint's crypto configuration that knows knocks, and nothing else.
//!
//! quinn-proto asks it for Initial keys when a packet for no known connection comes in, before an `Incoming` exists.
//! Without a valid knock there are no keys, quinn-proto drops the packet, and nothing is sent.

use core::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use peerage_model::{AgreementSecret, PairSecret};
use quinn_proto::crypto::{Keys, ServerConfig, Session, UnsupportedVersion};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side};

use super::QUIC_VERSION;
use super::config::{LocalIdentity, NoiseServer, Pairing};
use super::keys::SpaceSecrets;
use super::random::SeededRandom;
use super::session::{Peer, PeerRejected, VerifyPeer};
use crate::knock::KnockTable;

/// The knock table, as shared by its owner, who keeps pairs and time up to date, and the [`Doorkeeper`].
pub type SharedKnocks<K> = Arc<Mutex<KnockTable<K>>>;

/// The listener's endpoint-wide crypto configuration.
///
/// It hands out Initial keys only. Whoever drives the endpoint looks the knock up again and accepts the connection with
/// the pair's own [`NoiseServer`]; a session started without that belongs to nobody and refuses every message.
pub struct Doorkeeper<K> {
    knocks: SharedKnocks<K>,
    nobody: Arc<NoiseServer>,
}

impl<K: Clone + Ord + Send + Sync> Doorkeeper<K> {
    /// Guards an endpoint with `knocks`.
    #[must_use]
    pub fn new(knocks: SharedKnocks<K>, seed: [u8; 32]) -> Self {
        Self { knocks, nobody: Arc::new(nobody(seed)) }
    }
}

impl<K: Clone + Ord + Send + Sync> ServerConfig for Doorkeeper<K> {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        if version != QUIC_VERSION {
            return Err(UnsupportedVersion);
        }
        let knocks = self.knocks.lock().unwrap_or_else(PoisonError::into_inner);
        let known = knocks.lookup(dst_cid).ok_or(UnsupportedVersion)?;
        Ok(SpaceSecrets::initial(&known.direction, dst_cid).initial_keys(Side::Server))
    }

    fn retry_tag(&self, _version: u32, _orig_dst_cid: &ConnectionId, _packet: &[u8]) -> [u8; 16] {
        [0; 16]
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        Arc::clone(&self.nobody).start_session(version, params)
    }
}

impl<K> fmt::Debug for Doorkeeper<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doorkeeper(..)")
    }
}

/// A server whose pair secret and static key are random and forgotten.
fn nobody(seed: [u8; 32]) -> NoiseServer {
    let mut random = SeededRandom::from_seed(seed);
    let pairing = Pairing::new(&[PairSecret::from_bytes(random.bytes())], b"", b"").expect("one secret, short ids");
    let identity =
        LocalIdentity::new(&AgreementSecret::from_bytes(random.bytes()), Vec::new()).expect("an empty credential");
    NoiseServer::new(&pairing, 0, Arc::new(identity), Arc::new(RejectAll), random.bytes()).expect("secret 0 exists")
}

struct RejectAll;

impl VerifyPeer for RejectAll {
    fn verify(&self, _credential: &[u8], _noise_static: &[u8; 32]) -> Result<Peer, PeerRejected> {
        Err(PeerRejected("no knock was resolved for this connection".into()))
    }
}
