//! One connection of a simulated agent: TCP, TLS, the upgrade, and frames (docs/spec/control-plane.md sections 1 and 2).

use std::net::SocketAddr;

use peerage_model::operator::{
    ChannelBinding, EXPORTER_LABEL, HTTP_PATH, MAX_FRAME, PREFIX, ToAgent, ToOperator, UPGRADE, frame_len,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use crate::failed::{Failed, Trying, ensure};

/// Longest head of an HTTP answer.
const MAX_HEAD: usize = 4096;

/// An open connection.
#[derive(Debug)]
pub struct Wire {
    /// What this TLS session is known by.
    pub binding: ChannelBinding,
    reader: Reader,
    writer: WriteHalf<TlsStream<TcpStream>>,
}

#[derive(Debug)]
struct Reader {
    stream: ReadHalf<TlsStream<TcpStream>>,
    bytes: Vec<u8>,
}

/// How TLS is set up: for all connections once.
///
/// # Errors
/// TLS 1.3 is not there.
pub fn tls() -> Result<TlsConnector, Failed> {
    peerage_tls::client().map(TlsConnector::from).trying("set up TLS")
}

impl Wire {
    /// Connects and upgrades.
    ///
    /// # Errors
    /// Nobody answers, or with something else than an upgrade; the error has the status.
    pub async fn open(to: SocketAddr, tls: &TlsConnector) -> Result<Self, Failed> {
        let tcp = TcpStream::connect(to).await.trying("reach an operator")?;
        tcp.set_nodelay(true).trying("set a socket option")?;
        let name = ServerName::try_from("operator.invalid").trying("name an operator")?;
        let mut stream = tls.connect(name, tcp).await.trying("reach an operator")?;
        let mut exported = Zeroizing::new([0; 32]);
        let session = stream.get_ref().1;
        session.export_keying_material(&mut exported[..], EXPORTER_LABEL, Some(&[])).trying("bind to a session")?;
        let request =
            format!("GET {HTTP_PATH} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.trying("ask an operator")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
            head.push(stream.read_u8().await.trying("hear an operator")?);
        }
        let head = String::from_utf8_lossy(&head);
        let status = head.lines().next().unwrap_or_default();
        ensure(status.starts_with("HTTP/1.1 101 "), || format!("the operator answers `{status}`"))?;
        let (stream, writer) = tokio::io::split(stream);
        let reader = Reader { stream, bytes: Vec::new() };
        Ok(Self { binding: ChannelBinding::new(exported), reader, writer })
    }

    /// The next message and its size. May be dropped at any time and called again.
    ///
    /// # Errors
    /// The connection ended, or what came is no message.
    pub async fn hear(&mut self) -> Result<(ToAgent, usize), Failed> {
        let Reader { stream, bytes } = &mut self.reader;
        loop {
            if let Some(prefix) = bytes.first_chunk::<PREFIX>() {
                let whole = PREFIX + frame_len(*prefix, MAX_FRAME).trying("read a frame")?;
                if bytes.len() >= whole {
                    let rest = bytes.split_off(whole);
                    let frame = std::mem::replace(bytes, rest);
                    let message = ToAgent::decode(&frame[PREFIX..]).trying("read a message")?;
                    return Ok((message.ok_or_else(|| Failed::new("a message of an unknown kind"))?, whole));
                }
            }
            let read = stream.read_buf(bytes).await.trying("hear an operator")?;
            ensure(read > 0, || "the operator hung up".into())?;
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn say(&mut self, message: &ToOperator) -> Result<(), Failed> {
        self.writer.write_all(&message.encode()).await.trying("tell an operator")?;
        self.writer.flush().await.trying("tell an operator")
    }
}
