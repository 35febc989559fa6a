//! The daemon over a tunnel that is not there: what people ask, what the engine is told.

use std::sync::Mutex;
use std::task::{Context, Poll};

use peerage_model::control::TrustRequest;
use peerage_model::linking::OPERATOR;
use peerage_model::mailbox::MailRequest;
use peerage_model::relay::RelayInfo;
use peerage_model::relay::frame::mailbox::{MailId, SEALED};
use peerage_model::stream::{StreamHeader, StreamStatus};
use peerage_model::{Authority, AuthorityRecord, Credential, RoutingId, Snapshot, Ticket, TrustId, UnixTime, passport};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

use super::link::{Boxed, Found, Link, LinkSession, LinkStatus};
use super::*;
use crate::control::view::{
    Approved, Asked, Invited, OpenTicket, Peer, PeerState, Pending as Asking, Revoked, Rotated, Status,
};
use crate::control::{Request, Terms, client};
use crate::tunnel::{Dial, DialError, Duplex, Opened};

/// A tunnel that remembers what it was told, and resets what a snapshot leaves out, as the engine does.
struct FakeLink {
    snapshots: Mutex<Vec<Snapshot>>,
    asked: Mutex<Vec<(String, TrustRequest)>>,
    sessions: Mutex<Vec<AgentId>>,
    refuse_asks: Mutex<bool>,
    /// One request at a time; a test that holds the permit holds them all up.
    asking: tokio::sync::Semaphore,
    receipts: Mutex<Vec<StreamStatus>>,
    /// What the first read of every stream says.
    refuses: Mutex<Option<DialError>>,
    /// What every relay says to a look-up.
    published: Mutex<Vec<AuthorityRecord>>,
    posts: Mutex<Vec<(RoutingId, [u8; SEALED])>>,
    done: Mutex<Vec<MailId>>,
    events: mpsc::Sender<LinkEvent>,
}

/// Of memory: no session that could end, and a peer that always listens.
impl Duplex for tokio::io::DuplexStream {
    fn poll_lost(&mut self, _: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }

    fn poll_unwanted(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

/// A stream that its peer has refused.
struct Refused(DialError);

impl tokio::io::AsyncRead for Refused {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionRefused, self.0.clone())))
    }
}

impl tokio::io::AsyncWrite for Refused {
    fn poll_write(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Duplex for Refused {
    fn poll_lost(&mut self, _: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }

    fn poll_unwanted(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Dial for FakeLink {
    fn dial<'a>(&'a self, peer: &'a AgentId, _: StreamHeader) -> Boxed<'a, Result<Opened, DialError>> {
        Box::pin(async move {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            if !self.sessions.lock().expect("no panic").contains(peer) {
                return Err(DialError::NotTrusted { peer: peer.clone() });
            }
            if let Some(refused) = self.refuses.lock().expect("no panic").clone() {
                return Ok(Opened::Stream(Box::new(Refused(refused))));
            }
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(&mut theirs);
                // Ends with the stream.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            Ok(Opened::Stream(Box::new(ours)))
        })
    }
}

impl Link for FakeLink {
    fn apply(&self, snapshot: Snapshot) {
        let trusted = |peer: &AgentId| snapshot.peers.iter().any(|entry| entry.id == *peer);
        let mut sessions = self.sessions.lock().expect("no panic");
        for peer in sessions.extract_if(.., |peer| !trusted(peer)) {
            let why = "trust was revoked here".to_owned();
            let down = LinkEvent::SessionDown { peer: peer.clone(), reason: why.clone() };
            self.events.try_send(LinkEvent::StreamsReset { peer, count: 2, why }).expect("there is room");
            self.events.try_send(down).expect("there is room");
        }
        self.snapshots.lock().expect("no panic").push(snapshot);
    }

    fn renew(&self, _: Vec<u8>) {}

    fn ask<'a>(&'a self, ticket: &'a Ticket, request: TrustRequest) -> Boxed<'a, Result<(), Failure>> {
        Box::pin(async move {
            let _turn = self.asking.acquire().await.expect("nobody closes it");
            if *self.refuse_asks.lock().expect("no panic") {
                return Err(Failure::new(Code::Unreachable, "nobody answered", "ask for a new ticket"));
            }
            self.asked.lock().expect("no panic").push((ticket.inviter().to_string(), request));
            Ok(())
        })
    }

    fn answer_request(&self, _: TrustId, status: StreamStatus) {
        self.receipts.lock().expect("no panic").push(status);
    }

    fn look_up<'a>(&'a self, _: &'a AgentName, relays: &'a [RelayInfo]) -> Boxed<'a, Vec<Found>> {
        let records = self.published.lock().expect("no panic").clone();
        Box::pin(std::future::ready(relays.iter().map(|relay| (relay.clone(), records.clone())).collect()))
    }

    fn post<'a>(
        &'a self,
        to: RoutingId,
        sealed: &'a [u8; SEALED],
        relays: &'a [RelayInfo],
    ) -> Boxed<'a, Vec<RelayInfo>> {
        self.posts.lock().expect("no panic").push((to, *sealed));
        Box::pin(std::future::ready(relays.to_vec()))
    }

    fn mail_done(&self, _: &RelayInfo, id: MailId) {
        self.done.lock().expect("no panic").push(id);
    }

    fn status(&self) -> Boxed<'_, LinkStatus> {
        let session = |peer: &AgentId| LinkSession {
            clock_ahead: None,
            peer: peer.clone(),
            instance: InstanceId([1; 8]),
            path: "direct".into(),
            rtt: Some(Duration::from_micros(1500)),
            since: time::now(),
            why_not_better: None,
            bytes_in: 0,
            bytes_out: 0,
            streams: 2,
            mtu: None,
        };
        let sessions = self.sessions.lock().expect("no panic").iter().map(session).collect();
        Box::pin(std::future::ready(LinkStatus { sessions, ..LinkStatus::default() }))
    }

    fn shutdown(&self) -> Boxed<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

struct Running {
    place: Place,
    link: Arc<FakeLink>,
    us: AgentId,
    stopper: Stopper,
    running: tokio::task::JoinHandle<Result<(), Failure>>,
    _dir: tempfile::TempDir,
}

fn relay() -> RelayInfo {
    let key = data_encoding::BASE32_NOPAD.encode(&[5; 32]);
    format!("{key}@relay.example:3478").parse().expect("a relay")
}

fn options(hostname: &str) -> Options {
    Options { hostname: Some(hostname.parse().expect("a name")), relays: vec![relay()], ..Options::default() }
}

fn fake() -> (Arc<FakeLink>, Starter) {
    let (events, heard) = mpsc::channel(16);
    let link = Arc::new(FakeLink {
        snapshots: Mutex::default(),
        asked: Mutex::default(),
        sessions: Mutex::default(),
        refuse_asks: Mutex::default(),
        asking: tokio::sync::Semaphore::new(1),
        receipts: Mutex::default(),
        refuses: Mutex::default(),
        published: Mutex::default(),
        posts: Mutex::default(),
        done: Mutex::default(),
        events,
    });
    let started = Arc::clone(&link);
    let starter: Starter = Box::new(move |_| Ok((started as Arc<dyn Link>, heard, mpsc::channel(1).1)));
    (link, starter)
}

async fn daemon(hostname: &str) -> Running {
    let dir = tempfile::tempdir().expect("a directory");
    let place = Place::find(Some(dir.path())).expect("a flag is a place");
    let (link, starter) = fake();
    let daemon = start(place.clone(), options(hostname), starter).await.expect("it starts");
    let (us, stopper) = (daemon.agent().clone(), daemon.stopper());
    Running { place, link, us, stopper, running: tokio::spawn(daemon.run()), _dir: dir }
}

impl Running {
    async fn ask<T: serde::de::DeserializeOwned>(&self, request: Request) -> Result<T, Failure> {
        client::call(&self.place, &request).await
    }

    async fn invite(&self) -> Ticket {
        let invited: Invited = self.ask(Request::Invite { expires_s: 60 }).await.expect("there is a relay");
        Ticket::parse(&invited.ticket, time::now()).expect("it is a ticket")
    }

    fn last_snapshot(&self) -> Snapshot {
        self.link.snapshots.lock().expect("no panic").last().expect("one at the start").clone()
    }
}

/// What the engine tells the inviter when `asker` has asked over `invite`.
fn trust_requested(asker: &Authority, name: &str, invite: TrustId) -> LinkEvent {
    let agent = asker.agent(name.parse().expect("a name"));
    let key = AgreementSecret::from_bytes([9; 32]).public();
    let passport = asker.issue(&agent, key, time::now(), time::now().plus(passport::LIFETIME));
    let credential = Credential::join(asker.record(), passport);
    let asker = Box::new(Credential::verify(&credential, time::now()).expect("it is good"));
    let request = TrustRequest { reason: "to work together".into(), relays: vec![relay()] };
    LinkEvent::TrustRequested { invite, asker, request }
}

async fn until_requested(running: &Running) -> Vec<Asking> {
    loop {
        let requests: Vec<Asking> = running.ask(Request::Requests).await.expect("it answers");
        if !requests.is_empty() {
            return requests;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_invited_asker_is_listed_approved_and_told_to_the_engine() {
    let inviter = daemon("db").await;
    let ticket = inviter.invite().await;
    let open = inviter.last_snapshot().invites;
    assert_eq!(open.len(), 1);
    let secret = peerage_model::PairSecret::of_invite(ticket.secret.expose(), &inviter.us);
    assert_eq!(open[0].secret, secret, "the ticket's holder derives what we listen for");

    let asker = Authority::new(&Zeroizing::new([7; 96]), time::now());
    inviter.link.events.send(trust_requested(&asker, "planner", open[0].id)).await.expect("it hears");
    let requests = until_requested(&inviter).await;
    assert_eq!((requests[0].name.as_str(), requests[0].reason.as_str()), ("planner", "to work together"));
    let receipts = || inviter.link.receipts.lock().expect("no panic").clone();
    while receipts().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(receipts(), [StreamStatus::Open], "the asker's receipt says that the request is on disk");
    assert!(inviter.last_snapshot().invites.is_empty(), "a ticket works once");

    let request = Request::Approve { name: "planner".into(), terms: Terms::default() };
    let approved: Approved = inviter.ask(request).await.expect("one asks");
    assert_eq!(approved.inbound, "everything exposed");
    let snapshot = inviter.last_snapshot();
    assert_eq!(snapshot.peers[0].id, asker.agent("planner".parse().expect("a name")));
    assert_eq!(snapshot.peers[0].relays, [relay()]);
}

#[tokio::test]
async fn a_ticket_that_went_to_the_wrong_person_is_withdrawn_by_its_text_or_its_id() {
    let inviter = daemon("db").await;
    let list = async || inviter.ask::<Vec<OpenTicket>>(Request::Tickets).await.expect("it answers");
    let withdraw = async |ticket: &str| {
        inviter.ask::<Vec<OpenTicket>>(Request::Withdraw { ticket: ticket.into() }).await.map_err(|error| error.code)
    };
    let (first, second) = (inviter.invite().await, inviter.invite().await);
    let [_, left] = &list().await[..] else { panic!("both are open") };
    assert_eq!(withdraw(&first.to_string()).await.map(|gone| gone.len()), Ok(1));
    assert_eq!(&list().await, std::slice::from_ref(left));
    let secret = peerage_model::PairSecret::of_invite(second.secret.expose(), &inviter.us);
    let listened_for = inviter.last_snapshot().invites;
    assert_eq!(listened_for.iter().map(|invite| &invite.secret).collect::<Vec<_>>(), [&secret]);
    assert_eq!(withdraw(&first.to_string()).await, Err(Code::UnknownTicket), "it is withdrawn already");
    assert_eq!(withdraw(&left.id[..8]).await.map(|gone| gone.len()), Ok(1));
    assert_eq!(inviter.last_snapshot().invites, []);
}

#[tokio::test]
async fn who_asked_by_a_ticket_that_is_withdrawn_before_it_is_written_down_is_told_no() {
    let inviter = daemon("db").await;
    let _ticket = inviter.invite().await;
    let used = inviter.last_snapshot().invites[0].id;
    let all = Request::Withdraw { ticket: "all".into() };
    inviter.ask::<Vec<OpenTicket>>(all).await.expect("it is taken back");
    let asker = Authority::new(&Zeroizing::new([7; 96]), time::now());
    inviter.link.events.send(trust_requested(&asker, "planner", used)).await.expect("it hears");
    let receipts = || inviter.link.receipts.lock().expect("no panic").clone();
    while receipts().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(receipts(), [StreamStatus::Denied], "that ticket is good for nothing more");
    assert_eq!(inviter.ask::<Vec<Asking>>(Request::Requests).await.expect("it answers"), []);
}

#[tokio::test]
async fn a_handshake_gives_our_consent_before_it_asks() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    let ticket = inviter.invite().await;
    let request =
        Request::Handshake { ticket: ticket.to_string(), to: None, reason: "why".into(), terms: Terms::default() };
    let asked: Asked = asker.ask(request).await.expect("the ticket is good");
    assert_eq!((asked.peer, asked.inbound.as_str()), (inviter.us.clone(), "nothing"));
    assert_eq!(asker.last_snapshot().peers[0].id, inviter.us);
    assert_eq!(asker.link.asked.lock().expect("no panic").len(), 1);
}

#[tokio::test]
async fn a_clusters_ticket_is_for_the_agent_that_its_holder_names() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    let ticket = inviter.invite().await;
    let operators = Ticket { name: OPERATOR.parse().expect("a name"), ..ticket.clone() };
    let ask_by = |ticket: &Ticket, to: Option<&str>| Request::Handshake {
        ticket: ticket.to_string(),
        to: to.map(str::to_owned),
        reason: "why".into(),
        terms: Terms::default(),
    };
    for nobody in [None, Some(OPERATOR), Some("db")] {
        let refused = asker.ask::<Asked>(ask_by(&operators, nobody)).await.expect_err("that is no agent of a cluster");
        assert!(refused.message.contains("--to NAME.NAMESPACE"), "{refused}");
    }
    let elsewhere = asker.ask::<Asked>(ask_by(&ticket, Some("db.tools"))).await;
    elsewhere.expect_err("the ticket is of one agent: who is asked is who is trusted");
    let asked: Asked = asker.ask(ask_by(&operators, Some("db.tools"))).await.expect("the ticket is good");
    assert_eq!((asked.peer.authority, asked.peer.name.as_str()), (inviter.us.authority, "db.tools"));
    assert_eq!(asker.last_snapshot().peers[0].id, asked.peer);
    assert_eq!(asker.link.asked.lock().expect("no panic").len(), 1, "who made the ticket is asked");
}

#[tokio::test]
async fn an_agent_that_starts_without_a_relay_says_so() {
    let problems = async |options: Options| {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::find(Some(dir.path())).expect("a flag is a place");
        start(place, options, fake().1).await.expect("it starts").problems()
    };
    let without = problems(Options { relays: Vec::new(), ..options("db") }).await;
    assert!(matches!(&without[..], [only] if only.contains("--relay")), "{without:?}");
    assert_eq!(problems(options("db")).await, [""; 0]);
}

#[tokio::test]
async fn a_machine_is_not_called_as_an_operator_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = Place::find(Some(dir.path())).expect("a flag is a place");
    let refused = start(place, options(OPERATOR), fake().1).await.expect_err("clusters would take it for one");
    assert!(refused.hint.contains("--hostname"), "{refused}");
}

#[tokio::test]
async fn a_machine_is_not_called_as_an_agent_of_a_cluster_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = Place::find(Some(dir.path())).expect("a flag is a place");
    let refused = start(place, options("db.tools"), fake().1).await.expect_err("clusters would refuse it");
    assert!(refused.message.contains("db.tools") && refused.hint.ends_with("--hostname db`"), "{refused}");
}

#[tokio::test]
async fn who_asks_does_not_wait_for_the_disk_of_who_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = Place::find(Some(dir.path())).expect("a flag is a place");
    let (_link, starter) = fake();
    let daemon = start(place.clone(), options("db"), starter).await.expect("it starts");
    let agent = Arc::clone(&daemon.agent);
    let running = tokio::spawn(daemon.run());
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel();
    let slow_disk = tokio::spawn(async move {
        let change = agent.change(move |_, _| {
            let _ = begun.send(());
            Ok(goes_on.recv_timeout(Duration::from_secs(60)).is_ok())
        });
        change.await
    });
    begins.await.expect("the change begins");
    let _: Status = client::call(&place, &Request::Status).await.expect("it answers");
    go_on.send(()).expect("the change still waits");
    assert!(slow_disk.await.expect("no panic").expect("it is made"), "the answer came only after the change");
    running.abort();
}

/// Waits until the agent's peers are as many as that.
async fn until_peers(running: &Running, count: usize) {
    let looked = async {
        while running.ask::<Vec<Value>>(Request::Peers).await.expect("it answers").len() != count {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), looked).await.expect("they never are");
}

#[tokio::test]
async fn a_consent_whose_caller_has_hung_up_is_taken_back_all_the_same_when_its_peer_was_not_told() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    *asker.link.refuse_asks.lock().expect("no panic") = true;
    let held = asker.link.asking.acquire().await.expect("nobody closes it");
    let ticket = inviter.invite().await.to_string();
    let request = Request::Handshake { ticket, to: None, reason: "why".into(), terms: Terms::default() };
    let place = asker.place.clone();
    let caller = tokio::spawn(async move { client::call::<Asked>(&place, &request).await });
    until_peers(&asker, 1).await;
    caller.abort();
    assert!(caller.await.is_err(), "it has hung up");
    // A question that was asked after that is answered after it was heard.
    until_peers(&asker, 1).await;
    drop(held);
    until_peers(&asker, 0).await;
}

#[tokio::test]
async fn a_consent_has_an_end_that_can_be_written_down() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    let ticket = inviter.invite().await.to_string();
    for expires_s in [0, u64::MAX, 300_000_000_000] {
        let terms = Terms { expires_s: Some(expires_s), ..Terms::default() };
        let request = Request::Handshake { ticket: ticket.clone(), to: None, reason: "why".into(), terms };
        let refused = asker.ask::<Asked>(request).await.expect_err("no calendar has it");
        assert_eq!(refused.code, Code::BadRequest, "{refused}");
    }
}

#[tokio::test]
async fn a_consent_that_guesses_ports_for_a_path_that_it_forbids_is_refused() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    let ticket = inviter.invite().await.to_string();
    let path = crate::state::document::Path::RelayOnly;
    let with = |birthday| Request::Handshake {
        ticket: ticket.clone(),
        to: None,
        reason: "why".into(),
        terms: Terms { path: Some(path), birthday: Some(birthday), ..Terms::default() },
    };
    let refused = asker.ask::<Asked>(with(true)).await.expect_err("it is a contradiction");
    assert!(refused.code == Code::BadRequest && refused.message.contains("relay-only"), "{refused}");
    asker.ask::<Asked>(with(false)).await.expect("it says so twice");
}

fn by_name(name: &str) -> Request {
    Request::HandshakeByName { name: name.into(), relays: Vec::new(), reason: "why".into(), terms: Terms::default() }
}

fn stranger(seed: u8) -> Authority {
    Authority::new(&Zeroizing::new([seed; 96]), time::now())
}

#[tokio::test]
async fn a_handshake_by_name_pins_whom_the_relay_names_and_seals_the_request_to_it() {
    let asker = daemon("planner").await;
    let owner = stranger(1);
    asker.link.published.lock().expect("no panic").push(owner.record().clone());
    let asked: Asked = asker.ask(by_name("db")).await.expect("a relay answers");
    let db = owner.agent("db".parse().expect("a name"));
    assert_eq!((asked.peer, asked.mailboxes), (db.clone(), vec![relay().to_string()]));
    assert_eq!(asker.last_snapshot().peers[0].id, db);
    let (to, sealed) = asker.link.posts.lock().expect("no panic")[0];
    assert_eq!(to, db.routing_id());
    let request = MailRequest::open(&sealed, owner.agreement(), &db, time::now()).expect("it is for the owner");
    assert_eq!((request.asker(), request.reason.as_str()), (asker.us.clone(), "why"));
    assert_eq!(request.relays, [relay()]);
}

#[tokio::test]
async fn a_name_that_two_authorities_publish_is_decided_by_the_fingerprint() {
    let asker = daemon("planner").await;
    let owners = [stranger(1), stranger(2)];
    *asker.link.published.lock().expect("no panic") = owners.iter().map(|owner| owner.record().clone()).collect();
    let failure = asker.ask::<Asked>(by_name("db")).await.expect_err("which?");
    assert_eq!(failure.code, Code::AmbiguousName);
    let choice = |owner: &Authority| format!("db@{}", &owner.fingerprint().to_string()[..8]);
    for owner in &owners {
        assert!(failure.hint.contains(&choice(owner)), "{failure:?}");
    }
    let asked: Asked = asker.ask(by_name(&choice(&owners[1]))).await.expect("the second is meant");
    assert_eq!(asked.peer.authority, owners[1].fingerprint());
    let failure = asker.ask::<Asked>(by_name("db@0000000000")).await.expect_err("nobody");
    assert_eq!(failure.code, Code::UnknownPeer);
    assert_eq!(asker.last_snapshot().peers.len(), 1);
}

/// What a relay gives the owner out of its mailbox; `id` makes it another mail.
fn mail(
    owner: &AgentId,
    record: &AuthorityRecord,
    asker: &Authority,
    reason: &str,
    asked: UnixTime,
    id: u8,
) -> LinkEvent {
    let request = MailRequest {
        record: asker.record().clone(),
        name: "planner".parse().expect("a name"),
        relays: vec![relay()],
        reason: reason.into(),
        asked,
    };
    let e = AgreementSecret::from_bytes([id; 32]);
    let sealed = request.seal(asker, owner, record, &e).expect("it fits");
    LinkEvent::Mail { relay: relay(), id: MailId([id; 8]), sealed }
}

async fn until_done(running: &Running, mail: usize) {
    while running.link.done.lock().expect("no panic").len() < mail {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn mail_is_shown_once_and_what_was_answered_does_not_come_back() {
    let owner = daemon("db").await;
    let (record, asker, now) = (owner.invite().await.record, stranger(3), time::now());
    let arrives = |reason, asked, id| {
        let mail = mail(&owner.us, &record, &asker, reason, asked, id);
        assert!(owner.link.events.try_send(mail).is_ok(), "there is room");
    };
    arrives("to read reports", now, 1);
    until_done(&owner, 1).await;
    let waiting = until_requested(&owner).await;
    assert_eq!((waiting.len(), waiting[0].reason.as_str()), (1, "to read reports"));
    arrives("to read reports", now, 2);
    until_done(&owner, 2).await;
    let _: Value = owner.ask(Request::Reject { name: "planner".into() }).await.expect("it waits");
    arrives("to read reports", now, 3);
    until_done(&owner, 3).await;
    let waiting: Vec<Asking> = owner.ask(Request::Requests).await.expect("it answers");
    assert_eq!(waiting, [], "it was answered");
    // One that is younger is another wish.
    arrives("please", now.plus(Duration::from_secs(60)), 4);
    assert_eq!(until_requested(&owner).await[0].reason, "please");
    owner
        .ask::<Approved>(Request::Approve { name: "planner".into(), terms: Terms::default() })
        .await
        .expect("it waits");
    let trusted = asker.agent("planner".parse().expect("a name"));
    assert_eq!(owner.last_snapshot().peers[0].id, trusted);
    assert_eq!(owner.last_snapshot().peers[0].relays, [relay()]);
}

#[tokio::test]
async fn mail_that_nobody_can_read_is_thrown_away() {
    let owner = daemon("db").await;
    let asker = stranger(3);
    let for_another = mail(&owner.us, stranger(4).record(), &asker, "why", time::now(), 1);
    owner.link.events.try_send(for_another).expect("there is room");
    until_done(&owner, 1).await;
    let waiting: Vec<Asking> = owner.ask(Request::Requests).await.expect("it answers");
    assert_eq!(waiting, []);
}

#[tokio::test]
async fn a_handshake_that_reached_nobody_leaves_no_consent() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    *asker.link.refuse_asks.lock().expect("no panic") = true;
    let ticket = inviter.invite().await.to_string();
    let request = Request::Handshake { ticket, to: None, reason: "why".into(), terms: Terms::default() };
    let failure = asker.ask::<Asked>(request).await.expect_err("nobody answers");
    assert_eq!(failure.code, Code::Unreachable);
    assert!(asker.last_snapshot().peers.is_empty());
    let status: Status = asker.ask(Request::Status).await.expect("it answers");
    assert!(status.peers.is_empty());
}

/// `asker` asks, and `inviter` has said yes: they have a session.
async fn connected(inviter: &Running, asker: &Running) {
    ask_with_a_ticket(inviter, asker).await;
    let mut events = client::stream(&asker.place, &Request::Events).await.expect("it runs");
    asker.link.sessions.lock().expect("no panic").push(inviter.us.clone());
    let up = LinkEvent::SessionUp { peer: inviter.us.clone(), instance: InstanceId([1; 8]), path: "direct".into() };
    asker.link.events.send(up).await.expect("it hears");
    let connected: Value = events.next().await.expect("nothing fails").expect("it is told");
    assert_eq!((&connected["event"], &connected["approved"]), (&"connected".into(), &true.into()));
}

async fn ask_with_a_ticket(inviter: &Running, asker: &Running) {
    let ticket = inviter.invite().await.to_string();
    let request = Request::Handshake { ticket, to: None, reason: "why".into(), terms: Terms::default() };
    asker.ask::<Asked>(request).await.expect("the ticket is good");
}

/// How the one peer of an agent without sessions is shown.
async fn shown_without_a_session(running: &Running) -> Peer {
    running.link.sessions.lock().expect("no panic").clear();
    running.ask::<Vec<Peer>>(Request::Peers).await.expect("it answers").remove(0)
}

#[tokio::test]
async fn a_peer_that_is_asked_again_while_it_is_connected_is_not_waited_for() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    connected(&inviter, &asker).await;
    ask_with_a_ticket(&inviter, &asker).await;
    assert_eq!(shown_without_a_session(&asker).await.state, PeerState::NotConnected);
}

#[tokio::test]
async fn why_a_connect_and_a_ping_failed_is_shown_with_the_peer() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    connected(&inviter, &asker).await;
    let refused = DialError::Refused { peer: inviter.us.clone(), port: 0, status: StreamStatus::Busy };
    *asker.link.refuses.lock().expect("no panic") = Some(refused.clone());
    let request = Request::Ping { name: "db".into(), count: 1, interval_ms: 0 };
    let mut pongs = client::stream(&asker.place, &request).await.expect("it runs");
    let failure = pongs.next::<Value>().await.expect_err("it is refused");
    assert!(failure.message.contains("refused: "), "{failure}");
    assert_eq!(shown_without_a_session(&asker).await.why, Some(refused.to_string()));

    asker.link.sessions.lock().expect("no panic").push(inviter.us.clone());
    let refused = DialError::Refused { peer: inviter.us.clone(), port: 81, status: StreamStatus::Denied };
    *asker.link.refuses.lock().expect("no panic") = Some(refused.clone());
    let request = Request::Connect { name: "db".into(), port: 81 };
    let (connection, mut bytes) = client::raw::<u64>(&asker.place, &request).await.expect("it begins");
    assert_eq!(bytes.read(&mut [0; 8]).await.expect("it ends"), 0);
    let outcome = asker.ask::<Value>(Request::Outcome { connection }).await.expect_err("it was refused");
    assert_eq!(outcome.code, Code::Refused);
    assert_eq!(shown_without_a_session(&asker).await.why, Some(refused.to_string()));
}

#[tokio::test]
async fn a_bad_ticket_says_what_is_wrong_with_it() {
    let asker = daemon("planner").await;
    let ours = asker.invite().await.to_string();
    for (ticket, code) in
        [("hello", Code::TicketInvalid), (&ours[..ours.len() - 4], Code::TicketInvalid), (&ours, Code::OwnTicket)]
    {
        let request =
            Request::Handshake { ticket: ticket.into(), to: None, reason: "why".into(), terms: Terms::default() };
        let failure = asker.ask::<Asked>(request).await.expect_err("it is bad");
        assert_eq!(failure.code, code, "{failure}");
    }
}

#[tokio::test]
async fn revoke_and_wait_measures_until_the_streams_are_reset() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    let ticket = inviter.invite().await.to_string();
    let request = Request::Handshake { ticket, to: None, reason: "why".into(), terms: Terms::default() };
    asker.ask::<Asked>(request).await.expect("the ticket is good");
    asker.link.sessions.lock().expect("no panic").push(inviter.us.clone());
    let up = LinkEvent::SessionUp { peer: inviter.us.clone(), instance: InstanceId([1; 8]), path: "direct".into() };
    let mut events = client::stream(&asker.place, &Request::Events).await.expect("it runs");
    asker.link.events.send(up).await.expect("it hears");
    let connected: Value = events.next().await.expect("nothing fails").expect("it is told");
    assert_eq!(connected["event"], "connected");
    let request = Request::Revoke { name: "db".into(), wait: true };
    let revoked: Revoked = asker.ask(request.clone()).await.expect("it is a peer");
    assert_eq!(revoked.streams_reset, Some(2));
    assert!(revoked.reset_ms.is_some_and(|took| took < 1000.0), "{:?}", revoked.reset_ms);
    assert!(asker.last_snapshot().peers.is_empty());
    let failure = asker.ask::<Revoked>(request).await.expect_err("it is gone");
    assert_eq!(failure.code, Code::UnknownPeer);
}

#[tokio::test]
async fn revoking_an_agent_without_a_session_waits_for_nothing() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    let ticket = inviter.invite().await.to_string();
    let request = Request::Handshake { ticket, to: None, reason: "why".into(), terms: Terms::default() };
    asker.ask::<Asked>(request).await.expect("the ticket is good");
    // The session ends while the revocation is typed: the engine has it no more, and its end is not told yet.
    for event in [
        LinkEvent::SessionUp { peer: inviter.us.clone(), instance: InstanceId([1; 8]), path: "direct".into() },
        LinkEvent::SessionDown { peer: inviter.us.clone(), reason: "idle".into() },
    ] {
        asker.link.events.send(event).await.expect("it hears");
    }
    let revoked: Revoked = asker.ask(Request::Revoke { name: "db".into(), wait: true }).await.expect("it is a peer");
    assert!(revoked.streams_reset.unwrap_or_default() == 0, "{revoked:?}");
}

#[tokio::test]
async fn a_peers_new_keys_are_written_down_and_dialled_with() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    let ticket = inviter.invite().await.to_string();
    let request = Request::Handshake { ticket, to: None, reason: "why".into(), terms: Terms::default() };
    asker.ask::<Asked>(request).await.expect("the ticket is good");
    let before = asker.last_snapshot().peers[0].secrets.clone();
    let rotated: Rotated = inviter.ask(Request::Rotate { overlap_s: 3600 }).await.expect("nothing is under way");
    assert_eq!((rotated.sequence, rotated.until.is_some()), (2, true));
    let shown = Ticket::parse(&inviter.invite().await.to_string(), time::now()).expect("it is a ticket").record;
    let record = LinkEvent::PeerRecord { peer: inviter.us.clone(), record: Box::new(shown) };
    asker.link.events.send(record).await.expect("it hears");
    while asker.last_snapshot().peers[0].secrets.len() == 1 {
        tokio::task::yield_now().await;
    }
    let after = asker.last_snapshot().peers[0].secrets.clone();
    assert_eq!((after.len(), &after[1]), (2, &before[0]), "the former ones count, too");
    let refused = inviter.ask::<Rotated>(Request::Rotate { overlap_s: 3600 }).await.expect_err("one at a time");
    assert_eq!(refused.code, Code::LimitReached);
}

#[tokio::test]
async fn ping_echoes_through_a_stream() {
    let (inviter, asker) = (daemon("db").await, daemon("planner").await);
    let ticket = inviter.invite().await.to_string();
    let request = Request::Handshake { ticket, to: None, reason: "why".into(), terms: Terms::default() };
    asker.ask::<Asked>(request).await.expect("the ticket is good");
    asker.link.sessions.lock().expect("no panic").push(inviter.us.clone());
    let request = Request::Ping { name: "db".into(), count: 3, interval_ms: 0 };
    let mut pongs = client::stream(&asker.place, &request).await.expect("it runs");
    let mut seen = Vec::new();
    while let Some(pong) = pongs.next::<crate::control::view::Pong>().await.expect("nothing fails") {
        assert!(pong.rtt_ms.is_some());
        seen.push(pong.seq);
    }
    assert_eq!(seen, [1, 2, 3]);
}

#[tokio::test]
async fn a_second_daemon_on_the_state_says_that_one_runs() {
    let first = daemon("db").await;
    let failure = start(first.place.clone(), options("db"), fake().1).await.expect_err("it is taken");
    assert_eq!(failure.code, Code::AlreadyRunning);
    let status: Status = first.ask(Request::Status).await.expect("the first is unharmed");
    assert_eq!(status.agent, first.us);
}

#[tokio::test]
async fn a_name_that_others_know_does_not_change() {
    let first = daemon("db").await;
    first.invite().await;
    first.stopper.stop();
    first.running.await.expect("it ends").expect("it was told to");
    let failure = start(first.place.clone(), options("other"), fake().1).await.expect_err("a ticket names `db`");
    assert_eq!(failure.code, Code::HostnameFixed);
    let again = start(first.place, Options::default(), fake().1).await.expect("unsaid stays as it was");
    assert_eq!(*again.agent(), first.us);
}

#[tokio::test]
async fn down_ends_the_daemon_and_its_socket() {
    let running = daemon("db").await;
    let _: Value = running.ask(Request::Down).await.expect("it answers");
    running.running.await.expect("it ends").expect("it was told to");
    let failure = client::call::<Value>(&running.place, &Request::Status).await.expect_err("it is gone");
    assert_eq!(failure.code, Code::NotRunning);
}

#[tokio::test]
async fn exposing_a_port_offers_it_to_the_engine() {
    let running = daemon("db").await;
    let request = Request::Expose { service: "mcp=80:8080".into() };
    running.ask::<Value>(request).await.expect("it is free");
    assert_eq!(running.last_snapshot().ports[0].number, 80);
    running.ask::<Value>(Request::Unexpose { service: "80".into() }).await.expect("it was there");
    assert!(running.last_snapshot().ports.is_empty());
}
