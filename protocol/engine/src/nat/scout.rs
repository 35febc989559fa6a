//! Measures how a symmetric NAT hands out ports, just before they matter.
//!
//! Three fresh sockets ask one relay endpoint, in order, where it sees them. A NAT that keeps ports shows each socket's
//! own; one that counts shows three ports a small step apart, and its next mapping lies one step behind the last; from
//! one that draws them nothing can be told. Fresh, because a count goes on with every connection of the whole network
//! behind that NAT (RFC 5128 section 3.6 asks for the same).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::path::{DirectPath, ExtraSocket, Link};
use crate::stun::{AnswerFrom, PlainRequest, PlainResponse, TransactionId, canonical};

/// Sockets that ask. With two, one connection of somebody else between them would be the measured step.
pub const SCOUTS: usize = 3;
/// When each asks, after the sockets are open; no answer for [`PATIENCE`] means no measurement.
const ASK_AT: [Duration; 3] = [Duration::ZERO, Duration::from_millis(150), Duration::from_millis(350)];
/// From the wish for sockets to giving up. Offers to peers wait for it, so it is short.
pub const PATIENCE: Duration = Duration::from_millis(700);
/// Largest step that counts as one. Three random ports lie this close together once in millions of measurements.
const MAX_STEP: i32 = 16;
/// How many ports are offered: as many connections of others may come between measurement and punch, less one.
const WINDOW: i32 = 8;
/// The lowest port that NATs hand out.
const FIRST_PORT: i32 = 1024;

/// How a NAT picks the port of a new mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The socket's own, where it is free.
    Preserving,
    /// The next one, `step` behind the last.
    Sequential {
        /// Signed distance between two neighbours.
        step: i32,
        /// The last one handed out, with the outside address.
        last: SocketAddr,
    },
    /// Any.
    Random,
}

impl Allocation {
    /// Where packets to new destinations will probably come from, likeliest first.
    pub fn predictions(self) -> Vec<SocketAddr> {
        match self {
            Self::Preserving | Self::Random => Vec::new(),
            Self::Sequential { step, last } => {
                let span = i32::from(u16::MAX) + 1 - FIRST_PORT;
                let nth = |n: i32| FIRST_PORT + (i32::from(last.port()) - FIRST_PORT + n * step).rem_euclid(span);
                (1..=WINDOW).filter_map(|n| Some(SocketAddr::new(last.ip(), u16::try_from(nth(n)).ok()?))).collect()
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Asker {
    link: Link,
    local_port: u16,
    id: TransactionId,
    seen: Option<SocketAddr>,
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Scout {
    relay: SocketAddr,
    askers: Vec<Asker>,
    opened: Instant,
    asked: usize,
}

impl Scout {
    /// The sockets are open, with these local ports; `relay` answers plain Binding requests. `ids` must be random.
    pub fn new(
        now: Instant,
        relay: SocketAddr,
        sockets: &[(ExtraSocket, u16)],
        mut ids: impl FnMut() -> TransactionId,
    ) -> Self {
        let asker = |(socket, local_port): &(ExtraSocket, u16)| Asker {
            link: Link::Extra(*socket),
            local_port: *local_port,
            id: ids(),
            seen: None,
        };
        Self { relay, askers: sockets.iter().take(SCOUTS).map(asker).collect(), opened: now, asked: 0 }
    }

    /// What to send at `now`, if anything.
    pub fn requests(&mut self, now: Instant) -> Vec<(DirectPath, Vec<u8>)> {
        let due = ASK_AT.iter().skip(self.asked).take_while(|offset| self.opened + **offset <= now).count();
        if due == 0 {
            return Vec::new();
        }
        self.asked += due;
        let request = |asker: &Asker| {
            let path = DirectPath { link: asker.link, remote: self.relay };
            (path, PlainRequest { id: asker.id, answer_from: AnswerFrom::SameAddress, answer_at: None }.encode())
        };
        self.askers.iter().filter(|asker| asker.seen.is_none()).map(request).collect()
    }

    /// When [`Self::requests`] has something next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        ASK_AT.get(self.asked).map(|offset| self.opened + *offset)
    }

    /// A datagram for one of the sockets. `true` if it was an answer.
    pub fn handle(&mut self, from: DirectPath, datagram: &[u8]) -> bool {
        let Ok(response) = PlainResponse::decode(datagram) else { return false };
        let relay = self.relay;
        let wanted = |asker: &&mut Asker| asker.link == from.link && asker.id == response.id && from.remote == relay;
        let Some(asker) = self.askers.iter_mut().find(wanted) else { return false };
        asker.seen.get_or_insert(canonical(response.mapped));
        true
    }

    /// The verdict, once everybody has an answer.
    pub fn verdict(&self) -> Option<Allocation> {
        let seen: Option<Vec<(u16, SocketAddr)>> =
            self.askers.iter().map(|asker| Some((asker.local_port, asker.seen?))).collect();
        let seen = seen.filter(|seen| seen.len() >= 2)?;
        if seen.iter().all(|(local, mapped)| *local == mapped.port()) {
            return Some(Allocation::Preserving);
        }
        let one_address = seen.iter().all(|(_, mapped)| mapped.ip() == seen[0].1.ip());
        let steps: Vec<i32> =
            seen.windows(2).map(|pair| i32::from(pair[1].1.port()) - i32::from(pair[0].1.port())).collect();
        let same_way = steps.iter().all(|step| step.signum() == steps[0].signum() && *step != 0);
        let small = steps.iter().all(|step| step.abs() <= MAX_STEP);
        // Connections of others only make a step longer, so the shortest is the NAT's own.
        let step = steps.iter().copied().min_by_key(|step| step.abs())?;
        Some(match (one_address && same_way && small, seen.last()) {
            (true, Some((_, last))) => Allocation::Sequential { step, last: *last },
            (_, _) => Allocation::Random,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::is_stun;

    #[test]
    fn a_counting_nat_is_predicted() {
        let verdict = measure([40_000, 40_001, 40_002]);
        let Some(allocation @ Allocation::Sequential { step: 1, .. }) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(allocation.predictions()[..3], [outside(40_003), outside(40_004), outside(40_005)]);
    }

    #[test]
    fn somebody_elses_connection_in_between_does_not_change_the_step() {
        assert_eq!(measure([40_000, 40_004, 40_006]), Some(Allocation::Sequential { step: 2, last: outside(40_006) }));
    }

    #[test]
    fn a_count_downwards_and_round_the_end_is_followed() {
        let Some(allocation) = measure([1_028, 1_026, 1_024]) else { panic!("no verdict") };
        assert_eq!(allocation.predictions()[..2], [outside(65_534), outside(65_532)]);
    }

    #[test]
    fn kept_and_drawn_ports_are_told_apart() {
        assert_eq!(measure([7_001, 7_002, 7_003]), Some(Allocation::Preserving), "the sockets' own");
        assert_eq!(measure([40_000, 51_234, 40_001]), Some(Allocation::Random));
        assert_eq!(measure([40_000, 40_001, 40_500]), Some(Allocation::Random));
    }

    #[test]
    fn only_the_relay_that_was_asked_answers_and_each_socket_only_for_itself() {
        let now = Instant::now();
        let mut scout = scout(now);
        let requests = scout.requests(now);
        let answer = |n: usize, port| answer_to(&requests[n].1, port);
        let stranger = DirectPath { remote: outside(9), ..requests[0].0 };
        assert!(!scout.handle(stranger, &answer(0, 1)));
        assert!(!scout.handle(requests[1].0, &answer(0, 1)), "by another socket");
        assert!(scout.handle(requests[0].0, &answer(0, 5_000)));
        assert!(scout.handle(requests[1].0, &answer(1, 5_001)));
        assert_eq!(scout.verdict(), None, "one is missing");
        let again = scout.requests(now + Duration::from_millis(150));
        assert_eq!(again.len(), 1, "only the one without an answer asks again");
    }

    fn measure(ports: [u16; 3]) -> Option<Allocation> {
        let now = Instant::now();
        let mut scout = scout(now);
        for ((path, request), port) in scout.requests(now).into_iter().zip(ports) {
            assert!(is_stun(&request) && scout.handle(path, &answer_to(&request, port)));
        }
        scout.verdict()
    }

    fn scout(now: Instant) -> Scout {
        let sockets = [7_001, 7_002, 7_003].map(|port| (ExtraSocket(port.into()), port));
        let mut ids = 0;
        Scout::new(now, outside(3478), &sockets, || {
            ids += 1;
            TransactionId([ids; 12])
        })
    }

    fn answer_to(request: &[u8], port: u16) -> Vec<u8> {
        let id = PlainRequest::decode(request).expect("our own request").id;
        PlainResponse { id, mapped: outside(port), other: None }.encode()
    }

    fn outside(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, 1], port))
    }
}
