//! The ids of live connections: 5 random bytes and a MAC of 3, so that garbage is dropped without a lookup.

use core::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{constant_time, hmac};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

use crate::noise::SeededRandom;

/// Bytes in each id that we issue. Every packet to us carries one.
pub const CONNECTION_ID_LEN: usize = 8;
const NONCE_LEN: usize = 5;

/// Tells ids that this process issued from garbage. Cheap to clone.
#[derive(Clone)]
pub struct ConnectionIdKey(Arc<hmac::Key>);

impl ConnectionIdKey {
    /// A new key; it lives as long as the process.
    #[must_use]
    pub fn new(random: &mut SeededRandom) -> Self {
        Self(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &random.bytes::<32>())))
    }

    /// Whether `id` was issued under this key; garbage passes once in 2^24 times, and is then unknown to the endpoint.
    #[must_use]
    pub fn issued(&self, id: &[u8]) -> bool {
        id.len() == CONNECTION_ID_LEN && {
            let (nonce, tag) = id.split_at(NONCE_LEN);
            constant_time::verify_slices_are_equal(&self.tag(nonce), tag).is_ok()
        }
    }

    fn tag(&self, nonce: &[u8]) -> [u8; CONNECTION_ID_LEN - NONCE_LEN] {
        let mut tag = [0; CONNECTION_ID_LEN - NONCE_LEN];
        let length = tag.len();
        tag.copy_from_slice(&hmac::sign(&self.0, nonce).as_ref()[..length]);
        tag
    }
}

impl fmt::Debug for ConnectionIdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionIdKey(..)")
    }
}

/// Issues connection ids; quinn-proto retries the rare one that it has already.
#[derive(Debug)]
pub struct ConnectionIds {
    key: ConnectionIdKey,
    random: SeededRandom,
}

impl ConnectionIds {
    /// Ids that `key` recognises, in an order that follows from `random`'s seed.
    #[must_use]
    pub fn new(key: ConnectionIdKey, random: SeededRandom) -> Self {
        Self { key, random }
    }
}

impl ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_LEN];
        let (nonce, tag) = id.split_at_mut(NONCE_LEN);
        self.random.fill(nonce);
        tag.copy_from_slice(&self.key.tag(nonce));
        ConnectionId::new(&id)
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        if self.key.issued(cid) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_LEN
    }

    /// Ids do not expire: a session is short against what would make rotation worthwhile, and QUIC rotates on migration.
    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(seed: u8) -> ConnectionIds {
        let mut random = SeededRandom::from_seed([seed; 32]);
        ConnectionIds::new(ConnectionIdKey::new(&mut random), random)
    }

    #[test]
    fn an_issued_id_is_recognised_and_one_of_another_process_is_not() {
        let (mut here, mut there) = (ids(1), ids(2));
        for _ in 0..100 {
            let id = here.generate_cid();
            assert!(here.validate(&id).is_ok());
            assert!(there.validate(&id).is_err());
            assert!(here.validate(&there.generate_cid()).is_err());
        }
    }

    #[test]
    fn an_id_of_another_length_is_garbage() {
        let mut here = ids(1);
        let id = here.generate_cid();
        for length in 0..CONNECTION_ID_LEN {
            assert!(!here.key.issued(&id[..length]), "{length} bytes");
        }
    }
}
