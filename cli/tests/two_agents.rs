//! The command line as a newcomer uses it: a relay and two agents, real processes and sockets, all on loopback.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far above what anything here takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    dir: tempfile::TempDir,
    relay: Child,
    relay_at: String,
    agents: Vec<PathBuf>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut relay = peerage()
            .args(["relay", "--listen", "127.0.0.1:0", "--advertise", "127.0.0.1", "--open", "--grace", "0"])
            .arg("--key-file")
            .arg(dir.path().join("relay.key"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let stdout = relay.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it is");
        Self { dir, relay, relay_at: line.trim().to_owned(), agents: Vec::new() }
    }

    /// Starts an agent in the background, as `up --detach` does, and waits until its relay knows it.
    fn up(&mut self, name: &str, args: &[&str]) -> Agent {
        self.up_behind(None, name, args)
    }

    /// The same for an agent that is told of an HTTP proxy.
    fn up_behind(&mut self, proxy: Option<&str>, name: &str, args: &[&str]) -> Agent {
        let state = self.dir.path().join(name);
        self.agents.push(state.clone());
        let agent = Agent { state };
        let relay = self.relay_at.clone();
        let mut all = vec!["up", "--detach", "--hostname", name, "--relay", &relay];
        all.extend(args);
        let mut command = agent.command(&all);
        let started = command.envs(proxy.map(|proxy| ("HTTPS_PROXY", proxy))).output().expect("it starts");
        assert!(started.status.success(), "{all:?}: {}", String::from_utf8_lossy(&started.stderr));
        agent.until(|status| status["relays"][0]["up"] == true);
        agent
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for state in &self.agents {
            // One that a test has stopped is not there any more.
            let _ = peerage().arg("--state").arg(state).arg("down").output();
        }
        let _ = self.relay.kill();
        let _ = self.relay.wait();
    }
}

struct Agent {
    state: PathBuf,
}

impl Agent {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = peerage();
        command.arg("--state").arg(&self.state).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("it starts")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        let said = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?} said {said:?}: {error}"))
    }

    /// Looks at the status until it is as `wanted`.
    fn until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let status = self.json(&["status"]);
            if wanted(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "the status never became right: {status:#}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn until_connected(&self) -> Value {
        self.until(|status| status["peers"][0]["state"] == "connected" && status["peers"][0]["ports"][0].is_string())
    }
}

impl Agent {
    fn until_instance(&self) -> String {
        let status = self.until(|status| status["peers"][0]["instances"][0].is_string());
        status["peers"][0]["instances"][0].as_str().expect("it is text").to_owned()
    }
}

fn peerage() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerage"));
    command.env_remove("PEERAGE_STATE").env("PEERAGE_LOG", "warn");
    for variable in ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"] {
        command.env_remove(variable); // of whoever runs the tests
    }
    command
}

/// A server that answers each connection with `text` once it has read to the end.
fn server(text: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("it accepts");
            thread::spawn(move || {
                let mut asked = Vec::new();
                // A reset is one way for a connection to end.
                if stream.read_to_end(&mut asked).is_ok() {
                    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(&asked));
                }
            });
        }
    });
    port
}

/// Two agents that trust each other; the first exposes `db`'s port 80.
fn acquainted() -> (World, Agent, Agent) {
    acquainted_in(World::new(), None)
}

/// The same, where the second may be behind an HTTP proxy.
fn acquainted_in(mut world: World, proxy: Option<&str>) -> (World, Agent, Agent) {
    let service = format!("mcp=80:{}", server("hello "));
    let db = world.up("db", &["--expose", &service]);
    let planner = world.up_behind(proxy, "planner", &[]);
    let ticket = db.ok(&["invite", "--expires", "10m"]);
    let mut handshake = planner.command(&["handshake", "-", "to read reports"]);
    let mut handshake = handshake.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
    handshake.stdin.take().expect("it is piped").write_all(ticket.as_bytes()).expect("it reads");
    assert!(handshake.wait().expect("it ends").success());
    // The receipt is the engine's; the request is on disk a moment later.
    db.until(|status| status["requests"] == 1);
    assert!(db.ok(&["requests"]).contains("to read reports"));
    db.ok(&["approve", "planner"]);
    planner.until_connected();
    (world, db, planner)
}

#[test]
fn from_a_ticket_to_a_port_of_the_other_agent() {
    let (_world, db, planner) = acquainted();
    assert_eq!(planner.ok(&["connect", "db", "--message", "world"]), "hello world");
    assert!(planner.ok(&["ping", "db", "--count", "2", "--interval", "0"]).contains("2 answered"));
    assert_eq!(planner.json(&["bench", "db", "--seconds", "1"])["done"], true);
    let refused = planner.json(&["connect", "db", "--port", "81", "--message", "x"]);
    assert_eq!(refused["error"]["code"], "refused", "only what is exposed is open");
    let refused = db.json(&["connect", "planner", "--message", "x"]);
    assert_eq!(refused["error"]["code"], "refused", "asking opened nothing of the asker's");
}

/// An HTTP proxy that passes one CONNECT after another on to where they ask, and counts them.
fn connect_proxy() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let passed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&passed);
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        thread::spawn(move || {
            // A reset is one way for a connection to end.
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        })
    };
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("it accepts");
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") {
                client.read_exact(&mut byte).expect("a whole request");
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).expect("text");
            let place = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).expect("a CONNECT");
            let server = TcpStream::connect(place).expect("the relay listens");
            counter.fetch_add(1, Ordering::Relaxed);
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("it reads");
            copy(client.try_clone().expect("a handle"), server.try_clone().expect("a handle"));
            copy(server, client);
        }
    });
    (port, passed)
}

#[test]
fn without_udp_they_meet_by_tls_and_through_an_http_proxy_and_the_agent_says_so() {
    let mut world = World::new();
    // For these agents the relay's UDP port is one at which nobody answers.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
    let entry = world.relay_at.clone();
    let (key, tls) = entry.rsplit_once(':').expect("KEY@HOST:PORT");
    let tls = tls.rsplit_once('/').map_or(tls, |(_, tls)| tls);
    world.relay_at = format!("{key}:{}/{tls}", silent.local_addr().expect("it is bound").port());
    let (port, passed) = connect_proxy();
    let (_world, db, planner) = acquainted_in(world, Some(&format!("http://127.0.0.1:{port}")));
    assert_eq!(planner.ok(&["connect", "db", "--message", "by TLS"]), "hello by TLS");
    assert!(passed.load(Ordering::Relaxed) > 0, "it went through the proxy");
    for agent in [&db, &planner] {
        let status = agent.json(&["status"]);
        assert_eq!(
            (&status["relays"][0]["tls"], &status["nat"]["kind"]),
            (&true.into(), &"blocked".into()),
            "{status}"
        );
        assert!(agent.ok(&["status"]).contains("up by TLS on TCP, since UDP is not answered"));
    }
    let output = db.run(&["doctor"]);
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(found.contains(&format!("UDP to the relay is blocked; using TLS on TCP port {tls}")), "{found}");
}

#[test]
fn a_ticket_works_once() {
    let mut world = World::new();
    let (db, a, b) = (world.up("db", &[]), world.up("a", &[]), world.up("b", &[]));
    let ticket = db.ok(&["invite"]);
    a.ok(&["handshake", ticket.trim(), "first"]);
    db.until(|status| status["requests"] == 1);
    let second = b.json(&["handshake", ticket.trim(), "second"]);
    assert_eq!(second["error"]["code"], "unreachable", "nobody answers a used ticket");
    assert_eq!(b.json(&["status"])["peers"].as_array().map(Vec::len), Some(0), "and no consent is left over");
    db.ok(&["reject", "a"]);
    assert!(db.ok(&["requests"]).contains("Nobody asks"));
}

#[test]
fn revoking_resets_an_open_stream_within_a_second() {
    let (_world, db, planner) = acquainted();
    let mut connection = planner.command(&["connect", "db"]);
    let mut connection =
        connection.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    db.until(|status| status["peers"][0]["streams"].as_u64() > Some(0));
    let revoked = db.json(&["revoke", "planner", "--wait"]);
    assert!(revoked["reset_ms"].as_f64().is_some_and(|took| took < 1000.0), "{revoked}");
    assert!(revoked["streams_reset"].as_u64() > Some(0), "{revoked}");
    let status = connection.wait().expect("its stream was reset");
    assert!(!status.success(), "the other side learned it, too");
    let why = planner.until(|status| status["peers"][0]["state"] == "not_connected");
    assert_eq!(why["peers"][0]["why"], "the peer revoked its trust");
}

#[test]
fn everything_is_there_again_after_a_restart() {
    let (mut world, db, planner) = acquainted();
    db.ok(&["down"]);
    let again = world.up("db", &[]);
    again.until(|status| status["peers"][0]["name"] == "planner" && status["services"][0]["name"] == "mcp");
    assert_eq!(planner.ok(&["connect", "db", "--message", "again"]), "hello again");
}

impl Agent {
    /// How many sets of keys of its one peer's authority it has written down.
    fn records(&self) -> usize {
        let text = fs::read_to_string(self.state.join("state.json")).expect("it is there");
        let state: Value = serde_json::from_str(&text).expect("it is JSON");
        state["trusts"][0]["records"].as_array().expect("a list").len()
    }
}

#[test]
fn keys_are_rotated_under_an_open_connection_and_the_former_ones_end_by_themselves() {
    let (mut world, db, planner) = acquainted();
    let mut open = planner.command(&["connect", "db"]);
    let mut open = open.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    db.until(|status| status["peers"][0]["streams"].as_u64() > Some(0));
    let rotated = db.json(&["rotate", "--overlap", "3s"]);
    assert_eq!((&rotated["sequence"], &rotated["told"][0]), (&2.into(), &"planner".into()), "{rotated}");
    assert_eq!(db.json(&["rotate"])["error"]["code"], "limit_reached", "one rotation at a time");
    planner.until(|_| planner.records() == 2);
    db.until(|status| status["former_keys_until"].is_null());
    planner.until(|_| planner.records() == 1);
    open.stdin.take().expect("it is piped").write_all(b"all along").expect("the stream is open");
    let answer = open.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "hello all along", "no stream noticed");
    for agent in [&db, &planner] {
        agent.ok(&["down"]);
    }
    let (_db, planner) = (world.up("db", &[]), world.up("planner", &[]));
    planner.until_connected();
    assert_eq!(planner.ok(&["connect", "db", "--message", "anew"]), "hello anew", "the new keys alone do");
}

#[test]
fn a_peer_that_was_away_during_a_rotation_learns_the_new_keys_when_it_comes_back() {
    let (mut world, db, planner) = acquainted();
    planner.ok(&["down"]);
    db.until(|status| status["peers"][0]["state"] == "not_connected");
    let rotated = db.json(&["rotate"]);
    assert_eq!(rotated["waiting"][0], "planner", "{rotated}");
    let planner = world.up("planner", &[]);
    planner.until_connected();
    planner.until(|_| planner.records() == 2);
    assert_eq!(planner.ok(&["connect", "db", "--message", "back"]), "hello back");
}

#[test]
fn a_second_agent_on_a_state_and_none_at_all_have_their_own_codes() {
    let mut world = World::new();
    let db = world.up("db", &[]);
    for args in [&["up"][..], &["up", "--detach"]] {
        assert_eq!(db.json(args)["error"]["code"], "already_running", "{args:?}");
    }
    db.ok(&["down"]);
    let output = db.run(&["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("hint: start one with `peerage up`"));
    assert_eq!(db.json(&["status"])["error"]["code"], "not_running");
}

#[test]
fn what_cannot_be_understood_is_status_2_in_text_and_in_json() {
    let output = peerage().arg("fly").output().expect("it starts");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    let output = peerage().args(["fly", "--json"]).output().expect("it starts");
    assert_eq!(output.status.code(), Some(2));
    let said: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(said["error"]["code"], "usage");
}

#[test]
fn a_damaged_state_is_named_and_not_replaced() {
    let mut world = World::new();
    let db = world.up("db", &[]);
    db.ok(&["down"]);
    let file = db.state.join("state.json");
    fs::write(&file, "{").expect("it is ours");
    let said = db.json(&["up", "--detach"]);
    assert_eq!(said["error"]["code"], "state_unusable");
    assert!(said["error"]["message"].as_str().is_some_and(|text| text.contains("state.json")), "{said}");
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "{");
}

#[test]
fn a_denied_instance_stays_out_until_it_is_started_anew() {
    let (mut world, db, planner) = acquainted();
    let instance = db.until_instance();
    db.ok(&["revoke", "planner", "--instance", &instance]);
    db.until(|status| status["peers"][0]["state"] == "not_connected");
    planner.until(|status| status["peers"][0]["state"] == "not_connected");
    let refused = planner.json(&["connect", "db", "--message", "x"]);
    assert!(refused["error"]["code"].is_string(), "{refused}");
    planner.ok(&["down"]);
    let again = world.up("planner", &[]);
    assert_eq!(again.ok(&["connect", "db", "--message", "anew"]), "hello anew");
}

#[test]
fn a_public_agent_is_asked_by_its_name_alone_and_then_opens_its_port() {
    let mut world = World::new();
    let service = format!("mcp=80:{}", server("hello "));
    let db = world.up("db", &["--expose", &service, "--public"]);
    db.until(|status| status["relays"][0]["mailbox"] == true);
    let planner = world.up("planner", &[]);
    let asked = planner.json(&["handshake", "db", "to read reports"]);
    assert_eq!(asked["peer"], db.json(&["status"])["agent"], "the relay named the right authority: {asked}");
    db.until(|status| status["requests"] == 1);
    assert!(db.ok(&["requests"]).contains("to read reports"));
    db.ok(&["approve", "planner"]);
    planner.until_connected();
    assert_eq!(planner.ok(&["connect", "db", "--message", "world"]), "hello world");
    // Asking again, now that it is answered, shows nothing to the owner and breaks nothing.
    planner.ok(&["handshake", "db", "once more"]);
    assert_eq!(planner.ok(&["connect", "db", "--message", "again"]), "hello again");
    assert_eq!(db.json(&["status"])["requests"], 0);
}

#[test]
fn asking_for_a_name_looks_the_same_whether_or_not_somebody_has_it() {
    let mut world = World::new();
    let _hidden = world.up("hidden", &[]);
    let planner = world.up("planner", &[]);
    for name in ["hidden", "nobody"] {
        let asked = planner.json(&["handshake", name, "hello"]);
        assert_eq!(asked["name"], name, "{asked}");
        assert_eq!(asked["mailboxes"].as_array().map(Vec::len), Some(1), "{asked}");
        let told = planner.json(&["handshake", name, "hello"])["peer"].clone();
        assert_eq!(told, asked["peer"], "and the same at each look");
    }
}

#[test]
fn a_request_by_name_outlives_a_restart_of_the_owner_and_a_rejected_one_stays_rejected() {
    let mut world = World::new();
    let db = world.up("db", &["--public"]);
    db.until(|status| status["relays"][0]["mailbox"] == true);
    let planner = world.up("planner", &[]);
    db.ok(&["down"]);
    planner.ok(&["handshake", "db", "while you sleep"]);
    // Public as it was before: it is not said again.
    let db = world.up("db", &[]);
    db.until(|status| status["requests"] == 1);
    db.ok(&["reject", "planner"]);
    planner.ok(&["down"]);
    let planner = world.up("planner", &[]);
    // It posts again what was not answered. The owner has seen that; another wish of its shows that the mail went through.
    planner.ok(&["handshake", "db", "please"]);
    db.until(|status| status["requests"] == 1);
    assert!(db.ok(&["requests"]).contains("please"));
}
