//! One stream between two threads.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use quinn_proto::{Connection, Dir, Event, StreamId};

use super::driver::Peer;
use super::flavor::{Flavor, Kind};

/// Sends `bytes` over one stream on loopback. Returns Gb/s, from the first byte written to the last one read, and how long the
/// handshake before it took for the client.
///
/// # Errors
/// The sockets', or a stream that was cut short.
pub fn run(kind: Kind, bytes: usize) -> io::Result<(f64, Duration)> {
    let flavor = Flavor::new(kind);
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let done = AtomicBool::new(false);
    let (address, addressed) = mpsc::channel();
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&flavor, any, bytes, &done, &address));
        let to = addressed.recv().map_err(|_| io::Error::other("the server did not start"))?;
        let (started, latency) = send(&flavor, any, to, bytes, &done)?;
        let ended = server.join().map_err(|_| io::Error::other("the server panicked"))??;
        let seconds = ended.duration_since(started).as_secs_f64();
        Ok((bytes as f64 * 8.0 / seconds / 1e9, latency))
    })
}

/// Listens at `at`, says on `address` where that is, and reads until the stream ends; returns when that was.
///
/// # Errors
/// The socket's; also when not every byte has come.
pub fn serve(
    flavor: &Flavor,
    at: SocketAddr,
    bytes: usize,
    done: &AtomicBool,
    address: &mpsc::Sender<SocketAddr>,
) -> io::Result<Instant> {
    let mut peer = Peer::new(flavor, at)?;
    address.send(peer.address()?).map_err(|_| io::Error::other("nobody waits for the address"))?;
    let mut stream = None;
    let mut ended = None;
    let mut received = 0;
    while ended.is_none() {
        peer.turn(|connection| {
            if stream.is_none() {
                stream = connection.streams().accept(Dir::Uni);
            }
            if stream.is_some_and(|stream| read(connection, stream, &mut received)) {
                ended = Some(Instant::now());
            }
        })?;
    }
    if received != bytes {
        return Err(io::Error::other("the stream was cut short"));
    }
    done.store(true, Ordering::Release);
    ended.ok_or_else(|| io::Error::other("the stream did not end"))
}

/// Reads, counts and forgets what has come; true at the stream's end.
fn read(connection: &mut Connection, stream: StreamId, received: &mut usize) -> bool {
    let mut receive = connection.recv_stream(stream);
    let Ok(mut chunks) = receive.read(true) else {
        return false;
    };
    let ended = loop {
        match chunks.next(usize::MAX) {
            Ok(Some(chunk)) => *received += chunk.bytes.len(),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    let _ = chunks.finalize();
    ended
}

/// Dials from `at` and sends until `done`. Returns when the first byte was written, and how long the handshake took.
///
/// # Errors
/// The socket's.
///
/// # Panics
/// When a fresh connection has no stream to open.
pub fn send(
    flavor: &Flavor,
    at: SocketAddr,
    to: SocketAddr,
    bytes: usize,
    done: &AtomicBool,
) -> io::Result<(Instant, Duration)> {
    let mut peer = Peer::new(flavor, at)?;
    let dialed = Instant::now();
    peer.dial(to);
    while !peer.events.iter().any(|event| matches!(event, Event::Connected)) {
        peer.turn(|_| {})?;
    }
    let started = Instant::now();
    let block = vec![0x5a; 1 << 20];
    let mut left = bytes;
    let mut stream = None;
    while !done.load(Ordering::Acquire) {
        peer.turn(|connection| {
            let stream = *stream.get_or_insert_with(|| connection.streams().open(Dir::Uni).expect("a first stream"));
            left -= write(connection, stream, &block, left);
        })?;
    }
    Ok((started, started.duration_since(dialed)))
}

fn write(connection: &mut Connection, stream: StreamId, block: &[u8], left: usize) -> usize {
    let mut written = 0;
    while written < left {
        match connection.send_stream(stream).write(&block[..block.len().min(left - written)]) {
            Ok(accepted) => written += accepted,
            Err(_) => return written,
        }
    }
    if left > 0 {
        let _ = connection.send_stream(stream).finish();
    }
    written
}
