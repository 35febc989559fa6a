//! Mailboxes: what owners find in them, what strangers can learn, and what floods do.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::{Agent, Client, Out, World, addr, agent, authority};
use peerage_model::relay::frame::mailbox::{self, MailId, NameKey, SEALED};
use peerage_model::relay::frame::{self, AliveFlags, Frame};
use peerage_model::{AgentId, AgreementKey, AgreementSecret, AuthorityRecord, RoutingId};
use peerage_relay_proto::{Access, DropReason, Limits};

const HOME: &str = "192.0.2.7:4000";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A bound agent whose mailbox is open.
fn public(world: &mut World, agent: &Agent) -> Client {
    let client = world.bind(HOME, agent);
    assert_eq!(check(world, &client, MailId::NONE), None, "a new mailbox is empty");
    client
}

/// Looks into a mailbox: the oldest mail, if any.
fn check(world: &mut World, owner: &Client, done: MailId) -> Option<(MailId, u8)> {
    let session = owner.session.clone().expect("bound");
    let asked = mailbox::check(owner.tag, [7; 8], done, |body| session.mac(body));
    let reply = world.send(owner.address, &asked).expect_reply();
    assert!(session.verifies(&reply), "MAIL is authentic");
    match Frame::parse(&reply) {
        Ok((tag, Frame::Mail { nonce, id, sealed, .. })) if tag == owner.tag && nonce == [7; 8] => {
            sealed.map(|sealed| (id, sealed[0]))
        }
        other => panic!("MAIL, not {other:?}"),
    }
}

fn key(name: &str) -> NameKey {
    NameKey::of(&name.parse().expect("a name"))
}

/// The key that an asker makes for its question.
fn asking() -> AgreementSecret {
    AgreementSecret::from_bytes([78; 32])
}

fn try_look_up(world: &mut World, asker: &Client, name: &str) -> Out {
    world.send(asker.address, &mailbox::lookup(asker.tag, [5; 8], key(name), &asking().public()))
}

fn records_in(out: Out) -> Vec<Vec<u8>> {
    match Frame::parse(&out.expect_reply()) {
        Ok((_, Frame::Records { nonce, records, .. })) if nonce == [5; 8] => {
            records.iter().map(<[u8]>::to_vec).collect()
        }
        other => panic!("RECORDS, not {other:?}"),
    }
}

fn look_up(world: &mut World, asker: &Client, name: &str) -> Vec<Vec<u8>> {
    let out = try_look_up(world, asker, name);
    records_in(out)
}

/// Something sealed, as far as a relay can see; `mark` makes it another.
fn sealed(mark: u8) -> [u8; SEALED] {
    [mark; SEALED]
}

fn post(world: &mut World, asker: &Client, to: &AgentId, mark: u8) -> Out {
    post_to(world, asker, to.routing_id(), mark)
}

fn post_to(world: &mut World, asker: &Client, to: RoutingId, mark: u8) -> Out {
    world.send(asker.address, &mailbox::post(asker.tag, [6; 8], to, &sealed(mark)))
}

fn notices(world: &mut World) -> Vec<(std::net::SocketAddr, Vec<u8>)> {
    let now = world.now;
    std::iter::from_fn(|| world.relay.poll_transmit(now))
        .map(|notice| (notice.to.address(), notice.frame.as_bytes().to_vec()))
        .collect()
}

/// Keeps a client while time passes.
fn pass(world: &mut World, by: Duration, clients: &[&Client]) {
    let mut left = by;
    while !left.is_zero() {
        let step = left.min(Duration::from_secs(60));
        world.pass(step);
        left -= step;
        for client in clients {
            world.send(client.address, &frame::keepalive(client.tag, [0; 8]));
        }
    }
}

#[test]
fn a_request_waits_until_its_owner_has_it_safe() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let owner = public(&mut world, &db);
    let asker = world.visit("198.51.100.9:5000");
    let posted = post(&mut world, &asker, &db.id, 1).expect_reply();
    assert!(matches!(Frame::parse(&posted), Ok((_, Frame::Posted { nonce })) if nonce == [6; 8]));
    let (id, mark) = check(&mut world, &owner, MailId::NONE).expect("it is there");
    assert_eq!(mark, 1);
    assert_eq!(check(&mut world, &owner, MailId::NONE), Some((id, 1)), "until it is done with");
    assert_eq!(check(&mut world, &owner, id), None);
    assert_eq!(check(&mut world, &owner, id), None, "a repeated CHECK forgets nothing else");
    assert_eq!(world.relay.occupancy().mail, 0);
}

#[test]
fn mail_comes_out_in_the_order_in_which_it_went_in() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let owner = public(&mut world, &db);
    for n in 1..=3 {
        let asker = world.visit(&format!("198.51.{n}.9:5000"));
        post(&mut world, &asker, &db.id, n);
    }
    let (mut done, mut seen) = (MailId::NONE, Vec::new());
    while let Some((id, mark)) = check(&mut world, &owner, done) {
        (done, seen) = (id, [&seen[..], &[mark]].concat());
    }
    assert_eq!(seen, [1, 2, 3]);
}

#[test]
fn an_owner_that_is_bound_is_told_at_once_and_by_each_alive() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let owner = public(&mut world, &db);
    let asker = world.visit("198.51.100.9:5000");
    post(&mut world, &asker, &db.id, 1);
    let told = notices(&mut world);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, addr(HOME));
    let (tag, alive) = Frame::parse(&told[0].1).expect("it is a frame");
    assert!(tag == owner.tag && matches!(alive, Frame::Alive { flags: AliveFlags { mail: true, .. }, .. }));
    let flag = |world: &mut World| {
        let reply = world.send(owner.address, &frame::keepalive(owner.tag, [1; 8])).expect_reply();
        matches!(Frame::parse(&reply), Ok((_, Frame::Alive { flags: AliveFlags { mail: true, .. }, .. })))
    };
    assert!(flag(&mut world));
    let (id, _) = check(&mut world, &owner, MailId::NONE).expect("it is there");
    check(&mut world, &owner, id);
    assert!(!flag(&mut world));
}

#[test]
fn a_public_agents_record_is_what_its_authority_signed() {
    let mut world = World::open();
    public(&mut world, &agent(1, "db", 10));
    let asker = world.visit("198.51.100.9:5000");
    assert_eq!(look_up(&mut world, &asker, "db"), [authority(1).record().as_bytes()]);
}

#[test]
fn a_name_without_a_mailbox_gets_an_answer_like_any_other() {
    let mut world = World::open();
    public(&mut world, &agent(1, "db", 10));
    // Bound, and not public: as if it were not there.
    world.bind("192.0.2.8:4000", &agent(2, "hidden", 11));
    let asker = world.visit("198.51.100.9:5000");
    let real = try_look_up(&mut world, &asker, "db").expect_reply();
    let mut seen = BTreeSet::new();
    for name in ["hidden", "nobody", "db.other"] {
        let invented = try_look_up(&mut world, &asker, name).expect_reply();
        assert_eq!(invented.len(), real.len(), "{name}");
        let records = look_up(&mut world, &asker, name);
        let record = AuthorityRecord::verify(&records[0], world.wall).expect("it verifies like a real one");
        assert_eq!((records.len(), record.sequence()), (1, 1));
        assert!(record.fingerprint() != authority(2).fingerprint());
        assert!(seen.insert(record.fingerprint()), "each name has its own");
        assert_eq!(look_up(&mut world, &asker, name), records, "and the same each time");
    }
}

#[test]
fn an_invented_record_is_the_same_after_a_restart() {
    let mut first = World::open();
    let asker = first.visit("198.51.100.9:5000");
    let before = look_up(&mut first, &asker, "nobody");
    let mut second = World::with_seed(99);
    let asker = second.visit("198.51.100.9:5000");
    assert_eq!(look_up(&mut second, &asker, "nobody"), before);
}

#[test]
fn a_post_to_nobody_is_thanked_for_like_any_other() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    public(&mut world, &db);
    let hidden = agent(2, "hidden", 11);
    world.bind("192.0.2.8:4000", &hidden);
    let asker = world.visit("198.51.100.9:5000");
    let real = post(&mut world, &asker, &db.id, 1);
    assert_eq!(post(&mut world, &asker, &hidden.id, 1), real);
    assert_eq!(post_to(&mut world, &asker, RoutingId([9; 16]), 1), real);
    assert_eq!(world.relay.occupancy().mail, 1);
    assert_eq!(notices(&mut world).len(), 1);
}

#[test]
fn a_stranger_sees_the_same_whether_or_not_the_name_is_there_until_its_quota_is_used_up() {
    let observe = |exists: bool| {
        let mut world = World::open();
        let db = agent(1, "db", 10);
        if exists {
            public(&mut world, &db);
        }
        let asker = world.visit("198.51.100.9:5000");
        let mut seen = Vec::new();
        for round in 0..60 {
            seen.push(try_look_up(&mut world, &asker, "db").reply_len());
            seen.push(post(&mut world, &asker, &db.id, round).reply_len());
            seen.push(post_to(&mut world, &asker, RoutingId([round; 16]), round).reply_len());
            world.pass(Duration::from_millis(130));
        }
        seen
    };
    let (there, not_there) = (observe(true), observe(false));
    assert_eq!(there, not_there);
    assert!(there.contains(&0), "the quota was used up");
}

#[test]
fn two_authorities_that_publish_one_name_are_both_named_and_each_gets_its_own_mail() {
    let mut world = World::open();
    let (one, two) = (agent(1, "db", 10), agent(2, "db", 11));
    let first = public(&mut world, &one);
    let second = world.bind("192.0.2.8:4000", &two);
    check(&mut world, &second, MailId::NONE);
    let asker = world.visit("198.51.100.9:5000");
    let named = look_up(&mut world, &asker, "db");
    assert_eq!(named, [authority(1).record().as_bytes(), authority(2).record().as_bytes()], "the earlier one first");
    post(&mut world, &asker, &two.id, 1);
    assert_eq!(check(&mut world, &first, MailId::NONE), None);
    assert!(check(&mut world, &second, MailId::NONE).is_some());
}

#[test]
fn many_that_publish_one_name_fill_one_answer_and_no_more() {
    let mut world = World::open();
    for n in 1..=6 {
        let client = world.bind(&format!("192.0.{n}.7:4000"), &agent(n, "db", 10 + n));
        check(&mut world, &client, MailId::NONE);
    }
    let asker = world.visit("198.51.100.9:5000");
    let first_four: Vec<_> = (1..=4).map(|n| authority(n).record().as_bytes().to_vec()).collect();
    assert_eq!(look_up(&mut world, &asker, "db"), first_four);
}

#[test]
fn mail_outlives_its_owners_absence_for_a_week_and_no_longer() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    public(&mut world, &db);
    let asker = world.visit("198.51.100.9:5000");
    post(&mut world, &asker, &db.id, 1);
    pass(&mut world, 6 * DAY, &[]);
    assert_eq!(world.relay.occupancy().bound, 0);
    assert_eq!(world.relay.occupancy().mail, 1);
    pass(&mut world, DAY + Duration::from_secs(11), &[]);
    assert_eq!((world.relay.occupancy().mail, world.relay.occupancy().mailboxes), (0, 0));
    let asker = world.visit("198.51.100.9:5000");
    let record = look_up(&mut world, &asker, "db");
    assert_ne!(record[0], authority(1).record().as_bytes(), "then the name is anybody's again");
}

#[test]
fn nobody_else_looks_into_a_mailbox_or_empties_it() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let owner = public(&mut world, &db);
    let thief = world.bind("192.0.2.8:4000", &agent(2, "thief", 11));
    let asker = world.visit("198.51.100.9:5000");
    post(&mut world, &asker, &db.id, 1);
    let (id, _) = check(&mut world, &owner, MailId::NONE).expect("it is there");
    assert_eq!(check(&mut world, &thief, id), None, "a thief looks into its own");
    let session = thief.session.clone().expect("bound");
    let forged = [
        mailbox::check(owner.tag, [7; 8], id, |_| [0; 16]),
        mailbox::check(owner.tag, [7; 8], id, |body| session.mac(body)),
    ];
    for forged in forged {
        assert_eq!(world.send(owner.address, &forged), Out::Nothing);
    }
    let unbound = mailbox::check(asker.tag, [7; 8], id, |_| [0; 16]);
    assert_eq!(world.send(asker.address, &unbound), Out::Nothing, "a visitor has no mailbox");
    assert_eq!(check(&mut world, &owner, MailId::NONE), Some((id, 1)));
}

#[test]
fn a_request_that_is_posted_again_is_kept_once() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    public(&mut world, &db);
    let asker = world.visit("198.51.100.9:5000");
    for _ in 0..5 {
        assert_eq!(post(&mut world, &asker, &db.id, 1).reply_len(), mailbox::POSTED);
    }
    assert_eq!(world.relay.occupancy().mail, 1);
}

#[test]
fn one_networks_flood_displaces_its_own_mail_only() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    let owner = public(&mut world, &db);
    let honest = world.visit("198.51.100.9:5000");
    post(&mut world, &honest, &db.id, 200);
    let flooder = world.visit("203.0.113.5:5000");
    for round in 0..100 {
        post(&mut world, &flooder, &db.id, round);
        world.pass(Duration::from_secs(1));
        world.send(flooder.address, &frame::keepalive(flooder.tag, [0; 8]));
        world.send(owner.address, &frame::keepalive(owner.tag, [0; 8]));
    }
    assert_eq!(world.relay.occupancy().mail, 1 + 4);
    let (_, mark) = check(&mut world, &owner, MailId::NONE).expect("it is there");
    assert_eq!(mark, 200, "the oldest, of who did not flood");
}

#[test]
fn floods_from_many_networks_and_for_many_mailboxes_stay_within_memory() {
    let memory = 256 << 10;
    let mut world = World::new(Access::Open, Limits { mailbox_memory: memory, ..Limits::open() });
    let agents: Vec<_> = (0..40).map(|n| agent(1, &format!("db-{n}"), 10 + n)).collect();
    for (n, agent) in agents.iter().enumerate() {
        let client = world.bind(&format!("192.0.{n}.7:4000"), agent);
        check(&mut world, &client, MailId::NONE);
    }
    for network in 0..60_u8 {
        let flooder = world.visit(&format!("203.0.{network}.5:5000"));
        for agent in &agents {
            post(&mut world, &flooder, &agent.id, network);
        }
        let held = world.relay.occupancy();
        assert!(held.mailbox_memory <= memory, "{held:?}");
    }
    let held = world.relay.occupancy();
    assert_eq!(held.mailboxes, 40, "mailboxes stay, mail goes");
    assert!(held.mail > 50, "{held:?}");
}

#[test]
fn a_mailbox_holds_twenty_and_a_network_posts_ten_at_once() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    public(&mut world, &db);
    for network in 0..30_u8 {
        let asker = world.visit(&format!("203.0.{network}.5:5000"));
        let answered = (0..15).filter(|n| post(&mut world, &asker, &db.id, network ^ n << 5).reply_len() > 0).count();
        assert_eq!(answered, 10);
    }
    assert_eq!(world.relay.occupancy().mail, 20);
}

#[test]
fn an_authority_has_only_so_many_mailboxes() {
    let limits = Limits {
        handshakes: peerage_relay_proto::Rate::new(1_000_000, 1_000_000),
        mailboxes_per_network: 10_000,
        ..Limits::open()
    };
    let mut world = World::new(Access::Open, limits);
    // One instance under one name after the other: what counts are the mailboxes that stay behind.
    for n in 0..1_002 {
        let client = world.bind(HOME, &agent(1, &format!("agent-{n}"), 10));
        check(&mut world, &client, MailId::NONE);
    }
    assert_eq!(world.relay.occupancy().mailboxes, 1_000);
    let other = world.bind("192.0.2.8:4000", &agent(2, "other", 11));
    check(&mut world, &other, MailId::NONE);
    assert_eq!(world.relay.occupancy().mailboxes, 1_001, "another authority's");
}

fn unbind(world: &mut World, client: &Client) {
    let session = client.session.clone().expect("bound");
    world.send(client.address, &frame::unbind(client.tag, client.id, |body| session.mac(body)));
}

/// Opens mailbox after mailbox from one address: each bind there ends the one before.
fn open_many(world: &mut World, from: &str, count: u16) {
    for n in 0..count {
        let client = world.bind(from, &agent(9, &format!("made-up-{n}"), 99));
        check(world, &client, MailId::NONE);
    }
}

fn is_published(world: &mut World, authority_seed: u8, name: &str, asker: &Client) -> bool {
    look_up(world, asker, name)[0] == authority(authority_seed).record().as_bytes()
}

#[test]
fn a_network_that_opens_too_many_mailboxes_closes_its_own_and_nobody_elses() {
    let limits = Limits { mailboxes_per_network: 10, ..Limits::open() };
    let mut world = World::new(Access::Open, limits);
    let away = agent(1, "away", 10);
    let client = public(&mut world, &away);
    let asker = world.visit("198.51.100.9:5000");
    post(&mut world, &asker, &away.id, 1);
    unbind(&mut world, &client);
    let first = world.bind("203.0.113.1:4000", &agent(2, "first", 11));
    check(&mut world, &first, MailId::NONE);
    world.pass(Duration::from_secs(1));
    open_many(&mut world, "203.0.113.5:4000", 40);
    assert_eq!(world.relay.occupancy().mailboxes, 1 + 10);
    assert_eq!(world.relay.occupancy().mail, 1, "what waits elsewhere stays");
    assert!(is_published(&mut world, 1, "away", &asker), "of another network");
    assert!(is_published(&mut world, 2, "first", &asker), "a neighbour that is bound");
    assert!(!is_published(&mut world, 9, "made-up-0", &asker), "the flood's own are what went");
}

#[test]
fn made_up_authorities_leave_half_the_memory_to_mail_and_places_to_who_comes() {
    let memory = 64 << 10;
    let mut world = World::new(Access::Open, Limits { mailbox_memory: memory, ..Limits::open() });
    let kept = agent(1, "kept", 10);
    public(&mut world, &kept);
    let asker = world.visit("198.51.100.9:5000");
    world.pass(Duration::from_secs(1));
    open_many(&mut world, "203.0.113.5:4000", 100);
    let full = world.relay.occupancy();
    assert!(full.mailboxes < 100 && full.mailbox_memory <= memory / 2, "{full:?}");
    for mark in 1..=3 {
        post(&mut world, &asker, &kept.id, mark);
    }
    assert_eq!(world.relay.occupancy().mail, 3);
    let late = agent(3, "late", 12);
    let client = world.bind("192.0.8.7:4000", &late);
    check(&mut world, &client, MailId::NONE);
    assert!(is_published(&mut world, 3, "late", &asker), "there is a place for who comes later");
    assert!(is_published(&mut world, 1, "kept", &asker), "and who is bound keeps it, although heard before the flood");
    let after = world.relay.occupancy();
    assert_eq!((after.mailboxes, after.mail), (full.mailboxes, 3), "mail did not pay for it");
}

#[test]
fn where_every_owner_is_bound_no_mailbox_is_closed_for_another() {
    let mut world = World::new(Access::Open, Limits { mailboxes_per_network: 3, ..Limits::open() });
    for n in 0..5_u8 {
        let client = world.bind(&format!("192.0.2.{n}:4000"), &agent(n + 1, &format!("db-{n}"), 10 + n));
        check(&mut world, &client, MailId::NONE);
    }
    assert_eq!(world.relay.occupancy().mailboxes, 3);
    let asker = world.visit("198.51.100.9:5000");
    let published: Vec<bool> = (0..5_u8).map(|n| is_published(&mut world, n + 1, &format!("db-{n}"), &asker)).collect();
    assert_eq!(published, [true, true, true, false, false]);
}

#[test]
fn who_is_not_known_is_challenged_and_a_wrong_tag_gets_nothing() {
    let mut world = World::open();
    let stranger = addr("198.51.100.77:1");
    let tag = frame::Tag([3; 6]);
    for frame in [
        mailbox::lookup(tag, [1; 8], key("db"), &asking().public()).to_vec(),
        mailbox::post(tag, [1; 8], RoutingId([1; 16]), &sealed(1)),
    ] {
        assert_eq!(world.send(stranger, &frame).reply_len(), frame::COOKIE);
    }
    let asker = world.visit("198.51.100.9:5000");
    let forged = mailbox::lookup(tag, [1; 8], key("db"), &asking().public());
    assert_eq!(world.send(asker.address, &forged), Out::Nothing);
    assert_eq!(world.relay.counters().dropped(DropReason::WrongTag), 1);
}

#[test]
fn an_answer_is_authenticated_for_who_asked() {
    let mut world = World::open();
    let asker = world.visit("198.51.100.9:5000");
    let answer = try_look_up(&mut world, &asker, "db").expect_reply();
    let (relay, e) = (world.relay_key(), asking().public());
    let answers = mailbox::answer_key(&asking().agree(&relay).expect("good keys"), &relay, &e);
    assert!(answers.verifies(&answer));
    let unusable = mailbox::lookup(asker.tag, [5; 8], key("db"), &AgreementKey([0; 32]));
    assert_eq!(world.send(asker.address, &unusable), Out::Nothing);
}

#[test]
fn look_ups_are_limited_per_network_and_in_all() {
    let mut world = World::open();
    let asker = world.visit("198.51.100.9:5000");
    let answered = (0..50).filter(|_| try_look_up(&mut world, &asker, "db").reply_len() > 0).count();
    assert_eq!(answered, 20);
    let mut total = answered;
    for network in 0..30_u8 {
        let asker = world.visit(&format!("203.0.{network}.5:5000"));
        total += (0..20).filter(|_| try_look_up(&mut world, &asker, "db").reply_len() > 0).count();
    }
    assert_eq!(total, 200, "enumerating from everywhere is slow, too");
}

#[test]
fn a_draining_relay_takes_no_mail() {
    let mut world = World::open();
    let db = agent(1, "db", 10);
    public(&mut world, &db);
    let asker = world.visit("198.51.100.9:5000");
    let now = world.now;
    world.relay.drain(now, Duration::from_secs(10));
    assert_eq!(post(&mut world, &asker, &db.id, 1), Out::Nothing, "so that it is posted to another relay, or later");
    assert_eq!(try_look_up(&mut world, &asker, "db"), Out::Nothing);
}
