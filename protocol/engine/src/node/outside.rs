//! What is between us and everybody else, beyond what relays tell of themselves: whom it lets in, whether it looks at ports,
//! and whether new destinations see us where old ones do.
//!
//! The first is measured once for each network, with a relay that has two addresses (`nat/filter.rs`). The second is looked
//! at when a peer does not answer: a gateway may have lost our port to a stranger's packet and given us another one, which
//! it then uses towards everybody new, while relays, whom we have long spoken to, go on seeing the first. So a place that
//! we have never spoken to is asked: that relay's other address, at its first port, from which it never answers unasked.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::debug;

use super::Node;
use super::event::Now;
use crate::nat::{FilterProbe, FilterTest, Filtered, Mapping};
use crate::path::{CheckTransmit, DirectPath, Link, is_private};
use crate::stun::{AnswerFrom, PlainRequest, PlainResponse, TransactionId, canonical};

/// After a measurement that the relay did not answer; and from one question about ports to the next.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// From one look at new destinations to the next: by then the gateways that lose ports, which are Linux, have forgotten the last,
/// since they keep a flow of one question and one answer for 30 s.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(40);
/// When the question of a look is asked.
const LOOK_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(900)];
/// How long a look may take: by then the last question is answered or lost.
const LOOK_FOR: Duration = Duration::from_secs(3);
/// For how long what was seen is offered: the gateway keeps it as long as something uses it.
const SEEN_FOR: Duration = Duration::from_secs(60);

/// How far the filter is known.
#[derive(Debug, Default)]
enum Filter {
    #[default]
    New,
    Pause {
        until: Instant,
    },
    Running(FilterProbe),
    Measured {
        /// Of the relay that measured: whether ports count is told by comparing it with the first.
        second_port: SocketAddr,
    },
}

/// A question to a place that we have never spoken to.
#[derive(Debug)]
struct Look {
    place: SocketAddr,
    /// What the answer tells.
    about: About,
    id: TransactionId,
    since: Instant,
    asked: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// Whether new destinations see us where old ones do.
    NewDestinations,
    /// Whether our symmetric NAT looks at ports: it is the second port of a relay of ours.
    Ports,
}

/// What is known of what is outside.
#[derive(Debug, Default)]
pub(super) struct Outside {
    filter: Filter,
    /// Relays that have one address only.
    single: BTreeSet<SocketAddr>,
    /// A place that never sends to us unasked, and that we do not speak to but for a look.
    unspoken: Option<SocketAddr>,
    look: Option<Look>,
    looked: Option<Instant>,
    /// When the second port was asked last.
    ports_asked: Option<Instant>,
    /// Where a new destination saw us, if that is not where others do.
    moved: Option<(SocketAddr, Instant)>,
}

impl Outside {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let filter = match &self.filter {
            Filter::New | Filter::Measured { .. } => None,
            Filter::Pause { until } => Some(*until),
            Filter::Running(probe) => Some(probe.poll_timeout()),
        };
        let look = self.look.as_ref().and_then(|look| Some(look.since + *LOOK_AT.get(look.asked)?));
        filter.into_iter().chain(look).min()
    }

    /// Where new destinations see us, while that is another place than the one that relays see.
    pub(super) fn moved(&self, now: Instant) -> Option<SocketAddr> {
        self.moved.filter(|(_, at)| now.saturating_duration_since(*at) < SEEN_FOR).map(|(seen, _)| seen)
    }
}

impl Node {
    /// We may be in another network.
    pub(super) fn outside_changed(&mut self) {
        self.outside = Outside::default();
        self.relays.forget_filtering();
    }

    pub(super) fn drive_outside(&mut self, now: Now) {
        self.drive_filter(now);
        self.drive_look(now);
        self.ask_about_ports(now);
    }

    fn drive_filter(&mut self, now: Now) {
        match &mut self.outside.filter {
            Filter::Measured { .. } => {}
            Filter::Pause { until } if now.mono < *until => {}
            Filter::New | Filter::Pause { .. } => {
                self.outside.filter = Filter::New;
                let Some(relay) = self.relays.stun_address_but(&self.outside.single) else { return };
                let random = &mut self.random;
                let ids = [(); 4].map(|()| TransactionId(random.bytes()));
                self.outside.filter = Filter::Running(FilterProbe::new(now.mono, relay, ids));
                self.relays.filtering_runs(true);
                self.drive_filter(now);
            }
            Filter::Running(probe) => {
                let relay = probe.relay();
                let (questions, progress) = probe.handle_timeout(now.mono);
                self.out.extend(questions.into_iter().map(|bytes| from_main(relay, bytes)));
                self.filtered(relay, progress, now);
            }
        }
    }

    fn filtered(&mut self, relay: SocketAddr, progress: Filtered, now: Now) {
        match progress {
            Filtered::Running => return,
            Filtered::OneAddress => {
                self.outside.single.insert(relay);
                self.outside.filter = Filter::New;
                self.drive_filter(now);
            }
            Filtered::Unanswered => self.outside.filter = Filter::Pause { until: now.mono + AGAIN_AFTER },
            Filtered::Measured { other_address, other_port, other } => {
                self.outside.filter = Filter::Measured { second_port: SocketAddr::new(relay.ip(), other.port()) };
                self.outside.unspoken =
                    Some(SocketAddr::new(other.ip(), relay.port())).filter(|_| !is_private(other.ip()));
                self.relays.observe_filtering(FilterTest::OtherAddressAndPort, other_address);
                self.relays.observe_filtering(FilterTest::OtherPort, other_port);
            }
        }
        self.relays.filtering_runs(matches!(self.outside.filter, Filter::Running(_)));
        debug!(?progress, "filter of the NAT");
        self.settle_relays(now);
    }

    /// Asks whether ports count where that is all that is missing, also after the gateway forgot what it was asked with before.
    /// Not before the filter is known: who is sent to is let in.
    fn ask_about_ports(&mut self, now: Now) {
        let Filter::Measured { second_port } = self.outside.filter else { return };
        let recent = |at: Option<Instant>, time| at.is_some_and(|at| now.mono.saturating_duration_since(at) < time);
        let looks = recent(self.outside.look.as_ref().map(|look| look.since), LOOK_FOR);
        let waits = looks || recent(self.outside.ports_asked, AGAIN_AFTER);
        if !waits && self.relays.nat_report().behaviour.mapping == Mapping::DestinationDependent {
            self.outside.ports_asked = Some(now.mono);
            self.look_at(second_port, About::Ports, now);
        }
    }

    /// A peer did not answer. If new destinations see us elsewhere, it has asked at the wrong place.
    pub(super) fn look_afresh(&mut self, now: Now) {
        let waits = self.outside.looked.is_some_and(|at| now.mono.saturating_duration_since(at) < LOOK_AGAIN_AFTER);
        let translated = self.relays.reflexive().iter().any(|seen| seen.is_ipv4() && !self.hosts.contains(seen));
        // Where every destination sees another port, one of them says nothing of the next.
        let symmetric = self.relays.nat_report().behaviour.mapping.is_symmetric();
        let Some(place) = self.outside.unspoken.filter(|_| !waits && translated && !symmetric) else { return };
        self.outside.looked = Some(now.mono);
        self.look_at(place, About::NewDestinations, now);
    }

    fn look_at(&mut self, place: SocketAddr, about: About, now: Now) {
        let id = TransactionId(self.random.bytes());
        self.outside.look = Some(Look { place, about, id, since: now.mono, asked: 0 });
        self.drive_look(now);
    }

    fn drive_look(&mut self, now: Now) {
        let Some(look) = &mut self.outside.look else { return };
        let due = LOOK_AT.iter().skip(look.asked).take_while(|offset| look.since + **offset <= now.mono).count();
        if due > 0 {
            look.asked += due;
            let question = PlainRequest { id: look.id, answer_from: AnswerFrom::SameAddress, answer_at: None };
            self.out.push_back(from_main(look.place, question.encode()));
        }
    }

    /// A STUN message that came to the main socket. `true` if it was for one of these.
    pub(super) fn on_outside_answer(&mut self, from: DirectPath, datagram: &[u8], now: Now) -> bool {
        if let Filter::Running(probe) = &mut self.outside.filter {
            let relay = probe.relay();
            if let Some(progress) = probe.handle(now.mono, from, datagram) {
                self.filtered(relay, progress, now);
                return true;
            }
        }
        let Some(look) = &self.outside.look else { return false };
        let Some(answer) = PlainResponse::decode(datagram).ok().filter(|answer| answer.id == look.id) else {
            return false;
        };
        let (place, about) = (look.place, look.about);
        self.outside.look = None;
        let seen = canonical(answer.mapped);
        match about {
            About::Ports => {
                self.relays.observe_second_port(place, seen);
                self.settle_relays(now);
            }
            About::NewDestinations if !self.relays.reflexive().contains(&seen) => {
                debug!("new destinations see another port than relays do");
                self.outside.moved = Some((seen, now.mono));
                self.candidates_changed(now);
            }
            About::NewDestinations => {}
        }
        true
    }
}

fn from_main(to: SocketAddr, bytes: Vec<u8>) -> CheckTransmit {
    CheckTransmit { link: Link::Main, to, hop_limit: None, bytes }
}
