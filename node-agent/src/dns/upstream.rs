//! Asks another DNS server, byte for byte, and believes only an answer that fits the question.
//!
//! Off the path, a forger must guess a random id *and* the random port of a socket that the kernel has connected to the
//! server, and repeat the question (RFC 5452). A truncated answer goes back as it is: the program then asks us over TCP,
//! and we ask over TCP too. The next server is asked when one is silent, unreachable or refuses, as stub resolvers do.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::question::{Question, set_id};
use crate::state::random;

/// Largest answer taken over UDP. Servers keep to the size the program announced, usually 1232, at most 4096.
const MAX_UDP_ANSWER: usize = 8192;
/// Answers that do not fit before we take the silence of a flooded server for a no.
const MAX_MISFITS: usize = 64;

/// How the program asked, and so how we ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Asks `servers` in turn, each for at most `patience`. `None` when nobody gave any answer.
pub(super) async fn ask(
    servers: &[SocketAddr],
    transport: Transport,
    request: &[u8],
    question: &Question,
    patience: Duration,
) -> Option<Vec<u8>> {
    let mut last = None;
    for server in servers {
        let exchange = async {
            match transport {
                Transport::Udp => by_udp(*server, request, question).await,
                Transport::Tcp => by_tcp(*server, request, question).await,
            }
        };
        match timeout(patience, exchange).await {
            Ok(Ok((answer, code))) if !is_failure(code) => return Some(answer),
            Ok(Ok((answer, _))) => last = Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "upstream DNS server failed"),
            Err(_) => tracing::debug!(%server, "upstream DNS server is silent"),
        }
    }
    last
}

/// The server could not or would not; another might.
fn is_failure(code: ResponseCode) -> bool {
    [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp].contains(&code)
}

async fn by_udp(server: SocketAddr, request: &[u8], question: &Question) -> io::Result<(Vec<u8>, ResponseCode)> {
    let unspecified: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((unspecified, 0)).await?;
    socket.connect(server).await?;
    let id = random_id();
    let mut sent = request.to_vec();
    set_id(&mut sent, id);
    socket.send(&sent).await?;
    let mut answer = vec![0; MAX_UDP_ANSWER];
    for _ in 0..MAX_MISFITS {
        let length = socket.recv(&mut answer).await?;
        if let Some(code) = question.response_code(&answer[..length], id) {
            answer.truncate(length);
            set_id(&mut answer, question.header.metadata.id);
            return Ok((answer, code));
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "only answers to other questions came"))
}

async fn by_tcp(server: SocketAddr, request: &[u8], question: &Question) -> io::Result<(Vec<u8>, ResponseCode)> {
    let mut stream = TcpStream::connect(server).await?;
    let id = random_id();
    let mut sent = frame(request)?;
    set_id(&mut sent[2..], id);
    stream.write_all(&sent).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    let Some(code) = question.response_code(&answer, id) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"));
    };
    set_id(&mut answer, question.header.metadata.id);
    Ok((answer, code))
}

/// A message behind its length, as DNS over TCP has it (RFC 1035 section 4.2.2), in one buffer and so in one segment.
pub(super) fn frame(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    Ok(framed)
}

fn random_id() -> u16 {
    u16::from_be_bytes(*random())
}
