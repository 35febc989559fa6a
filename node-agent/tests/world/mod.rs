//! A relay and agents on loopback, for tests of the driver on real sockets.

use std::net::SocketAddr;

use peerage_agent::driver::{DriverConfig, DriverEvent, DriverHandle, ProxySettings, TunnelMemory, start};
use peerage_agent::tunnel::{Incoming, Opened, TunnelStream};
use peerage_model::passport::{BACKDATED, LIFETIME};
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{PathMode, Peer, Port, Protocol};
use peerage_model::stream::{StreamHeader, StreamKind};
use peerage_model::{AgentId, AgreementSecret, Authority, Credential, Label, PairSecret, Snapshot, TrustId, UnixTime};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

pub fn random<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    let n = getrandom(&mut out, GetRandomFlags::empty()).expect("the kernel gives random bytes");
    assert_eq!(n, N);
    out
}

pub fn wall() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    UnixTime(since.as_secs())
}

pub fn label(text: &str) -> Label {
    text.parse().expect("a label")
}

/// A relay on loopback that takes everybody.
pub struct TestRelay {
    pub info: RelayInfo,
    /// How many instances it holds.
    pub bound: Box<dyn Fn() -> usize + Send + Sync>,
    _folder: tempfile::TempDir,
}

pub async fn relay() -> TestRelay {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: peerage_relay::Options,
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("relay.key");
    let line = ["relay", "--open", "--listen", "127.0.0.1:0", "--key-file", key.to_str().expect("UTF-8")];
    let options = <Line as clap::Parser>::parse_from(line).options;
    let bound = peerage_relay::Bound::new(&options).await.expect("the relay starts");
    let info = bound.info().clone();
    let counters = bound.counters();
    tokio::spawn(bound.serve(std::future::pending()));
    TestRelay { info, bound: Box::new(move || counters().1.bound), _folder: folder }
}

/// An agent that exists on paper: its authority and id.
pub struct Person {
    pub authority: Authority,
    pub id: AgentId,
}

pub fn person(name: &str) -> Person {
    let authority = Authority::new(&Zeroizing::new(random()), wall());
    let id = authority.agent(name.parse().expect("a name"));
    Person { authority, id }
}

/// `me`'s declaration of trust in `other`, which may open port `inbound`.
pub fn trust(me: &Person, other: &Person, relay: &RelayInfo, inbound: &[&str]) -> Peer {
    let secret =
        PairSecret::between(me.authority.agreement(), other.authority.record().agreement_key(), &me.id, &other.id);
    Peer {
        trust: TrustId(random()),
        id: other.id.clone(),
        secrets: vec![secret.expect("good keys")],
        alias: other.id.name.first_label(),
        inbound: inbound.iter().map(|port| label(port)).collect(),
        ports: Vec::new(),
        relays: vec![relay.clone()],
        expires: None,
        path: PathMode::Auto,
        birthday: Default::default(),
    }
}

pub fn snapshot(relay: &RelayInfo, peers: Vec<Peer>) -> Snapshot {
    let web = Port { name: label("web"), number: 80, protocol: Protocol::Tcp };
    let udp = Port { name: label("udp"), number: 53, protocol: Protocol::Udp };
    Snapshot { peers, ports: vec![web, udp], relays: vec![relay.clone()], denied: Vec::new(), invites: Vec::new() }
}

/// A running agent.
pub struct Running {
    pub handle: DriverHandle,
    pub events: mpsc::Receiver<DriverEvent>,
    pub incoming: mpsc::Receiver<Incoming>,
}

impl Person {
    pub fn start(&self, snapshot: Snapshot) -> Running {
        self.start_behind(ProxySettings::default(), snapshot)
    }

    /// The same for an agent that may have to reach relays through an HTTP proxy.
    pub fn start_behind(&self, proxy: ProxySettings, snapshot: Snapshot) -> Running {
        let instance = AgreementSecret::from_bytes(random());
        let now = wall();
        let passport = self.authority.issue(&self.id, instance.public(), now.minus(BACKDATED), now.plus(LIFETIME));
        let bind: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let config = DriverConfig {
            proxy,
            memory: TunnelMemory::default(),
            agent: self.id.clone(),
            instance,
            credential: Credential::join(self.authority.record(), passport),
            bind: vec![bind],
            fixed_endpoints: Vec::new(),
            port_mapping: peerage_agent::portmap::Mode::Off,
            snapshot,
            seed: random(),
        };
        let (handle, events, incoming) = start(config).expect("the agent starts");
        Running { handle, events, incoming }
    }
}

impl Running {
    pub async fn wait_for<T>(&mut self, mut found: impl FnMut(&DriverEvent) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the driver runs");
                if let Some(value) = found(&event) {
                    return value;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), search).await.expect("it happens within 20 s")
    }
}

pub const WEB: StreamHeader = StreamHeader { kind: StreamKind::Tcp, port: 80 };

pub fn stream(opened: Opened) -> TunnelStream {
    match opened {
        Opened::Stream(stream) => stream,
        Opened::Flow(_) => panic!("a stream was asked for"),
    }
}
