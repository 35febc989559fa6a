//! Streams over real TLS, without an API server: agents that have a passport already.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::agent::{self, Agent};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use peerage_model::operator::{Ack, Enrolment, GoAwayCode, HTTP_PATH, Revision, ToAgent, ToOperator, Update};
use peerage_model::passport::LIFETIME;
use peerage_model::{AgreementSecret, Credential, InstanceId};
use peerage_operator::authority::{Keyring, Stored};
use peerage_operator::cluster::{Cluster, Refused};
use peerage_operator::facts::{PeerFacts, PodFacts, TrustFacts};
use peerage_operator::index::{Index, TrustLive};
use peerage_operator::key::{ObjectKey, uid_bytes};
use peerage_operator::metrics::Metrics;
use peerage_operator::replicas::Others;
use peerage_operator::roll::Holder;
use peerage_operator::serve::Server;
use peerage_operator::watch::Health;
use peerage_operator::{clock, serve};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

const POD_UID: &str = "00000000-0000-0000-0000-0000000000aa";

/// A replica with two agents that trust each other, and one pod of the agent `reporter.reports`.
struct Replica {
    cluster: Arc<Cluster>,
    keys: watch::Sender<Arc<Keyring>>,
    stored: Stored,
    address: SocketAddr,
    _stop: watch::Sender<bool>,
}

fn key(text: &str) -> ObjectKey {
    let (name, namespace) = text.split_once('.').expect("NAME.NAMESPACE");
    ObjectKey::new(namespace, name)
}

/// One that asks nothing of the API server: at this address nobody answers.
async fn replica() -> Replica {
    replica_at(([127, 0, 0, 1], 9).into()).await
}

/// One whose API server is there.
async fn replica_at(api_server: SocketAddr) -> Replica {
    let mut random = Zeroizing::new([7; 96]);
    random[0] = 1;
    let stored = Stored::mint(&random, clock::now());
    let health = Health::new("everything");
    health.applying(90);
    health.applied(100);
    let (news, mut heard) = mpsc::unbounded_channel();
    tokio::spawn(async move { while heard.recv().await.is_some() {} });
    let index = Index::new(stored.fingerprint(), clock::now());
    let cluster = Arc::new(Cluster::new(index, 1, vec![health], Arc::new(Metrics::default()), news));
    let (keys, keyring) = watch::channel(Arc::new(stored.keyring(clock::now())));
    let (stop, stopping) = watch::channel(false);
    let config = kube::Config::new(format!("http://{api_server}").parse().expect("an address"));
    let client = kube::Client::try_from(config).expect("a client connects when it is used");
    let authority = stored.fingerprint();
    let server = Server::new(Arc::clone(&cluster), authority, keyring, client, Arc::new(Others::default()), stopping);
    let listener = serve::bind(([127, 0, 0, 1], 0).into()).await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(server.run(listener));
    let replica = Replica { cluster, keys, stored, address, _stop: stop };
    for (name, app) in [("db.tools", "db"), ("reporter.reports", "reporter")] {
        replica.peer(name, app);
    }
    replica.trust("uses.reports", "reporter", ("db", "tools"), 1);
    replica.trust("serves.tools", "db", ("reporter", "reports"), 2);
    replica.pod(Some("reporter"));
    replica
}

/// An API server that knows the AgentPeer `reporter.reports`, and of pods this one, if any.
async fn api_server(pod: Option<Value>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let peer = json!({
        "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentPeer", "metadata": {"name": "reporter", "namespace": "reports"},
        "spec": {"selector": {"matchLabels": {"app": "reporter"}}},
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (pod, peer) = (pod.clone(), peer.clone());
            let answer = service_fn(move |request: Request<Incoming>| {
                let items: Vec<_> = match request.uri().path() {
                    "/api/v1/namespaces/reports/pods" => pod.iter().cloned().collect(),
                    "/apis/peerage.dev/v1alpha1/namespaces/reports/agentpeers" => vec![peer.clone()],
                    other => panic!("nobody should ask for {other}"),
                };
                let list =
                    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
                ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(list.to_string())))))
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    address
}

impl Replica {
    fn peer(&self, name: &str, app: &str) {
        let name = key(name);
        let object = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentPeer",
            "metadata": {"name": *name.name, "namespace": *name.namespace, "uid": app},
            "spec": {"selector": {"matchLabels": {"app": app}}, "ports": [{"name": "mcp"}]},
        });
        let object = serde_json::from_value(object).expect("an AgentPeer");
        self.cluster.change(|index| index.set_peer(&name, Some(PeerFacts::read(&object).expect("it is read"))));
    }

    fn trust(&self, name: &str, agent: &str, peer: (&str, &str), serial: u32) {
        self.trust_in(name, agent, peer, (serial, 1));
    }

    /// With a number for its UID, and its generation.
    fn trust_in(&self, name: &str, agent: &str, peer: (&str, &str), (serial, generation): (u32, i64)) {
        let name = key(name);
        let object = json!({
            "apiVersion": "peerage.dev/v1alpha1", "kind": "AgentTrust",
            "metadata": {"name": *name.name, "namespace": *name.namespace, "generation": generation, "uid": format!("00000000-0000-0000-0000-{serial:012}")},
            "spec": {"agentRef": {"name": agent}, "peer": {"name": peer.0, "namespace": peer.1}, "inbound": [{"portName": "mcp"}]},
        });
        let object = serde_json::from_value(object).expect("an AgentTrust");
        self.cluster.change(|index| index.set_trust(&name, Some(TrustFacts::read(&object).expect("it is read"))));
    }

    fn pod(&self, app: Option<&str>) {
        let facts = app.map(|app| PodFacts {
            uid: POD_UID.into(),
            labels: (&BTreeMap::from([("app".to_owned(), app.to_owned())])).into(),
            terminating: false,
            injected: Some("agent:1".into()),
            left_alone: None,
            opted_out: false,
        });
        self.cluster.change(|index| index.set_pod(&key("reporter-1.reports"), facts));
    }

    /// What an earlier replica gave to the pod for this key.
    fn passport(&self, instance: &AgreementSecret) -> (Vec<u8>, Vec<u8>) {
        let now = clock::now();
        let keys = self.stored.keyring(now);
        let agent = key("reporter.reports").agent(self.stored.fingerprint()).expect("a name");
        let passport = keys.active().issue(&agent, instance.public(), now, now.plus(LIFETIME));
        let enrolment = Enrolment {
            agent,
            instance: instance.public(),
            pod_uid: uid_bytes(POD_UID).0,
            namespace: "reports".into(),
            pod: "reporter-1".into(),
            service_account: "default".into(),
            issued: now,
        };
        (Credential::join(keys.active().record(), passport), enrolment.sign(keys.active()))
    }

    async fn connect(&self, instance: &AgreementSecret) -> Agent {
        Agent::connect(self.address, self.stored.fingerprint(), instance.clone(), clock::now()).await
    }

    /// An agent that was let in, and the first that it was told.
    async fn resumed(&self, instance: &AgreementSecret) -> (Agent, Update) {
        let (credential, enrolment) = self.passport(instance);
        let mut agent = self.connect(instance).await;
        agent.resume(credential, enrolment).await;
        let ToAgent::Passport(passport) = agent.hear().await else { panic!("a passport comes first") };
        let credential = Credential::verify(&passport.credential, clock::now()).expect("it is good");
        assert_eq!(credential.agent().name.as_str(), "reporter.reports");
        assert_eq!(*credential.instance_key(), instance.public());
        let update = update(&mut agent).await;
        assert!(update.full && !update.more);
        (agent, update)
    }
}

fn revision(version: u64) -> Revision {
    Revision { epoch: 1, versions: vec![version] }
}

async fn update(agent: &mut Agent) -> Update {
    match agent.hear().await {
        ToAgent::Update(update) => *update,
        other => panic!("an update was expected: {other:?}"),
    }
}

async fn goodbye(agent: &mut Agent) -> GoAwayCode {
    match agent.hear().await {
        ToAgent::GoAway(goodbye) => goodbye.code,
        other => panic!("a goodbye was expected: {other:?}"),
    }
}

fn instance(seed: u8) -> AgreementSecret {
    AgreementSecret::from_bytes([seed; 32])
}

#[tokio::test]
async fn who_resumes_is_told_everything_and_then_what_changes() {
    let replica = replica().await;
    let (mut agent, full) = replica.resumed(&instance(1)).await;
    let entry = &full.entries[0];
    assert_eq!((full.entries.len(), entry.peer.id.name.as_str(), entry.consents.len()), (1, "db.tools", 2));
    assert_eq!((full.sequence, full.revision, full.shown), (1, revision(100), revision(90)));
    let settings = full.settings.expect("the first one has them");
    assert_eq!((settings.ports.len(), settings.ports[0].port), (1, 80));

    let uid = entry.consents[1];
    replica.cluster.change(|index| index.set_trust(&key("serves.tools"), None));
    let change = update(&mut agent).await;
    assert_eq!((change.sequence, change.full, &change.gone[..]), (2, false, &[uid][..]));
    assert_eq!(change.withdrawn, std::slice::from_ref(&entry.peer.id));

    replica.trust("serves.tools", "db", ("reporter", "reports"), 3);
    let change = update(&mut agent).await;
    assert_eq!((change.sequence, change.entries.len()), (3, 1));
    assert_ne!(change.entries[0].consents[1], uid, "an object that was made again has another UID");
}

#[tokio::test]
async fn a_trust_is_programmed_when_its_update_is_acknowledged() {
    let replica = replica().await;
    let (mut agent, full) = replica.resumed(&instance(1)).await;
    let trust = full.entries[0].consents[0];
    let hub = Arc::clone(&replica.cluster.hub);
    let count = move || hub.count(&key("reporter.reports"), &trust, Some(1));
    assert_eq!((count().expected, count().acknowledged), (1, 0));
    agent.say(&ToOperator::Ack(Ack { sequence: full.sequence, refused: 0 })).await;
    let acknowledged = async {
        while count().acknowledged == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(agent::PATIENCE, acknowledged).await.expect("the acknowledgement is counted");
    replica.trust_in("uses.reports", "reporter", ("db", "tools"), (1, 2));
    let hub = &replica.cluster.hub;
    assert_eq!(hub.count(&key("reporter.reports"), &trust, Some(2)).acknowledged, 0, "before anybody was told");
    // Nothing of what the agent is told has changed, so its acknowledgement holds as soon as its stream has looked.
    let looked = async {
        while hub.count(&key("reporter.reports"), &trust, Some(2)).acknowledged == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(agent::PATIENCE, looked).await.expect("it is counted in the new generation");
    let live = TrustLive { expected: 1, acknowledged: 1, ..TrustLive::default() };
    let state = replica.cluster.read();
    let verdicts = state.index.judge_trust(&key("uses.reports"), &live, None);
    assert_eq!(verdicts[1].status, peerage_crds::ConditionStatus::True);
}

#[tokio::test]
async fn an_agent_that_is_ahead_hears_when_the_replica_has_caught_up_and_its_refusal_is_no_acknowledgement() {
    let replica = replica().await;
    let (credential, enrolment) = replica.passport(&instance(1));
    let mut agent = replica.connect(&instance(1)).await;
    agent.resume_with(credential, enrolment, Some(revision(101))).await;
    assert!(matches!(agent.hear().await, ToAgent::Passport(_)));
    let full = update(&mut agent).await;
    let trust = full.entries[0].consents[0];
    let acknowledged = || replica.cluster.hub.count(&key("reporter.reports"), &trust, Some(1)).acknowledged;
    agent.say(&ToOperator::Ack(Ack { sequence: full.sequence, refused: 1 })).await;
    replica.cluster.watches[0].applied(101);
    let mark = update(&mut agent).await;
    assert_eq!((mark.sequence, mark.revision, mark.entries.len()), (2, revision(101), 0));
    assert_eq!(acknowledged(), 0);
    agent.say(&ToOperator::Ack(Ack { sequence: mark.sequence, refused: 0 })).await;
    let counted = async {
        while acknowledged() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(agent::PATIENCE, counted).await.expect("what it acts on is counted");
}

#[tokio::test]
async fn a_deleted_pod_and_labels_that_moved_end_the_stream_and_the_passport() {
    for (app, code) in [(None, GoAwayCode::Denied), (Some("other"), GoAwayCode::Denied)] {
        let replica = replica().await;
        let (mut agent, _) = replica.resumed(&instance(1)).await;
        replica.pod(app);
        assert_eq!(goodbye(&mut agent).await, code, "{app:?}");
        let (credential, enrolment) = replica.passport(&instance(1));
        replica.pod(Some("reporter"));
        let mut again = replica.connect(&instance(1)).await;
        again.resume(credential, enrolment).await;
        assert_eq!(goodbye(&mut again).await, GoAwayCode::Denied, "what was withdrawn does not come back");
    }
}

#[tokio::test]
async fn a_replica_that_lags_ends_nobody_and_one_that_does_not_withdraws_who_changed_while_none_ran() {
    let lost = |replica: &Replica| replica.cluster.change(|index| index.set_pod(&key("reporter-1.reports"), None));
    for (have, code, denied) in [
        (Some(revision(101)), GoAwayCode::Behind, false),
        (None, GoAwayCode::NotReady, false),
        (Some(revision(100)), GoAwayCode::PodGone, true),
    ] {
        let replica = replica().await;
        lost(&replica);
        let (credential, enrolment) = replica.passport(&instance(1));
        let mut agent = replica.connect(&instance(1)).await;
        agent.resume_with(credential, enrolment, have.clone()).await;
        assert_eq!(goodbye(&mut agent).await, code, "{have:?}");
        let id = key("reporter.reports").agent(replica.stored.fingerprint()).expect("a name");
        let instance = InstanceId::of_key(&instance(1).public());
        assert_eq!(replica.cluster.is_denied(&id, &instance), denied, "{have:?}");
    }
}

#[tokio::test]
async fn who_was_told_nothing_yet_is_ended_only_if_the_api_server_knows_no_such_pod() {
    let pod = |uid: &str, app: &str| {
        Some(json!({"metadata": {"name": "reporter-1", "namespace": "reports", "uid": uid, "labels": {"app": app}}}))
    };
    for (there, code, denied) in [
        (pod(POD_UID, "reporter"), GoAwayCode::NotReady, false),
        (None, GoAwayCode::PodGone, true),
        (pod("00000000-0000-0000-0000-0000000000ab", "reporter"), GoAwayCode::PodGone, true),
        (pod(POD_UID, "other"), GoAwayCode::PodGone, true),
    ] {
        let replica = replica_at(api_server(there.clone()).await).await;
        replica.pod(None);
        let (credential, enrolment) = replica.passport(&instance(1));
        let mut agent = replica.connect(&instance(1)).await;
        agent.resume_with(credential, enrolment, None).await;
        assert_eq!(goodbye(&mut agent).await, code, "{there:?}");
        let id = key("reporter.reports").agent(replica.stored.fingerprint()).expect("a name");
        let instance = InstanceId::of_key(&instance(1).public());
        assert_eq!(replica.cluster.is_denied(&id, &instance), denied, "{there:?}");
    }
}

#[tokio::test]
async fn a_connection_that_asks_for_anything_else_is_answered_once_and_closed() {
    let replica = replica().await;
    for (asked, status) in [("/metrics", "404"), (HTTP_PATH, "426")] {
        let answer = agent::ask(replica.address, &format!("GET {asked} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.to_lowercase().contains("connection: close\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_pod_that_changed_between_the_question_and_the_answer_is_not_let_in() {
    let replica = replica().await;
    let holder = Holder {
        agent: key("reporter.reports").agent(replica.stored.fingerprint()).expect("a name"),
        peer: key("reporter.reports"),
        instance: InstanceId([1; 8]),
        pod: key("reporter-1.reports"),
        service_account: "default".into(),
        issued: clock::now(),
        until: clock::now().plus(LIFETIME),
    };
    replica.pod(Some("other"));
    assert_eq!(replica.cluster.admit(uid_bytes(POD_UID).0, holder.clone(), true), Err(Refused::Changed));
    replica.pod(Some("reporter"));
    assert_eq!(replica.cluster.admit(uid_bytes(POD_UID).0, holder, true), Ok(()));
}

#[tokio::test]
async fn a_second_key_for_a_pod_ends_the_first_and_a_second_connection_replaces_it() {
    let replica = replica().await;
    let (mut first, _) = replica.resumed(&instance(1)).await;
    let (mut second, _) = replica.resumed(&instance(1)).await;
    assert_eq!(goodbye(&mut first).await, GoAwayCode::Replaced);
    // Of two keys that were given in one second the higher instance id stays, whichever replica hears of which first.
    let mut keys = [instance(1), instance(2)];
    keys.sort_by_key(|key| InstanceId::of_key(&key.public()));
    if keys[1].expose() == instance(1).expose() {
        let (credential, enrolment) = replica.passport(&instance(2));
        let mut late = replica.connect(&instance(2)).await;
        late.resume(credential, enrolment).await;
        assert_eq!(goodbye(&mut late).await, GoAwayCode::Denied);
    } else {
        let (_late, _) = replica.resumed(&instance(2)).await;
        assert_eq!(goodbye(&mut second).await, GoAwayCode::Denied);
    }
}

#[tokio::test]
async fn a_proof_of_another_key_is_refused_and_so_is_a_passport_of_another_authority() {
    let replica = replica().await;
    let (credential, enrolment) = replica.passport(&instance(1));
    let mut thief = replica.connect(&instance(2)).await;
    thief.resume(credential.clone(), enrolment).await;
    assert_eq!(goodbye(&mut thief).await, GoAwayCode::BadProof);

    let (_, foreign) = replica.passport(&instance(2));
    let mut mixed = replica.connect(&instance(1)).await;
    mixed.resume(credential.clone(), foreign).await;
    assert_eq!(goodbye(&mut mixed).await, GoAwayCode::Malformed, "an enrolment of another key");

    let stranger = Stored::mint(&Zeroizing::new([9; 96]), clock::now()).keyring(clock::now());
    let agent = key("reporter.reports").agent(stranger.active().fingerprint()).expect("a name");
    let now = clock::now();
    let passport = stranger.active().issue(&agent, instance(1).public(), now, now.plus(LIFETIME));
    let mut other = replica.connect(&instance(1)).await;
    other.resume(Credential::join(stranger.active().record(), passport), Vec::new()).await;
    assert_eq!(goodbye(&mut other).await, GoAwayCode::EnrolAnew);
}

#[tokio::test]
async fn a_rotation_sends_a_new_passport_and_both_secrets_and_ends_no_stream() {
    let replica = replica().await;
    let (mut agent, full) = replica.resumed(&instance(1)).await;
    assert_eq!(full.entries[0].peer.secrets.len(), 1);
    let rotated = replica.stored.rotated(&Zeroizing::new([3; 64]), clock::now()).expect("nothing is under way");
    replica.keys.send(Arc::new(rotated.keyring(clock::now()))).expect("somebody listens");
    assert!(matches!(agent.hear().await, ToAgent::Passport(_)));
    let change = update(&mut agent).await;
    assert_eq!(change.entries[0].peer.secrets.len(), 2);
    assert_eq!(change.entries[0].peer.secrets[0], full.entries[0].peer.secrets[0], "the old one still goes first");
}

#[tokio::test]
async fn a_replica_whose_watch_has_not_caught_up_serves_nobody() {
    let (news, _heard) = mpsc::unbounded_channel();
    let stored = Stored::mint(&Zeroizing::new([7; 96]), clock::now());
    let index = Index::new(stored.fingerprint(), clock::now());
    let health = Health::new("agenttrusts");
    let cluster = Arc::new(Cluster::new(index, 1, vec![health], Arc::new(Metrics::default()), news));
    let (_keys, keyring) = watch::channel(Arc::new(stored.keyring(clock::now())));
    let (_stop, stopping) = watch::channel(false);
    let nowhere = kube::Config::new("http://127.0.0.1:9".parse().expect("an address"));
    let client = kube::Client::try_from(nowhere).expect("a client connects when it is used");
    let server = Server::new(cluster, stored.fingerprint(), keyring, client, Arc::new(Others::default()), stopping);
    let listener = serve::bind(([127, 0, 0, 1], 0).into()).await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(server.run(listener));
    let (_, head) = agent::upgrade(address).await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.to_lowercase().contains("retry-after: 1"), "{head}");
}

#[tokio::test]
async fn nonsense_ends_its_own_stream_only() {
    let replica = replica().await;
    let (mut good, _) = replica.resumed(&instance(1)).await;
    let mut bad = replica.connect(&instance(2)).await;
    bad.say(&ToOperator::Ack(Ack { sequence: 1, refused: 0 })).await;
    assert_eq!(goodbye(&mut bad).await, GoAwayCode::Malformed, "nobody acknowledges before they are let in");
    good.say(&ToOperator::Ack(Ack { sequence: 99, refused: 0 })).await;
    assert_eq!(goodbye(&mut good).await, GoAwayCode::Malformed, "nor what was never sent");
}
