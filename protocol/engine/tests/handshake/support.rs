//! Two agents in memory and virtual time: quinn-proto endpoints with the real knock, Doorkeeper and Noise session.
//!
//! The network is a list of datagrams that a test may read, repeat, change or lose. Agents behave as the engine's node
//! does: replies outside a connection are dropped, a knock is marked used once message 1 verified.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use peerage_engine::knock::{ConnectionIdKey, Knock, KnockTable};
use peerage_engine::noise::{
    LocalIdentity, NoiseClient, NoiseServer, Pairing, PeerRejected, SeededRandom, SharedKnocks, VerifyPeer,
    client_config, endpoint_config, listener_config, message_1_verified, server_config,
};
use peerage_model::{AgreementSecret, PairSecret, UnixTime};
use quinn_proto::{
    Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointEvent, Event, StreamId,
    TransportConfig, VarInt,
};

pub const START: UnixTime = UnixTime(1_800_000_000);
pub const SECRET: [u8; 32] = [0x5e; 32];

/// A verifier that accepts one credential with one key, and reports the credential as the peer.
pub struct Accepts {
    pub credential: Vec<u8>,
    pub key: [u8; 32],
}

impl VerifyPeer for Accepts {
    fn verify(&self, credential: &[u8], noise_static: &[u8; 32]) -> Result<Arc<dyn Any + Send + Sync>, PeerRejected> {
        if credential == self.credential && *noise_static == self.key {
            Ok(Arc::new(String::from_utf8_lossy(credential).into_owned()))
        } else {
            Err(PeerRejected("not the peer of this pair".into()))
        }
    }
}

/// What a test may set differently from a good pair.
#[derive(Clone)]
pub struct Profile {
    pub secret: [u8; 32],
    pub own_id: &'static [u8],
    pub peer_id: &'static [u8],
    pub static_key: [u8; 32],
    pub credential: &'static [u8],
    pub expects_credential: &'static [u8],
    pub expects_key: [u8; 32],
    pub seed: u8,
    pub streams: u32,
}

impl Profile {
    pub fn alice() -> Self {
        Self {
            secret: SECRET,
            own_id: b"alice",
            peer_id: b"bob",
            static_key: [0xa1; 32],
            credential: b"alice's passport",
            expects_credential: b"bob's passport",
            expects_key: public(&[0xb0; 32]),
            seed: 1,
            streams: 7,
        }
    }

    pub fn bob() -> Self {
        Self {
            secret: SECRET,
            own_id: b"bob",
            peer_id: b"alice",
            static_key: [0xb0; 32],
            credential: b"bob's passport",
            expects_credential: b"alice's passport",
            expects_key: public(&[0xa1; 32]),
            seed: 2,
            streams: 3,
        }
    }

    pub fn outgoing(&self) -> Pairing {
        Pairing::new(&[PairSecret::from_bytes(self.secret)], self.own_id, self.peer_id).expect("short ids")
    }

    pub fn incoming(&self) -> Pairing {
        Pairing::new(&[PairSecret::from_bytes(self.secret)], self.peer_id, self.own_id).expect("short ids")
    }
}

pub fn public(private: &[u8; 32]) -> [u8; 32] {
    AgreementSecret::from_bytes(*private).public().0
}

pub struct Agent {
    pub profile: Profile,
    pub address: SocketAddr,
    pub endpoint: Endpoint,
    pub connections: BTreeMap<usize, Connection>,
    pub events: Vec<Event>,
    pub knocks: SharedKnocks<&'static [u8]>,
    /// Replies that quinn-proto wanted to send outside a connection.
    pub dropped_replies: usize,
    pub refused_accepts: usize,
    pub unix: UnixTime,
    identity: Arc<LocalIdentity>,
    random: SeededRandom,
    now: Instant,
}

impl Agent {
    pub fn new(profile: Profile, port: u16, now: Instant) -> Self {
        let mut random = SeededRandom::from_seed([profile.seed; 32]);
        let ids = ConnectionIdKey::new(&mut random);
        let mut table = KnockTable::new(START);
        table.insert(profile.peer_id, profile.incoming());
        let knocks = Arc::new(Mutex::new(table));
        let config = Arc::new(endpoint_config(&ids, &mut random));
        let listener = Arc::new(listener_config(&knocks, &mut random));
        let identity =
            LocalIdentity::new(&AgreementSecret::from_bytes(profile.static_key), profile.credential).expect("short");
        Self {
            endpoint: Endpoint::new(config, Some(listener), true, None),
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            connections: BTreeMap::new(),
            events: Vec::new(),
            dropped_replies: 0,
            refused_accepts: 0,
            unix: START,
            identity: Arc::new(identity),
            profile,
            knocks,
            random,
            now,
        }
    }

    fn verifier(&self) -> Arc<Accepts> {
        let credential = self.profile.expects_credential.to_vec();
        Arc::new(Accepts { credential, key: self.profile.expects_key })
    }

    fn transport(&self) -> Arc<TransportConfig> {
        let mut transport = TransportConfig::default();
        transport.max_concurrent_bidi_streams(VarInt::from_u32(self.profile.streams));
        Arc::new(transport)
    }

    pub fn fresh_knock(&mut self) -> Knock {
        Knock::new(&self.profile.outgoing().directions()[0], self.unix, &mut self.random)
    }

    pub fn dial(&mut self, to: SocketAddr) -> usize {
        let knock = self.fresh_knock();
        self.dial_with(to, knock)
    }

    pub fn dial_with(&mut self, to: SocketAddr, knock: Knock) -> usize {
        let (identity, verifier, seed) = (Arc::clone(&self.identity), self.verifier(), self.random.bytes());
        let noise = NoiseClient::new(&self.profile.outgoing(), 0, identity, verifier, seed).expect("one secret");
        let config = client_config(noise, knock, self.transport());
        let (handle, connection) = self.endpoint.connect(self.now, config, to, "peer").expect("a valid dial");
        self.connections.insert(handle.0, connection);
        handle.0
    }

    pub fn receive(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.knocks.lock().expect("no panics while held").advance(self.unix);
        let mut reply = Vec::new();
        let data = BytesMut::from(datagram);
        match self.endpoint.handle(self.now, from, None, None, data, &mut reply) {
            Some(DatagramEvent::NewConnection(incoming)) => self.accept(incoming),
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(connection) = self.connections.get_mut(&handle.0) {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::Response(_)) => self.dropped_replies += 1,
            None => {}
        }
    }

    fn accept(&mut self, incoming: quinn_proto::Incoming) {
        let knocks = Arc::clone(&self.knocks);
        let mut table = knocks.lock().expect("no panics while held");
        let Some(known) = table.check(incoming.orig_dst_cid(), self.unix) else {
            return self.endpoint.ignore(incoming);
        };
        let (identity, verifier, seed) = (Arc::clone(&self.identity), self.verifier(), self.random.bytes());
        let pairing = self.profile.incoming();
        let noise = NoiseServer::new(&pairing, known.secret, identity, verifier, seed).expect("the matched secret");
        let config = Arc::new(server_config(noise, self.transport()));
        match self.endpoint.accept(incoming, self.now, &mut Vec::new(), Some(config)) {
            Ok((handle, connection)) if message_1_verified(&connection) => {
                table.mark_used(&known);
                self.connections.insert(handle.0, connection);
            }
            Ok((handle, _)) => {
                self.endpoint.handle_event(handle, EndpointEvent::drained());
                self.refused_accepts += 1;
            }
            Err(_) => self.refused_accepts += 1,
        }
    }

    /// Everything that this agent has to send now.
    pub fn send(&mut self) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        let handles: Vec<usize> = self.connections.keys().copied().collect();
        for handle in handles {
            let connection = self.connections.get_mut(&handle).expect("just listed");
            if connection.poll_timeout().is_some_and(|at| at <= self.now) {
                connection.handle_timeout(self.now);
            }
            let mut drained = false;
            while let Some(event) = connection.poll_endpoint_events() {
                drained |= event.is_drained();
                if let Some(event) = self.endpoint.handle_event(ConnectionHandle(handle), event) {
                    connection.handle_event(event);
                }
            }
            while let Some(event) = connection.poll() {
                self.events.push(event);
            }
            let mut buf = Vec::new();
            while connection.poll_transmit(self.now, 1, &mut buf).is_some() {
                out.push(std::mem::take(&mut buf));
            }
            if drained {
                self.connections.remove(&handle);
            }
        }
        out
    }

    pub fn connection(&mut self) -> &mut Connection {
        self.connections.values_mut().next_back().expect("a connection")
    }

    pub fn write(&mut self, data: &[u8]) -> StreamId {
        let connection = self.connection();
        let stream = connection.streams().open(Dir::Uni).expect("a stream is allowed");
        assert_eq!(connection.send_stream(stream).write(data), Ok(data.len()));
        connection.send_stream(stream).finish().expect("an open stream");
        stream
    }

    /// All bytes readable on the next stream that the peer opened.
    pub fn read_next(&mut self) -> Option<Vec<u8>> {
        let connection = self.connections.values_mut().next_back()?;
        let stream = connection.streams().accept(Dir::Uni)?;
        let mut receive = connection.recv_stream(stream);
        let mut chunks = receive.read(true).expect("a readable stream");
        let mut out = Vec::new();
        while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
            out.extend_from_slice(&chunk.bytes);
        }
        let _ = chunks.finalize();
        Some(out)
    }

    pub fn lost(&self) -> Option<&ConnectionError> {
        self.events.iter().find_map(|event| match event {
            Event::ConnectionLost { reason } => Some(reason),
            _ => None,
        })
    }

    pub fn is_established(&self) -> bool {
        self.events.iter().any(|event| matches!(event, Event::Connected))
    }
}

/// Two agents and everything that was ever sent between them.
pub struct Pair {
    pub now: Instant,
    pub client: Agent,
    pub server: Agent,
    pub from_client: Vec<Vec<u8>>,
    pub from_server: Vec<Vec<u8>>,
}

impl Pair {
    pub fn new(client: Profile, server: Profile) -> Self {
        let now = Instant::now(); // an arbitrary origin; virtual time is counted from it
        Self {
            now,
            client: Agent::new(client, 1000, now),
            server: Agent::new(server, 2000, now),
            from_client: Vec::new(),
            from_server: Vec::new(),
        }
    }

    pub fn good() -> Self {
        Self::new(Profile::alice(), Profile::bob())
    }

    pub fn dial(&mut self) {
        self.client.dial(self.server.address);
    }

    /// What the client sends now, recorded but not delivered.
    pub fn client_flight(&mut self) -> Vec<Vec<u8>> {
        let flight = self.client.send();
        self.from_client.extend_from_slice(&flight);
        flight
    }

    pub fn server_flight(&mut self) -> Vec<Vec<u8>> {
        let flight = self.server.send();
        self.from_server.extend_from_slice(&flight);
        flight
    }

    pub fn deliver_to_server(&mut self, flight: &[Vec<u8>]) {
        for datagram in flight {
            self.server.receive(self.client.address, datagram);
        }
    }

    pub fn deliver_to_client(&mut self, flight: &[Vec<u8>]) {
        for datagram in flight {
            self.client.receive(self.server.address, datagram);
        }
    }

    /// Exchanges datagrams until nobody has anything to send at this instant.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            let there = self.client_flight();
            self.deliver_to_server(&there);
            let back = self.server_flight();
            self.deliver_to_client(&back);
            if there.is_empty() && back.is_empty() {
                return;
            }
        }
        panic!("the agents never fall silent");
    }

    /// Lets `by` pass in steps that fire every timer, exchanging all datagrams.
    pub fn pass(&mut self, by: Duration) {
        for _ in 0..by.as_millis() / 10 {
            self.advance(Duration::from_millis(10));
            self.settle();
        }
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        self.client.now = self.now;
        self.server.now = self.now;
    }

    pub fn connected() -> Self {
        let mut pair = Self::good();
        pair.dial();
        pair.settle();
        assert!(pair.client.is_established() && pair.server.is_established());
        pair
    }
}
