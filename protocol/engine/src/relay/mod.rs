//! The agent's side of a relay (docs/spec/relay.md), as a value.
//!
//! A client proves its address (HELLO, COOKIE), then binds its routing id or, where it only dials, visits. From then on
//! [`RelayClient::wrap`] puts packets into frames and [`RelayClient::handle_datagram`] says where the packet in a frame
//! lies. What the relay granted stays in use while an exchange that renews or moves it runs, so nothing in flight is lost.

mod mailbox;
mod schedule;
#[cfg(test)]
mod tests;

use core::fmt;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peerage_model::relay::frame::keys::{MacKey, bind};
use peerage_model::relay::frame::mailbox::MailId;
use peerage_model::relay::frame::{self, AliveFlags, Boot, Cookie, ENDPOINT_HEADER, EndpointId, Frame, Grant, Tag};
use peerage_model::{AgreementKey, AgreementSecret, InstanceId};
use tracing::debug;

pub use peerage_model::relay::frame::{Destination, Refusal};

use self::mailbox::Mailbox;
pub use self::mailbox::{MailEvent, Question};

use self::schedule::Schedule;
use crate::noise::SeededRandom;

/// A KEEPALIVE goes out when nothing was sent or nothing was heard for this long; three fit a binding's 90 s.
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// Without a word from the relay for this long, as when our machine slept, our binding may be over there: it lives 90 s.
const MAY_BE_FORGOTTEN: Duration = Duration::from_secs(60);
/// After a refusal.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// BIND, VISIT and MOVE are sent this often before the cookie counts as too old.
const TRIES: u32 = 4;
/// HELLOs without an answer until somebody may look whether the relay moved: after 3 to 4 s, and then again and again.
const SILENT_AFTER: u32 = 5;
/// A relay that goes away is asked this often, by up to a quarter more often, until it is gone and another has its place: it is not
/// there for us before we have bound again, and would else find us only by our next KEEPALIVE.
const WHILE_DRAINING: Duration = Duration::from_secs(1);
/// Keepalives without an answer until the relay counts as lost.
const KEEPALIVES: u32 = 3;

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

/// What the relay granted.
#[derive(Debug)]
struct Granted {
    tag: Tag,
    id: EndpointId,
    boot: Boot,
    /// For a binding: what MOVE and DRAIN are authenticated with, and the counter of the last MOVE.
    binding: Option<(MacKey, u64)>,
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

/// Who shares our routing id.
#[derive(Debug, Default)]
struct Others {
    asked: Option<[u8; 8]>,
    known: Vec<EndpointId>,
}

/// The exchange that runs.
#[derive(Debug)]
enum Exchange {
    /// None.
    Quiet,
    /// HELLO is out.
    Greeting { tag: Tag, schedule: Schedule },
    /// BIND, VISIT or MOVE is out.
    Asking { tag: Tag, boot: Boot, frame: Vec<u8>, asked: Asked, schedule: Schedule },
    /// The relay refused.
    Refused { until: Instant },
}

#[derive(Debug)]
enum Asked {
    Bind { session: MacKey, refusal: MacKey },
    Visit,
    Move { session: MacKey, counter: u64 },
}

/// One relay, as an agent deals with it.
pub struct RelayClient {
    relay: AgreementKey,
    role: Role,
    random: SeededRandom,
    granted: Option<Granted>,
    /// Id and tag of the last grant, here or by another way to the same relay: a visitor keeps them.
    earlier: Option<(EndpointId, Tag)>,
    /// Since when the relay owes us an answer.
    unanswered: Option<Instant>,
    /// How long its latest answer took.
    rtt: Option<Duration>,
    /// What was asked after its cookie stays without an answer.
    ignored: bool,
    /// It does not take us.
    refused: Option<Refusal>,
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
            unanswered: None,
            rtt: None,
            ignored: false,
            refused: None,
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
            match &mut self.exchange {
                Exchange::Greeting { schedule, .. } => schedule.hurry(now),
                Exchange::Asking { .. } | Exchange::Refused { .. } | Exchange::Quiet => {}
            }
        }
    }

    /// Since when the relay owes us an answer; `None` while it has answered everything, or refuses us.
    #[must_use]
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered
    }

    /// How long its latest answer took; more than the round trip where a packet was lost.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// What stands between us and the relay, for a person, where the relay is there.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        match (self.refused, &self.role, self.ignored) {
            (Some(reason), _, _) => Some(reason.to_string()),
            // A relay answers nothing that was not made for its own key.
            (None, Role::Bind { .. }, true) => {
                Some("something answers there, but not with this key: take KEY@HOST:PORT from its owner again".into())
            }
            (None, Role::Bind { .. }, false) | (None, Role::Visit, _) => None,
        }
    }

    /// Whether the relay knows us.
    #[must_use]
    pub fn is_granted(&self) -> bool {
        self.granted.is_some()
    }

    /// Who else is bound under our routing id, as the relay says: others of our instances, or nobody at all.
    #[must_use]
    pub fn others(&self) -> &[EndpointId] {
        &self.others.known
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

    /// Whether we have a mailbox here while we are bound.
    pub fn set_public(&mut self, public: bool) {
        self.mailbox.set_public(public);
    }

    /// Asks the relay something, again and again until it is answered or given up. `token` comes back with the answer.
    pub fn ask(&mut self, token: u64, question: Question, now: Instant) {
        self.mailbox.ask(token, question, &self.relay, now, &mut self.random);
        self.see_to_mail(now);
    }

    /// The answer is of no interest any more.
    pub fn give_up(&mut self, token: u64) {
        self.mailbox.give_up(token);
    }

    /// What came out of our mailbox is dealt with; the relay forgets it and gives the next.
    pub fn mail_done(&mut self, id: MailId, now: Instant) {
        self.mailbox.done(id, now, &mut self.random);
        self.see_to_mail(now);
    }

    /// Whether the relay knows us and keeps a mailbox for us.
    #[must_use]
    pub fn has_mailbox(&self) -> bool {
        self.granted.is_some() && self.mailbox.is_open()
    }

    /// The next thing that came by mail.
    pub fn poll_mail(&mut self) -> Option<MailEvent> {
        self.mailbox.poll_event()
    }

    fn see_to_mail(&mut self, now: Instant) {
        if let Some(Granted { tag, binding, .. }) = &self.granted {
            let session = binding.as_ref().map(|(session, _)| session);
            let believed = self.mailbox.handle_timeout(now, *tag, session, &mut self.random);
            if !believed && matches!(self.exchange, Exchange::Quiet) {
                self.greet(now);
            }
        }
    }

    /// Ends the binding: gives the frame that makes the relay forget it, if there is one, and is silent from then on.
    /// What was wrapped for the relay before must be sent first, since it comes from nobody it knows afterwards.
    pub fn leave(&mut self) -> Option<Vec<u8>> {
        self.transmits.clear();
        self.mailbox.leave();
        self.exchange = Exchange::Quiet;
        self.unanswered = None;
        let Granted { tag, id, binding, .. } = self.granted.take()?;
        let (session, _) = binding?;
        Some(frame::unbind(tag, id, |body| session.mac(body)).to_vec())
    }

    /// We stood still: says something, and does not count on being known.
    pub fn slept(&mut self, now: Instant) {
        if let Some(granted) = &mut self.granted {
            granted.may_be_forgotten |= now.saturating_duration_since(granted.last_heard) > MAY_BE_FORGOTTEN;
        }
        self.address_changed(now);
    }

    /// We may be in another network: begins from HELLO, so that the relay says anew where it sees us.
    pub fn ask_again(&mut self, now: Instant) {
        self.greet(now);
    }

    /// Somebody waits in vain for what should come through the relay: asks it at once whether it is there.
    pub fn doubt(&mut self, now: Instant) {
        if self.granted.is_some() && self.unanswered.is_none() {
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
        match frame {
            Frame::From { source, .. } => {
                self.heard(tag, now)?;
                Some(Delivered { from: source, packet_at: ENDPOINT_HEADER })
            }
            Frame::Cookie { cookie, boot } => {
                self.on_cookie(tag, cookie, boot, now);
                None
            }
            Frame::Bound { grant, .. } => {
                self.on_bound(tag, &grant, datagram, now);
                None
            }
            Frame::Visiting { grant, id } => {
                self.on_visiting(tag, &grant, id, now);
                None
            }
            Frame::Refused { reason, .. } => {
                self.on_refused(tag, reason, datagram, now);
                None
            }
            Frame::Records { .. } | Frame::Posted { .. } | Frame::Mail { .. } => {
                self.heard(tag, now)?;
                let binding = self.granted.as_ref().and_then(|granted| granted.binding.as_ref());
                self.mailbox.on_frame(&frame, binding.map(|(session, _)| session), datagram, now);
                None
            }
            Frame::Alive { nonce, flags: AliveFlags { draining, mail, others }, .. } => {
                if self.is_granted_as(tag) {
                    self.answered(now);
                }
                self.heard(tag, now)?;
                if mail {
                    self.mailbox.mail_waits(now);
                    self.see_to_mail(now);
                }
                if draining {
                    self.drains(Duration::ZERO);
                }
                // Once for each question of ours: whatever else claims to be an ALIVE sets us no pace.
                match (self.answers_keepalive(nonce), others) {
                    (true, true) => self.ask_for_others(),
                    (true, false) => self.now_others(&[]),
                    (false, _) => {}
                }
                None
            }
            Frame::Others { nonce, ids } => {
                self.heard(tag, now)?;
                if self.others.asked.take_if(|asked| *asked == nonce).is_some() {
                    self.now_others(ids);
                }
                None
            }
            Frame::Drain { grace, .. } => {
                self.on_drain(tag, grace, datagram, now);
                None
            }
            // Only relays receive these.
            Frame::Hello
            | Frame::Bind { .. }
            | Frame::Visit { .. }
            | Frame::Move { .. }
            | Frame::Keepalive { .. }
            | Frame::To { .. }
            | Frame::Lookup { .. }
            | Frame::Post { .. }
            | Frame::Check { .. }
            | Frame::WhoElse { .. }
            | Frame::Unbind { .. } => None,
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
        granted.last_sent = now;
        let header_len = destination.header_len();
        let mut header = [0; frame::ROUTE_HEADER];
        destination.write_header(granted.tag, &mut header);
        for packet in packets.chunks(segment_size.unwrap_or(packets.len()).max(1)) {
            out.extend_from_slice(&header[..header_len]);
            out.extend_from_slice(packet);
        }
        Some(segment_size.map(|size| size + header_len))
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.exchange {
            Exchange::Greeting { tag, schedule } => {
                if schedule.due(now) {
                    schedule.sent(now, self.hurried, self.random.bytes());
                    self.transmits.push_back(frame::hello(*tag).to_vec());
                    if schedule.sends().is_multiple_of(SILENT_AFTER) {
                        self.events.push_back(RelayEvent::Silent);
                    }
                }
            }
            Exchange::Asking { frame, schedule, .. } => {
                if schedule.due(now) && schedule.sends() >= TRIES {
                    self.ignored = true;
                    self.greet(now);
                } else if schedule.due(now) {
                    schedule.sent(now, true, self.random.bytes());
                    self.transmits.push_back(frame.clone());
                }
            }
            Exchange::Refused { until } if *until <= now => self.greet(now),
            Exchange::Refused { .. } | Exchange::Quiet => {}
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
        let exchange = match &self.exchange {
            Exchange::Greeting { schedule, .. } | Exchange::Asking { schedule, .. } => Some(schedule.next()),
            Exchange::Refused { until } => Some(*until),
            Exchange::Quiet => None,
        };
        let granted = self.granted.as_ref();
        let mail = granted.and_then(|granted| self.mailbox.poll_timeout(granted.binding.is_some()));
        exchange.into_iter().chain(granted.map(|granted| granted.next_keepalive(self.keepalive))).chain(mail).min()
    }

    fn greet(&mut self, now: Instant) {
        self.unanswered.get_or_insert(now);
        let tag = Tag(self.random.bytes());
        let mut schedule = Schedule::new(now);
        schedule.sent(now, true, self.random.bytes());
        self.transmits.push_back(frame::hello(tag).to_vec());
        self.exchange = Exchange::Greeting { tag, schedule };
    }

    /// COOKIE: the answer to HELLO, or, under the tag that was granted, a challenge of a changed address.
    fn on_cookie(&mut self, tag: Tag, cookie: Cookie, boot: Boot, now: Instant) {
        let answers_hello = matches!(&self.exchange, Exchange::Greeting { tag: asked, .. } if *asked == tag);
        let challenges = self.granted.as_ref().is_some_and(|granted| granted.tag == tag);
        // While a question is out, and after a refusal: a relay that forgot us challenges every packet, and asking it
        // again each time would be a storm.
        let busy = matches!(self.exchange, Exchange::Asking { .. } | Exchange::Refused { .. });
        if !answers_hello && (!challenges || busy) {
            return;
        }
        let mut forgotten = false;
        if !answers_hello && let Some(granted) = &mut self.granted {
            forgotten = granted.may_be_forgotten;
            granted.last_heard = now;
        }
        let asked_tag = Tag(self.random.bytes());
        let question = match answers_hello {
            true => self.first_question(asked_tag, cookie),
            // A relay does not answer a MOVE of a binding that it has forgotten.
            false if forgotten => self.first_question(asked_tag, cookie),
            false => self.question_after_challenge(asked_tag, cookie, boot),
        };
        let Some((frame, asked)) = question else { return };
        self.unanswered = Some(now);
        let mut schedule = Schedule::new(now);
        schedule.sent(now, true, self.random.bytes());
        self.transmits.push_back(frame.clone());
        self.exchange = Exchange::Asking { tag: asked_tag, boot, frame, asked, schedule };
    }

    fn first_question(&mut self, tag: Tag, cookie: Cookie) -> Option<(Vec<u8>, Asked)> {
        match &self.role {
            Role::Bind { secret, credential } => {
                let e = AgreementSecret::from_bytes(self.random.bytes());
                match bind(tag, cookie, &e, &self.relay, secret, credential) {
                    Ok(bind) => Some((bind.frame, Asked::Bind { session: bind.session, refusal: bind.refusal })),
                    Err(weak) => {
                        debug!(relay = ?self.relay, %weak, "this relay's key cannot be used");
                        None
                    }
                }
            }
            Role::Visit => Some((frame::visit(tag, cookie, self.earlier).to_vec(), Asked::Visit)),
        }
    }

    /// A relay that still knows our binding only needs proof of the new address; one that restarted needs everything.
    fn question_after_challenge(&mut self, tag: Tag, cookie: Cookie, boot: Boot) -> Option<(Vec<u8>, Asked)> {
        if let Some(Granted { id, boot: known, binding: Some((session, counter)), .. }) = &mut self.granted
            && *known == boot
        {
            *counter += 1;
            let moved = frame::moved(tag, cookie, *id, *counter, |body| session.mac(body));
            return Some((moved.to_vec(), Asked::Move { session: session.clone(), counter: *counter }));
        }
        self.first_question(tag, cookie)
    }

    fn on_bound(&mut self, tag: Tag, grant: &Grant, datagram: &[u8], now: Instant) {
        let Exchange::Asking { tag: asked_tag, boot, asked, .. } = &self.exchange else { return };
        let (session, counter) = match asked {
            Asked::Bind { session, .. } => (session, 0),
            Asked::Move { session, counter } => (session, *counter),
            Asked::Visit => return,
        };
        let Role::Bind { secret, .. } = &self.role else { return };
        if *asked_tag != tag || !session.verifies(datagram) {
            return;
        }
        let id = EndpointId::from(InstanceId::of_key(&secret.public()));
        let binding = Some((session.clone(), counter));
        let boot = *boot;
        self.granted(grant, id, boot, binding, now);
    }

    fn on_visiting(&mut self, tag: Tag, grant: &Grant, id: EndpointId, now: Instant) {
        let Exchange::Asking { tag: asked_tag, boot, asked: Asked::Visit, .. } = &self.exchange else { return };
        if *asked_tag == tag {
            let boot = *boot;
            self.granted(grant, id, boot, None, now);
        }
    }

    fn granted(&mut self, grant: &Grant, id: EndpointId, boot: Boot, binding: Option<(MacKey, u64)>, now: Instant) {
        self.granted = Some(Granted {
            tag: grant.tag,
            id,
            boot,
            binding,
            last_sent: now,
            last_heard: now,
            probes: 0,
            asked: None,
            draining: None,
            may_be_forgotten: false,
        });
        self.earlier = Some((id, grant.tag));
        self.answered(now);
        (self.ignored, self.refused) = (false, None);
        self.exchange = Exchange::Quiet;
        let bound = self.granted.as_ref().is_some_and(|granted| granted.binding.is_some());
        self.mailbox.granted(bound, now);
        self.ask_for_others();
        self.see_to_mail(now);
        self.events.push_back(RelayEvent::Ready { observed: grant.observed });
    }

    fn on_refused(&mut self, tag: Tag, reason: Refusal, datagram: &[u8], now: Instant) {
        let Exchange::Asking { tag: asked_tag, asked: Asked::Bind { refusal, .. }, .. } = &self.exchange else {
            return;
        };
        if *asked_tag != tag || !refusal.verifies(datagram) {
            return;
        }
        self.unanswered = None;
        (self.ignored, self.refused) = (false, Some(reason));
        self.exchange = Exchange::Refused { until: now + REFUSED_PAUSE };
        self.events.push_back(RelayEvent::Refused(reason));
    }

    fn on_drain(&mut self, tag: Tag, grace: u16, datagram: &[u8], now: Instant) {
        let authentic =
            matches!(&self.granted, Some(Granted { binding: Some((session, _)), .. }) if session.verifies(datagram));
        if authentic && self.heard(tag, now).is_some() {
            self.drains(Duration::from_secs(grace.into()));
        }
    }

    fn drains(&mut self, grace: Duration) {
        if let Some(granted) = &mut self.granted
            && granted.draining.is_none()
        {
            let [chance]: [u8; 1] = self.random.bytes();
            granted.draining = Some(WHILE_DRAINING - WHILE_DRAINING * u32::from(chance) / (4 * 256));
            self.events.push_back(RelayEvent::Draining { grace });
        }
    }

    fn is_granted_as(&self, tag: Tag) -> bool {
        self.granted.as_ref().is_some_and(|granted| granted.tag == tag)
    }

    /// The relay answered what it was asked.
    fn answered(&mut self, now: Instant) {
        if let Some(since) = self.unanswered.take() {
            self.rtt = Some(now.saturating_duration_since(since));
        }
    }

    /// Any frame under our tag shows that the relay is there.
    fn heard(&mut self, tag: Tag, now: Instant) -> Option<()> {
        let granted = self.granted.as_mut().filter(|granted| granted.tag == tag)?;
        granted.last_heard = now;
        granted.probes = 0;
        if matches!(self.exchange, Exchange::Quiet) {
            self.unanswered = None;
        }
        Some(())
    }

    fn answers_keepalive(&mut self, nonce: [u8; 8]) -> bool {
        self.granted.as_mut().is_some_and(|granted| granted.asked.take_if(|asked| *asked == nonce).is_some())
    }

    /// Asked when we are bound and whenever an answer says that there are some; one that is lost comes with the next ALIVE.
    fn ask_for_others(&mut self) {
        let Some(granted) = self.granted.as_ref().filter(|granted| granted.binding.is_some()) else { return };
        let nonce = self.random.bytes();
        self.others.asked = Some(nonce);
        self.transmits.push_back(frame::who_else(granted.tag, nonce).to_vec());
    }

    fn now_others(&mut self, ids: &[[u8; 8]]) {
        let known: Vec<EndpointId> = ids.iter().map(|id| EndpointId(*id)).collect();
        if self.others.known != known {
            self.others.known = known;
            self.events.push_back(RelayEvent::Others);
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        let Some(granted) = &self.granted else { return };
        if granted.next_keepalive(self.keepalive) > now {
            return;
        }
        if granted.probes < KEEPALIVES {
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
        granted.probes += 1;
        granted.asked = Some(nonce);
        granted.last_sent = now;
        self.unanswered.get_or_insert(now);
        self.transmits.push_back(frame::keepalive(granted.tag, nonce).to_vec());
    }
}

impl Granted {
    /// An interval after the last packet in the quieter direction; then after 1 s and 2 s, and a last 4 s before giving up.
    fn next_keepalive(&self, interval: Duration) -> Instant {
        match (self.probes, self.draining) {
            (0, interval_then) => self.last_sent.min(self.last_heard) + interval_then.unwrap_or(interval),
            (_, Some(interval)) => self.last_sent + interval,
            (sent, None) => self.last_sent + Duration::from_secs(1 << (sent - 1).min(2)),
        }
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
