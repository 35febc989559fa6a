//! Conditions: what they are called, why they are as they are, and how one is written without flapping.
//!
//! The words are enums here and strings on the wire. A reader that is older than the writer must not stall on a reason
//! it does not know, and the typed watch of a whole kind would.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::time_schema;

/// Longest message, as the schema has it.
const MAX_MESSAGE: usize = 4096;

/// One aspect of an object's state, in the shape of `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect: `Ready` sums up the others.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316), regex(pattern = "^[A-Z][A-Za-z0-9]*$"))]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one CamelCase word that programs may compare.
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^[A-Z][A-Za-z0-9]*$"))]
    pub reason: String,
    /// Why, for people, with what to do next.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// The generation of the object that was judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// When `status` last changed; a new reason or message alone does not move it.
    #[schemars(schema_with = "time_schema")]
    pub last_transition_time: Time,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell yet.
    Unknown,
}

impl Condition {
    /// A condition as it stands at `now`. A message that is too long is cut: the API server would refuse all of the status.
    #[must_use]
    pub fn new(type_: ConditionType, status: ConditionStatus, reason: Reason, mut message: String, now: Time) -> Self {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self {
            type_: type_.as_str().to_owned(),
            status,
            reason: reason.as_str().to_owned(),
            message,
            observed_generation: None,
            last_transition_time: now,
        }
    }

    /// The same condition, judged on `generation`.
    #[must_use]
    pub fn observed(self, generation: Option<i64>) -> Self {
        Self { observed_generation: generation, ..self }
    }
}

/// Puts `new` into `conditions`, and tells whether anything changed. The transition time moves only with the status:
/// who waits for `Ready` must not be woken by a new wording.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) -> bool {
    let Some(old) = conditions.iter_mut().find(|old| old.type_ == new.type_) else {
        conditions.push(new);
        return true;
    };
    if old.status == new.status {
        new.last_transition_time = old.last_transition_time.clone();
    }
    if *old == new {
        return false;
    }
    *old = new;
    true
}

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[doc = $doc:literal])+ $word:ident,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[doc = $doc])+ $word,)+ }

        impl $name {
            /// All of them, with what each means.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$word, concat!($($doc),+)),)+];

            /// The word as it is written into objects.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$word => stringify!($word),)+ }
            }
        }
    };
}

words! {
    /// The aspects that our objects report.
    ConditionType {
        /// The object makes sense and may be as it is: names resolve, links permit, nothing conflicts.
        Accepted,
        /// AgentPeer: every pod that matches carries a sidecar.
        Injected,
        /// AgentPeer: every sidecar has a passport that is valid.
        Enrolled,
        /// AgentTrust: every sidecar with a live stream has acknowledged it.
        Programmed,
        /// AgentLink: the other authority's operator answers.
        Connected,
        /// AgentRelay: the relay answers our probes.
        Available,
        /// AgentTrustRequest: somebody has decided.
        Answered,
        /// The sum: what the object asks for is the case.
        Ready,
    }
}

words! {
    /// Why a condition is as it is.
    Reason {
        /// Everything is as the object asks.
        AsDeclared,
        /// This version of the operator does not understand the object: its CRDs are of another version; what was understood last stands.
        NotUnderstood,
        /// No pod matches the selector; that is not an error.
        NoPods,
        /// Another AgentPeer of this namespace selects the same pods.
        ConflictingSelector,
        /// Two declarations claim one port, or a pod's own container listens on it; set `localPort`.
        PortConflict,
        /// Two trusts of one agent would call different peers by one alias.
        AliasConflict,
        /// Another trust of the agent names the same peer and is older.
        DuplicateTrust,
        /// An agent is asked to trust itself.
        PeerIsSelf,
        /// Pods match that have no sidecar: made before injection was on, or something stands in its way; the message tells which.
        NotInjected,
        /// Each pod has a sidecar, and some have another version of it than new pods get; restart them when it suits.
        OutdatedSidecars,
        /// A sidecar runs and has not enrolled yet.
        WaitingForEnrolment,
        /// The AgentPeer that the object names does not exist in this namespace.
        AgentNotFound,
        /// The AgentLink that the object names does not exist.
        LinkNotFound,
        /// The AgentLink that the object names is not what this version of the operator understands.
        LinkUnreadable,
        /// The link does not list this namespace.
        NotPermittedByLink,
        /// The relay does not list this namespace.
        NotPermittedByRelay,
        /// The record that the link declares is not one, or of another authority than the link pins.
        RecordInvalid,
        /// The ticket has ended or was used by somebody else; ask the other side for a new one.
        TicketEnded,
        /// The two operators are about to meet.
        Connecting,
        /// The link leads to another authority than the object pins: traffic is stopped.
        AuthorityChanged,
        /// The other side has not consented, or there is no such agent: one reason, so that nobody can probe names.
        WaitingForPeer,
        /// Some agents have not acknowledged yet.
        WaitingForAgents,
        /// The object's `expiresAt` has passed.
        Expired,
        /// A Secret that is needed is not there.
        SecretNotFound,
        /// A Secret that is needed cannot be read as what it should be.
        SecretInvalid,
        /// No relay of the list answers.
        RelayUnreachable,
        /// The relay answers, and does not let the operator's own agent in; the message tells why.
        RelayRefused,
        /// The other operator does not answer, or the machine to its ticket.
        PeerOperatorUnreachable,
        /// The operator was not installed with what the object asks for; the message says which value of the chart it is.
        NotEnabled,
        /// A managed relay has no address yet.
        WaitingForAddress,
        /// Nobody has decided yet.
        Pending,
        /// The owner does not want it.
        Rejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(seconds).expect("a time in range"))
    }

    fn ready(status: ConditionStatus, reason: Reason, seconds: i64) -> Condition {
        Condition::new(ConditionType::Ready, status, reason, String::new(), at(seconds))
    }

    #[test]
    fn a_message_that_is_too_long_is_cut_at_a_character() {
        let message = "é".repeat(MAX_MESSAGE);
        let new = Condition::new(ConditionType::Ready, ConditionStatus::False, Reason::Pending, message, at(1));
        assert_eq!((new.message.len(), new.message.chars().count()), (MAX_MESSAGE, MAX_MESSAGE / 2));
    }

    #[test]
    fn a_transition_time_moves_only_with_the_status() {
        let mut all = vec![];
        assert!(set_condition(&mut all, ready(ConditionStatus::False, Reason::WaitingForPeer, 1)));
        assert!(set_condition(&mut all, ready(ConditionStatus::False, Reason::Expired, 2)));
        assert_eq!((all[0].reason.as_str(), &all[0].last_transition_time), ("Expired", &at(1)));
        assert!(set_condition(&mut all, ready(ConditionStatus::True, Reason::AsDeclared, 3)));
        assert_eq!((all.len(), &all[0].last_transition_time), (1, &at(3)));
    }

    #[test]
    fn what_did_not_change_is_no_write() {
        let mut all = vec![ready(ConditionStatus::True, Reason::AsDeclared, 1)];
        assert!(!set_condition(&mut all, ready(ConditionStatus::True, Reason::AsDeclared, 9)));
    }
}
