//! One connection of a simulated agent: TCP, TLS, the upgrade, and frames (docs/spec/control-plane.md sections 1 and 2).

use std::net::SocketAddr;
use std::sync::Arc;

use peerage_model::operator::{
    ChannelBinding, EXPORTER_LABEL, HTTP_PATH, MAX_FRAME, PREFIX, ToAgent, ToOperator, UPGRADE, frame_len,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
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
    let provider = Arc::new(aws_lc_rs::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let verifier = Arc::new(Anything(schemes));
    let config = config.trying("set up TLS")?.dangerous().with_custom_certificate_verifier(verifier);
    Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
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

/// Believes every certificate: what is believed afterwards is Hello, over the session.
#[derive(Debug)]
struct Anything(Vec<SignatureScheme>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
