//! As much HTTP/1.1 as the server needs: requests with a length, answers with a length or in chunks, and connections
//! that are used again.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Longest head of a request.
const MAX_HEAD: u64 = 16 * 1024;
/// Longest body; an MCP request has some hundred bytes.
const MAX_BODY: u64 = 1 << 20;

/// A request that was read whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) origin: Option<String>,
    pub(super) body: Vec<u8>,
}

/// A connection of one caller.
#[derive(Debug)]
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        Ok(Self { writer: stream.try_clone()?, reader: BufReader::new(stream) })
    }

    /// The next request; `None` when the caller has closed.
    pub(super) fn request(&mut self) -> io::Result<Option<Request>> {
        read(&mut self.reader)
    }

    pub(super) fn respond(&mut self, status: u16, kind: &str, body: &[u8]) -> io::Result<()> {
        let mut answer = head(status, kind, &format!("Content-Length: {}", body.len())).into_bytes();
        answer.extend_from_slice(body);
        self.writer.write_all(&answer)
    }

    /// An answer whose length nobody knows yet. Chunks make a cut visible: a caller does not take a part for the whole.
    pub(super) fn chunks(&mut self, kind: &str) -> io::Result<Chunks<'_>> {
        self.writer.write_all(head(200, kind, "Transfer-Encoding: chunked").as_bytes())?;
        Ok(Chunks { writer: &mut self.writer })
    }
}

/// See [`Connection::chunks`].
#[derive(Debug)]
pub(super) struct Chunks<'a> {
    writer: &'a mut TcpStream,
}

impl Chunks<'_> {
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.writer.write_all(&chunk)
    }

    pub(super) fn end(self) -> io::Result<()> {
        self.writer.write_all(b"0\r\n\r\n")
    }
}

fn head(status: u16, kind: &str, length: &str) -> String {
    let reason = match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        _ => "Method Not Allowed",
    };
    format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\n{length}\r\n\r\n")
}

fn read(from: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut head = from.take(MAX_HEAD);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(malformed("no request line"));
    };
    let mut request = Request { method: method.to_owned(), target: target.to_owned(), ..Request::default() };
    let mut length = 0;
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(malformed("the head has no end"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| malformed("a header without a colon"))?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().map_err(|_| malformed("no length"))?,
            "transfer-encoding" => return Err(malformed("chunked requests are not understood")),
            "origin" => request.origin = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    if length > MAX_BODY {
        return Err(malformed("the body is too long"));
    }
    from.take(length).read_to_end(&mut request.body)?;
    if request.body.len() as u64 == length { Ok(Some(request)) } else { Err(malformed("the body is cut off")) }
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> io::Result<Option<Request>> {
        read(&mut text.as_bytes())
    }

    #[test]
    fn a_request_is_read_with_its_body_and_no_further() {
        let mut bytes = "POST /mcp HTTP/1.1\r\nHost: db\r\ncontent-length: 2\r\n\r\n{}GET".as_bytes();
        let request = read(&mut bytes).expect("it is well formed").expect("it is there");
        assert_eq!((request.method.as_str(), request.target.as_str(), &*request.body), ("POST", "/mcp", &b"{}"[..]));
        assert_eq!(bytes, b"GET");
    }

    #[test]
    fn a_closed_connection_is_no_request() {
        assert_eq!(parse("").expect("an end is no error"), None);
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_refused() {
        for wrong in [
            "GET\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\n".to_owned(),
            "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n{}".to_owned(),
            format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1),
            format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_HEAD as usize)),
        ] {
            parse(&wrong).expect_err("it is no whole request");
        }
    }
}
