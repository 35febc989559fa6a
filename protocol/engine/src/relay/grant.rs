//! What a relay granted, and whether it still stands.
//!
//! A grant lives for as long as frames under its tag pass both ways. Where one way is quiet we ask with KEEPALIVE, and where
//! that stays without an answer the relay counts as lost: nobody tells us that it has forgotten us.

use std::time::{Duration, Instant};

use peerage_model::relay::frame::keys::MacKey;
use peerage_model::relay::frame::{self, Boot, Cookie, EndpointId, Tag};

use super::exchange::{Asked, Request};
use crate::noise::SeededRandom;

/// A KEEPALIVE goes out when nothing was sent or nothing was heard for this long; three fit a binding's 90 s.
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// Keepalives without an answer until the relay counts as lost.
const KEEPALIVES: u32 = 3;
/// Without a word from the relay for this long, as when our machine slept, our binding may be over there: it lives 90 s.
const MAY_BE_FORGOTTEN: Duration = Duration::from_secs(60);
/// A relay that goes away is asked this often, by up to a quarter more often, until it is gone and another has its place: it is not
/// there for us before we have bound again, and would else find us only by our next KEEPALIVE.
const WHILE_DRAINING: Duration = Duration::from_secs(1);

/// What makes a grant a binding.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    /// What MOVE and DRAIN are authenticated with.
    pub(super) session: MacKey,
    /// The counter of the last MOVE.
    pub(super) moves: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Granted {
    tag: Tag,
    id: EndpointId,
    boot: Boot,
    /// None for a visitor.
    binding: Option<Binding>,
    last_sent: Instant,
    last_heard: Instant,
    probes: u32,
    /// Nonce of the latest KEEPALIVE, until it is answered.
    asked: Option<[u8; 8]>,
    /// The relay goes away: how often we look whether it is back.
    draining: Option<Duration>,
    /// We were away for so long that the relay may know nothing of this.
    may_be_forgotten: bool,
}

impl Granted {
    /// By the run of the relay that `boot` names.
    pub(super) fn new(tag: Tag, id: EndpointId, boot: Boot, binding: Option<Binding>, now: Instant) -> Self {
        Self {
            tag,
            id,
            boot,
            binding,
            last_sent: now,
            last_heard: now,
            probes: 0,
            asked: None,
            draining: None,
            may_be_forgotten: false,
        }
    }

    pub(super) fn tag(&self) -> Tag {
        self.tag
    }

    pub(super) fn is_bound(&self) -> bool {
        self.binding.is_some()
    }

    /// What authenticates the frames of a binding.
    pub(super) fn session(&self) -> Option<&MacKey> {
        self.binding.as_ref().map(|binding| &binding.session)
    }

    /// The frame that makes the relay forget a binding.
    pub(super) fn unbind(&self) -> Option<Vec<u8>> {
        let session = self.session()?;
        Some(frame::unbind(self.tag, self.id, |body| session.mac(body)).to_vec())
    }

    /// What proves another address to the relay, if it still knows our binding: one that restarted needs everything.
    pub(super) fn proof_of_move(&mut self, tag: Tag, cookie: Cookie, boot: Boot) -> Option<Request> {
        let binding = self.binding.as_mut().filter(|_| self.boot == boot)?;
        binding.moves += 1;
        let moved = frame::moved(tag, cookie, self.id, binding.moves, |body| binding.session.mac(body));
        Some(Request { tag, boot, frame: moved.to_vec(), asked: Asked::Move(binding.clone()) })
    }

    /// The relay challenges our address. Whether it may know nothing of this.
    pub(super) fn is_challenged(&mut self, now: Instant) -> bool {
        self.last_heard = now;
        self.may_be_forgotten
    }

    /// We stood still.
    pub(super) fn slept(&mut self, now: Instant) {
        self.may_be_forgotten |= now.saturating_duration_since(self.last_heard) > MAY_BE_FORGOTTEN;
    }

    /// A packet goes out under our tag.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// Any frame under our tag shows that the relay is there.
    pub(super) fn on_heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.probes = 0;
    }

    /// KEEPALIVE, with a nonce that its answer repeats.
    pub(super) fn keepalive(&mut self, nonce: [u8; 8], now: Instant) -> Vec<u8> {
        self.probes += 1;
        self.asked = Some(nonce);
        self.last_sent = now;
        frame::keepalive(self.tag, nonce).to_vec()
    }

    /// Whether that answers our latest KEEPALIVE, which it does once.
    pub(super) fn is_answered_by(&mut self, nonce: [u8; 8]) -> bool {
        self.asked.take_if(|asked| *asked == nonce).is_some()
    }

    /// The relay says that it goes away. Whether that is news.
    pub(super) fn drains(&mut self, random: &mut SeededRandom) -> bool {
        if self.draining.is_some() {
            return false;
        }
        let [chance]: [u8; 1] = random.bytes();
        self.draining = Some(WHILE_DRAINING - WHILE_DRAINING * u32::from(chance) / (4 * 256));
        true
    }

    /// An interval after the last packet in the quieter direction; then after 1 s and 2 s, and a last 4 s before giving up.
    pub(super) fn next_keepalive(&self, interval: Duration) -> Instant {
        match (self.probes, self.draining) {
            (0, interval_then) => self.last_sent.min(self.last_heard) + interval_then.unwrap_or(interval),
            (_, Some(interval)) => self.last_sent + interval,
            (sent, None) => self.last_sent + Duration::from_secs(1 << (sent - 1).min(2)),
        }
    }

    /// Whether the relay has answered none of as many KEEPALIVEs as one sends.
    pub(super) fn is_given_up(&self) -> bool {
        self.probes >= KEEPALIVES
    }
}
