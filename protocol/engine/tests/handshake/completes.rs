//! A good pair gets a session: one round trip, verified peers, data both ways, key updates, the same run from the same seed.

use std::time::Duration;

use crate::support::{Pair, Profile};
use peerage_engine::noise::peer_identity;
use quinn_proto::Dir;

#[test]
fn the_handshake_completes_and_data_flows_in_both_directions() {
    let mut pair = Pair::connected();
    pair.client.write(b"hello bob");
    pair.settle();
    assert_eq!(pair.server.read_next().as_deref(), Some(&b"hello bob"[..]));
    pair.server.write(b"hello alice");
    pair.settle();
    assert_eq!(pair.client.read_next().as_deref(), Some(&b"hello alice"[..]));
}

#[test]
fn data_is_at_the_server_with_message_3_after_one_and_a_half_round_trips() {
    let mut pair = Pair::good();
    pair.dial();
    let message_1 = pair.client_flight();
    pair.deliver_to_server(&message_1);
    let message_2 = pair.server_flight();
    pair.deliver_to_client(&message_2);
    pair.client.write(b"early");
    let message_3 = pair.client_flight();
    assert_eq!((message_1.len(), message_2.len()), (1, 1), "one datagram each way");
    pair.deliver_to_server(&message_3[..1]);
    assert_eq!(pair.server.read_next().as_deref(), Some(&b"early"[..]), "and data in the same datagram");
}

#[test]
fn both_sides_learn_the_verified_peer_from_the_verifier() {
    let mut pair = Pair::connected();
    let seen_by_client = peer_identity::<String>(pair.client.connection());
    let seen_by_server = peer_identity::<String>(pair.server.connection());
    assert_eq!(seen_by_client.as_deref().map(String::as_str), Some("bob's passport"));
    assert_eq!(seen_by_server.as_deref().map(String::as_str), Some("alice's passport"));
}

#[test]
fn a_server_has_no_peer_before_message_3() {
    let mut pair = Pair::good();
    pair.dial();
    let message_1 = pair.client_flight();
    pair.deliver_to_server(&message_1);
    assert!(peer_identity::<String>(pair.server.connection()).is_none());
}

#[test]
fn key_updates_from_both_sides_lose_nothing() {
    let mut pair = Pair::connected();
    for round in 0..4_u8 {
        pair.client.connection().force_key_update();
        pair.client.write(&[round; 3000]);
        pair.pass(Duration::from_secs(2));
        assert_eq!(pair.server.read_next(), Some(vec![round; 3000]), "client's update {round}");
        pair.server.connection().force_key_update();
        pair.server.write(&[round; 3000]);
        pair.pass(Duration::from_secs(2));
        assert_eq!(pair.client.read_next(), Some(vec![round; 3000]), "server's update {round}");
    }
    assert!(pair.client.lost().is_none() && pair.server.lost().is_none());
}

#[test]
fn both_sides_export_the_same_secret_and_label_context_and_session_all_change_it() {
    let export = |pair: &mut Pair, label: &[u8], context: &[u8]| {
        let (mut here, mut there) = ([0; 32], [0; 32]);
        pair.client.connection().crypto_session().export_keying_material(&mut here, label, context).expect("short");
        pair.server.connection().crypto_session().export_keying_material(&mut there, label, context).expect("short");
        assert_eq!(here, there);
        here
    };
    let (mut one, mut other) = (Pair::connected(), Pair::new(Profile { seed: 9, ..Profile::alice() }, Profile::bob()));
    other.dial();
    other.settle();
    let outputs = [
        export(&mut one, b"stun", b"c"),
        export(&mut one, b"stun", b"s"),
        export(&mut one, b"stu", b"nc"),
        export(&mut other, b"stun", b"c"),
    ];
    for (index, output) in outputs.iter().enumerate() {
        assert!(!outputs[..index].contains(output), "output {index}");
    }
}

#[test]
fn there_is_nothing_to_export_before_the_handshake_ends() {
    let mut pair = Pair::good();
    pair.dial();
    assert!(pair.client.connection().crypto_session().export_keying_material(&mut [0; 32], b"x", b"").is_err());
}

#[test]
fn each_side_obeys_the_limits_of_the_other_not_its_own() {
    let mut pair = Pair::connected();
    let opened = |pair: &mut quinn_proto::Connection| std::iter::from_fn(|| pair.streams().open(Dir::Bi)).count();
    assert_eq!(opened(pair.client.connection()), 3, "the server allows three streams, the client itself seven");
    assert_eq!(opened(pair.server.connection()), 7);
}

#[test]
fn the_handshake_survives_the_loss_of_every_single_datagram() {
    for lost in 0..4 {
        let mut pair = Pair::good();
        pair.dial();
        let mut sent = 0;
        for _ in 0..400 {
            let there = pair.client_flight();
            let there = there
                .into_iter()
                .filter(|_| {
                    sent += 1;
                    sent - 1 != lost
                })
                .collect::<Vec<_>>();
            pair.deliver_to_server(&there);
            let back = pair.server_flight();
            let back = back
                .into_iter()
                .filter(|_| {
                    sent += 1;
                    sent - 1 != lost
                })
                .collect::<Vec<_>>();
            pair.deliver_to_client(&back);
            pair.advance(Duration::from_millis(20));
        }
        assert!(pair.client.is_established() && pair.server.is_established(), "datagram {lost} lost");
    }
}

#[test]
fn the_same_seeds_give_the_same_datagrams() {
    let run = || {
        let mut pair = Pair::connected();
        pair.client.write(b"hello");
        pair.settle();
        (pair.from_client, pair.from_server)
    };
    assert_eq!(run(), run());
}

#[test]
fn every_packet_on_the_wire_has_a_first_byte_of_quic() {
    let pair = Pair::connected();
    assert!(pair.from_client.iter().chain(&pair.from_server).all(|datagram| datagram[0] >= 64));
}
