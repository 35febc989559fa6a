//! `peerage-agent --keep` as a process: what a container's first process does for its pod.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Far above what anything here takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

const AGENT: &str = env!("CARGO_BIN_EXE_peerage-agent");

struct Kept {
    process: Child,
    health: SocketAddr,
    _state: tempfile::TempDir,
}

impl Kept {
    fn start() -> Self {
        Self::start_by(&mut Command::new(AGENT))
    }

    fn start_by(command: &mut Command) -> Self {
        let state = tempfile::tempdir().expect("a folder");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port is free");
        let process = command
            .arg("--keep")
            .env("PEERAGE_STATE", state.path().join("agent"))
            .env("PEERAGE_HEALTH", free.to_string())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let kept = Self { process, health: free, _state: state };
        eventually("the agent answers", || kept.answers().then_some(()));
        kept
    }

    /// The process that works.
    fn agent(&self) -> Option<i32> {
        let keeper = self.process.id();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.health)?;
            write!(stream, "GET /healthz HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        ask().is_ok_and(|answer| answer.contains("200 OK"))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The agent first, which would go on without its keeper; either may have ended.
        if let Some(agent) = self.agent() {
            let _ = kill_process(pid(agent), Signal::KILL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pid(number: i32) -> Pid {
    Pid::from_raw(number).expect("a process has a positive number")
}

#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_agent_that_is_killed_is_there_again_in_another_process() {
    let kept = Kept::start();
    let first = kept.agent().expect("it runs");
    kill_process(pid(first), Signal::KILL).expect("it can be killed");
    eventually("another process", || kept.agent().filter(|agent| *agent != first));
    eventually("it answers", || kept.answers().then_some(()));
}

#[test]
fn told_to_stop_both_end_and_well() {
    let mut kept = Kept::start();
    let agent = kept.agent().expect("it runs");
    kill_process(Pid::from_child(&kept.process), Signal::TERM).expect("it can be told");
    let status = eventually("it ends", || kept.process.try_wait().expect("it is ours"));
    assert!(status.success(), "{status}");
    assert!(!fs::exists(format!("/proc/{agent}")).expect("/proc is there"), "the agent has ended, too");
}

#[test]
fn told_to_stop_it_does_not_start_an_agent_anew_that_dies_of_it() {
    let mut kept = Kept::start();
    let agent = kept.agent().expect("it runs");
    kill_process(pid(agent), Signal::STOP).expect("it can be stopped");
    eventually("it stands still", || status(agent, "State").starts_with('T').then_some(()));
    kill_process(Pid::from_child(&kept.process), Signal::TERM).expect("it can be told");
    // What the keeper passes on waits with the agent.
    eventually("the signal", || {
        let pending = u64::from_str_radix(&status(agent, "ShdPnd"), 16).expect("it is a number");
        (pending & (1 << (Signal::TERM.as_raw() - 1)) != 0).then_some(())
    });
    kill_process(pid(agent), Signal::KILL).expect("it can be killed");
    let status = eventually("it ends", || kept.process.try_wait().expect("it is ours"));
    assert!(status.success(), "{status}");
}

/// What the kernel says of a process (proc(5), `status`).
fn status(process: i32, what: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    line.expect("the kernel tells").trim().to_owned()
}

#[test]
fn an_agent_that_says_why_it_cannot_run_is_not_started_anew() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerage-agent"));
    let said = command.arg("--keep").env("PEERAGE_RELAYS", "no relay").output().expect("it runs");
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&said.stderr).contains("PEERAGE_RELAYS"), "{said:?}");
}

#[test]
fn an_agent_asks_for_as_many_files_as_its_user_may_have() {
    let kept = Kept::start_by(Command::new("sh").args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\"", AGENT]));
    let agent = kept.agent().expect("it runs");
    let limits = fs::read_to_string(format!("/proc/{agent}/limits")).expect("it runs");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("it is one of them");
    let mut numbers = files.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let (soft, hard) = (numbers.next().expect("the soft one"), numbers.next().unwrap_or(u64::MAX));
    assert!(soft > 256 || hard <= 256, "{files}");
}

#[test]
fn who_looks_for_the_agent_by_its_name_finds_the_one_that_works() {
    let kept = Kept::start();
    let agent = kept.agent().expect("it works");
    let name = |process: i32| fs::read_to_string(format!("/proc/{process}/comm")).expect("it runs").trim().to_owned();
    assert_eq!(name(agent), "peerage-agent");
    assert_eq!(name(kept.process.id().cast_signed()), "peerage-keep");
}
