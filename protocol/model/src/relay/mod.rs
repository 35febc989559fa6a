//! Relays: where they are, and (in [`frame`] and [`stream`]) what is said to them.

use core::fmt;
use core::str::FromStr;

use data_encoding::BASE32_NOPAD;
use minicbor::{Decode, Encode};

use crate::keys::AgreementKey;

pub mod frame;
pub mod stream;

/// The port a relay listens on unless told otherwise; STUN's, since it answers STUN too (RFC 8489 section 18.6).
pub const DEFAULT_PORT: u16 = 3478;

/// A relay someone uses: its key, and where it is. Written `KEY@HOST:PORT` or, where TLS has another port number than
/// UDP, `KEY@HOST:PORT/TCPPORT`; the key in base32.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
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
    /// TCP port for TLS, where UDP is blocked; `None`: the same number as [`Self::port`].
    #[n(3)]
    pub tls: Option<u16>,
}

impl RelayInfo {
    /// The TCP port for TLS.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.tls.unwrap_or(self.port)
    }
}

/// As it travels, before its ports were looked at.
#[derive(Decode)]
#[cbor(map)]
struct Travelling {
    #[n(0)]
    key: AgreementKey,
    #[n(1)]
    host: RelayHost,
    #[n(2)]
    port: u16,
    #[n(3)]
    tls: Option<u16>,
}

impl<'b, C> Decode<'b, C> for RelayInfo {
    fn decode(d: &mut minicbor::Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let Travelling { key, host, port, tls } = Travelling::decode(d, ctx)?;
        // What cannot be written as text would be lost wherever lists are kept as text.
        if port == 0 || tls == Some(0) {
            return Err(minicbor::decode::Error::custom(InvalidRelay::Port).at(at));
        }
        Ok(Self { key, host, port, tls })
    }
}

/// A host that a resolver may be asked for: a name that begins and ends with a letter or digit and has `.`, `_` and `-` between,
/// or an IPv6 address; at most 253 bytes.
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
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let edge = |c: char| c.is_ascii_alphanumeric();
        let is_name = || text.starts_with(edge) && text.ends_with(edge) && text.len() <= 253 && text.chars().all(inner);
        let is_v6 = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':');
        let is_address = || text.contains(':') && (2..=45).contains(&text.len()) && text.chars().all(is_v6);
        if !is_name() && !is_address() {
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
    #[error("a relay is written KEY@HOST:PORT or KEY@HOST:PORT/TCPPORT, as `peerage relay` prints it")]
    Shape,
    /// The key is not 52 base32 characters.
    #[error("the relay's key is not 52 base32 characters; copy it whole from what `peerage relay` prints")]
    Key,
    /// The host is not one.
    #[error("the relay's host is not a host name or address")]
    Host,
    /// The port is not one.
    #[error("the relay's port is not a number from 1 to 65535, or two: UDP/TCP")]
    Port,
}

impl FromStr for RelayInfo {
    type Err = InvalidRelay;

    fn from_str(text: &str) -> Result<Self, InvalidRelay> {
        let (key, place) = text.split_once('@').ok_or(InvalidRelay::Shape)?;
        let key = BASE32_NOPAD.decode(key.to_ascii_uppercase().as_bytes()).map_err(|_| InvalidRelay::Key)?;
        let key = AgreementKey(key.try_into().map_err(|_| InvalidRelay::Key)?);
        let (place, tls) = match place.split_once('/') {
            Some((place, tls)) => (place, Some(parse_port(tls)?)),
            None => (place, None),
        };
        let (host, port) = split_port(place)?;
        Ok(Self { key, host: host.parse()?, port, tls: tls.filter(|tls| *tls != port) })
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
            true => write!(f, "{key}@[{}]:{}", self.host.0, self.port)?,
            false => write!(f, "{key}@{}:{}", self.host.0, self.port)?,
        }
        match self.tls {
            Some(tls) if tls != self.port => write!(f, "/{tls}"),
            Some(_) | None => Ok(()),
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
        let places = ["relay.example.com:3478", "203.0.113.7:443", "[2001:db8::1]:3478"];
        let with_tls = ["relay.example.com:3478/443", "[2001:db8::1]:3478/8443"];
        for place in places.into_iter().chain(with_tls) {
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
    fn tls_has_the_same_port_number_unless_another_is_named() {
        let key = BASE32_NOPAD.encode(&[5; 32]);
        let parsed = |place: &str| format!("{key}@{place}").parse::<RelayInfo>().expect("it is a relay");
        assert_eq!(parsed("host:3479").tls_port(), 3479);
        assert_eq!(parsed("host:3479/443").tls_port(), 443);
        assert_eq!((parsed("host/443").port, parsed("host/443").tls_port()), (DEFAULT_PORT, 443));
        assert_eq!(parsed("host:443/443"), parsed("host:443"), "one relay has one spelling");
    }

    #[test]
    fn an_entry_without_a_port_for_tls_is_encoded_as_before_there_was_one() {
        let key = BASE32_NOPAD.encode(&[5; 32]);
        for (place, fields) in [("host:1", 3), ("host:1/443", 4)] {
            let relay: RelayInfo = format!("{key}@{place}").parse().expect("it is a relay");
            let bytes = minicbor::to_vec(&relay).expect("encoding to memory");
            let counted = minicbor::Decoder::new(&bytes).map().expect("a map");
            assert_eq!(counted, Some(fields), "{place}");
            assert_eq!(minicbor::decode::<RelayInfo>(&bytes).expect("it reads back"), relay);
        }
    }

    #[test]
    fn what_is_not_a_relay_says_what_is_wrong() {
        let key = BASE32_NOPAD.encode(&[5; 32]);
        let wrong = |text: String| text.parse::<RelayInfo>().expect_err("it is not a relay");
        assert_eq!(wrong("relay.example.com:1".into()), InvalidRelay::Shape);
        assert_eq!(wrong("abc@relay.example.com:1".into()), InvalidRelay::Key);
        for host in ["a b", "-a", "a-", ".", "[g::1]", "", &"x".repeat(254)] {
            assert_eq!(wrong(format!("{key}@{host}:1")), InvalidRelay::Host, "{host}");
        }
        assert_eq!(wrong(format!("{key}@host:0")), InvalidRelay::Port);
        assert_eq!(wrong(format!("{key}@host:70000")), InvalidRelay::Port);
        for tls in ["", "0", "x", "443/443", "70000"] {
            assert_eq!(wrong(format!("{key}@host:1/{tls}")), InvalidRelay::Port, "{tls}");
        }
    }
}
