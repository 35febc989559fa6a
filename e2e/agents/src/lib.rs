//! End to end: relays and agents as processes of their own, started and asked as a person would, on the emulated
//! internet of `peerage-netlab`, where NATs and links do as they are told and every packet is counted.
//!
//! [`World`] is a relay, a client and a server, each on a [`Machine`]; [`Agent`] is a running `peerage up` and what it
//! has said. [`transfer`], [`matrix`] and [`memory`] are what `scripts/e2e` runs at full size and the tests in a small one.
//! Nothing here waits for time to pass: it waits for events, for counters, or until patience ends.

mod agent;
mod doctor;
pub mod fallback;
pub mod field;
pub mod flow;
pub mod kernel;
mod machine;
pub mod matrix;
pub mod memory;
pub mod origin;
mod programs;
pub mod proxy;
pub mod table;
pub mod transfer;
mod wait;
pub mod warm;
mod world;

pub use agent::Agent;
pub use machine::{Finished, Machine, Running};
pub use peerage_suite::failed::{Failed, Trying};
pub use programs::Programs;
pub use wait::{LOOK, PATIENCE, until};
pub use world::{Nats, SERVER, World};
