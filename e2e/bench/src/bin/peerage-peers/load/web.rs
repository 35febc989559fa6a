//! Small HTTP requests in a closed loop: each connection asks, waits for the answer, and asks again, with a connection kept
//! or made anew each time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_bench::Result;
use peerage_bench::network::Place;

use super::PATIENCE;
use super::latencies::Latencies;

/// More than any load here has connections at once; they wait for one in turns, so that none is started for a request.
const WORKERS: usize = 96;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 64\r\n\r\n\
0123456789012345678901234567890123456789012345678901234567890123";
const KEPT: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\nuser-agent: bench\r\n\r\n";
const CLOSED: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\nuser-agent: bench\r\nconnection: close\r\n\r\n";
const END: &[u8] = b"\r\n\r\n";

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where the server is reached.
    pub to: SocketAddr,
    /// At the same time.
    pub connections: usize,
    /// Whether each request has a connection of its own.
    pub fresh: bool,
    /// How long to ask.
    pub time: Duration,
}

/// Answers.
pub fn serve(place: &Place, listener: TcpListener) -> Result<()> {
    let listener = Arc::new(listener);
    for _ in 0..WORKERS {
        let listener = Arc::clone(&listener);
        place.thread(move || {
            while let Ok((stream, _)) = listener.accept() {
                // Whoever goes away in the middle of a request is not answered.
                let _ = answer(stream);
            }
        })?;
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 1024];
    let mut length = 0;
    loop {
        match stream.read(&mut buffer[length..])? {
            0 => return Ok(()),
            read => length += read,
        }
        if !buffer[..length].ends_with(END) {
            continue;
        }
        stream.write_all(ANSWER)?;
        if &buffer[..length] == CLOSED {
            return Ok(());
        }
        length = 0;
    }
}

/// One request on a connection of its own, answered or failed within `patience` for each step.
pub fn once(to: SocketAddr, patience: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    ask(&mut stream, CLOSED)
}

/// Asks for as long as it is told to, on all connections at once. Returns how long each answer took, and all of them.
pub fn load(place: &Place, load: Load) -> Result<(Latencies, Duration)> {
    let began = Instant::now();
    let mut threads = Vec::new();
    for _ in 0..load.connections {
        threads.push(place.thread(move || if load.fresh { fresh(load, began) } else { kept(load, began) })?);
    }
    let mut all = Latencies::default();
    for thread in threads {
        all.merge(&thread.join().map_err(|_| "a client panicked")??);
    }
    Ok((all, began.elapsed()))
}

fn kept(load: Load, began: Instant) -> io::Result<Latencies> {
    let mut stream = TcpStream::connect_timeout(&load.to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut latencies = Latencies::default();
    while began.elapsed() < load.time {
        let asked = Instant::now();
        ask(&mut stream, KEPT)?;
        latencies.note(asked.elapsed());
    }
    Ok(latencies)
}

fn fresh(load: Load, began: Instant) -> io::Result<Latencies> {
    let mut latencies = Latencies::default();
    while began.elapsed() < load.time {
        let asked = Instant::now();
        once(load.to, PATIENCE)?;
        latencies.note(asked.elapsed());
    }
    Ok(latencies)
}

/// Sends a request and reads its whole answer.
fn ask(stream: &mut TcpStream, request: &[u8]) -> io::Result<()> {
    stream.write_all(request)?;
    let mut buffer = [0; ANSWER.len()];
    stream.read_exact(&mut buffer)?;
    if buffer == ANSWER { Ok(()) } else { Err(io::Error::other("that is not the answer")) }
}
