//! HTTP proxies: which one, for which hosts, and the CONNECT that opens a way through (RFC 9110 section 9.3.6).
//!
//! Settings are those of curl and most programs: `HTTPS_PROXY` or `https_proxy` names the proxy, `NO_PROXY` or `no_proxy`
//! the hosts that are reached without it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use data_encoding::BASE64;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// An HTTP proxy's port, where its URL names none.
const DEFAULT_PORT: u16 = 80;
/// The longest answer to CONNECT that is read.
const LONGEST_ANSWER: usize = 8 << 10;

/// How this agent reaches TCP ports of relays.
#[derive(Clone, Debug, Default)]
pub struct ProxySettings {
    proxy: Option<Result<Proxy, InvalidProxy>>,
    exceptions: Vec<Exception>,
}

/// An HTTP proxy.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    pub(super) host: String,
    pub(super) port: u16,
    /// What goes behind `Basic `.
    credentials: Option<String>,
}

/// Hosts that are reached without the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    All,
    /// This name and all below it.
    Domain(String),
    /// Addresses that begin with these bits.
    Network(IpAddr, u8),
}

/// A setting that names no proxy we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidProxy {
    /// Not `http://…`.
    #[error("HTTPS_PROXY must begin with http://; `{0}` proxies are not supported")]
    Scheme(String),
    /// No host, or a wrong port.
    #[error("HTTPS_PROXY must be http://[USER:PASSWORD@]HOST[:PORT]")]
    Shape,
}

/// Why there is no way through a proxy.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("the connection to the proxy failed")]
    Broken(#[source] std::io::Error),
    #[error("the proxy wants credentials (407): put them into HTTPS_PROXY, http://USER:PASSWORD@HOST:PORT")]
    WantsCredentials,
    #[error("the proxy did not accept the credentials in HTTPS_PROXY (407)")]
    WrongCredentials,
    #[error(
        "the proxy refused ({status}): it may let only port 443 through; the relay's owner can listen there (--tls-listen)"
    )]
    Refused { status: u16 },
    #[error("what HTTPS_PROXY names does not answer as an HTTP proxy")]
    NotHttp,
}

impl ProxySettings {
    /// From environment variables, read by `variable`. A proxy that we cannot use is said where one is needed, since most
    /// agents never need any; entries of NO_PROXY that mean nothing are left out, as other programs do.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Self {
        let of = |name: &str| {
            let value = variable(name).or_else(|| variable(&name.to_lowercase()));
            value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let proxy = of("HTTPS_PROXY").map(|url| url.parse());
        let exceptions = of("NO_PROXY").unwrap_or_default();
        Self { proxy, exceptions: exceptions.split(',').filter_map(Exception::parse).collect() }
    }

    /// The proxy for a host, unless it is reached without.
    pub(super) fn proxy_for(&self, host: &str, port: u16) -> Result<Option<&Proxy>, InvalidProxy> {
        let excepted = self.exceptions.iter().any(|exception| exception.covers(host, port));
        self.proxy.as_ref().filter(|_| !excepted).map(|proxy| proxy.as_ref().map_err(Clone::clone)).transpose()
    }
}

impl FromStr for Proxy {
    type Err = InvalidProxy;

    fn from_str(url: &str) -> Result<Self, InvalidProxy> {
        let rest = match url.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => return Err(InvalidProxy::Scheme(scheme.to_owned())),
            None => url,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (credentials, place) = match authority.rsplit_once('@') {
            Some((credentials, place)) => (Some(BASE64.encode(&percent_decoded(credentials))), place),
            None => (None, authority),
        };
        let (host, port) = match place.strip_prefix('[') {
            Some(v6) => v6.split_once(']').ok_or(InvalidProxy::Shape)?,
            None => place.find(':').map_or((place, ""), |at| place.split_at(at)),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(InvalidProxy::Shape)?,
            None if port.is_empty() => DEFAULT_PORT,
            None => return Err(InvalidProxy::Shape),
        };
        if host.is_empty() || !host.chars().all(|c| c.is_ascii_graphic()) {
            return Err(InvalidProxy::Shape);
        }
        Ok(Self { host: host.to_owned(), port, credentials })
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

/// RFC 3986 section 2.1; what is no escape stays as it is.
fn percent_decoded(text: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, more)) = rest.split_first() {
        let hex = more.first_chunk::<2>().filter(|_| *first == b'%');
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &more[2..] } else { more };
    }
    out
}

impl Exception {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text == "*" {
            return Some(Self { hosts: Hosts::All, port: None });
        }
        if let Some(hosts) = network(text) {
            return Some(Self { hosts, port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let hosts = network(bare).or_else(|| {
            let name = host.trim_start_matches("*.").trim_matches('.').to_ascii_lowercase();
            (!name.is_empty()).then_some(Hosts::Domain(name))
        });
        Some(Self { hosts: hosts?, port })
    }

    fn covers(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|only| only != port) {
            return false;
        }
        let address = host.parse::<IpAddr>().ok();
        match &self.hosts {
            Hosts::All => true,
            Hosts::Domain(name) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                host.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
            Hosts::Network(network, bits) => address.is_some_and(|address| is_in(address, *network, *bits)),
        }
    }
}

fn network(text: &str) -> Option<Hosts> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(all);
    (bits <= all).then_some(Hosts::Network(address, bits))
}

fn is_in(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(32 - u32::from(bits)).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Asks the proxy at the other end of `stream` for a way to `host`, whose name it looks up itself.
pub(super) async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), ProxyError> {
    let place = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n");
    if let Some(credentials) = &proxy.credentials {
        request.push_str(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await.map_err(ProxyError::Broken)?;
    match status(&answer(stream).await?).ok_or(ProxyError::NotHttp)? {
        200..=299 => Ok(()),
        407 if proxy.credentials.is_some() => Err(ProxyError::WrongCredentials),
        407 => Err(ProxyError::WantsCredentials),
        status => Err(ProxyError::Refused { status }),
    }
}

/// The head of the answer. Read byte by byte: what follows belongs to the relay, and a CONNECT has no body to skip.
async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ProxyError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        if head.len() == LONGEST_ANSWER {
            return Err(ProxyError::NotHttp);
        }
        head.push(stream.read_u8().await.map_err(ProxyError::Broken)?);
    }
    Ok(head)
}

fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r' || *byte == b'\n').next()?).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.split(' ').nth(1)?.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> ProxySettings {
        let owned: Vec<_> = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ProxySettings::from_env(move |name| owned.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()))
    }

    fn proxy(url: &str) -> Result<(String, u16, Option<String>), InvalidProxy> {
        url.parse().map(|Proxy { host, port, credentials }| (host, port, credentials))
    }

    #[test]
    fn a_proxys_url_names_host_port_and_credentials() {
        let of =
            |host: &str, port, credentials: Option<&str>| Ok((host.to_owned(), port, credentials.map(str::to_owned)));
        assert_eq!(proxy("http://proxy.example:3128"), of("proxy.example", 3128, None));
        assert_eq!(proxy("proxy.example:3128/"), of("proxy.example", 3128, None));
        assert_eq!(proxy("http://proxy.example"), of("proxy.example", 80, None));
        assert_eq!(proxy("HTTP://[2001:db8::1]:8080"), of("2001:db8::1", 8080, None));
        // RFC 7617 section 2's own example, and a password with an escaped "@".
        assert_eq!(proxy("http://Aladdin:open%20sesame@p:1"), of("p", 1, Some("QWxhZGRpbjpvcGVuIHNlc2FtZQ==")));
        assert_eq!(proxy("http://a:b%40c@p:1"), of("p", 1, Some(&BASE64.encode(b"a:b@c"))));
    }

    #[test]
    fn what_is_no_usable_proxy_is_an_error_that_says_so() {
        assert_eq!(proxy("https://proxy:3128"), Err(InvalidProxy::Scheme("https".into())));
        assert_eq!(proxy("socks5://proxy:1080"), Err(InvalidProxy::Scheme("socks5".into())));
        for wrong in ["http://", "http://:3128", "http://proxy:0", "http://proxy:x", "http://[::1", "http://a b:1"] {
            assert_eq!(proxy(wrong), Err(InvalidProxy::Shape), "{wrong}");
        }
    }

    #[test]
    fn both_spellings_count_and_emptiness_means_no_proxy() {
        let proxied = |variables: &[(&str, &str)]| settings(variables).proxy_for("relay", 443).map(|p| p.is_some());
        assert_eq!(proxied(&[]), Ok(false));
        assert_eq!(proxied(&[("HTTPS_PROXY", " ")]), Ok(false));
        for name in ["HTTPS_PROXY", "https_proxy"] {
            assert_eq!(proxied(&[(name, "http://p:1")]), Ok(true));
        }
        let unusable = [("HTTPS_PROXY", "socks5://p:1"), ("NO_PROXY", "other")];
        assert!(proxied(&unusable).is_err(), "it is said where the proxy is needed");
        assert!(settings(&unusable).proxy_for("other", 443).is_ok_and(|proxy| proxy.is_none()));
    }

    #[test]
    fn no_proxy_names_hosts_domains_networks_and_ports() {
        let list = "localhost, .corp.example,*.lab.example,10.0.0.0/8,2001:db8::/32,192.0.2.7,relay.example:443";
        let settings = settings(&[("HTTPS_PROXY", "http://p:1"), ("no_proxy", list)]);
        let direct = |host: &str, port| settings.proxy_for(host, port).is_ok_and(|proxy| proxy.is_none());
        for host in
            ["localhost", "corp.example", "a.corp.example", "x.LAB.example", "10.255.0.1", "2001:db8::5", "192.0.2.7"]
        {
            assert!(direct(host, 3478), "{host}");
        }
        for host in ["notcorp.example", "example", "11.0.0.1", "192.0.2.8", "2001:db9::5", "relay.example"] {
            assert!(!direct(host, 3478), "{host}");
        }
        assert!(direct("relay.example", 443) && direct("eu.relay.example", 443));
    }

    #[test]
    fn a_star_means_every_host() {
        let settings = settings(&[("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "*")]);
        assert!(settings.proxy_for("anything", 1).is_ok_and(|proxy| proxy.is_none()));
    }

    /// What the proxy is asked, and what comes of its answer.
    async fn ask(url: &str, host: &str, answer: &[u8]) -> (String, Result<(), ProxyError>) {
        let (mut ours, mut theirs) = tokio::io::duplex(16 << 10);
        theirs.write_all(answer).await.expect("there is room");
        let proxy: Proxy = url.parse().expect("a proxy");
        let result = connect(&mut ours, &proxy, host, 443).await;
        drop(ours);
        let mut asked = String::new();
        theirs.read_to_string(&mut asked).await.expect("text");
        (asked, result)
    }

    #[tokio::test]
    async fn connect_asks_by_name_and_with_credentials() {
        let (asked, result) = ask("http://a:b@p:1", "relay.example", b"HTTP/1.1 200 OK\r\n\r\n").await;
        assert!(result.is_ok());
        let credentials = BASE64.encode(b"a:b");
        let expected = "CONNECT relay.example:443 HTTP/1.1\r\nHost: relay.example:443\r\n";
        assert_eq!(asked, format!("{expected}Proxy-Authorization: Basic {credentials}\r\n\r\n"));
        let (asked, _) = ask("http://p:1", "2001:db8::1", b"HTTP/1.0 200 Connection established\r\n\r\n").await;
        assert!(asked.starts_with("CONNECT [2001:db8::1]:443 ") && !asked.contains("Authorization"), "{asked}");
    }

    #[tokio::test]
    async fn every_refusal_says_what_to_do() {
        let refused = |answer: &'static [u8], url: &'static str| async move {
            ask(url, "relay", answer).await.1.expect_err("it is a refusal").to_string()
        };
        let needs = b"HTTP/1.1 407 Proxy Authentication Required\r\nx: y\r\n\r\n";
        assert!(refused(needs, "http://p:1").await.contains("USER:PASSWORD"));
        assert!(refused(needs, "http://a:b@p:1").await.contains("did not accept"));
        assert!(refused(b"HTTP/1.1 403 Forbidden\r\n\r\n", "http://p:1").await.contains("403"));
        assert!(refused(b"SSH-2.0-OpenSSH\r\n\r\n", "http://p:1").await.contains("not answer as an HTTP proxy"));
        let endless: &'static [u8] = Box::leak([b'x'; 9000].to_vec().into_boxed_slice());
        assert!(refused(endless, "http://p:1").await.contains("not answer as an HTTP proxy"));
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_left_for_the_relay() {
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        theirs.write_all(b"HTTP/1.1 200 OK\r\nvia: x\r\n\r\n\x16\x03").await.expect("there is room");
        let proxy: Proxy = "http://p:1".parse().expect("a proxy");
        connect(&mut ours, &proxy, "relay", 443).await.expect("accepted");
        let mut rest = [0; 2];
        ours.read_exact(&mut rest).await.expect("it is still there");
        assert_eq!(rest, [0x16, 3]);
    }
}
