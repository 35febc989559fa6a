//! Asks a running operator whether it is ready: for `helm test`, in an image that holds nothing but this program.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const MAX_ANSWER: u64 = 4096;

/// What came instead of "ready".
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answered.
    #[error("no operator answers at {place}")]
    Silence {
        /// Where.
        place: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is not ready, in its own words.
    #[error("the operator at {place} is not ready: {said}")]
    NotReady {
        /// Where.
        place: String,
        /// What it said.
        said: String,
    },
}

/// Asks at `place`, `HOST:PORT` of `--health`, by GET /readyz.
///
/// # Errors
/// [`AskError`].
pub fn ready(place: &str) -> Result<(), AskError> {
    let answer = ask(place).map_err(|cause| AskError::Silence { place: place.to_owned(), cause })?;
    match answer.starts_with("HTTP/1.1 200 ") {
        true => Ok(()),
        false => {
            let said = answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim().to_owned();
            Err(AskError::NotReady { place: place.to_owned(), said })
        }
    }
}

fn ask(place: &str) -> io::Result<String> {
    let mut stream = connect(place)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

/// To the first of its addresses that takes a connection: a NetworkPolicy drops what it does not permit, without a word.
fn connect(place: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in place.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use peerage_agent::health::{HealthServer, Readiness};
    use prometheus_client::registry::Registry;

    use super::*;

    #[tokio::test]
    async fn who_is_not_ready_says_what_it_waits_for() {
        let readiness = Readiness::default();
        let any = "127.0.0.1:0".parse().expect("an address");
        let server = HealthServer::bind(any, readiness.clone(), Registry::default()).await.expect("a port is free");
        let place = server.local_addr().expect("it is bound").to_string();
        tokio::spawn(server.run());
        let ask = || {
            let place = place.clone();
            tokio::task::spawn_blocking(move || ready(&place))
        };
        let waiting = readiness.wait_for("the keys");
        let said = ask().await.expect("it ends").expect_err("it waits").to_string();
        assert!(said.ends_with("is not ready: waiting for the keys"), "{said}");
        drop(waiting);
        ask().await.expect("it ends").expect("it is ready");
    }
}
