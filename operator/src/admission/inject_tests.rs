//! What becomes of pods, applied as the API server applies it.

use peerage_model::{AgentId, Fingerprint};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::inject::{DNS, Decision, Reason, Selecting, decide};
use super::patch::Patch;
use super::settings::tests::settings;
use super::settings::{ContainerKind, Settings};
use super::sidecar::CONTAINER;
use crate::facts::peer::{INJECTED, LEFT_ALONE, OPT_OUT};
use crate::index::Host;

fn pod(spec: Value) -> Value {
    let mut whole = json!({
        "serviceAccountName": "db",
        "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}], "future": {"field": true}}],
    });
    whole.as_object_mut().expect("a map").extend(spec.as_object().expect("a map").clone());
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "db-"}, "spec": whole})
}

fn annotated(name: &str, value: &str, spec: Value) -> Value {
    let mut pod = pod(spec);
    pod["metadata"]["annotations"] = json!({name: value});
    pod
}

fn applied(pod: &Value, patch: Patch) -> Value {
    let mut pod = pod.clone();
    let operations = serde_json::from_value::<json_patch::Patch>(patch.into_operations()).expect("operations");
    json_patch::patch(&mut pod, &operations).expect("they apply");
    pod
}

fn injected_with(pod: &Value, selecting: &[Selecting], settings: &Settings) -> (Value, Vec<String>) {
    match decide(pod, "tools", selecting, settings) {
        Decision::Inject { patch, warnings } => (applied(pod, patch), warnings),
        other @ (Decision::Unchanged | Decision::OptedOut | Decision::LeftAlone { .. }) => panic!("{other:?}"),
    }
}

fn injected(pod: &Value) -> Value {
    injected_with(pod, &[], &settings()).0
}

fn reason(pod: &Value, selecting: &[Selecting]) -> Reason {
    match decide(pod, "tools", selecting, &settings()) {
        Decision::LeftAlone { reason, patch } => {
            let after = applied(pod, patch);
            assert_eq!(after["spec"], pod["spec"], "the pod is as it was");
            assert_eq!(after["metadata"]["annotations"][LEFT_ALONE], reason.to_string());
            reason
        }
        other @ (Decision::Unchanged | Decision::OptedOut | Decision::Inject { .. }) => panic!("{other:?}"),
    }
}

fn env<'a>(container: &'a Value, name: &str) -> &'a Value {
    let all = container["env"].as_array().expect("a list");
    all.iter().find(|one| one["name"] == name).map_or(&Value::Null, |one| &one["value"])
}

#[test]
fn the_agent_is_the_first_init_container_and_goes_on_running() {
    let before = pod(json!({"initContainers": [{"name": "own", "image": "own"}]}));
    let after = injected(&before);
    let inits = after["spec"]["initContainers"].as_array().expect("a list");
    assert_eq!(inits.iter().map(|one| one["name"].as_str()).collect::<Vec<_>>(), [Some(CONTAINER), Some("own")]);
    assert_eq!(inits[0]["restartPolicy"], "Always");
    assert_eq!(after["metadata"]["annotations"][INJECTED], "peerage-agent:1");
}

#[test]
fn nothing_of_the_pods_own_containers_is_changed_not_even_what_we_do_not_know() {
    let before = pod(json!({"volumes": [{"name": "own", "emptyDir": {}}]}));
    let after = injected(&before);
    assert_eq!(after["spec"]["containers"], before["spec"]["containers"]);
    assert_eq!(after["spec"]["volumes"][0], before["spec"]["volumes"][0]);
}

#[test]
fn the_agent_knows_whom_to_believe_before_it_shows_its_token() {
    let after = injected(&pod(json!({})));
    let agent = &after["spec"]["initContainers"][0];
    assert_eq!(env(agent, "PEERAGE_AUTHORITY"), &json!("ab".repeat(32)));
    let token = &after["spec"]["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], format!("peerage.dev/{}", "ab".repeat(32)));
}

#[test]
fn the_agent_is_the_pods_only_nameserver_and_asks_the_former_one() {
    let after = injected(&pod(json!({"dnsPolicy": "ClusterFirst"})));
    assert_eq!(
        (&after["spec"]["dnsPolicy"], &after["spec"]["dnsConfig"]["nameservers"]),
        (&json!("None"), &json!(["127.64.0.1"]))
    );
    assert_eq!(env(&after["spec"]["initContainers"][0], "PEERAGE_DNS"), "10.96.0.10");
}

#[test]
fn the_agent_keeps_off_the_ports_of_the_others() {
    assert_eq!(env(&injected(&pod(json!({})))["spec"]["initContainers"][0], "PEERAGE_RESERVED_PORTS"), "8080");
}

#[test]
fn low_ports_are_opened_beside_what_the_pod_sets_itself() {
    let own = json!({"name": "net.ipv4.tcp_syncookies", "value": "1"});
    let after = injected(&pod(json!({"securityContext": {"fsGroup": 7, "sysctls": [own]}})));
    let context = &after["spec"]["securityContext"];
    assert_eq!(context["sysctls"], json!([own, {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]));
    assert_eq!(context["fsGroup"], 7);
}

#[test]
fn a_pod_that_opens_low_ports_itself_is_left_its_own_word() {
    let own = json!([{"name": "net.ipv4.ip_unprivileged_port_start", "value": "53"}]);
    assert_eq!(injected(&pod(json!({"securityContext": {"sysctls": own}})))["spec"]["securityContext"]["sysctls"], own);
}

#[test]
fn a_second_invocation_changes_nothing() {
    let after = injected(&pod(json!({})));
    assert_eq!(decide(&after, "tools", &[], &settings()), Decision::Unchanged);
}

#[test]
fn a_container_that_another_webhook_added_later_keeps_its_ports() {
    let mut between = injected(&pod(json!({})));
    let proxy = json!({"name": "proxy", "image": "proxy", "ports": [{"containerPort": 9402}]});
    between["spec"]["containers"].as_array_mut().expect("a list").push(proxy);
    let after = injected(&between);
    let agent = &after["spec"]["initContainers"][0];
    assert_eq!(env(agent, "PEERAGE_RESERVED_PORTS"), "8080,9402");
    assert_eq!((env(agent, "PEERAGE_HEALTH"), env(agent, "PEERAGE_DNS")), (&json!("[::]:9403"), &json!("10.96.0.10")));
    assert_eq!(after["spec"]["initContainers"].as_array().map(Vec::len), Some(1));
    assert_eq!(after["spec"]["volumes"], between["spec"]["volumes"]);
}

#[test]
fn an_image_that_another_webhook_chose_stays_when_the_agent_is_told_of_more_ports() {
    let mut between = injected(&pod(json!({})));
    let agent = &mut between["spec"]["initContainers"][0];
    agent["image"] = json!("mirror.example/peerage-agent");
    agent["env"].as_array_mut().expect("a list").push(json!({"name": "TZ", "value": "UTC"}));
    let proxy = json!({"name": "proxy", "image": "proxy", "ports": [{"containerPort": 9402}]});
    between["spec"]["containers"].as_array_mut().expect("a list").push(proxy);
    let after = injected(&between);
    let agent = &after["spec"]["initContainers"][0];
    assert_eq!((&agent["image"], env(agent, "TZ")), (&json!("mirror.example/peerage-agent"), &json!("UTC")));
    assert_eq!(env(agent, "PEERAGE_RESERVED_PORTS"), "8080,9402");
    assert_eq!(agent["startupProbe"]["httpGet"]["port"], 9403, "it answers where it is told to");
    assert_eq!(decide(&after, "tools", &[], &settings()), Decision::Unchanged);
}

#[test]
fn the_agent_is_first_again_after_another_webhook_has_put_an_init_container_before_it() {
    let mut between = injected(&pod(json!({})));
    let own = json!({"name": "unseal", "image": "vault", "ports": [{"containerPort": 8200}]});
    between["spec"]["initContainers"].as_array_mut().expect("a list").insert(0, own);
    let after = injected(&between);
    let inits = after["spec"]["initContainers"].as_array().expect("a list");
    assert_eq!(inits.iter().map(|one| one["name"].as_str()).collect::<Vec<_>>(), [Some(CONTAINER), Some("unseal")]);
    assert_eq!(env(&inits[0], "PEERAGE_RESERVED_PORTS"), "8080,8200");
    assert_eq!(decide(&after, "tools", &[], &settings()), Decision::Unchanged);
}

#[test]
fn what_another_webhook_changed_in_the_agents_container_stays_when_it_is_only_moved() {
    let mut between = injected(&pod(json!({})));
    between["spec"]["initContainers"][0]["resources"] = json!({"requests": {"memory": "99Mi"}});
    between["spec"]["initContainers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    let expected = between["spec"]["initContainers"][0].clone();
    between["spec"]["initContainers"].as_array_mut().expect("a list").insert(0, json!({"name": "own"}));
    assert_eq!(injected(&between)["spec"]["initContainers"][0], expected);
}

#[test]
fn the_agent_is_the_only_nameserver_again_and_asks_those_that_another_webhook_put_beside_it() {
    let mut between = injected(&pod(json!({})));
    let servers = json!(["169.254.20.10", "127.64.0.1"]);
    between["spec"]["dnsConfig"]["nameservers"] = servers;
    let searches = between["spec"]["dnsConfig"]["searches"].clone();
    let after = injected(&between);
    assert_eq!(after["spec"]["dnsConfig"]["nameservers"], json!(["127.64.0.1"]));
    assert_eq!(after["spec"]["dnsConfig"]["searches"], searches);
    assert_eq!(env(&after["spec"]["initContainers"][0], "PEERAGE_DNS"), "169.254.20.10,10.96.0.10");
    assert_eq!(decide(&after, "tools", &[], &settings()), Decision::Unchanged);
}

#[test]
fn a_dns_that_another_webhook_set_in_ours_place_is_asked_behind_the_agent() {
    let mut between = injected(&pod(json!({})));
    between["spec"]["dnsPolicy"] = json!("None");
    between["spec"]["dnsConfig"] = json!({"nameservers": ["192.0.2.53"], "searches": ["lab.example"]});
    let after = injected(&between);
    assert_eq!(
        after["spec"]["dnsConfig"],
        json!({"nameservers": ["127.64.0.1"], "searches": ["peer.internal", "lab.example"], "options": []})
    );
    assert_eq!(env(&after["spec"]["initContainers"][0], "PEERAGE_DNS"), "192.0.2.53");
}

#[test]
fn a_dns_that_cannot_be_behind_the_agent_is_left_to_whoever_set_it_with_a_warning() {
    let mut between = injected(&pod(json!({})));
    between["spec"]["dnsPolicy"] = json!("Default");
    let (after, warnings) = injected_with(&between, &[], &settings());
    assert_eq!(after, between);
    assert!(matches!(&warnings[..], [warning] if warning.contains("dnsPolicy Default")), "{warnings:?}");
}

#[test]
fn host_aliases_leave_the_dns_alone_also_the_second_time() {
    let mut between = injected(&annotated(DNS, "HostAliases", json!({})));
    between["spec"]["dnsConfig"] = json!({"nameservers": ["192.0.2.53"]});
    assert_eq!(decide(&between, "tools", &[], &settings()), Decision::Unchanged);
}

#[test]
fn where_the_server_knows_no_native_sidecars_the_agent_is_a_container_like_the_others() {
    let (auto, always) = (Settings { native: false, ..settings() }, settings());
    let mut plain = always.clone();
    plain.agent.container = ContainerKind::Plain;
    for settings in [auto, plain] {
        let (after, _) = injected_with(&pod(json!({})), &[], &settings);
        assert_eq!(after["spec"]["containers"][1]["name"], CONTAINER);
        assert!(
            after["spec"]["containers"][1].get("restartPolicy").is_none()
                && after["spec"].get("initContainers").is_none()
        );
        assert_eq!(decide(&after, "tools", &[], &settings), Decision::Unchanged);
    }
}

#[test]
fn a_pod_that_wants_none_gets_none() {
    let pod = annotated(OPT_OUT, "false", json!({}));
    assert_eq!(decide(&pod, "tools", &[], &settings()), Decision::OptedOut);
}

#[test]
fn a_pod_of_the_kubelets_own_is_not_touched() {
    let pod = annotated("kubernetes.io/config.mirror", "x", json!({}));
    assert_eq!(decide(&pod, "tools", &[], &settings()), Decision::OptedOut);
}

#[test]
fn a_pod_in_whose_way_something_stands_is_let_in_as_it_is_and_says_why() {
    let sysctl =
        json!({"securityContext": {"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "1024"}]}});
    let dns_server = json!({"containers": [{"name": "dns", "ports": [{"containerPort": 53, "protocol": "UDP"}]}]});
    for (spec, expected) in [
        (json!({"hostNetwork": true}), Reason::HostNetwork),
        (json!({"os": {"name": "windows"}}), Reason::Windows),
        (json!({"nodeSelector": {"kubernetes.io/os": "windows"}}), Reason::Windows),
        (sysctl, Reason::Sysctl("1024".into())),
        (dns_server, Reason::DnsPort),
        (json!({"dnsPolicy": "Default"}), Reason::DnsPolicy("Default".into())),
        (json!({"initContainers": [{"name": CONTAINER}]}), Reason::NameTaken(CONTAINER)),
        (json!({"volumes": [{"name": "peerage-token"}]}), Reason::NameTaken("peerage-token")),
    ] {
        assert_eq!(reason(&pod(spec), &[]), expected);
    }
    assert_eq!(reason(&annotated(DNS, "hosts", json!({})), &[]), Reason::DnsMode("hosts".into()));
}

#[test]
fn a_pod_is_for_windows_if_it_can_run_on_no_other_node() {
    let on = |terms: &[(&str, &[&str])]| {
        let term = |(operator, values): &(&str, &[&str])| {
            let os = json!({"key": "kubernetes.io/os", "operator": operator, "values": values});
            json!({"matchExpressions": [{"key": "disk", "operator": "Exists"}, os]})
        };
        let terms: Vec<_> = terms.iter().map(term).collect();
        let required = json!({"nodeSelectorTerms": terms});
        pod(json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}))
    };
    assert_eq!(reason(&on(&[("In", &["windows"])]), &[]), Reason::Windows);
    assert_eq!(reason(&on(&[("NotIn", &["linux"]), ("In", &["windows"])]), &[]), Reason::Windows);
    injected(&on(&[("In", &["windows", "linux"])]));
    injected(&on(&[("In", &["windows"]), ("NotIn", &["windows"])]));
}

#[test]
fn a_pod_that_two_agent_peers_select_is_neither() {
    let selecting = ["db", "cache"].map(|name| Selecting { name: name.into(), ..Selecting::default() });
    assert_eq!(reason(&pod(json!({})), &selecting), Reason::Ambiguous(vec!["db".into(), "cache".into()]));
}

#[test]
fn a_pod_that_cannot_be_read_is_let_in() {
    assert!(matches!(reason(&pod(json!({"containers": "none"})), &[]), Reason::Unreadable(_)));
}

#[test]
fn with_host_aliases_the_pods_dns_stays_as_it_was() {
    let planner = AgentId { authority: Fingerprint([7; 32]), name: "planner.plans".parse().expect("a name") };
    let peers = vec![Host {
        id: planner.clone(),
        address: "127.64.9.9".parse().expect("an address"),
        names: vec!["planner".to_owned(), "planner.peer.internal".to_owned()],
    }];
    let agent = Selecting { name: "db".into(), service_account: None, hosts: peers };
    let before = annotated(
        DNS,
        "HostAliases",
        json!({"dnsPolicy": "Default", "hostAliases": [{"ip": "192.0.2.1", "hostnames": ["own"]}]}),
    );
    let (after, _) = injected_with(&before, &[agent], &settings());
    assert_eq!(after["spec"]["dnsPolicy"], "Default");
    assert_eq!(
        after["spec"]["hostAliases"][1],
        json!({"ip": "127.64.9.9", "hostnames": ["planner", "planner.peer.internal"]})
    );
    assert_eq!(after["spec"]["hostAliases"][0], before["spec"]["hostAliases"][0]);
    assert_eq!(env(&after["spec"]["initContainers"][0], "PEERAGE_DNS"), "off");
    let addresses = format!("127.64.9.9={planner}");
    assert_eq!(
        env(&after["spec"]["initContainers"][0], "PEERAGE_ADDRESSES"),
        &json!(addresses),
        "the agent has the same ones"
    );
}

#[test]
fn whoever_runs_a_pod_as_somebody_else_is_warned() {
    let agent = Selecting { name: "db".into(), service_account: Some("other".into()), hosts: Vec::new() };
    let (_, warnings) = injected_with(&pod(json!({})), &[agent], &settings());
    assert_eq!(warnings, ["AgentPeer db is for ServiceAccount other, and this pod runs as db: it will not enrol"]);
}

#[test]
fn where_nothing_stands_in_the_way_any_more_the_old_reason_goes() {
    let after = injected(&annotated(LEFT_ALONE, "an old reason", json!({})));
    assert!(after["metadata"]["annotations"].get(LEFT_ALONE).is_none());
}

/// Pods with and without everything that injection looks at.
fn some_pod() -> impl Strategy<Value = Value> {
    let port = (prop::sample::select(vec![53, 80, 8080, 9402]), prop::sample::select(vec!["TCP", "UDP", "SCTP"]));
    let ports = prop::collection::vec(port, 0..3);
    let container = |name: &'static str| {
        ports.clone().prop_map(move |ports| {
            let ports: Vec<_> =
                ports.iter().map(|(port, udp)| json!({"containerPort": port, "protocol": udp})).collect();
            json!({"name": name, "ports": ports})
        })
    };
    let inits = prop::option::of(prop::collection::vec(container("init"), 0..2));
    let sysctl = prop::option::of(prop::sample::select(vec!["0", "53", "54", "x"]));
    let policy = prop::option::of(prop::sample::select(vec!["ClusterFirst", "Default", "None"]));
    let dns = prop::option::of(prop::sample::select(vec!["Nameserver", "HostAliases", "else"]));
    (container("app"), inits, sysctl, policy, dns, any::<[bool; 3]>()).prop_map(
        |(app, inits, sysctl, policy, dns, [host, volumes, annotated])| {
            let mut pod = pod(json!({"containers": [app], "hostNetwork": host}));
            let spec = &mut pod["spec"];
            spec["initContainers"] = json!(inits);
            spec["dnsPolicy"] = json!(policy);
            if let Some(value) = sysctl {
                let sysctl = json!({"name": "net.ipv4.ip_unprivileged_port_start", "value": value});
                spec["securityContext"] = json!({"sysctls": [sysctl]});
            }
            if volumes {
                spec["volumes"] = json!([{"name": "own"}]);
            }
            if annotated {
                pod["metadata"]["annotations"] = json!({"own": "too"});
            }
            if let Some(mode) = dns {
                pod["metadata"]["annotations"][DNS] = json!(mode);
            }
            pod
        },
    )
}

proptest! {
    #[test]
    fn whatever_the_pod_its_containers_stay_and_a_second_time_changes_nothing(before in some_pod()) {
        let after = match decide(&before, "tools", &[], &settings()) {
            Decision::Inject { patch, .. } => applied(&before, patch),
            Decision::LeftAlone { patch, .. } => {
                let after = applied(&before, patch);
                prop_assert_eq!(&after["spec"], &before["spec"]);
                after
            }
            Decision::Unchanged | Decision::OptedOut => return Err(TestCaseError::fail("nothing asked for that")),
        };
        prop_assert_eq!(&after["spec"]["containers"], &before["spec"]["containers"]);
        let own = |pod: &Value| -> Vec<Value> {
            let all = pod["spec"]["initContainers"].as_array().into_iter().flatten();
            all.filter(|one| one["name"] != CONTAINER).cloned().collect()
        };
        prop_assert_eq!(own(&after), own(&before));
        match decide(&after, "tools", &[], &settings()) {
            Decision::Unchanged => {}
            Decision::LeftAlone { patch, .. } => prop_assert!(patch.is_empty()),
            other @ (Decision::OptedOut | Decision::Inject { .. }) => prop_assert!(false, "{other:?}"),
        }
    }
}
