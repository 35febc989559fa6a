//! No right that is not used: the verbs of the chart's roles, and the names that they are limited to, against what the API
//! server saw.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::failed::{Failed, Trying, ensure};
use crate::operator::{ACCOUNT, NAMESPACE};

/// `GROUP/RESOURCE VERB NAME`; a subresource follows its resource after a slash, and the name is `*` where the role has none.
type Right = String;

/// The name in a right that is not limited to names.
const ANY: &str = "*";
/// What every ServiceAccount may do, and what therefore says nothing about the chart.
const EVERYBODYS: [&str; 2] = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];

/// How often the operator did this, as far as it was permitted to: `GROUP/RESOURCE VERB`.
///
/// # Errors
/// There is no audit log.
pub fn times(cluster: &Cluster, what: &str) -> Result<usize, Failed> {
    all_times(cluster, [what]).map(|[count]| count)
}

/// How often the operator did each of these, as [`times`] counts one.
///
/// # Errors
/// There is no audit log.
pub fn all_times<const N: usize>(cluster: &Cluster, what: [&str; N]) -> Result<[usize; N], Failed> {
    let log = whole_log(cluster)?;
    let mut counts = [0; N];
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_default();
        let done = done(&event);
        for (one, count) in what.iter().zip(&mut counts) {
            *count += usize::from(done.as_deref() == Some(*one));
        }
    }
    Ok(counts)
}

/// What an event says that the operator did.
fn done(event: &Value) -> Option<String> {
    let object = &event["objectRef"];
    let done = || format!("{}/{} {}", text(&object["apiGroup"]), text(&object["resource"]), text(&event["verb"]));
    (event["user"]["username"] == ACCOUNT).then(done)
}

/// Finds no request of the operator's that was refused.
///
/// # Errors
/// One was.
pub fn none_refused(cluster: &Cluster) -> Result<(), Failed> {
    used(cluster).map(drop)
}

/// Compares what the operator may do with what it did, and finds no request of its that was refused.
///
/// # Errors
/// A right that was never used, with its name, or a refusal.
pub fn compare(cluster: &Cluster) -> Result<String, Failed> {
    let granted = granted(cluster)?;
    let used = used(cluster)?;
    let unused: Vec<&Right> = granted.difference(&used).collect();
    ensure(unused.is_empty(), || format!("rights that were never used: {unused:?}"))?;
    Ok(format!("{} rights, all of them used, and no request refused", granted.len()))
}

fn granted(cluster: &Cluster) -> Result<BTreeSet<Right>, Failed> {
    let mut granted = BTreeSet::new();
    let cluster_role = format!("clusterrole {NAMESPACE}-peerage-operator");
    for role in [cluster_role, format!("role peerage-operator -n {NAMESPACE}")] {
        let role = cluster.get(&role)?.ok_or_else(|| Failed::new(format!("there is no {role}")))?;
        for rule in words(&role["rules"]) {
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    for verb in words(&rule["verbs"]) {
                        let right = |name: &str| right(text(group), text(resource), text(verb), name);
                        match rule["resourceNames"].as_array() {
                            Some(names) => granted.extend(names.iter().map(|name| right(shard(text(name))))),
                            None => drop(granted.insert(right(ANY))),
                        }
                    }
                }
            }
        }
    }
    Ok(granted)
}

fn used(cluster: &Cluster) -> Result<BTreeSet<Right>, Failed> {
    let log = whole_log(cluster)?;
    let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).trying("read a line of the audit log")?;
        let object = &event["objectRef"];
        if event["user"]["username"] != ACCOUNT || object.is_null() || EVERYBODYS.contains(&text(&object["resource"])) {
            continue;
        }
        let resource = match text(&object["subresource"]) {
            "" => text(&object["resource"]).to_owned(),
            part => format!("{}/{part}", text(&object["resource"])),
        };
        let right = |name: &str| right(text(&object["apiGroup"]), &resource, text(&event["verb"]), name);
        let name = text(&object["name"]);
        match text(&event["annotations"]["authorization.k8s.io/decision"]) {
            "forbid" => drop(refused.insert(format!("{} in {}", right(name), text(&object["namespace"])))),
            _ => used.extend([right(shard(name)), right(ANY)]),
        };
    }
    ensure(!used.is_empty(), || format!("the audit log has no request of {ACCOUNT}"))?;
    ensure(refused.is_empty(), || format!("requests that were refused: {refused:?}"))?;
    Ok(used)
}

/// The log, and what was moved aside when it had become large.
fn whole_log(cluster: &Cluster) -> Result<String, Failed> {
    let folder = fs::read_dir(cluster.audit_log()).trying("look for audit logs")?;
    let mut log = String::new();
    for entry in folder {
        let entry = entry.trying("look for audit logs")?;
        if entry.file_name().to_string_lossy().starts_with("audit") {
            log += &fs::read_to_string(entry.path()).trying("read an audit log")?;
        }
    }
    Ok(log)
}

fn right(group: &str, resource: &str, verb: &str, name: &str) -> Right {
    format!("{group}/{resource} {verb} {name}")
}

/// Which of sixteen ConfigMaps a pod is noted in, its UID decides: one stands for all.
fn shard(name: &str) -> &str {
    ["peerage-denied-", "peerage-enrolled-"].into_iter().find(|prefix| name.starts_with(prefix)).unwrap_or(name)
}

fn words(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
