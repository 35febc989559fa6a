//! Against a real API server, whose custom resources are applied: `scripts/kube start`, `scripts/kube check`, and
//! `KUBECONFIG=$(scripts/kube kubeconfig) cargo test -p peerage-operator --test agents -- --ignored --test-threads 1`.
//! One at a time, because an operator judges all objects of its cluster.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::agent::{self, Agent, PATIENCE};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource, ResourceExt};
use peerage_crds::{AgentPeer, AgentTrust};
use peerage_model::operator::{Ack, GoAwayCode, ToAgent, ToOperator, Update, audience};
use peerage_model::{AgreementSecret, Credential, Fingerprint};
use peerage_operator::authority::NAME;
use peerage_operator::authority::store::{AuthorityError, Store};
use peerage_operator::clock;
use peerage_operator::run::{Options, run};
use serde_json::{Value, json};
use tokio::sync::oneshot;

const NEEDS: &str = "KUBECONFIG leads to a control plane of scripts/kube";

/// Namespaces of one test, removed at its end by who starts the next: names never repeat.
struct World {
    client: Client,
    tag: String,
}

impl World {
    async fn new(name: &str) -> Self {
        let client = Client::try_default().await.expect(NEEDS);
        let mut random = [0; 3];
        peerage_operator::random::fill(&mut random).expect("randomness");
        let tag = format!("{name}-{}", data_encoding::HEXLOWER.encode(&random));
        let world = Self { client, tag };
        // An operator judges all objects of its cluster, also what an earlier test left.
        world.remove_all::<AgentTrust>().await;
        world.remove_all::<AgentPeer>().await;
        world.namespace("system").await;
        world
    }

    async fn remove_all<K>(&self)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let all: Api<K> = Api::all(self.client.clone());
        for object in all.list(&ListParams::default()).await.expect("the custom resources are applied").items {
            let api: Api<K> = Api::namespaced(self.client.clone(), &object.namespace().expect("it has one"));
            let _ = api.delete(&object.name_any(), &DeleteParams::default()).await; // another one may be faster
        }
    }

    fn ns(&self, part: &str) -> String {
        format!("{}-{part}", self.tag)
    }

    async fn namespace(&self, part: &str) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": self.ns(part)}})).expect("a Namespace");
        api.create(&PostParams::default(), &namespace).await.expect("it is created");
    }

    fn store(&self) -> Store {
        Store::new(&self.client, &self.ns("system"))
    }

    fn api<K>(&self, part: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.ns(part))
    }

    async fn create<K>(&self, part: &str, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let object = serde_json::from_value(object).expect("an object");
        self.api(part).create(&PostParams::default(), &object).await.expect("it is created")
    }

    async fn peer(&self, part: &str, name: &str, spec: Value) {
        let mut full = json!({"selector": {"matchLabels": {"app": name}}, "ports": [{"name": "mcp"}]});
        full.as_object_mut().expect("a map").extend(spec.as_object().expect("a map").clone());
        self.create::<AgentPeer>(part, json!({"apiVersion": "peerage.dev/v1alpha1", "kind": "AgentPeer", "metadata": {"name": name}, "spec": full}))
            .await;
    }

    async fn trust(&self, part: &str, agent: &str, peer: (&str, &str)) {
        let spec = json!({"agentRef": {"name": agent}, "peer": {"name": peer.1, "namespace": self.ns(peer.0)}, "inbound": [{"portName": "mcp"}]});
        self.create::<AgentTrust>(part, json!({"apiVersion": "peerage.dev/v1alpha1", "kind": "AgentTrust", "metadata": {"name": agent}, "spec": spec})).await;
    }

    /// A pod, which no kubelet runs, as ServiceAccount `account`.
    async fn pod(&self, part: &str, name: &str, app: &str, account: &str) -> Pod {
        let accounts: Api<ServiceAccount> = self.api(part);
        if accounts.get_opt(account).await.expect("it answers").is_none() {
            self.create::<ServiceAccount>(part, json!({"metadata": {"name": account}})).await;
        }
        let spec = json!({"serviceAccountName": account, "automountServiceAccountToken": false, "containers": [{"name": "app", "image": "none"}]});
        self.create(part, json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": spec})).await
    }

    async fn token(
        &self,
        part: &str,
        account: &str,
        pod: Option<&Pod>,
        audience: String,
    ) -> Result<String, kube::Error> {
        let accounts: Api<ServiceAccount> = self.api(part);
        let bound = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        });
        let spec = TokenRequestSpec { audiences: vec![audience], bound_object_ref: bound, expiration_seconds: None };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        Ok(answer.status.expect("a token").token)
    }

    /// A replica in this process.
    async fn operator(&self) -> Replica {
        let free = || {
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port is free")
        };
        let (listen, health) = (free(), free());
        let options = Options {
            staleness: peerage_operator::index::Staleness::default(),
            namespace: self.ns("system"),
            listen,
            advertise: listen.to_string(),
            health,
            identity: listen.to_string(),
            admission: None,
            relays: None,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let client = self.client.clone();
        let running = tokio::spawn(async move {
            run(options, client, async { drop(stopped.await) }).await.expect("it runs to its end");
        });
        let replica = Replica { listen, _stop: stop, _running: running };
        eventually("the replica serves", || async { agent_can_upgrade(listen).await.then_some(()) }).await;
        replica
    }

    async fn authority(&self) -> Fingerprint {
        self.store().load(clock::now()).await.expect("there are keys").fingerprint()
    }

    async fn condition<K>(&self, part: &str, name: &str, aspect: &str, status: &str, reason: &str)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let api: Api<K> = self.api(part);
        let what = format!("{name} has {aspect}={status} ({reason})");
        eventually(&what, || async {
            let object = serde_json::to_value(api.get(name).await.ok()?).ok()?;
            let conditions = object["status"]["conditions"].as_array()?;
            let found = conditions.iter().find(|condition| condition["type"] == aspect)?;
            (found["status"] == status && found["reason"] == reason).then_some(())
        })
        .await;
    }
}

struct Replica {
    listen: SocketAddr,
    _stop: oneshot::Sender<()>,
    _running: tokio::task::JoinHandle<()>,
}

async fn agent_can_upgrade(listen: SocketAddr) -> bool {
    match tokio::net::TcpStream::connect(listen).await {
        Ok(_) => agent::upgrade(listen).await.1.starts_with("HTTP/1.1 101 "),
        Err(_) => false,
    }
}

/// Asks until the answer is there.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE * 2, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn instance(seed: u8) -> AgreementSecret {
    AgreementSecret::from_bytes([seed; 32])
}

async fn goodbye(agent: &mut Agent) -> GoAwayCode {
    loop {
        if let ToAgent::GoAway(goodbye) = agent.hear().await {
            return goodbye.code;
        }
    }
}

async fn enrolled(agent: &mut Agent, token: &str) -> (Credential, Update) {
    agent.enrol(token).await;
    let passport = match agent.hear().await {
        ToAgent::Passport(passport) => passport,
        other => panic!("a passport was expected: {other:?}"),
    };
    let credential = Credential::verify(&passport.credential, clock::now()).expect("it is good");
    let ToAgent::Update(update) = agent.hear().await else { panic!("everything follows") };
    agent.say(&ToOperator::Ack(Ack { sequence: update.sequence, refused: 0 })).await;
    (credential, *update)
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn replicas_that_start_at_once_share_one_authority() {
    let world = World::new("race").await;
    let loads = (0..8).map(|_| {
        let store = world.store();
        tokio::spawn(async move { store.load(clock::now()).await.expect("keys are made once").fingerprint() })
    });
    let all = futures::future::join_all(loads).await;
    let all: std::collections::BTreeSet<_> = all.into_iter().map(|found| found.expect("no panic")).collect();
    assert_eq!(all.len(), 1);
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn keys_that_are_lost_damaged_or_another_s_are_said_so_and_never_replaced() {
    let world = World::new("keys").await;
    let first = world.authority().await;
    let secrets: Api<Secret> = world.api("system");
    let backup = secrets.get(NAME).await.expect("it was made");

    let damaged = json!({"data": {"current": "AAAA"}});
    secrets.patch(NAME, &PatchParams::default(), &Patch::Merge(damaged)).await.expect("it is written");
    let error = world.store().load(clock::now()).await.expect_err("it is damaged");
    assert!(matches!(error, AuthorityError::Unusable(_)) && error.to_string().contains("does not hold"), "{error}");
    world.store().complain(&error).await;
    let events: Api<k8s_openapi::api::events::v1::Event> = world.api("system");
    let events = events.list(&ListParams::default()).await.expect("it answers");
    assert!(events.items.iter().any(|event| event.reason.as_deref() == Some("AuthorityDamaged")), "there is an Event");

    secrets.delete(NAME, &DeleteParams::default()).await.expect("it goes");
    let error = world.store().load(clock::now()).await.expect_err("it is lost");
    assert!(error.to_string().contains(&first.to_string()), "{error}");
    assert!(secrets.get_opt(NAME).await.expect("it answers").is_none(), "nothing was made in its place");

    // Somebody else's keys, as after a mistaken restore.
    let other = World::new("keys-other").await;
    other.authority().await;
    let foreign = other.api::<Secret>("system").get(NAME).await.expect("it was made");
    let restore = |data: Option<BTreeMap<String, ByteString>>| Secret {
        metadata: kube::core::ObjectMeta { name: Some(NAME.into()), ..Default::default() },
        data,
        ..Secret::default()
    };
    secrets.create(&PostParams::default(), &restore(foreign.data)).await.expect("it is written");
    let error = world.store().load(clock::now()).await.expect_err("it is another's");
    assert!(error.to_string().contains("belong to"), "{error}");

    secrets.delete(NAME, &DeleteParams::default()).await.expect("it goes");
    secrets.create(&PostParams::default(), &restore(backup.data)).await.expect("it is written");
    assert_eq!(world.authority().await, first, "the backup is the authority again");
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn a_rotation_is_asked_for_by_annotation_and_happens_once() {
    let world = World::new("rotate").await;
    let first = world.authority().await;
    let secrets: Api<Secret> = world.api("system");
    let ask = json!({"metadata": {"annotations": {"peerage.dev/rotate": "now"}}});
    secrets.patch(NAME, &PatchParams::default(), &Patch::Merge(ask)).await.expect("it is written");
    for _ in 0..2 {
        world.store().maintain(clock::now()).await.expect("it works");
    }
    let stored = world.store().load(clock::now()).await.expect("there are keys");
    assert_eq!((stored.fingerprint(), stored.keyring(clock::now()).sequences()), (first, vec![1, 2]));
    let map: ConfigMap = world.api("system").get(NAME).await.expect("it remembers");
    assert_eq!(map.data.expect("something").get("fingerprint"), Some(&first.to_string()));
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn two_agents_enrol_and_are_told_of_each_other_until_one_owner_takes_it_back() {
    let world = World::new("pair").await;
    for part in ["tools", "reports"] {
        world.namespace(part).await;
    }
    let replica = world.operator().await;
    let authority = world.authority().await;
    world.peer("tools", "db", json!({})).await;
    world.peer("reports", "reporter", json!({})).await;
    world.condition::<AgentPeer>("tools", "db", "Ready", "True", "NoPods").await;
    world.trust("reports", "reporter", ("tools", "db")).await;
    world.condition::<AgentTrust>("reports", "reporter", "Ready", "False", "WaitingForPeer").await;
    world.trust("tools", "db", ("reports", "reporter")).await;
    world.condition::<AgentTrust>("reports", "reporter", "Ready", "True", "NoPods").await;

    let pod = world.pod("tools", "db-1", "db", "db").await;
    let token = world.token("tools", "db", Some(&pod), audience(&authority)).await.expect("a token");
    let mut agent = Agent::connect(replica.listen, authority, instance(1), clock::now()).await;
    let (credential, full) = enrolled(&mut agent, &token).await;
    assert_eq!(credential.agent().name.as_str(), format!("db.{}", world.ns("tools")));
    assert_eq!(full.entries.len(), 1);
    world.condition::<AgentPeer>("tools", "db", "Enrolled", "True", "AsDeclared").await;
    world.condition::<AgentTrust>("tools", "db", "Programmed", "True", "AsDeclared").await;

    let trusts: Api<AgentTrust> = world.api("reports");
    let uid = trusts.get("reporter").await.expect("it is there").metadata.uid.expect("it has one");
    let deleted = Instant::now();
    trusts.delete("reporter", &DeleteParams::default()).await.expect("it goes");
    let change = loop {
        if let ToAgent::Update(update) = agent.hear().await {
            break update;
        }
    };
    println!("a deletion reached the agent {:?} after it was asked for", deleted.elapsed());
    assert_eq!(change.gone, [peerage_operator::key::uid_bytes(&uid)]);
    world.condition::<AgentTrust>("tools", "db", "Ready", "False", "WaitingForPeer").await;

    world
        .api::<Pod>("tools")
        .delete("db-1", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() })
        .await
        .expect("it goes");
    assert_eq!(goodbye(&mut agent).await, GoAwayCode::Denied);
    let maps: Api<ConfigMap> = world.api("system");
    let id = credential.instance().to_string();
    eventually("the denial is written down", || async {
        let maps = maps.list(&ListParams::default().labels("peerage.dev/denied-instances")).await.ok()?;
        maps.items.iter().any(|map| map.data.as_ref().is_some_and(|data| data.contains_key(&id))).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn a_token_for_another_audience_of_no_pod_or_of_another_account_enrols_nobody() {
    let world = World::new("thief").await;
    world.namespace("tools").await;
    let replica = world.operator().await;
    let authority = world.authority().await;
    world.peer("tools", "db", json!({"serviceAccountName": "db"})).await;
    let good = world.pod("tools", "db-1", "db", "db").await;
    let labelled = world.pod("tools", "forged", "db", "other").await;
    let none = world.pod("tools", "plain", "nothing", "db").await;
    let ours = audience(&authority);
    let cases = [
        ("db", Some(&good), "https://kubernetes.default.svc".to_owned(), GoAwayCode::BadToken),
        ("db", None, ours.clone(), GoAwayCode::BadToken),
        ("other", Some(&labelled), ours.clone(), GoAwayCode::NoAgent),
        ("db", Some(&none), ours.clone(), GoAwayCode::NoAgent),
    ];
    for (account, pod, audience, code) in cases {
        let token = world.token("tools", account, pod, audience.clone()).await.expect("a token");
        let mut agent = Agent::connect(replica.listen, authority, instance(1), clock::now()).await;
        agent.enrol(&token).await;
        assert_eq!(goodbye(&mut agent).await, code, "{account} {audience}");
    }
    let mut nonsense = Agent::connect(replica.listen, authority, instance(1), clock::now()).await;
    nonsense.enrol("not a token").await;
    assert_eq!(goodbye(&mut nonsense).await, GoAwayCode::BadToken);
    // A token outlives its pod by no moment: the API server knows that the pod is gone.
    let token = world.token("tools", "db", Some(&good), ours).await.expect("a token");
    world
        .api::<Pod>("tools")
        .delete("db-1", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() })
        .await
        .expect("it goes");
    let mut late = Agent::connect(replica.listen, authority, instance(1), clock::now()).await;
    late.enrol(&token).await;
    let code = goodbye(&mut late).await;
    assert!(matches!(code, GoAwayCode::BadToken | GoAwayCode::PodGone), "{code:?}");
}

#[tokio::test]
#[ignore = "needs an API server"]
async fn two_replicas_count_together_and_keep_one_key_for_a_pod() {
    let world = World::new("two").await;
    for part in ["tools", "reports"] {
        world.namespace(part).await;
    }
    let (one, two) = (world.operator().await, world.operator().await);
    let authority = world.authority().await;
    world.peer("tools", "db", json!({})).await;
    world.peer("reports", "reporter", json!({})).await;
    world.trust("reports", "reporter", ("tools", "db")).await;
    world.trust("tools", "db", ("reports", "reporter")).await;
    let ours = audience(&authority);
    let mut agents = Vec::new();
    for (number, replica) in [&one, &two].into_iter().enumerate() {
        let pod = world.pod("tools", &format!("db-{number}"), "db", "db").await;
        let token = world.token("tools", "db", Some(&pod), ours.clone()).await.expect("a token");
        let mut agent =
            Agent::connect(replica.listen, authority, instance(u8::try_from(number + 1).expect("small")), clock::now())
                .await;
        enrolled(&mut agent, &token).await;
        agents.push((agent, token));
    }
    world.condition::<AgentPeer>("tools", "db", "Enrolled", "True", "AsDeclared").await;
    let trusts: Api<AgentTrust> = world.api("tools");
    eventually("the leader counts both replicas' agents", || async {
        let counts = trusts.get("db").await.ok()?.status?.agents?;
        ((counts.expected, counts.acknowledged) == (2, 2)).then_some(())
    })
    .await;
    // The pod of the first agent enrols another key at the other replica: the first key is denied at its own.
    // Whole seconds tell which of two is the later one.
    let before = clock::now();
    eventually("a second passes", || async { (clock::now() > before).then_some(()) }).await;
    let mut thief = Agent::connect(two.listen, authority, instance(9), clock::now()).await;
    enrolled(&mut thief, &agents[0].1).await;
    assert_eq!(goodbye(&mut agents[0].0).await, GoAwayCode::Denied);
}
