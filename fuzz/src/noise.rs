//! The handshake: by its messages alone, and as packets through QUIC endpoints.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use peerage_engine::noise::{LocalIdentity, NoiseClient, NoiseServer, QUIC_VERSION};
use peerage_model::AgreementSecret;
use quinn_proto::crypto::{ClientConfig as _, ServerConfig as _, Session};
use quinn_proto::transport_parameters::TransportParameters;

use self::support::{Accepts, Pair, Profile};
use crate::feed::Feed;

#[expect(dead_code, reason = "shared with the engine's own tests, which use all of it")]
#[path = "../../protocol/engine/tests/handshake/support.rs"]
mod support;

/// One end of a handshake without packets.
struct End {
    session: Box<dyn Session>,
    /// Written and not yet read by the other, by packet number space: QUIC never joins bytes of two.
    pending: VecDeque<Vec<u8>>,
    /// Takes no more bytes: it refused some.
    dead: bool,
}

impl End {
    fn flush(&mut self) {
        // A client offers keys twice, a server three times; more would be a loop.
        for _ in 0..8 {
            let mut written = Vec::new();
            let keys = self.session.write_handshake(&mut written);
            if keys.is_none() && written.is_empty() {
                return;
            }
            if !written.is_empty() {
                self.pending.push_back(written);
            }
        }
        panic!("a session offers keys without end");
    }

    fn read(&mut self, bytes: &[u8]) {
        if !self.dead {
            self.dead = self.session.read_handshake(bytes).is_err();
        }
        if !self.dead {
            self.flush();
        }
    }

    fn exported(&self) -> [u8; 32] {
        let mut out = [0; 32];
        self.session.export_keying_material(&mut out, b"fuzz", b"").expect("an ended handshake exports");
        out
    }
}

fn client(profile: &Profile) -> End {
    let config = Arc::new(
        NoiseClient::new(&profile.outgoing(), 0, identity(profile), verifier(profile), [3; 32]).expect("one secret"),
    );
    let session = config.start_session(QUIC_VERSION, "peer", &parameters()).expect("a good config");
    End { session, pending: VecDeque::new(), dead: false }
}

fn server(profile: &Profile) -> End {
    let config = Arc::new(
        NoiseServer::new(&profile.incoming(), 0, identity(profile), verifier(profile), [4; 32]).expect("one secret"),
    );
    let session = config.start_session(QUIC_VERSION, &parameters());
    End { session, pending: VecDeque::new(), dead: false }
}

/// All defaults, which is what an empty encoding says.
fn parameters() -> TransportParameters {
    TransportParameters::read(quinn_proto::Side::Client, &mut &b""[..]).expect("nothing is demanded")
}

fn identity(profile: &Profile) -> Arc<LocalIdentity> {
    let key = AgreementSecret::from_bytes(profile.static_key);
    Arc::new(LocalIdentity::new(&key, profile.credential).expect("short"))
}

fn verifier(profile: &Profile) -> Arc<Accepts> {
    Arc::new(Accepts { credential: profile.expects_credential.to_vec(), key: profile.expects_key })
}

/// A script over two sessions whose messages go in pieces, changed or invented. Whoever ends its handshake shares keys
/// with a peer that it verified; two that heard nothing but each other, message 1 in one piece, never refuse and get the same keys.
pub fn noise_session(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut ends = [client(&Profile::alice()), server(&Profile::bob())];
    let id = quinn_proto::ConnectionId::new(&[9; 20]);
    drop(ends[0].session.initial_keys(&id, quinn_proto::Side::Client));
    drop(ends[1].session.initial_keys(&id, quinn_proto::Side::Server));
    ends[0].flush();
    let (mut honest, mut first) = (true, true);
    for _ in 0..48 {
        let (choice, from) = (feed.u8(), feed.below(2));
        let mut bytes = ends[from].pending.pop_front().unwrap_or_default();
        match choice % 4 {
            0 => {
                let rest = bytes.split_off(usize::from(feed.u8()).min(bytes.len()));
                if !rest.is_empty() {
                    // Message 1 must come whole: its knock is used up by the packet that holds it.
                    honest &= !(first && from == 0);
                    first &= from != 0;
                    ends[from].pending.push_front(rest);
                }
            }
            2 => honest &= !feed.mutate(&mut bytes),
            3 if !feed.is_empty() => {
                bytes = feed.bytes(4096).to_vec();
                honest = false;
            }
            _ => {}
        }
        first &= from != 0 || bytes.is_empty();
        // quinn-proto hands over what it has, never nothing.
        if !bytes.is_empty() {
            ends[1 - from].read(&bytes);
        }
    }
    let [client, server] = &ends;
    for end in &ends {
        assert!(end.session.is_handshaking() || end.session.peer_identity().is_some());
    }
    let both_ended = !client.session.is_handshaking() && !server.session.is_handshaking();
    if both_ended && honest {
        assert_eq!(client.exported(), server.exported());
    }
    assert!(!honest || !(client.dead || server.dead), "honest messages are read");
}

/// A script over two QUIC endpoints: datagrams repeated, changed, invented, late. An observer without the pair's secret
/// cannot open a second connection, and cannot keep an honest one from coming up.
pub fn handshake(data: &[u8]) {
    let mut feed = Feed::new(data);
    let mut pair = Pair::good();
    pair.dial();
    for _ in 0..32 {
        if feed.is_empty() {
            break;
        }
        match feed.u8() % 7 {
            0 => {
                let flight = pair.client_flight();
                pair.deliver_to_server(&flight);
            }
            1 => {
                let flight = pair.server_flight();
                pair.deliver_to_client(&flight);
            }
            2 => {
                if let Some(datagram) = changed(&pair.from_client, &mut feed) {
                    pair.deliver_to_server(&[datagram]);
                }
            }
            3 => {
                if let Some(datagram) = changed(&pair.from_server, &mut feed) {
                    pair.deliver_to_client(&[datagram]);
                }
            }
            4 => pair.server.receive(feed.address(), feed.bytes(1500)),
            5 => pair.client.receive(feed.address(), feed.bytes(1500)),
            _ => pair.advance(Duration::from_millis(u64::from(feed.u8()))),
        }
        assert!(pair.server.connections.len() <= 1, "one knock opens one connection");
    }
    if pair.client.connections.is_empty() {
        return;
    }
    pair.settle();
    pair.pass(Duration::from_secs(2));
    assert!(pair.client.is_established() && pair.server.is_established(), "an observer cannot stop a handshake");
    assert_eq!(pair.server.connections.len(), 1);
}

fn changed(recorded: &[Vec<u8>], feed: &mut Feed<'_>) -> Option<Vec<u8>> {
    let mut datagram = recorded.get(feed.below(recorded.len()))?.clone();
    feed.mutate(&mut datagram);
    Some(datagram)
}
