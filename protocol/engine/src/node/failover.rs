//! What happens to sessions when a relay under them is gone, goes, or comes back.
//!
//! Two bound agents have the same ids at all their relays, so a session needs no word with the peer to change: while it is not
//! certain that the relay in use leads anywhere, every packet goes through the others as well, and the first proven packet
//! that comes back decides. Nobody waits for a keepalive to fail.

use super::Node;
use super::event::{Now, SessionKey};
use super::pair::PairKey;
use super::relays::RelayKey;
use super::session::RelayRoute;

impl Node {
    /// The tunnel fell silent: its packets go through every relay where the peer may be, until one of them brings an answer.
    pub(super) fn race_relays(&mut self, key: SessionKey, now: Now) {
        let Some(session) = self.sessions.get(&key) else { return };
        let RelayRoute::Known { relay: used, .. } = session.relayed else { return };
        // A request-only session shows its asker no more than it must.
        let (PairKey::Peer(peer), Some(pair)) = (&session.pair, self.pairs.get(&session.pair)) else { return };
        let Some((_, relays)) = pair.destination() else { return };
        let lists = [relays, pair.former_relays(now.mono)];
        let mut beside = self.relays.towards(&peer.routing_id(), lists, now.mono);
        beside.retain(|relay| *relay != used);
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.beside = beside;
        session.connection.ping();
        self.ready.insert(key);
        self.settle_relays(now);
    }

    /// A relay does not answer any more, or says that it goes: sessions on it look for another at once.
    pub(super) fn leave_relay(&mut self, relay: RelayKey, now: Now) {
        for key in self.up_sessions() {
            let over_it = |route: &RelayRoute| matches!(route, RelayRoute::Known { relay: used, .. } if *used == relay);
            if self.sessions.get(&key).is_some_and(|session| over_it(&session.relayed)) {
                self.race_relays(key, now);
            }
        }
    }

    /// A relay that was away or saw us move is back: sessions over it say so, instead of waiting out their timeouts.
    pub(super) fn say_we_are_there(&mut self, relay: RelayKey) {
        for (key, session) in &mut self.sessions {
            let over_it = matches!(session.relayed, RelayRoute::Known { relay: used, .. } if used == relay);
            if (over_it || session.beside.contains(&relay)) && session.up().is_some() {
                session.connection.ping();
                self.ready.insert(*key);
            }
        }
    }
}
