//! What a change does not name as touched has not changed: held against asking for everything, after random changes.

use std::collections::BTreeMap;

use peerage_crds::{ConditionStatus, Reason};
use peerage_model::AgentId;
use peerage_model::operator::{Entry, Settings};
use proptest::prelude::*;
use serde_json::json;

use super::{Dirty, NOW, TrustLive, UnixTime, World, id, name};
use crate::index::Verdict;
use crate::key::ObjectKey;

const AGENTS: [&str; 6] = ["a.one", "b.one", "a.two", "b.two", "c.two", "a.three"];

#[derive(Debug, Clone)]
enum Step {
    Peer { agent: usize, labelled: bool, ports: bool },
    NoPeer(usize),
    Trust { slot: usize, agent: usize, peer: usize, alias: Option<bool>, ends: Option<u8> },
    Fleet { slot: usize, agent: usize, namespace: usize },
    NoTrust { slot: usize, agent: usize },
    Link { permits: bool },
    Away { slot: usize, agent: usize },
    Relay { namespace: usize },
    Time(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let agent = 0..AGENTS.len();
    prop_oneof![
        3 => (agent.clone(), any::<bool>(), any::<bool>()).prop_map(|(agent, labelled, ports)| Step::Peer { agent, labelled, ports }),
        1 => agent.clone().prop_map(Step::NoPeer),
        6 => (0..3usize, agent.clone(), agent.clone(), any::<Option<bool>>(), prop::option::of(0..9u8))
            .prop_map(|(slot, agent, peer, alias, ends)| Step::Trust { slot, agent, peer, alias, ends }),
        2 => (0..3usize, agent.clone(), 0..3usize).prop_map(|(slot, agent, namespace)| Step::Fleet { slot, agent, namespace }),
        2 => (0..3usize, agent.clone()).prop_map(|(slot, agent)| Step::NoTrust { slot, agent }),
        1 => any::<bool>().prop_map(|permits| Step::Link { permits }),
        1 => (0..3usize, agent).prop_map(|(slot, agent)| Step::Away { slot, agent }),
        1 => (0..3usize).prop_map(|namespace| Step::Relay { namespace }),
        1 => (0..9u8).prop_map(Step::Time),
    ]
}

const NAMESPACES: [&str; 3] = ["one", "two", "three"];

fn apply(world: &mut World, step: Step) -> Dirty {
    let theirs = peerage_model::Authority::new(&zeroize::Zeroizing::new([9; 96]), NOW);
    match step {
        Step::Peer { agent, labelled, ports } => {
            let labels = if labelled { json!({"crew": "yes"}) } else { json!({}) };
            let ports = if ports { json!([{"name": "mcp"}]) } else { json!([]) };
            world.labelled_peer(AGENTS[agent], labels, json!({"ports": ports}))
        }
        Step::NoPeer(agent) => world.index.set_peer(&name(AGENTS[agent]), None),
        Step::Trust { slot, agent, peer, alias, ends } => {
            let mut more = json!({"inbound": [{"portName": "mcp"}]});
            if let Some(alias) = alias {
                more["alias"] = json!(if alias { "a" } else { "x" });
            }
            if let Some(ends) = ends {
                more["expiresAt"] = json!(format!("2027-01-15T08:00:{:02}Z", u32::from(ends))); // 0 is NOW
            }
            world.trust(&format!("t{agent}-{slot}"), AGENTS[agent], AGENTS[peer], more)
        }
        Step::Fleet { slot, agent, namespace } => {
            let peer = json!({"namespace": NAMESPACES[namespace], "selector": {"matchLabels": {"crew": "yes"}}});
            world.any_trust(&format!("t{agent}-{slot}"), AGENTS[agent], peer, json!({}))
        }
        Step::NoTrust { slot, agent } => {
            let namespace = name(AGENTS[agent]).namespace;
            world.index.set_trust(&ObjectKey::new(namespace, format!("t{agent}-{slot}")), None)
        }
        Step::Link { permits } => world.link(
            "l",
            if permits { json!({"from": "All"}) } else { json!({"from": "Selected", "names": ["one"]}) },
            &theirs,
        ),
        Step::Away { slot, agent } => {
            let peer = json!({"name": "far", "linkRef": {"name": "l"}, "authority": theirs.fingerprint().to_string()});
            world.any_trust(&format!("t{agent}-{slot}"), AGENTS[agent], peer, json!({}))
        }
        Step::Relay { namespace } => world.relay("r", json!({"from": "Selected", "names": [NAMESPACES[namespace]]})),
        Step::Time(seconds) => world.index.advance(UnixTime(NOW.0 + u64::from(seconds))),
    }
}

/// What somebody knows who asks only for what was touched.
#[derive(Default, Debug, PartialEq)]
struct Known {
    entries: BTreeMap<(ObjectKey, AgentId), Entry>,
    settings: BTreeMap<ObjectKey, Settings>,
    verdicts: BTreeMap<ObjectKey, Vec<Verdict>>,
}

fn everything(world: &World) -> Known {
    let mut known = Known::default();
    for agent in AGENTS {
        for peer in world.index.candidates(&name(agent)) {
            if let Some(entry) = world.index.entry(&name(agent), &peer, &[]) {
                known.entries.insert((name(agent), peer), entry);
            }
        }
        if let Some(settings) = world.index.settings(&name(agent)) {
            known.settings.insert(name(agent), settings);
        }
    }
    for trust in world.index.trust_keys() {
        known.verdicts.insert(trust.clone(), world.index.judge_trust(trust, &TrustLive::default(), None));
    }
    known
}

fn refresh(known: &mut Known, world: &World, dirty: &Dirty) {
    if dirty.all {
        *known = everything(world);
        return;
    }
    for (agent, peer) in &dirty.pairs {
        match world.index.entry(agent, peer, &[]) {
            Some(entry) => known.entries.insert((agent.clone(), peer.clone()), entry),
            None => known.entries.remove(&(agent.clone(), peer.clone())),
        };
    }
    for agent in &dirty.agents {
        match world.index.settings(agent) {
            Some(settings) => known.settings.insert(agent.clone(), settings),
            None => known.settings.remove(agent),
        };
    }
    known.verdicts.retain(|trust, _| world.index.trust(trust).is_some());
    for trust in &dirty.trusts {
        if world.index.trust(trust).is_some() {
            known.verdicts.insert(trust.clone(), world.index.judge_trust(trust, &TrustLive::default(), None));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn asking_for_what_was_touched_is_as_good_as_asking_for_everything(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        let mut known = everything(&world);
        for step in steps {
            let dirty = apply(&mut world, step.clone());
            refresh(&mut known, &world, &dirty);
            prop_assert_eq!(&known, &everything(&world), "after {:?}", step);
        }
    }

    #[test]
    fn an_entry_on_one_side_is_an_entry_on_the_other(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            apply(&mut world, step);
        }
        for ((agent, peer), entry) in everything(&world).entries {
            if peer.authority != super::OURS { continue }
            let other = ObjectKey::of_agent(&peer.name).expect("one of ours");
            let back = world.index.entry(&other, &id(&agent.to_string()), &[]);
            prop_assert!(back.is_some(), "{} is told of {} and not the other way round", agent, other);
            prop_assert_eq!(back.expect("just seen").consents[0], entry.consents[1]);
        }
    }

    #[test]
    fn a_trust_is_ready_only_if_there_is_an_entry_that_rests_on_it(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            apply(&mut world, step);
        }
        let known = everything(&world);
        for (trust, verdicts) in known.verdicts {
            let facts = world.index.trust(&trust).expect("it was judged");
            let waits = verdicts[1].reason == Reason::WaitingForPeer || verdicts[0].status == ConditionStatus::False;
            let rests = known.entries.iter().any(|((agent, _), entry)| *agent == facts.agent && entry.consents[0] == facts.uid);
            prop_assert_eq!(!waits, rests, "{:?}: {:?}", trust, verdicts);
        }
    }
}
