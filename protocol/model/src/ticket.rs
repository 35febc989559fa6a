//! Tickets: what one person sends another so that two agents can meet for the first time.
//!
//! A ticket is a secret until it is used or ends. It opens one request-only session (docs/spec/identity.md) and gives
//! no other right: whoever holds it may *ask*.

use core::fmt;

use data_encoding::BASE64URL_NOPAD;
use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

use crate::authority::{AuthorityRecord, RecordError};
use crate::cbor::{self, byte_string};
use crate::id::{AgentId, sha256};
use crate::name::AgentName;
use crate::relay::RelayInfo;
use crate::time::UnixTime;

const PREFIX: &str = "peerage1-";
/// Longest ticket text that is looked at: four relays with long host names stay far below.
const MAX_TEXT: usize = 4096;
/// Most relays in one ticket.
pub const MAX_RELAYS: usize = 4;

/// The 32 bytes that stand in for a pair secret while asking.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteSecret(Zeroizing<[u8; 32]>);
byte_string!(InviteSecret, 32);

impl InviteSecret {
    /// From 32 random bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for deriving the invite's pair secret.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for InviteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InviteSecret(..)")
    }
}

/// An invitation to ask for trust, one-time and expiring. Its record has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Who vouches for the inviter.
    pub record: AuthorityRecord,
    /// The inviter's name there.
    pub name: AgentName,
    /// Where the inviter can be reached.
    pub relays: Vec<RelayInfo>,
    /// Proves to the inviter that we hold its ticket.
    pub secret: InviteSecret,
    /// When the inviter stops listening for it.
    pub expires: UnixTime,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[cbor(n(0), with = "minicbor::bytes")]
    record: Vec<u8>,
    #[n(1)]
    name: AgentName,
    #[n(2)]
    relays: Vec<RelayInfo>,
    #[n(3)]
    secret: InviteSecret,
    #[n(4)]
    expires: UnixTime,
}

/// Why a ticket cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not a ticket, or not all of one.
    #[error("this is not a whole ticket; copy everything from `{PREFIX}` on")]
    Malformed,
    /// A character was changed on the way.
    #[error("the ticket was damaged on the way; copy it again")]
    Checksum,
    /// Too late.
    #[error("the ticket ended; ask for a new one (`peerage invite`)")]
    Expired,
    /// The inviter's record is not good.
    #[error("the ticket's authority record is not valid")]
    Record(#[source] RecordError),
}

impl Ticket {
    /// Whether a text is meant as a ticket, whole or damaged, and not as the name of an agent.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.trim_start().get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
    }

    /// Whom the ticket leads to.
    #[must_use]
    pub fn inviter(&self) -> AgentId {
        AgentId { authority: self.record.fingerprint(), name: self.name.clone() }
    }

    /// Reads a ticket from text, ignoring white space that mail and chat programs put in.
    ///
    /// # Errors
    /// [`TicketError`], each case saying what to do.
    pub fn parse(text: &str, now: UnixTime) -> Result<Self, TicketError> {
        if text.len() > MAX_TEXT {
            return Err(TicketError::Malformed);
        }
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let body = compact.strip_prefix(PREFIX).ok_or(TicketError::Malformed)?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| TicketError::Malformed)?;
        let split = bytes.len().checked_sub(4).ok_or(TicketError::Malformed)?;
        let (payload, checksum) = bytes.split_at(split);
        if sha256(&[payload])[..4] != *checksum {
            return Err(TicketError::Checksum);
        }
        let wire: Wire = minicbor::decode(payload).map_err(|_| TicketError::Malformed)?;
        if wire.relays.len() > MAX_RELAYS {
            return Err(TicketError::Malformed);
        }
        if wire.expires <= now {
            return Err(TicketError::Expired);
        }
        let record = AuthorityRecord::verify(&wire.record, now).map_err(TicketError::Record)?;
        Ok(Self { record, name: wire.name, relays: wire.relays, secret: wire.secret, expires: wire.expires })
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = cbor::to_vec(&Wire {
            record: self.record.as_bytes().to_vec(),
            name: self.name.clone(),
            relays: self.relays.clone(),
            secret: self.secret.clone(),
            expires: self.expires,
        });
        let checksum = sha256(&[&bytes]);
        bytes.extend_from_slice(&checksum[..4]);
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Authority;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn ticket() -> Ticket {
        let authority = Authority::new(&Zeroizing::new([3; 96]), NOW);
        let relay = format!("{}@relay.example.com:3478", data_encoding::BASE32_NOPAD.encode(&[5; 32]));
        Ticket {
            record: authority.record().clone(),
            name: "db-tool-server".parse().expect("a name"),
            relays: vec![relay.parse().expect("a relay")],
            secret: InviteSecret::from_bytes([7; 32]),
            expires: UnixTime(NOW.0 + 3600),
        }
    }

    #[test]
    fn a_ticket_survives_its_text_even_when_mail_breaks_the_lines() {
        let ticket = ticket();
        let text = ticket.to_string();
        let folded: String =
            text.as_bytes().chunks(60).map(|c| format!("{}\r\n ", String::from_utf8_lossy(c))).collect();
        assert_eq!(Ticket::parse(&folded, NOW), Ok(ticket));
    }

    #[test]
    fn a_ticket_cut_short_damaged_or_ended_says_so() {
        let text = ticket().to_string();
        assert!(Ticket::parse(&text[..text.len() - 5], NOW).is_err());
        let mut damaged = text.clone().into_bytes();
        damaged[40] = if damaged[40] == b'A' { b'B' } else { b'A' };
        let damaged = String::from_utf8(damaged).expect("still ASCII");
        assert_eq!(Ticket::parse(&damaged, NOW), Err(TicketError::Checksum));
        assert_eq!(Ticket::parse(&text, UnixTime(NOW.0 + 3600)), Err(TicketError::Expired));
        assert_eq!(Ticket::parse("hello", NOW), Err(TicketError::Malformed));
    }
}
