//! The path agent under a script of its peer, of the network and of strangers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use peerage_engine::nat::NatType;
use peerage_engine::path::{DirectPath, ExtraSocket, Hop, Link, PathAgent, PathConfig, PathEvent, PathMode};
use peerage_engine::stun::{Check, CheckKeys, CheckRequest, CheckResponse, Role, TransactionId, canonical, is_stun};
use peerage_model::control::{BirthdayStep, Candidate, CandidateKind};

use crate::feed::Feed;
use crate::wire::check_keys;

/// Most checks that one input may cause at once: an answer, and a check of each address that is known.
const MAX_BURST: usize = 64;

struct Script {
    agent: PathAgent,
    peer: CheckKeys,
    now: Instant,
    sequence: u64,
    /// The newest checks that the agent sent, and where to.
    asked: Vec<(DirectPath, TransactionId)>,
    mode: PathMode,
}

/// A script of one session. The agent sends checks in bounded numbers, never to where no candidate may be and never
/// under RelayOnly; it moves only to addresses that answered; and its timer never stands still.
pub fn path_agent(data: &[u8]) {
    let mut feed = Feed::new(data);
    let now = Instant::now(); // an arbitrary origin; the script's time is counted from it
    let role = if feed.one_in(2) { Role::Initiator } else { Role::Responder };
    let other = if role == Role::Initiator { Role::Responder } else { Role::Initiator };
    let config = PathConfig {
        role,
        mode: PathMode::Auto,
        share_private: feed.one_in(2),
        keepalive: Duration::from_secs(15),
        birthday: feed.one_in(2),
    };
    let mut script = Script {
        agent: PathAgent::new(now, config, check_keys(role), &[5; 32]),
        peer: check_keys(other),
        now,
        sequence: 0,
        asked: Vec::new(),
        mode: PathMode::Auto,
    };
    script.agent.on_tunnel_heard(now, Hop::Relayed, Some(Duration::from_millis(40)));
    for _ in 0..96 {
        if feed.is_empty() {
            return;
        }
        script.step(&mut feed);
        script.drain();
    }
}

impl Script {
    fn step(&mut self, feed: &mut Feed<'_>) {
        let now = self.now;
        match feed.u8() % 13 {
            0 => self.pass(Duration::from_millis(u64::from(feed.u16()) + 1)),
            1 => self.agent.local_candidates_changed(now, candidates(feed)),
            2 => drop(self.agent.remote_candidates(now, feed.u8().into(), candidates(feed))),
            3 => {
                let from = feed.address();
                let _ = self.agent.handle_check(now, link(feed), from, feed.bytes(120));
            }
            4 => self.request(feed),
            5 => self.answer(feed),
            6 => {
                let mode = [PathMode::Auto, PathMode::RelayOnly, PathMode::DirectOnly][feed.below(3)];
                self.mode = mode;
                self.agent.set_mode(now, mode);
            }
            7 => {
                let rtt = Some(feed.u8()).filter(|ms| *ms != 0).map(|ms| Duration::from_millis(ms.into()));
                self.agent.on_tunnel_heard(now, hop(feed), rtt);
            }
            8 => {
                let route = self.agent.route(now);
                self.agent.on_tunnel_sent(now, route.primary, feed.one_in(2));
            }
            9 => {
                let nats = [NatType::Symmetric, NatType::PortRestrictedCone, NatType::Cone, NatType::Unknown];
                self.agent.local_nat(nats[feed.below(4)], feed.one_in(2));
                self.agent.remote_nat(Some(nats[feed.below(4)]));
                self.agent.peer_allows_birthday(now, feed.one_in(2));
                self.agent.allow_birthday(now, feed.one_in(2));
            }
            10 => {
                let step = if feed.one_in(2) { BirthdayStep::Ready } else { BirthdayStep::Probed };
                self.agent.on_birthday(now, step);
                self.agent
                    .birthday_sockets(now, (0..feed.below(40)).map(|n| ExtraSocket(u32::from(n as u16))).collect());
            }
            11 => self.agent.on_opened(now, feed.u8().into()),
            _ => self.pass(Duration::from_secs(u64::from(feed.u8()))),
        }
    }

    /// Time passes up to the last timeout that falls into it; each is handled when it is due.
    fn pass(&mut self, by: Duration) {
        let end = self.now + by;
        let mut standing = 0;
        while let Some(at) = self.agent.poll_timeout().filter(|at| *at <= end) {
            standing = if at > self.now { 0 } else { standing + 1 };
            assert!(standing < MAX_BURST, "the timer stands still");
            self.now = self.now.max(at);
            self.agent.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
        self.agent.handle_timeout(end);
    }

    fn request(&mut self, feed: &mut Feed<'_>) {
        self.sequence += u64::from(feed.u8() % 4);
        let (priority, in_use) = (u32::from(feed.u8()), feed.one_in(2));
        let id = if feed.one_in(8) { TransactionId(feed.array()) } else { self.peer.transaction_id(feed.array()) };
        let request = Check::Request(CheckRequest { id, priority, sequence: self.sequence, in_use });
        let mut bytes = request.encode(&self.peer);
        let (from, changed) = (feed.address(), feed.mutate(&mut bytes));
        let taken = self.agent.handle_check(self.now, link(feed), from, &bytes).is_ok();
        assert!(!(taken && changed), "a changed request is taken");
    }

    fn answer(&mut self, feed: &mut Feed<'_>) {
        let Some((path, id)) = self.asked.get(feed.below(self.asked.len())).copied() else { return };
        let mut bytes = Check::Response(CheckResponse { id, mapped: canonical(feed.address()) }).encode(&self.peer);
        let from = if feed.one_in(4) { direct(feed) } else { path };
        feed.mutate(&mut bytes);
        let answered = self.agent.handle_check(self.now, from.link, from.remote, &bytes).is_ok();
        assert!(!answered || from == path, "an answer counts for the socket and the address that were asked");
    }

    fn drain(&mut self) {
        let mut sent = 0;
        while let Some(check) = self.agent.poll_transmit() {
            sent += 1;
            assert!(sent <= MAX_BURST, "a burst of checks");
            assert!(is_stun(&check.bytes) && check.bytes.len() <= 88);
            assert!(may_be_sent_to(check.to), "a check to {}", check.to);
            if let Ok(Check::Request(request)) = Check::decode(&check.bytes, &self.peer) {
                assert_ne!(self.mode, PathMode::RelayOnly, "a check against the policy");
                self.asked.push((DirectPath { link: check.link, remote: check.to }, request.id));
            }
        }
        self.asked.drain(..self.asked.len().saturating_sub(32));
        while let Some(event) = self.agent.poll_event() {
            if let PathEvent::Changed { to: Hop::Direct(to), .. } = event {
                assert!(may_be_sent_to(to.remote), "a move to {to:?}");
                assert_ne!(self.mode, PathMode::RelayOnly, "a move against the policy");
            }
        }
        let route = self.agent.route(self.now);
        assert!(route.duplicate != Some(route.primary), "sent twice to one address");
        let _ = (self.agent.kind(), self.agent.why_not_better(), self.agent.rtt(), self.agent.carries_data());
    }
}

fn candidates(feed: &mut Feed<'_>) -> Vec<Candidate> {
    let kinds = [CandidateKind::Host, CandidateKind::Fixed, CandidateKind::ServerReflexive, CandidateKind::Predicted];
    (0..feed.below(24)).map(|_| Candidate { kind: kinds[feed.below(4)], address: feed.address() }).collect()
}

fn hop(feed: &mut Feed<'_>) -> Hop {
    match feed.u8() % 2 {
        0 => Hop::Relayed,
        _ => Hop::Direct(direct(feed)),
    }
}

fn direct(feed: &mut Feed<'_>) -> DirectPath {
    DirectPath { link: link(feed), remote: canonical(feed.address()) }
}

fn link(feed: &mut Feed<'_>) -> Link {
    match feed.below(4) {
        0 => Link::Extra(ExtraSocket(feed.u8().into())),
        _ => Link::Main,
    }
}

/// By the words of docs/spec/paths.md: not our host, not our link, not many hosts at once.
fn may_be_sent_to(address: SocketAddr) -> bool {
    let never = match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified(),
    };
    !never && address.port() != 0
}
