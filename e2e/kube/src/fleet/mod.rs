//! Agents by the thousand: each enrols with a token of its own pod, follows its operator's stream over real TLS, and
//! acknowledges, as docs/spec/control-plane.md says. They have no tunnels; what a tunnel does is seen on `pair`.

mod known;
mod wire;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use peerage_model::operator::{
    Enrol, GoAway, GoAwayCode, Hello, KEEPALIVE, Keepalive, Proof, Resume, ToAgent, ToOperator,
};
use peerage_model::{AgreementSecret, Fingerprint, UnixTime};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsConnector;

pub use self::known::Known;
use self::wire::Wire;
use crate::api::{Api, Todo, ours};
use crate::cluster::until_within;
use crate::failed::{Failed, Trying, ensure};

/// Streams that are being opened at the same time: what a rollout of a Deployment does, and no more.
const OPENING: usize = 64;
/// How long one may take: an operator asks TokenReview, and there may be 10,000 in the queue.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait before a stream is opened again.
const AGAIN: Duration = Duration::from_millis(500);

/// Who somebody is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The AgentPeer's name, and that of its one pod.
    pub name: String,
    /// A token of the pod.
    pub token: String,
}

/// One simulated agent.
#[derive(Debug)]
pub struct Agent {
    /// Who it is.
    pub identity: Identity,
    known: Mutex<Known>,
    key: Mutex<AgreementSecret>,
}

/// Many of them. They stop when this is dropped.
#[derive(Debug)]
pub struct Fleet {
    /// All agents, in the order of their identities.
    pub agents: Vec<Arc<Agent>>,
    tasks: Vec<AbortHandle>,
}

/// What they have in common.
struct World {
    operators: Arc<Mutex<Vec<SocketAddr>>>,
    authority: Fingerprint,
    tls: TlsConnector,
    opening: Semaphore,
}

/// Makes AgentPeers called `NAME-0` and so on with a pod each, and asks for the pods' tokens.
///
/// # Errors
/// The API server refuses something.
pub async fn populate(
    api: &Api,
    namespace: &str,
    name: &str,
    count: usize,
    audience: &str,
) -> Result<Vec<Identity>, Failed> {
    let names: Vec<String> = (0..count).map(|number| format!("{name}-{number}")).collect();
    let peers = names.iter().map(|name| {
        let spec = json!({"selector": {"matchLabels": {"app": name}}});
        Todo::create(ours(namespace, "agentpeers"), crate::tests::object("AgentPeer", name, Some(namespace), &spec))
    });
    api.all(peers.collect()).await?;
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let made = names.iter().map(|name| Todo::create(&pods, crate::tests::pod(name, namespace, name, "default")));
    let made = api.all(made.collect()).await?;
    let tokens = made.iter().map(|pod| token_request(namespace, audience, pod));
    let tokens = api.all(tokens.collect()).await?;
    let token = |answer: Value| answer["status"]["token"].as_str().map(str::to_owned);
    names
        .into_iter()
        .zip(tokens)
        .map(|(name, answer)| {
            let token = token(answer).ok_or_else(|| Failed::new("a TokenRequest without a token"))?;
            Ok(Identity { name, token })
        })
        .collect()
}

fn token_request(namespace: &str, audience: &str, pod: &Value) -> Todo {
    let metadata = &pod["metadata"];
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]});
    let spec = json!({"audiences": [audience], "expirationSeconds": 7200, "boundObjectRef": bound});
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    Todo::create(format!("/api/v1/namespaces/{namespace}/serviceaccounts/default/token"), body)
}

impl Fleet {
    /// Starts them; `operators` may change while they run.
    ///
    /// # Errors
    /// TLS cannot be set up, or there is no randomness.
    pub fn start(
        runtime: &Runtime,
        identities: Vec<Identity>,
        operators: Arc<Mutex<Vec<SocketAddr>>>,
        authority: &str,
    ) -> Result<Self, Failed> {
        let authority = authority.parse().trying("read a fingerprint")?;
        let world = Arc::new(World { operators, authority, tls: wire::tls()?, opening: Semaphore::new(OPENING) });
        let agents = identities.into_iter().map(|identity| {
            let key = Mutex::new(new_key()?);
            Ok(Arc::new(Agent { identity, known: Mutex::default(), key }))
        });
        let agents = agents.collect::<Result<Vec<_>, Failed>>()?;
        let live = |agent: &Arc<Agent>| {
            let (agent, world) = (Arc::clone(agent), Arc::clone(&world));
            runtime.spawn(async move { agent.live(&world).await }).abort_handle()
        };
        let tasks = agents.iter().map(live).collect();
        Ok(Self { agents, tasks })
    }

    /// Waits until it is so of every agent.
    ///
    /// # Errors
    /// It is not so of somebody within `patience`; the error names one.
    pub fn all(&self, what: &str, patience: Duration, so: impl Fn(&Known) -> bool) -> Result<(), Failed> {
        let missing = || self.agents.iter().filter(|agent| !so(&agent.known())).collect::<Vec<_>>();
        let found = until_within(patience, || Ok(missing().is_empty()))?;
        ensure(found, || {
            let missing = missing();
            let one = missing.first().map(|agent| (&agent.identity.name, agent.known().ended.clone()));
            format!("{} of {} agents: not {what}; one of them: {one:?}", missing.len(), self.agents.len())
        })
    }
}

/// Somebody who stops half-way: connects, hears Hello, does something else, and only then shows a token.
#[derive(Debug)]
pub struct Knock {
    wire: Wire,
    hello: Hello,
    /// The sequence of the authority's record that the operator proved.
    pub record: u64,
}

impl Knock {
    /// Connects to one operator and hears Hello.
    ///
    /// # Errors
    /// Nobody answers, with something else, or it is not of this authority.
    pub async fn at(place: SocketAddr, authority: &str) -> Result<Self, Failed> {
        let mut wire = Wire::open(place, &wire::tls()?).await?;
        let (ToAgent::Hello(hello), _) = wire.hear().await? else { return Err(Failed::new("no Hello")) };
        let authority = authority.parse().trying("read a fingerprint")?;
        let record = hello.verify(&wire.binding, &authority, 0, now()).trying("believe an operator")?.sequence();
        Ok(Self { wire, hello, record })
    }

    /// Shows the token.
    ///
    /// # Errors
    /// The operator has hung up.
    pub async fn enrol(&mut self, token: &str) -> Result<(), Failed> {
        let key = new_key()?;
        let proof = Proof::enrol(&self.wire.binding, &self.hello.e, &key, token);
        let proof = proof.ok_or_else(|| Failed::new("a weak key"))?;
        let (token, key) = (token.to_owned(), key.public());
        self.wire.say(&ToOperator::Enrol(Enrol { token, key, proof, have: None, version: None })).await
    }

    /// Listens until the operator ends it; how.
    ///
    /// # Errors
    /// It does not within `patience`, or without a word.
    pub async fn goodbye(&mut self, patience: Duration) -> Result<GoAway, Failed> {
        let end = async {
            loop {
                if let (ToAgent::GoAway(goodbye), _) = self.wire.hear().await? {
                    return Ok(goodbye);
                }
            }
        };
        timeout(patience, end).await.trying("hear a goodbye")?
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Agent {
    /// What it knows at the moment.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self) -> AgreementSecret {
        self.key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn live(&self, world: &World) {
        loop {
            let ended = match self.stream(world).await {
                Ok(never) => match never {},
                Err(ended) => ended,
            };
            self.known().end(ended.to_string());
            tokio::time::sleep(AGAIN.mul_f64(f64::from(draw()) / f64::from(u32::MAX))).await;
        }
    }

    /// One stream, from the connection to its end.
    async fn stream(&self, world: &World) -> Result<Infallible, Failed> {
        let turn = world.opening.acquire().await.trying("wait for a turn")?;
        let (place, total) = {
            let operators = world.operators.lock().unwrap_or_else(PoisonError::into_inner);
            (operators.get(draw() as usize % operators.len().max(1)).copied(), operators.len())
        };
        let place = place.ok_or_else(|| Failed::new(format!("there are {total} operators")))?;
        let mut wire = timeout(PATIENCE, self.open(world, place)).await.trying("open a stream in time")??;
        let mut turn = Some(turn);
        let mut keepalive = interval(KEEPALIVE * 2 / 3);
        loop {
            tokio::select! {
                heard = wire.hear() => {
                    let (message, size) = heard?;
                    let answer = self.on(message, size)?;
                    if let Some(answer) = answer {
                        wire.say(&answer).await?;
                        turn = None;
                    }
                }
                _ = keepalive.tick(), if turn.is_none() => wire.say(&ToOperator::Keepalive(Keepalive {})).await?,
            }
        }
    }

    async fn open(&self, world: &World, place: SocketAddr) -> Result<Wire, Failed> {
        let mut wire = Wire::open(place, &world.tls).await?;
        let (ToAgent::Hello(hello), _) = wire.hear().await? else { return Err(Failed::new("no Hello")) };
        let seen = self.known().record;
        let record = hello.verify(&wire.binding, &world.authority, seen, now()).trying("believe an operator")?;
        let first = {
            let mut known = self.known();
            known.record = record.sequence();
            known.begin();
            self.first(&wire, &hello, &known)
        };
        wire.say(&first.ok_or_else(|| Failed::new("a weak key"))?).await?;
        Ok(wire)
    }

    fn first(&self, wire: &Wire, hello: &Hello, known: &Known) -> Option<ToOperator> {
        let (key, have) = (self.key(), known.reached.clone());
        Some(match &known.passport {
            Some(passport) => {
                let proof = Proof::resume(&wire.binding, &hello.e, &key, &passport.credential)?;
                let (credential, enrolment) = (passport.credential.clone(), passport.enrolment.clone());
                ToOperator::Resume(Resume { credential, enrolment, proof, have, version: None })
            }
            None => {
                let token = self.identity.token.clone();
                let proof = Proof::enrol(&wire.binding, &hello.e, &key, &token)?;
                ToOperator::Enrol(Enrol { token, key: key.public(), proof, have, version: None })
            }
        })
    }

    fn on(&self, message: ToAgent, size: usize) -> Result<Option<ToOperator>, Failed> {
        let mut known = self.known();
        match message {
            ToAgent::Passport(passport) => known.passport = Some(passport),
            ToAgent::Update(update) => return Ok(known.take(*update, size, Instant::now()).map(ToOperator::Ack)),
            ToAgent::GoAway(goodbye) => {
                if matches!(goodbye.code, GoAwayCode::EnrolAnew | GoAwayCode::Denied) {
                    known.passport = None;
                }
                if goodbye.code == GoAwayCode::Denied {
                    *self.key.lock().unwrap_or_else(PoisonError::into_inner) = new_key()?;
                }
                return Err(Failed::new(format!("{:?}: {}", goodbye.code, goodbye.text)));
            }
            ToAgent::Keepalive(_) | ToAgent::Hello(_) => {}
        }
        Ok(None)
    }
}

fn new_key() -> Result<AgreementSecret, Failed> {
    let mut random = [0_u8; 32];
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty()).trying("draw a key")?;
    Ok(AgreementSecret::from_bytes(random))
}

/// Any number. Without randomness there is no key either, and that is said.
fn draw() -> u32 {
    let mut random = [0_u8; 4];
    let _ = rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty());
    u32::from_be_bytes(random)
}

fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
}
