//! Relay frames through a stream (`docs/spec/relay.md` section 10): where one ends, and the proof that the stream's other
//! end is the relay.
//!
//! The certificate of the relay's TLS endpoint says nothing, anybody can make one. What counts is that the other end
//! holds the relay's key **and** sees the same TLS session as we do: the proof is made with both, so a middlebox that ends
//! our TLS session and begins another one to the relay cannot pass it on.

use core::fmt;

use aws_lc_rs::constant_time;
use zeroize::Zeroizing;

use super::frame::keys::MacKey;
use super::frame::{HEADER, MAC, MAX_PACKET, NotAFrame, ROUTE_HEADER, VERSION_1};
use crate::keys::{AgreementKey, AgreementSecret, WeakKey};
use crate::pair::hkdf;

/// Bytes of the length before each frame.
pub const PREFIX: usize = 2;
/// Longest frame: TO_ROUTE with the longest packet.
pub const MAX_FRAME: usize = ROUTE_HEADER + MAX_PACKET;
/// Bytes of OPEN.
pub const OPEN: usize = HEADER + 32;
/// Bytes of PROOF.
pub const PROOF: usize = HEADER + MAC;
/// The label of the TLS exporter (RFC 8446 section 7.5); its context is empty and it gives 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-peerage-relay-v1";

const OPEN_HEADER: [u8; HEADER] = [VERSION_1, 64, 0, 0, 0, 0, 0, 0];
const PROOF_HEADER: [u8; HEADER] = [VERSION_1, 65, 0, 0, 0, 0, 0, 0];

/// The other end does not speak this protocol: no frame has such a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no relay frame has {0} bytes")]
pub struct NoFrame(pub u16);

/// What goes before a frame of `len` bytes.
///
/// # Panics
/// If no frame has that many bytes.
#[must_use]
pub fn prefix(len: usize) -> [u8; PREFIX] {
    assert!((HEADER..=MAX_FRAME).contains(&len), "frames have {HEADER} to {MAX_FRAME} bytes");
    u16::try_from(len).expect("the longest frame is far below 64 KiB").to_be_bytes()
}

/// How long the frame is at whose prefix `bytes` begins; `None` while the prefix is not all there. The frame itself may
/// not be there yet.
///
/// # Errors
/// [`NoFrame`], on which the stream must be closed: there is no way to find the next frame.
pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, NoFrame> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let len = u16::from_be_bytes(*prefix);
    match (HEADER..=MAX_FRAME).contains(&usize::from(len)) {
        true => Ok(Some(len.into())),
        false => Err(NoFrame(len)),
    }
}

/// What both ends of one TLS session, and nobody else, know of it.
#[derive(Clone)]
pub struct ChannelBinding(Zeroizing<[u8; 32]>);

impl ChannelBinding {
    /// From what the exporter gave for [`EXPORTER_LABEL`].
    #[must_use]
    pub fn new(exported: Zeroizing<[u8; 32]>) -> Self {
        Self(exported)
    }

    fn key(&self, es: &[u8; 32], relay: &AgreementKey, e: &AgreementKey) -> MacKey {
        MacKey::new(hkdf(&self.0[..], es, &[b"peerage relay tls v1", &relay.0, &e.0]))
    }
}

impl fmt::Debug for ChannelBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelBinding(..)")
    }
}

/// The client's first frame. `e` must be fresh.
#[must_use]
pub fn open(e: &AgreementKey) -> [u8; OPEN] {
    let mut out = [0; OPEN];
    out[..HEADER].copy_from_slice(&OPEN_HEADER);
    out[HEADER..].copy_from_slice(&e.0);
    out
}

/// Reads the client's first frame.
///
/// # Errors
/// [`NotAFrame`] when it is another one.
pub fn read_open(frame: &[u8]) -> Result<AgreementKey, NotAFrame> {
    let (header, e) = frame.split_first_chunk::<HEADER>().ok_or(NotAFrame)?;
    if *header != OPEN_HEADER {
        return Err(NotAFrame);
    }
    Ok(AgreementKey(e.try_into().map_err(|_| NotAFrame)?))
}

/// The relay's first frame: that it holds the relay's key, within this TLS session.
///
/// # Errors
/// [`WeakKey`] when `e` is not a usable point.
pub fn proof(binding: &ChannelBinding, relay: &AgreementSecret, e: &AgreementKey) -> Result<[u8; PROOF], WeakKey> {
    let key = binding.key(&*relay.agree(e)?, &relay.public(), e);
    let mut out = [0; PROOF];
    out[..HEADER].copy_from_slice(&PROOF_HEADER);
    out[HEADER..].copy_from_slice(&key.mac(&PROOF_HEADER));
    Ok(out)
}

/// Whether `frame` is that proof; in constant time.
#[must_use]
pub fn proves(frame: &[u8], binding: &ChannelBinding, relay: &AgreementKey, e: &AgreementSecret) -> bool {
    let Ok(es) = e.agree(relay) else {
        return false;
    };
    let key = binding.key(&es, relay, &e.public());
    let Some((PROOF_HEADER, mac)) = frame.split_first_chunk::<HEADER>().map(|(header, mac)| (*header, mac)) else {
        return false;
    };
    constant_time::verify_slices_are_equal(&key.mac(&PROOF_HEADER), mac).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use data_encoding::HEXLOWER;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
    use serde_json::Value;

    use super::*;

    fn vector(name: &str) -> Vec<u8> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec/vectors/relay.json");
        let text = fs::read_to_string(path).expect("the vectors are part of the repository");
        let all: Value = serde_json::from_str(&text).expect("the vectors are JSON");
        let text = all["tls"][name].as_str().or(all[name].as_str()).expect("the vector exists");
        HEXLOWER.decode(text.as_bytes()).expect("vectors are lower-case hex")
    }

    fn bytes(name: &str) -> [u8; 32] {
        vector(name).try_into().expect("the vector has 32 bytes")
    }

    fn relay_and_e() -> (AgreementSecret, AgreementSecret) {
        (AgreementSecret::from_bytes(bytes("relay_secret")), AgreementSecret::from_bytes(bytes("e_secret")))
    }

    fn with_prefix(frame: &[u8]) -> Vec<u8> {
        [&prefix(frame.len())[..], frame].concat()
    }

    #[test]
    fn the_opening_matches_the_vectors() {
        let (relay, e) = relay_and_e();
        let binding = ChannelBinding::new(Zeroizing::new(bytes("exporter")));
        let first = open(&e.public());
        assert_eq!(with_prefix(&first), vector("open"));
        assert_eq!(read_open(&first), Ok(e.public()));
        let answer = proof(&binding, &relay, &e.public()).expect("a good key");
        assert_eq!(with_prefix(&answer), vector("proof"));
        assert!(proves(&answer, &binding, &relay.public(), &e));
    }

    #[test]
    fn another_relay_another_session_and_another_question_prove_nothing() {
        let (relay, e) = relay_and_e();
        let binding = |byte| ChannelBinding::new(Zeroizing::new([byte; 32]));
        let other = AgreementSecret::from_bytes([9; 32]);
        let right = proof(&binding(1), &relay, &e.public()).expect("a good key");
        assert!(proves(&right, &binding(1), &relay.public(), &e));
        assert!(!proves(&right, &binding(2), &relay.public(), &e), "a middlebox has two sessions, not one");
        assert!(!proves(&right, &binding(1), &other.public(), &e));
        assert!(!proves(&right, &binding(1), &relay.public(), &other));
        let forged = proof(&binding(1), &other, &e.public()).expect("a good key");
        assert!(!proves(&forged, &binding(1), &relay.public(), &e), "who lacks the relay's key cannot answer");
        for cut in 0..PROOF {
            assert!(!proves(&right[..cut], &binding(1), &relay.public(), &e), "cut to {cut}");
        }
    }

    #[test]
    fn keys_that_lead_everywhere_to_the_same_secret_are_refused() {
        let (relay, e) = relay_and_e();
        let binding = ChannelBinding::new(Zeroizing::new([1; 32]));
        assert!(proof(&binding, &relay, &AgreementKey([0; 32])).is_err());
        let right = proof(&binding, &relay, &e.public()).expect("a good key");
        assert!(!proves(&right, &binding, &AgreementKey([0; 32]), &e));
    }

    #[test]
    fn http_and_lengths_that_no_frame_has_end_the_stream() {
        assert!(frame_len(b"GET / HTTP/1.1\r\n").is_err());
        assert_eq!(frame_len(&[0, 7]), Err(NoFrame(7)));
        assert_eq!(frame_len(&[0]), Ok(None));
        assert_eq!(frame_len(&prefix(MAX_FRAME)), Ok(Some(MAX_FRAME)));
        let above = u16::try_from(MAX_FRAME + 1).expect("it fits");
        assert_eq!(frame_len(&above.to_be_bytes()), Err(NoFrame(above)));
    }

    proptest! {
        #[test]
        fn frames_come_out_of_the_stream_as_they_went_in(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), HEADER..300), 0..8),
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|frame| with_prefix(frame)).collect();
            let (mut rest, mut read) = (&stream[..], Vec::new());
            while let Some(len) = frame_len(rest).expect("these are frames") {
                let (frame, more) = rest[PREFIX..].split_at(len);
                read.push(frame.to_vec());
                rest = more;
            }
            prop_assert_eq!(read, frames);
            prop_assert!(rest.is_empty());
        }
    }
}
