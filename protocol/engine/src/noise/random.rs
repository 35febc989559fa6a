//! The one source of randomness: a generator that is a pure function of its seed.
//!
//! A process draws the seed from the operating system once; a test or the simulator fixes it, and the same run follows.
//! After every request the key is replaced, so what was drawn cannot be reconstructed from a later memory image.

use core::fmt;

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

/// A deterministic generator of random bytes (docs/spec/handshake.md, section 5).
///
/// Not `Clone`: two copies would hand out the same bytes, and in this crate the same bytes twice is a reused key.
pub struct SeededRandom {
    key: Zeroizing<[u8; 32]>,
}

impl SeededRandom {
    /// A generator whose whole output follows from `seed`. Two processes must never share one.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { key: Zeroizing::new(seed) }
    }

    /// Fills `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key[..]);
        for (number, block) in (0_u64..).zip(out.chunks_mut(32)) {
            let mut input = [1; 9];
            input[1..].copy_from_slice(&number.to_be_bytes());
            block.copy_from_slice(&hmac::sign(&key, &input).as_ref()[..block.len()]);
        }
        self.key.copy_from_slice(hmac::sign(&key, &[0]).as_ref());
    }

    /// `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }

    /// An independent generator.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::from_seed(self.bytes())
    }
}

impl fmt::Debug for SeededRandom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeededRandom(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_no_request_repeats_another() {
        let (mut one, mut two) = (SeededRandom::from_seed([7; 32]), SeededRandom::from_seed([7; 32]));
        let first: [u8; 40] = one.bytes();
        assert_eq!(first, two.bytes());
        let second: [u8; 40] = one.bytes();
        assert_ne!(first, second);
        assert_ne!(one.fork().bytes::<32>(), two.fork().bytes::<32>(), "the two differ by one request");
    }
}
