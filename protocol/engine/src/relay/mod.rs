//! The agent's side of a relay (docs/spec/relay.md), as a value.
//!
//! A client proves its address (HELLO, COOKIE), then binds its routing id or, where it only dials, visits. From then on
//! [`RelayClient::wrap`] puts packets into frames and [`RelayClient::handle_datagram`] says where the packet in a frame
//! lies. What the relay granted stays in use while an exchange that renews or moves it runs, so nothing in flight is lost.

mod answers;
mod exchange;
mod grant;
mod mailbox;
mod others;
mod schedule;
#[cfg(test)]
mod tests;

use core::fmt;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::relay::frame::keys::bind;
use peerage_model::relay::frame::{self, AliveFlags, Boot, Cookie, ENDPOINT_HEADER, EndpointId, Frame, Grant, Tag};
use peerage_model::{AgreementKey, AgreementSecret, InstanceId};
use tracing::debug;

pub use peerage_model::relay::frame::{Destination, Refusal};

use self::answers::Answers;
use self::exchange::{Asked, Due, Exchange, Request};
pub use self::grant::KEEPALIVE;
use self::grant::{Binding, Granted};
use self::mailbox::Mailbox;
pub use self::mailbox::{MailEvent, Question};
use self::others::Others;
use crate::noise::SeededRandom;

/// What we are to a relay.
#[derive(Clone, Debug)]
pub enum Role {
    /// Peers find us there.
    Bind {
        /// The instance's key.
        secret: AgreementSecret,
        /// What vouches for it.
        credential: Vec<u8>,
    },
    /// We only dial through it.
    Visit,
}

/// What a client is made of.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    relay: AgreementKey,
    role: Role,
}

impl ClientConfig {
    /// For the relay with this key.
    #[must_use]
    pub fn new(relay: AgreementKey, role: Role) -> Self {
        Self { relay, role }
    }
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// The relay knows us, and sees us at `observed`.
    Ready {
        /// Our address as the relay sees it.
        observed: SocketAddr,
    },
    /// The relay does not answer any more; the client goes on trying.
    Lost,
    /// The relay has not answered for a while; the client goes on trying. Perhaps it is elsewhere.
    Silent,
    /// The relay does not take us; the client asks again in half a minute.
    Refused(Refusal),
    /// The relay goes away soon.
    Draining {
        /// For how long it still forwards.
        grace: Duration,
    },
    /// [`RelayClient::others`] has changed.
    Others,
}

/// A packet in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Who sent it.
    pub from: EndpointId,
    /// Where it begins in the datagram; it reaches to the end.
    pub packet_at: usize,
}

/// One relay, as an agent deals with it.
pub struct RelayClient {
    relay: AgreementKey,
    role: Role,
    random: SeededRandom,
    granted: Option<Granted>,
    /// Id and tag of the last grant, here or by another way to the same relay: a visitor keeps them.
    earlier: Option<(EndpointId, Tag)>,
    answers: Answers,
    exchange: Exchange,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<RelayEvent>,
    mailbox: Mailbox,
    others: Others,
    keepalive: Duration,
    /// Whether nothing else reaches the relay, so that an answer is urgent.
    hurried: bool,
}

impl RelayClient {
    /// A client that begins with HELLO. `seed` must be random and secret.
    #[must_use]
    pub fn new(config: ClientConfig, seed: [u8; 32], now: Instant) -> Self {
        let mut client = Self {
            relay: config.relay,
            role: config.role,
            random: SeededRandom::from_seed(seed),
            granted: None,
            earlier: None,
            answers: Answers::default(),
            exchange: Exchange::Quiet,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            mailbox: Mailbox::new(),
            others: Others::default(),
            keepalive: KEEPALIVE,
            hurried: true,
        };
        client.greet(now);
        client
    }

    /// How long we may be silent, at most [`KEEPALIVE`]: less where a NAT forgets sooner.
    pub fn set_keepalive(&mut self, interval: Duration) {
        self.keepalive = interval.min(KEEPALIVE);
    }

    /// Whether this is the only way to the relay. Where another works, it is asked ever more rarely whether this one does, too.
    pub fn set_hurried(&mut self, hurried: bool, now: Instant) {
        if !std::mem::replace(&mut self.hurried, hurried) && hurried {
            self.exchange.hurry(now);
        }
    }

    /// Since when the relay owes us an answer; `None` while it has answered everything, or refuses us.
    #[must_use]
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.answers.owed_since()
    }

    /// How long its latest answer took; more than the round trip where a packet was lost.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.answers.rtt()
    }

    /// What stands between us and the relay, for a person, where the relay is there.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        self.answers.obstacle(&self.role)
    }

    /// Whether the relay knows us.
    #[must_use]
    pub fn is_granted(&self) -> bool {
        self.granted.is_some()
    }

    /// Who else is bound under our routing id, as the relay says: others of our instances, or nobody at all.
    #[must_use]
    pub fn others(&self) -> &[EndpointId] {
        self.others.known()
    }

    /// Who we last were to the relay.
    #[must_use]
    pub fn identity(&self) -> Option<(EndpointId, Tag)> {
        self.earlier
    }

    /// Who we are to the relay by another way to it: a visitor asks to stay that.
    pub fn resume(&mut self, identity: Option<(EndpointId, Tag)>) {
        self.earlier = identity.or(self.earlier);
    }

    /// Our address changed: says something, so that the relay notices and challenges the new one.
    pub fn address_changed(&mut self, now: Instant) {
        match &self.granted {
            Some(_) => self.send_keepalive(now),
            None => self.greet(now),
        }
    }

    /// Ends the binding: gives the frame that makes the relay forget it, if there is one, and is silent from then on.
    /// What was wrapped for the relay before must be sent first, since it comes from nobody it knows afterwards.
    pub fn leave(&mut self) -> Option<Vec<u8>> {
        self.transmits.clear();
        self.mailbox.leave();
        self.exchange = Exchange::Quiet;
        self.answers.owe_nothing();
        self.granted.take()?.unbind()
    }

    /// We stood still: says something, and does not count on being known.
    pub fn slept(&mut self, now: Instant) {
        if let Some(granted) = &mut self.granted {
            granted.slept(now);
        }
        self.address_changed(now);
    }

    /// We may be in another network: begins from HELLO, so that the relay says anew where it sees us.
    pub fn ask_again(&mut self, now: Instant) {
        self.greet(now);
    }

    /// Somebody waits in vain for what should come through the relay: asks it at once whether it is there.
    pub fn doubt(&mut self, now: Instant) {
        if self.granted.is_some() && self.answers.owed_since().is_none() {
            self.send_keepalive(now);
        }
    }

    /// A newer credential for the same instance: binds again, without a gap.
    pub fn renew(&mut self, credential: Vec<u8>, now: Instant) {
        if let Role::Bind { credential: old, .. } = &mut self.role {
            *old = credential;
            self.greet(now);
        }
    }

    /// A relay frame from this relay's address. Gives the packet in it, if it carries one.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> Option<Delivered> {
        let (tag, frame) = Frame::parse(datagram).ok()?;
        if let Frame::From { source, .. } = frame {
            return self.heard(tag, now).then_some(Delivered { from: source, packet_at: ENDPOINT_HEADER });
        }
        self.on_frame(tag, &frame, datagram, now);
        None
    }

    fn on_frame(&mut self, tag: Tag, frame: &Frame<'_>, datagram: &[u8], now: Instant) {
        match *frame {
            Frame::Cookie { cookie, boot } => self.on_cookie(tag, cookie, boot, now),
            Frame::Bound { grant, .. } => self.on_bound(tag, &grant, datagram, now),
            Frame::Visiting { grant, id } => self.on_visiting(tag, &grant, id, now),
            Frame::Refused { reason, .. } => self.on_refused(tag, reason, datagram, now),
            Frame::Alive { nonce, flags, .. } => self.on_alive(tag, nonce, flags, now),
            Frame::Drain { grace, .. } => self.on_drain(tag, grace, datagram, now),
            Frame::Others { nonce, ids } => {
                if self.heard(tag, now) && self.others.is_answered_by(nonce) {
                    self.others_are(ids);
                }
            }
            Frame::Records { .. } | Frame::Posted { .. } | Frame::Mail { .. } => {
                if self.heard(tag, now) {
                    let session = self.granted.as_ref().and_then(Granted::session);
                    self.mailbox.on_frame(frame, session, datagram, now);
                }
            }
            // Handled before, and what only relays receive.
            Frame::From { .. }
            | Frame::Hello
            | Frame::Bind { .. }
            | Frame::Visit { .. }
            | Frame::Move { .. }
            | Frame::Keepalive { .. }
            | Frame::To { .. }
            | Frame::Lookup { .. }
            | Frame::Post { .. }
            | Frame::Check { .. }
            | Frame::WhoElse { .. }
            | Frame::Unbind { .. } => {}
        }
    }

    /// Puts a header before each packet of a batch; all packets but the last have `segment_size` bytes, a single one has
    /// none. Gives the size of the framed packets, or nothing while the relay does not know us.
    pub fn wrap(
        &mut self,
        now: Instant,
        destination: Destination,
        packets: &[u8],
        segment_size: Option<usize>,
        out: &mut Vec<u8>,
    ) -> Option<Option<usize>> {
        let granted = self.granted.as_mut()?;
        granted.on_sent(now);
        let header_len = destination.header_len();
        let mut header = [0; frame::ROUTE_HEADER];
        destination.write_header(granted.tag(), &mut header);
        for packet in packets.chunks(segment_size.unwrap_or(packets.len()).max(1)) {
            out.extend_from_slice(&header[..header_len]);
            out.extend_from_slice(packet);
        }
        Some(segment_size.map(|size| size + header_len))
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.exchange.handle_timeout(now, self.hurried, &mut self.random) {
            Due::Nothing => {}
            Due::Frame(frame) => self.transmits.push_back(frame),
            Due::FrameToTheSilent(frame) => {
                self.transmits.push_back(frame);
                self.events.push_back(RelayEvent::Silent);
            }
            Due::AfterIgnored => {
                self.answers.on_ignored();
                self.greet(now);
            }
            Due::AfterRefusal => self.greet(now),
        }
        self.keep_alive(now);
        self.see_to_mail(now);
    }

    /// The next frame for the relay.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front().or_else(|| self.mailbox.poll_transmit())
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`] next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let granted = self.granted.as_ref();
        let keepalive = granted.map(|granted| granted.next_keepalive(self.keepalive));
        let mail = granted.and_then(|granted| self.mailbox.poll_timeout(granted.is_bound()));
        [self.exchange.poll_timeout(), keepalive, mail].into_iter().flatten().min()
    }

    fn greet(&mut self, now: Instant) {
        self.answers.owe(now);
        let (exchange, hello) = Exchange::greet(&mut self.random, now);
        self.transmits.push_back(hello);
        self.exchange = exchange;
    }

    /// COOKIE: the answer to HELLO, or, under the tag that was granted, a challenge of a changed address.
    fn on_cookie(&mut self, tag: Tag, cookie: Cookie, boot: Boot, now: Instant) {
        let answers_hello = self.exchange.is_greeting(tag);
        let mut is_forgotten = false;
        if !answers_hello {
            if self.exchange.ignores_challenges() {
                return;
            }
            let Some(granted) = self.granted_as(tag) else { return };
            is_forgotten = granted.is_challenged(now);
        }
        let asked_tag = Tag(self.random.bytes());
        let request = match answers_hello || is_forgotten {
            true => self.first_request(asked_tag, cookie, boot),
            false => self.request_after_challenge(asked_tag, cookie, boot),
        };
        let Some(request) = request else { return };
        self.answers.owe_anew(now);
        let (exchange, frame) = Exchange::ask(request, &mut self.random, now);
        self.transmits.push_back(frame);
        self.exchange = exchange;
    }

    fn first_request(&mut self, tag: Tag, cookie: Cookie, boot: Boot) -> Option<Request> {
        let (frame, asked) = match &self.role {
            Role::Bind { secret, credential } => {
                let e = AgreementSecret::from_bytes(self.random.bytes());
                match bind(tag, cookie, &e, &self.relay, secret, credential) {
                    Ok(bind) => (bind.frame, Asked::Bind { session: bind.session, refusal: bind.refusal }),
                    Err(weak) => {
                        debug!(relay = ?self.relay, %weak, "this relay's key cannot be used");
                        return None;
                    }
                }
            }
            Role::Visit => (frame::visit(tag, cookie, self.earlier).to_vec(), Asked::Visit),
        };
        Some(Request { tag, boot, frame, asked })
    }

    /// A relay that still knows our binding only needs proof of the new address.
    fn request_after_challenge(&mut self, tag: Tag, cookie: Cookie, boot: Boot) -> Option<Request> {
        let proof = self.granted.as_mut().and_then(|granted| granted.proof_of_move(tag, cookie, boot));
        proof.or_else(|| self.first_request(tag, cookie, boot))
    }

    fn on_bound(&mut self, tag: Tag, grant: &Grant, datagram: &[u8], now: Instant) {
        let Role::Bind { secret, .. } = &self.role else { return };
        if let Some((boot, binding)) = self.exchange.granted_by_bound(tag, datagram) {
            let id = EndpointId::from(InstanceId::of_key(&secret.public()));
            self.granted(grant, id, boot, Some(binding), now);
        }
    }

    fn on_visiting(&mut self, tag: Tag, grant: &Grant, id: EndpointId, now: Instant) {
        if let Some(boot) = self.exchange.granted_by_visiting(tag) {
            self.granted(grant, id, boot, None, now);
        }
    }

    fn granted(&mut self, grant: &Grant, id: EndpointId, boot: Boot, binding: Option<Binding>, now: Instant) {
        let granted = Granted::new(grant.tag, id, boot, binding, now);
        self.mailbox.granted(granted.is_bound(), now);
        self.granted = Some(granted);
        self.earlier = Some((id, grant.tag));
        self.answers.on_granted(now);
        self.exchange = Exchange::Quiet;
        self.ask_for_others();
        self.see_to_mail(now);
        self.events.push_back(RelayEvent::Ready { observed: grant.observed });
    }

    fn on_refused(&mut self, tag: Tag, reason: Refusal, datagram: &[u8], now: Instant) {
        if !self.exchange.is_refused_by(tag, datagram) {
            return;
        }
        self.answers.on_refused(reason);
        self.exchange = Exchange::refused(now);
        self.events.push_back(RelayEvent::Refused(reason));
    }

    fn on_drain(&mut self, tag: Tag, grace: u16, datagram: &[u8], now: Instant) {
        let session = self.granted.as_ref().and_then(Granted::session);
        if session.is_some_and(|session| session.verifies(datagram)) && self.heard(tag, now) {
            self.drains(Duration::from_secs(grace.into()));
        }
    }

    fn drains(&mut self, grace: Duration) {
        if self.granted.as_mut().is_some_and(|granted| granted.drains(&mut self.random)) {
            self.events.push_back(RelayEvent::Draining { grace });
        }
    }

    /// What the relay granted, if that was under this tag.
    fn granted_as(&mut self, tag: Tag) -> Option<&mut Granted> {
        self.granted.as_mut().filter(|granted| granted.tag() == tag)
    }

    /// Any frame under our tag shows that the relay is there.
    fn heard(&mut self, tag: Tag, now: Instant) -> bool {
        let Some(granted) = self.granted_as(tag) else { return false };
        granted.on_heard(now);
        if self.exchange.is_quiet() {
            self.answers.owe_nothing();
        }
        true
    }

    fn on_alive(&mut self, tag: Tag, nonce: [u8; 8], flags: AliveFlags, now: Instant) {
        if self.granted_as(tag).is_none() {
            return;
        }
        self.answers.on_answered(now);
        self.heard(tag, now);
        if flags.mail {
            self.mailbox.mail_waits(now);
            self.see_to_mail(now);
        }
        if flags.draining {
            self.drains(Duration::ZERO);
        }
        // Once for each question of ours: whatever else claims to be an ALIVE sets us no pace.
        if self.granted.as_mut().is_some_and(|granted| granted.is_answered_by(nonce)) {
            match flags.others {
                true => self.ask_for_others(),
                false => self.others_are(&[]),
            }
        }
    }

    /// Asked when we are bound and whenever an answer says that there are some; one that is lost comes with the next ALIVE.
    fn ask_for_others(&mut self) {
        if let Some(granted) = self.granted.as_ref().filter(|granted| granted.is_bound()) {
            self.transmits.push_back(self.others.ask(granted.tag(), self.random.bytes()));
        }
    }

    fn others_are(&mut self, ids: &[[u8; 8]]) {
        if self.others.are(ids) {
            self.events.push_back(RelayEvent::Others);
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        let Some(granted) = &self.granted else { return };
        if granted.next_keepalive(self.keepalive) > now {
            return;
        }
        if !granted.is_given_up() {
            self.send_keepalive(now);
            return;
        }
        self.granted = None;
        self.events.push_back(RelayEvent::Lost);
        self.greet(now);
    }

    fn send_keepalive(&mut self, now: Instant) {
        let nonce = self.random.bytes();
        let Some(granted) = &mut self.granted else { return };
        self.transmits.push_back(granted.keepalive(nonce, now));
        self.answers.owe(now);
    }
}

impl fmt::Debug for RelayClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayClient")
            .field("relay", &self.relay)
            .field("up", &self.granted.is_some())
            .field("exchange", &self.exchange)
            .finish_non_exhaustive()
    }
}
