//! Whether the agent lives, is ready, and what it counts: `/healthz`, `/readyz`, `/metrics` on one optional address.
//!
//! Readiness is a set of reasons not to be ready, each a guard: while one lives, `/readyz` answers 503 and names it.

mod metrics;
mod readiness;
mod server;

pub use metrics::Metrics;
pub use readiness::{Pending, Readiness};
pub use server::HealthServer;
