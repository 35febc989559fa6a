//! Reading frames, without a copy of what is sealed.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::mailbox::{MailId, NameKey};
use super::{
    AliveFlags, Boot, Cookie, Destination, EndpointId, Frame, Grant, HEADER, HELLO, KEEPALIVE, MAC, MAX_OTHERS,
    MAX_PACKET, NotAFrame, Refusal, SEAL_TAG, Tag, Type, VERSION_1, VISIT, WHO_ELSE,
};
use crate::id::RoutingId;
use crate::keys::AgreementKey;
use crate::passport::MAX_CREDENTIAL;

impl<'a> Frame<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    /// [`NotAFrame`] when version, type, length or the packet's first byte are wrong.
    pub fn parse(datagram: &'a [u8]) -> Result<(Tag, Self), NotAFrame> {
        let mut r = Reader::of(datagram);
        if r.array::<1>()? != &[VERSION_1] {
            return Err(NotAFrame);
        }
        let kind = Type::from_code(r.array::<1>()?[0]).ok_or(NotAFrame)?;
        let tag = Tag(*r.array()?);
        let frame = match kind {
            Type::Hello => r.padding(HELLO - HEADER).map(|()| Self::Hello)?,
            Type::Cookie => Self::Cookie { cookie: Cookie(*r.array()?), boot: Boot(*r.array()?) },
            Type::Bind => Self::bind(&mut r)?,
            Type::Bound => Self::Bound { grant: r.grant()?, mac: r.array()? },
            Type::Refused => Self::Refused { reason: Refusal::from_code(r.array::<1>()?[0]), mac: r.array()? },
            Type::Visit => Self::visit(&mut r)?,
            Type::Visiting => Self::Visiting { grant: r.grant()?, id: EndpointId(*r.array()?) },
            Type::Move => Self::Move {
                cookie: Cookie(*r.array()?),
                id: EndpointId(*r.array()?),
                counter: u64::from_be_bytes(*r.array()?),
                mac: r.array()?,
            },
            Type::Keepalive => Self::Keepalive { nonce: r.padded_nonce(KEEPALIVE)? },
            Type::Alive => {
                let (nonce, lifetime, [flags]) = (*r.array()?, r.u16()?, *r.array::<1>()?);
                Self::Alive { nonce, lifetime, flags: AliveFlags::from_byte(flags) }
            }
            Type::Drain => Self::Drain { grace: r.u16()?, mac: r.array()? },
            Type::ToRoute => Self::To { destination: Destination::Route(RoutingId(*r.array()?)), packet: r.packet()? },
            Type::ToEndpoint => {
                Self::To { destination: Destination::Endpoint(EndpointId(*r.array()?)), packet: r.packet()? }
            }
            Type::From => Self::From { source: EndpointId(*r.array()?), packet: r.packet()? },
            Type::Unbind => Self::Unbind { id: EndpointId(*r.array()?), mac: r.array()? },
            Type::Lookup => {
                Self::Lookup { nonce: *r.array()?, name: NameKey(*r.array()?), e: AgreementKey(*r.array()?) }
            }
            Type::Records => Self::records(&mut r)?,
            Type::Post => Self::Post { nonce: *r.array()?, to: RoutingId(*r.array()?), sealed: r.array()? },
            Type::Posted => Self::Posted { nonce: *r.array()? },
            Type::Check => Self::Check { nonce: *r.array()?, done: MailId(*r.array()?), mac: r.array()? },
            Type::Mail => Self::mail(&mut r)?,
            Type::WhoElse => Self::WhoElse { nonce: r.padded_nonce(WHO_ELSE)? },
            Type::Others => Self::others(&mut r)?,
        };
        if r.is_empty() { Ok((tag, frame)) } else { Err(NotAFrame) }
    }

    fn bind(r: &mut Reader<'a>) -> Result<Self, NotAFrame> {
        let cookie = Cookie(*r.array()?);
        let e = AgreementKey(*r.array()?);
        let sealed = r.before_mac()?;
        if !(SEAL_TAG + 1..=MAX_CREDENTIAL + SEAL_TAG).contains(&sealed.len()) {
            return Err(NotAFrame);
        }
        Ok(Self::Bind { cookie, e, sealed, mac: r.array()? })
    }

    fn others(r: &mut Reader<'a>) -> Result<Self, NotAFrame> {
        let nonce = *r.array()?;
        let (ids, rest) = r.0.as_chunks::<8>();
        r.0 = rest;
        if ids.len() > MAX_OTHERS {
            return Err(NotAFrame);
        }
        Ok(Self::Others { nonce, ids })
    }

    fn visit(r: &mut Reader<'a>) -> Result<Self, NotAFrame> {
        let cookie = Cookie(*r.array()?);
        let (id, tag) = (EndpointId(*r.array()?), Tag(*r.array()?));
        r.padding(VISIT - HEADER - 30)?;
        let earlier = (id.0 != [0; 8]).then_some((id, tag));
        Ok(Self::Visit { cookie, earlier })
    }
}

/// What is left to read of a datagram.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], NotAFrame> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(NotAFrame)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], NotAFrame> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(NotAFrame)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, NotAFrame> {
        Ok(u16::from_be_bytes(*self.array()?))
    }

    /// All but a MAC at the end.
    pub(super) fn before_mac(&mut self) -> Result<&'a [u8], NotAFrame> {
        self.take(self.0.len().checked_sub(MAC).ok_or(NotAFrame)?)
    }

    /// A nonce, and padding up to the length of the whole frame.
    fn padded_nonce(&mut self, frame: usize) -> Result<[u8; 8], NotAFrame> {
        let nonce = *self.array()?;
        self.padding(frame - HEADER - nonce.len())?;
        Ok(nonce)
    }

    fn padding(&mut self, n: usize) -> Result<(), NotAFrame> {
        self.take(n).map(|_| ())
    }

    /// The rest: a QUIC packet by its first byte.
    fn packet(&mut self) -> Result<&'a [u8], NotAFrame> {
        let packet = self.take(self.0.len())?;
        match packet.first() {
            Some(64..) if packet.len() <= MAX_PACKET => Ok(packet),
            Some(_) | None => Err(NotAFrame),
        }
    }

    fn grant(&mut self) -> Result<Grant, NotAFrame> {
        let tag = Tag(*self.array()?);
        let lifetime = self.u16()?;
        let ip = Ipv6Addr::from(self.array::<16>()?.map(|byte| !byte));
        let port = !self.u16()?;
        Ok(Grant { tag, lifetime, observed: SocketAddr::new(IpAddr::V6(ip).to_canonical(), port) })
    }
}
