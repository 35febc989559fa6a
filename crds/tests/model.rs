//! What the API server admits, the protocol's types parse: patterns against parsers, with random strings of each.

use peerage_crds::shape;
use peerage_model::relay::RelayInfo;
use peerage_model::{AgentName, Fingerprint, Label};
use proptest::prelude::*;
use regex::Regex;

fn admits(pattern: &str, max: usize, text: &str) -> bool {
    text.chars().count() <= max && Regex::new(pattern).expect("a pattern").is_match(text)
}

/// Words that are near to valid ones, so that both answers occur.
fn near() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9A-Z._-]{0,70}",
        "[a-z0-9]([a-z0-9-]{0,70})",
        "[a-z0-9]{1,63}\\.[a-z0-9]{1,63}",
        "[0-9a-f]{62,66}",
        ".{0,8}",
        "[a-z]{1,5}\n?",
    ]
}

fn relays() -> impl Strategy<Value = String> {
    let key = prop_oneof![4 => "[a-zA-Z2-7]{51}[aqAQ]", 1 => "[a-z0-9]{50,53}"];
    let host = prop_oneof!["[a-z0-9.-]{1,20}", "\\[[0-9a-f:.]{2,20}\\]", "[0-9a-f:]{2,20}", "[a-z]{250,256}"];
    let port =
        prop_oneof![Just(String::new()), (0u32..80_000).prop_map(|port| format!(":{port}")), Just(":+1".to_owned())];
    let tls = prop_oneof![Just(String::new()), (0u32..80_000).prop_map(|port| format!("/{port}"))];
    (key, host, port, tls).prop_map(|(key, host, port, tls)| format!("{key}@{host}{port}{tls}"))
}

proptest! {
    #[test]
    fn labels_are_the_same_words_on_both_sides(text in near()) {
        prop_assert_eq!(admits(shape::LABEL, shape::LABEL_MAX, &text), text.parse::<Label>().is_ok());
    }

    #[test]
    fn agent_names_are_the_same_words_on_both_sides(text in near()) {
        let admitted = admits(shape::AGENT_NAME, shape::AGENT_NAME_MAX, &text);
        prop_assert_eq!(admitted, text.parse::<AgentName>().is_ok());
    }

    #[test]
    fn a_name_and_a_namespace_make_an_agent_name(name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", space in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?") {
        prop_assert!(admits(shape::LABEL, shape::LABEL_MAX, &name));
        let whole = [name, space].join(".");
        prop_assert!(whole.parse::<AgentName>().is_ok(), "{}", whole);
    }

    #[test]
    fn fingerprints_are_the_same_words_on_both_sides(text in prop_oneof![near(), "[0-9a-f]{64}"]) {
        let admitted = admits(shape::FINGERPRINT, shape::FINGERPRINT_LEN, &text);
        prop_assert_eq!(admitted, text.parse::<Fingerprint>().is_ok());
    }

    #[test]
    fn a_relay_that_is_admitted_parses(text in prop_oneof![4 => relays(), 1 => near()]) {
        if admits(shape::RELAY, shape::RELAY_MAX, &text) {
            prop_assert!(text.parse::<RelayInfo>().is_ok(), "{}", text);
        }
    }

    #[test]
    fn what_a_relay_prints_of_itself_is_admitted(key in any::<[u8; 32]>(), host in prop_oneof!["[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?", Just("2001:db8::1".to_owned())], port in 1u16.., tls in proptest::option::of(1u16..)) {
        let relay = RelayInfo { key: peerage_model::AgreementKey(key), host: host.parse().expect("a host"), port, tls };
        let text = relay.to_string();
        prop_assert!(admits(shape::RELAY, shape::RELAY_MAX, &text), "{}", text);
    }
}
