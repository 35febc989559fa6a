//! A simulated network in virtual time.
//!
//! Everything here is a value: time comes in as an argument, chance comes from a seed, and the same seed gives the
//! same run. [`nat`] says what a NAT does to a UDP packet and which pairs of NATs can meet; [`link`] says when, and
//! whether, a packet arrives. The namespace lab of the end-to-end tests moves real packets by these same models.
//!
//! [`Sim`] puts them together with the real engine and the real relay: agents behind NATs, relays between them,
//! strangers and liars on the way, and streams whose every byte is compared with what was written. It checks by itself,
//! at every packet, that no agent sends a byte to who is not its trusted peer, and at every read that data comes under
//! the identity of who wrote it.

pub mod contest;
pub mod link;
pub mod nat;
mod rng;
mod world;

pub use rng::SplitMix64;
pub use world::{Character, Origin, Outcome, Packet, Sim, StreamId, Tape};

/// So many seconds, for tests to read well.
#[must_use]
pub const fn secs(n: u64) -> std::time::Duration {
    std::time::Duration::from_secs(n)
}

/// So many milliseconds.
#[must_use]
pub const fn ms(n: u64) -> std::time::Duration {
    std::time::Duration::from_millis(n)
}
