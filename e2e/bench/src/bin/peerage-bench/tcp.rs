//! The programs at both ends: a server that counts, and a client that sends.
//!
//! They know nothing of Peerage; what lies between them is a matter of the address that the client connects to.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::Result;
use crate::network::Place;

/// Bytes that one call reads or writes.
const CHUNK: usize = 256 * 1024;

/// Serves `at` for as long as this process runs: reads to the end, then says how many bytes came.
pub fn serve(place: &Place, at: SocketAddr) -> Result<()> {
    let bind = move || TcpListener::bind(at);
    let listener = place.thread(bind)?.join().map_err(|_| "binding panicked")??;
    place.thread(move || {
        while let Ok((stream, _)) = listener.accept() {
            // A client that went away is its own affair.
            std::thread::spawn(move || count(stream));
        }
    })?;
    Ok(())
}

fn count(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            read => total += read as u64,
        }
    }
    stream.write_all(&total.to_be_bytes())
}

/// Sends `bytes` to `to` over one connection. Returns how long it took from the first byte until the server had counted
/// the last.
pub fn send(place: &Place, to: SocketAddr, bytes: usize) -> Result<Duration> {
    let job = move || -> io::Result<Duration> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let block = vec![0x5a; CHUNK];
        let started = Instant::now();
        let mut left = bytes;
        while left > 0 {
            let part = left.min(block.len());
            stream.write_all(&block[..part])?;
            left -= part;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut counted = [0; 8];
        stream.read_exact(&mut counted)?;
        match u64::from_be_bytes(counted) == bytes as u64 {
            true => Ok(started.elapsed()),
            false => Err(io::Error::other("bytes were lost")),
        }
    };
    Ok(place.thread(job)?.join().map_err(|_| "the client panicked")??)
}
