//! The status an object should have, compared with the one it has.

use peerage_crds::peer::PodCounts;
use peerage_crds::trust::AgentCounts;
use peerage_crds::{
    AgentLinkStatus, AgentPeerStatus, AgentRelayStatus, AgentTrustStatus, Condition, ConditionStatus, ConditionType,
    Reason, set_condition,
};
use peerage_model::{AuthorityRecord, UnixTime};

use crate::clock::api_time;
use crate::facts::{LinkFacts, RelayFacts};
use crate::hub::{AgentTold, Hub};
use crate::index::{Heard, Index, PeerLive, TrustLive, Verdict};
use crate::key::ObjectKey;
use crate::linking::Row;
use crate::managed::Running;
use crate::replicas::Others;
use crate::roll::Roll;

/// What is known beyond objects.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    /// Streams of this replica.
    pub hub: &'a Hub,
    /// Streams of the others.
    pub others: &'a Others,
    /// Passports.
    pub roll: &'a Roll,
    /// The time of day.
    pub now: UnixTime,
    /// Whether this replica has led for a moment only, so that who is missing may be on its way.
    pub settling: bool,
}

fn conditions(old: &[Condition], verdicts: Vec<Verdict>, generation: Option<i64>, now: UnixTime) -> Vec<Condition> {
    let mut conditions = old.to_vec();
    for Verdict { aspect, status, reason, message } in verdicts {
        set_condition(
            &mut conditions,
            Condition::new(aspect, status, reason, message, api_time(now)).observed(generation),
        );
    }
    conditions
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// What the status of an object says that cannot be read.
#[must_use]
pub fn unreadable(why: &str, now: UnixTime) -> serde_json::Value {
    let condition =
        |aspect| Condition::new(aspect, ConditionStatus::False, Reason::NotUnderstood, why.to_owned(), api_time(now));
    serde_json::json!({"conditions": [condition(ConditionType::Accepted), condition(ConditionType::Ready)]})
}

/// The status of an AgentPeer, if it is another one than it has.
#[must_use]
pub fn peer(index: &Index, key: &ObjectKey, live: &Live<'_>) -> Option<AgentPeerStatus> {
    let facts = index.peer(key)?;
    let old = &facts.status;
    let mut enrolled = live.roll.enrolled(index, key, live.now);
    if live.settling {
        // A leader that was just elected has not heard everybody yet; whoever is missing had a passport a moment ago.
        let before = old.pods.as_ref().map_or(0, |pods| usize::try_from(pods.enrolled).unwrap_or(0));
        enrolled = enrolled.max(before);
    }
    let AgentTold { path, nat, conflict } = live.others.told(key, live.hub);
    let here = PeerLive { enrolled, path, nat, conflict };
    let [matched, injected, enrolled, outdated] = index.peer_numbers(key, &here);
    let new = AgentPeerStatus {
        observed_generation: facts.generation,
        conditions: conditions(&old.conditions, index.judge_peer(key, &here), facts.generation, live.now),
        authority: Some(index.authority().to_string()),
        pods: Some(PodCounts {
            matched: number(matched),
            injected: number(injected),
            enrolled: number(enrolled),
            outdated: number(outdated),
        }),
        path: here.path.or(old.path.filter(|_| live.settling)),
        nat: here.nat.or_else(|| old.nat.clone()),
    };
    (new != *old).then_some(new)
}

/// The status of an AgentTrust, if it is another one than it has, and whether its counts have settled.
#[must_use]
pub fn trust(index: &Index, key: &ObjectKey, live: &Live<'_>, overdue: bool) -> (Option<AgentTrustStatus>, bool) {
    let Some(facts) = index.trust(key) else { return (None, true) };
    let old = &facts.status;
    let count = live.others.count(&facts.agent, &facts.uid, facts.generation, live.hub);
    // What was so in another generation says nothing about this one.
    let before = |aspect: ConditionType| {
        let found = old.conditions.iter().find(|condition| condition.type_ == aspect.as_str());
        found.filter(|condition| condition.observed_generation == facts.generation)
    };
    let was_connected = before(ConditionType::Ready)
        .is_some_and(|ready| ready.status == ConditionStatus::True && ready.reason == Reason::AsDeclared.as_str());
    let here = TrustLive {
        expected: count.expected,
        acknowledged: count.acknowledged,
        overdue: overdue && !live.settling,
        path: count.path,
        failing: count.failing,
        was_connected,
        conflict: count.conflict,
    };
    let programmed = before(ConditionType::Programmed);
    let verdicts = index.judge_trust(key, &here, programmed.map(|condition| condition.status));
    let programmed = verdicts.iter().find(|verdict| verdict.aspect == ConditionType::Programmed);
    let holds = programmed.is_some_and(|verdict| verdict.status == ConditionStatus::True);
    let settled = !holds || here.acknowledged >= here.expected;
    let new = AgentTrustStatus {
        observed_generation: facts.generation,
        conditions: conditions(&old.conditions, verdicts, facts.generation, live.now),
        hostname: index.hostname(key),
        path: here.path.or(old.path.filter(|_| live.settling)),
        agents: Some(AgentCounts { expected: number(here.expected), acknowledged: number(here.acknowledged) }),
    };
    ((new != *old).then_some(new), settled)
}

/// The status of an AgentLink, if it is another one than it has. `row`: what the leader's operator has found, if it has
/// looked; `brought`: which keys agents over there showed.
#[must_use]
pub fn link(
    index: &Index,
    name: &str,
    facts: &LinkFacts,
    row: Option<&Row>,
    brought: Option<&AuthorityRecord>,
    now: UnixTime,
) -> Option<AgentLinkStatus> {
    let old = &facts.status;
    let row = row.filter(|row| row.uid == facts.uid);
    let leads = index.leads(name, facts).ok();
    let authority = leads.as_ref().map(|leads| leads.authority).or(facts.authority);
    let mut records: Vec<_> = leads.iter().flat_map(|leads| leads.records.iter().copied()).collect();
    let found = row.iter().flat_map(|row| &row.records).chain(brought);
    records.extend(found.filter(|record| Some(record.fingerprint()) == authority));
    records.sort_by_key(|record| std::cmp::Reverse(record.sequence()));
    records.dedup_by_key(|record| record.sequence());
    records.truncate(peerage_crds::shape::RECORDS_MAX);
    let relays = row.map(|row| &row.relays).filter(|relays| !relays.is_empty()).unwrap_or(&facts.told);
    let live = row.map(|row| &row.live);
    let is_machine = leads.as_ref().map_or(old.machine == Some(true), |leads| leads.is_machine);
    let is_taken = old.ticket_taken == Some(true) || row.is_some_and(|row| row.is_taken);
    let new = AgentLinkStatus {
        observed_generation: facts.generation,
        conditions: conditions(&old.conditions, index.judge_link(name, live), facts.generation, now),
        authority: authority.map(|found| found.to_string()),
        authority_records: records.iter().map(|record| record.to_text()).collect(),
        machine: is_machine.then_some(true),
        ticket_taken: is_taken.then_some(true),
        relays: relays.iter().map(ToString::to_string).collect(),
        pending_requests: row.map_or(old.pending_requests, |row| Some(number(row.pending))),
    };
    (new != *old).then_some(new)
}

/// The status of an AgentRelay, if it is another one than it has. `heard`: what it last said; `running`: what
/// became of one that the operator runs.
#[must_use]
pub fn relay(
    index: &Index,
    facts: &RelayFacts,
    heard: Option<Heard>,
    running: Option<&Running>,
    now: UnixTime,
) -> Option<AgentRelayStatus> {
    let old = &facts.status;
    let relays = match running.filter(|_| facts.managed.is_some()) {
        Some(Running::At { relays, .. }) => relays,
        // Agents that know it lose nothing by what stands in the way here.
        Some(Running::Refused(..)) | None => &facts.relays,
    };
    let addresses: Vec<_> = relays.iter().map(ToString::to_string).collect();
    // A leader that was just elected has not looked yet, and knows nothing better.
    let is_unknown = facts.managed.is_some() && running.is_none();
    let is_as_told = old.observed_generation == facts.generation && old.addresses == addresses;
    if is_unknown || (heard.is_none() && !relays.is_empty() && is_as_told) {
        return None;
    }
    let new = AgentRelayStatus {
        observed_generation: facts.generation,
        conditions: conditions(&old.conditions, index.judge_relay(heard, running), facts.generation, now),
        address: addresses.first().cloned(),
        addresses,
    };
    (new != *old).then_some(new)
}
