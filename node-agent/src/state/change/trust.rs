//! Consent: given, asked for, changed and taken back.

use std::time::Duration;

use peerage_model::control::MAX_REASON;
use peerage_model::relay::RelayInfo;
use peerage_model::{AgentId, AuthorityRecord, Fingerprint, InstanceId, Label, Ticket, TrustId, UnixTime, passport};

use super::records::learn_record;
use super::requests::printable;
use super::{ChangeError, Consent, Found, MAX_RELAYS};
use crate::state::document::{Denied, Document, Inbound, Revoked, Sent, Trust};
use crate::state::lookup::{PeerRef, Unmatched};

impl Document {
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

    /// Notes that a peer we asked has said yes: there is a session with it. True when we were waiting for it.
    pub fn answered(&mut self, peer: &AgentId) -> bool {
        let before = self.sent.len();
        self.sent.retain(|sent| sent.peer != *peer);
        self.sent.len() != before
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
}

/// Whom a ticket or a request has introduced.
struct Met<'a> {
    peer: &'a AgentId,
    record: &'a AuthorityRecord,
    relays: &'a [RelayInfo],
    reason: &'a str,
}
