//! Measures whom our NAT, or a firewall without one, lets in (RFC 5780 section 4.4).
//!
//! A relay with two addresses is asked to answer once from its other address and once from its other port. What comes
//! through says what the filter looks at. Silence counts only if the same relay answered an ordinary question asked
//! beside it, since packets get lost. The relay's other places are never sent to, or they would be let in for that.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::FilterOutcome;
use crate::path::DirectPath;
use crate::stun::{AnswerFrom, PlainRequest, PlainResponse, TransactionId};

/// When each question of a step is asked, after the step began; RFC 5780 leaves the number to the client.
const ASK_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(900)];
/// A step ends then: a second for the last answer.
const PATIENCE: Duration = Duration::from_millis(1900);

/// What became of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// It goes on.
    Running,
    /// The relay has no second address.
    OneAddress,
    /// The relay did not answer; nothing can be said.
    Unanswered,
    /// What each of the two tests gave.
    Measured {
        /// An answer from another address and port.
        other_address: FilterOutcome,
        /// An answer from another port of the relay's address.
        other_port: FilterOutcome,
        /// The relay's second address, with its second port, as it says.
        other: SocketAddr,
    },
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Has it a second address?
    Asking,
    /// It is `other`; what has come until now.
    Testing { other: SocketAddr, plain: bool, other_address: bool, other_port: bool },
}

/// One measurement with one relay, from the main socket.
#[derive(Clone, Debug)]
pub struct FilterProbe {
    relay: SocketAddr,
    /// Of the first question, of the one beside the tests, and of the two tests.
    ids: [TransactionId; 4],
    step: Step,
    since: Instant,
    asked: usize,
}

impl FilterProbe {
    /// With the relay at this address. `ids` must be random.
    pub fn new(now: Instant, relay: SocketAddr, ids: [TransactionId; 4]) -> Self {
        Self { relay, ids, step: Step::Asking, since: now, asked: 0 }
    }

    /// Which relay it is with.
    pub fn relay(&self) -> SocketAddr {
        self.relay
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.since + ASK_AT.get(self.asked).copied().unwrap_or(PATIENCE)
    }

    /// What to send to the relay at `now`, and how far it is.
    pub fn handle_timeout(&mut self, now: Instant) -> (Vec<Vec<u8>>, Filtered) {
        if now >= self.since + PATIENCE {
            return (Vec::new(), self.verdict());
        }
        let due = ASK_AT.iter().skip(self.asked).take_while(|offset| self.since + **offset <= now).count();
        self.asked += due;
        (if due == 0 { Vec::new() } else { self.questions() }, Filtered::Running)
    }

    /// A STUN message that came to the main socket; `None` if it was not for this.
    pub fn handle(&mut self, now: Instant, from: DirectPath, datagram: &[u8]) -> Option<Filtered> {
        let response = PlainResponse::decode(datagram).ok()?;
        let number = self.ids.iter().position(|id| *id == response.id)?;
        let (relay, from) = (self.relay, from.remote);
        match &mut self.step {
            Step::Asking if number == 0 && from == relay => match response.other {
                None => return Some(Filtered::OneAddress),
                Some(other) => {
                    self.step = Step::Testing { other, plain: false, other_address: false, other_port: false };
                    (self.since, self.asked) = (now, 0);
                }
            },
            Step::Testing { plain, .. } if number == 1 && from == relay => *plain = true,
            Step::Testing { other_address, .. } if number == 2 && from.ip() != relay.ip() => *other_address = true,
            Step::Testing { other_port, .. } if number == 3 && from.ip() == relay.ip() && from != relay => {
                *other_port = true;
            }
            Step::Asking | Step::Testing { .. } => {}
        }
        let complete = matches!(self.step, Step::Testing { other_address: true, other_port: true, .. });
        Some(if complete { self.verdict() } else { Filtered::Running })
    }

    fn questions(&self) -> Vec<Vec<u8>> {
        let question =
            |number: usize, answer_from| PlainRequest { id: self.ids[number], answer_from, answer_at: None }.encode();
        match self.step {
            Step::Asking => vec![question(0, AnswerFrom::SameAddress)],
            Step::Testing { .. } => vec![
                question(1, AnswerFrom::SameAddress),
                question(2, AnswerFrom::OtherAddressAndPort),
                question(3, AnswerFrom::OtherPort),
            ],
        }
    }

    fn verdict(&self) -> Filtered {
        let Step::Testing { other, plain, other_address, other_port } = self.step else { return Filtered::Unanswered };
        if !(plain || other_address || other_port) {
            return Filtered::Unanswered;
        }
        let outcome = |came: bool| if came { FilterOutcome::Answered } else { FilterOutcome::Silent };
        Filtered::Measured { other_address: outcome(other_address), other_port: outcome(other_port), other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FilterOutcome::{Answered, Silent};

    const RELAY: ([u8; 4], u16) = ([198, 18, 0, 1], 3478);
    const OTHER: ([u8; 4], u16) = ([198, 18, 0, 2], 3479);

    /// A relay, and a filter before us that lets in what `passes` says; `loses` that many packets of the relay first.
    fn measure(other: Option<SocketAddr>, loses: usize, passes: impl Fn(SocketAddr) -> bool) -> (Filtered, usize) {
        let mut now = Instant::now();
        let relay = SocketAddr::from(RELAY);
        let mut probe = FilterProbe::new(now, relay, [1, 2, 3, 4].map(|n| TransactionId([n; 12])));
        let (mut sent, mut lost) = (0, 0);
        loop {
            let (questions, mut progress) = probe.handle_timeout(now);
            for question in questions {
                sent += 1;
                let request = PlainRequest::decode(&question).expect("our own");
                let from = match (request.answer_from, other) {
                    (AnswerFrom::SameAddress, _) => relay,
                    (AnswerFrom::OtherPort, Some(other)) => SocketAddr::new(relay.ip(), other.port()),
                    (AnswerFrom::OtherAddressAndPort, Some(other)) => other,
                    (_, None) => panic!("asked of a relay that has no other address"),
                };
                lost += 1;
                if lost > loses && passes(from) && progress == Filtered::Running {
                    let answer = PlainResponse { id: request.id, mapped: relay, other }.encode();
                    progress = probe.handle(now, DirectPath::main(from), &answer).expect("taken");
                }
            }
            if progress != Filtered::Running {
                return (progress, sent);
            }
            now = now.max(probe.poll_timeout());
        }
    }

    #[test]
    fn what_is_let_in_tells_the_filter() {
        let (relay, other) = (SocketAddr::from(RELAY), SocketAddr::from(OTHER));
        for (name, passes, expected) in [
            ("everybody", (|_| true) as fn(SocketAddr) -> bool, (Answered, Answered)),
            ("one address", |from| from.ip() == SocketAddr::from(RELAY).ip(), (Silent, Answered)),
            ("one address and port", |from| from == SocketAddr::from(RELAY), (Silent, Silent)),
        ] {
            let (progress, sent) = measure(Some(other), 0, passes);
            let (other_address, other_port) = expected;
            assert_eq!(progress, Filtered::Measured { other_address, other_port, other }, "{name}");
            assert!(sent <= 10, "{name}: {sent} packets to {relay}");
        }
    }

    #[test]
    fn a_relay_with_one_address_is_asked_once() {
        assert_eq!(measure(None, 0, |_| true), (Filtered::OneAddress, 1));
    }

    #[test]
    fn a_lost_answer_is_no_filter() {
        let other = SocketAddr::from(OTHER);
        let open = Filtered::Measured { other_address: Answered, other_port: Answered, other };
        assert_eq!(measure(Some(other), 2, |_| true).0, open);
    }

    #[test]
    fn a_relay_that_falls_silent_says_nothing() {
        assert_eq!(measure(Some(SocketAddr::from(OTHER)), usize::MAX, |_| true).0, Filtered::Unanswered);
    }

    #[test]
    fn answers_from_the_wrong_place_do_not_count() {
        let now = Instant::now();
        let relay = SocketAddr::from(RELAY);
        let mut probe = FilterProbe::new(now, relay, [1, 2, 3, 4].map(|n| TransactionId([n; 12])));
        let answer = |n: u8| PlainResponse { id: TransactionId([n; 12]), mapped: relay, other: Some(OTHER.into()) };
        probe.handle(now, DirectPath::main(relay), &answer(1).encode());
        for n in 2..=4 {
            // The relay does not know CHANGE-REQUEST: it answers from where it was asked.
            probe.handle(now, DirectPath::main(relay), &answer(n).encode());
        }
        let (_, verdict) = probe.handle_timeout(now + PATIENCE);
        let silent = Filtered::Measured { other_address: Silent, other_port: Silent, other: OTHER.into() };
        assert_eq!(verdict, silent);
        assert_eq!(probe.handle(now, DirectPath::main(relay), &answer(9).encode()), None, "not our question");
    }
}
