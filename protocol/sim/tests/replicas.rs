//! Several instances of one agent: connections are spread over them, and whoever asks does not notice which come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use peerage_engine::node::StreamError;
use peerage_model::stream::StreamStatus;
use peerage_sim::nat::NatKind;
use peerage_sim::{Origin, Outcome, Sim, StreamId, ms, secs};

const REPLICAS: [&str; 3] = ["b", "b#2", "b#3"];

/// `a` behind a home router, and three instances of `b`, each in a network of its own, that it has heard of.
fn three_replicas(seed: u64) -> Sim {
    let mut sim = Sim::seeded_pair(seed, NatKind::home_router(), NatKind::home_router());
    for replica in &REPLICAS[1..] {
        sim.add_replica(replica, "b", NatKind::home_router());
    }
    meets_all(&mut sim, "a", 3);
    sim
}

/// Waits until `who` has a session with so many instances of `b`.
fn meets_all(sim: &mut Sim, who: &str, count: usize) {
    let met = sim.run_until(secs(20), |sim| instances(sim, who) == count);
    assert!(met.is_some(), "{who} has sessions with {} of {count} instances", instances(sim, who));
    // Each end has shown that it takes the other.
    sim.run_for(secs(1));
}

fn instances(sim: &Sim, who: &str) -> usize {
    sim.sessions(who, "b").iter().map(|session| session.instance).collect::<BTreeSet<_>>().len()
}

/// One request after the other, as a client does that waits for each answer, with a pause in between.
fn ask(sim: &mut Sim, who: &str, count: usize, pause: Duration) -> Vec<StreamId> {
    (0..count)
        .map(|_| {
            let request = sim.request(who, "b", b"who is there?");
            sim.run_until(secs(5), |sim| sim.outcome(request) != &Outcome::Open);
            sim.run_for(pause);
            request
        })
        .collect()
}

fn assert_answered(sim: &Sim, seed: u64, requests: &[StreamId]) {
    for (number, request) in requests.iter().enumerate() {
        assert_eq!(sim.outcome(*request), &Outcome::Finished, "seed {seed}, request {number}, {:#?}", sim.trace().0);
    }
}

fn shares(sim: &Sim, requests: &[StreamId]) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for taken_by in requests.iter().filter_map(|request| sim.taken_by(*request)) {
        *shares.entry(taken_by.to_owned()).or_default() += 1;
    }
    shares
}

fn assert_even(shares: &BTreeMap<String, usize>, seed: u64) {
    let total: usize = shares.values().sum();
    assert_eq!(shares.len(), 3, "seed {seed}: {shares:?}");
    assert!(shares.values().all(|share| (total / 5..=total / 2).contains(share)), "seed {seed}: {shares:?}");
}

#[test]
fn connections_of_one_client_that_follow_each_other_are_spread_over_all_replicas() {
    for seed in 0..5 {
        let mut sim = three_replicas(seed);
        let requests = ask(&mut sim, "a", 300, ms(10));
        assert_answered(&sim, seed, &requests);
        assert_even(&shares(&sim, &requests), seed);
    }
}

#[test]
fn connections_that_stay_open_are_spread_over_all_replicas() {
    for seed in 0..5 {
        let mut sim = three_replicas(seed);
        let streams: Vec<_> = (0..90).map(|_| sim.open("a", "b")).collect();
        sim.run_for(secs(2));
        assert_even(&shares(&sim, &streams), seed);
    }
}

#[test]
fn each_of_two_clients_reaches_every_replica() {
    for seed in 0..5 {
        let mut sim = three_replicas(seed);
        sim.add_agent("c", NatKind::home_router());
        sim.trust("c", "b");
        meets_all(&mut sim, "c", 3);
        for client in ["a", "c"] {
            let requests = ask(&mut sim, client, 60, ms(10));
            assert_answered(&sim, seed, &requests);
            assert_even(&shares(&sim, &requests), seed);
        }
    }
}

#[test]
fn two_seconds_after_a_replica_was_killed_no_request_fails_or_waits_for_it() {
    for seed in 0..10 {
        let mut sim = three_replicas(seed);
        ask(&mut sim, "a", 20, ms(10));
        sim.kill("b#2");
        // Clients that do not wait for each other, in the two seconds that it may be felt.
        let felt: Vec<_> = (0..200)
            .map(|_| {
                sim.run_for(ms(10));
                sim.request("a", "b", b"who is there?")
            })
            .collect();
        let after = ask(&mut sim, "a", 100, ms(10));
        assert_answered(&sim, seed, &after);
        let open = felt.iter().filter(|request| sim.outcome(**request) == &Outcome::Open).count();
        assert_eq!(open, 0, "seed {seed}: requests still wait for the one that was killed");
        let failed = felt.iter().filter(|request| sim.outcome(**request) != &Outcome::Finished).count();
        assert!(failed < 40, "seed {seed}: {failed} of 200 failed, and a third of the first 300 ms is ten");
        assert_eq!(shares(&sim, &after).len(), 2, "seed {seed}: {:?}", shares(&sim, &after));
    }
}

#[test]
fn a_client_that_comes_late_learns_of_all_replicas_from_the_first_that_answers() {
    for seed in 0..5 {
        let mut sim = Sim::new(seed);
        sim.add_relay("r1");
        sim.add_relay("r2");
        sim.add_agent("b", NatKind::home_router());
        for replica in &REPLICAS[1..] {
            sim.add_replica(replica, "b", NatKind::home_router());
        }
        // They have long given up to dial a peer that is not there, and know of each other by the relays.
        sim.add_agent("a", NatKind::home_router());
        sim.kill("a");
        sim.trust("a", "b");
        sim.run_for(secs(200));
        sim.restart("a");
        sim.run_until(secs(5), |sim| instances(sim, "a") > 0).expect("one of them answers");
        let requests = ask(&mut sim, "a", 90, ms(20));
        assert_answered(&sim, seed, &requests);
        assert_even(&shares(&sim, &requests[30..]), seed);
    }
}

/// Every relay that is asked who else there is says that it is `first` and seven that do not exist.
fn invent_siblings(sim: &mut Sim, first: Vec<u8>) {
    sim.tamper(move |mut packet| {
        if packet.bytes.starts_with(&[4, 23]) {
            packet.bytes.truncate(16);
            packet.bytes.extend_from_slice(&first);
            (1..8u8).for_each(|invented| packet.bytes.extend_from_slice(&[invented; 8]));
        }
        vec![(ms(0), packet)]
    });
}

#[test]
fn siblings_that_a_relay_invents_are_dialled_in_vain_and_change_nothing_else() {
    for seed in 0..5 {
        let mut sim = Sim::new(seed);
        sim.add_relay("r1");
        sim.add_agent("c", NatKind::home_router());
        // By the lie; what it must not do is answer.
        sim.may_speak("a", "c");
        let stranger = sim.node("c").instance().0;
        invent_siblings(&mut sim, stranger.to_vec());
        sim.add_agent("a", NatKind::home_router());
        sim.add_agent("b", NatKind::home_router());
        sim.trust("a", "b");
        sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("two home routers meet");
        let requests = ask(&mut sim, "a", 100, ms(200));
        assert_answered(&sim, seed, &requests);
        assert_eq!(instances(&sim, "a"), 1, "seed {seed}");
        assert!(sim.sessions("c", "b").is_empty(), "seed {seed}");
    }
}

#[test]
fn a_stream_that_a_replica_has_no_service_for_is_taken_by_another() {
    for seed in 0..5 {
        let mut sim = three_replicas(seed);
        sim.serves("b", false);
        sim.serves("b#3", false);
        let requests = ask(&mut sim, "a", 60, ms(100));
        assert_answered(&sim, seed, &requests);
        assert_eq!(shares(&sim, &requests), [("b#2".to_owned(), 60)].into(), "seed {seed}");
    }
}

#[test]
fn a_stream_that_every_replica_refuses_is_refused_at_once() {
    for seed in 0..5 {
        let mut sim = three_replicas(seed);
        REPLICAS.iter().for_each(|replica| sim.serves(replica, false));
        let request = sim.request("a", "b", b"anybody?");
        let refused = sim.run_until(secs(1), |sim| sim.outcome(request) != &Outcome::Open);
        assert!(refused.is_some(), "seed {seed}: it waits for nobody");
        let expected = Outcome::Failed(StreamError::Refused(StreamStatus::Refused));
        assert_eq!(sim.outcome(request), &expected, "seed {seed}");
    }
}

#[test]
fn a_stream_that_eight_replicas_refuse_waits_for_none_that_is_not_dialled_beside_so_many() {
    let mut sim = Sim::new(1);
    sim.add_relay("r1");
    invent_siblings(&mut sim, Vec::new());
    sim.add_agent("a", NatKind::none());
    sim.add_agent("b", NatKind::none());
    sim.trust("a", "b");
    for number in 2..=8 {
        sim.add_replica(&format!("b#{number}"), "b", NatKind::none());
    }
    meets_all(&mut sim, "a", 8);
    sim.serves("b", false);
    (2..=8).for_each(|number| sim.serves(&format!("b#{number}"), false));
    let request = sim.request("a", "b", b"anybody?");
    sim.run_until(secs(5), |sim| sim.outcome(request) != &Outcome::Open).expect("it waits for nobody");
    assert_eq!(sim.outcome(request), &Outcome::Failed(StreamError::Refused(StreamStatus::Refused)));
}

/// How many packets `b` sends in a minute in which all packets are lost, while so many clients of one name have a stream to it.
fn packets_into_nowhere(clients: usize) -> usize {
    let mut sim = Sim::new(1);
    sim.add_relay("r1");
    sim.add_agent("b", NatKind::none());
    sim.add_agent("a", NatKind::none());
    sim.trust("a", "b");
    for number in 2..=clients {
        let client = format!("a#{number}");
        sim.add_replica(&client, "a", NatKind::none());
        let stream = sim.open(&client, "b");
        sim.write(stream, b"I wait");
        // Each session has a clock of its own.
        sim.run_for(ms(1_110));
    }
    sim.tamper(|_| Vec::new());
    let tape = sim.record();
    sim.run_for(secs(60));
    tape.only(|packet| packet.origin == Origin::Agent(0)).len()
}

#[test]
fn without_a_network_four_times_the_sessions_send_hardly_more_than_four_times_the_packets() {
    let [eight, many] = [8, 32].map(packets_into_nowhere);
    assert!(many * 2 <= eight * 9, "{eight} packets with eight sessions, {many} with 32");
}

#[test]
fn a_peer_that_runs_as_more_clients_than_it_may_have_sessions_is_served_in_all_of_them() {
    let mut sim = Sim::new(1);
    sim.add_relay("r1");
    sim.add_agent("b", NatKind::none());
    sim.add_agent("a", NatKind::none());
    sim.trust("a", "b");
    let clients: Vec<String> = (2..=70).map(|number| format!("a#{number}")).collect();
    for client in &clients {
        sim.add_replica(client, "a", NatKind::none());
        let request = sim.request(client, "b", b"hello");
        sim.run_until(secs(5), |sim| sim.outcome(request) != &Outcome::Open);
        assert_eq!(sim.outcome(request), &Outcome::Finished, "{client}");
        sim.run_for(secs(1));
    }
}

#[test]
fn no_request_fails_while_all_replicas_are_replaced_one_after_the_other() {
    for seed in 0..5 {
        let mut sim = three_replicas(seed);
        let mut requests = Vec::new();
        for (old, new) in REPLICAS.iter().zip(["b#4", "b#5", "b#6"]) {
            sim.add_replica(new, "b", NatKind::home_router());
            // Its agent runs before its application does, and an application ends before its agent.
            sim.serves(new, false);
            requests.extend(ask(&mut sim, "a", 30, ms(20)));
            sim.serves(new, true);
            requests.extend(ask(&mut sim, "a", 30, ms(20)));
            sim.serves(old, false);
            requests.extend(ask(&mut sim, "a", 30, ms(20)));
            sim.shut_down(old);
            sim.kill(old);
        }
        requests.extend(ask(&mut sim, "a", 90, ms(20)));
        assert_answered(&sim, seed, &requests);
        assert_even(&shares(&sim, &requests[270..]), seed);
    }
}

#[test]
fn sessions_that_nobody_uses_end_and_are_there_again_when_there_are_streams_to_place() {
    for seed in 0..5 {
        let mut sim = three_replicas(seed);
        sim.run_for(secs(150));
        assert_eq!(instances(&sim, "a"), 0, "seed {seed}: nobody has used them");
        let requests = ask(&mut sim, "a", 60, ms(50));
        assert_answered(&sim, seed, &requests);
        assert_eq!(instances(&sim, "a"), 3, "seed {seed}");
        assert_eq!(shares(&sim, &requests).len(), 3, "seed {seed}: {:?}", shares(&sim, &requests));
    }
}

#[test]
fn a_peer_with_one_instance_has_one_session_however_much_is_asked_of_it() {
    for seed in 0..5 {
        let mut sim = Sim::seeded_pair(seed, NatKind::home_router(), NatKind::home_router());
        sim.run_until(secs(10), |sim| sim.both_up("a", "b")).expect("two home routers meet");
        // Both have dialled when they learned of each other; one of the two sessions ends.
        sim.run_for(secs(30));
        let streams: Vec<_> = (0..50).map(|_| sim.open("a", "b")).collect();
        sim.run_for(secs(10));
        assert_eq!(sim.sessions("a", "b").len(), 1, "seed {seed}");
        assert_eq!(shares(&sim, &streams).len(), 1, "seed {seed}");
    }
}
