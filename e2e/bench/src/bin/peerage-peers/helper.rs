//! What some subjects need beside themselves, as processes of this program: a relay for plain TCP, and both ends of TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use peerage_bench::Result;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What one read takes at most.
const CHUNK: usize = 128 * 1024;
const SERVER: &str = "server";

/// `LISTEN=TO`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forward {
    listen: SocketAddr,
    to: SocketAddr,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parsed = text
            .split_once('=')
            .and_then(|(listen, to)| Some(Self { listen: listen.parse().ok()?, to: to.parse().ok()? }));
        parsed.ok_or_else(|| format!("{text} is not ADDRESS:PORT=ADDRESS:PORT"))
    }
}

/// Copies plain connections.
pub fn forward(forwards: &[Forward]) -> Result<()> {
    run(forwards, |near, to| async move { copy(near, plain(to).await?).await })
}

/// Takes TLS, and copies to plain connections. Its certificate, made for this run, is left in a file for the other end.
pub fn tls_serve(certificate: &Path, forwards: &[Forward]) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec![SERVER.into()])?;
    let own = CertificateDer::from(made.cert);
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![own.clone()], key)?;
    // Whole or not there.
    let partial = certificate.with_extension("partial");
    std::fs::write(&partial, &own)?;
    std::fs::rename(partial, certificate)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    run(forwards, move |near, to| {
        let acceptor = acceptor.clone();
        async move { copy(acceptor.accept(near).await?, plain(to).await?).await }
    })
}

/// Takes plain connections, and copies to TLS.
pub fn tls_dial(certificate: &Path, forwards: &[Forward]) -> Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(std::fs::read(certificate)?))?;
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    run(forwards, move |near, to| {
        let connector = connector.clone();
        async move {
            let name = ServerName::try_from(SERVER)?;
            copy(near, connector.connect(name, plain(to).await?).await?).await
        }
    })
}

async fn plain(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn copy(
    mut one: impl AsyncRead + AsyncWrite + Unpin,
    mut other: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<()> {
    copy_bidirectional_with_sizes(&mut one, &mut other, CHUNK, CHUNK).await?;
    Ok(())
}

/// Does `each` with every connection to any of `forwards`, for as long as this process runs.
fn run<F>(forwards: &[Forward], each: impl Fn(TcpStream, SocketAddr) -> F + Clone + Send + 'static) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut last = None;
        for forward in forwards.iter().copied() {
            let listener = TcpListener::bind(forward.listen).await?;
            let each = each.clone();
            last = Some(tokio::spawn(async move {
                loop {
                    let (near, _) = listener.accept().await?;
                    near.set_nodelay(true)?;
                    // A connection that breaks is its ends' affair.
                    tokio::spawn(each(near, forward.to));
                }
            }));
        }
        last.ok_or("nothing to forward")?.await?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_two_addresses() {
        let parsed: Forward = "127.0.0.1:1=192.0.2.1:2".parse().expect("two addresses");
        assert_eq!((parsed.listen.port(), parsed.to.port()), (1, 2));
        assert!("127.0.0.1:1".parse::<Forward>().is_err());
    }
}
