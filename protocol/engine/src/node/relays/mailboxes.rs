//! What is asked of relays' mailboxes, and what comes from them.

use std::time::Instant;

use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::mailbox::MailId;

use super::{Place, RelayKey, Relays};
use crate::relay::{MailEvent, Question};

impl Relays {
    /// Whether we have a mailbox where we are bound.
    pub(in super::super) fn set_public(&mut self, public: bool) {
        self.public = public;
        self.clients().for_each(|(_, client)| client.set_public(public));
        self.stream_clients().for_each(|(_, client)| client.set_public(public));
    }

    /// Asks a relay something; one that we do not know yet is visited for it.
    pub(in super::super) fn ask(&mut self, info: &RelayInfo, token: u64, question: Question, now: Instant) -> RelayKey {
        let key = self.find(info).unwrap_or_else(|| self.add(info.clone(), false, now));
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.used = now;
            if let Place::Known { client, .. } = &mut entry.place {
                client.ask(token, question.clone(), now);
            }
            if let Some((_, client)) = entry.fallback.client() {
                client.ask(token, question.clone(), now);
            }
            entry.questions.push((token, question));
        }
        key
    }

    pub(in super::super) fn give_up(&mut self, token: u64) {
        self.clients().for_each(|(_, client)| client.give_up(token));
        self.stream_clients().for_each(|(_, client)| client.give_up(token));
        for entry in self.entries.values_mut() {
            entry.questions.retain(|(asked, _)| *asked != token);
        }
    }

    pub(in super::super) fn mail_done(&mut self, info: &RelayInfo, id: MailId, now: Instant) {
        let Some(entry) = self.find(info).and_then(|key| self.entries.get_mut(&key)) else {
            return;
        };
        if let Place::Known { client, .. } = &mut entry.place {
            client.mail_done(id, now);
        }
        if let Some((_, client)) = entry.fallback.client() {
            client.mail_done(id, now);
        }
    }

    /// What came by mail, and from which relay. An answer counts once, by whichever way it came first.
    pub(in super::super) fn poll_mail(&mut self) -> Option<(RelayKey, MailEvent)> {
        for (key, entry) in &mut self.entries {
            while let Some(event) = entry.poll_mail() {
                let token = match &event {
                    MailEvent::Found { token, .. } | MailEvent::Posted { token } => *token,
                    MailEvent::Mail { .. } => return Some((*key, event)),
                };
                if let Some(at) = entry.questions.iter().position(|(asked, _)| *asked == token) {
                    entry.questions.remove(at);
                    return Some((*key, event));
                }
            }
        }
        None
    }
}
