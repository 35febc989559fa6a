//! The frames of mailboxes (`docs/spec/mailbox.md` section 2).

use super::keys::MacKey;
use super::read::Reader;
use super::{Frame, HEADER, MAC, NotAFrame, Tag, Type, write};
use crate::id::sha256;
use crate::keys::AgreementKey;
use crate::name::AgentName;
use crate::pair::hkdf;

/// Bytes of a sealed request: its ephemeral key, the padded text and its AEAD tag.
pub const SEALED: usize = 1024;
/// Longest authority record that a mailbox names; ours have about 200 bytes.
pub const MAX_RECORD: usize = 256;
/// Most records in one answer.
pub const MAX_RECORDS: usize = 4;
/// Bytes of LOOKUP.
pub const LOOKUP: usize = 64;
/// Bytes of POST.
pub const POST: usize = HEADER + 8 + 16 + SEALED;
/// Bytes of POSTED.
pub const POSTED: usize = 16;
/// Bytes of CHECK.
pub const CHECK: usize = 40;
/// Bytes of MAIL without mail.
pub const EMPTY_MAIL: usize = 40;

/// What a name is looked up by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NameKey(pub [u8; 16]);

impl NameKey {
    /// Of a name, whoever's agent it is.
    #[must_use]
    pub fn of(name: &AgentName) -> Self {
        let mut out = [0; 16];
        out.copy_from_slice(&sha256(&[b"peerage name v1", name.as_str().as_bytes()])[..16]);
        Self(out)
    }
}

/// One mail at one relay; zeros are none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MailId(pub [u8; 8]);

impl MailId {
    /// No mail.
    pub const NONE: Self = Self([0; 8]);
}

/// The records in an answer, as they travel; their form is checked, their signatures are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// Each record's bytes.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = Reader::of(self.0);
        std::iter::from_fn(move || {
            let length = rest.u16().ok()?;
            rest.take(usize::from(length)).ok()
        })
    }
}

impl<'a> Frame<'a> {
    pub(super) fn records(r: &mut Reader<'a>) -> Result<Self, NotAFrame> {
        let nonce = *r.array()?;
        let all = r.before_mac()?;
        let (mut rest, mut count) = (Reader::of(all), 0);
        while !rest.is_empty() {
            let length = usize::from(rest.u16()?);
            rest.take(length)?;
            count += 1;
            if !(1..=MAX_RECORD).contains(&length) || count > MAX_RECORDS {
                return Err(NotAFrame);
            }
        }
        if count == 0 { Err(NotAFrame) } else { Ok(Self::Records { nonce, records: Records(all), mac: r.array()? }) }
    }

    pub(super) fn mail(r: &mut Reader<'a>) -> Result<Self, NotAFrame> {
        let (nonce, id) = (*r.array()?, MailId(*r.array()?));
        let sealed = r.before_mac()?;
        let sealed = match sealed.as_array::<SEALED>() {
            None if sealed.is_empty() && id == MailId::NONE => None,
            Some(sealed) if id != MailId::NONE => Some(sealed),
            Some(_) | None => return Err(NotAFrame),
        };
        Ok(Self::Mail { nonce, id, sealed, mac: r.array()? })
    }
}

/// Authenticates RECORDS; `es` = DH(e, relay's key).
#[must_use]
pub fn answer_key(es: &[u8; 32], relay: &AgreementKey, e: &AgreementKey) -> MacKey {
    MacKey::new(hkdf(&[], es, &[b"peerage mailbox look-up v1", &relay.0, &e.0]))
}

/// LOOKUP. `e` must be fresh for each question.
#[must_use]
pub fn lookup(tag: Tag, nonce: [u8; 8], name: NameKey, e: &AgreementKey) -> [u8; LOOKUP] {
    let mut out = [0; LOOKUP];
    write::header(&mut out, Type::Lookup, tag);
    out[8..16].copy_from_slice(&nonce);
    out[16..32].copy_from_slice(&name.0);
    out[32..].copy_from_slice(&e.0);
    out
}

/// RECORDS, its MAC by `mac` over what is before it. What is more than [`MAX_RECORDS`], or longer than [`MAX_RECORD`], is left
/// out.
#[must_use]
pub fn records<'a>(
    tag: Tag,
    nonce: [u8; 8],
    records: impl IntoIterator<Item = &'a [u8]>,
    mac: impl FnOnce(&[u8]) -> [u8; MAC],
) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    write::header(&mut out, Type::Records, tag);
    out.extend_from_slice(&nonce);
    for record in records.into_iter().filter(|record| record.len() <= MAX_RECORD).take(MAX_RECORDS) {
        let length = u16::try_from(record.len()).expect("at most 256");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(record);
    }
    let mac = mac(&out);
    out.extend_from_slice(&mac);
    out
}

/// POST.
#[must_use]
pub fn post(tag: Tag, nonce: [u8; 8], to: crate::RoutingId, sealed: &[u8; SEALED]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    write::header(&mut out, Type::Post, tag);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&to.0);
    out.extend_from_slice(sealed);
    out
}

/// POSTED.
#[must_use]
pub fn posted(tag: Tag, nonce: [u8; 8]) -> [u8; POSTED] {
    let mut out = [0; POSTED];
    write::header(&mut out, Type::Posted, tag);
    out[8..].copy_from_slice(&nonce);
    out
}

/// CHECK, its MAC by `mac` over what is before it.
#[must_use]
pub fn check(tag: Tag, nonce: [u8; 8], done: MailId, mac: impl FnOnce(&[u8]) -> [u8; MAC]) -> [u8; CHECK] {
    let mut out = [0; CHECK];
    write::header(&mut out, Type::Check, tag);
    out[8..16].copy_from_slice(&nonce);
    out[16..24].copy_from_slice(&done.0);
    write::finish(out, mac)
}

/// MAIL, with or without one; its MAC by `mac` over what is before it.
#[must_use]
pub fn mail(
    tag: Tag,
    nonce: [u8; 8],
    mail: Option<(MailId, &[u8; SEALED])>,
    mac: impl FnOnce(&[u8]) -> [u8; MAC],
) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    write::header(&mut out, Type::Mail, tag);
    out.extend_from_slice(&nonce);
    match mail {
        Some((id, sealed)) => {
            out.extend_from_slice(&id.0);
            out.extend_from_slice(sealed);
        }
        None => out.extend_from_slice(&MailId::NONE.0),
    }
    let mac = mac(&out);
    out.extend_from_slice(&mac);
    out
}
