//! What stands in the way.
//!
//! Objects are judged by the conditions that the operator wrote; pods, where an agent is named, by their agents. Who owns a
//! namespace need not be allowed to read what is the whole cluster's: that is said, and the rest is looked at.

use std::fmt::Debug;
use std::process::ExitCode;

use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use peerage_crds::{AgentLink, AgentPeer, AgentRelay, AgentTrust, Condition, ConditionStatus};
use peerage_output::Output;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::agents::ask;
use crate::cluster::{Cluster, condition, list};
use crate::failure::{Code, Failure};

/// How bad a finding is; agents use the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Severity {
    /// As it should be; agents say that, too.
    Good,
    /// Works, less well than it could, or could not be looked at.
    Note,
    /// Does not work.
    Problem,
}

/// What is found besides conditions and what agents say of themselves.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(Deserialize))]
#[cfg_attr(test, serde(rename_all = "snake_case"))]
enum Word {
    /// The operator's namespace has no authority.
    NotInstalled,
    /// There is no AgentRelay.
    NoRelay,
    /// Not looked at, for want of a right.
    NotPermitted,
    /// No operator has written the condition.
    NotJudged,
    /// An agent in a pod could not be asked.
    NoAnswer,
}

impl Word {
    const fn as_str(self) -> &'static str {
        match self {
            Self::NotInstalled => "not_installed",
            Self::NoRelay => "no_relay",
            Self::NotPermitted => "not_permitted",
            Self::NotJudged => "not_judged",
            Self::NoAnswer => "no_answer",
        }
    }
}

/// Something to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// The condition's reason, or a word of ours: it never changes.
    code: String,
    severity: Severity,
    /// What it is about, as kubectl names it.
    about: String,
    /// What is the matter, with what to do.
    message: String,
}

impl Finding {
    fn problem(code: &str, about: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), severity: Severity::Problem, about: about.into(), message: message.into() }
    }
}

/// What an agent's own doctor says.
#[derive(Clone, Debug, Deserialize)]
struct Diagnosis {
    check: String,
    severity: Severity,
    found: String,
    remedy: String,
}

/// Looks at everything that should be so, and asks the pods of `agent`. Ends with failure where something does not work.
///
/// # Errors
/// The API server does not answer, or there is no such agent.
pub async fn doctor(cluster: &Cluster, agent: Option<&str>, output: Output) -> Result<ExitCode, Failure> {
    let mut findings = Vec::new();
    findings.extend(installed(cluster).await?);
    findings.extend(relays(cluster).await?);
    findings.extend(links(cluster).await?);
    findings
        .extend(namespaced::<AgentPeer>(cluster, "agentpeer", |one| one.status.map(|status| status.conditions)).await?);
    findings.extend(
        namespaced::<AgentTrust>(cluster, "agenttrust", |one| one.status.map(|status| status.conditions)).await?,
    );
    if let Some(agent) = agent {
        findings.extend(pods(cluster, agent).await?);
    }
    output.list(&findings, |findings| match findings {
        [] => "nothing stands in the way".into(),
        some => some.iter().map(text).collect::<Vec<_>>().join("\n"),
    });
    let bad = findings.iter().any(|one| one.severity == Severity::Problem);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(one: &Finding) -> String {
    let mark = if one.severity == Severity::Problem { "" } else { "note: " };
    format!("{mark}{}: {}\n    {}", one.about, one.code, one.message)
}

async fn installed(cluster: &Cluster) -> Result<Option<Finding>, Failure> {
    let about = format!("configmap/{} -n {}", peerage_crds::invitation::AUTHORITY_MAP, cluster.operator);
    match cluster.record().await {
        Ok(_) => Ok(None),
        Err(failure) if failure.code == Code::NotInstalled => Ok(Some(Finding::problem(
            Word::NotInstalled.as_str(),
            about,
            format!("{}; {}", failure.message, failure.hint),
        ))),
        Err(failure) => not_looked_at(about, failure).map(Some),
    }
}

async fn relays(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let relays = match list(&cluster.all::<AgentRelay>(), "list AgentRelays").await {
        Ok(relays) => relays,
        Err(failure) => return not_looked_at("agentrelays", failure).map(|one| vec![one]),
    };
    if relays.is_empty() {
        let message = "agents find each other at relays, and there is none; make an AgentRelay";
        return Ok(vec![Finding::problem(Word::NoRelay.as_str(), "agentrelays", message)]);
    }
    let of = |relay: AgentRelay| {
        let about = format!("agentrelay/{}", relay.name_any());
        judged(about, relay.status.map(|status| status.conditions), "Ready")
    };
    Ok(relays.into_iter().filter_map(of).collect())
}

async fn links(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let of = |link: AgentLink| {
        let about = format!("agentlink/{}", link.name_any());
        judged(about, link.status.map(|status| status.conditions), "Connected")
    };
    match list(&cluster.all::<AgentLink>(), "list AgentLinks").await {
        Ok(links) => Ok(links.into_iter().filter_map(of).collect()),
        Err(failure) => not_looked_at("agentlinks", failure).map(|one| vec![one]),
    }
}

/// Those of every namespace or, for who may not list them, of this one.
async fn namespaced<K>(
    cluster: &Cluster,
    kind: &str,
    conditions: impl Fn(K) -> Option<Vec<Condition>>,
) -> Result<Vec<Finding>, Failure>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let doing = format!("list {kind}s");
    let mut findings = Vec::new();
    let objects = match list(&cluster.all::<K>(), &doing).await {
        Ok(objects) => objects,
        Err(failure) => {
            findings.push(not_looked_at(format!("{kind}s of other namespaces than {}", cluster.namespace), failure)?);
            match list(&cluster.here::<K>(), &doing).await {
                Ok(objects) => objects,
                Err(failure) => {
                    findings.push(not_looked_at(format!("{kind}s -n {}", cluster.namespace), failure)?);
                    Vec::new()
                }
            }
        }
    };
    findings.extend(objects.into_iter().filter_map(|object| {
        let about = format!("{kind}/{} -n {}", object.name_any(), object.namespace().unwrap_or_default());
        judged(about, conditions(object), "Ready")
    }));
    Ok(findings)
}

/// What one may not read is said and passed over; nothing else is.
fn not_looked_at(about: impl Into<String>, failure: Failure) -> Result<Finding, Failure> {
    match failure.code {
        Code::NotPermitted => Ok(Finding {
            code: Word::NotPermitted.as_str().into(),
            severity: Severity::Note,
            about: about.into(),
            message: format!("not looked at: {}; {}", failure.message, failure.hint),
        }),
        _ => Err(failure),
    }
}

fn judged(about: String, conditions: Option<Vec<Condition>>, aspect: &str) -> Option<Finding> {
    let conditions = conditions.unwrap_or_default();
    let Some(found) = condition(&conditions, aspect) else {
        let message = "no operator has looked at it: is one running, and does it lead? See the Lease peerage-operator";
        return Some(Finding::problem(Word::NotJudged.as_str(), about, message));
    };
    (found.status != ConditionStatus::True).then(|| Finding::problem(&found.reason, about, &found.message))
}

/// What the agents in an agent's pods have found.
async fn pods(cluster: &Cluster, agent: &str) -> Result<Vec<Finding>, Failure> {
    let about = format!("pods of agentpeer/{agent} -n {}", cluster.namespace);
    let answers = match ask::<Vec<Diagnosis>>(cluster, agent, "doctor").await {
        Ok(answers) => answers,
        Err(failure) => return not_looked_at(about, failure).map(|one| vec![one]),
    };
    if answers.is_empty() {
        return Ok(vec![Finding::problem(
            Word::NoAnswer.as_str(),
            about,
            "none runs with an agent; the AgentPeer says why",
        )]);
    }
    let mut findings = Vec::new();
    for answer in answers {
        let about = format!("pod/{} -n {}", answer.pod, cluster.namespace);
        match answer.said {
            Ok(said) => findings.extend(said.into_iter().filter_map(|one| diagnosed(&about, one))),
            Err(failure) => {
                findings.push(Finding::problem(
                    Word::NoAnswer.as_str(),
                    about,
                    format!("{}; {}", failure.message, failure.hint),
                ));
            }
        }
    }
    Ok(findings)
}

fn diagnosed(about: &str, said: Diagnosis) -> Option<Finding> {
    let message = if said.remedy.is_empty() { said.found } else { format!("{}; {}", said.found, said.remedy) };
    let finding = Finding { code: said.check, severity: said.severity, about: about.into(), message };
    (said.severity != Severity::Good).then_some(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_may_not_read_is_a_note_and_no_end() {
        let failure = Failure::new(Code::NotPermitted, "could not list AgentLinks: forbidden", "ask");
        let note = not_looked_at("agentlinks", failure).expect("a note");
        assert_eq!((note.code.as_str(), note.severity), ("not_permitted", Severity::Note));
        let failure = Failure::new(Code::NoCluster, "no way", "");
        assert_eq!(not_looked_at("agentlinks", failure.clone()), Err(failure));
    }

    #[test]
    fn what_nobody_judged_is_a_problem() {
        let found = judged("agentlink/hub".into(), None, "Connected").expect("a finding");
        assert_eq!((found.code.as_str(), found.severity), ("not_judged", Severity::Problem));
    }

    #[test]
    fn an_agents_good_findings_are_none_of_the_clusters() {
        let said =
            |severity| Diagnosis { check: "nat".into(), severity, found: "cone".into(), remedy: "open it".into() };
        assert_eq!(diagnosed("pod/db", said(Severity::Good)), None);
        let note = diagnosed("pod/db", said(Severity::Note)).expect("a finding");
        assert_eq!((note.message.as_str(), note.code.as_str()), ("cone; open it", "nat"));
    }

    #[test]
    fn the_reference_says_what_to_do_about_each_word() {
        let words = peerage_docs::words_of(&serde_json::from_str::<Word>("\"?\"").expect_err("no such word"));
        for word in &words {
            let known: Word = serde_json::from_value(word.as_str().into()).expect("one of them");
            assert_eq!(known.as_str(), word);
        }
        peerage_docs::Page::at("docs/troubleshooting.md").has_rows("kubectl peerage doctor", words);
    }
}
