//! Just enough HTTP for a kubelet and a Prometheus: GET, one request a connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::readiness::Readiness;
use crate::listen::Backoff;

/// Longest request head that is read.
const MAX_HEAD: usize = 8 * 1024;
/// How long a caller may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Callers at a time.
const MAX_CALLERS: usize = 16;

/// A server that has its socket.
#[derive(Debug)]
pub struct HealthServer {
    listener: TcpListener,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    readiness: Readiness,
    registry: Registry,
}

impl HealthServer {
    /// Listens.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(address: SocketAddr, readiness: Readiness, registry: Registry) -> io::Result<Self> {
        let listener = listen(address).await?;
        Ok(Self { listener, shared: Arc::new(Shared { readiness, registry }) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped.
    pub async fn run(self) {
        let (room, mut backoff) = (Arc::new(Semaphore::new(MAX_CALLERS)), Backoff::default());
        loop {
            let place = Arc::clone(&room).acquire_owned().await.expect("we never close it");
            let stream = backoff.accept("accepting a health check", &self.listener).await;
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                // A caller that is slow or gone is its own trouble.
                let _ = timeout(PATIENCE, serve(stream, &shared)).await;
                drop(place);
            });
        }
    }
}

/// `[::]` is every address of IPv6 and IPv4; on a kernel without IPv6 it is every one that there is.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    let everywhere = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match bound {
        Err(error) if everywhere && error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if head.len() > MAX_HEAD || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = respond(shared, &head);
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

fn respond(shared: &Shared, head: &[u8]) -> (&'static str, String) {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    match line {
        b"GET /healthz HTTP/1.1" | b"GET /healthz HTTP/1.0" => ("200 OK", "ok\n".into()),
        b"GET /readyz HTTP/1.1" | b"GET /readyz HTTP/1.0" => match &shared.readiness.pending()[..] {
            [] => ("200 OK", "ready\n".into()),
            pending => ("503 Service Unavailable", format!("waiting for {}\n", pending.join(", "))),
        },
        b"GET /metrics HTTP/1.1" | b"GET /metrics HTTP/1.0" => {
            let mut body = String::new();
            match encode(&mut body, &shared.registry) {
                Ok(()) => ("200 OK", body),
                Err(error) => ("500 Internal Server Error", format!("{error}\n")),
            }
        }
        _ => ("404 Not Found", "try /healthz, /readyz or /metrics\n".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::Stats;
    use crate::health::Metrics;

    async fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        answer
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing_and_metrics_are_counted() {
        let readiness = Readiness::default();
        let pending = readiness.wait_for("the first relay");
        let metrics = Metrics::default();
        metrics.sessions_opened.inc();
        metrics.relay_changed("a", true);
        let registry = metrics.registry(Arc::new(Stats::default()));
        let server = HealthServer::bind(([127, 0, 0, 1], 0).into(), readiness, registry).await.expect("a port is free");
        let address = server.local_addr().expect("it is bound");
        let serving = tokio::spawn(server.run());
        assert!(get(address, "GET /healthz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        let waiting = get(address, "GET /readyz HTTP/1.1\r\n\r\n").await;
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("the first relay"), "{waiting}");
        drop(pending);
        assert!(get(address, "GET /readyz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        let counted = get(address, "GET /metrics HTTP/1.1\r\n\r\n").await;
        for line in
            ["peerage_agent_sessions_opened_total 1", "peerage_agent_relays_up 1", "peerage_agent_sent_bytes_total 0"]
        {
            assert!(counted.contains(line), "{line} is missing: {counted}");
        }
        assert!(get(address, "POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        serving.abort();
    }
}
