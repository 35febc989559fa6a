//! The kinds that are compared: the same transport settings with different crypto configurations.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use peerage_engine::knock::{ConnectionIdKey, Knock, KnockTable};
use peerage_engine::noise::{
    LocalIdentity, NoiseClient, NoiseServer, Pairing, PeerRejected, SeededRandom, SharedKnocks, VerifyPeer,
    client_config, endpoint_config, listener_config, message_1_verified, server_config,
};
use peerage_model::{AgreementSecret, PairSecret, UnixTime};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, Endpoint, EndpointConfig, Incoming, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};
use rustls::crypto::aws_lc_rs as provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What keys the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Our session: Noise XXpsk0, mutually authenticated, AES-256-GCM.
    Noise,
    /// rustls over aws-lc-rs, the server authenticated by a certificate, AES-256-GCM.
    Tls256,
    /// The same with AES-128-GCM.
    Tls128,
}

impl Kind {
    /// Every kind, in the table's order.
    pub const ALL: [Self; 3] = [Self::Noise, Self::Tls256, Self::Tls128];

    /// As the table and the JSON name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Noise => "noise-aes-256",
            Self::Tls256 => "tls-aes-256",
            Self::Tls128 => "tls-aes-128",
        }
    }
}

/// A client's and a server's side of one kind.
pub struct Flavor {
    inner: Inner,
    transport: Arc<TransportConfig>,
}

enum Inner {
    Noise(Box<Noise>),
    Tls { client: Arc<QuicClientConfig>, server: Arc<QuicServerConfig> },
}

impl fmt::Debug for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flavor(..)")
    }
}

struct Noise {
    pairing: Pairing,
    client: Arc<LocalIdentity>,
    server: Arc<LocalIdentity>,
    knocks: SharedKnocks<()>,
    random: Mutex<SeededRandom>,
}

const NOW: UnixTime = UnixTime(1_800_000_000);

struct AcceptAny;

impl VerifyPeer for AcceptAny {
    fn verify(&self, _: &[u8], _: &[u8; 32]) -> Result<Arc<dyn Any + Send + Sync>, PeerRejected> {
        Ok(Arc::new(()))
    }
}

impl Flavor {
    /// Sets one kind up; certificates and keys are made here and not measured.
    pub fn new(kind: Kind) -> Self {
        let inner = match kind {
            Kind::Noise => Inner::Noise(Box::new(Noise::new())),
            Kind::Tls256 => tls(provider::cipher_suite::TLS13_AES_256_GCM_SHA384),
            Kind::Tls128 => tls(provider::cipher_suite::TLS13_AES_128_GCM_SHA256),
        };
        Self { inner, transport: Arc::new(transport()) }
    }

    /// An endpoint that dials and listens.
    pub fn endpoint(&self) -> Endpoint {
        match &self.inner {
            Inner::Noise(noise) => {
                let mut random = noise.lock();
                let ids = ConnectionIdKey::new(&mut random);
                let config = Arc::new(endpoint_config(&ids, &mut random));
                let listener = Arc::new(listener_config(&noise.knocks, &mut random));
                Endpoint::new(config, Some(listener), true, None)
            }
            Inner::Tls { server, .. } => {
                let crypto: Arc<QuicServerConfig> = Arc::clone(server);
                let mut listener = ServerConfig::with_crypto(crypto);
                listener.transport_config(Arc::clone(&self.transport));
                Endpoint::new(Arc::new(EndpointConfig::default()), Some(Arc::new(listener)), true, None)
            }
        }
    }

    /// The configuration for one dial.
    pub fn dial(&self) -> ClientConfig {
        match &self.inner {
            Inner::Noise(noise) => {
                let mut random = noise.lock();
                let knock = Knock::new(&noise.pairing.directions()[0], NOW, &mut random);
                let identity = Arc::clone(&noise.client);
                let client = NoiseClient::new(&noise.pairing, 0, identity, Arc::new(AcceptAny), random.bytes());
                client_config(client.expect("one secret"), knock, Arc::clone(&self.transport))
            }
            Inner::Tls { client, .. } => {
                let crypto: Arc<QuicClientConfig> = Arc::clone(client);
                let mut config = ClientConfig::new(crypto);
                config.transport_config(Arc::clone(&self.transport));
                config
            }
        }
    }

    /// Accepts what `endpoint` announced, as an agent would.
    pub fn accept(
        &self,
        endpoint: &mut Endpoint,
        incoming: Incoming,
        now: Instant,
    ) -> Option<(ConnectionHandle, Connection)> {
        let Inner::Noise(noise) = &self.inner else {
            return endpoint.accept(incoming, now, &mut Vec::new(), None).ok();
        };
        let mut knocks = noise.knocks.lock().unwrap_or_else(PoisonError::into_inner);
        let known = knocks.check(incoming.orig_dst_cid(), NOW)?;
        let (identity, seed) = (Arc::clone(&noise.server), noise.lock().bytes());
        let server = NoiseServer::new(&noise.pairing, known.secret, identity, Arc::new(AcceptAny), seed);
        let config = server_config(server.expect("the matched secret"), Arc::clone(&self.transport));
        let accepted = endpoint.accept(incoming, now, &mut Vec::new(), Some(Arc::new(config))).ok()?;
        if message_1_verified(&accepted.1) {
            knocks.mark_used(&known);
        }
        Some(accepted)
    }
}

impl Noise {
    fn new() -> Self {
        let pairing = Pairing::new(&[PairSecret::from_bytes([1; 32])], b"client", b"server").expect("short ids");
        let mut table = KnockTable::new(NOW);
        table.insert((), pairing.clone());
        // About as long as an authority record and a passport.
        let identity = |key| LocalIdentity::new(&AgreementSecret::from_bytes([key; 32]), vec![0; 700]);
        Self {
            pairing,
            client: Arc::new(identity(2).expect("a short credential")),
            server: Arc::new(identity(3).expect("a short credential")),
            knocks: Arc::new(Mutex::new(table)),
            random: Mutex::new(SeededRandom::from_seed([4; 32])),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SeededRandom> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tls(suite: rustls::SupportedCipherSuite) -> Inner {
    let made = rcgen::generate_simple_self_signed(vec!["server".into()]).expect("a certificate");
    let certificate = CertificateDer::from(made.cert);
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key that was just made");
    let crypto = Arc::new(rustls::crypto::CryptoProvider {
        cipher_suites: vec![suite],
        kx_groups: vec![provider::kx_group::X25519], // as in Noise; a hybrid group would cost TLS more
        ..provider::default_provider()
    });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate that was just made");
    let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&crypto))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 suites")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = rustls::client::Resumption::disabled(); // every handshake is a full one, as ours are
    let mut server = rustls::ServerConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 suites")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a matching key");
    server.send_tls13_tickets = 0;
    let initial = || {
        let suite = provider::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite());
        suite.expect("the suite that QUIC's Initial packets use")
    };
    Inner::Tls {
        client: Arc::new(QuicClientConfig::with_initial(Arc::new(client), initial()).expect("the Initial suite")),
        server: Arc::new(QuicServerConfig::with_initial(Arc::new(server), initial()).expect("the Initial suite")),
    }
}

fn transport() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(1452);
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(16 << 20))
        .send_window(16 << 20)
        .initial_mtu(1452)
        .mtu_discovery_config(Some(discovery));
    transport
}
