//! The demo as its readers run it: the events it prints, its exit status, and that nothing of it stays.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

/// Debian's `nobody`: a user without any right.
const NOBODY: &str = "65534";

#[test]
fn two_agents_behind_home_routers_are_seen_to_work() {
    let room = Room::new();
    let events = room.succeeds(&["--rtt", "20"]);
    assert_eq!(one(&events, "connected")["path"], "relayed");
    assert_eq!(one(&events, "first_byte")["path"], "relayed");
    let changed = first(&events, "path_changed");
    assert_eq!((&changed["from"], &changed["to"]), (&"relayed".into(), &"punched".into()), "{changed}");
    assert!(number(&one(&events, "throughput")["gbit_per_s"]) > 0.0);
    assert!(number(&one(&events, "throughput")["past_relays"]) > 0.9, "the data did not pass a relay");
    let reset = number(&one(&events, "revoked")["reset_ms"]);
    assert!((0.0..=1000.0).contains(&reset), "{reset} ms");
    assert_eq!(one(&events, "done")["ok"], true);
    room.is_empty();
}

#[test]
fn two_agents_behind_symmetric_nats_stay_relayed_and_say_why() {
    let room = Room::new();
    let events = room.succeeds(&["--rtt", "20", "--nat-a", "symmetric", "--nat-b", "symmetric"]);
    assert!(events.iter().all(|event| event["event"] != "path_changed"), "there is no way");
    let why = one(&events, "stays_relayed")["why"].as_str().expect("a reason").to_owned();
    assert!(why.starts_with("both NATs are symmetric"), "{why}");
    assert_eq!(one(&events, "throughput")["path"], "relayed");
    one(&events, "revoked");
}

#[test]
fn a_user_without_rights_sees_the_same() {
    if !geteuid().is_root() {
        // Then the tests above were it.
        return;
    }
    let room = Room::new();
    let program = room.path().join("peerage");
    fs::copy(env!("CARGO_BIN_EXE_peerage"), &program).expect("there is space");
    let everybody = fs::Permissions::from_mode(0o777);
    fs::set_permissions(room.path(), everybody).expect("it is ours");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(&program);
    let output = room.run(command, &["--json", "demo", "--rtt", "20"]);
    let events = events(&output);
    assert!(output.status.success(), "{:?}", events.last());
    assert_eq!(first(&events, "path_changed")["to"], "punched");
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let room = Room::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerage"));
    command.args(["--json", "demo"]).env("TMPDIR", room.path()).stdout(Stdio::piped());
    let mut demo = command.spawn().expect("it starts");
    let mut lines = BufReader::new(demo.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(r#""event":"nat""#)), "agents run");
    let pid = Pid::from_raw(i32::try_from(demo.id()).expect("process numbers are small")).expect("and not zero");
    kill_process(pid, Signal::INT).expect("it runs");
    let said: Vec<String> = lines.collect();
    assert_eq!(demo.wait().expect("a child").code(), Some(130));
    assert!(!said.iter().any(|line| line.contains(r#""event":"failed""#)), "{said:?}");
    room.is_empty();
}

#[test]
fn without_curl_it_says_how_to_get_it() {
    let room = Room::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerage"));
    command.env("PATH", room.path());
    let output = room.run(command, &["--json", "demo"]);
    assert_eq!(output.status.code(), Some(1));
    let failed = one(&events(&output), "failed");
    assert!(failed["hint"].as_str().is_some_and(|hint| hint.contains("apt-get install -y curl")), "{failed}");
}

/// A place for one demo's temporary files. One demo at a time: each measures.
struct Room {
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Room {
    fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self { dir: tempfile::tempdir().expect("a directory"), _turn: turn }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, mut command: Command, words: &[&str]) -> Output {
        command.args(words).env("TMPDIR", self.path()).output().expect("it starts")
    }

    fn succeeds(&self, options: &[&str]) -> Vec<Value> {
        let words: Vec<&str> = ["--json", "demo"].iter().chain(options).copied().collect();
        let output = self.run(Command::new(env!("CARGO_BIN_EXE_peerage")), &words);
        let events = events(&output);
        assert!(output.status.success(), "{:#}", events.last().unwrap_or(&Value::Null));
        events
    }

    fn is_empty(&self) {
        let left: Vec<_> =
            fs::read_dir(self.path()).expect("it is there").flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Every line is an object.
fn events(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}

fn first(events: &[Value], name: &str) -> Value {
    let found = events.iter().find(|event| event["event"] == name);
    found.unwrap_or_else(|| panic!("there is no `{name}`: {events:?}")).clone()
}

fn one(events: &[Value], name: &str) -> Value {
    assert_eq!(events.iter().filter(|event| event["event"] == name).count(), 1, "`{name}` in {events:?}");
    first(events, name)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}
