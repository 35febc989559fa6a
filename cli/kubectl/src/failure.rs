//! Failures as programs and people get them: a code that never changes, what happened, and what to do next.

use serde::Serialize;

/// A stable word for a kind of failure. Words are added, never renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// What was typed makes no sense.
    Usage,
    /// There is no way to the API server.
    NoCluster,
    /// Peerage is not installed there, or its operator has not begun.
    NotInstalled,
    /// The API server does not let us.
    NotPermitted,
    /// There is no such object.
    NotFound,
    /// There is such an object already.
    AlreadyExists,
    /// The API server, or a rule, does not take it.
    Invalid,
    /// Not a ticket, or damaged.
    TicketInvalid,
    /// Too late.
    TicketExpired,
    /// Made by this cluster itself.
    OwnTicket,
    /// A protective limit is reached.
    LimitReached,
    /// No relay is configured, so nobody could find us.
    NoRelay,
    /// What the other side may open was not said.
    PortsNotSaid,
    /// What our agent calls the other was not said.
    AliasNotSaid,
    /// Our agent calls another peer so already.
    AliasTaken,
    /// It did not become so in time.
    TimedOut,
    /// The agent in a pod could not be asked, or did not answer.
    NoAnswer,
    /// Something we did not foresee.
    Internal,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
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

    /// What the API server said while we were `doing` something.
    pub fn of_kube(doing: &str, error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            let hint = "see whether `kubectl get namespaces` works, with the same --context";
            return Self::new(Code::NoCluster, format!("could not {doing}: {error}"), hint);
        };
        let (code, hint) = match (status.code, status.reason.as_str()) {
            (401 | 403, _) => (Code::NotPermitted, "ask whoever administers the cluster, or the namespace"),
            (404, _) if status.message.contains("could not find the requested resource") => {
                (Code::NotInstalled, "install Peerage's chart, with its CRDs")
            }
            (404, _) => (Code::NotFound, "see what there is with `kubectl peerage status`"),
            (409, "AlreadyExists") => (Code::AlreadyExists, "choose another name, or delete that one first"),
            (409, _) => (Code::AlreadyExists, "somebody else changed it at the same time; try again"),
            (422, _) => (Code::Invalid, ""),
            _ => (Code::Internal, ""),
        };
        Self::new(code, format!("could not {doing}: {}", status.message), hint)
    }
}
