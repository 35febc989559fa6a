//! How many streams there may be: in all, of one source network, and of those that have not shown what they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peerage_relay_proto::Network;

/// Streams without a binding or visitor, in all. An attacker that holds all of them for their 10 s must come anew a
/// hundred times a second, from many networks.
const NEW_IN_ALL: u32 = 1024;
/// The same of one /24 or /48.
const NEW_PER_NETWORK: u32 = 128;

/// The seats of a relay.
#[derive(Debug)]
pub(super) struct Seats {
    most: u32,
    per_network: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: Count,
    /// Only networks that hold a seat.
    networks: BTreeMap<Network, Count>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    new: u32,
    all: u32,
}

/// One stream's place among all; given back when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    network: Network,
    settled: bool,
}

impl Seats {
    /// `most` in all, `per_network` for each /24 or /48.
    pub(super) fn new(most: u32, per_network: u32) -> Self {
        Self { most, per_network, taken: Mutex::default() }
    }

    /// A seat for a new stream, if there is one.
    pub(super) fn take(self: &Arc<Self>, from: SocketAddr) -> Option<Seat> {
        let network = Network::of_address(from);
        let mut taken = self.taken();
        let here = taken.networks.get(&network).copied().unwrap_or_default();
        let full = taken.all.all >= self.most || here.all >= self.per_network;
        if full || taken.all.new >= NEW_IN_ALL || here.new >= NEW_PER_NETWORK {
            return None;
        }
        taken.change(network, |count| {
            count.new += 1;
            count.all += 1;
        });
        Some(Seat { seats: Arc::clone(self), network, settled: false })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn change(&mut self, network: Network, change: impl Fn(&mut Count)) {
        change(&mut self.all);
        let here = self.networks.entry(network).or_default();
        change(here);
        if here.all == 0 {
            self.networks.remove(&network);
        }
    }
}

impl Seat {
    /// Whether the stream has shown what it is.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// The stream has shown what it is: it leaves its place among the new ones to others.
    pub(super) fn settle(&mut self) {
        if !std::mem::replace(&mut self.settled, true) {
            self.seats.taken().change(self.network, |count| count.new -= 1);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.settle();
        self.seats.taken().change(self.network, |count| count.all -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(network: u8) -> SocketAddr {
        SocketAddr::from(([198, 51, network, 7], 4000))
    }

    #[test]
    fn one_network_cannot_take_the_new_seats_of_all() {
        let seats = Arc::new(Seats::new(10_000, 5_000));
        let held: Vec<_> = (0..1000).filter_map(|_| seats.take(from(1))).collect();
        assert_eq!(held.len(), 128);
        assert!(seats.take(from(2)).is_some());
        drop(held);
        assert!(seats.take(from(1)).is_some());
    }

    #[test]
    fn many_networks_together_have_a_limit_too() {
        let seats = Arc::new(Seats::new(10_000, 5_000));
        let held: Vec<_> =
            (0..10_000_u32).filter_map(|n| seats.take(from(u8::try_from(n % 200).expect("small")))).collect();
        assert_eq!(held.len(), 1024);
    }

    #[test]
    fn settled_streams_leave_room_for_new_ones_until_all_seats_are_taken() {
        let seats = Arc::new(Seats::new(500, 300));
        let mut settled = Vec::new();
        for network in [1, 2] {
            while let Some(mut seat) = seats.take(from(network)) {
                seat.settle();
                settled.push(seat);
            }
        }
        assert_eq!(settled.len(), 500, "300 of the first network, then what is left");
        settled.clear();
        assert!(seats.taken().networks.is_empty(), "a network without a stream is forgotten");
    }
}
