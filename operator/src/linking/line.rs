//! What is known of one link while this replica leads: what its operator says of itself and of its agents, and how much of
//! that counts. What waits for somebody else is [`super::desk`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use peerage_model::linking::{Denied, Hello, MAX_RELAYS, RELAYS_OVERLAP};
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::DeniedInstance;
use peerage_model::{AgentId, AgentName, AuthorityRecord, InstanceId, UnixTime, passport};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::agent::{Link, Side};
use super::board::Row;
use super::hear::{Known, Pace};
use super::outgoing::Outgoing;
use super::tell::Going;
use super::throttle::{self, Throttle};
use crate::index::LinkLive;
use crate::roll::Denial;

/// Between two Hellos of one link that count: each that says something else is a write of the AgentLink's status.
const HELLO_EVERY: Duration = Duration::from_secs(10);
/// How long an operator that was heard may not answer before the link's status says so: what ends and begins at once is not
/// worth a write.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// Denied instances that one link tells, and that are taken from it.
pub(super) const MAX_DENIED: usize = 256;

/// One link while this replica leads. Dropping it ends its tasks.
pub(super) struct Line {
    pub(super) link: Link,
    pub(super) row: Row,
    pub(super) known: Known,
    /// Instances that it said are denied.
    denied: BTreeMap<InstanceId, Refused>,
    outgoing: watch::Sender<Arc<Outgoing>>,
    pub(super) tasks: Vec<AbortHandle>,
    /// The stream that the other operator tells us on, and which of them it is.
    pub(super) listening: Option<AbortHandle>,
    pub(super) streams: u64,
    /// When the latest of them began.
    pub(super) streamed: Option<Instant>,
    pub(super) pace: Pace,
    /// What it said of itself since that was last taken, and when that was.
    hello: Option<(Vec<AuthorityRecord>, Vec<RelayInfo>)>,
    greeted: Option<UnixTime>,
    /// Since when it does not answer, and why.
    lost: Option<(UnixTime, String)>,
    /// What it said last of its relays, and since when it says so.
    told: Option<(Vec<RelayInfo>, UnixTime)>,
    /// What the log says of it.
    warnings: Throttle,
}

/// What the other operator said of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refused {
    agent: AgentName,
    /// Until when it is denied.
    until: UnixTime,
    /// Until when it counts among those that are taken of its link. That is as long as a passport can last, whatever its
    /// operator says: denials that end at once would be writes without end.
    held: UnixTime,
}

impl Drop for Line {
    fn drop(&mut self) {
        for task in self.tasks.iter().chain(&self.listening) {
            task.abort();
        }
    }
}

impl Line {
    /// A link whose operator has not said anything; `tasks` end with it.
    pub(super) fn new(link: Link, outgoing: watch::Sender<Arc<Outgoing>>, tasks: Vec<AbortHandle>) -> Self {
        let live = match &link.side {
            // It has a task only while its ticket is shown.
            Side::Beside(_) if !tasks.is_empty() => LinkLive::Connecting,
            Side::Operator | Side::Beside(_) | Side::Machine => met(&link.side, link.is_taken),
        };
        Self {
            row: Row::new(link.uid, live, link.is_taken),
            link,
            known: Known::default(),
            denied: BTreeMap::new(),
            outgoing,
            tasks,
            listening: None,
            streams: 0,
            streamed: None,
            pace: Pace::begin(Instant::now()),
            hello: None,
            greeted: None,
            lost: None,
            told: None,
            warnings: Throttle::every(throttle::LINES),
        }
    }

    /// What there is to tell the other operator from now on.
    pub(super) fn tell(&self, outgoing: Outgoing) {
        self.outgoing.send_if_modified(|told| {
            let changed = **told != outgoing;
            if changed {
                *told = Arc::new(outgoing);
            }
            changed
        });
    }

    /// The other operator says who it is. What is not signed by the authority of this link is nobody's word.
    pub(super) fn greet(&mut self, hello: Hello, now: UnixTime) {
        let records = match hello.records(&self.link.authority, now) {
            Ok(records) => records,
            Err(error) if self.warnings.may(Instant::now()) => {
                return tracing::warn!(link = self.link.name.as_str(), %error, "an operator shows bad keys");
            }
            Err(_) => return,
        };
        self.hello = Some((newest(records), hello.relays));
        self.settle(now);
    }

    /// The ticket was taken, or is good for nothing.
    pub(super) fn met(&mut self, taken: Result<(), String>) {
        match (taken, &self.link.side, &self.row.live) {
            (Ok(()), side, _) => {
                self.row.is_taken = true;
                if *side != Side::Operator {
                    self.row.live = met(side, true);
                }
            }
            (Err(_), _, LinkLive::Connected | LinkLive::Beside { .. }) => {}
            (Err(why), _, _) => self.row.live = LinkLive::TicketEnded { why },
        }
    }

    /// The ticket is shown, and not taken yet.
    pub(super) fn waits(&mut self, why: String) {
        if self.row.live != LinkLive::Connected {
            self.row.live = LinkLive::Silent { why };
        }
    }

    pub(super) fn goes(&mut self, going: Going, now: UnixTime) {
        match (going, &self.row.live) {
            (Going::Heard, _) => (self.row.live, self.lost) = (LinkLive::Connected, None),
            // Whoever waits for its ticket to be taken is told about that.
            (Going::Lost(_), LinkLive::TicketEnded { .. } | LinkLive::Machine { .. } | LinkLive::Beside { .. }) => {}
            (Going::Lost(why), LinkLive::Connected) => {
                let since = self.lost.take().map_or(now, |(since, _)| since);
                self.lost = Some((since, why));
            }
            (Going::Lost(why), LinkLive::Connecting | LinkLive::Silent { .. }) => {
                self.row.live = LinkLive::Silent { why }
            }
        }
    }

    /// Lets count what had to wait.
    pub(super) fn settle(&mut self, now: UnixTime) {
        if let Some((_, why)) = self.lost.take_if(|(since, _)| since.plus(LOST_AFTER) <= now) {
            self.row.live = LinkLive::Silent { why };
        }
        if self.greeted.is_none_or(|at| at.plus(HELLO_EVERY) <= now)
            && let Some((records, relays)) = self.hello.take()
        {
            self.greeted = Some(now);
            self.row.records = records;
            if self.told.as_ref().is_none_or(|(told, _)| *told != relays) {
                self.told = Some((relays, now));
            }
        }
        self.settle_relays(now);
    }

    /// Takes the other operator's word that an instance is denied, for as long as a passport can last, and only so many in that
    /// time. Whether that is news.
    pub(super) fn note_denied(&mut self, denied: Denied, now: UnixTime) -> bool {
        let held = now.plus(passport::LIFETIME + passport::BACKDATED);
        let until = denied.until.min(held);
        self.denied.retain(|_, one| one.held > now);
        if until <= now || self.denied.contains_key(&denied.instance) || self.denied.len() >= MAX_DENIED {
            return false;
        }
        self.denied.insert(denied.instance, Refused { agent: denied.agent, until, held });
        true
    }

    /// Denials that hold, each of an agent of the link's own authority.
    pub(super) fn denials(&self, now: UnixTime) -> impl Iterator<Item = Denial> {
        let authority = self.link.authority;
        self.denied.iter().filter(move |(_, one)| one.until > now).map(move |(instance, one)| Denial {
            agent: AgentId { authority, name: one.agent.clone() },
            denied: DeniedInstance { authority, instance: *instance, until: one.until },
        })
    }

    /// Relays of a former list are used besides the new ones for a while, since agents over there change over one by one.
    fn settle_relays(&mut self, now: UnixTime) {
        let Some((told, since)) = &self.told else { return };
        let before = match self.row.relays.is_empty() {
            true => &self.link.relays,
            false => &self.row.relays,
        };
        let mut relays = told.clone();
        if now < since.plus(RELAYS_OVERLAP) {
            relays.extend(before.iter().filter(|relay| !told.contains(relay)).cloned());
            relays.truncate(MAX_RELAYS);
        }
        self.row.relays = relays;
    }
}

/// How it is with a link whose ticket does not stand in the way.
fn met(side: &Side, is_taken: bool) -> LinkLive {
    match side {
        Side::Operator => LinkLive::Connecting,
        Side::Beside(link) => LinkLive::Beside { link: link.to_string() },
        Side::Machine if is_taken => LinkLive::Machine { how: "a machine on its own; its owner was asked".into() },
        Side::Machine => LinkLive::Machine {
            how: "a machine on its own: it has no operator. A ticket of it is shown once, for the first AgentTrust over this link"
                .into(),
        },
    }
}

fn newest(mut records: Vec<AuthorityRecord>) -> Vec<AuthorityRecord> {
    records.sort_by_key(|record| std::cmp::Reverse(record.sequence()));
    records
}

#[cfg(test)]
mod tests {
    use peerage_model::linking::RecordBytes;
    use peerage_model::{Fingerprint, TrustId};

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const THEIRS: Fingerprint = Fingerprint([2; 32]);

    fn line() -> Line {
        line_to(Side::Operator, false)
    }

    fn line_to(side: Side, is_taken: bool) -> Line {
        let uid = TrustId([9; 16]);
        let name = "far".parse().expect("a label");
        let (records, relays) = (Vec::new(), Vec::new());
        let link = Link { name, uid, authority: THEIRS, records, relays, side, is_taken };
        Line::new(link, watch::Sender::default(), Vec::new())
    }

    fn denied(id: u64, until: UnixTime) -> Denied {
        Denied { agent: "db.tools".parse().expect("a name"), instance: InstanceId(id.to_be_bytes()), until }
    }

    #[test]
    fn denials_that_end_at_once_are_as_few_as_those_that_last() {
        let mut line = line();
        let each_second = (0..10_000).map(|second| (second, NOW.plus(Duration::from_secs(second))));
        let news =
            each_second.filter(|(id, now)| line.note_denied(denied(*id, now.plus(Duration::from_secs(1))), *now));
        assert_eq!(news.count(), MAX_DENIED);
        let next_day = NOW.plus(passport::LIFETIME + passport::BACKDATED);
        assert!(
            line.note_denied(denied(20_000, next_day.plus(Duration::from_secs(9))), next_day),
            "there is room again"
        );
    }

    #[test]
    fn however_often_an_operator_says_something_else_of_itself_its_status_changes_seldom() {
        let theirs = peerage_model::Authority::new(&zeroize::Zeroizing::new([3; 96]), NOW);
        let mut line = line();
        line.link.authority = theirs.fingerprint();
        let records = vec![RecordBytes(theirs.record().as_bytes().to_vec())];
        let mut changes = 0;
        for second in 0..100 {
            let key = peerage_model::AgreementSecret::from_bytes([7; 32]).public();
            let host = format!("relay-{second}.example").parse().expect("a host");
            let relays = vec![RelayInfo { key, host, port: 3478, tls: None }];
            let before = line.row.clone();
            line.greet(
                Hello { version: None, records: records.clone(), relays },
                NOW.plus(Duration::from_secs(second)),
            );
            changes += usize::from(line.row != before);
        }
        assert_eq!(changes, 10);
    }

    #[test]
    fn of_a_machine_nobody_says_that_its_operator_is_silent() {
        let mut line = line_to(Side::Machine, false);
        let before = line.row.live.clone();
        assert!(matches!(&before, LinkLive::Machine { how } if how.contains("no operator")), "{before:?}");
        line.goes(Going::Lost("gone".into()), NOW);
        assert_eq!(line.row.live, before);
    }

    #[test]
    fn a_machines_ticket_that_nobody_takes_or_that_has_ended_is_no_success() {
        let mut line = line_to(Side::Machine, false);
        line.waits("it does not answer".into());
        assert_eq!(line.row.live, LinkLive::Silent { why: "it does not answer".into() });
        line.met(Err("it has ended".into()));
        assert_eq!(line.row.live, LinkLive::TicketEnded { why: "it has ended".into() });
        assert!(!line.row.is_taken);
    }

    #[test]
    fn that_a_machines_owner_was_asked_the_next_leader_knows() {
        let mut first = line_to(Side::Machine, false);
        first.met(Ok(()));
        assert!(first.row.is_taken, "it is written down");
        assert!(matches!(&first.row.live, LinkLive::Machine { how } if how.contains("was asked")));
        assert_eq!(line_to(Side::Machine, true).row, first.row);
    }

    #[test]
    fn a_ticket_that_is_good_for_nothing_says_nothing_about_operators_that_talk() {
        let mut line = line();
        line.met(Err("it has ended".into()));
        assert_eq!(line.row.live, LinkLive::TicketEnded { why: "it has ended".into() });
        line.goes(Going::Heard, NOW);
        line.met(Err("it has ended".into()));
        line.waits("nobody answers to it".into());
        assert_eq!(line.row.live, LinkLive::Connected);
    }

    #[test]
    fn an_operator_that_answers_again_at_once_was_not_lost() {
        let mut line = line();
        line.goes(Going::Heard, NOW);
        line.goes(Going::Lost("gone".into()), NOW);
        line.settle(NOW);
        assert_eq!(line.row.live, LinkLive::Connected);
        line.goes(Going::Heard, NOW);
        line.settle(NOW.plus(LOST_AFTER));
        assert_eq!(line.row.live, LinkLive::Connected);
        line.goes(Going::Lost("gone".into()), NOW);
        line.settle(NOW.plus(LOST_AFTER));
        assert_eq!(line.row.live, LinkLive::Silent { why: "gone".into() });
    }
}
