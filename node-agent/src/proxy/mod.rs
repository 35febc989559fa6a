//! A proxy on one loopback port, for programs that can be told to use one but cannot be given our DNS.
//!
//! It speaks SOCKS5 (RFC 1928, CONNECT without authentication) and HTTP (CONNECT, and plain requests in absolute form);
//! the first byte tells which. It leads to trusted peers only, by name or by their loopback address; anything else is
//! refused, so it opens no way to the network. A stream opens before the peer has answered (see [`crate::tunnel::Dial`]),
//! so a later refusal resets the connection; a plain HTTP request gets the reason as a 502.

mod http;
mod server;
mod socks;

pub use http::{Refusal, Request, parse};
pub use server::{Config, Server};
pub use socks::{Host, Reply, read_request};
