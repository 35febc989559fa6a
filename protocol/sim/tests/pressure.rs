//! What wears a session out: full windows, thousands of short streams, relay lists that change, clocks and passports
//! from elsewhere.

use std::time::Duration;

use peerage_engine::node::{DEFAULT_MEMORY, Event, StreamError};
use peerage_model::stream::StreamStatus;
use peerage_sim::link::{Bottleneck, LinkConfig};
use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Sim, ms, secs};

/// More than the streams that a peer may have open at a time.
const MANY: usize = 700;

fn direct_pair() -> Sim {
    let mut sim = Sim::seeded_pair(1, NatKind::home_router(), NatKind::home_router());
    sim.run_until(secs(10), |sim| sim.both_direct("a", "b")).expect("home routers are punched");
    sim
}

fn slow_line() -> LinkConfig {
    let bottleneck = Some(Bottleneck { bits_per_second: 10_000_000, queue_bytes: 100_000 });
    LinkConfig { delay: ms(20), bottleneck, ..LinkConfig::default() }
}

/// Three streams that fill the send window of `from`.
fn upload(sim: &mut Sim, from: &str, to: &str) {
    sim.set_line(from, &slow_line());
    for _ in 0..3 {
        let bulk = sim.open(from, to);
        sim.write(bulk, &vec![7; 12 << 20]);
    }
    sim.run_for(secs(1));
}

#[test]
fn a_request_goes_through_while_the_same_side_uploads_all_it_can() {
    let mut sim = direct_pair();
    upload(&mut sim, "a", "b");
    let request = sim.request("a", "b", b"hello");
    sim.run_for(secs(5));
    assert_eq!((sim.outcome(request), sim.returned(request)), (&Outcome::Finished, &b"hello"[..]));
}

#[test]
fn a_request_is_answered_while_the_other_side_uploads_all_it_can() {
    let mut sim = direct_pair();
    upload(&mut sim, "b", "a");
    let request = sim.request("a", "b", b"hello");
    sim.run_for(secs(5));
    assert_eq!((sim.outcome(request), sim.returned(request)), (&Outcome::Finished, &b"hello"[..]));
}

#[test]
fn a_request_overtakes_what_waits_to_be_uploaded() {
    let mut sim = direct_pair();
    upload(&mut sim, "a", "b");
    sim.run_for(secs(3));
    let asked = sim.elapsed();
    let request = sim.request("a", "b", &[7; 4000]);
    sim.run_for(secs(5));
    let reached = sim.time_to_server(request).expect("it went through");
    // Four megabytes wait, which are three seconds of this line; a window of it is queued in front of the line, and that is all.
    assert!(reached < ms(400), "after {reached:?}, asked at {asked:?}");
}

#[test]
fn uploads_that_began_before_there_was_a_session_end_although_together_they_fill_its_window() {
    let mut sim = Sim::strangers(1, NatKind::home_router(), NatKind::home_router());
    sim.trust("a", "b");
    let data = vec![7; 70 << 10];
    let uploads: Vec<_> = (0..90)
        .map(|_| {
            let upload = sim.open("a", "b");
            sim.write(upload, &data);
            sim.finish(upload);
            upload
        })
        .collect();
    sim.run_for(secs(60));
    let whole = uploads.iter().filter(|upload| sim.delivered(**upload) == data).count();
    assert_eq!(whole, uploads.len());
}

#[test]
fn uploads_that_wait_for_the_same_line_share_it_evenly() {
    let mut sim = direct_pair();
    sim.set_line("a", &slow_line());
    let uploads = [(); 4].map(|()| {
        let bulk = sim.open("a", "b");
        sim.write(bulk, &vec![7; 12 << 20]);
        bulk
    });
    sim.run_for(secs(20));
    let arrived = uploads.map(|bulk| sim.delivered(bulk).len());
    let (least, most) = (arrived.iter().min().expect("four"), arrived.iter().max().expect("four"));
    assert!(*most < least + least / 4, "{arrived:?}");
}

#[test]
fn streams_that_are_dropped_before_their_header_could_go_owe_nothing() {
    let mut sim = direct_pair();
    sim.stop("b");
    for _ in 0..5 {
        let bulk = sim.open("a", "b");
        sim.write(bulk, &vec![7; 8 << 20]);
    }
    sim.open("a", "b");
    let node = format!("{:?}", sim.node("a"));
    assert!(!node.contains("owed: 0,"), "the window is full: {node}");
    for _ in 0..10 {
        sim.open_and_drop("a", "b", 80);
    }
    assert_eq!(format!("{:?}", sim.node("a")), node);
}

#[test]
fn refused_streams_leave_nothing_behind() {
    let mut sim = direct_pair();
    for _ in 0..MANY {
        sim.open_port("a", "b", 81);
        sim.run_for(ms(60));
    }
    sim.run_for(secs(1));
    assert_eq!(sim.sessions("a", "b")[0].streams, 0);
    let request = sim.request("a", "b", b"hello");
    sim.run_for(secs(3));
    assert_eq!(sim.outcome(request), &Outcome::Finished);
}

#[test]
fn streams_that_are_dropped_at_once_leave_nothing_behind() {
    let mut sim = direct_pair();
    for _ in 0..MANY {
        sim.open_and_drop("a", "b", 80);
        sim.run_for(ms(60));
    }
    let request = sim.request("a", "b", b"hello");
    sim.run_for(secs(3));
    assert_eq!(sim.outcome(request), &Outcome::Finished);
}

#[test]
fn streams_that_are_opened_all_at_once_wait_for_the_peer_to_make_room() {
    let mut sim = direct_pair();
    let burst: Vec<_> = (0..300).map(|_| sim.request("a", "b", b"hello")).collect();
    sim.run_for(secs(3));
    assert!(burst.iter().all(|request| sim.outcome(*request) == &Outcome::Finished));
}

#[test]
fn of_more_streams_than_a_peer_may_have_the_rest_is_told_so() {
    let mut sim = direct_pair();
    let streams: Vec<_> = (0..MANY).map(|_| sim.open("a", "b")).collect();
    sim.run_for(secs(3));
    let (open, rest): (Vec<_>, Vec<_>) = streams.into_iter().partition(|id| sim.outcome(*id) == &Outcome::Open);
    let busy = Outcome::Failed(StreamError::Refused(StreamStatus::Busy));
    assert_eq!((open.len(), rest.into_iter().all(|id| sim.outcome(id) == &busy)), (512, true));
}

#[test]
fn a_passport_that_ends_after_all_time_is_no_harm() {
    let mut sim = Sim::strangers(1, NatKind::home_router(), NatKind::home_router());
    sim.passports_last("b", Duration::from_secs(u64::MAX));
    sim.restart("b");
    sim.trust("a", "b");
    sim.run_for(secs(10));
    assert!(sim.both_up("a", "b"));
}

#[test]
fn a_direct_session_can_come_back_to_a_relay_it_has_not_used_for_long() {
    let mut sim = Sim::new(5);
    sim.add_relay("r1");
    sim.add_relay("r2");
    sim.add_agent("a", NatKind::home_router());
    sim.add_agent("b", NatKind::home_router());
    let list = sim.relay_list();
    sim.set_relays("a", vec![list[0].clone()]);
    sim.set_relays("b", vec![list[1].clone()]);
    sim.run_for(secs(1));
    sim.trust("a", "b");
    sim.run_until(secs(30), |sim| sim.both_direct("a", "b")).expect("direct");
    let stream = sim.open("a", "b");
    sim.write(stream, &[1; 1000]);
    sim.run_for(secs(400));
    sim.block_direct(true);
    sim.write(stream, &[2; 1000]);
    sim.run_for(secs(20));
    assert_eq!((sim.outcome(stream), sim.returned(stream).len()), (&Outcome::Open, 2000));
}

#[test]
fn another_relay_in_the_list_leaves_relayed_streams_alone() {
    let mut sim = Sim::new(5);
    sim.add_relay("r1");
    sim.add_relay("r2");
    sim.add_agent("a", NatKind::symmetric_random());
    sim.add_agent("b", NatKind::symmetric_random());
    let list = sim.relay_list();
    sim.set_relays("a", vec![list[0].clone()]);
    sim.set_relays("b", vec![list[0].clone()]);
    sim.run_for(secs(1));
    sim.trust("a", "b");
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("up");
    let stream = sim.open("a", "b");
    sim.write(stream, &[1; 1000]);
    sim.run_for(secs(10));
    sim.set_relays("a", list);
    sim.run_for(secs(1));
    sim.write(stream, &[1; 1000]);
    sim.run_for(secs(30));
    assert_eq!(sim.returned(stream).len(), 2000);
}

#[test]
fn a_stream_that_was_opened_during_an_outage_goes_on_after_it() {
    for outage in (4..14).map(secs) {
        let mut sim = direct_pair();
        let warm = sim.open("a", "b");
        sim.write(warm, b"x");
        sim.run_for(secs(2));
        sim.cut_off("a", true);
        sim.write(warm, b"y");
        sim.run_for(secs(3));
        let request = sim.request("a", "b", b"hello");
        sim.run_for(outage - secs(3));
        sim.cut_off("a", false);
        sim.run_for(secs(18));
        assert_eq!(sim.outcome(request), &Outcome::Finished, "after an outage of {outage:?}");
    }
}

#[test]
fn a_request_for_trust_to_somebody_who_dies_gets_an_end() {
    let mut sim = Sim::strangers(1, NatKind::home_router(), NatKind::home_router());
    let ticket = sim.invite("b", secs(36_000));
    sim.holds_ticket("a", "b");
    sim.run_for(secs(3));
    sim.ask("a", &ticket, "why");
    sim.run_until(secs(4), |sim| sim.saw("b", |e| matches!(e, Event::TrustRequested { .. }))).expect("it arrives");
    sim.kill("b");
    let ended = sim.run_until(secs(30), |sim| sim.saw("a", |e| matches!(e, Event::Asked { .. })));
    assert!(ended.is_some(), "whoever asked is told");
}

#[test]
fn a_peer_that_dials_without_end_is_answered_ten_times_a_second_and_comes_through_when_it_behaves() {
    let mut sim = direct_pair();
    let before = sim.events("b").len();
    let replicas: Vec<String> = (0..20).map(|number| format!("a{number}")).collect();
    replicas.iter().for_each(|replica| sim.add_replica(replica, "a", NatKind::none()));
    for _ in 0..12 {
        sim.run_for(ms(400));
        replicas.iter().for_each(|replica| sim.restart(replica));
    }
    let events = &sim.events("b")[before..];
    let taken = events.iter().filter(|(_, event)| matches!(event, Event::SessionUp { .. })).count();
    assert!((64..=64 + 50).contains(&taken), "of 240 in 5 s it took {taken}");
    sim.run_until(secs(5), |sim| sim.both_up("a", "b")).expect("one that stays is answered");
}

#[test]
fn a_machine_that_slept_past_its_passport_has_no_session_when_it_wakes() {
    let mut sim = direct_pair();
    sim.set_clock("a", 25 * 3600);
    sim.set_clock("b", 25 * 3600);
    sim.run_for(secs(150));
    assert!(sim.sessions("a", "b").is_empty() && sim.sessions("b", "a").is_empty());
}

#[test]
fn a_relay_key_that_a_peer_made_up_does_not_keep_us_from_our_relay() {
    let mut sim = Sim::new(5);
    sim.add_agent("a", NatKind::home_router());
    sim.add_agent("b", NatKind::home_router());
    sim.add_relay("r1");
    let list = sim.relay_list();
    let mut stale = list[0].clone();
    stale.key.0[0] ^= 1;
    sim.set_relays("b", vec![stale]);
    sim.run_for(secs(1));
    sim.trust("a", "b");
    sim.run_for(secs(20));
    let before = sim.events("a").len();
    sim.set_relays("a", list);
    sim.run_for(secs(5));
    assert!(sim.events("a")[before..].iter().any(|(_, e)| matches!(e, Event::RelayUp { .. })));
}

#[test]
fn a_relay_whose_key_its_owner_corrects_is_used_at_once() {
    let mut sim = Sim::new(6);
    sim.add_agent("a", NatKind::home_router());
    sim.add_relay("r1");
    let list = sim.relay_list();
    let mut wrong = list[0].clone();
    wrong.key.0[0] ^= 1;
    sim.set_relays("a", vec![wrong]);
    sim.run_for(secs(5));
    assert!(!sim.saw("a", |e| matches!(e, Event::RelayUp { .. })));
    sim.set_relays("a", list);
    sim.run_for(secs(1));
    assert!(sim.saw("a", |e| matches!(e, Event::RelayUp { .. })));
}

/// Datagrams in one batch of the simulator's driver.
const BATCH: usize = 10;

#[test]
fn a_request_to_one_peer_does_not_wait_behind_the_upload_to_another() {
    let mut sim = Sim::new(1);
    sim.add_relay("r1");
    for name in ["a", "b", "c"] {
        sim.add_agent(name, NatKind::home_router());
    }
    // The upload's session is the older one.
    for peer in ["b", "c"] {
        sim.trust("a", peer);
        sim.run_until(secs(10), |sim| sim.both_direct("a", peer)).expect("home routers are punched");
    }
    let bulk = sim.open("a", "b");
    sim.write(bulk, &vec![7; 1 << 20]);
    sim.run_for(secs(1));
    sim.hold_back("a", true);
    sim.write(bulk, &vec![7; 1 << 20]);
    sim.run_for(ms(200));
    let request = sim.request("a", "c", b"hello");
    let (tape, own, to_c) = (sim.record(), sim.public_address("a"), sim.public_address("c"));
    sim.hold_back("a", false);
    sim.run_for(secs(1));
    let sent = tape.only(|p| p.from.ip() == own.ip());
    let before = sent.iter().position(|p| p.to.ip() == to_c.ip()).expect("the request went");
    assert!(sent.len() > 10 * BATCH, "{} datagrams are no upload", sent.len());
    assert!(before <= BATCH, "{before} datagrams went first");
    assert_eq!(sim.outcome(request), &Outcome::Finished);
}

#[test]
fn peers_whose_words_nobody_reads_fill_no_more_memory_than_the_owner_allows() {
    const ALLOWED: u64 = 12 << 20;
    let mut sim = Sim::new(1);
    sim.add_relay("r1");
    sim.limit_memory(ALLOWED);
    sim.add_agent("hub", NatKind::none());
    sim.limit_memory(DEFAULT_MEMORY);
    let peers: Vec<_> = (0..8).map(|n| format!("p{n}")).collect();
    for peer in &peers {
        sim.add_agent(peer, NatKind::none());
        sim.trust("hub", peer);
        sim.run_until(secs(10), |sim| sim.both_direct("hub", peer)).expect("nothing is between them");
    }
    sim.programs_hang("hub");
    let (tape, hub) = (sim.record(), sim.address("hub"));
    for peer in &peers {
        for _ in 0..3 {
            let bulk = sim.open(peer, "hub");
            sim.write(bulk, &vec![7; 2 << 20]);
        }
    }
    sim.run_for(secs(10));
    let arrived: usize = tape.only(|p| p.to == hub).iter().map(|p| p.bytes.len()).sum();
    assert!(u64::try_from(arrived).is_ok_and(|arrived| arrived < ALLOWED), "{arrived} bytes");
}

#[test]
fn peers_see_how_far_their_clocks_are_apart() {
    let mut sim = Sim::strangers(1, NatKind::home_router(), NatKind::home_router());
    sim.set_clock("b", 120);
    sim.trust("a", "b");
    sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("two minutes are no obstacle");
    sim.run_for(secs(1));
    let seen = |label, peer| sim.sessions(label, peer)[0].clock_ahead;
    assert_eq!((seen("a", "b"), seen("b", "a")), (Some(120), Some(-120)));
}
