//! Strangers, impostors and observers. The world itself fails a test at the first byte that reaches who may not hear it.

mod dialer;
mod visitor;

use peerage_engine::node::{DownReason, Event, StreamError};
use peerage_engine::noise::Pairing;
use peerage_model::{AgreementSecret, PairSecret};
use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Packet, Sim, SplitMix64, ms, secs};
use quinn_proto::Dir;

use self::dialer::Dialer;
use self::visitor::Visitor;

/// The bytes in front of the packet in a TO_ROUTE frame.
const ROUTE_HEADER: usize = 24;
/// The same in TO_ENDPOINT and FROM.
const ENDPOINT_HEADER: usize = 16;

/// The first packet with which `a` dialled `b`, as an observer of `a`'s line sees it.
fn first_packet_of_a(sim: &mut Sim) -> Packet {
    let tape = sim.record();
    sim.trust("a", "b");
    let up = sim.run_until(secs(10), |sim| sim.both_up("a", "b"));
    assert!(up.is_some(), "a session comes up by itself");
    let (to, own) = (sim.id("b").routing_id(), sim.public_address("a"));
    let dials = tape.only(|p| p.is_first_contact() && p.from.ip() == own.ip() && p.bytes[8..24] == to.0);
    dials.first().expect("a dialled b").clone()
}

/// `a` and `b` behind home routers, with a session, as soon as it is up.
fn pair_in_session(seed: u64) -> Sim {
    let mut sim = Sim::seeded_pair(seed, NatKind::home_router(), NatKind::home_router());
    let up = sim.run_until(secs(10), |sim| sim.both_up("a", "b"));
    assert!(up.is_some(), "a session comes up by itself");
    sim
}

/// How often a session came up at an agent.
fn sessions_seen(sim: &Sim, label: &str) -> usize {
    sim.events(label).iter().filter(|(_, event)| matches!(event, Event::SessionUp { .. })).count()
}

fn saw_session(sim: &Sim, label: &str) -> bool {
    sessions_seen(sim, label) > 0
}

/// Two agents that are bound at their relays and know nothing of each other.
fn quiet_pair() -> Sim {
    let mut sim = Sim::strangers(1, NatKind::home_router(), NatKind::home_router());
    sim.run_for(secs(2));
    sim
}

#[test]
#[should_panic(expected = "a byte by relay")]
fn the_world_notices_an_agent_that_answers_who_it_does_not_trust() {
    let mut sim = quiet_pair();
    sim.trust("a", "b");
    sim.run_for(ms(1));
    sim.revoke("b", "a");
    // The same node again, but its owner's word is that it trusts nobody.
    let mut character = sim.character("b");
    sim.declare("b", "a");
    character.snapshot = sim.character("b").snapshot;
    sim.kill("b");
    sim.revoke("b", "a");
    sim.run_for(secs(10));
    sim.add_character("m", "b", NatKind::none(), character);
    sim.run_for(secs(10));
}

#[test]
fn a_stolen_passport_without_its_key_opens_nothing() {
    let mut sim = quiet_pair();
    sim.trust("a", "b");
    let mut thief = sim.character("b");
    sim.kill("b");
    sim.run_for(secs(200));
    let before = sessions_seen(&sim, "a");
    thief.instance = AgreementSecret::from_bytes([66; 32]);
    thief.snapshot.relays.clear();
    sim.add_character("m", "b", NatKind::none(), thief);
    let stream = sim.request("m", "a", b"let me in");
    sim.run_for(secs(60));
    assert_eq!(sessions_seen(&sim, "a"), before, "the thief was taken for the agent");
    assert_eq!(sim.far_outcome(stream), None, "the thief's words arrived");
}

#[test]
fn a_routing_id_can_only_be_bound_with_its_key() {
    let mut sim = quiet_pair();
    let mut thief = sim.character("b");
    thief.instance = AgreementSecret::from_bytes([66; 32]);
    sim.add_character("m", "b", NatKind::none(), thief);
    sim.run_for(secs(10));
    assert!(!sim.saw("m", |e| matches!(e, Event::RelayUp { .. })), "the relay took the thief");
    sim.trust("a", "b");
    let up = sim.run_until(secs(10), |sim| sim.both_up("a", "b"));
    assert!(up.is_some(), "the real one is found");
    assert!(!saw_session(&sim, "m"));
}

#[test]
fn a_session_ends_on_both_sides_when_a_passport_does() {
    let mut sim = Sim::strangers(1, NatKind::home_router(), NatKind::home_router());
    sim.passports_last("b", secs(60));
    sim.restart("b");
    sim.trust("a", "b");
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    let stream = sim.open("a", "b");
    sim.write(stream, b"hello");
    sim.run_for(secs(61));
    for (label, peer) in [("a", "b"), ("b", "a")] {
        assert!(sim.sessions(label, peer).is_empty(), "{label} still has a session");
        assert!(sim.saw(label, |e| matches!(e, Event::SessionDown { reason: DownReason::Expired, .. })), "{label}");
    }
    let expired = Outcome::Failed(StreamError::SessionEnded(DownReason::Expired));
    assert_eq!(sim.outcome(stream), &expired);
    sim.run_for(secs(120));
    assert!(sim.sessions("a", "b").is_empty(), "no new session on an ended passport");
}

#[test]
fn a_denied_instance_is_cut_off_and_its_successor_is_not() {
    let mut sim = pair_in_session(1);
    let stream = sim.open("a", "b");
    sim.write(stream, b"hello");
    sim.run_for(secs(1));
    let instance = sim.sessions("a", "b")[0].instance;
    sim.deny("a", "b", instance);
    sim.run_for(ms(100));
    assert_eq!(sim.outcome(stream), &Outcome::Failed(StreamError::SessionEnded(DownReason::Denied)));
    assert!(matches!(sim.far_outcome(stream), Some(Outcome::Failed(_))), "{:?}", sim.far_outcome(stream));
    sim.run_for(secs(30));
    assert!(sim.sessions("a", "b").is_empty(), "a denied instance came back");
    sim.restart("b");
    let up = sim.run_until(secs(10), |sim| sim.both_up("a", "b"));
    assert!(up.is_some(), "another instance of the same agent is welcome");
}

#[test]
fn revoking_resets_streams_on_both_sides_within_a_tenth_of_a_second() {
    for (revoker, other) in [("a", "b"), ("b", "a")] {
        let mut sim = pair_in_session(1);
        let stream = sim.open("a", "b");
        sim.write(stream, b"hello");
        sim.run_for(secs(2));
        sim.revoke(revoker, other);
        sim.run_for(ms(100));
        let down = |reason| Outcome::Failed(StreamError::SessionEnded(reason));
        let (near, far) = match revoker {
            "a" => (DownReason::RevokedHere, DownReason::RevokedByPeer),
            _ => (DownReason::RevokedByPeer, DownReason::RevokedHere),
        };
        assert_eq!((sim.outcome(stream), sim.far_outcome(stream)), (&down(near), Some(&down(far))));
        sim.run_for(secs(120));
        assert!(sim.sessions("a", "b").is_empty() && sim.sessions("b", "a").is_empty());
    }
}

#[test]
fn a_copied_knock_in_front_of_anything_else_is_not_answered() {
    let mut sim = quiet_pair();
    let packet = first_packet_of_a(&mut sim);
    let mut visitor = Visitor::arrive(&mut sim, "r1");
    let mut forged = packet.bytes[ROUTE_HEADER..].to_vec();
    let mut rng = SplitMix64::new(5);
    forged[6 + 20 + 10..].fill_with(|| rng.next().to_be_bytes()[0]);
    for _ in 0..5 {
        visitor.send(&mut sim, "b", &forged);
        sim.run_for(ms(500));
    }
    assert_eq!(visitor.answers(&sim), []);
}

#[test]
fn a_first_packet_shown_again_to_the_same_agent_is_not_answered() {
    let mut sim = quiet_pair();
    let packet = first_packet_of_a(&mut sim);
    for relay in ["r1", "r2"] {
        let mut visitor = Visitor::arrive(&mut sim, relay);
        for _ in 0..5 {
            visitor.send(&mut sim, "b", &packet.bytes[ROUTE_HEADER..]);
            sim.run_for(ms(500));
        }
        assert_eq!(visitor.answers(&sim), []);
    }
    let relays = sim.relay_addresses();
    let stranger = sim.add_stranger();
    for to in relays {
        // Also with the sender's own address on it, as only somebody on the way can.
        sim.replay(&packet, packet.from, to);
        sim.replay(&packet, stranger, to);
    }
    sim.run_for(secs(5));
    assert_eq!(sim.sessions("b", "a").len(), 1, "no second session");
}

#[test]
fn a_first_packet_sent_back_to_its_maker_is_not_answered() {
    let mut sim = quiet_pair();
    let packet = first_packet_of_a(&mut sim);
    let mut visitor = Visitor::arrive(&mut sim, "r1");
    visitor.send(&mut sim, "a", &packet.bytes[ROUTE_HEADER..]);
    sim.run_for(secs(2));
    assert_eq!(visitor.answers(&sim), []);
}

#[test]
fn a_restarted_agent_answers_a_recorded_first_packet_uselessly() {
    let mut sim = quiet_pair();
    let packet = first_packet_of_a(&mut sim);
    sim.kill("a");
    sim.restart("b");
    // The relay forgets the instance that is gone after 90 s; the knock is good for ten minutes.
    sim.run_for(secs(100));
    let mut visitor = Visitor::arrive(&mut sim, "r1");
    // docs/spec/handshake.md section 6: answered by who does not remember the knock, and no further.
    sim.may_answer("b", visitor.address);
    visitor.send(&mut sim, "b", &packet.bytes[ROUTE_HEADER..]);
    sim.run_for(secs(20));
    let first = visitor.answers(&sim).len();
    assert!(first > 0, "the spec says that it is answered, so the packet did not arrive");
    assert!(!saw_session(&sim, "b"), "a replayed first packet made a session");
    visitor.send(&mut sim, "b", &packet.bytes[ROUTE_HEADER..]);
    sim.run_for(secs(20));
    assert_eq!(visitor.answers(&sim).len(), first, "answered more than once");
    assert!(!saw_session(&sim, "b"));
}

#[test]
fn a_second_replica_makes_no_session_of_a_first_packet_that_was_not_for_it() {
    let mut sim = quiet_pair();
    sim.add_replica("b#2", "b", NatKind::full_cone());
    sim.run_for(secs(2));
    let packet = first_packet_of_a(&mut sim);
    let sessions = |sim: &Sim| sessions_seen(sim, "b") + sessions_seen(sim, "b#2");
    sim.run_for(secs(5));
    let before = sessions(&sim);
    let mut answers = 0;
    // Which replica a relay picks depends on who asks, so many ask.
    for _ in 0..6 {
        let mut visitor = Visitor::arrive(&mut sim, "r1");
        sim.may_answer("b", visitor.address);
        visitor.send(&mut sim, "b", &packet.bytes[ROUTE_HEADER..]);
        sim.run_for(secs(12));
        answers += visitor.answers(&sim).len();
    }
    assert!(answers > 0, "no packet reached the other replica");
    assert_eq!(sessions(&sim), before);
}

#[test]
fn what_an_observer_recorded_teaches_nobody_a_path_to_him() {
    let mut sim = pair_in_session(1);
    let tape = sim.record();
    let stream = sim.open("a", "b");
    sim.write(stream, &[1; 20_000]);
    sim.run_for(secs(3));
    assert!(sim.both_direct("a", "b"));
    let stranger = sim.add_stranger();
    for packet in tape.only(Packet::is_direct) {
        // To the receiver, and back to the sender, from the observer's own address.
        sim.replay(&packet, stranger, packet.to);
        sim.replay(&packet, stranger, packet.from);
    }
    sim.run_for(secs(5));
    sim.finish(stream);
    sim.run_for(secs(2));
    assert_eq!(sim.received_by(stranger), []);
    assert_eq!(sim.outcome(stream), &Outcome::Finished);
}

#[test]
fn floods_of_garbage_are_not_answered_and_do_not_end_a_session() {
    let mut sim = Sim::pair(NatKind::none(), NatKind::full_cone());
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    let mut visitor = Visitor::arrive(&mut sim, "r1");
    let stream = sim.open("a", "b");
    let targets = [sim.address("a"), sim.public_address("b")];
    let mut rng = SplitMix64::new(9);
    for round in 0..200 {
        for first in [0_u8, 1, 4, 5, 16, 64, 0xc0, 0xff] {
            let length = 1 + rng.below(1_400);
            let mut bytes: Vec<u8> = (0..length).map(|_| rng.next().to_be_bytes()[0]).collect();
            bytes[0] = first;
            for to in targets {
                sim.inject(visitor.address, to, &bytes);
                // As if it came from a relay, or from the peer.
                sim.inject(sim.relay_address("r1"), to, &bytes);
                sim.inject(targets[0], targets[1], &bytes);
            }
            if first >= 64 && round % 10 == 0 {
                visitor.send(&mut sim, "b", &bytes);
            }
        }
        sim.write(stream, &[3; 100]);
        sim.run_for(ms(20));
    }
    sim.finish(stream);
    sim.run_for(secs(3));
    assert_eq!(sim.outcome(stream), &Outcome::Finished);
    assert_eq!(visitor.answers(&sim), []);
}

#[test]
fn oversized_frames_are_dropped() {
    let mut sim = pair_in_session(1);
    sim.block_direct(true);
    sim.run_for(secs(3));
    // A relay that makes what it passes on as large as UDP can carry, and then no larger than it was.
    let mut count = 0;
    sim.tamper(move |packet| {
        count += 1;
        let mut large = packet.clone();
        if packet.bytes.starts_with(&[4, 14]) {
            let length = [9_000, 65_000][count % 2];
            large.bytes.resize(length, 0x41);
        }
        vec![(ms(0), large), (ms(1), packet)]
    });
    let stream = sim.request("a", "b", &[5; 30_000]);
    sim.run_for(secs(10));
    assert_eq!(sim.outcome(stream), &Outcome::Finished);
}

#[test]
fn a_peer_that_gives_its_secrets_away_lets_nobody_in_under_another_name() {
    let mut sim = quiet_pair();
    sim.add_agent("c", NatKind::none());
    sim.trust("a", "c");
    sim.run_for(secs(5));
    // `c` gives `b`, whom `a` does not know, all it has but its key.
    let mut friend = sim.character("b");
    friend.snapshot = sim.character("c").snapshot;
    friend.agent = sim.id("c");
    friend.snapshot.relays.clear();
    sim.kill("c");
    sim.run_for(secs(150));
    let before = sessions_seen(&sim, "a");
    sim.add_character("m", "c", NatKind::none(), friend);
    let stream = sim.request("m", "a", b"I am c, believe me");
    sim.run_for(secs(30));
    assert_eq!(sessions_seen(&sim, "a"), before, "the friend was taken for the peer");
    assert_eq!(sim.far_outcome(stream), None, "the friend's words arrived");
}

/// A pair whose packets all go through relays that do this to what they pass on, for ten seconds of traffic.
fn with_lying_relays(mut lie: impl FnMut(Packet) -> Vec<(std::time::Duration, Packet)> + 'static) -> Sim {
    let mut sim = pair_in_session(3);
    sim.block_direct(true);
    sim.run_for(secs(3));
    let honest: Vec<_> = (0..5).map(|_| sim.open("a", "b")).collect();
    sim.tamper(move |packet| match packet.bytes.starts_with(&[4, 14]) {
        true => lie(packet),
        false => vec![(ms(0), packet)],
    });
    for round in 0..20 {
        honest.iter().for_each(|stream| sim.write(*stream, &[round; 2_000]));
        sim.run_for(ms(500));
    }
    sim.stop_tampering();
    honest.iter().for_each(|stream| sim.finish(*stream));
    sim.run_for(secs(60));
    for stream in honest {
        // That what was read is what was written, the world has checked all along.
        assert_ne!(sim.outcome(stream), &Outcome::Open, "a stream hangs");
    }
    let after = sim.request("a", "b", b"and now?");
    sim.run_for(secs(10));
    assert_eq!(sim.returned(after), b"and now?", "an honest relay is enough again");
    sim
}

#[test]
fn a_relay_that_drops_every_third_packet_only_costs_time() {
    let mut count = 0;
    with_lying_relays(move |packet| {
        count += 1;
        if count % 3 == 0 { Vec::new() } else { vec![(ms(0), packet)] }
    });
}

#[test]
fn a_relay_that_repeats_everything_changes_nothing() {
    with_lying_relays(|packet| vec![(ms(0), packet.clone()), (ms(1), packet.clone()), (secs(2), packet)]);
}

#[test]
fn a_relay_that_reorders_everything_only_costs_time() {
    let mut rng = SplitMix64::new(4);
    with_lying_relays(move |packet| vec![(ms(rng.below(120)), packet)]);
}

#[test]
fn a_relay_that_swaps_the_contents_of_frames_is_not_believed() {
    let mut kept: Option<Packet> = None;
    with_lying_relays(move |packet| {
        let Some(mut former) = kept.take() else {
            kept = Some(packet);
            return Vec::new();
        };
        let mut packet = packet;
        let (one, other) = (former.bytes.split_off(ENDPOINT_HEADER), packet.bytes.split_off(ENDPOINT_HEADER));
        former.bytes.extend(other);
        packet.bytes.extend(one);
        vec![(ms(0), former), (ms(0), packet)]
    });
}

#[test]
fn a_relay_that_invents_packets_is_not_believed() {
    let mut rng = SplitMix64::new(8);
    with_lying_relays(move |packet| {
        let mut flipped = packet.clone();
        let at = ENDPOINT_HEADER + usize::try_from(rng.below(flipped.bytes.len() as u64 - 16)).expect("a length");
        flipped.bytes[at] ^= 1 << rng.below(8);
        let mut invented = packet.clone();
        invented.bytes[ENDPOINT_HEADER + 9..].fill_with(|| rng.next().to_be_bytes()[0]);
        let mut from_nobody = packet.clone();
        from_nobody.bytes[8..ENDPOINT_HEADER].fill_with(|| rng.next().to_be_bytes()[0]);
        vec![(ms(0), flipped), (ms(0), invented), (ms(0), from_nobody), (ms(0), packet)]
    });
}

/// Who holds a ticket of `b`, and keeps no rule.
fn ticket_holder(sim: &mut Sim) -> Dialer {
    let ticket = sim.invite("b", secs(3600));
    let inviter = ticket.inviter();
    let secret = PairSecret::of_invite(ticket.secret.expose(), &inviter);
    let pairing = Pairing::new(&[secret], b"", &inviter.binding()).expect("short ids");
    let character = sim.character("a");
    Dialer::arrive(sim, &character, "b", pairing)
}

#[test]
fn a_ticket_opens_four_sessions_that_take_one_stream_and_end_by_themselves() {
    let mut sim = quiet_pair();
    let mut dialer = ticket_holder(&mut sim);
    for _ in 0..12 {
        dialer.dial(&mut sim);
        dialer.live(&mut sim, ms(300));
    }
    let mut open = dialer.open();
    assert_eq!(open.len(), 4);
    for connection in &mut open {
        assert!(connection.streams().open(Dir::Bi).is_some(), "for the request");
        assert_eq!(connection.streams().open(Dir::Bi), None);
        assert_eq!(connection.streams().open(Dir::Uni), None);
        assert_eq!(connection.datagrams().max_size(), None);
    }
    dialer.live(&mut sim, secs(25));
    assert!(dialer.open().is_empty());
    dialer.dial(&mut sim);
    dialer.live(&mut sim, secs(1));
    assert_eq!(dialer.open().len(), 1, "there is room again");
}

#[test]
fn an_invitation_that_is_closed_ends_the_sessions_of_those_who_have_not_asked() {
    let mut sim = quiet_pair();
    let mut dialer = ticket_holder(&mut sim);
    dialer.dial(&mut sim);
    dialer.live(&mut sim, ms(300));
    assert_eq!(dialer.open().len(), 1);
    sim.close_invites("b");
    dialer.live(&mut sim, ms(300));
    assert!(dialer.open().is_empty());
}

/// Who is trusted by `b`, as `a` is, and keeps no rule.
fn trusted_dialer(sim: &mut Sim) -> Dialer {
    sim.trust("a", "b");
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("a session");
    let character = sim.character("a");
    let secrets = character.snapshot.peers[0].secrets.clone();
    let pairing = Pairing::new(&secrets, &sim.id("a").binding(), &sim.id("b").binding()).expect("short ids");
    Dialer::arrive(sim, &character, "b", pairing)
}

#[test]
fn a_stream_that_does_not_say_what_it_is_for_is_reset_after_ten_seconds() {
    let mut sim = quiet_pair();
    let mut dialer = trusted_dialer(&mut sim);
    dialer.dial(&mut sim);
    dialer.live(&mut sim, ms(300));
    let [connection] = &mut dialer.open()[..] else { panic!("one session") };
    let half = connection.streams().open(Dir::Bi).expect("streams may be opened");
    connection.send_stream(half).write(&[1, 1]).expect("there is room");
    dialer.live(&mut sim, secs(9));
    let [connection] = &mut dialer.open()[..] else { panic!("the session goes on") };
    assert_eq!(connection.send_stream(half).stopped(), Ok(None), "it has its time");
    dialer.live(&mut sim, secs(2));
    let [connection] = &mut dialer.open()[..] else { panic!("the session goes on") };
    assert_eq!(connection.send_stream(half).stopped(), Ok(Some(0_u32.into())));
}

#[test]
fn knocks_with_nothing_behind_them_take_no_place_from_who_dials() {
    let mut sim = quiet_pair();
    let mut dialer = trusted_dialer(&mut sim);
    for _ in 0..20 {
        dialer.knock_only(&mut sim);
    }
    dialer.live(&mut sim, ms(300));
    dialer.dial(&mut sim);
    dialer.live(&mut sim, ms(300));
    assert_eq!(dialer.open().len(), 1);
}
