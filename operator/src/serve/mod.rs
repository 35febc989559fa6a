//! The operator's HTTPS port: streams of agents (docs/spec/control-plane.md), from every replica.

mod connection;
mod enrol;
pub mod feed;
mod lobby;
mod tls;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue, RETRY_AFTER, UPGRADE as UPGRADE_HEADER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use peerage_model::Fingerprint;
use peerage_model::operator::{ChannelBinding, EXPORTER_LABEL, HTTP_PATH, UPGRADE};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

pub use tls::TlsError;

use crate::authority::Keyring;
use crate::cluster::Cluster;
use crate::replicas::{self, Others};
use lobby::{Guest, Lobby};

/// How long TLS and the HTTP request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Agents and replicas that have shown who they are, at a time. At about 60 KB each they fit the memory that the chart gives a
/// replica.
const MAX_CONNECTIONS: usize = 12_000;
/// Questions to TokenReview at a time: when all pods of a cluster start at once the API server has others to serve.
const MAX_REVIEWS: usize = 32;

/// What every connection needs.
pub struct Server {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Whose agents are served.
    pub authority: Fingerprint,
    /// The keys to use, as they change.
    pub keyring: watch::Receiver<Arc<Keyring>>,
    /// For TokenReview.
    pub client: kube::Client,
    /// What other replicas report to this one.
    pub others: Arc<Others>,
    reviews: Semaphore,
    room: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({:?})", self.authority)
    }
}

impl Server {
    /// A server that has no socket yet. It says goodbye to everybody when `stopping` becomes true.
    #[must_use]
    pub fn new(
        cluster: Arc<Cluster>,
        authority: Fingerprint,
        keyring: watch::Receiver<Arc<Keyring>>,
        client: kube::Client,
        others: Arc<Others>,
        stopping: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let (reviews, room) = (Semaphore::new(MAX_REVIEWS), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        Arc::new(Self { cluster, authority, keyring, client, others, reviews, room, stopping })
    }

    /// Serves until the process stops.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn run(self: Arc<Self>, listener: TcpListener) -> Result<(), TlsError> {
        let acceptor = tls::acceptor()?;
        let lobby = Arc::new(Lobby::default());
        let mut stopping = self.stopping.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: others must end before anybody can begin.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(guest) = lobby.enter(from.ip()) else {
                tracing::debug!(%from, "refused a connection: too many have not shown who they are");
                continue;
            };
            let (server, acceptor) = (Arc::clone(&self), acceptor.clone());
            tokio::spawn(async move {
                if let Err(error) = server.connection(stream, acceptor, guest).await {
                    tracing::debug!(%from, %error, "a connection ended");
                }
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor, guest: Guest) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let stream = timeout(PATIENCE, acceptor.accept(stream)).await??;
        let binding = channel_binding(&stream)?;
        let guest = Arc::new(Mutex::new(Some(guest)));
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = Arc::clone(&self).respond(request, binding.clone(), Arc::clone(&guest));
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await
            .map_err(io::Error::other)
    }

    fn respond(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        binding: Zeroizing<[u8; 32]>,
        guest: Arc<Mutex<Option<Guest>>>,
    ) -> Response<Full<Bytes>> {
        let protocol = match (request.method(), request.uri().path()) {
            (&Method::GET, HTTP_PATH) => UPGRADE,
            (&Method::GET, replicas::HTTP_PATH) => replicas::UPGRADE,
            (_, _) => return status(StatusCode::NOT_FOUND, ""),
        };
        let wanted = request.headers().get(UPGRADE_HEADER);
        if wanted.is_none_or(|wanted| !wanted.as_bytes().eq_ignore_ascii_case(protocol.as_bytes())) {
            let mut answer = status(StatusCode::UPGRADE_REQUIRED, "");
            answer.headers_mut().insert(UPGRADE_HEADER, HeaderValue::from_static(protocol));
            return answer;
        }
        // What a stale watch says may be long over: a revoked trust would come back.
        if let Some(kind) = self.cluster.stale() {
            let mut answer = status(StatusCode::SERVICE_UNAVAILABLE, &format!("waiting for the watch of {kind}\n"));
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            return answer;
        }
        let guest = guest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) if protocol == UPGRADE => {
                    connection::serve(&self, TokioIo::new(upgraded), &ChannelBinding::new(binding), guest).await;
                }
                Ok(upgraded) => {
                    let (stream, keys) = (TokioIo::new(upgraded), self.keys());
                    if let Err(error) = replicas::lead(stream, &binding, &self.cluster, &keys, &self.others).await {
                        tracing::debug!(%error, "a replica's connection ended");
                    }
                }
                Err(error) => tracing::debug!(%error, "an upgrade failed"),
            }
        });
        let mut answer = status(StatusCode::SWITCHING_PROTOCOLS, "");
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        answer.headers_mut().insert(UPGRADE_HEADER, HeaderValue::from_static(protocol));
        answer
    }
}

fn status(code: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *answer.status_mut() = code;
    // There is no second question to ask here, and who keeps asking would keep a place.
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn channel_binding(stream: &TlsStream<TcpStream>) -> io::Result<Zeroizing<[u8; 32]>> {
    let mut exported = Zeroizing::new([0; 32]);
    let (_, connection) = stream.get_ref();
    connection.export_keying_material(&mut exported[..], EXPORTER_LABEL, Some(&[])).map_err(io::Error::other)?;
    Ok(exported)
}

impl Server {
    /// A place among those who have shown who they are.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.room).try_acquire_owned().ok();
        if place.is_none() {
            tracing::warn!("refused an agent: {MAX_CONNECTIONS} are connected");
        }
        place
    }
}

/// Where to listen instead, on a node without IPv6: everywhere is then everywhere of IPv4.
#[must_use]
pub fn present(address: SocketAddr) -> SocketAddr {
    present_where(address, || std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok())
}

fn present_where(address: SocketAddr, has_ipv6: impl FnOnce() -> bool) -> SocketAddr {
    match address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !has_ipv6() {
        true => (Ipv4Addr::UNSPECIFIED, address.port()).into(),
        false => address,
    }
}

/// Listens.
///
/// # Errors
/// When the address cannot be had.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everywhere_is_everywhere_of_ipv4_on_a_node_without_ipv6_and_what_was_chosen_stays() {
        for (chosen, has_ipv6, taken) in [
            ("[::]:8443", true, "[::]:8443"),
            ("[::]:8443", false, "0.0.0.0:8443"),
            ("[::1]:8443", false, "[::1]:8443"),
            ("10.0.0.7:8443", false, "10.0.0.7:8443"),
        ] {
            let chosen = chosen.parse().expect("an address");
            assert_eq!(present_where(chosen, || has_ipv6).to_string(), taken, "{chosen} {has_ipv6}");
        }
    }
}
