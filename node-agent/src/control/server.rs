//! The daemon's side of the control socket.
//!
//! Whoever can open the socket owns the agent: it lies in a directory of mode 0700, has mode 0600 itself, and a caller
//! whose user is neither ours nor root is turned away even so. What callers send is bounded in size and time all the
//! same, because programs have bugs.

use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::failure::{Code, Failure};
use super::message::{Envelope, MAX_REQUEST, Request, Said, VERSION};
use crate::listen::Backoff;
use crate::tunnel::TunnelStream;

/// Callers at a time; people have few terminals, and each `peerage run` holds one.
const MAX_CALLERS: usize = 256;
/// How long a caller may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a failed connection's reason may take: it is on its way already, or lost.
const REASON_PATIENCE: Duration = Duration::from_millis(500);

/// What a request leads to.
pub enum Reply {
    /// One answer.
    Value(Value),
    /// Events until the sender is dropped, the caller goes, or a failure.
    Stream(mpsc::Receiver<Result<Value, Failure>>),
    /// An answer, then the bytes of a stream through the tunnel; at the end, how that went.
    Raw(Value, TunnelStream, Box<dyn FnOnce(io::Result<()>) + Send>),
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Value(_) => "Value(..)",
            Self::Stream(_) => "Stream(..)",
            Self::Raw(..) => "Raw(..)",
        })
    }
}

/// What [`Handler::handle`] gives.
pub type Handling = Pin<Box<dyn Future<Output = Result<Reply, Failure>> + Send>>;

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one. Dropped when the caller goes away before the answer.
    fn handle(self: Arc<Self>, request: Request) -> Handling;
}

/// A socket that is open for callers; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Opens the socket. The caller holds the state's lock, so a file in the way is a dead daemon's.
    ///
    /// # Errors
    /// What the system says.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves callers for ever; dropping the future turns all of them away.
    pub async fn serve<H: Handler>(self, handler: Arc<H>) {
        let places = Arc::new(Semaphore::new(MAX_CALLERS));
        let (mut callers, mut backoff) = (tokio::task::JoinSet::new(), Backoff::default());
        loop {
            while callers.try_join_next().is_some() {}
            let place = Arc::clone(&places).acquire_owned().await.expect("we never close it");
            let stream = backoff.accept("accepting a caller", &self.listener).await;
            if !is_owner(&stream) {
                tracing::warn!("a foreign user opened the control socket");
                continue;
            }
            let handler = Arc::clone(&handler);
            callers.spawn(async move {
                if let Err(error) = serve_one(stream, handler).await {
                    tracing::debug!(%error, "a caller of the control socket went away");
                }
                drop(place);
            });
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Nothing to be done about a failure: the next daemon removes it.
        let _ = fs::remove_file(&self.path);
    }
}

fn is_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|caller| caller.uid() == own || caller.uid() == 0)
}

async fn serve_one<H: Handler>(stream: UnixStream, handler: Arc<H>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let request = match read_request(&mut stream).await? {
        Ok(request) => request,
        Err(failure) => return say(&mut stream, Said::Error(failure)).await,
    };
    // A caller that has gone must not keep a dial or a bench alive.
    let reply = tokio::select! {
        reply = handler.handle(request) => reply,
        () = gone(&mut stream) => return Ok(()),
    };
    match reply {
        Err(failure) => say(&mut stream, Said::Error(failure)).await,
        Ok(Reply::Value(value)) => say(&mut stream, Said::Ok(value)).await,
        Ok(Reply::Stream(events)) => relay_events(&mut stream, events).await,
        Ok(Reply::Raw(value, mut tunnel, ended)) => {
            say(&mut stream, Said::Ok(value)).await?;
            ended(carry(&mut stream, &mut tunnel).await);
            Ok(())
        }
    }
}

/// Carries bytes both ways. A refused stream may fail a write before its reason has been read, so that is looked for.
async fn carry(stream: &mut BufReader<UnixStream>, tunnel: &mut TunnelStream) -> io::Result<()> {
    let Err(error) = copy_bidirectional(stream, tunnel).await else { return Ok(()) };
    if error.get_ref().is_some() {
        return Err(error);
    }
    match timeout(REASON_PATIENCE, tunnel.read_u8()).await {
        Ok(Err(reason)) if reason.get_ref().is_some() => Err(reason),
        Ok(_) | Err(_) => Err(error),
    }
}

/// Resolves when the caller has hung up. Bytes that it sends early stay in the buffer and are no reason to.
async fn gone(stream: &mut BufReader<UnixStream>) {
    match stream.fill_buf().await {
        Ok([]) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}

async fn relay_events(
    stream: &mut BufReader<UnixStream>,
    mut events: mpsc::Receiver<Result<Value, Failure>>,
) -> io::Result<()> {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = gone(stream) => return Ok(()),
        };
        match event {
            Some(Ok(value)) => say(stream, Said::Event(value)).await?,
            Some(Err(failure)) => return say(stream, Said::Error(failure)).await,
            None => return say(stream, Said::End(true)).await,
        }
    }
}

async fn say(stream: &mut BufReader<UnixStream>, said: Said) -> io::Result<()> {
    stream.get_mut().write_all(said.into_line().as_bytes()).await
}

async fn read_request(stream: &mut BufReader<UnixStream>) -> io::Result<Result<Request, Failure>> {
    let mut line = Vec::new();
    let limit = MAX_REQUEST as u64 + 1;
    let mut bounded = stream.take(limit);
    let read = timeout(PATIENCE, bounded.read_until(b'\n', &mut line)).await;
    if read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if line.len() > MAX_REQUEST {
        return Ok(Err(Failure::bad_request(format!("a request has at most {MAX_REQUEST} bytes"))));
    }
    Ok(parse_request(&line))
}

/// Reads one line of a caller.
///
/// # Errors
/// What the caller is told: no JSON object, another version, no such request.
pub fn parse_request(line: &[u8]) -> Result<Request, Failure> {
    let value: Value =
        serde_json::from_slice(line).map_err(|_| Failure::bad_request("a request is one JSON object"))?;
    match value.get("v").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            return Err(Failure::new(
                Code::VersionMismatch,
                format!("this daemon speaks version {VERSION} of the control protocol, the caller {version}"),
                "use the same version of peerage for both: `peerage down`, then `peerage up`",
            ));
        }
        None => return Err(Failure::bad_request("a request says which version it has: \"v\":1")),
    }
    let envelope: Result<Envelope, _> = serde_json::from_value(value);
    envelope.map(|envelope| envelope.request).map_err(|error| Failure::bad_request(error.to_string()))
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
