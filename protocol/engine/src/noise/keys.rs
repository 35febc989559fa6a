//! Packet and header protection: AES-256-GCM and AES-256 by aws-lc-rs, in the shapes that quinn-proto asks for.
//!
//! The packet key seals in place and keeps its expanded AES key; nothing is set up per packet. Only the Initial space
//! differs: there each packet's key depends on the source connection id in its own header, so that two servers that
//! answer the same recorded packet never use one key and nonce twice. A handshake has one or two such packets a side.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey, quic};
use bytes::BytesMut;
use quinn_proto::crypto::{CryptoError, HeaderKey, KeyPair, Keys, PacketKey};
use quinn_proto::{ConnectionId, Side};

use super::kdf::{DirectionSecret, Secret, expand, extract};

/// AES-GCM appends 16 bytes.
const TAG_LEN: usize = 16;
/// RFC 9001 section 6.6: at most 2^23 packets are sealed with one AES-GCM key.
pub(crate) const CONFIDENTIALITY_LIMIT: u64 = 1 << 23;
/// RFC 9001 section 6.6: at most 2^52 packets may fail to open.
pub(crate) const INTEGRITY_LIMIT: u64 = 1 << 52;

/// Seals and opens packets under one key.
pub(crate) struct AeadPacketKey {
    key: LessSafeKey,
    iv: [u8; 12],
}

impl AeadPacketKey {
    pub(crate) fn new(secret: &[u8; 32], context: &[u8]) -> Self {
        let key = expand::<32>(secret, "key", context);
        let unbound = UnboundKey::new(&AES_256_GCM, &key[..]).expect("an AES-256 key has 32 bytes");
        Self { key: LessSafeKey::new(unbound), iv: *expand::<12>(secret, "iv", context) }
    }

    fn nonce(&self, packet: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(packet.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

impl PacketKey for AeadPacketKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let (header, rest) = buf.split_at_mut(header_len);
        let (payload, tag_space) = rest.split_at_mut(rest.len() - TAG_LEN);
        let tag = self
            .key
            .seal_in_place_separate_tag(self.nonce(packet), Aad::from(&*header), payload)
            .expect("a packet is far below AES-GCM's 64 GiB");
        tag_space.copy_from_slice(tag.as_ref());
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        let opened =
            self.key.open_in_place(self.nonce(packet), Aad::from(header), payload).map_err(|_| CryptoError)?.len();
        payload.truncate(opened);
        Ok(())
    }

    fn tag_len(&self) -> usize {
        TAG_LEN
    }

    fn confidentiality_limit(&self) -> u64 {
        CONFIDENTIALITY_LIMIT
    }

    fn integrity_limit(&self) -> u64 {
        INTEGRITY_LIMIT
    }
}

/// Seals and opens Initial packets: a key for each source connection id.
struct InitialPacketKey {
    secret: Secret,
}

impl PacketKey for InitialPacketKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let source = source_id(&buf[..header_len]).expect("quinn-proto writes whole long headers");
        AeadPacketKey::new(&self.secret, source).encrypt(packet, buf, header_len);
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        let source = source_id(header).ok_or(CryptoError)?;
        AeadPacketKey::new(&self.secret, source).decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        TAG_LEN
    }

    fn confidentiality_limit(&self) -> u64 {
        CONFIDENTIALITY_LIMIT
    }

    fn integrity_limit(&self) -> u64 {
        INTEGRITY_LIMIT
    }
}

/// The source connection id in a long header (RFC 9000 section 17.2), or `None` where the header is too short for one.
fn source_id(header: &[u8]) -> Option<&[u8]> {
    let (&destination_len, rest) = header.get(5..)?.split_first()?;
    let (&source_len, rest) = rest.get(usize::from(destination_len)..)?.split_first()?;
    rest.get(..usize::from(source_len))
}

/// Hides packet numbers and the low bits of the first byte.
struct AesHeaderKey(quic::HeaderProtectionKey);

impl AesHeaderKey {
    fn new(secret: &[u8; 32]) -> Self {
        let key = expand::<32>(secret, "hp", b"");
        Self(quic::HeaderProtectionKey::new(&quic::AES_256, &key[..]).expect("an AES-256 key has 32 bytes"))
    }

    /// The sample starts where a four-byte packet number would end (RFC 9001 section 5.4.2).
    fn mask(&self, pn_offset: usize, packet: &[u8]) -> [u8; 5] {
        let start = pn_offset + 4;
        self.0.new_mask(&packet[start..start + self.sample_size()]).expect("quinn-proto hands in a whole sample")
    }
}

impl HeaderKey for AesHeaderKey {
    fn decrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        let mask = self.mask(pn_offset, packet);
        packet[0] ^= mask[0] & hidden_bits(packet[0]);
        let pn_len = usize::from(packet[0] & 0x03) + 1;
        apply(&mut packet[pn_offset..pn_offset + pn_len], &mask);
    }

    fn encrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        let mask = self.mask(pn_offset, packet);
        let pn_len = usize::from(packet[0] & 0x03) + 1;
        packet[0] ^= mask[0] & hidden_bits(packet[0]);
        apply(&mut packet[pn_offset..pn_offset + pn_len], &mask);
    }

    fn sample_size(&self) -> usize {
        self.0.algorithm().sample_len()
    }
}

/// Four bits of a long header's first byte are hidden, five of a short one's.
fn hidden_bits(first: u8) -> u8 {
    if first & 0x80 == 0 { 0x1f } else { 0x0f }
}

fn apply(packet_number: &mut [u8], mask: &[u8; 5]) {
    for (byte, mask) in packet_number.iter_mut().zip(&mask[1..]) {
        *byte ^= mask;
    }
}

/// The secrets of one packet number space.
pub(crate) struct SpaceSecrets {
    pub(crate) client: Secret,
    pub(crate) server: Secret,
}

impl SpaceSecrets {
    /// Of the Initial space of the connection whose first destination id is `first`.
    pub(crate) fn initial(direction: &DirectionSecret, first: &ConnectionId) -> Self {
        Self { client: direction.derive("initial c", first), server: direction.derive("initial s", first) }
    }

    /// Of the Handshake space: fresh for every answer, because the server's random is.
    pub(crate) fn handshake(
        direction: &DirectionSecret,
        first: &ConnectionId,
        message_1_hash: &[u8; 32],
        server_random: &[u8; 32],
    ) -> Self {
        let mut context = Vec::with_capacity(85);
        context.extend_from_slice(message_1_hash);
        context.push(u8::try_from(first.len()).expect("a connection id has at most 20 bytes"));
        context.extend_from_slice(first);
        context.extend_from_slice(server_random);
        Self { client: direction.derive("handshake c", &context), server: direction.derive("handshake s", &context) }
    }

    fn local_and_remote(&self, side: Side) -> (&Secret, &Secret) {
        match side {
            Side::Client => (&self.client, &self.server),
            Side::Server => (&self.server, &self.client),
        }
    }

    fn headers(&self, side: Side) -> KeyPair<Box<dyn HeaderKey>> {
        let (local, remote) = self.local_and_remote(side);
        KeyPair { local: Box::new(AesHeaderKey::new(local)), remote: Box::new(AesHeaderKey::new(remote)) }
    }

    fn packets(&self, side: Side) -> KeyPair<Box<dyn PacketKey>> {
        let (local, remote) = self.local_and_remote(side);
        KeyPair { local: Box::new(AeadPacketKey::new(local, b"")), remote: Box::new(AeadPacketKey::new(remote, b"")) }
    }

    /// Keys for the Handshake and 1-RTT spaces.
    pub(crate) fn keys(&self, side: Side) -> Keys {
        Keys { header: self.headers(side), packet: self.packets(side) }
    }

    /// Keys for the Initial space, where the packet's source id takes part.
    pub(crate) fn initial_keys(&self, side: Side) -> Keys {
        let (local, remote) = self.local_and_remote(side);
        Keys {
            header: self.headers(side),
            packet: KeyPair {
                local: Box::new(InitialPacketKey { secret: local.clone() }),
                remote: Box::new(InitialPacketKey { secret: remote.clone() }),
            },
        }
    }
}

/// Everything after the handshake: the current 1-RTT secrets and the exporter's.
pub(crate) struct OneRtt {
    pub(crate) secrets: SpaceSecrets,
    pub(crate) exporter: Secret,
}

impl OneRtt {
    /// From the two raw outputs of Noise's Split, initiator's first.
    pub(crate) fn from_split(initiator: &[u8; 32], responder: &[u8; 32]) -> Self {
        let mut both = zeroize::Zeroizing::new([0; 64]);
        both[..32].copy_from_slice(initiator);
        both[32..].copy_from_slice(responder);
        let root = extract(b"peerage 1-rtt v1", &both[..]);
        Self {
            secrets: SpaceSecrets { client: expand(&root, "1rtt c", b""), server: expand(&root, "1rtt s", b"") },
            exporter: expand(&root, "exporter", b""),
        }
    }

    /// Moves to the next generation and returns its packet keys; header keys never change.
    pub(crate) fn update(&mut self, side: Side) -> KeyPair<Box<dyn PacketKey>> {
        self.secrets = SpaceSecrets {
            client: expand(&self.secrets.client, "ku", b""),
            server: expand(&self.secrets.server, "ku", b""),
        };
        self.secrets.packets(side)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_without_a_whole_source_id_has_none() {
        let header = [0xc0, 0, 0, 0, 1, 2, 9, 9, 3, 7, 8, 6, 5];
        assert_eq!(source_id(&header), Some(&[7, 8, 6][..]));
        for cut in 0..12 {
            assert_eq!(source_id(&header[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_header_survives_protection_and_every_hidden_bit_changes_for_some_key() {
        let mut changed = 0;
        for seed in 0..32 {
            let key = AesHeaderKey::new(&[seed; 32]);
            let original: Vec<u8> = [0x43].into_iter().chain((0..60).map(|i| i ^ seed)).collect();
            let mut packet = original.clone();
            key.encrypt(9, &mut packet);
            assert_eq!(packet[1..9], original[1..9], "the connection id stays readable");
            changed |= packet[0] ^ original[0];
            key.decrypt(9, &mut packet);
            assert_eq!(packet, original);
        }
        assert_eq!(changed, 0x1f);
    }
}
