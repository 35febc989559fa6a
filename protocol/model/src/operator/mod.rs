//! What operator and agent say to each other (`docs/spec/control-plane.md`).
//!
//! Inside one TLS session whose certificate says nothing: the operator proves with its first frame that it speaks for the
//! authority ([`Hello`]), the agent then that it holds its instance key ([`Enrol`], [`Resume`]), both over the session's
//! exporter, so that neither proof is of use to a middlebox. From there on the operator tells whom the agent may talk to
//! ([`Update`]) and the agent what came of it ([`Ack`], [`Report`]).

mod enrol;
pub(crate) mod frame;
mod hello;
mod report;
mod update;

use core::fmt;

use zeroize::Zeroizing;

pub use enrol::{
    BadProof, Enrol, Enrolment, EnrolmentError, MAX_ENROLMENT, MAX_TOKEN, Passport, Proof, Renew, Resume, audience,
};
pub use frame::{
    BadMessage, Keepalive, MAX_FIRST, MAX_FRAME, NoFrame, PREFIX, Split, ToAgent, ToOperator, frame_len, split_frame,
};
pub use hello::{Hello, HelloError};
pub use report::{
    Ack, Conflict, GoAway, GoAwayCode, MAX_REPORTED, MAX_TEXT, Nat, PathWord, PeerReport, PeerState, Report, clipped,
};
pub use update::{Entry, LocalPort, MAX_DENIED, MAX_ENTRIES, Offer, PortNumber, Revision, Settings, Update};

/// The label of the TLS exporter (RFC 8446 section 7.5); its context is empty and it gives 32 bytes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-peerage-operator-v1";
/// The protocol's name in the HTTP header `Upgrade`.
pub const UPGRADE: &str = "peerage/1";
/// Where in the operator's HTTP server this protocol is.
pub const HTTP_PATH: &str = "/v1/agent";
/// A side that has sent nothing for this long sends [`Keepalive`].
pub const KEEPALIVE: core::time::Duration = core::time::Duration::from_secs(15);
/// A side that has heard nothing for this long takes the connection for dead: two keepalives may be lost on the way.
pub const SILENCE: core::time::Duration = core::time::Duration::from_secs(45);

/// What both ends of one TLS session, and nobody else, know of it.
#[derive(Clone)]
pub struct ChannelBinding(Zeroizing<[u8; 32]>);

impl ChannelBinding {
    /// From what the exporter gave for [`EXPORTER_LABEL`].
    #[must_use]
    pub fn new(exported: Zeroizing<[u8; 32]>) -> Self {
        Self(exported)
    }
}

impl fmt::Debug for ChannelBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelBinding(..)")
    }
}
