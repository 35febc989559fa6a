//! The exchange that makes a relay know us, as far as it has got: HELLO, then BIND, VISIT or MOVE, each until it is answered.

use std::time::{Duration, Instant};

use peerage_model::relay::frame::keys::MacKey;
use peerage_model::relay::frame::{self, Boot, Tag};

use super::grant::Binding;
use super::schedule::Schedule;
use crate::noise::SeededRandom;

/// After a refusal.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// BIND, VISIT and MOVE are sent this often before the cookie counts as too old.
const TRIES: u32 = 4;
/// HELLOs without an answer until somebody may look whether the relay moved: after 3 to 4 s, and then again and again.
const SILENT_AFTER: u32 = 5;

/// See the module.
#[derive(Debug)]
pub(super) enum Exchange {
    /// None.
    Quiet,
    /// HELLO is out.
    Greeting { tag: Tag, schedule: Schedule },
    /// BIND, VISIT or MOVE is out.
    Asking { request: Request, schedule: Schedule },
    /// The relay refused.
    Refused { until: Instant },
}

/// BIND, VISIT or MOVE.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) tag: Tag,
    /// The run of the relay whose cookie is in it.
    pub(super) boot: Boot,
    pub(super) frame: Vec<u8>,
    pub(super) asked: Asked,
}

/// Which of them, with what its answers are checked by.
#[derive(Debug)]
pub(super) enum Asked {
    Bind { session: MacKey, refusal: MacKey },
    Visit,
    Move(Binding),
}

/// What there is to do as time passes.
#[derive(Debug)]
pub(super) enum Due {
    /// To wait.
    Nothing,
    /// To send this once more.
    Frame(Vec<u8>),
    /// The same, of a relay that has been silent for a while.
    FrameToTheSilent(Vec<u8>),
    /// To begin from HELLO, since what was asked after it stays without an answer.
    AfterIgnored,
    /// The same, since a refusal is long enough ago.
    AfterRefusal,
}

impl Exchange {
    /// Begins with HELLO, which is to be sent.
    pub(super) fn greet(random: &mut SeededRandom, now: Instant) -> (Self, Vec<u8>) {
        let tag = Tag(random.bytes());
        let schedule = Schedule::begun(random, now);
        (Self::Greeting { tag, schedule }, frame::hello(tag).to_vec())
    }

    /// Goes on with a request, which is to be sent.
    pub(super) fn ask(request: Request, random: &mut SeededRandom, now: Instant) -> (Self, Vec<u8>) {
        let frame = request.frame.clone();
        (Self::Asking { request, schedule: Schedule::begun(random, now) }, frame)
    }

    /// The relay refuses: it is asked again after a pause.
    pub(super) fn refused(now: Instant) -> Self {
        Self::Refused { until: now + REFUSED_PAUSE }
    }

    pub(super) fn is_quiet(&self) -> bool {
        matches!(self, Self::Quiet)
    }

    /// Whether a challenge changes nothing: while a request is out, and after a refusal. A relay that forgot us challenges every
    /// packet, and asking it again each time would be a storm.
    pub(super) fn ignores_challenges(&self) -> bool {
        matches!(self, Self::Asking { .. } | Self::Refused { .. })
    }

    /// Whether a COOKIE of this tag answers our HELLO.
    pub(super) fn is_greeting(&self, tag: Tag) -> bool {
        matches!(self, Self::Greeting { tag: asked, .. } if *asked == tag)
    }

    fn request(&self, tag: Tag) -> Option<&Request> {
        match self {
            Self::Asking { request, .. } if request.tag == tag => Some(request),
            Self::Asking { .. } | Self::Quiet | Self::Greeting { .. } | Self::Refused { .. } => None,
        }
    }

    /// Which binding of which run of the relay a BOUND grants, if it answers us.
    pub(super) fn granted_by_bound(&self, tag: Tag, datagram: &[u8]) -> Option<(Boot, Binding)> {
        let request = self.request(tag)?;
        let binding = match &request.asked {
            Asked::Bind { session, .. } => Binding { session: session.clone(), moves: 0 },
            Asked::Move(binding) => binding.clone(),
            Asked::Visit => return None,
        };
        binding.session.verifies(datagram).then_some((request.boot, binding))
    }

    /// Of which run of the relay a VISITING is, if it answers us.
    pub(super) fn granted_by_visiting(&self, tag: Tag) -> Option<Boot> {
        let request = self.request(tag)?;
        matches!(request.asked, Asked::Visit).then_some(request.boot)
    }

    /// Whether a REFUSED answers us.
    pub(super) fn is_refused_by(&self, tag: Tag, datagram: &[u8]) -> bool {
        let asked = self.request(tag).map(|request| &request.asked);
        matches!(asked, Some(Asked::Bind { refusal, .. }) if refusal.verifies(datagram))
    }

    /// Nothing else reaches the relay any more.
    pub(super) fn hurry(&mut self, now: Instant) {
        match self {
            Self::Greeting { schedule, .. } => schedule.hurry(now),
            Self::Asking { .. } | Self::Refused { .. } | Self::Quiet => {}
        }
    }

    /// What is due. Without hurry a HELLO goes out ever more rarely.
    pub(super) fn handle_timeout(&mut self, now: Instant, hurried: bool, random: &mut SeededRandom) -> Due {
        match self {
            Self::Greeting { tag, schedule } if schedule.due(now) => {
                schedule.sent(now, hurried, random.bytes());
                let hello = frame::hello(*tag).to_vec();
                match schedule.sends().is_multiple_of(SILENT_AFTER) {
                    true => Due::FrameToTheSilent(hello),
                    false => Due::Frame(hello),
                }
            }
            Self::Asking { schedule, .. } if schedule.due(now) && schedule.sends() >= TRIES => Due::AfterIgnored,
            Self::Asking { request, schedule } if schedule.due(now) => {
                schedule.sent(now, true, random.bytes());
                Due::Frame(request.frame.clone())
            }
            Self::Refused { until } if *until <= now => Due::AfterRefusal,
            Self::Greeting { .. } | Self::Asking { .. } | Self::Refused { .. } | Self::Quiet => Due::Nothing,
        }
    }

    /// When something is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Greeting { schedule, .. } | Self::Asking { schedule, .. } => Some(schedule.next()),
            Self::Refused { until } => Some(*until),
            Self::Quiet => None,
        }
    }
}
