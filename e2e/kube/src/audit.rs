//! No right that is not used: the verbs of the chart's roles against those that the API server saw.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::failed::{Failed, Trying, ensure};
use crate::operator::{ACCOUNT, NAMESPACE};

/// `GROUP/RESOURCE VERB`; a subresource follows its resource after a slash.
type Right = String;

/// What every ServiceAccount may do, and what therefore says nothing about the chart.
const EVERYBODYS: [&str; 2] = ["selfsubjectaccessreviews", "selfsubjectrulesreviews"];

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
                    granted.extend(words(&rule["verbs"]).map(|verb| right(text(group), text(resource), text(verb))));
                }
            }
        }
    }
    Ok(granted)
}

fn used(cluster: &Cluster) -> Result<BTreeSet<Right>, Failed> {
    let log = fs::read_to_string(cluster.audit_log()).trying("read the audit log")?;
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
        let right = right(text(&object["apiGroup"]), &resource, text(&event["verb"]));
        match text(&event["annotations"]["authorization.k8s.io/decision"]) {
            "forbid" => refused.insert(format!("{right} {}/{}", text(&object["namespace"]), text(&object["name"]))),
            _ => used.insert(right),
        };
    }
    ensure(!used.is_empty(), || format!("the audit log has no request of {ACCOUNT}"))?;
    ensure(refused.is_empty(), || format!("requests that were refused: {refused:?}"))?;
    Ok(used)
}

fn right(group: &str, resource: &str, verb: &str) -> Right {
    format!("{group}/{resource} {verb}")
}

fn words(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
