//! A program for the hosts of a lab: the smallest thing that shows whether two of them can reach each other.
//!
//! `netlab-probe rendezvous ADDRESS` introduces any two programs that greet it, by the endpoints it sees them at.
//! `netlab-probe punch RENDEZVOUS` greets it, sends to the endpoint it is told for two seconds, and says `direct` with
//! the endpoint an answer came from, or `no path`. Both speak plain UDP through the standard library.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const GREETING: &[u8] = b"hello";
const KNOCK: &[u8] = b"knock";
const ANSWER: &[u8] = b"answer";

/// How long a punch is tried, and how often it sends meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["rendezvous", address] => rendezvous(address),
        ["punch", rendezvous] => punch(rendezvous),
        _ => Err("usage: netlab-probe rendezvous ADDRESS | punch RENDEZVOUS".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netlab-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn rendezvous(address: &str) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind(address)?;
    println!("ready");
    let mut buffer = [0; 64];
    let mut known: Vec<SocketAddr> = Vec::new();
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        if buffer[..length] != *GREETING {
            continue;
        }
        if !known.contains(&from) {
            known.push(from);
        }
        if let [.., a, b] = known[..] {
            socket.send_to(b.to_string().as_bytes(), a)?;
            socket.send_to(a.to_string().as_bytes(), b)?;
        }
    }
}

fn punch(rendezvous: &str) -> Result<(), Box<dyn Error>> {
    let rendezvous: SocketAddr = rendezvous.parse()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(INTERVAL))?;
    let peer = introduced(&socket, rendezvous)?;
    let until = Instant::now() + PATIENCE;
    let mut met = None;
    while Instant::now() < until {
        socket.send_to(KNOCK, peer)?;
        if let Some(from) = listen(&socket)? {
            met = Some(from);
        }
    }
    match met {
        Some(from) => println!("direct {from}"),
        None => println!("no path"),
    }
    Ok(())
}

fn introduced(socket: &UdpSocket, rendezvous: SocketAddr) -> Result<SocketAddr, Box<dyn Error>> {
    let mut buffer = [0; 64];
    let until = Instant::now() + 5 * PATIENCE;
    while Instant::now() < until {
        socket.send_to(GREETING, rendezvous)?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if from == rendezvous => return Ok(std::str::from_utf8(&buffer[..length])?.parse()?),
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err("nobody was introduced".into())
}

/// Answers one knock; says whose answer arrived, which proves both directions.
fn listen(socket: &UdpSocket) -> io::Result<Option<SocketAddr>> {
    let mut buffer = [0; 64];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) if buffer[..length] == *KNOCK => socket.send_to(ANSWER, from).map(|_| None),
        Ok((length, from)) if buffer[..length] == *ANSWER => Ok(Some(from)),
        Ok(_) => Ok(None),
        Err(error) if is_timeout(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
