//! Somebody who holds the pair secret but is not the peer, or speaks nonsense, gets no session and no explanation.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{Accepts, Pair, Profile, SECRET, public};
use bytes::BytesMut;
use peerage_engine::noise::{
    ConfigError, LocalIdentity, MAX_CREDENTIAL, MAX_MESSAGE, NoiseClient, NoiseServer, Pairing, QUIC_VERSION,
    is_silent_end,
};
use peerage_model::{AgreementSecret, PairSecret};
use quinn_proto::crypto::{ClientConfig, ServerConfig, Session};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side};

/// Runs a dial to its end and returns the pair; neither side may be established.
fn refused(client: Profile, server: Profile) -> Pair {
    let mut pair = Pair::new(client, server);
    pair.dial();
    pair.settle();
    pair
}

#[test]
fn a_client_with_another_static_key_than_its_passport_is_dropped_in_silence() {
    let mut pair = refused(Profile { static_key: [0xee; 32], ..Profile::alice() }, Profile::bob());
    assert!(!pair.server.is_established());
    assert!(pair.server.lost().is_some_and(is_silent_end));
    let sent = pair.from_server.len();
    pair.pass(Duration::from_secs(5));
    assert_eq!(pair.from_server.len(), sent, "nothing after message 2, not even a close");
}

#[test]
fn a_client_whose_credential_the_server_rejects_is_dropped_in_silence() {
    let pair = refused(Profile { credential: b"expired passport", ..Profile::alice() }, Profile::bob());
    assert!(!pair.server.is_established());
    assert!(pair.server.lost().is_some_and(is_silent_end));
}

#[test]
fn a_server_with_another_static_key_is_dropped_before_the_client_shows_itself() {
    let pair = refused(Profile::alice(), Profile { static_key: [0xee; 32], ..Profile::bob() });
    assert!(pair.client.lost().is_some_and(is_silent_end));
    assert!(!pair.client.is_established() && !pair.server.is_established());
    assert_eq!(pair.from_client.len(), 1, "message 1 and nothing after it");
}

#[test]
fn a_server_whose_credential_the_client_rejects_is_dropped_in_silence() {
    let pair = refused(Profile::alice(), Profile { credential: b"denied instance", ..Profile::bob() });
    assert!(pair.client.lost().is_some_and(is_silent_end));
    assert_eq!(pair.from_client.len(), 1, "message 1 and nothing after it");
}

/// The two sessions of one handshake, driven by hand.
struct Sessions {
    client: Box<dyn Session>,
    server: Box<dyn Session>,
}

const FIRST_ID: [u8; 20] = [0xf1; 20];

impl Sessions {
    fn new(client: &Pairing, server: &Pairing) -> Self {
        let verifier = |profile: Profile| {
            Arc::new(Accepts { credential: profile.expects_credential.to_vec(), key: profile.expects_key })
        };
        let noise_client =
            NoiseClient::new(client, 0, identity(&Profile::alice()), verifier(Profile::alice()), [1; 32]);
        let noise_server = NoiseServer::new(server, 0, identity(&Profile::bob()), verifier(Profile::bob()), [2; 32]);
        let client = Arc::new(noise_client.expect("one secret"))
            .start_session(QUIC_VERSION, "", &idle_timeout(1111))
            .expect("our version");
        let server = Arc::new(noise_server.expect("one secret")).start_session(QUIC_VERSION, &idle_timeout(2222));
        let _ = client.initial_keys(&ConnectionId::new(&FIRST_ID), Side::Client);
        let _ = server.initial_keys(&ConnectionId::new(&FIRST_ID), Side::Server);
        Self { client, server }
    }

    fn good() -> Self {
        let pairing = Profile::alice().outgoing();
        Self::new(&pairing, &pairing)
    }

    fn message_1(&mut self) -> Vec<u8> {
        written(&mut *self.client)
    }

    /// The server's random and message 2.
    fn answer(&mut self, message_1: &[u8]) -> (Vec<u8>, Vec<u8>) {
        self.server.read_handshake(message_1).expect("message 1 is good");
        (written(&mut *self.server), written(&mut *self.server))
    }

    fn message_3(&mut self, random: &[u8], message_2: &[u8]) -> Vec<u8> {
        self.client.read_handshake(random).expect("the random is good");
        assert!(written(&mut *self.client).is_empty(), "only keys come of the random");
        self.client.read_handshake(message_2).expect("message 2 is good");
        written(&mut *self.client)
    }
}

fn identity(profile: &Profile) -> Arc<LocalIdentity> {
    let key = AgreementSecret::from_bytes(profile.static_key);
    Arc::new(LocalIdentity::new(&key, profile.credential).expect("a short credential"))
}

fn written(session: &mut dyn Session) -> Vec<u8> {
    let mut out = Vec::new();
    let _ = session.write_handshake(&mut out);
    out
}

/// Transport parameters that are told apart by their idle timeout (id 1, two-byte varint).
fn idle_timeout(milliseconds: u16) -> TransportParameters {
    let [high, low] = milliseconds.to_be_bytes();
    TransportParameters::read(Side::Server, &mut &[1, 2, high | 0x40, low][..]).expect("well-formed parameters")
}

#[test]
fn swapped_ids_in_the_prologue_fail_at_message_1() {
    let mut sessions = Sessions::new(&Profile::alice().outgoing(), &Profile::alice().incoming());
    let message_1 = sessions.message_1();
    assert!(sessions.server.read_handshake(&message_1).is_err());
}

#[test]
fn ids_cannot_be_shifted_into_one_another() {
    let secrets = [PairSecret::from_bytes(SECRET)];
    let one = Pairing::new(&secrets, b"ab", b"c").expect("short");
    let other = Pairing::new(&secrets, b"a", b"bc").expect("short");
    let mut sessions = Sessions::new(&one, &other);
    let message_1 = sessions.message_1();
    assert!(sessions.server.read_handshake(&message_1).is_err());
}

#[test]
fn transport_parameters_are_always_the_peers_and_unknown_before_they_come() {
    let encoded = |session: &dyn Session| {
        session.transport_parameters().expect("well-formed").map(|parameters| {
            let mut out = Vec::new();
            parameters.write(&mut out);
            out
        })
    };
    let expected = |milliseconds| {
        let mut out = Vec::new();
        idle_timeout(milliseconds).write(&mut out);
        Some(out)
    };
    let mut sessions = Sessions::good();
    let message_1 = sessions.message_1();
    assert_eq!(encoded(&*sessions.client), None);
    assert_eq!(encoded(&*sessions.server), None);
    let (random, message_2) = sessions.answer(&message_1);
    assert_eq!(encoded(&*sessions.server), expected(1111));
    assert_eq!(encoded(&*sessions.client), None);
    let message_3 = sessions.message_3(&random, &message_2);
    sessions.server.read_handshake(&message_3).expect("message 3 is good");
    assert_eq!(encoded(&*sessions.client), expected(2222));
    assert_eq!(encoded(&*sessions.server), expected(1111));
}

#[test]
fn a_message_reflected_to_its_sender_is_refused() {
    let mut sessions = Sessions::good();
    let message_1 = sessions.message_1();
    assert!(sessions.client.read_handshake(&message_1).is_err());
    let mut sessions = Sessions::good();
    let message_1 = sessions.message_1();
    let (_, message_2) = sessions.answer(&message_1);
    assert!(sessions.server.read_handshake(&message_2).is_err());
}

#[test]
fn an_oversize_message_is_refused_by_its_length_alone() {
    let length = u16::try_from(MAX_MESSAGE + 1).expect("fits").to_be_bytes();
    assert!(Sessions::good().server.read_handshake(&length).is_err());
    let mut sessions = Sessions::good();
    let message_1 = sessions.message_1();
    let (random, _) = sessions.answer(&message_1);
    sessions.client.read_handshake(&random).expect("the random is good");
    let _ = written(&mut *sessions.client);
    assert!(sessions.client.read_handshake(&length).is_err());
}

#[test]
fn a_message_1_that_is_cut_short_or_changed_anywhere_is_refused() {
    let message_1 = Sessions::good().message_1();
    for cut in 0..message_1.len() {
        assert!(Sessions::good().server.read_handshake(&message_1[..cut]).is_err(), "cut at {cut}");
    }
    for position in 0..message_1.len() {
        let mut changed = message_1.clone();
        changed[position] ^= 1;
        assert!(Sessions::good().server.read_handshake(&changed).is_err(), "byte {position}");
    }
}

#[test]
fn a_message_2_that_is_changed_anywhere_is_refused() {
    let mut sessions = Sessions::good();
    let message_1 = sessions.message_1();
    let (random, message_2) = sessions.answer(&message_1);
    for position in 2..message_2.len() {
        let mut client = Sessions::good();
        assert_eq!(client.message_1(), message_1, "the same seed writes the same message");
        client.client.read_handshake(&random).expect("the random is good");
        let _ = written(&mut *client.client);
        let mut changed = message_2.clone();
        changed[position] ^= 1;
        assert!(client.client.read_handshake(&changed).is_err(), "byte {position}");
        assert!(client.client.is_handshaking() && client.client.peer_identity().is_none());
    }
}

#[test]
fn a_message_3_that_is_changed_anywhere_is_refused() {
    let mut sessions = Sessions::good();
    let message_1 = sessions.message_1();
    let (random, message_2) = sessions.answer(&message_1);
    let message_3 = sessions.message_3(&random, &message_2);
    for position in 2..message_3.len() {
        let mut server = Sessions::good();
        let _ = server.answer(&message_1);
        let mut changed = message_3.clone();
        changed[position] ^= 1;
        assert!(server.server.read_handshake(&changed).is_err(), "byte {position}");
        assert!(server.server.is_handshaking() && server.server.peer_identity().is_none());
    }
}

#[test]
fn more_bytes_in_a_space_than_its_message_are_refused() {
    let mut sessions = Sessions::good();
    let mut message_1 = sessions.message_1();
    message_1.push(0);
    assert!(sessions.server.read_handshake(&message_1).is_err());
    let mut sessions = Sessions::good();
    let message_1 = sessions.message_1();
    let (random, message_2) = sessions.answer(&message_1);
    sessions.client.read_handshake(&random).expect("the random is good");
    // Message 2 must not be read before the Handshake keys are in place, for example from the same Initial packet.
    assert!(sessions.client.read_handshake(&message_2).is_err());
}

#[test]
fn a_random_of_another_length_is_refused() {
    for length in [1_u8, 31, 33] {
        let mut sessions = Sessions::good();
        let _ = sessions.message_1();
        let frame = [vec![0, length], vec![7; usize::from(length)]].concat();
        assert!(sessions.client.read_handshake(&frame).is_err(), "{length} bytes");
    }
}

#[test]
fn a_failed_session_stays_failed() {
    let mut sessions = Sessions::good();
    let message_1 = sessions.message_1();
    assert!(sessions.server.read_handshake(&[0, 1, 1]).is_err());
    assert!(sessions.server.read_handshake(&message_1).is_err());
    assert!(written(&mut *sessions.server).is_empty());
    assert!(sessions.server.next_1rtt_keys().is_none());
}

#[test]
fn a_replayed_message_1_is_answered_with_other_handshake_keys_each_time() {
    let message_1 = Sessions::good().message_1();
    let seal = |seed: u8| {
        let pairing = Profile::alice().outgoing();
        let accepts = Arc::new(Accepts { credential: Vec::new(), key: [0; 32] });
        let noise = NoiseServer::new(&pairing, 0, identity(&Profile::bob()), accepts, [seed; 32]).expect("one secret");
        let mut server = Arc::new(noise).start_session(QUIC_VERSION, &idle_timeout(1111));
        let _ = server.initial_keys(&ConnectionId::new(&FIRST_ID), Side::Server);
        server.read_handshake(&message_1).expect("message 1 is good");
        let keys = server.write_handshake(&mut Vec::new()).expect("Handshake keys");
        let mut packet = vec![0; 64];
        keys.packet.local.encrypt(0, &mut packet, 10);
        packet
    };
    assert_ne!(seal(1), seal(2));
}

fn sealed_initial(secret: [u8; 32], first_id: &[u8], source: u8) -> Vec<u8> {
    let pairing = Pairing::new(&[PairSecret::from_bytes(secret)], b"alice", b"bob").expect("short");
    let accepts = Arc::new(Accepts { credential: Vec::new(), key: public(&[1; 32]) });
    let noise = NoiseClient::new(&pairing, 0, identity(&Profile::alice()), accepts, [1; 32]).expect("one secret");
    let session = Arc::new(noise).start_session(QUIC_VERSION, "", &idle_timeout(1111)).expect("our version");
    let keys = session.initial_keys(&ConnectionId::new(first_id), Side::Client);
    let mut packet = long_header(source);
    let header_len = packet.len();
    packet.resize(header_len + 100, 0);
    keys.packet.local.encrypt(0, &mut packet, header_len);
    keys.header.local.encrypt(header_len - 4, &mut packet);
    packet
}

/// An Initial header with a four-byte packet number 0 and a one-byte source id.
fn long_header(source: u8) -> Vec<u8> {
    [&[0xc3, 0x50, 0x52, 0x47, 0x01, 0, 1, source, 0, 0x40, 104][..], &[0; 4]].concat()
}

#[test]
fn initial_keys_depend_on_the_pair_secret_the_first_id_and_the_source_id() {
    let base = sealed_initial(SECRET, &FIRST_ID, 1);
    let others = [
        sealed_initial([0; 32], &FIRST_ID, 1),
        sealed_initial(SECRET, &[0; 20], 1),
        sealed_initial(SECRET, &FIRST_ID, 2),
    ];
    for (index, other) in others.iter().enumerate() {
        let equal = base[15..].iter().zip(&other[15..]).filter(|(a, b)| a == b).count();
        assert!(equal < 8, "variant {index} shares {equal} bytes of key stream");
    }
}

#[test]
fn packet_numbers_and_flags_are_hidden_on_the_wire() {
    let packet = sealed_initial(SECRET, &FIRST_ID, 1);
    assert_ne!(packet[11..15], [0; 4], "the packet number was 0");
    let mut first_bytes: Vec<u8> = (0..32).map(|source| sealed_initial(SECRET, &FIRST_ID, source)[0]).collect();
    first_bytes.sort_unstable();
    first_bytes.dedup();
    assert!(first_bytes.len() > 8, "the low four bits take many values");
    assert!(first_bytes.iter().all(|byte| byte & 0xf0 == 0xc0), "and the others stay");
}

#[test]
fn an_initial_packet_with_a_header_cut_anywhere_fails_to_open_without_a_panic() {
    let pairing = Profile::alice().outgoing();
    let sessions = Sessions::new(&pairing, &pairing);
    let keys = sessions.server.initial_keys(&ConnectionId::new(&FIRST_ID), Side::Server);
    let header = long_header(1);
    for cut in 0..header.len() {
        let mut payload = BytesMut::from(&[0; 50][..]);
        assert!(keys.packet.remote.decrypt(0, &header[..cut], &mut payload).is_err());
    }
}

#[test]
fn the_limits_of_rfc_9001_section_6_6_are_set_in_every_space() {
    let mut sessions = Sessions::good();
    let message_1 = sessions.message_1();
    sessions.server.read_handshake(&message_1).expect("message 1 is good");
    let handshake = sessions.server.write_handshake(&mut Vec::new()).expect("Handshake keys");
    let initial = sessions.server.initial_keys(&ConnectionId::new(&FIRST_ID), Side::Server);
    for keys in [handshake, initial] {
        assert_eq!(keys.packet.local.confidentiality_limit(), 1 << 23);
        assert_eq!(keys.packet.local.integrity_limit(), 1 << 52);
    }
}

#[test]
fn no_retry_is_ever_valid_and_no_early_data_is_ever_offered() {
    let sessions = Sessions::good();
    assert!(!sessions.client.is_valid_retry(&ConnectionId::new(&FIRST_ID), &[0; 30], &[0; 40]));
    assert!(sessions.client.early_crypto().is_none() && sessions.server.early_crypto().is_none());
}

#[test]
fn a_configuration_that_could_not_be_sent_is_refused_when_it_is_made() {
    let secrets = [PairSecret::from_bytes(SECRET)];
    assert_eq!(Pairing::new(&[], b"a", b"b").err(), Some(ConfigError::NoSecret));
    assert_eq!(Pairing::new(&secrets, &[0; 513], b"b").err(), Some(ConfigError::IdTooLong { length: 513 }));
    let key = AgreementSecret::from_bytes([1; 32]);
    let long = LocalIdentity::new(&key, vec![0; MAX_CREDENTIAL + 1]).err();
    assert_eq!(long, Some(ConfigError::CredentialTooLong { length: MAX_CREDENTIAL + 1 }));
}

#[test]
fn a_request_only_session_has_an_empty_initiator_id() {
    let pairing = Pairing::new(&[PairSecret::from_bytes(SECRET)], b"", b"bob").expect("short");
    let mut sessions = Sessions::new(&pairing, &pairing);
    let message_1 = sessions.message_1();
    let (random, message_2) = sessions.answer(&message_1);
    let message_3 = sessions.message_3(&random, &message_2);
    assert!(sessions.server.read_handshake(&message_3).is_ok());
}
