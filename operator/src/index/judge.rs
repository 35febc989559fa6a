//! What the conditions of each object should be.
//!
//! A verdict here has no time and is not compared with anything written: `status` does both. What comes from streams
//! is given as numbers, so that judging stays a matter of the same input and the same answer.

use peerage_crds::{ConditionStatus, ConditionType, PathSummary, Reason};
use peerage_model::AgentId;
use peerage_model::relay::frame::Refusal as RelayRefusal;

use super::{Index, PodSums, Refusal};
use crate::facts::{PeerFacts, Target, TrustFacts};
use crate::key::ObjectKey;
use crate::managed::Running;

/// What programs call the machine that they run on, whatever an alias says.
const NOBODYS_NAME: &str = "localhost";

/// One condition as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which aspect.
    pub aspect: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
}

/// What streams tell of an agent's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerLive {
    /// Pods whose passport is valid.
    pub enrolled: usize,
    /// How their connections travel.
    pub path: Option<PathSummary>,
    /// The worst NAT that one of them is behind.
    pub nat: Option<String>,
    /// A peer's port that programs in a pod do not find where it should be, and what to do.
    pub conflict: Option<String>,
}

/// What streams tell of an AgentTrust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustLive {
    /// Sidecars of our agent with a stream.
    pub expected: usize,
    /// Those that acted on this trust as it is.
    pub acknowledged: usize,
    /// Whether somebody has owed its acknowledgement for longer than a moment.
    pub overdue: bool,
    /// How connections of the two travel.
    pub path: Option<PathSummary>,
    /// Whether a sidecar has tried to connect and could not, and none is connected.
    pub failing: bool,
    /// Whether its condition Ready says, of this generation, that the two were connected. Silence takes that from no one.
    pub was_connected: bool,
    /// A port of the peer that programs do not find where it should be, and what to do.
    pub conflict: Option<String>,
}

/// What a relay said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing: no probe came back.
    Nothing,
    /// It answers.
    Answer,
    /// It answers, and lets nobody of this cluster in, for this reason.
    Refusal(RelayRefusal),
}

/// How it is between our operator and the one of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkLive {
    /// It is being called for the first time.
    Connecting,
    /// It hears us.
    Connected,
    /// It does not.
    Silent {
        /// Why not, with what to do.
        why: String,
    },
    /// There is none: a machine on its own.
    Machine {
        /// What became of the ticket.
        how: String,
    },
    /// It is talked to over another link, which leads to the same authority.
    Beside {
        /// That link.
        link: String,
    },
    /// The ticket is good for nothing, and there is no other way to be let in.
    TicketEnded {
        /// What is wrong with it, with what to do.
        why: String,
    },
}

impl Verdict {
    fn of(aspect: ConditionType, status: ConditionStatus, reason: Reason, message: impl Into<String>) -> Self {
        Self { aspect, status, reason, message: message.into() }
    }

    fn holds(aspect: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Self::of(aspect, ConditionStatus::True, reason, message)
    }

    fn fails(aspect: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Self::of(aspect, ConditionStatus::False, reason, message)
    }

    /// The same finding about another aspect.
    fn about(&self, aspect: ConditionType) -> Self {
        Self { aspect, ..self.clone() }
    }
}

/// `Ready` is the first of the others that does not hold, or that everything is as declared.
fn with_summary(mut verdicts: Vec<Verdict>, good: Verdict) -> Vec<Verdict> {
    let bad = verdicts.iter().find(|verdict| verdict.status != ConditionStatus::True);
    let ready = bad.unwrap_or(&good).about(ConditionType::Ready);
    verdicts.push(ready);
    verdicts
}

/// Who has enrolled runs a sidecar, wherever it came from.
fn with_sidecar(sums: &PodSums, enrolled: usize) -> usize {
    sums.injected.max(enrolled).min(sums.matched)
}

/// Whether each pod has a sidecar, and what to do about those that have none or an old one.
fn judge_injection(sums: &PodSums, enrolled: usize) -> Verdict {
    let (aspect, injected) = (ConditionType::Injected, with_sidecar(sums, enrolled));
    let (matched, missing) = (sums.matched, sums.matched - injected);
    if missing == 0 {
        let all = format!("{matched} of {matched} pods");
        return match sums.outdated {
            0 => Verdict::holds(aspect, Reason::AsDeclared, all),
            outdated => {
                let text = format!(
                    "{all}; {outdated} with another version of the sidecar than new pods get, until they restart"
                );
                Verdict::holds(aspect, Reason::OutdatedSidecars, text)
            }
        };
    }
    let left_alone = sums.left_alone.min(missing);
    let mut parts = Vec::new();
    if missing > left_alone {
        parts.push(format!(
            "{} of {matched} pods need a restart: they were made while neither namespace (label peerage.dev/injection) nor \
             pod (label peerage.dev/agent) asked for an agent, or while no operator answered",
            missing - left_alone
        ));
    }
    if let Some(why) = sums.why.as_ref().filter(|_| left_alone > 0) {
        parts.push(format!("{left_alone} of {matched} pods were left alone: {why}"));
    }
    Verdict::fails(aspect, Reason::NotInjected, parts.join("; "))
}

/// As many of these as a sentence bears, and how many more there are: there may be thousands.
fn some_of(names: &[String]) -> String {
    const SOME: usize = 8;
    match names.split_at_checked(SOME) {
        Some((some, more)) if !more.is_empty() => format!("{} and {} more", some.join(", "), more.len()),
        Some(_) | None => names.join(", "),
    }
}

fn refused(refusal: &Refusal, aspects: &[ConditionType]) -> Vec<Verdict> {
    aspects.iter().map(|aspect| Verdict::fails(*aspect, refusal.reason, refusal.message.clone())).collect()
}

impl Index {
    /// The conditions of an AgentPeer.
    #[must_use]
    pub fn judge_peer(&self, key: &ObjectKey, live: &PeerLive) -> Vec<Verdict> {
        let sums = self.pod_sums(key);
        let matched = sums.matched;
        let accepted = self.judge_selector(key);
        if matched == 0 {
            let none = "no pod matches spec.selector";
            let others = [ConditionType::Injected, ConditionType::Enrolled];
            let mut verdicts = vec![accepted];
            verdicts.extend(others.map(|aspect| Verdict::holds(aspect, Reason::NoPods, none)));
            return with_summary(verdicts, Verdict::holds(ConditionType::Ready, Reason::NoPods, none));
        }
        let injection = judge_injection(&sums, live.enrolled);
        let enrolment = match live.enrolled >= matched {
            true => Verdict::holds(ConditionType::Enrolled, Reason::AsDeclared, format!("{matched} of {matched} pods")),
            false => Verdict::fails(
                ConditionType::Enrolled,
                Reason::WaitingForEnrolment,
                format!("{} of {matched} pods have a passport", live.enrolled),
            ),
        };
        let good = match (self.judge_relays_of(&key.namespace), &live.conflict) {
            // The agent serves, and calls all others: what does not work is False in the AgentTrust with that peer.
            (reached, Some(conflict)) if reached.status == ConditionStatus::True => {
                Verdict::holds(ConditionType::Ready, Reason::PortConflict, conflict.clone())
            }
            (reached, _) => reached,
        };
        with_summary(vec![accepted, injection, enrolment], good)
    }

    fn judge_selector(&self, key: &ObjectKey) -> Verdict {
        let rivals: Vec<_> = self.rivals(key).into_iter().map(|rival| rival.name.to_string()).collect();
        if rivals.is_empty() {
            return Verdict::holds(ConditionType::Accepted, Reason::AsDeclared, "");
        }
        let message = format!(
            "AgentPeer {} of this namespace would select the same pods; pods that several select cannot enrol",
            some_of(&rivals)
        );
        Verdict::fails(ConditionType::Accepted, Reason::ConflictingSelector, message)
    }

    /// Two agents meet at a relay, so an agent without one is reached by nobody.
    fn judge_relays_of(&self, namespace: &str) -> Verdict {
        if !self.relays_of(namespace).is_empty() {
            return Verdict::holds(ConditionType::Ready, Reason::AsDeclared, "");
        }
        match self.relays.is_empty() {
            true => {
                Verdict::fails(ConditionType::Ready, Reason::RelayUnreachable, "there is no AgentRelay; create one")
            }
            false => Verdict::fails(
                ConditionType::Ready,
                Reason::NotPermittedByRelay,
                "no AgentRelay with an address lists this namespace in allowedNamespaces",
            ),
        }
    }

    /// The conditions of an AgentTrust. `programmed` is what its condition of that name says already: a stream that moves
    /// from one replica to another is no news.
    #[must_use]
    pub fn judge_trust(&self, key: &ObjectKey, live: &TrustLive, programmed: Option<ConditionStatus>) -> Vec<Verdict> {
        let Some(facts) = self.trusts.get(key) else { return Vec::new() };
        let all = [ConditionType::Accepted, ConditionType::Programmed, ConditionType::Ready];
        if let Err(refusal) = self.accept(key, facts) {
            return refused(&refusal, &all);
        }
        let mut verdicts = vec![Verdict::holds(ConditionType::Accepted, Reason::AsDeclared, self.remarks(key, facts))];
        if !self.is_mutual(key, facts) {
            let waiting = "the other side has not consented, or there is no such agent";
            let others = [ConditionType::Programmed, ConditionType::Ready];
            verdicts.extend(others.map(|aspect| Verdict::fails(aspect, Reason::WaitingForPeer, waiting)));
            return verdicts;
        }
        verdicts.push(self.judge_programmed(facts, live, programmed));
        let matched = self.pod_sums(&facts.agent).matched;
        // Whether the owner over there consented shows in one thing only: that the two were connected. A session that ended
        // because nothing was said does not take that back; one that cannot be had again does.
        let is_away = matches!(facts.target, Target::Away { .. });
        let is_connected = !matches!(live.path, None | Some(PathSummary::Idle));
        let answers = is_connected || live.was_connected && !live.failing;
        let good = if is_away && !answers {
            let waiting = match matched {
                0 => "no pod is this agent at the moment, so nobody has asked whether the other side consents",
                _ => "the other side has not consented, or does not answer",
            };
            Verdict::fails(ConditionType::Ready, Reason::WaitingForPeer, waiting)
        } else if matched == 0 {
            Verdict::holds(ConditionType::Ready, Reason::NoPods, "no pod is this agent at the moment")
        } else if let Some(conflict) = &live.conflict {
            Verdict::fails(ConditionType::Ready, Reason::PortConflict, conflict.clone())
        } else {
            Verdict::holds(ConditionType::Ready, Reason::AsDeclared, "")
        };
        with_summary(verdicts, good)
    }

    fn judge_programmed(&self, facts: &TrustFacts, live: &TrustLive, before: Option<ConditionStatus>) -> Verdict {
        let aspect = ConditionType::Programmed;
        let matched = self.pod_sums(&facts.agent).matched;
        if matched == 0 {
            return Verdict::holds(aspect, Reason::NoPods, "no pod is this agent at the moment");
        }
        let was = before == Some(ConditionStatus::True);
        let settled = live.acknowledged >= live.expected && live.expected > 0;
        // While streams move to another replica nobody may be expected, and a new sidecar needs a moment.
        let moving = was && (live.expected == 0 || !live.overdue);
        if settled || moving {
            return Verdict::holds(aspect, Reason::AsDeclared, "");
        }
        let message = match live.expected {
            0 => "no sidecar of the agent has a stream to the operator".to_owned(),
            expected => format!("{} of {expected} sidecars have acknowledged", live.acknowledged),
        };
        Verdict::fails(aspect, Reason::WaitingForAgents, message)
    }

    /// Whether at least one pair that this object is about may talk because of it.
    fn is_mutual(&self, key: &ObjectKey, facts: &TrustFacts) -> bool {
        let rests_on_it = |peer| self.consent(&facts.agent, peer).is_some_and(|(consent, _)| consent == key);
        self.peers_of(key, facts).iter().any(|peer| rests_on_it(peer) && self.answered(facts, peer))
    }

    fn answered(&self, facts: &TrustFacts, peer: &AgentId) -> bool {
        match &facts.target {
            Target::Away { .. } => true,
            Target::Here(_) | Target::Fleet { .. } => {
                let sides = ObjectKey::of_agent(&peer.name).zip(facts.agent.agent(self.authority));
                sides.is_some_and(|(other, id)| self.consent(&other, &id).is_some())
            }
        }
    }

    /// What its owner should know of an AgentTrust that holds nevertheless.
    #[must_use]
    pub fn remarks(&self, key: &ObjectKey, facts: &TrustFacts) -> String {
        let mut remarks = Vec::new();
        let offers = self.peers.get(&facts.agent).map(|peer| &peer.ports[..]).unwrap_or_default();
        let unknown = |name: &&peerage_model::Label| !offers.iter().any(|offer| offer.name == **name);
        let unknown: Vec<_> = facts.inbound.iter().filter(unknown).map(|name| format!("`{name}`")).collect();
        if !unknown.is_empty() {
            remarks.push(format!("AgentPeer `{}` offers no port {}", facts.agent.name, some_of(&unknown)));
        }
        let nameless = self.peers_of(key, facts).into_iter().filter(|peer| self.alias_of(facts, peer).is_none());
        let nameless: Vec<_> = nameless.map(|peer| format!("`{}`", peer.name)).collect();
        if !nameless.is_empty() {
            remarks.push(format!(
                "left out, since the agent calls others so: {}; name them with an alias",
                some_of(&nameless)
            ));
        }
        let is_nobodys =
            |peer: &AgentId| self.alias_of(facts, peer).is_some_and(|alias| alias.as_str() == NOBODYS_NAME);
        if self.peers_of(key, facts).iter().any(is_nobodys) {
            remarks.push(format!(
                "programs call themselves {NOBODYS_NAME}, so it is nobody else's name; name that peer with an alias"
            ));
        }
        remarks.join("; ")
    }

    /// The conditions of an AgentLink. `live`: what its operator says; none where this replica has only begun to lead.
    #[must_use]
    pub fn judge_link(&self, name: &str, live: Option<&LinkLive>) -> Vec<Verdict> {
        let Some(facts) = self.links.get(name) else { return Vec::new() };
        if let Err(refusal) = self.leads(name, facts) {
            let aspects = [ConditionType::Accepted, ConditionType::Connected, ConditionType::Ready];
            return refused(&refusal, &aspects);
        }
        let accepted = Verdict::holds(ConditionType::Accepted, Reason::AsDeclared, "");
        // Consent hangs on no operator: what is declared on both sides works while the two do not talk.
        let ready = Verdict::holds(ConditionType::Ready, Reason::AsDeclared, "AgentTrusts can use it");
        let aspect = ConditionType::Connected;
        let connected = match live {
            None => return vec![accepted, ready],
            Some(LinkLive::Connecting) => {
                Verdict::of(aspect, ConditionStatus::Unknown, Reason::Connecting, "the other operator is being called")
            }
            Some(LinkLive::Connected) => Verdict::holds(aspect, Reason::AsDeclared, "the other operator answers"),
            Some(LinkLive::Machine { how }) => Verdict::holds(aspect, Reason::AsDeclared, how.clone()),
            Some(LinkLive::Beside { link }) => {
                let how = format!(
                    "the other operator is talked to over the link `{link}`, which leads to the same authority; it is not told whom \
                     AgentTrusts over this one ask for"
                );
                Verdict::holds(aspect, Reason::AsDeclared, how)
            }
            Some(LinkLive::Silent { why }) => Verdict::fails(aspect, Reason::PeerOperatorUnreachable, why.clone()),
            Some(LinkLive::TicketEnded { why }) => Verdict::fails(aspect, Reason::TicketEnded, why.clone()),
        };
        vec![accepted, connected, ready]
    }

    /// The conditions of an AgentRelay. `heard`: what it last said; `None` before it was asked. `running`: what became of it,
    /// if the operator runs it.
    #[must_use]
    pub fn judge_relay(&self, heard: Option<Heard>, running: Option<&Running>) -> Vec<Verdict> {
        let waiting = match running {
            Some(Running::Refused(reason, message)) => {
                let all = [ConditionType::Accepted, ConditionType::Available, ConditionType::Ready];
                return all.map(|aspect| Verdict::fails(aspect, *reason, message.clone())).into();
            }
            Some(Running::At { waiting, .. }) => waiting.as_ref(),
            None => None,
        };
        let accepted = Verdict::holds(ConditionType::Accepted, Reason::AsDeclared, "");
        let aspect = ConditionType::Available;
        let silent = match running {
            Some(_) => {
                "it does not answer our probes over UDP; see its pod, in the operator's namespace with the label \
                        peerage.dev/relay, and firewalls"
            }
            None => "it does not answer our probes over UDP; see its log and firewalls",
        };
        let available = match (waiting, heard) {
            (Some(waiting), _) => Verdict::fails(aspect, Reason::WaitingForAddress, waiting.clone()),
            (None, Some(Heard::Answer)) => Verdict::holds(aspect, Reason::AsDeclared, ""),
            (None, Some(Heard::Refusal(why))) => Verdict::fails(aspect, Reason::RelayRefused, self.refused(why)),
            (None, Some(Heard::Nothing)) => Verdict::fails(aspect, Reason::RelayUnreachable, silent),
            (None, None) => {
                Verdict::of(aspect, ConditionStatus::Unknown, Reason::Pending, "it has not been probed yet")
            }
        };
        let good = accepted.clone();
        with_summary(vec![accepted, available], good)
    }

    fn refused(&self, why: RelayRefusal) -> String {
        match why {
            RelayRefusal::Authority => format!(
                "it answers, and does not let this cluster's agents in; whoever runs it must add --allow-authority {}",
                self.authority()
            ),
            RelayRefusal::Credential | RelayRefusal::Full | RelayRefusal::Draining => {
                format!("it answers, and does not take the operator's own agent: {why}")
            }
        }
    }

    /// What an AgentPeer calls the numbers of its status: matched, injected, enrolled, outdated.
    #[must_use]
    pub fn peer_numbers(&self, key: &ObjectKey, live: &PeerLive) -> [usize; 4] {
        let sums = self.pod_sums(key);
        [sums.matched, with_sidecar(&sums, live.enrolled), live.enrolled.min(sums.matched), sums.outdated]
    }

    /// What our agent's programs call the peer of an AgentTrust; none for a fleet, whose members go by their names.
    #[must_use]
    pub fn hostname(&self, key: &ObjectKey) -> Option<String> {
        let facts = self.trusts.get(key)?;
        self.accept(key, facts).ok()?;
        facts.alias().filter(|alias| alias.as_str() != NOBODYS_NAME).map(|alias| alias.to_string())
    }

    /// Facts of every AgentPeer, in order.
    pub fn peers(&self) -> impl Iterator<Item = (&ObjectKey, &PeerFacts)> {
        self.peers.iter().map(|(key, facts)| (key, &**facts))
    }
}
