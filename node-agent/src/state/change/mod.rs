//! What may be done to a [`Document`]: consent given, asked for, taken back, and what ends by itself.
//!
//! Every change is a function of the document, its arguments and the time, so each rule is tested without a disk. `trust` holds
//! our own consent, `requests` what strangers want, `records` the keys of peers' authorities, `services` what we offer; here is
//! what they share, and what ends by itself.

mod records;
mod requests;
mod services;
mod trust;

use std::time::Duration;

use peerage_model::relay::RelayInfo;
use peerage_model::{AgentId, AuthorityRecord, Label, TrustId, UnixTime};

use self::records::{drop_ended, former_end};
use super::document::{Answered, Document, Inbound, Path, Revoked, Trust};
use super::lookup::PeerRef;

/// How long a request waits for its answer (DESIGN section 7 uses the same in Kubernetes).
pub const REQUEST_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most waiting requests of one authority: one stranger must not fill the list.
pub const MAX_REQUESTS_PER_AUTHORITY: usize = 20;
/// Most waiting requests in all; authorities cost a stranger nothing.
pub const MAX_REQUESTS: usize = 200;
/// Of them, by mail: its senders need no invitation.
pub const MAX_MAIL_REQUESTS: usize = 100;
/// How long an answered request by mail is remembered: longer than it could be repeated, by any clock that it passes.
const ANSWERED_LIFETIME: Duration = Duration::from_secs(8 * 24 * 3600);
/// What too many invitations are called.
pub const OPEN_INVITATIONS: &str = "open invitations";
/// Most open invitations: every one is a key that first packets are tried against.
pub const MAX_INVITES: usize = 64;
/// Most relays kept for one peer; a ticket carries as many.
const MAX_RELAYS: usize = peerage_model::ticket::MAX_RELAYS;

/// What a person decided about a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    /// The id for a new declaration, drawn at random.
    pub id: TrustId,
    /// What to call the peer here; its own first label unless said.
    pub alias: Option<Label>,
    /// What it may open here; the caller's default unless said.
    pub inbound: Option<Inbound>,
    /// Until when; `None` leaves an existing end alone.
    pub expires: Option<UnixTime>,
    /// How data may travel.
    pub path: Option<Path>,
    /// Whether ports may be guessed to get a direct path.
    pub birthday: Option<bool>,
}

/// Why a change was not made. The document is as before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// No peer is called that.
    #[error("no peer is called `{name}`")]
    UnknownPeer {
        /// What was asked for.
        name: PeerRef,
    },
    /// Nobody of that name asked.
    #[error("no request from `{name}` is waiting")]
    UnknownRequest {
        /// What was asked for.
        name: PeerRef,
    },
    /// Several are called that.
    #[error("`{name}` could be {}", choices.join(" or "))]
    Ambiguous {
        /// What was asked for.
        name: PeerRef,
        /// What to write instead.
        choices: Vec<String>,
    },
    /// Two peers cannot answer to one name.
    #[error("`{alias}` is already the name of {holder:?} here")]
    AliasTaken {
        /// The name.
        alias: Label,
        /// Who has it.
        holder: AgentId,
    },
    /// The name stands for this machine. A ticket names its inviter, and must not lead to it what is meant for us.
    #[error("`{alias}` is this machine itself")]
    AliasReserved {
        /// The name.
        alias: Label,
    },
    /// A port is exposed already, or its name is.
    #[error("`{name}` is already port {port} here")]
    ServiceTaken {
        /// The name of what is there.
        name: Label,
        /// Its port.
        port: u16,
    },
    /// Nothing of that name or number is exposed.
    #[error("nothing exposed here is called `{name}`")]
    UnknownService {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No open ticket is meant.
    #[error("no ticket that can still be used is meant by `{ticket}`")]
    UnknownTicket {
        /// What was asked for.
        ticket: String,
    },
    /// Several open tickets begin like that.
    #[error("the ids of {count} tickets begin with `{ticket}`")]
    SeveralTickets {
        /// What was asked for.
        ticket: String,
        /// Of how many.
        count: usize,
    },
    /// The ticket is our own.
    #[error("this ticket was made by this agent itself")]
    OwnTicket,
    /// One rotation at a time: peers keep the two newest records.
    #[error("the keys were rotated before, and the former ones count until {}", super::time::rfc3339(*until))]
    Rotating {
        /// Until when.
        until: UnixTime,
    },
    /// A limit that protects this agent.
    #[error("there are already {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
}

/// What happened to a request that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// It waits for its answer.
    Waiting,
    /// We have said yes before; there is nothing to answer.
    AlreadyTrusted,
    /// Its authority, or everybody together, has too many waiting.
    Dropped,
    /// It waits already, or was answered.
    Repeated,
    /// The ticket that it came by was withdrawn, or ended, while it was on its way.
    Withdrawn,
}

/// What sweeping up removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Trusts past their end.
    pub trusts: Vec<Trust>,
    /// Requests that nobody answered.
    pub requests: usize,
    /// Invitations that nobody used.
    pub invites: usize,
}

impl Ended {
    /// Whether nothing was removed that anybody acts on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Document {
    /// Removes what has ended at `now`.
    pub fn sweep(&mut self, now: UnixTime) -> Ended {
        let over = |expires: Option<UnixTime>| expires.is_some_and(|expires| expires <= now);
        let old = |since: UnixTime| since.plus(REQUEST_LIFETIME) <= now;
        let (requests, invites) = (self.requests.len(), self.invites.len());
        let trusts: Vec<Trust> = self.trusts.extract_if(.., |trust| over(trust.expires)).collect();
        // An ended consent is as final as a revoked one: a clock set back must not revive it.
        self.revoked.extend(trusts.iter().map(|trust| Revoked { id: trust.id, peer: trust.peer.clone(), at: now }));
        self.requests.retain(|request| !old(request.received));
        self.invites.retain(|invite| invite.expires > now);
        self.sent.retain(|sent| !old(sent.sent) && trusts.iter().all(|trust| trust.peer != sent.peer));
        self.denied.retain(|denied| denied.until > now);
        self.answered.retain(|answered| !forgotten(answered, now));
        self.trusts.iter_mut().for_each(|trust| drop_ended(&mut trust.records, now));
        Ended { trusts, requests: requests - self.requests.len(), invites: invites - self.invites.len() }
    }

    /// The earliest moment at which [`Self::sweep`] would remove something.
    #[must_use]
    pub fn next_end(&self) -> Option<UnixTime> {
        let trusts = self.trusts.iter().filter_map(|trust| trust.expires);
        let requests = self.requests.iter().map(|request| request.received.plus(REQUEST_LIFETIME));
        let sent = self.sent.iter().map(|sent| sent.sent.plus(REQUEST_LIFETIME));
        let invites = self.invites.iter().map(|invite| invite.expires);
        let denied = self.denied.iter().map(|denied| denied.until);
        let answered = self.answered.iter().map(|answered| answered.asked.plus(ANSWERED_LIFETIME));
        let records = self.trusts.iter().filter_map(|trust| former_end(&trust.records));
        trusts.chain(requests).chain(sent).chain(invites).chain(denied).chain(answered).chain(records).min()
    }
}

fn forgotten(answered: &Answered, now: UnixTime) -> bool {
    answered.asked.plus(ANSWERED_LIFETIME) <= now
}

/// Whom relays name for a hostname, and which of them do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The agent.
    pub peer: AgentId,
    /// Its authority's keys.
    pub record: AuthorityRecord,
    /// Where its mailbox is.
    pub relays: Vec<RelayInfo>,
}

#[cfg(test)]
mod tests;
