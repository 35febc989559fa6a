//! What gateways do to agents, and what agents find out about them: ports that are lost to strangers, filters, and a gateway
//! whose ports two peers want at once.

use peerage_sim::nat::{NatKind, Network, Verdict, verdict};
use peerage_sim::{Sim, ms, secs};

/// What an agent says of its NAT, in the words of RFC 3489.
fn word(sim: &Sim, who: &str) -> String {
    sim.status(who).nat.nat_type.to_string()
}

#[test]
fn a_gateway_with_open_input_takes_no_port_while_an_agent_gets_no_processor() {
    let open = Network::from(NatKind::symmetric_port_stealing());
    for other in Network::all().into_iter().filter(|other| verdict(&open, other) == Verdict::Direct) {
        for (late, after, stall) in [("a", 0, 300), ("b", 0, 300), ("a", 25, 800), ("b", 25, 800), ("b", 45, 2_000)] {
            let case = format!("{} behind {}, stopped after {after} ms for {stall} ms", late, other.name);
            let mut sim = Sim::pair(open, other);
            assert!(sim.run_until(secs(5), |sim| sim.both_up("a", "b")).is_some(), "{case}");
            sim.run_for(ms(after));
            sim.stop(late);
            sim.run_for(ms(stall));
            sim.go_on(late);
            let direct = sim.run_until(secs(2), |sim| sim.both_direct("a", "b"));
            assert!(direct.is_some(), "{case}: {:?}", sim.why_not_better("a", "b"));
        }
    }
}

#[test]
fn a_port_that_a_stranger_took_before_is_found_by_looking_at_a_new_destination() {
    for other in [NatKind::port_restricted_cone(), NatKind::symmetric_preserving()] {
        let mut sim = with_a_port_lost(other);
        let direct = sim.run_until(secs(6), |sim| sim.both_direct("a", "b"));
        assert!(direct.is_some(), "{other:?}: {:?}", sim.why_not_better("a", "b"));
    }
}

#[test]
fn two_gateways_with_open_input_that_have_lost_their_ports_have_them_again_in_the_second_round() {
    let mut sim = with_a_port_lost(NatKind::symmetric_port_stealing());
    let direct = sim.run_until(secs(45), |sim| sim.both_direct("a", "b"));
    assert!(direct.is_some(), "{:?}", sim.why_not_better("a", "b"));
}

/// `a` is behind a gateway with open input, which has taken its port for a packet that seemed to come from `b`'s; checks
/// have found no way for two seconds.
fn with_a_port_lost(b_behind: NatKind) -> Sim {
    let mut sim = Sim::strangers(1, NatKind::symmetric_port_stealing(), b_behind);
    sim.run_for(secs(5));
    let (a, b) = (sim.public_address("a"), sim.public_address("b"));
    sim.inject(b, a, &[0; 40]);
    sim.run_for(ms(100));
    sim.trust("a", "b");
    assert!(sim.run_until(secs(5), |sim| sim.both_up("a", "b")).is_some());
    sim.run_for(secs(2));
    assert!(!sim.both_direct("a", "b"), "{b_behind:?}: the port is lost, as modelled");
    sim
}

#[test]
fn a_peer_without_a_nat_does_not_cost_a_gateway_with_open_input_its_port() {
    let mut sim = Sim::strangers(1, NatKind::symmetric_port_stealing(), NatKind::none());
    sim.add_agent("c", NatKind::port_restricted_cone());
    sim.run_for(secs(3));
    sim.trust("a", "b");
    // The one that has to answer gets no processor for a while.
    assert!(sim.run_until(secs(5), |sim| sim.both_up("a", "b")).is_some());
    sim.stop("a");
    sim.run_for(ms(300));
    sim.go_on("a");
    assert!(sim.run_until(secs(2), |sim| sim.both_direct("a", "b")).is_some());
    sim.trust("a", "c");
    let direct = sim.run_until(secs(2), |sim| sim.both_direct("a", "c"));
    assert!(direct.is_some(), "{:?}", sim.why_not_better("a", "c"));
}

#[test]
fn agents_tell_each_kind_of_nat_from_the_others() {
    for (network, expected) in [
        (NatKind::none(), "open internet"),
        (NatKind::full_cone(), "full cone"),
        (NatKind::restricted_cone(), "restricted cone"),
        (NatKind::port_restricted_cone(), "port-restricted cone"),
        (NatKind::home_router(), "port-restricted cone"),
        (NatKind::symmetric_preserving(), "port-restricted cone"),
        (NatKind::symmetric_sequential(), "symmetric"),
        (NatKind::symmetric_random(), "symmetric"),
    ] {
        let mut sim = Sim::strangers(1, network, NatKind::none());
        sim.run_for(secs(5));
        let report = sim.status("a").nat;
        assert_eq!((word(&sim, "a").as_str(), report.missing), (expected, None), "{network:?}: {report}");
    }
}

#[test]
fn where_all_relays_have_one_address_agents_say_that_the_filter_is_not_known() {
    for (network, expected) in [(NatKind::none(), "no NAT"), (NatKind::full_cone(), "cone")] {
        let mut sim = Sim::new(1);
        sim.add_plain_relay("r1");
        sim.add_plain_relay("r2");
        sim.add_agent("a", network);
        sim.run_for(secs(5));
        let report = sim.status("a").nat.to_string();
        assert_eq!(word(&sim, "a"), expected, "{report}");
        assert!(report.contains("needs a relay with a second address, to measure filtering"), "{report}");
    }
}

#[test]
fn one_relay_with_two_addresses_is_enough_to_measure_the_filter() {
    let mut sim = Sim::new(1);
    sim.add_plain_relay("r1");
    sim.add_relay("r2");
    sim.add_agent("a", NatKind::restricted_cone());
    sim.run_for(secs(5));
    assert_eq!(word(&sim, "a"), "restricted cone");
}

#[test]
fn an_agent_in_another_network_measures_its_filter_anew() {
    let mut sim = Sim::strangers(1, NatKind::full_cone(), NatKind::none());
    sim.run_for(secs(5));
    sim.move_to("a", NatKind::port_restricted_cone());
    sim.run_for(secs(5));
    assert_eq!(word(&sim, "a"), "port-restricted cone");
}

#[test]
fn whether_ports_count_is_known_again_after_a_gateway_forgot_everything() {
    let mut sim = Sim::strangers(1, NatKind::symmetric_random(), NatKind::none());
    let is_known = |sim: &Sim| sim.status("a").nat.to_string().contains("address-and-port-dependent mapping");
    assert!(sim.run_until(secs(5), is_known).is_some(), "{}", sim.status("a").nat);
    sim.flush_nat("a");
    assert!(sim.run_until(secs(60), |sim| !is_known(sim)).is_some(), "what was known is void");
    assert!(sim.run_until(secs(120), is_known).is_some(), "{}", sim.status("a").nat);
}

#[test]
fn two_peers_at_once_behind_one_counting_nat_each_get_ports_of_their_own() {
    for seed in 0..10 {
        let mut sim = Sim::new(seed);
        sim.add_relay("r1");
        sim.add_relay("r2");
        sim.add_agent("a", NatKind::symmetric_sequential());
        sim.add_agent("b", NatKind::port_restricted_cone());
        sim.add_agent("c", NatKind::port_restricted_cone());
        sim.run_for(secs(3));
        sim.trust("a", "b");
        sim.trust("a", "c");
        let direct = sim.run_until(secs(3), |sim| sim.both_direct("a", "b") && sim.both_direct("a", "c"));
        let why = [sim.why_not_better("a", "b"), sim.why_not_better("a", "c")];
        assert!(direct.is_some(), "seed {seed}: {why:?}");
        assert_eq!(sim.extra_sockets("a"), 0, "scouts are closed");
    }
}
