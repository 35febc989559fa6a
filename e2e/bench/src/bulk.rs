//! Bytes in one direction: the client sends, the server counts and says how many came.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::Result;
use crate::network::Place;

/// Longer than a stream may stand still.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that one call reads or writes.
const CHUNK: usize = 256 * 1024;

/// How much to send.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// So many bytes.
    Bytes(u64),
    /// What can be sent in this time.
    For(Duration),
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Over all streams; the server has counted them.
    pub bytes: u64,
    /// From the first stream's first byte until the server had counted the last stream's last.
    pub took: Duration,
    /// Of these, bytes that were taken after [`Load::mark`], and in which time.
    pub late: (u64, Duration),
}

impl Sent {
    /// Over all of the time.
    #[must_use]
    pub fn gigabits_per_second(&self) -> f64 {
        rate(self.bytes, self.took) / 1e9
    }

    /// After the mark, in bits per second.
    #[must_use]
    pub fn late_rate(&self) -> f64 {
        rate(self.late.0, self.late.1)
    }
}

fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64()
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where the server is reached.
    pub to: SocketAddr,
    /// At the same time, each with a connection of its own.
    pub streams: usize,
    /// On each of them.
    pub amount: Amount,
    /// From when on bytes count as late.
    pub mark: Duration,
}

/// Counts what comes to `at` for as long as this process runs, each connection on a thread of its own.
///
/// # Errors
/// The address cannot be had.
pub fn serve(place: &Place, at: SocketAddr) -> Result<()> {
    let listener = place.listen(at)?;
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

/// Sends over all streams at once, connected beforehand.
///
/// # Errors
/// The server is not reached, or did not get all of it.
pub fn send(place: &Place, load: Load) -> Result<Sent> {
    let start = Arc::new(Barrier::new(load.streams));
    let mut threads = Vec::new();
    for _ in 0..load.streams {
        let start = Arc::clone(&start);
        threads.push(place.thread(move || {
            let connected = connect(load.to);
            // Also without a connection: the others wait here.
            start.wait();
            connected.and_then(|stream| one(stream, load))
        })?);
    }
    let mut sent = Vec::new();
    for thread in threads {
        sent.push(thread.join().map_err(|_| "a client panicked")??);
    }
    let began = sent.iter().map(|one: &Stream| one.began).min().ok_or("no stream")?;
    let ended = sent.iter().map(|one| one.ended).max().ok_or("no stream")?;
    let sum = |of: fn(&Stream) -> u64| sent.iter().map(of).sum();
    let late = sent.iter().map(|one| one.late_time).max().unwrap_or_default();
    Ok(Sent { bytes: sum(|one| one.bytes), took: ended - began, late: (sum(|one| one.late), late) })
}

struct Stream {
    bytes: u64,
    late: u64,
    late_time: Duration,
    began: Instant,
    ended: Instant,
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn one(mut stream: TcpStream, load: Load) -> io::Result<Stream> {
    let block = vec![0x5a; CHUNK];
    let began = Instant::now();
    let (mut bytes, mut early, mut marked) = (0, 0, began);
    loop {
        let part = match load.amount {
            Amount::Bytes(all) => usize::try_from(all - bytes).unwrap_or(usize::MAX).min(CHUNK),
            Amount::For(time) if began.elapsed() < time => CHUNK,
            Amount::For(_) => 0,
        };
        if part == 0 {
            break;
        }
        stream.write_all(&block[..part])?;
        bytes += part as u64;
        if began.elapsed() <= load.mark {
            (early, marked) = (bytes, Instant::now());
        }
    }
    let late_time = marked.elapsed();
    stream.shutdown(Shutdown::Write)?;
    let mut counted = [0; 8];
    stream.read_exact(&mut counted)?;
    match u64::from_be_bytes(counted) == bytes {
        true => Ok(Stream { bytes, late: bytes - early, late_time, began, ended: Instant::now() }),
        false => Err(io::Error::other("bytes were lost")),
    }
}
