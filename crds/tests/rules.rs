//! Each rule of the API, with an object that it refuses and the words it says; and the examples, which pass.

mod support;

use serde_json::{Value, json};
use support::{objects, refusals};

const EXAMPLES: [&str; 2] =
    [include_str!("../examples/two-agents.yaml"), include_str!("../examples/across-clusters.yaml")];

const AUTHORITY: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
const OTHER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

fn object(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "peerage.dev/v1alpha1", "kind": kind, "metadata": {"name": "it", "namespace": "here"}, "spec": spec})
}

fn peer(spec: Value) -> Value {
    let mut whole = json!({"selector": {"matchLabels": {"app": "db"}}});
    merge(&mut whole, spec);
    object("AgentPeer", whole)
}

fn trust(peer: Value) -> Value {
    object("AgentTrust", json!({"agentRef": {"name": "reporter"}, "peer": peer}))
}

fn link(spec: Value) -> Value {
    let mut whole = json!({"allowedNamespaces": {"from": "All"}});
    merge(&mut whole, spec);
    object("AgentLink", whole)
}

fn relay(spec: Value) -> Value {
    let mut whole = json!({"allowedNamespaces": {"from": "All"}});
    merge(&mut whole, spec);
    object("AgentRelay", whole)
}

fn merge(into: &mut Value, from: Value) {
    let from = from.as_object().cloned().expect("an object");
    into.as_object_mut().expect("an object").extend(from);
}

#[track_caller]
fn admitted(object: &Value) {
    assert_eq!(refusals(object, None), Vec::<String>::new());
}

/// Refused for this one reason: a test that is refused for another would show nothing.
#[track_caller]
fn refused(object: &Value, words: &str) {
    only(&refusals(object, None), words);
}

#[track_caller]
fn change_refused(old: &Value, new: &Value, words: &str) {
    admitted(old);
    admitted(new);
    only(&refusals(new, Some(old)), words);
}

#[track_caller]
fn only(found: &[String], words: &str) {
    assert!(found.len() == 1 && found[0].contains(words), "expected one refusal with {words:?}, found {found:#?}");
}

#[test]
fn the_examples_are_admitted_and_keep_every_field_in_our_types() {
    for object in EXAMPLES.into_iter().flat_map(objects) {
        admitted(&object);
        admitted_update(&object);
        let typed = typed(&object);
        assert!(contains(&typed, &object), "{object:#} became {typed:#}");
    }
}

/// Applying the same object again is no change.
#[track_caller]
fn admitted_update(object: &Value) {
    assert_eq!(refusals(object, Some(object)), Vec::<String>::new());
}

/// The object as it comes out of our type for its kind.
fn typed(object: &Value) -> Value {
    fn through<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Value {
        let typed: T = serde_json::from_value(object.clone()).expect("our type reads it");
        serde_json::to_value(typed).expect("our type writes it")
    }
    match object["kind"].as_str().expect("a kind") {
        "AgentPeer" => through::<peerage_crds::AgentPeer>(object),
        "AgentTrust" => through::<peerage_crds::AgentTrust>(object),
        "AgentTrustRequest" => through::<peerage_crds::AgentTrustRequest>(object),
        "AgentLink" => through::<peerage_crds::AgentLink>(object),
        "AgentRelay" => through::<peerage_crds::AgentRelay>(object),
        other => panic!("no type for {other}"),
    }
}

/// Whether everything in `part` is in `whole`, which may have more: defaults.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(name, value)| whole.get(name).is_some_and(|whole| contains(whole, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        (whole, part) => whole == part,
    }
}

#[test]
fn an_agent_s_name_is_a_dns_label() {
    for bad in ["db.tools", &"x".repeat(64)] {
        let mut object = peer(json!({}));
        object["metadata"]["name"] = bad.into();
        refused(&object, "a DNS label of at most 63 characters");
    }
}

#[test]
fn a_selector_that_selects_nothing_is_refused() {
    refused(&object("AgentPeer", json!({"selector": {"matchLabels": {}}})), "minProperties");
    refused(&object("AgentPeer", json!({"selector": {"matchLabels": {"": "x"}}})), "1 to 317 characters");
}

#[test]
fn two_ports_cannot_share_a_number() {
    let twice =
        |second: &str| json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80, "protocol": second}]});
    admitted(&peer(twice("UDP")));
    refused(&peer(twice("TCP")), "two ports have the same number and protocol");
}

#[test]
fn a_port_defaults_to_80_and_has_a_number_that_exists() {
    let typed = typed(&peer(json!({"ports": [{"name": "http"}]})));
    assert_eq!(typed["spec"]["ports"][0], json!({"name": "http", "port": 80, "protocol": "TCP"}));
    refused(&peer(json!({"ports": [{"name": "a", "port": 0}]})), "minimum");
    refused(&peer(json!({"ports": [{"name": "a", "port": 65536}]})), "maximum");
    refused(&peer(json!({"ports": [{"name": "A"}]})), "pattern");
}

#[test]
fn relay_only_agents_do_not_probe() {
    admitted(&peer(json!({"path": {"mode": "RelayOnly"}})));
    refused(&peer(json!({"path": {"mode": "RelayOnly", "birthday": "Enabled"}})), "mode RelayOnly forbids one");
    refused(&peer(json!({"path": {"mode": "Sideways"}})), "enum");
}

#[test]
fn a_field_nobody_knows_is_refused() {
    refused(&peer(json!({"selektor": {}})), "unknown field");
}

#[test]
fn a_peer_is_a_name_or_a_fleet() {
    refused(&trust(json!({})), "exactly one of name and selector");
    let fleet = json!({"matchLabels": {"tier": "tools"}});
    admitted(&trust(json!({"selector": fleet, "namespace": "tools"})));
    refused(&trust(json!({"selector": fleet, "namespace": "tools", "name": "db"})), "exactly one of name and selector");
}

#[test]
fn a_fleet_lives_in_one_named_namespace_of_this_cluster() {
    let fleet = json!({"matchLabels": {"tier": "tools"}});
    refused(&trust(json!({"selector": fleet})), "it needs namespace, and no linkRef");
    let remote = json!({"selector": fleet, "namespace": "tools", "linkRef": {"name": "b"}, "authority": AUTHORITY});
    refused(&trust(remote), "it needs namespace, and no linkRef");
    let ports = json!({"selector": fleet, "namespace": "tools", "ports": [{"port": 80}]});
    refused(&trust(ports), "ports goes with name only");
}

#[test]
fn trust_across_clusters_pins_the_authority() {
    admitted(&trust(json!({"name": "db", "linkRef": {"name": "b"}, "authority": AUTHORITY})));
    refused(&trust(json!({"name": "db", "linkRef": {"name": "b"}})), "linkRef and authority go together");
    refused(&trust(json!({"name": "db", "authority": AUTHORITY})), "linkRef and authority go together");
    refused(&trust(json!({"name": "db", "linkRef": {"name": "b"}, "authority": "SHA256:abc"})), "pattern");
}

#[test]
fn an_alias_names_one_peer_and_never_ourselves() {
    let mut fleet = trust(json!({"selector": {"matchLabels": {"tier": "tools"}}, "namespace": "tools"}));
    fleet["spec"]["alias"] = "db".into();
    refused(&fleet, "an alias names one peer");
    let mut named = trust(json!({"name": "db"}));
    named["spec"]["alias"] = "localhost".into();
    refused(&named, "localhost is what a program calls itself");
}

#[test]
fn a_peer_that_is_called_as_programs_call_themselves_needs_an_alias() {
    for peer in [json!({"name": "localhost"}), json!({"name": "localhost", "namespace": "tools"})] {
        let mut named = trust(peer);
        refused(&named, "a peer of that name needs an alias");
        named["spec"]["alias"] = "db".into();
        admitted(&named);
    }
    admitted(&trust(json!({"selector": {"matchLabels": {"tier": "tools"}}, "namespace": "localhost"})));
}

#[test]
fn a_peer_s_ports_do_not_meet_here() {
    let ports = |second: Value| trust(json!({"name": "db", "ports": [{"port": 80, "localPort": 8080}, second]}));
    admitted(&ports(json!({"port": 81})));
    refused(&ports(json!({"port": 8080})), "two of the peer's ports would have the same number");
}

#[test]
fn whom_a_trust_is_about_cannot_change() {
    let remote = |name: &str, authority: &str| json!({"name": "db", "linkRef": {"name": name}, "authority": authority});
    let fleet = |tier: &str| json!({"selector": {"matchLabels": {"tier": tier}}, "namespace": "tools"});
    let cases = [
        (json!({"name": "db"}), json!({"name": "planner"}), "peer.name is immutable"),
        (json!({"name": "db"}), json!({"name": "db", "namespace": "tools"}), "peer.namespace is immutable"),
        (fleet("a"), fleet("b"), "peer.selector is immutable"),
        (remote("b", AUTHORITY), remote("c", AUTHORITY), "peer.linkRef is immutable"),
        (remote("b", AUTHORITY), remote("b", OTHER), "peer.authority is immutable"),
    ];
    for (old, new, words) in cases {
        change_refused(&trust(old), &trust(new), words);
    }
    let mut other_agent = trust(json!({"name": "db"}));
    other_agent["spec"]["agentRef"]["name"] = "somebody".into();
    change_refused(&trust(json!({"name": "db"})), &other_agent, "agentRef is immutable");
}

#[test]
fn what_a_peer_may_open_can_change() {
    let old = trust(json!({"name": "db"}));
    let mut new = trust(json!({"name": "db", "ports": [{"port": 80}]}));
    new["spec"]["inbound"] = json!([{"portName": "mcp"}]);
    assert_eq!(refusals(&new, Some(&old)), Vec::<String>::new());
}

#[test]
fn a_request_is_what_somebody_asked() {
    let request = |reason: &str| {
        object(
            "AgentTrustRequest",
            json!({
                "agentRef": {"name": "reporter"}, "from": {"name": "planner.plans", "authority": AUTHORITY},
                "reason": reason, "expiresAt": "2026-12-01T00:00:00Z",
            }),
        )
    };
    change_refused(&request("figures"), &request("everything"), "it is immutable");
}

#[test]
fn a_link_pins_its_authority_for_good() {
    let bootstrap = json!({"tokenSecretRef": {}});
    refused(&link(json!({})), "a link needs the other side's authority");
    let by_ticket = link(json!({"bootstrap": bootstrap}));
    let pinned = link(json!({"bootstrap": bootstrap, "authority": AUTHORITY}));
    assert_eq!(refusals(&pinned, Some(&by_ticket)), Vec::<String>::new(), "learning it is no change");
    change_refused(&pinned, &by_ticket, "authority is immutable");
    change_refused(&pinned, &link(json!({"authority": OTHER})), "authority is immutable");
}

#[test]
fn a_record_goes_with_the_authority_that_it_is_of() {
    admitted(&link(json!({"authority": AUTHORITY, "authorityRecord": "AAAA"})));
    let bootstrap = json!({"tokenSecretRef": {}});
    refused(&link(json!({"bootstrap": bootstrap, "authorityRecord": "AAAA"})), "set authority as well");
    refused(&link(json!({"authority": AUTHORITY, "authorityRecord": "A=="})), "pattern");
}

#[test]
fn a_ticket_is_in_the_one_secret_that_the_operator_may_read() {
    let at = |name: &str| link(json!({"bootstrap": {"tokenSecretRef": {"name": name, "key": "cluster-b"}}}));
    admitted(&at("peerage-tickets"));
    refused(&at("peerage-authority"), "tickets are in the Secret peerage-tickets");
}

#[test]
fn a_link_s_name_becomes_part_of_host_names() {
    let mut dotted = link(json!({"authority": AUTHORITY}));
    dotted["metadata"]["name"] = "cluster.b".into();
    refused(&dotted, "metadata.name becomes part of host names");
}

#[test]
fn emptiness_never_means_everybody() {
    let allowed = |allowed: Value| object("AgentLink", json!({"authority": AUTHORITY, "allowedNamespaces": allowed}));
    refused(&object("AgentLink", json!({"authority": AUTHORITY})), "required");
    refused(&allowed(json!({"from": "Selected"})), "from: Selected needs names or a selector");
    refused(&allowed(json!({"from": "Selected", "names": []})), "minItems");
    refused(&allowed(json!({"from": "All", "names": ["a"]})), "names and selector go with from: Selected only");
    refused(&allowed(json!({"from": "Selected", "names": ["a", "a"]})), "list-type");
}

#[test]
fn a_relay_is_somebody_s_or_ours() {
    let address = format!("{}q@relay.example.com:3478", "a".repeat(51));
    let managed = json!({"service": {"type": "LoadBalancer"}});
    refused(&relay(json!({})), "exactly one of address and managed");
    refused(&relay(json!({"address": address, "managed": managed})), "exactly one of address and managed");
    refused(&relay(json!({"address": "relay.example.com:3478"})), "pattern");
    change_refused(
        &relay(json!({"address": address})),
        &relay(json!({"managed": managed})),
        "cannot become a managed one",
    );
}

#[test]
fn a_node_port_needs_a_node_that_can_be_reached() {
    let service = |service: Value| relay(json!({"managed": {"service": service}}));
    refused(&service(json!({"type": "NodePort"})), "type NodePort needs host");
    refused(&service(json!({"type": "LoadBalancer", "nodePort": 30478})), "nodePort goes with type NodePort only");
}

#[test]
fn a_name_is_given_to_one_load_balancer_and_may_be_to_several_ports_of_a_node() {
    let two = |service: Value| relay(json!({"managed": {"service": service, "replicas": 2}}));
    refused(&two(json!({"type": "LoadBalancer", "host": "relay.example.com"})), "host names one load balancer");
    admitted(&two(json!({"type": "LoadBalancer"})));
    admitted(&two(json!({"type": "NodePort", "host": "node.example.com"})));
}

#[test]
fn a_relay_s_name_leaves_room_for_its_pods() {
    let mut long = relay(json!({"managed": {"service": {"type": "LoadBalancer"}}}));
    long["metadata"]["name"] = "x".repeat(53).into();
    refused(&long, "at most 52 characters");
}
