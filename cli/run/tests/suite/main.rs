//! Real programs under a real filter, on loopback only.
//!
//! Needs curl, python3, busybox-static and util-linux (setpriv). As root, everything that only
//! prints runs a second time as `nobody` without a capability, and must print the same.

mod lifecycle;
mod programs;
mod support;
