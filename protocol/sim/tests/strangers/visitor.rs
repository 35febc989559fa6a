//! A stranger that a relay took as a visitor.

use std::net::SocketAddr;

use peerage_engine::relay::{ClientConfig, Destination, RelayClient, RelayEvent, Role};
use peerage_sim::{Packet, Sim, ms};

/// A stranger that a relay took as a visitor, so that it can send to any routing id.
pub struct Visitor {
    pub address: SocketAddr,
    relay: SocketAddr,
    client: RelayClient,
    read: usize,
    ready: bool,
    inbox: Vec<Vec<u8>>,
}

impl Visitor {
    pub fn arrive(sim: &mut Sim, relay: &str) -> Self {
        let address = sim.add_stranger();
        let (relay, info) = (sim.relay_address(relay), sim.relay_list());
        let key = info.iter().find(|r| r.host.as_str() == relay.ip().to_string()).expect("this relay").key;
        let seed = [u8::try_from(address.port() % 251).expect("below 256"); 32];
        let client = RelayClient::new(ClientConfig::new(key, Role::Visit), seed, sim.instant());
        let mut visitor = Self { address, relay, client, read: 0, ready: false, inbox: Vec::new() };
        for _ in 0..100 {
            visitor.live(sim);
        }
        assert!(visitor.ready, "the relay takes visitors");
        visitor
    }

    /// Lets ten milliseconds pass.
    pub fn live(&mut self, sim: &mut Sim) {
        let now = sim.instant();
        while let Some(packet) = sim.received_by(self.address).get(self.read) {
            self.read += 1;
            let delivered = self.client.handle_datagram(now, &packet.bytes);
            self.inbox.extend(delivered.map(|delivered| packet.bytes[delivered.packet_at..].to_vec()));
        }
        self.client.handle_timeout(now);
        while let Some(frame) = self.client.poll_transmit() {
            sim.inject(self.address, self.relay, &frame);
        }
        while let Some(event) = self.client.poll_event() {
            self.ready |= matches!(event, RelayEvent::Ready { .. });
        }
        sim.run_for(ms(10));
    }

    /// Sends a packet of the tunnel to whoever is bound as `name`.
    pub fn send(&mut self, sim: &mut Sim, name: &str, packet: &[u8]) {
        let mut frame = Vec::new();
        let to = Destination::Route(sim.id(name).routing_id());
        let wrapped = self.client.wrap(sim.instant(), to, packet, None, &mut frame);
        assert!(wrapped.is_some(), "a visitor may send");
        sim.inject(self.address, self.relay, &frame);
    }

    /// The packets that came since the last call.
    pub fn packets(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.inbox)
    }

    /// What agents answered.
    pub fn answers(&self, sim: &Sim) -> Vec<Packet> {
        sim.received_by(self.address).iter().filter(|p| p.is_relayed_data()).cloned().collect()
    }
}
