//! Checksums are verified from scratch here, not by the incremental arithmetic under test.

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

use super::*;

#[test]
fn a_rewritten_datagram_has_right_checksums() {
    let mut frame = datagram(b"hello, peer!");
    let mut view = Datagram::parse(&mut frame).expect("a UDP datagram");
    view.set_source("203.0.113.9:61000".parse().expect("an endpoint"));
    view.set_destination("198.51.100.7:9".parse().expect("an endpoint"));
    assert_eq!(view.source().to_string(), "203.0.113.9:61000");
    assert_eq!(view.destination().to_string(), "198.51.100.7:9");
    assert_eq!(verify(&frame), (0xffff, 0xffff));
}

#[test]
fn a_partial_checksum_stays_the_sum_of_the_pseudo_header() {
    let mut frame = datagram(b"0123456789");
    frame[0] = NEEDS_CHECKSUM;
    let pseudo = pseudo_header(&frame);
    put(&mut frame, HEADROOM + 26, pseudo);
    let mut view = Datagram::parse(&mut frame).expect("a UDP datagram");
    view.set_source("203.0.113.9:61000".parse().expect("an endpoint"));
    assert_eq!(u16_at(&frame, HEADROOM + 26).to_be(), pseudo_header(&frame));
}

#[test]
fn a_datagram_without_a_checksum_keeps_none() {
    let mut frame = datagram(b"quiet");
    put(&mut frame, HEADROOM + 26, 0);
    Datagram::parse(&mut frame).expect("UDP").set_source("203.0.113.9:61000".parse().expect("an endpoint"));
    assert_eq!(u16_at(&frame, HEADROOM + 26), 0);
}

#[test]
fn a_batch_splits_into_its_packets() {
    let payload: Vec<u8> = (0..25).collect();
    let mut frame = datagram(&payload);
    frame[1] = GSO_UDP;
    frame[4..6].copy_from_slice(&10_u16.to_ne_bytes());
    let batch = Datagram::parse(&mut frame).expect("a batch");
    assert_eq!((batch.packets(), batch.wire_bytes()), (3, 25 + 3 * 28));
    let mut rebuilt = Vec::new();
    for (n, mut single) in batch.split().into_iter().enumerate() {
        assert_eq!(sum(&single[HEADROOM..HEADROOM + 20]), 0xffff, "IP checksum of packet {n}");
        assert_eq!(u16_at(&single, HEADROOM + 26).to_be(), pseudo_header(&single), "partial sum of packet {n}");
        assert_eq!(u16_at(&single, HEADROOM + 4).to_be(), 7 + n as u16, "each packet has its own id");
        let view = Datagram::parse(&mut single).expect("a datagram");
        assert!(!view.is_batch());
        rebuilt.extend_from_slice(view.payload());
    }
    assert_eq!(rebuilt, payload);
}

#[test]
fn what_is_not_one_udp_datagram_over_ipv4_is_refused() {
    let broken: [(&str, usize, u8); 5] = [
        ("IPv6", HEADROOM, 0x65),
        ("TCP", HEADROOM + 9, 6),
        ("a fragment", HEADROOM + 6, 0x20),
        ("a length beyond the frame", HEADROOM + 2, 0x7f),
        ("TCP segmentation", 1, 1),
    ];
    for (what, at, value) in broken {
        let mut frame = datagram(b"data");
        frame[at] = value;
        assert!(Datagram::parse(&mut frame).is_none(), "{what} was taken");
    }
}

#[test]
fn no_truncation_panics() {
    let frame = datagram(b"data");
    for length in 0..frame.len() {
        assert!(Datagram::parse(&mut frame[..length].to_vec()).is_none(), "{length} bytes were taken");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(mut bytes in vec(any::<u8>(), 0..200)) {
        exercise(&mut bytes);
    }

    #[test]
    fn no_corruption_panics(at in 0_usize..64, value in any::<u8>(), gso in 0_u8..8, segment in any::<u16>()) {
        let mut frame = datagram(b"twelve bytes");
        frame[1] = gso;
        frame[4..6].copy_from_slice(&segment.to_ne_bytes());
        if let Some(byte) = frame.get_mut(at) {
            *byte = value;
        }
        exercise(&mut frame);
    }
}

/// Everything that the lab does with a frame that it takes.
fn exercise(frame: &mut [u8]) {
    let Some(mut view) = Datagram::parse(frame) else { return };
    view.set_source(view.destination());
    view.set_destination(view.source());
    view.set_macs([1; 6], [2; 6]);
    let singles = if view.is_batch() { view.split() } else { Vec::new() };
    assert_eq!(singles.len().max(1), view.packets());
    for mut single in singles {
        assert!(Datagram::parse(&mut single).is_some());
    }
}

/// From 10.0.0.2:4000 to 198.51.100.1:3478, with complete checksums and IP id 7.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADROOM];
    let udp_bytes = (UDP_BYTES + payload.len()) as u16;
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&(20 + udp_bytes).to_be_bytes());
    frame.extend_from_slice(&[0, 7, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 198, 51, 100, 1]);
    for field in [4000, 3478, udp_bytes, 0] {
        frame.extend_from_slice(&u16::to_be_bytes(field));
    }
    frame.extend_from_slice(payload);
    let ip_sum = !sum(&frame[HEADROOM..HEADROOM + 20]);
    put(&mut frame, HEADROOM + 10, ip_sum);
    let udp_sum = !add(pseudo_header(&frame), sum_padded(&frame[HEADROOM + 20..]));
    put(&mut frame, HEADROOM + 26, udp_sum);
    frame
}

/// The sums over IP header and UDP datagram, all ones where the checksum is right.
fn verify(frame: &[u8]) -> (u16, u16) {
    (sum(&frame[HEADROOM..HEADROOM + 20]), add(pseudo_header(frame), sum_padded(&frame[HEADROOM + 20..])))
}

fn pseudo_header(frame: &[u8]) -> u16 {
    let addresses = sum(&frame[HEADROOM + 12..HEADROOM + 20]);
    add(addresses, add(17, u16_at(frame, HEADROOM + 24).to_be()))
}

fn sum_padded(bytes: &[u8]) -> u16 {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(2), 0);
    sum(&padded)
}
