//! What comes in: datagrams and time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use peerage_model::relay::frame::EndpointId;
use quinn_proto::{DatagramEvent, EcnCodepoint};

use super::config::INITIAL_RTT;
use super::event::{Now, SessionKey};
use super::failover::Away;
use super::relays::{FromRelay, RelayKey};
use super::session::{Phase, RelayRoute, Session};
use super::{Node, Timer, VIRTUAL_REMOTE};
use crate::knock::{CONNECTION_ID_LEN, KNOCK_LEN};
use crate::noise::QUIC_VERSION;
use crate::path::{DirectPath, Hop, Link};
use crate::stun;

/// A deadline that was missed by this much means that the process stood still (a stopped process, a machine that slept
/// with its clock running); a busy machine is late by milliseconds.
const STOOD_STILL: Duration = Duration::from_secs(3);
/// Seconds that the two clocks may drift apart between two inputs before it counts as a jump.
const WALL_JUMP: u64 = 5;

/// How a tunnel packet came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Via {
    /// From this address, to this socket.
    Direct(DirectPath),
    /// Through a relay, from this endpoint there.
    Relay(RelayKey, EndpointId),
}

/// The session that a packet was for, and how it came.
pub(super) type Touched = Option<(SessionKey, Via)>;

/// What the bytes before decryption say about a packet.
enum Opening {
    /// Its destination is a connection id of ours.
    Known,
    /// A first packet, and the knock in it.
    Knock([u8; KNOCK_LEN]),
}

impl Node {
    /// Takes one datagram, or several of one sender that arrived together by `link` (GRO), in pieces of whole datagrams: all of
    /// length `stride` but the last. A packet that has to wait keeps its piece in memory. What is not ours is dropped
    /// without an answer.
    pub fn handle_datagrams(
        &mut self,
        now: Now,
        link: Link,
        from: SocketAddr,
        ecn: Option<EcnCodepoint>,
        pieces: impl IntoIterator<Item = BytesMut>,
        stride: usize,
    ) {
        self.tick(now);
        let from = DirectPath { link, remote: stun::canonical(from) };
        let mut touched = None;
        for mut piece in pieces {
            while !piece.is_empty() {
                let datagram = piece.split_to(stride.clamp(1, piece.len()));
                let session = self.handle_one(now, from, ecn, datagram);
                self.moved_on(&mut touched, session, now);
            }
        }
        self.moved_on(&mut touched, None, now);
    }

    /// Packets that come together are mostly of one session: what follows from them is done when the next is of another.
    pub(super) fn moved_on(&mut self, touched: &mut Touched, next: Touched, now: Now) {
        if let (Some((key, via)), true) = (*touched, next != *touched) {
            self.after_packets(key, via, now);
        }
        *touched = next;
    }

    /// A packet that came by a relay's stream.
    pub(super) fn take_relayed(&mut self, relay: RelayKey, sender: EndpointId, packet: BytesMut, now: Now) -> Touched {
        self.on_quic(packet, None, Via::Relay(relay, sender), now)
    }

    fn handle_one(&mut self, now: Now, from: DirectPath, ecn: Option<EcnCodepoint>, datagram: BytesMut) -> Touched {
        match datagram.first()? {
            0..=3 => {
                self.on_stun(from, &datagram, now);
                None
            }
            // Relays know the main socket only.
            4..=15 if from.link == Link::Main => match self.relays.handle(from.remote, datagram, now.mono)? {
                FromRelay::Packet { relay, sender, packet } => {
                    self.on_quic(packet, ecn, Via::Relay(relay, sender), now)
                }
                FromRelay::Changed => {
                    self.settle_relays(now);
                    None
                }
            },
            64.. => self.on_quic(datagram, ecn, Via::Direct(from), now),
            4..=63 => None,
        }
    }

    fn on_stun(&mut self, from: DirectPath, datagram: &[u8], now: Now) {
        if !stun::is_stun(datagram) {
            return;
        }
        if from.link != Link::Main
            && (self.on_scout_answer(from, datagram, now) || self.on_lifetime_answer(from, datagram, now))
        {
            return;
        }
        if from.link == Link::Main && self.on_outside_answer(from, datagram, now) {
            return;
        }
        // A relay tells where it sees us in its own frames, so what else looks like STUN can only be a check.
        self.on_check(from, datagram, now);
    }

    fn on_quic(&mut self, packet: BytesMut, ecn: Option<EcnCodepoint>, via: Via, now: Now) -> Touched {
        let opening = self.opening(&packet, now)?;
        let mut response = Vec::new();
        let event = self.endpoint.handle(now.mono, VIRTUAL_REMOTE, None, ecn, packet, &mut response)?;
        match (event, opening) {
            (DatagramEvent::ConnectionEvent(handle, event), _) => {
                let key = *self.by_handle.get(&handle.0)?;
                self.sessions.get_mut(&key)?.connection.handle_event(event);
                Some((key, via))
            }
            (DatagramEvent::NewConnection(incoming), Opening::Knock(first_id)) => {
                match via {
                    Via::Relay(relay, peer) => {
                        self.accept(incoming, first_id, RelayRoute::Known { relay, peer }, now);
                    }
                    // Sessions begin on a relay; a first packet from anywhere else is nobody we know.
                    Via::Direct(_) => self.endpoint.ignore(incoming),
                }
                None
            }
            (DatagramEvent::NewConnection(incoming), Opening::Known) => {
                self.endpoint.ignore(incoming);
                None
            }
            // quinn-proto would answer a stranger; we do not.
            (DatagramEvent::Response(_), _) => None,
        }
    }

    /// Decides before anything is decrypted whether a packet may be looked at: it must have the shape of one for a
    /// connection id of ours or carry a good knock, in our version (docs/spec/handshake.md sections 2 and 3). The endpoint
    /// then looks the id up and drops, by its MAC, what was never issued.
    fn opening(&mut self, packet: &[u8], now: Now) -> Option<Opening> {
        let first = *packet.first()?;
        if first & 0x80 == 0 {
            return Some(Opening::Known);
        }
        if *packet.get(1..5)? != QUIC_VERSION.to_be_bytes() {
            return None;
        }
        let length = usize::from(*packet.get(5)?);
        let id = packet.get(6..6 + length)?;
        if length == CONNECTION_ID_LEN {
            return Some(Opening::Known);
        }
        let knock: [u8; KNOCK_LEN] = id.try_into().ok()?;
        if self.first_ids.contains_key(&knock) {
            return Some(Opening::Known);
        }
        self.knocks().check(&knock, now.wall).map(|_| Opening::Knock(knock))
    }

    /// After packets for one session: what follows from them, and whether they prove that the peer is there.
    fn after_packets(&mut self, key: SessionKey, via: Via, now: Now) {
        if let Some(session) = self.sessions.get_mut(&key)
            && session.heard_something(now.mono)
        {
            session.forget_stop(now.mono);
            // After a switch QUIC starts from the initial value, which is no measurement.
            let rtt = Some(session.connection.rtt()).filter(|rtt| *rtt != INITIAL_RTT);
            // The relayed route follows the last proven packet that came by a relay: this is how a race is decided and
            // how a peer that moved to another relay, or got another id there, is followed.
            let hop = match via {
                Via::Relay(relay, peer) => {
                    // One that goes away is no answer for a session that looks for another, nor for one that has found it.
                    let settled = session.beside.is_empty() && !session.goes_by_other_than(relay);
                    if settled || !self.relays.drains(relay) {
                        session.relayed = RelayRoute::Known { relay, peer };
                        session.beside.clear();
                    }
                    self.relays.in_use(relay, now.mono);
                    Hop::Relayed
                }
                Via::Direct(from) => Hop::Direct(from),
            };
            let pair = session.pair.clone();
            let confirmed = session.handshake_is_confirmed();
            let (mut cleared, mut settles) = (false, false);
            if let Phase::Up(up) = &mut session.phase {
                up.path.on_tunnel_heard(now.mono, hop, rtt);
                up.said_to_be_over = false;
                cleared = up.suspect.take().is_some();
                settles = confirmed && !std::mem::replace(&mut up.confirmed, confirmed);
            }
            if cleared {
                // There is a way again. What was sent while there was none must not keep our answer back.
                session.path_changed(now.mono);
            }
            if settles {
                self.settle_rivals(key, now);
            }
            if cleared {
                self.attach_waiting(&pair);
            }
        }
        self.settle(key, now);
    }

    /// Time passed: everything that is due happens.
    pub fn handle_timeout(&mut self, now: Now) {
        self.tick(now);
        self.keep_used_relays(now);
        self.relays.handle_timeout(now.mono);
        self.settle_relays(now);
        self.drive_scout(now);
        self.drive_lifetime(now);
        self.drive_outside(now);
        while let Some(timer) = self.timers.pop_due(now.mono) {
            match timer {
                Timer::Session(key) => self.session_timeout(key, now),
                Timer::Pair(key) => self.pair_timeout(&key, now),
                Timer::Errand(key) => self.conclude_errand(key, now),
                Timer::Siblings => self.tell_of_siblings(now.mono),
            }
        }
    }

    /// A relay that a session names is in use, also while the session's packets go directly: they may have to come back.
    fn keep_used_relays(&mut self, now: Now) {
        for session in self.sessions.values() {
            match &session.relayed {
                RelayRoute::Known { relay, .. } => self.relays.in_use(*relay, now.mono),
                RelayRoute::Racing { relays, .. } => {
                    relays.iter().for_each(|relay| self.relays.in_use(*relay, now.mono))
                }
            }
        }
    }

    /// Sessions end by the wall clock, and their timers run by the other: where the two disagree (a clock was set, the
    /// machine slept), every session is looked at now.
    fn notice_wall_jump(&mut self, now: Now) {
        let before = std::mem::replace(&mut self.last, now);
        let passed = now.mono.saturating_duration_since(before.mono).as_secs();
        let jumped = before.wall.0.saturating_add(passed).abs_diff(now.wall.0) > WALL_JUMP;
        if !jumped {
            return;
        }
        // A machine that sleeps stops the clock of the timers but not this one.
        let forward = now.wall.0.saturating_sub(before.wall.0.saturating_add(passed));
        self.resumed(Away::ClockJumped(Duration::from_secs(forward)), now);
        for key in self.up_sessions() {
            if let Some(up) = self.sessions.get_mut(&key).and_then(Session::up_mut) {
                up.expires = Some(now.mono);
            }
            self.arm_session(key);
        }
    }

    /// The times of an input, for everything that goes by them.
    pub(super) fn tick(&mut self, now: Now) {
        // Deadlines are many to look through, and an input that follows another closely tells of no stop.
        if now.mono.saturating_duration_since(self.last.mono) >= STOOD_STILL
            && let Some(late) = stood_still(self.poll_timeout(), self.last.mono, now.mono)
        {
            self.resumed(Away::Stopped(late), now);
        }
        self.notice_wall_jump(now);
        self.judge.set_time(now.wall);
        self.knocks().advance(now.wall);
    }
}

/// For how long nothing was done although something was due. Inputs that come before the late deadline is dealt with follow
/// each other closely, and do not tell of one stop again.
fn stood_still(due: Option<Instant>, last: Instant, now: Instant) -> Option<Duration> {
    let late = now.saturating_duration_since(due?.max(last));
    (late >= STOOD_STILL).then_some(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stop_is_told_once() {
        let due = Instant::now();
        let resumed = due + Duration::from_secs(10);
        let before = due - Duration::from_secs(1);
        assert_eq!(stood_still(Some(due), before, resumed), Some(Duration::from_secs(10)));
        // Datagrams that waited in the socket are taken before the timer is.
        assert_eq!(stood_still(Some(due), resumed, resumed + Duration::from_millis(1)), None);
    }

    #[test]
    fn nothing_due_is_no_stop() {
        let start = Instant::now();
        let later = start + Duration::from_secs(3600);
        assert_eq!(stood_still(None, start, later), None);
        assert_eq!(stood_still(Some(later), start, later), None);
    }
}
