//! TLS 1.3 under a certificate that is made at start and vouches for nothing: agents believe what the operator signs over
//! the session, not this certificate (docs/spec/control-plane.md section 3).

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use tokio_rustls::TlsAcceptor;

/// In the certificate; nobody checks it.
const SUBJECT: &str = "operator.invalid";

/// Why there is no TLS. Neither depends on anything a user chose.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// TLS did not take it.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

pub(super) fn acceptor() -> Result<TlsAcceptor, TlsError> {
    let made = rcgen::generate_simple_self_signed([SUBJECT.to_owned()]).map_err(TlsError::Certificate)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key))
        .map_err(TlsError::Setup)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would have to prove the authority's key all the same, and costs memory until it is.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
