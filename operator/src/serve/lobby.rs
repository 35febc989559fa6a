//! Room for connections whose other end has not shown who it is.
//!
//! Anybody in the cluster can connect. Strangers have a small room of their own, of which one address gets a part, so that
//! they take no place from agents, and one pod not from all others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Strangers at a time: each lasts for seconds, and costs what a TLS handshake does.
const STRANGERS: usize = 512;
/// Of one address. Agents behind one NAT share one, and come all at once when a replica restarts; they come again.
const OF_ONE_ADDRESS: usize = 128;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lobby {
    inside: Mutex<HashMap<IpAddr, usize>>,
}

/// A stranger's place, given up when dropped.
#[derive(Debug)]
pub(super) struct Guest {
    lobby: Arc<Lobby>,
    from: IpAddr,
}

impl Lobby {
    fn inside(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place, if there is one for this address.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Guest> {
        let mut inside = self.inside();
        let all: usize = inside.values().sum();
        let of_address = inside.get(&from).copied().unwrap_or(0);
        if all >= STRANGERS || of_address >= OF_ONE_ADDRESS {
            return None;
        }
        inside.insert(from, of_address + 1);
        Some(Guest { lobby: Arc::clone(self), from })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inside = self.lobby.inside();
        if let Some(count) = inside.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn one_address_takes_its_part_and_leaves_the_rest_to_others() {
        let lobby = Arc::new(Lobby::default());
        let mut guests: Vec<_> = (0..OF_ONE_ADDRESS).map(|_| lobby.enter(address(1)).expect("there is room")).collect();
        assert!(lobby.enter(address(1)).is_none());
        assert!(lobby.enter(address(2)).is_some());
        guests.pop();
        assert!(lobby.enter(address(1)).is_some(), "who leaves makes room");
    }

    #[test]
    fn all_together_are_few() {
        let lobby = Arc::new(Lobby::default());
        let enter = |number: usize| lobby.enter(address(u8::try_from(number / OF_ONE_ADDRESS).expect("few")));
        let guests: Vec<_> = (0..2 * STRANGERS).filter_map(enter).collect();
        assert_eq!(guests.len(), STRANGERS);
    }
}
