//! The tunnel as a value: Noise-keyed QUIC, knocks, paths and the relay client, without sockets or clocks.
//!
//! Everything here takes its time, randomness and packets as arguments and hands back what to send, what happened
//! and when to be woken. The driver in `node-agent` and the simulator in `protocol/sim` run the same code.

pub use quinn_proto::EcnCodepoint;

mod congestion;
pub mod knock;
mod mac;
pub mod nat;
pub mod node;
pub mod noise;
pub mod path;
pub mod relay;
pub mod stun;
