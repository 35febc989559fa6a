//! The relay as a value: cookies, bindings, routing and quotas, without sockets or clocks (`docs/spec/relay.md`).
//!
//! [`Relay::handle`] takes what a socket received, a GRO batch of segments from one source, and says what leaves: a
//! short answer to the sender, or a range of the same buffer, its headers rewritten in place, to somebody else. So
//! forwarding copies no payload and allocates nothing, and a batch costs one look into the tables.
//!
//! What a relay may know is small and what it may be made to do is smaller: it holds no key that opens a packet, keeps
//! nothing for an address that has not shown it can receive, and treats a destination that exists exactly as one that
//! does not until a packet is already on its way there.

pub mod bucket;
pub mod counters;
pub mod limits;
pub mod mailbox;
mod network;
mod place;
mod relay;
mod spread;
pub mod stun;
mod table;

pub use bucket::Rate;
pub use counters::{Counters, DropReason, Occupancy};
pub use limits::{Access, Limits, Quota};
pub use network::Network;
pub use place::{Place, StreamId};
pub use relay::{Config, Decision, Forward, Handled, Ingress, Notice, Proof, Proven, Relay, Reply};
