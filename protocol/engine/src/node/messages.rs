//! Control messages: what we tell the peer of a session, and what follows from what it tells us.

use std::sync::Arc;

use peerage_model::control::{ControlMessage, Hello};
use peerage_model::{Credential, UnixTime};
use quinn_proto::Dir;

use super::Node;
use super::control::ControlIn;
use super::event::{Event, Now, SessionKey};
use super::pair::PairKey;
use super::session::{Phase, Session};

impl Node {
    /// Tells what the peer may open, unless it was told just that.
    pub(super) fn say_hello(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(&key) else { return };
        let Some(peer) = self.pairs.get(&session.pair).and_then(|pair| pair.peer()) else {
            return;
        };
        let ports = peerage_policy::open_to(peer, &self.ports);
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        let time = self.last.wall;
        let (succeeds, siblings) = (self.predecessors.clone(), self.siblings.known().to_vec());
        let hello = Hello { ports, version, succeeds, run: Some(self.run), time: None, siblings };
        let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) else { return };
        if up.said_hello.as_ref() != Some(&hello) {
            up.said_hello = Some(hello.clone());
            self.say(key, &ControlMessage::Hello(Hello { time: Some(time), ..hello }));
        }
    }

    /// Sends a control message to the peer of a session that is up.
    pub(super) fn say(&mut self, key: SessionKey, message: &ControlMessage) {
        let trusted = |session: &&mut Session| matches!(session.pair, PairKey::Peer(_));
        // A stranger with a ticket gets a receipt and nothing else (docs/spec/session.md section 6).
        let Some(up) = self.sessions.get_mut(&key).filter(trusted).and_then(Session::up_mut) else {
            return;
        };
        up.control_out.push(message);
        self.flush_control(key);
    }

    pub(super) fn flush_control(&mut self, key: SessionKey) {
        let Some(Session { connection, phase: Phase::Up(up), .. }) = self.sessions.get_mut(&key) else {
            return;
        };
        if up.control_out.flush(connection) {
            self.ready.insert(key);
        }
    }

    pub(super) fn accept_control(&mut self, key: SessionKey, now: Now) {
        let Some(Session { connection, phase: Phase::Up(up), .. }) = self.sessions.get_mut(&key) else {
            return;
        };
        let mut excess = false;
        while let Some(id) = connection.streams().accept(Dir::Uni) {
            excess |= up.control_in.is_some();
            up.control_in = Some(ControlIn::new(id, now.mono));
        }
        match excess {
            true => self.violated(key, "two control streams", now),
            false => self.read_control(key, now),
        }
    }

    pub(super) fn read_control(&mut self, key: SessionKey, now: Now) {
        let Some(Session { connection, phase: Phase::Up(up), .. }) = self.sessions.get_mut(&key) else {
            return;
        };
        let Some(control) = &mut up.control_in else { return };
        match control.read(connection, now.mono) {
            Ok(messages) => messages.into_iter().for_each(|message| self.on_control(key, message, now)),
            Err(_) => self.violated(key, "a malformed control message", now),
        }
    }

    fn on_control(&mut self, key: SessionKey, message: ControlMessage, now: Now) {
        let Some(session) = self.sessions.get_mut(&key) else {
            return;
        };
        let PairKey::Peer(peer) = session.pair.clone() else {
            return;
        };
        let Some(up) = session.up_mut() else { return };
        match message {
            ControlMessage::Hello(hello) => {
                let news = up.peer_ports.as_ref() != Some(&hello.ports);
                up.peer_ports = Some(hello.ports.clone());
                up.run = hello.run;
                up.clock_ahead = hello.time.and_then(|theirs| ahead(theirs, now.wall));
                let own = up.credential.instance();
                self.hear_of_siblings(&peer, own, &hello.siblings);
                self.doubt_predecessors(&peer, &hello.succeeds, own);
                if let Some(run) = hello.run {
                    self.doubt_earlier_runs(key, run);
                }
                if news {
                    self.events.push_back(Event::PeerPorts { peer, ports: hello.ports });
                }
            }
            ControlMessage::Candidates(candidates) => self.on_candidates(key, &candidates, now),
            ControlMessage::Retire(retire) => self.on_retire(key, retire, now),
            ControlMessage::Renewal(renewal) => self.on_renewal(key, &renewal.credential, now),
            ControlMessage::Birthday(birthday) => self.on_birthday(key, birthday.step, now),
            ControlMessage::Opened(opened) => self.on_opened(key, opened.generation, now),
        }
    }

    /// A fresh passport for the same instance moves the session's end; anything else ends it.
    fn on_renewal(&mut self, key: SessionKey, credential: &[u8], now: Now) {
        let verified = self.judge.verify(credential);
        let Some(up) = self.sessions.get(&key).and_then(Session::up) else {
            return;
        };
        let same = |new: &Credential| {
            new.agent() == up.credential.agent() && new.instance_key() == up.credential.instance_key()
        };
        match verified {
            Ok(new) if same(&new) => {
                let expires = self.expiry_of(key, &new, now);
                let rotated = new.record().sequence() != up.credential.record().sequence();
                if rotated && let Some(peer) = self.sessions.get(&key).and_then(Session::peer) {
                    let record = Box::new(new.record().clone());
                    self.events.push_back(Event::PeerRecord { peer: peer.clone(), record });
                }
                if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
                    up.credential = Arc::new(new);
                    up.expires = Some(expires);
                }
            }
            Ok(_) | Err(_) => self.violated(key, "a renewal that is not this peer's", now),
        }
    }
}

/// How many seconds a clock is ahead of another.
fn ahead(theirs: UnixTime, ours: UnixTime) -> Option<i64> {
    i64::try_from(i128::from(theirs.0) - i128::from(ours.0)).ok()
}
