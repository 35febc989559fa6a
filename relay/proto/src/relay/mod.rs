//! One relay: what comes in, what goes out.
//!
//! The first byte and the type say which of three it is: STUN ([`crate::stun`]), a handshake frame ([`handshake`]), or a
//! packet for somebody else ([`forward`]). Only the last comes in batches worth the name, so only it looks past the
//! first segment.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerage_model::relay::frame::keys::BootKey;
use peerage_model::relay::frame::{self, Boot, EndpointId, Frame};
use peerage_model::{AgreementKey, AgreementSecret, UnixTime};
use zeroize::Zeroizing;

use crate::bucket::Bucket;
use crate::counters::{Counters, DropReason, Occupancy};
use crate::limits::{Access, LIFETIME, Limits, SWEEP};
use crate::mailbox::Mailboxes;
use crate::place::Place;
use crate::spread::SpreadBuckets;
use crate::stun::{self, Corner, Corners};
use crate::table::Table;

mod forward;
mod handshake;
mod line;
mod mailbox;
mod proof;

use line::Line;
pub use proof::{Proof, Proven};

const LIFETIME_SECS: u16 = LIFETIME.as_secs() as u16;

/// What a relay is made of.
#[derive(Debug)]
pub struct Config {
    /// The relay's key; its public half is in relay lists.
    pub key: AgreementSecret,
    /// Who may bind.
    pub access: Access,
    /// How much.
    pub limits: Limits,
    /// 32 random bytes of this run. Cookies, tags and visitor ids follow from them.
    pub seed: Zeroizing<[u8; 32]>,
}

/// Where and when something was received.
#[derive(Clone, Copy, Debug)]
pub struct Ingress {
    /// Monotonic time.
    pub now: Instant,
    /// Wall time, for passports.
    pub wall: UnixTime,
    /// Who sent it, IPv4-mapped addresses unwrapped.
    pub from: Place,
    /// Which of the machine's addresses it came to, if known: what answers must come from.
    pub local: Option<IpAddr>,
}

/// What was done with the start of a batch.
#[derive(Debug)]
pub struct Handled {
    /// Bytes of the batch that are dealt with; at least one segment. Call again with the rest.
    pub consumed: usize,
    /// What leaves.
    pub decision: Decision,
}

/// What leaves.
#[derive(Debug)]
pub enum Decision {
    /// Nothing.
    Drop,
    /// A short frame back to the sender.
    Reply(Reply),
    /// A part of the buffer, to somebody else.
    Forward(Forward),
}

/// Segments to send on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where to.
    pub to: Place,
    /// From which of the machine's addresses.
    pub local: Option<IpAddr>,
    /// Which bytes of what was passed in; the headers in them are rewritten.
    pub range: Range<usize>,
    /// Bytes of each segment; the last may be shorter.
    pub segment: usize,
}

/// A short frame, on the stack where it can be.
#[derive(Clone)]
pub struct Reply {
    bytes: Bytes,
    /// From which of a relay's places; all but some answers to STUN leave from where they were asked for.
    pub from: Corner,
    /// To which port of the asker's address, where it is not the one that it asked from; only STUN has that.
    pub port: Option<u16>,
}

#[derive(Clone)]
enum Bytes {
    Short([u8; Reply::SHORT], usize),
    /// What mailboxes answer. Only to who is known here, and charged.
    Long(Box<[u8]>),
}

impl Reply {
    const SHORT: usize = stun::MAX_RESPONSE;

    fn new(frame: &[u8]) -> Self {
        if frame.len() > Self::SHORT {
            return Self { bytes: Bytes::Long(frame.into()), from: Corner::default(), port: None };
        }
        let mut bytes = [0; Self::SHORT];
        bytes[..frame.len()].copy_from_slice(frame);
        Self { bytes: Bytes::Short(bytes, frame.len()), from: Corner::default(), port: None }
    }

    /// Where it goes, for who asked from `asker`.
    #[must_use]
    pub fn destination(&self, asker: SocketAddr) -> SocketAddr {
        SocketAddr::new(asker.ip(), self.port.unwrap_or(asker.port()))
    }

    /// The bytes to send.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Short(bytes, len) => &bytes[..*len],
            Bytes::Long(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.as_bytes();
        write!(f, "Reply(type {}, {} bytes)", bytes[1], bytes.len())
    }
}

/// A frame that nobody asked for.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Where to.
    pub to: Place,
    /// From which of the machine's addresses.
    pub local: Option<IpAddr>,
    /// The frame.
    pub frame: Reply,
}

/// The relay's life.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Serving,
    /// `told` is the last binding that was sent DRAIN in the round that runs.
    Draining {
        until: Instant,
        told: Option<EndpointId>,
        all_told: bool,
    },
}

/// The relay as a value. The same inputs give the same outputs.
#[derive(Debug)]
pub struct Relay {
    key: Arc<AgreementSecret>,
    public: AgreementKey,
    access: Access,
    limits: Limits,
    boot_key: BootKey,
    boot: Boot,
    started: Instant,
    phase: Phase,
    visitors_minted: u64,
    table: Table,
    stun: Bucket,
    stun_by_network: SpreadBuckets,
    handshakes: SpreadBuckets,
    /// BINDs of who is not bound where they come from, and of who is.
    newcomers: Bucket,
    renewals: Bucket,
    line: Line,
    next_sweep: Instant,
    counters: Counters,
    corners: Option<Corners>,
    mailboxes: Mailboxes,
    /// Words to owners of mailboxes, for [`Self::poll_transmit`].
    notices: VecDeque<Notice>,
}

impl Relay {
    /// A relay that nobody has talked to yet.
    #[must_use]
    pub fn new(config: Config, now: Instant) -> Self {
        let boot_key = BootKey::new(&config.seed);
        Self {
            public: config.key.public(),
            corners: None,
            mailboxes: Mailboxes::new(&config.key, now),
            notices: VecDeque::new(),
            key: Arc::new(config.key),
            access: config.access,
            limits: config.limits,
            boot: boot_key.boot(),
            boot_key,
            started: now,
            phase: Phase::Serving,
            visitors_minted: 0,
            table: Table::default(),
            stun: Bucket::full(now),
            stun_by_network: SpreadBuckets::new(now),
            handshakes: SpreadBuckets::new(now),
            newcomers: Bucket::full(now),
            renewals: Bucket::full(now),
            line: Line::default(),
            next_sweep: now + SWEEP,
            counters: Counters::default(),
        }
    }

    /// The same relay at four places: it names its other address, and answers STUN from where it is asked to (RFC 5780).
    #[must_use]
    pub fn with_corners(self, corners: Option<Corners>) -> Self {
        Self { corners, ..self }
    }

    /// The public key that clients pin.
    #[must_use]
    pub fn public_key(&self) -> &AgreementKey {
        &self.public
    }

    /// Totals since start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What is held now.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let (mailboxes, mail) = self.mailboxes.occupancy();
        let (binds_waiting, mailbox_memory) = (self.line.len(), self.mailboxes.memory());
        Occupancy { mailboxes, mail, mailbox_memory, binds_waiting, ..self.table.occupancy() }
    }

    /// Deals with the start of `batch`: segments of `segment` bytes (the last may be shorter), all from one source, as
    /// GRO delivers them; a single datagram is a batch of one. The caller acts on the decision, then passes the rest.
    pub fn handle(&mut self, ingress: &Ingress, batch: &mut [u8], segment: usize) -> Handled {
        let handled = self.receive(ingress, batch, segment);
        match self.poll_proof() {
            Some(proof) => Handled { decision: self.conclude(proof.check()), ..handled },
            None => handled,
        }
    }

    /// As [`Self::handle`], but for the proof in a BIND, which costs as much as a hundred packets: it waits for
    /// [`Self::poll_proof`], so that who shares a relay between threads looks at it while the others go on.
    pub fn receive(&mut self, ingress: &Ingress, batch: &mut [u8], segment: usize) -> Handled {
        let segment = segment.clamp(1, batch.len().max(1));
        let first = segment.min(batch.len());
        let decision = match batch.first() {
            Some(0..=3) => match ingress.from {
                Place::Udp(from) => self.handle_stun(ingress.now, from, &batch[..first], Corner::default()),
                // What a NAT does to TCP says nothing about UDP.
                Place::Stream(..) => self.drop_for(DropReason::Stun),
            },
            Some(&frame::VERSION_1) if matches!(batch.get(1), Some(12 | 13)) => {
                return self.forward(ingress, batch, segment);
            }
            Some(&frame::VERSION_1) => self.handle_frame(ingress, &batch[..first]),
            Some(_) | None => self.drop_for(DropReason::Malformed),
        };
        Handled { consumed: first, decision }
    }

    /// Whether a BIND waits for [`Self::poll_proof`].
    #[must_use]
    pub fn has_proof(&self) -> bool {
        self.line.len() > 0
    }

    /// The BIND whose turn it is: [`Self::conclude`] what [`Proof::check`] finds. Call until `None` after [`Self::receive`].
    pub fn poll_proof(&mut self) -> Option<Proof> {
        self.line.pop()
    }

    /// A STUN request that came to one of the places that only answer STUN.
    pub fn handle_stun_at(&mut self, now: Instant, from: SocketAddr, request: &[u8], at: Corner) -> Option<Reply> {
        match self.handle_stun(now, from, request, at) {
            Decision::Reply(reply) => Some(reply),
            Decision::Drop | Decision::Forward(_) => None,
        }
    }

    fn handle_stun(&mut self, now: Instant, from: SocketAddr, request: &[u8], at: Corner) -> Decision {
        // Who asks over the other family has asked at an address that is none of the four places.
        let asked_there = |corners: &&Corners| corners.first.is_ipv4() == from.ip().to_canonical().is_ipv4();
        let corners = self.corners.as_ref().filter(asked_there);
        let Some(answer) = stun::answer(request, from, corners, at) else {
            return self.drop_for(DropReason::Stun);
        };
        let admitted = self.stun_by_network.admit(&self.boot_key, from, self.limits.stun_per_network, now)
            && self.stun.admit(self.limits.stun, now);
        if !admitted {
            return self.drop_for(DropReason::Stun);
        }
        self.counters.stun += 1;
        Decision::Reply(Reply { from: answer.from, port: answer.port, ..Reply::new(answer.as_bytes()) })
    }

    fn handle_frame(&mut self, ingress: &Ingress, datagram: &[u8]) -> Decision {
        let Ok((tag, frame)) = Frame::parse(datagram) else {
            return self.drop_for(DropReason::Malformed);
        };
        match frame {
            Frame::Hello => self.hello(ingress, tag),
            Frame::Bind { cookie, e, sealed: _, mac: _ } => self.bind(ingress, tag, cookie, &e, datagram),
            Frame::Visit { cookie, earlier } => self.visit(ingress, tag, cookie, earlier),
            Frame::Move { cookie, id, counter, mac: _ } => self.relocate(ingress, tag, cookie, id, counter, datagram),
            Frame::Keepalive { nonce } => self.keepalive(ingress, tag, nonce),
            Frame::WhoElse { nonce } => self.who_else(ingress, tag, nonce),
            Frame::Unbind { id, mac: _ } => self.unbind(tag, id, datagram),
            Frame::Lookup { nonce, name, e } => self.look_up(ingress, tag, nonce, name, &e),
            Frame::Post { nonce, to, sealed } => self.post(ingress, tag, nonce, to, sealed),
            Frame::Check { nonce, done, mac: _ } => self.check(ingress, tag, nonce, done, datagram),
            // Packets are dealt with by `forward`; the rest is what only relays send, and answering it could loop.
            Frame::To { .. }
            | Frame::Cookie { .. }
            | Frame::Bound { .. }
            | Frame::Refused { .. }
            | Frame::Visiting { .. }
            | Frame::Alive { .. }
            | Frame::Drain { .. }
            | Frame::Records { .. }
            | Frame::Posted { .. }
            | Frame::Mail { .. }
            | Frame::Others { .. }
            | Frame::From { .. } => self.drop_for(DropReason::Malformed),
        }
    }

    /// Whether another stream from this address may begin now; charged like a handshake, which it is about to cost.
    pub fn admit_stream(&mut self, from: SocketAddr, now: Instant) -> bool {
        let admitted = self.handshakes.admit(&self.boot_key, from, self.limits.handshakes, now);
        if !admitted {
            self.counters.drop(DropReason::Quota, 1);
        }
        admitted
    }

    /// Streams that one network may have: one for each binding and visitor.
    #[must_use]
    pub fn streams_per_network(&self) -> u32 {
        self.limits.network.bindings.saturating_add(self.limits.visitors_per_network)
    }

    /// Whether somebody is bound or visiting there: of what a stream is good for.
    #[must_use]
    pub fn knows(&self, place: Place) -> bool {
        self.table.id_at(place).is_some()
    }

    /// A stream is gone. Who was there has a little while to come back by another way.
    pub fn stream_ended(&mut self, place: Place, now: Instant) {
        self.line.forget(place);
        self.table.hurry(place, now);
    }

    /// Stops taking newcomers and tells every binding; goes on forwarding. The owner ends the process after `grace`.
    pub fn drain(&mut self, now: Instant, grace: Duration) {
        if matches!(self.phase, Phase::Serving) {
            self.phase = Phase::Draining { until: now + grace, told: None, all_told: false };
        }
    }

    /// The next frame that nobody asked for; call until `None` after [`Self::handle`] and [`Self::drain`].
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Notice> {
        if let Some(notice) = self.notices.pop_front() {
            return Some(notice);
        }
        let Phase::Draining { until, told, all_told: false } = self.phase else {
            return None;
        };
        let grace = until.saturating_duration_since(now).as_secs();
        let grace = u16::try_from(grace).unwrap_or(u16::MAX);
        let next = self.table.next_bound(told).map(|(id, source, binding)| {
            let frame = frame::drain(source.tag, grace, |body| binding.session.mac(body));
            let notice = Notice { to: source.place, local: source.local, frame: Reply::new(&frame) };
            (id, notice)
        });
        self.phase =
            Phase::Draining { until, told: next.as_ref().map_or(told, |(id, _)| Some(*id)), all_told: next.is_none() };
        next.map(|(_, notice)| notice)
    }

    /// Forgets what has ended.
    pub fn handle_timeout(&mut self, now: Instant, wall: UnixTime) {
        if now >= self.next_sweep {
            self.table.sweep(now, wall);
            self.mailboxes.sweep(now);
            self.next_sweep = now + SWEEP;
        }
    }

    /// When to call [`Self::handle_timeout`]; `None` while there is nothing to forget.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.table.is_empty() || !self.mailboxes.is_empty()).then_some(self.next_sweep)
    }

    fn is_draining(&self) -> bool {
        match self.phase {
            Phase::Serving => false,
            Phase::Draining { .. } => true,
        }
    }

    fn drop_for(&mut self, reason: DropReason) -> Decision {
        self.counters.drop(reason, 1);
        Decision::Drop
    }
}
