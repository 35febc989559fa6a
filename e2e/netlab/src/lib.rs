//! A small internet on one machine, for the demo and the end-to-end tests: real kernels, real sockets, real processes,
//! and NATs and links that can be told what to do. It needs no root where user namespaces exist.
//!
//! Each host is a network namespace with one link to the lab's router. The link is a veth pair whose far end the router
//! reads through a packet socket. (A TUN device would do as well, but `/dev/net/tun` is missing or closed to users on
//! many machines and in most containers, has no batched system calls, and a veth needs neither file nor module to be
//! opened.) The router applies `peerage_sim`'s NAT and link models, so that the real kernel and the simulation agree
//! about the world by construction.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use peerage_netlab::{HostConfig, Lab, NatKind};
//!
//! peerage_netlab::enter()?; // first thing in main: before any thread
//! let mut lab = Lab::new()?;
//! let relay = lab.host("relay", HostConfig::public([198, 51, 100, 1].into()))?;
//! let laptop = lab.host("laptop", HostConfig::behind([10, 0, 1, 2].into(), NatKind::home_router()))?;
//! let mut server = relay.spawn(std::process::Command::new("some-server"))?;
//! assert_eq!(lab.traffic(&laptop, &relay).packets, 0);
//! # server.kill()?;
//! # Ok(())
//! # }
//! ```
//!
//! [`kernel`] is the other laboratory of this crate: NATs of the real kernel instead of the simulation's, for whatever runs
//! over IP.
//!
//! Limits of the first one: UDP over IPv4 only, without fragments (TCP works within a host, on its loopback); every link has an MTU of
//! 1500; all hosts share the machine's clock and, if not root, one user.

mod enter;
mod host;
pub mod kernel;
mod lab;
mod netlink;
mod packet;
mod router;
mod sys;
mod world;

pub use enter::{EnterError, command_inside, enter, enter_own_network, explain, is_privileged};
pub use host::Host;
pub use lab::{HostConfig, Lab, LabError};
pub use peerage_sim::link::{Bottleneck, Chance, LinkConfig};
pub use peerage_sim::nat::{NatKind, Possibility, can_be_direct};
pub use world::{Access, Drops, Traffic};
