//! UDP both ways: a flow is what one client socket exchanges with one port.
//!
//! A flow lives until it is idle for [`UDP_IDLE`]. Packets wait in a short queue while the flow is dialled and are
//! dropped beyond it, as UDP may. Each flow has its own socket towards the service, so the service tells clients apart.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peerage_model::AgentId;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::buffer::Buffer;
use super::outbound::Outbound;
use super::stats::Stats;
use crate::listen::Backoff;
use crate::tunnel::TunnelFlow;

/// A flow ends after this long without a packet either way. RFC 4787 REQ-5 lets no NAT forget a mapping before two
/// minutes; programs are written for that, and a flow holds a socket at the other end, so no longer either.
pub const UDP_IDLE: Duration = Duration::from_secs(120);
/// Client sockets per peer and port; packets of further ones are dropped until a flow ends.
pub const MAX_FLOWS: usize = 256;
/// Packets that wait for a dial, or for the tunnel to take them.
const QUEUE: usize = 64;
/// A flow that failed keeps its place this long, so that a chatty client causes one dial a second and not one a packet.
const COOL_DOWN: Duration = Duration::from_secs(1);

/// Carries what arrives at `socket` to `port` of `peer`, and answers back to whom they are for. Runs until dropped; the
/// flows end then, too.
pub async fn serve_udp(socket: Arc<UdpSocket>, peer: AgentId, port: u16, outbound: Outbound) {
    let mut flows: BTreeMap<SocketAddr, mpsc::Sender<Bytes>> = BTreeMap::new();
    let mut backoff = Backoff::default();
    loop {
        let (client, packet) = match receive_from(&socket).await {
            Ok(received) => received,
            Err(error) => {
                backoff.failed("receiving a packet", &error).await;
                continue;
            }
        };
        backoff.succeeded();
        if flows.get(&client).is_none_or(mpsc::Sender::is_closed) {
            flows.retain(|_, queue| !queue.is_closed());
            if flows.len() >= MAX_FLOWS {
                outbound.stats.packets_dropped.add(1);
                continue;
            }
            let (queue, packets) = mpsc::channel(QUEUE);
            let end = LocalEnd::Client { socket: socket.clone(), address: client, packets };
            tokio::spawn(carry(end, peer.clone(), port, outbound.clone()));
            flows.insert(client, queue);
        }
        if flows.get(&client).is_some_and(|queue| queue.try_send(packet).is_err()) {
            outbound.stats.packets_dropped.add(1);
        }
    }
}

/// Serves a flow that a peer opened, from `socket`, which is connected to the service.
pub(super) async fn serve_flow(flow: TunnelFlow, socket: UdpSocket, stats: &Stats) {
    LocalEnd::Service(socket).exchange(&flow, stats).await;
}

/// The end of a flow on this machine.
enum LocalEnd {
    /// One client of a socket that is shared by all clients of the port; `packets` has what it sent.
    Client { socket: Arc<UdpSocket>, address: SocketAddr, packets: mpsc::Receiver<Bytes> },
    /// A socket of the flow's own, connected to the service.
    Service(UdpSocket),
}

/// Dials for a client and carries its packets.
async fn carry(mut client: LocalEnd, peer: AgentId, port: u16, outbound: Outbound) {
    let started = Instant::now();
    if let Ok(flow) = outbound.open_flow(&peer, port).await {
        outbound.stats.outbound.add(1);
        let _open = outbound.stats.open.hold();
        client.exchange(&flow, &outbound.stats).await;
    }
    if started.elapsed() < COOL_DOWN {
        sleep(COOL_DOWN).await;
    }
}

impl LocalEnd {
    /// Packets both ways until either side ends or both are idle.
    async fn exchange(&mut self, flow: &TunnelFlow, stats: &Stats) {
        let mut last_packet = Instant::now();
        // One future over many rounds, so a packet is not lost with a future dropped halfway.
        let mut receiving = flow.recv();
        loop {
            tokio::select! {
                packet = self.next() => {
                    let Some(packet) = packet else { return };
                    stats.bytes_sent.add(packet.len() as u64);
                    if flow.send(packet).is_err() {
                        // Too large, or the flow has ended; in that case `recv` says so.
                        stats.packets_dropped.add(1);
                    }
                }
                packet = &mut receiving => {
                    let Some(packet) = packet else { return };
                    stats.bytes_received.add(packet.len() as u64);
                    self.give(&packet).await;
                    receiving = flow.recv();
                }
                () = sleep_until(last_packet + UDP_IDLE) => return,
            }
            last_packet = Instant::now();
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        match self {
            Self::Client { packets, .. } => packets.recv().await,
            Self::Service(socket) => loop {
                match receive_from(socket).await {
                    Ok((_, packet)) => return Some(packet),
                    // The service is not there yet, or again; its client hears nothing and asks again.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(_) => return None,
                }
            },
        }
    }

    /// A failure to send is a lost packet.
    async fn give(&self, packet: &[u8]) {
        drop(match self {
            Self::Client { socket, address, .. } => socket.send_to(packet, *address).await,
            Self::Service(socket) => socket.send(packet).await,
        });
    }
}

/// Waits without a buffer, and borrows one for the moment of receiving. Safe to drop at any point.
async fn receive_from(socket: &UdpSocket) -> io::Result<(SocketAddr, Bytes)> {
    loop {
        socket.readable().await?;
        let mut buffer = Buffer::take();
        match socket.try_recv_from(&mut buffer) {
            Ok((length, from)) => return Ok((from, Bytes::copy_from_slice(&buffer[..length]))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
