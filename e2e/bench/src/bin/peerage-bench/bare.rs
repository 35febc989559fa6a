//! quinn as it comes, with TLS 1.3: what a program would get that used QUIC itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Result;
use crate::network::Place;

/// Bytes that one write hands over.
const CHUNK: usize = 1 << 20;

/// Sends `bytes` over one stream from `client` to `server`. Returns how long it took from the first byte until the
/// server had counted the last, and how long the handshake took.
pub fn transfer(client: &Place, server: &Place, bytes: usize) -> Result<(Duration, Duration)> {
    let (server_config, client_config) = configs()?;
    let (address, addressed) = std::sync::mpsc::channel();
    let at = server.address(0);
    let serving = server.thread(move || {
        block_on(async {
            let endpoint = Endpoint::server(server_config, at)?;
            address.send(endpoint.local_addr()?)?;
            serve(&endpoint).await
        })
    })?;
    let to = addressed.recv()?;
    let from = client.address(0);
    let sending = client.thread(move || {
        block_on(async {
            let mut endpoint = Endpoint::client(from)?;
            endpoint.set_default_client_config(client_config);
            send(&endpoint, to, bytes).await
        })
    })?;
    let took = sending.join().map_err(|_| "the client panicked")??;
    serving.join().map_err(|_| "the server panicked")??;
    Ok(took)
}

async fn serve(endpoint: &Endpoint) -> Result<()> {
    let connection = endpoint.accept().await.ok_or("the endpoint closed")?.await?;
    let (mut answer, mut stream) = connection.accept_bi().await?;
    let mut total = 0;
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
        total += chunk.bytes.len() as u64;
    }
    answer.write_all(&total.to_be_bytes()).await?;
    answer.finish()?;
    connection.closed().await;
    Ok(())
}

async fn send(endpoint: &Endpoint, to: SocketAddr, bytes: usize) -> Result<(Duration, Duration)> {
    let dialed = Instant::now();
    let connection = endpoint.connect(to, "server")?.await?;
    let handshake = dialed.elapsed();
    let block = Bytes::from(vec![0x5a; CHUNK]);
    let (mut stream, mut answer) = connection.open_bi().await?;
    let started = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let part = left.min(block.len());
        stream.write_chunk(block.slice(..part)).await?;
        left -= part;
    }
    stream.finish()?;
    let mut counted = [0; 8];
    answer.read_exact(&mut counted).await?;
    let took = started.elapsed();
    if u64::from_be_bytes(counted) != bytes as u64 {
        return Err("bytes were lost".into());
    }
    connection.close(VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
    Ok((took, handshake))
}

fn block_on<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    // As quinn's own benchmark does it: one thread a side.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(job)
}

/// quinn's defaults, but for flow-control windows as large as ours: the default would throttle it.
fn configs() -> Result<(ServerConfig, ClientConfig)> {
    let made = rcgen::generate_simple_self_signed(vec!["server".into()])?;
    let certificate = CertificateDer::from(made.cert);
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone())?;
    let client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(8 << 20))
        .receive_window(VarInt::from_u32(16 << 20))
        .send_window(16 << 20);
    let transport = Arc::new(transport);
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
    server.transport_config(Arc::clone(&transport));
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
    client.transport_config(transport);
    Ok((server, client))
}
