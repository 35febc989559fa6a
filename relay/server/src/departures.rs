//! What leaves a worker: each packet to its destination, with as few system calls as it takes.
//!
//! A call costs more than a packet. So what goes to one client leaves in one GSO batch, and such batches to many clients leave in one
//! call. For that, packets are sorted by where they go; those to one destination keep their order, and more is promised to nobody.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use peerage_relay_proto::{Reply, StreamId};

use crate::sendmmsg::Message;
use crate::socket::{BatchSocket, Envelope};
use crate::worker::Shared;

/// The most that GSO takes: an IPv4 packet with its headers has 65 535 bytes.
const MAX_JOINED: usize = 65_000;

/// Something to send, decided while the relay's lock was held.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Reply(Envelope, Reply),
    /// Bytes of the memory that was received into.
    Forward(Envelope, Range<usize>),
    ReplyToStream(StreamId, Reply),
    /// The same, in segments of this size.
    ForwardToStream(StreamId, Range<usize>, usize),
}

/// Sends what was decided. Waits for the kernel where UDP goes out, never for a stream.
pub(crate) async fn send_all(socket: &BatchSocket, shared: &Shared, memory: &[u8], outgoing: &[Outgoing]) {
    let (mut packets, most) = (Vec::with_capacity(outgoing.len()), socket.most_joined());
    for what in outgoing {
        match what {
            Outgoing::Reply(envelope, reply) => match answer_from_elsewhere(shared, envelope.to, reply).await {
                Some(sent) => shared.count_send(sent),
                None => packets.push(Packet { envelope, bytes: reply.as_bytes() }),
            },
            Outgoing::Forward(envelope, range) => {
                let batches = memory[range.clone()].chunks(most * envelope.segment);
                packets.extend(batches.map(|bytes| Packet { envelope, bytes }));
            }
            Outgoing::ReplyToStream(id, reply) => {
                shared.streams.push(*id, reply.as_bytes(), reply.as_bytes().len());
            }
            Outgoing::ForwardToStream(id, range, segment) => {
                shared.streams.push(*id, &memory[range.clone()], *segment);
            }
        }
    }
    send_packets(socket, shared, &packets).await;
}

/// What a STUN request asked to be sent from another place than where everything leaves from.
async fn answer_from_elsewhere(shared: &Shared, to: SocketAddr, reply: &Reply) -> Option<io::Result<()>> {
    shared.discovery.as_ref()?.send(to, reply).await
}

/// One datagram, or a batch of them that came joined, no longer than GSO takes.
#[derive(Clone, Copy)]
struct Packet<'a> {
    envelope: &'a Envelope,
    bytes: &'a [u8],
}

async fn send_packets(socket: &BatchSocket, shared: &Shared, packets: &[Packet<'_>]) {
    let order = by_destination(packets);
    let parts: Vec<_> = order.iter().map(|number| IoSlice::new(packets[*number].bytes)).collect();
    let (mut messages, mut at) = (Vec::with_capacity(parts.len()), 0);
    while let Some((first, more)) = order[at..].split_first() {
        let more = more.iter().map(|number| packets[*number]);
        let count = 1 + joinable(packets[*first], more, socket.most_joined());
        messages.push(Message { envelope: *packets[*first].envelope, parts: &parts[at..at + count] });
        at += count;
    }
    socket.send_many(&mut messages, |error| shared.count_send(Err(error))).await;
}

/// The numbers of packets, those to one destination in their order and beside each other. Two destinations whose sums are the same
/// may lie between each other, which costs them their batches and nothing else.
fn by_destination(packets: &[Packet<'_>]) -> Vec<usize> {
    let sum = |to: SocketAddr| {
        let ip = match to.ip() {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 ^ ip.to_bits() as u64,
        };
        // Multiplied by 2^64 over the golden ratio, the upper half depends on all bits (Knuth, volume 3, 6.4).
        (ip ^ u64::from(to.port()) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    };
    let mut order: Vec<_> =
        packets.iter().enumerate().map(|(n, packet)| sum(packet.envelope.to) << 32 | n as u64).collect();
    order.sort_unstable();
    order.into_iter().map(|packet| (packet & u64::from(u32::MAX)) as usize).collect()
}

/// How many of what follows can leave in one GSO batch of at most so many datagrams with the first.
fn joinable<'a>(first: Packet<'a>, more: impl Iterator<Item = Packet<'a>>, most: usize) -> usize {
    let Envelope { segment, .. } = *first.envelope;
    let (mut last, mut bytes) = (first.bytes.len(), first.bytes.len());
    let follows = |next: &Packet<'_>| {
        // Only the last packet of a batch may be shorter.
        let whole = last.is_multiple_of(segment);
        last = next.bytes.len();
        bytes += last;
        let single = last <= next.envelope.segment && last <= segment;
        let fits = bytes <= MAX_JOINED && bytes <= most * segment;
        whole && fits && next.envelope.is_to_the_same(first.envelope) && (single || next.envelope.segment == segment)
    };
    more.take_while(follows).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 300] = [0; 300];

    fn envelope(to: u16, segment: usize) -> Envelope {
        Envelope { to: SocketAddr::from(([192, 0, 2, 1], to)), local: None, ecn: None, segment }
    }

    /// How many of these, each with its destination, its segments' size and its length, leave with a packet of 100 bytes to the first.
    fn joined_with_a_packet_of_100(more: &[(u16, usize, usize)]) -> usize {
        joined_at_most(64, more)
    }

    fn joined_at_most(most: usize, more: &[(u16, usize, usize)]) -> usize {
        let envelopes: Vec<_> = more.iter().map(|(to, segment, _)| envelope(*to, *segment)).collect();
        let more = envelopes.iter().zip(more).map(|(envelope, (_, _, len))| Packet { envelope, bytes: &BYTES[..*len] });
        joinable(Packet { envelope: &envelope(1, 100), bytes: &BYTES[..100] }, more, most)
    }

    #[test]
    fn equal_packets_to_one_address_leave_together_and_the_last_may_be_shorter() {
        assert_eq!(joined_with_a_packet_of_100(&[(1, 100, 100), (1, 100, 300), (1, 40, 40)]), 3);
        assert_eq!(joined_with_a_packet_of_100(&[(1, 40, 40), (1, 100, 100)]), 1);
    }

    #[test]
    fn what_goes_elsewhere_is_longer_or_is_cut_otherwise_leaves_by_itself() {
        assert_eq!(joined_with_a_packet_of_100(&[(2, 100, 100)]), 0);
        assert_eq!(joined_with_a_packet_of_100(&[(1, 120, 120)]), 0);
        assert_eq!(joined_with_a_packet_of_100(&[(1, 50, 100)]), 0);
    }

    #[test]
    fn no_batch_is_longer_or_of_more_packets_than_gso_takes() {
        assert_eq!(joined_with_a_packet_of_100(&[(1, 100, 100); 700]), 63);
        assert_eq!(joined_at_most(usize::MAX >> 8, &[(1, 100, 100); 700]), MAX_JOINED / 100 - 1);
        assert_eq!(joined_at_most(1, &[(1, 100, 100); 2]), 0, "no GSO");
    }

    #[test]
    fn packets_to_one_destination_lie_beside_each_other_in_their_order() {
        let envelopes: Vec<_> = (0..1_000).map(|n| envelope(n % 64, 100)).collect();
        let packets: Vec<_> = envelopes.iter().map(|envelope| Packet { envelope, bytes: &BYTES[..100] }).collect();
        let order = by_destination(&packets);
        let changes = order.windows(2).filter(|pair| envelopes[pair[0]].to != envelopes[pair[1]].to).count();
        assert_eq!((order.len(), changes), (1_000, 63));
        let in_order = |pair: &[usize]| envelopes[pair[0]].to != envelopes[pair[1]].to || pair[0] < pair[1];
        assert!(order.windows(2).all(in_order));
    }
}
