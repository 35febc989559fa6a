//! The HTTPS port that the API server asks. One request is one review; what is wrong with it is answered with a status that
//! the API server takes for a failed call, which failurePolicy Ignore lets pass.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::{Question, Reviewer};
use crate::certificates::Stored;

/// Where pods are asked about.
pub const MUTATE: &str = "/mutate";
/// Where objects of ours are asked about.
pub const VALIDATE: &str = "/validate";

/// How long TLS and a request's body may take each; the API server gives up after less.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request. Longer than the 90 s after which the API server closes it: where
/// we closed first, a review that was on its way would be lost, and its pod let in without an agent.
const IDLE: Duration = Duration::from_secs(120);
/// Connections at a time. An API server keeps a few open; more are not its own.
const MAX_CONNECTIONS: usize = 1024;
/// A review holds an object twice at most, and etcd takes none above 1.5 MiB.
const MAX_BODY: usize = 4 << 20;

/// Serves reviews.
#[derive(Debug)]
pub struct Server {
    reviewer: Arc<Reviewer>,
    certificate: watch::Receiver<Option<Arc<Stored>>>,
}

impl Server {
    /// With the certificate that is current at each connection.
    #[must_use]
    pub fn new(reviewer: Reviewer, certificate: watch::Receiver<Option<Arc<Stored>>>) -> Self {
        Self { reviewer: Arc::new(reviewer), certificate }
    }

    /// Serves for ever.
    pub async fn run(self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let place = Arc::clone(&room).acquire_owned().await.expect("we never close it");
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await; // out of file descriptors
                continue;
            };
            // Before the first certificate there is nothing to say; the API server tries the next replica.
            let Some(stored) = self.certificate.borrow().clone() else { continue };
            let reviewer = Arc::clone(&self.reviewer);
            tokio::spawn(async move {
                if let Err(error) = connection(stream, &stored, reviewer).await {
                    tracing::debug!(%error, "a connection for admission ended");
                }
                drop(place);
            });
        }
    }
}

async fn connection(stream: TcpStream, stored: &Stored, reviewer: Arc<Reviewer>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let config = stored.server_config().map_err(io::Error::other)?;
    let stream = timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await??;
    let service = service_fn(move |request| {
        let reviewer = Arc::clone(&reviewer);
        async move { Ok::<_, Infallible>(respond(&reviewer, request).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

async fn respond(reviewer: &Reviewer, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let question = match (request.method(), request.uri().path()) {
        (&Method::POST, MUTATE) => Question::Mutate,
        (&Method::POST, VALIDATE) => Question::Validate,
        (_, _) => return plain(StatusCode::NOT_FOUND, "reviews are posted to /mutate and /validate"),
    };
    let body = match timeout(PATIENCE, Limited::new(request.into_body(), MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return plain(StatusCode::PAYLOAD_TOO_LARGE, "the review did not come whole, or is too large"),
        Err(_) => return plain(StatusCode::REQUEST_TIMEOUT, "the review did not come in time"),
    };
    match reviewer.answer(question, &body) {
        Ok(answer) => {
            let mut response = Response::new(Full::new(Bytes::from(answer)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => plain(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}
