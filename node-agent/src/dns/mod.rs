//! The DNS server of the pod or machine: the names of trusted peers from here, everything else from upstream.
//!
//! A query is looked at only as far as its question. Names that are ours (`local`) are answered from the [`Directory`]
//! and never leave the machine, not even when nobody is called that; all others go upstream byte for byte (`upstream`),
//! so that EDNS, DNSSEC and whatever comes next work as if we were not there. The server needs neither enrolment nor
//! tunnels: with an empty directory it is a plain forwarder, so a program's other names resolve from the first moment.
//! What programs have asked outlives the process, where another one keeps it (`handed_on`).
//!
//! [`Directory`]: crate::address::Directory

mod handed_on;
mod local;
mod question;
mod resolv;
mod server;
mod upstream;

pub use handed_on::HandedOn;
pub use local::{Decision, decide};
pub use question::Question;
pub use resolv::{ResolvConf, Upstreams};
pub use server::{Config, Place, Server};

/// Seconds that an answer of ours may be cached, positive or negative: trust can end at any time, and asking again
/// costs a loopback round trip.
pub const TTL_SECONDS: u32 = 5;
