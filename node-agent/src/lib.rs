//! The node agent: sockets, DNS, listeners and forwarders around the tunnel engine.
//!
//! `tunnel` is the seam: everything towards local programs (`dns`, `listen`, `forward`, `proxy`, `address`) and towards
//! people (`control`, `state`, `health`) sits on one side of it, the `driver` that feeds the engine on the other, and
//! `portmap`, which asks the router for a port, beside that. `keep` is a process around all of it, for containers; `log` is what both
//! programs say of themselves.

pub mod address;
pub mod cluster;
pub mod control;
pub mod daemon;
pub mod dns;
pub mod driver;
pub mod forward;
pub mod health;
pub mod keep;
pub mod listen;
pub mod log;
pub mod portmap;
pub mod process;
pub mod proxy;
pub mod state;
mod tls;
pub mod trust;
pub mod tunnel;
