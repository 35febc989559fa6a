//! Who is who: authorities, agents, their instances and where relays find them.

use core::fmt;

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use minicbor::{Decode, Encode};

use crate::cbor::byte_string;
use crate::keys::AgreementKey;
use crate::name::AgentName;

/// An authority for life: SHA-256 of its root Ed25519 public key. Self-certifying, so nobody can squat on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);
byte_string!(Fingerprint, 32);

/// Where relays route an agent's first packets: SHA-256("peerage rid v1" ‖ fingerprint ‖ name), first 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoutingId(pub [u8; 16]);
byte_string!(RoutingId, 16);

/// One running agent: SHA-256("peerage iid v1" ‖ instance public key), first 8 bytes. Replicas share a name, never this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub [u8; 8]);
byte_string!(InstanceId, 8);

/// One trust declaration: the AgentTrust's UID in Kubernetes, random elsewhere. What an agent saw revoked under an
/// id it never takes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustId(pub [u8; 16]);
byte_string!(TrustId, 16);

/// An agent: who vouches for it, and the name it goes by there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(map)]
pub struct AgentId {
    /// The authority that vouches.
    #[n(0)]
    pub authority: Fingerprint,
    /// The name within that authority.
    #[n(1)]
    pub name: AgentName,
}

impl Fingerprint {
    /// Of a root Ed25519 public key.
    #[must_use]
    pub fn of_root(root: &[u8; 32]) -> Self {
        Self(sha256(&[root]))
    }
}

impl AgentId {
    /// Where relays route first packets for this agent (docs/spec/identity.md).
    #[must_use]
    pub fn routing_id(&self) -> RoutingId {
        let hash = sha256(&[b"peerage rid v1", &self.authority.0, self.name.as_str().as_bytes()]);
        RoutingId(first(&hash))
    }

    /// The bytes that stand for this agent inside key derivations: fingerprint, then the name's length in one byte,
    /// then the name. Injective, because a name has at most 127 bytes.
    #[must_use]
    pub fn binding(&self) -> Vec<u8> {
        let name = self.name.as_str().as_bytes();
        let length = u8::try_from(name.len()).expect("an agent name has at most 127 bytes");
        let mut out = Vec::with_capacity(33 + name.len());
        out.extend_from_slice(&self.authority.0);
        out.push(length);
        out.extend_from_slice(name);
        out
    }
}

impl InstanceId {
    /// Of an instance's X25519 public key.
    #[must_use]
    pub fn of_key(key: &AgreementKey) -> Self {
        Self(first(&sha256(&[b"peerage iid v1", &key.0])))
    }
}

/// SHA-256 of the parts, one after the other.
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    first(context.finish().as_ref())
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

macro_rules! hex_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Eight hex digits tell two apart in a log; the whole id is `Display`.
                write!(f, "{}…", &HEXLOWER.encode(&self.0[..4]))
            }
        }

        impl core::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let bytes =
                    HEXLOWER.decode(text.as_bytes()).map_err(|_| InvalidId { expected: size_of::<Self>() * 2 })?;
                Ok(Self(bytes.try_into().map_err(|_| InvalidId { expected: size_of::<Self>() * 2 })?))
            }
        }
    };
}
hex_text!(Fingerprint);
hex_text!(RoutingId);
hex_text!(InstanceId);
hex_text!(TrustId);

/// Text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an id of this kind is {expected} lower-case hex digits")]
pub struct InvalidId {
    expected: usize,
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.authority)
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:?}", self.name, self.authority)
    }
}

impl core::str::FromStr for AgentId {
    type Err = InvalidAgentId;

    fn from_str(text: &str) -> Result<Self, InvalidAgentId> {
        let (name, authority) = text.split_once('@').ok_or(InvalidAgentId)?;
        Ok(Self {
            authority: authority.parse().map_err(|_| InvalidAgentId)?,
            name: name.parse().map_err(|_| InvalidAgentId)?,
        })
    }
}

/// Text that is not an agent id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an agent id is NAME@FINGERPRINT, the fingerprint in 64 lower-case hex digits")]
pub struct InvalidAgentId;
