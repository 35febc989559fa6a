//! The server that `db-tool-server` is: a small real MCP server (streamable HTTP, revision 2025-06-18, without
//! sessions), which knows nothing of Peerage and listens on its machine's loopback alone.
//!
//! | request | answer |
//! |---|---|
//! | `POST /mcp` | JSON-RPC: `initialize`, `ping`, `tools/list`, `tools/call`; notifications get 202 |
//! | `GET /mcp` | an event stream: one `notifications/message` every 100 ms until the caller goes |
//! | `GET /healthz` | `ok` |
//! | `GET /export?seconds=N` | bytes as fast as they go, for N seconds (at most 60) |

mod http;
mod rpc;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use http::{Connection, Request};

/// Between two messages of the event stream.
pub(crate) const MESSAGE_INTERVAL: Duration = Duration::from_millis(100);
/// Longest export.
const MAX_EXPORT: u64 = 60;
/// Bytes written at a time.
const CHUNK: usize = 256 * 1024;

/// Serves until the process is ended.
pub(crate) fn serve(address: SocketAddr) -> ExitCode {
    let served = TcpListener::bind(address).and_then(|listener| {
        println!("listening on {}", listener.local_addr()?);
        loop {
            let (stream, from) = listener.accept()?;
            std::thread::Builder::new().spawn(move || match talk(stream) {
                Ok(()) => {}
                Err(error) => println!("{from}: {error}"),
            })?;
        }
    });
    let Err::<std::convert::Infallible, io::Error>(error) = served;
    eprintln!("error: cannot serve on {address}: {error}");
    ExitCode::FAILURE
}

/// Answers one connection's requests.
fn talk(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = Connection::new(stream)?;
    while let Some(request) = connection.request()? {
        println!("{} {}", request.method, request.target);
        // A browser's page has no business here: it is what DNS rebinding needs (MCP, transports, security warning).
        if request.origin.is_some() {
            connection.respond(403, "text/plain", b"no browsers\n")?;
            continue;
        }
        answer(&mut connection, &request)?;
    }
    Ok(())
}

fn answer(connection: &mut Connection, request: &Request) -> io::Result<()> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    match (request.method.as_str(), path) {
        ("GET", "/healthz") => connection.respond(200, "text/plain", b"ok\n"),
        ("POST", "/mcp") => match rpc::answer(&request.body) {
            Some(said) => connection.respond(200, "application/json", format!("{said}\n").as_bytes()),
            None => connection.respond(202, "text/plain", b""),
        },
        ("GET", "/mcp") => messages(connection),
        ("GET", "/export") => export(connection, query),
        (_, "/healthz" | "/mcp" | "/export") => connection.respond(405, "text/plain", b"not with this method\n"),
        _ => connection.respond(404, "text/plain", b"there is /mcp, /healthz and /export\n"),
    }
}

/// Never ends by itself; an error means that the caller is gone.
fn messages(connection: &mut Connection) -> io::Result<()> {
    let mut chunks = connection.chunks("text/event-stream")?;
    for number in 1_u64.. {
        chunks.write_all(format!("event: message\ndata: {}\n\n", rpc::message(number)).as_bytes())?;
        std::thread::sleep(MESSAGE_INTERVAL);
    }
    chunks.end()
}

fn export(connection: &mut Connection, query: &str) -> io::Result<()> {
    let seconds = query.strip_prefix("seconds=").and_then(|seconds| seconds.parse::<u64>().ok());
    let Some(seconds) = seconds.filter(|seconds| (1..=MAX_EXPORT).contains(seconds)) else {
        return connection.respond(400, "text/plain", b"say ?seconds=1 to 60\n");
    };
    let block: Vec<u8> = (0..CHUNK).map(|n| b' ' + (n % 95) as u8).collect();
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut chunks = connection.chunks("application/octet-stream")?;
    while Instant::now() < until {
        chunks.write_all(&block)?;
    }
    chunks.end()
}
