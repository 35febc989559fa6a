//! An agent's owner: its authority, and what it declares. Everything goes through the model, as in a cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_model::id::sha256;
use peerage_model::passport::{BACKDATED, LIFETIME};
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{BirthdayMode, DeniedInstance, Invite, PathMode, Peer, Port, Protocol, Snapshot};
use peerage_model::ticket::InviteSecret;
use peerage_model::{
    AgentId, AgreementKey, AgreementSecret, Authority, Credential, Label, PairSecret, Ticket, TrustId, UnixTime,
};
use zeroize::Zeroizing;

/// The TCP port that every agent offers.
pub(super) const WEB: u16 = 80;
/// The UDP port that every agent offers.
pub(super) const DNS: u16 = 53;

/// Who declares whom an agent trusts.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) authority: Authority,
    pub(super) id: AgentId,
    pub(super) relays: Vec<RelayInfo>,
    pub(super) trusts: BTreeMap<String, Declared>,
    pub(super) denied: Vec<DeniedInstance>,
    pub(super) invites: Vec<Invite>,
    pub(super) passports_last: Duration,
    seed: u64,
    instances: u64,
    declarations: u64,
}

/// One declared trust.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) trust: TrustId,
    pub(super) peer: AgentId,
    pub(super) key: AgreementKey,
    pub(super) relays: Vec<RelayInfo>,
    pub(super) expires: Option<UnixTime>,
    pub(super) path: PathMode,
    pub(super) birthday: BirthdayMode,
}

impl Owner {
    pub(super) fn new(seed: u64, name: &str, relays: Vec<RelayInfo>, wall: UnixTime) -> Self {
        let part = |n: u8| sha256(&[b"owner", &seed.to_be_bytes(), name.as_bytes(), &[n]]);
        let mut random = Zeroizing::new([0; 96]);
        for (n, chunk) in (0..).zip(random.chunks_mut(32)) {
            chunk.copy_from_slice(&part(n));
        }
        let authority = Authority::new(&random, wall);
        let id = authority.agent(name.parse().expect("tests use good agent names"));
        Self {
            authority,
            id,
            relays,
            trusts: BTreeMap::new(),
            denied: Vec::new(),
            invites: Vec::new(),
            passports_last: LIFETIME,
            seed,
            instances: 0,
            declarations: 0,
        }
    }

    /// The key of the next instance.
    pub(super) fn next_instance(&mut self) -> AgreementSecret {
        self.instances += 1;
        AgreementSecret::from_bytes(self.draw(b"instance", self.instances))
    }

    /// The next instance is the last one again.
    pub(super) fn take_last_key_again(&mut self) {
        self.instances -= 1;
    }

    /// A credential for this key, from now on.
    pub(super) fn credential(&self, key: &AgreementSecret, wall: UnixTime) -> Vec<u8> {
        let passport =
            self.authority.issue(&self.id, key.public(), wall.minus(BACKDATED), wall.plus(self.passports_last));
        Credential::join(self.authority.record(), passport)
    }

    /// Declares trust in the agent of `other`, under a new id.
    pub(super) fn declare(&mut self, other: &Self) {
        let trust = self.next_id();
        let declared = Declared {
            trust,
            peer: other.id.clone(),
            key: *other.authority.record().agreement_key(),
            relays: other.relays.clone(),
            expires: None,
            path: PathMode::Auto,
            birthday: BirthdayMode::Disabled,
        };
        self.trusts.insert(other.id.name.to_string(), declared);
    }

    /// A ticket, and the open invitation behind it.
    pub(super) fn invite(&mut self, expires: UnixTime) -> Ticket {
        let id = self.next_id();
        let secret = self.draw(b"invite", self.declarations);
        self.invites.push(Invite { id, secret: PairSecret::of_invite(&secret, &self.id), expires });
        Ticket {
            record: self.authority.record().clone(),
            name: self.id.name.clone(),
            relays: self.relays.clone(),
            secret: InviteSecret::from_bytes(secret),
            expires,
        }
    }

    /// The allowlist as it is declared.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            peers: self.trusts.values().map(|declared| self.peer(declared)).collect(),
            ports: vec![port("web", WEB, Protocol::Tcp), port("dns", DNS, Protocol::Udp)],
            relays: self.relays.clone(),
            denied: self.denied.clone(),
            invites: self.invites.clone(),
        }
    }

    fn peer(&self, declared: &Declared) -> Peer {
        let secret = PairSecret::between(self.authority.agreement(), &declared.key, &self.id, &declared.peer)
            .expect("authorities of the simulator have good keys");
        Peer {
            trust: declared.trust,
            id: declared.peer.clone(),
            secrets: vec![secret],
            alias: declared.peer.name.first_label(),
            inbound: vec![label("web"), label("dns")],
            ports: Vec::new(),
            relays: declared.relays.clone(),
            expires: declared.expires,
            path: declared.path,
            birthday: declared.birthday,
        }
    }

    fn next_id(&mut self) -> TrustId {
        self.declarations += 1;
        let hash = self.draw(b"trust", self.declarations);
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        TrustId(id)
    }

    fn draw(&self, what: &[u8], n: u64) -> [u8; 32] {
        let name = self.id.name.as_str().as_bytes();
        sha256(&[what, &self.seed.to_be_bytes(), name, &[0], &n.to_be_bytes()])
    }
}

fn port(name: &str, number: u16, protocol: Protocol) -> Port {
    Port { name: label(name), number, protocol }
}

fn label(text: &str) -> Label {
    text.parse().expect("a label of the simulator")
}
