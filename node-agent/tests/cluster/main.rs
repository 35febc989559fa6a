//! Agents in a cluster against an operator that is scripted here: real TLS, real frames, real tunnels over a relay.

mod agent;
mod operator;
#[expect(dead_code, reason = "shared with tests that need more of it")]
#[path = "../world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use peerage_model::operator::{GoAwayCode, Keepalive, Revision, Settings, ToAgent, ToOperator, Update};
use peerage_model::passport::{LIFETIME, RENEWAL};
use peerage_model::{Credential, PairSecret, TrustId};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use agent::{Agent, Pod, address, connected, delta, echo_service, entry, free_port, full, settings, until_free};
use operator::{Connection, Operator, PATIENCE, authority};
use world::relay;

/// Two agents that trust each other, over one operator and one relay.
struct Pair {
    operator: Operator,
    relay: world::TestRelay,
    pod: Pod,
    reporter: Agent,
    db: Agent,
    to_reporter: Connection,
    to_db: Connection,
    /// Where `db`'s port 80 is for programs beside `reporter`.
    here: u16,
    _db_pod: Pod,
}

const REPORTER: &str = "reporter.reports";
const DB: &str = "db.tools";

async fn pair() -> Pair {
    let (relay, authority) = (relay().await, authority());
    let operator = Operator::start(&authority).await;
    let (service, here, there) = (echo_service().await, free_port().await, free_port().await);
    let (pod, db_pod) = (Pod::new(), Pod::new());
    let reporter = pod.start(&[operator.address()], authority.fingerprint()).await;
    let (mut to_reporter, _) = operator.enrol(REPORTER).await;
    let db = db_pod.start(&[operator.address()], authority.fingerprint()).await;
    let (mut to_db, _) = operator.enrol(DB).await;
    let (us, them) = (to_db.agent(REPORTER), to_db.agent(DB));
    let theirs = entry(&authority, &them, &us, &relay.info, 2, there);
    to_db.update(full(10, vec![theirs], settings(&relay.info, service))).await;
    let ours = entry(&authority, &us, &them, &relay.info, 1, here);
    to_reporter.update(full(10, vec![ours], settings(&relay.info, service))).await;
    Pair { operator, relay, pod, reporter, db, to_reporter, to_db, here, _db_pod: db_pod }
}

/// That an open stream ends, and how long that took.
async fn reset(mut stream: TcpStream, since: Instant) -> Duration {
    let mut byte = [0];
    let ended = timeout(PATIENCE, stream.read(&mut byte)).await.expect("it ends in time");
    assert!(!matches!(ended, Ok(1..)), "nothing was sent on it");
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_enrolled_agents_reach_each_other_until_the_operator_takes_the_trust_back() {
    let mut pair = pair().await;
    let db = pair.to_db.agent(DB);
    let stream = connected(&db, pair.here).await;
    let status = pair.reporter.status_until("a session", |status| status.peers[0].path.is_some()).await;
    assert_eq!((status.agent.name.as_str(), status.peers[0].name.as_str()), (REPORTER, "db"));
    assert_eq!(status.operator.as_ref().and_then(|operator| operator.revision), Some((1, 10)));
    let failure = pair.reporter.ask("requests").await.expect_err("it is for resources to say");
    assert_eq!(failure["code"], "in_cluster");

    let begun = Instant::now();
    let refused = pair.to_reporter.update(Update { gone: vec![TrustId([101; 16])], ..delta(11) }).await;
    let took = reset(stream, begun).await;
    println!("from the operator's word to the reset of an open stream: {took:?}");
    assert_eq!(refused, 1, "it was told of one, and does not act on it");
    let metrics = pair.reporter.metrics().await;
    assert!(metrics.contains("peerage_agent_revocation_seconds_count 1\n"), "{metrics}");
    pair.reporter.status_until("nobody is trusted", |status| status.peers.is_empty()).await;
    let gone = TcpStream::connect((address(&db), pair.here)).await;
    assert!(gone.is_err(), "nothing listens for a peer that is gone");
    pair.reporter.stop().await;
    pair.db.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_hears_which_keys_a_peer_of_another_authority_has_and_which_follow() {
    let (relay, ours, theirs) = (relay().await, authority(), authority());
    let (operator, far_operator) = (Operator::start(&ours).await, Operator::start(&theirs).await);
    let (pod, far_pod, service) = (Pod::new(), Pod::new(), echo_service().await);
    let reporter = pod.start(&[operator.address()], ours.fingerprint()).await;
    let (mut to_reporter, _) = operator.enrol(REPORTER).await;
    let db = far_pod.start(&[far_operator.address()], theirs.fingerprint()).await;
    let (mut to_db, enrolled) = far_operator.enrol(DB).await;
    let (us, them) = (to_reporter.agent(REPORTER), to_db.agent(DB));
    let secret = PairSecret::between(ours.agreement(), theirs.record().agreement_key(), &us, &them).expect("good keys");
    for (to, us, them, number) in [(&mut to_db, &them, &us, 2), (&mut to_reporter, &us, &them, 1)] {
        let mut entry = entry(&ours, us, them, &relay.info, number, free_port().await);
        entry.peer.secrets = vec![secret.clone()];
        to.update(full(10, vec![entry], settings(&relay.info, service))).await;
    }
    to_reporter.hear_of(theirs.record()).await;
    let followed = to_db.rotate();
    to_db.passport(DB, &enrolled.key, LIFETIME).await;
    to_reporter.hear_of(&followed).await;
    reporter.stop().await;
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_restarts_while_the_operator_is_away_works_on_and_then_resumes() {
    let Pair { operator, relay: _relay, pod, reporter, db, to_reporter, to_db, here, _db_pod } = pair().await;
    let (authority, at) = (operator.authority.clone(), operator.address());
    let peer = to_db.agent(DB);
    drop(connected(&peer, here).await);
    drop((operator, to_reporter, to_db));
    reporter.stop().await;
    until_free(&peer, here).await;

    let again = pod.start(&[at], authority.fingerprint()).await;
    drop(connected(&peer, here).await);
    let away = again.status_until("it says that it has no stream", |status| !status.problems.is_empty()).await;
    assert_eq!(away.agent.name.as_str(), REPORTER);
    assert!(!away.operator.expect("it is in a cluster").connected);

    let operator = Operator::start_at(&authority, at).await;
    let first = operator.resume().await;
    let second = operator.resume().await;
    let names = [&first, &second].map(|(_, resume)| {
        let shown = Credential::verify(&resume.credential, world::wall()).expect("it is good");
        assert_eq!(resume.have.as_ref().map(Revision::newest), Some(10), "it says what it has applied");
        shown.agent().name.to_string()
    });
    assert!(names.contains(&REPORTER.to_owned()) && names.contains(&DB.to_owned()), "{names:?}");
    again.stop().await;
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_an_operator_of_another_authority_no_token_and_no_other_byte_is_sent() {
    let (ours, pod) = (authority(), Pod::new());
    let impostor = Operator::start(&authority()).await;
    let agent = pod.start(&[impostor.address()], ours.fingerprint()).await;
    for _ in 0..2 {
        let mut connection = impostor.accept().await;
        connection.hello().await;
        assert_eq!(connection.rest().await, b"", "it closes without a word, and comes again");
    }
    let failure = agent.failure_until("speaks for the authority").await;
    assert_eq!(failure["code"], "not_enrolled");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middlebox_that_passes_the_operators_hello_on_gets_no_token() {
    let (ours, pod) = (authority(), Pod::new());
    let operator = Operator::start(&ours).await;
    let agent = pod.start(&[operator.address()], ours.fingerprint()).await;
    let mut connection = operator.accept().await;
    // A good proof of the right authority, but for another TLS session.
    connection.binding = peerage_model::operator::ChannelBinding::new(zeroize::Zeroizing::new([1; 32]));
    connection.hello().await;
    assert_eq!(connection.rest().await, b"");
    agent.failure_until("something in between may open TLS").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_shown_with_what_to_do_and_the_next_attempt_reads_the_token_anew() {
    let (ours, pod) = (authority(), Pod::new());
    let operator = Operator::start(&ours).await;
    let agent = pod.start(&[operator.address()], ours.fingerprint()).await;
    let mut connection = operator.accept().await;
    connection.hello().await;
    let first = connection.expect_enrol().await;
    assert_eq!(first.token, "first-token");
    pod.write_token("second-token\n");
    let text = "no AgentPeer in `test` selects this pod; apply one, or label the pod";
    connection.go_away(GoAwayCode::NoAgent, text).await;
    agent.failure_until(text).await;
    let (mut connection, second) = operator.enrol(DB).await;
    assert_eq!((second.token.as_str(), second.key), ("second-token", first.key), "the key stays");
    connection.update(full(1, vec![], Settings::default())).await;
    agent.status_until("it is enrolled", |status| status.agent.name.as_str() == DB).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_passport_that_is_an_hour_old_is_renewed_in_the_same_stream() {
    let (ours, pod) = (authority(), Pod::new());
    let operator = Operator::start(&ours).await;
    let agent = pod.start(&[operator.address()], ours.fingerprint()).await;
    let mut connection = operator.accept().await;
    connection.hello().await;
    let enrol = connection.expect_enrol().await;
    connection.passport(DB, &enrol.key, LIFETIME - RENEWAL).await;
    let renew = connection.next().await;
    assert!(matches!(renew, ToOperator::Renew(_)), "{renew:?}");
    connection.passport(DB, &enrol.key, LIFETIME).await;
    let fresh = world::wall().plus(LIFETIME - Duration::from_secs(600));
    agent.status_until("the fresh one is in use", |status| status.passport_until > fresh).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_behind_brings_no_trust_back() {
    let (ours, pod, relay) = (authority(), Pod::new(), relay().await);
    let operator = Operator::start(&ours).await;
    let agent = pod.start(&[operator.address()], ours.fingerprint()).await;
    let (mut first, _) = operator.enrol(REPORTER).await;
    let us = first.agent(REPORTER);
    let trust = |name: &str, number| entry(&ours, &us, &first.agent(name), &relay.info, number, 40_000);
    let (a, b) = (trust("a.x", 1), trust("b.x", 2));
    let (both, own) = (vec![a.clone(), b.clone()], settings(&relay.info, 9));
    first.update(full(10, both.clone(), own.clone())).await;
    let withdrawn = Update { gone: vec![TrustId([1; 16])], withdrawn: vec![b.peer.id.clone()], ..delta(12) };
    first.update(withdrawn).await;
    drop(first);

    let (mut stale, resume) = operator.resume().await;
    assert_eq!(resume.have.as_ref().map(Revision::newest), Some(12));
    assert_eq!(stale.update(full(11, both.clone(), own.clone())).await, 2, "neither comes back");
    let status = agent.status_until("nobody is trusted", |status| status.peers.is_empty()).await;
    assert!(status.problems.join("\n").contains("has not seen yet what this agent was told"), "{status:?}");
    assert_eq!(status.operator.and_then(|operator| operator.revision), Some((1, 12)));
    let caught_up = stale.update(delta(13)).await;
    assert_eq!(caught_up, 1, "what was only withdrawn may come back with a later word; what is gone does not");
    agent.status_until("one peer", |status| status.peers.len() == 1 && status.peers[0].name == "b").await;
    drop(stale);
    agent.stop().await;

    let again = pod.start(&[operator.address()], ours.fingerprint()).await;
    let (mut later, _) = operator.resume().await;
    assert_eq!(later.update(full(99, both, own)).await, 1, "also after a restart");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_an_operator_was_heard_is_kept_though_nothing_changes() {
    let (ours, pod) = (authority(), Pod::new());
    let operator = Operator::start(&ours).await;
    let agent = pod.start(&[operator.address()], ours.fingerprint()).await;
    let (mut connection, _) = operator.enrol(DB).await;
    connection.update(full(1, vec![], Settings { max_staleness: Some(4), ..Settings::default() })).await;
    let kept = || std::fs::read(pod.folder.path().join("state/heard")).expect("it is kept from the first on");
    let first = kept();
    let confirmed = async {
        while kept() == first {
            connection.send(&ToAgent::Keepalive(Keepalive {})).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, confirmed).await.expect("a restart would not know");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_instance_resets_its_streams_and_comes_back_with_another_key() {
    let pair = pair().await;
    let db = pair.to_db.agent(DB);
    let stream = connected(&db, pair.here).await;
    let old = std::fs::read(pair.pod.folder.path().join("state/instance.key")).expect("it is kept");
    let begun = Instant::now();
    pair.to_reporter.go_away(GoAwayCode::Denied, "the pod was enrolled with another key").await;
    reset(stream, begun).await;
    let (mut connection, enrol) = pair.operator.enrol(REPORTER).await;
    let us = connection.agent(REPORTER);
    let ours = entry(&pair.operator.authority, &us, &db, &pair.relay.info, 1, pair.here);
    connection.update(full(11, vec![ours], settings(&pair.relay.info, 9))).await;
    assert!(!old.windows(32).any(|window| {
        let key: [u8; 32] = window.try_into().expect("32 bytes");
        peerage_model::AgreementSecret::from_bytes(key).public() == enrol.key
    }));
    drop(connected(&db, pair.here).await);
    pair.reporter.stop().await;
    pair.db.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_ends_the_connection_and_says_so() {
    let (ours, pod) = (authority(), Pod::new());
    let operator = Operator::start(&ours).await;
    let agent = pod.start(&[operator.address()], ours.fingerprint()).await;
    for (bytes, said) in [
        (&[0, 0, 0, 3, 0x82, 0x02, 0x01][..], "no message: a frame is not a message of kind Some(2)"),
        (&[0xff, 0xff, 0xff, 0xff], "a frame of 4294967295 bytes"),
    ] {
        let mut connection = operator.accept().await;
        connection.hello().await;
        connection.expect_enrol().await;
        connection.send_bytes(bytes).await;
        assert_eq!(connection.rest().await, b"");
        agent.failure_until(said).await;
    }
    let (mut connection, _) = operator.enrol(DB).await;
    connection.send(&ToAgent::Update(Box::new(Update { sequence: 1, ..Update::default() }))).await;
    connection.rest().await;
    let status = agent.status_until("the reason", |status| !status.problems.is_empty()).await;
    let problems = status.problems.join("\n");
    assert!(problems.contains("does not say that it is everything"), "{problems}");
    agent.stop().await;
}
