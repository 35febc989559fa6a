//! The key schedule of binding (`docs/spec/relay.md` section 3), for both sides.

use core::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{constant_time, hmac};
use zeroize::Zeroizing;

use super::{BIND_HEAD, Boot, Cookie, MAC, Tag, bind_head};
use crate::keys::{AgreementKey, AgreementSecret, WeakKey};
use crate::pair::hkdf;

/// Authenticates frames between one client and one relay.
#[derive(Clone)]
pub struct MacKey(Zeroizing<[u8; 32]>);

impl MacKey {
    /// From its bytes; sessions and refusals derive theirs.
    #[must_use]
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// Of a frame without its last 16 bytes.
    #[must_use]
    pub fn mac(&self, frame: &[u8]) -> [u8; MAC] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0[..]), frame);
        let mut out = [0; MAC];
        out.copy_from_slice(&tag.as_ref()[..MAC]);
        out
    }

    /// Whether the last 16 bytes of `frame` are its MAC; in constant time.
    #[must_use]
    pub fn verifies(&self, frame: &[u8]) -> bool {
        let Some((body, mac)) = frame.split_last_chunk::<MAC>() else {
            return false;
        };
        constant_time::verify_slices_are_equal(&self.mac(body), mac).is_ok()
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(..)")
    }
}

/// What both sides know once they have DH(e, relay key): enough to seal, to open and to refuse.
#[derive(Debug)]
pub struct Opening<'a> {
    es: Zeroizing<[u8; 32]>,
    relay: &'a AgreementKey,
    e: &'a AgreementKey,
    cookie: Cookie,
}

impl<'a> Opening<'a> {
    /// `es` = DH(e, relay key).
    #[must_use]
    pub fn new(es: Zeroizing<[u8; 32]>, relay: &'a AgreementKey, e: &'a AgreementKey, cookie: Cookie) -> Self {
        Self { es, relay, e, cookie }
    }

    /// Authenticates REFUSED.
    #[must_use]
    pub fn refusal(&self) -> MacKey {
        MacKey(self.derive(b"peerage relay refusal v1"))
    }

    /// Authenticates all else between the two; `ss` = DH(instance key, relay key).
    #[must_use]
    pub fn session(&self, ss: &[u8; 32], instance: &AgreementKey) -> MacKey {
        let mut both = Zeroizing::new([0; 64]);
        both[..32].copy_from_slice(&self.es[..]);
        both[32..].copy_from_slice(ss);
        let info = [&b"peerage relay session v1"[..], &self.relay.0, &self.e.0, &instance.0];
        MacKey(hkdf(&self.cookie.0, &both[..], &info))
    }

    /// Opens the sealed credential into `buffer`, whose start is returned. `None` if it is not sealed to this relay.
    pub fn open<'b>(&self, frame: &[u8], sealed: &[u8], buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let head = frame.get(..BIND_HEAD)?;
        let buffer = buffer.get_mut(..sealed.len())?;
        buffer.copy_from_slice(sealed);
        let opened = self.aead().open_in_place(zero_nonce(), Aad::from(head), buffer).ok()?;
        Some(opened)
    }

    fn seal(&self, head: &[u8; BIND_HEAD], credential: &[u8]) -> Vec<u8> {
        let mut out = credential.to_vec();
        self.aead()
            .seal_in_place_append_tag(zero_nonce(), Aad::from(&head[..]), &mut out)
            .expect("a credential is far below AES-GCM's limit");
        out
    }

    fn aead(&self) -> LessSafeKey {
        let key = self.derive(b"peerage relay seal v1");
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key[..]).expect("the key has 32 bytes"))
    }

    fn derive(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        hkdf(&self.cookie.0, &self.es[..], &[label, &self.relay.0, &self.e.0])
    }
}

/// The constant nonce of a key that seals once.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// A BIND ready to send, and the keys its answers are checked with.
#[derive(Debug)]
pub struct Bind {
    /// The frame.
    pub frame: Vec<u8>,
    /// For BOUND, MOVE and DRAIN.
    pub session: MacKey,
    /// For REFUSED.
    pub refusal: MacKey,
}

/// Makes a BIND. `e` must be fresh: the seal's nonce is constant.
///
/// # Errors
/// [`WeakKey`] when the relay's key is not a usable point.
pub fn bind(
    tag: Tag,
    cookie: Cookie,
    e: &AgreementSecret,
    relay: &AgreementKey,
    instance: &AgreementSecret,
    credential: &[u8],
) -> Result<Bind, WeakKey> {
    let public = e.public();
    let opening = Opening::new(e.agree(relay)?, relay, &public, cookie);
    let session = opening.session(&*instance.agree(relay)?, &instance.public());
    let head = bind_head(tag, cookie, &public);
    let mut frame = head.to_vec();
    frame.extend_from_slice(&opening.seal(&head, credential));
    let mac = session.mac(&frame);
    frame.extend_from_slice(&mac);
    Ok(Bind { frame, session, refusal: opening.refusal() })
}

/// What one run of a relay derives from its 32 random bytes.
#[derive(Clone)]
pub struct BootKey(hmac::Key);

impl BootKey {
    /// From 32 random bytes drawn at start.
    #[must_use]
    pub fn new(random: &Zeroizing<[u8; 32]>) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &random[..]))
    }

    /// Names this run.
    #[must_use]
    pub fn boot(&self) -> Boot {
        Boot(self.prf(&[b"boot"]))
    }

    /// The proof that `address` (as [`super::address_bytes`]) receives, for a window of time.
    #[must_use]
    pub fn cookie(&self, window: u64, address: &[u8; 18]) -> Cookie {
        Cookie(self.prf(&[b"cookie", &window.to_be_bytes(), address]))
    }

    /// The same for the stream with this number and address at its other end: of use there and nowhere else.
    #[must_use]
    pub fn stream_cookie(&self, window: u64, address: &[u8; 18], stream: u64) -> Cookie {
        Cookie(self.prf(&[b"stream cookie", &window.to_be_bytes(), address, &stream.to_be_bytes()]))
    }

    /// The tag of an endpoint; one for the whole run.
    #[must_use]
    pub fn tag(&self, id: super::EndpointId) -> Tag {
        Tag(self.prf(&[b"tag", &id.0]))
    }

    /// Which instances `source` prefers, as a number that only this run can tell.
    #[must_use]
    pub fn taste(&self, source: super::EndpointId) -> u64 {
        u64::from_be_bytes(self.prf(&[b"pick", &source.0]))
    }

    /// The id of the visitor with this number; unguessable, and another for each.
    #[must_use]
    pub fn visitor(&self, number: u64) -> super::EndpointId {
        super::EndpointId(self.prf(&[b"visitor", &number.to_be_bytes()]))
    }

    /// The id of the mail with this number; unguessable, so that nobody counts what others get.
    #[must_use]
    pub fn mail(&self, number: u64) -> super::mailbox::MailId {
        super::mailbox::MailId(self.prf(&[b"mail", &number.to_be_bytes()]))
    }

    /// Where `key` lies in a table of fixed size, so that nobody outside can aim at a neighbour's place.
    #[must_use]
    pub fn place(&self, key: &[u8]) -> u64 {
        u64::from_be_bytes(self.prf(&[b"place", key]))
    }

    fn prf<const N: usize>(&self, parts: &[&[u8]]) -> [u8; N] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(part);
        }
        let mut out = [0; N];
        out.copy_from_slice(&context.sign().as_ref()[..N]);
        out
    }
}

impl fmt::Debug for BootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BootKey(..)")
    }
}
