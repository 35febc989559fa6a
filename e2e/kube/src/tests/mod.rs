//! What must be so on a real API server. Each test uses a namespace of its own, so that none depends on another, and
//! waits for conditions as a user would. Some look at one pair of agents, whose tunnel the others must not disturb.

mod authority;
mod enrolment;
mod hostile;
mod hostname;
mod kills;
mod links;
mod objects;
mod relays;
mod revocation;
mod watches;

use std::cell::{RefCell, RefMut};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use peerage_model::TrustId;
use peerage_netlab::kernel::KernelLab;
use peerage_suite::Test;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::agent::{self, Agent, Start};
use crate::answering;
use crate::api::Api;
use crate::audit;
use crate::cluster::{Cluster, until, until_within};
use crate::failed::{Failed, Trying, ensure};
use crate::injection;
use crate::operator::{NAMESPACE, Operator};
use crate::pair::{self, Pair, Stream};
use crate::surroundings;

pub use relays::RELAYS;

/// Numbers that stay the same for so long have settled.
pub const QUIET: Duration = Duration::from_secs(5);

/// The programs that are tested.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `peerage-operator`.
    pub operator: PathBuf,
    /// `peerage-agent`.
    pub agent: PathBuf,
    /// `peerage-relay`.
    pub relay: PathBuf,
    /// `kubectl-peerage`.
    pub plugin: PathBuf,
}

/// The world that the tests share. What is declared first ends first.
#[derive(Debug)]
pub struct Stage {
    /// A stream of the pair that one test has opened for another.
    kept: RefCell<Option<Stream>>,
    pair: RefCell<Option<Pair>>,
    /// The running replicas.
    pub operators: RefCell<Vec<Operator>>,
    /// An internet that the network of the tests is part of.
    pub lab: RefCell<KernelLab>,
    /// The control plane.
    pub cluster: Cluster,
    /// What is tested.
    pub programs: Programs,
    /// The API server without kubectl.
    pub api: Api,
    /// For what is done by the thousand.
    pub runtime: Runtime,
}

/// All tests, in the order in which they run; `rights` looks back at the others, so it is the last. A rotation takes two
/// minutes, which `rotation-begins` and `rotation-ends` leave to what is between them.
pub const ALL: [Test<Stage>; 35] = [
    ("agent-peer", objects::agent_peer),
    ("agent-trust", objects::agent_trust),
    ("agent-link", objects::agent_link),
    ("agent-relay", relays::agent_relay),
    ("managed-relay", relays::managed_relay),
    ("malformed", objects::malformed),
    ("injection", injection::injection),
    ("left-alone", injection::left_alone),
    ("who-asks", injection::who_asks),
    ("host-aliases", injection::host_aliases),
    ("policy", injection::policy),
    ("quota", surroundings::quota),
    ("promises", surroundings::promises),
    ("reinvoked", surroundings::reinvoked),
    ("leaving", answering::leaving),
    ("certificate", answering::lost_certificate),
    ("outdated", injection::outdated),
    ("validation", injection::validation),
    ("enrolment", enrolment::enrolment),
    ("tokens", enrolment::tokens),
    ("mid-enrolment", enrolment::mid_enrolment),
    ("other-namespace", enrolment::other_namespace),
    ("away", enrolment::away),
    ("hostname", hostname::hostname),
    ("container", hostname::container),
    ("revocation", revocation::revocation),
    ("links", links::links),
    ("hostile", hostile::hostile),
    ("rotation-begins", authority::rotation_begins),
    ("kills", kills::kills),
    ("dead-watch", watches::dead_watch),
    ("rotation-ends", authority::rotation_ends),
    ("damaged-secret", authority::damaged_secret),
    ("lost-secret", authority::lost_secret),
    ("rights", rights),
];

/// An object of ours.
#[must_use]
pub fn object(kind: &str, name: &str, namespace: Option<&str>, spec: &Value) -> Value {
    let metadata = json!({"name": name, "namespace": namespace});
    json!({"apiVersion": "peerage.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
}

/// A pod that nobody will run: there are no nodes.
#[must_use]
pub fn pod(name: &str, namespace: &str, app: &str, account: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {"containers": [{"name": "app", "image": "none"}], "serviceAccountName": account},
    })
}

/// An AgentPeer that selects pods by its own name.
#[must_use]
pub fn peer(name: &str, namespace: &str) -> Value {
    object("AgentPeer", name, Some(namespace), &json!({"selector": {"matchLabels": {"app": name}}}))
}

/// An AgentTrust of two agents of one namespace.
#[must_use]
pub fn trust(name: &str, namespace: &str, agent: &str, peer: &str) -> Value {
    object("AgentTrust", name, Some(namespace), &json!({"agentRef": {"name": agent}, "peer": {"name": peer}}))
}

impl Stage {
    /// A world of these parts, in which nothing has happened.
    #[must_use]
    pub fn new(
        cluster: Cluster,
        api: Api,
        programs: Programs,
        lab: KernelLab,
        operators: Vec<Operator>,
        runtime: Runtime,
    ) -> Self {
        let (operators, lab) = (RefCell::new(operators), RefCell::new(lab));
        Self { kept: RefCell::new(None), pair: RefCell::new(None), operators, lab, cluster, programs, api, runtime }
    }

    /// A namespace in which pods can be made.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn namespace(&self, name: &str) -> Result<(), Failed> {
        self.cluster.kubectl(&format!("create namespace {name}"))?;
        // The API server refuses pods until the controller has made it.
        let there = until(|| Ok(self.cluster.get(&format!("serviceaccount default -n {name}"))?.is_some()))?;
        ensure(there, || format!("namespace {name} has no ServiceAccount"))
    }

    /// A pod with label `app`, which runs as `account`.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn pod_as(&self, name: &str, namespace: &str, app: &str, account: &str) -> Result<(), Failed> {
        self.cluster.apply(&pod(name, namespace, app, account))
    }

    /// The cluster's authority.
    ///
    /// # Errors
    /// Nothing remembers one.
    pub fn authority(&self) -> Result<String, Failed> {
        self.cluster
            .kubectl(&format!("get configmap peerage-authority -n {NAMESPACE} -o jsonpath={{.data.fingerprint}}"))
    }

    /// The audience of agents' tokens.
    ///
    /// # Errors
    /// As [`Self::authority`].
    pub fn audience(&self) -> Result<String, Failed> {
        Ok(format!("peerage.dev/{}", self.authority()?))
    }

    /// Where agents find operators.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.operators.borrow().iter().map(|operator| operator.agents).collect()
    }

    /// The same, for a fleet.
    #[must_use]
    pub fn shared_addresses(&self) -> Arc<Mutex<Vec<SocketAddr>>> {
        Arc::new(Mutex::new(self.addresses()))
    }

    /// An agent that shows this token.
    fn agent_with(&self, token: String) -> Result<Agent, Failed> {
        let operators = self.addresses();
        Agent::start(&Start { program: &self.programs.agent, operators, authority: self.authority()?, token })
    }

    /// An agent in `pod`, whose token is for this audience.
    fn agent_in(&self, pod: &str, namespace: &str, audience: &str) -> Result<Agent, Failed> {
        self.agent_with(agent::token(&self.cluster, namespace, pod, audience)?)
    }

    /// The pair of agents, started when it is first asked for.
    fn pair(&self) -> Result<RefMut<'_, Pair>, Failed> {
        let mut pair = self.pair.borrow_mut();
        if pair.is_none() {
            *pair = Some(Pair::start(self, &mut self.lab.borrow_mut())?);
        }
        RefMut::filter_map(pair, Option::as_mut).map_err(|_| Failed::new("there is no pair of agents"))
    }

    /// Waits until no status has been written for a while: what an operator does for its objects is done.
    ///
    /// # Errors
    /// It goes on for longer than `patience`.
    pub fn until_written(&self, patience: Duration) -> Result<(), Failed> {
        let mut last = (self.sum_of_writes(), Instant::now());
        let settled = until_within(patience, || {
            let now = self.sum_of_writes();
            if now != last.0 {
                last = (now, Instant::now());
            }
            Ok(last.1.elapsed() >= QUIET)
        })?;
        ensure(settled, || "statuses are written without end".into())
    }

    /// How many statuses of AgentPeers and AgentTrusts were written since the replicas began.
    #[must_use]
    pub fn sum_of_writes(&self) -> f64 {
        let writes = |kind: &str| format!("peerage_operator_status_writes_total{{kind=\"{kind}\"}}");
        ["AgentPeer", "AgentTrust"].map(|kind| self.sum(&writes(kind))).iter().sum()
    }

    /// One number of all replicas' metrics together.
    #[must_use]
    pub fn sum(&self, line: &str) -> f64 {
        self.operators.borrow().iter().filter_map(|operator| operator.metric(line)).sum()
    }

    /// Keeps a stream open for a later test.
    fn keep_stream(&self, stream: Stream) {
        *self.kept.borrow_mut() = Some(stream);
    }

    /// The stream that was kept, if there is one.
    fn kept_stream(&self) -> Option<Stream> {
        self.kept.borrow_mut().take()
    }

    /// The pair of agents, after both owners have consented.
    fn trusting_pair(&self) -> Result<RefMut<'_, Pair>, Failed> {
        let pair = self.pair()?;
        for consent in [pair::dbs_consent(), pair::reporters_consent()] {
            self.cluster.apply(&consent)?;
        }
        pair.until_answered("db")?;
        Ok(pair)
    }

    /// Does something while every operator is away, and has as many again afterwards, however it went.
    fn without_operators<T>(&self, act: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
        self.operators.borrow_mut().iter_mut().try_for_each(Operator::kill)?;
        let done = act();
        self.restart_operators()?;
        done
    }

    /// All replicas end and begin anew, with what the chart says by then.
    ///
    /// # Errors
    /// One does not become ready.
    pub fn restart_operators(&self) -> Result<(), Failed> {
        let mut operators = self.operators.borrow_mut();
        let replicas = u8::try_from(operators.len()).trying("count operators")?;
        operators.clear();
        for number in 0..replicas {
            operators.push(Operator::start(&self.cluster, &self.programs.operator, number)?);
        }
        Ok(())
    }
}

/// The UID of an AgentTrust, as agents know it.
///
/// # Errors
/// The object has none.
pub fn trust_id(made: &Value) -> Result<TrustId, Failed> {
    let uid = made["metadata"]["uid"].as_str().or(made["details"]["uid"].as_str());
    uid.unwrap_or_default().replace('-', "").parse().trying("read a UID")
}

/// The message of the condition Ready.
fn message(cluster: &Cluster, object: &str) -> Result<String, Failed> {
    let found = cluster.get(object)?.unwrap_or_default();
    let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|one| one["type"] == "Ready");
    Ok(ready.and_then(|one| one["message"].as_str()).unwrap_or_default().to_owned())
}

fn rights(stage: &Stage) -> Result<String, Failed> {
    audit::compare(&stage.cluster)
}

#[cfg(test)]
mod namespaces {
    //! A whole run takes a quarter of an hour; that two tests want one namespace is found out before.

    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    /// Names in the source that are given to `stage.namespace`, with the file of each.
    fn wanted(folder: &Path, found: &mut BTreeMap<String, Vec<String>>) {
        for entry in fs::read_dir(folder).expect("a folder of this crate") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                wanted(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source file");
            let calls = text.split("stage.namespace(\"").skip(1).filter_map(|rest| rest.split('"').next());
            let consts = text.split("\nconst NAMESPACE: &str = \"").skip(1).filter_map(|rest| rest.split('"').next());
            for name in calls.chain(consts) {
                found.entry(name.to_owned()).or_default().push(path.display().to_string());
            }
        }
    }

    #[test]
    fn each_test_has_a_namespace_of_its_own() {
        let mut found = BTreeMap::new();
        wanted(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        assert!(found.len() > 10, "the tests are looked for in the wrong place: {found:?}");
        found.retain(|_, files| files.len() > 1);
        assert!(found.is_empty(), "wanted by two tests: {found:?}");
    }
}
