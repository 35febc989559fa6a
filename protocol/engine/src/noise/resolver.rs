//! The primitives that snow runs on: aws-lc-rs for X25519, AES-256-GCM and SHA-256, and a seeded generator.
//!
//! aws-lc-rs takes 31–38 µs for an X25519 operation where the pure-Rust default takes 63–94 µs. The static key is parsed
//! once per identity and shared by all handshakes. Nothing here asks the operating system for anything.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::digest::{Context, SHA256};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

use super::random::SeededRandom;

const TAG_LEN: usize = 16;

/// An X25519 key pair, parsed once.
pub(crate) struct KeyPair {
    private: PrivateKey,
    bytes: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl KeyPair {
    pub(crate) fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        let private =
            PrivateKey::from_private_key(&X25519, &bytes[..]).expect("every 32-byte string is an X25519 private key");
        let mut public = [0; 32];
        public.copy_from_slice(
            private.compute_public_key().expect("a private key that parsed has a public half").as_ref(),
        );
        Self { private, bytes, public }
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    pub(crate) fn public(&self) -> &[u8; 32] {
        &self.public
    }
}

/// Resolves the primitives of `25519_AESGCM_SHA256` for one handshake.
pub(crate) struct Resolver {
    pub(crate) static_key: Arc<KeyPair>,
    pub(crate) ephemeral_seed: Zeroizing<[u8; 32]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Ephemerals(SeededRandom::from_seed(*self.ephemeral_seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(X25519Dh { pair: Arc::clone(&self.static_key) })),
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        match choice {
            HashChoice::SHA256 => Some(Box::new(Sha256(Context::new(&SHA256)))),
            _ => None,
        }
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::AESGCM => Some(Box::new(AesGcm(Keyed::No))),
            _ => None,
        }
    }
}

struct Ephemerals(SeededRandom);

impl Random for Ephemerals {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill(dest);
        Ok(())
    }
}

struct X25519Dh {
    /// Starts as the static key, which is what snow sets first; `generate` replaces it in the ephemeral's copy.
    pair: Arc<KeyPair>,
}

impl Dh for X25519Dh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        if privkey == &self.pair.bytes[..] {
            return; // the static key, parsed already
        }
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(privkey);
        self.pair = Arc::new(KeyPair::new(bytes));
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.try_fill_bytes(&mut bytes[..])?;
        self.pair = Arc::new(KeyPair::new(bytes));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.pair.public
    }

    fn privkey(&self) -> &[u8] {
        &self.pair.bytes[..]
    }

    /// Fails for a point of small order, whose result would not depend on our key.
    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        // snow keeps public keys in buffers of its largest curve's size.
        let peer = UnparsedPublicKey::new(&X25519, pubkey.get(..32).ok_or(snow::Error::Dh)?);
        agreement::agree(&self.pair.private, peer, snow::Error::Dh, |shared| {
            out[..32].copy_from_slice(shared);
            Ok(())
        })
    }
}

struct Sha256(Context);

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Context::new(&SHA256);
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let finished = core::mem::replace(&mut self.0, Context::new(&SHA256));
        out[..32].copy_from_slice(finished.finish().as_ref());
    }
}

enum Keyed {
    No,
    With(Box<LessSafeKey>),
}

/// AES-256-GCM as Noise uses it: the nonce is 4 zero bytes and the counter, big-endian.
struct AesGcm(Keyed);

impl AesGcm {
    fn key(&self) -> Result<&LessSafeKey, snow::Error> {
        match &self.0 {
            Keyed::With(key) => Ok(key),
            Keyed::No => Err(snow::Error::Decrypt),
        }
    }
}

fn noise_nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Cipher for AesGcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        let unbound = UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key has 32 bytes");
        self.0 = Keyed::With(Box::new(LessSafeKey::new(unbound)));
    }

    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (text, rest) = out.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        let tag = self
            .key()
            .expect("snow sets a key before it encrypts")
            .seal_in_place_separate_tag(noise_nonce(nonce), Aad::from(authtext), text)
            .expect("a Noise message is at most 64 KiB");
        rest[..TAG_LEN].copy_from_slice(tag.as_ref());
        plaintext.len() + TAG_LEN
    }

    fn decrypt(&self, nonce: u64, authtext: &[u8], ciphertext: &[u8], out: &mut [u8]) -> Result<usize, snow::Error> {
        let mut text = Zeroizing::new(ciphertext.to_vec());
        let opened = self
            .key()?
            .open_in_place(noise_nonce(nonce), Aad::from(authtext), &mut text)
            .map_err(|_| snow::Error::Decrypt)?;
        out.get_mut(..opened.len()).ok_or(snow::Error::Decrypt)?.copy_from_slice(opened);
        Ok(opened.len())
    }
}
