//! From a relay's entry to a TLS stream with OPEN on its way.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use peerage_model::AgreementSecret;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::stream::{ChannelBinding, EXPORTER_LABEL, open, prefix, proves};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, PeerIncompatible, SignatureScheme};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::proxy::{self, InvalidProxy, ProxyError, ProxySettings};
use crate::state::random;

/// As a browser offers.
const ALPN: &[u8] = b"http/1.1";
/// What the kernel takes of a stream before it is sent. More would only be delay that dropping the oldest cannot cure.
const UNSENT: u32 = 64 << 10;

/// Why there is no stream to a relay.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("cannot connect to {place}")]
    Connect {
        place: String,
        #[source]
        cause: io::Error,
    },
    #[error("cannot reach the proxy {place} that HTTPS_PROXY names")]
    ReachProxy {
        place: String,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error(transparent)]
    NoProxy(#[from] InvalidProxy),
    #[error("no TLS there; another service may have the port, or the network lets no TLS through")]
    Tls(#[source] io::Error),
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    #[error(
        "something between this machine and the relay opens TLS (or the relay has another key), so it is not used; ask \
         for an exception for the relay, or for UDP"
    )]
    NotTheRelay,
}

/// A stream whose other end has not proven to be the relay yet.
pub(super) struct Unproven {
    pub(super) tls: TlsStream<TcpStream>,
    pub(super) question: Question,
}

/// What the proof must answer.
pub(super) struct Question {
    binding: ChannelBinding,
    e: AgreementSecret,
}

impl Question {
    /// Whether `frame`, the first that came, is the relay's proof.
    pub(super) fn check(&self, frame: &[u8], relay: &RelayInfo) -> Result<(), StreamError> {
        match proves(frame, &self.binding, &relay.key, &self.e) {
            true => Ok(()),
            false => Err(StreamError::NotTheRelay),
        }
    }
}

/// TCP (through the proxy, if there is one for this host), TLS, and OPEN.
pub(super) async fn connect(
    relay: &RelayInfo,
    proxies: &ProxySettings,
    tls: &Arc<ClientConfig>,
) -> Result<Unproven, StreamError> {
    let (host, port) = (relay.host.as_str(), relay.tls_port());
    let stream = match proxies.proxy_for(host, port)? {
        None => {
            let place = format!("TCP port {port} of the relay");
            TcpStream::connect((host, port)).await.map_err(|cause| StreamError::Connect { place, cause })?
        }
        Some(proxy) => {
            let place = format!("{}:{}", proxy.host, proxy.port);
            let connected = TcpStream::connect((proxy.host.as_str(), proxy.port)).await;
            let mut stream = connected.map_err(|cause| StreamError::ReachProxy { place, cause })?;
            proxy::connect(&mut stream, proxy, host, port).await?;
            stream
        }
    };
    tune(&stream);
    let name = server_name(host).ok_or_else(|| StreamError::Tls(io::ErrorKind::InvalidInput.into()))?;
    let mut tls = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(StreamError::Tls)?;
    let mut exported = Zeroizing::new([0; 32]);
    let export = tls.get_ref().1.export_keying_material(&mut exported[..], EXPORTER_LABEL, Some(&[]));
    export.map_err(|error| StreamError::Tls(io::Error::other(error)))?;
    let e = AgreementSecret::from_bytes(*random::<32>());
    let first = open(&e.public());
    let written = async {
        tls.write_all(&[&prefix(first.len())[..], &first].concat()).await?;
        tls.flush().await
    };
    written.await.map_err(StreamError::Broken)?;
    Ok(Unproven { tls, question: Question { binding: ChannelBinding::new(exported), e } })
}

/// SNI carries names only (RFC 6066 section 3), so an address is not said.
fn server_name(host: &str) -> Option<ServerName<'static>> {
    match host.parse::<IpAddr>() {
        Ok(ip) => Some(ServerName::IpAddress(ip.into())),
        Err(_) => ServerName::try_from(host.to_owned()).ok(),
    }
}

/// Best effort: a kernel that does not know one of these works, with more delay.
fn tune(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    for set in [socket.set_tcp_nodelay(true), socket.set_tcp_notsent_lowat(UNSENT)] {
        if let Err(error) = set {
            tracing::debug!(%error, "socket option");
        }
    }
}

/// TLS 1.3 towards relays.
pub(super) fn tls() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(AnyCertificate { provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Takes any certificate, because it is not the certificate that says who is there: [`Question::check`] follows before
/// anything that the other end says is believed, and it is stricter than a certificate. It shows that the other end holds
/// the very key that is in our relay list, in this very TLS session. Used for nothing but streams to relays.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
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
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
