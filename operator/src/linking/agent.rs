//! The operator as an agent of its own authority: what it is called, what it shows, whom it talks to.
//!
//! The leader alone is one. Its key is born when it takes over and dies when it stops, so two leaders are two instances of
//! one agent, as replicas of any agent are. It talks to operators of linked authorities and to nobody else, and always by
//! relay: no link tells another cluster where this one's control plane is.

use std::io;
use std::time::Duration;

use peerage_agent::driver::{self, DriverConfig, DriverEvent, DriverHandle, ProxySettings};
use peerage_agent::portmap;
use peerage_agent::tunnel::Incoming;
use peerage_model::control::TrustRequest;
use peerage_model::linking::{OPERATOR, PORT, PORT_NAME};
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{BirthdayMode, Invite, PathMode, Peer, Port, Protocol, Snapshot};
use peerage_model::{
    AgentId, AgentName, AgreementSecret, AuthorityRecord, Credential, Fingerprint, Label, PairSecret, Ticket, TrustId,
    UnixTime, passport,
};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::authority::Keyring;

/// What streams of all links may hold: a few windows each. Other operators are strangers, and this process has better
/// things to keep.
const STREAMS: &str = "8Mi";

/// How long a passport for one question lasts: the question takes 20 s at most, and clocks differ.
const QUESTION: Duration = Duration::from_secs(300);

/// The operator of an authority, as an agent.
pub(super) fn operator_of(authority: Fingerprint) -> AgentId {
    AgentId { authority, name: OPERATOR.parse().expect("it is an agent's name") }
}

/// Whether an agent of this name is one of a machine on its own, whose authority knows no namespaces and has no operator.
pub(super) fn is_of_machine(name: &AgentName) -> bool {
    name.as_str() != OPERATOR && !name.as_str().contains('.')
}

/// Who is there at a link's other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// An operator.
    Operator,
    /// An operator that this other link leads to as well: there is one channel with each.
    Beside(Label),
    /// A machine on its own, with nobody to call.
    Machine,
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
    /// Who answers there.
    pub(super) side: Side,
    /// Whether its ticket was taken before.
    pub(super) is_taken: bool,
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
        peers: links.iter().filter(|link| link.side == Side::Operator).filter_map(peer).collect(),
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
        let key = new_key()?;
        let (credential, shown) = credential(keys, &key, now);
        let us = operator_of(keys.active().fingerprint());
        let (tunnel, events, incoming) = driver::start(config(us, key.clone(), credential)?)?;
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

/// Asks the holder of a machine's ticket for trust, in the name of an agent of this cluster: the ticket is one agent's, and
/// agents in pods show none. The passport for it ends with the question, and what shows it is bound nowhere, so that nobody who
/// calls that agent comes to us.
///
/// # Errors
/// Why it was not taken.
pub(super) async fn ask_for(
    keys: &Keyring,
    name: &AgentName,
    ticket: &Ticket,
    request: TrustRequest,
) -> Result<(), String> {
    let (authority, now) = (keys.active(), crate::clock::now());
    let agent = AgentId { authority: authority.fingerprint(), name: name.clone() };
    let key = new_key().map_err(|error| error.to_string())?;
    let passport = authority.issue(&agent, key.public(), now.minus(passport::BACKDATED), now.plus(QUESTION));
    let credential = Credential::join(authority.record(), passport);
    let started = config(agent, key, credential).and_then(driver::start);
    // What happens besides is of no interest, and nobody is let in.
    let (tunnel, _events, _incoming) = started.map_err(|error| error.to_string())?;
    let asked = tunnel.request_trust(ticket, request).await;
    tunnel.shutdown().await;
    asked.map_err(|error| error.to_string())
}

fn new_key() -> io::Result<AgreementSecret> {
    let mut random = Zeroizing::new([0; 32]);
    crate::random::fill(&mut random[..])?;
    Ok(AgreementSecret::from_bytes(*random))
}

/// Of an agent that talks to nobody yet.
fn config(agent: AgentId, instance: AgreementSecret, credential: Vec<u8>) -> io::Result<DriverConfig> {
    let mut seed = [0; 32];
    crate::random::fill(&mut seed)?;
    Ok(DriverConfig {
        agent,
        instance,
        credential,
        bind: Vec::new(),
        fixed_endpoints: Vec::new(),
        port_mapping: portmap::Mode::Off,
        snapshot: Snapshot::default(),
        proxy: ProxySettings::from_env(|name| std::env::var(name).ok()),
        memory: STREAMS.parse().expect("it is an amount of memory"),
        seed,
    })
}

fn credential(keys: &Keyring, key: &AgreementSecret, now: UnixTime) -> (Vec<u8>, (u64, UnixTime)) {
    let authority = keys.active();
    let until = now.plus(passport::LIFETIME);
    let us = operator_of(authority.fingerprint());
    let signed = authority.issue(&us, key.public(), now.minus(passport::BACKDATED), until);
    (Credential::join(authority.record(), signed), (authority.record().sequence(), until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_of_machines_have_names_of_one_label_and_no_operator_is_one() {
        for (name, expected) in [("laptop", true), ("db.tools", false), (OPERATOR, false)] {
            assert_eq!(is_of_machine(&name.parse().expect("a name")), expected, "{name}");
        }
    }
}
