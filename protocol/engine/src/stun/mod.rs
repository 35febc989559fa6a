//! STUN: what relays tell us about our own address, and the checks by which two peers prove a path.
//!
//! Two dialects share one codec. Plain messages to relays carry no integrity and yield hints only.
//! Checks between peers are authenticated with keys of their session, have one fixed layout, and are the
//! only thing that teaches a path. [`is_stun`] stands in front of both. Layouts: `docs/spec/paths.md` section 1.

mod check;
mod plain;
mod replay;
#[cfg(test)]
mod tests;
mod wire;

pub use check::{Check, CheckKeys, CheckRequest, CheckResponse, EXPORTER_LABEL, Role};
pub use plain::{AnswerFrom, PlainRequest, PlainResponse};
pub use replay::ReplayWindow;
pub use wire::{Rejected, TransactionId, canonical, is_stun};
