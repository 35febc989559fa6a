//! Carries bytes between local programs and the tunnel.
//!
//! Outwards ([`Outbound`]): a program's connection to a peer's address is dialled and copied, its packets become a flow.
//! Inwards ([`Inbound`]): a stream that a peer opened is connected to the service it names, from the peer's own loopback
//! address, so that the service sees who is there. What one side does shows on the other: end of input travels per
//! direction, a reset travels as a reset, a slow reader stops the writer. Nothing is held for an idle connection.

mod buffer;
mod copy;
mod failures;
mod inbound;
mod outbound;
mod services;
mod stats;
mod udp;

pub use buffer::CHUNK;
pub(crate) use copy::Local;
pub use copy::{Broken, Moved, splice};
pub use failures::{Failure, Failures};
pub use inbound::{Inbound, Limits};
pub use outbound::Outbound;
pub use services::Services;
pub use stats::Stats;
pub use udp::{MAX_FLOWS, UDP_IDLE, serve_udp};
