//! Failures as programs and people get them: a code that never changes, what happened, and what to do next.

use peerage_model::stream::StreamStatus;
use serde::{Deserialize, Serialize};

use crate::state::{ChangeError, StateError, UpdateError, change};
use crate::tunnel::DialError;

/// A stable word for a kind of failure. Words are added, never renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No daemon answers on this state.
    NotRunning,
    /// A daemon has this state already.
    AlreadyRunning,
    /// The daemon or its caller is of another version.
    VersionMismatch,
    /// The request makes no sense.
    BadRequest,
    /// No peer is called that.
    UnknownPeer,
    /// Nobody of that name asked.
    UnknownRequest,
    /// Several are called that.
    AmbiguousName,
    /// The name is another peer's here.
    AliasTaken,
    /// The port or its name is exposed already.
    ServiceTaken,
    /// Nothing of that name is exposed.
    UnknownService,
    /// Not a ticket, or damaged.
    TicketInvalid,
    /// Too late.
    TicketExpired,
    /// Made by ourselves.
    OwnTicket,
    /// Not among those that are open here.
    UnknownTicket,
    /// A protective limit is reached.
    LimitReached,
    /// No relay is configured, so nobody could find us.
    NoRelay,
    /// This agent has no name yet.
    NoHostname,
    /// The name cannot change while peers know the old one.
    HostnameFixed,
    /// We do not trust that peer.
    NotTrusted,
    /// The peer did not answer.
    Unreachable,
    /// The peer answered no.
    Refused,
    /// The session ended in between.
    SessionEnded,
    /// A file of the state is missing, damaged or open to others.
    StateUnusable,
    /// An address or port is not to be had.
    AddressInUse,
    /// It took too long.
    TimedOut,
    /// It needs a right that we do not have.
    NotPermitted,
    /// The operator has not given this agent a passport yet.
    NotEnrolled,
    /// In a cluster this is decided by resources.
    InCluster,
    /// Something we did not foresee.
    Internal,
}

/// What went wrong with one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// What happened, for people.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl Failure {
    /// A failure with its three parts.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }

    /// The caller sent something that its own side should not have let through.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, message, "see `peerage help` for what this command takes")
    }
}

/// An error and all its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        let code = match &error {
            StateError::InUse { .. } => Code::AlreadyRunning,
            StateError::Io { .. }
            | StateError::NoPlace
            | StateError::Exposed { .. }
            | StateError::NotOurs { .. }
            | StateError::Damaged { .. }
            | StateError::Newer { .. }
            | StateError::Missing { .. }
            | StateError::WrongKey { .. } => Code::StateUnusable,
        };
        Self::new(code, chain(&error), error.hint())
    }
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        let (code, hint) = match &error {
            ChangeError::UnknownPeer { .. } => {
                (Code::UnknownPeer, "`peerage peers` lists whom this agent trusts".into())
            }
            ChangeError::UnknownRequest { .. } => (
                Code::UnknownRequest,
                "`peerage requests` lists who asks; to be asked, give out a ticket from `peerage invite`".into(),
            ),
            ChangeError::Ambiguous { choices, .. } => {
                (Code::AmbiguousName, format!("write one of: {}", choices.join(", ")))
            }
            ChangeError::AliasReserved { .. } => {
                (Code::AliasTaken, "give this peer another name here with --as NAME".into())
            }
            ChangeError::AliasTaken { .. } => {
                (Code::AliasTaken, "give this peer another name here with --as NAME".into())
            }
            ChangeError::ServiceTaken { name, .. } => (
                Code::ServiceTaken,
                format!("choose another name or port, or stop offering it first: `peerage expose --remove {name}`"),
            ),
            ChangeError::UnknownService { known, .. } if known.is_empty() => {
                (Code::UnknownService, "this agent exposes nothing yet: `peerage expose 8080`".into())
            }
            ChangeError::UnknownService { known, .. } => {
                (Code::UnknownService, format!("this agent exposes: {}", known.join(", ")))
            }
            ChangeError::UnknownTicket { .. } => (
                Code::UnknownTicket,
                "`peerage invite --list` shows those that can still be used; who used one is in `peerage requests` or `peerage peers`"
                    .into(),
            ),
            ChangeError::SeveralTickets { .. } => {
                (Code::AmbiguousName, "write more of its digits, as `peerage invite --list` shows them".into())
            }
            ChangeError::OwnTicket => {
                (Code::OwnTicket, "run this on the other machine; there, it asks this agent for trust".into())
            }
            ChangeError::Rotating { .. } => (
                Code::LimitReached,
                "wait for that moment; if a key was stolen, `peerage rotate --at-once` ends every earlier one now"
                    .into(),
            ),
            ChangeError::TooMany { what: change::OPEN_INVITATIONS, .. } => (
                Code::LimitReached,
                "`peerage invite --list` shows them, and `peerage invite --withdraw` takes some back, or all".into(),
            ),
            ChangeError::TooMany { .. } => {
                (Code::LimitReached, "wait until some have ended, or remove what is not needed".into())
            }
        };
        Self::new(code, error.to_string(), hint)
    }
}

impl From<UpdateError> for Failure {
    fn from(error: UpdateError) -> Self {
        match error {
            UpdateError::Change(error) => error.into(),
            UpdateError::State(error) => error.into(),
        }
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        let (code, hint) = match &error {
            DialError::NotTrusted { .. } => {
                (Code::NotTrusted, "ask for trust with a ticket: `peerage handshake TICKET \"why\"`".to_owned())
            }
            DialError::Unreachable { .. } => (
                Code::Unreachable,
                "`peerage doctor` looks at this side; its owner can look at `peerage status` there".into(),
            ),
            DialError::Refused { status: StreamStatus::Denied, .. } => {
                (Code::Refused, "the other side decides with `expose` and `approve --inbound`; ask its owner".into())
            }
            DialError::Refused { .. } => (
                Code::Refused,
                "the other side lets this agent in, so ask its owner to look at the program there and at `peerage status`"
                    .into(),
            ),
            DialError::Ended { .. } => {
                (Code::SessionEnded, "`peerage peers` says how it stands with that peer; try again".into())
            }
        };
        Self::new(code, chain(&error), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::{AgentId, Fingerprint};

    #[test]
    fn a_failure_reads_as_programs_expect_it() {
        let failure = Failure::new(Code::TicketExpired, "the ticket ended", "ask for a new one");
        let text = serde_json::to_string(&failure).expect("it is plain");
        assert_eq!(text, r#"{"code":"ticket_expired","message":"the ticket ended","hint":"ask for a new one"}"#);
    }

    #[test]
    fn causes_follow_their_error() {
        let cause = std::io::Error::other("disk full");
        let error = StateError::Io { doing: "write", path: "/x".into(), cause };
        assert_eq!(chain(&error), "cannot write `/x`: disk full");
    }

    #[test]
    fn who_is_let_in_and_finds_nothing_there_is_not_sent_to_the_permissions() {
        let hint = |status| {
            let peer = AgentId { authority: Fingerprint([7; 32]), name: "db".parse().expect("a name") };
            Failure::from(DialError::Refused { peer, port: 80, status }).hint
        };
        assert!(hint(StreamStatus::Denied).contains("--inbound"));
        for status in [StreamStatus::Refused, StreamStatus::Unreachable, StreamStatus::Busy] {
            assert!(!hint(status).contains("--inbound"), "{status}");
        }
    }
}
