//! The whole handshake against `docs/spec/vectors/handshake.json`, which a second implementation wrote.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use peerage_model::{AgreementSecret, PairSecret};
use quinn_proto::crypto::{ClientConfig, KeyPair, Keys, PacketKey, ServerConfig, Session};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side};
use serde_json::Value;

use super::keys::{OneRtt, SpaceSecrets};
use super::{LocalIdentity, NoiseClient, NoiseServer, Pairing, PeerRejected, QUIC_VERSION, VerifyPeer};

/// A part of a vector file, read by name; a missing or malformed field fails the test.
pub(crate) struct Vectors(Value);

impl Vectors {
    pub(crate) fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/spec/vectors").join(name);
        let text = std::fs::read_to_string(&path).expect("the vector file is in the checkout");
        Self(serde_json::from_str(&text).expect("the vector file is JSON"))
    }

    fn field(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or_else(|| panic!("field {name}"))
    }

    pub(crate) fn part(&self, name: &str) -> Self {
        Self(self.field(name).clone())
    }

    pub(crate) fn list(&self, name: &str) -> Vec<Self> {
        self.field(name).as_array().expect("a list").iter().cloned().map(Self).collect()
    }

    pub(crate) fn number(&self, name: &str) -> u64 {
        self.field(name).as_u64().expect("a number")
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let hex = self.field(name).as_str().expect("a string");
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        (0..hex.len()).step_by(2).map(byte).collect()
    }

    pub(crate) fn array<const N: usize>(&self, name: &str) -> [u8; N] {
        self.bytes(name).try_into().expect("a field of the right length")
    }
}

struct Expects {
    credential: Vec<u8>,
    key: [u8; 32],
}

impl VerifyPeer for Expects {
    fn verify(&self, credential: &[u8], key: &[u8; 32]) -> Result<Arc<dyn Any + Send + Sync>, PeerRejected> {
        assert_eq!((credential, key), (&self.credential[..], &self.key));
        Ok(Arc::new(()))
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    super::framing::write_message(message, &mut out);
    out
}

fn parameters(side: &Vectors) -> TransportParameters {
    TransportParameters::read(Side::Server, &mut &side.bytes("parameters")[..]).expect("well-formed parameters")
}

fn identity(side: &Vectors) -> Arc<LocalIdentity> {
    let identity = LocalIdentity::new(&AgreementSecret::from_bytes(side.array("static")), side.bytes("credential"));
    let identity = identity.expect("a short credential");
    assert_eq!(identity.public_key().to_vec(), side.bytes("static_public"));
    Arc::new(identity)
}

fn expects(side: &Vectors) -> Arc<Expects> {
    Arc::new(Expects { credential: side.bytes("credential"), key: side.array("static_public") })
}

fn pairing(file: &Vectors) -> Pairing {
    let secret = PairSecret::from_bytes(file.array("pair_secret"));
    Pairing::new(&[secret], &file.bytes("initiator_id"), &file.bytes("responder_id")).expect("short ids")
}

fn sessions(file: &Vectors) -> (Box<dyn Session>, Box<dyn Session>) {
    let (client, server, pairing) = (file.part("client"), file.part("server"), pairing(file));
    let dialer = NoiseClient::new(&pairing, 0, identity(&client), expects(&server), client.array("seed"));
    let listener = NoiseServer::new(&pairing, 0, identity(&server), expects(&client), server.array("seed"));
    let (dialer, listener) = (Arc::new(dialer.expect("one secret")), Arc::new(listener.expect("one secret")));
    let first_id = ConnectionId::new(&file.bytes("first_id"));
    let client_session = dialer.start_session(QUIC_VERSION, "", &parameters(&client)).expect("our version");
    let server_session = listener.start_session(QUIC_VERSION, &parameters(&server));
    let _ = client_session.initial_keys(&first_id, Side::Client);
    let _ = server_session.initial_keys(&first_id, Side::Server);
    (client_session, server_session)
}

fn write(session: &mut dyn Session) -> (Vec<u8>, Option<Keys>) {
    let mut out = Vec::new();
    let keys = session.write_handshake(&mut out);
    (out, keys)
}

/// The client's and the server's packet of a space, each sealed by its sender and opened by the other.
fn check_packets(space: &Vectors, client: &Keys, server: &Keys) {
    for (name, sender, receiver) in [("client_packet", client, server), ("server_packet", server, client)] {
        let vector = space.part(name);
        let (header, number) = (vector.bytes("header"), vector.number("packet_number"));
        let mut packet = [header.clone(), vector.bytes("plaintext"), vec![0; 16]].concat();
        sender.packet.local.encrypt(number, &mut packet, header.len());
        sender.header.local.encrypt(header.len() - 4, &mut packet);
        assert_eq!(packet, vector.bytes("packet"), "{name}");

        receiver.header.remote.decrypt(header.len() - 4, &mut packet);
        let mut payload = bytes::BytesMut::from(&packet[header.len()..]);
        receiver.packet.remote.decrypt(number, &packet[..header.len()], &mut payload).expect("it opens");
        assert_eq!(payload.to_vec(), vector.bytes("plaintext"), "{name}");
    }
}

#[test]
fn a_whole_handshake_from_fixed_seeds_agrees_with_the_specs_transcript() {
    let file = Vectors::open("handshake.json");
    let (mut client, mut server) = sessions(&file);
    let first_id = ConnectionId::new(&file.bytes("first_id"));
    check_packets(
        &file.part("initial"),
        &client.initial_keys(&first_id, Side::Client),
        &server.initial_keys(&first_id, Side::Server),
    );

    let (message_1, _) = write(&mut *client);
    assert_eq!(message_1, framed(&file.bytes("message_1")));
    server.read_handshake(&message_1).expect("message 1");
    let (random, server_keys) = write(&mut *server);
    assert_eq!(random, framed(&file.part("server").bytes("random")));
    client.read_handshake(&random).expect("the random");
    let (_, client_keys) = write(&mut *client);
    let (client_keys, server_keys) = (client_keys.expect("keys"), server_keys.expect("keys"));
    check_packets(&file.part("handshake"), &client_keys, &server_keys);

    let (message_2, _) = write(&mut *server);
    assert_eq!(message_2, framed(&file.bytes("message_2")));
    client.read_handshake(&message_2).expect("message 2");
    let (message_3, client_keys) = write(&mut *client);
    assert_eq!(message_3, framed(&file.bytes("message_3")));
    server.read_handshake(&message_3).expect("message 3");
    let (_, server_keys) = write(&mut *server);
    check_packets(&file.part("one_rtt"), &client_keys.expect("keys"), &server_keys.expect("keys"));

    for export in file.list("exports") {
        let expected = export.bytes("output");
        for session in [&client, &server] {
            let mut output = vec![0; expected.len()];
            let exported =
                session.export_keying_material(&mut output, &export.bytes("label"), &export.bytes("context"));
            assert!(exported.is_ok());
            assert_eq!(output, expected);
        }
    }
}

#[test]
fn the_secrets_of_every_space_agree_with_the_specs_vectors() {
    let file = Vectors::open("handshake.json");
    let pairing = pairing(&file);
    let direction = pairing.direction(0).expect("one secret");
    let first_id = ConnectionId::new(&file.bytes("first_id"));
    let message_1_hash = super::kdf::sha256(&file.bytes("message_1"));
    let random = file.part("server").array("random");
    let split = file.part("split");
    let mut one_rtt = OneRtt::from_split(&split.array("initiator"), &split.array("responder"));
    let check = |name: &str, secrets: &SpaceSecrets| {
        let expected = file.part(name);
        assert_eq!(secrets.client.to_vec(), expected.bytes("client_secret"), "{name}");
        assert_eq!(secrets.server.to_vec(), expected.bytes("server_secret"), "{name}");
    };
    check("initial", &SpaceSecrets::initial(direction, &first_id));
    check("handshake", &SpaceSecrets::handshake(direction, &first_id, &message_1_hash, &random));
    check("one_rtt", &one_rtt.secrets);
    assert_eq!(one_rtt.exporter.to_vec(), file.bytes("exporter_secret"));
    let _: KeyPair<Box<dyn PacketKey>> = one_rtt.update(Side::Client);
    check("one_rtt_after_update", &one_rtt.secrets);
}

/// Anybody who can open the Handshake packets can compute the handshake hash; it must not be what exports come from.
#[test]
fn nothing_is_exported_from_the_public_handshake_hash() {
    let file = Vectors::open("handshake.json");
    let hash: [u8; 32] = file.array("handshake_hash");
    let zero = [0; 32];
    for guess in [OneRtt::from_split(&hash, &hash), OneRtt::from_split(&hash, &zero), OneRtt::from_split(&zero, &hash)]
    {
        assert_ne!(guess.exporter.to_vec(), file.bytes("exporter_secret"));
    }
    // The exporter changes with either half of the split, while the transcript, and so the hash, stays what it is.
    let split = file.part("split");
    let (initiator, responder) = (split.array("initiator"), split.array("responder"));
    let exporter = OneRtt::from_split(&initiator, &responder).exporter;
    assert_eq!(exporter.to_vec(), file.bytes("exporter_secret"));
    assert_ne!(OneRtt::from_split(&zero, &responder).exporter, exporter);
    assert_ne!(OneRtt::from_split(&initiator, &zero).exporter, exporter);
}
