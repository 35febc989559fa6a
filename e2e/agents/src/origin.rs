//! The HTTP server that is reached by hostname: it knows nothing of Peerage, and makes up what it serves.
//!
//! `/bytes/N` has N bytes of a [`Pattern`]; `/drip` has a line each 20 ms without end; `/stamp` says when
//! the request came; anything else is `hello`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use data_encoding::HEXLOWER;

/// Bytes that are computed at once.
const BLOCK: usize = 64 * 1024;
const DRIP: Duration = Duration::from_millis(20);

/// Bytes that anybody can compute: noise in blocks that each begin with their number, so that a block that is missing,
/// doubled or in another's place changes the sum.
#[derive(Debug)]
pub struct Pattern {
    block: Vec<u8>,
    left: u64,
    number: u64,
}

impl Pattern {
    /// The first `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        // xorshift64 (Marsaglia 2003) from a constant: noise, so that no compression or coincidence helps.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let block = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Self { block: block.take(BLOCK / 8).flatten().collect(), left: size, number: 0 }
    }

    /// The next block, shorter at the end; `None` after it.
    pub fn next_block(&mut self) -> Option<&[u8]> {
        let length = usize::try_from(self.left.min(BLOCK as u64)).expect("a block fits");
        self.block[..8].copy_from_slice(&self.number.to_le_bytes());
        self.left -= length as u64;
        self.number += 1;
        (length > 0).then_some(&self.block[..length])
    }

    /// The SHA-256 of `size` bytes, in hexadecimal.
    #[must_use]
    pub fn sum(size: u64) -> String {
        let (mut pattern, mut sum) = (Self::new(size), digest::Context::new(&digest::SHA256));
        while let Some(block) = pattern.next_block() {
            sum.update(block);
        }
        HEXLOWER.encode(sum.finish().as_ref())
    }
}

/// Serves until the process ends; says on stdout when it listens.
///
/// # Errors
/// The address is not to be had.
pub fn serve(address: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming().flatten() {
        // A client that goes away is its own affair.
        std::thread::spawn(move || answer(stream));
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let path = asked_path(&stream)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    match path.strip_prefix("/bytes/").and_then(|size| size.parse().ok()) {
        Some(size) => {
            begin(&mut stream, Some(size))?;
            let mut pattern = Pattern::new(size);
            while let Some(block) = pattern.next_block() {
                stream.write_all(block)?;
            }
            Ok(())
        }
        None if path == "/drip" => {
            begin(&mut stream, None)?;
            loop {
                if let Err(error) = stream.write_all(b"drip\n") {
                    eprintln!("drip ended: {error}");
                    return Err(error);
                }
                std::thread::sleep(DRIP);
            }
        }
        None if path == "/stamp" => {
            // The one clock of the machine, so that whoever asks can subtract.
            let stamp = now.as_nanos().to_string();
            begin(&mut stream, Some(stamp.len() as u64))?;
            stream.write_all(stamp.as_bytes())
        }
        None => {
            begin(&mut stream, Some(6))?;
            stream.write_all(b"hello\n")
        }
    }
}

/// Reads a request, and returns its path.
fn asked_path(stream: &TcpStream) -> std::io::Result<String> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    Ok(first.split(' ').nth(1).unwrap_or("/").to_owned())
}

fn begin(stream: &mut TcpStream, length: Option<u64>) -> std::io::Result<()> {
    let length = length.map_or(String::new(), |length| format!("Content-Length: {length}\r\n"));
    write!(stream, "HTTP/1.1 200 OK\r\n{length}Connection: close\r\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_the_size_that_was_asked_for() {
        for size in [0, 1, 7, BLOCK as u64, BLOCK as u64 + 1] {
            let (mut pattern, mut got) = (Pattern::new(size), 0);
            while let Some(block) = pattern.next_block() {
                got += block.len() as u64;
            }
            assert_eq!(got, size);
        }
    }

    #[test]
    fn two_blocks_differ_although_the_second_is_made_of_the_first() {
        let mut pattern = Pattern::new(2 * BLOCK as u64);
        let first = pattern.next_block().expect("a block").to_vec();
        assert_ne!(pattern.next_block().expect("a block"), first);
    }
}
