//! Rate limits for many networks in memory of fixed size.
//!
//! Who forges or owns addresses without number must not be able to fill memory with buckets. So networks share 4096 of
//! them by a keyed hash: two that collide share a rate, and nobody outside can choose with whom.

use std::net::SocketAddr;
use std::time::Instant;

use peerage_model::relay::frame::keys::BootKey;

use crate::bucket::{Bucket, Rate};
use crate::network::Network;

/// 4096 buckets take 64 KiB.
const BUCKETS: u64 = 4096;

#[derive(Debug)]
pub(crate) struct SpreadBuckets(Vec<Bucket>);

impl SpreadBuckets {
    pub(crate) fn new(now: Instant) -> Self {
        Self((0..BUCKETS).map(|_| Bucket::full(now)).collect())
    }

    /// Takes a token of the network that `from` is in.
    pub(crate) fn admit(&mut self, key: &BootKey, from: SocketAddr, rate: Rate, now: Instant) -> bool {
        let place = key.place(&Network::of_address(from).bytes()) % BUCKETS;
        let place = usize::try_from(place).expect("below 4096");
        self.0[place].admit(rate, now)
    }
}
