//! QUIC without an agent around it: quinn-proto in one minimal loop over quinn-udp, keyed by our Noise session or by TLS.

pub mod driver;
pub mod flavor;
pub mod transfer;
