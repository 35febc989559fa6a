//! What must hold at every packet: an agent sends nothing to who is not its trusted peer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::packet::{Origin, Packet};

/// A session that ends repeats its last packet for three probe timeouts (RFC 9000 section 10.2); a revoked peer may be
/// told so for this long.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Who may hear whom.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// (Name of the speaker, name of the listener), and since when that is over.
    may_hear: BTreeMap<(String, String), Option<Instant>>,
    /// Public addresses, and inside ones, of each agent by name.
    addresses: BTreeMap<IpAddr, Vec<String>>,
    /// Which agent uses a public endpoint.
    endpoints: BTreeMap<SocketAddr, String>,
    /// Names by agent number.
    names: Vec<String>,
    relays: Vec<IpAddr>,
}

impl Guard {
    pub(super) fn add_relay(&mut self, ip: IpAddr) {
        self.relays.push(ip);
    }

    pub(super) fn add_agent(&mut self, name: &str) {
        self.names.push(name.to_owned());
    }

    pub(super) fn lives_at(&mut self, name: &str, ip: IpAddr) {
        let names = self.addresses.entry(ip).or_default();
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }

    pub(super) fn uses(&mut self, agent: usize, endpoint: SocketAddr) {
        let name = self.names[agent].clone();
        self.lives_at(&name, endpoint.ip());
        self.endpoints.insert(endpoint, name);
    }

    pub(super) fn knows_stranger(&mut self, address: SocketAddr) {
        self.endpoints.insert(address, address.to_string());
    }

    pub(super) fn may_hear(&mut self, speaker: &str, listener: &str) {
        self.may_hear.insert((speaker.to_owned(), listener.to_owned()), None);
    }

    pub(super) fn may_not_hear(&mut self, speaker: &str, listener: &str, now: Instant) {
        self.may_hear.insert((speaker.to_owned(), listener.to_owned()), Some(now));
    }

    /// Looks at a packet that enters the core.
    pub(super) fn check(&self, packet: &Packet, now: Instant) {
        match packet.origin {
            Origin::Agent(agent) if !self.relays.contains(&packet.to.ip()) => {
                let speaker = &self.names[agent];
                let heard_by = self.addresses.get(&packet.to.ip()).into_iter().flatten();
                let fine = heard_by.into_iter().any(|listener| self.allows(speaker, listener, now));
                assert!(fine, "{speaker} sent a stranger a byte: {packet:?}");
            }
            Origin::Forwarded(agent) => {
                let speaker = &self.names[agent];
                let listener = self.endpoints.get(&packet.to);
                let fine = listener.is_some_and(|listener| self.allows(speaker, listener, now));
                assert!(fine, "{speaker} sent {listener:?} a byte by relay: {packet:?}");
            }
            Origin::Agent(_) | Origin::Relay | Origin::Stranger => {}
        }
    }

    fn allows(&self, speaker: &str, listener: &str, now: Instant) -> bool {
        let entry = self.may_hear.get(&(speaker.to_owned(), listener.to_owned()));
        match entry {
            Some(None) => true,
            Some(Some(ended)) => now.saturating_duration_since(*ended) < LAST_WORDS,
            None => false,
        }
    }
}
