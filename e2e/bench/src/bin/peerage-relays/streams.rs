//! Clients of a relay by TLS, as where UDP is blocked: a stream each, and in it the state machine that agents use.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_bench::people::random;
use peerage_bench::{Error, Result};
use peerage_engine::relay::{ClientConfig, RelayClient, RelayEvent};
use peerage_model::AgreementKey;
use peerage_model::AgreementSecret;
use peerage_model::relay::stream::{ChannelBinding, EXPORTER_LABEL, PREFIX, frame_len, open, prefix, proves};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use crate::stage::{Running, Stage, address};

/// Streams that are being opened at one time.
const AT_ONCE: usize = 64;
/// How long one may take to be of use, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Clients, each a task of one thread.
pub struct Crowd {
    runtime: Runtime,
    tls: TlsConnector,
    to: SocketAddr,
    key: AgreementKey,
    /// What happens to clients: one is bound, or ended.
    told: mpsc::UnboundedReceiver<Result<()>>,
    tell: mpsc::UnboundedSender<Result<()>>,
    room: Arc<Semaphore>,
}

impl Crowd {
    pub fn new(relay: &Running) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tell, told) = mpsc::unbounded_channel();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, relay.info.tls_port()));
        let tls = TlsConnector::from(peerage_tls::client()?);
        Ok(Self { runtime, tls, to, key: relay.info.key, told, tell, room: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    /// Opens streams, some at a time, until all these clients are bound.
    pub fn bind(&mut self, stage: &Stage, relay: &Running, numbers: Range<u32>) -> Result<()> {
        for number in numbers.clone() {
            let client = Connecting {
                config: stage.client(relay, number),
                from: SocketAddr::new(IpAddr::V4(address(number)), 0),
                to: self.to,
                key: self.key,
                tls: self.tls.clone(),
            };
            let (tell, room) = (self.tell.clone(), Arc::clone(&self.room));
            self.runtime.spawn(async move {
                let ended = client.run(&room, &tell).await;
                // Whoever counted us has gone, when this fails.
                let _ = tell.send(ended);
            });
        }
        let told = &mut self.told;
        self.runtime.block_on(async {
            for _ in numbers {
                told.recv().await.ok_or("nobody tells")??;
            }
            Ok(())
        })
    }

    /// Lets them say that they are there, for a while; fails when one ends.
    pub fn idle(&mut self, time: Duration) -> Result<()> {
        let told = &mut self.told;
        let ended = self.runtime.block_on(async { tokio::time::timeout(time, told.recv()).await });
        match ended {
            Err(_elapsed) => Ok(()),
            Ok(told) => Err(told.and_then(Result::err).unwrap_or_else(|| "a client has ended".into())),
        }
    }
}

struct Connecting {
    config: ClientConfig,
    from: SocketAddr,
    to: SocketAddr,
    key: AgreementKey,
    tls: TlsConnector,
}

impl Connecting {
    async fn run(self, room: &Semaphore, tell: &mpsc::UnboundedSender<Result<()>>) -> Result<()> {
        let permit = room.acquire().await?;
        let begun = Instant::now();
        let mut stream = self.connect().await?;
        let mut relay = RelayClient::new(self.config, random(), Instant::now());
        let mut received = Vec::new();
        while !step(&mut stream, &mut relay, &mut received).await? {
            if begun.elapsed() > PATIENCE {
                return Err("the relay did not take a client".into());
            }
        }
        drop(permit);
        tell.send(Ok(()))?;
        loop {
            step(&mut stream, &mut relay, &mut received).await?;
        }
    }

    /// TLS, then OPEN and PROOF.
    async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(self.from)?;
        let socket = socket.connect(self.to).await?;
        socket.set_nodelay(true)?;
        let mut stream = self.tls.connect(ServerName::IpAddress(self.to.ip().into()), socket).await?;
        let exported = stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, Some(&[]))?;
        let e = AgreementSecret::from_bytes(random());
        write(&mut stream, &open(&e.public())).await?;
        let mut received = Vec::new();
        let proof = loop {
            if let Some(frame) = take_frame(&mut received)? {
                break frame;
            }
            read(&mut stream, &mut received).await?;
        };
        match proves(&proof, &ChannelBinding::new(Zeroizing::new(exported)), &self.key, &e) {
            true => Ok(stream),
            false => Err("that is not the relay".into()),
        }
    }
}

/// Says what there is to say, and waits until something comes or is due; whether the relay took the client in.
async fn step(stream: &mut TlsStream<TcpStream>, relay: &mut RelayClient, received: &mut Vec<u8>) -> Result<bool> {
    while let Some(frame) = relay.poll_transmit() {
        write(stream, &frame).await?;
    }
    match relay.poll_event() {
        Some(RelayEvent::Ready { .. }) => return Ok(true),
        None | Some(RelayEvent::Others) => {}
        Some(other) => return Err(format!("the relay is lost: {other:?}").into()),
    }
    let due = relay.poll_timeout().unwrap_or_else(|| Instant::now() + PATIENCE);
    match tokio::time::timeout_at(due.into(), read(stream, received)).await {
        Ok(read) => read?,
        Err(_elapsed) => relay.handle_timeout(Instant::now()),
    }
    while let Some(frame) = take_frame(received)? {
        relay.handle_datagram(Instant::now(), &frame);
    }
    Ok(false)
}

async fn write(stream: &mut TlsStream<TcpStream>, frame: &[u8]) -> Result<()> {
    stream.write_all(&[&prefix(frame.len())[..], frame].concat()).await?;
    Ok(stream.flush().await?)
}

async fn read(stream: &mut TlsStream<TcpStream>, received: &mut Vec<u8>) -> Result<()> {
    match stream.read_buf(received).await? {
        0 => Err(Error::from("the relay has closed the stream")),
        _ => Ok(()),
    }
}

fn take_frame(received: &mut Vec<u8>) -> Result<Option<Vec<u8>>> {
    let Some(len) = frame_len(received)? else { return Ok(None) };
    if received.len() < PREFIX + len {
        return Ok(None);
    }
    let frame = received[PREFIX..PREFIX + len].to_vec();
    received.drain(..PREFIX + len);
    Ok(Some(frame))
}
