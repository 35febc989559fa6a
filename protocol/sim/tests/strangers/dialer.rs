//! A dialer that holds a secret and keeps no rule: quinn-proto with our Noise session, and nothing around it.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use peerage_engine::knock::{ConnectionIdKey, Knock};
use peerage_engine::noise::{
    LocalIdentity, NoiseClient, Pairing, PeerRejected, QUIC_VERSION, SeededRandom, VerifyPeer, endpoint_config,
};
use peerage_sim::{Character, Sim};
use quinn_proto::crypto::{self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{
    ClientConfig, ConnectError, Connection, ConnectionId, DatagramEvent, Endpoint, Side, TransportError,
};

use crate::visitor::Visitor;

const REMOTE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

/// Dials one agent through a relay, as often as it likes.
pub struct Dialer {
    visitor: Visitor,
    to: String,
    pairing: Pairing,
    identity: Arc<LocalIdentity>,
    random: SeededRandom,
    endpoint: Endpoint,
    connections: BTreeMap<usize, Connection>,
}

impl Dialer {
    /// Somebody who is `who` and may dial `to`, under the secret in `pairing`.
    pub fn arrive(sim: &mut Sim, who: &Character, to: &str, pairing: Pairing) -> Self {
        let visitor = Visitor::arrive(sim, "r1");
        sim.may_answer(to, visitor.address);
        let mut random = SeededRandom::from_seed([42; 32]);
        let ids = ConnectionIdKey::new(&mut random);
        let endpoint = Endpoint::new(Arc::new(endpoint_config(&ids, &mut random)), None, true, None);
        let identity = LocalIdentity::new(&who.instance, who.credential.clone()).expect("a credential of an agent");
        let connections = BTreeMap::new();
        Self { visitor, to: to.to_owned(), pairing, identity: Arc::new(identity), random, endpoint, connections }
    }

    /// Begins a handshake.
    pub fn dial(&mut self, sim: &mut Sim) {
        let noise = self.noise();
        self.connect(sim, noise);
    }

    /// Sends a first packet with a good knock, good keys and no message in it.
    pub fn knock_only(&mut self, sim: &mut Sim) {
        let noise = self.noise();
        let handle = self.connect(sim, Arc::new(Mute(noise)));
        self.connections.get_mut(&handle).expect("it was just made").ping();
    }

    fn noise(&mut self) -> Arc<NoiseClient> {
        let (identity, seed) = (Arc::clone(&self.identity), self.random.bytes());
        Arc::new(NoiseClient::new(&self.pairing, 0, identity, Arc::new(TakesAnybody), seed).expect("one secret"))
    }

    fn connect(&mut self, sim: &Sim, crypto: Arc<dyn crypto::ClientConfig>) -> usize {
        let knock = Knock::new(&self.pairing.directions()[0], sim.wall(), &mut self.random);
        let mut config = ClientConfig::new(crypto);
        config.version(QUIC_VERSION).initial_dst_cid_provider(Arc::new(move || ConnectionId::new(knock.as_bytes())));
        let (handle, connection) =
            self.endpoint.connect(sim.instant(), config, REMOTE, "peerage").expect("a valid dial");
        self.connections.insert(handle.0, connection);
        handle.0
    }

    /// Lets time pass.
    pub fn live(&mut self, sim: &mut Sim, time: Duration) {
        let end = sim.elapsed() + time;
        while sim.elapsed() < end {
            self.send(sim);
            self.visitor.live(sim);
            for packet in self.visitor.packets() {
                let data = BytesMut::from(&packet[..]);
                let event = self.endpoint.handle(sim.instant(), REMOTE, None, None, data, &mut Vec::new());
                if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
                    && let Some(connection) = self.connections.get_mut(&handle.0)
                {
                    connection.handle_event(event);
                }
            }
        }
    }

    fn send(&mut self, sim: &mut Sim) {
        let now = sim.instant();
        for (handle, connection) in &mut self.connections {
            if connection.poll_timeout().is_some_and(|at| at <= now) {
                connection.handle_timeout(now);
            }
            while connection.poll().is_some() {}
            while let Some(event) = connection.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(quinn_proto::ConnectionHandle(*handle), event) {
                    connection.handle_event(event);
                }
            }
            let mut packet = Vec::new();
            while connection.poll_transmit(now, 1, &mut packet).is_some() {
                self.visitor.send(sim, &self.to, &packet);
                packet.clear();
            }
        }
    }

    /// The connections on which the agent has taken us, and that are not over.
    pub fn open(&mut self) -> Vec<&mut Connection> {
        let taken = |c: &&mut Connection| c.stats().frame_rx.handshake_done > 0 && !c.is_closed();
        self.connections.values_mut().filter(taken).collect()
    }
}

struct TakesAnybody;

impl VerifyPeer for TakesAnybody {
    fn verify(&self, _: &[u8], _: &[u8; 32]) -> Result<Arc<dyn Any + Send + Sync>, PeerRejected> {
        Ok(Arc::new(()))
    }
}

/// Has keys and says nothing.
struct Mute(Arc<NoiseClient>);

struct MuteSession(Box<dyn Session>);

impl crypto::ClientConfig for Mute {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        Ok(Box::new(MuteSession(crypto::ClientConfig::start_session(Arc::clone(&self.0), version, name, params)?)))
    }
}

impl Session for MuteSession {
    fn initial_keys(&self, first_id: &ConnectionId, side: Side) -> Keys {
        self.0.initial_keys(first_id, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        true
    }

    fn read_handshake(&mut self, _: &[u8]) -> Result<bool, TransportError> {
        Ok(false)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        Ok(None)
    }

    fn write_handshake(&mut self, _: &mut Vec<u8>) -> Option<Keys> {
        None
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        None
    }

    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        false
    }

    fn export_keying_material(&self, _: &mut [u8], _: &[u8], _: &[u8]) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}
