//! What may be done to a [`Document`]: consent given, asked for, taken back, and what ends by itself.
//!
//! Every change is a function of the document, its arguments and the time, so each rule is tested without a disk.

use std::time::Duration;

use peerage_model::control::{MAX_PORTS, MAX_REASON};
use peerage_model::relay::RelayInfo;
use peerage_model::{AgentId, AuthorityRecord, Fingerprint, InstanceId, Label, Ticket, TrustId, UnixTime, passport};

use super::document::{Answered, Denied, Document, Inbound, Invitation, Path, Received, Revoked, Sent, Service, Trust};
use super::lookup::{PeerRef, Unmatched};

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
    /// Notes an invitation.
    ///
    /// # Errors
    /// [`ChangeError::TooMany`].
    pub fn invite(&mut self, id: TrustId, expires: UnixTime) -> Result<(), ChangeError> {
        if self.invites.len() >= MAX_INVITES {
            return Err(ChangeError::TooMany { what: "open invitations", limit: MAX_INVITES });
        }
        self.invites.push(Invitation { id, expires });
        Ok(())
    }

    /// Notes our consent to a ticket's inviter, and that we wait for its. Doing it again changes the first consent.
    ///
    /// # Errors
    /// [`ChangeError`]: our own ticket, a name that is taken, a service we do not have.
    pub fn handshake(
        &mut self,
        us: &AgentId,
        ticket: &Ticket,
        reason: &str,
        consent: &Consent,
        now: UnixTime,
    ) -> Result<Trust, ChangeError> {
        let met = Met { peer: &ticket.inviter(), record: &ticket.record, relays: &ticket.relays, reason };
        self.ask(us, &met, &[], consent, now)
    }

    /// The same for somebody that these relays know by name.
    ///
    /// # Errors
    /// As [`Self::handshake`].
    pub fn handshake_by_name(
        &mut self,
        us: &AgentId,
        found: &Found,
        reason: &str,
        consent: &Consent,
        now: UnixTime,
    ) -> Result<Trust, ChangeError> {
        let met = Met { peer: &found.peer, record: &found.record, relays: &found.relays, reason };
        self.ask(us, &met, &found.relays, consent, now)
    }

    fn ask(
        &mut self,
        us: &AgentId,
        met: &Met<'_>,
        mailboxes: &[RelayInfo],
        consent: &Consent,
        now: UnixTime,
    ) -> Result<Trust, ChangeError> {
        if met.peer == us {
            return Err(ChangeError::OwnTicket);
        }
        let trust = self.consent(met, consent, Inbound::NOTHING, now)?;
        let (peer, mailboxes) = (met.peer.clone(), mailboxes.to_vec());
        // Asked by mail twice within a second, the second must be the younger one: its owner takes no repeats.
        let earlier =
            self.sent.iter().find(|sent| sent.peer == peer).map(|sent| sent.sent.plus(Duration::from_secs(1)));
        let sent = earlier.map_or(now, |earlier| earlier.max(now));
        self.sent.retain(|sent| sent.peer != peer);
        self.sent.push(Sent { peer, reason: printable(met.reason, MAX_REASON), sent, mailboxes });
        Ok(trust)
    }

    /// Takes in a request and uses its invitation up, whether or not there is room for the request.
    pub fn receive(&mut self, request: Received) -> Reception {
        self.invites.retain(|invite| Some(invite.id) != request.invite);
        if let Some(trust) = self.trusts.iter_mut().find(|trust| trust.peer == request.asker) {
            // The session proved who asks, and the same root signs: its newer keys and place are as good as the old.
            for record in &request.records {
                learn_record(&mut trust.records, record);
            }
            if !request.relays.is_empty() {
                trust.relays = request.relays.iter().take(MAX_RELAYS).cloned().collect();
            }
            return Reception::AlreadyTrusted;
        }
        let same = |other: &Received| other.asker.authority == request.asker.authority;
        self.requests.retain(|other| other.asker != request.asker);
        if self.requests.len() >= MAX_REQUESTS
            || self.requests.iter().filter(|other| same(other)).count() >= MAX_REQUESTS_PER_AUTHORITY
        {
            return Reception::Dropped;
        }
        let mut request = request;
        request.reason = printable(&request.reason, MAX_REASON);
        request.relays.truncate(MAX_RELAYS);
        self.requests.push(request);
        Reception::Waiting
    }

    /// Takes in a request that came by mail. Its signature shows who asks, and nothing shows that it was not sent before.
    pub fn receive_mail(&mut self, request: Received, asked: UnixTime) -> Reception {
        if self.trusts.iter().any(|trust| trust.peer == request.asker) {
            return Reception::AlreadyTrusted;
        }
        let answered = self.answered.iter().any(|answered| answered.asker == request.asker && asked <= answered.asked);
        let waits =
            self.requests.iter().any(|other| other.asker == request.asker && other.asked.is_none_or(|at| asked <= at));
        if answered || waits {
            return Reception::Repeated;
        }
        // Strangers by mail never take the room of those that were invited.
        let by_mail = self.requests.iter().filter(|other| other.asked.is_some() && other.asker != request.asker);
        if by_mail.count() >= MAX_MAIL_REQUESTS {
            return Reception::Dropped;
        }
        self.receive(Received { asked: Some(asked), ..request })
    }

    /// Remembers that a request by mail was answered, so that repeating it does not bring it back.
    fn note_answered(&mut self, request: &Received) {
        if let Some(asked) = request.asked {
            self.answered.retain(|answered| answered.asker != request.asker);
            self.answered.push(Answered { asker: request.asker.clone(), asked });
        }
    }

    /// Says yes to a waiting request, or, where there is none, changes the consent to a peer we already trust.
    ///
    /// # Errors
    /// [`ChangeError`], among them an ambiguous name.
    pub fn approve(&mut self, name: &PeerRef, consent: &Consent, now: UnixTime) -> Result<Trust, ChangeError> {
        match name.find(&self.requests, |request| &request.asker, |_| None) {
            Ok(request) => {
                let request = request.clone();
                let [record, ..] = &request.records[..] else {
                    return Err(ChangeError::UnknownRequest { name: name.clone() });
                };
                let met = Met { peer: &request.asker, record, relays: &request.relays, reason: &request.reason };
                let trust = self.consent(&met, consent, Inbound::Everything, now)?;
                self.requests.retain(|other| other.asker != request.asker);
                self.note_answered(&request);
                Ok(trust)
            }
            Err(Unmatched::Ambiguous { choices }) => Err(ChangeError::Ambiguous { name: name.clone(), choices }),
            Err(Unmatched::Unknown) => {
                let id = match self.peer(name) {
                    Ok(trust) => trust.id,
                    Err(ChangeError::UnknownPeer { name }) => return Err(ChangeError::UnknownRequest { name }),
                    Err(other) => return Err(other),
                };
                self.amend(id, consent)
            }
        }
    }

    /// Says no to a waiting request. The asker is not told.
    ///
    /// # Errors
    /// [`ChangeError::UnknownRequest`] or [`ChangeError::Ambiguous`].
    pub fn reject(&mut self, name: &PeerRef) -> Result<Received, ChangeError> {
        let found =
            name.find(&self.requests, |request| &request.asker, |_| None).map_err(|unmatched| match unmatched {
                Unmatched::Unknown => ChangeError::UnknownRequest { name: name.clone() },
                Unmatched::Ambiguous { choices } => ChangeError::Ambiguous { name: name.clone(), choices },
            })?;
        let request = found.clone();
        self.requests.retain(|other| other.asker != request.asker);
        self.note_answered(&request);
        Ok(request)
    }

    /// Takes our consent back, for ever.
    ///
    /// # Errors
    /// [`ChangeError::UnknownPeer`] or [`ChangeError::Ambiguous`].
    pub fn revoke(&mut self, name: &PeerRef, now: UnixTime) -> Result<Trust, ChangeError> {
        let trust = self.peer(name)?.clone();
        self.trusts.retain(|other| other.id != trust.id);
        self.sent.retain(|sent| sent.peer != trust.peer);
        self.revoked.push(Revoked { id: trust.id, peer: trust.peer.clone(), at: now });
        Ok(trust)
    }

    /// Refuses one running instance of a peer until every passport it may have has ended.
    pub fn deny(&mut self, authority: Fingerprint, instance: InstanceId, now: UnixTime) {
        let until = now.plus(passport::LIFETIME).plus(passport::BACKDATED);
        self.denied.retain(|denied| (denied.authority, denied.instance) != (authority, instance));
        self.denied.push(Denied { authority, instance, until });
    }

    /// Offers a port. Offering the same again with another target moves it.
    ///
    /// # Errors
    /// [`ChangeError::ServiceTaken`] when its name or its number is in use for another, [`ChangeError::TooMany`].
    pub fn expose(&mut self, service: &Service) -> Result<(), ChangeError> {
        let same = |other: &Service| {
            other.name == service.name && (other.port, other.protocol) == (service.port, service.protocol)
        };
        let clash = |other: &&Service| {
            other.name == service.name || (other.port, other.protocol) == (service.port, service.protocol)
        };
        if let Some(there) = self.services.iter().filter(clash).find(|other| !same(other)) {
            return Err(ChangeError::ServiceTaken { name: there.name.clone(), port: there.port });
        }
        self.services.retain(|other| !same(other));
        if self.services.len() >= MAX_PORTS {
            return Err(ChangeError::TooMany { what: "exposed ports", limit: MAX_PORTS });
        }
        self.services.push(service.clone());
        Ok(())
    }

    /// Stops offering what is called `name` or has that number.
    ///
    /// # Errors
    /// [`ChangeError::UnknownService`].
    pub fn unexpose(&mut self, name: &str) -> Result<Vec<Service>, ChangeError> {
        let meant = |service: &Service| service.name.as_str() == name || service.port.to_string() == name;
        let gone: Vec<Service> = self.services.extract_if(.., |service| meant(service)).collect();
        if gone.is_empty() { Err(self.unknown_service(name)) } else { Ok(gone) }
    }

    /// Names of services for what a person typed: names or port numbers.
    ///
    /// # Errors
    /// [`ChangeError::UnknownService`].
    pub fn service_names(&self, typed: &[String]) -> Result<Vec<Label>, ChangeError> {
        let mut names = Vec::new();
        for text in typed {
            let meant = |service: &&Service| service.name.as_str() == text || service.port.to_string() == *text;
            let found: Vec<Label> = self.services.iter().filter(meant).map(|service| service.name.clone()).collect();
            if found.is_empty() {
                return Err(self.unknown_service(text));
            }
            names.extend(found);
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The peer that is meant by `name`.
    ///
    /// # Errors
    /// [`ChangeError::UnknownPeer`] or [`ChangeError::Ambiguous`].
    pub fn peer(&self, name: &PeerRef) -> Result<&Trust, ChangeError> {
        name.find(&self.trusts, |trust| &trust.peer, |trust| Some(&trust.alias)).map_err(|unmatched| match unmatched {
            Unmatched::Unknown => ChangeError::UnknownPeer { name: name.clone() },
            Unmatched::Ambiguous { choices } => ChangeError::Ambiguous { name: name.clone(), choices },
        })
    }

    /// What a peer's credential says of its authority's keys. True when it is news.
    pub fn learn(&mut self, peer: &AgentId, record: &AuthorityRecord) -> bool {
        let trust = self.trusts.iter_mut().find(|trust| trust.peer == *peer);
        let Some(trust) = trust.filter(|_| record.fingerprint() == peer.authority) else { return false };
        // An older one may come from a passport that a replica still shows.
        let oldest = trust.records.iter().map(AuthorityRecord::sequence).min();
        let known = trust.records.iter().any(|known| known.sequence() == record.sequence());
        if known || oldest.is_some_and(|oldest| record.sequence() < oldest) {
            return false;
        }
        learn_record(&mut trust.records, record);
        true
    }

    /// Notes that a peer we asked has said yes: there is a session with it. True when we were waiting for it.
    pub fn answered(&mut self, peer: &AgentId) -> bool {
        let before = self.sent.len();
        self.sent.retain(|sent| sent.peer != *peer);
        self.sent.len() != before
    }

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

    /// Creates or renews the trust in somebody whose authority record we have just been shown.
    fn consent(
        &mut self,
        met: &Met<'_>,
        consent: &Consent,
        inbound: Inbound,
        now: UnixTime,
    ) -> Result<Trust, ChangeError> {
        if let Some(trust) = self.trusts.iter_mut().find(|trust| trust.peer == *met.peer) {
            learn_record(&mut trust.records, met.record);
            if !met.relays.is_empty() {
                trust.relays = met.relays.to_vec();
            }
            let id = trust.id;
            return self.amend(id, consent);
        }
        let alias = consent.alias.clone().unwrap_or_else(|| met.peer.name.first_label());
        self.refuse_taken(&alias, met.peer)?;
        let trust = Trust {
            id: consent.id,
            peer: met.peer.clone(),
            records: vec![met.record.clone()],
            alias,
            inbound: consent.inbound.clone().unwrap_or(inbound),
            relays: met.relays.iter().take(MAX_RELAYS).cloned().collect(),
            path: consent.path.unwrap_or_default(),
            birthday: consent.birthday.unwrap_or_default(),
            purpose: printable(met.reason, MAX_REASON),
            since: now,
            expires: consent.expires,
        };
        self.trusts.push(trust.clone());
        Ok(trust)
    }

    /// Changes what was said about an existing trust, and nothing else.
    fn amend(&mut self, id: TrustId, consent: &Consent) -> Result<Trust, ChangeError> {
        let at = self.trusts.iter().position(|trust| trust.id == id).expect("the caller found it in this list");
        if let Some(alias) = &consent.alias {
            self.refuse_taken(alias, &self.trusts[at].peer)?;
        }
        let trust = &mut self.trusts[at];
        trust.alias = consent.alias.clone().unwrap_or_else(|| trust.alias.clone());
        trust.inbound = consent.inbound.clone().unwrap_or_else(|| trust.inbound.clone());
        trust.path = consent.path.unwrap_or(trust.path);
        trust.birthday = consent.birthday.unwrap_or(trust.birthday);
        trust.expires = consent.expires.or(trust.expires);
        Ok(trust.clone())
    }

    fn refuse_taken(&self, alias: &Label, peer: &AgentId) -> Result<(), ChangeError> {
        let ours = self.hostname.as_ref().is_some_and(|hostname| hostname.first_label() == *alias);
        if alias.as_str() == "localhost" || ours {
            return Err(ChangeError::AliasReserved { alias: alias.clone() });
        }
        match self.trusts.iter().find(|trust| trust.alias == *alias && trust.peer != *peer) {
            Some(trust) => Err(ChangeError::AliasTaken { alias: alias.clone(), holder: trust.peer.clone() }),
            None => Ok(()),
        }
    }

    fn unknown_service(&self, name: &str) -> ChangeError {
        let known = self.services.iter().map(|service| service.name.to_string()).collect();
        ChangeError::UnknownService { name: name.to_owned(), known }
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

/// Whom a ticket or a request has introduced.
struct Met<'a> {
    peer: &'a AgentId,
    record: &'a AuthorityRecord,
    relays: &'a [RelayInfo],
    reason: &'a str,
}

/// Keeps the two newest records of an authority, newest first: two overlap during a rotation.
pub(super) fn learn_record(records: &mut Vec<AuthorityRecord>, record: &AuthorityRecord) {
    records.retain(|known| known.sequence() != record.sequence());
    records.push(record.clone());
    records.sort_by_key(|known| std::cmp::Reverse(known.sequence()));
    records.truncate(2);
}

/// Removes records that a newer one has ended.
fn drop_ended(records: &mut Vec<AuthorityRecord>, now: UnixTime) {
    if let Some(newest) = records.iter().max_by_key(|record| record.sequence()).cloned() {
        records.retain(|record| !record.is_ended_by(&newest, now));
    }
}

/// When [`drop_ended`] has something to do.
fn former_end(records: &[AuthorityRecord]) -> Option<UnixTime> {
    let newest = records.iter().max_by_key(|record| record.sequence())?;
    newest.former_until().filter(|until| records.iter().any(|record| record.is_ended_by(newest, *until)))
}

/// A stranger's words for our terminal: no control characters (they move cursors and forge lines), no invisible
/// direction marks, at most `limit` bytes.
fn printable(text: &str, limit: usize) -> String {
    let mut out = String::new();
    for char in text.chars() {
        let harmless = !char.is_control()
            && !matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        let char = if harmless { char } else { ' ' };
        if out.len() + char.len_utf8() > limit {
            break;
        }
        out.push(char);
    }
    out
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
