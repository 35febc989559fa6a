//! Every network with every other, in both roles, held against the oracle; and the birthday round, from many seeds.
//!
//! `PEERAGE_SIM_BIRTHDAYS` says how many seeds each pair of the birthday test gets; with a release build, 1,000 of one pair
//! take minutes. `PEERAGE_SIM_PAIR=symmetric random:port-restricted cone` leaves it at that one.

use std::time::Duration;

use peerage_sim::nat::{NatKind, Network, Verdict, verdict, verdict_within_carrier};
use peerage_sim::{Outcome, Sim, ms, secs};

/// How long a session may take to go direct where no port has to be guessed.
const SOON: Duration = secs(1);
/// How long a birthday round may take, from the session on.
const ROUND: Duration = secs(20);
/// Seeds of each pair of the birthday test in an ordinary run.
const SEEDS: u64 = 1;

#[test]
fn every_ordered_pair_goes_the_way_that_the_oracle_names() {
    for a in Network::all() {
        for b in Network::all() {
            let names = format!("{} to {}", a.name, b.name);
            let mut sim = up(Sim::pair(a, b), &names);
            let direct = went_direct(&mut sim, SOON);
            match verdict(&a, &b) {
                Verdict::Direct => assert!(direct, "{names} can be direct: {:?}", sim.why_not_better("a", "b")),
                Verdict::DirectIfGuessed | Verdict::Relayed => {
                    sim.run_for(secs(5));
                    assert!(!sim.both_direct("a", "b"), "{names} cannot be direct without luck");
                    says_why(&sim, &names, &a, &b);
                }
            }
        }
    }
}

/// The reason of a pair that stays relayed is precise, and names what would help.
fn says_why(sim: &Sim, names: &str, a: &Network, b: &Network) {
    for (who, whom) in [("a", "b"), ("b", "a")] {
        let why = sim.why_not_better(who, whom).unwrap_or_else(|| panic!("{names}: relayed without a reason"));
        let families = [a.families, b.families];
        let apart = !families.iter().all(|of| of.has_ipv4()) && !families.iter().all(|of| of.has_ipv6());
        match verdict(a, b) {
            Verdict::DirectIfGuessed => {
                assert!(why.contains("birthday") && why.contains("not allowed here"), "{names}, {who}: {why}");
            }
            Verdict::Direct | Verdict::Relayed if apart => {
                assert!(why.contains("one side has only IPv4, the other only IPv6"), "{names}, {who}: {why}");
            }
            Verdict::Direct | Verdict::Relayed if a.blocks_udp || b.blocks_udp => {
                assert!(why.contains("UDP is blocked"), "{names}, {who}: {why}");
            }
            Verdict::Direct | Verdict::Relayed => {
                assert!(why.contains("both NATs are symmetric") && why.contains("would help"), "{names}, {who}: {why}");
            }
        }
    }
}

#[test]
fn predicted_ports_meet_from_any_seed() {
    for seed in 0..8 {
        for other in [
            NatKind::port_restricted_cone(),
            NatKind::symmetric_preserving(),
            NatKind::symmetric_port_stealing(),
            NatKind::symmetric_sequential(),
        ] {
            for (a, b) in [(NatKind::symmetric_sequential(), other), (other, NatKind::symmetric_sequential())] {
                let names = format!("seed {seed}, {a:?} to {b:?}");
                let mut sim = up(Sim::seeded_pair(seed, a, b), &names);
                assert!(went_direct(&mut sim, SOON), "{names}: {:?}", sim.why_not_better("a", "b"));
                assert_eq!((sim.extra_sockets("a"), sim.extra_sockets("b")), (0, 0), "scouts are closed");
            }
        }
    }
}

#[test]
fn a_birthday_round_finds_a_port_in_nearly_every_pair() {
    let seeds = std::env::var("PEERAGE_SIM_BIRTHDAYS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS);
    let only = std::env::var("PEERAGE_SIM_PAIR").ok();
    let (mut met_in_all, mut runs) = (0, 0);
    for a in Network::all() {
        for b in Network::all().into_iter().filter(|b| verdict(&a, b) == Verdict::DirectIfGuessed) {
            if only.as_ref().is_some_and(|only| *only != format!("{}:{}", a.name, b.name)) {
                continue;
            }
            let met = (0..seeds).filter(|seed| meet_by_birthday(*seed, a, b)).count() as u64;
            println!("{} to {}: {met} of {seeds} direct within {ROUND:?}", a.name, b.name);
            // A single run may have bad luck; of a thousand, fifty.
            assert!(seeds < 100 || met * 100 >= seeds * 95, "{} to {}: only {met} of {seeds} met", a.name, b.name);
            (met_in_all, runs) = (met_in_all + met, runs + seeds);
        }
    }
    assert!(runs > 0 && met_in_all * 100 >= runs * 90, "only {met_in_all} of {runs} met");
}

fn meet_by_birthday(seed: u64, a: Network, b: Network) -> bool {
    let mut sim = up(both_allow(seed, a, b), a.name);
    went_direct(&mut sim, ROUND)
}

#[test]
fn a_session_lives_on_the_socket_that_met_the_peer_and_the_others_are_closed() {
    let mut sim = both_allow(3, NatKind::symmetric_random(), NatKind::port_restricted_cone());
    let stream = sim.open("b", "a");
    sim.write(stream, &[1; 10_000]);
    assert!(went_direct(&mut sim, ROUND), "{:?}", sim.why_not_better("a", "b"));
    sim.run_for(secs(2));
    assert_eq!((sim.extra_sockets("a"), sim.extra_sockets("b")), (1, 0));
    let relayed = sim.bytes_relayed();
    sim.write(stream, &[2; 100_000]);
    sim.run_for(secs(60));
    assert_eq!(sim.returned(stream).len(), 110_000);
    assert!(sim.both_direct("a", "b"), "a minute later: {:?}", sim.why_not_better("a", "b"));
    assert!(sim.bytes_relayed() - relayed < 20_000, "the bytes went directly");
    sim.finish(stream);
    sim.run_for(secs(1));
    assert_eq!(sim.outcome(stream), &Outcome::Finished);
    sim.shut_down("b");
    // Two more are open for some minutes, to measure how long the NAT keeps a mapping.
    let closed = sim.run_until(secs(600), |sim| sim.extra_sockets("a") == 0);
    assert!(closed.is_some(), "nothing is left of a session that ended: {}", sim.extra_sockets("a"));
}

#[test]
fn a_stream_survives_the_end_of_a_path_that_was_found_by_guessing() {
    let mut sim = both_allow(4, NatKind::symmetric_random(), NatKind::port_restricted_cone());
    let stream = sim.open("a", "b");
    assert!(went_direct(&mut sim, ROUND));
    sim.flush_nat("a");
    sim.write(stream, &[7; 50_000]);
    sim.run_for(secs(5));
    assert_eq!(sim.returned(stream).len(), 50_000);
    sim.move_to("a", NatKind::symmetric_random());
    sim.write(stream, &[8; 50_000]);
    sim.run_for(secs(5));
    assert_eq!(sim.returned(stream).len(), 100_000);
    assert_eq!(sim.extra_sockets("a"), 0, "sockets of the network before are closed");
}

#[test]
fn no_port_is_guessed_unless_both_owners_allow_it() {
    for allowing in ["a", "b"] {
        let mut sim = Sim::seeded_pair(5, NatKind::symmetric_random(), NatKind::port_restricted_cone());
        sim.allow_birthday(allowing, if allowing == "a" { "b" } else { "a" });
        let tape = sim.record();
        sim.run_for(secs(60));
        assert!(!sim.both_direct("a", "b"));
        let outside = sim.public_address("a").ip();
        let mut ports: Vec<u16> =
            tape.only(|p| p.to.ip() == outside && p.is_direct()).iter().map(|p| p.to.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() <= 16, "only addresses that relays saw are checked: {ports:?}");
        assert_eq!((sim.extra_sockets("a"), sim.extra_sockets("b")), (0, 0));
        let why = sim.why_not_better(allowing, if allowing == "a" { "b" } else { "a" }).expect("relayed");
        assert!(why.contains("the peer does not allow it"), "{why}");
    }
}

#[test]
fn a_round_stays_within_its_rate_its_number_and_its_target() {
    // Nothing can be met, so that the round runs to its end.
    let mut sim = both_allow(6, NatKind::symmetric_random(), NatKind::port_restricted_cone());
    sim.block_direct(true);
    let tape = sim.record();
    sim.run_for(secs(50));
    let checks = tape.only(|p| p.bytes.len() == 88 && p.bytes[0] == 0);
    let (hard, easy) = (sim.public_address("a").ip(), sim.public_address("b"));
    let probes: Vec<_> = checks.iter().filter(|p| p.from == easy && p.to.ip() == hard).collect();
    let others: Vec<_> = checks.iter().filter(|p| p.to.ip() != hard && p.to.ip() != easy.ip()).collect();
    assert!(others.iter().all(|p| p.to.ip().to_string().starts_with("10.")), "nobody else is sent to: {others:?}");
    assert!((1_024..1_024 + 64).contains(&probes.len()), "{} probes in the first round", probes.len());
    for window in probes.windows(111) {
        let took = window[110].at - window[0].at;
        assert!(took >= ms(1_000), "111 packets in {took:?}");
    }
    let opened = checks.iter().filter(|p| p.from.ip() == hard && p.to == easy).count();
    assert!((256..256 + 64).contains(&opened), "{opened} packets of the hard side");
    assert_eq!((sim.extra_sockets("a"), sim.extra_sockets("b")), (0, 0), "all closed");
    let why = sim.why_not_better("a", "b").expect("relayed");
    assert!(why.contains("1 rounds of guessing ports"), "{why}");
}

#[test]
fn neighbours_behind_one_carrier_meet_where_it_turns_packets_round() {
    for hairpin in [true, false] {
        let network = Network { carrier: Some(NatKind::carrier(hairpin)), ..NatKind::home_router().into() };
        let mut sim = Sim::new(1);
        sim.add_relay("r1");
        sim.add_relay("r2");
        sim.add_agent("a", network);
        sim.add_agent_of_same_carrier("b", "a", NatKind::home_router());
        sim.trust("a", "b");
        let mut sim = up(sim, "neighbours");
        let direct = went_direct(&mut sim, SOON);
        assert_eq!(direct, verdict_within_carrier(&network, &network) == Verdict::Direct, "hairpin: {hairpin}");
    }
}

fn both_allow(seed: u64, a: impl Into<Network>, b: impl Into<Network>) -> Sim {
    let mut sim = Sim::seeded_pair(seed, a, b);
    sim.allow_birthday("a", "b");
    sim.allow_birthday("b", "a");
    sim
}

fn up(mut sim: Sim, names: &str) -> Sim {
    let up = sim.run_until(secs(5), |sim| sim.both_up("a", "b"));
    assert!(up.is_some(), "{names}: no session");
    sim
}

/// Looks every now and then: a look costs more than a simulated packet.
fn went_direct(sim: &mut Sim, limit: Duration) -> bool {
    let end = sim.elapsed() + limit;
    while sim.elapsed() < end && !sim.both_direct("a", "b") {
        sim.run_for(ms(250).min(end - sim.elapsed()));
    }
    sim.both_direct("a", "b")
}
