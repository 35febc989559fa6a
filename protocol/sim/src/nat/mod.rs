//! A NAT as a value: what it does to one UDP packet.
//!
//! RFC 4787 describes a NAT by how it reuses a mapping (from an inside endpoint to a public port), whom it lets in
//! through that mapping, how it picks the port, when it forgets, and whether two insiders can meet by their public
//! addresses. [`NatKind`] is that description, with a preset for each kind that users know by its RFC 3489 name;
//! [`Nat`] is one such device with its state; [`can_be_direct`] says which pairs of them can meet without a relay.
//!
//! One habit of Linux gateways is part of the model, [`Translation::gateway_input_steals_port`]: a packet from outside
//! that belongs to no mapping is taken as meant for the gateway itself, connection tracking remembers it, and from
//! then on the inside host cannot have that port towards that peer.

mod firewall;
mod kind;
mod network;
mod oracle;
mod table;

pub use firewall::Firewall;
pub use kind::{Dependence, NatKind, PortAllocation, Translation};
pub use network::{Families, Network, Verdict, verdict, verdict_within_carrier};
pub use oracle::{Possibility, can_be_direct};
pub use table::Nat;
