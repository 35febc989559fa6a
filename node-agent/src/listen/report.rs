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
    /// A program here will listen on it, as its owner says, so we keep out of its way.
    Declared,
    /// Something else; the operating system's words.
    Other(String),
}

/// Where an agent runs, and so what its owner can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Whose {
    /// Beside the programs of a pod, whose objects say what they need.
    Pod,
    /// On a machine.
    #[default]
    Machine,
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
    /// What to do about it, where the agent is `whose`.
    #[must_use]
    pub fn remedy(&self, whose: Whose) -> String {
        let port = self.asked.address.port();
        let instead = match self.actual {
            Some(actual) => format!("; until then it is at {actual}"),
            None => String::new(),
        };
        match &self.reason {
            ConflictReason::Reserved => format!(
                "start the program by `peerage run`, or allow low ports (the agent of the whole machine, by `peerage install`, may \
                 have them; the sysctl net.ipv4.ip_unprivileged_port_start=0 gives them to every user){instead}"
            ),
            ConflictReason::InUse => {
                let other = match whose {
                    Whose::Pod => "give this peer's port another `localPort`",
                    Whose::Machine => "start the program that calls the peer by `peerage run`",
                };
                format!(
                    "let the program that listens on port {port} of all addresses listen on 127.0.0.1 only, or {other}{instead}"
                )
            }
            ConflictReason::Declared => match whose {
                Whose::Pod => {
                    format!(
                        "a program of this pod uses port {port}; give this peer's port another `localPort`{instead}"
                    )
                }
                Whose::Machine => format!(
                    "that is what --avoid says; start the program that calls the peer by `peerage run`{instead}"
                ),
            },
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
            Self::Declared => "it is kept free for a program here",
            Self::Other(text) => text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::Fingerprint;
    use peerage_model::snapshot::Protocol;

    #[test]
    fn what_is_to_be_done_about_a_port_can_be_done_there() {
        let peer = AgentId { authority: Fingerprint([7; 32]), name: "db".parse().expect("a name") };
        let asked = Endpoint { protocol: Protocol::Tcp, address: ([127, 64, 9, 9], 8080).into() };
        for reason in [ConflictReason::InUse, ConflictReason::Declared] {
            let conflict = PortConflict { peer: peer.clone(), asked, actual: None, reason };
            assert!(conflict.remedy(Whose::Pod).contains("localPort"));
            let remedy = conflict.remedy(Whose::Machine);
            assert!(!remedy.contains("localPort") && remedy.contains("peerage run"), "{remedy}");
        }
    }
}
