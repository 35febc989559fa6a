//! A whole agent, in the simulator's world: the world itself fails the target at the first byte that an agent sends to
//! who is not its trusted peer.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_sim::nat::NatKind;
use peerage_sim::{Packet, Sim};

use crate::feed::Feed;
use crate::wire::sealed;

/// A script against one of two agents that have a session and an open stream. Whatever comes, from any address, also
/// from that of a relay or of the peer: no panic, no answer to a stranger, and the stream still works afterwards.
pub fn node(data: &[u8]) {
    let mut feed = Feed::new(data);
    let nat = [NatKind::none(), NatKind::home_router()][feed.below(2)];
    let mut sim = Sim::seeded_pair(1, nat, NatKind::none());
    let tape = sim.record();
    let up = sim.run_until(Duration::from_secs(10), |sim| sim.both_up("a", "b"));
    assert!(up.is_some(), "a session comes up by itself");
    // What is repeated later has long arrived: whoever brings a check first is answered, and may be.
    sim.run_for(Duration::from_secs(3));
    let victim = sim.public_address("b");
    let recorded = tape.only(|packet: &Packet| packet.to == victim);
    let stream = sim.request("a", "b", b"before");
    let senders = [sim.add_stranger(), sim.public_address("a"), sim.relay_address("r1"), sim.relay_address("r2")];
    for _ in 0..24 {
        if feed.is_empty() {
            break;
        }
        let from = sender(&senders, &mut feed);
        match feed.u8() % 4 {
            0 => sim.inject(from, victim, feed.bytes(1500)),
            1 => {
                let Some(packet) = recorded.get(feed.below(recorded.len())) else { continue };
                let mut bytes = packet.bytes.to_vec();
                feed.mutate(&mut bytes);
                sim.inject(from, victim, &bytes);
            }
            2 => {
                let attributes = feed.bytes(64);
                sim.inject(from, victim, &sealed(1, [8; 12], attributes));
            }
            _ => sim.run_for(Duration::from_millis(u64::from(feed.u8()))),
        }
    }
    let done = sim.run_until(Duration::from_secs(60), |sim| sim.delivered(stream) == b"before");
    assert!(done.is_some(), "the stream works");
}

fn sender(senders: &[SocketAddr], feed: &mut Feed<'_>) -> SocketAddr {
    match feed.below(6) {
        known @ 0..=3 => senders[known],
        _ => feed.address(),
    }
}
