//! The client against a relay that is played by hand from the codec, so that it can also lie.

use peerage_model::RoutingId;
use peerage_model::relay::frame::keys::{BootKey, MacKey, Opening};
use peerage_model::relay::frame::mailbox::{self, MailId, NameKey, SEALED};
use peerage_model::relay::frame::{COOKIE, HELLO, MAX_BIND, MOVE, VISIT};
use zeroize::Zeroizing;

use super::*;

const CREDENTIAL: &[u8] = b"opaque to the client";
const OBSERVED: &str = "192.0.2.7:4000";
const ENDPOINT_TAG: Tag = Tag([0x77; 6]);

/// The relay's side of one client.
struct Relay {
    key: AgreementSecret,
    boot: BootKey,
    session: Option<MacKey>,
}

impl Relay {
    fn new(boot: u8) -> Self {
        let key = AgreementSecret::from_bytes([5; 32]);
        Self { key, boot: BootKey::new(&Zeroizing::new([boot; 32])), session: None }
    }

    fn cookie(&self, tag: Tag) -> [u8; COOKIE] {
        frame::cookie(tag, Cookie([1; 16]), self.boot.boot())
    }

    fn grant(&self) -> Grant {
        Grant { tag: ENDPOINT_TAG, lifetime: 90, observed: OBSERVED.parse().expect("an address") }
    }

    /// Opens a BIND as a relay does, and answers BOUND.
    fn bound(&mut self, bind: &[u8]) -> Vec<u8> {
        let Ok((tag, Frame::Bind { cookie, e, sealed, .. })) = Frame::parse(bind) else { panic!("BIND") };
        let relay = self.key.public();
        let opening = Opening::new(self.key.agree(&e).expect("good keys"), &relay, &e, cookie);
        let mut buffer = [0; MAX_BIND];
        assert_eq!(opening.open(bind, sealed, &mut buffer), Some(CREDENTIAL));
        let instance = instance().public();
        let session = opening.session(&self.key.agree(&instance).expect("good keys"), &instance);
        assert!(session.verifies(bind));
        let answer = frame::bound(tag, &self.grant(), |body| session.mac(body));
        self.session = Some(session);
        answer.to_vec()
    }

    fn records(&self, nonce: [u8; 8], e: &AgreementKey, records: &[&[u8]]) -> Vec<u8> {
        let key = mailbox::answer_key(&self.key.agree(e).expect("good keys"), &self.key.public(), e);
        mailbox::records(ENDPOINT_TAG, nonce, records.iter().copied(), |body| key.mac(body))
    }

    fn refused(&self, bind: &[u8], reason: Refusal) -> Vec<u8> {
        let Ok((tag, Frame::Bind { cookie, e, .. })) = Frame::parse(bind) else { panic!("BIND") };
        let relay = self.key.public();
        let key = Opening::new(self.key.agree(&e).expect("good keys"), &relay, &e, cookie).refusal();
        frame::refused(tag, reason, |body| key.mac(body)).to_vec()
    }
}

fn flags(draining: bool, mail: bool) -> AliveFlags {
    AliveFlags { draining, mail, others: false }
}

fn instance() -> AgreementSecret {
    AgreementSecret::from_bytes([6; 32])
}

fn binder(relay: &Relay, now: Instant) -> RelayClient {
    let role = Role::Bind { secret: instance(), credential: CREDENTIAL.to_vec() };
    RelayClient::new(ClientConfig::new(relay.key.public(), role), [9; 32], now)
}

fn visitor(relay: &Relay, now: Instant) -> RelayClient {
    RelayClient::new(ClientConfig::new(relay.key.public(), Role::Visit), [9; 32], now)
}

fn tag_of(frame: &[u8]) -> Tag {
    Frame::parse(frame).expect("it is a frame").0
}

fn sent(client: &mut RelayClient) -> Vec<u8> {
    client.poll_transmit().expect("something is sent")
}

/// Past HELLO, COOKIE, BIND and BOUND.
fn bind_it(relay: &mut Relay, client: &mut RelayClient, now: Instant) {
    let hello = sent(client);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let bound = relay.bound(&sent(client));
    client.handle_datagram(now, &bound);
    let observed = OBSERVED.parse().expect("an address");
    assert_eq!(client.poll_event(), Some(RelayEvent::Ready { observed }));
    asked_who_else(client);
}

/// Takes the question that is asked as soon as the relay knows an agent; gives its nonce.
fn asked_who_else(client: &mut RelayClient) -> [u8; 8] {
    let asked = sent(client);
    let Ok((ENDPOINT_TAG, Frame::WhoElse { nonce })) = Frame::parse(&asked) else { panic!("WHO_ELSE: {asked:?}") };
    nonce
}

fn bound_pair() -> (Relay, RelayClient, Instant) {
    let now = Instant::now();
    let mut relay = Relay::new(1);
    let mut client = binder(&relay, now);
    bind_it(&mut relay, &mut client, now);
    (relay, client, now)
}

/// Runs the client's timers until `end`; gives what it sent.
fn run(client: &mut RelayClient, end: Instant) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while let Some(at) = client.poll_timeout().filter(|at| *at <= end) {
        client.handle_timeout(at);
        out.extend(std::iter::from_fn(|| client.poll_transmit()));
    }
    out
}

#[test]
fn it_binds_in_two_round_trips() {
    let (_, mut client, now) = bound_pair();
    let mut out = Vec::new();
    assert!(client.wrap(now, Destination::Endpoint(EndpointId([1; 8])), &[0x40; 10], None, &mut out).is_some());
}

#[test]
fn a_visitor_asks_for_an_id_and_keeps_it_when_its_address_changes() {
    let now = Instant::now();
    let relay = Relay::new(1);
    let mut client = visitor(&relay, now);
    let hello = sent(&mut client);
    assert_eq!(hello.len(), HELLO);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let visit = sent(&mut client);
    assert_eq!(visit.len(), VISIT);
    let id = EndpointId([3; 8]);
    client.handle_datagram(now, &frame::visiting(tag_of(&visit), &relay.grant(), id));
    client.handle_datagram(now, &relay.cookie(ENDPOINT_TAG));
    let again = sent(&mut client);
    let Ok((_, Frame::Visit { earlier, .. })) = Frame::parse(&again) else { panic!("VISIT") };
    assert_eq!(earlier, Some((id, ENDPOINT_TAG)));
}

#[test]
fn an_answer_that_nobody_asked_for_is_ignored() {
    let now = Instant::now();
    let relay = Relay::new(1);
    let mut client = binder(&relay, now);
    sent(&mut client);
    client.handle_datagram(now, &relay.cookie(Tag([0; 6])));
    assert_eq!(client.poll_transmit(), None, "a COOKIE under another tag");
    client.handle_datagram(now, &frame::bound(Tag([0; 6]), &relay.grant(), |_| [0; 16]));
    assert_eq!(client.poll_event(), None, "a BOUND before BIND");
}

#[test]
fn a_forged_bound_does_not_bind_and_the_true_one_still_does() {
    let now = Instant::now();
    let mut relay = Relay::new(1);
    let mut client = binder(&relay, now);
    let hello = sent(&mut client);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let bind = sent(&mut client);
    client.handle_datagram(now, &frame::bound(tag_of(&bind), &relay.grant(), |_| [0; 16]));
    assert_eq!(client.poll_event(), None);
    let bound = relay.bound(&bind);
    client.handle_datagram(now, &bound);
    assert!(matches!(client.poll_event(), Some(RelayEvent::Ready { .. })));
}

#[test]
fn a_challenge_by_the_same_run_of_a_relay_is_answered_by_move() {
    let (relay, mut client, now) = bound_pair();
    client.handle_datagram(now, &relay.cookie(ENDPOINT_TAG));
    let moved = sent(&mut client);
    assert_eq!(moved.len(), MOVE);
    assert!(relay.session.as_ref().expect("bound").verifies(&moved));
}

#[test]
fn each_move_has_a_higher_counter() {
    let (relay, mut client, now) = bound_pair();
    let mut counters = Vec::new();
    for _ in 0..3 {
        client.handle_datagram(now, &relay.cookie(ENDPOINT_TAG));
        let moved = sent(&mut client);
        let Ok((tag, Frame::Move { counter, .. })) = Frame::parse(&moved) else { panic!("MOVE") };
        counters.push(counter);
        let session = relay.session.as_ref().expect("bound");
        client.handle_datagram(now, &frame::bound(tag, &relay.grant(), |body| session.mac(body)));
        asked_who_else(&mut client);
    }
    assert_eq!(counters, [1, 2, 3]);
}

#[test]
fn a_challenge_by_a_relay_that_restarted_is_answered_by_bind() {
    let (_, mut client, now) = bound_pair();
    let restarted = Relay::new(2);
    client.handle_datagram(now, &restarted.cookie(ENDPOINT_TAG));
    let bind = sent(&mut client);
    assert!(matches!(Frame::parse(&bind), Ok((_, Frame::Bind { .. }))));
}

#[test]
fn no_two_binds_use_the_same_key() {
    let (mut relay, mut client, now) = bound_pair();
    let mut seen = Vec::new();
    for _ in 0..3 {
        client.renew(CREDENTIAL.to_vec(), now);
        let hello = sent(&mut client);
        client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
        let bind = sent(&mut client);
        let Ok((_, Frame::Bind { e, .. })) = Frame::parse(&bind) else { panic!("BIND") };
        assert!(!seen.contains(&e));
        seen.push(e);
        let bound = relay.bound(&bind);
        client.handle_datagram(now, &bound);
        asked_who_else(&mut client);
    }
}

#[test]
fn what_was_granted_stays_in_use_while_a_newer_credential_is_bound() {
    let (_, mut client, now) = bound_pair();
    client.renew(CREDENTIAL.to_vec(), now);
    let mut out = Vec::new();
    assert!(client.wrap(now, Destination::Endpoint(EndpointId([1; 8])), &[0x40; 10], None, &mut out).is_some());
}

#[test]
fn a_refusal_is_reported_and_not_asked_again_for_half_a_minute_whatever_the_relay_challenges() {
    let now = Instant::now();
    let relay = Relay::new(1);
    let mut client = binder(&relay, now);
    let hello = sent(&mut client);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let bind = sent(&mut client);
    client.handle_datagram(now, &relay.refused(&bind, Refusal::Authority));
    assert_eq!(client.poll_event(), Some(RelayEvent::Refused(Refusal::Authority)));
    client.handle_datagram(now, &relay.cookie(ENDPOINT_TAG));
    assert!(run(&mut client, now + Duration::from_secs(29)).is_empty());
    assert_eq!(run(&mut client, now + Duration::from_secs(30)).len(), 1, "then HELLO");
}

#[test]
fn a_refused_renewal_does_not_storm_a_relay_that_has_forgotten_us() {
    let (relay, mut client, now) = bound_pair();
    client.renew(CREDENTIAL.to_vec(), now);
    let hello = sent(&mut client);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let bind = sent(&mut client);
    client.handle_datagram(now, &relay.refused(&bind, Refusal::Credential));
    for _ in 0..100 {
        client.handle_datagram(now, &relay.cookie(ENDPOINT_TAG));
    }
    assert_eq!(client.poll_transmit(), None);
}

#[test]
fn a_relay_that_is_there_and_does_not_take_us_has_a_reason_for_people() {
    let now = Instant::now();
    let relay = Relay::new(1);
    let mut client = binder(&relay, now);
    assert_eq!(client.obstacle(), None, "nothing is known yet");
    let hello = sent(&mut client);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let bind = sent(&mut client);
    client.handle_datagram(now, &relay.refused(&bind, Refusal::Credential));
    assert!(client.obstacle().is_some_and(|why| why.contains("clock")), "{:?}", client.obstacle());
}

#[test]
fn an_entry_with_the_wrong_key_is_told_from_a_relay_that_is_down() {
    let now = Instant::now();
    let other = Relay::new(1);
    let (mut client, mut silent) = (binder(&other, now), binder(&other, now));
    let hello = sent(&mut client);
    // Cookies are made for anybody; what is sealed to a key that this relay does not have it cannot answer.
    client.handle_datagram(now, &other.cookie(tag_of(&hello)));
    run(&mut client, now + Duration::from_secs(20));
    assert!(client.obstacle().is_some_and(|why| why.contains("key")), "{:?}", client.obstacle());
    run(&mut silent, now + Duration::from_secs(20));
    assert_eq!(silent.obstacle(), None);
}

#[test]
fn the_round_trip_to_a_relay_is_that_of_its_latest_answer() {
    let (mut relay, mut client, now) = bound_pair();
    assert_eq!(client.rtt(), Some(Duration::ZERO));
    client.renew(CREDENTIAL.to_vec(), now);
    let hello = sent(&mut client);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let bound = relay.bound(&sent(&mut client));
    client.handle_datagram(now + Duration::from_millis(70), &bound);
    assert_eq!(client.rtt(), Some(Duration::from_millis(70)));
}

#[test]
fn a_forged_refusal_is_ignored() {
    let now = Instant::now();
    let relay = Relay::new(1);
    let mut client = binder(&relay, now);
    let hello = sent(&mut client);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let bind = sent(&mut client);
    client.handle_datagram(now, &frame::refused(tag_of(&bind), Refusal::Full, |_| [0; 16]));
    assert_eq!(client.poll_event(), None);
}

#[test]
fn silence_after_bind_leads_back_to_hello_since_the_cookie_may_be_too_old() {
    let now = Instant::now();
    let relay = Relay::new(1);
    let mut client = binder(&relay, now);
    let hello = sent(&mut client);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let bind = sent(&mut client);
    let out = run(&mut client, now + Duration::from_secs(4));
    assert_eq!(out[..3], [bind.clone(), bind.clone(), bind], "the same bytes, so that the relay knows the repeat");
    assert_eq!(out[3].len(), HELLO);
}

#[test]
fn an_idle_binding_is_kept_alive_every_25_seconds() {
    let (_, mut client, start) = bound_pair();
    let mut now = start;
    for _ in 0..3 {
        now += KEEPALIVE;
        let out = run(&mut client, now);
        assert_eq!(out.len(), 1);
        let Ok((tag, Frame::Keepalive { nonce })) = Frame::parse(&out[0]) else { panic!("KEEPALIVE") };
        client.handle_datagram(now, &frame::alive(tag, nonce, 90, flags(false, false)));
    }
    assert_eq!(client.poll_event(), None);
}

#[test]
fn three_keepalives_without_an_answer_mean_that_the_relay_is_lost() {
    let (_, mut client, now) = bound_pair();
    let out = run(&mut client, now + KEEPALIVE + Duration::from_secs(8));
    assert_eq!(client.poll_event(), Some(RelayEvent::Lost));
    let keepalives = out.iter().filter(|frame| matches!(Frame::parse(frame), Ok((_, Frame::Keepalive { .. }))));
    assert_eq!(keepalives.count(), 3);
    assert_eq!(out[3].len(), HELLO, "and it begins anew");
    let mut framed = Vec::new();
    assert_eq!(client.wrap(now, Destination::Endpoint(EndpointId([1; 8])), &[0x40; 10], None, &mut framed), None);
}

#[test]
fn a_draining_relay_is_reported_once_and_only_if_it_is_the_relay() {
    let (relay, mut client, now) = bound_pair();
    client.handle_datagram(now, &frame::drain(ENDPOINT_TAG, 30, |_| [0; 16]));
    assert_eq!(client.poll_event(), None, "forged");
    let session = relay.session.as_ref().expect("bound");
    let drain = frame::drain(ENDPOINT_TAG, 30, |body| session.mac(body));
    client.handle_datagram(now, &drain);
    client.handle_datagram(now, &drain);
    assert_eq!(client.poll_event(), Some(RelayEvent::Draining { grace: Duration::from_secs(30) }));
    assert_eq!(client.poll_event(), None);
}

#[test]
fn a_lost_drain_is_learned_from_the_next_alive() {
    let (_, mut client, now) = bound_pair();
    client.handle_datagram(now, &frame::alive(ENDPOINT_TAG, [0; 8], 90, flags(true, false)));
    assert!(matches!(client.poll_event(), Some(RelayEvent::Draining { .. })));
}

#[test]
fn who_was_told_that_the_relay_goes_away_is_bound_again_seconds_after_it_is_back() {
    let (mut relay, mut client, now) = bound_pair();
    client.handle_datagram(now, &frame::alive(ENDPOINT_TAG, [0; 8], 90, flags(true, false)));
    // Two keepalives go nowhere.
    assert_eq!(run(&mut client, now + Duration::from_millis(2_200)).len(), 2);
    relay.boot = BootKey::new(&Zeroizing::new([2; 32]));
    let later = now + Duration::from_millis(2_999);
    let keepalive = run(&mut client, later).pop().expect("it still looks");
    assert!(matches!(Frame::parse(&keepalive), Ok((ENDPOINT_TAG, Frame::Keepalive { .. }))));
    client.handle_datagram(later, &relay.cookie(ENDPOINT_TAG));
    let bound = relay.bound(&sent(&mut client));
    client.handle_datagram(later, &bound);
    assert!(matches!(client.poll_event(), Some(RelayEvent::Draining { .. })));
    assert!(matches!(client.poll_event(), Some(RelayEvent::Ready { .. })));
    asked_who_else(&mut client);
    assert!(run(&mut client, later + KEEPALIVE - Duration::from_secs(1)).is_empty(), "and then it is in no hurry");
}

#[test]
fn who_leaves_says_so_under_the_sessions_mac_and_nothing_more() {
    let (relay, mut client, now) = bound_pair();
    let unbind = client.leave().expect("it was bound");
    let id = EndpointId::from(InstanceId::of_key(&instance().public()));
    let (tag, frame) = Frame::parse(&unbind).expect("it is a frame");
    assert!(tag == ENDPOINT_TAG && matches!(frame, Frame::Unbind { id: left, .. } if left == id));
    assert!(relay.session.as_ref().expect("bound").verifies(&unbind));
    assert_eq!(client.leave(), None);
    assert!(run(&mut client, now + Duration::from_secs(60)).is_empty());
}

#[test]
fn a_visitor_and_who_is_not_bound_yet_leave_without_a_word() {
    let now = Instant::now();
    let relay = Relay::new(1);
    assert_eq!(binder(&relay, now).leave(), None);
    let mut client = visitor(&relay, now);
    let hello = sent(&mut client);
    client.handle_datagram(now, &relay.cookie(tag_of(&hello)));
    let visit = sent(&mut client);
    client.handle_datagram(now, &frame::visiting(tag_of(&visit), &relay.grant(), EndpointId([3; 8])));
    assert_eq!(client.leave(), None);
}

#[test]
fn a_batch_gets_a_header_before_each_packet() {
    let (_, mut client, now) = bound_pair();
    let destination = Destination::Endpoint(EndpointId([1; 8]));
    let mut out = Vec::new();
    let size = client.wrap(now, destination, &[0x40; 2500], Some(1000), &mut out);
    assert_eq!(size, Some(Some(1016)));
    let lengths: Vec<_> = out
        .chunks(1016)
        .map(|framed| match Frame::parse(framed) {
            Ok((ENDPOINT_TAG, Frame::To { destination: to, packet })) if to == destination => packet.len(),
            other => panic!("TO_ENDPOINT, not {other:?}"),
        })
        .collect();
    assert_eq!(lengths, [1000, 1000, 500]);
}

#[test]
fn a_packet_is_delivered_only_under_our_tag() {
    let (_, mut client, now) = bound_pair();
    let from = EndpointId([4; 8]);
    let framed = |tag| [&frame::from_header(tag, from)[..], &[0x40; 20]].concat();
    assert_eq!(client.handle_datagram(now, &framed(Tag([0; 6]))), None);
    let delivered = client.handle_datagram(now, &framed(ENDPOINT_TAG));
    assert_eq!(delivered, Some(Delivered { from, packet_at: ENDPOINT_HEADER }));
}

#[test]
fn what_only_clients_send_is_ignored_when_it_comes_back() {
    let (_, mut client, now) = bound_pair();
    let own = [
        frame::hello(ENDPOINT_TAG).to_vec(),
        frame::visit(ENDPOINT_TAG, Cookie([1; 16]), None).to_vec(),
        frame::keepalive(ENDPOINT_TAG, [0; 8]).to_vec(),
        frame::moved(ENDPOINT_TAG, Cookie([1; 16]), EndpointId([1; 8]), 9, |_| [0; 16]).to_vec(),
        frame::unbind(ENDPOINT_TAG, EndpointId([1; 8]), |_| [0; 16]).to_vec(),
    ];
    for reflected in own {
        assert_eq!(client.handle_datagram(now, &reflected), None);
        assert_eq!(client.poll_transmit(), None);
        assert_eq!(client.poll_event(), None);
    }
}

/// A public client past BOUND, and the nonce of its first CHECK.
fn public_pair() -> (Relay, RelayClient, Instant) {
    let now = Instant::now();
    let mut relay = Relay::new(1);
    let mut client = binder(&relay, now);
    client.set_public(true);
    bind_it(&mut relay, &mut client, now);
    (relay, client, now)
}

fn checked(client: &mut RelayClient, relay: &Relay) -> ([u8; 8], MailId) {
    let check = sent(client);
    assert!(relay.session.as_ref().expect("bound").verifies(&check), "CHECK is authentic");
    match Frame::parse(&check) {
        Ok((ENDPOINT_TAG, Frame::Check { nonce, done, .. })) => (nonce, done),
        other => panic!("CHECK, not {other:?}"),
    }
}

fn mail(relay: &Relay, nonce: [u8; 8], mail: Option<(MailId, &[u8; SEALED])>) -> Vec<u8> {
    let session = relay.session.as_ref().expect("bound");
    mailbox::mail(ENDPOINT_TAG, nonce, mail, |body| session.mac(body))
}

#[test]
fn a_public_agent_opens_its_mailbox_when_it_is_bound_and_looks_again_after_five_minutes() {
    let (relay, mut client, now) = public_pair();
    let (nonce, done) = checked(&mut client, &relay);
    assert!(done == MailId::NONE && !client.has_mailbox());
    client.handle_datagram(now, &mail(&relay, nonce, None));
    assert!(client.has_mailbox());
    assert_eq!((client.poll_mail(), client.poll_transmit()), (None, None));
    let mut at = now;
    let checks = (0..24).flat_map(|_| {
        at += KEEPALIVE;
        let out = run(&mut client, at);
        for frame in &out {
            if let Ok((tag, Frame::Keepalive { nonce })) = Frame::parse(frame) {
                client.handle_datagram(at, &frame::alive(tag, nonce, 90, flags(false, false)));
            }
            if let Ok((_, Frame::Check { nonce, .. })) = Frame::parse(frame) {
                client.handle_datagram(at, &mail(&relay, nonce, None));
            }
        }
        out
    });
    assert_eq!(checks.filter(|frame| frame[1] == 20).count(), 2, "in ten minutes");
}

#[test]
fn mail_is_handed_out_one_by_one_and_forgotten_by_the_relay_when_it_is_safe() {
    let (relay, mut client, now) = public_pair();
    let (nonce, _) = checked(&mut client, &relay);
    let (first, second) = ((MailId([1; 8]), &[11; SEALED]), (MailId([2; 8]), &[22; SEALED]));
    client.handle_datagram(now, &mail(&relay, nonce, Some(first)));
    assert_eq!(client.poll_mail(), Some(MailEvent::Mail { id: first.0, sealed: Box::new(*first.1) }));
    client.handle_datagram(now, &frame::alive(ENDPOINT_TAG, [0; 8], 90, flags(false, true)));
    assert_eq!(client.poll_transmit(), None, "not before the first is dealt with");
    client.mail_done(first.0, now);
    let (nonce, done) = checked(&mut client, &relay);
    assert_eq!(done, first.0);
    client.handle_datagram(now, &mail(&relay, nonce, Some(second)));
    assert!(matches!(client.poll_mail(), Some(MailEvent::Mail { id, .. }) if id == second.0));
}

#[test]
fn mail_that_nobody_could_deal_with_is_given_out_again_after_five_minutes() {
    let (relay, mut client, now) = public_pair();
    let (nonce, _) = checked(&mut client, &relay);
    let one = (MailId([1; 8]), &[11; SEALED]);
    client.handle_datagram(now, &mail(&relay, nonce, Some(one)));
    assert!(client.poll_mail().is_some());
    let (mut at, mut checks) = (now, Vec::new());
    while checks.is_empty() && at < now + Duration::from_secs(600) {
        at += KEEPALIVE;
        for frame in run(&mut client, at) {
            match Frame::parse(&frame) {
                Ok((tag, Frame::Keepalive { nonce })) => {
                    client.handle_datagram(at, &frame::alive(tag, nonce, 90, flags(false, true)));
                }
                Ok((_, Frame::Check { nonce, done, .. })) => checks.push((nonce, done)),
                _ => {}
            }
        }
    }
    let (nonce, done) = *checks.first().expect("it looks again");
    assert_eq!((at - now, done), (Duration::from_secs(300), MailId::NONE), "and not before, nor as if it were done");
    client.handle_datagram(at, &mail(&relay, nonce, Some(one)));
    assert_eq!(client.poll_mail(), Some(MailEvent::Mail { id: one.0, sealed: Box::new(*one.1) }));
    client.mail_done(one.0, at);
    assert_eq!(checked(&mut client, &relay).1, one.0);
}

#[test]
fn a_word_of_mail_is_followed_at_once() {
    let (relay, mut client, now) = public_pair();
    let (nonce, _) = checked(&mut client, &relay);
    client.handle_datagram(now, &mail(&relay, nonce, None));
    client.handle_datagram(now, &frame::alive(ENDPOINT_TAG, [0; 8], 90, flags(false, true)));
    checked(&mut client, &relay);
}

#[test]
fn a_relay_that_answers_everything_but_the_look_into_the_mailbox_is_bound_at_anew_once() {
    let (mut relay, mut client, now) = public_pair();
    let mut hellos = Vec::new();
    let mut answer = |client: &mut RelayClient, at: Instant| {
        let out: Vec<_> = std::iter::from_fn(|| client.poll_transmit()).collect();
        for frame in out {
            let answer = match Frame::parse(&frame) {
                Ok((_, Frame::Keepalive { nonce })) => {
                    frame::alive(ENDPOINT_TAG, nonce, 90, flags(false, false)).to_vec()
                }
                Ok((tag, Frame::Hello)) => {
                    hellos.push(at - now);
                    relay.cookie(tag).to_vec()
                }
                Ok((_, Frame::Bind { .. })) => relay.bound(&frame),
                _ => continue,
            };
            client.handle_datagram(at, &answer);
        }
    };
    answer(&mut client, now);
    while let Some(at) = client.poll_timeout().filter(|at| *at <= now + Duration::from_secs(1_000)) {
        client.handle_timeout(at);
        answer(&mut client, at);
    }
    assert_eq!(hellos.len(), 1, "{hellos:?}");
    assert!(hellos[0] < Duration::from_secs(10), "as soon as five CHECKs are without an answer: {hellos:?}");
}

#[test]
fn forged_mail_and_an_answer_to_another_question_are_ignored() {
    let (relay, mut client, now) = public_pair();
    let (nonce, _) = checked(&mut client, &relay);
    let one = Some((MailId([1; 8]), &[11; SEALED]));
    client.handle_datagram(now, &mailbox::mail(ENDPOINT_TAG, nonce, one, |_| [0; 16]));
    client.handle_datagram(now, &mail(&relay, [9; 8], one));
    assert_eq!(client.poll_mail(), None);
    client.handle_datagram(now, &mail(&relay, nonce, one));
    assert!(client.poll_mail().is_some(), "the true one still counts");
    client.handle_datagram(now, &mail(&relay, nonce, one));
    assert_eq!(client.poll_mail(), None, "and counts once");
}

#[test]
fn an_agent_that_is_not_public_never_looks() {
    let (_, mut client, now) = bound_pair();
    client.handle_datagram(now, &frame::alive(ENDPOINT_TAG, [0; 8], 90, flags(false, true)));
    assert_eq!(client.poll_transmit(), None);
}

#[test]
fn a_question_is_repeated_until_it_is_answered_and_answered_once() {
    let (relay, mut client, now) = bound_pair();
    client.ask(7, Question::LookUp(NameKey([1; 16])), now);
    let first = sent(&mut client);
    let again = run(&mut client, now + Duration::from_secs(1));
    assert!(again.len() == 2 && again.iter().all(|frame| *frame == first), "the same bytes: {}", again.len());
    let Ok((_, Frame::Lookup { nonce, name: NameKey([1, ..]), e })) = Frame::parse(&first) else { panic!("LOOKUP") };
    client.handle_datagram(now, &mailbox::posted(ENDPOINT_TAG, nonce));
    assert_eq!(client.poll_mail(), None, "the answer to another kind of question");
    let answer = relay.records(nonce, &e, &[&[5; 200], &[6; 100]]);
    client.handle_datagram(now, &answer);
    client.handle_datagram(now, &answer);
    assert_eq!(client.poll_mail(), Some(MailEvent::Found { token: 7, records: vec![vec![5; 200], vec![6; 100]] }));
    assert_eq!(client.poll_mail(), None);
    assert!(run(&mut client, now + Duration::from_secs(20)).is_empty());
}

#[test]
fn an_authority_that_somebody_on_the_way_names_is_not_believed() {
    let (relay, mut client, now) = bound_pair();
    client.ask(7, Question::LookUp(NameKey([1; 16])), now);
    let Ok((_, Frame::Lookup { nonce, e, .. })) = Frame::parse(&sent(&mut client)) else { panic!("LOOKUP") };
    client.handle_datagram(now, &mailbox::records(ENDPOINT_TAG, nonce, [&[5; 200][..]], |_| [0; 16]));
    let mut other = Relay::new(1);
    other.key = AgreementSecret::from_bytes([66; 32]);
    client.handle_datagram(now, &other.records(nonce, &e, &[&[5; 200]]));
    let to_another_question = relay.records(nonce, &AgreementSecret::from_bytes([67; 32]).public(), &[&[5; 200]]);
    client.handle_datagram(now, &to_another_question);
    assert_eq!(client.poll_mail(), None);
    client.handle_datagram(now, &relay.records(nonce, &e, &[&[6; 200]]));
    assert_eq!(client.poll_mail(), Some(MailEvent::Found { token: 7, records: vec![vec![6; 200]] }));
}

#[test]
fn a_question_that_is_given_up_is_not_repeated() {
    let (_, mut client, now) = bound_pair();
    client.ask(7, Question::Post(RoutingId([3; 16]), Box::new([4; SEALED])), now);
    assert_eq!(sent(&mut client).len(), mailbox::POST);
    client.give_up(7);
    assert!(run(&mut client, now + Duration::from_secs(20)).is_empty());
}

#[test]
fn a_question_waits_for_the_relay_to_know_us() {
    let now = Instant::now();
    let mut relay = Relay::new(1);
    let mut client = binder(&relay, now);
    client.ask(7, Question::LookUp(NameKey([1; 16])), now);
    bind_it(&mut relay, &mut client, now);
    assert!(matches!(Frame::parse(&sent(&mut client)), Ok((ENDPOINT_TAG, Frame::Lookup { .. }))));
}

proptest::proptest! {
    #[test]
    fn no_datagram_makes_the_client_panic_or_talk(kind in 0_u8..16, rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120)) {
        let (_, mut client, now) = bound_pair();
        let datagram = [&[frame::VERSION_1, kind][..], &rest].concat();
        let delivered = client.handle_datagram(now, &datagram);
        proptest::prop_assert_eq!(delivered, None);
        proptest::prop_assert_eq!(client.poll_transmit(), None);
    }
}

#[test]
fn who_shares_our_name_is_asked_after_each_alive_that_says_so() {
    let (_, mut client, now) = bound_pair();
    let sibling = EndpointId([3; 8]);
    let nonce = asked_whether_alive(&mut client, now);
    client.handle_datagram(now, &alive(nonce, true));
    let nonce = asked_who_else(&mut client);
    client.handle_datagram(now, &frame::others(ENDPOINT_TAG, nonce, [sibling]));
    assert_eq!((client.poll_event(), client.others()), (Some(RelayEvent::Others), &[sibling][..]));
    let nonce = asked_whether_alive(&mut client, now);
    client.handle_datagram(now, &alive(nonce, false));
    assert_eq!((client.poll_event(), client.others()), (Some(RelayEvent::Others), &[][..]));
    assert_eq!(client.poll_transmit(), None);
}

#[test]
fn an_alive_that_was_not_asked_for_or_comes_again_leaves_who_shares_our_name_alone() {
    let (_, mut client, now) = bound_pair();
    client.handle_datagram(now, &alive([0; 8], true));
    assert_eq!(client.poll_transmit(), None, "the relay tells of mail in this way");
    let nonce = asked_whether_alive(&mut client, now);
    client.handle_datagram(now, &alive(nonce, true));
    let asked = asked_who_else(&mut client);
    client.handle_datagram(now, &frame::others(ENDPOINT_TAG, asked, [EndpointId([3; 8])]));
    assert_eq!(client.poll_event(), Some(RelayEvent::Others));
    for nonce in [nonce, [0; 8]] {
        client.handle_datagram(now, &alive(nonce, false));
        client.handle_datagram(now, &alive(nonce, true));
    }
    assert_eq!((client.poll_event(), client.poll_transmit()), (None, None));
}

fn alive(nonce: [u8; 8], others: bool) -> Vec<u8> {
    frame::alive(ENDPOINT_TAG, nonce, 90, AliveFlags { others, ..AliveFlags::default() }).to_vec()
}

/// Makes the client ask its relay whether it is there; gives the question's nonce.
fn asked_whether_alive(client: &mut RelayClient, now: Instant) -> [u8; 8] {
    client.address_changed(now);
    let asked = sent(client);
    let Ok((ENDPOINT_TAG, Frame::Keepalive { nonce })) = Frame::parse(&asked) else { panic!("KEEPALIVE: {asked:?}") };
    nonce
}

#[test]
fn siblings_that_were_not_asked_for_are_not_believed() {
    let (_, mut client, now) = bound_pair();
    client.handle_datagram(now, &frame::others(ENDPOINT_TAG, [0; 8], [EndpointId([3; 8])]));
    client.handle_datagram(now, &frame::others(Tag([0; 6]), [0; 8], [EndpointId([3; 8])]));
    assert_eq!((client.poll_event(), client.others()), (None, &[][..]));
}
