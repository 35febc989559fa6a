//! The way to a relay where UDP does not get through: a stream, raced against UDP (docs/spec/relay.md section 10).
//!
//! UDP is always asked first and never stops being asked. What a stream adds is a second client of the same relay, which
//! says the same frames; whichever is granted carries the packets, UDP before the stream. The relay keeps our id over the
//! change, so sessions do not notice.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::EndpointId;
use tracing::info;

use super::super::Node;
use super::super::event::{Event, Now};
use super::super::status::RelayWay;
use super::{Entry, FromRelay, Place, RelayKey, Relays};
use crate::path::RelayStream;
use crate::relay::{MailEvent, RelayClient, RelayEvent};

/// How long UDP may be silent before a stream is opened beside it: a round trip around the world, and some.
pub(super) const PATIENCE: Duration = Duration::from_millis(400);
/// How long a stream is read after UDP took over, for what is in flight on it.
const LINGER: Duration = Duration::from_secs(2);
/// After the first failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A stream that worked for this long did not fail for a reason that the next one meets again.
const WORKED: Duration = Duration::from_secs(10);

/// One relay's stream, or why there is none.
#[derive(Debug, Default)]
pub(super) enum Fallback {
    /// UDP answers, or has not had its time.
    #[default]
    Unneeded,
    /// The driver opens it.
    Opening { stream: RelayStream, failures: u32 },
    /// Frames go through it. `ready` is since when the relay knows us there.
    Open { stream: RelayStream, client: Box<RelayClient>, ready: Option<Instant>, failures: u32 },
    /// UDP took over; what is still in flight is read until then.
    Leaving { stream: RelayStream, client: Box<RelayClient>, until: Instant },
    /// It could not be opened, or broke.
    Failed { why: String, again: Instant, failures: u32 },
}

/// What the driver is to do.
#[derive(Debug)]
pub(super) enum Order {
    Open(RelayStream),
    Close(RelayStream),
}

impl Fallback {
    /// The stream that exists, also while it is being opened.
    pub(super) fn stream(&self) -> Option<RelayStream> {
        match self {
            Self::Unneeded | Self::Failed { .. } => None,
            Self::Opening { stream, .. } | Self::Open { stream, .. } | Self::Leaving { stream, .. } => Some(*stream),
        }
    }

    /// Whether the relay knows us on the stream, and UDP has not taken over.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self, Self::Open { ready: Some(_), .. })
    }

    /// Why there is no stream although one was wanted.
    pub(super) fn failure(&self) -> Option<&str> {
        match self {
            Self::Failed { why, .. } => Some(why),
            Self::Unneeded | Self::Opening { .. } | Self::Open { .. } | Self::Leaving { .. } => None,
        }
    }

    /// The client on the stream, with the stream's name.
    pub(super) fn client(&mut self) -> Option<(RelayStream, &mut RelayClient)> {
        match self {
            Self::Open { stream, client, .. } | Self::Leaving { stream, client, .. } => Some((*stream, client)),
            Self::Unneeded | Self::Opening { .. } | Self::Failed { .. } => None,
        }
    }

    /// Who else is bound under our routing id, by the word of the relay on the stream.
    pub(super) fn others(&self) -> &[EndpointId] {
        match self {
            Self::Open { client, .. } | Self::Leaving { client, .. } => client.others(),
            Self::Unneeded | Self::Opening { .. } | Self::Failed { .. } => &[],
        }
    }

    /// The driver opened the stream; `client` begins to talk on it.
    pub(super) fn opened(&mut self, opened: RelayStream, client: impl FnOnce() -> RelayClient) {
        if let Self::Opening { stream, failures } = self
            && *stream == opened
        {
            *self = Self::Open { stream: opened, client: Box::new(client()), ready: None, failures: *failures };
        }
    }

    /// The relay knows us on the stream.
    pub(super) fn granted(&mut self, now: Instant) {
        if let Self::Open { ready, .. } = self {
            ready.get_or_insert(now);
        }
    }

    /// The stream could not be opened, broke, or went silent.
    pub(super) fn failed(&mut self, why: String, now: Instant) {
        let failures = match self {
            Self::Unneeded | Self::Failed { .. } => return,
            Self::Leaving { .. } => {
                *self = Self::Unneeded;
                return;
            }
            Self::Open { ready: Some(since), .. } if now.saturating_duration_since(*since) >= WORKED => 0,
            Self::Opening { failures, .. } | Self::Open { failures, .. } => *failures,
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(6)).min(LONGEST_PAUSE);
        *self = Self::Failed { why, again: now + pause, failures: failures + 1 };
    }

    /// UDP is granted: the stream is let go of.
    pub(super) fn udp_is_back(&mut self, now: Instant) -> Option<Order> {
        match std::mem::take(self) {
            Self::Unneeded | Self::Failed { .. } => None,
            Self::Opening { stream, .. } => Some(Order::Close(stream)),
            Self::Open { stream, client, .. } => {
                *self = Self::Leaving { stream, client, until: now + LINGER };
                None
            }
            leaving @ Self::Leaving { .. } => {
                *self = leaving;
                None
            }
        }
    }

    /// Forgets everything, as after a change of our addresses: no old connection survives that, and no old failure counts.
    pub(super) fn reset(&mut self) -> Option<Order> {
        let stream = self.stream();
        *self = Self::Unneeded;
        stream.map(Order::Close)
    }

    /// Opens a stream if UDP has been silent for too long, ends one that was left. `name` is for a new stream.
    pub(super) fn step(
        &mut self,
        silent_since: Option<Instant>,
        now: Instant,
        name: impl FnOnce() -> RelayStream,
    ) -> Option<Order> {
        let silent = silent_since.is_some_and(|since| since + PATIENCE <= now);
        let failures = match self {
            Self::Leaving { stream, until, .. } if *until <= now => {
                let stream = *stream;
                *self = Self::Unneeded;
                return Some(Order::Close(stream));
            }
            Self::Unneeded if silent => 0,
            Self::Failed { again, failures, .. } if silent && *again <= now => *failures,
            Self::Failed { .. } if silent_since.is_none() => {
                *self = Self::Unneeded;
                return None;
            }
            Self::Unneeded | Self::Failed { .. } | Self::Opening { .. } | Self::Open { .. } | Self::Leaving { .. } => {
                return None;
            }
        };
        let stream = name();
        *self = Self::Opening { stream, failures };
        Some(Order::Open(stream))
    }

    /// When [`Self::step`], or the client on the stream, wants to be called.
    pub(super) fn next(&self, silent_since: Option<Instant>) -> Option<Instant> {
        let patience = silent_since.map(|since| since + PATIENCE);
        match self {
            Self::Unneeded => patience,
            Self::Failed { again, .. } => patience.map(|patience| patience.max(*again)),
            Self::Opening { .. } => None,
            Self::Open { client, .. } => client.poll_timeout(),
            Self::Leaving { client, until, .. } => client.poll_timeout().into_iter().chain([*until]).min(),
        }
    }
}

impl Entry {
    pub(super) fn new(info: RelayInfo, own: bool, now: Instant) -> Self {
        Self {
            info,
            own,
            added: now,
            used: now,
            until: None,
            draining: false,
            lost: false,
            place: Place::Resolving,
            word: None,
            fallback: Fallback::Unneeded,
            questions: Vec::new(),
        }
    }

    /// The next thing that came by mail, by either way.
    pub(super) fn poll_mail(&mut self) -> Option<MailEvent> {
        let udp = match &mut self.place {
            Place::Known { client, .. } => client.poll_mail(),
            Place::Resolving | Place::Taken { .. } => None,
        };
        udp.or_else(|| self.fallback.client().and_then(|(_, client)| client.poll_mail()))
    }

    pub(super) fn has_mailbox(&self) -> bool {
        let by_udp = matches!(&self.place, Place::Known { client, .. } if client.has_mailbox());
        by_udp || matches!(&self.fallback, Fallback::Open { client, .. } if client.has_mailbox())
    }

    /// How long the relay's latest answer took, by the way in use.
    pub(super) fn rtt(&self) -> Option<Duration> {
        match (&self.fallback, &self.place) {
            (Fallback::Open { client, ready: Some(_), .. }, _) => client.rtt(),
            (_, Place::Known { client, .. }) if client.is_granted() => client.rtt(),
            (_, _) => None,
        }
    }

    /// Since when UDP is owed an answer. A name that cannot be looked up is silence too: a proxy may know it.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        match &self.place {
            Place::Resolving | Place::Taken { .. } => Some(self.added),
            Place::Known { client, .. } => client.unanswered_since(),
        }
    }

    fn is_granted_by_udp(&self) -> bool {
        matches!(&self.place, Place::Known { client, .. } if client.is_granted())
    }

    /// Whether packets go by the stream: it is ready, and UDP is not, or has been silent for its time.
    pub(super) fn uses_stream(&self, now: Instant) -> bool {
        let silent = self.silent_since().is_some_and(|since| since + PATIENCE <= now);
        self.fallback.is_ready() && (silent || !self.is_granted_by_udp())
    }

    pub(super) fn way(&self) -> RelayWay {
        match (self.fallback.is_ready(), self.is_granted_by_udp()) {
            (true, _) => RelayWay::Tls,
            (false, true) => RelayWay::Udp,
            (false, false) => RelayWay::None,
        }
    }

    /// What is wrong with UDP, and with the way around it.
    pub(super) fn note(&self) -> Option<String> {
        let port = self.info.tls_port();
        let obstacle = match &self.place {
            Place::Known { client, .. } if self.way() == RelayWay::None => client.obstacle(),
            Place::Known { .. } | Place::Resolving | Place::Taken { .. } => None,
        };
        if obstacle.is_some() {
            return obstacle;
        }
        match self.fallback.failure() {
            _ if self.fallback.is_ready() => Some(format!("UDP to the relay is blocked; using TLS on TCP port {port}")),
            Some(why) => Some(format!("UDP to the relay is not answered; TLS on TCP port {port}: {why}")),
            None => None,
        }
    }
}

impl Relays {
    pub(super) fn stream_clients(&mut self) -> impl Iterator<Item = (RelayStream, &mut RelayClient)> {
        self.entries.values_mut().filter_map(|entry| entry.fallback.client())
    }

    fn entry_of(&mut self, stream: RelayStream) -> Option<(RelayKey, &mut Entry)> {
        let mut entries = self.entries.iter_mut();
        entries.find(|(_, entry)| entry.fallback.stream() == Some(stream)).map(|(key, entry)| (*key, entry))
    }

    /// Whether the relay knows us, by either way.
    pub(super) fn is_up(&self, key: RelayKey) -> bool {
        self.entries.get(&key).is_some_and(|entry| entry.way() != RelayWay::None)
    }

    /// After a frame by UDP: if it leaves nothing unanswered, the stream is not needed.
    pub(super) fn udp_answered(&mut self, key: RelayKey, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else {
            return;
        };
        if entry.is_granted_by_udp() && entry.silent_since().is_none() {
            self.orders.extend(entry.fallback.udp_is_back(now).map(|order| (key, order)));
        }
    }

    pub(super) fn step_streams(&mut self, now: Instant) {
        for (key, entry) in &mut self.entries {
            if let Some((_, client)) = entry.fallback.client() {
                client.handle_timeout(now);
            }
            let silent_since = entry.silent_since();
            let name = || {
                self.next_stream += 1;
                RelayStream(self.next_stream)
            };
            self.orders.extend(entry.fallback.step(silent_since, now, name).map(|order| (*key, order)));
            if let Place::Known { client, .. } = &mut entry.place {
                client.set_hurried(!entry.fallback.is_ready(), now);
            }
        }
    }

    /// Our addresses changed, and no connection of before survives that.
    pub(super) fn reset_streams(&mut self) {
        for (key, entry) in &mut self.entries {
            self.orders.extend(entry.fallback.reset().map(|order| (*key, order)));
        }
    }

    fn opened(&mut self, stream: RelayStream, now: Instant) {
        let Some((key, entry)) = self.entry_of(stream) else {
            return;
        };
        let (info, own, questions) = (entry.info.clone(), entry.own, entry.questions.clone());
        let identity = match &entry.place {
            Place::Known { client, .. } => client.identity(),
            Place::Resolving | Place::Taken { .. } => None,
        };
        let mut client = self.new_client(&info, own, now);
        client.resume(identity);
        for (token, question) in questions {
            client.ask(token, question, now);
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.fallback.opened(stream, || client);
        }
    }

    fn handle_frame(&mut self, stream: RelayStream, mut frame: BytesMut, now: Instant) -> Option<FromRelay> {
        let (relay, entry) = self.entry_of(stream)?;
        let (_, client) = entry.fallback.client()?;
        match client.handle_datagram(now, &frame) {
            Some(delivered) => {
                let packet = frame.split_off(delivered.packet_at);
                Some(FromRelay::Packet { relay, sender: delivered.from, packet })
            }
            None => Some(FromRelay::Changed),
        }
    }

    /// The relay knows us on the stream. The UDP client, if there is one, learns who we are there.
    fn granted(&mut self, key: RelayKey, now: Instant) -> Option<(RelayInfo, bool)> {
        let entry = self.entries.get_mut(&key)?;
        let identity = entry.fallback.client().and_then(|(_, client)| client.identity());
        entry.fallback.granted(now);
        if let Place::Known { client, .. } = &mut entry.place {
            client.resume(identity);
        }
        let told = entry.fallback.is_ready().then(|| (entry.info.clone(), entry.own));
        if !self.entries.values().any(Entry::is_granted_by_udp) {
            self.nat.observe_silence();
        }
        told
    }

    /// A stream is of no use. Tells which relay that leaves us without.
    fn failed(&mut self, key: RelayKey, why: String, now: Instant) -> Option<(RelayInfo, bool)> {
        let entry = self.entries.get_mut(&key)?;
        let was_up = entry.way() != RelayWay::None;
        entry.fallback.failed(why, now);
        let lost = was_up && entry.way() == RelayWay::None;
        lost.then(|| (entry.info.clone(), entry.own))
    }
}

impl Node {
    /// The driver has opened what [`Event::OpenRelayStream`] asked for; frames may be sent on it.
    pub fn relay_stream_opened(&mut self, now: Now, stream: RelayStream) {
        self.tick(now);
        self.relays.opened(stream, now.mono);
        self.settle_relays(now);
    }

    /// A stream could not be opened, or ended; `why` is for a person.
    pub fn relay_stream_closed(&mut self, now: Now, stream: RelayStream, why: String) {
        self.tick(now);
        if let Some((key, _)) = self.relays.entry_of(stream) {
            self.stream_failed(key, why, now);
        }
        self.settle_relays(now);
    }

    /// Takes relay frames that came together by a stream.
    pub fn handle_relay_frames(&mut self, now: Now, stream: RelayStream, frames: impl IntoIterator<Item = BytesMut>) {
        self.tick(now);
        let mut touched = None;
        for frame in frames {
            let session = match self.relays.handle_frame(stream, frame, now.mono) {
                Some(FromRelay::Packet { relay, sender, packet }) => self.take_relayed(relay, sender, packet, now),
                Some(FromRelay::Changed) => {
                    self.settle_relays(now);
                    None
                }
                None => None,
            };
            self.moved_on(&mut touched, session, now);
        }
        self.moved_on(&mut touched, None, now);
    }

    pub(super) fn on_relay_stream_event(&mut self, key: RelayKey, event: RelayEvent, now: Now) {
        match event {
            RelayEvent::Ready { observed } => {
                if let Some((relay, own)) = self.relays.granted(key, now.mono) {
                    info!(target: "events::relay_by_tls", ?relay);
                    self.relay_is_up(key, relay, own, observed, now);
                }
            }
            RelayEvent::Lost | RelayEvent::Silent => {
                let stream = self.relays.entries.get(&key).and_then(|entry| entry.fallback.stream());
                self.relays.orders.extend(stream.map(|stream| (key, Order::Close(stream))));
                self.stream_failed(key, "the relay stopped answering".into(), now);
            }
            RelayEvent::Refused(reason) => {
                if let Some(entry) = self.relays.entries.get(&key) {
                    let relay = entry.info.clone();
                    info!(target: "events::relay_refused", ?relay, ?reason);
                    self.events.push_back(Event::RelayRefused { relay, reason });
                }
            }
            RelayEvent::Draining { .. } | RelayEvent::Others => self.on_relay_event(key, event, now),
        }
    }

    fn stream_failed(&mut self, key: RelayKey, why: String, now: Now) {
        if let Some((relay, true)) = self.relays.failed(key, why, now.mono) {
            info!(target: "events::relay_down", ?relay);
            self.events.push_back(Event::RelayDown { relay });
        }
    }

    pub(super) fn tell_orders(&mut self) {
        for (key, order) in std::mem::take(&mut self.relays.orders) {
            match order {
                Order::Open(stream) => {
                    if let Some(entry) = self.relays.entries.get(&key) {
                        let relay = entry.info.clone();
                        self.events.push_back(Event::OpenRelayStream { stream, relay });
                    }
                }
                Order::Close(stream) => self.events.push_back(Event::CloseRelayStream { stream }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: RelayStream = RelayStream(1);

    fn after(now: Instant, millis: u64) -> Instant {
        now + Duration::from_millis(millis)
    }

    fn opens(order: Option<Order>) -> bool {
        matches!(order, Some(Order::Open(STREAM)))
    }

    #[test]
    fn a_stream_is_opened_when_udp_was_silent_for_its_time_and_not_before() {
        let now = Instant::now();
        let mut fallback = Fallback::default();
        assert!(fallback.step(Some(now), after(now, 399), || STREAM).is_none());
        assert!(fallback.step(None, after(now, 5_000), || STREAM).is_none(), "UDP owes no answer");
        assert_eq!(fallback.next(Some(now)), Some(after(now, 400)));
        assert!(opens(fallback.step(Some(now), after(now, 400), || STREAM)));
        assert!(fallback.step(Some(now), after(now, 5_000), || STREAM).is_none(), "one at a time");
    }

    #[test]
    fn failures_are_tried_again_after_growing_pauses() {
        let start = Instant::now();
        let (mut now, mut fallback, mut pauses) = (start, Fallback::default(), Vec::new());
        now += PATIENCE;
        for _ in 0..8 {
            assert!(opens(fallback.step(Some(start), now, || STREAM)));
            fallback.failed("refused".into(), now);
            let next = fallback.next(Some(start)).expect("it is tried again");
            assert!(fallback.step(Some(start), next - Duration::from_millis(1), || STREAM).is_none());
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(fallback.failure(), Some("refused"));
        fallback.step(None, now, || STREAM);
        assert_eq!(fallback.failure(), None, "UDP answers: that is no trouble any more");
    }

    #[test]
    fn a_stream_that_is_not_open_yet_is_given_up_when_udp_answers() {
        let now = Instant::now();
        let mut fallback = Fallback::default();
        fallback.step(Some(now), after(now, 400), || STREAM);
        assert!(matches!(fallback.udp_is_back(after(now, 450)), Some(Order::Close(STREAM))));
        assert_eq!(fallback.stream(), None);
    }
}
