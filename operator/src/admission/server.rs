//! The HTTPS port that the API server asks. One request is one review; what is wrong with it is answered with a status that
//! the API server takes for a failed call, which failurePolicy Ignore lets pass.
//!
//! So a review that nobody answers is a pod without an agent, and a replica that is told to stop does not go at once.
//! Kubernetes takes it out of the Service at the same time as it tells it, and that takes its way through the controller of
//! endpoints and every node: until then API servers go on asking here. We answer for that long, and ask for no further
//! question on the connections that they keep; then each is closed once its review is answered.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
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

/// For how long reviews are answered after we were told to stop. Nodes hear of it within a second or two in a cluster that
/// is not busy; the pod's terminationGracePeriodSeconds of 30 has to hold this and the end of what is being asked
/// then, 10 s at the most.
pub const LINGERS: Duration = Duration::from_secs(15);

/// Serves reviews.
#[derive(Debug)]
pub struct Server {
    reviewer: Arc<Reviewer>,
    certificate: watch::Receiver<Option<Arc<Stored>>>,
    lingers: Duration,
}

/// What connections know of our end.
#[derive(Clone, Debug)]
struct End {
    /// We were told to stop.
    stopping: watch::Receiver<bool>,
    /// We have answered for long enough.
    closing: watch::Receiver<bool>,
}

impl Server {
    /// With the certificate that is current at each connection.
    #[must_use]
    pub fn new(reviewer: Reviewer, certificate: watch::Receiver<Option<Arc<Stored>>>) -> Self {
        Self { reviewer: Arc::new(reviewer), certificate, lingers: LINGERS }
    }

    /// Serves until [`LINGERS`] after `stopping`, and returns when the last review is answered.
    pub async fn run(self, listener: TcpListener, stopping: watch::Receiver<bool>) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (close, closing) = watch::channel(false);
        let end = End { stopping: stopping.clone(), closing };
        tokio::select! {
            never = self.accept(&listener, &room, &end) => match never {},
            () = self.lingered(stopping) => {}
        }
        drop(listener);
        // Nobody may be connected.
        let _ = close.send(true);
        let everybody = u32::try_from(MAX_CONNECTIONS).expect("it is a small number");
        if timeout(PATIENCE, room.acquire_many(everybody)).await.is_err() {
            tracing::warn!("not every admission review was answered before the end");
        }
    }

    async fn lingered(&self, mut stopping: watch::Receiver<bool>) {
        // An error means that nobody is left to tell us, which is an end as well.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        tokio::time::sleep(self.lingers).await;
    }

    async fn accept(&self, listener: &TcpListener, room: &Arc<Semaphore>, end: &End) -> Infallible {
        loop {
            let place = Arc::clone(room).acquire_owned().await.expect("we never close it");
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await; // out of file descriptors
                continue;
            };
            // Before the first certificate there is nothing to say; the API server tries the next replica.
            let Some(stored) = self.certificate.borrow().clone() else { continue };
            let (reviewer, end) = (Arc::clone(&self.reviewer), end.clone());
            tokio::spawn(async move {
                if let Err(error) = connection(stream, &stored, reviewer, end).await {
                    tracing::debug!(%error, "a connection for admission ended");
                }
                drop(place);
            });
        }
    }
}

async fn connection(stream: TcpStream, stored: &Stored, reviewer: Arc<Reviewer>, end: End) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let config = stored.server_config().map_err(io::Error::other)?;
    let stream = timeout(PATIENCE, TlsAcceptor::from(config).accept(stream)).await??;
    let End { stopping, mut closing } = end;
    let service = service_fn(move |request| {
        let (reviewer, stopping) = (Arc::clone(&reviewer), stopping.clone());
        async move {
            let mut response = respond(&reviewer, request).await;
            if *stopping.borrow() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(io::Error::other),
        _ = closing.wait_for(|closing| *closing) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await.map_err(io::Error::other)
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

#[cfg(test)]
mod tests {
    use peerage_model::UnixTime;
    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;
    use tokio_rustls::client::TlsStream;

    use super::super::tests::{review, reviewer};
    use super::*;
    use crate::clock;

    struct Running {
        address: std::net::SocketAddr,
        bundle: String,
        stop: watch::Sender<bool>,
        server: JoinHandle<()>,
    }

    impl Running {
        async fn lingering(lingers: Duration) -> Self {
            let now: UnixTime = clock::now();
            let stored = Stored::mint(&["127.0.0.1".to_owned()], now).expect("it can be made");
            let bundle = stored.bundle();
            let (_keep, certificate) = watch::channel(Some(Arc::new(stored)));
            let server = Server { lingers, ..Server::new(reviewer(), certificate) };
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("it has one");
            let (stop, stopping) = watch::channel(false);
            Self { address, bundle, stop, server: tokio::spawn(server.run(listener, stopping)) }
        }

        async fn connect(&self) -> TlsStream<TcpStream> {
            let mut roots = RootCertStore::empty();
            let ca = CertificateDer::from_pem_slice(self.bundle.as_bytes()).expect("PEM");
            roots.add(ca).expect("a certificate");
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("TLS 1.3")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = ServerName::from(self.address.ip());
            let tcp = TcpStream::connect(self.address).await.expect("it listens");
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("we believe it")
        }
    }

    /// A request as the API server posts it: its head, with this line besides, and its body.
    fn request(line: &str) -> (Vec<u8>, Vec<u8>) {
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": []}});
        let body = review("Pod", pod);
        let head = format!("POST {MUTATE} HTTP/1.1\r\nHost: webhook\r\n{line}Content-Length: {}\r\n\r\n", body.len());
        (head.into_bytes(), body)
    }

    async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
        let (head, body) = request("");
        stream.write_all(&[head, body].concat()).await.expect("it reads");
        answer(stream).await
    }

    async fn answer(stream: &mut TlsStream<TcpStream>) -> String {
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        while !String::from_utf8_lossy(&answer).ends_with('}') {
            let read = stream.read(&mut chunk).await.expect("an answer");
            assert!(read > 0, "the connection ended after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&chunk[..read]);
        }
        String::from_utf8(answer).expect("text")
    }

    #[tokio::test]
    async fn reviews_are_answered_after_it_was_told_to_stop_each_on_a_connection_that_then_closes() {
        let running = Running::lingering(Duration::from_secs(3600)).await;
        let mut kept = running.connect().await;
        assert!(!ask(&mut kept).await.contains("connection: close"));
        running.stop.send(true).expect("it runs");
        for mut stream in [kept, running.connect().await] {
            let answer = ask(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
            assert_eq!(stream.read(&mut [0]).await.expect("a proper end"), 0);
        }
        running.server.abort();
    }

    #[tokio::test]
    async fn a_review_that_is_on_its_way_at_the_end_is_answered_and_nobody_waits_for_idle_connections() {
        let running = Running::lingering(Duration::ZERO).await;
        let (idle, mut busy) = (running.connect().await, running.connect().await);
        let (head, body) = request("Expect: 100-continue\r\n");
        busy.write_all(&head).await.expect("it reads");
        let mut go_on = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
        busy.read_exact(&mut go_on).await.expect("it waits for the body");
        running.stop.send(true).expect("it runs");
        while TcpStream::connect(running.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        busy.write_all(&body).await.expect("it reads");
        assert!(answer(&mut busy).await.starts_with("HTTP/1.1 200 "));
        running.server.await.expect("it ends by itself");
        drop(idle);
    }

    #[test]
    fn the_charts_pod_is_given_the_time_that_leaving_takes() {
        let chart = include_str!("../../../charts/peerage/templates/deployment.yaml");
        let given = chart.lines().find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: "));
        let given = Duration::from_secs(given.expect("the chart says").parse().expect("a number"));
        // Before that the Lease is given up and agents are told, which takes 2.5 s at the most.
        assert!(given > LINGERS + PATIENCE + Duration::from_millis(2500), "{given:?}");
    }
}
