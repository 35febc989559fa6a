//! The numbers of a node, each with where it comes from.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::memory::Share;
use super::pair::PairKey;
use crate::congestion::OfOneConnection;

/// Before the first measurement. RFC 9002 section 6.2.2 says 333 ms for the whole Internet; relays are chosen near,
/// and a lost first packet should not cost a second.
pub(super) const INITIAL_RTT: Duration = Duration::from_millis(100);
/// A handshake that takes longer is given up, so that half-open ones cannot fill a pair's places. The longest dial of a
/// peer of ours takes eight seconds (`pair::ATTEMPT`).
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A session without traffic ends after this. Sessions with open streams send a ping before ([`PING_INTERVAL`]).
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// So long before that end no new stream is put on a session that was not heard: the peer may be ahead of us.
pub(super) const IDLE_MARGIN: Duration = Duration::from_secs(10);
/// A session that another one replaces lives at least this much longer: more than any round trip, so that a stream that
/// was opened on it before its end was known is not cut off.
pub(super) const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// How often a session with open streams makes the peer answer, well within [`IDLE_TIMEOUT`].
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(25);
/// The same while an asker waits for its receipt: the inviter may have been restarted, and then another try is due.
pub(super) const ASK_PING_INTERVAL: Duration = Duration::from_secs(2);
/// What the streams of all sessions may hold together, where the owner says nothing else: the first session has all that one has
/// use for.
pub const DEFAULT_MEMORY: u64 = 384 << 20;
/// Streams a peer may have open towards us at a time; what is above is told `Busy` by its own side.
const MAX_STREAMS: u32 = 512;
/// So many of them until half of these are open, and then the rest. quinn-proto makes room for all that are granted, 43 KiB for
/// [`MAX_STREAMS`], also while a handshake runs, and most sessions have a few open. 100 is what RFC 9114 section 6.1 wants; tables
/// of 128 places, 5 KiB, hold them and a dozen of our own.
const FIRST_STREAMS: u32 = 100;
/// A stream of the peer's whose header is not whole after this is reset: it has passed no policy, and its place counts.
/// An opener sends the header with its first packet, so only retransmissions of that take time.
pub(super) const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// The control stream and room for another.
const MAX_UNI_STREAMS: u32 = 2;
/// UDP packets waiting in each direction, in bytes.
pub(super) const DATAGRAM_BUFFER: usize = 1 << 20;
/// Early bytes a stream takes before its session is up.
pub(super) const EARLY_BUFFER: usize = 64 << 10;
/// UDP packets kept for a reader that is slow; the oldest is dropped first.
pub(super) const MAX_PACKETS: usize = 256;
/// The interval at which a direct path in use is kept open: half of the 30 s after which the shortest common NAT
/// forgets a UDP mapping (docs/spec/paths.md).
pub(super) const PATH_KEEPALIVE: Duration = Duration::from_secs(15);

/// The QUIC transport parameters and limits of one session of this pair, which may hold `share`. Sessions do not share them: what is under way on
/// a session is counted in its congestion control.
pub(super) fn transport(pair: &PairKey, share: Share, congestion: OfOneConnection) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("two minutes fit a VarInt")))
        .initial_rtt(INITIAL_RTT)
        .congestion_controller_factory(Arc::new(congestion))
        .stream_receive_window(share.stream_receive_window())
        .receive_window(share.receive_window())
        // Grows with the path ([`Session::follow_path`](super::session::Session::follow_path)).
        .send_window(share.send_window(0))
        .allow_spin(false);
    match pair {
        PairKey::Peer(_) => of_a_trusted_peer(&mut config),
        PairKey::Invite(_) => of_a_request(&mut config, 1),
        PairKey::Ask(_) => of_a_request(&mut config, 0),
    }
    Arc::new(config)
}

fn of_a_trusted_peer(config: &mut TransportConfig) {
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(FIRST_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_UNI_STREAMS))
        .mtu_discovery_config(Some(MtuDiscoveryConfig::default()))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
}

/// How many streams a peer may have open once so many are, where so many were granted; `None` where that is no more. Early enough
/// that who opens one after the other never waits for it.
pub(super) fn streams_granted(open: u64, granted: u64) -> Option<VarInt> {
    (2 * open >= granted && granted < u64::from(MAX_STREAMS)).then(|| VarInt::from_u32(MAX_STREAMS))
}

/// Whether a peer that lets us open no more, while so many of ours are open, is about to: it has not heard yet that they are.
/// QUIC tells of places that came free an eighth at a time, so a peer that has granted all may be full with fewer than that.
pub(super) fn is_to_grant_more(open: usize) -> bool {
    open < MAX_STREAMS as usize * 3 / 4
}

/// One request and one answer between two that do not trust each other (docs/spec/session.md section 6).
fn of_a_request(config: &mut TransportConfig, streams: u32) {
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .mtu_discovery_config(None)
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0);
}
