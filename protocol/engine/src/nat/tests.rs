//! One verdict per set of observations.

use super::*;

const R1: &str = "198.18.1.1:3478";
const R1_OTHER_PORT: &str = "198.18.1.1:3479";
const R2: &str = "198.18.2.2:3478";

#[test]
fn one_observation_is_unknown_and_says_what_would_help() {
    let report = seen(&[(R1, "198.18.9.9:4000")]).report();
    assert_eq!(report.nat_type, NatType::Unknown);
    assert_eq!(report.missing, Some(Missing::SecondEndpoint));
}

#[test]
fn two_ports_of_one_address_that_agree_prove_no_independence() {
    let report = seen(&[(R1, "198.18.9.9:4000"), (R1_OTHER_PORT, "198.18.9.9:4000")]).report();
    assert_eq!((report.nat_type, report.missing), (NatType::Unknown, Some(Missing::SecondAddress)));
}

#[test]
fn one_mapping_for_two_relays_is_a_cone_of_unmeasured_filtering() {
    let report = seen(&[(R1, "198.18.9.9:4000"), (R2, "198.18.9.9:4000")]).report();
    assert_eq!((report.nat_type, report.missing), (NatType::Cone, Some(Missing::RelayWithTwoAddresses)));
    assert_eq!(
        report.to_string(),
        "cone (endpoint-independent mapping, filtering not measured, port-preserving); \
         needs a relay with a second address, to measure filtering"
    );
}

#[test]
fn filtering_tells_the_cones_apart() {
    use FilterOutcome::{Answered, Silent};
    for (address, port, expected) in [
        (Answered, Answered, NatType::FullCone),
        (Silent, Answered, NatType::RestrictedCone),
        (Silent, Silent, NatType::PortRestrictedCone),
    ] {
        let mut nat = seen(&[(R1, "198.18.9.9:4000"), (R2, "198.18.9.9:4000")]);
        nat.observe_filtering(FilterTest::OtherAddressAndPort, address);
        nat.observe_filtering(FilterTest::OtherPort, port);
        assert_eq!(nat.report().nat_type, expected);
        assert_eq!(nat.report().missing, None);
    }
}

#[test]
fn a_mapping_per_relay_is_symmetric() {
    let report = seen(&[(R1, "198.18.9.9:4001"), (R2, "198.18.9.9:4002")]).report();
    assert_eq!((report.nat_type, report.behaviour.mapping), (NatType::Symmetric, Mapping::DestinationDependent));
    assert_eq!(report.port_preserving, Some(false));
}

#[test]
fn a_mapping_per_port_is_told_from_one_per_address() {
    let per_port = seen(&[(R1, "198.18.9.9:4001"), (R1_OTHER_PORT, "198.18.9.9:4002")]).report();
    assert_eq!(per_port.behaviour.mapping, Mapping::AddressAndPortDependent);
    let per_address =
        seen(&[(R1, "198.18.9.9:4001"), (R1_OTHER_PORT, "198.18.9.9:4001"), (R2, "198.18.9.9:4002")]).report();
    assert_eq!(per_address.behaviour.mapping, Mapping::AddressDependent);
}

#[test]
fn the_sockets_own_address_is_no_nat() {
    let mut nat = seen(&[(R1, "10.0.0.5:4000"), (R2, "10.0.0.5:4000")]);
    assert_eq!(nat.report().nat_type, NatType::NoNat, "nothing says whether strangers get in");
    assert_eq!(nat.report().missing, Some(Missing::RelayWithTwoAddresses));
    nat.observe_filtering(FilterTest::OtherAddressAndPort, FilterOutcome::Answered);
    assert_eq!((nat.report().nat_type, nat.report().missing), (NatType::OpenInternet, None));
}

#[test]
fn without_a_nat_only_a_filter_that_was_measured_is_called_a_firewall() {
    let mut host = seen(&[(R1, "10.0.0.5:4000")]);
    host.observe_filtering(FilterTest::OtherAddressAndPort, FilterOutcome::Silent);
    host.observe_filtering(FilterTest::OtherPort, FilterOutcome::Silent);
    assert_eq!(host.report().nat_type, NatType::Firewalled);
    host.forget_filtering();
    assert_eq!(host.report().nat_type, NatType::NoNat);
}

#[test]
fn one_relay_that_sees_our_own_address_is_enough_to_say_that_there_is_no_nat() {
    assert_eq!(seen(&[(R1, "10.0.0.5:4000")]).report().behaviour.mapping, Mapping::None);
}

#[test]
fn no_answer_at_all_is_blocked() {
    let mut nat = seen(&[]);
    nat.observe_silence();
    assert_eq!(nat.report().nat_type, NatType::Blocked);
    assert_eq!(nat.report().to_string(), "blocked (no relay answers over UDP)");
}

#[test]
fn while_filtering_is_measured_only_time_is_missing() {
    let mut nat = seen(&[(R1, "198.18.9.9:4000"), (R2, "198.18.9.9:4000")]);
    nat.filtering_runs(true);
    assert_eq!(nat.report().missing, Some(Missing::Moment));
    nat.filtering_runs(false);
    assert_eq!(nat.report().missing, Some(Missing::RelayWithTwoAddresses));
}

#[test]
fn a_measurement_that_ran_in_another_network_is_not_waited_for() {
    let mut nat = seen(&[(R1, "198.18.9.9:4000"), (R2, "198.18.9.9:4000")]);
    nat.filtering_runs(true);
    nat.forget_filtering();
    assert_eq!(nat.report().missing, Some(Missing::RelayWithTwoAddresses));
}

#[test]
fn nobody_is_sent_for_a_second_address_where_only_ipv6_is_spoken() {
    let mut nat = NatClassifier::new(4000, [address("[2001:db8::5]:0").ip()]);
    nat.set_mappings([(address("[2001:db8:6::1]:3478"), address("[2001:db8::5]:4000"))]);
    assert_eq!((nat.report().nat_type, nat.report().missing), (NatType::NoNat, None));
}

#[test]
fn of_two_words_for_one_endpoint_the_first_counts_and_what_was_said_before_does_not() {
    let mut nat = seen(&[(R1, "198.18.9.9:4001"), (R2, "198.18.9.9:4002")]);
    assert_eq!(nat.report().nat_type, NatType::Symmetric);
    let again = [(R1, "198.18.9.9:4000"), (R1, "198.18.9.9:4001"), (R2, "198.18.9.9:4000")];
    nat.set_mappings(again.map(|(endpoint, mapped)| (address(endpoint), address(mapped))));
    assert_eq!(nat.report().nat_type, NatType::Cone);
}

#[test]
fn a_flood_of_endpoints_stays_bounded_and_the_first_count() {
    let mut nat = seen(&[]);
    let flood = (1..1000).map(|port| SocketAddr::new(address(R1).ip(), port));
    nat.set_mappings(flood.map(|endpoint| (endpoint, address("198.18.9.9:4000"))));
    assert_eq!(nat.mapped.keys().map(SocketAddr::port).collect::<Vec<_>>(), (1..=16).collect::<Vec<u16>>());
}

#[test]
fn tokens_survive_the_trip_and_strange_ones_are_errors() {
    for nat_type in NatType::ALL {
        assert_eq!(nat_type.token().parse(), Ok(nat_type));
    }
    assert_eq!("sideways".parse::<NatType>(), Err(UnknownNatType));
}

fn seen(observations: &[(&str, &str)]) -> NatClassifier {
    let mut nat = NatClassifier::new(4000, [address("10.0.0.5:0").ip()]);
    nat.set_mappings(observations.iter().map(|(endpoint, mapped)| (address(endpoint), address(mapped))));
    nat
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("a test address")
}
