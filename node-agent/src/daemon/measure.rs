//! `ping` and `bench`: through the same tunnel and the same path as programs' own streams.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_model::AgentId;
use peerage_model::stream::{StreamHeader, StreamKind, StreamStatus};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};

use super::agent::{Agent, milliseconds};
use super::handler::{json, resolve};
use super::outcomes::of_tunnel;
use super::report::path_of;
use crate::control::server::Reply;
use crate::control::view::{Pong, Throughput};
use crate::control::{Code, Failure};
use crate::tunnel::{Dial, DialError, Opened, TunnelStream};

/// An echo that takes longer is lost; the engine itself calls a path silent after less.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the peer may take to count what is still on its way when a bench ends.
const COUNT_PATIENCE: Duration = Duration::from_secs(30);
/// Longest bench; it is somebody's line.
const MAX_SECONDS: u32 = 600;
/// Bytes written at a time.
const CHUNK: usize = 128 * 1024;

type Sender = mpsc::Sender<Result<Value, Failure>>;

/// Echoes `count` small messages, one after the other.
pub(super) fn ping(agent: Arc<Agent>, name: &str, count: u32, interval: Duration) -> Result<Reply, Failure> {
    let (peer, _) = resolve(&agent, name)?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let pinging = ping_peer(&agent, &peer, count, interval, &sender);
        let result = tokio::select! {
            result = pinging => result,
            () = sender.closed() => return,
        };
        if let Err(failure) = result {
            // The caller may be gone.
            let _ = sender.send(Err(failure)).await;
        }
    });
    Ok(Reply::Stream(receiver))
}

async fn ping_peer(
    agent: &Agent,
    peer: &AgentId,
    count: u32,
    interval: Duration,
    sender: &Sender,
) -> Result<(), Failure> {
    let mut stream = open(agent, peer, StreamKind::Echo).await?;
    // Brings the session up, so that the first round trip shown is not the handshake's.
    let first = echo(&mut stream, 0).await;
    agent.edge.outbound.ended(peer, 0, &first);
    first.map_err(|error| lost(peer, &error))?;
    for seq in 1..=count {
        let begun = Instant::now();
        let rtt = match timeout(PATIENCE, echo(&mut stream, seq)).await {
            Ok(result) => {
                result.map_err(|error| lost(peer, &error))?;
                Some(milliseconds(begun.elapsed()))
            }
            // The late answer must not be taken for the next one's.
            Err(_) => {
                stream = open(agent, peer, StreamKind::Echo).await?;
                None
            }
        };
        let path = path_of(&agent.link.status().await, peer);
        if sender.send(Ok(json(&Pong { seq, rtt_ms: rtt, path }))).await.is_err() {
            return Ok(());
        }
        if seq < count {
            sleep_until((begun + interval).into()).await;
        }
    }
    Ok(())
}

async fn echo(stream: &mut TunnelStream, seq: u32) -> std::io::Result<()> {
    stream.write_u32(seq).await?;
    stream.flush().await?;
    match stream.read_u32().await? {
        back if back == seq => Ok(()),
        _ => Err(std::io::Error::other("the peer echoed something else")),
    }
}

/// Sends for `seconds` as fast as it goes, and lets the peer count.
pub(super) fn bench(agent: Arc<Agent>, name: &str, seconds: u32) -> Result<Reply, Failure> {
    if !(1..=MAX_SECONDS).contains(&seconds) {
        return Err(Failure::bad_request(format!("a bench lasts 1 to {MAX_SECONDS} seconds")));
    }
    let (peer, _) = resolve(&agent, name)?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let benching = bench_peer(&agent, &peer, Duration::from_secs(seconds.into()), &sender);
        let result = tokio::select! {
            result = benching => result,
            () = sender.closed() => return,
        };
        if let Err(failure) = result {
            let _ = sender.send(Err(failure)).await;
        }
    });
    Ok(Reply::Stream(receiver))
}

async fn bench_peer(agent: &Agent, peer: &AgentId, length: Duration, sender: &Sender) -> Result<(), Failure> {
    let mut stream = open(agent, peer, StreamKind::Discard).await?;
    let chunk = vec![0x5a; CHUNK];
    let begun = Instant::now();
    let (mut sent, mut next_report) = (0_u64, Duration::from_secs(1));
    while begun.elapsed() < length {
        let written = timeout(COUNT_PATIENCE, stream.write(&chunk)).await;
        let written = written.map_err(|_| slow(peer))?.map_err(|error| lost(peer, &error))?;
        sent += written as u64;
        if begun.elapsed() >= next_report {
            next_report += Duration::from_secs(1);
            let path = path_of(&agent.link.status().await, peer);
            let _ = sender.send(Ok(json(&throughput(sent, begun.elapsed(), path, false)))).await;
        }
    }
    stream.shutdown().await.map_err(|error| lost(peer, &error))?;
    // Until the peer has counted the last byte, the clock runs: what lies in buffers has not gone through.
    let counted = timeout(COUNT_PATIENCE, stream.read_u64()).await;
    let counted = counted.map_err(|_| slow(peer))?.map_err(|error| lost(peer, &error))?;
    let path = path_of(&agent.link.status().await, peer);
    let _ = sender.send(Ok(json(&throughput(counted, begun.elapsed(), path, true)))).await;
    Ok(())
}

fn throughput(bytes: u64, took: Duration, path: Option<String>, done: bool) -> Throughput {
    let seconds = took.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "2^53 bytes are 9 PB; no bench sends that")]
    let gbit_per_s = bytes as f64 * 8.0 / seconds / 1e9;
    Throughput { bytes, seconds, gbit_per_s, path, done }
}

async fn open(agent: &Agent, peer: &AgentId, kind: StreamKind) -> Result<TunnelStream, Failure> {
    match Dial::dial(&*agent.link, peer, StreamHeader { kind, port: 0 }).await? {
        Opened::Stream(stream) => Ok(stream),
        Opened::Flow(_) => {
            let status = StreamStatus::Unsupported;
            Err(DialError::Refused { peer: peer.clone(), port: 0, status }.into())
        }
    }
}

fn lost(peer: &AgentId, error: &std::io::Error) -> Failure {
    of_tunnel(error).unwrap_or_else(|| {
        Failure::new(
            Code::SessionEnded,
            format!("the stream to `{}` ended: {error}", peer.name),
            "`peerage peers` says how it stands with that peer",
        )
    })
}

fn slow(peer: &AgentId) -> Failure {
    Failure::new(
        Code::TimedOut,
        format!("`{}` took nothing for {} s", peer.name, COUNT_PATIENCE.as_secs()),
        "`peerage peers` says how it stands with that peer",
    )
}
