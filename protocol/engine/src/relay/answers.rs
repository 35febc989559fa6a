//! How a relay answers: what it owes us, how long it takes, and what its silence or its refusal means to a person.

use std::time::{Duration, Instant};

use super::{Refusal, Role};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answers {
    owed_since: Option<Instant>,
    rtt: Option<Duration>,
    /// What was asked after its cookie stays without an answer.
    ignored: bool,
    /// It does not take us.
    refused: Option<Refusal>,
}

impl Answers {
    pub(super) fn owed_since(&self) -> Option<Instant> {
        self.owed_since
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// It was asked something; what it owed before, it owes since then.
    pub(super) fn owe(&mut self, now: Instant) {
        self.owed_since.get_or_insert(now);
    }

    /// It answered, and was asked the next thing.
    pub(super) fn owe_anew(&mut self, now: Instant) {
        self.owed_since = Some(now);
    }

    /// It is there, or we do not wait for it: it owes nothing.
    pub(super) fn owe_nothing(&mut self) {
        self.owed_since = None;
    }

    /// It answered what it was asked.
    pub(super) fn on_answered(&mut self, now: Instant) {
        if let Some(since) = self.owed_since.take() {
            self.rtt = Some(now.saturating_duration_since(since));
        }
    }

    /// It takes us.
    pub(super) fn on_granted(&mut self, now: Instant) {
        self.on_answered(now);
        (self.ignored, self.refused) = (false, None);
    }

    /// It does not.
    pub(super) fn on_refused(&mut self, reason: Refusal) {
        self.owe_nothing();
        (self.ignored, self.refused) = (false, Some(reason));
    }

    /// It gave a cookie, and no answer to what was asked with it.
    pub(super) fn on_ignored(&mut self) {
        self.ignored = true;
    }

    /// What stands between us and the relay, for a person, where the relay is there.
    pub(super) fn obstacle(&self, role: &Role) -> Option<String> {
        match (self.refused, role, self.ignored) {
            (Some(reason), _, _) => Some(reason.to_string()),
            // A relay answers nothing that was not made for its own key.
            (None, Role::Bind { .. }, true) => {
                Some("something answers there, but not with this key: take KEY@HOST:PORT from its owner again".into())
            }
            (None, Role::Bind { .. }, false) | (None, Role::Visit, _) => None,
        }
    }
}
