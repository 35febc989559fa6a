//! What an AgentPeer says of its pods' sidecars.

use peerage_crds::{ConditionStatus, ConditionType, Reason};
use serde_json::json;

use super::{NOW, OURS, World, name};
use crate::facts::PodFacts;
use crate::index::{Index, PeerLive};

const OLD: &str = "agent:1";
const NEW: &str = "agent:2";

/// An AgentPeer with a pod for each of these.
fn world(pods: &[PodFacts]) -> World {
    let mut world = World::new();
    world.index = Index::new(OURS, NOW).injecting(Some(NEW.into()));
    world.peer("db.tools", json!({}));
    for (number, facts) in pods.iter().enumerate() {
        let labels = super::labels(json!({"app": "db"}));
        let facts = PodFacts { uid: number.to_string(), labels, ..facts.clone() };
        let _ = world.index.set_pod(&name(&format!("db-{number}.tools")), Some(facts));
    }
    world
}

fn pod() -> PodFacts {
    let labels = crate::index::Labels::default();
    PodFacts { uid: String::new(), labels, terminating: false, injected: None, left_alone: None, opted_out: false }
}

fn with(image: &str) -> PodFacts {
    PodFacts { injected: Some(image.into()), ..pod() }
}

fn injected(pods: &[PodFacts]) -> (ConditionStatus, Reason, String) {
    let verdicts = world(pods).index.judge_peer(&name("db.tools"), &PeerLive::default());
    let found = verdicts.into_iter().find(|verdict| verdict.aspect == ConditionType::Injected).expect("it is judged");
    (found.status, found.reason, found.message)
}

#[test]
fn pods_that_were_made_before_injection_need_a_restart() {
    let (status, reason, message) = injected(&[with(NEW), with(NEW), pod(), pod(), pod()]);
    assert_eq!((status, reason), (ConditionStatus::False, Reason::NotInjected));
    assert!(message.starts_with("3 of 5 pods need a restart"), "{message}");
}

#[test]
fn a_pod_that_was_left_alone_needs_no_restart_but_what_its_reason_says() {
    let host = PodFacts { left_alone: Some("it uses hostNetwork".into()), ..pod() };
    let (_, reason, message) = injected(&[with(NEW), host]);
    assert_eq!(reason, Reason::NotInjected);
    assert_eq!(message, "1 of 2 pods were left alone: it uses hostNetwork");
}

#[test]
fn a_pod_that_opted_out_is_said_to_have() {
    let (_, _, message) = injected(&[PodFacts { opted_out: true, ..pod() }]);
    assert_eq!(message, "1 of 1 pods were left alone: annotation peerage.dev/inject says so");
}

#[test]
fn sidecars_of_another_version_than_new_pods_get_are_counted_and_are_no_fault() {
    let (status, reason, message) = injected(&[with(OLD), with(NEW), with(OLD)]);
    assert_eq!((status, reason), (ConditionStatus::True, Reason::OutdatedSidecars));
    assert!(message.contains("2 with another version"), "{message}");
    let numbers = world(&[with(OLD), with(NEW)]).index.peer_numbers(&name("db.tools"), &PeerLive::default());
    assert_eq!(numbers, [2, 2, 0, 1]);
}

#[test]
fn an_operator_that_injects_nothing_calls_no_sidecar_outdated() {
    let index = world(&[with(OLD)]).index.injecting(None);
    assert_eq!(index.pod_sums(&name("db.tools")).outdated, 0);
}

#[test]
fn the_hosts_of_an_agent_are_those_that_it_consents_to() {
    let mut world = World::pair();
    let hosts = |world: &World| world.index.hosts_of(&name("reporter.reports"));
    let [host] = &hosts(&world)[..] else { panic!("one peer: {:?}", hosts(&world)) };
    assert!(host.address.is_loopback());
    assert_eq!(host.names[..], ["db", "db.peer.internal", "db.tools.peer.internal"]);
    let _ = world.index.set_trust(&name("uses-db.reports"), None);
    assert_eq!(hosts(&world), [], "who only consents to us is nobody's name here");
}

#[test]
fn no_agent_is_what_programs_call_themselves_however_it_is_called() {
    for peer in [
        json!({"name": "localhost", "namespace": "tools"}),
        json!({"selector": {"matchLabels": {"tier": "x"}}, "namespace": "tools"}),
    ] {
        let mut world = World::pair();
        let _ = world.index.set_trust(&name("uses-db.reports"), None);
        world.labelled_peer("localhost.tools", json!({"tier": "x"}), json!({}));
        world.any_trust("uses-it", "reporter.reports", peer, json!({}));
        world.trust("serves-too", "localhost.tools", "reporter.reports", json!({}));
        let hosts = world.index.hosts_of(&name("reporter.reports"));
        assert_eq!(hosts.iter().map(|host| &host.names[..]).collect::<Vec<_>>(), [["localhost.tools.peer.internal"]]);
        let (key, facts) = (name("uses-it.reports"), world.index.trust(&name("uses-it.reports")).expect("it is there"));
        assert!(world.index.remarks(&key, facts).contains("name that peer with an alias"));
        assert_eq!(world.index.hostname(&key), None);
    }
}
