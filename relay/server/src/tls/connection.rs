//! One stream: TLS, the proof of the relay's key, then frames in both directions until it ends or is of no use.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, ready};
use std::time::Duration;

use peerage_model::relay::stream::{ChannelBinding, EXPORTER_LABEL, PREFIX, frame_len, prefix, proof, read_open};
use peerage_relay_proto::Place;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

use super::queue::Queue;
use super::seats::Seat;
use super::{Tls, tune};
use crate::departures::{self, Outgoing};
use crate::socket::BatchSocket;
use crate::worker::{self, Shared};

/// How long TLS and OPEN may take.
const OPENING: Duration = Duration::from_secs(10);
/// A stream through which nobody has been bound or visiting for this long is closed.
const USELESS: Duration = Duration::from_secs(20);
/// How often that is looked at,
const CHECK: Duration = Duration::from_secs(10);
/// and at first: a new stream has one of few seats until it has shown that it is of use.
const FIRST_CHECKS: Duration = Duration::from_millis(250);
/// What one read takes and one write gives: a TLS record (RFC 8446 section 5.1).
const RECORD: usize = 16 << 10;

/// From accept to the end.
pub(super) async fn run(tls: &Arc<Tls>, stream: TcpStream, place: Place, seat: Seat) {
    tune(&stream);
    let opened = match timeout(OPENING, open(tls, stream)).await {
        Ok(opened) => opened,
        Err(elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)),
    };
    match opened {
        Ok((stream, rest)) => match exchange(tls, stream, rest, place, seat).await {
            Ok(()) => tracing::trace!("stream ended"),
            Err(error) => tracing::debug!(%error, "stream ended"),
        },
        Err(error) => {
            tls.shared.stream_counters.failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%error, "not a stream of ours");
        }
    }
}

/// The TLS handshake, and OPEN answered by PROOF. Gives what came behind OPEN, too.
async fn open(tls: &Tls, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Vec<u8>)> {
    let mut stream = tls.acceptor.accept(stream).await?;
    let mut exported = Zeroizing::new([0; 32]);
    let connection = stream.get_ref().1;
    connection.export_keying_material(&mut exported[..], EXPORTER_LABEL, Some(&[])).map_err(io::Error::other)?;
    let binding = ChannelBinding::new(exported);
    let mut received = Vec::new();
    let len = loop {
        match frame_len(&received).map_err(invalid)? {
            Some(len) if received.len() >= PREFIX + len => break len,
            Some(_) | None => read_some(&mut stream, &mut received).await?,
        }
    };
    let e = read_open(&received[PREFIX..PREFIX + len]).map_err(invalid)?;
    let proof = proof(&binding, &tls.key, &e).map_err(invalid)?;
    stream.write_all(&[&prefix(proof.len())[..], &proof].concat()).await?;
    stream.flush().await?;
    received.drain(..PREFIX + len);
    Ok((stream, received))
}

async fn exchange(
    tls: &Arc<Tls>,
    stream: TlsStream<TcpStream>,
    received: Vec<u8>,
    place: Place,
    seat: Seat,
) -> io::Result<()> {
    let Place::Stream(id, _) = place else {
        return Ok(()); // streams are what is accepted here
    };
    let opened = tls.shared.streams.open(id);
    let socket = &tls.sockets[usize::try_from(id.0).unwrap_or(0) % tls.sockets.len()];
    let (reader, writer) = tokio::io::split(stream);
    let answered = Notify::new();
    tokio::select! {
        ended = receive(reader, received, place, socket, &tls.shared) => ended,
        ended = send(writer, &opened.queue, &answered) => ended,
        () = until_useless(&tls.shared, place, seat, &answered) => Ok(()),
    }
}

/// Hands every frame to the relay, and what it decides to whom it is for, until the stream ends.
async fn receive(
    mut reader: impl AsyncRead + Unpin,
    mut received: Vec<u8>,
    place: Place,
    socket: &BatchSocket,
    shared: &Shared,
) -> io::Result<()> {
    let mut outgoing = Vec::<Outgoing>::new();
    loop {
        let used = worker::decide_frames(shared, place, &mut received, &mut outgoing).map_err(invalid)?;
        departures::send_all(socket, shared, &received, &outgoing).await;
        received.drain(..used);
        if received.is_empty() {
            // Thousands of streams idle most of the time: they hold no buffers.
            (received, outgoing) = (Vec::new(), Vec::new());
        }
        outgoing.clear();
        read_some(&mut reader, &mut received).await?;
    }
}

/// Writes what waits, a record at a time, and tells that something was said.
async fn send(mut writer: impl AsyncWrite + Unpin, queue: &Queue, answered: &Notify) -> io::Result<()> {
    loop {
        let mut record = Vec::new();
        queue.take(&mut record, RECORD).await;
        writer.write_all(&record).await?;
        writer.flush().await?;
        answered.notify_one();
    }
}

/// Returns when nobody has been bound or visiting through the stream for a while. A binding that is silent for too long
/// ends in the relay, and by this rule here.
async fn until_useless(shared: &Shared, place: Place, mut seat: Seat, answered: &Notify) {
    let mut useful = Instant::now();
    while useful.elapsed() < USELESS {
        if seat.is_settled() {
            sleep(CHECK).await;
        } else {
            // What was said may have been BOUND: the seat is another's at once. After a restart thousands wait for one.
            let _ = timeout(FIRST_CHECKS, answered.notified()).await;
        }
        if shared.relay().knows(place) {
            useful = Instant::now();
            seat.settle();
        }
    }
}

/// Adds what one read gives to `into`. The buffer lives on the stack and only while something is there to read.
async fn read_some(reader: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>) -> io::Result<()> {
    let read = poll_fn(|cx| {
        let mut memory = [MaybeUninit::<u8>::uninit(); RECORD];
        let mut buffer = ReadBuf::uninit(&mut memory);
        ready!(Pin::new(&mut *reader).poll_read(cx, &mut buffer))?;
        into.extend_from_slice(buffer.filled());
        Poll::Ready(io::Result::Ok(buffer.filled().len()))
    });
    match read.await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
