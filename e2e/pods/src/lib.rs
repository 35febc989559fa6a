//! Real clusters for tests: `scripts/kube` starts one with a node, kubectl and helm act on it as a user's would, and
//! pods run programs that know nothing of us.
//!
//! `scripts/e2e pods` tests one cluster with it; what needs several starts several.

pub mod cluster;
pub mod processes;
pub mod stage;

pub use peerage_suite::failed;
