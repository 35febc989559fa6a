//! The numbers a relay is run with (`docs/spec/relay.md` section 6), and who may bind.

use core::time::Duration;
use std::collections::BTreeSet;

use peerage_model::Fingerprint;

use crate::bucket::Rate;

/// A binding or visitor ends after this long without a frame: three keepalives of 25 s lost, and some.
pub const LIFETIME: Duration = Duration::from_secs(90);
/// How long one cookie window lasts; a cookie is taken in its own and the next.
pub const COOKIE_WINDOW: Duration = Duration::from_secs(60);
/// Packets to a destination that has not answered (DESIGN.md section 6).
pub const FIRST_CONTACT: Rate = Rate::new(10, 10);
/// Destinations a source may be trying at once.
pub const ATTEMPTS: usize = 16;
/// Of those, how many may take the place of another that is still tried.
pub const DISPLACING: Rate = Rate::new(4, 16);
/// How long an attempt is remembered after its last packet.
pub const ATTEMPT_LIFETIME: Duration = Duration::from_secs(30);
/// Without an answer for this long, first packets go to the next instance. Below QUIC's first retransmission (1 s), so
/// that this one already does; above any round trip between a relay and an instance of its region.
pub const REPICK: Duration = Duration::from_millis(750);
/// Instances of a route among which one source's first packets choose, and so what ranking them may cost.
pub const CHOICES: usize = 64;
/// An instance that was heard within this time comes before one that was not: a keepalive is due every 25 s, and is
/// repeated after 1 s and 2 s.
pub const RECENT: Duration = Duration::from_secs(30);
/// How long a flow is remembered after its last packet; seven QUIC keepalives.
pub const FLOW_IDLE: Duration = Duration::from_secs(180);
/// A source whose stream ended is kept this long, for the client to come back at another place.
pub const STREAM_GRACE: Duration = Duration::from_secs(10);
/// How often what ended is swept out.
pub const SWEEP: Duration = Duration::from_secs(10);

/// Who may bind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every authority, within the quotas.
    Open,
    /// These authorities.
    Only(BTreeSet<Fingerprint>),
}

impl Access {
    /// Whether agents of `authority` may bind.
    #[must_use]
    pub fn admits(&self, authority: &Fingerprint) -> bool {
        match self {
            Self::Open => true,
            Self::Only(listed) => listed.contains(authority),
        }
    }
}

/// What one authority or one source network may use. `None` is without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of UDP payload.
    pub bytes: Option<Rate>,
    /// Datagrams.
    pub packets: Option<Rate>,
    /// Bindings at one time.
    pub bindings: u32,
}

impl Quota {
    /// 1 Gb/s and 200 000 packets/s, both with a quarter of a second at once.
    #[must_use]
    pub const fn gigabit(bindings: u32) -> Self {
        Self { bytes: Some(Rate::new(125_000_000, 31_250_000)), packets: Some(Rate::new(200_000, 50_000)), bindings }
    }

    /// No limit on traffic.
    #[must_use]
    pub const fn unlimited(bindings: u32) -> Self {
        Self { bytes: None, packets: None, bindings }
    }
}

/// All limits of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one authority.
    pub authority: Quota,
    /// Of one /24 or /48.
    pub network: Quota,
    /// Visitors of one /24 or /48 at one time.
    pub visitors_per_network: u32,
    /// BIND, VISIT, MOVE and streams of one /24 or /48. At once, what all of its bindings need to come back by streams, twice one
    /// each: a company behind one address is one network, and a restart of the relay brings all of it.
    pub handshakes: Rate,
    /// BINDs in all, by who is not bound at that address; and as many by who is.
    pub binds: Rate,
    /// Flows of one binding.
    pub flows_per_binding: usize,
    /// Bytes for everything remembered, each entry counted at its worst.
    pub memory: usize,
    /// Bytes for mailboxes and mail, each counted at its worst.
    pub mailbox_memory: usize,
    /// Mailboxes that one /24 or /48 has opened.
    pub mailboxes_per_network: usize,
    /// STUN answers to one /24 or /48.
    pub stun_per_network: Rate,
    /// STUN answers in all.
    pub stun: Rate,
}

impl Limits {
    /// For a relay that anybody may use.
    #[must_use]
    pub const fn open() -> Self {
        Self {
            authority: Quota::gigabit(10_000),
            network: Quota::gigabit(2_500),
            visitors_per_network: 1_024,
            handshakes: Rate::new(200, 5_000),
            binds: Rate::new(2_000, 10_000),
            flows_per_binding: 4_096,
            memory: 256 << 20,
            mailbox_memory: 16 << 20,
            mailboxes_per_network: 500,
            stun_per_network: Rate::new(50, 100),
            stun: Rate::new(20_000, 20_000),
        }
    }

    /// For a relay whose owner lists the authorities: their traffic is not limited, and all of them may be in one office.
    #[must_use]
    pub const fn allowlisted() -> Self {
        Self {
            authority: Quota::unlimited(10_000),
            network: Quota::unlimited(10_000),
            handshakes: Rate::new(200, 20_000),
            mailboxes_per_network: 10_000,
            ..Self::open()
        }
    }
}
