//! How far an agent is with what it was told, and what it reported.

use std::collections::{BTreeMap, BTreeSet};

use peerage_model::operator::{Conflict, PathWord, PeerState, Report};
use peerage_model::{AgentId, TrustId};

/// What an agent was told of one AgentTrust.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owed {
    /// In which generation; of a fleet, whose members are told one by one, in the oldest of theirs.
    pub generation: Option<i64>,
    /// The update that must be acknowledged.
    pub update: u64,
}

/// How far an agent is with what it was told.
#[derive(Debug, Default)]
pub struct Progress {
    /// For each AgentTrust of the agent that it was told something of.
    pub owed: BTreeMap<TrustId, Owed>,
    /// The last update that was.
    pub acknowledged: u64,
    /// How it is with each peer that the agent reported.
    pub peers: BTreeMap<AgentId, (PeerState, PathWord)>,
    /// Which peers each AgentTrust is about.
    pub about: BTreeMap<TrustId, BTreeSet<AgentId>>,
    /// The NAT, one of [`NATS`].
    pub nat: Option<&'static str>,
    /// Of whom something new was reported, and nobody was told yet.
    pub reported: BTreeSet<AgentId>,
    /// Whether the NAT is new, and nobody was told yet.
    pub renatted: bool,
    /// Ports of peers that programs here do not find where they should be, and what to do; by peer.
    pub conflicts: BTreeMap<AgentId, String>,
}

/// The kinds of NAT that agents tell of, the one last that stands most in the way of direct paths.
pub const NATS: [&str; 8] = [
    "open internet",
    "firewalled",
    "full cone",
    "cone",
    "restricted cone",
    "port-restricted cone",
    "symmetric",
    "blocked",
];

impl Progress {
    /// Takes a report: only of peers that the agent was told of, and only words that we know, since whoever reports must
    /// not be able to fill our memory, or a status, with what it likes.
    pub fn report(&mut self, report: Report) {
        let nat = report.nat.and_then(|nat| NATS.into_iter().find(|known| *known == nat.word));
        if nat.is_some() && nat != self.nat {
            (self.nat, self.renatted) = (nat, true);
        }
        let known: BTreeSet<&AgentId> = self.about.values().flatten().collect();
        for peer in report.peers.into_iter().filter(|peer| known.contains(&peer.peer)) {
            let path = match peer.state {
                PeerState::Connected => peer.path,
                PeerState::Idle | PeerState::Failing => PathWord::None,
            };
            if self.peers.insert(peer.peer.clone(), (peer.state, path)) != Some((peer.state, path)) {
                self.reported.insert(peer.peer);
            }
        }
        if let Some(conflicts) = report.conflicts {
            self.report_conflicts(conflicts);
        }
    }

    /// Puts an agent's conflicts in the place of those it had told of before.
    fn report_conflicts(&mut self, conflicts: Vec<Conflict>) {
        let mut new = BTreeMap::new();
        for Conflict { peer, port, protocol, why, .. } in conflicts {
            if self.about.values().any(|peers| peers.contains(&peer)) {
                new.entry(peer).or_insert_with(|| format!("port {port}/{protocol} of the peer: {why}"));
            }
        }
        let old = std::mem::replace(&mut self.conflicts, new);
        let changed = |peer: &&AgentId| old.get(*peer) != self.conflicts.get(*peer);
        self.reported.extend(old.keys().chain(self.conflicts.keys()).filter(changed).cloned());
    }

    /// The AgentTrusts of which something new was reported since this was asked last, and whether the NAT is new.
    pub fn news(&mut self) -> (Vec<TrustId>, bool) {
        let reported = std::mem::take(&mut self.reported);
        (self.about_any(&reported), std::mem::take(&mut self.renatted))
    }

    /// The AgentTrusts that are about one of these.
    #[must_use]
    pub fn about_any(&self, peers: &BTreeSet<AgentId>) -> Vec<TrustId> {
        let concerned = self.about.iter().filter(|(_, about)| !about.is_disjoint(peers));
        concerned.map(|(trust, _)| *trust).collect()
    }
}

#[cfg(test)]
mod tests {
    use peerage_model::Fingerprint;
    use peerage_model::operator::{Nat, PeerReport};

    use super::*;

    fn peer(name: &str) -> AgentId {
        AgentId { authority: Fingerprint([1; 32]), name: name.parse().expect("a name") }
    }

    #[test]
    fn what_is_reported_again_or_of_strangers_or_in_words_of_ones_own_is_no_news() {
        let report = |peer_name: &str, state, word: &str| Report {
            nat: Some(Nat { word: word.into(), behaviour: String::new() }),
            peers: vec![PeerReport { peer: peer(peer_name), state, path: PathWord::Direct, why: None }],
            ..Report::default()
        };
        let trust = TrustId([7; 16]);
        let mut progress = Progress { about: [(trust, [peer("b.n")].into())].into(), ..Progress::default() };
        for (given, news) in [
            (report("b.n", PeerState::Connected, "symmetric"), (vec![trust], true)),
            (report("b.n", PeerState::Connected, "symmetric"), (vec![], false)),
            (report("stranger.n", PeerState::Connected, "a word of its own"), (vec![], false)),
            (report("b.n", PeerState::Failing, "symmetric"), (vec![trust], false)),
        ] {
            progress.report(given);
            assert_eq!(progress.news(), news);
        }
        assert_eq!((progress.peers.len(), progress.nat), (1, Some("symmetric")));
    }
}
