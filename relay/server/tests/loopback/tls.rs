//! The relay's TLS port: honest clients, those in between, and those who waste its time.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_model::relay::frame::{self, Cookie, Destination, EndpointId, Frame, Tag};
use peerage_model::relay::stream::{ChannelBinding, EXPORTER_LABEL, OPEN, PREFIX, frame_len, open, prefix, proves};
use peerage_model::{AgreementKey, AgreementSecret};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use zeroize::Zeroizing;

use crate::Running;
use crate::client::{Client, agent, authority};

/// As many segments of a tunnel as make a slow reader's queue and socket overflow.
const FLOOD: usize = 20_000;
const PACKET: &[u8] = &[0x40; 1200];

type TlsClient = StreamOwned<ClientConnection, TcpStream>;

/// A client on a stream.
struct Streamed {
    tls: TlsClient,
    id: EndpointId,
    tag: Tag,
}

fn connect_tls(to: SocketAddr) -> TlsClient {
    let config = peerage_tls::client().expect("TLS 1.3 is there");
    let name = ServerName::try_from("relay.example").expect("a name");
    let connection = ClientConnection::new(config, name).expect("a connection");
    let stream = TcpStream::connect(to).expect("the port is open");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    StreamOwned::new(connection, stream)
}

fn write_frame(tls: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    tls.write_all(&[&prefix(frame.len())[..], frame].concat())?;
    tls.flush()
}

fn read_frame(tls: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut prefix = [0; PREFIX];
    tls.read_exact(&mut prefix)?;
    let len = frame_len(&prefix).expect("a length that frames have").expect("the prefix is there");
    let mut frame = vec![0; len];
    tls.read_exact(&mut frame)?;
    Ok(frame)
}

/// Whether the other end of a new TLS session proves to be `relay`.
fn proven(tls: &mut TlsClient, relay: &AgreementKey) -> io::Result<bool> {
    let e = AgreementSecret::from_bytes([77; 32]);
    write_frame(tls, &open(&e.public()))?;
    let answer = read_frame(tls)?;
    let mut exported = Zeroizing::new([0; 32]);
    tls.conn.export_keying_material(&mut exported[..], EXPORTER_LABEL, Some(&[])).expect("the handshake is done");
    Ok(proves(&answer, &ChannelBinding::new(exported), relay, &e))
}

fn opened(relay: &Running) -> TlsClient {
    let mut tls = connect_tls(relay.tls);
    assert!(proven(&mut tls, &relay.info.key).expect("the relay answers"), "it holds the relay's key");
    tls
}

fn cookie(tls: &mut TlsClient) -> Cookie {
    write_frame(tls, &frame::hello(Tag([1; 6]))).expect("sent");
    match Frame::parse(&read_frame(tls).expect("an answer")) {
        Ok((_, Frame::Cookie { cookie, .. })) => cookie,
        other => panic!("COOKIE, not {other:?}"),
    }
}

impl Streamed {
    fn visit(relay: &Running) -> Self {
        let mut tls = opened(relay);
        let cookie = cookie(&mut tls);
        write_frame(&mut tls, &frame::visit(Tag([2; 6]), cookie, None)).expect("sent");
        match Frame::parse(&read_frame(&mut tls).expect("an answer")) {
            Ok((_, Frame::Visiting { grant, id })) => {
                assert_eq!(grant.observed, tls.sock.local_addr().expect("connected"));
                Self { id, tag: grant.tag, tls }
            }
            other => panic!("VISITING, not {other:?}"),
        }
    }

    fn send(&mut self, destination: Destination, packet: &[u8]) {
        let mut frame = vec![0; destination.header_len()];
        destination.write_header(self.tag, &mut frame);
        frame.extend_from_slice(packet);
        write_frame(&mut self.tls, &frame).expect("sent");
    }

    fn packet(&mut self) -> (EndpointId, Vec<u8>) {
        let bytes = read_frame(&mut self.tls).expect("a packet");
        match Frame::parse(&bytes) {
            Ok((tag, Frame::From { source, packet })) if tag == self.tag => (source, packet.to_vec()),
            other => panic!("FROM, not {other:?}"),
        }
    }
}

/// A bound agent on UDP and a visitor on a stream, past first contact.
fn agent_and_visitor(relay: &Running) -> (Client, Streamed) {
    let (id, instance, credential) = agent(&authority(1), "db", [10; 32]);
    let bound = Client::bind(relay.address, &relay.info.key, &instance, &credential);
    let mut visitor = Streamed::visit(relay);
    visitor.send(Destination::Route(id.routing_id()), b"\xc3hello");
    assert_eq!(bound.packet(), (visitor.id, b"\xc3hello".to_vec()));
    bound.send(Destination::Endpoint(visitor.id), b"\xc3welcome");
    assert_eq!(visitor.packet(), (bound.id, b"\xc3welcome".to_vec()));
    (bound, visitor)
}

/// Reads until the end. An error other than a reset is how a time limit of the test itself shows.
fn disconnected(stream: &mut impl Read) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => matches!(
            error.kind(),
            ErrorKind::UnexpectedEof
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
        ),
    }
}

#[test]
fn a_visitor_on_tls_and_an_agent_on_udp_exchange_packets() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let (bound, mut visitor) = agent_and_visitor(&relay);
    for number in 0..200_u8 {
        visitor.send(Destination::Endpoint(bound.id), &[0x40, number]);
        assert_eq!(bound.packet(), (visitor.id, vec![0x40, number]));
        bound.send(Destination::Endpoint(visitor.id), &[0x41, number]);
        assert_eq!(visitor.packet(), (bound.id, vec![0x41, number]));
    }
    assert!(relay.get("/metrics").contains("\npeerage_relay_tls_streams 1\n"));
}

#[test]
fn two_clients_on_tls_reach_each_other_and_several_workers_agree() {
    let relay = Running::start(&["--listen", "127.0.0.1:0", "--workers", "2"]);
    let (bound, mut visitor) = agent_and_visitor(&relay);
    let mut other = Streamed::visit(&relay);
    let frame = [Destination::Endpoint(bound.id), Destination::Endpoint(visitor.id)];
    other.send(frame[0], b"\xc3also");
    assert_eq!(bound.packet(), (other.id, b"\xc3also".to_vec()));
    visitor.send(frame[0], &[0x40; 8976]);
    let (from, packet) = {
        let mut buffer = vec![0; 16_384];
        let len = bound.socket.recv(&mut buffer).expect("a jumbo packet crosses loopback");
        match Frame::parse(&buffer[..len]) {
            Ok((_, Frame::From { source, packet })) => (source, packet.len()),
            other => panic!("FROM, not {other:?}"),
        }
    };
    assert_eq!((from, packet), (visitor.id, 8976));
}

/// Ends TLS and begins it again towards `relay`, as a middlebox that inspects traffic does.
fn middlebox(relay: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let made = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|b| b.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key))
            .expect("a configuration");
        let (stream, _) = listener.accept().expect("the client comes");
        let mut inside = StreamOwned::new(ServerConnection::new(Arc::new(config)).expect("a connection"), stream);
        let mut outside = connect_tls(relay);
        let asked = read_frame(&mut inside).expect("OPEN");
        write_frame(&mut outside, &asked).expect("passed on");
        let answered = read_frame(&mut outside).expect("PROOF");
        write_frame(&mut inside, &answered).expect("passed on");
    });
    address
}

#[test]
fn a_middlebox_that_opens_tls_cannot_pass_the_proof_on() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let mut tls = connect_tls(middlebox(relay.tls));
    assert!(!proven(&mut tls, &relay.info.key).expect("the middlebox answers"));
    let other = AgreementSecret::from_bytes([5; 32]).public();
    assert!(!proven(&mut connect_tls(relay.tls), &other).expect("the relay answers"), "it is not that relay");
}

#[test]
fn whoever_speaks_anything_else_is_disconnected() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let plain = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(relay.tls).expect("the port is open");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream.write_all(bytes).expect("sent");
        disconnected(&mut stream)
    };
    assert!(plain(b"GET / HTTP/1.1\r\nhost: relay\r\n\r\n"));
    assert!(plain(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7]), "a TLS record that is too long");

    let within_tls = |bytes: &[u8]| {
        let mut tls = connect_tls(relay.tls);
        tls.write_all(bytes).expect("sent");
        tls.flush().expect("sent");
        disconnected(&mut tls)
    };
    assert!(within_tls(b"GET / HTTP/1.1\r\nhost: relay\r\n\r\n"));
    let weak = [&prefix(OPEN)[..], &open(&AgreementKey([0; 32]))].concat();
    assert!(within_tls(&weak), "a key that leads to a known secret");
    let hello = frame::hello(Tag([1; 6]));
    assert!(within_tls(&[&prefix(hello.len())[..], &hello].concat()), "HELLO before OPEN");

    let mut tls = opened(&relay);
    tls.write_all(&[0xff, 0xff, 1, 2, 3]).expect("sent");
    tls.flush().expect("sent");
    assert!(disconnected(&mut tls), "no frame is that long");

    // The stream is counted after its socket is closed.
    wait_until("each of them is counted", || relay.metric("peerage_relay_tls_streams_failed_total") == 5);
}

#[test]
fn a_frame_that_does_not_parse_is_dropped_and_the_stream_goes_on() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let mut tls = opened(&relay);
    write_frame(&mut tls, &[9; 40]).expect("sent");
    write_frame(&mut tls, &[0; 20]).expect("sent");
    cookie(&mut tls);
}

#[test]
fn a_client_that_does_not_read_loses_its_oldest_packets_and_holds_up_nobody() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let (bound, mut slow) = agent_and_visitor(&relay);
    let mut quick = Streamed::visit(&relay);
    let (id, ..) = agent(&authority(1), "db", [10; 32]);
    quick.send(Destination::Route(id.routing_id()), b"\xc3me too");
    assert_eq!(bound.packet(), (quick.id, b"\xc3me too".to_vec()));
    for round in 0..FLOOD {
        let number = u32::try_from(round).expect("small").to_be_bytes();
        bound.send(Destination::Endpoint(slow.id), &[PACKET, &number].concat());
        if round % 100 == 0 {
            // Keeps the sender from outrunning the relay's UDP socket, and shows that the quick one is served.
            bound.send(Destination::Endpoint(quick.id), b"\x41still here");
            assert_eq!(quick.packet(), (bound.id, b"\x41still here".to_vec()));
        }
    }
    let dropped = relay.metric("peerage_relay_tls_queue_dropped_packets_total");
    assert!(dropped > 0, "24 MB do not fit a queue and the kernel's buffers");

    // What is left comes out whole, in order, and ends with the newest.
    let mut last = None;
    while last != Some(FLOOD as u32 - 1) {
        let (from, packet) = slow.packet();
        let number = u32::from_be_bytes(*packet.last_chunk().expect("a number"));
        assert_eq!((from, packet.len()), (bound.id, PACKET.len() + 4));
        assert!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
    }
}

#[test]
fn handshakes_that_never_finish_take_limited_seats_and_lose_them_after_a_while() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let (bound, mut visitor) = agent_and_visitor(&relay);
    let silent: Vec<_> = (0..160).map(|_| TcpStream::connect(relay.tls).expect("the port is open")).collect();
    let turned_away = |relay: &Running| relay.metric("peerage_relay_tls_streams_turned_away_total");
    // One network has 128 seats for streams that have shown nothing; the visitor's may still be one of them.
    wait_until("the rest are turned away", || turned_away(&relay) >= 32);
    visitor.send(Destination::Endpoint(bound.id), b"\x40all the same");
    assert_eq!(bound.packet(), (visitor.id, b"\x40all the same".to_vec()));

    let failed = |relay: &Running| relay.metric("peerage_relay_tls_streams_failed_total");
    wait_until("their time is up", || failed(&relay) >= 127);
    drop(silent);
    Streamed::visit(&relay);
}

#[test]
fn a_stream_through_which_nobody_comes_is_closed() {
    let relay = Running::start(&["--listen", "127.0.0.1:0"]);
    let mut tls = opened(&relay);
    tls.sock.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    assert!(disconnected(&mut tls));
}

#[test]
fn the_entry_names_the_tcp_port_where_it_is_another() {
    let same = Running::start(&["--listen", "127.0.0.1:0"]);
    assert_eq!(same.info.tls_port(), same.tls.port());
    let other = Running::start(&["--listen", "127.0.0.1:0", "--tls-listen", "127.0.0.1:0", "--advertise", "127.0.0.1"]);
    assert_eq!(other.info.tls_port(), other.tls.port());
    assert!(other.info.to_string().ends_with(&format!(":{}/{}", other.address.port(), other.tls.port())));
    let mapped = ["--listen", "127.0.0.1:0", "--tls-listen", "127.0.0.1:0", "--advertise", "relay.example:3478/443"];
    assert!(Running::start(&mapped).info.to_string().ends_with("@relay.example:3478/443"));
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}
