//! Mailboxes: looking a name up, leaving a request, and what others left for us (`docs/spec/mailbox.md`).
//!
//! An errand goes to several relays at once. It is over when each has answered or its time is, and tells what came back until
//! then; a relay that is away must not hold it up, nor one that answers twice count twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::mailbox::{MailId, NameKey, SEALED};
use peerage_model::{AgentName, AuthorityRecord, RoutingId};

use super::event::{Event, Now};
use super::relays::RelayKey;
use super::{Node, Timer};
use crate::relay::{MailEvent, Question};

/// How long the relays have; a cold one takes two round trips more than a warm one.
const PATIENCE: Duration = Duration::from_secs(6);

/// A look-up or a post of ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ErrandKey(pub(crate) u64);

/// One that is under way.
#[derive(Debug)]
pub(super) struct Errand {
    deadline: Instant,
    looks_up: bool,
    answers: BTreeMap<RelayKey, Answer>,
}

/// What one relay said; `records` is empty until it did, and where nothing was asked for.
#[derive(Debug)]
struct Answer {
    relay: RelayInfo,
    came: bool,
    records: Vec<Vec<u8>>,
}

impl Node {
    /// Whether we have a mailbox at our relays.
    pub fn set_public(&mut self, now: Now, public: bool) {
        self.tick(now);
        self.relays.set_public(public);
    }

    /// Asks these relays whose agents have this name. [`Event::LookedUp`] tells what they say.
    pub fn look_up(&mut self, now: Now, name: &AgentName, relays: &[RelayInfo]) -> ErrandKey {
        self.send_out(now, &Question::LookUp(NameKey::of(name)), relays)
    }

    /// Leaves a sealed request in an agent's mailbox at these relays. [`Event::MailPosted`] tells which of them answered.
    pub fn post(&mut self, now: Now, to: RoutingId, sealed: &[u8; SEALED], relays: &[RelayInfo]) -> ErrandKey {
        self.send_out(now, &Question::Post(to, Box::new(*sealed)), relays)
    }

    /// What came by [`Event::Mail`] is safe, or worthless: the relay forgets it and gives the next.
    pub fn mail_done(&mut self, now: Now, relay: &RelayInfo, id: MailId) {
        self.tick(now);
        self.relays.mail_done(relay, id, now.mono);
        self.settle_relays(now);
    }

    fn send_out(&mut self, now: Now, question: &Question, relays: &[RelayInfo]) -> ErrandKey {
        self.tick(now);
        self.next_errand += 1;
        let key = ErrandKey(self.next_errand);
        let mut answers = BTreeMap::new();
        for relay in relays {
            let at = self.relays.ask(relay, key.0, question.clone(), now.mono);
            answers.insert(at, Answer { relay: relay.clone(), came: false, records: Vec::new() });
        }
        let deadline = now.mono + PATIENCE;
        let looks_up = matches!(question, Question::LookUp(_));
        self.errands.insert(key, Errand { deadline, looks_up, answers });
        self.timers.set(&Timer::Errand(key), Some(deadline));
        self.settle_relays(now);
        self.conclude_errand(key, now);
        key
    }

    /// Lets everything follow from what relays said about mailboxes.
    pub(super) fn settle_mail(&mut self, now: Now) {
        while let Some((relay, event)) = self.relays.poll_mail() {
            match event {
                MailEvent::Found { token, records } => self.errand_answered(ErrandKey(token), relay, records, now),
                MailEvent::Posted { token } => self.errand_answered(ErrandKey(token), relay, Vec::new(), now),
                MailEvent::Mail { id, sealed } => {
                    if let Some(relay) = self.relays.info(relay) {
                        self.events.push_back(Event::Mail { relay, id, sealed });
                    }
                }
            }
        }
    }

    fn errand_answered(&mut self, key: ErrandKey, relay: RelayKey, records: Vec<Vec<u8>>, now: Now) {
        if let Some(answer) = self.errands.get_mut(&key).and_then(|errand| errand.answers.get_mut(&relay)) {
            answer.came = true;
            answer.records = records;
        }
        self.conclude_errand(key, now);
    }

    /// Ends an errand that every relay answered, or whose time is over.
    pub(super) fn conclude_errand(&mut self, key: ErrandKey, now: Now) {
        let over = |errand: &Errand| errand.deadline <= now.mono || errand.answers.values().all(|answer| answer.came);
        if !self.errands.get(&key).is_some_and(over) {
            return;
        }
        let Some(errand) = self.errands.remove(&key) else { return };
        self.timers.set(&Timer::Errand(key), None);
        self.relays.give_up(key.0);
        let came = errand.answers.into_values().filter(|answer| answer.came);
        self.events.push_back(match errand.looks_up {
            true => Event::LookedUp { errand: key, found: came.map(|answer| verified(answer, now)).collect() },
            false => Event::MailPosted { errand: key, at: came.map(|answer| answer.relay).collect() },
        });
    }
}

/// Only what verifies; a relay that sends something else has said nothing.
fn verified(answer: Answer, now: Now) -> (RelayInfo, Vec<AuthorityRecord>) {
    let records = answer.records.iter().filter_map(|bytes| AuthorityRecord::verify(bytes, now.wall).ok());
    (answer.relay, records.collect())
}
