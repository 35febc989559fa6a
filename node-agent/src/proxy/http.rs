//! HTTP CONNECT, and plain requests in absolute form (`GET http://db/ HTTP/1.1`).
//!
//! A plain request is rewritten to origin form, asked to be the last of its connection, and then copied like any other
//! stream; so no second request can slip through to a peer it is not for.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::server::Clients;
use crate::forward::Local;
use crate::tunnel::DialError;

/// Largest request line and header fields together; common servers take 8 KiB.
const MAX_HEAD: usize = 16 * 1024;

/// A response without a tunnel.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    status: &'static str,
    text: String,
}

/// What an HTTP client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// A tunnel to host and port.
    Connect {
        /// Name or address.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// A request to host and port.
    Plain {
        /// Name or address.
        host: String,
        /// Never 0.
        port: u16,
        /// What they get to see.
        head: Vec<u8>,
    },
}

/// Serves one client to its end.
pub(super) async fn serve(clients: &Clients, mut stream: TcpStream, patience: Duration) -> io::Result<()> {
    let (head, rest) = match timeout(patience, read_head(&mut stream)).await {
        Ok(read) => match read? {
            Ok(read) => read,
            Err(refusal) => return refuse(&mut stream, &refusal).await,
        },
        Err(_) => return refuse(&mut stream, &refusal("408 Request Timeout", "no whole request came")).await,
    };
    let request = match parse(&head) {
        Ok(request) => request,
        Err(refusal) => return refuse(&mut stream, &refusal).await,
    };
    let (host, port) = request.target();
    let Some(peer) = clients.by_name(host) else {
        let text = format!("`{host}` is not a trusted peer of this agent; `peerage peers` lists them");
        return refuse(&mut stream, &refusal("403 Forbidden", text)).await;
    };
    let mut tunnel = match clients.outbound.open_stream(&peer, port).await {
        Ok(tunnel) => tunnel,
        Err(error) => return refuse(&mut stream, &gateway(&error)).await,
    };
    let first = match &request {
        Request::Connect { .. } => {
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            rest
        }
        Request::Plain { head, .. } => [head.as_slice(), &rest].concat(),
    };
    let mut local = Local::new(stream);
    // A refusal that is known by here comes out of the first read as well, where its reason is.
    drop(tunnel.write_all(&first).await);
    let failed = clients.outbound.converse(&peer, port, &mut local, tunnel).await;
    match (failed, request) {
        // The reason of a failed dial comes before any byte of a response, so there is still room for ours.
        (Some(error), Request::Plain { .. }) => refuse(local.finish(), &gateway(&error)).await,
        (Some(_), Request::Connect { .. }) | (None, _) => Ok(()),
    }
}

fn refusal(status: &'static str, text: impl Into<String>) -> Refusal {
    Refusal { status, text: text.into() }
}

fn gateway(error: &DialError) -> Refusal {
    let status = match error {
        DialError::NotTrusted { .. } => "403 Forbidden",
        DialError::Unreachable { .. } => "504 Gateway Timeout",
        DialError::Refused { .. } | DialError::Ended { .. } => "502 Bad Gateway",
    };
    refusal(status, error.to_string())
}

async fn refuse(stream: &mut TcpStream, refusal: &Refusal) -> io::Result<()> {
    let Refusal { status, text } = refusal;
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        text.len() + 1
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread input resets, and the client might lose the response; so read on, but not for ever.
    let drain = async {
        let mut sink = [0; 1024];
        for _ in 0..64 {
            if stream.read(&mut sink).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    timeout(Duration::from_secs(1), drain).await.unwrap_or(Ok(()))
}

/// The head up to its empty line, and what came behind it.
async fn read_head(stream: &mut TcpStream) -> io::Result<Result<(Vec<u8>, Vec<u8>), Refusal>> {
    let mut head = Vec::with_capacity(1024);
    loop {
        let seen = head.len().saturating_sub(3);
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(Err(refusal("400 Bad Request", "the request ended within its head")));
        }
        if let Some(end) = head[seen..].windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = head.split_off(seen + end + 4);
            return Ok(Ok((head, rest)));
        }
        if head.len() > MAX_HEAD {
            return Ok(Err(refusal("431 Request Header Fields Too Large", "the head is larger than 16 KiB")));
        }
    }
}

impl Request {
    fn target(&self) -> (&str, u16) {
        match self {
            Self::Connect { host, port } | Self::Plain { host, port, .. } => (host, *port),
        }
    }
}

/// Reads the head of an HTTP request, which ends in an empty line.
///
/// # Errors
/// What the client is told.
pub fn parse(head: &[u8]) -> Result<Request, Refusal> {
    let bad = |text: &str| refusal("400 Bad Request", text);
    let text = std::str::from_utf8(head).map_err(|_| bad("the head is not text"))?;
    let (line, fields) = text.split_once("\r\n").ok_or_else(|| bad("no request line"))?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad("a request line has three words"));
    };
    if !["HTTP/1.1", "HTTP/1.0"].contains(&version) {
        return Err(refusal("505 HTTP Version Not Supported", "this proxy speaks HTTP/1.1"));
    }
    if method == "CONNECT" {
        let (host, port) = split_authority(target, None).ok_or_else(|| bad("CONNECT wants host:port"))?;
        return Ok(Request::Connect { host, port });
    }
    let Some(rest) = target.strip_prefix("http://") else {
        return Err(bad("this is a proxy: ask for a whole http:// address, or CONNECT"));
    };
    let split = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(split);
    let (host, port) = split_authority(authority, Some(80)).ok_or_else(|| bad("no host in the address"))?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut out = format!("{method} {slash}{path} {version}\r\n");
    for field in fields.split("\r\n").filter(|field| !field.is_empty()) {
        let name = field.split(':').next().unwrap_or_default().to_ascii_lowercase();
        if !["connection", "keep-alive", "proxy-connection", "proxy-authorization"].contains(&name.as_str()) {
            out.push_str(field);
            out.push_str("\r\n");
        }
    }
    out.push_str("Connection: close\r\n\r\n");
    Ok(Request::Plain { host, port, head: out.into_bytes() })
}

/// `host:port`, `host` where there is a default; an IPv6 address in brackets.
fn split_authority(authority: &str, default: Option<u16>) -> Option<(String, u16)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => default?,
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, proptest};

    fn plain(head: &str) -> (String, u16, String) {
        match parse(head.as_bytes()) {
            Ok(Request::Plain { host, port, head }) => (host, port, String::from_utf8(head).expect("text")),
            other => panic!("not a plain request: {other:?}"),
        }
    }

    #[test]
    fn connect_names_host_and_port() {
        let connect = |host: &str, port| Ok(Request::Connect { host: host.into(), port });
        assert_eq!(parse(b"CONNECT db:443 HTTP/1.1\r\nHost: db\r\n\r\n"), connect("db", 443));
        assert_eq!(parse(b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n"), connect("::1", 443));
    }

    #[test]
    fn an_absolute_request_becomes_one_in_origin_form_that_is_the_last() {
        let (host, port, head) = plain(
            "GET http://db:8080/a?b HTTP/1.1\r\nHost: db:8080\r\nProxy-Connection: keep-alive\r\nConnection: x\r\n\r\n",
        );
        assert_eq!((host.as_str(), port), ("db", 8080));
        assert_eq!(head, "GET /a?b HTTP/1.1\r\nHost: db:8080\r\nConnection: close\r\n\r\n");
        assert!(plain("GET http://db HTTP/1.1\r\n\r\n").2.starts_with("GET / "));
        assert!(plain("GET http://db?q HTTP/1.1\r\n\r\n").2.starts_with("GET /?q "));
    }

    #[test]
    fn what_is_no_proxy_request_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\nHost: db\r\n\r\n",
            "GET https://db/ HTTP/1.1\r\n\r\n",
            "CONNECT db HTTP/1.1\r\n\r\n",
            "CONNECT db:0 HTTP/1.1\r\n\r\n",
            "CONNECT :80 HTTP/1.1\r\n\r\n",
            "CONNECT db:80 HTTP/2\r\n\r\n",
            "CONNECT  db:80 HTTP/1.1\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert!(parse(head.as_bytes()).is_err(), "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn heads_of_any_content_never_panic(head in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&head));
        }

        #[test]
        fn a_rewritten_head_ends_exactly_once(target in "[!-~]{0,40}", fields in "([a-zA-Z-]{1,10}: [ -~]{0,20}\r\n){0,4}") {
            if let Ok(Request::Plain { head, .. }) = parse(format!("GET http://{target} HTTP/1.1\r\n{fields}\r\n").as_bytes()) {
                let ends = head.windows(4).filter(|w| *w == b"\r\n\r\n").count();
                prop_assert!(ends == 1 && head.ends_with(b"\r\n\r\n"));
            }
        }
    }
}
