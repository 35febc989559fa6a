//! Who is not trusted, or only repeats what others sent, gets no byte and no session.

use std::time::Duration;

use crate::support::{Agent, Pair, Profile, SECRET};
use peerage_engine::knock::Knock;
use peerage_engine::noise::{QUIC_VERSION, SeededRandom};
use quinn_proto::DatagramEvent;

/// Delivers `datagrams` to the server and returns what it sends, now and for the next minute.
fn answer(pair: &mut Pair, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    pair.deliver_to_server(datagrams);
    let mut answer = pair.server_flight();
    for _ in 0..600 {
        pair.advance(Duration::from_millis(100));
        answer.extend(pair.server_flight());
    }
    answer
}

fn first_packet_of(client: Profile) -> Vec<Vec<u8>> {
    let mut pair = Pair::new(client, Profile::bob());
    pair.dial();
    pair.client_flight()
}

#[test]
fn a_dialer_with_another_pair_secret_is_not_answered() {
    let packets = first_packet_of(Profile { secret: [0; 32], ..Profile::alice() });
    assert!(answer(&mut Pair::good(), &packets).is_empty());
}

#[test]
fn a_copied_knock_without_the_secret_is_not_answered_and_does_not_use_the_knock_up() {
    let mut pair = Pair::good();
    let knock = pair.client.fresh_knock();
    let mut thief = Pair::new(Profile { secret: [0; 32], ..Profile::alice() }, Profile::bob());
    thief.client.dial_with(thief.server.address, knock);
    let forged = thief.client_flight();
    assert!(answer(&mut pair, &forged).is_empty());

    pair.client.dial_with(pair.server.address, knock);
    pair.settle();
    assert!(pair.client.is_established(), "the knock's owner still gets in");
}

#[test]
fn a_knock_of_half_an_hour_ago_is_not_answered() {
    let packets = first_packet_of(Profile::alice());
    let mut pair = Pair::good();
    pair.server.unix.0 += 1800;
    assert!(answer(&mut pair, &packets).is_empty());
}

#[test]
fn our_own_first_packet_reflected_to_us_is_not_answered() {
    let mut pair = Pair::good();
    pair.dial();
    let packets = pair.client_flight();
    for packet in &packets {
        pair.client.receive(pair.server.address, packet);
    }
    assert_eq!(pair.client.connections.len(), 1, "our own dial and nothing else");
    assert_eq!(pair.client_flight(), Vec::<Vec<u8>>::new());
}

#[test]
fn a_replayed_first_packet_is_not_answered_by_a_server_that_has_ended_the_session() {
    let mut pair = Pair::good();
    pair.dial();
    let recorded = pair.client_flight();
    pair.deliver_to_server(&recorded);
    pair.settle();
    let now = pair.now;
    pair.client.connection().close(now, 0_u32.into(), "done".as_bytes().to_vec().into());
    pair.pass(Duration::from_secs(10));
    assert!(pair.server.connections.is_empty(), "the session is gone");
    assert!(answer(&mut pair, &recorded).is_empty());
    assert!(pair.server.connections.is_empty());
}

#[test]
fn a_replay_during_the_session_adds_nothing_to_it() {
    let mut pair = Pair::good();
    pair.dial();
    let recorded = pair.client_flight();
    pair.deliver_to_server(&recorded);
    pair.settle();
    pair.deliver_to_server(&recorded);
    assert_eq!(pair.server.connections.len(), 1);
    pair.client.write(b"still here");
    pair.settle();
    assert_eq!(pair.server.read_next().as_deref(), Some(&b"still here"[..]));
}

#[test]
fn a_replay_to_a_restarted_server_gets_no_session_and_no_repeated_key_stream() {
    let mut pair = Pair::good();
    pair.dial();
    let recorded = pair.client_flight();
    pair.deliver_to_server(&recorded);
    let first_answer = pair.server_flight();

    let mut restarted = Pair::new(Profile::alice(), Profile { seed: 77, ..Profile::bob() });
    let second_answer = answer(&mut restarted, &recorded);
    assert!(!restarted.server.is_established());
    assert!(!second_answer.is_empty(), "a server without memory answers once");
    assert_ne!(source_id(&first_answer[0]), source_id(&second_answer[0]), "Initial keys depend on it");
}

#[test]
fn the_original_dialer_cannot_be_moved_to_a_replayed_answer() {
    let mut pair = Pair::good();
    pair.dial();
    let recorded = pair.client_flight();
    let mut replica = Agent::new(Profile { seed: 77, ..Profile::bob() }, 3000, pair.now);
    replica.receive(pair.client.address, &recorded[0]);
    let foreign = replica.send();
    pair.deliver_to_server(&recorded);
    let own = pair.server_flight();
    pair.deliver_to_client(&own);
    pair.deliver_to_client(&foreign);
    pair.settle();
    assert!(pair.client.is_established() && pair.server.is_established());
}

#[test]
fn garbage_is_not_answered_whatever_its_first_byte() {
    let mut pair = Pair::good();
    let mut random = SeededRandom::from_seed([4; 32]);
    let garbage: Vec<Vec<u8>> = (0..=255_u8)
        .flat_map(|first| [19, 60, 1200].map(|length| (first, length)))
        .map(|(first, length)| {
            let mut bytes = vec![0; length];
            random.fill(&mut bytes);
            bytes[0] = first;
            bytes
        })
        .collect();
    assert!(answer(&mut pair, &garbage).is_empty());
}

#[test]
fn a_well_formed_initial_of_another_quic_version_is_not_answered() {
    let mut packets = first_packet_of(Profile::alice());
    for version in [1_u32, 0x0a0a_0a0a, QUIC_VERSION + 1, 0] {
        packets[0][1..5].copy_from_slice(&version.to_be_bytes());
        assert!(answer(&mut Pair::good(), &packets).is_empty(), "version {version:#x}");
    }
}

#[test]
fn every_truncation_of_a_first_packet_is_unanswered() {
    let packets = first_packet_of(Profile::alice());
    for length in (0..packets[0].len()).step_by(7) {
        let mut pair = Pair::good();
        pair.deliver_to_server(&[packets[0][..length].to_vec()]);
        assert!(pair.server_flight().is_empty(), "cut at {length}");
    }
}

#[test]
fn every_changed_byte_of_a_first_packet_makes_it_unanswered() {
    let packets = first_packet_of(Profile::alice());
    for position in (0..packets[0].len()).step_by(3) {
        let mut pair = Pair::good();
        let mut changed = packets[0].clone();
        changed[position] ^= 0x55;
        pair.deliver_to_server(&[changed]);
        assert!(pair.server_flight().is_empty(), "byte {position}");
    }
}

#[test]
fn short_packets_for_unknown_connections_are_dropped_by_the_ids_mac_alone() {
    let mut pair = Pair::good();
    let mut random = SeededRandom::from_seed([6; 32]);
    for _ in 0..50 {
        let mut packet: [u8; 100] = random.bytes();
        packet[0] = 0x40;
        pair.deliver_to_server(&[packet.to_vec()]);
    }
    assert_eq!(pair.server.dropped_replies, 0, "quinn-proto did not even prepare a stateless reset");
}

#[test]
fn without_a_valid_knock_the_endpoint_itself_prepares_no_reply_and_no_connection() {
    let mut pair = Pair::good();
    let stranger = Profile { secret: [9; 32], ..Profile::alice() };
    let packets = first_packet_of(stranger);
    let event = pair.server.endpoint.handle(
        pair.now,
        pair.client.address,
        None,
        None,
        packets[0].as_slice().into(),
        &mut Vec::new(),
    );
    assert!(!matches!(event, Some(DatagramEvent::NewConnection(_) | DatagramEvent::Response(_))));
}

#[test]
fn a_guessed_knock_is_worth_nothing() {
    let mut pair = Pair::good();
    let mut random = SeededRandom::from_seed([8; 32]);
    for _ in 0..200 {
        // The hint of a real knock, seen on the wire, with a guessed rest; the forger even holds the pair secret's keys.
        let mut guess = *pair.client.fresh_knock().as_bytes();
        random.fill(&mut guess[6..]);
        let mut forger = Pair::new(Profile { secret: SECRET, ..Profile::alice() }, Profile::bob());
        forger.client.dial_with(pair.server.address, Knock::from_bytes(&guess).expect("20 bytes"));
        let packets = forger.client_flight();
        pair.deliver_to_server(&packets);
    }
    assert!(pair.server_flight().is_empty());
}

fn source_id(packet: &[u8]) -> &[u8] {
    let destination = usize::from(packet[5]);
    let length = usize::from(packet[6 + destination]);
    &packet[7 + destination..][..length]
}
