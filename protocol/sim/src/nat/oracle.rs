//! Which pairs of NATs can meet without a relay, and by how much effort.
//!
//! The question has two halves for each side: does the other side know from which public endpoint its packets will
//! come, and whom does its filter let in. "Known" is what a relay saw: it holds for every mapping that does not
//! depend on the destination, and for one that keeps the inside port, which looks the same from everywhere.
//!
//! Assumed: one host behind each NAT (else a kept port may be taken), and a relay that both sides can send to.

use super::kind::{Dependence, NatKind, PortAllocation, Translation};

/// The least effort by which two sides can exchange packets directly. Smaller is easier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Possibility {
    /// One side sends to the other's known public endpoint.
    Direct,
    /// Both send to each other's known public endpoints at about the same time.
    Punched,
    /// As punched, but a port must be predicted from ports seen before.
    NeedsPrediction,
    /// One side opens hundreds of ports and the other tries a thousand: likely, not certain.
    NeedsBirthday,
    /// Nothing short of trying every port with every port.
    Impossible,
}

/// What the relay can tell about the public endpoint of a side's next packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Known,
    /// A little after the last one seen.
    Predictable,
    Unknown,
}

/// The possibility for `a` to reach `b`. The order does not matter to the answer.
#[must_use]
pub const fn can_be_direct(a: &NatKind, b: &NatKind) -> Possibility {
    match (a, b) {
        (NatKind::None, _) | (_, NatKind::None) => Possibility::Direct,
        (NatKind::Translating(a), NatKind::Translating(b)) if is_full_cone(a) || is_full_cone(b) => Possibility::Direct,
        (NatKind::Translating(a), NatKind::Translating(b)) => punched(a, b),
    }
}

/// Everyone may send to a full cone's mapping, and it answers from that same mapping.
const fn is_full_cone(nat: &Translation) -> bool {
    matches!((nat.mapping, nat.filtering), (Dependence::EndpointIndependent, Dependence::EndpointIndependent))
}

const fn punched(a: &Translation, b: &Translation) -> Possibility {
    match (endpoint(a), endpoint(b)) {
        (Endpoint::Known, Endpoint::Known) => Possibility::Punched,
        (Endpoint::Known, hidden) => towards_hidden(a, hidden),
        (hidden, Endpoint::Known) => towards_hidden(b, hidden),
        (Endpoint::Predictable, Endpoint::Predictable) => Possibility::NeedsPrediction,
        (Endpoint::Predictable, Endpoint::Unknown) => predicted_towards_unknown(a, b),
        (Endpoint::Unknown, Endpoint::Predictable) => predicted_towards_unknown(b, a),
        (Endpoint::Unknown, Endpoint::Unknown) => unknown_towards_unknown(a, b),
    }
}

const fn endpoint(nat: &Translation) -> Endpoint {
    match (nat.mapping, nat.allocation) {
        (Dependence::EndpointIndependent, _) | (_, PortAllocation::Preserving) => Endpoint::Known,
        (_, PortAllocation::Sequential) => Endpoint::Predictable,
        (_, PortAllocation::Random) => Endpoint::Unknown,
    }
}

/// The hidden side sends to the known endpoint; the known side's filter must let it in from a port not seen before.
const fn towards_hidden(known: &Translation, hidden: Endpoint) -> Possibility {
    match (admits_any_port(known), hidden) {
        (true, _) | (false, Endpoint::Known) => Possibility::Punched,
        (false, Endpoint::Predictable) => Possibility::NeedsPrediction,
        (false, Endpoint::Unknown) => Possibility::NeedsBirthday,
    }
}

/// Each probe of a sequential NAT leaves from another port, so a birthday round has no fixed target.
const fn predicted_towards_unknown(predictable: &Translation, unknown: &Translation) -> Possibility {
    match (admits_any_port(predictable), admits_any_port(unknown)) {
        (true, _) => Possibility::NeedsPrediction,
        (false, true) => Possibility::NeedsBirthday,
        (false, false) => Possibility::Impossible,
    }
}

/// Only a side that admits any port of an address can be found by trying ports.
const fn unknown_towards_unknown(a: &Translation, b: &Translation) -> Possibility {
    if admits_any_port(a) || admits_any_port(b) { Possibility::NeedsBirthday } else { Possibility::Impossible }
}

/// True where sending to an address once lets all its ports in.
const fn admits_any_port(nat: &Translation) -> bool {
    !matches!(nat.filtering, Dependence::AddressAndPortDependent)
}

#[cfg(test)]
#[path = "oracle_tests.rs"]
mod tests;
