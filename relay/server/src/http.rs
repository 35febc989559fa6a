//! `/metrics`, `/healthz` and `/readyz`: just enough HTTP/1.1 for a probe and a scrape.
//!
//! One request per connection, nothing of it used but the path. It is for the cluster's inside; the relay's own port
//! speaks no HTTP.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Longest request head that is read.
const MAX_HEAD: usize = 4096;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Requests at one time; a scraper and some probes.
const AT_ONCE: usize = 16;

#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) registry: Registry,
    pub(crate) ready: AtomicBool,
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, pages: Arc<Pages>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return; // the semaphore is never closed
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let some be closed first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            match timeout(PATIENCE, answer(stream, &pages)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "http"),
                Err(_) => tracing::debug!("http request took too long"),
            }
            drop(permit);
        });
    }
}

async fn answer(mut stream: TcpStream, pages: &Pages) -> io::Result<()> {
    let mut head = [0; MAX_HEAD];
    let mut filled = 0;
    while !head[..filled].windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut head[filled..]).await?;
        if read == 0 {
            return Ok(()); // closed, or the head is longer than we read
        }
        filled += read;
    }
    let (status, kind, body) = page(&head[..filled], pages);
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn page(head: &[u8], pages: &Pages) -> (&'static str, &'static str, String) {
    const PLAIN: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut words = head.split(|byte| *byte == b' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    if method != Some(b"GET") {
        return ("405 Method Not Allowed", PLAIN, "only GET\n".into());
    }
    match path {
        b"/metrics" => {
            let mut body = String::new();
            match text::encode(&mut body, &pages.registry) {
                Ok(()) => ("200 OK", METRICS, body),
                Err(error) => ("500 Internal Server Error", PLAIN, format!("{error}\n")),
            }
        }
        b"/healthz" => ("200 OK", PLAIN, "ok\n".into()),
        b"/readyz" if pages.ready.load(Ordering::Relaxed) => ("200 OK", PLAIN, "ok\n".into()),
        b"/readyz" => ("503 Service Unavailable", PLAIN, "draining\n".into()),
        _ => ("404 Not Found", PLAIN, "try /metrics, /healthz or /readyz\n".into()),
    }
}
