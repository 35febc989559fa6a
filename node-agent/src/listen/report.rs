//! What listens where, and what to do where that is not what was asked for.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use peerage_model::AgentId;

use super::Endpoint;

/// What listens at the moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listening {
    /// Every endpoint that is served, and where: the same address unless the port could not be had.
    pub bound: BTreeMap<Endpoint, SocketAddr>,
    /// Ports that could not be had.
    pub conflicts: Vec<PortConflict>,
}

/// A port of a peer that is not where programs will look for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConflict {
    /// Whose port.
    pub peer: AgentId,
    /// Where it should be.
    pub asked: Endpoint,
    /// Where it is instead; `None` if nowhere.
    pub actual: Option<SocketAddr>,
    /// Why.
    pub reason: ConflictReason,
}

/// Why a port could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConflictReason {
    /// Below `net.ipv4.ip_unprivileged_port_start`, and we have no privilege.
    Reserved,
    /// Another program listens on it, on all addresses.
    InUse,
    /// A program of this pod will listen on it, so we keep out of its way.
    Declared,
    /// Something else; the operating system's words.
    Other(String),
}

impl Listening {
    /// Where programs connect to, and where that has to lead, for the endpoints where the two differ.
    #[must_use]
    pub fn redirects(&self) -> BTreeMap<Endpoint, SocketAddr> {
        let moved = |(endpoint, actual): &(&Endpoint, &SocketAddr)| endpoint.address != **actual;
        self.bound.iter().filter(moved).map(|(endpoint, actual)| (*endpoint, *actual)).collect()
    }
}

impl PortConflict {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        let port = self.asked.address.port();
        let instead = match self.actual {
            Some(actual) => format!("; until then it is at {actual}"),
            None => String::new(),
        };
        match &self.reason {
            ConflictReason::Reserved => format!(
                "allow low ports (`peerage install`, or sysctl net.ipv4.ip_unprivileged_port_start=0), or start the \
                 program by `peerage run`{instead}"
            ),
            ConflictReason::InUse => format!(
                "let the program that listens on port {port} of all addresses listen on 127.0.0.1 only, or give this \
                 peer's port another `localPort`{instead}"
            ),
            ConflictReason::Declared => {
                format!("a program of this pod uses port {port}; give this peer's port another `localPort`{instead}")
            }
            ConflictReason::Other(_) => format!("see the reason; it is tried again by itself{instead}"),
        }
    }
}

impl fmt::Display for PortConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { protocol, address } = self.asked;
        write!(f, "port {}/{protocol} of `{}` cannot be had here: {}", address.port(), self.peer.name, self.reason)
    }
}

impl fmt::Display for ConflictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserved => "ports this low are reserved to root",
            Self::InUse => "another program listens on it",
            Self::Declared => "a program of this pod uses it",
            Self::Other(text) => text,
        })
    }
}
