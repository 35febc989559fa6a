//! The relay's TLS endpoint: TLS 1.3 only, under a certificate that is made at start and vouches for nothing.
//!
//! Clients pin the relay's key by a proof inside the session, not by this certificate (`docs/spec/relay.md` section 10),
//! so nobody has to renew, install or trust one.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use tokio_rustls::TlsAcceptor;

/// What a browser or a scanner offers, too.
const ALPN: &[u8] = b"http/1.1";
/// In the certificate, which TLS 1.3 encrypts, so that only who connects reads it.
const SUBJECT: &str = "relay.invalid";

/// Why there is no endpoint. Neither depends on anything a user chose.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// TLS did not take it.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

/// An endpoint with a key and certificate of its own.
pub(crate) fn acceptor() -> Result<TlsAcceptor, EndpointError> {
    let made = rcgen::generate_simple_self_signed([SUBJECT.to_owned()]).map_err(EndpointError::Certificate)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key))
        .map_err(EndpointError::Tls)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Every stream proves the relay's key anew, so resumption would save nothing and cost memory.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
