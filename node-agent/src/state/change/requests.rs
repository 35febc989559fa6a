//! What strangers want: invitations for them, their requests by session and by mail, and the answer no.

use peerage_model::control::MAX_REASON;
use peerage_model::{TrustId, UnixTime};

use super::records::learn_record;
use super::{
    ChangeError, MAX_INVITES, MAX_MAIL_REQUESTS, MAX_RELAYS, MAX_REQUESTS, MAX_REQUESTS_PER_AUTHORITY,
    OPEN_INVITATIONS, Reception,
};
use crate::state::document::{Answered, Document, Invitation, Received};
use crate::state::lookup::{PeerRef, Unmatched};

/// All that are open.
const EVERY_TICKET: &str = "all";

impl Document {
    /// Notes an invitation.
    ///
    /// # Errors
    /// [`ChangeError::TooMany`].
    pub fn invite(&mut self, id: TrustId, expires: UnixTime) -> Result<(), ChangeError> {
        if self.invites.len() >= MAX_INVITES {
            return Err(ChangeError::TooMany { what: OPEN_INVITATIONS, limit: MAX_INVITES });
        }
        self.invites.push(Invitation { id, expires });
        Ok(())
    }

    /// Takes invitations back that nobody has used: the one whose id begins like that, or `all`.
    ///
    /// # Errors
    /// [`ChangeError::UnknownTicket`] or [`ChangeError::SeveralTickets`].
    pub fn withdraw(&mut self, ticket: &str) -> Result<Vec<Invitation>, ChangeError> {
        if ticket == EVERY_TICKET {
            return Ok(std::mem::take(&mut self.invites));
        }
        let meant = |invite: &Invitation| !ticket.is_empty() && invite.id.to_string().starts_with(ticket);
        match self.invites.iter().filter(|invite| meant(invite)).count() {
            0 => Err(ChangeError::UnknownTicket { ticket: ticket.to_owned() }),
            1 => Ok(self.invites.extract_if(.., |invite| meant(invite)).collect()),
            count => Err(ChangeError::SeveralTickets { ticket: ticket.to_owned(), count }),
        }
    }

    /// Takes in a request and uses its invitation up, whether or not there is room for the request.
    pub fn receive(&mut self, request: Received) -> Reception {
        if let Some(by) = request.invite
            && self.invites.extract_if(.., |invite| invite.id == by).next().is_none()
        {
            // Its owner was told that nobody comes by it any more.
            return Reception::Withdrawn;
        }
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
    pub(super) fn note_answered(&mut self, request: &Received) {
        if let Some(asked) = request.asked {
            self.answered.retain(|answered| answered.asker != request.asker);
            self.answered.push(Answered { asker: request.asker.clone(), asked });
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
}

/// A stranger's words for our terminal: no control characters (they move cursors and forge lines), no invisible
/// direction marks, at most `limit` bytes.
pub(super) fn printable(text: &str, limit: usize) -> String {
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
