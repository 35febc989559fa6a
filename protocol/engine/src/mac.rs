//! Keys of message authentication codes that a session or a peer has for its whole life and seldom uses.
//!
//! aws-lc keeps an HMAC key ready to be used: three hash states, 1.2 KiB. A session has three keys and each trusted peer three more,
//! which was a tenth of what an idle session took. Two more blocks are hashed for each use instead: half a microsecond, for checks
//! and first packets, never for data.

use core::fmt;

use aws_lc_rs::hmac;

use crate::noise::kdf::Secret;

/// A key of HMAC-SHA-256 as its 32 bytes, wiped when dropped.
#[derive(Clone)]
pub(crate) struct MacKey(Secret);

impl MacKey {
    pub(crate) fn new(key: impl Into<Secret>) -> Self {
        Self(key.into())
    }

    /// The code of a message in one piece.
    pub(crate) fn sign(&self, message: &[u8]) -> hmac::Tag {
        hmac::sign(&self.ready(), message)
    }

    /// For a message in several.
    pub(crate) fn begin(&self) -> hmac::Context {
        hmac::Context::with_key(&self.ready())
    }

    fn ready(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0[..])
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231 has no key of 32 bytes; its first, of 20, is the same key when it is filled up with zeros.
    #[test]
    fn it_is_the_code_of_the_rfc() {
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let key = MacKey::new(key);
        let expected = [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53];
        assert_eq!(key.sign(b"Hi There").as_ref()[..8], expected);
        let mut pieces = key.begin();
        pieces.update(b"Hi ");
        pieces.update(b"There");
        assert_eq!(pieces.sign().as_ref()[..8], expected);
    }
}
