//! The client's side of mailboxes at one relay (`docs/spec/mailbox.md` section 2).
//!
//! Two independent things: questions that somebody here asks (LOOKUP, POST), each repeated until it is answered or given up,
//! and, for a public agent, the look into its own mailbox, which begins anew whenever the relay says or may have something.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use peerage_model::keys::WeakKey;
use peerage_model::relay::frame::keys::MacKey;
use peerage_model::relay::frame::mailbox::{self, MailId, NameKey, SEALED};
use peerage_model::relay::frame::{Frame, Tag};
use peerage_model::{AgreementKey, AgreementSecret, RoutingId};

use super::RelayClient;
use super::schedule::Schedule;
use crate::noise::SeededRandom;

/// Between two looks into our mailbox when nothing else gives a reason.
const LOOK_AGAIN: Duration = Duration::from_secs(300);
/// CHECKs that stay unanswered until we doubt that the relay has the same session as we, or, if a new one did not help, until
/// the next regular look.
const CHECKS: u32 = 5;
/// Questions at one relay at a time; people ask them.
const QUESTIONS: usize = 16;

/// What is asked. Somebody on the way could answer with an authority of its own, so the answer to a look-up is authenticated.
#[derive(Clone, Debug)]
pub enum Question {
    /// Whose agents have this name.
    LookUp(NameKey),
    /// To leave a request in a mailbox.
    Post(RoutingId, Box<[u8; SEALED]>),
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MailEvent {
    /// Records of authorities, not verified yet.
    Found {
        /// Who asked.
        token: u64,
        /// The records.
        records: Vec<Vec<u8>>,
    },
    /// The relay has it, if there is such a mailbox.
    Posted {
        /// Who asked.
        token: u64,
    },
    /// Something was in our mailbox. [`super::RelayClient::mail_done`] makes the relay forget it and give the next.
    Mail {
        /// Its id there.
        id: MailId,
        /// What it is.
        sealed: Box<[u8; SEALED]>,
    },
}

impl RelayClient {
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

    /// Sends what is due, and asks to be known anew where the relay seems to have another session than ours.
    pub(super) fn see_to_mail(&mut self, now: Instant) {
        if let Some(granted) = &self.granted {
            let believed = self.mailbox.handle_timeout(now, granted.tag(), granted.session(), &mut self.random);
            if !believed && self.exchange.is_quiet() {
                self.greet(now);
            }
        }
    }
}

#[derive(Debug)]
struct Asked {
    token: u64,
    nonce: [u8; 8],
    asking: Asking,
    schedule: Schedule,
}

/// A question as it is sent.
#[derive(Debug)]
enum Asking {
    /// With the key that was made for it, and what its answer is checked with.
    LookUp {
        name: NameKey,
        e: AgreementKey,
        answer: MacKey,
    },
    Post {
        to: RoutingId,
        sealed: Box<[u8; SEALED]>,
    },
}

impl Asking {
    /// Fails where no answer of that relay could be checked.
    fn new(question: Question, relay: &AgreementKey, random: &mut SeededRandom) -> Result<Self, WeakKey> {
        Ok(match question {
            Question::LookUp(name) => {
                let secret = AgreementSecret::from_bytes(random.bytes());
                let e = secret.public();
                Self::LookUp { name, e, answer: mailbox::answer_key(&*secret.agree(relay)?, relay, &e) }
            }
            Question::Post(to, sealed) => Self::Post { to, sealed },
        })
    }
}

#[derive(Debug)]
enum Look {
    /// We have no mailbox.
    Never,
    /// The next one.
    At(Instant),
    /// CHECK is out.
    Waiting { nonce: [u8; 8], done: MailId, schedule: Schedule },
    /// Something was given out and is not dealt with yet. Who cannot (a full disk) never says so, so it is given out
    /// again after this.
    Reading { until: Instant },
}

#[derive(Debug)]
pub(super) struct Mailbox {
    public: bool,
    /// The relay has answered a CHECK since it last said that it knows us.
    open: bool,
    /// A new session was asked for since the relay last answered a CHECK: once is enough for what a new session can mend.
    doubted: bool,
    look: Look,
    asked: Vec<Asked>,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<MailEvent>,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        Self {
            public: false,
            open: false,
            doubted: false,
            look: Look::Never,
            asked: Vec::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    pub(super) fn set_public(&mut self, public: bool) {
        self.public = public;
        if !public {
            self.look = Look::Never;
        }
    }

    /// The relay knows us (again): whatever it knew of our mailbox may be gone, and what was asked is asked at once.
    pub(super) fn granted(&mut self, bound: bool, now: Instant) {
        for asked in &mut self.asked {
            asked.schedule = Schedule::new(now);
        }
        self.open = false;
        if self.public && bound {
            self.look = Look::At(now);
        }
    }

    /// The relay said that mail waits.
    pub(super) fn mail_waits(&mut self, now: Instant) {
        if let Look::At(at) = &mut self.look {
            *at = now;
        }
    }

    /// Whether strangers can leave something for us here.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Asks, at the relay that has this key.
    pub(super) fn ask(
        &mut self,
        token: u64,
        question: Question,
        relay: &AgreementKey,
        now: Instant,
        random: &mut SeededRandom,
    ) {
        if self.asked.len() < QUESTIONS
            && let Ok(asking) = Asking::new(question, relay, random)
        {
            self.asked.push(Asked { token, nonce: random.bytes(), asking, schedule: Schedule::new(now) });
        }
    }

    pub(super) fn give_up(&mut self, token: u64) {
        self.asked.retain(|asked| asked.token != token);
    }

    pub(super) fn done(&mut self, id: MailId, now: Instant, random: &mut SeededRandom) {
        if matches!(self.look, Look::Reading { .. }) {
            self.look = Look::Waiting { nonce: random.bytes(), done: id, schedule: Schedule::new(now) };
        }
    }

    /// An answer under our tag. `session` authenticates what is for our mailbox.
    pub(super) fn on_frame(&mut self, frame: &Frame<'_>, session: Option<&MacKey>, datagram: &[u8], now: Instant) {
        match frame {
            Frame::Records { nonce, records, .. } => {
                let true_answer =
                    |asking: &Asking| matches!(asking, Asking::LookUp { answer, .. } if answer.verifies(datagram));
                if let Some(token) = self.answered(nonce, true_answer) {
                    let records = records.iter().map(<[u8]>::to_vec).collect();
                    self.events.push_back(MailEvent::Found { token, records });
                }
            }
            Frame::Posted { nonce } => {
                if let Some(token) = self.answered(nonce, |asking| matches!(asking, Asking::Post { .. })) {
                    self.events.push_back(MailEvent::Posted { token });
                }
            }
            Frame::Mail { nonce, id, sealed, .. } => {
                let expected = matches!(&self.look, Look::Waiting { nonce: asked, .. } if asked == nonce);
                if !expected || !session.is_some_and(|session| session.verifies(datagram)) {
                    return;
                }
                (self.open, self.doubted) = (true, false);
                match sealed {
                    Some(sealed) => {
                        self.look = Look::Reading { until: now + LOOK_AGAIN };
                        self.events.push_back(MailEvent::Mail { id: *id, sealed: Box::new(**sealed) });
                    }
                    None => self.look = Look::At(now + LOOK_AGAIN),
                }
            }
            _ => {}
        }
    }

    fn answered(&mut self, nonce: &[u8; 8], fits: impl Fn(&Asking) -> bool) -> Option<u64> {
        let at = self.asked.iter().position(|asked| asked.nonce == *nonce && fits(&asked.asking))?;
        Some(self.asked.swap_remove(at).token)
    }

    /// Sends what is due under the tag that was granted. `false` if the relay seems to have another session than ours, which
    /// happens where a BIND of ours that counted as lost came after the one that it answered: then it takes a new BIND.
    #[must_use]
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        tag: Tag,
        session: Option<&MacKey>,
        random: &mut SeededRandom,
    ) -> bool {
        for asked in self.asked.iter_mut().filter(|asked| asked.schedule.due(now)) {
            asked.schedule.sent(now, true, random.bytes());
            self.transmits.push_back(match &asked.asking {
                Asking::LookUp { name, e, .. } => mailbox::lookup(tag, asked.nonce, *name, e).to_vec(),
                Asking::Post { to, sealed } => mailbox::post(tag, asked.nonce, *to, sealed),
            });
        }
        let Some(session) = session else { return true };
        if matches!(&self.look, Look::At(at) | Look::Reading { until: at } if *at <= now) {
            self.look = Look::Waiting { nonce: random.bytes(), done: MailId::NONE, schedule: Schedule::new(now) };
        }
        if let Look::Waiting { nonce, done, schedule } = &mut self.look
            && schedule.due(now)
        {
            if schedule.sends() >= CHECKS {
                self.look = Look::At(now + LOOK_AGAIN);
                return std::mem::replace(&mut self.doubted, true);
            }
            schedule.sent(now, true, random.bytes());
            self.transmits.push_back(mailbox::check(tag, *nonce, *done, |body| session.mac(body)).to_vec());
        }
        true
    }

    /// When something is due; meant for while the relay knows us.
    pub(super) fn poll_timeout(&self, bound: bool) -> Option<Instant> {
        let look = match &self.look {
            Look::At(at) | Look::Reading { until: at } if bound => Some(*at),
            Look::Waiting { schedule, .. } if bound => Some(schedule.next()),
            Look::At(_) | Look::Reading { .. } | Look::Waiting { .. } | Look::Never => None,
        };
        self.asked.iter().map(|asked| asked.schedule.next()).chain(look).min()
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    pub(super) fn poll_event(&mut self) -> Option<MailEvent> {
        self.events.pop_front()
    }

    pub(super) fn leave(&mut self) {
        *self = Self::new();
    }
}
