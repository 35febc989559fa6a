//! Turns a fuzz input into choices. Bytes that are missing read as zero, so every input is a whole script.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What is left of an input.
#[derive(Clone, Debug)]
pub(crate) struct Feed<'a>(&'a [u8]);

impl<'a> Feed<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.take(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    /// Yes for one byte in `n`, and where none is left.
    pub(crate) fn one_in(&mut self, n: u8) -> bool {
        self.u8().is_multiple_of(n)
    }

    /// Below `limit`, which is at most 65536.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        match limit {
            0 | 1 => 0,
            2..=256 => usize::from(self.u8()) % limit,
            _ => usize::from(self.u16()) % limit,
        }
    }

    /// Up to `max` bytes, behind their length.
    pub(crate) fn bytes(&mut self, max: usize) -> &'a [u8] {
        let length = self.below(max + 1);
        self.take(length)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.take(self.0.len())
    }

    /// An address: mostly one of a few that scripts meet again, sometimes any.
    pub(crate) fn address(&mut self) -> SocketAddr {
        let kind = self.u8();
        let ip = match kind % 8 {
            0..=3 => IpAddr::V4(Ipv4Addr::new(198, 18, 0, kind / 8 % 4)),
            4 => IpAddr::V4(Ipv4Addr::new(198, 18, kind / 8, 1)),
            5 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(kind / 8))),
            6 => IpAddr::V4(Ipv4Addr::from(self.array::<4>())),
            _ => IpAddr::V6(Ipv6Addr::from(self.array::<16>())),
        };
        let port = if kind % 8 < 6 { 4000 } else { self.u16() };
        SocketAddr::new(ip, port)
    }

    /// Does to a datagram what a network or an attacker does. Returns whether it is another one now.
    pub(crate) fn mutate(&mut self, datagram: &mut Vec<u8>) -> bool {
        let before = datagram.clone();
        match self.u8() % 6 {
            0 => {}
            1 => {
                let at = self.below(datagram.len());
                let bits = self.u8();
                if let Some(byte) = datagram.get_mut(at) {
                    *byte ^= bits;
                }
            }
            2 => datagram.truncate(self.below(datagram.len())),
            3 => datagram.extend_from_slice(self.bytes(64)),
            4 => {
                let at = self.below(datagram.len() + 1);
                let new = self.bytes(32);
                let end = datagram.len().min(at + new.len());
                datagram.splice(at..end, new.iter().copied());
            }
            _ => {
                let at = self.below(datagram.len() + 1);
                datagram.drain(..at);
            }
        }
        *datagram != before
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
