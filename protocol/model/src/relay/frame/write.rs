//! Writing frames, into arrays on the stack.

use core::net::{IpAddr, SocketAddr};

use super::{
    ALIVE, AliveFlags, BIND_HEAD, BOUND, Boot, COOKIE, Cookie, DRAIN, ENDPOINT_HEADER, EndpointId, Grant, HEADER,
    HELLO, KEEPALIVE, MAC, MAX_OTHERS, MOVE, REFUSED, Refusal, Tag, Type, UNBIND, VERSION_1, VISIT, VISITING, WHO_ELSE,
};
use crate::keys::AgreementKey;

/// Writes version, type and tag.
pub(super) fn header(out: &mut [u8], kind: Type, tag: Tag) {
    out[0] = VERSION_1;
    out[1] = kind as u8;
    out[2..HEADER].copy_from_slice(&tag.0);
}

/// HELLO.
#[must_use]
pub fn hello(tag: Tag) -> [u8; HELLO] {
    let mut out = [0; HELLO];
    header(&mut out, Type::Hello, tag);
    out
}

/// COOKIE.
#[must_use]
pub fn cookie(tag: Tag, cookie: Cookie, boot: Boot) -> [u8; COOKIE] {
    let mut out = [0; COOKIE];
    header(&mut out, Type::Cookie, tag);
    out[8..24].copy_from_slice(&cookie.0);
    out[24..].copy_from_slice(&boot.0);
    out
}

/// BIND up to the sealed credential: what the seal authenticates beside it.
#[must_use]
pub fn bind_head(tag: Tag, cookie: Cookie, e: &AgreementKey) -> [u8; BIND_HEAD] {
    let mut out = [0; BIND_HEAD];
    header(&mut out, Type::Bind, tag);
    out[8..24].copy_from_slice(&cookie.0);
    out[24..].copy_from_slice(&e.0);
    out
}

/// BOUND, its MAC by `mac` over what is before it.
#[must_use]
pub fn bound(tag: Tag, grant: &Grant, mac: impl FnOnce(&[u8]) -> [u8; MAC]) -> [u8; BOUND] {
    let mut out = [0; BOUND];
    header(&mut out, Type::Bound, tag);
    write_grant(&mut out, grant);
    finish(out, mac)
}

/// REFUSED, its MAC by `mac` over what is before it.
#[must_use]
pub fn refused(tag: Tag, reason: Refusal, mac: impl FnOnce(&[u8]) -> [u8; MAC]) -> [u8; REFUSED] {
    let mut out = [0; REFUSED];
    header(&mut out, Type::Refused, tag);
    out[8] = reason.code();
    finish(out, mac)
}

/// VISIT; `earlier` keeps an id over a change of address.
#[must_use]
pub fn visit(tag: Tag, cookie: Cookie, earlier: Option<(EndpointId, Tag)>) -> [u8; VISIT] {
    let mut out = [0; VISIT];
    header(&mut out, Type::Visit, tag);
    out[8..24].copy_from_slice(&cookie.0);
    if let Some((id, tag)) = earlier {
        out[24..32].copy_from_slice(&id.0);
        out[32..38].copy_from_slice(&tag.0);
    }
    out
}

/// VISITING.
#[must_use]
pub fn visiting(tag: Tag, grant: &Grant, id: EndpointId) -> [u8; VISITING] {
    let mut out = [0; VISITING];
    header(&mut out, Type::Visiting, tag);
    write_grant(&mut out, grant);
    out[34..].copy_from_slice(&id.0);
    out
}

/// MOVE, its MAC by `mac` over what is before it. Named after the verb because `move` is Rust's.
#[must_use]
pub fn moved(
    tag: Tag,
    cookie: Cookie,
    id: EndpointId,
    counter: u64,
    mac: impl FnOnce(&[u8]) -> [u8; MAC],
) -> [u8; MOVE] {
    let mut out = [0; MOVE];
    header(&mut out, Type::Move, tag);
    out[8..24].copy_from_slice(&cookie.0);
    out[24..32].copy_from_slice(&id.0);
    out[32..40].copy_from_slice(&counter.to_be_bytes());
    finish(out, mac)
}

/// KEEPALIVE.
#[must_use]
pub fn keepalive(tag: Tag, nonce: [u8; 8]) -> [u8; KEEPALIVE] {
    let mut out = [0; KEEPALIVE];
    header(&mut out, Type::Keepalive, tag);
    out[8..16].copy_from_slice(&nonce);
    out
}

/// ALIVE.
#[must_use]
pub fn alive(tag: Tag, nonce: [u8; 8], lifetime: u16, flags: AliveFlags) -> [u8; ALIVE] {
    let mut out = [0; ALIVE];
    header(&mut out, Type::Alive, tag);
    out[8..16].copy_from_slice(&nonce);
    out[16..18].copy_from_slice(&lifetime.to_be_bytes());
    out[18] = flags.byte();
    out
}

/// WHO_ELSE.
#[must_use]
pub fn who_else(tag: Tag, nonce: [u8; 8]) -> [u8; WHO_ELSE] {
    let mut out = [0; WHO_ELSE];
    header(&mut out, Type::WhoElse, tag);
    out[8..16].copy_from_slice(&nonce);
    out
}

/// OTHERS; of more than [`MAX_OTHERS`] the first.
#[must_use]
pub fn others(tag: Tag, nonce: [u8; 8], ids: impl IntoIterator<Item = EndpointId>) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    header(&mut out, Type::Others, tag);
    out.extend_from_slice(&nonce);
    ids.into_iter().take(MAX_OTHERS).for_each(|id| out.extend_from_slice(&id.0));
    out
}

/// DRAIN, its MAC by `mac` over what is before it.
#[must_use]
pub fn drain(tag: Tag, grace: u16, mac: impl FnOnce(&[u8]) -> [u8; MAC]) -> [u8; DRAIN] {
    let mut out = [0; DRAIN];
    header(&mut out, Type::Drain, tag);
    out[8..10].copy_from_slice(&grace.to_be_bytes());
    finish(out, mac)
}

/// UNBIND, its MAC by `mac` over what is before it.
#[must_use]
pub fn unbind(tag: Tag, id: EndpointId, mac: impl FnOnce(&[u8]) -> [u8; MAC]) -> [u8; UNBIND] {
    let mut out = [0; UNBIND];
    header(&mut out, Type::Unbind, tag);
    out[8..16].copy_from_slice(&id.0);
    finish(out, mac)
}

/// The header of FROM, which a relay writes over that of TO_ENDPOINT.
#[must_use]
pub fn from_header(tag: Tag, source: EndpointId) -> [u8; ENDPOINT_HEADER] {
    let mut out = [0; ENDPOINT_HEADER];
    header(&mut out, Type::From, tag);
    out[HEADER..].copy_from_slice(&source.0);
    out
}

fn write_grant(out: &mut [u8], grant: &Grant) {
    out[8..14].copy_from_slice(&grant.tag.0);
    out[14..16].copy_from_slice(&grant.lifetime.to_be_bytes());
    let address = address_bytes(grant.observed);
    for (out, byte) in out[16..34].iter_mut().zip(address) {
        *out = !byte;
    }
}

pub(super) fn finish<const N: usize>(mut out: [u8; N], mac: impl FnOnce(&[u8]) -> [u8; MAC]) -> [u8; N] {
    let (body, place) = out.split_at_mut(N - MAC);
    place.copy_from_slice(&mac(body));
    out
}

/// Sixteen bytes of address (IPv4 as ::ffff:a.b.c.d), two of port.
#[must_use]
pub fn address_bytes(address: SocketAddr) -> [u8; 18] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut out = [0; 18];
    out[..16].copy_from_slice(&ip.octets());
    out[16..].copy_from_slice(&address.port().to_be_bytes());
    out
}
