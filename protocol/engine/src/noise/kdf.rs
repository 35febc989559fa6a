//! The key schedule's one function, and the direction secret that everything before the Noise split comes from.

use core::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use aws_lc_rs::hmac;
use peerage_model::PairSecret;
use zeroize::Zeroizing;

const LABEL_PREFIX: &[u8] = b"peerage ";

/// 32 secret bytes, wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// More was asked of HKDF than 255 blocks of 32 bytes (RFC 5869).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

/// `Expand` of docs/spec/handshake.md. Labels are constants of this module's callers; contexts stay below 256 bytes.
pub(crate) fn expand_into(secret: &[u8; 32], label: &str, context: &[u8], out: &mut [u8]) -> Result<(), TooLong> {
    let length = u16::try_from(out.len()).map_err(|_| TooLong)?.to_be_bytes();
    let label_length = [u8::try_from(LABEL_PREFIX.len() + label.len()).map_err(|_| TooLong)?];
    let context_length = [u8::try_from(context.len()).map_err(|_| TooLong)?];
    let info: [&[u8]; 6] = [&length, &label_length, LABEL_PREFIX, label.as_bytes(), &context_length, context];
    Prk::new_less_safe(HKDF_SHA256, secret)
        .expand(&info, Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .map_err(|_| TooLong)
}

/// [`expand_into`] for a length known at compile time.
pub(crate) fn expand<const N: usize>(secret: &[u8; 32], label: &str, context: &[u8]) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    expand_into(secret, label, context, &mut out[..]).expect("labels, contexts and lengths of the schedule are short");
    out
}

/// HKDF-Extract.
pub(crate) fn extract(salt: &[u8], secret: &[u8]) -> Secret {
    // aws-lc-rs hands the extracted key out only through expansion, and HMAC is what extraction is (RFC 5869, 2.2).
    let key = hmac::Key::new(hmac::HMAC_SHA256, salt);
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(hmac::sign(&key, secret).as_ref());
    out
}

/// SHA-256.
pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

/// What initiator and responder of one direction share before the handshake. A→B and B→A have different ones, and so
/// has each candidate pair secret during an authority's rotation.
#[derive(Clone)]
pub struct DirectionSecret(Secret);

impl DirectionSecret {
    /// From a pair secret and the prologue that names initiator and responder.
    pub(crate) fn new(pair: &PairSecret, prologue: &[u8]) -> Self {
        Self(extract(&sha256(prologue), pair.expose()))
    }

    pub(crate) fn derive(&self, label: &str, context: &[u8]) -> Secret {
        expand(&self.0, label, context)
    }
}

impl fmt::Debug for DirectionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirectionSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extract_matches_rfc_5869_test_case_1() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let expected = [
            0x07, 0x77, 0x09, 0x36, 0x2c, 0x2e, 0x32, 0xdf, 0x0d, 0xdc, 0x3f, 0x0d, 0xc4, 0x7b, 0xba, 0x63, 0x90, 0xb6,
            0xc7, 0x3b, 0xb5, 0x0f, 0x9c, 0x31, 0x22, 0xec, 0x84, 0x4a, 0xd7, 0xc2, 0xb3, 0xe5,
        ];
        assert_eq!(*extract(&salt, &[0x0b; 22]), expected);
    }

    #[test]
    fn more_than_255_blocks_are_refused() {
        assert_eq!(expand_into(&[1; 32], "x", b"", &mut [0; 8160]), Ok(()));
        assert_eq!(expand_into(&[1; 32], "x", b"", &mut [0; 8161]), Err(TooLong));
    }
}
