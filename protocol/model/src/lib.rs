//! Names, ids, passports, snapshots and messages of Peerage, as plain values.
//!
//! Everything here is parsed once, at the edge, into types that cannot hold a bad value. Nothing reads a clock or
//! draws randomness: times and random bytes are arguments. The byte layouts are in `docs/spec/identity.md`,
//! `docs/spec/session.md`, `docs/spec/relay.md`, `docs/spec/control-plane.md` and `docs/spec/linking.md`, and the test vectors beside them.

pub mod authority;
pub mod cbor;
pub mod control;
pub mod id;
pub mod keys;
pub mod linking;
pub mod mailbox;
pub mod name;
pub mod operator;
pub mod pair;
pub mod passport;
pub mod relay;
pub mod signed;
pub mod snapshot;
pub mod stream;
pub mod ticket;
pub mod time;

pub use authority::{Authority, AuthorityRecord};
pub use id::{AgentId, Fingerprint, InstanceId, RoutingId, TrustId};
pub use keys::{AgreementKey, AgreementSecret};
pub use name::{AgentName, InvalidName, Label};
pub use pair::PairSecret;
pub use passport::{Credential, Passport};
pub use snapshot::Snapshot;
pub use ticket::Ticket;
pub use time::UnixTime;
