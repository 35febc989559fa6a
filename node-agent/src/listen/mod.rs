//! Listens, for each trusted peer, at its address and each of its known ports.
//!
//! What should be there follows from the directory alone ([`plan`]); [`run`] compares it with what is, and binds or
//! closes the difference. Closing a listener leaves the connections it has accepted to their tunnel streams. Where a
//! port cannot be had, because it is reserved to root or another program listens on all addresses, a free one on the
//! same address takes its place, and [`Listening`] says so, for `peerage run` (which can redirect) and for people.

mod accept;
mod avoid;
mod backoff;
mod reconcile;
mod report;

pub use accept::Room;
pub use avoid::{Avoid, InvalidAvoid};
pub use backoff::{Accept, Backoff};
pub use reconcile::{Config, Endpoint, Target, plan, run};
pub use report::{ConflictReason, Listening, PortConflict, Whose};
