//! Two path agents find, use and lose paths through NATs, in simulated time.

mod path_net;
#[path = "path_net/random.rs"]
mod random;

use std::time::Duration;

use path_net::{A, B, By, Nat, Net, address, candidate, config, keys, ms};
use peerage_engine::nat::NatType;
use peerage_engine::path::{
    CheckRefused, CheckTransmit, DirectPath, Guessing, Hop, Link, PathConfig, PathEvent, PathKind, PathMode, Side,
    WhyNotBetter,
};
use peerage_engine::stun::{AnswerFrom, Check, CheckKeys, CheckRequest, PlainRequest, Role, TransactionId};
use peerage_model::control::CandidateKind;

#[test]
fn a_relayed_session_goes_direct_once_a_check_is_answered() {
    let mut net = Net::new(None, None);
    net.establish();
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Relayed, PathKind::Relayed), "data flows before any check");
    net.run_for(ms(500));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Direct, PathKind::Direct));
}

#[test]
fn every_pair_of_cones_is_punched_within_a_second() {
    let cones = [By::Nothing, By::Address, By::AddressAndPort];
    for filter_a in cones {
        for filter_b in cones {
            let mut net = Net::new(Some(nat_a(By::Nothing, filter_a)), Some(nat_b(By::Nothing, filter_b)));
            net.establish();
            net.run_for(ms(980));
            let kinds = (net.kind(A), net.kind(B));
            assert_eq!(kinds, (PathKind::Punched, PathKind::Punched), "{filter_a:?} and {filter_b:?}");
        }
    }
}

#[test]
fn both_gateways_are_opened_well_before_a_check_of_the_other_side_arrives() {
    let mut net = Net::new(Some(nat_a(By::Nothing, By::AddressAndPort)), Some(nat_b(By::Nothing, By::AddressAndPort)));
    net.establish();
    net.run_for(ms(980));
    for (me, other) in [(A, B), (B, A)] {
        let outside = |who: usize| net.ends[who].nat.as_ref().expect("both have a NAT").outside;
        let sent = |from: usize, to: usize, opener: bool| -> Vec<Duration> {
            let wanted = |(_, check): &&(Duration, CheckTransmit)| {
                check.to.ip() == outside(to) && check.hop_limit.is_some() == opener
            };
            net.ends[from].checks.iter().filter(wanted).map(|(at, _)| *at).collect()
        };
        let openers = sent(me, other, true);
        let arrives = sent(other, me, false)[0] + net.direct_delay;
        assert_eq!(openers.len(), 1, "one is enough");
        let told = openers[0] + net.relay_delay;
        assert!(told + net.direct_delay <= arrives, "opened at {:?}, a check arrives at {arrives:?}", openers[0]);
        let limited = net.ends[me].checks.iter().filter(|(_, check)| check.hop_limit.is_some());
        assert!(
            limited.into_iter().all(|(_, check)| check.to.ip() == outside(other)),
            "addresses of interfaces need none"
        );
    }
}

#[test]
fn a_symmetric_nat_reaches_full_and_restricted_cones() {
    for filter in [By::Nothing, By::Address] {
        let mut net = Net::new(Some(nat_a(By::AddressAndPort, By::AddressAndPort)), Some(nat_b(By::Nothing, filter)));
        net.establish();
        net.run_for(ms(980));
        assert_eq!((net.kind(A), net.kind(B)), (PathKind::Punched, PathKind::Punched), "{filter:?}");
    }
}

#[test]
fn symmetric_and_port_restricted_stay_relayed_and_say_why() {
    let mut net = hard_pair(By::Nothing);
    net.ends[A].agent.local_nat(NatType::Symmetric, true);
    net.ends[A].agent.remote_nat(Some(NatType::PortRestrictedCone));
    net.run_for(Duration::from_secs(10));
    assert_eq!(net.kind(A), PathKind::Relayed);
    assert_eq!(
        net.ends[A].agent.why_not_better(),
        Some(WhyNotBetter::SymmetricAndPortRestricted(Guessing::NotAllowedHere))
    );
}

#[test]
fn two_symmetric_nats_stay_relayed_and_say_why() {
    let mut net = hard_pair(By::AddressAndPort);
    net.ends[A].agent.local_nat(NatType::Symmetric, true);
    net.ends[A].agent.remote_nat(Some(NatType::Symmetric));
    assert_eq!(net.ends[A].agent.why_not_better(), Some(WhyNotBetter::StillChecking { candidates: 1 }));
    net.run_for(Duration::from_secs(10));
    let why = net.ends[A].agent.why_not_better().expect("relayed");
    assert_eq!(why, WhyNotBetter::BothSymmetric);
    assert!(why.to_string().contains("would help"), "a reason names the remedy: {why}");
}

#[test]
fn unknown_nats_that_do_not_answer_are_explained_by_the_number_tried() {
    let mut net = hard_pair(By::AddressAndPort);
    net.run_for(Duration::from_secs(10));
    let why = net.ends[A].agent.why_not_better().expect("relayed");
    assert_eq!(why, WhyNotBetter::NoAnswer { candidates: 1 });
    assert!(why.to_string().contains("would help"), "{why}");
}

#[test]
fn two_ends_behind_one_nat_that_turns_nothing_round_say_so() {
    let mut net = Net::new(Some(nat_a(By::Nothing, By::AddressAndPort)), None);
    net.offer(A);
    net.tell(A, [candidate(CandidateKind::ServerReflexive, address("198.18.1.1:777"))]);
    net.run_for(Duration::from_secs(10));
    assert_eq!(net.ends[A].agent.why_not_better(), Some(WhyNotBetter::NoHairpin));
}

#[test]
fn that_udp_is_blocked_is_said_of_the_right_side() {
    use NatType::{Blocked, FullCone};
    for (here, there, side) in
        [(Blocked, FullCone, Side::Here), (FullCone, Blocked, Side::Peer), (Blocked, Blocked, Side::Both)]
    {
        let mut net = hard_pair(By::AddressAndPort);
        net.ends[A].agent.local_nat(here, false);
        net.ends[A].agent.remote_nat(Some(there));
        net.run_for(Duration::from_secs(10));
        assert_eq!(net.ends[A].agent.why_not_better(), Some(WhyNotBetter::UdpBlocked(side)));
    }
}

#[test]
fn a_fixed_endpoint_is_direct_seen_from_both_ends() {
    let mut net = Net::new(Some(nat_a(By::AddressAndPort, By::AddressAndPort)), None);
    net.establish();
    net.run_for(ms(980));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Direct, PathKind::Direct));
}

#[test]
fn two_hosts_of_one_network_talk_locally() {
    let mut net = Net::with(None, None, |role| PathConfig { share_private: true, ..config(role) });
    net.ends[A].inside = address("10.0.0.2:4000");
    net.ends[B].inside = address("10.0.0.3:4000");
    net.direct_delay = ms(1);
    net.establish();
    net.run_for(ms(500));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Local, PathKind::Local));
}

#[test]
fn private_addresses_are_neither_offered_nor_checked_without_leave() {
    let mut net = Net::new(None, None);
    net.ends[A].inside = address("10.0.0.2:4000");
    net.ends[B].inside = address("10.0.0.3:4000");
    net.establish();
    net.run_for(Duration::from_secs(5));
    assert!(net.ends[A].checks.is_empty());
    assert_eq!(net.ends[A].agent.why_not_better(), Some(WhyNotBetter::PeerSentNoCandidates));
}

#[test]
fn ipv6_is_a_path_like_any_other() {
    let mut net = Net::new(None, None);
    net.ends[A].inside = address("[2a00:1::2]:4000");
    net.ends[B].inside = address("[2a00:2::2]:4000");
    net.establish();
    net.run_for(ms(500));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Direct, PathKind::Direct));
}

#[test]
fn ends_without_a_common_address_family_say_so() {
    let mut net = Net::new(None, None);
    net.ends[A].inside = address("[2a00:1::2]:4000");
    net.establish();
    net.run_for(Duration::from_secs(5));
    assert_eq!(net.ends[A].agent.why_not_better(), Some(WhyNotBetter::NoCommonAddressFamily));
}

#[test]
fn an_open_input_chain_on_both_gateways_does_not_stop_a_coordinated_punch() {
    let mut net =
        Net::new(Some(Nat::linux_with_open_input("198.18.1.1")), Some(Nat::linux_with_open_input("198.18.2.1")));
    net.establish();
    net.run_for(ms(980));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Punched, PathKind::Punched));
}

#[test]
fn an_open_input_chain_takes_no_port_however_late_the_agents_are() {
    for late in [A, B] {
        for stall in [30, 100, 300, 1000, 2500] {
            let mut net = Net::new(
                Some(Nat::linux_with_open_input("198.18.1.1")),
                Some(Nat::linux_with_open_input("198.18.2.1")),
            );
            net.establish();
            net.stall(late);
            net.run_for(ms(stall));
            net.go_on(late);
            net.run_for(ms(300));
            let kinds = (net.kind(A), net.kind(B));
            assert_eq!(kinds, (PathKind::Punched, PathKind::Punched), "{late} gets no time for {stall} ms");
        }
    }
}

#[test]
fn checks_go_also_to_a_peer_that_never_says_that_its_gateways_are_open() {
    let mut net = Net::new(Some(nat_a(By::Nothing, By::AddressAndPort)), None);
    net.offer(A);
    net.tell(A, [candidate(CandidateKind::ServerReflexive, victim(7))]);
    net.run_for(ms(2_900));
    assert!(net.ends[A].checks.iter().all(|(_, check)| check.hop_limit.is_some()), "only openers until then");
    net.run_for(Duration::from_secs(5));
    assert_eq!(net.ends[A].checks.iter().filter(|(_, check)| check.hop_limit.is_none()).count(), 7);
}

#[test]
fn a_word_about_an_older_list_opens_nothing() {
    let mut net = Net::new(Some(nat_a(By::Nothing, By::AddressAndPort)), None);
    net.offer(A);
    net.ends[A].inside = address("198.18.77.1:4000");
    net.offer(A);
    net.tell(A, [candidate(CandidateKind::ServerReflexive, victim(7))]);
    let checked = |net: &Net| net.ends[A].checks.iter().filter(|(_, check)| check.hop_limit.is_none()).count();
    for (generation, checks) in [(1, 0), (2, 1)] {
        let now = net.now;
        net.ends[A].agent.on_opened(now, generation);
        net.run_for(ms(20));
        assert_eq!(checked(&net), checks, "list {generation} of two");
    }
}

#[test]
fn a_round_that_one_side_begins_is_a_round_of_both() {
    let mut net = hard_pair(By::Nothing);
    net.run_for(Duration::from_secs(30));
    let before = net.ends[B].checks.len();
    let now = net.now;
    net.ends[B].agent.on_opened(now, 1);
    net.run_for(ms(200));
    assert!(net.ends[B].checks.len() > before, "long before its own next round");
}

#[test]
fn that_nobody_answered_a_first_round_is_said_once() {
    let mut net = hard_pair(By::Nothing);
    net.run_for(Duration::from_secs(100));
    let said = events(&net, A).iter().filter(|event| **event == PathEvent::NothingAnswered).count();
    assert_eq!(said, 1);
}

#[test]
fn a_punch_lost_to_an_open_input_chain_works_in_a_later_round() {
    for trapped in [A, B] {
        let open = |who, outside| match who == trapped {
            true => Nat::linux_with_open_input(outside),
            false => Nat::new(outside, By::Nothing, By::AddressAndPort),
        };
        let mut net = Net::new(Some(open(A, "198.18.1.1")), Some(open(B, "198.18.2.1")));
        // A strange packet from the peer's gateway came long before: the port is lost to the trap for now.
        let other = 1 - trapped;
        let (from, to) = (net.outside(other), net.outside(trapped));
        net.strange_packet(trapped, from, to);
        net.establish();
        net.run_for(Duration::from_secs(20));
        assert_eq!(net.kind(trapped), PathKind::Relayed, "the trap works as modelled");
        net.run_for(Duration::from_secs(110));
        assert_eq!((net.kind(A), net.kind(B)), (PathKind::Punched, PathKind::Punched), "trapped: {trapped}");
    }
}

#[test]
fn an_open_input_chain_before_a_restricted_cone_is_overcome_by_learning() {
    let mut net = Net::new(Some(Nat::linux_with_open_input("198.18.1.1")), Some(nat_b(By::Nothing, By::Address)));
    let (from, to) = (net.outside(B), net.outside(A));
    net.strange_packet(A, from, to);
    net.establish();
    net.run_for(ms(980));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Punched, PathKind::Punched));
}

#[test]
fn silence_on_a_direct_path_returns_traffic_to_the_relay_and_later_back() {
    let mut net = direct_pair();
    net.direct_down = true;
    net.run_for(ms(400));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Relayed, PathKind::Relayed));
    net.direct_down = false;
    net.run_for(Duration::from_secs(10));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Direct, PathKind::Direct));
    assert!(!events(&net, A).contains(&PathEvent::RedialNeeded));
}

#[test]
fn a_path_that_passes_stun_but_not_the_tunnel_is_left_and_tried_ever_more_rarely() {
    let mut net = direct_pair();
    net.tunnel_blocked = [true, true];
    net.run_for(Duration::from_secs(60));
    let switches = events(&net, A).iter().filter(|event| matches!(event, PathEvent::Changed { .. })).count();
    // Lost at 0, then holds of 2, 4, 8, 16, 32 s with about 1.3 s of trial after each.
    assert!((9..=14).contains(&switches), "{switches} switches in a minute");
}

#[test]
fn a_direct_path_that_works_in_one_direction_only_is_left_by_both() {
    let mut net = direct_pair();
    net.tunnel_blocked = [true, false];
    net.run_for(ms(1000));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Relayed, PathKind::Relayed));
}

#[test]
fn lost_checks_never_take_a_path_in_use_away() {
    let mut net = direct_pair();
    let b_inside = net.ends[B].inside;
    net.ends[B].inside = address("198.18.77.7:1");
    // A's checks and tunnel packets go nowhere now, but the tunnel is still heard: only STUN is lost.
    net.chatter = false;
    for _ in 0..6000 {
        net.run_for(ms(20));
        let now = net.now;
        net.ends[A].agent.on_tunnel_sent(now, Hop::Direct(DirectPath::main(b_inside)), true);
        net.ends[A].agent.on_tunnel_heard(now, Hop::Direct(DirectPath::main(b_inside)), Some(ms(20)));
    }
    assert_eq!(net.kind(A), PathKind::Direct, "two minutes without any answer to a check");
}

#[test]
fn quiet_is_not_silence() {
    let mut net = direct_pair();
    net.chatter = false;
    net.run_for(Duration::from_secs(120));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Direct, PathKind::Direct));
}

#[test]
fn three_silent_timeouts_ask_for_a_redial_once() {
    let mut net = direct_pair();
    net.direct_down = true;
    net.relay_down = true;
    net.run_for(Duration::from_secs(5));
    let events = events(&net, A);
    assert_eq!(events.iter().filter(|event| **event == PathEvent::RedialNeeded).count(), 1);
    assert_eq!(events.iter().filter(|event| matches!(event, PathEvent::TunnelSilent { .. })).count(), 3);
}

#[test]
fn a_changed_local_address_goes_to_the_relay_first_and_then_direct_again() {
    let mut net = direct_pair();
    net.ends[A].inside = address("198.18.3.1:4000");
    net.offer(A);
    assert_eq!(net.kind(A), PathKind::Relayed, "at once");
    net.run_for(net.relay_delay + ms(1));
    assert_eq!(net.kind(B), PathKind::Relayed, "as soon as the news arrives");
    net.run_for(ms(500));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Direct, PathKind::Direct));
}

#[test]
fn a_silent_nat_rebinding_is_survived_by_learning_the_new_address() {
    let mut net = Net::new(Some(nat_a(By::Nothing, By::AddressAndPort)), None);
    net.establish();
    net.run_for(Duration::from_secs(2));
    assert_eq!(net.kind(B), PathKind::Direct);
    net.ends[A].nat = Some(Nat::new("198.18.9.9", By::AddressAndPort, By::AddressAndPort));
    net.run_for(Duration::from_secs(5));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Direct, PathKind::Direct));
}

#[test]
fn both_paths_carry_everything_for_at_most_a_second_after_a_switch() {
    let mut net = Net::new(None, None);
    net.chatter = false;
    net.establish();
    while net.kind(A) == PathKind::Relayed {
        net.run_for(ms(1));
    }
    assert_eq!(net.ends[A].agent.route(net.now).duplicate, Some(Hop::Relayed));
    net.run_for(ms(1000));
    assert_eq!(net.ends[A].agent.route(net.now).duplicate, None);
}

#[test]
fn a_path_in_use_is_kept_alive_and_an_unused_one_is_not() {
    let mut net = direct_pair();
    net.chatter = false;
    net.run_for(Duration::from_secs(5));
    let before = net.ends[A].checks.len();
    net.run_for(Duration::from_secs(60));
    let sent = net.ends[A].checks[before..].iter().filter(|(_, check)| check.bytes.starts_with(&[0, 1])).count();
    assert_eq!(sent, 4, "one request each 15 s, and none to unused addresses");
}

#[test]
fn relay_only_sends_no_candidate_no_check_and_no_answer() {
    let relay_only = |role| PathConfig { mode: PathMode::RelayOnly, ..config(role) };
    let mut net = Net::with(None, None, relay_only);
    net.establish();
    net.run_for(Duration::from_secs(5));
    assert!(net.ends[A].events.is_empty() && net.ends[A].checks.is_empty());
    assert_eq!(net.inject(A, address("198.18.2.1:5000"), &request_by(Role::Responder, 1)), []);
    assert_eq!(net.ends[A].agent.why_not_better(), Some(WhyNotBetter::PolicyRelayOnly));
}

#[test]
fn direct_only_lets_data_wait_for_a_direct_path() {
    let mut net = Net::with(None, None, |role| PathConfig { mode: PathMode::DirectOnly, ..config(role) });
    net.establish();
    assert!(!net.ends[A].agent.carries_data());
    net.run_for(ms(500));
    assert!(net.ends[A].agent.carries_data());
}

#[test]
fn direct_only_sends_no_copy_by_relay_after_the_switch_and_to_who_comes_by_relay() {
    let mut net = Net::with(None, None, |role| PathConfig { mode: PathMode::DirectOnly, ..config(role) });
    net.establish();
    let mut direct = 0;
    for _ in 0..500 {
        net.run_for(ms(1));
        for who in [A, B] {
            let agent = &net.ends[who].agent;
            let copy = agent.route(net.now).duplicate.filter(|_| agent.carries_data());
            assert_ne!(copy, Some(Hop::Relayed));
            direct += usize::from(agent.carries_data());
        }
    }
    assert!(direct > 500, "both are direct for most of the time: {direct}");
    net.ends[A].agent.on_tunnel_heard(net.now, Hop::Relayed, None);
    assert_eq!(net.ends[A].agent.route(net.now).duplicate, None);
}

#[test]
fn turning_to_relay_only_leaves_a_direct_path_at_once() {
    let mut net = direct_pair();
    let now = net.now;
    net.ends[A].agent.set_mode(now, PathMode::RelayOnly);
    assert_eq!(net.kind(A), PathKind::Relayed);
    net.run_for(ms(500));
    assert_eq!(net.kind(B), PathKind::Relayed, "the peer learns of it by the withdrawn list");
}

#[test]
fn a_direct_path_twice_as_slow_as_the_relay_is_not_taken() {
    let mut net = Net::new(None, None);
    net.relay_delay = ms(5);
    net.direct_delay = ms(30);
    net.establish();
    net.run_for(Duration::from_secs(6));
    assert_eq!(net.kind(A), PathKind::Relayed);
    let why = net.ends[A].agent.why_not_better();
    assert!(matches!(why, Some(WhyNotBetter::SlowerThanRelay { .. })), "{why:?}");
}

#[test]
fn a_path_that_a_queue_made_too_slow_is_taken_soon_after_the_queue_is_gone() {
    let mut net = Net::new(None, None);
    (net.relay_delay, net.direct_delay) = (ms(5), ms(30));
    net.establish();
    net.run_for(Duration::from_secs(6));
    assert_eq!(net.kind(A), PathKind::Relayed);
    net.direct_delay = ms(5);
    net.run_for(Duration::from_secs(8));
    assert_eq!([net.kind(A), net.kind(B)], [PathKind::Direct; 2]);
}

#[test]
fn a_path_that_stays_too_slow_is_asked_ever_more_rarely() {
    let mut net = Net::new(None, None);
    (net.relay_delay, net.direct_delay) = (ms(5), ms(30));
    net.establish();
    net.run_for(Duration::from_secs(600));
    let later = net.ends[A].checks.iter().filter(|(at, _)| *at >= Duration::from_secs(300)).count();
    // Seven a round, and an answer to each of the peer's; a round of all, and one or two of its own.
    assert!(later <= 3 * 7 * 2, "{later} packets in five minutes");
}

#[test]
fn forged_and_unauthenticated_checks_teach_nothing_and_get_no_answer() {
    let mut net = Net::new(None, None);
    net.establish();
    let stranger = address("198.18.66.6:6666");
    let forger = CheckKeys::from_exporter(Role::Responder, &mut [8; 64]);
    // One who has seen a check of this session knows its tag, and has not its key.
    let id = keys(Role::Responder).transaction_id([9; 8]);
    let tagged = Check::Request(CheckRequest { id, priority: 0, sequence: 1, in_use: false }).encode(&forger);
    let plain =
        PlainRequest { id: TransactionId([3; 12]), answer_from: AnswerFrom::SameAddress, answer_at: None }.encode();
    for bytes in [request(1, &forger), tagged, plain] {
        assert_eq!(net.inject(A, stranger, &bytes), []);
    }
    assert_never_checks(&mut net, stranger);
}

#[test]
fn a_reflected_check_teaches_nothing_and_gets_no_answer() {
    let mut net = Net::new(None, None);
    net.establish();
    net.run_for(ms(500));
    let own: Vec<_> = net.ends[A].checks.iter().map(|(_, check)| check.bytes.clone()).collect();
    let stranger = address("198.18.66.6:6666");
    for bytes in own {
        assert_eq!(net.inject(A, stranger, &bytes), []);
    }
    assert_never_checks(&mut net, stranger);
}

#[test]
fn a_replayed_check_teaches_nothing_and_gets_no_answer() {
    let mut net = direct_pair();
    let stranger = address("198.18.66.6:6666");
    let recorded: Vec<_> = net.ends[B].checks.iter().map(|(_, check)| check.bytes.clone()).collect();
    assert!(!recorded.is_empty());
    for bytes in recorded {
        assert_eq!(net.inject(A, stranger, &bytes), []);
    }
    assert_never_checks(&mut net, stranger);
}

#[test]
fn an_answer_from_another_address_than_asked_proves_nothing() {
    let mut net = Net::new(None, None);
    net.direct_down = true;
    net.establish();
    net.run_for(ms(500));
    let (_, asked) = net.ends[A].checks[0].clone();
    let answer = {
        let Ok(Check::Request(request)) = Check::decode(&asked.bytes, &keys(Role::Responder)) else {
            panic!("the first check is a request")
        };
        let mapped = address("198.18.1.1:4000");
        Check::Response(peerage_engine::stun::CheckResponse { id: request.id, mapped }).encode(&keys(Role::Responder))
    };
    let now = net.now;
    let agent = &mut net.ends[A].agent;
    assert_eq!(agent.handle_check(now, Link::Main, address("198.18.66.6:6666"), &answer), Err(CheckRefused::Unasked));
    assert_eq!(agent.handle_check(now, Link::Main, asked.to, &answer), Ok(()));
    assert_eq!(
        agent.handle_check(now, Link::Main, asked.to, &answer),
        Err(CheckRefused::Unasked),
        "an answer counts once"
    );
}

#[test]
fn a_flood_of_candidates_is_bounded() {
    let mut net = Net::new(None, None);
    net.offer(A);
    let flood = (1..=5000).map(|port| candidate(CandidateKind::Host, victim(port)));
    net.tell(A, flood);
    net.run_for(Duration::from_secs(5));
    let targets: std::collections::BTreeSet<_> = net.ends[A].checks.iter().map(|(_, check)| check.to).collect();
    assert_eq!(targets.len(), 16);
}

#[test]
fn a_victim_named_as_candidate_gets_a_bounded_number_of_checks() {
    let mut net = Net::new(None, None);
    net.offer(A);
    // A malicious peer names new ports of its victim over and over.
    for minute in 0u16..600 {
        let list = (0..16).map(|port| candidate(CandidateKind::Host, victim(1 + minute * 16 + port)));
        net.tell(A, list);
        net.run_for(ms(100));
    }
    let checks = &net.ends[A].checks;
    assert!(checks.len() <= 128 + 2 * 60, "{} checks in a minute", checks.len());
    for (at, _) in checks {
        let within = checks.iter().filter(|(other, _)| (*at..*at + Duration::from_secs(1)).contains(other)).count();
        assert!(within <= 100, "{within} checks in the second after {at:?}");
    }
}

#[test]
fn a_silent_address_gets_seven_checks_and_then_rest() {
    let mut net = Net::new(None, None);
    net.direct_down = true;
    net.establish();
    net.run_for(Duration::from_secs(35));
    let checks = &net.ends[B].checks;
    assert_eq!(checks.len(), 7);
    let span = checks[6].0 - checks[0].0;
    assert_eq!(span, ms(3150));
}

#[test]
fn verified_requests_are_answered_only_at_a_bounded_rate() {
    let mut net = Net::new(None, None);
    net.offer(A);
    let mut answers = 0;
    for sequence in 1..=1000 {
        let bytes = request_by(Role::Responder, sequence);
        let sent = net.inject(A, victim(7), &bytes);
        answers += sent.iter().filter(|check| check.bytes.starts_with(&[1, 1])).count();
        net.run_for(ms(1));
    }
    assert!(answers <= 100, "{answers} answers in a second");
}

#[test]
fn requests_from_ever_new_addresses_keep_the_list_bounded() {
    let mut net = Net::new(None, None);
    net.offer(A);
    for sequence in 1..=2000u16 {
        net.inject(A, victim(sequence), &request_by(Role::Responder, u64::from(sequence)));
        net.run_for(ms(20));
    }
    let why = net.ends[A].agent.why_not_better();
    let bounded =
        matches!(why, Some(WhyNotBetter::NoAnswer { candidates: 16 } | WhyNotBetter::StillChecking { candidates: 16 }));
    assert!(bounded, "{why:?}");
}

#[test]
fn the_same_inputs_give_the_same_run() {
    let run = || {
        let mut net = Net::new(Some(nat_a(By::Nothing, By::Address)), Some(nat_b(By::Nothing, By::AddressAndPort)));
        net.establish();
        net.run_for(Duration::from_secs(2));
        let [a, b] = net.ends;
        (a.checks, a.events, b.checks, b.events)
    };
    assert_eq!(run(), run());
}

fn nat_a(mapping: By, filtering: By) -> Nat {
    Nat::new("198.18.1.1", mapping, filtering)
}

fn nat_b(mapping: By, filtering: By) -> Nat {
    Nat::new("198.18.2.1", mapping, filtering)
}

/// A symmetric NAT and a port-restricted one of the given mapping, checks under way.
fn hard_pair(mapping_b: By) -> Net {
    let mut net =
        Net::new(Some(nat_a(By::AddressAndPort, By::AddressAndPort)), Some(nat_b(mapping_b, By::AddressAndPort)));
    net.establish();
    net.run_for(ms(100));
    net
}

fn direct_pair() -> Net {
    let mut net = Net::new(None, None);
    net.establish();
    net.run_for(Duration::from_secs(2));
    assert_eq!((net.kind(A), net.kind(B)), (PathKind::Direct, PathKind::Direct));
    net
}

fn events(net: &Net, who: usize) -> Vec<PathEvent> {
    net.ends[who].events.iter().map(|(_, event)| event.clone()).collect()
}

fn assert_never_checks(net: &mut Net, stranger: std::net::SocketAddr) {
    net.run_for(Duration::from_secs(60));
    assert!(net.ends[A].checks.iter().all(|(_, check)| check.to != stranger));
}

fn victim(port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(address("198.18.44.4:0").ip(), port)
}

/// A request with the id that the holder of these keys would give it.
fn request(sequence: u64, sender: &CheckKeys) -> Vec<u8> {
    let id = sender.transaction_id([9; 8]);
    Check::Request(CheckRequest { id, priority: 0, sequence, in_use: false }).encode(sender)
}

fn request_by(role: Role, sequence: u64) -> Vec<u8> {
    request(sequence, &keys(role))
}
