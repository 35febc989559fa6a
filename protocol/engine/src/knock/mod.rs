//! Silence to strangers: the 20 bytes that a dialer must show before an agent decrypts or answers anything.
//!
//! QUIC lets the client choose its first destination connection id, so the knock costs no packet and no round trip. It
//! is keyed per direction and ten-minute epoch, so one that is reflected to its sender, or kept for later, opens nothing.
//! [`KnockTable`] recognises knocks and remembers used ones; [`ConnectionIds`] issues ids for live connections that are
//! told from garbage without any state. Layouts: `docs/spec/handshake.md`, sections 2 and 3.

mod connection_ids;
mod replay;
mod table;
#[cfg(test)]
mod vectors;

use core::fmt;

use aws_lc_rs::constant_time;
use peerage_model::UnixTime;

use crate::mac::MacKey;
use crate::noise::{DirectionSecret, SeededRandom};

pub use connection_ids::{CONNECTION_ID_LEN, ConnectionIdKey, ConnectionIds};
pub use table::{KnockTable, Match};

/// How long one set of knock keys is in use, in seconds.
pub const EPOCH_SECONDS: u64 = 600;
/// Bytes in a knock; also the longest connection id that QUIC allows.
pub const KNOCK_LEN: usize = 20;
const HINT_LEN: usize = 6;
const RANDOM_LEN: usize = 6;

/// The part of a knock that finds its pair.
pub(crate) type Hint = [u8; HINT_LEN];

/// The number of a ten-minute span since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch that `now` lies in.
    #[must_use]
    pub fn at(now: UnixTime) -> Self {
        Self(now.0 / EPOCH_SECONDS)
    }

    pub(crate) fn accepts(self, other: Self) -> bool {
        self.0.abs_diff(other.0) <= 1
    }

    /// The epochs whose knocks are accepted now: this one and one either side, because clocks differ.
    pub(crate) fn accepted(self) -> impl Iterator<Item = Self> {
        (self.0.saturating_sub(1)..=self.0.saturating_add(1)).map(Self)
    }
}

/// One knock: hint 6 ‖ random 6 ‖ tag 8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Knock([u8; KNOCK_LEN]);

impl Knock {
    /// A fresh knock for one dial in `direction`. During an authority's rotation the caller picks the candidate secret
    /// (`Pairing::directions`) and configures the session with the same one.
    #[must_use]
    pub fn new(direction: &DirectionSecret, now: UnixTime, random: &mut SeededRandom) -> Self {
        KnockKeys::new(direction, Epoch::at(now)).knock(random.bytes())
    }

    /// The bytes, to be used as first destination connection id.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KNOCK_LEN] {
        &self.0
    }

    /// Reads a first destination connection id; `None` if it has another length than a knock.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn hint(&self) -> Hint {
        let mut hint = [0; HINT_LEN];
        hint.copy_from_slice(&self.0[..HINT_LEN]);
        hint
    }
}

impl fmt::Debug for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Knock(")?;
        self.hint().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("..)")
    }
}

/// The keys of one direction, candidate and epoch.
#[derive(Clone)]
pub(crate) struct KnockKeys {
    hint: Hint,
    tag: MacKey,
}

impl KnockKeys {
    pub(crate) fn new(direction: &DirectionSecret, epoch: Epoch) -> Self {
        let key = direction.derive("knock", &epoch.0.to_be_bytes());
        let hint = crate::noise::kdf::expand::<HINT_LEN>(&key, "hint", b"");
        let tag = crate::noise::kdf::expand::<32>(&key, "tag", b"");
        Self { hint: *hint, tag: MacKey::new(tag) }
    }

    pub(crate) fn hint(&self) -> Hint {
        self.hint
    }

    pub(crate) fn knock(&self, random: [u8; RANDOM_LEN]) -> Knock {
        let mut knock = [0; KNOCK_LEN];
        knock[..HINT_LEN].copy_from_slice(&self.hint);
        knock[HINT_LEN..HINT_LEN + RANDOM_LEN].copy_from_slice(&random);
        let (signed, tag) = knock.split_at_mut(HINT_LEN + RANDOM_LEN);
        tag.copy_from_slice(&self.tag.sign(signed).as_ref()[..tag.len()]);
        Knock(knock)
    }

    /// Whether `knock` was made with these keys; takes the same time wherever its tag is wrong.
    pub(crate) fn verify(&self, knock: &Knock) -> bool {
        let (signed, tag) = knock.0.split_at(HINT_LEN + RANDOM_LEN);
        let expected = self.tag.sign(signed);
        constant_time::verify_slices_are_equal(&expected.as_ref()[..tag.len()], tag).is_ok()
    }
}
