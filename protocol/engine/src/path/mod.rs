//! Chooses the path a session's packets take, and says why.
//!
//! Every session starts on a relay, so data flows at once. Meanwhile both ends offer each other addresses through the
//! tunnel and check them with authenticated STUN. A check that comes back proves a path; the best proven one carries
//! the traffic. Checks only ever find: the one thing that takes a path away is silence of the tunnel itself, because
//! STUN gets lost where tunnels live. Rules and numbers: `docs/spec/paths.md`.
//!
//! [`PathAgent`] is a value: packets, time and a seed go in, [`CheckTransmit`]s and [`PathEvent`]s come out. Drain both
//! after every input, then ask for the next timeout.

mod admission;
mod agent;
mod birthday;
pub(crate) mod budget;
mod checklist;
mod checks;
mod explain;
mod in_use;
mod link;
mod liveness;
mod score;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_model::control::{BirthdayStep, Candidate};

pub use admission::{Refused, is_private};
pub use agent::{PathAgent, PathConfig};
pub use birthday::{PROBES as BIRTHDAY_PROBES, SOCKETS as BIRTHDAY_SOCKETS};
pub use checks::CheckRefused;
pub use explain::{Guessing, Side, WhyNotBetter};
pub use link::{DirectPath, ExtraSocket, Link, RelayStream};

/// What the owner's policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMode {
    /// The best path there is.
    Auto,
    /// Never a direct one: no candidate leaves, no check is sent or answered.
    RelayOnly,
    /// Application data waits for a direct path; only the tunnel's own handshake and control use the relay.
    DirectOnly,
}

/// The next hop of a tunnel packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// Through the session's relay.
    Relayed,
    /// From this socket of ours straight to this address of the peer.
    Direct(DirectPath),
}

/// A path in the words that people see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// Within one host or network.
    Local,
    /// To an address at which one end is reachable without punching.
    Direct,
    /// Through mappings that both ends opened.
    Punched,
    /// Through the relay.
    Relayed,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Direct => "direct",
            Self::Punched => "punched",
            Self::Relayed => "relayed",
        })
    }
}

/// Where to send a tunnel packet now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The path in use.
    pub primary: Hop,
    /// For at most a second after a switch: the path before, which gets every packet too. QUIC drops the duplicates.
    pub duplicate: Option<Hop>,
}

/// A STUN message to put on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckTransmit {
    /// The socket that it leaves by.
    pub link: Link,
    /// Where to; never through a relay.
    pub to: SocketAddr,
    /// How many routers it may pass (IPv4's TTL), if fewer than usual. If that cannot be had it must not be sent.
    pub hop_limit: Option<u8>,
    /// The datagram.
    pub bytes: Vec<u8>,
}

/// Why traffic moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A check came back over a path that is better.
    CheckAnswered,
    /// The tunnel fell silent on the path before.
    TunnelSilent,
    /// One of our own addresses went away.
    LocalAddressChanged,
    /// The peer withdrew the address in use.
    RemoteAddressWithdrawn,
    /// The path became more than twice as slow as the relay.
    SlowerThanRelay,
    /// The owner's policy changed.
    Policy,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CheckAnswered => "a check was answered on a better path",
            Self::TunnelSilent => "the tunnel fell silent",
            Self::LocalAddressChanged => "a local address changed",
            Self::RemoteAddressWithdrawn => "the peer withdrew the address",
            Self::SlowerThanRelay => "slower than the relay",
            Self::Policy => "the path policy changed",
        })
    }
}

/// Something the session must act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEvent {
    /// Traffic moved. Tell QUIC (`path_changed`): round trip, congestion and MTU start anew.
    Changed {
        /// The path before.
        from: Hop,
        /// The path now.
        to: Hop,
        /// What the path now is called.
        kind: PathKind,
        /// What moved it.
        why: Why,
    },
    /// Send this list to the peer through the tunnel.
    LocalCandidates {
        /// Its number in this session, from 1.
        generation: u64,
        /// Our addresses.
        list: Vec<Candidate>,
    },
    /// Say to the peer through the tunnel that our gateways are open towards its list of that number: what [`CheckTransmit`]s
    /// there were before have to leave first.
    Opened {
        /// The number of the peer's list.
        generation: u64,
    },
    /// All addresses of the peer were checked as often as a first round does, and none has answered.
    NothingAnswered,
    /// Something ack-eliciting went out on `hop` and nothing authenticated came back. Traffic is on the relay now.
    TunnelSilent {
        /// The path that fell silent.
        hop: Hop,
        /// For how long.
        waited: Duration,
    },
    /// Three silent timeouts in a row, relay included: dial anew on all relays. Said once until the tunnel is heard.
    RedialNeeded,
    /// A birthday round needs something.
    Birthday(BirthdayWish),
}

/// What a birthday round needs of the session's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BirthdayWish {
    /// [`BIRTHDAY_SOCKETS`] sockets, if a round may run: [`PathAgent::birthday_sockets`] or
    /// [`PathAgent::birthday_refused`].
    OpenSockets,
    /// Say this to the peer through the tunnel.
    Say(BirthdayStep),
    /// The round is over: what [`PathAgent::extra_sockets`] does not name may be closed.
    Over,
}
