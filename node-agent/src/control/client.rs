//! The caller's side of the control socket.

use std::io;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::failure::{Code, Failure};
use super::message::{Answer, Envelope, MAX_ANSWER, Request, Said, VERSION};
use crate::state::{MAX_SOCKET_PATH, Place};

/// A connection to the daemon on which a request has been made.
pub type Connection = BufReader<UnixStream>;

/// Asks for one answer.
///
/// # Errors
/// The daemon's failure, or [`Code::NotRunning`].
pub async fn call<T: DeserializeOwned>(place: &Place, request: &Request) -> Result<T, Failure> {
    let mut connection = ask(place, request).await?;
    match hear(&mut connection).await? {
        Said::Ok(value) => understand(value),
        Said::Error(failure) => Err(failure),
        Said::Event(_) | Said::End(_) => Err(nonsense("a stream")),
    }
}

/// Asks for a stream of events.
///
/// # Errors
/// [`Code::NotRunning`]; the daemon's failures come with the events.
pub async fn stream(place: &Place, request: &Request) -> Result<Events, Failure> {
    Ok(Events { connection: ask(place, request).await? })
}

/// Asks for a stream through the tunnel; the connection that comes with the answer carries its bytes.
///
/// # Errors
/// The daemon's failure, or [`Code::NotRunning`].
pub async fn raw<T: DeserializeOwned>(place: &Place, request: &Request) -> Result<(T, Connection), Failure> {
    let mut connection = ask(place, request).await?;
    match hear(&mut connection).await? {
        Said::Ok(value) => Ok((understand(value)?, connection)),
        Said::Error(failure) => Err(failure),
        Said::Event(_) | Said::End(_) => Err(nonsense("a stream")),
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    connection: Connection,
}

impl Events {
    /// The next one; `None` when the daemon has ended the stream.
    ///
    /// # Errors
    /// The daemon's failure, which ends the stream, too.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        match hear(&mut self.connection).await? {
            Said::Event(value) => understand(value).map(Some),
            Said::End(_) => Ok(None),
            Said::Error(failure) => Err(failure),
            Said::Ok(_) => Err(nonsense("a single answer")),
        }
    }
}

async fn ask(place: &Place, request: &Request) -> Result<Connection, Failure> {
    let path = place.socket();
    let stream = UnixStream::connect(&path).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::new(
            Code::NotRunning,
            format!("no agent is running on the state in `{}`", place.directory().display()),
            "start one with `peerage up`, or name another state with --state",
        ),
        io::ErrorKind::PermissionDenied => Failure::new(
            Code::NotPermitted,
            format!("`{}` belongs to another user", path.display()),
            "use your own agent (`peerage up`), or ask as the user who runs that one",
        ),
        _ if path.as_os_str().len() > MAX_SOCKET_PATH => Failure::new(
            Code::StateUnusable,
            format!(
                "no agent can run on the state in `{}`: the path of its control socket has {} bytes, of {MAX_SOCKET_PATH} at most",
                place.directory().display(),
                path.as_os_str().len()
            ),
            "choose a directory with a shorter path with --state, or set XDG_RUNTIME_DIR, where the socket then lies",
        ),
        _ => broken(&error),
    })?;
    let envelope = Envelope { v: VERSION, request: request.clone() };
    let mut line = serde_json::to_string(&envelope).expect("requests have text for keys, and writing to memory works");
    line.push('\n');
    let mut connection = BufReader::new(stream);
    connection.get_mut().write_all(line.as_bytes()).await.map_err(|error| broken(&error))?;
    Ok(connection)
}

async fn hear(connection: &mut Connection) -> Result<Said, Failure> {
    let mut line = Vec::new();
    let mut bounded = connection.take(MAX_ANSWER as u64);
    bounded.read_until(b'\n', &mut line).await.map_err(|error| broken(&error))?;
    if !line.ends_with(b"\n") {
        return Err(Failure::new(
            Code::NotRunning,
            "the agent stopped before it answered",
            "look at its log, then start it again with `peerage up`",
        ));
    }
    let answer: Answer = serde_json::from_slice(&line).map_err(|_| nonsense("something else"))?;
    Ok(answer.said)
}

fn understand<T: DeserializeOwned>(value: Value) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|error| nonsense(&error.to_string()))
}

fn nonsense(got: &str) -> Failure {
    Failure::new(
        Code::VersionMismatch,
        format!("the agent answered in a way this command does not know ({got})"),
        "use the same version of peerage for both: `peerage down`, then `peerage up`",
    )
}

fn broken(error: &io::Error) -> Failure {
    Failure::new(Code::Internal, format!("the connection to the agent failed: {error}"), "try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_that_is_too_long_for_a_socket_is_named_as_such() {
        // Longer than any runtime directory makes up for, where there is one.
        let place = Place::find(Some(format!("/{}", "deep/".repeat(40)).as_ref())).expect("a flag is a place");
        let failure = call::<Value>(&place, &Request::Status).await.expect_err("nobody is there");
        match place.socket().as_os_str().len() > MAX_SOCKET_PATH {
            true => assert!(failure.code == Code::StateUnusable && failure.hint.contains("--state"), "{failure:?}"),
            false => assert_eq!(failure.code, Code::NotRunning),
        }
    }
}
