//! Nothing flows until both owners consent, what one of them says ends at once, and a ticket lets its holder ask, once.

use peerage_engine::node::{AskError, DownReason, Event, StreamError};
use peerage_model::Ticket;
use peerage_model::stream::StreamStatus;
use peerage_model::ticket::InviteSecret;
use peerage_sim::nat::NatKind;
use peerage_sim::{Outcome, Sim, ms, secs};

fn strangers() -> Sim {
    let mut sim = Sim::strangers(1, NatKind::home_router(), NatKind::home_router());
    sim.run_for(secs(2));
    sim
}

/// Strangers, of whom `b` has invited `a`.
fn invited() -> (Sim, Ticket) {
    let mut sim = strangers();
    let ticket = sim.invite("b", secs(3600));
    sim.holds_ticket("a", "b");
    (sim, ticket)
}

/// How a request for trust ended for the asker, if it did.
fn answer(sim: &Sim, asker: &str) -> Option<Result<(), AskError>> {
    sim.events(asker).iter().rev().find_map(|(_, event)| match event {
        Event::Asked { result, .. } => Some(*result),
        _ => None,
    })
}

/// The reasons of the requests that an inviter was shown.
fn requests(sim: &Sim, inviter: &str) -> Vec<String> {
    let reason = |event: &Event| match event {
        Event::TrustRequested { asker, request, .. } => Some(format!("{}: {}", asker.agent().name, request.reason)),
        _ => None,
    };
    sim.events(inviter).iter().filter_map(|(_, event)| reason(event)).collect()
}

#[test]
fn the_trust_of_one_side_does_nothing() {
    let mut sim = strangers();
    sim.declare("a", "b");
    let tape = sim.record();
    let stream = sim.request("a", "b", b"hello?");
    sim.run_for(secs(60));
    assert!(sim.sessions("a", "b").is_empty() && sim.sessions("b", "a").is_empty());
    assert_eq!(sim.far_outcome(stream), None);
    assert!(matches!(sim.outcome(stream), Outcome::Failed(StreamError::Unreachable(_))), "{:?}", sim.outcome(stream));
    let b = sim.public_address("b");
    let from_b = tape.only(|p| p.from == b && p.is_relayed_data());
    assert_eq!(from_b, [], "the one that does not trust says nothing at all");
}

#[test]
fn a_later_approval_connects_by_itself_within_a_second() {
    let mut sim = strangers();
    sim.declare("a", "b");
    sim.run_for(secs(90));
    sim.declare("b", "a");
    let up = sim.run_until(secs(1), |sim| sim.both_up("a", "b"));
    assert!(up.is_some(), "who approves dials");
}

#[test]
fn a_stream_that_waits_for_approval_goes_through_when_it_comes() {
    let mut sim = strangers();
    sim.declare("a", "b");
    let stream = sim.request("a", "b", b"hello?");
    sim.run_for(secs(8));
    sim.declare("b", "a");
    sim.run_for(secs(1));
    assert_eq!(sim.returned(stream), b"hello?");
}

#[test]
fn a_port_that_is_not_offered_is_denied_and_says_so() {
    let mut sim = strangers();
    sim.trust("a", "b");
    let stream = sim.open_port("a", "b", 81);
    sim.run_for(secs(2));
    assert_eq!(sim.outcome(stream), &Outcome::Failed(StreamError::Refused(StreamStatus::Denied)));
    assert_eq!(sim.far_outcome(stream), None, "the far side's program never heard of it");
}

#[test]
fn a_trust_ends_when_it_says() {
    let mut sim = strangers();
    sim.trust("a", "b");
    sim.trust_ends_in("a", "b", secs(30));
    let stream = sim.open("a", "b");
    sim.run_for(secs(29));
    assert!(sim.both_up("a", "b"));
    sim.run_for(secs(2));
    assert!(sim.sessions("a", "b").is_empty() && sim.sessions("b", "a").is_empty());
    assert_eq!(sim.outcome(stream), &Outcome::Failed(StreamError::SessionEnded(DownReason::Expired)));
    let before = sim.events("b").len();
    sim.run_for(secs(60));
    assert_eq!(sim.events("b").len(), before, "an ended trust is still answered");
}

#[test]
fn what_was_revoked_stays_revoked_until_it_is_declared_anew() {
    let mut sim = strangers();
    sim.trust("a", "b");
    // So early that the other side's own dial is half done: it sees a session that nobody will confirm.
    sim.run_until(secs(5), |sim| sim.both_up("a", "b")).expect("a session");
    sim.revoke("b", "a");
    sim.run_for(secs(11));
    assert!(sim.sessions("a", "b").is_empty());
    sim.declare("b", "a");
    let up = sim.run_until(secs(2), |sim| sim.both_up("a", "b"));
    assert!(up.is_some(), "a new declaration is a new trust");
}

#[test]
fn a_revocation_that_the_other_side_cannot_hear_still_ends_both_sides() {
    let mut sim = strangers();
    sim.trust("a", "b");
    let stream = sim.open("a", "b");
    sim.run_for(secs(3));
    sim.cut_off("b", true);
    sim.revoke("a", "b");
    sim.run_for(ms(1));
    assert_eq!(sim.outcome(stream), &Outcome::Failed(StreamError::SessionEnded(DownReason::RevokedHere)));
    // QUIC's idle timeout of 120 s, which the first unanswered ping (after 25 s) starts anew.
    sim.run_for(secs(150));
    assert!(sim.sessions("b", "a").is_empty(), "the other side hears nothing and gives up");
}

#[test]
fn a_request_by_ticket_is_delivered_once_and_an_approval_connects() {
    let (mut sim, ticket) = invited();
    sim.ask("a", &ticket, "we share a project");
    let answered = sim.run_until(secs(5), |sim| answer(sim, "a").is_some());
    assert!(answered.is_some_and(|took| took < secs(1)), "{answered:?}");
    assert_eq!(answer(&sim, "a"), Some(Ok(())));
    sim.run_for(secs(30));
    assert_eq!(requests(&sim, "b"), ["a: we share a project"]);
    assert!(sim.sessions("a", "b").is_empty(), "asking is not trusting");
    sim.trust("a", "b");
    let up = sim.run_until(secs(2), |sim| sim.both_up("a", "b"));
    assert!(up.is_some());
}

#[test]
fn a_request_is_delivered_once_also_over_a_line_that_loses_and_repeats() {
    for seed in 0..10 {
        let mut sim = Sim::strangers(seed, NatKind::symmetric_random(), NatKind::home_router());
        sim.run_for(secs(2));
        let ticket = sim.invite("b", secs(3600));
        sim.holds_ticket("a", "b");
        let bad = peerage_sim::link::LinkConfig {
            loss: peerage_sim::link::Chance::percent(15),
            duplicate: peerage_sim::link::Chance::percent(15),
            ..peerage_sim::link::LinkConfig::with_delay(ms(40))
        };
        sim.set_line("a", &bad);
        sim.set_line("b", &bad);
        sim.ask("a", &ticket, "please");
        sim.run_for(secs(40));
        assert_eq!(answer(&sim, "a"), Some(Ok(())), "seed {seed}");
        assert_eq!(requests(&sim, "b"), ["a: please"], "seed {seed}");
    }
}

#[test]
fn a_receipt_that_is_lost_is_given_again_and_the_request_is_one() {
    let (mut sim, ticket) = invited();
    sim.hesitates("b", true);
    sim.ask("a", &ticket, "did you hear me?");
    sim.run_until(secs(5), |sim| !requests(sim, "b").is_empty()).expect("a request");
    sim.cut_off("a", true);
    sim.decide("b", StreamStatus::Open);
    sim.run_for(secs(10));
    assert_eq!(answer(&sim, "a"), None);
    sim.cut_off("a", false);
    sim.run_for(secs(12));
    assert_eq!(answer(&sim, "a"), Some(Ok(())));
    assert_eq!(requests(&sim, "b"), ["a: did you hear me?"]);
}

#[test]
fn who_asks_again_while_the_request_is_being_written_down_gets_the_receipt_when_it_is() {
    let (mut sim, ticket) = invited();
    sim.hesitates("b", true);
    sim.ask("a", &ticket, "first");
    sim.run_for(secs(21));
    assert_eq!(answer(&sim, "a"), Some(Err(AskError::NoAnswer)), "a disk took longer than anybody waits");
    sim.ask("a", &ticket, "and again");
    sim.run_for(secs(5));
    let answers = sim.events("a").iter().filter(|(_, event)| matches!(event, Event::Asked { .. })).count();
    assert_eq!(answers, 1, "no receipt for what is not safe");
    sim.decide("b", StreamStatus::Open);
    sim.run_for(secs(1));
    assert_eq!(answer(&sim, "a"), Some(Ok(())));
    assert_eq!(requests(&sim, "b"), ["a: first"]);
}

#[test]
fn a_used_ticket_is_met_with_silence_also_by_its_user_after_a_minute() {
    let (mut sim, ticket) = invited();
    sim.ask("a", &ticket, "first");
    sim.run_for(secs(62));
    sim.may_speak("a", "b");
    sim.ask("a", &ticket, "late");
    sim.run_for(secs(30));
    assert_eq!(answer(&sim, "a"), Some(Err(AskError::NoAnswer)));
    assert_eq!(requests(&sim, "b"), ["a: first"]);
}

#[test]
fn a_used_ticket_is_met_with_silence() {
    let mut sim = strangers();
    sim.add_agent("c", NatKind::none());
    let ticket = sim.invite("b", secs(3600));
    sim.holds_ticket("a", "b");
    sim.ask("a", &ticket, "first");
    // Until then `a` could come back for its receipt.
    sim.run_for(secs(62));
    // `c` may try, and must hear nothing: the world fails if it does.
    sim.may_speak("c", "b");
    sim.ask("c", &ticket, "second");
    sim.run_for(secs(60));
    assert_eq!(answer(&sim, "c"), Some(Err(AskError::NoAnswer)));
    assert_eq!(requests(&sim, "b"), ["a: first"]);
}

#[test]
fn nobody_else_asks_with_a_ticket_in_the_minute_in_which_its_user_may_come_back() {
    let mut sim = strangers();
    sim.add_agent("c", NatKind::none());
    let ticket = sim.invite("b", secs(3600));
    sim.holds_ticket("a", "b");
    sim.holds_ticket("c", "b");
    sim.ask("a", &ticket, "first");
    sim.run_for(secs(5));
    sim.ask("c", &ticket, "second");
    sim.run_for(secs(30));
    assert!(matches!(answer(&sim, "c"), Some(Err(_))), "{:?}", answer(&sim, "c"));
    assert_eq!(requests(&sim, "b"), ["a: first"]);
}

#[test]
fn a_wrong_ticket_is_met_with_silence() {
    let mut sim = strangers();
    let ticket = sim.invite("b", secs(3600));
    let guessed = Ticket { secret: InviteSecret::from_bytes([9; 32]), ..ticket };
    sim.may_speak("a", "b");
    sim.ask("a", &guessed, "open up");
    sim.run_for(secs(60));
    assert_eq!(answer(&sim, "a"), Some(Err(AskError::NoAnswer)));
    assert_eq!(requests(&sim, "b"), [""; 0]);
}

#[test]
fn an_ended_ticket_is_met_with_silence() {
    let mut sim = strangers();
    let ticket = sim.invite("b", secs(30));
    sim.run_for(secs(31));
    sim.may_speak("a", "b");
    sim.ask("a", &ticket, "too late?");
    sim.run_for(secs(60));
    assert_eq!(answer(&sim, "a"), Some(Err(AskError::NoAnswer)));
    assert_eq!(requests(&sim, "b"), [""; 0]);
}

#[test]
fn a_ticket_is_no_key_to_anything_but_asking() {
    let mut sim = strangers();
    let ticket = sim.invite("b", secs(3600));
    sim.declare("a", "b");
    sim.holds_ticket("a", "b");
    sim.ask("a", &ticket, "hello");
    let stream = sim.request("a", "b", b"data, please");
    sim.run_for(secs(30));
    assert_eq!(sim.far_outcome(stream), None);
    assert!(sim.sessions("b", "a").is_empty());
}

#[test]
fn a_request_that_could_not_be_written_down_leaves_the_ticket_usable() {
    let (mut sim, ticket) = invited();
    sim.can_write_down("b", false);
    sim.ask("a", &ticket, "the disk is full over there");
    sim.run_until(secs(5), |sim| answer(sim, "a").is_some());
    assert_eq!(answer(&sim, "a"), Some(Err(AskError::Refused(StreamStatus::Busy))));
    sim.can_write_down("b", true);
    sim.ask("a", &ticket, "is there room now?");
    sim.run_for(secs(5));
    assert_eq!(answer(&sim, "a"), Some(Ok(())));
}

#[test]
fn a_ticket_that_was_withdrawn_opens_to_nobody_also_if_the_request_it_was_used_for_could_not_be_written_down() {
    let (mut sim, ticket) = invited();
    sim.add_agent("c", NatKind::none());
    sim.holds_ticket("c", "b");
    sim.hesitates("b", true);
    sim.ask("a", &ticket, "did I come in time?");
    sim.run_until(secs(5), |sim| !requests(sim, "b").is_empty()).expect("a request");
    sim.close_invites("b");
    sim.decide("b", StreamStatus::Busy);
    sim.run_for(secs(5));
    assert_eq!(answer(&sim, "a"), Some(Err(AskError::Refused(StreamStatus::Busy))));
    for asker in ["a", "c"] {
        sim.ask(asker, &ticket, "and now?");
    }
    sim.run_for(secs(30));
    assert_eq!(
        answer(&sim, "a"),
        Some(Err(AskError::Refused(StreamStatus::Denied))),
        "no receipt for what was not kept"
    );
    assert!(matches!(answer(&sim, "c"), Some(Err(_))), "{:?}", answer(&sim, "c"));
    assert_eq!(requests(&sim, "b"), ["a: did I come in time?"]);
}

#[test]
fn a_ticket_that_is_withdrawn_after_a_request_could_not_be_written_down_is_met_with_silence() {
    let (mut sim, ticket) = invited();
    sim.can_write_down("b", false);
    sim.ask("a", &ticket, "the disk is full over there");
    sim.run_until(secs(5), |sim| answer(sim, "a").is_some()).expect("an answer");
    sim.close_invites("b");
    sim.run_for(secs(5));
    sim.may_speak("a", "b");
    sim.ask("a", &ticket, "is there room now?");
    sim.run_for(secs(30));
    assert_eq!(answer(&sim, "a"), Some(Err(AskError::NoAnswer)));
    assert_eq!(requests(&sim, "b"), ["a: the disk is full over there"]);
}

#[test]
fn a_request_arrives_also_if_the_inviter_restarts_in_the_midst_of_it() {
    for after in (20..=300).step_by(20).map(ms) {
        let mut sim = strangers();
        let ticket = sim.invite("b", secs(3600));
        sim.holds_ticket("a", "b");
        sim.hesitates("b", true);
        sim.ask("a", &ticket, "are you still there?");
        sim.run_for(after);
        sim.restart("b");
        sim.run_for(secs(20));
        assert_eq!(answer(&sim, "a"), Some(Ok(())), "restarted after {after:?}");
    }
}

#[test]
fn a_request_that_could_not_be_kept_after_the_asker_left_leaves_the_ticket_usable() {
    let (mut sim, ticket) = invited();
    sim.hesitates("b", true);
    sim.ask("a", &ticket, "hello?");
    sim.run_for(secs(60));
    assert_eq!(answer(&sim, "a"), Some(Err(AskError::NoAnswer)));
    sim.decide("b", StreamStatus::Busy);
    sim.hesitates("b", false);
    sim.ask("a", &ticket, "and now?");
    sim.run_for(secs(5));
    assert_eq!(answer(&sim, "a"), Some(Ok(())));
}
