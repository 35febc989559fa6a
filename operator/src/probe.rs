//! Whether relays answer: a STUN Binding request (RFC 8489 section 2) over UDP, as every agent behind a NAT sends one.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use peerage_model::relay::RelayInfo;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::leader::Leadership;
use crate::status::Finding;

/// How often relays are probed.
const EVERY: Duration = Duration::from_secs(30);
/// How soon after their list changed.
const SOON: Duration = Duration::from_millis(500);
/// How often a probe is sent before a relay counts as silent: UDP loses packets.
const TRIES: u32 = 4;
/// How long each waits.
const WAIT: Duration = Duration::from_millis(500);
/// RFC 8489 section 5.
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// Probes all relays while this replica leads, for ever.
pub async fn run(cluster: Arc<Cluster>, mut leadership: watch::Receiver<Leadership>, found: mpsc::Sender<Finding>) {
    let mut changes = cluster.changes();
    loop {
        if leadership.wait_for(|leadership| *leadership == Leadership::Ours).await.is_err() {
            return;
        }
        let relays = relays(&cluster);
        for (name, all) in &relays {
            let mut answer = true;
            for relay in all {
                answer &= answers(relay).await;
            }
            if found.send(Finding::Answers(name.clone(), answer)).await.is_err() {
                return;
            }
        }
        let changed = async {
            while self::relays(&cluster) == relays && changes.changed().await.is_ok() {
                tokio::time::sleep(SOON).await;
            }
        };
        let _ = timeout(EVERY, changed).await;
    }
}

fn relays(cluster: &Cluster) -> BTreeMap<String, Vec<RelayInfo>> {
    let state = cluster.read();
    let placed = state.index.relays().filter(|(_, facts)| !facts.relays.is_empty());
    placed.map(|(name, facts)| (name.clone(), facts.relays.clone())).collect()
}

async fn answers(relay: &RelayInfo) -> bool {
    let Ok(addresses) = tokio::net::lookup_host((relay.host.as_str(), relay.port)).await else { return false };
    for address in addresses {
        if matches!(ask(address).await, Ok(true)) {
            return true;
        }
    }
    false
}

async fn ask(address: SocketAddr) -> std::io::Result<bool> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    let mut request = [0; 20];
    request[1] = 0x01; // Binding request, no attributes
    request[4..8].copy_from_slice(&MAGIC_COOKIE);
    crate::random::fill(&mut request[8..])?;
    let mut answer = [0; 512];
    for _ in 0..TRIES {
        socket.send(&request).await?;
        // An error is an ICMP "port unreachable": the next try may meet a relay that has just started.
        if let Ok(Ok(length)) = timeout(WAIT, socket.recv(&mut answer)).await
            && is_answer(&answer[..length], &request)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A success or error response with our transaction id.
fn is_answer(answer: &[u8], request: &[u8; 20]) -> bool {
    answer.len() >= 20 && answer[0] == 0x01 && matches!(answer[1], 0x01 | 0x11) && answer[4..20] == request[4..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_echoes_our_transaction_is_there_and_who_says_something_else_is_not() {
        for (right, expected) in [(true, true), (false, false)] {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port is free");
            let address = socket.local_addr().expect("it is bound");
            let serving = tokio::spawn(async move {
                let mut buffer = [0; 64];
                loop {
                    let (length, from) = socket.recv_from(&mut buffer).await.expect("a probe");
                    (buffer[0], buffer[1]) = (0x01, 0x01);
                    buffer[19] ^= u8::from(!right);
                    socket.send_to(&buffer[..length], from).await.expect("it goes");
                }
            });
            assert_eq!(ask(address).await.expect("loopback works"), expected);
            serving.abort();
        }
    }
}
