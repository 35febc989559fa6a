//! A UDP datagram in a frame: reading and rewriting its addresses, and cutting a batch into packets.
//!
//! A frame is a virtio-net header (10 bytes), an Ethernet header (14) and an IPv4 packet. The first comes from the
//! kernel with every frame and says two things: the UDP checksum may be partial (only the pseudo header is summed so
//! far), and the frame may be a batch, many datagrams of one size behind one header, as UDP segmentation offload makes
//! them. Both are kept as they are whenever possible: that is where the lab's speed comes from.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::netlink::Mac;

/// Bytes in front of the IPv4 header.
pub(crate) const HEADROOM: usize = VNET_BYTES + ETHERNET_BYTES;

/// Bytes of the virtio-net header.
pub(crate) const VNET_BYTES: usize = 10;
const ETHERNET_BYTES: usize = 14;
const UDP_BYTES: usize = 8;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is partial.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_NONE` and `VIRTIO_NET_HDR_GSO_UDP_L4`.
const GSO_NONE: u8 = 0;
const GSO_UDP: u8 = 5;

/// A frame that has been checked to hold one UDP datagram, or a batch of them, over IPv4.
#[derive(Debug)]
pub(crate) struct Datagram<'a> {
    frame: &'a mut [u8],
    /// Where the UDP header begins.
    udp: usize,
}

impl<'a> Datagram<'a> {
    /// Nothing for what is not UDP over IPv4, is a fragment, or contradicts its own lengths.
    pub(crate) fn parse(frame: &'a mut [u8]) -> Option<Self> {
        let ip = frame.get(HEADROOM..)?;
        let header = usize::from(*ip.first()? & 0x0f) * 4;
        let is_ipv4 = ip[0] >> 4 == 4 && header >= 20 && ip.len() >= header + UDP_BYTES;
        if !is_ipv4 || ip[9] != libc::IPPROTO_UDP as u8 {
            return None;
        }
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
        if fragment || total > ip.len() || total < header + UDP_BYTES {
            return None;
        }
        let gso = frame[1];
        let whole = gso == GSO_NONE || (gso == GSO_UDP && u16_at(frame, 4) > 0);
        whole.then_some(Self { frame, udp: HEADROOM + header })
    }

    pub(crate) fn source(&self) -> SocketAddrV4 {
        self.endpoint(HEADROOM + 12, self.udp)
    }

    pub(crate) fn destination(&self) -> SocketAddrV4 {
        self.endpoint(HEADROOM + 16, self.udp + 2)
    }

    /// How many routers it may pass.
    pub(crate) fn hop_limit(&self) -> u8 {
        self.frame[HEADROOM + 8]
    }

    pub(crate) fn set_source(&mut self, to: SocketAddrV4) {
        self.set_endpoint(HEADROOM + 12, self.udp, to);
    }

    pub(crate) fn set_destination(&mut self, to: SocketAddrV4) {
        self.set_endpoint(HEADROOM + 16, self.udp + 2, to);
    }

    /// Writes the Ethernet addresses for the last hop.
    pub(crate) fn set_macs(&mut self, to: Mac, from: Mac) {
        self.frame[VNET_BYTES..VNET_BYTES + 6].copy_from_slice(&to);
        self.frame[VNET_BYTES + 6..VNET_BYTES + 12].copy_from_slice(&from);
    }

    /// How many packets this is on the wire.
    pub(crate) fn packets(&self) -> usize {
        if self.is_batch() { self.payload().len().div_ceil(self.segment_bytes()).max(1) } else { 1 }
    }

    /// Bytes on the wire, IP and UDP headers included.
    pub(crate) fn wire_bytes(&self) -> usize {
        self.payload().len() + self.packets() * (self.udp - HEADROOM + UDP_BYTES)
    }

    pub(crate) fn is_batch(&self) -> bool {
        self.frame[1] == GSO_UDP && self.payload().len() > self.segment_bytes()
    }

    /// The batch as single frames. Their checksums are partial: the receiving kernel takes them as good.
    pub(crate) fn split(&self) -> Vec<Vec<u8>> {
        let header = &self.frame[..self.udp + UDP_BYTES];
        let first_id = u16_at(header, HEADROOM + 4).to_be();
        let single = |(n, payload): (usize, &[u8])| {
            let mut frame = [header, payload].concat();
            self.write_vnet(&mut frame);
            let udp_bytes = (UDP_BYTES + payload.len()) as u16;
            put(&mut frame, HEADROOM + 2, (self.udp - HEADROOM) as u16 + udp_bytes);
            put(&mut frame, HEADROOM + 4, first_id.wrapping_add(n as u16));
            put(&mut frame, HEADROOM + 10, 0);
            let ip_sum = !sum(&frame[HEADROOM..self.udp]);
            put(&mut frame, HEADROOM + 10, ip_sum);
            put(&mut frame, self.udp + 4, udp_bytes);
            let pseudo = add(sum(&frame[HEADROOM + 12..HEADROOM + 20]), add(libc::IPPROTO_UDP as u16, udp_bytes));
            put(&mut frame, self.udp + 6, pseudo);
            frame
        };
        self.payload().chunks(self.segment_bytes()).enumerate().map(single).collect()
    }

    /// One packet whose checksum begins at the UDP header and belongs six bytes into it.
    fn write_vnet(&self, frame: &mut [u8]) {
        let checksum_start = (self.udp - VNET_BYTES) as u16;
        frame[..VNET_BYTES].fill(0);
        frame[0] = NEEDS_CHECKSUM;
        frame[6..8].copy_from_slice(&checksum_start.to_ne_bytes());
        frame[8..10].copy_from_slice(&6_u16.to_ne_bytes());
    }

    fn payload(&self) -> &[u8] {
        let total = usize::from(u16_at(self.frame, HEADROOM + 2).to_be());
        &self.frame[self.udp + UDP_BYTES..HEADROOM + total]
    }

    /// The virtio-net header is in the machine's byte order.
    fn segment_bytes(&self) -> usize {
        usize::from(u16_at(self.frame, 4)).max(1)
    }

    fn endpoint(&self, address: usize, port: usize) -> SocketAddrV4 {
        let octets: [u8; 4] = self.frame[address..address + 4].try_into().expect("four bytes were sliced");
        SocketAddrV4::new(Ipv4Addr::from(octets), u16_at(self.frame, port).to_be())
    }

    /// Rewrites address and port and brings both checksums along (RFC 1624).
    fn set_endpoint(&mut self, address: usize, port: usize, to: SocketAddrV4) {
        let was = add(sum(&self.frame[address..address + 4]), 0);
        let was_port = u16_at(self.frame, port).to_be();
        self.frame[address..address + 4].copy_from_slice(&to.ip().octets());
        put(self.frame, port, to.port());
        let address_change = add(sum(&to.ip().octets()), !was);

        let ip_sum = u16_at(self.frame, HEADROOM + 10).to_be();
        put(self.frame, HEADROOM + 10, !add(!ip_sum, address_change));
        let udp_sum = u16_at(self.frame, self.udp + 6).to_be();
        if self.frame[0] & NEEDS_CHECKSUM != 0 {
            // A partial sum is not complemented and does not cover the ports.
            put(self.frame, self.udp + 6, add(udp_sum, address_change));
        } else if udp_sum != 0 {
            let change = add(address_change, add(to.port(), !was_port));
            // Zero would mean "no checksum".
            let complete = !add(!udp_sum, change);
            put(self.frame, self.udp + 6, if complete == 0 { 0xffff } else { complete });
        }
    }
}

/// A two-byte field as it lies in memory.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// Writes a two-byte field in network order.
fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// One's complement addition.
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// One's complement sum of an even number of bytes.
fn sum(bytes: &[u8]) -> u16 {
    bytes.chunks_exact(2).fold(0, |total, pair| add(total, u16::from_be_bytes([pair[0], pair[1]])))
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
