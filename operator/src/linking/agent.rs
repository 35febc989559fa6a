//! The operator as an agent of its own authority: what it is called, what it shows, whom it talks to.
//!
//! The leader alone is one. Its key is born when it takes over and dies when it stops, so two leaders are two instances of
//! one agent, as replicas of any agent are. It talks to operators of linked authorities and to nobody else, and always by
//! relay: no link tells another cluster where this one's control plane is.

use std::io;

use peerage_agent::driver::{self, DriverConfig, DriverEvent, DriverHandle, ProxySettings};
use peerage_agent::portmap;
use peerage_agent::tunnel::Incoming;
use peerage_model::linking::{OPERATOR, PORT, PORT_NAME};
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{BirthdayMode, Invite, PathMode, Peer, Port, Protocol, Snapshot};
use peerage_model::{
    AgentId, AgreementSecret, AuthorityRecord, Credential, Fingerprint, Label, PairSecret, TrustId, UnixTime, passport,
};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::authority::Keyring;

/// What streams of all links may hold: a few windows each. Other operators are strangers, and this process has better
/// things to keep.
const STREAMS: &str = "8Mi";

/// The operator of an authority, as an agent.
pub(super) fn operator_of(authority: Fingerprint) -> AgentId {
    AgentId { authority, name: OPERATOR.parse().expect("it is an agent's name") }
}

/// A link as the operator's agent needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its nickname here.
    pub(super) name: Label,
    /// Which object it is.
    pub(super) uid: TrustId,
    /// Whose cluster is there.
    pub(super) authority: Fingerprint,
    /// By which keys.
    pub(super) records: Vec<AuthorityRecord>,
    /// Where.
    pub(super) relays: Vec<RelayInfo>,
}

/// Whom the operator's agent talks to.
pub(super) fn snapshot(keys: &Keyring, links: &[Link], relays: Vec<RelayInfo>, invites: Vec<Invite>) -> Snapshot {
    let us = operator_of(keys.active().fingerprint());
    let name: Label = PORT_NAME.parse().expect("it is a label");
    let peer = |link: &Link| {
        let them = operator_of(link.authority);
        let of = |own| link.records.iter().map(move |record| (own, record.agreement_key()));
        let own = keys.agreements();
        let secret = |(own, theirs): (&AgreementSecret, _)| PairSecret::between(own, theirs, &us, &them).ok();
        let secrets: Vec<_> = own.iter().flat_map(of).filter_map(secret).collect();
        (!secrets.is_empty()).then(|| Peer {
            trust: link.uid,
            id: them,
            secrets,
            alias: link.name.clone(),
            inbound: vec![name.clone()],
            ports: Vec::new(),
            relays: link.relays.clone(),
            expires: None,
            path: PathMode::RelayOnly,
            birthday: BirthdayMode::Disabled,
        })
    };
    Snapshot {
        peers: links.iter().filter_map(peer).collect(),
        ports: vec![Port { name: name.clone(), number: PORT, protocol: Protocol::Tcp }],
        relays,
        denied: Vec::new(),
        invites,
    }
}

/// The running agent.
pub(super) struct Agent {
    key: AgreementSecret,
    /// Whose passport it shows, and until when.
    shown: (u64, UnixTime),
    /// The tunnel.
    pub(super) tunnel: DriverHandle,
    /// What happens in it.
    pub(super) events: mpsc::Receiver<DriverEvent>,
    /// Streams that other operators open.
    pub(super) incoming: mpsc::Receiver<Incoming>,
}

impl Agent {
    /// Starts one that talks to nobody yet.
    ///
    /// # Errors
    /// There is no randomness, or no socket.
    pub(super) fn start(keys: &Keyring, now: UnixTime) -> io::Result<Self> {
        let mut random = Zeroizing::new([0; 32]);
        crate::random::fill(&mut random[..])?;
        let key = AgreementSecret::from_bytes(*random);
        let mut seed = [0; 32];
        crate::random::fill(&mut seed)?;
        let (credential, shown) = credential(keys, &key, now);
        let (tunnel, events, incoming) = driver::start(DriverConfig {
            agent: operator_of(keys.active().fingerprint()),
            instance: key.clone(),
            credential,
            bind: Vec::new(),
            fixed_endpoints: Vec::new(),
            port_mapping: portmap::Mode::Off,
            snapshot: Snapshot::default(),
            proxy: ProxySettings::from_env(|name| std::env::var(name).ok()),
            memory: STREAMS.parse().expect("it is an amount of memory"),
            seed,
        })?;
        Ok(Self { key, shown, tunnel, events, incoming })
    }

    /// Shows a fresh passport where it is time for one, or other keys sign.
    pub(super) fn renew(&mut self, keys: &Keyring, now: UnixTime) {
        let (sequence, until) = self.shown;
        let is_fresh = until > now.plus(passport::LIFETIME - passport::RENEWAL);
        if sequence == keys.active().record().sequence() && is_fresh {
            return;
        }
        let (credential, shown) = credential(keys, &self.key, now);
        match self.tunnel.renew(credential) {
            Ok(()) => self.shown = shown,
            Err(error) => tracing::error!(%error, "the operator's own passport was not taken"),
        }
    }
}

fn credential(keys: &Keyring, key: &AgreementSecret, now: UnixTime) -> (Vec<u8>, (u64, UnixTime)) {
    let authority = keys.active();
    let until = now.plus(passport::LIFETIME);
    let us = operator_of(authority.fingerprint());
    let signed = authority.issue(&us, key.public(), now.minus(passport::BACKDATED), until);
    (Credential::join(authority.record(), signed), (authority.record().sequence(), until))
}
