//! Whole handshakes without sockets, both sides on one thread: processor time per session.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::BytesMut;
use quinn_proto::{Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointEvent, Event};

use peerage_bench::alone::flavor::{Flavor, Kind};

struct Side {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    connected: bool,
}

/// Handshakes (client's and server's work together) per second of one core.
pub fn per_second(kind: Kind, count: usize) -> f64 {
    let flavor = Flavor::new(kind);
    let mut client = Side { endpoint: flavor.endpoint(), connection: None, connected: false };
    let mut server = Side { endpoint: flavor.endpoint(), connection: None, connected: false };
    let started = Instant::now();
    for _ in 0..count {
        one(&flavor, &mut client, &mut server);
    }
    count as f64 / started.elapsed().as_secs_f64()
}

fn one(flavor: &Flavor, client: &mut Side, server: &mut Side) {
    let (here, there) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
    let now = Instant::now();
    client.connection = client.endpoint.connect(now, flavor.dial(), there, "server").ok();
    while !(client.connected && server.connected) {
        for datagram in client.send(now) {
            server.receive(flavor, here, &datagram, now);
        }
        for datagram in server.send(now) {
            client.receive(flavor, there, &datagram, now);
        }
    }
    client.forget();
    server.forget();
}

impl Side {
    fn send(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let Some((handle, connection)) = &mut self.connection else {
            return Vec::new();
        };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        while let Some(event) = connection.poll() {
            self.connected |= matches!(event, Event::Connected);
        }
        let mut out = Vec::new();
        let mut buffer = Vec::new();
        while connection.poll_transmit(now, 1, &mut buffer).is_some() {
            out.push(std::mem::take(&mut buffer));
        }
        out
    }

    fn receive(&mut self, flavor: &Flavor, from: SocketAddr, datagram: &[u8], now: Instant) {
        match self.endpoint.handle(now, from, None, None, BytesMut::from(datagram), &mut Vec::new()) {
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.connection = flavor.accept(&mut self.endpoint, incoming, now);
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut self.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn forget(&mut self) {
        self.connected = false;
        if let Some((handle, _)) = self.connection.take() {
            self.endpoint.handle_event(handle, EndpointEvent::drained());
        }
    }
}
