//! A second look at a pod that has its agent: other webhooks may have changed the pod behind us, and then the API server
//! asks once more (reinvocationPolicy IfNeeded).
//!
//! What they wanted stays, and the agent does its part around it: it keeps off the ports of containers that came in, it is the
//! first init container again, and it is the only nameserver again, before those that somebody has put beside it. Nothing
//! else of its container is touched, because somebody may have had a reason to change it.

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

use super::dns;
use super::inject::{DNS_PORT, Decision, Reason};
use super::patch::Patch;
use super::place::Place;
use super::settings::Settings;
use super::sidecar::{Names, container, ports_of};

/// What the agent is told of the pod around it, besides its nameservers.
const ABOUT_THE_POD: [&str; 2] = ["PEERAGE_RESERVED_PORTS", "PEERAGE_HEALTH"];
/// What it is told of names.
const ABOUT_NAMES: [&str; 2] = ["PEERAGE_DNS", "PEERAGE_ADDRESSES"];

/// Decides about a pod whose agent is at `place`.
pub(super) fn refreshed(pod: &Value, spec: &PodSpec, namespace: &str, place: Place, settings: &Settings) -> Decision {
    let there = place.container(pod);
    let Some(told) = env(there, "PEERAGE_DNS") else { return Decision::Unchanged };
    let (mut patch, mut warnings) = (Patch::default(), Vec::new());
    let ports = ports_of(spec);
    let addresses = env(there, "PEERAGE_ADDRESSES").unwrap_or_default().to_owned();
    let mut names = Names { dns: told.to_owned(), addresses };
    // Off: the pod's DNS is its own (HostAliases).
    if told != "off" {
        match dns::behind_agent_again(spec, namespace, settings.cluster_dns.as_ref(), told) {
            Ok(Some(behind)) => {
                patch.set(pod, &["spec", "dnsPolicy"], json!("None"));
                names.dns = behind.servers_as_text();
                patch.set(pod, &["spec", "dnsConfig"], behind.config);
            }
            Ok(None) => {}
            Err(reason) => warnings.push(reason),
        }
        if ports.iter().any(|(port, _)| *port == DNS_PORT) {
            warnings.push(Reason::DnsPort);
        }
    }
    let new = container(settings, matches!(place, Place::Init(_)), &ports, &names, &there["resources"]);
    let is_told = names.dns == told && ABOUT_THE_POD.iter().all(|name| env(there, name) == env(&new, name));
    match (is_told, place.is_proper()) {
        (true, true) => {}
        (true, false) => place.replace(pod, there.clone(), &mut patch),
        (false, _) => place.replace(pod, told_again(there, &new), &mut patch),
    }
    match (patch.is_empty(), &warnings[..]) {
        (true, []) => Decision::Unchanged,
        (_, _) => Decision::Inject { patch, warnings: warnings.iter().map(warning).collect() },
    }
}

/// The agent's container with what it should be told, and all else as somebody has made it, such as its image.
fn told_again(there: &Value, new: &Value) -> Value {
    let is_told = |one: &&Value| ABOUT_THE_POD.iter().chain(&ABOUT_NAMES).any(|name| one["name"] == *name);
    let all = |container: &Value| container["env"].as_array().cloned().unwrap_or_default();
    let (kept, told) = (all(there), all(new));
    let mut container = there.clone();
    container["env"] = kept.iter().filter(|one| !is_told(one)).chain(told.iter().filter(is_told)).cloned().collect();
    if env(there, "PEERAGE_HEALTH") != env(new, "PEERAGE_HEALTH") {
        for field in ["ports", "startupProbe"] {
            container[field] = new[field].clone();
        }
    }
    container
}

fn env<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let mut all = container["env"].as_array().into_iter().flatten().filter(|one| one["name"] == name);
    all.find_map(|one| one["value"].as_str())
}

fn warning(reason: &Reason) -> String {
    format!("the pod has an agent, and its programs will not find peers by name: {reason}")
}
