//! Authorities, agents and trust made on paper, for measurements that start drivers themselves.

use std::net::SocketAddr;
use std::sync::Arc;

use peerage_agent::driver::{DriverConfig, ProxySettings, TunnelMemory};
use peerage_model::passport::{BACKDATED, LIFETIME};
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{PathMode, Peer, Port, Protocol};
use peerage_model::{
    AgentId, AgreementSecret, Authority, AuthorityRecord, Credential, PairSecret, Snapshot, TrustId, UnixTime,
};
use rustix::rand::{GetRandomFlags, getrandom};
use zeroize::Zeroizing;

use crate::Result;

/// The port that [`snapshot`] opens.
pub const PORT: u16 = 80;

/// An agent and its authority.
#[derive(Debug)]
pub struct Person {
    /// What others know it by.
    pub id: AgentId,
    authority: Arc<Authority>,
}

impl Person {
    /// A new agent of a new authority.
    ///
    /// # Panics
    /// The name is no DNS label.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let authority = Arc::new(Authority::new(&Zeroizing::new(random()), wall()));
        Self { id: authority.agent(name.parse().expect("our names are labels")), authority }
    }

    /// The key of a new run, and what vouches for it.
    #[must_use]
    pub fn instance(&self) -> (AgreementSecret, Vec<u8>) {
        let secret = AgreementSecret::from_bytes(random());
        let (from, until) = (wall().minus(BACKDATED), wall().plus(LIFETIME));
        let passport = self.authority.issue(&self.id, secret.public(), from, until);
        (secret, Credential::join(self.authority.record(), passport))
    }

    /// Another agent of the same authority.
    ///
    /// # Panics
    /// The name is no DNS label.
    #[must_use]
    pub fn colleague(&self, name: &str) -> Self {
        Self {
            id: self.authority.agent(name.parse().expect("our names are labels")),
            authority: Arc::clone(&self.authority),
        }
    }

    /// What its authority shows of its keys.
    #[must_use]
    pub fn record(&self) -> &AuthorityRecord {
        self.authority.record()
    }

    /// Our trust in `other`, which may open [`PORT`] here.
    ///
    /// # Errors
    /// A key of theirs is weak.
    pub fn trust(&self, other: &Self, relay: &RelayInfo) -> Result<Peer> {
        self.trust_in(&other.id, other.record(), relay)
    }

    /// The same in somebody who is known by an id and a record.
    ///
    /// # Errors
    /// A key of theirs is weak.
    pub fn trust_in(&self, other: &AgentId, record: &AuthorityRecord, relay: &RelayInfo) -> Result<Peer> {
        let secret = PairSecret::between(self.authority.agreement(), record.agreement_key(), &self.id, other);
        Ok(Peer {
            trust: TrustId(random()),
            id: other.clone(),
            secrets: vec![secret?],
            alias: other.name.first_label(),
            inbound: vec!["web".parse()?],
            ports: Vec::new(),
            relays: vec![relay.clone()],
            expires: None,
            path: PathMode::Auto,
            birthday: Default::default(),
        })
    }

    /// What a driver of a new run is started with.
    #[must_use]
    pub fn config(&self, snapshot: Snapshot) -> DriverConfig {
        let (instance, credential) = self.instance();
        DriverConfig {
            proxy: ProxySettings::default(),
            memory: TunnelMemory::default(),
            agent: self.id.clone(),
            instance,
            credential,
            bind: vec![SocketAddr::from(([0, 0, 0, 0], 0))],
            fixed_endpoints: Vec::new(),
            port_mapping: peerage_agent::portmap::Mode::Off,
            snapshot,
            seed: random(),
        }
    }
}

/// An allowlist with `peers`, bound to `relay`.
///
/// # Panics
/// Never.
#[must_use]
pub fn snapshot(relay: &RelayInfo, peers: Vec<Peer>) -> Snapshot {
    let web = Port { name: "web".parse().expect("a label"), number: PORT, protocol: Protocol::Tcp };
    Snapshot { peers, ports: vec![web], relays: vec![relay.clone()], denied: Vec::new(), invites: Vec::new() }
}

/// Bytes from the operating system.
///
/// # Panics
/// The operating system has none.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    let filled = getrandom(&mut out, GetRandomFlags::empty()).expect("the kernel gives random bytes");
    assert_eq!(filled, N, "up to 256 bytes come at once");
    out
}

/// What time it is.
///
/// # Panics
/// Before 1970.
#[must_use]
pub fn wall() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixTime(since.expect("after 1970").as_secs())
}
