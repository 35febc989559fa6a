//! Pairs: whom we may dial or hear, by which secrets, and how dialling goes.

use std::time::{Duration, Instant};

use peerage_model::control::TrustRequest;
use peerage_model::relay::RelayInfo;
use peerage_model::snapshot::{Invite, Peer};
use peerage_model::{AgentId, PairSecret, TrustId, UnixTime};

use super::event::{AskKey, SessionKey};
use super::replicas::Replicas;
use super::sockets::RoundPause;
use super::waiting::Waiting;
use crate::noise::{ConfigError, Pairing};
use crate::path::budget::Budget;

/// The first dial's time to come up before a fresh knock is tried; the second has twice as long, and so on to four
/// times, for paths that are very slow. Two retransmissions of the first packet fit at the
/// initial RTT of [`super::config::INITIAL_RTT`], and most handshakes that work take one round trip.
pub(super) const ATTEMPT: Duration = Duration::from_secs(2);
/// How long a stream waits for a session before it fails.
pub(super) const STREAM_PATIENCE: Duration = Duration::from_secs(15);
/// How long a trust request is tried.
pub(super) const ASK_PATIENCE: Duration = Duration::from_secs(20);
/// How long after its request an asker hears the receipt again if it comes back: the rest of its [`ASK_PATIENCE`], and a person who tries
/// once more.
pub(super) const SERVED_FOR: Duration = Duration::from_secs(60);
/// How long after a peer's revocation streams to it fail at once instead of waiting for [`STREAM_PATIENCE`].
pub(super) const REFUSED: Duration = Duration::from_secs(60);
/// First pause between courtesy dials; doubles to [`MAX_PAUSE`].
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between courtesy dials: a peer that comes up dials us anyway.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Most handshakes of one pair that we answer at a time; what is above is dropped in silence.
pub(super) const MAX_PENDING: usize = 8;

/// Lines about sessions of one pair that the log gets at once, and how soon it gets another one. A peer may come and go as often as
/// it likes; whoever wants all of it looks at `debug`.
pub(super) type Lines = Allowance<20, 6_000>;

/// Handshakes of one pair that are answered at once, and how soon another one: as many as it may have sessions, and then ten a second.
/// Each costs a few Diffie-Hellmans, and a peer that is trusted may be hostile all the same.
pub(super) type Handshakes = Allowance<64, 100>;

/// Most sessions of askers with one ticket. One is enough; others are of attempts that the asker has given up.
pub(super) const MAX_PER_INVITE: usize = 4;

/// Which pair a session or stream belongs to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum PairKey {
    /// A trusted peer.
    Peer(AgentId),
    /// An invitation of ours; strangers with its ticket may ask.
    Invite(TrustId),
    /// A request of ours to the holder of an invitation.
    Ask(AskKey),
}

/// What a pair is for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Peer(Peer),
    Invite { invite: Invite, served: Option<Served> },
    Ask { inviter: AgentId, relays: Vec<RelayInfo>, request: TrustRequest, deadline: Instant },
}

/// Whose request an invitation was used for. The receipt may be lost on its way: until then this asker, and no other, is answered as before.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) asker: AgentId,
    pub(super) until: Instant,
    pub(super) standing: Standing,
}

/// What becomes of a used invitation whose request cannot be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It is open again: its owner has not closed it.
    Open,
    /// It opens to nobody any more: its owner has withdrawn it, or has noted that it is used.
    Closed,
    /// That has happened, and its asker hears so whenever it comes back.
    Refused,
}

/// How dialling goes. A session that is up makes it [`Dial::Rest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dial {
    /// Nothing to do until somebody wants a session.
    Rest,
    /// The next attempt comes then.
    Pause { until: Instant, attempts: u32 },
    /// An attempt runs; a fresh one replaces it then.
    Attempt { session: SessionKey, until: Instant, attempts: u32 },
}

/// A pair, its keys and what is going on with it.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) purpose: Purpose,
    /// Us to them.
    pub(super) outbound: Pairing,
    /// Them to us.
    pub(super) inbound: Option<Pairing>,
    pub(super) dial: Dial,
    /// Sessions that are up, oldest first.
    pub(super) up: Vec<SessionKey>,
    /// The peer's instances.
    pub(super) replicas: Replicas,
    /// Handshakes that we answer.
    pub(super) pending: Vec<SessionKey>,
    /// Streams that wait for a session.
    pub(super) waiting: Waiting,
    /// The peer said that it withdrew its trust. Until then nobody is kept waiting for a session that it will not answer;
    /// if it trusts us again, it dials.
    pub(super) refused_until: Option<Instant>,
    /// The peer's relays before its list changed, and how long it is looked for there as well.
    pub(super) former: Option<(Vec<RelayInfo>, Instant)>,
    /// When ports may be guessed next.
    pub(super) round_pause: RoundPause,
    /// Lines about its sessions that the log may have.
    pub(super) lines: Lines,
    /// Handshakes of others that are answered.
    pub(super) handshakes: Handshakes,
}

/// What a peer may bring about: `AT_ONCE`, and one more each `MILLIS`.
#[derive(Debug, Default)]
pub(super) struct Allowance<const AT_ONCE: u32, const MILLIS: u64>(Option<Budget>);

impl<const AT_ONCE: u32, const MILLIS: u64> Allowance<AT_ONCE, MILLIS> {
    fn budget(&mut self, now: Instant) -> &mut Budget {
        self.0.get_or_insert_with(|| Budget::full(now, AT_ONCE, Duration::from_millis(MILLIS)))
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.budget(now).take(now)
    }

    /// Whether there is none to take.
    pub(super) fn is_empty(&mut self, now: Instant) -> bool {
        self.budget(now).is_empty(now)
    }
}

impl Pair {
    pub(super) fn trusted(me: &AgentId, peer: Peer, dial: Dial) -> Result<Self, ConfigError> {
        let (ours, theirs) = (me.binding(), peer.id.binding());
        let outbound = Pairing::new(&peer.secrets, &ours, &theirs)?;
        let inbound = Pairing::new(&peer.secrets, &theirs, &ours)?;
        Ok(Self::new(Purpose::Peer(peer), outbound, Some(inbound), dial))
    }

    pub(super) fn inviting(me: &AgentId, invite: Invite) -> Result<Self, ConfigError> {
        let pairing = Pairing::new(std::slice::from_ref(&invite.secret), b"", &me.binding())?;
        Ok(Self::new(Purpose::Invite { invite, served: None }, pairing.clone(), Some(pairing), Dial::Rest))
    }

    pub(super) fn asking(
        inviter: AgentId,
        secret: &PairSecret,
        relays: Vec<RelayInfo>,
        request: TrustRequest,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        let outbound = Pairing::new(std::slice::from_ref(secret), b"", &inviter.binding())?;
        let purpose = Purpose::Ask { inviter, relays, request, deadline: now + ASK_PATIENCE };
        Ok(Self::new(purpose, outbound, None, Dial::Pause { until: now, attempts: 0 }))
    }

    fn new(purpose: Purpose, outbound: Pairing, inbound: Option<Pairing>, dial: Dial) -> Self {
        Self {
            purpose,
            outbound,
            inbound,
            dial,
            up: Vec::new(),
            replicas: Replicas::default(),
            pending: Vec::new(),
            waiting: Waiting::default(),
            refused_until: None,
            former: None,
            round_pause: RoundPause::default(),
            lines: Lines::default(),
            handshakes: Handshakes::default(),
        }
    }

    /// Whom a dial of this pair is for, and where to look for it; `None` where we only listen.
    pub(super) fn destination(&self) -> Option<(&AgentId, &[RelayInfo])> {
        match &self.purpose {
            Purpose::Peer(peer) => Some((&peer.id, &peer.relays)),
            Purpose::Ask { inviter, relays, .. } => Some((inviter, relays)),
            Purpose::Invite { .. } => None,
        }
    }

    /// Where it was to be looked for until a while ago.
    pub(super) fn former_relays(&self, now: Instant) -> &[RelayInfo] {
        self.former.as_ref().filter(|(_, until)| now < *until).map_or(&[], |(list, _)| list)
    }

    /// Whom the handshake must show; an invitation answers anyone who holds it, and once it is used only who used it.
    pub(super) fn expected(&self) -> Option<AgentId> {
        match &self.purpose {
            Purpose::Peer(Peer { id: agent, .. }) | Purpose::Ask { inviter: agent, .. } => Some(agent.clone()),
            Purpose::Invite { served, .. } => served.as_ref().map(|served| served.asker.clone()),
        }
    }

    /// Whose request the invitation was used for, while that asker may come back for the receipt.
    pub(super) fn served(&self, now: Instant) -> Option<&AgentId> {
        match &self.purpose {
            Purpose::Invite { served: Some(served), .. } if now < served.until => Some(&served.asker),
            Purpose::Invite { .. } | Purpose::Peer(_) | Purpose::Ask { .. } => None,
        }
    }

    /// The invitation is used, or, where a request could not be kept, open again.
    pub(super) fn serve(&mut self, asker: Option<Served>) {
        if let Purpose::Invite { served, .. } = &mut self.purpose {
            *served = asker;
        }
    }

    /// What becomes of the invitation if the request that it is used for cannot be kept.
    pub(super) fn standing(&mut self) -> Option<&mut Standing> {
        match &mut self.purpose {
            Purpose::Invite { served: Some(served), .. } => Some(&mut served.standing),
            Purpose::Invite { served: None, .. } | Purpose::Peer(_) | Purpose::Ask { .. } => None,
        }
    }

    /// The trusted peer, where this is one.
    pub(super) fn peer(&self) -> Option<&Peer> {
        match &self.purpose {
            Purpose::Peer(peer) => Some(peer),
            Purpose::Invite { .. } | Purpose::Ask { .. } => None,
        }
    }

    /// Whether its time is over: it is neither dialled nor answered any more.
    pub(super) fn has_ended(&self, wall: UnixTime) -> bool {
        match &self.purpose {
            Purpose::Peer(peer) => peerage_policy::ended(peer, wall).is_some(),
            Purpose::Invite { invite, .. } => invite.expires <= wall,
            Purpose::Ask { .. } => false,
        }
    }

    /// Every session of this pair.
    pub(super) fn sessions(&self) -> Vec<SessionKey> {
        let dialling = match self.dial {
            Dial::Attempt { session, .. } => Some(session),
            Dial::Rest | Dial::Pause { .. } => None,
        };
        let aside = self.replicas.dialling().map(|(session, _)| session);
        self.up.iter().chain(&self.pending).copied().chain(dialling).chain(aside).collect()
    }

    /// Whether a dial may start at once because a stream waits for it.
    pub(super) fn may_dial_now(&self) -> bool {
        match self.dial {
            Dial::Rest | Dial::Pause { .. } => self.destination().is_some(),
            Dial::Attempt { .. } => false,
        }
    }

    /// Whether an attempt runs to reach any of its instances.
    pub(super) fn is_dialling(&self) -> bool {
        match self.dial {
            Dial::Attempt { .. } => true,
            Dial::Rest | Dial::Pause { .. } => false,
        }
    }

    /// When dialling goes on.
    pub(super) fn next_step(&self) -> Option<Instant> {
        let dial = match self.dial {
            Dial::Rest => None,
            Dial::Pause { until, .. } | Dial::Attempt { until, .. } => Some(until),
        };
        let patience = match &self.purpose {
            Purpose::Ask { deadline, .. } => Some(*deadline),
            Purpose::Invite { served, .. } => served.as_ref().map(|served| served.until),
            Purpose::Peer(_) => None,
        };
        let aside = self.replicas.dialling().map(|(_, until)| until);
        dial.into_iter().chain(aside).chain(patience).min()
    }

    /// Both sides of a session are proven.
    pub(super) fn is_up(&mut self, session: SessionKey) {
        self.pending.retain(|s| *s != session);
        self.up.push(session);
        self.refused_until = None;
        if matches!(self.dial, Dial::Attempt { session: dialled, .. } if dialled == session) {
            self.dial = Dial::Rest;
        }
    }

    /// Forgets a session that is gone.
    pub(super) fn forget(&mut self, session: SessionKey) {
        self.up.retain(|s| *s != session);
        self.pending.retain(|s| *s != session);
    }
}

/// The pause after so many attempts that nobody answered (exponential, capped).
pub(super) fn pause_after(attempts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempts.min(9)).min(MAX_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_comes_and_goes_ten_times_a_second_is_thirty_lines_in_a_minute() {
        let (mut lines, begun) = (Lines::default(), Instant::now());
        let said = (0..600).filter(|number| lines.take(begun + Duration::from_millis(100) * *number));
        assert_eq!(said.count(), 20 + 9);
    }
}
