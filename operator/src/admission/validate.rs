//! What CEL cannot see, because it is in other objects: warnings for what may still come, and a refusal for what can never
//! be right. Pure, from the object and the index; everything said here the object's status says as well, later.

use kube::Resource;
use peerage_crds::{AgentLink, AgentPeer, AgentRelay, AgentTrust, Reason};
use peerage_model::snapshot::Protocol;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::facts::{LinkFacts, PeerFacts, Permitted, RelayFacts, TrustFacts, Unreadable};
use crate::index::Index;
use crate::key::ObjectKey;

/// What there is to say of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why it cannot be.
    pub refusal: Option<String>,
    /// What its owner should know.
    pub warnings: Vec<String>,
}

/// Looks at an object of ours that is made or changed.
#[must_use]
pub fn look(index: &Index, key: &ObjectKey, kind: &str, object: &Value) -> Findings {
    let warnings = if kind == AgentPeer::kind(&()) {
        read(object, PeerFacts::read).map(|facts| of_peer(index, key, &facts))
    } else if kind == AgentTrust::kind(&()) {
        return read(object, TrustFacts::read).map(|facts| of_trust(index, key, &facts)).unwrap_or_default();
    } else if kind == AgentLink::kind(&()) {
        read(object, LinkFacts::read).map(|facts| of_allowed(index, &facts.allowed))
    } else if kind == AgentRelay::kind(&()) {
        read(object, RelayFacts::read).map(|facts| of_allowed(index, &facts.allowed))
    } else {
        None
    };
    Findings { refusal: None, warnings: warnings.unwrap_or_default() }
}

/// What cannot be read is the business of the schema.
fn read<K: DeserializeOwned, T>(object: &Value, facts: impl FnOnce(&K) -> Result<T, Unreadable>) -> Option<T> {
    serde_json::from_value(object.clone()).ok().and_then(|object| facts(&object).ok())
}

fn of_trust(index: &Index, key: &ObjectKey, facts: &TrustFacts) -> Findings {
    let mut findings = Findings::default();
    match index.accept(key, facts) {
        Ok(()) => {}
        // Which two an AgentTrust is about never changes, so this one never becomes another.
        Err(refusal) if refusal.reason == Reason::PeerIsSelf => findings.refusal = Some(refusal.message),
        Err(refusal) => findings.warnings.push(format!("this has no effect yet: {}", refusal.message)),
    }
    if let Some(agent) = index.peer(&facts.agent) {
        let remarks = index.remarks(key, facts);
        findings.warnings.extend((!remarks.is_empty()).then_some(remarks));
        findings.warnings.extend(clashes(agent, facts));
    }
    findings
}

/// The agent keeps off the ports that its own programs listen on.
fn clashes(agent: &PeerFacts, facts: &TrustFacts) -> Vec<String> {
    let known = facts.ports.iter().flatten();
    let taken = known
        .filter(|port| agent.ports.iter().any(|offer| (offer.target, offer.protocol) == (port.local, port.protocol)));
    let text = |port: &crate::facts::trust::KnownPort| {
        format!(
            "a program of AgentPeer `{}` listens on port {} itself; set localPort of the peer's port {}",
            facts.agent.name, port.local, port.number
        )
    };
    taken.map(text).collect()
}

fn of_peer(index: &Index, key: &ObjectKey, facts: &PeerFacts) -> Vec<String> {
    let mut warnings = Vec::new();
    let overlaps = |other: &PeerFacts| facts.selector.cover(&other.selector) || other.selector.cover(&facts.selector);
    for (rival, _) in index.peers_in(&key.namespace).filter(|(other, peer)| *other != key && overlaps(peer)) {
        warnings.push(format!(
            "AgentPeer `{}` selects the same pods, and a pod that two select is neither; change a selector",
            rival.name
        ));
    }
    if facts.ports.iter().any(|offer| offer.target == 53) {
        warnings.push(
            "a program on port 53 is where the agent answers for names; set annotation peerage.dev/dns: HostAliases of the pods"
                .into(),
        );
    }
    let twice = |offer: &&peerage_model::operator::Offer| offer.protocol == Protocol::Tcp && offer.target == 9402;
    if let Some(offer) = facts.ports.iter().find(twice) {
        warnings.push(format!(
            "declare containerPort {} in the pods, so that the agent's own /readyz goes elsewhere",
            offer.target
        ));
    }
    warnings
}

fn of_allowed(index: &Index, allowed: &Permitted) -> Vec<String> {
    let names = match allowed {
        Permitted::All => &[][..],
        Permitted::Selected { names, .. } => names,
    };
    let unknown = names.iter().filter(|name| !index.has_namespace(name));
    unknown.map(|name| format!("allowedNamespaces names `{name}`, and there is no such namespace yet")).collect()
}

#[cfg(test)]
mod tests {
    use peerage_model::{Fingerprint, UnixTime};
    use serde_json::json;

    use super::*;
    use crate::index::Labels;

    struct World(Index);

    impl World {
        fn new() -> Self {
            let mut index = Index::new(Fingerprint([1; 32]), UnixTime(1_800_000_000));
            let _ = index.set_namespace("tools", Some(Labels::default()));
            Self(index)
        }

        fn with(mut self, name: &str, spec: Value) -> Self {
            let object = object("AgentPeer", name, spec);
            let facts = read(&object, PeerFacts::read).expect("an AgentPeer");
            let _ = self.0.set_peer(&ObjectKey::new("tools", name), Some(facts));
            self
        }

        fn look(&self, kind: &str, name: &str, spec: Value) -> Findings {
            look(&self.0, &ObjectKey::new("tools", name), kind, &object(kind, name, spec))
        }
    }

    fn object(kind: &str, name: &str, spec: Value) -> Value {
        let metadata = json!({"name": name, "namespace": "tools"});
        json!({"apiVersion": "peerage.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
    }

    fn selecting(app: &str) -> Value {
        json!({"selector": {"matchLabels": {"app": app}}, "ports": [{"name": "mcp", "port": 80, "targetPort": 8080}]})
    }

    fn trust(peer: Value) -> Value {
        json!({"agentRef": {"name": "db"}, "peer": peer})
    }

    #[track_caller]
    fn warns(findings: &Findings, of: &str) {
        assert_eq!(findings.refusal, None);
        assert!(findings.warnings.len() == 1 && findings.warnings[0].contains(of), "{findings:?}");
    }

    #[test]
    fn an_agent_that_does_not_exist_yet_is_a_warning() {
        warns(&World::new().look("AgentTrust", "t", trust(json!({"name": "planner"}))), "there is no AgentPeer `db`");
    }

    #[test]
    fn trust_in_oneself_is_refused_however_it_is_written() {
        let world = World::new().with("db", selecting("db"));
        for own in [json!({"name": "db"}), json!({"name": "db", "namespace": "tools"})] {
            let findings = world.look("AgentTrust", "t", trust(own));
            assert!(findings.refusal.is_some_and(|why| why.contains("needs no trust in itself")));
        }
        assert_eq!(
            world.look("AgentTrust", "t", trust(json!({"name": "db", "namespace": "lab"}))),
            Findings::default()
        );
    }

    #[test]
    fn a_link_that_is_not_there_is_a_warning() {
        let peer = json!({"name": "planner", "linkRef": {"name": "b"}, "authority": "ab".repeat(32)});
        warns(&World::new().with("db", selecting("db")).look("AgentTrust", "t", trust(peer)), "no AgentLink `b`");
    }

    #[test]
    fn a_port_that_the_agent_does_not_offer_is_a_warning() {
        let mut spec = trust(json!({"name": "planner"}));
        spec["inbound"] = json!([{"portName": "metrics"}]);
        warns(&World::new().with("db", selecting("db")).look("AgentTrust", "t", spec), "offers no port `metrics`");
    }

    #[test]
    fn a_peers_port_that_our_own_program_has_is_a_warning() {
        let world = World::new().with("db", selecting("db"));
        let clash = world.look("AgentTrust", "t", trust(json!({"name": "planner", "ports": [{"port": 8080}]})));
        warns(&clash, "set localPort of the peer's port 8080");
        let moved = json!({"name": "planner", "ports": [{"port": 8080, "localPort": 8081}]});
        assert_eq!(world.look("AgentTrust", "t", trust(moved)), Findings::default());
    }

    #[test]
    fn a_second_agent_peer_for_the_same_pods_is_a_warning_and_itself_is_none() {
        let world = World::new().with("db", selecting("db"));
        warns(&world.look("AgentPeer", "rival", selecting("db")), "AgentPeer `db` selects the same pods");
        assert_eq!(world.look("AgentPeer", "db", selecting("db")), Findings::default());
        assert_eq!(world.look("AgentPeer", "other", selecting("other")), Findings::default());
    }

    #[test]
    fn a_namespace_that_is_not_there_is_a_warning() {
        let spec = json!({"address": format!("{}@relay.example:3478", "a".repeat(52)), "allowedNamespaces": {"from": "Selected", "names": ["tools", "tolls"]}});
        warns(&World::new().look("AgentRelay", "r", spec), "`tolls`");
    }

    #[test]
    fn what_cannot_be_read_is_left_to_the_schema() {
        assert_eq!(World::new().look("AgentPeer", "db", json!({"selector": 1})), Findings::default());
    }
}
