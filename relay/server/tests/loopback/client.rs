//! A client on a real socket, by hand from the codec.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use peerage_model::relay::frame::{self, Cookie, Destination, EndpointId, Frame, Tag, keys};
use peerage_model::{AgentId, AgreementKey, AgreementSecret, Authority, Credential, InstanceId, UnixTime};
use zeroize::Zeroizing;

/// A bound agent or a visitor.
pub struct Client {
    pub socket: UdpSocket,
    pub id: EndpointId,
    pub tag: Tag,
}

/// An authority made of one byte, so that a test can list its fingerprint.
pub fn authority(seed: u8) -> Authority {
    Authority::new(&Zeroizing::new([seed; 96]), now())
}

pub fn now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixTime(since.expect("after 1970").as_secs())
}

/// An agent's name, instance key and credential for the next hour.
pub fn agent(authority: &Authority, name: &str, key: [u8; 32]) -> (AgentId, AgreementSecret, Vec<u8>) {
    let id = authority.agent(name.parse().expect("a name"));
    let instance = AgreementSecret::from_bytes(key);
    let hour = Duration::from_secs(3600);
    let passport = authority.issue(&id, instance.public(), now().minus(hour), now().plus(hour));
    let credential = Credential::join(authority.record(), passport);
    (id, instance, credential)
}

pub fn socket(relay: SocketAddr) -> UdpSocket {
    let any: SocketAddr =
        if relay.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { "[::1]:0".parse().expect("an address") };
    let socket = UdpSocket::bind(any).expect("a port");
    socket.connect(relay).expect("loopback");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    socket
}

/// Sends and waits for one answer. Loopback loses nothing, so there is no retry.
pub fn ask(socket: &UdpSocket, datagram: &[u8]) -> Vec<u8> {
    socket.send(datagram).expect("sent");
    receive(socket)
}

pub fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let len = socket.recv(&mut buffer).expect("an answer within ten seconds");
    buffer[..len].to_vec()
}

pub fn cookie(socket: &UdpSocket) -> Cookie {
    match Frame::parse(&ask(socket, &frame::hello(Tag([1; 6])))) {
        Ok((_, Frame::Cookie { cookie, .. })) => cookie,
        other => panic!("COOKIE, not {other:?}"),
    }
}

impl Client {
    pub fn bind(relay: SocketAddr, key: &AgreementKey, instance: &AgreementSecret, credential: &[u8]) -> Self {
        let socket = socket(relay);
        let cookie = cookie(&socket);
        // The cookie differs per socket, so this is fresh.
        let e = AgreementSecret::from_bytes(peerage_model::id::sha256(&[b"e", instance.expose(), &cookie.0]));
        let bind = keys::bind(Tag([2; 6]), cookie, &e, key, instance, credential).expect("good keys");
        let reply = ask(&socket, &bind.frame);
        assert!(bind.session.verifies(&reply), "BOUND is authentic");
        match Frame::parse(&reply) {
            Ok((_, Frame::Bound { grant, .. })) => {
                Self { socket, id: InstanceId::of_key(&instance.public()).into(), tag: grant.tag }
            }
            other => panic!("BOUND, not {other:?}"),
        }
    }

    pub fn visit(relay: SocketAddr) -> Self {
        let socket = socket(relay);
        let cookie = cookie(&socket);
        match Frame::parse(&ask(&socket, &frame::visit(Tag([3; 6]), cookie, None))) {
            Ok((_, Frame::Visiting { grant, id })) => {
                assert_eq!(grant.observed, socket.local_addr().expect("bound"));
                Self { socket, id, tag: grant.tag }
            }
            other => panic!("VISITING, not {other:?}"),
        }
    }

    pub fn frame(&self, destination: Destination, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0; destination.header_len()];
        destination.write_header(self.tag, &mut out);
        out.extend_from_slice(packet);
        out
    }

    pub fn send(&self, destination: Destination, packet: &[u8]) {
        self.socket.send(&self.frame(destination, packet)).expect("sent");
    }

    /// The next packet, and whom it is from.
    pub fn packet(&self) -> (EndpointId, Vec<u8>) {
        let bytes = receive(&self.socket);
        match Frame::parse(&bytes) {
            Ok((tag, Frame::From { source, packet })) if tag == self.tag => (source, packet.to_vec()),
            other => panic!("FROM, not {other:?}"),
        }
    }
}
