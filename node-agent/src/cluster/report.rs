//! What the agent tells its operator of itself (docs/spec/control-plane.md section 9): changes only, and not often.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_model::linking::RecordBytes;
use peerage_model::operator::{
    Conflict, MAX_REPORTED, Nat, PathWord, PeerReport, PeerState, Report, ToOperator, clipped,
};
use peerage_model::{AgentId, AuthorityRecord, Fingerprint};
use tokio::time::Instant;

use super::node::Node;
use crate::daemon::link::LinkStatus;
use crate::listen::Whose;

/// Between two reports.
const EVERY: Duration = Duration::from_secs(5);
/// Longest RFC 3489 word that is told, in bytes.
const MAX_WORD: usize = 64;

/// What the operator at the other end of one connection knows.
#[derive(Debug, Default)]
pub(super) struct Reporter {
    /// Whether the first update is in force.
    begun: bool,
    last: Option<Instant>,
    told: State,
    said_version: bool,
}

/// How we are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct State {
    nat: Option<Nat>,
    peers: BTreeMap<AgentId, PeerReport>,
    conflicts: Vec<Conflict>,
    records: BTreeMap<Fingerprint, AuthorityRecord>,
}

impl Reporter {
    /// Reports begin after the first acknowledgement.
    pub(super) fn begin_after(&mut self, said: &ToOperator) {
        self.begun |= matches!(said, ToOperator::Ack(_));
    }

    /// What there is to say at this moment.
    pub(super) async fn due(&mut self, node: &Node) -> Vec<Report> {
        if !self.begun || self.last.is_some_and(|last| last.elapsed() < EVERY) {
            return Vec::new();
        }
        self.last = Some(Instant::now());
        let status = match node.tunnel.get() {
            Some(link) => link.status().await,
            None => LinkStatus::default(),
        };
        self.changes(state(node, &status))
    }

    fn changes(&mut self, state: State) -> Vec<Report> {
        let mut reports = Vec::new();
        let mut first = Report::default();
        if state.nat != self.told.nat {
            first.nat.clone_from(&state.nat);
        }
        if state.conflicts != self.told.conflicts {
            first.conflicts = Some(state.conflicts.clone());
        }
        if !std::mem::replace(&mut self.said_version, true) {
            first.version = Some(env!("CARGO_PKG_VERSION").to_owned());
        }
        if first != Report::default() {
            reports.push(first);
        }
        let changed = state.peers.iter().filter(|(peer, report)| self.told.peers.get(*peer) != Some(*report));
        let changed: Vec<PeerReport> = changed.map(|(_, report)| report.clone()).collect();
        reports.extend(changed.chunks(MAX_REPORTED).map(|peers| Report { peers: peers.to_vec(), ..Report::default() }));
        let shown = state.records.iter().filter(|(of, record)| self.told.records.get(*of) != Some(*record));
        let shown: Vec<_> = shown.map(|(_, record)| RecordBytes(record.as_bytes().to_vec())).collect();
        reports.extend(shown.chunks(MAX_REPORTED).map(|some| Report { records: some.to_vec(), ..Report::default() }));
        self.told = state;
        reports
    }
}

fn state(node: &Node, status: &LinkStatus) -> State {
    let nat = Nat { word: clipped(&status.nat.kind), behaviour: clipped(&status.nat.detail) };
    let failures = node.edge.outbound.failures.all();
    let peers = node.follow(|follow| follow.entries().map(|entry| entry.peer.id.clone()).collect::<Vec<_>>());
    let report = |peer: AgentId| {
        let best = status.best_session_with(&peer);
        let failed = failures.get(&peer).map(|failure| failure.text.as_str());
        let state = match (best, failed) {
            (Some(_), _) => PeerState::Connected,
            (None, Some(_)) => PeerState::Failing,
            (None, None) => PeerState::Idle,
        };
        let why = best.map_or(failed, |session| session.why_not_better.as_deref());
        let path = best.map_or(PathWord::None, |session| path(&session.path));
        (peer.clone(), PeerReport { peer, state, path, why: why.map(clipped) })
    };
    let conflicts = node.edge.listening();
    let conflicts = conflicts.conflicts.iter().take(MAX_REPORTED).map(|conflict| Conflict {
        peer: conflict.peer.clone(),
        port: conflict.asked.address.port(),
        protocol: conflict.asked.protocol,
        instead: conflict.actual.map(|actual| actual.port()),
        why: clipped(&format!("{}; {}", conflict.reason, conflict.remedy(Whose::Pod))),
    });
    State {
        nat: (!nat.word.is_empty() && nat.word.len() <= MAX_WORD).then_some(nat),
        peers: peers.into_iter().map(report).collect(),
        conflicts: conflicts.collect(),
        records: node.records(),
    }
}

fn path(word: &str) -> PathWord {
    match word {
        "local" => PathWord::Local,
        "direct" => PathWord::Direct,
        "punched" => PathWord::Punched,
        _ => PathWord::Relayed,
    }
}

#[cfg(test)]
mod tests {
    use peerage_model::{Authority, UnixTime};
    use zeroize::Zeroizing;

    use super::*;

    fn peer(name: &str, state: PeerState) -> (AgentId, PeerReport) {
        let id = AgentId { authority: Fingerprint([1; 32]), name: name.parse().expect("a name") };
        (id.clone(), PeerReport { peer: id, state, path: PathWord::None, why: None })
    }

    #[test]
    fn everything_is_said_once_and_then_changes_only() {
        let mut reporter = Reporter::default();
        let nat = Some(Nat { word: "symmetric".into(), behaviour: String::new() });
        let idle =
            State { nat, peers: [peer("a", PeerState::Idle), peer("b", PeerState::Idle)].into(), ..State::default() };
        let first = reporter.changes(idle.clone());
        assert_eq!((first.len(), first[0].nat.is_some(), first[1].peers.len()), (2, true, 2));
        assert!(reporter.changes(idle.clone()).is_empty());
        let mut changed = idle;
        changed.peers.extend([peer("b", PeerState::Connected)]);
        let second = reporter.changes(changed);
        assert_eq!(second, [Report { peers: vec![peer("b", PeerState::Connected).1], ..Report::default() }]);
    }

    #[test]
    fn keys_that_a_peer_showed_are_told_once_and_again_when_they_were_rotated() {
        let theirs = Authority::new(&Zeroizing::new([2; 96]), UnixTime(1_800_000_000));
        let rotated = theirs.rotate(&Zeroizing::new([3; 64]), UnixTime(1_800_000_000));
        let mut reporter = Reporter::default();
        for (record, news) in [(theirs.record(), true), (theirs.record(), false), (rotated.record(), true)] {
            let records = [(theirs.fingerprint(), record.clone())].into();
            let reports = reporter.changes(State { records, ..State::default() });
            let told: Vec<_> = reports.into_iter().flat_map(|report| report.records).collect();
            let wanted = RecordBytes(record.as_bytes().to_vec());
            assert_eq!(told, if news { vec![wanted] } else { Vec::new() });
        }
    }

    #[test]
    fn many_peers_are_several_reports_that_fit_a_frame() {
        let peers = (0..100).map(|number| {
            let (id, report) = peer(&format!("{number:063}.{}", "x".repeat(63)), PeerState::Idle);
            (id, PeerReport { why: Some("y".repeat(256)), ..report })
        });
        let reports = Reporter::default().changes(State { peers: peers.collect(), ..State::default() });
        assert_eq!(reports.iter().map(|report| report.peers.len()).sum::<usize>(), 100);
        for report in reports {
            let frame = ToOperator::Report(report.clone()).encode();
            assert_eq!(ToOperator::decode(&frame[4..]), Ok(Some(ToOperator::Report(report))));
        }
    }
}
