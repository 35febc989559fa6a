//! The relay server: sockets, batching and metrics around the relay value of `peerage-relay-proto`.
//!
//! [`Bound::new`] takes [`Options`] and opens key file and sockets, so that what is wrong is said before anything runs;
//! [`Bound::serve`] runs until told to stop, then drains. [`run`] is both, and what `peerage relay` embeds.

#![deny(unsafe_code)]

mod bound;
mod departures;
mod discovery;
mod http;
mod inbox;
mod keyfile;
mod metrics;
mod options;
mod provers;
mod sendmmsg;
mod socket;
mod tls;
mod turns;
mod worker;

pub use bound::{Bound, RunError, run};
pub use keyfile::{KeyFileError, in_folder as key_file_in};
pub use options::{Advertise, InvalidAdvertise, Options, StunAddress};
pub use tls::EndpointError;
