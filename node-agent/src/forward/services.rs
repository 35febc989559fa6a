//! Where the ports that we offer lead on this machine.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use peerage_model::snapshot::Protocol;

/// Offered ports and their targets. Empty means that nothing is served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Services(BTreeMap<(Protocol, u16), SocketAddr>);

impl Services {
    /// Nothing is served.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `port` from `target`.
    #[must_use]
    pub fn with(mut self, protocol: Protocol, port: u16, target: SocketAddr) -> Self {
        self.0.insert((protocol, port), target);
        self
    }

    /// Serves `port` from `target_port` at 127.0.0.1, where most programs listen.
    #[must_use]
    pub fn with_local(self, protocol: Protocol, port: u16, target_port: u16) -> Self {
        self.with(protocol, port, (Ipv4Addr::LOCALHOST, target_port).into())
    }

    /// Where `port` leads.
    #[must_use]
    pub fn target(&self, protocol: Protocol, port: u16) -> Option<SocketAddr> {
        self.0.get(&(protocol, port)).copied()
    }
}
