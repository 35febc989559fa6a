//! Agents in clusters, as tests start them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use peerage_agent::address::AddressBook;
use peerage_agent::cluster::{self, Options};
use peerage_agent::control::view::Status;
use peerage_agent::daemon::{Stopper, driver};
use peerage_agent::driver::ProxySettings;
use peerage_agent::state::Place;
use peerage_model::operator::{Entry, LocalPort, Offer, Revision, Settings, Update};
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{BirthdayMode, PathMode, Peer, Port, Protocol};
use peerage_model::{AgentId, Authority, Fingerprint, PairSecret, TrustId};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::operator::PATIENCE;
use crate::world::label;

/// A pod: its memory volume and its token.
pub struct Pod {
    pub folder: tempfile::TempDir,
}

pub struct Agent {
    health: SocketAddr,
    stopper: Stopper,
    running: JoinHandle<()>,
    socket: std::path::PathBuf,
}

impl Pod {
    pub fn new() -> Self {
        let pod = Self { folder: tempfile::tempdir().expect("a folder") };
        pod.write_token("first-token");
        pod
    }

    pub fn write_token(&self, token: &str) {
        std::fs::write(self.folder.path().join("token"), token).expect("it writes");
    }

    /// Starts the sidecar's container.
    pub async fn start(&self, operators: &[SocketAddr], authority: Fingerprint) -> Agent {
        let state = self.folder.path().join("state");
        let operators = operators.iter().map(|address| address.to_string().parse().expect("an operator"));
        let options = Options {
            operators: operators.collect(),
            authority,
            token_file: self.folder.path().join("token"),
            bind: vec!["127.0.0.1:0".parse().expect("an address")],
            endpoints: Vec::new(),
            relay_proxy: ProxySettings::default(),
            memory: Default::default(),
            proxy: None,
            names: true,
            dns: cluster::Dns::System,
            handed_on: None,
            health: Some(([127, 0, 0, 1], 0).into()),
            reserved: Vec::new(),
            addresses: Vec::new(),
        };
        let place = Place::find(Some(&state)).expect("a place");
        let socket = place.socket();
        let started = cluster::start(place, options, Box::new(driver::starter)).await.expect("it starts");
        let (stopper, health) = (started.stopper(), started.health.expect("it was asked for"));
        Agent { health, stopper, running: tokio::spawn(started.run()), socket }
    }
}

impl Agent {
    /// Ends the container.
    pub async fn stop(self) {
        self.stopper.stop();
        timeout(PATIENCE, self.running).await.expect("it ends in time").expect("it ends well");
    }

    /// What the control socket answers: the value, or the failure.
    pub async fn ask(&self, request: &str) -> Result<Value, Value> {
        ask(&self.socket, request).await
    }

    /// What it counts.
    pub async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.health).await.expect("it listens");
        let request = "GET /metrics HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        answer
    }

    /// The status, once it is as it should be.
    pub async fn status_until(&self, what: &str, right: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask("status").await;
            if let Ok(value) = &answer {
                let status: Status = serde_json::from_value(value.clone()).expect("a status");
                if right(&status) {
                    return status;
                }
            }
            assert!(Instant::now() < deadline, "{what}: not in time, but {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The failure that status answers with, once its text has `part`.
    pub async fn failure_until(&self, part: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask("status").await;
            match answer {
                Err(failure) if failure["message"].as_str().is_some_and(|text| text.contains(part)) => return failure,
                other => assert!(Instant::now() < deadline, "{part}: not in time, but {other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn ask(socket: &Path, request: &str) -> Result<Value, Value> {
    let mut stream = BufReader::new(UnixStream::connect(socket).await.expect("the socket is there"));
    stream.write_all(format!("{{\"v\":1,\"request\":\"{request}\"}}\n").as_bytes()).await.expect("it reads");
    let mut line = String::new();
    stream.read_line(&mut line).await.expect("it answers");
    let answer: Value = serde_json::from_str(&line).expect("JSON");
    answer.get("ok").cloned().ok_or_else(|| answer["error"].clone())
}

/// `us`' trust in `peer`, whose port 80 is at `here` for programs beside us.
pub fn entry(authority: &Authority, us: &AgentId, peer: &AgentId, relay: &RelayInfo, number: u8, here: u16) -> Entry {
    let trust = TrustId([number; 16]);
    let peer = Peer {
        trust,
        id: peer.clone(),
        secrets: vec![PairSecret::within(authority.agreement(), us, peer)],
        alias: peer.name.first_label(),
        inbound: vec![label("web")],
        ports: vec![Port { name: label("web"), number: 80, protocol: Protocol::Tcp }],
        relays: vec![relay.clone()],
        expires: None,
        path: PathMode::Auto,
        birthday: BirthdayMode::Disabled,
    };
    Entry {
        peer,
        consents: vec![trust, TrustId([number + 100; 16])],
        link: None,
        local_ports: vec![LocalPort { port: 80, protocol: Protocol::Tcp, here }],
    }
}

/// Everything, as of `version`.
pub fn full(version: u64, entries: Vec<Entry>, settings: Settings) -> Update {
    Update { full: true, entries, settings: Some(settings), ..delta(version) }
}

/// A change, as of `version`.
pub fn delta(version: u64) -> Update {
    let revision = Revision { epoch: 1, versions: vec![version] };
    Update { shown: revision.clone(), revision, ..Update::default() }
}

/// Settings of an agent that offers port 80 and has it at `target`.
pub fn settings(relay: &RelayInfo, target: u16) -> Settings {
    let ports = vec![Offer { name: label("web"), port: 80, protocol: Protocol::Tcp, target }];
    Settings { ports, relays: vec![relay.clone()], ..Settings::default() }
}

/// Where programs find `peer`.
pub fn address(peer: &AgentId) -> Ipv4Addr {
    AddressBook::new().address_of(peer)
}

/// A port that nobody has at this moment.
pub async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("bound").port()
}

/// Waits until nothing listens for `peer` any more. A container's end closes its listeners at once; here the process goes on,
/// and its runtime closes them in a moment.
pub async fn until_free(peer: &AgentId, port: u16) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = TcpListener::bind((address(peer), port)).await {
        assert!(Instant::now() < deadline, "a listener outlives its agent: {error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A service that sends back what comes; its port.
pub async fn echo_service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                // Whoever goes away in the middle is a test's business.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

/// A program's connection to `peer`, once it echoes.
pub async fn connected(peer: &AgentId, port: u16) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let attempt = async {
            let mut stream = TcpStream::connect((address(peer), port)).await?;
            stream.write_all(b"hello").await?;
            let mut back = [0; 5];
            stream.read_exact(&mut back).await?;
            assert_eq!(&back, b"hello");
            std::io::Result::Ok(stream)
        };
        match timeout(PATIENCE, attempt).await {
            Ok(Ok(stream)) => return stream,
            other => assert!(Instant::now() < deadline, "no echo from the peer in time: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
