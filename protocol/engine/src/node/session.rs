//! One session: a QUIC connection with a peer, and what hangs on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_model::control::{Hello, RunId};
use peerage_model::relay::frame::{Destination, EndpointId};
use peerage_model::snapshot::Port;
use peerage_model::{AgentId, Credential, UnixTime};
use quinn_proto::{Connection, ConnectionHandle, Dir, FrameStats, PathStats, StreamId, Transmit};

use super::config::{ASK_PING_INTERVAL, IDLE_MARGIN, IDLE_TIMEOUT, PING_INTERVAL, is_to_grant_more, streams_granted};
use super::control::{ControlIn, ControlOut};
use super::event::StreamKey;
use super::listening::Listening;
use super::memory::Share;
use super::owed::Owed;
use super::pair::PairKey;
use super::relays::RelayKey;
use super::rivals::Drain;
use super::turns::Turns;
use crate::congestion::{Pace, Pacer};
use crate::knock::KNOCK_LEN;
use crate::path::{Hop, PathAgent, PathKind};

/// A connection from its first packet to its last.
#[derive(Debug)]
pub(super) struct Session {
    /// On its own: it is most of a session, and of the eleven places in a node of the map half stay empty.
    pub(super) connection: Box<Connection>,
    pub(super) handle: ConnectionHandle,
    pub(super) pair: PairKey,
    /// Whether we dialled.
    pub(super) initiator: bool,
    /// The knock it began with.
    pub(super) first_id: [u8; KNOCK_LEN],
    pub(super) relayed: RelayRoute,
    /// Relays that get every relayed packet as well, while it is not certain that [`Self::relayed`] leads anywhere.
    pub(super) beside: Vec<RelayKey>,
    /// When its first packet was made or came.
    pub(super) born: Instant,
    pub(super) phase: Phase,
    /// Where its packets last went, for those that are sent after its end.
    pub(super) last_hop: Option<Hop>,
    /// When its packets may leave.
    pacer: Pacer,
    /// What streams must send first.
    pub(super) owed: BTreeMap<StreamId, Owed>,
    /// Whose writers wait, and which of them writes next.
    pub(super) turns: Turns,
    /// A first flight that no relay could carry yet.
    pub(super) held: Option<Held>,
    /// Frames received so far; it grows only by packets that decrypted and are not duplicates.
    heard: u64,
    /// Ack-eliciting frames sent so far.
    asked: u64,
    /// When the peer was last proven to be there.
    last_heard: Instant,
    /// When this process last went on after it had stood still.
    back_since: Option<Instant>,
    /// What quinn-proto, which counts for the connection's whole life, had counted when the path last became another one.
    before_path: PathStats,
}

/// Packets that wait for a relay to be ready, with the length of each but the last.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    pub(super) segment_size: Option<usize>,
}

/// How a session's packets go by relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum RelayRoute {
    /// Every relay where the peer may be bound gets the first flight, for any of its instances or for one; the first proven
    /// answer decides.
    Racing { relays: Vec<RelayKey>, destination: Destination },
    /// The relay, and the peer's id there.
    Known { relay: RelayKey, peer: EndpointId },
}

/// Where a session is in its life.
#[derive(Debug)]
pub(super) enum Phase {
    /// Keys are being agreed.
    Handshaking,
    /// Both sides are proven.
    Up(Box<Up>),
    /// Over; the last packets may still go out.
    Closing,
}

/// What a session has once both sides are proven.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) credential: Arc<Credential>,
    pub(super) path: PathAgent,
    /// What [`Self::path`] was called when the driver was last told.
    pub(super) path_kind: PathKind,
    pub(super) control_out: ControlOut,
    pub(super) control_in: Option<ControlIn>,
    pub(super) streams: BTreeMap<StreamId, StreamKey>,
    /// Streams whose header is not complete.
    pub(super) arriving: BTreeMap<StreamId, Arriving>,
    /// Which process is on the other end, as its hello said.
    pub(super) run: Option<RunId>,
    /// What its last hello said.
    pub(super) peer_ports: Option<Vec<Port>>,
    /// What ours said, but for the time.
    pub(super) said_hello: Option<Hello>,
    /// How many seconds the peer's clock was ahead of ours at its last hello, as it says.
    pub(super) clock_ahead: Option<i64>,
    pub(super) since: Since,
    /// The peer has shown that it takes us. A client has its keys before the server has judged it, and a server that
    /// refuses is silent.
    pub(super) confirmed: bool,
    pub(super) drain: Drain,
    /// Its instance did not take a stream, and is asked last until then.
    pub(super) refusing_until: Option<Instant>,
    /// When it got a stream of ours last, counted in streams of the pair.
    pub(super) turn: u64,
    /// Somebody who speaks for this peer says that the instance on the other end is gone; silence will prove it.
    pub(super) said_to_be_over: bool,
    /// Silent for so long that a fresh dial runs: takes no new streams.
    pub(super) suspect: Option<Suspicion>,
    pub(super) next_ping: Instant,
    pub(super) listening: Listening,
    /// When trust or passport end, as far as the wall clock said.
    pub(super) expires: Option<Instant>,
}

/// A stream of the peer's that has not said yet what it is for.
#[derive(Debug)]
pub(super) struct Arriving {
    pub(super) header: Vec<u8>,
    /// When it has had its time.
    pub(super) until: Instant,
}

/// A session in doubt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspicion {
    /// Since when.
    pub(super) since: Instant,
    /// When the peer is asked again.
    pub(super) next: Instant,
}

/// When a session came up, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    pub(super) mono: Instant,
    pub(super) wall: UnixTime,
}

impl Session {
    pub(super) fn new(
        connection: Connection,
        handle: ConnectionHandle,
        pair: PairKey,
        initiator: bool,
        first_id: [u8; KNOCK_LEN],
        relayed: RelayRoute,
        born: Instant,
    ) -> Self {
        Self {
            connection: Box::new(connection),
            handle,
            pair,
            initiator,
            first_id,
            relayed,
            beside: Vec::new(),
            born,
            phase: Phase::Handshaking,
            last_hop: None,
            pacer: Pacer::unlimited(born),
            owed: BTreeMap::new(),
            turns: Turns::default(),
            held: None,
            heard: 0,
            asked: 0,
            last_heard: born,
            back_since: None,
            before_path: PathStats::default(),
        }
    }

    /// Lets this pacer say when packets leave: the one that belongs to the connection's congestion control.
    pub(super) fn paced_by(self, pacer: Pacer) -> Self {
        Self { pacer, ..self }
    }

    pub(super) fn up(&self) -> Option<&Up> {
        match &self.phase {
            Phase::Up(up) => Some(up),
            Phase::Handshaking | Phase::Closing => None,
        }
    }

    pub(super) fn up_mut(&mut self) -> Option<&mut Up> {
        match &mut self.phase {
            Phase::Up(up) => Some(up),
            Phase::Handshaking | Phase::Closing => None,
        }
    }

    /// How often the peer is made to answer while we wait for something of it.
    pub(super) fn ping_interval(&self) -> Option<Duration> {
        match &self.pair {
            PairKey::Ask(_) => Some(ASK_PING_INTERVAL),
            PairKey::Peer(_) | PairKey::Invite(_) => {
                self.up().filter(|up| !up.streams.is_empty()).map(|_| PING_INTERVAL)
            }
        }
    }

    /// Whether the peer has shown that it takes us.
    pub(super) fn handshake_is_confirmed(&self) -> bool {
        !self.initiator || self.connection.stats().frame_rx.handshake_done > 0
    }

    /// When the peer is asked whether there is a way from it to us, since data of streams that are open, or of those whose
    /// header has not come, are missing.
    pub(super) fn listening_due(&mut self, now: Instant) -> Option<Instant> {
        let stats = self.connection.stats();
        let carried = [stats.frame_rx, stats.frame_tx].map(|frames| frames.stream + frames.datagram);
        let up = self.up_mut()?;
        up.listening.observe(carried.iter().sum(), stats.frame_rx.ping, now);
        let awaits = !up.streams.is_empty() || !up.arriving.is_empty();
        up.listening.due().filter(|_| awaits)
    }

    /// When the first of the streams without a header has had its time: the oldest, since all have the same.
    pub(super) fn header_due(&self) -> Option<Instant> {
        self.up()?.arriving.values().next().map(|arriving| arriving.until)
    }

    /// Whether its relayed packets go by one relay, which is not this one.
    pub(super) fn goes_by_other_than(&self, relay: RelayKey) -> bool {
        matches!(self.relayed, RelayRoute::Known { relay: used, .. } if used != relay)
    }

    /// Whether the peer may have given the session up for idleness: its clock runs from what it heard last, and that may be a
    /// packet or two less than what we know of.
    pub(super) fn may_be_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_heard) + IDLE_MARGIN >= IDLE_TIMEOUT
    }

    /// Whether something proven came since the last call. quinn-proto counts a frame only after its packet decrypted
    /// and turned out to be no duplicate, so nothing that a relay or stranger invents or repeats counts.
    pub(super) fn heard_something(&mut self, now: Instant) -> bool {
        let received = self.connection.stats().frame_rx;
        let total = ack_eliciting(&received) + received.acks + received.connection_close;
        let heard = std::mem::replace(&mut self.heard, total) != total;
        if heard {
            self.last_heard = now;
        }
        heard
    }

    /// Lets the peer have more streams open, where many are.
    pub(super) fn grant_streams(&mut self) {
        let PairKey::Peer(_) = self.pair else { return };
        let granted = self.connection.max_concurrent_streams(Dir::Bi);
        let open = self.connection.streams().remote_open_streams(Dir::Bi);
        if let Some(more) = streams_granted(open, granted) {
            self.connection.set_max_concurrent_streams(Dir::Bi, more);
        }
    }

    /// Whether the peer, which lets us open no more streams at the moment, will soon.
    pub(super) fn is_granted_more_soon(&self) -> bool {
        let ours = |id: &&StreamId| id.initiator().is_client() == self.initiator;
        self.up().is_some_and(|up| is_to_grant_more(up.streams.keys().filter(ours).count()))
    }

    /// The next packets of the connection, at most so many, written behind what is in `buffer`, and whether the peer must acknowledge
    /// them. Those that nothing holds up go at once; data when the pace of the path allows them.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        max_datagrams: usize,
        buffer: &mut Vec<u8>,
    ) -> Option<(Transmit, bool)> {
        let allowed = self.pacer.open(now, self.pace());
        let sent = self.connection.poll_transmit(now, max_datagrams.min(allowed), buffer);
        let sent = sent.map(|transmit| (transmit, self.asked_something()));
        // Acknowledgements are not paced (RFC 9002 section 7.7), and cost those nothing that are.
        let paced = sent.as_ref().filter(|(_, asked)| *asked);
        self.pacer.sent(now, paced.map_or(0, |(transmit, _)| transmit.size));
        sent
    }

    /// How fast data leave, if the congestion control says it. What closes a connection is no data.
    fn pace(&self) -> Option<Pace> {
        let rate = self.connection.congestion_state().metrics().pacing_rate.filter(|_| !self.connection.is_closed());
        let (rtt, packet) = (self.connection.rtt(), self.connection.current_mtu());
        rate.map(|bits_per_second| Pace { bits_per_second, rtt, packet })
    }

    /// When the connection, or its pacer, is to be looked at again.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        self.connection.poll_timeout().into_iter().chain(self.pacer.due()).min()
    }

    /// Its packets go another way, of which nothing is known: round trip, window and packet size begin anew.
    pub(super) fn path_changed(&mut self, now: Instant) {
        self.before_path = self.connection.stats().path;
        self.connection.path_changed(now);
    }

    /// Lets its streams hold as much to send as the path has use for, within what the session may have.
    pub(super) fn follow_path(&mut self, share: Share) {
        let window = self.connection.congestion_state().metrics().congestion_window;
        self.connection.set_send_window(share.send_window(window));
    }

    /// What was counted before the path became this one.
    pub(super) fn before_path(&self) -> &PathStats {
        &self.before_path
    }

    /// This process went on after it had stood still.
    pub(super) fn is_back(&mut self, now: Instant) {
        self.back_since = Some(now);
    }

    /// Forgets a round trip that began before we stood still: it has the stop in it, and whatever waits for a multiple of it
    /// (a retransmission, the judgement of silence) would wait for minutes.
    pub(super) fn forget_stop(&mut self, now: Instant) {
        let back_for = self.back_since.map(|since| now.saturating_duration_since(since));
        if back_for.is_some_and(|time| self.connection.rtt() > time) {
            self.path_changed(now);
            // What came was waiting for us, and says nothing of whether the peer is still there.
            self.connection.ping();
        }
    }

    /// The trusted peer that it is with, where it is with one.
    pub(super) fn peer(&self) -> Option<&AgentId> {
        match &self.pair {
            PairKey::Peer(peer) => Some(peer),
            PairKey::Invite(_) | PairKey::Ask(_) => None,
        }
    }

    /// When the peer was last proven to be there.
    pub(super) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    /// Whether something that the peer must acknowledge was sent since the last call. Probes for a larger packet do not count: each
    /// is a PING, too, but on a path of ordinary size some of them are too large to arrive (RFC 8899 section 3), so that no answer is no sign
    /// of silence. If nothing else was sent, QUIC asks again by itself, and that counts.
    fn asked_something(&mut self) -> bool {
        let stats = self.connection.stats();
        let total = ack_eliciting(&stats.frame_tx) - stats.path.sent_plpmtud_probes;
        std::mem::replace(&mut self.asked, total) != total
    }
}

/// How many frames ask for an acknowledgement: all but ACK, PADDING and CONNECTION_CLOSE (RFC 9002 section 2).
fn ack_eliciting(f: &FrameStats) -> u64 {
    f.crypto
        + f.stream
        + f.datagram
        + f.ping
        + f.max_data
        + f.max_stream_data
        + f.max_streams_bidi
        + f.max_streams_uni
        + f.new_connection_id
        + f.retire_connection_id
        + f.reset_stream
        + f.stop_sending
        + f.data_blocked
        + f.stream_data_blocked
        + f.streams_blocked_bidi
        + f.streams_blocked_uni
        + u64::from(f.handshake_done)
}
