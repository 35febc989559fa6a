//! What follows from which objects. Objects are written as users write them; see also `incremental`.

mod incremental;
mod injection;
mod scale;

use std::collections::BTreeMap;

use peerage_crds::{ConditionStatus, ConditionType, PathSummary, Reason};
use peerage_model::operator::Entry;
use peerage_model::relay::frame::Refusal as RelayRefusal;
use peerage_model::{AgentId, AgreementSecret, Fingerprint, UnixTime};
use serde_json::{Value, json};

use super::{Dirty, Heard, Index, Labels, LinkLive, PeerLive, PodAgent, TrustLive};
use crate::facts::{LinkFacts, LinkRecord, PeerFacts, PodFacts, RelayFacts, TrustFacts};
use crate::key::ObjectKey;

pub const NOW: UnixTime = UnixTime(1_800_000_000);
pub const OURS: Fingerprint = Fingerprint([1; 32]);

/// Labels as an object has them.
fn labels(of: Value) -> Labels {
    Labels::from(&serde_json::from_value::<BTreeMap<_, _>>(of).expect("labels"))
}

/// A cluster in which a test makes objects.
pub struct World {
    pub index: Index,
    serial: u32,
}

impl World {
    fn new() -> Self {
        let mut world = Self { index: Index::new(OURS, NOW), serial: 0 };
        world.relay("public", json!({"from": "All"}));
        world
    }

    fn meta(&mut self, namespace: &str, name: &str) -> Value {
        self.serial += 1;
        json!({
            "namespace": namespace, "name": name, "generation": 1,
            "uid": format!("00000000-0000-0000-0000-{:012}", self.serial),
            "creationTimestamp": format!("2026-01-01T00:{:02}:{:02}Z", self.serial / 60 % 60, self.serial % 60),
        })
    }

    pub fn peer(&mut self, key: &str, spec: Value) -> Dirty {
        self.labelled_peer(key, json!({}), spec)
    }

    pub fn labelled_peer(&mut self, key: &str, labels: Value, spec: Value) -> Dirty {
        let key = name(key);
        let mut metadata = self.meta(&key.namespace, &key.name);
        metadata["labels"] = labels;
        let mut full = json!({"selector": {"matchLabels": {"app": *key.name}}});
        merge(&mut full, spec);
        let object =
            json!({"apiVersion": "peerage.dev/v1alpha1", "kind": "AgentPeer", "metadata": metadata, "spec": full});
        let object = serde_json::from_value(object).expect("an AgentPeer");
        self.index.set_peer(&key, Some(PeerFacts::read(&object).expect("it is read")))
    }

    /// `name` is the object's, `agent` and `peer` are `NAME.NAMESPACE`.
    pub fn trust(&mut self, object: &str, agent: &str, peer: &str, more: Value) -> Dirty {
        let peer = name(peer);
        self.any_trust(object, agent, json!({"name": *peer.name, "namespace": *peer.namespace}), more)
    }

    pub fn any_trust(&mut self, object: &str, agent: &str, peer: Value, more: Value) -> Dirty {
        let agent = name(agent);
        let metadata = self.meta(&agent.namespace, object);
        let mut spec = json!({"agentRef": {"name": *agent.name}, "peer": peer});
        merge(&mut spec, more);
        let value =
            json!({"apiVersion": "peerage.dev/v1alpha1", "kind": "AgentTrust", "metadata": metadata, "spec": spec});
        let value = serde_json::from_value(value).expect("an AgentTrust");
        let key = ObjectKey::new(agent.namespace, object);
        self.index.set_trust(&key, Some(TrustFacts::read(&value).expect("it is read")))
    }

    pub fn relay(&mut self, relay: &str, allowed: Value) -> Dirty {
        let address = format!("{}@{relay}.example.com:3478", "a".repeat(52));
        let value = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentRelay", "metadata": {"name": relay},
            "spec": {"address": address, "allowedNamespaces": allowed},
        });
        let value = serde_json::from_value(value).expect("an AgentRelay");
        self.index.set_relay(relay, Some(RelayFacts::read(&value).expect("it is read")))
    }

    pub fn link(&mut self, link: &str, allowed: Value, authority: &peerage_model::Authority) -> Dirty {
        let value = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentLink", "metadata": {"name": link},
            "spec": {"allowedNamespaces": allowed, "bootstrap": {"tokenSecretRef": {}}},
        });
        let value = serde_json::from_value(value).expect("an AgentLink");
        let mut dirty = self.index.set_link(link, Some(LinkFacts::read(&value).expect("it is read")));
        let operator = peerage_model::linking::OPERATOR.parse().expect("a name");
        let record = LinkRecord::Known { record: authority.record().clone(), name: operator, relays: Vec::new() };
        dirty.extend(self.index.set_record(link, Some(record)));
        dirty
    }

    pub fn pod(&mut self, key: &str, labels: Value) -> Dirty {
        let key = name(key);
        self.serial += 1;
        let labels = self::labels(labels);
        let uid = format!("uid-{}-{}", key, self.serial);
        self.index.set_pod(
            &key,
            Some(PodFacts { uid, labels, terminating: false, injected: None, left_alone: None, opted_out: false }),
        )
    }

    pub fn entry(&self, agent: &str, peer: &str) -> Option<Entry> {
        self.index.entry(&name(agent), &id(peer), &[AgreementSecret::from_bytes([7; 32])])
    }

    fn ready(&self, trust: &str) -> (ConditionStatus, Reason) {
        let live = TrustLive { expected: 1, acknowledged: 1, ..TrustLive::default() };
        let verdicts = self.index.judge_trust(&name(trust), &live, None);
        let ready = verdicts.iter().find(|verdict| verdict.aspect == ConditionType::Ready).expect("always judged");
        (ready.status, ready.reason)
    }

    /// Two agents that trust each other.
    fn pair() -> Self {
        let mut world = Self::new();
        world.peer("db.tools", json!({"ports": [{"name": "mcp", "port": 80, "targetPort": 8080}]}));
        world.peer("reporter.reports", json!({}));
        world.trust("uses-db", "reporter.reports", "db.tools", json!({}));
        world.trust("serves", "db.tools", "reporter.reports", json!({"inbound": [{"portName": "mcp"}]}));
        world
    }
}

fn merge(into: &mut Value, from: Value) {
    for (key, value) in from.as_object().expect("a map").clone() {
        into[key] = value;
    }
}

pub fn name(text: &str) -> ObjectKey {
    let (name, namespace) = text.split_once('.').expect("NAME.NAMESPACE");
    ObjectKey::new(namespace, name)
}

pub fn id(text: &str) -> AgentId {
    name(text).agent(OURS).expect("an agent's name")
}

#[test]
fn two_consents_across_namespaces_make_an_entry_on_either_side() {
    let world = World::pair();
    let (here, there) = (world.entry("reporter.reports", "db.tools"), world.entry("db.tools", "reporter.reports"));
    let (here, there) = (here.expect("both consent"), there.expect("both consent"));
    assert_eq!(here.peer.alias.as_str(), "db");
    assert_eq!(here.peer.ports.len(), 1, "what the peer opens to us is known ahead");
    assert_eq!(there.peer.inbound[0].as_str(), "mcp");
    assert_eq!(here.peer.secrets, there.peer.secrets, "both derive the same secret");
    assert_eq!(here.consents, [there.consents[1], there.consents[0]], "each names its own first");
    assert_eq!(here.peer.relays.len(), 1);
}

#[test]
fn one_consent_is_nothing_and_says_the_same_as_a_name_that_nobody_has() {
    let mut world = World::pair();
    world.trust("hopes", "db.tools", "nobody.reports", json!({}));
    world.index.set_trust(&name("uses-db.reports"), None);
    assert_eq!(world.entry("db.tools", "reporter.reports"), None);
    assert_eq!(world.entry("reporter.reports", "db.tools"), None);
    let waiting = (ConditionStatus::False, Reason::WaitingForPeer);
    assert_eq!((world.ready("serves.tools"), world.ready("hopes.tools")), (waiting, waiting));
}

#[test]
fn a_deleted_trust_is_gone_and_touches_its_two_agents_only() {
    let mut world = World::pair();
    world.peer("other.tools", json!({}));
    let uid = world.index.trust(&name("serves.tools")).expect("it is there").uid;
    let dirty = world.index.set_trust(&name("serves.tools"), None);
    assert_eq!(dirty.gone.into_keys().collect::<Vec<_>>(), [uid]);
    let agents: Vec<_> = dirty.pairs.iter().map(|(agent, _)| agent.to_string()).collect();
    assert_eq!(agents, ["reporter.reports", "db.tools"]);
    assert!(!dirty.all && dirty.agents.is_empty());
}

#[test]
fn a_trust_made_again_under_its_name_has_a_new_uid_and_the_old_one_is_gone() {
    let mut world = World::pair();
    let old = world.index.trust(&name("serves.tools")).expect("it is there").uid;
    let dirty = world.trust("serves", "db.tools", "reporter.reports", json!({}));
    assert!(dirty.gone.contains_key(&old));
    let entry = world.entry("db.tools", "reporter.reports").expect("both consent again");
    assert!(!entry.consents.contains(&old));
}

#[test]
fn a_trust_that_cannot_be_read_is_out_for_the_time_being_and_not_for_ever() {
    let mut world = World::pair();
    let facts = world.index.trust(&name("serves.tools")).expect("it is there").clone();
    let dirty = world.index.hide_trust(&name("serves.tools"));
    assert!(dirty.gone.is_empty() && dirty.pairs.len() == 2);
    assert_eq!(world.entry("reporter.reports", "db.tools"), None);
    world.index.set_trust(&name("serves.tools"), Some(facts));
    assert!(world.entry("reporter.reports", "db.tools").is_some());
}

#[test]
fn a_trust_ends_when_it_says_and_its_earlier_end_is_the_pairs() {
    let mut world = World::pair();
    world.trust("serves", "db.tools", "reporter.reports", json!({"expiresAt": "2027-06-01T00:00:00Z"}));
    let end = world.entry("reporter.reports", "db.tools").expect("not yet").peer.expires.expect("it ends");
    assert_eq!(world.index.next_ending(), Some(end));
    assert!(world.index.advance(UnixTime(end.0 - 1)).is_empty());
    let dirty = world.index.advance(end);
    assert_eq!(dirty.pairs.len(), 2);
    assert!(dirty.gone.is_empty(), "a later expiresAt may bring it back");
    assert_eq!(world.entry("reporter.reports", "db.tools"), None);
    assert_eq!(world.ready("serves.tools"), (ConditionStatus::False, Reason::Expired));
    assert_eq!(world.ready("uses-db.reports"), (ConditionStatus::False, Reason::WaitingForPeer));
    world.index.advance(NOW);
    assert_eq!(world.entry("reporter.reports", "db.tools"), None, "a clock set back brings nothing back");
}

#[test]
fn a_fleet_is_whoever_carries_the_labels_in_that_namespace_now() {
    let mut world = World::new();
    world.peer("hub.ops", json!({}));
    let fleet = json!({"namespace": "crew", "selector": {"matchLabels": {"role": "worker"}}});
    world.any_trust("workers", "hub.ops", fleet, json!({}));
    for worker in ["a.crew", "b.crew", "c.elsewhere"] {
        world.labelled_peer(worker, json!({"role": "worker"}), json!({}));
        world.trust(&format!("to-hub-{}", &worker[..1]), worker, "hub.ops", json!({}));
    }
    assert!(world.entry("hub.ops", "a.crew").is_some() && world.entry("b.crew", "hub.ops").is_some());
    assert_eq!(world.entry("hub.ops", "c.elsewhere"), None, "a fleet stays within its namespace");
    let dirty = world.labelled_peer("b.crew", json!({}), json!({}));
    assert_eq!(world.entry("hub.ops", "b.crew"), None);
    assert!(dirty.pairs.contains(&(name("hub.ops"), id("b.crew"))));
    assert!(!dirty.pairs.contains(&(name("hub.ops"), id("a.crew"))), "the others are not touched");
}

#[test]
fn of_two_peers_with_one_alias_the_elder_keeps_it() {
    let mut world = World::new();
    for agent in ["hub.ops", "db.east", "db.west"] {
        world.peer(agent, json!({}));
    }
    world.trust("east", "hub.ops", "db.east", json!({}));
    world.trust("west", "hub.ops", "db.west", json!({}));
    world.trust("hub", "db.east", "hub.ops", json!({}));
    world.trust("hub", "db.west", "hub.ops", json!({}));
    assert!(world.entry("hub.ops", "db.east").is_some());
    assert_eq!(world.entry("hub.ops", "db.west"), None);
    assert_eq!(world.entry("db.west", "hub.ops"), None, "what does not hold on one side does not on the other");
    assert_eq!(world.ready("west.ops"), (ConditionStatus::False, Reason::AliasConflict));
    world.index.set_trust(&name("east.ops"), None);
    assert!(world.entry("hub.ops", "db.west").is_some(), "the alias is free again");
    world.trust("east-again", "hub.ops", "db.east", json!({"alias": "db-east"}));
    assert!(world.entry("hub.ops", "db.east").is_some() && world.entry("hub.ops", "db.west").is_some());
}

#[test]
fn a_second_trust_for_the_same_peer_says_that_it_is_one() {
    let mut world = World::pair();
    world.trust("again", "reporter.reports", "db.tools", json!({"alias": "other"}));
    assert_eq!(world.ready("again.reports"), (ConditionStatus::False, Reason::DuplicateTrust));
    assert_eq!(world.entry("reporter.reports", "db.tools").expect("the elder holds").peer.alias.as_str(), "db");
}

#[test]
fn a_trust_without_its_agent_says_so_until_there_is_one() {
    let mut world = World::new();
    world.trust("early", "late.ops", "db.tools", json!({}));
    assert_eq!(world.ready("early.ops"), (ConditionStatus::False, Reason::AgentNotFound));
    let dirty = world.peer("late.ops", json!({}));
    assert!(dirty.trusts.contains(&name("early.ops")));
    assert_eq!(world.ready("early.ops").1, Reason::WaitingForPeer);
}

#[test]
fn who_is_connected_is_ready_and_who_has_no_pods_too() {
    let mut world = World::pair();
    assert_eq!(world.ready("uses-db.reports"), (ConditionStatus::True, Reason::NoPods));
    world.pod("one.reports", json!({"app": "reporter"}));
    assert_eq!(world.ready("uses-db.reports"), (ConditionStatus::True, Reason::AsDeclared));
    let key = name("uses-db.reports");
    let slow = TrustLive { expected: 2, acknowledged: 1, overdue: true, ..TrustLive::default() };
    let programmed = |live: &TrustLive, before| world.index.judge_trust(&key, live, before)[1].clone();
    assert_eq!(programmed(&slow, Some(ConditionStatus::True)).reason, Reason::WaitingForAgents);
    let moving = TrustLive::default();
    assert_eq!(programmed(&moving, Some(ConditionStatus::True)).status, ConditionStatus::True, "streams may move");
    assert_eq!(programmed(&moving, None).reason, Reason::WaitingForAgents);
}

#[test]
fn only_a_relay_that_serves_others_is_said_to_need_our_authority() {
    let index = Index::new(OURS, NOW);
    for (why, expected) in [
        (RelayRefusal::Authority, true),
        (RelayRefusal::Credential, false),
        (RelayRefusal::Full, false),
        (RelayRefusal::Draining, false),
    ] {
        let verdicts = index.judge_relay(Some(Heard::Refusal(why)), None);
        let says_so = verdicts.iter().any(|verdict| verdict.message.contains("--allow-authority"));
        assert_eq!(says_so, expected, "{verdicts:?}");
    }
}

#[test]
fn silence_takes_nothing_from_a_trust_over_a_link_that_was_connected_and_failure_does() {
    let authority = peerage_model::Authority::new(&zeroize::Zeroizing::new([9; 96]), NOW);
    let mut world = World::new();
    world.peer("reporter.reports", json!({}));
    let peer = json!({"name": "db", "namespace": "tools", "linkRef": {"name": "far"}, "authority": authority.fingerprint().to_string()});
    world.any_trust("remote", "reporter.reports", peer, json!({}));
    world.link("far", json!({"from": "All"}), &authority);
    let ready = |world: &World, path, was_connected, failing| {
        let live = TrustLive { expected: 1, acknowledged: 1, path, was_connected, failing, ..TrustLive::default() };
        let verdicts = world.index.judge_trust(&name("remote.reports"), &live, None);
        verdicts.iter().find(|verdict| verdict.aspect == ConditionType::Ready).expect("always judged").reason
    };
    let idle = Some(PathSummary::Idle);
    assert_eq!(ready(&world, idle, false, false), Reason::WaitingForPeer, "nobody is there who could have asked");
    assert_eq!(ready(&world, idle, true, false), Reason::NoPods, "it was answered before its pods went");
    world.pod("reporter-1.reports", json!({"app": "reporter"}));
    assert_eq!(ready(&world, idle, false, false), Reason::WaitingForPeer);
    assert_eq!(ready(&world, Some(PathSummary::Direct), false, false), Reason::AsDeclared);
    assert_eq!(ready(&world, idle, true, false), Reason::AsDeclared);
    assert_eq!(ready(&world, idle, true, true), Reason::WaitingForPeer);
    let link = world.index.judge_link("far", Some(&LinkLive::Connecting));
    let unknown =
        link.iter().filter(|verdict| verdict.status == ConditionStatus::Unknown).map(|verdict| verdict.aspect);
    assert_eq!(unknown.collect::<Vec<_>>(), [ConditionType::Connected], "it is being called");
}

#[test]
fn of_many_rivals_a_condition_names_a_few() {
    let mut world = World::new();
    for number in 0..300 {
        world.peer(&format!("agent-{number:050}.tools"), json!({"selector": {"matchLabels": {"app": "one"}}}));
    }
    let key = name(&format!("agent-{:050}.tools", 0));
    let accepted = world.index.judge_peer(&key, &PeerLive::default()).swap_remove(0);
    assert!(accepted.message.len() < 1000 && accepted.message.contains("and 291 more"), "{}", accepted.message);
}

#[test]
fn a_port_that_programs_do_not_find_where_it_should_be_is_a_conflict_until_it_is_mended() {
    let mut world = World::pair();
    world.pod("one.reports", json!({"app": "reporter"}));
    let ready = |conflict: Option<&str>| {
        let live =
            TrustLive { expected: 1, acknowledged: 1, conflict: conflict.map(Into::into), ..TrustLive::default() };
        let verdicts = world.index.judge_trust(&name("uses-db.reports"), &live, None);
        verdicts.into_iter().next_back().expect("Ready is the last")
    };
    let conflict = ready(Some("port 80/tcp of the peer: set localPort"));
    assert_eq!((conflict.status, conflict.reason), (ConditionStatus::False, Reason::PortConflict));
    assert!(conflict.message.contains("localPort"));
    assert_eq!(ready(None).status, ConditionStatus::True);
}

#[test]
fn a_link_serves_the_namespaces_it_lists_and_the_authority_that_was_pinned() {
    let theirs = peerage_model::Authority::new(&zeroize::Zeroizing::new([9; 96]), NOW);
    let mut world = World::new();
    world.peer("reporter.reports", json!({}));
    let away = |authority: Fingerprint| json!({"name": "db", "namespace": "tools", "linkRef": {"name": "b"}, "authority": authority.to_string()});
    world.any_trust("remote", "reporter.reports", away(theirs.fingerprint()), json!({}));
    world.any_trust("fooled", "reporter.reports", away(Fingerprint([5; 32])), json!({"alias": "x"}));
    assert_eq!(world.ready("remote.reports").1, Reason::LinkNotFound);
    world.pod("reporter-1.reports", json!({"app": "reporter"}));
    world.link("b", json!({"from": "Selected", "names": ["others"]}), &theirs);
    assert_eq!(world.ready("remote.reports").1, Reason::NotPermittedByLink);
    let dirty = world.link("b", json!({"from": "Selected", "names": ["reports"]}), &theirs);
    let peer = AgentId { authority: theirs.fingerprint(), name: "db.tools".parse().expect("a name") };
    assert!(dirty.pairs.contains(&(name("reporter.reports"), peer.clone())));
    assert_eq!(world.ready("remote.reports").1, Reason::WaitingForPeer, "their consent shows when they connect");
    assert_eq!(world.ready("fooled.reports").1, Reason::AuthorityChanged);
    let entry = world.index.entry(&name("reporter.reports"), &peer, &[AgreementSecret::from_bytes([7; 32])]);
    assert_eq!(entry.expect("our consent is all we can see").link.expect("it has one").as_str(), "b");
}

#[test]
fn a_relay_is_told_to_the_namespaces_it_lists_and_an_agent_without_one_is_not_ready() {
    let mut world = World::pair();
    world.relay("public", json!({"from": "Selected", "selector": {"matchLabels": {"relay": "yes"}}}));
    assert!(world.index.relays_of("tools").is_empty());
    let labels = labels(json!({"relay": "yes"}));
    assert!(world.index.set_namespace("tools", Some(labels)).all);
    assert_eq!(world.entry("reporter.reports", "db.tools").expect("both consent").peer.relays.len(), 1);
    world.pod("one.reports", json!({"app": "reporter"}));
    let live = PeerLive { enrolled: 1, ..PeerLive::default() };
    let verdicts = world.index.judge_peer(&name("reporter.reports"), &live);
    assert_eq!(verdicts[3].reason, Reason::NotPermittedByRelay);
}

#[test]
fn an_agent_that_misses_a_peer_s_port_is_ready_and_says_which_one_unless_it_is_not_ready_at_all() {
    let mut world = World::pair();
    world.pod("one.reports", json!({"app": "reporter"}));
    let conflict = "db.tools: port 80/tcp of the peer: set localPort";
    let ready = |enrolled| {
        let live = PeerLive { enrolled, conflict: Some(conflict.into()), ..PeerLive::default() };
        world.index.judge_peer(&name("reporter.reports"), &live).pop().expect("Ready is the last")
    };
    let enrolled = ready(1);
    assert_eq!((enrolled.status, enrolled.reason), (ConditionStatus::True, Reason::PortConflict));
    assert_eq!(enrolled.message, conflict);
    assert_eq!(ready(0).status, ConditionStatus::False);
}

#[test]
fn two_agents_that_select_one_pod_both_say_so_and_the_pod_is_neither() {
    let mut world = World::new();
    world.peer("db.tools", json!({}));
    world.pod("db-1.tools", json!({"app": "db", "tier": "a"}));
    let uid = world.index.pod(&name("db-1.tools")).expect("it is there").uid.clone();
    assert_eq!(world.index.agent_of(&name("db-1.tools"), &uid, "any"), PodAgent::One(name("db.tools")));
    let dirty = world.peer("thief.tools", json!({"selector": {"matchLabels": {"tier": "a"}}}));
    assert!(dirty.pods.contains(&name("db-1.tools")) && dirty.judged.contains(&name("thief.tools")));
    assert!(matches!(world.index.agent_of(&name("db-1.tools"), &uid, "any"), PodAgent::Ambiguous(_)));
    for agent in ["db.tools", "thief.tools"] {
        let accepted = &world.index.judge_peer(&name(agent), &PeerLive::default())[0];
        assert_eq!(accepted.reason, Reason::ConflictingSelector, "{agent}");
    }
}

#[test]
fn what_cannot_be_read_is_unknown_and_takes_nothing_away_that_was_read() {
    let mut world = World::new();
    world.pod("db-1.tools", json!({"app": "db"}));
    let uid = world.index.pod(&name("db-1.tools")).expect("it is there").uid.clone();
    let agent = |world: &World| world.index.agent_of(&name("db-1.tools"), &uid, "any");
    assert_eq!(agent(&world), PodAgent::None);
    world.index.hide_peer(&name("db.tools"));
    assert_eq!(agent(&world), PodAgent::Unknown(name("db.tools")), "it may be its pod");
    world.peer("db.tools", json!({}));
    world.index.hide_peer(&name("db.tools"));
    assert_eq!(agent(&world), PodAgent::One(name("db.tools")));

    let authority = peerage_model::Authority::new(&zeroize::Zeroizing::new([9; 96]), NOW);
    let peer = json!({"name": "db", "linkRef": {"name": "far"}, "authority": authority.fingerprint().to_string()});
    world.any_trust("remote", "db.tools", peer, json!({}));
    let dirty = world.index.hide_link("far");
    assert_eq!((dirty.trusts.len(), world.ready("remote.tools").1), (1, Reason::LinkUnreadable));
    world.link("far", json!({"from": "All"}), &authority);
    world.index.hide_link("far");
    assert_ne!(world.ready("remote.tools").1, Reason::LinkUnreadable);
}

#[test]
fn labels_do_not_make_an_agent_where_a_service_account_is_asked_for() {
    let mut world = World::new();
    world.peer("db.tools", json!({"serviceAccountName": "db"}));
    world.pod("forged.tools", json!({"app": "db"}));
    world.pod("far.elsewhere", json!({"app": "db"}));
    let uid = |pod: &str| world.index.pod(&name(pod)).expect("it is there").uid.clone();
    let agent = |pod: &str, account: &str| world.index.agent_of(&name(pod), &uid(pod), account);
    assert!(matches!(agent("forged.tools", "default"), PodAgent::OtherServiceAccount { .. }));
    assert_eq!(agent("forged.tools", "db"), PodAgent::One(name("db.tools")));
    assert_eq!(agent("far.elsewhere", "db"), PodAgent::None, "an AgentPeer selects in its own namespace");
    assert_eq!(world.index.agent_of(&name("forged.tools"), "another uid", "db"), PodAgent::Gone);
}
