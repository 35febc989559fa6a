//! TLS towards ends that prove themselves inside.
//!
//! Relays and operators are known by keys of their own, not by what a certificate authority says of a name, so their
//! certificates are made at start and vouch for nothing. What counts is a proof over bytes that only the two ends of this
//! very TLS session know (its exporter, RFC 8446 section 7.5). It is stricter than a certificate: the other end holds the
//! one key that we know, and nobody sits in between.
//!
//! This is the one place where a certificate is not looked at. **Whoever connects by [`client`] believes nothing that the
//! other end says before that proof**: docs/spec/relay.md and docs/spec/control-plane.md say how it is made.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, PeerIncompatible, SignatureScheme};

/// As a browser offers.
const ALPN: &[u8] = b"http/1.1";

/// TLS 1.3 and nothing older, towards whoever is there. A session is never resumed: it would have to be proved all the same.
///
/// # Errors
/// The cryptographic provider has no TLS 1.3, which a build decides.
pub fn client() -> Result<Arc<ClientConfig>, rustls::Error> {
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

/// Takes any certificate. That the other end holds its key is checked all the same: it costs nothing beside the handshake,
/// and a session is then at least with whoever sent the certificate.
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
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    /// A certificate of one end with the key of another, as somebody has it who copied the certificate from the wire.
    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shows {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    fn made() -> (CertificateDer<'static>, Vec<u8>) {
        let made = rcgen::generate_simple_self_signed(["somebody.invalid".to_owned()]).expect("a certificate");
        (made.cert.der().clone(), made.signing_key.serialize_der())
    }

    /// Both ends in memory, until neither has anything to say.
    fn shake_hands(certificate: CertificateDer<'static>, key: Vec<u8>) -> Result<[[u8; 32]; 2], rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let key = provider.key_provider.load_private_key(key).expect("a key");
        let shows = Shows(Arc::new(CertifiedKey::new(vec![certificate], key)));
        let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let server = server.expect("TLS is there").with_no_client_auth().with_cert_resolver(Arc::new(shows));
        let mut server = ServerConnection::new(Arc::new(server)).expect("an end");
        let name = ServerName::try_from("relay.example").expect("a name");
        let mut client = ClientConnection::new(client().expect("TLS 1.3 is there"), name).expect("an end");
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).expect("it is memory");
            server.read_tls(&mut &wire[..]).expect("it is memory");
            server.process_new_packets()?;
            let mut wire = Vec::new();
            server.write_tls(&mut wire).expect("it is memory");
            client.read_tls(&mut &wire[..]).expect("it is memory");
            client.process_new_packets()?;
        }
        let ours = client.export_keying_material([0; 32], b"a label", Some(&[]))?;
        Ok([ours, server.export_keying_material([0; 32], b"a label", Some(&[]))?])
    }

    #[test]
    fn any_certificate_brings_a_session_whose_exporter_both_ends_know() {
        let (certificate, key) = made();
        let [ours, theirs] = shake_hands(certificate, key).expect("nobody asks who signed it");
        assert_eq!(ours, theirs);
    }

    #[test]
    fn who_copied_a_certificate_and_has_not_its_key_is_refused() {
        let ((certificate, _), (_, key)) = (made(), made());
        let refused = shake_hands(certificate, key).expect_err("the key is another one");
        assert!(matches!(refused, rustls::Error::InvalidCertificate(_)), "{refused}");
    }
}
