//! From a relay's entry to a TLS stream with OPEN on its way.

use std::io;
use std::sync::Arc;

use peerage_model::AgreementSecret;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::stream::{ChannelBinding, EXPORTER_LABEL, open, prefix, proves};
use rustls::ClientConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::proxy::{self, InvalidProxy, ProxyError, ProxySettings};
use crate::state::random;
use crate::tls;

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
    config: &Arc<ClientConfig>,
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
    let name = tls::server_name(host).ok_or_else(|| StreamError::Tls(io::ErrorKind::InvalidInput.into()))?;
    let mut tls = TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map_err(StreamError::Tls)?;
    let exported = tls::exported(&tls, EXPORTER_LABEL).map_err(|error| StreamError::Tls(io::Error::other(error)))?;
    let e = AgreementSecret::from_bytes(*random::<32>());
    let first = open(&e.public());
    let written = async {
        tls.write_all(&[&prefix(first.len())[..], &first].concat()).await?;
        tls.flush().await
    };
    written.await.map_err(StreamError::Broken)?;
    Ok(Unproven { tls, question: Question { binding: ChannelBinding::new(exported), e } })
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
