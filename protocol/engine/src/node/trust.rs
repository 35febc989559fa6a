//! Whom the node trusts: allowlist snapshots, our own passport, and asking for trust.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use peerage_model::control::{ControlMessage, Renewal, TrustRequest};
use peerage_model::snapshot::{BirthdayMode, Peer, Snapshot};
use peerage_model::{AgentId, PairSecret, Ticket, TrustId};
use tracing::{info, warn};

use super::Node;
use super::event::{AskKey, CloseCode, DownReason, Now, SessionKey};
use super::pair::{Dial, Pair, PairKey, Purpose, Standing};
use super::paths::mode;
use super::relays::OVERLAP;
use super::session::Session;
use super::{StreamError, Timer};
use crate::noise::{ConfigError, LocalIdentity};

/// First dials of newly learned peers are spread over this long for each peer there is, up to [`MAX_SPREAD`].
const SPREAD_PER_PEER: Duration = Duration::from_millis(20);
const MAX_SPREAD: Duration = Duration::from_secs(10);

impl Node {
    /// Makes the allowlist be `snapshot`. Sessions of peers that are not in it any more end now, with a reason the
    /// peer is told; a trust that was withdrawn once is never taken back under the same id.
    pub fn apply_snapshot(&mut self, now: Now, snapshot: Snapshot) {
        self.tick(now);
        self.ports = snapshot.ports;
        self.judge.set_denied(snapshot.denied);
        self.relays.set_own(&snapshot.relays, &self.agent.routing_id(), now.mono);
        self.settle_relays(now);
        let peers: BTreeMap<AgentId, Peer> = snapshot
            .peers
            .into_iter()
            .filter(|peer| !self.revoked.contains(&peer.trust) && peer.id != self.agent)
            .map(|peer| (peer.id.clone(), peer))
            .collect();
        self.remove_missing_peers(&peers, now);
        let spread = SPREAD_PER_PEER.saturating_mul(peers.len().try_into().unwrap_or(u32::MAX)).min(MAX_SPREAD);
        for (id, peer) in peers {
            match self.pairs.contains_key(&PairKey::Peer(id.clone())) {
                true => self.update_peer(peer, now),
                false => self.add_peer(peer, spread, now),
            }
        }
        self.set_invites(snapshot.invites, now);
        self.end_denied(now);
    }

    fn remove_missing_peers(&mut self, peers: &BTreeMap<AgentId, Peer>, now: Now) {
        let gone = |pair: &Pair| match &pair.purpose {
            // The same agent under a new declaration is a new trust; the old one ends first.
            Purpose::Peer(old) => peers.get(&old.id).is_none_or(|new| new.trust != old.trust),
            Purpose::Invite { .. } | Purpose::Ask { .. } => false,
        };
        let gone: Vec<PairKey> = self.pairs.iter().filter(|(_, pair)| gone(pair)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            if let Some(peer) = self.pairs.get(&key).and_then(Pair::peer) {
                info!(target: "events::trust_withdrawn", peer = %peer.id.routing_id(), trust = ?peer.trust);
                self.revoked.insert(peer.trust);
            }
            self.remove_pair(&key, CloseCode::Revoked, &DownReason::RevokedHere, now);
        }
    }

    fn remove_pair(&mut self, key: &PairKey, code: CloseCode, reason: &DownReason, now: Now) {
        let Some(pair) = self.pairs.get(key) else { return };
        for session in pair.sessions() {
            self.close(session, code, reason.clone(), now.mono);
        }
        self.knocks().remove(key);
        self.timers.set(&Timer::Pair(key.clone()), None);
        let waiting = self.pairs.remove(key).map(|pair| pair.waiting).unwrap_or_default();
        for stream in waiting.into_keys() {
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.end(StreamError::SessionEnded(reason.clone()));
            }
            self.wake(stream);
        }
    }

    fn add_peer(&mut self, peer: Peer, spread: Duration, now: Now) {
        let delay = self.random_below(spread.as_millis().try_into().unwrap_or(u64::MAX));
        let dial = Dial::Pause { until: now.mono + delay, attempts: 0 };
        let key = PairKey::Peer(peer.id.clone());
        match Pair::trusted(&self.agent, peer, dial) {
            Ok(pair) => self.insert_pair(key, pair),
            Err(error) => warn!(?key, %error, "this peer cannot be used"),
        }
    }

    fn insert_pair(&mut self, key: PairKey, pair: Pair) {
        if let Some(inbound) = &pair.inbound {
            self.knocks().insert(key.clone(), inbound.clone());
        }
        self.pairs.insert(key.clone(), pair);
        self.arm_pair(&key);
    }

    fn update_peer(&mut self, peer: Peer, now: Now) {
        let key = PairKey::Peer(peer.id.clone());
        let Some(pair) = self.pairs.get_mut(&key) else { return };
        let Purpose::Peer(old) = &pair.purpose else { return };
        let (new_secrets, new_mode) = (old.secrets != peer.secrets, old.path != peer.path);
        if new_secrets {
            match Pair::trusted(&self.agent, peer.clone(), pair.dial) {
                Ok(fresh) => (pair.outbound, pair.inbound) = (fresh.outbound, fresh.inbound),
                Err(error) => {
                    warn!(?key, %error, "this peer's new secrets cannot be used");
                    self.remove_pair(&key, CloseCode::Revoked, &DownReason::RevokedHere, now);
                    return;
                }
            }
        }
        if old.relays != peer.relays {
            // Of two changes within the time only the list before the last counts; a third would want a list of lists.
            pair.former = Some((old.relays.clone(), now.mono + OVERLAP));
        }
        let birthday = peer.birthday == BirthdayMode::Enabled;
        let path = mode(peer.path);
        pair.purpose = Purpose::Peer(peer);
        let (sessions, inbound) = (pair.up.clone(), pair.inbound.clone());
        if let (true, Some(inbound)) = (new_secrets, inbound) {
            self.knocks().insert(key.clone(), inbound);
        }
        for session in sessions {
            if let Some(up) = self.sessions.get_mut(&session).and_then(Session::up_mut) {
                up.path.allow_birthday(now.mono, birthday);
            }
            self.refresh_session(session, new_mode.then_some(path), now);
        }
    }

    /// Applies a changed rule to a session that is up.
    fn refresh_session(&mut self, key: SessionKey, mode: Option<crate::path::PathMode>, now: Now) {
        self.say_hello(key);
        self.recheck_streams(key, now);
        if let (Some(mode), Some(up)) = (mode, self.sessions.get_mut(&key).and_then(Session::up_mut)) {
            up.path.set_mode(now.mono, mode);
            self.end_streams_without_way(key, now);
        }
        if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
            // Looked at when it comes: the trust's end may have moved either way.
            up.expires = Some(now.mono);
        }
        self.settle(key, now);
    }

    fn set_invites(&mut self, invites: Vec<peerage_model::snapshot::Invite>, now: Now) {
        let open: BTreeSet<TrustId> = invites.iter().map(|invite| invite.id).collect();
        let closed: Vec<PairKey> =
            self.pairs.keys().filter(|key| matches!(key, PairKey::Invite(id) if !open.contains(id))).cloned().collect();
        for key in closed {
            if let Some(standing @ Standing::Open) = self.pairs.get_mut(&key).and_then(Pair::standing) {
                *standing = Standing::Closed;
            }
            self.close_invite(&key, now);
        }
        for invite in invites {
            let key = PairKey::Invite(invite.id);
            if self.pairs.contains_key(&key) || self.spent_invites.contains(&invite.id) {
                continue;
            }
            match Pair::inviting(&self.agent, invite) {
                Ok(pair) => self.insert_pair(key, pair),
                Err(error) => warn!(?key, %error, "this invitation cannot be used"),
            }
        }
    }

    /// An invitation is withdrawn, or was served: whoever has asked is left the time to hear the answer, also in another session.
    pub(super) fn close_invite(&mut self, key: &PairKey, now: Now) {
        if self.pairs.get(key).is_some_and(|pair| pair.served(now.mono).is_some()) {
            return;
        }
        self.remove_pair(key, CloseCode::Drained, &DownReason::Drained, now);
    }

    /// Ends the sessions of instances that are denied now.
    fn end_denied(&mut self, now: Now) {
        let denied: Vec<SessionKey> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.up().is_some_and(|up| self.judge.is_denied(&up.credential)))
            .map(|(key, _)| *key)
            .collect();
        for key in denied {
            self.close(key, CloseCode::Denied, DownReason::Denied, now.mono);
        }
    }

    /// Our passport was renewed: peers and relays are told.
    ///
    /// # Errors
    /// When the credential is too long to be one.
    pub fn renew(&mut self, now: Now, credential: Vec<u8>) -> Result<(), ConfigError> {
        self.tick(now);
        self.identity = Arc::new(LocalIdentity::new(&self.secret, credential.clone())?);
        self.relays.renew(credential.clone(), now.mono);
        for key in self.up_sessions() {
            self.say(key, &ControlMessage::Renewal(Renewal { credential: credential.clone() }));
        }
        Ok(())
    }

    /// Asks the holder of an invitation for trust. [`super::Event::Asked`] tells how it went.
    ///
    /// # Errors
    /// When the request cannot be made into a pair; a parsed ticket always can.
    pub fn ask(&mut self, now: Now, ticket: &Ticket, request: TrustRequest) -> Result<AskKey, ConfigError> {
        self.tick(now);
        self.next_ask += 1;
        let ask = AskKey(self.next_ask);
        let inviter = ticket.inviter();
        let secret = PairSecret::of_invite(ticket.secret.expose(), &inviter);
        let pair = Pair::asking(inviter, &secret, ticket.relays.clone(), request, now.mono)?;
        self.insert_pair(PairKey::Ask(ask), pair);
        Ok(ask)
    }
}
