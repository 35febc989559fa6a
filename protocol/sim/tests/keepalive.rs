//! Keepalives follow what the NAT keeps, which is measured.

use std::time::Duration;

use peerage_engine::nat::MappingLifetime;
use peerage_sim::nat::{NatKind, Translation};
use peerage_sim::{Sim, ms, secs};

/// A home router that forgets what nobody used for this long.
fn router(expiry: Duration) -> NatKind {
    match NatKind::home_router() {
        NatKind::Translating(router) => NatKind::Translating(Translation { expiry, ..router }),
        other => panic!("{other:?} is no router"),
    }
}

fn lifetime(at_least: u64, less_than: Option<u64>) -> Option<MappingLifetime> {
    Some(MappingLifetime { at_least: secs(at_least), less_than: less_than.map(secs) })
}

#[test]
fn the_lifetime_of_mappings_is_measured_once_and_leaves_no_socket() {
    for (expiry, expected) in [
        (8, lifetime(0, Some(10))),
        (15, lifetime(10, Some(20))),
        (31, lifetime(30, Some(60))),
        (300, lifetime(180, None)),
    ] {
        let mut sim = Sim::strangers(1, router(secs(expiry)), NatKind::home_router());
        let known = sim.run_until(secs(600), |sim| sim.status("a").mapping_lifetime.is_some());
        assert_eq!(sim.status("a").mapping_lifetime, expected, "{expiry} s, after {known:?}");
        assert_eq!(sim.extra_sockets("a"), 0);
    }
}

#[test]
fn without_a_nat_there_is_nothing_to_measure() {
    let mut sim = Sim::strangers(1, NatKind::none(), NatKind::home_router());
    sim.run_for(secs(600));
    assert_eq!(sim.status("a").mapping_lifetime, None);
    assert_eq!(sim.extra_sockets("a"), 0);
}

#[test]
fn an_idle_agent_behind_a_nat_that_forgets_fast_is_reached_at_any_time() {
    for wait in 0..12 {
        let mut sim = Sim::strangers(wait, router(secs(15)), NatKind::home_router());
        sim.declare("a", "b");
        // Long after any session; the relay's way in is all there is.
        sim.run_for(secs(400) + ms(2_300) * u32::try_from(wait).expect("a small number"));
        sim.declare("b", "a");
        let request = sim.request("b", "a", b"anybody there?");
        let answered = sim.run_until(secs(2), |sim| !sim.returned(request).is_empty());
        assert!(answered.is_some(), "waited {wait}: {:?}", sim.outcome(request));
    }
}

#[test]
fn a_direct_path_stays_open_under_an_idle_stream_and_costs_few_packets_where_mappings_live_long() {
    let packets = |expiry| {
        let mut sim = Sim::seeded_pair(7, router(expiry), router(expiry));
        sim.run_until(secs(10), |sim| sim.both_direct("a", "b")).expect("two home routers meet");
        let stream = sim.open("a", "b");
        sim.write(stream, b"hello");
        sim.run_until(secs(700), |sim| ["a", "b"].iter().all(|who| sim.status(who).mapping_lifetime.is_some()))
            .expect("both know");
        let tape = sim.record();
        sim.run_for(secs(600));
        let sent = tape.only(peerage_sim::Packet::is_direct).len();
        let before = sim.returned(stream).len();
        sim.write(stream, b"still there?");
        let answered = sim.run_until(ms(300), |sim| sim.returned(stream).len() > before);
        assert!(answered.is_some() && sim.both_direct("a", "b"), "{expiry:?}");
        sent
    };
    let (often, rarely) = (packets(secs(15)), packets(secs(300)));
    println!("direct packets in ten minutes: {often} where mappings live 15 s, {rarely} where they live 300 s");
    assert!(rarely * 3 < often * 2, "{rarely} against {often}");
}
