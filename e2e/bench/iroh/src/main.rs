//! TCP through one iroh connection: what a program gets that uses the crate as its first example shows.
//!
//! A connection between two endpoints lives as long as both do; each TCP connection becomes one bidirectional stream,
//! whose first two bytes say which port of the other side's loopback is meant. The relay is iroh's own, without TLS of its
//! own around what is encrypted already.
//!
//! ```text
//! peerage-bench-iroh relay LISTEN
//! peerage-bench-iroh serve LISTEN direct|RELAY-URL          prints its id when it can be dialled
//! peerage-bench-iroh dial ID ADDRESS direct|RELAY-URL LISTEN=PORT...
//! ```

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use iroh::endpoint::{Connection, RecvStream, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, RelayMode, RelayUrl};
use iroh_relay::server::{RelayConfig, Server, ServerConfig};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ALPN: &[u8] = b"peerage-bench/1";
/// What one read takes at most.
const CHUNK: usize = 128 * 1024;

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["relay", listen] => relay(listen.parse()?).await,
        ["serve", listen, way] => serve(listen.parse()?, way).await,
        ["dial", id, address, way, forwards @ ..] => dial(id, address.parse()?, way, forwards).await,
        _ => Err("relay LISTEN | serve LISTEN WAY | dial ID ADDRESS WAY LISTEN=PORT...".into()),
    }
}

async fn relay(listen: SocketAddr) -> Result<()> {
    let mut config = ServerConfig::default();
    config.relay = Some(RelayConfig::new(listen));
    let mut server = Server::spawn(config).await?;
    println!("http://{}", server.http_addr().unwrap_or(listen));
    Ok(server.join().await??)
}

/// An endpoint that goes straight, or by this relay and no other way.
async fn endpoint(way: &str, listen: Option<SocketAddr>) -> Result<Endpoint> {
    let mut builder = Endpoint::builder(presets::Minimal).alpns(vec![ALPN.to_vec()]);
    builder = match way {
        "direct" => match listen {
            Some(listen) => builder.relay_mode(RelayMode::Disabled).bind_addr(listen)?,
            None => builder.relay_mode(RelayMode::Disabled),
        },
        relay => builder.relay_mode(RelayMode::custom([relay.parse::<RelayUrl>()?])).clear_ip_transports(),
    };
    let endpoint = builder.bind().await?;
    if way != "direct" {
        endpoint.online().await;
    }
    Ok(endpoint)
}

async fn serve(listen: SocketAddr, way: &str) -> Result<()> {
    let endpoint = endpoint(way, Some(listen)).await?;
    println!("{}", endpoint.id());
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            // Who goes away is gone; there is nobody to tell.
            let connection = incoming.await?;
            loop {
                let (send, recv) = connection.accept_bi().await?;
                tokio::spawn(deliver(send, recv));
            }
            #[expect(unreachable_code, reason = "says what the block fails with")]
            Result::Ok(())
        });
    }
    Ok(())
}

async fn deliver(send: SendStream, mut recv: RecvStream) -> Result<()> {
    let mut port = [0; 2];
    recv.read_exact(&mut port).await?;
    let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, u16::from_be_bytes(port))).await?;
    join(tcp, send, recv).await
}

/// The connection to the other side, made when it is first needed and again when it has ended.
struct Dialler {
    endpoint: Endpoint,
    to: EndpointAddr,
    connection: Mutex<Option<Connection>>,
}

async fn dial(id: &str, address: SocketAddr, way: &str, forwards: &[&str]) -> Result<()> {
    let to = EndpointAddr::new(id.parse()?);
    let to = match way {
        "direct" => to.with_ip_addr(address),
        relay => to.with_relay_url(relay.parse()?),
    };
    let dialler = Arc::new(Dialler { endpoint: endpoint(way, None).await?, to, connection: Mutex::default() });
    let mut last = None;
    for forward in forwards {
        let (listen, port) = forward.split_once('=').ok_or("a forward is LISTEN=PORT")?;
        let listener = TcpListener::bind(listen).await?;
        last = Some(tokio::spawn(forward_all(Arc::clone(&dialler), listener, port.parse()?)));
    }
    last.ok_or("nothing to forward")?.await?
}

async fn forward_all(dialler: Arc<Dialler>, listener: TcpListener, port: u16) -> Result<()> {
    loop {
        let (tcp, _) = listener.accept().await?;
        let dialler = Arc::clone(&dialler);
        tokio::spawn(async move {
            let (mut send, recv) = dialler.connection().await?.open_bi().await?;
            send.write_all(&port.to_be_bytes()).await?;
            join(tcp, send, recv).await
        });
    }
}

impl Dialler {
    async fn connection(&self) -> Result<Connection> {
        let mut held = self.connection.lock().await;
        match &*held {
            Some(connection) if connection.close_reason().is_none() => Ok(connection.clone()),
            _ => {
                let connection = self.endpoint.connect(self.to.clone(), ALPN).await?;
                *held = Some(connection.clone());
                Ok(connection)
            }
        }
    }
}

async fn join(mut tcp: TcpStream, send: SendStream, recv: RecvStream) -> Result<()> {
    tcp.set_nodelay(true)?;
    let mut stream = tokio::io::join(recv, send);
    copy_bidirectional_with_sizes(&mut tcp, &mut stream, CHUNK, CHUNK).await?;
    Ok(())
}
