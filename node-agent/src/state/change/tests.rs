//! Each rule of consent, without a disk.

use peerage_model::control::MAX_REASON;
use peerage_model::ticket::InviteSecret;
use peerage_model::{Authority, Fingerprint, Ticket};
use zeroize::Zeroizing;

use super::records::learn_record;
use super::*;
use crate::state::document::{Received, Service};

const NOW: UnixTime = UnixTime(1_800_000_000);

fn authority(seed: u8) -> Authority {
    Authority::new(&Zeroizing::new([seed; 96]), NOW)
}

fn consent(id: u8) -> Consent {
    Consent { id: TrustId([id; 16]), alias: None, inbound: None, expires: None, path: None, birthday: None }
}

fn name(text: &str) -> PeerRef {
    text.parse().expect("it names a peer")
}

fn request(seed: u8, asker: &str) -> Received {
    let authority = authority(seed);
    Received {
        asker: authority.agent(asker.parse().expect("a name")),
        records: vec![authority.record().clone()],
        relays: Vec::new(),
        reason: "to work together".into(),
        invite: Some(TrustId([9; 16])),
        asked: None,
        received: NOW,
    }
}

/// Somebody asks by a ticket of ours.
fn ask(document: &mut Document, request: Received) -> Reception {
    document.invite(TrustId([9; 16]), NOW.plus(Duration::from_secs(60))).expect("there is room");
    document.receive(request)
}

fn ticket(seed: u8) -> Ticket {
    Ticket {
        record: authority(seed).record().clone(),
        name: "db".parse().expect("a name"),
        relays: Vec::new(),
        secret: InviteSecret::from_bytes([7; 32]),
        expires: NOW.plus(Duration::from_secs(60)),
    }
}

fn us() -> AgentId {
    authority(1).agent("planner".parse().expect("a name"))
}

#[test]
fn an_approved_asker_may_reach_what_we_expose_and_no_longer_waits() {
    let mut document = Document::default();
    assert_eq!(ask(&mut document, request(2, "db")), Reception::Waiting);
    let trust = document.approve(&name("db"), &consent(1), NOW).expect("one asks");
    assert_eq!(trust.inbound, Inbound::Everything);
    assert_eq!(trust.alias.as_str(), "db");
    assert_eq!(trust.purpose, "to work together");
    assert!(document.requests.is_empty());
}

#[test]
fn asking_somebody_lets_it_reach_nothing_here() {
    let mut document = Document::default();
    let trust = document.handshake(&us(), &ticket(2), "why", &consent(1), NOW).expect("it is a ticket");
    assert_eq!(trust.inbound, Inbound::NOTHING);
    assert_eq!(document.sent.len(), 1);
    assert!(document.answered(&trust.peer), "a session is its yes");
    assert!(!document.answered(&trust.peer), "which comes once");
}

#[test]
fn asking_twice_keeps_one_trust_and_its_id() {
    let mut document = Document::default();
    let first = document.handshake(&us(), &ticket(2), "why", &consent(1), NOW).expect("it is a ticket");
    let again = document.handshake(&us(), &ticket(2), "why", &consent(2), NOW).expect("it is a ticket");
    assert_eq!(first.id, again.id);
    assert_eq!((document.trusts.len(), document.sent.len()), (1, 1));
}

#[test]
fn our_own_ticket_is_refused() {
    let mut document = Document::default();
    let us = authority(2).agent("db".parse().expect("a name"));
    assert_eq!(document.handshake(&us, &ticket(2), "why", &consent(1), NOW), Err(ChangeError::OwnTicket));
}

#[test]
fn a_name_that_two_askers_use_is_not_guessed() {
    let mut document = Document::default();
    ask(&mut document, request(2, "db"));
    ask(&mut document, request(3, "db"));
    let refused = document.approve(&name("db"), &consent(1), NOW);
    assert!(matches!(refused, Err(ChangeError::Ambiguous { ref choices, .. }) if choices.len() == 2), "{refused:?}");
    let exact = format!("db@{}", &authority(3).fingerprint().to_string()[..8]);
    let trust = document.approve(&name(&exact), &consent(1), NOW).expect("one is meant");
    assert_eq!(trust.peer.authority, authority(3).fingerprint());
}

#[test]
fn a_peer_cannot_be_called_what_this_machine_is_called() {
    let mut document = Document { hostname: Some("laptop.home".parse().expect("a name")), ..Document::default() };
    for this in ["localhost", "laptop"] {
        let ticket = Ticket { name: this.parse().expect("a name"), ..ticket(2) };
        let refused = document.handshake(&us(), &ticket, "", &consent(1), NOW);
        assert!(matches!(refused, Err(ChangeError::AliasReserved { .. })), "{refused:?}");
        ask(&mut document, request(3, this));
        let refused = document.approve(&name(this), &consent(1), NOW);
        assert!(matches!(refused, Err(ChangeError::AliasReserved { .. })), "{refused:?}");
    }
    let alias = Some("theirs".parse().expect("a label"));
    document.approve(&name("laptop"), &Consent { alias, ..consent(1) }, NOW).expect("by another name it is welcome");
}

#[test]
fn a_second_peer_of_one_name_needs_an_alias() {
    let mut document = Document::default();
    ask(&mut document, request(2, "db"));
    document.approve(&name("db"), &consent(1), NOW).expect("one asks");
    ask(&mut document, request(3, "db"));
    let refused = document.approve(&name("db"), &consent(2), NOW);
    assert!(matches!(refused, Err(ChangeError::AliasTaken { .. })), "{refused:?}");
    assert_eq!(document.requests.len(), 1, "the request still waits");
    let alias = Some("other-db".parse().expect("a label"));
    document.approve(&name("db"), &Consent { alias, ..consent(2) }, NOW).expect("the alias is free");
}

#[test]
fn approving_a_peer_again_changes_only_what_is_said() {
    let mut document = Document::default();
    ask(&mut document, request(2, "db"));
    document.approve(&name("db"), &consent(1), NOW).expect("one asks");
    let expires = Some(NOW.plus(Duration::from_secs(60)));
    let changed = document.approve(&name("db"), &Consent { expires, ..consent(2) }, NOW).expect("it is a peer");
    assert_eq!((changed.id, changed.inbound, changed.expires), (TrustId([1; 16]), Inbound::Everything, expires));
}

#[test]
fn nobody_asked_means_nothing_to_approve_or_reject() {
    let mut document = Document::default();
    let refused = document.approve(&name("db"), &consent(1), NOW);
    assert_eq!(refused, Err(ChangeError::UnknownRequest { name: name("db") }));
    assert_eq!(document.reject(&name("db")), Err(ChangeError::UnknownRequest { name: name("db") }));
}

#[test]
fn one_authority_cannot_fill_the_list_of_requests() {
    let mut document = Document::default();
    for i in 0..MAX_REQUESTS_PER_AUTHORITY {
        assert_eq!(ask(&mut document, request(2, &format!("a{i}"))), Reception::Waiting);
    }
    assert_eq!(ask(&mut document, request(2, "one-more")), Reception::Dropped);
    assert_eq!(ask(&mut document, request(2, "a3")), Reception::Waiting, "asking again replaces");
    assert_eq!(ask(&mut document, request(3, "other")), Reception::Waiting, "others still may");
}

#[test]
fn many_authorities_together_cannot_fill_it_either() {
    let mut document = Document::default();
    let mut asking = request(2, "db");
    for i in 0..MAX_REQUESTS {
        asking.asker.authority = Fingerprint([u8::try_from(i).expect("200 is below 256"); 32]);
        assert_eq!(ask(&mut document, asking.clone()), Reception::Waiting);
    }
    asking.asker.authority = Fingerprint([255; 32]);
    assert_eq!(ask(&mut document, asking), Reception::Dropped);
}

#[test]
fn a_request_uses_its_invitation_up() {
    let mut document = Document::default();
    document.invite(TrustId([9; 16]), NOW).expect("there is room");
    document.invite(TrustId([8; 16]), NOW).expect("there is room");
    document.receive(request(2, "db"));
    let open: Vec<TrustId> = document.invites.iter().map(|invite| invite.id).collect();
    assert_eq!(open, [TrustId([8; 16])]);
}

#[test]
fn a_strangers_reason_cannot_drive_our_terminal() {
    let mut document = Document::default();
    let mut asking = request(2, "db");
    asking.reason = format!("hello\x1b[2Jworld\r\n\u{202e}{}", "é".repeat(400));
    ask(&mut document, asking);
    let shown = &document.requests[0].reason;
    assert!(shown.starts_with("hello [2Jworld   é"), "{shown}");
    assert!(shown.len() <= MAX_REASON);
}

#[test]
fn a_revoked_trust_is_remembered_by_its_id() {
    let mut document = Document::default();
    ask(&mut document, request(2, "db"));
    document.approve(&name("db"), &consent(1), NOW).expect("one asks");
    document.revoke(&name("db"), NOW).expect("it is a peer");
    assert!(document.trusts.is_empty());
    assert_eq!(document.revoked[0].id, TrustId([1; 16]));
    assert_eq!(document.revoke(&name("db"), NOW), Err(ChangeError::UnknownPeer { name: name("db") }));
}

#[test]
fn what_has_ended_is_swept_up_at_its_moment_and_not_before() {
    let mut document = Document::default();
    ask(&mut document, request(2, "db"));
    let expires = Some(NOW.plus(Duration::from_secs(60)));
    document.approve(&name("db"), &Consent { expires, ..consent(1) }, NOW).expect("one asks");
    ask(&mut document, request(3, "late"));
    document.invite(TrustId([5; 16]), NOW.plus(Duration::from_secs(30))).expect("there is room");
    assert_eq!(document.next_end(), Some(NOW.plus(Duration::from_secs(30))));
    assert!(document.sweep(NOW.plus(Duration::from_secs(29))).is_empty());
    let ended = document.sweep(NOW.plus(Duration::from_secs(60)));
    assert_eq!((ended.trusts.len(), ended.invites, ended.requests), (1, 1, 0));
    assert_eq!(document.revoked.len(), 1, "a clock set back does not revive it");
    assert_eq!(document.sweep(NOW.plus(REQUEST_LIFETIME)).requests, 1);
    assert_eq!(document.next_end(), None);
}

#[test]
fn a_port_is_exposed_once_and_may_move_its_target() {
    let mut document = Document::default();
    let service = |text: &str| text.parse::<Service>().expect("it is a service");
    document.expose(&service("mcp=80:8080")).expect("it is free");
    document.expose(&service("mcp=80:9090")).expect("it moves");
    assert_eq!(document.services.len(), 1);
    for taken in ["web=80:8080", "mcp=81"] {
        let refused = document.expose(&service(taken));
        assert!(matches!(refused, Err(ChangeError::ServiceTaken { .. })), "{taken}: {refused:?}");
    }
    document.expose(&service("quic=80/udp")).expect("UDP 80 is another port");
    let names = document.service_names(&["80".into()]).expect("both are called 80");
    assert_eq!(names.len(), 2);
    assert_eq!(document.unexpose("mcp").expect("it was there").len(), 1);
    assert!(matches!(document.unexpose("mcp"), Err(ChangeError::UnknownService { .. })));
}

#[test]
fn the_two_newest_records_of_an_authority_are_kept() {
    let first = authority(2);
    let second = first.rotate(&Zeroizing::new([3; 64]), NOW);
    let third = second.rotate(&Zeroizing::new([4; 64]), NOW);
    let mut records = Vec::new();
    for record in [second.record(), first.record(), third.record(), third.record()] {
        learn_record(&mut records, record);
    }
    let sequences: Vec<u64> = records.iter().map(AuthorityRecord::sequence).collect();
    assert_eq!(sequences, [3, 2]);
}

#[test]
fn whom_we_trust_already_need_not_wait_when_it_asks() {
    let mut document = Document::default();
    ask(&mut document, request(2, "db"));
    document.approve(&name("db"), &consent(1), NOW).expect("one asks");
    let relay = format!("{}@relay.example:3478", data_encoding::BASE32_NOPAD.encode(&[5; 32]));
    let relays = vec![relay.parse().expect("a relay")];
    let moved = Received { relays: relays.clone(), ..request(2, "db") };
    assert_eq!(ask(&mut document, moved), Reception::AlreadyTrusted);
    assert!(document.requests.is_empty());
    assert_eq!(document.trusts[0].relays, relays);
}

#[test]
fn strangers_by_mail_never_take_the_room_of_who_was_invited() {
    let mut document = Document::default();
    for seed in 0..120_u8 {
        let request = Received { invite: None, ..request(seed, "db") };
        let expected = if usize::from(seed) < MAX_MAIL_REQUESTS { Reception::Waiting } else { Reception::Dropped };
        assert_eq!(document.receive_mail(request, NOW), expected, "{seed}");
    }
    assert_eq!(ask(&mut document, request(200, "db")), Reception::Waiting);
}

#[test]
fn an_answered_request_by_mail_is_remembered_for_longer_than_it_could_be_repeated() {
    let mut document = Document::default();
    let again = || Received { invite: None, ..request(2, "db") };
    assert_eq!(document.receive_mail(again(), NOW), Reception::Waiting);
    document.reject(&name("db")).expect("it waits");
    document.sweep(NOW.plus(peerage_model::mailbox::LIFETIME));
    assert_eq!(document.receive_mail(again(), NOW), Reception::Repeated);
    let end = document.next_end().expect("it is forgotten some time");
    document.sweep(end);
    assert!(document.answered.is_empty());
}

#[test]
fn a_ticket_is_withdrawn_by_the_digits_that_only_it_begins_with() {
    let mut document = Document::default();
    for id in [[0x12; 16], [0x13; 16], [0x23; 16]] {
        document.invite(TrustId(id), NOW.plus(Duration::from_secs(60))).expect("there is room");
    }
    let several = ChangeError::SeveralTickets { ticket: "1".into(), count: 2 };
    assert_eq!(document.withdraw("1"), Err(several));
    for nobodys in ["", "3", "ALL"] {
        assert_eq!(document.withdraw(nobodys), Err(ChangeError::UnknownTicket { ticket: nobodys.into() }));
    }
    assert_eq!(document.withdraw("12").map(|gone| gone[0].id), Ok(TrustId([0x12; 16])));
    assert_eq!(document.withdraw("all").map(|gone| gone.len()), Ok(2));
    assert_eq!(document.invites, []);
}

#[test]
fn who_asked_by_a_ticket_that_is_withdrawn_meanwhile_is_not_let_in() {
    let mut document = Document::default();
    document.invite(TrustId([9; 16]), NOW.plus(Duration::from_secs(60))).expect("there is room");
    document.withdraw("all").expect("all may be none");
    assert_eq!(document.receive(request(2, "db")), Reception::Withdrawn);
    assert_eq!(document.requests, []);
}

#[test]
fn a_grant_ends_with_its_service_and_a_later_one_of_that_name_is_another() {
    let mut document = Document::default();
    let service = |text: &str| text.parse::<Service>().expect("it is a service");
    document.expose(&service("echo=90")).expect("it is free");
    document.expose(&service("dns=53/udp")).expect("it is free");
    ask(&mut document, request(2, "db"));
    let only = Inbound::Only(vec![service("dns=53/udp").name, service("echo=90").name]);
    let consent = Consent { inbound: Some(only.clone()), ..consent(1) };
    document.approve(&name("db"), &consent, NOW).expect("one asks");
    document.expose(&service("echo=90:9090")).expect("it moves");
    assert_eq!(document.trusts[0].inbound, only, "another target is the same service");
    document.unexpose("echo").expect("it is there");
    document.expose(&service("echo=91:22")).expect("it is free");
    assert_eq!(document.trusts[0].inbound, Inbound::Only(vec![service("dns=53/udp").name]));
    // As earlier versions left it.
    document.trusts[0].inbound = Inbound::Only(vec![service("web=80").name]);
    document.expose(&service("web=80")).expect("it is free");
    assert_eq!(document.trusts[0].inbound, Inbound::NOTHING);
}
