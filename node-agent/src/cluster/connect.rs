//! From an address of the operator to frames (docs/spec/control-plane.md sections 1 and 2).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use peerage_model::operator::{
    BadMessage, ChannelBinding, EXPORTER_LABEL, HTTP_PATH, MAX_FRAME, NoFrame, PREFIX, ToAgent, ToOperator, UPGRADE,
    frame_len,
};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::tls;

/// Longest head of the operator's HTTP answer.
const LONGEST_HEAD: usize = 8 << 10;

/// Where an operator is: `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// A name or an address.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
}

/// Text that does not say where an operator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an operator is written HOST:PORT, like peerage-operator.peerage-system.svc:8443")]
pub struct InvalidOperator;

impl std::str::FromStr for Operator {
    type Err = InvalidOperator;

    fn from_str(text: &str) -> Result<Self, InvalidOperator> {
        let (host, port) = text.rsplit_once(':').ok_or(InvalidOperator)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(InvalidOperator)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_v6 = bare.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
        let is_name =
            !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
        match (is_v6, is_name) {
            (true, _) => Ok(Self { host: bare.unwrap_or(host).to_owned(), port }),
            (false, true) => Ok(Self { host: host.to_owned(), port }),
            (false, false) => Err(InvalidOperator),
        }
    }
}

impl std::fmt::Display for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Why there are no frames.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("cannot connect to the operator at {place}")]
    Tcp {
        place: SocketAddr,
        #[source]
        cause: io::Error,
    },
    #[error("no TLS 1.3 at the operator's address; another service may have the port")]
    Tls(#[source] io::Error),
    #[error("the connection to the operator broke while it was being opened")]
    Broken(#[source] io::Error),
    #[error("the operator's address does not answer as an HTTP server")]
    NotHttp,
    #[error("the operator's HTTP server answered {status} where it should have upgraded to {UPGRADE}")]
    Status { status: u16, retry_after: Option<u32> },
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the connection to the operator broke")]
    Broken(#[source] io::Error),
    #[error("the operator sent what is no frame")]
    NoFrame(#[from] NoFrame),
    #[error("the operator sent what is no message")]
    BadMessage(#[from] BadMessage),
}

/// Frames both ways, with an end that has not proven itself yet.
pub(super) struct Connection {
    pub(super) binding: ChannelBinding,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
}

pub(super) struct Reader {
    stream: ReadHalf<TlsStream<TcpStream>>,
    buffer: BytesMut,
}

pub(super) struct Writer(WriteHalf<TlsStream<TcpStream>>);

/// TCP, TLS, and the upgrade.
pub(super) async fn connect(
    place: SocketAddr,
    operator: &Operator,
    config: &Arc<ClientConfig>,
) -> Result<Connection, ConnectError> {
    let tcp = TcpStream::connect(place).await.map_err(|cause| ConnectError::Tcp { place, cause })?;
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "socket option");
    }
    let name = tls::server_name(&operator.host).ok_or_else(|| ConnectError::Tls(io::ErrorKind::InvalidInput.into()))?;
    let mut stream = TlsConnector::from(Arc::clone(config)).connect(name, tcp).await.map_err(ConnectError::Tls)?;
    let exported = tls::exported(&stream, EXPORTER_LABEL);
    let binding = ChannelBinding::new(exported.map_err(|error| ConnectError::Tls(io::Error::other(error)))?);
    let request =
        format!("GET {HTTP_PATH} HTTP/1.1\r\nHost: {operator}\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(ConnectError::Broken)?;
    stream.flush().await.map_err(ConnectError::Broken)?;
    upgraded(&head(&mut stream).await?)?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Connection { binding, reader: Reader { stream: reader, buffer: BytesMut::new() }, writer: Writer(writer) })
}

/// The head of the answer, byte by byte out of TLS' own buffer: what follows is the first frame.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ConnectError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == LONGEST_HEAD {
            return Err(ConnectError::NotHttp);
        }
        head.push(stream.read_u8().await.map_err(ConnectError::Broken)?);
    }
    Ok(head)
}

/// Whether the answer is 101 for our protocol.
fn upgraded(head: &[u8]) -> Result<(), ConnectError> {
    let text = std::str::from_utf8(head).map_err(|_| ConnectError::NotHttp)?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status = status.and_then(|rest| rest.get(..3)?.parse::<u16>().ok()).ok_or(ConnectError::NotHttp)?;
    let headers: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let header = |wanted: &str| {
        let found = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.trim())
    };
    match (status, header("upgrade")) {
        (101, Some(protocol)) if protocol.eq_ignore_ascii_case(UPGRADE) => Ok(()),
        _ => {
            Err(ConnectError::Status { status, retry_after: header("retry-after").and_then(|text| text.parse().ok()) })
        }
    }
}

impl Reader {
    /// The next message of a kind that we know. May be dropped and called again: nothing is lost.
    pub(super) async fn next(&mut self) -> Result<ToAgent, ReadError> {
        loop {
            while let Some(frame) = self.frame()? {
                if let Some(message) = ToAgent::decode(&frame)? {
                    return Ok(message);
                }
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(ReadError::Broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(ReadError::Broken(error)),
            }
        }
    }

    fn frame(&mut self) -> Result<Option<BytesMut>, NoFrame> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let length = frame_len(*prefix, MAX_FRAME)?;
        if self.buffer.len() < PREFIX + length {
            self.buffer.reserve(PREFIX + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(length)))
    }
}

impl Writer {
    pub(super) async fn send(&mut self, message: &ToOperator) -> io::Result<()> {
        self.0.write_all(&message.encode()).await?;
        self.0.flush().await
    }

    /// Tells the operator that we leave.
    pub(super) async fn close(&mut self) {
        // It notices anyway.
        let _ = self.0.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_a_host_with_a_port() {
        for text in ["peerage-operator.peerage-system.svc:8443", "10.0.0.7:443", "[fd00::1]:9443"] {
            let operator: Operator = text.parse().expect("it is one");
            assert_eq!(operator.to_string(), text);
        }
        for text in ["host", "host:0", ":1", "fd00::1:9443", "a b:1", "[x]:1", "h\r\nX: y:1"] {
            assert_eq!(text.parse::<Operator>(), Err(InvalidOperator), "{text:?}");
        }
    }

    #[test]
    fn only_an_upgrade_to_our_protocol_is_one() {
        let good = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nUpgrade: peerage/1\r\n\r\n";
        assert!(upgraded(good).is_ok());
        let other = upgraded(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n");
        assert!(matches!(other, Err(ConnectError::Status { status: 101, .. })), "{other:?}");
        let busy = upgraded(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\n\r\n");
        assert!(matches!(busy, Err(ConnectError::Status { status: 503, retry_after: Some(7) })), "{busy:?}");
        for text in [&b"SSH-2.0-OpenSSH\r\n\r\n"[..], b"HTTP/1.1 \r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\xff\r\n\r\n"] {
            assert!(matches!(upgraded(text), Err(ConnectError::NotHttp)));
        }
    }
}
