//! The DNS server on real sockets, with upstream servers that are honest, silent or lying.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use peerage_agent::address::AddressBook;
use peerage_agent::dns::{Config, HandedOn, Server, Upstreams};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::support::{fixed, listed, pattern};

const ANSWER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A server that knows `db`, with these upstreams.
async fn server(upstreams: impl IntoIterator<Item = SocketAddr>) -> SocketAddr {
    let directory = AddressBook::new().directory([listed("db", &[])]);
    let mut config = Config::new(Upstreams::fixed(upstreams));
    (config.address, config.port) = (Ipv4Addr::LOCALHOST, 0);
    config.patience = Duration::from_millis(300);
    let server = Server::bind(config, fixed(directory)).await;
    let at = server.place().borrow().clone().expect("a free port");
    tokio::spawn(server.run());
    at
}

#[tokio::test]
async fn a_port_that_was_taken_at_first_is_answered_at_once_it_is_free() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let wanted = taken.local_addr().expect("bound");
    let mut config = Config::new(Upstreams::fixed([]));
    (config.address, config.port, config.again) = (Ipv4Addr::LOCALHOST, wanted.port(), Duration::from_millis(10));
    let server = Server::bind(config, fixed(AddressBook::new().directory([listed("db", &[])]))).await;
    let mut place = server.place();
    let first = place.borrow_and_update().clone().expect("another port is free");
    assert_ne!(first, wanted);
    tokio::spawn(server.run());
    assert_eq!(ask_udp(first, &query("db")).await.metadata.response_code, ResponseCode::NoError);
    drop(taken);
    let moved = place.wait_for(|place| *place == Ok(wanted));
    let _ = tokio::time::timeout(Duration::from_secs(60), moved).await.expect("it stays").expect("it runs");
    assert_eq!(ask_udp(wanted, &query("db")).await.metadata.response_code, ResponseCode::NoError);
}

/// A server at `address` that goes on with what another one there has left.
async fn next_server(
    handed_on: &Arc<HandedOn>,
    address: SocketAddr,
    upstream: SocketAddr,
) -> tokio::task::JoinHandle<()> {
    let mut config = Config::new(Upstreams::fixed([upstream]));
    let SocketAddr::V4(at) = address else { panic!("{address} is not of IPv4") };
    (config.address, config.port, config.again) = (*at.ip(), at.port(), Duration::from_millis(10));
    // A server that was killed says nothing, however slow the machine is.
    config.patience = Duration::from_secs(600);
    config.handed_on = Some(Arc::clone(handed_on));
    let server = Server::bind(config, fixed(AddressBook::new().directory([listed("db", &[])]))).await;
    assert_eq!(*server.place().borrow(), Ok(address));
    tokio::spawn(server.run())
}

/// As when its process is killed: it receives no more, and what it had received stays without an answer.
async fn kill(server: tokio::task::JoinHandle<()>) {
    server.abort();
    let _ = server.await; // it was cancelled
}

/// One that is free for UDP and TCP and stays so: each test that asks has a `last` byte for itself.
fn free_address(last: u8) -> SocketAddr {
    let ip = Ipv4Addr::new(127, 53, 0, last);
    std::net::UdpSocket::bind((ip, 0)).and_then(|socket| socket.local_addr()).expect("a port is free")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_died_over_is_answered_by_the_next_one() {
    let (handed_on, address) = (Arc::new(HandedOn::new().expect("there is one")), free_address(1));
    let (told, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let silent = upstream(move |_| {
        told.send(()).expect("the test listens");
        Vec::new()
    });
    let first = next_server(&handed_on, address, silent.await).await;
    let asking = tokio::spawn(async move { ask_udp(address, &query("example.com.")).await });
    asked.recv().await.expect("it is passed on");
    kill(first).await;
    let _second = next_server(&handed_on, address, honest().await).await;
    assert_forwarded(&asking.await.expect("it is answered"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_while_there_is_no_server_waits_for_one() {
    let (handed_on, address) = (Arc::new(HandedOn::new().expect("there is one")), free_address(2));
    kill(next_server(&handed_on, address, honest().await).await).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    socket.send_to(&query("example.com.").to_vec().expect("encodes"), address).await.expect("sent");
    let _server = next_server(&handed_on, address, honest().await).await;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).await.expect("an answer");
    assert_forwarded(&Message::from_vec(&buffer[..length]).expect("a DNS message"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_server_answers_by_udp_at_once_where_somebody_has_taken_tcp_and_by_tcp_later() {
    let (handed_on, address) = (Arc::new(HandedOn::new().expect("there is one")), free_address(3));
    kill(next_server(&handed_on, address, honest().await).await).await;
    let taken = TcpListener::bind(address).await.expect("the server before has let go of it");
    let _server = next_server(&handed_on, address, honest().await).await;
    assert_forwarded(&ask_udp(address, &query("example.com.")).await);
    drop(taken);
    // It refuses until the server has it.
    let connected = async {
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let mut stream = tokio::time::timeout(Duration::from_secs(60), connected).await.expect("it is served in the end");
    assert_eq!(ask_tcp(&mut stream, &query("db.")).await.answers.len(), 1);
}

fn query(name: &str) -> Message {
    let mut message = Message::new(0xbeef, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    message
}

async fn ask_udp(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    socket.send_to(&message.to_vec().expect("encodes"), server).await.expect("sent");
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer).await.expect("an answer");
    assert_eq!(from, server);
    Message::from_vec(&buffer[..length]).expect("a DNS message")
}

async fn ask_tcp(stream: &mut TcpStream, message: &Message) -> Message {
    let bytes = message.to_vec().expect("encodes");
    stream.write_u16(u16::try_from(bytes.len()).expect("short")).await.expect("sent");
    stream.write_all(&bytes).await.expect("sent");
    let mut answer = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
    stream.read_exact(&mut answer).await.expect("an answer");
    Message::from_vec(&answer).expect("a DNS message")
}

fn answered(asked: &[u8]) -> Message {
    let asked = Message::from_vec(asked).expect("forwarded unchanged");
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    let name = asked.queries[0].name().clone();
    answer.add_queries(asked.queries);
    answer.add_answer(Record::from_rdata(name, 60, RData::A(A(ANSWER))));
    answer
}

/// Answers each query with what `reply` makes of it, in order.
async fn upstream(reply: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let at = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            for answer in reply(&buffer[..length]) {
                socket.send_to(&answer, from).await.expect("sent");
            }
        }
    });
    at
}

async fn honest() -> SocketAddr {
    upstream(|asked| vec![answered(asked).to_vec().expect("encodes")]).await
}

fn assert_forwarded(answer: &Message) {
    assert_eq!(answer.metadata.id, 0xbeef, "the program's own id comes back");
    assert_eq!(answer.answers.first().map(|record| &record.data), Some(&RData::A(A(ANSWER))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_name_is_answered_over_udp_and_tcp_without_any_upstream() {
    let server = server([]).await;
    let mut stream = TcpStream::connect(server).await.expect("connects");
    for name in ["db.", "db.peer.internal.", "nobody.peer.internal."] {
        let (udp, tcp) = (ask_udp(server, &query(name)).await, ask_tcp(&mut stream, &query(name)).await);
        assert_eq!(udp, tcp, "one TCP connection carries many questions");
        assert_eq!(udp.answers.is_empty(), name.starts_with("nobody"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_upstream_other_names_fail_at_once() {
    let answer = ask_udp(server([]).await, &query("example.com.")).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_names_are_asked_upstream() {
    assert_forwarded(&ask_udp(server([honest().await]).await, &query("example.com.")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_a_dead_and_a_refusing_upstream_are_passed_over() {
    let silent = upstream(|_| Vec::new()).await;
    let dead = UdpSocket::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
    let refusing = upstream(|asked| {
        let mut answer = answered(asked);
        answer.answers.clear();
        answer.metadata.response_code = ResponseCode::Refused;
        vec![answer.to_vec().expect("encodes")]
    });
    let server = server([silent, dead, refusing.await, honest().await]).await;
    assert_forwarded(&ask_udp(server, &query("example.com.")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_with_another_id_or_question_are_not_believed() {
    let lying = upstream(|asked| {
        let mut lie = answered(asked);
        lie.answers[0].data = RData::A(A(Ipv4Addr::new(203, 0, 113, 66)));
        let mut wrong_id = lie.clone();
        wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
        let mut wrong_name = lie.clone();
        wrong_name.queries[0].set_name(Name::from_ascii("example.org.").expect("a name"));
        let mut not_an_answer = lie;
        not_an_answer.metadata.message_type = MessageType::Query;
        let truth = answered(asked);
        [wrong_id, wrong_name, not_an_answer, truth].iter().map(|m| m.to_vec().expect("encodes")).collect()
    });
    assert_forwarded(&ask_udp(server([lying.await]).await, &query("example.com.")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_from_another_address_is_not_believed() {
    // The forger sees the question but has to answer from a socket of its own.
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let at = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        let (length, from) = socket.recv_from(&mut buffer).await.expect("asked");
        let forger = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let forged = answered(&buffer[..length]).to_vec().expect("encodes");
        forger.send_to(&forged, from).await.expect("sent");
        std::future::pending::<()>().await;
    });
    let answer = ask_udp(server([at]).await, &query("example.com.")).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_answer_comes_back_truncated_and_tcp_gets_it_whole() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let at = tcp.local_addr().expect("bound");
    let udp = UdpSocket::bind(at).await.expect("the same port");
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        let (length, from) = udp.recv_from(&mut buffer).await.expect("asked");
        let short = answered(&buffer[..length]).truncate();
        udp.send_to(&short.to_vec().expect("encodes"), from).await.expect("sent");
        let (mut stream, _) = tcp.accept().await.expect("asked again");
        let mut asked = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
        stream.read_exact(&mut asked).await.expect("a question");
        let whole = answered(&asked).to_vec().expect("encodes");
        stream.write_u16(u16::try_from(whole.len()).expect("short")).await.expect("sent");
        stream.write_all(&whole).await.expect("sent");
    });
    let server = server([at]).await;
    let short = ask_udp(server, &query("example.com.")).await;
    assert!(short.metadata.truncation && short.answers.is_empty());
    let mut stream = TcpStream::connect(server).await.expect("connects");
    assert_forwarded(&ask_tcp(&mut stream, &query("example.com.")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_leaves_the_server_standing() {
    let server = server([]).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    for seed in 0..500 {
        let length = usize::try_from(seed % 97).expect("small");
        socket.send_to(&pattern(seed, length), server).await.expect("sent");
        if seed % 10 == 0 {
            let mut stream = TcpStream::connect(server).await.expect("connects");
            drop(stream.write_all(&pattern(seed, 200)).await);
            // As often as this, or garbage fills the socket of a server that has no processor, and the question is dropped.
            assert_eq!(ask_udp(server, &query("db.")).await.answers.len(), 1, "after {seed} pieces of garbage");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_replaced_by_a_free_one_that_serves_both_transports() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let mut config = Config::new(Upstreams::fixed([]));
    (config.address, config.port) = (Ipv4Addr::LOCALHOST, taken.local_addr().expect("bound").port());
    let server = Server::bind(config, fixed(AddressBook::new().directory([]))).await;
    let at = server.place().borrow().clone().expect("another port");
    assert_ne!(at.port(), taken.local_addr().expect("bound").port());
    tokio::spawn(server.run());
    TcpStream::connect(at).await.expect("TCP is there, too");
}
