//! Relays: where they are, and (in [`frame`]) what is said to them.

use core::fmt;
use core::str::FromStr;

use data_encoding::BASE32_NOPAD;
use minicbor::{Decode, Encode};

use crate::keys::AgreementKey;

pub mod frame;

/// The port a relay listens on unless told otherwise; STUN's, since it answers STUN too (RFC 8489 section 18.6).
pub const DEFAULT_PORT: u16 = 3478;

/// A relay someone uses: its key, and where it is. Written `KEY@HOST:PORT`, the key in base32.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(map)]
pub struct RelayInfo {
    /// The relay's X25519 key, which is also its identity.
    #[n(0)]
    pub key: AgreementKey,
    /// Host name or address.
    #[n(1)]
    pub host: RelayHost,
    /// UDP port.
    #[n(2)]
    pub port: u16,
}

/// A host name or address that a resolver may be asked for: no spaces, no control characters, at most 253 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RelayHost(String);

impl RelayHost {
    /// The host as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RelayHost {
    type Err = InvalidRelay;

    fn from_str(text: &str) -> Result<Self, InvalidRelay> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_');
        if text.is_empty() || text.len() > 253 || !text.chars().all(allowed) {
            return Err(InvalidRelay::Host);
        }
        Ok(Self(text.to_owned()))
    }
}

impl<C> Encode<C> for RelayHost {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for RelayHost {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        d.str()?.parse().map_err(|e| minicbor::decode::Error::custom(e).at(at))
    }
}

/// Text that does not name a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRelay {
    /// No `@`.
    #[error("a relay is written KEY@HOST:PORT, as `peerage relay` prints it")]
    Shape,
    /// The key is not 52 base32 characters.
    #[error("the relay's key is not 52 base32 characters; copy it whole from what `peerage relay` prints")]
    Key,
    /// The host is not one.
    #[error("the relay's host is not a host name or address")]
    Host,
    /// The port is not one.
    #[error("the relay's port is not a number from 1 to 65535")]
    Port,
}

impl FromStr for RelayInfo {
    type Err = InvalidRelay;

    fn from_str(text: &str) -> Result<Self, InvalidRelay> {
        let (key, place) = text.split_once('@').ok_or(InvalidRelay::Shape)?;
        let key = BASE32_NOPAD.decode(key.to_ascii_uppercase().as_bytes()).map_err(|_| InvalidRelay::Key)?;
        let key = AgreementKey(key.try_into().map_err(|_| InvalidRelay::Key)?);
        let (host, port) = split_port(place)?;
        Ok(Self { key, host: host.parse()?, port })
    }
}

fn split_port(place: &str) -> Result<(&str, u16), InvalidRelay> {
    if let Some(v6) = place.strip_prefix('[') {
        let (host, rest) = v6.split_once(']').ok_or(InvalidRelay::Host)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, parse_port(port)?)),
            None if rest.is_empty() => Ok((host, DEFAULT_PORT)),
            None => Err(InvalidRelay::Port),
        };
    }
    match place.rsplit_once(':') {
        Some((host, _)) if host.contains(':') => Ok((place, DEFAULT_PORT)), // a bare IPv6 address
        Some((host, port)) => Ok((host, parse_port(port)?)),
        None => Ok((place, DEFAULT_PORT)),
    }
}

fn parse_port(text: &str) -> Result<u16, InvalidRelay> {
    text.parse().ok().filter(|port| *port != 0).ok_or(InvalidRelay::Port)
}

impl fmt::Display for RelayInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = BASE32_NOPAD.encode(&self.key.0).to_ascii_lowercase();
        match self.host.0.contains(':') {
            true => write!(f, "{key}@[{}]:{}", self.host.0, self.port),
            false => write!(f, "{key}@{}:{}", self.host.0, self.port),
        }
    }
}

impl fmt::Debug for RelayInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Relay({:?})", self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_relay_prints_is_what_it_parses() {
        for place in ["relay.example.com:3478", "203.0.113.7:443", "[2001:db8::1]:3478"] {
            let text = format!("{}@{place}", BASE32_NOPAD.encode(&[5; 32]).to_ascii_lowercase());
            let parsed: RelayInfo = text.parse().expect("it is a relay");
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn a_missing_port_means_the_default_one() {
        let key = BASE32_NOPAD.encode(&[5; 32]);
        for place in ["relay.example.com", "[2001:db8::1]", "2001:db8::1"] {
            let parsed: RelayInfo = format!("{key}@{place}").parse().expect("it is a relay");
            assert_eq!(parsed.port, DEFAULT_PORT, "{place}");
        }
    }

    #[test]
    fn what_is_not_a_relay_says_what_is_wrong() {
        let key = BASE32_NOPAD.encode(&[5; 32]);
        let wrong = |text: String| text.parse::<RelayInfo>().expect_err("it is not a relay");
        assert_eq!(wrong("relay.example.com:1".into()), InvalidRelay::Shape);
        assert_eq!(wrong("abc@relay.example.com:1".into()), InvalidRelay::Key);
        assert_eq!(wrong(format!("{key}@a b:1")), InvalidRelay::Host);
        assert_eq!(wrong(format!("{key}@host:0")), InvalidRelay::Port);
        assert_eq!(wrong(format!("{key}@host:70000")), InvalidRelay::Port);
    }
}
