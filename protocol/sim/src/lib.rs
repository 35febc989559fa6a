//! A simulated network in virtual time.
//!
//! Everything here is a value: time comes in as an argument, chance comes from a seed, and the same seed gives the
//! same run. [`nat`] says what a NAT does to a UDP packet and which pairs of NATs can meet; [`link`] says when, and
//! whether, a packet arrives. The namespace lab of the end-to-end tests moves real packets by these same models.

pub mod link;
pub mod nat;
mod rng;
