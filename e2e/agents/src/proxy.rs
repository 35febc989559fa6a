//! An HTTP proxy as offices have it: CONNECT (RFC 9110 section 9.3.6) to port 443, and nothing else.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

/// The one port that may be connected to.
const ALLOWED_PORT: &str = "443";
/// How long the other end may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until the process ends; says on stdout when it listens.
///
/// # Errors
/// The address is not to be had.
pub fn serve(address: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    for client in listener.incoming().flatten() {
        std::thread::spawn(move || {
            if let Err(error) = answer(client) {
                eprintln!("a tunnel ended: {error}");
            }
        });
    }
    Ok(())
}

fn answer(mut client: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        line.clear();
    }
    let Some(target) = target(&request) else {
        eprintln!("refused: {}", request.trim());
        return client.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let Ok(server) = connect(target) else {
        return client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    server.set_nodelay(true)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (from_server, to_client) = (server.try_clone()?, client.try_clone()?);
    let back = std::thread::spawn(move || copy(from_server, to_client));
    // What the client sent right behind its request may be in the reader already.
    let mut to_server = server;
    to_server.write_all(reader.buffer())?;
    copy(client, to_server);
    // A copy that panicked has been reported.
    let _ = back.join();
    Ok(())
}

/// `CONNECT host:443 HTTP/1.1`.
fn target(request: &str) -> Option<&str> {
    let mut words = request.split_whitespace();
    let target = words.next().filter(|word| *word == "CONNECT").and(words.next())?;
    target.rsplit_once(':').filter(|(_, port)| *port == ALLOWED_PORT).map(|_| target)
}

fn connect(target: &str) -> std::io::Result<TcpStream> {
    let addresses = std::net::ToSocketAddrs::to_socket_addrs(target)?;
    let mut last = std::io::ErrorKind::NotFound.into();
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// One direction, to its end; half-closed there, as TCP would.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    // A connection that breaks ends the tunnel; there is nobody to tell.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connect_to_443_is_let_through() {
        assert_eq!(target("CONNECT relay.test:443 HTTP/1.1\r\n"), Some("relay.test:443"));
        assert_eq!(target("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n"), Some("[2001:db8::1]:443"));
        assert_eq!(target("CONNECT relay.test:4478 HTTP/1.1\r\n"), None);
        assert_eq!(target("GET http://relay.test:443/ HTTP/1.1\r\n"), None);
    }
}
