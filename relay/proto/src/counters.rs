//! What a relay counts. Numbers only: no id and no address ever becomes a label.

/// Why a datagram went nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// Not a frame of version 1 that a client may send.
    Malformed,
    /// From an address that has shown nothing, and too short to be challenged.
    Unknown,
    /// The tag is not the sender's.
    WrongTag,
    /// The cookie is not of this address or time.
    BadCookie,
    /// A handshake frame that does not verify, or a replay.
    BadHandshake,
    /// Over a quota of authority or network.
    Quota,
    /// First contact above 10 packets/s, or too many at once.
    FirstContact,
    /// The destination is not here, or may not be reached.
    Nowhere,
    /// No memory for it, or the relay is draining.
    Full,
    /// STUN that is not answered, or too often.
    Stun,
}

impl DropReason {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::Unknown,
        Self::WrongTag,
        Self::BadCookie,
        Self::BadHandshake,
        Self::Quota,
        Self::FirstContact,
        Self::Nowhere,
        Self::Full,
        Self::Stun,
    ];

    /// As a label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unknown => "unknown_source",
            Self::WrongTag => "wrong_tag",
            Self::BadCookie => "bad_cookie",
            Self::BadHandshake => "bad_handshake",
            Self::Quota => "quota",
            Self::FirstContact => "first_contact",
            Self::Nowhere => "no_destination",
            Self::Full => "full",
            Self::Stun => "stun",
        }
    }
}

/// Totals since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams handed on.
    pub forwarded_packets: u64,
    /// Bytes of UDP payload handed on.
    pub forwarded_bytes: u64,
    /// COOKIE frames sent, to HELLO and to unknown addresses.
    pub cookies: u64,
    /// BINDs granted, renewals included.
    pub binds: u64,
    /// BINDs refused with a reason.
    pub refusals: u64,
    /// VISITs granted.
    pub visits: u64,
    /// Clients that kept their id over a change of address.
    pub moves: u64,
    /// Bindings that their agents ended.
    pub unbinds: u64,
    /// Visitors pushed out to make room.
    pub shed: u64,
    /// STUN answers.
    pub stun: u64,
    /// Look-ups of names answered.
    pub lookups: u64,
    /// Posts to mailboxes answered, whether or not there is such a mailbox.
    pub posts: u64,
    dropped: [u64; DropReason::ALL.len()],
}

impl Counters {
    /// Datagrams dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    pub(crate) fn drop(&mut self, reason: DropReason, packets: usize) {
        self.dropped[reason as usize] += packets as u64;
    }
}

/// What is held at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Bound instances.
    pub bound: usize,
    /// Visitors.
    pub visitors: usize,
    /// Pairs past first contact.
    pub flows: usize,
    /// Bytes counted against the memory limit, each entry at its worst.
    pub memory: usize,
    /// Open mailboxes.
    pub mailboxes: usize,
    /// Mail in them.
    pub mail: usize,
    /// Bytes counted against the memory limit of mailboxes.
    pub mailbox_memory: usize,
    /// BINDs that wait for their turn.
    pub binds_waiting: usize,
}
